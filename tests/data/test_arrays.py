"""Importing anybody's arrays: what is understood, and what is refused with a message that helps."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ubrain.crowd import Crowd
from ubrain.data.importers.arrays import import_arrays

ALL_TRAIN = {"test_fraction": 0, "val_fraction": 0}


def z(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


# --- what is
# understood


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


def test_images_of_several_sizes(recording: SimpleNamespace) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(wide).save(recording.images / "image3.png")
    out = recording.folder / "out.h5"
    import_arrays(recording.images, recording.responses, "A", out)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(crowd.image("image3"), wide)
        np.testing.assert_array_equal(crowd.image("image4"), recording.pixels[4])


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


@pytest.mark.parametrize("normalise", ["auto", "session", "run", "none"])
def test_z_scoring_per_session_or_run_or_none(recording: SimpleNamespace, normalise: str) -> None:
    """One session of two runs, the second of which is scaled."""
    values = recording.values * np.repeat([1, 4], 6)[:, None].astype(np.float32)
    np.save(recording.responses, values)
    trials, out = recording.folder / "trials.csv", recording.folder / "out.h5"
    pd.DataFrame({"image": range(12), "session": "mon", "run": ["a"] * 6 + ["b"] * 6}).to_csv(
        trials, index=False
    )
    import_arrays(
        recording.images,
        recording.responses,
        "A",
        out,
        trials=trials,
        normalise=normalise,
        **ALL_TRAIN,
    )
    by_run = np.concatenate([z(values[:6]), z(values[6:])])
    expected, said = {"run": (by_run, "each run"), "none": (values, "without z-scoring")}.get(
        normalise, (z(values), "each session")
    )
    with Crowd(out) as crowd:
        np.testing.assert_allclose(crowd["A"].responses(), expected, rtol=1e-4, atol=1e-5)
        assert said in crowd["A"].account
        settings = json.loads(crowd.file["subjects/A"].attrs["settings"])
    assert settings["normalise"] == normalise.replace("auto", "session")


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


def test_voxel_table_with_whole_numbers_as_ncsnr(recording: SimpleNamespace) -> None:
    voxels, out = recording.folder / "voxels.csv", recording.folder / "out.h5"
    voxels.write_text("ncsnr\n1\n0\n1\n2\n1\n")
    import_arrays(recording.images, recording.responses, "A", out, voxels=voxels)
    with Crowd(out) as crowd:
        assert list(crowd["A"].voxels.ncsnr) == [1, 0, 1, 2, 1]


def test_ncsnr_that_is_no_number_is_refused_by_its_file(
    recording: SimpleNamespace, refused
) -> None:
    voxels, out = recording.folder / "voxels.csv", recording.folder / "out.h5"
    voxels.write_text("ncsnr,areas\n1,V1\n,V1\n0.5x,V1\n2,V1\n1,V1\n")
    with refused(out, r"voxels\.csv: column 'ncsnr': expected numbers, got '0\.5x' in row 2"):
        import_arrays(recording.images, recording.responses, "A", out, voxels=voxels)


def test_test_list_decides_alone(recording: SimpleNamespace) -> None:
    listed, out = recording.folder / "test.txt", recording.folder / "out.h5"
    listed.write_text("image7\n\n  image10.png  \nimage2\n")
    import_arrays(
        recording.images, recording.responses, "A", out, test_images=listed, test_fraction=0.9
    )
    with Crowd(out) as crowd:
        assert sorted(crowd["A"].images("test")) == ["image10", "image2", "image7"]


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


def test_bad_voxels_can_be_dropped(recording: SimpleNamespace) -> None:
    values = recording.values.copy()
    values[:, 1], values[3, 2] = 4.0, np.nan
    np.save(recording.responses, values)
    voxels, out = recording.folder / "voxels.csv", recording.folder / "out.h5"
    voxels.write_text("areas\na\nb\nc\nd\ne\n")
    import_arrays(
        recording.images,
        recording.responses,
        "A",
        out,
        voxels=voxels,
        bad_voxels="drop",
        **ALL_TRAIN,
    )
    with Crowd(out) as crowd:
        assert list(crowd["A"].voxels.areas) == ["a", "d", "e"]
        np.testing.assert_allclose(
            crowd["A"].responses(), z(values[:, [0, 3, 4]]), rtol=1e-4, atol=1e-5
        )
        assert "2 constant or not finite and dropped (1, 2)" in crowd["A"].account
        assert list(crowd["A"].voxels["source_row"]) == [0, 3, 4]


# ------------------------------------------------------------------------------------------------
# what is refused


def bad_values(recording: SimpleNamespace, kind: str) -> np.ndarray:
    values = recording.values.copy()
    match kind:
        case "one row too few":
            return values[:-1]
        case "one row too many":
            return np.concatenate([values, values[:1]])
        case "transposed":
            return values.T
        case "voxel of NaN":
            values[:, 3] = np.nan
        case "one NaN":
            values[5, 3] = np.nan
        case "one infinity":
            values[5, 3] = np.inf
        case "constant voxel":
            values[:, 3] = 1.25
        case "one dimension":
            return values[:, 0]
        case "text":
            return values.astype(str)
        case "complex":
            return values.astype(complex)
        case "empty":
            return values[:, :0]
    return values


BAD_VALUES = {
    "one row too few": r"expected \(12, n_voxels\).*got \(11, 5\);.*1 row\(s\) too few",
    "one row too many": r"expected \(12, n_voxels\).*got \(13, 5\);.*1 row\(s\) too many",
    "transposed": r"got \(5, 12\).*the other way round \(--transpose\)",
    "voxel of NaN": r"1 of 5 voxels have missing or infinite values \(voxel 3\).*--bad-voxels drop",
    "one NaN": r"1 of 5 voxels have missing or infinite values \(voxel 3\)",
    "one infinity": r"1 of 5 voxels have missing or infinite values \(voxel 3\)",
    "constant voxel": (
        r"1 of 5 voxels have the same value in every row \(voxel 3\).*--bad-voxels drop"
    ),
    "one dimension": r"expected responses \(n_images or n_trials, n_voxels\), got \(12,\)",
    "text": r"responses\.npy: expected responses .* got \(12, 5\) <U",
    "complex": r"got \(12, 5\) complex",
    "empty": r"got \(12, 0\)",
}


@pytest.mark.parametrize("mode", ["new", "append"])
@pytest.mark.parametrize("kind", BAD_VALUES)
def test_bad_responses(recording: SimpleNamespace, refused, kind: str, mode: str) -> None:
    out = recording.folder / "out.h5"
    if mode == "append":
        import_arrays(recording.images, recording.responses, "A", out)
    np.save(recording.folder / "bad.npy", bad_values(recording, kind))
    (recording.folder / "bad.npy").rename(recording.responses)
    with refused(out, BAD_VALUES[kind]):
        import_arrays(recording.images, recording.responses, "B", out, append=mode == "append")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "run"}, "--normalise run: name the runs with --trials"),
        ({"normalise": "week"}, "--normalise week: expected auto, session, run or none"),
        ({"bad_voxels": "mend"}, "--bad-voxels mend: expected drop or refuse"),
    ],
)
def test_preparation_that_is_not_possible(
    recording: SimpleNamespace, refused, options: dict, message: str
) -> None:
    out = recording.folder / "out.h5"
    with refused(out, message):
        import_arrays(recording.images, recording.responses, "A", out, **options)


def test_nothing_is_left_after_dropping(recording: SimpleNamespace, refused) -> None:
    np.save(recording.responses, np.ones((12, 5)))
    out = recording.folder / "out.h5"
    with refused(out, "no usable voxel is left"):
        import_arrays(recording.images, recording.responses, "A", out, bad_voxels="drop")


def test_bad_responses_on_the_command_line(recording: SimpleNamespace, run_cli) -> None:
    np.save(recording.responses, recording.values[:-1])
    out = recording.folder / "out.h5"
    done = run_cli(
        "import",
        "arrays",
        "--images",
        recording.images,
        "--responses",
        recording.responses,
        "--subject",
        "A",
        "--out",
        out,
    )
    assert done.returncode == 1
    assert "1 row(s) too few" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert not list(recording.folder.glob("*.partial"))


@pytest.mark.parametrize("left", [0, 10, 60, 0.5, 0.9])
def test_truncated_image(recording: SimpleNamespace, refused, left: float) -> None:
    data = (recording.images / "image5.png").read_bytes()
    (recording.images / "image5.png").write_bytes(
        data[: int(left * len(data))] if 0 < left < 1 else data[:left]
    )
    out = recording.folder / "out.h5"
    with refused(out, r"image .*image5\.png cannot be read"):
        import_arrays(recording.images, recording.responses, "A", out)


@pytest.mark.parametrize("mode", ["new", "append"])
def test_text_named_png(recording: SimpleNamespace, refused, mode: str) -> None:
    out = recording.folder / "out.h5"
    if mode == "append":
        import_arrays(recording.images, recording.responses, "A", out)
    (recording.images / "image5.png").write_text("not an image")
    with refused(out, r"image .*image5\.png cannot be read"):
        import_arrays(recording.images, recording.responses, "B", out, append=mode == "append")


def test_more_than_eight_bits_are_refused_and_not_cut_off(
    recording: SimpleNamespace, refused
) -> None:
    Image.fromarray(recording.pixels[5, ..., 0].astype(np.uint16) * 257).save(
        recording.images / "image5.png"
    )
    out = recording.folder / "out.h5"
    with refused(out, r"image5\.png has more than 8 bits a channel"):
        import_arrays(recording.images, recording.responses, "A", out)


def test_formats_for_which_pillow_runs_programs_are_not_tried(
    recording: SimpleNamespace, refused, monkeypatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (recording.images / "image5.png").write_bytes(text)
    out = recording.folder / "out.h5"
    with refused(out, r"image5\.png cannot be read: cannot identify"):
        import_arrays(recording.images, recording.responses, "A", out)


def test_huge_image(recording: SimpleNamespace, refused) -> None:
    Image.new("1", (8193, 1)).save(recording.images / "image5.png")
    out = recording.folder / "out.h5"
    with refused(out, r"image5\.png is \(8193, 1\) pixels; sides above 8192 are refused"):
        import_arrays(recording.images, recording.responses, "A", out)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("which", ["images", "responses"])
def test_pickle_is_not_executed(recording: SimpleNamespace, refused, which: str) -> None:
    marker, bomb, out = (recording.folder / name for name in ("marker", "bomb.npy", "out.h5"))
    np.save(bomb, np.array([Bomb(marker)] * 12, dtype=object), allow_pickle=True)
    files = {"images": recording.images, "responses": recording.responses} | {which: bomb}
    with refused(out, r"bomb\.npy cannot be read as a \.npy array"):
        import_arrays(files["images"], files["responses"], "A", out)
    assert not marker.exists()
    np.load(bomb, allow_pickle=True)
    assert marker.exists()  # the file was indeed armed


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        archive,
        lambda path: path.write_text("1,2,3"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["cut", "npz named npy", "text", "empty", "absent"],
)
def test_unreadable_responses(recording: SimpleNamespace, refused, spoil) -> None:
    spoil(recording.responses)
    out = recording.folder / "out.h5"
    with refused(out, r"responses\.npy"):
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
            r"table\.csv: no image '12' in .*12 images, first 'image0'",
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
        ("test_images", "image3\nimage99\n", r"table\.csv: no image 'image99'"),
        ("test_images", "²\n", r"table\.csv: no image '²'"),
        ("test_images", "\n", r"table\.csv: no test images are listed"),
    ],
)
def test_bad_tables(
    recording: SimpleNamespace, refused, option: str, text: str, message: str
) -> None:
    table, out = recording.folder / "table.csv", recording.folder / "out.h5"
    table.write_text(text, encoding="utf-8")
    with refused(out, message):
        import_arrays(recording.images, recording.responses, "A", out, **{option: table})


@pytest.mark.parametrize("option", ["trials", "voxels", "test_images"])
def test_absent_tables(recording: SimpleNamespace, refused, option: str) -> None:
    out = recording.folder / "out.h5"
    with refused(out, r"absent\.csv cannot be read"):
        import_arrays(
            recording.images,
            recording.responses,
            "A",
            out,
            **{option: recording.folder / "absent.csv"},
        )


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


def test_folder_without_images(recording: SimpleNamespace, refused) -> None:
    shutil.rmtree(recording.images)
    recording.images.mkdir()
    out = recording.folder / "out.h5"
    with refused(out, "no images found"):
        import_arrays(recording.images, recording.responses, "A", out)


@pytest.mark.parametrize(("test", "val"), [(-0.1, 0.1), (0.5, 0.5), (1.5, 0), (float("nan"), 0)])
def test_bad_fractions(recording: SimpleNamespace, refused, test: float, val: float) -> None:
    out = recording.folder / "out.h5"
    with refused(out, "val and test fractions must be"):
        import_arrays(
            recording.images, recording.responses, "A", out, test_fraction=test, val_fraction=val
        )
