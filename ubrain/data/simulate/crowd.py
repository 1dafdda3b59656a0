"""Simulated subjects in a simulated scanner, streamed to a crowd file with the truth on them."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.config import SimulationConfig
from ubrain.data.crowdfile import CrowdWriter, split_by_content, write_crowd
from ubrain.data.simulate.brains import Brain, make_brain, reference_scenes
from ubrain.data.simulate.maps import energy_maps
from ubrain.data.simulate.scenes import FIELD_OF_VIEW, SIZE, render
from ubrain.errors import UbrainError
from ubrain.paths import check_out
from ubrain.progress import track
from ubrain.resume import locked, remove_partials

# Raise it when the same config and seed no longer give the same crowd, so that no simulated file
# outlives the code that made it (`tests/data/test_simulate.py` notices).
VERSION = 1
BLOCK = 64  # images or trials at a time
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Scanner:
    """What differs between scanners; see `SCANNERS`."""

    like: str
    images: int
    test_images: int
    repeats: int
    test_repeats: int
    snr: float  # factor on ncsnr
    units_per_voxel: int  # neighbouring tunings that a voxel averages
    grey: bool = False  # grey images behind a circular aperture
    # the file has one row per image, so no noise ceiling can be computed
    averages_only: bool = False


SCANNERS = {
    "7T": Scanner("NSD", 1000, 200, 3, 3, 1.0, 1),
    "3T": Scanner("GOD", 1200, 50, 1, 35, 0.4, 4),
    "4T": Scanner("vim-1", 1750, 120, 2, 13, 0.7, 2, grey=True, averages_only=True),
}
TRIALS_PER_SESSION = 500


def simulate_crowd(
    out: str | Path, config: SimulationConfig, seed: int = 0, append: bool = False
) -> None:
    """Simulate subjects and stream them to a crowd file, with their ground truth under /truth.

    Every subject sees images of its own and the test images, which all subjects of the call share.
    The same config and seed give the same file content.

    Parameters
    ----------
    out : crowd file to write (.h5).
    config : sizes and scanner.
    seed : seed of everything random.
    append : add subjects to an existing crowd file.

    Raises
    ------
    UbrainError
        For an unknown scanner, a size below 1, a share that is none, or a file that cannot be
        written.
    """
    if config.scanner not in SCANNERS:
        raise UbrainError(
            f"unknown scanner {config.scanner!r}: expected one of {', '.join(SCANNERS)}"
        )
    scanner = SCANNERS[config.scanner]
    n_own = scanner.images if config.images is None else config.images
    n_test = scanner.test_images if config.test_images is None else config.test_images
    sizes = {"subjects": (config.subjects, 1), "voxels": (config.voxels, 20), "images": (n_own, 10)}
    for what, (number, least) in {**sizes, "test_images": (n_test, 2)}.items():
        if number < least:
            raise UbrainError(f"{what}: expected at least {least}, got {number}")
    if not 0 <= config.shared_function <= 1:
        raise UbrainError(f"shared_function: expected 0 to 1, got {config.shared_function}")
    trials = n_own * scanner.repeats + n_test * scanner.test_repeats
    if scanner.averages_only:
        trials = n_own + n_test
    # with scratch and truth
    responses = config.subjects * 1.15 * config.voxels * 4 * (trials + n_own + 2 * n_test)
    needs = (n_test + config.subjects * n_own) * SIZE * SIZE * 3 + int(responses)
    out = Path(out)
    check_out(out)
    with locked(out.with_name(f".{out.name}.work"), f"the simulation of {out}"):
        remove_partials(out.parent, out.name)
        with write_crowd(out, append=append, needs=needs) as writer:
            simulation = _Simulation(writer, scanner, config, seed, n_test)
            label = f"simulating {config.scanner} subjects"
            for _ in track(range(config.subjects), config.subjects, label):
                simulation.add_subject(n_own)
            simulation.write_scenes()


def grow(config: SimulationConfig, seed: int, number: int, n_voxels: int) -> Brain:
    """The brain of subject `number` of a simulation, not yet calibrated."""
    scanner = SCANNERS[config.scanner]
    return make_brain(
        seed,
        number,
        n_voxels,
        scanner.units_per_voxel,
        scanner.snr * config.snr,
        config.spread,
        config.lacking,
        config.shared_function,
    )


def shown(pixels: NDArray[np.uint8], scanner: str) -> NDArray[np.uint8]:
    """What a scanner's screen shows of images (n, SIZE, SIZE, 3)."""
    if not SCANNERS[scanner].grey:
        return pixels
    axis = np.abs(np.arange(SIZE) + 0.5 - SIZE / 2)
    inside = (np.hypot(axis[:, None], axis) < SIZE / 2)[..., None]
    grey = pixels.mean(3, keepdims=True)
    return np.where(inside, grey, 127).repeat(3, axis=3).astype(np.uint8)


