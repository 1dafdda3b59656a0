"""Several datasets in one crowd file, each by its own importer, from files as they are
published.
"""

from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pandas as pd
import pytest
from published import bold5000, god, nsd, vim1

from ubrain.cli import importers
from ubrain.crowd import Crowd
from ubrain.data.doctor import check
from ubrain.data.importers.bold5000 import import_bold5000
from ubrain.data.importers.god import import_god
from ubrain.data.importers.nsd import import_nsd
from ubrain.data.importers.recording import Options
from ubrain.data.importers.vim1 import import_vim1

FIRST = Options(dtype="float32", val_fraction=0.2)
NEXT = Options(append=True, dtype="float32", val_fraction=0.2)


class Together:
    """A crowd of four datasets; two photographs of COCO were shown in NSD and, in another version,
    in BOLD5000.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "crowd.h5"
        published = bold5000.Published(folder / "bold5000")
        published.write_release2("CSI4")
        self.bold = published
        coco = [name for name in dict.fromkeys(published.shown["CSI4"]) if name.startswith("COCO")]
        self.once, self.repeated = (
            next(n for n in coco if (n in published.repeated) == again) for again in (False, True)
        )
        self.write_nsd(folder / "nsd")
        god.write_images(folder / "god/images")
        god.Original(1).write_h5(folder / "god/Subject1.h5")
        vim1.write(folder / "vim-1", vim1.Published())
        self.accounts = [
            import_nsd(folder / "nsd", self.path, FIRST),
            import_god(folder / "god", self.path, NEXT),
            import_vim1(folder / "vim-1", self.path, NEXT),
            import_bold5000(folder / "bold5000", self.path, NEXT),
        ]

    def write_nsd(self, root: Path) -> None:
        made = nsd.Published(root)
        made.write_volume_labels()
        made.write_volume(1, 1)
        made.write_stim_info()
        seen = set(made.shown(1, 1).tolist())
        self.shared = seen & set(made.shared.tolist())
        self.in_test, self.in_train = min(self.shared), min(seen - self.shared)
        path = made.file("nsddata/experiments/nsd/nsd_stim_info_merged.csv")
        table = pd.read_csv(path, index_col=0)
        for number, name in ((self.in_test, self.once), (self.in_train, self.repeated)):
            table.loc[table["nsdId"] == number, "cocoId"] = int(
                name.removesuffix(".jpg").split("_")[2]
            )
        table.to_csv(path)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    return Together(tmp_path_factory.mktemp("together"))


@pytest.fixture
def crowd(together: Together) -> Iterator[Crowd]:
    with Crowd(together.path) as opened:
        yield opened


def test_each_dataset_keeps_its_test_images(together: Together, crowd: Crowd) -> None:
    assert crowd.subjects == ["nsd-subj01", "god-S1", "vim1-S1", "vim1-S2", "bold5000-CSI4"]
    assert set(crowd["nsd-subj01"].images("test")) == {f"nsd-{i:05d}" for i in together.shared}
    assert set(crowd["god-S1"].images("test")) == {f"god-{name}" for name in god.TEST}
    assert set(crowd["vim1-S2"].images("test")) == {f"vim1-val{i:04d}" for i in range(vim1.N_VAL)}


def test_a_photograph_keeps_the_split_that_its_first_dataset_gave_it(
    together: Together, crowd: Crowd
) -> None:
    """A test image of NSD is one of BOLD5000; a training image of NSD is none, though BOLD5000 has
    repeated it.
    """
    expected = {Path(name).stem for name in together.bold.repeated}
    expected = expected - {Path(together.repeated).stem} | {Path(together.once).stem}
    assert set(crowd["bold5000-CSI4"].images("test")) == expected
    split = next(
        s
        for s in ("train", "val")
        if f"nsd-{together.in_train:05d}" in crowd["nsd-subj01"].images(s)
    )
    assert Path(together.repeated).stem in crowd["bold5000-CSI4"].images(split)
    assert "2 images of this import were in the crowd already" in together.accounts[-1]
    assert not any("were in the crowd already" in text for text in together.accounts[:-1])


def test_responses_of_each_dataset_are_z_scored_in_its_own_way(
    together: Together, crowd: Crowd
) -> None:
    assert [crowd[name].trials.normalise for name in crowd.subjects] == [
        "session",
        "run",
        "none",
        "none",
        "session",
    ]
    np.testing.assert_array_equal(
        crowd["vim1-S1"].responses_to(crowd.rows(["vim1-train0003"])), vim1.Published().z("S1")[3:4]
    )
    with h5py.File(together.path) as file:
        assert {name: file[f"subjects/{name}"].attrs["scanner"] for name in file["subjects"]} == {
            "nsd-subj01": "7T",
            "god-S1": "3T",
            "vim1-S1": "4T",
            "vim1-S2": "4T",
            "bold5000-CSI4": "3T",
        }


def test_every_importer_offers_the_same_preparation() -> None:
    for name, command in importers.commands.items():
        offered = {p.name for p in command.get_params(click.Context(command))}
        assert {"normalise", "bad_voxels"} <= offered, name


def test_the_doctor_finds_no_error(together: Together) -> None:
    assert [finding for finding in check(together.path) if finding.level == "error"] == []
