"""NOD: the order of runs, sessions that are left out, areas of the whole cortex."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from published import EXACT
from published.mosaic import write_labels
from published.nod import IMAGENET, Published, brain, write_cifti

from ubrain.crowd import Crowd
from ubrain.data.importers.mosaic import MOSAIC
from ubrain.data.importers.nod import import_nod
from ubrain.data.importers.recording import Options


@pytest.fixture
def nod(tmp_path: Path) -> Published:
    return Published(tmp_path / "nod")


def test_runs_are_counted_and_a_session_is_left_out(nod: Published, tmp_path: Path) -> None:
    first, fifth = (nod.path("sub-01", f"imagenet0{session}", 1) for session in (1, 5))
    shutil.copy(first, fifth)
    account = import_nod(nod.root, tmp_path / "crowd.h5", EXACT)
    assert "Session imagenet05 is left out, as by the authors" in account
    assert "Runs: 4 of ImageNet, 3 of COCO" in account
    with Crowd(tmp_path / "crowd.h5") as crowd:
        trials = crowd.file["subjects/nod-sub-01/trials"]
        assert trials["session"][::3].tolist() == [0, 0, 0, 1, 2, 2, 2]
        assert crowd["nod-sub-01"].voxels["vertex"].tolist() == [3, 4, 8, 9, 20, 0, 5, 7]
        keys = crowd.file["images/key"].asstr()[:]
    assert {re.split(r"[:_]", key)[0] for key in keys} == {"imagenet", "coco"}


def test_trials_without_an_image_are_left_out(nod: Published, tmp_path: Path) -> None:
    for name in (IMAGENET[0], *IMAGENET[3:6]):
        next((nod.root / "stimuli").rglob(name)).unlink()
    account = import_nod(nod.root, tmp_path / "crowd.h5", Options(dtype="float32"))
    assert f"4 images, such as {IMAGENET[0]}; their trials are left out" in account
    with Crowd(tmp_path / "crowd.h5") as crowd:
        assert crowd["nod-sub-01"].n_trials == 21 - 4
        first = crowd["nod-sub-01"].group["responses"][:2]
    (_, values), *_ = nod.runs["sub-01"]
    np.testing.assert_array_equal(first, values[1:3, : first.shape[1]])


def test_areas_of_the_whole_cortex(nod: Published, tmp_path: Path, refused) -> None:
    labels, out = write_labels(tmp_path / "mmp_1.0.npz"), tmp_path / "crowd.h5"
    with refused(out, "--labels: expected 29696 vertices of the left and 29716 of the right"):
        import_nod(nod.root, out, labels=labels)
    right = MOSAIC.cortex - MOSAIC.left
    axis = brain([*range(MOSAIC.left)], [*range(right)], 0, 32492)
    rng = np.random.default_rng(0)
    for run in (1, 2):
        values = rng.normal(size=(3, MOSAIC.cortex)).astype(np.float32)
        write_cifti(nod.path("sub-10", "imagenet01", run), values, IMAGENET[:3], axis)
    import_nod(nod.root, out, Options(subjects=["10"], areas="V1,V2"), labels=labels)
    with Crowd(out) as crowd:
        voxels = crowd["nod-sub-10"].voxels
    assert list(voxels["areas"]) == ["V1"] * 8 + ["V2"] * 2
    assert list(voxels["vertex"]) == [*range(40, 46), *range(4)]
