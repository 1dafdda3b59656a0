"""LAION-fMRI: what is special about its names, masks, pictures and splits."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from published import EXACT
from published.laion import (
    AFFINE,
    BETAS,
    CONFLICT,
    GRID,
    MASK,
    N_TRIALS,
    OUT,
    SHARED,
    TRIALS,
    Published,
    make_newer,
    make_older,
    mask_file,
    own,
)

from ubrain.crowd import Crowd
from ubrain.data.importers import laion
from ubrain.data.importers.laion import import_laion
from ubrain.data.importers.read import read_rgb
from ubrain.data.importers.recording import Options, Recording

ONE = replace(EXACT, subjects=["1"])


@pytest.fixture
def older(tmp_path: Path) -> Published:
    return make_older(tmp_path / "older")


@pytest.fixture
def newer(tmp_path: Path) -> Published:
    return make_newer(tmp_path / "newer")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """What the importer hands on; nothing is written."""
    found = list[Recording]()
    monkeypatch.setattr(laion, "import_recordings", lambda r, *_: found.extend(r) or "")
    return found


def test_the_code_in_names_of_images_is_not_the_subject(
    older: Published, out: Path, refused
) -> None:
    """Images of sub-03 are called ..._p04.jpg."""
    with refused(out, "no subject '4'; found sub-01, sub-03"):
        import_laion(older.root, out, replace(EXACT, subjects=["4"]))
    import_laion(older.root, out, replace(EXACT, subjects=["sub-03"]))
    with Crowd(out) as crowd:
        assert crowd.subjects == ["laion-sub-03"]
        assert {i for i in crowd.image_ids if i.startswith("unique")} == {*own("sub-03")}


def test_blanks_in_names_count(newer: Published, out: Path) -> None:
    """Two files differ in their suffix only, behind a blank; the first is gone."""
    names = [name for name in newer.data if name != SHARED[5]]
    newer.write_packed([*names, SHARED[5].replace(" .jpg", ".jpg")][:-1])
    text = import_laion(newer.root, out, ONE)
    n = sum(newer.shown("sub-01", s).count(SHARED[5]) for s in (1, 2))
    assert f"1 images, such as {SHARED[5]!r}; their {n} trials are left out" in text
    with Crowd(out) as crowd:
        assert SHARED[6] in crowd.image_ids
        assert SHARED[5] not in crowd.image_ids


@pytest.mark.parametrize("make", [make_older, make_newer])
def test_of_trials_without_image_the_others_keep_their_responses(
    tmp_path: Path, out: Path, make
) -> None:
    made = make(tmp_path / "data")
    if make is make_older:
        (made.root / "stimuli/images" / SHARED[2]).unlink()
    else:
        made.write_packed([name for name in made.data if name != SHARED[2]])
    import_laion(made.root, out, ONE)
    truth = made.truth()["laion-sub-01"]
    rows = [row for row, name in enumerate(truth.shown) if name != SHARED[2]]
    with Crowd(out) as crowd:
        mine = crowd["laion-sub-01"]
        assert list(crowd.image_ids[mine.trials.image]) == [truth.shown[row] for row in rows]
        np.testing.assert_array_equal(mine.group["responses"][:], truth.values[rows])


def test_transparent_pictures_are_seen_on_grey(tmp_path: Path) -> None:
    pixels = [[[255, 0, 100, alpha] for alpha in (0, 51, 255)]]
    Image.fromarray(np.array(pixels, np.uint8)).save(tmp_path / "x.png")
    seen = read_rgb(tmp_path / "x.png", background=127.5)
    assert seen.tolist() == [[[128] * 3, [153, 102, 122], [255, 0, 100]]]
    assert read_rgb(tmp_path / "x.png").tolist() == [[[255, 0, 100]] * 3]


def test_mixtures_of_both_layouts(older: Published, out: Path) -> None:
    """Each kind of file is looked for where either has it; of masks, the newer counts."""
    older.write_packed()
    older.write_map(mask_file("sub-01", "faces/FFA1"), np.ones(GRID, "u1"))
    (older.root / "stimuli/images").rename(older.root / "stimuli/away")
    import_laion(older.root, out, ONE)
    with Crowd(out) as crowd:
        voxels = crowd["laion-sub-01"].voxels
    i = voxels["i"].to_numpy()
    assert list(voxels["areas"]) == ["V1v,FFA-1" if x == 1 else "FFA-1" for x in i]


def test_voxels_by_threshold_file_and_area(newer: Published, described: list[Recording]) -> None:
    def places(voxels: str) -> list[tuple[int, int, int]]:
        described.clear()
        import_laion(newer.root, "x.h5", ONE, voxels=voxels)
        return [*described[0].voxels[["i", "j", "k"]].itertuples(index=False, name=None)]

    grid = np.indices(GRID).reshape(3, -1).T  # the order of the package: z fastest
    brain = [tuple(p) for p in grid.tolist() if 1 <= p[0] < 4 and 1 <= p[1] < 3]
    assert places("R2mean>15") == brain
    assert len(places("r2mean > 9.5")) == np.prod(GRID) - 1  # one is NaN
    assert places("ffa1, V1V") == [tuple(p) for p in grid.tolist() if p[0] in (1, 2) and p[1] > 0]
    one = np.zeros(GRID)
    one[4, 0, 2] = 1
    newer.write_map("mine/sub-01", one)
    assert places(f"{newer.root}/mine/{{subject}}.nii.gz") == [(4, 0, 2)]


def test_a_mask_of_another_affine_is_refused(newer: Published, out: Path, refused) -> None:
    newer.write_map("mine", np.ones(GRID, "u1"), AFFINE * 1.1)
    with refused(out, r"mine\.nii\.gz: its affine is not that of sub-01_ses-01"):
        import_laion(newer.root, out, ONE, voxels=f"{newer.root}/mine.nii.gz")


@pytest.mark.parametrize(
    ("ceiling", "share"),
    [(None, 1 / 12), ("4rep", 1 / 4), ("Allrep", (881 / 12 + 5323 / 4) / (881 + 5323))],
)
def test_ncsnr_of_a_ceiling_in_percent(
    older: Published, described: list[Recording], ceiling: str | None, share: float
) -> None:
    import_laion(older.root, "x.h5", ONE, ceiling=ceiling)
    ncsnr = described[0].voxels["ncsnr"].to_numpy()
    np.testing.assert_allclose(100 * ncsnr**2 / (ncsnr**2 + share), 75, rtol=1e-6)
    assert f"Noiseceiling{ceiling or '12rep'}, mean of 1 / repeats {share:.4f}" in (
        described[0].ceiling
    )


def test_betas_that_are_scaled_whole_numbers(older: Published, out: Path) -> None:
    """Their stored type is not known."""
    stored = np.random.default_rng(0).integers(-900, 900, (*GRID, N_TRIALS)).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.01, 0.5)
    nib.save(image, older.root / BETAS)
    import_laion(older.root, out, ONE, sessions="1")
    expected = nib.load(older.root / BETAS).get_fdata()[older.brain].T
    with Crowd(out) as crowd:
        np.testing.assert_allclose(
            crowd["laion-sub-01"].group["responses"][:], expected, rtol=1e-5, atol=1e-6
        )


def test_a_session_without_table_of_trials_is_left_out(older: Published, out: Path, caplog) -> None:
    (older.root / TRIALS).unlink()
    text = import_laion(older.root, out, ONE)
    assert "is left out: there is no table of its trials" in caplog.text
    assert "Not there: betas of session 1, 3-30" in text


def test_numbers_of_sessions_and_runs_may_be_texts(older: Published, out: Path) -> None:
    older.write_trials("sub-01", 1, session="ses-01", run=["run-01"] * 8 + ["run-02"] * 8)
    import_laion(older.root, out, replace(ONE, normalise="run"))
    with Crowd(out) as crowd:
        assert len({*crowd["laion-sub-01"].trials.unit}) == 4


# --- splits


def test_named_splits_are_the_files_and_what_they_say_together(
    older: Published, described: list[Recording]
) -> None:
    import_laion(older.root, "x.h5", EXACT)
    images = described[0].images

    def of(scheme: str) -> dict[str, str]:
        return dict(zip(images.ids, images.schemes[scheme], strict=True))

    assert {*images.schemes} == {"tau", "tau-shared", "tau-sub-01", "tau-sub-03"}
    assert [of("tau-sub-01")[i] for i in SHARED] == ["test"] * 2 + ["train"] * 3 + [""] * 2
    assert [of("tau-sub-03")[i] for i in SHARED] == ["test"] + ["train"] * 4 + [""] * 2
    assert [of("tau-sub-01")[i] for i in own("sub-03")] == [""] * 4
    joined = of("tau")
    assert {i for i in joined if joined[i] == ""} == {CONFLICT, *OUT}
    assert {i for i in joined if joined[i] == "test"} == older.test
    assert [images.split(i) for i in map(images.ids.index, [SHARED[0], CONFLICT, OUT[0]])] == [
        "test",
        "rest",
        "rest",
    ]
    said = "\n".join(described[0].account)
    assert "tau, of 3 files: on 1 images they disagree" in said


def test_a_pooled_split_is_one_of_the_files(older: Published, described: list[Recording]) -> None:
    """And names of images that are not here are counted."""
    older.write_split("pooled/tau", SHARED[1:5], [SHARED[0], *own("sub-03")])
    older.write_split("sub-01/cluster_k5_0", ["elsewhere.jpg"], SHARED[:1])
    import_laion(older.root, "x.h5", ONE, split="tau-pooled")
    images, said = described[0].images, "\n".join(described[0].account)
    assert "tau-sub-03" not in images.schemes
    assert {i for i, s in zip(images.ids, images.splits, strict=True) if s == "test"} == {SHARED[0]}
    assert "Test images: those of the published split tau-pooled" in said
    assert "cluster_k5_0, of 1 files" in said
    assert "1 names in these subjects' files are of no image here" in said


def test_digests_of_splits_are_kept(older: Published, out: Path, newer: Published) -> None:
    """Also where they are in a folder of their own."""
    import_laion(newer.root, out, ONE, splits=older.root / "splits")
    with Crowd(out) as crowd:
        kept = crowd["laion-sub-01"].settings["splits"]
        assert set(crowd["laion-sub-01"].images("test")) == older.test - {*own("sub-03")}
    names = ("shared", "sub-01", "sub-03")
    assert kept == {f"tau-{name}": older.digest(f"{name}/tau") for name in names}


def test_without_tau_shared_images_are_the_test_images(older: Published, out: Path) -> None:
    import_laion(older.root, out, ONE, split="shared")
    with Crowd(out) as crowd:
        assert set(crowd["laion-sub-01"].images("test")) == {*SHARED}


def test_images_are_never_for_everybody(older: Published, out: Path, refused) -> None:
    with refused(out, "--images-may-be-shown: the terms"):
        import_laion(older.root, out, Options(images_may_be_shown=True))
    import_laion(older.root, out, ONE)
    with Crowd(out) as crowd:
        assert not crowd.images_may_be_shown
        assert "academic research only" in crowd.image_source


def test_the_mask_of_the_older_layout_stands_for_its_threshold_only(
    older: Published, out: Path, refused
) -> None:
    assert (older.root / f"{MASK}.nii.gz").exists()
    with refused(out, r"has no .*R2mean_statmap\.nii\.gz"):
        import_laion(older.root, out, ONE, voxels="R2mean>10")