class _Simulation:
    """What the subjects of one call share: the scanner, the test images, the reference scenes."""

    def __init__(
        self,
        writer: CrowdWriter,
        scanner: Scanner,
        config: SimulationConfig,
        seed: int,
        n_test: int,
    ) -> None:
        self.writer, self.scanner, self.config, self.seed = writer, scanner, config, seed
        self.name = config.scanner
        self.number = writer.n_subjects
        self.next_scene = writer.n_images
        pixels, self.reference = reference_scenes(seed)
        self.reference_pixels = shown(pixels, self.name)
        self.reference_maps = energy_maps(self.reference_pixels)
        self.descriptions: dict[str, str] = {}
        self.test = self._new_scenes(n_test)

    def _new_scenes(self, n: int) -> range:
        self.next_scene += n
        return range(self.next_scene - n, self.next_scene)

    def add_subject(self, n_own: int) -> None:
        """Simulate one subject and stream its images, trials and truth to the file."""
        rng = np.random.default_rng([self.seed, self.number, 0x5CA7])
        n_voxels = round(self.config.voxels * rng.uniform(0.85, 1.15))
        brain = grow(self.config, self.seed, self.number, n_voxels)
        brain.calibrate(self.reference_pixels, self.reference, self.reference_maps)
        settings = {
            "version": VERSION,
            "seed": self.seed,
            "number": self.number,
            "n_voxels": n_voxels,
            "config": asdict(self.config),
        }
        self.number += 1
        name = f"S{self.number}"
        own = self._new_scenes(n_own)
        scenes = [*self.test, *own]
        with tempfile.TemporaryFile(dir=self.writer.path.parent) as scratch:
            # take the space now: a full disk is an error here, but a crash in mapped memory
            for _ in scenes:
                scratch.write(bytes(4 * len(brain.voxels)))
            scratch.flush()
            signals = np.memmap(scratch, np.float32, "r+", shape=(len(scenes), len(brain.voxels)))
            image_rows = self._show(brain, scenes, signals)
            trials, position = self._schedule(rng, image_rows)
            self.writer.add_subject(
                name,
                trials,
                _voxel_table(brain),
                self._measure(rng, brain, trials, position, signals),
                dataset=f"simulated-{self.name}",
                scanner=self.name,
                space="fsaverage5",
                account=f"simulated, like {self.scanner.like}; seed {self.seed}; {FIELD_OF_VIEW}"
                " degrees of visual angle",
            )
            self.writer.write_truth(f"{name}/noiseless_responses", signals[: len(self.test)])
        self.writer.write_truth(f"{name}/settings", json.dumps(settings))
        self.writer.write_truth(f"{name}/signal_moments", np.stack([brain.mean, brain.scale]))
        for column in ("type", "x", "y", "sigma", "ncsnr", "private"):
            self.writer.write_truth(f"{name}/voxels/{column}", brain.voxels[column].to_numpy())

    def _show(
        self, brain: Brain, scenes: list[int], signals: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Add rendered scenes to the file, and fill in noiseless signals; returns their rows."""
        image_rows = []
        for start in range(0, len(scenes), BLOCK):
            drawn = [render(self.seed, scene) for scene in scenes[start : start + BLOCK]]
            pixels = shown(np.stack([p for p, _ in drawn]), self.name)
            for scene, image, (_, description) in zip(scenes[start:], pixels, drawn, strict=False):
                image_id = f"scene-{scene:06d}"
                split = "test" if scene in self.test else split_by_content(VAL_FRACTION, 0)
                image_rows.append(self.writer.add_image(image_id, image, split))
                self.descriptions[image_id] = json.dumps(description.describe())
            signals[start : start + BLOCK] = brain.signals(pixels, [s for _, s in drawn])
        return np.array(image_rows)

    def _schedule(
        self, rng: np.random.Generator, image_rows: NDArray[np.int64]
    ) -> tuple[pd.DataFrame, NDArray]:
        """Trials in random order, cut into sessions; and where in `image_rows` their images are."""
        n_test = len(self.test)
        repeats = np.full(len(image_rows), self.scanner.repeats)
        repeats[:n_test] = self.scanner.test_repeats
        if self.scanner.averages_only:
            repeats[:] = 1
        position = rng.permutation(np.repeat(np.arange(len(image_rows)), repeats))
        n_sessions = 1 if self.scanner.averages_only else -(-len(position) // TRIALS_PER_SESSION)
        session = np.arange(len(position)) * n_sessions // len(position)
        return pd.DataFrame({"image": image_rows[position], "session": session}), position

    def _measure(
        self,
        rng: np.random.Generator,
        brain: Brain,
        trials: pd.DataFrame,
        position: NDArray,
        signals: NDArray,
    ) -> Iterator[NDArray[np.float32]]:
        """Blocks of trials: offset of the session + its gain · (signal + noise / ncsnr)."""
        ncsnr = brain.voxels.ncsnr.to_numpy(np.float32)
        n_sessions = int(trials.session.max()) + 1
        offset = rng.normal(0, 1, (n_sessions, len(ncsnr))).astype(np.float32)
        gain = rng.lognormal(0, 0.2, (n_sessions, len(ncsnr))).astype(np.float32)
        session = trials.session.to_numpy()
        averaged = np.ones(len(position))
        if self.scanner.averages_only:
            of_test = position < len(self.test)
            averaged = np.where(of_test, self.scanner.test_repeats, self.scanner.repeats)
        for start in range(0, len(position), BLOCK):
            block = slice(start, start + BLOCK)
            signal = signals[position[block]]
            noise = rng.standard_normal(signal.shape, np.float32) / ncsnr
            noise = noise / np.sqrt(averaged[block, None])
            measured = offset[session[block]] + gain[session[block]] * (signal + noise)
            yield measured.astype(np.float32)

    def write_scenes(self) -> None:
        """Store what was drawn on each image."""
        group = f"scenes/{self.name}-{self.number}"
        self.writer.write_truth(f"{group}/id", list(self.descriptions))
        self.writer.write_truth(f"{group}/description", list(self.descriptions.values()))


def _voxel_table(brain: Brain) -> pd.DataFrame:
    """What a real voxel table would hold; nothing of the truth but the place."""
    return brain.voxels[["hemisphere", "vertex", "area"]].rename(columns={"area": "areas"})
