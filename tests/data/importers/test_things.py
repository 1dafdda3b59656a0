"""THINGS-fMRI: what the tables say about voxels, trials and images."""

from pathlib import Path

import numpy as np
import pytest
from published import EXACT
from published.things import N_REPEATS, TEST, TRAIN, N, Published

from ubrain.crowd import Crowd
from ubrain.data.importers.recording import Options
from ubrain.data.importers.things import import_things


@pytest.fixture
def things(tmp_path: Path) -> Published:
    return Published(tmp_path / "things")


def test_places_areas_and_ceilings_are_those_of_the_table(
    things: Published, tmp_path: Path
) -> None:
    things.tables["sub-01"]["betas"][5] = 1 + np.arange(N) % 3  # no voxel is dropped
    things.write_subject("sub-01")
    account = import_things(things.root, tmp_path / "crowd.h5", EXACT)
    assert f"ncsnr from the published nc_testset, for {N_REPEATS} repeats of an image" in account
    assert "Not there: 1 images, such as missing_01s.jpg; their 1 trials are left out" in account
    with Crowd(tmp_path / "crowd.h5") as crowd:
        voxels, key = crowd["things-sub-01"].voxels, crowd.file["images/key"].asstr()[0]
        assert crowd["things-sub-01"].group.attrs["space"] == "T1w"
    assert voxels[["i", "j", "k"]].to_numpy().tolist() == [[10 + row, 7, 3] for row in range(11)]
    assert list(voxels["areas"][:5]) == ["V1", "V1", "LO1 (prf)", "FFA,glasser-FFC", "FFA,EBA"]
    assert list(voxels["hemisphere"][:5]) == ["", "", "", "L", "R"]
    ceiling = voxels["ncsnr"] ** 2 / (voxels["ncsnr"] ** 2 + 1 / N_REPEATS)
    np.testing.assert_allclose(100 * ceiling, np.linspace(0, 60, 11), atol=1e-4)
    assert key.split()[0].startswith("things:")


def test_only_some_voxels_and_one_subject(things: Published, tmp_path: Path) -> None:
    only = Options(subjects=["1"], areas="FFA,V1", normalise="run", dtype="float32")
    import_things(things.root, tmp_path / "crowd.h5", only, images=things.root / "object_images")
    with Crowd(tmp_path / "crowd.h5") as crowd:
        subject = crowd["things-sub-01"]
        assert crowd.subjects == ["things-sub-01"]
        assert list(subject.voxels["source_row"]) == [0, 1, 3, 4]
        assert len(np.unique(subject.trials.unit)) == 4
        assert len(crowd.image_ids) == len(TRAIN) + len(TEST)


def test_who_lacks_a_table_is_left_out(things: Published, tmp_path: Path, refused, caplog) -> None:
    things.path("sub-02", 1).unlink()
    with refused(tmp_path / "out.h5", "has no sub-02_VoxelMetadata"):
        import_things(things.root, tmp_path / "out.h5", Options(subjects=["sub-02"]))
    import_things(things.root, tmp_path / "out.h5", EXACT)
    assert "sub-02 is left out" in caplog.text
