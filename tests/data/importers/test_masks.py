"""Masks with a published number of voxels, and published noise ceilings."""

import sys
import tomllib
from contextlib import suppress
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from published.nsd import Published

from ubrain import cli
from ubrain.crowd import Crowd
from ubrain.data.crowdfile import write_crowd
from ubrain.data.importers.masks import Selection, ceilings, compare, named
from ubrain.data.importers.nsd import import_nsd
from ubrain.data.importers.recording import Options
from ubrain.errors import UbrainError

TEXT = resources.files("ubrain.data.importers").joinpath("masks.toml").read_text(encoding="utf-8")
COUNTS = tomllib.loads(TEXT)["counts"]
VISUAL = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
GRID = (81, 104, 83)  # of NSD's subject 1 at 1.8 mm


def test_published_counts_agree_with_each_other() -> None:
    volume, surface = COUNTS["nsd func1pt8mm"], COUNTS["nsd fsaverage"]
    widths = COUNTS["ube"]["V_s"]
    assert sum(widths) == 315_997  # width of the array of shared images of the authors
    for masks in (surface, COUNTS["algonauts"]):
        both = zip(masks["all-vertices (left)"], masks["all-vertices (right)"], strict=True)
        assert [left + right for left, right in both] == widths
    for s in (0, 1, 4, 6):
        assert sum(volume[area][s] for area in VISUAL) == volume["prf-visualrois"][s]
    for masks, whose in ((volume, (0, 1, 4, 6)), (surface, (0,))):
        where = "nsd func1pt8mm" if masks is volume else "nsd fsaverage"
        parts = named(where, "brain-score").split(",")
        for s in whose:
            assert sum(masks[part][s] for part in parts) == masks["brain-score"][s]
    # all subjects' V1, V2, V4 and IT of Brain-Score
    assert sum(volume["brain-score"]) == 9_039 + 8_792 + 3_982 + 62_751


def test_only_files_of_the_published_size_are_compared() -> None:
    def said(n: int, subject: int = 1, size: tuple[int, ...] = GRID, unusual: bool = False) -> str:
        made = Selection("nsd func1pt8mm", "nsdgeneral", subject, size, n)
        return "".join(compare([made], unusual, "subj"))

    assert said(15724) == "nsdgeneral: 15,724 voxels, as published"
    assert said(3, size=(5, 4, 3)) == ""
    assert said(3, subject=9) == said(3, subject=0) == ""
    assert said(3, unusual=True) == "nsdgeneral: 3 voxels; published are 15,724 (--unusual)"
    with pytest.raises(UbrainError, match="subj: nsdgeneral has 14,278 voxels, but 15,724 as publ"):
        said(14278)


