"""The workbench of a notebook: opens the crowd, trains what is needed, tabulates, records numbers,
saves figures.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ubrain import backbone, config, paths, predict, scores, train
from ubrain.analysis import baselines, stats
from ubrain.backbone import Features, choose_device
from ubrain.crowd import Crowd
from ubrain.data import simulate
from ubrain.data.simulate import truth
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder
from ubrain.progress import log
from ubrain.report import figures
from ubrain.report.figures.png import compressed
from ubrain.report.results import Record, write_results

RIDGE, FACTORISED, ALONE, CROWD = list(figures.CONDITIONS)[:4]
Predictions = Mapping[
    str, Mapping[str, NDArray[np.float32]]
]  # condition -> subject -> (n_images, n_voxels)
LEAST_IMAGES = {"train": 20, "val": 5, "test": 5}
FIGURE_RC: Any = {
    "figure.dpi": 80,
    "savefig.dpi": 110,
    "font.size": 11,
    "svg.hashsalt": "ubrain",
    "figure.constrained_layout.use": True,
}


def run_name(crowd: str | Path | None, profile: str, seed: int) -> str:
    """Name of a run's folders: what was measured, how large, and the seed if it is not 0."""
    data = Path(crowd).stem if crowd else "simulated"
    if crowd and data == "simulated":
        data = "simulated-file"  # the plain name is that of the profile's own crowd
    return f"{data}-{profile}" + (f"-seed{seed}" if seed else "")


def simulated_crowd(profile: config.Profile, seed: int) -> Path:
    """The default crowd of a profile, simulated if it is not there yet."""
    parts = [asdict(part) for part in profile.simulation]
    settings = json.dumps([parts, seed, simulate.VERSION])
    key = hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
    path = paths.cache_root() / f"simulated-{profile.name}-seed{seed}-{key}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of several runs that want it, one makes it
        if not path.exists():
            log.info("simulating the crowd of profile %s, seed %d", profile.name, seed)
            with paths.atomic(path) as partial:
                for number, part in enumerate(profile.simulation):
                    simulate.simulate_crowd(partial, part, seed, append=number > 0)
    return path


