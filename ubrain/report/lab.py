"""The workbench of a notebook: it opens the crowd, trains what is needed, and keeps the numbers
and figures.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ubrain import checkpoint, config, paths, predict, train
from ubrain.analysis import stats
from ubrain.crowd import Crowd, Subject
from ubrain.data import simulate
from ubrain.errors import UbrainError
from ubrain.features import Features, Source, choose_source
from ubrain.model import UniversalEncoder
from ubrain.parallel import choose_device, keep_freed_memory
from ubrain.progress import log
from ubrain.report import claims, figures
from ubrain.report.figures.png import compressed
from ubrain.report.kept import kept
from ubrain.report.results import Record, published, write_results
from ubrain.report.suite import suite_of
from ubrain.resume import make_once

T = TypeVar("T")
RIDGE, FACTORISED, ALONE, CROWD = list(figures.CONDITIONS)[:4]
WITHOUT_IMAGES = "UBRAIN_WITHOUT_IMAGES"  # set by a run that is to be published
SHIPPED = Path(checkpoint.__file__).with_name("crowd_of_six")
LEAST_IMAGES = {"train": 20, "val": 5, "test": 5}
PICTURES_DPI = 120  # of figures that show images: they hardly compress, and a repository keeps them
FIGURE_RC: Any = {
    "figure.dpi": 80,
    "savefig.dpi": 200,
    "font.size": 11,
    "svg.hashsalt": "ubrain",
    "figure.constrained_layout.use": True,
}


def run_name(
    crowd: str | Path | None, profile: str, seed: int, split_scheme: str | None = None
) -> str:
    """Name of a run's folders: what was measured, how large, the seed if it is not 0, and the
    scheme of splits if it is not the crowd file's own.
    """
    data = Path(crowd).stem if crowd else "simulated"
    if crowd and data == "simulated":
        data = "simulated-file"  # the plain name is that of the profile's own crowd
    scheme = f"-split-{split_scheme}" if split_scheme else ""
    return f"{data}-{profile}" + (f"-seed{seed}" if seed else "") + scheme


def simulated_crowd(profile: config.Profile, seed: int) -> Path:
    """The default crowd of a profile, simulated if it is not there yet."""
    parts = [asdict(part) for part in profile.simulation]
    settings = json.dumps([parts, seed, simulate.VERSION])
    key = hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
    path = paths.cache_root() / f"simulated-{profile.name}-seed{seed}-{key}.h5"

    def make(partial: Path) -> None:
        log.info("simulating the crowd of profile %s, seed %d", profile.name, seed)
        for number, part in enumerate(profile.simulation):
            simulate.simulate_crowd(partial, part, seed, append=number > 0)

    make_once(path, make)
    paths.note_use(path)
    return path


def shipped_encoder() -> UniversalEncoder:
    """The encoder that comes with the package: of the six 7T subjects of the simulated crowd, as
    notebook 01 of the published run has trained it (profile fast, seed 0).
    """
    return checkpoint.load(SHIPPED)


def too_few_images(subject: Subject) -> str:
    """What a subject lacks to take part in a notebook, in words; "" if nothing."""
    for split, least in LEAST_IMAGES.items():
        n = len(subject.image_rows(split))
        if n < least:
            return f"{n} {split} images, the notebooks need at least {least}"
    return ""


class Lab:
    """What a notebook works with.

    Parameters
    ----------
    notebook : its name, such as "01_crowd_gains".
    crowd : crowd file; None takes the profile's simulated crowd, which is made if need be.
    profile : "smoke", "fast" or "paper".
    subjects : names of the subjects to use; None takes those of the dataset that has most subjects.
    split_scheme : name of a scheme of splits in the crowd file; None takes the file's own splits.

    Attributes
    ----------
    profile, seed, split_scheme : as given.
    records : the numbers recorded so far.
    out : folder for numbers and figures.
    """

    def __init__(
        self,
        notebook: str,
        crowd: str | None = None,
        profile: str = "fast",
        seed: int = 0,
        subjects: Sequence[str] | None = None,
        split_scheme: str | None = None,
    ) -> None:
        self.started = time.monotonic()
        keep_freed_memory()
        self.notebook, self.seed, self.split_scheme = notebook, seed, split_scheme
        self.profile = config.load_profile(profile)
        out = os.environ.get("UBRAIN_OUT")  # set by a run, which knows its own name
        name = run_name(crowd, profile, seed, split_scheme)
        self.out = Path(out) if out else paths.cache_root() / "lab" / name
        self.run = self.out.name
        if subjects is not None and not isinstance(subjects, list | tuple):
            raise UbrainError(f"subjects: expected a list such as ['S1', 'S2'], got {subjects!r}")
        self.is_default = crowd is None  # the profile's own crowd
        self.crowd_name = Path(crowd).name if crowd else f"simulated, seed {seed}"
        self.data = Path(crowd).stem if crowd else "sim"
        self.records: list[Record] = []
        self._path, self._wanted = crowd, subjects
        if crowd is not None or subjects is not None or split_scheme is not None:
            _ = self.subjects  # what is wrong with them is said now
        plt.rcParams.update(FIGURE_RC)

    @cached_property
    def crowd(self) -> Crowd:
        """The crowd file, opened; the default crowd is simulated when it is first needed."""
        opened = Crowd(self._path or simulated_crowd(self.profile, self.seed))
        return opened.with_scheme(self.split_scheme)

    @cached_property
    def subjects(self) -> list[str]:
        """Names of the subjects that take part."""
        wanted = list(self._wanted or max(self.datasets.values(), key=len))
        for name in wanted:
            if lack := too_few_images(self.crowd[name]):
                raise UbrainError(
                    f"subject {name!r} has {lack}; import it again with more (--test-fraction,"
                    " --val-fraction)"
                )
        return wanted

    @property
    def datasets(self) -> dict[str, list[str]]:
        """Dataset -> its subjects, in the order of the crowd file."""
        found: dict[str, list[str]] = {}
        for name in self.crowd.subjects:
            found.setdefault(self.crowd[name].dataset, []).append(name)
        return found

    @cached_property
    def features(self) -> Features:
        """Backbone features of all images; computed on first use and kept."""
        device = self.profile.training.device
        return Features(self.crowd, self.profile.backbone, paths.cache_root() / "features", device)

    @cached_property
    def source(self) -> Source:
        """Where the encoder's tokens come from."""
        device = choose_device(self.profile.training.device)
        if device.type != "cuda":
            return Source(self.crowd, self.features)
        return choose_source(self.crowd, self.profile.backbone, device)

    def encoder(
        self,
        subjects: Sequence[str],
        encoder: config.EncoderConfig | None = None,
        training: config.TrainingConfig | None = None,
        seed: int | None = None,
        source: Source | None = None,
    ) -> UniversalEncoder:
        """An encoder trained on these subjects: trained once, then taken from the run cache.

        Sizes, training and seed are those of the profile and of the notebook unless given. The
        cache key holds the data, the settings, the seed and the version of model and training; a
        killed training is continued.
        """
        encoder, training = encoder or self.profile.encoder, training or self.profile.training
        source, seed = source or self.source, self.seed if seed is None else seed
        settings = [
            source.crowd.fingerprint,
            source.identity,
            list(subjects),
            seed,
            config.as_settings(encoder),
            config.as_settings(training),
            train.VERSION,
            *filter(None, [source.crowd.scheme]),
        ]
        key = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()
        folder = paths.cache_root() / "encoders" / f"{len(subjects)}-subjects-{key}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Of several notebooks that want it, one trains it; a finished one is read without a lock,
        # since the cache of a class may be read-only.
        finished = (folder / checkpoint.CONFIG).exists()
        with nullcontext() if finished else FileLock(f"{folder}.lock"):
            trained = train.fit(source, subjects, encoder, training, seed, folder)
        paths.note_use(folder)
        return trained

    def ready_encoder(self) -> UniversalEncoder:
        """The encoder of the notebook's subjects: the one in the package, if it was trained on the
        default crowd with these settings; else as `encoder`.
        """
        source, profile = self.source, self.profile
        sizes = replace(profile.encoder, widths=source.widths, n_tokens=source.n_tokens)
        wanted = train.settings_of(source, self.subjects, sizes, profile.training, self.seed)
        has = checkpoint.describe(SHIPPED).facts["settings"]
        # Another processor may simulate other last digits: the crowd's fingerprint is no part.
        if self.is_default and {**wanted, "crowd": ""} == {**has, "crowd": ""}:
            return shipped_encoder()
        return self.encoder(self.subjects)

    def kept(self, function: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """`function(*arguments)`, computed once and then taken from the cache; see `kept`."""
        made_from = [function.__module__, arguments, more]
        return kept(function.__name__, made_from, lambda: function(*arguments, **more))

    def pictures(self, rows: ArrayLike) -> list[NDArray[np.uint8]]:
        """Images to draw, by their rows in the crowd file, each (height, width, 3).

        In a run without images (`ubrain run --without-images`, which can be published) they are
        grey tiles, unless the crowd file says that its images may be shown. Whatever draws images
        gets them here.
        """
        pixels = self.crowd.pixels(rows)
        return pixels if self.shows_images else figures.tiles(pixels)

    @property
    def shows_images(self) -> bool:
        """Whether figures show the images."""
        return WITHOUT_IMAGES not in os.environ or self.crowd.images_may_be_shown

    def predict(self, encoder: UniversalEncoder, subject: str) -> NDArray[np.float32]:
        """Predicted responses of a subject to its test images, (n_images, n_voxels)."""
        rows = self.crowd[subject].image_rows("test")
        return predict.predict(encoder, self.source, subject, rows)

    def measured(self, subject: str) -> NDArray[np.float32]:
        """Measured responses to the test images, (n_images, n_voxels)."""
        return self.crowd[subject].responses("test")

    def ceiling_r(self, subject: str) -> NDArray[np.float64]:
        """Highest correlation that a model can reach, (n_voxels,); NaN where unknown."""
        return np.sqrt(self.crowd[subject].noise_ceiling("test"))

    def summary(self, subjects: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per subject: dataset, scanner, voxels, images of each split, repeats of the test
        images, ceiling.
        """
        rows = {}
        for name in self.subjects if subjects is None else subjects:
            s, ceiling = self.crowd[name], self.ceiling_r(name)
            rows[name] = {
                "dataset": s.dataset,
                "scanner": s.scanner,
                "voxels": s.n_voxels,
                **{split: len(s.images(split)) for split in ("train", "val", "test")},
                "test repeats": float(np.median(s.trials.repeats(s.image_rows("test")))),
                "median ceiling r": (
                    float(np.nanmedian(ceiling)) if np.isfinite(ceiling).any() else np.nan
                ),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("subject")

    def record(
        self,
        name: str,
        value: float,
        condition: str = "",
        subject: str = "all",
        interval: stats.Interval | None = None,
        n: int | None = None,
        unit: str = "",
    ) -> None:
        """Keep a number for the notebook's JSON."""
        low, high = (interval.low, interval.high) if interval else (None, None)
        n = interval.n if interval else n
        self.records.append(Record(name, float(value), condition, subject, low, high, n, unit))

    def save(self, figure: Figure, name: str) -> None:
        """Save a figure where the run collects its figures; marked as simulated if it is, and with
        where the images come from if it has grey tiles in their place.
        """
        simulated = self.is_default or self.crowd.simulated
        text = "simulated crowd" if simulated else ""
        if figures.has_tiles(figure):
            text = f"grey tiles: images not shown here; they come from {self.crowd.image_source}"
        figures.mark(figure, text)
        path = self.out / "figures" / f"{self.notebook}__{name}.png"
        png = io.BytesIO()
        dpi = PICTURES_DPI if figures.pictures(figure) else FIGURE_RC["savefig.dpi"]
        fast = {"compress_level": 1}  # it is packed anew below
        figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs=fast)
        with paths.atomic(path) as partial:
            partial.write_bytes(compressed(png.getvalue()))

    def answer(self) -> str:
        """What the published numbers of this run say on the notebook's claims, one a line."""
        document = published(self.run, self.notebook)
        return claims.verdict(document, self.notebook) if document else claims.NOT_YET

    def finish(self) -> str:
        """Write the recorded numbers; the last cell of a notebook.

        Returns
        -------
        How many numbers were written, and where.
        """
        facts = {
            "run": self.run,
            "profile": self.profile.name,
            "crowd": self.crowd_name,
            "simulated": self.crowd.simulated,
            "publishable": self.crowd.images_may_be_shown or not self.shows_images,
            "subjects": self.subjects,
            "seed": self.seed,
            "suite": asdict(suite_of(self.crowd, self.data, self.profile)),
            "device": str(choose_device(self.profile.training.device)),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        if self.split_scheme:
            facts["split_scheme"] = self.split_scheme
        path = self.out / f"{self.notebook}.json"
        write_results(path, self.notebook, self.records, facts)
        return f"{len(self.records)} numbers -> {path.name}"
