"""The recipe for TVSD in docs/data.md, run as it stands there on small files of MATLAB v7.3."""

import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ubrain import cli
from ubrain.crowd import Crowd

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## TVSD\n")[2].partition("\n## ")[0]
TRAIN = ["cat/cat_01s.jpg", "air_bag/air_bag_02s.jpg", "bow1/bow1_03s.jpg"]
TEST = ["cat/cat_20n.jpg", "bow1/bow1_21n.jpg"]
AREAS = {
    "monkeyF": ["V1"] * 512 + ["IT"] * 320 + ["V4"] * 192,
    "monkeyN": ["V1"] * 512 + ["V4"] * 256 + ["IT"] * 256,
}


def write_names(file: h5py.File, split: str, names: list[str]) -> None:
    """A struct array with a field of texts, each behind a reference."""
    references = []
    for name in names:
        text = np.frombuffer(name.replace("/", "\\").encode("utf-16-le"), np.uint16)
        made = file.create_dataset(f"#refs#/{split}{len(references)}", data=text[:, None])
        references.append(made.ref)
    place = file.create_dataset(f"{split}_imgs/things_path", (len(names), 1), h5py.ref_dtype)
    place[:, 0] = references


@pytest.mark.parametrize("monkey", AREAS)
def test_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, monkey: str) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "TVSD" / monkey
    (folder / "_logs").mkdir(parents=True)
    with h5py.File(folder / "_logs/things_imgs.mat", "w") as file:
        write_names(file, "train", TRAIN)
        write_names(file, "test", TEST)
    train, test = rng.normal(size=(1024, 3)), rng.normal(size=(1024, 2, 30))  # as in MATLAB
    reliability = rng.uniform(0, 0.8, (1024, 5))
    with h5py.File(folder / "THINGS_normMUA.mat", "w") as file:
        arrays = {"train_MUA": train, "test_MUA_reps": test, "reliab": reliability}
        for name, values in arrays.items():
            file[name] = values.T
    for name in (*TRAIN, *TEST):
        path = tmp_path / "object_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    exec(compile(code.replace('= "monkeyF"', f'= "{monkey}"'), "recipe", "exec"), {})
    (command,) = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    command = command.replace("\\\n", " ").replace("--subject monkeyF", f"--subject {monkey}")
    words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [*words, "--val-fraction", "0"])
    with suppress(SystemExit):
        cli.main()
    assert f"{monkey} (TVSD, electrodes)" in capsys.readouterr().out
    kept = reliability.mean(1) > 0.3
    with Crowd("tvsd.h5") as crowd:
        subject = crowd[monkey]
        assert list(subject.voxels["areas"]) == list(np.array(AREAS[monkey])[kept])
        for split, names, values in (("train", TRAIN, train), ("test", TEST, test.mean(2))):
            rows = crowd.rows([Path(name).stem for name in names])
            assert set(rows) == set(subject.image_rows(split))
            expected = values[kept].T
            np.testing.assert_allclose(subject.responses_to(rows), expected, rtol=1e-4, atol=1e-6)