class Lab:
    """What a notebook works with.

    Parameters
    ----------
    notebook : its name, such as "01_crowd_gains".
    crowd : crowd file; None takes the profile's simulated crowd, which is made if need be.
    profile : "smoke", "fast" or "paper".
    subjects : names of the subjects to use; None takes those of the dataset that has most subjects.
    """

    def __init__(
        self,
        notebook: str,
        crowd: str | None = None,
        profile: str = "fast",
        seed: int = 0,
        subjects: Sequence[str] | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.notebook, self.seed = notebook, seed
        self.profile = config.load_profile(profile)
        out = os.environ.get("UBRAIN_OUT")  # set by a run, which knows its own name
        self.out = Path(out) if out else paths.cache_root() / "lab" / run_name(crowd, profile, seed)
        self.run = self.out.name
        if subjects is not None and not isinstance(subjects, list | tuple):
            raise UbrainError(f"subjects: expected a list such as ['S1', 'S2'], got {subjects!r}")
        self.crowd = Crowd(crowd or simulated_crowd(self.profile, seed))
        self.crowd_name = Path(crowd).name if crowd else f"simulated, seed {seed}"
        self.subjects = list(subjects) if subjects else max(self.datasets.values(), key=len)
        for name in self.subjects:
            for split, least in LEAST_IMAGES.items():
                n = len(self.crowd[name].image_rows(split))
                if n < least:
                    raise UbrainError(
                        f"subject {name!r} has {n} {split} images, the notebooks need at least"
                        f" {least}; import it again with more (--test-fraction, --val-fraction)"
                    )
        self.records: list[Record] = []
        plt.rcParams.update(FIGURE_RC)

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
    def source(self) -> backbone.Source:
        """Where the encoder's tokens come from."""
        return backbone.Source(self.crowd, self.features)

    def encoder(
        self,
        subjects: Sequence[str],
        encoder: config.EncoderConfig | None = None,
        training: config.TrainingConfig | None = None,
        seed: int | None = None,
        source: backbone.Source | None = None,
    ) -> UniversalEncoder:
        """An encoder trained on these subjects: trained once, then taken from the run cache.

        Sizes, training and seed are those of the profile and of the notebook unless given. The
        cache key holds the data, the settings, the seed and the code of model and training; a
        killed training is continued.
        """
        encoder, training = encoder or self.profile.encoder, training or self.profile.training
        source, seed = source or self.source, self.seed if seed is None else seed
        tokens = source.features.folder.name if source.features else asdict(source.maker.config)
        settings = [
            self.crowd.fingerprint,
            tokens,
            list(subjects),
            seed,
            asdict(encoder),
            asdict(training),
            train.VERSION,
        ]
        key = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()
        folder = paths.cache_root() / "encoders" / f"{len(subjects)}-subjects-{key}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of several runs that want it, one trains it
            return train.fit(source, subjects, encoder, training, seed, folder)

    def predict(self, encoder: UniversalEncoder, subject: str) -> NDArray[np.float32]:
        """Predicted responses of a subject to its test images, (n_images, n_voxels)."""
        return predict.predict(
            encoder, self.source, subject, self.crowd[subject].image_rows("test")
        )

    def predict_each(self, encoder: UniversalEncoder) -> dict[str, NDArray[np.float32]]:
        """Predicted test responses of every subject of this notebook, by one encoder."""
        return {s: self.predict(encoder, s) for s in self.subjects}

    def alone(self) -> dict[str, NDArray[np.float32]]:
        """Predicted test responses of every subject, each by an encoder trained on that subject
        only.
        """
        return {s: self.predict(self.encoder([s]), s) for s in self.subjects}

    def ridge(self) -> dict[str, NDArray[np.float32]]:
        """Predicted test responses of every subject by ridge regression; see
        `ubrain.analysis.baselines.ridge`.
        """
        return self._baseline("ridge", baselines.ridge)

    def factorised(self) -> dict[str, NDArray[np.float32]]:
        """Predicted test responses of every subject by a readout of its own; see
        `ubrain.analysis.baselines.factorised`.
        """
        return self._baseline("factorised", baselines.factorised)

    def _baseline(
        self, kind: str, fit: Callable[..., baselines.Fitted]
    ) -> dict[str, NDArray[np.float32]]:
        found = {
            s: fit(self.crowd[s], self.features, self.profile.baselines, self.seed)
            for s in self.subjects
        }
        self.choices = {
            **getattr(self, "choices", {}),
            kind: {s: f.chosen for s, f in found.items()},
        }
        return {s: f.predicted for s, f in found.items()}

    def growing_crowds(self) -> dict[int, list[list[str]]]:
        """Crowds of one, half and all subjects; for each size, groups that together hold every
        subject.
        """
        n = len(self.subjects)
        sizes = sorted({1, -(-n // 2), n})
        ring = self.subjects * 2
        return {size: [ring[i : i + size] for i in range(0, n, size)] for size in sizes}

    def growth(self) -> pd.DataFrame:
        """Median voxel correlation of each subject when trained in crowds of growing size; numbers
        are recorded.

        Returns
        -------
        One row per crowd size and subject: n_subjects, subject, median_r.
        """
        rows: dict[tuple[int, str], float] = {}
        for size, groups in self.growing_crowds().items():
            for group in groups:
                encoder = self.encoder(group)
                for s in (s for s in group if (size, s) not in rows):
                    r = scores.correlation(self.predict(encoder, s), self.measured(s))
                    rows[size, s] = float(np.nanmedian(r))
        for (size, s), value in rows.items():
            self.record(
                "growth_median_r", value, f"crowd of {size}", s, n=self.crowd[s].n_voxels, unit="r"
            )
        return pd.DataFrame(
            [{"n_subjects": size, "subject": s, "median_r": v} for (size, s), v in rows.items()]
        )

    def measured(self, subject: str) -> NDArray[np.float32]:
        """Measured responses to the test images, (n_images, n_voxels)."""
        return self.crowd[subject].responses("test")

    def ceiling_r(self, subject: str) -> NDArray[np.float64]:
        """Highest correlation that a model can reach, (n_voxels,); NaN where unknown."""
        return np.sqrt(self.crowd[subject].noise_ceiling("test"))

    def voxel_r(self, predictions: Predictions) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Correlation of each voxel: condition -> subject -> (n_voxels,)."""
        return {
            c: {s: scores.correlation(p, self.measured(s)) for s, p in by.items()}
            for c, by in predictions.items()
        }

    def score_table(self, predictions: Predictions) -> pd.DataFrame:
        """Scores of each condition and subject, all recorded.

        Returns
        -------
        One row per condition and subject: median_r with its interval, median R², median
        noise-normalised r² (NaN if the ceiling is unknown), share of voxels with q < 0.05, top1,
        top5, gallery.
        """
        rows = []
        for condition, by_subject in predictions.items():
            for s, predicted in by_subject.items():
                measured, ceiling = self.measured(s), self.crowd[s].noise_ceiling("test")
                r = scores.correlation(predicted, measured)
                interval = stats.bootstrap_median_r(
                    predicted, measured, n_boot=self.profile.bootstrap, seed=self.seed
                )
                q = stats.fdr(
                    stats.permutation_p(predicted, measured, self.profile.permutations, self.seed)
                )
                ranks = scores.retrieval_ranks(predicted, measured)
                explained = scores.noise_normalised(r, ceiling)
                row: dict[str, Any] = {
                    "median_r2": float(np.nanmedian(scores.r2(predicted, measured))),
                    "noise_normalised": (
                        float(np.nanmedian(explained)) if np.isfinite(explained).any() else np.nan
                    ),
                    "significant": float(np.mean(np.nan_to_num(q, nan=1.0) < 0.05)),
                }
                self.record("median_r", interval.value, condition, s, interval, unit="r")
                for name, value in row.items():
                    unit = {
                        "median_r2": "R2",
                        "noise_normalised": "r2 / ceiling",
                        "significant": "share",
                    }[name]
                    self.record(name, value, condition, s, n=len(r), unit=unit)
                for k in (1, 5):
                    hits = stats.bootstrap_mean(
                        ranks < k, n_boot=self.profile.bootstrap, seed=self.seed
                    )
                    self.record(f"top{k}", hits.value, condition, s, hits, unit="share")
                    row[f"top{k}"] = hits.value
                rows.append(
                    {
                        "condition": condition,
                        "subject": s,
                        "median_r": interval.value,
                        "low": interval.low,
                        "high": interval.high,
                        **row,
                        "gallery": len(ranks),
                        "chance_top1": 1 / len(ranks),
                    }
                )
        return pd.DataFrame(rows)

    def gain_table(
        self,
        predictions: Predictions,
        of: str,
        over: Iterable[str],
        subjects: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Gain in median r and in top-1 retrieval of one condition over others, paired, with 95 %
        intervals; recorded.

        Parameters
        ----------
        subjects : whose gains; None takes those of this notebook.

        Returns
        -------
        One row per subject and condition: gain, low, high, top1_gain, top1_low, top1_high.
        """
        rows = []
        for other in over:
            for s in self.subjects if subjects is None else subjects:
                a, b, y = predictions[of][s], predictions[other][s], self.measured(s)
                gain = stats.bootstrap_median_r(a, y, b, self.profile.bootstrap, self.seed)
                hits = [scores.retrieval_ranks(p, y) < 1 for p in (a, b)]
                top1 = stats.bootstrap_mean(hits[0], hits[1], self.profile.bootstrap, self.seed)
                condition = f"{of} − {other}"
                self.record("gain_median_r", gain.value, condition, s, gain, unit="r")
                self.record("gain_top1", top1.value, condition, s, top1, unit="share")
                rows.append(
                    {
                        "over": other,
                        "subject": s,
                        "gain": gain.value,
                        "low": gain.low,
                        "high": gain.high,
                        "top1_gain": top1.value,
                        "top1_low": top1.low,
                        "top1_high": top1.high,
                    }
                )
        return pd.DataFrame(rows)

    def area_table(self, predictions: Predictions, least: int = 10) -> pd.DataFrame:
        """Median voxel correlation per area over the voxels of all subjects; areas with fewer
        voxels are left out.

        Returns
        -------
        One row per area and condition: area, condition, median_r, n_voxels. A voxel of several
        areas counts in each.
        """
        rows = []
        for condition, by_subject in self.voxel_r(predictions).items():
            labels = pd.concat(
                [self.crowd[s].voxels["areas"].str.split(",").rename("area") for s in by_subject]
            )
            frame = pd.DataFrame(
                {"area": labels, "r": np.concatenate(list(by_subject.values()))}
            ).explode("area")
            for area, r in frame[frame["area"] != ""].groupby("area", sort=False)["r"]:
                if len(r) >= least:
                    rows.append(
                        {
                            "area": area,
                            "condition": condition,
                            "median_r": r.median(),
                            "n_voxels": len(r),
                        }
                    )
                    self.record(f"median_r of {area}", r.median(), condition, n=len(r), unit="r")
        return pd.DataFrame(rows, columns=["area", "condition", "median_r", "n_voxels"])

    def truth_table(self, predictions: Predictions) -> pd.DataFrame:
        """Simulated crowds only: median correlation with the measured and with the true noiseless
        responses; recorded.

        Returns
        -------
        One row per condition and subject: condition, subject, r_measured, r_true; empty for real
        recordings.
        """
        rows = []
        known = truth.subjects(self.crowd)
        for condition, by_subject in predictions.items():
            for s, predicted in ((s, p) for s, p in by_subject.items() if s in known):
                noiseless = truth.noiseless_responses(self.crowd, s)
                r_true = float(np.nanmedian(scores.correlation(predicted, noiseless)))
                r_measured = float(np.nanmedian(scores.correlation(predicted, self.measured(s))))
                rows.append(
                    {
                        "condition": condition,
                        "subject": s,
                        "r_measured": r_measured,
                        "r_true": r_true,
                    }
                )
                self.record(
                    "median_r_noiseless", r_true, condition, s, n=noiseless.shape[1], unit="r"
                )
        return pd.DataFrame(rows, columns=["condition", "subject", "r_measured", "r_true"])

    def attention(
        self, encoder: UniversalEncoder, subject: str, voxel: int, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Spatial attention of one voxel on images, averaged over the levels: (n_images, P)."""
        device = encoder.position.device
        with torch.inference_mode():
            tokens = self.source.tokens(rows, device)
            return (
                encoder.attention(tokens, subject, torch.tensor([voxel], device=device))
                .mean(0)[:, 0]
                .cpu()
                .numpy()
            )

    def pool(
        self, voxel_r: Mapping[str, Mapping[str, NDArray]], of: str, over: str
    ) -> tuple[NDArray[np.float64], pd.DataFrame]:
        """Gain in r of every voxel that has a place on fsaverage5, all subjects together.

        Returns
        -------
        (n_voxels,) gains and the voxel table; both empty if no subject is on fsaverage5.
        """
        placed = [
            s
            for s in self.subjects
            if self.crowd[s].space == "fsaverage5" and "vertex" in self.crowd[s].voxels
        ]
        if not placed:
            return np.empty(0), pd.DataFrame()
        gain = np.concatenate([voxel_r[of][s] - voxel_r[over][s] for s in placed])
        return gain, pd.concat([self.crowd[s].voxels for s in placed], ignore_index=True)

    def verdict(self, gains: pd.DataFrame, table: pd.DataFrame) -> str:
        """Whether the claim shows in these numbers, in words, naming the subjects that do not
        follow.
        """
        alone = gains[gains["over"] == ALONE]
        lines = [
            "the claim of Fig. 4, a crowd improves each subject, shows in"
            f" {(alone['low'] > 0).sum()} of {len(alone)} subjects: median r"
            f" {alone['gain'].median():+.3f} ({alone['gain'].min():+.3f} …"
            f" {alone['gain'].max():+.3f})"
        ]
        median = table.pivot(index="subject", columns="condition", values="median_r")
        top1 = table.pivot(index="subject", columns="condition", values="top1")
        for other in (ALONE, RIDGE):
            mine = gains[gains["over"] == other].set_index("subject")
            for what, fails in (
                (
                    f"median r of the crowd is above {other}",
                    median.index[median[CROWD] <= median[other]],
                ),
                (f"95 % interval of (crowd − {other}) is above 0", mine.index[mine["low"] <= 0]),
                (f"top-1 of the crowd is above {other}", top1.index[top1[CROWD] <= top1[other]]),
            ):
                holds = len(median) - len(fails)
                lines.append(
                    f"{what}: {holds} of {len(median)} subjects"
                    + (f"; not {', '.join(fails)}" if len(fails) else "")
                )
        ahead = (median[ALONE] > median[RIDGE]).sum()
        lines.append(f"{ALONE} is above {RIDGE} in median r: {ahead} of {len(median)} subjects")
        if FACTORISED in median:
            behind = (median[FACTORISED] < median[RIDGE]).sum()
            lines.append(
                f"{FACTORISED}, the kind of network used before, is below {RIDGE} in median r:"
                f" {behind} of {len(median)} subjects"
            )
        self.record(
            "claim_holds",
            float((gains[gains["over"] == ALONE]["low"] > 0).mean()),
            f"{CROWD} − {ALONE}",
            n=len(median),
            unit="share",
        )
        return "\n".join(lines)

    def summary(self, subjects: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per subject: dataset, scanner, voxels, images of each split, repeats of the test
        images, ceiling.
        """
        rows = []
        for s in map(self.crowd.__getitem__, self.subjects if subjects is None else subjects):
            ceiling = s.noise_ceiling("test")
            rows.append(
                {
                    "subject": s.name,
                    "dataset": s.dataset,
                    "scanner": s.scanner,
                    "voxels": s.n_voxels,
                    **{split: len(s.images(split)) for split in ("train", "val", "test")},
                    "test repeats": float(np.median(s.trials.repeats(s.image_rows("test")))),
                    "median ceiling r": (
                        float(np.nanmedian(np.sqrt(ceiling)))
                        if np.isfinite(ceiling).any()
                        else np.nan
                    ),
                }
            )
        return pd.DataFrame(rows).set_index("subject")

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
        self.records.append(
            Record(
                name,
                float(value),
                condition,
                subject,
                low,
                high,
                interval.n if interval else n,
                unit,
            )
        )

    def save(self, figure: Figure, name: str) -> None:
        """Save a figure, marked as simulated if it is, where the run collects its figures."""
        figures.mark_simulated(figure, self.crowd.simulated)
        path = self.out / "figures" / f"{self.notebook}__{name}.png"
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        with paths.atomic(path) as partial:
            partial.write_bytes(compressed(png.getvalue()))

    def finish(self) -> pd.DataFrame:
        """Write the recorded numbers; the last cell of a notebook.

        Returns
        -------
        All records, one row each.
        """
        facts = {
            "run": self.run,
            "profile": self.profile.name,
            "crowd": self.crowd_name,
            "simulated": self.crowd.simulated,
            "subjects": self.subjects,
            "seed": self.seed,
            "device": str(choose_device(self.profile.training.device)),
            "seconds": round(time.monotonic() - self.started, 1),
            "shown_by": _shown_by(),
        }
        write_results(self.out / f"{self.notebook}.json", self.notebook, self.records, facts)
        return pd.DataFrame([asdict(r) for r in self.records])


def _shown_by() -> str:
    """Digest of the code that draws and words what a notebook shows, which can change while the
    numbers stay.
    """
    here = Path(__file__).parent
    files = [
        Path(__file__),
        *sorted((here / "figures").glob("*.py")),
        *sorted((here / "studies").glob("*.py")),
    ]
    return hashlib.blake2b(b"".join(f.read_bytes() for f in files), digest_size=8).hexdigest()