def test_what_is_not_confirmed_is_said_and_not_refused() -> None:
    for n, words in ((3104, "3,104 voxels, as reported"), (9, "9 voxels; 3,104 are reported")):
        made = Selection("bold5000 release 1", "all areas", 3, (5254,), n)
        assert compare([made], False, "CSI3") == [f"all areas: {words} (unconfirmed)"]


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Design, images, and a file of betas of the published shape without any number in it."""
    made = Published(tmp_path_factory.mktemp("nsd"))
    name = f"{made.betas_folder(1, 'func1pt8mm')}/betas_session01.hdf5"
    with h5py.File(made.file(name), "w") as file:
        file.create_dataset("betas", (750, *GRID[::-1]), np.int16, chunks=(750, 1, 1, 1))
    return made


@pytest.mark.parametrize("n", [15724, 15723])
def test_nsdgeneral_is_refused_if_voxels_are_missing(
    nsd: Published, tmp_path: Path, refused, n: int
) -> None:
    labels = np.full(GRID, -1, np.int16)
    labels.reshape(-1)[1000 : 1000 + n] = 1
    nsd.write_nifti("nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz", labels)
    out, dry = tmp_path / "crowd.h5", Options(dry_run=True)
    if n == 15724:
        assert "nsdgeneral: 15,724 voxels, as published" in import_nsd(nsd.root, out, dry)
        return
    with refused(out, "has 15,723 voxels, but 15,724 as published; .*--unusual imports"):
        import_nsd(nsd.root, out, dry)
    text = import_nsd(nsd.root, out, Options(dry_run=True, unusual=True))
    assert "nsdgeneral: 15,723 voxels; published are 15,724 (--unusual)" in text


def crowd_of(path: Path, dataset: str, space: str, name: str, areas: list[str]) -> np.ndarray:
    """A crowd file of one subject, with an ncsnr for each voxel."""
    rng = np.random.default_rng(0)
    ncsnr = rng.uniform(0.1, 1, len(areas)).astype(np.float32)
    with write_crowd(path) as writer:
        rows = [
            writer.add_image(str(i), rng.integers(0, 256, (4, 4, 3), np.uint8), split)
            for i, split in enumerate(("train", "train", "test"))
        ]
        trials = pd.DataFrame({"image": rows + rows[2:], "session": 0})
        voxels = pd.DataFrame({"areas": areas, "ncsnr": ncsnr})
        values = [rng.normal(size=(4, len(areas)))]
        writer.add_subject(name, trials, voxels, values, dataset, "7T", space=space)
    return ncsnr.astype(np.float64)


def test_ceilings_are_beside_the_published_ones(tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "crowd.h5"
    areas = ["nsdgeneral,V1v"] * 20 + ["nsdgeneral"] * 15 + [""] * 5
    ncsnr = crowd_of(path, "NSD", "func1pt8mm", "nsd-subj05", areas)
    with Crowd(path) as crowd:
        table = ceilings(crowd["nsd-subj05"]).set_index("area")
    assert list(table["voxels"]) == [40, 35, 20]
    np.testing.assert_allclose(table.loc["V1v", "ncsnr 25%"], np.quantile(ncsnr[:20], 0.25))
    expected = 100 * np.median(ncsnr[:35] ** 2 / (ncsnr[:35] ** 2 + 1 / 3))
    assert table.loc["nsdgeneral", "ceiling"] == pytest.approx(expected)
    assert table.loc["nsdgeneral", "published"] == 34.1
    assert table["published"].isna().sum() == 2, "nothing is made up for the others"
    assert list(table["NSD"]) == ["", "", "0.30 0.48 0.66"], "of the same subject"
    monkeypatch.setattr(sys, "argv", ["ubrain", "info", str(path), "--ceilings"])
    with suppress(SystemExit):
        cli.main()
    assert "34.10" in capsys.readouterr().out


def test_ceilings_above_a_threshold(tmp_path: Path) -> None:
    path = tmp_path / "crowd.h5"
    areas = ["hV4"] * 30 + ["laion-ventral"] * 20 + ["hV4,laion-ventral"] * 20
    ncsnr = crowd_of(path, "LAION-fMRI", "T1w", "laion-sub-01", areas)
    percent = 100 * ncsnr**2 / (ncsnr**2 + 1 / 12)
    with Crowd(path) as crowd:
        table = ceilings(crowd["laion-sub-01"]).set_index("area")
    it = percent[30:50]
    assert table.loc["IT (above 30 %)", "voxels"] == (it >= 30).sum()
    assert table.loc["IT (above 30 %)", "ceiling"] == pytest.approx(np.median(it[it >= 30]))
    assert table.loc["IT (above 30 %)", "published"] == 54
    assert np.isnan(table.loc["hV4", "published"])


def test_quartiles_of_nsd_beside_those_of_another_dataset(tmp_path: Path) -> None:
    """The mean of four subjects; where their table is cut, ours is cut as well."""
    path = tmp_path / "crowd.h5"
    ncsnr = crowd_of(path, "ours", "T1w", "sub-5", ["V1v"] * 20 + ["ffa"] * 30 + ["LOC"] * 5)
    with Crowd(path) as crowd:
        table = ceilings(crowd["sub-5"]).set_index("area")
    assert table.loc["V1v", "NSD"] == "0.28 0.46 0.66"
    inside = ncsnr[20:50][ncsnr[20:50] >= 0.2]
    assert len(inside) < 30, "the cut has something to leave out"
    row = table.loc["ffa (ncsnr above 0.2)"]
    assert (row["voxels"], row["NSD"]) == (len(inside), "0.28 0.38 0.52")
    assert row["ncsnr 50%"] == pytest.approx(np.median(inside))
    assert table.loc["LOC", "NSD"] == ""
