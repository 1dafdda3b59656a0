"""Single-trial betas: what goes wrong silently elsewhere (the rest: `published.bids`)."""

import base64
import os
import pickle
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from nibabel.cifti2 import ScalarAxis
from published import EXACT, rewrite
from published.bids import (
    GRID,
    LEFT,
    MASK,
    MODEL,
    OBLIQUE,
    OUTPUTS,
    RIGHT,
    SURFACE,
    VOLUME,
    Published,
    ciftis,
    gifti,
    glmsingle,
    models,
    surfaces,
    volume,
    volumes,
)

from ubrain.crowd import Crowd
from ubrain.data.importers import betas, pipeline
from ubrain.data.importers import surfaces as surface_files
from ubrain.data.importers.bids import import_bids
from ubrain.errors import UbrainError

FIRST = replace(EXACT, subjects=["sub-01"])


def responses(out: Path, subject: str = "bids-sub-01") -> np.ndarray:
    with h5py.File(out) as file:
        return file[f"subjects/{subject}/responses"][:]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


def session_betas(root: Path, n: int = 8, **names: str) -> tuple[Published, np.ndarray]:
    """A file of a session, and a table of its trials, as LAION-fMRI has them."""
    made = Published(root)
    values = np.random.default_rng(1).normal(size=(*GRID, n)).astype(np.float32)
    place = "sub-1/ses-01/func/sub-1_ses-01_task-images"
    volume(made.file(f"{place}_space-T1w_stat-effect_desc-All_statmap.nii.gz"), values)
    rows = "".join(f"1\t{1 + i // 4}\t{i}\tim{i % 4}.png\n" for i in range(n))
    made.file(f"{place}_desc-All_trials.tsv").write_text("session\trun\tbeta_index\tlabel\n" + rows)
    return made, values


def test_runs_of_a_session_are_those_of_the_table(tmp_path: Path, out: Path) -> None:
    made, values = session_betas(tmp_path / "data")
    text = import_bids(made.root, out, replace(EXACT, normalise="run"), images=made.root / "images")
    assert "column 'label' (the only one whose values all name files): 4 names" in text
    with Crowd(out) as crowd:
        assert crowd["bids-sub-1"].trials.unit.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(responses(out, "bids-sub-1"), values.reshape(-1, 8).T)


