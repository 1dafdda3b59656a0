"""What several tests need: a small simulated crowd, a small recording on disk, and checks of
refusals.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ubrain import checkpoint
from ubrain.config import SimulationConfig
from ubrain.crowd import Crowd
from ubrain.data.importers.arrays import import_arrays
from ubrain.data.simulate import simulate_crowd
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.report.lab import Lab


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`$UBRAIN_CACHE` in a temporary folder, so that no test touches the project's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UBRAIN_CACHE", str(folder))
        yield folder


SMALL = SimulationConfig(subjects=2, images=40, test_images=10, voxels=40, scanner="7T")


@pytest.fixture(scope="session")
def small_config() -> SimulationConfig:
    """What `small_crowd` was simulated with (and seed 0)."""
    return SMALL


@pytest.fixture(scope="session")
def small_crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated crowd: 2 subjects, 40 own and 10 test images each, 7T. Copy it before changing
    it.
    """
    path = tmp_path_factory.mktemp("crowd") / "small.h5"
    simulate_crowd(path, SMALL, seed=0)
    return path


@pytest.fixture(scope="session")
def crowd(small_crowd: Path) -> Iterator[Crowd]:
    """`small_crowd`, opened."""
    with Crowd(small_crowd) as opened:
        yield opened


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A workbench on the smoke profile, with a folder of its own for what it writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UBRAIN_OUT", str(tmp_path_factory.mktemp("out") / "simulated-smoke"))
        yield Lab("98_test", profile="smoke")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A crowd file as of recordings: 3 subjects, 120 images of noise and 6 voxels each."""
    rng, path = np.random.default_rng(5), tmp_path / "recorded.h5"
    for name in ("A", "B", "C"):
        np.save(tmp_path / "i.npy", rng.integers(0, 256, (120, 8, 8, 3), np.uint8))
        np.save(tmp_path / "r.npy", rng.normal(size=(120, 6)))
        files = (tmp_path / "i.npy", tmp_path / "r.npy")
        fractions = {"test_fraction": 0.2, "val_fraction": 0.2}
        source = {"image_source": "a museum", "append": name != "A"}
        import_arrays(*files, name, path, **fractions, **source)
    return path


@pytest.fixture
def recorded_lab(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A workbench on `recorded`."""
    monkeypatch.setenv("UBRAIN_OUT", str(tmp_path / "out" / "recorded-smoke"))
    return Lab("98_test", str(recorded), "smoke")


@pytest.fixture(scope="session")
def save_encoder() -> Callable[[Path, Path], None]:
    """`save_encoder(crowd_file, folder)`: an encoder of random weights for all its subjects."""

    def save(crowd: Path, folder: Path) -> None:
        lab = Lab("98_test", str(crowd), "smoke")
        sizes = {"widths": lab.features.widths, "n_tokens": lab.features.n_tokens}
        config = replace(lab.profile.encoder, **sizes)
        torch.manual_seed(0)
        encoder = UniversalEncoder(config, {s: lab.crowd[s].n_voxels for s in lab.subjects})
        facts = checkpoint.recorded(lab.crowd, lab.subjects)
        settings = {"backbone": asdict(lab.profile.backbone)}
        checkpoint.save(encoder, folder, settings=settings, **facts)

    return save


@pytest.fixture(scope="session")
def explorable(
    tmp_path_factory: pytest.TempPathFactory, save_encoder: Callable[[Path, Path], None]
) -> tuple[Path, Path]:
    """A checkpoint folder of random weights and its crowd file: 3 simulated subjects."""
    folder = tmp_path_factory.mktemp("explorable")
    sizes = SimulationConfig(subjects=3, images=60, test_images=20, voxels=40, scanner="7T")
    simulate_crowd(folder / "crowd.h5", sizes, seed=0)
    save_encoder(folder / "crowd.h5", folder / "encoder")
    return folder / "encoder", folder / "crowd.h5"


def save_images(folder: Path, pixels: np.ndarray, name: str = "image{}.png") -> Path:
    """Write images (n, height, width, 3) as `image0.png`, `image1.png`, ..."""
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / name.format(i))
    return folder


@pytest.fixture
def recording(tmp_path: Path) -> SimpleNamespace:
    """12 images and responses of 5 voxels on disk, to import; and the same as arrays."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
    values = rng.normal(2, 3, (12, 5)).astype(np.float32)
    np.save(tmp_path / "responses.npy", values)
    images = save_images(tmp_path / "images", pixels)
    return SimpleNamespace(
        images=images,
        responses=tmp_path / "responses.npy",
        pixels=pixels,
        values=values,
        save_images=save_images,
        folder=tmp_path,
    )


@pytest.fixture
def refused() -> Callable[[Path, str], AbstractContextManager[None]]:
    """`with refused(out, "message"): ...`: an UbrainError with that message, and `out` is as it
    was.
    """

    @contextmanager
    def check(out: Path, match: str) -> Iterator[None]:
        before = out.read_bytes() if out.exists() else None
        with pytest.raises(UbrainError, match=match):
            yield
        assert (out.read_bytes() if out.exists() else None) == before
        assert not list(out.parent.glob("*.partial"))

    return check


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_cli("info", path)`: the command as a user runs it, in a process of its own."""

    def run(
        *args: object, preexec_fn: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ubrain.cli", *map(str, args)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            preexec_fn=preexec_fn,
            timeout=120,
        )

    return run
