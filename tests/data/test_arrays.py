"""Importing anybody's arrays: what is understood, and what is refused with a message that helps."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io
from click.testing import CliRunner
from PIL import Image

from ubrain.cli import app
from ubrain.crowd import Crowd
from ubrain.data.importers import pipeline
from ubrain.data.importers.arrays import import_arrays

ALL_TRAIN = {"test_fraction": 0, "val_fraction": 0}


def z(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


# --- what is understood


def test_folder_is_read_in_natural_order(recording: SimpleNamespace) -> None:
    out = recording.folder / "out.h5"
    import_arrays(recording.images, recording.responses, "A", out, **ALL_TRAIN)
    with Crowd(out) as crowd:
        assert list(crowd["A"].images()) == [f"image{i}" for i in range(12)]
        np.testing.assert_array_equal(crowd.image("image10"), recording.pixels[10])
        np.testing.assert_allclose(
            crowd["A"].responses(), z(recording.values), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_images_as_array(recording: SimpleNamespace, colour: bool) -> None:
    pixels = recording.pixels if colour else recording.pixels[..., 0]
    np.save(recording.folder / "shown.npy", pixels)
    out = recording.folder / "out.h5"
    import_arrays(recording.folder / "shown.npy", recording.responses, "A", out, **ALL_TRAIN)
    with Crowd(out) as crowd:
        for i in (0, 11):
            expected = pixels[i] if colour else np.stack([pixels[i]] * 3, -1)
            np.testing.assert_array_equal(crowd.image(f"shown-{i:06d}"), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_image_files_become_rgb(recording: SimpleNamespace, mode: str) -> None:
    with Image.open(recording.images / "image0.png") as image:
        converted = image.convert(mode)
    converted.save(recording.images / "image0.png")
    out = recording.folder / "out.h5"
    import_arrays(recording.images, recording.responses, "A", out)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(crowd.image("image0"), np.asarray(converted.convert("RGB")))


def test_equal_stems_are_told_apart(recording: SimpleNamespace) -> None:
    Image.fromarray(255 - recording.pixels[0]).save(recording.images / "image0.bmp")
    np.save(recording.responses, np.random.default_rng(0).normal(size=(13, 5)))
    out = recording.folder / "out.h5"
    import_arrays(recording.images, recording.responses, "A", out, **ALL_TRAIN)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(crowd.image("image0.png"), recording.pixels[0])
        np.testing.assert_array_equal(crowd.image("image0.bmp"), 255 - recording.pixels[0])


@pytest.mark.parametrize("transpose", [False, True])
def test_responses_as_csv(recording: SimpleNamespace, transpose: bool) -> None:
    csv, out = recording.folder / "responses.csv", recording.folder / "out.h5"
    np.savetxt(csv, recording.values.T if transpose else recording.values, delimiter=",")
    import_arrays(recording.images, csv, "A", out, transpose=transpose, **ALL_TRAIN)
    with Crowd(out) as crowd:
        np.testing.assert_allclose(
            crowd["A"].responses(), z(recording.values), rtol=1e-4, atol=1e-5
        )


def as_hdf5(path: Path, values: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["subject"], file["betas"] = "A", values


def as_matlab(path: Path, values: np.ndarray) -> None:
    scipy.io.savemat(path, {"rate": 2.0, "betas": values})


def as_matlab_7_3(path: Path, values: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["responses"], file["others"] = values.T, np.zeros((3, 3))


def as_volumes(path: Path, values: np.ndarray) -> None:
    """The voxels on the grid in the order in which x runs fastest, as percent times 100."""
    image = nib.Nifti1Image(np.rint(values.T * 100).reshape(5, 1, 1, -1).astype(np.int16), None)
    image.header.set_slope_inter(0.01, 0)
    nib.save(image, path)


FORMATS = {
    "npy": np.save,
    "csv": lambda path, values: np.savetxt(path, values, delimiter=",", encoding="utf-8-sig"),
    "h5": as_hdf5,
    "hdf5": as_hdf5,
    "mat": as_matlab,
    "MAT": as_matlab_7_3,
    "nii": as_volumes,
    "nii.gz": as_volumes,
}


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("kind", FORMATS)
def test_responses_in_files_of_several_formats(
    recording: SimpleNamespace, kind: str, sessions: int
) -> None:
    """One file, or one for each session in a folder."""
    folder, out = recording.folder / "responses", recording.folder / "out.h5"
    folder.mkdir()
    (folder / "._1.npy").write_bytes(b"of macOS")
    parts = np.split(recording.values, sessions)
    for i, values in enumerate(parts):
        FORMATS[kind](folder / f"{i + 9}.{kind}", values)
    given = folder if sessions > 1 else folder / f"9.{kind}"
    text = import_arrays(recording.images, given, "A", out, **ALL_TRAIN)
    assert f"in {sessions} session(s), 5 voxels" in text
    with Crowd(out) as crowd:
        found, places = crowd["A"].responses(), crowd["A"].voxels
    np.testing.assert_allclose(found, np.concatenate([z(p) for p in parts]), atol=5e-3)
    if kind.startswith("nii"):
        assert list(places["i"]) == list(range(5))


@pytest.mark.parametrize("mask", ["mask.nii.gz", "voxels.csv"])
def test_voxels_of_volumes_are_chosen(recording: SimpleNamespace, mask: str) -> None:
    path, voxels = recording.folder / "r.nii.gz", recording.folder / mask
    as_volumes(path, recording.values)
    if mask.endswith(".csv"):
        voxels.write_text("i,j,k,areas\n1,0,0,V1\n4,0,0,V2\n")
    else:
        chosen = np.array([0, 1, 0, 0, 1], np.int16).reshape(5, 1, 1)
        nib.save(nib.Nifti1Image(chosen, None), voxels)
    out = recording.folder / "out.h5"
    import_arrays(recording.images, path, "A", out, voxels=voxels, **ALL_TRAIN)
    with Crowd(out) as crowd:
        assert list(crowd["A"].voxels["i"]) == [1, 4]
        found = crowd["A"].responses()
    np.testing.assert_allclose(found, z(recording.values[:, [1, 4]]), atol=5e-3)


def test_volumes_and_masks_are_of_one_grid(recording: SimpleNamespace, refused) -> None:
    folder, out = recording.folder / "sessions", recording.folder / "out.h5"
    folder.mkdir()
    mask, chosen = folder.with_name("mask.nii"), np.ones((5, 1, 1), np.int16)
    for i, values in enumerate(np.split(recording.values, 2)):
        as_volumes(folder / f"{i}.nii", values)
    nib.save(nib.Nifti1Image(chosen, np.diag([3.0, 3, 3, 1])), mask)
    np.save(folder.with_name("r.npy"), recording.values)
    with refused(out, r"mask\.nii: a mask is for responses that are volumes"):
        import_arrays(recording.images, folder.with_name("r.npy"), "A", out, voxels=mask)
    for i, side in enumerate((3.0, 3.1)):
        image = nib.load(folder / f"{i}.nii")
        placed = nib.Nifti1Image(image.get_fdata(), np.diag([side, side, side, 1]))
        nib.save(placed, folder / f"{i}.nii")
    with refused(out, r"1\.nii: its voxels are not those of 0\.nii"):
        import_arrays(recording.images, folder, "A", out)
    with refused(out, r"1\.nii: its voxels are not those of mask\.nii"):
        import_arrays(recording.images, folder, "A", out, voxels=mask)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("r.h5", lambda p: h5py.File(p, "w").close(), "expected one array .* found none"),
        (
            "r.mat",
            lambda p: scipy.io.savemat(p, {"a": np.eye(2), "b": np.eye(3)}),
            r"expected one array .*, or one that is called responses; found a, b",
        ),
        ("r.mat", lambda p: p.write_bytes(bytes(500)), r"r\.mat cannot be read"),
        ("r.nii", lambda p: as_volumes(p, np.ones((11, 5))), "1 row.s. too few"),
        (
            "r.nii",
            lambda p: nib.save(nib.Nifti1Image(np.ones((5, 2, 12), np.int16), None), p),
            r"expected responses \(x, y, z, n_images or n_trials\), got \(5, 2, 12\)",
        ),
        ("r.txt", lambda p: p.touch(), r"expected responses as \.npy, \.csv, \.h5, \.mat"),
        ("r", lambda p: p.mkdir(), "no files of responses there"),
    ],
)
def test_files_that_are_no_responses(
    recording: SimpleNamespace, refused, name: str, make: object, message: str
) -> None:
    path, out = recording.folder / name, recording.folder / "out.h5"
    make(path)
    with refused(out, message):
        import_arrays(recording.images, path, "A", out)


def test_sessions_need_the_same_voxels(recording: SimpleNamespace, refused) -> None:
    folder, out = recording.folder / "sessions", recording.folder / "out.h5"
    folder.mkdir()
    np.save(folder / "1.npy", recording.values[:6])
    np.save(folder / "2.npy", recording.values[6:, :4])
    with refused(out, r"2\.npy: 4 voxels, but 1\.npy has 5"):
        import_arrays(recording.images, folder, "A", out)


def test_an_interrupted_import_continues(
    recording: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = recording.folder / "sessions", recording.folder / "out.h5"
    folder.mkdir()
    for i, values in enumerate(np.split(recording.values, 3)):
        as_volumes(folder / f"{i}.nii.gz", values)

    def stopped(items: object, total: int, label: str, **_: object) -> Iterator:
        yield from islice(items, 2 if label == "reading responses" else None)
        if label == "reading responses":
            raise KeyboardInterrupt

    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "track", stopped)
        with pytest.raises(KeyboardInterrupt):
            import_arrays(recording.images, folder, "A", out, **ALL_TRAIN)
    import_arrays(recording.images, folder, "A", out, **ALL_TRAIN)
    assert "continuing, 1 of 3 block(s) are there" in caplog.text
    expected = np.concatenate([z(p) for p in np.split(recording.values, 3)])
    with Crowd(out) as crowd:
        np.testing.assert_allclose(crowd["A"].responses(), expected, atol=5e-3)


def test_a_mark_of_a_spreadsheet_is_no_text(recording: SimpleNamespace) -> None:
    out, listed, trials = (recording.folder / name for name in ("out.h5", "test.txt", "t.csv"))
    listed.write_text("image7\n", encoding="utf-8-sig")
    trials.write_text("image\n" + "".join(f"{i}\n" for i in range(12)), encoding="utf-8-sig")
    files = {"trials": trials, "test_images": listed}
    import_arrays(recording.images, recording.responses, "A", out, **files)
    with Crowd(out) as crowd:
        assert list(crowd["A"].images("test")) == ["image7"]


def test_options_of_all_importers(recording: SimpleNamespace) -> None:
    out, voxels = recording.folder / "out.h5", recording.folder / "voxels.csv"
    voxels.write_text("areas\nV1\nV2\nV1\nV2\nV2\n")
    files = (recording.images, recording.responses, "A", out)
    more = {"voxels": voxels, "areas": "v1", "image_size": 4, "dtype": "float16"}
    text = import_arrays(*files, **more, dry_run=True)
    assert "12 of 8 × 8" in text
    assert "nothing has been written" in text
    assert not out.exists()
    import_arrays(*files, **more, **ALL_TRAIN)
    with Crowd(out) as crowd:
        assert crowd.image("image0").shape == (4, 4, 3)
        assert crowd["A"].group["responses"].dtype == np.float16
        assert list(crowd["A"].voxels["source_row"]) == [0, 2]


@pytest.mark.parametrize(
    "name", ["image{}.png", "image{}", "{}"], ids=["file name", "stem", "row number"]
)
def test_trial_table(recording: SimpleNamespace, name: str) -> None:
    """Two sessions, each image once in each, the second time from the last to the first."""
    order = [*range(12), *reversed(range(12))]
    values = np.concatenate([recording.values, 10 - 4 * recording.values[::-1]])
    np.save(recording.responses, values)
    trials, out = recording.folder / "trials.csv", recording.folder / "out.h5"
    table = {
        "image": [name.format(i) for i in order],
        "session": ["mon"] * 12 + ["tue"] * 12,
        "repeat": [0] * 12 + [1] * 12,
    }
    pd.DataFrame(table).to_csv(trials, index=False)
    import_arrays(recording.images, recording.responses, "A", out, trials=trials, **ALL_TRAIN)
    expected = (z(values[:12]) + z(values[12:])[::-1]) / 2
    with Crowd(out) as crowd:
        assert crowd["A"].n_trials == 24
        assert list(crowd["A"].images()) == [f"image{i}" for i in range(12)]
        np.testing.assert_allclose(crowd["A"].responses(), expected, rtol=1e-4, atol=1e-5)


def test_sessions_and_runs_may_have_any_names(recording: SimpleNamespace) -> None:
    """One session of two runs, the second of which is scaled."""
    values = recording.values * np.repeat([1, 4], 6)[:, None].astype(np.float32)
    np.save(recording.responses, values)
    trials, out = recording.folder / "trials.csv", recording.folder / "out.h5"
    table = {"image": range(12), "session": "mon", "run": ["b"] * 6 + ["a"] * 6}
    pd.DataFrame(table).to_csv(trials, index=False)
    import_arrays(
        recording.images, recording.responses, "A", out, trials=trials, normalise="run", **ALL_TRAIN
    )
    expected = np.concatenate([z(values[:6]), z(values[6:])])
    with Crowd(out) as crowd:
        np.testing.assert_allclose(crowd["A"].responses(), expected, rtol=1e-4, atol=1e-5)


def test_images_that_no_trial_shows_are_in_the_file(recording: SimpleNamespace) -> None:
    trials, out = recording.folder / "trials.csv", recording.folder / "out.h5"
    trials.write_text("image\n" + "image3\n" * 12)
    import_arrays(recording.images, recording.responses, "A", out, trials=trials, **ALL_TRAIN)
    with Crowd(out) as crowd:
        assert list(crowd.image_ids) == [f"image{i}" for i in range(12)]
        assert list(crowd["A"].images()) == ["image3"]


def test_trial_table_with_numbers_as_stems(recording: SimpleNamespace) -> None:
    """`0003` in the table is the file 0003.png, not row number 3 (which is 0004.png)."""
    for i in range(12):
        (recording.images / f"image{i}.png").rename(recording.images / f"{i + 1:04d}.png")
    trials, out = recording.folder / "trials.csv", recording.folder / "out.h5"
    trials.write_text("image\n" + "\n".join(f"{i + 1:04d}" for i in range(11)) + "\n")
    np.save(recording.responses, recording.values[:11])
    import_arrays(recording.images, recording.responses, "A", out, trials=trials, **ALL_TRAIN)
    with Crowd(out) as crowd:
        assert list(crowd["A"].images()) == [f"{i + 1:04d}" for i in range(11)]


def test_names_and_row_numbers_are_not_mixed(recording: SimpleNamespace) -> None:
    """Files 1.png … 12.png and rows 0 … 11: row 0 is 1.png, so row 1 must not be 1.png as well."""
    for i in range(12):
        (recording.images / f"image{i}.png").rename(recording.images / f"{i + 1}.png")
    trials, out = recording.folder / "trials.csv", recording.folder / "out.h5"
    pd.DataFrame({"image": range(12)}).to_csv(trials, index=False)
    import_arrays(recording.images, recording.responses, "A", out, trials=trials, **ALL_TRAIN)
    with Crowd(out) as crowd:
        assert list(crowd["A"].images()) == [str(i + 1) for i in range(12)]
        np.testing.assert_allclose(
            crowd["A"].responses(), z(recording.values), rtol=1e-4, atol=1e-5
        )


def test_voxel_table(recording: SimpleNamespace) -> None:
    voxels, out = recording.folder / "voxels.csv", recording.folder / "out.h5"
    voxels.write_text(
        'hemisphere,vertex,areas,ncsnr,depth\nL,5,V1,0.5,1.5\nL,6,,0.4,1\nR,7,"FFA,OFA",0.3,2\nR,8,V2,,3\n,9,V2,0.1,4\n'
    )
    import_arrays(recording.images, recording.responses, "A", out, voxels=voxels, space="fsaverage")
    with Crowd(out) as crowd:
        table = crowd["A"].voxels
        assert crowd["A"].space == "fsaverage"
    assert list(table.hemisphere) == ["L", "L", "R", "R", ""]
    assert list(table.vertex) == [5, 6, 7, 8, 9]
    assert list(table.areas) == ["V1", "", "FFA,OFA", "V2", "V2"]
    np.testing.assert_allclose(table.ncsnr, [0.5, 0.4, 0.3, np.nan, 0.1], rtol=1e-6)
    np.testing.assert_allclose(table.depth, [1.5, 1, 2, 3, 4])


def test_test_list_decides_alone(recording: SimpleNamespace) -> None:
    listed, out = recording.folder / "test.txt", recording.folder / "out.h5"
    listed.write_text("image7\n\n  image10.png  \nimage2\n")
    import_arrays(
        recording.images, recording.responses, "A", out, test_images=listed, test_fraction=0.9
    )
    with Crowd(out) as crowd:
        assert sorted(crowd["A"].images("test")) == ["image10", "image2", "image7"]


def test_named_splits_by_a_table(recording: SimpleNamespace) -> None:
    lines = ["image,tau,ood", "image1.png,test,", "image3.png, train ,", "image2.png,val,test"]
    (recording.folder / "schemes.csv").write_text("\n".join(lines))
    out, program = recording.folder / "out.h5", CliRunner()
    words = f"import arrays --images {recording.images} --responses {recording.responses}"
    words += f" --subject A --out {out} --schemes {recording.folder / 'schemes.csv'}"
    done = program.invoke(app, words.split(), catch_exceptions=False)
    assert "splits of scheme tau: 1 train, 1 val, 1 test, 9 none" in done.output
    with Crowd(out) as crowd:
        found = {
            (view.scheme, split): list(view["A"].images(split))
            for view in map(crowd.with_scheme, crowd.schemes)
            for split in ("train", "val", "test")
        }
    assert {place: names for place, names in found.items() if names} == {
        ("tau", "train"): ["image3"],
        ("tau", "val"): ["image2"],
        ("tau", "test"): ["image1"],
        ("ood", "test"): ["image2"],
    }


def test_fractions_are_drawn_by_content(tmp_path: Path) -> None:
    """The same image gets the same split in another file, whatever its name and place."""
    rng = np.random.default_rng(0)
    pixels, values = rng.integers(0, 256, (400, 4, 4, 3), np.uint8), rng.normal(size=(400, 2))
    chosen = rng.permutation(400)[:150]

    def splits(name: str, which: np.ndarray) -> dict[str, str]:
        np.save(tmp_path / f"{name}.npy", pixels[which])
        np.save(tmp_path / f"{name}-responses.npy", values[which])
        import_arrays(
            tmp_path / f"{name}.npy",
            tmp_path / f"{name}-responses.npy",
            "A",
            tmp_path / f"{name}.h5",
            test_fraction=0.2,
            val_fraction=0.3,
        )
        with Crowd(tmp_path / f"{name}.h5") as crowd:
            return {
                crowd.content[row]: s
                for s in ("train", "val", "test")
                for row in crowd["A"].image_rows(s)
            }

    every, some = splits("every", np.arange(400)), splits("some", chosen)
    assert len(every) == 400
    assert len(some) == 150
    assert some == {content: every[content] for content in some}
    shares = pd.Series(every).value_counts(normalize=True)
    np.testing.assert_allclose(shares[["train", "val", "test"]], [0.5, 0.3, 0.2], atol=0.1)


def test_bad_voxels_are_refused_or_dropped(recording: SimpleNamespace, refused) -> None:
    values = recording.values.copy()
    values[:, 1], values[3, 2] = 4.0, np.nan
    np.save(recording.responses, values)
    voxels, out = recording.folder / "voxels.csv", recording.folder / "out.h5"
    voxels.write_text("areas,ncsnr\na,1\nb,2\nc,0\nd,1\ne,0\n")
    files = (recording.images, recording.responses, "A", out)
    with refused(out, r"1 of 5 voxels cannot be used: .*\(at 2\); 1 of 5 .*--bad-voxels drop"):
        import_arrays(*files, voxels=voxels, **ALL_TRAIN)
    import_arrays(*files, voxels=voxels, bad_voxels="drop", **ALL_TRAIN)
    with Crowd(out) as crowd:
        table, responses = crowd["A"].voxels, crowd["A"].responses()
    assert list(table.areas) == ["a", "d", "e"]
    assert list(table.ncsnr) == [1, 1, 0]
    assert list(table.source_row) == [0, 3, 4]
    np.testing.assert_allclose(responses, z(values[:, [0, 3, 4]]), rtol=1e-4, atol=1e-5)


# --- what is refused

BAD_VALUES = {
    "one row too few": (
        lambda v: v[:-1],
        r"expected \(12, n_voxels\).*got \(11, 5\);.*1 row\(s\) too few",
    ),
    "one row too many": (
        lambda v: v[[0, *range(12)]],
        r"expected \(12, n_voxels\).*got \(13, 5\);.*1 row\(s\) too many",
    ),
    "transposed": (lambda v: v.T, r"got \(5, 12\).*the other way round \(--transpose\)"),
    "one dimension": (
        lambda v: v[:, 0],
        r"expected responses \(n_images or n_trials, n_voxels\), got \(12,\)",
    ),
    "text": (lambda v: v.astype(str), r"responses\.npy: expected responses .* got \(12, 5\) <U"),
    "complex": (lambda v: v.astype(complex), r"got \(12, 5\) complex"),
    "empty": (lambda v: v[:, :0], r"got \(12, 0\)"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_bad_responses(recording: SimpleNamespace, refused, kind: str) -> None:
    change, message = BAD_VALUES[kind]
    np.save(recording.responses, change(recording.values.copy()))
    out = recording.folder / "out.h5"
    with refused(out, message):
        import_arrays(recording.images, recording.responses, "A", out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected numbers only"),
        ("1,2\n3\n", "expected numbers only"),
        ("1;2\n", "expected numbers only"),
    ],
)
def test_bad_csv(recording: SimpleNamespace, refused, text: str, message: str) -> None:
    csv, out = recording.folder / "responses.csv", recording.folder / "out.h5"
    csv.write_text(text)
    with refused(out, rf"responses\.csv: {message}"):
        import_arrays(recording.images, csv, "A", out)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("trials", "stimulus\n0\n", r"table\.csv: expected a column 'image', got stimulus"),
        (
            "trials",
            "image\n" + "0\n" * 11 + "12\n",
            r"table\.csv: no image '12' \(12 images, first 'image0'",
        ),
        ("trials", "image\n" + "0\n" * 11 + "-1\n", r"table\.csv: no image '-1'"),
        (
            "trials",
            "image,session\n" + "0,0\n" * 11 + "3,\n",
            r"table\.csv: row 11 has an empty cell",
        ),
        (
            "trials",
            "image,repeat\n" + "0,0\n" * 11 + "3,0.5\n",
            "column 'repeat': expected whole numbers",
        ),
        (
            "trials",
            "image\n" + "0\n" * 11,
            r"expected \(11, n_voxels\), one row for each of the 11 rows of table\.csv",
        ),
        ("trials", "", r"table\.csv cannot be read"),
        ("voxels", "areas\nV1\n", r"table\.csv: expected one row for each of the 5 voxels, got 1"),
        ("voxels", "../x\n" + "1\n" * 5, r"voxel column name '\.\./x'"),
        (
            "voxels",
            "ncsnr,areas\n1,V1\n,V1\n0.5x,V1\n2,V1\n1,V1\n",
            r"table\.csv: column 'ncsnr': expected numbers, got '0\.5x' in row 2",
        ),
        ("test_images", "image3\nimage99\n", r"table\.csv: no image 'image99'"),
        ("test_images", "²\n", r"table\.csv: no image '²'"),
        ("test_images", "\n", r"table\.csv: no test images are listed"),
        ("schemes", "image\nimage1\n", r"table\.csv: expected a column 'image' and one for every"),
        ("schemes", "image,tau\nimage99,test\n", r"table\.csv: no image 'image99'"),
        ("schemes", "image,tau\nimage1,test\n" * 2, r"table\.csv: no image 'image'"),
        ("schemes", "image,tau\nimage1,\nimage1,test\n", r"table\.csv: an image is listed twice"),
        (
            "schemes",
            "image,tau\nimage1,tset\n",
            "tau, image 'image1': expected .* got 'tset'",
        ),
    ],
)
def test_bad_tables(
    recording: SimpleNamespace, refused, option: str, text: str, message: str
) -> None:
    table, out = recording.folder / "table.csv", recording.folder / "out.h5"
    table.write_text(text, encoding="utf-8")
    with refused(out, message):
        import_arrays(recording.images, recording.responses, "A", out, **{option: table})


@pytest.mark.parametrize("option", ["trials", "voxels", "test_images", "schemes"])
def test_absent_tables(recording: SimpleNamespace, refused, option: str) -> None:
    out, table = recording.folder / "out.h5", recording.folder / "absent.csv"
    with refused(out, r"absent\.csv cannot be read"):
        import_arrays(recording.images, recording.responses, "A", out, **{option: table})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((12, 4, 4, 3)),
            r"shown\.npy: expected images .* uint8 in 0\.\.255, got \(12, 4, 4, 3\) float64",
        ),
        (np.zeros((12, 4, 4, 4), np.uint8), r"got \(12, 4, 4, 4\) uint8"),
        (np.zeros((12, 4), np.uint8), r"got \(12, 4\) uint8"),
    ],
    ids=["float", "four channels", "flat"],
)
def test_bad_image_arrays(
    recording: SimpleNamespace, refused, images: np.ndarray, message: str
) -> None:
    np.save(recording.folder / "shown.npy", images)
    out = recording.folder / "out.h5"
    with refused(out, message):
        import_arrays(recording.folder / "shown.npy", recording.responses, "A", out)


@pytest.mark.parametrize(
    ("images", "message"), [("", "no images found"), ("responses.npy", "got .* float32")]
)
def test_no_images(recording: SimpleNamespace, refused, images: str, message: str) -> None:
    out = recording.folder / "out.h5"
    with refused(out, message):
        import_arrays(recording.folder / images, recording.responses, "A", out)


def test_an_image_that_cannot_be_read(recording: SimpleNamespace, refused) -> None:
    (recording.images / "image5.png").write_text("not an image")
    out = recording.folder / "out.h5"
    with refused(out, r"image .*image5\.png cannot be read"):
        import_arrays(recording.images, recording.responses, "A", out)


def test_names_that_are_not_utf8_where_only_ascii_can_be_printed(
    recording: SimpleNamespace, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    responses = recording.responses.rename(recording.folder / os.fsdecode(b"r\xff.npy"))
    (recording.images / "image5.png").rename(recording.images / os.fsdecode(b"image5\xff.png"))
    files = ("--images", recording.images, "--responses", responses)
    out = recording.folder / "crowd.h5"
    done = run_cli("import", "arrays", *files, "--subject=A", "--dataset=2 × 2", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "2 \\xd7 2" in done.stdout
    with Crowd(out) as crowd:
        assert "image5\\udcff" in crowd.image_ids
        assert r"Read from r\udcff.npy" in crowd["A"].account


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("option", ["responses", "trials", "voxels", "test_images"])
def test_pipes_are_not_read(recording: SimpleNamespace, refused, option: str) -> None:
    os.mkfifo(recording.folder / "pipe.csv")
    files = {"images": recording.images, "responses": recording.responses}
    files[option] = recording.folder / "pipe.csv"
    with refused(recording.folder / "crowd.h5", r"pipe\.csv is a pipe or a device"):
        import_arrays(subject="A", out=recording.folder / "crowd.h5", **files)