def test_a_table_that_has_changed_is_not_passed_over(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an interrupted import, also if the order of the images is still the same."""
    made, values = session_betas(tmp_path / "data")
    (path,) = made.root.rglob("*_trials.tsv")
    head, *rows = path.read_text().splitlines()
    shown = [row.split("\t")[3] for row in rows[1:]]

    def shift(first: list[str]) -> None:
        labels = [*first, *shown[1:]]
        path.write_text("\n".join([head, *(f"1\t1\t{i}\t{x}" for i, x in enumerate(labels))]))

    shift([shown[0], "n/a"])
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_bids(made.root, out, EXACT, images=made.root / "images")
    shift(["n/a", shown[0]])
    import_bids(made.root, out, EXACT, images=made.root / "images")
    np.testing.assert_array_equal(responses(out, "bids-sub-1"), values.reshape(-1, 8).T[1:])


def test_listed_test_images_that_nobody_saw_are_counted(tmp_path: Path, out: Path) -> None:
    made, _ = session_betas(tmp_path / "data")
    made.file("test.txt").write_text("im0.png\nim5x.png\n")
    listed = {"images": made.root / "images", "test_images": made.root / "test.txt"}
    assert "Test images: 1 of 2 in test.txt were shown" in import_bids(
        made.root, out, EXACT, **listed
    )


def test_a_mask_may_be_off_by_what_rounding_does(tmp_path: Path, out: Path) -> None:
    made, values = session_betas(tmp_path / "data")
    volume(made.file("mask_sub-1.nii"), MASK.astype(np.float32), 1, OBLIQUE + 0.0009)
    import_bids(made.root, out, EXACT, mask=f"{made.root}/mask_{{subject}}.nii")
    np.testing.assert_array_equal(responses(out, "bids-sub-1"), values[MASK].T)


def test_voxels_that_are_constant_in_a_session_are_counted(tmp_path: Path, out: Path) -> None:
    made = glmsingle(tmp_path / "data", matlab=False)
    with h5py.File(made.root / f"{MODEL}.hdf5", "r+") as file:
        file["betasmd"][3, 2, 1] = 0
        file["betasmd"][0, 0, 1, 3] = np.nan
    text = import_bids(made.root, out, FIRST, stimuli=made.root / "list.txt")
    assert (
        "1 of 24 voxels were dropped: the same number in all trials of a session (at 3 2 1)" in text
    )
    assert (
        "1 of 24 voxels were dropped: not a number, or infinite, in some trial (at 0 0 1)" in text
    )


def test_one_version_of_several_is_chosen(tmp_path: Path, out: Path) -> None:
    made = volumes(tmp_path / "data")
    for path in made.root.glob("betas/sub-01/*/*/*statmap.nii.gz"):
        other = path.with_name(path.name.replace("T1w", "MNI"))
        volume(other, np.ones((3, 3, 3, 12), np.float32))
    with pytest.raises(UbrainError, match="several versions"):
        import_bids(made.root, out, FIRST)
    import_bids(made.root, out, FIRST, entities="space-t1W", mask=made.root / "mask.nii.gz")
    np.testing.assert_allclose(responses(out), made.values("sub-01"), rtol=1e-5)


def test_contrasts_and_other_files_are_no_betas(tmp_path: Path, out: Path) -> None:
    made = volumes(tmp_path / "data")
    extra = made.root / VOLUME.replace("stat-effect", "stat-t")
    volume(extra, np.ones(GRID, np.float32))
    import_bids(made.root, out, FIRST)
    volume(made.root / VOLUME, np.ones(GRID, np.float32))
    with pytest.raises(
        UbrainError, match=r"expected betas \(x, y, z, trials\), one volume per tri"
    ):
        import_bids(made.root, tmp_path / "b.h5", FIRST)


@pytest.mark.parametrize("encoding", ["ASCII", "B64BIN"])
def test_surfaces_with_a_medial_wall_and_names_of_areas(
    tmp_path: Path, out: Path, encoding: str
) -> None:
    made = surfaces(tmp_path / "data")
    flat = made.betas["sub-01", 2].reshape(12, -1)[:, LEFT : LEFT + RIGHT] * np.float32(0.01)
    flat[:, 2] = np.nan
    gifti(made.root / SURFACE, flat, "R", encoding)
    for hemi, n in (("L", LEFT), ("R", RIGHT)):
        gifti(made.file(f"a.{hemi}.gii"), np.arange(n)[None] % 3, hemi)
    made.file("a.L.json").write_text('{"V1": 1, "2": "V2"}')
    made.file("a.R.json").write_text('{"V3": 1, "2": "V4"}')
    text = import_bids(
        made.root, out, FIRST, image_column="image", atlas=f"{made.root}/a.{{hemi}}.gii"
    )
    assert "1 of 12 voxels were dropped" in text
    assert "(at R 2)" in text
    with Crowd(out) as crowd:
        voxels = crowd["bids-sub-01"].voxels
    assert "".join(voxels["hemisphere"]) == "L" * LEFT + "R" * (RIGHT - 1)
    assert list(voxels["vertex"]) == [*range(LEFT), 0, 1, 3, 4]
    assert list(voxels["areas"][:4]) == ["", "V1", "V2", ""]
    assert list(voxels["areas"][LEFT:]) == ["", "V3", "", "V3"]
    np.testing.assert_allclose(responses(out)[:12, LEFT:], flat[:, [0, 1, 3, 4]], rtol=1e-6)


def test_a_mask_of_grayordinates_has_the_same_brain_models(tmp_path: Path, out: Path) -> None:
    made, axis = ciftis(tmp_path / "data"), models()
    values = np.zeros((1, len(axis)), np.float32)
    values[0, [1, -1]] = 1
    for name, order in (("same", slice(None)), ("other", slice(None, None, -1))):
        image = nib.Cifti2Image(values[:, order], (ScalarAxis(["mask"]), axis[order]))
        nib.save(image, made.file(f"{name}.dscalar.nii"))
    with pytest.raises(UbrainError, match=r"other.*its brain models are not those of"):
        import_bids(made.root, out, FIRST, mask=made.root / "other.dscalar.nii")
    import_bids(made.root, out, FIRST, mask=made.root / "same.dscalar.nii")
    expected = made.values("sub-01")[:, [1, -1]]
    np.testing.assert_allclose(responses(out), expected, rtol=1e-5)


def test_a_bomb_is_not_unpacked(tmp_path: Path, out: Path) -> None:
    made = surfaces(tmp_path / "data")
    text = (made.root / SURFACE).read_text()
    bomb = base64.b64encode(zlib.compress(bytes(200 << 20))).decode()
    (made.root / SURFACE).write_text(re.sub("<Data>[^<]*", f"<Data>{bomb}", text, count=1))
    with pytest.raises(UbrainError, match=r"a data array has 5\.2|cannot be read"):
        import_bids(made.root, out, FIRST, image_column="image")


def version_5(made: Published) -> None:
    """As MATLAB's `save` without -v7.3."""
    for path in made.root.rglob("TYPED*.hdf5"):
        with h5py.File(path) as file:
            scipy.io.savemat(path.with_suffix(".mat"), {"modelmd": file["betasmd"][:]})
        path.unlink()


def two_axes(made: Published) -> None:
    for path in made.root.rglob("TYPED*.hdf5"):
        with h5py.File(path) as file:
            values = file["betasmd"][:]
        values = values.reshape(-1, values.shape[-1])
        rewrite(path, betasmd=values if "ses-2" in str(path) else values[:, None, None])


@pytest.mark.parametrize("change", [version_5, two_axes, lambda made: None])
@pytest.mark.parametrize("part_bytes", [1, 300, 1 << 20])
def test_outputs_of_glmsingle_in_any_form_and_in_small_parts(
    tmp_path: Path, out: Path, monkeypatch, change: Callable[[Published], None], part_bytes: int
) -> None:
    monkeypatch.setattr(betas, "PART_BYTES", part_bytes)
    made = glmsingle(tmp_path / "data", matlab=False)
    change(made)
    mask = "" if change is two_axes else made.root / "mask.nii.gz"
    import_bids(made.root, out, FIRST, stimuli=made.root / "list.txt", mask=mask)
    values = np.concatenate([made.betas[k].reshape(-1, 24) for k in made.runs("sub-01")]) * 0.01
    expected = values if change is two_axes else values[:, MASK.reshape(-1)]
    np.testing.assert_allclose(responses(out), expected, rtol=1e-5)


def test_whose_outputs_they_are_is_not_guessed(tmp_path: Path, out: Path) -> None:
    made = glmsingle(tmp_path / "data", matlab=True)
    for subject in ("sub-01", "sub-02"):
        (made.root / subject).rename(made.root / f"person{subject[-1]}")
    for session in ("2", "10"):
        (made.root / f"person1/ses-{session}").rename(made.root / f"person1/day{session}")
    with pytest.raises(UbrainError, match=r"whose, and of which session, are person1/day2/.*day10"):
        import_bids(made.root, out, EXACT, stimuli=made.root / "list.txt")


def test_the_first_condition_can_be_said(tmp_path: Path, out: Path) -> None:
    made = glmsingle(tmp_path / "data", matlab=False)
    made.file("list.txt").write_text("im9\n" + "".join(f"im{i}\n" for i in range(10)))
    with h5py.File(made.root / f"{OUTPUTS}/DESIGNINFO.hdf5", "r+") as file:
        file["stimorder"][...] = file["stimorder"][:] % 9 + 1
    with pytest.raises(UbrainError, match="goes from 1 to 9, the list has 11 images: the first"):
        import_bids(made.root, out, FIRST, stimuli=made.root / "list.txt")
    import_bids(made.root, out, FIRST, stimuli=made.root / "list.txt", first_condition=0)
    with Crowd(out) as crowd:
        shown = crowd.image_ids[crowd["bids-sub-01"].trials.image][:12]
    assert list(shown) == [f"im{i % 9}" for i in made.shown["sub-01", 2]]


class Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, (str(Hostile.made),)


def test_a_pickle_is_never_read(tmp_path: Path, out: Path) -> None:
    made, Hostile.made = glmsingle(tmp_path / "data", matlab=False), tmp_path / "harm"
    np.save(made.root / f"{MODEL}.npy", np.array(Hostile(), dtype=object), allow_pickle=True)
    import_bids(made.root, out, FIRST, stimuli=made.root / "list.txt")  # HDF5 is there, too
    (made.root / f"{MODEL}.hdf5").unlink()
    with pytest.raises(UbrainError, match=r"TYPED.*\.npy is a pickled Python object"):
        import_bids(made.root, tmp_path / "b.h5", FIRST, stimuli=made.root / "list.txt")
    assert not Hostile.made.exists()
    assert pickle.dumps(Hostile())


def test_nifti_2_is_read_and_is_no_cifti(tmp_path: Path) -> None:
    image = nib.Nifti2Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), OBLIQUE)
    nib.save(image, tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(betas.read_volume(tmp_path / "two.nii.gz"), image.get_fdata())
    np.testing.assert_allclose(betas.open_volume(tmp_path / "two.nii.gz").affine, OBLIQUE)
    with pytest.raises(UbrainError, match=r"two.nii.gz cannot be read"):
        surface_files.open_cifti(tmp_path / "two.nii.gz")
