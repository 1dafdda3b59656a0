"""Numbers that other people have published, computed anew from one's own files, and compared.

`verify.toml` has the numbers, their sources, and where to look if one differs; formulas are in
`ubrain.analysis.rulers`.
"""

import hashlib
import io
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import eigh
from torch import Tensor, nn
from torchvision import models, transforms

from ubrain import checkpoint as checkpoints
from ubrain import scores
from ubrain.analysis import rulers
from ubrain.crowd import Crowd, Subject
from ubrain.errors import UbrainError, some
from ubrain.exchange.hub import fetch
from ubrain.exchange.readouts import ReadoutPredictor, load_readout
from ubrain.exchange.transfers import open_encoder
from ubrain.paths import open_regular
from ubrain.predict import correlate
from ubrain.progress import track

Array = NDArray[np.float64]
ENCODINGS = ("none", "jpeg")
BATCH = 32  # images
ALGONAUTS_CARE = (
    "The challenge's test images are others than the shared ones, and the pooling of its"
    " leaderboard was not seen; others report 40.48 (baseline, AlexNet) to 70.85 (winner)"
)


def read() -> dict[str, Any]:
    """What is published, by ruler, with where to look (`hints`)."""
    file = resources.files("ubrain.report").joinpath("verify.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


# --- what is compared


@dataclass(frozen=True)
class Line:
    """A number that is compared.

    Parameters
    ----------
    stage : of the computation, as in the hints: a difference in an early one explains later ones.
    what, where : the number, of which subject or of all, and in which area.
    decides : whether the verdict depends on it.
    """

    stage: str
    what: str
    where: str
    area: str
    found: float
    expected: float
    tolerance: float = 0.0
    decides: bool = False

    @property
    def agrees(self) -> bool:
        """Within the tolerance; a number that is not finite never is."""
        return bool(abs(self.found - self.expected) <= self.tolerance + 1e-12)


@dataclass(frozen=True)
class Verdict:
    """What was compared, and whether it agrees."""

    title: str
    lines: Sequence[Line]
    hints: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every number that decides is within its tolerance; there is one at least."""
        deciding = [line for line in self.lines if line.decides]
        return bool(deciding) and all(line.agrees for line in deciding)

    def where_to_look(self) -> list[str]:
        """Hints for the first stage of the computation, in the order of the lines, that differs;
        and the subjects that differ, if others agree.
        """
        off = [line for line in self.lines if not line.agrees]
        if not off:
            return []
        stages = [line.stage for line in off]
        first = next(line.stage for line in self.lines if line.stage in stages)
        found = [*self.hints[first]]
        here = [line for line in self.lines if line.stage == first and line.where != "all"]
        wrong = {line.where for line in here if not line.agrees}
        if wrong and wrong != {line.where for line in here}:
            found.append(f"{some(wrong)}: {self.hints['subjects']}")
        return found

    def text(self) -> str:
        """A table of all numbers, and the verdict."""
        rows = [
            (v.what, v.where, v.area, v.found, v.expected, v.tolerance, "" if v.agrees else "*")
            for v in self.lines
        ]
        columns = ["", "of", "area", "found", "published", "tolerance", "differs"]
        table = pd.DataFrame(rows, columns=columns)
        shown = table.to_string(index=False, float_format="{:.5g}".format)
        if self.passed:
            return f"{self.title}\n{shown}\n\npassed within tolerance"
        hints = "".join(f"\n- {hint}" for hint in self.where_to_look())
        return f"{self.title}\n{shown}\n\ndiffers, and this is where to look:{hints}"


# --- AlexNet


def alexnet(weights: str) -> nn.Sequential:
    """The convolutions of torchvision's AlexNet with the weights IMAGENET1K_V1.

    Parameters
    ----------
    weights : "hub" (torchvision's cache, or a download), its file alexnet-owt-7be5be79.pth, or
        "random" for a rehearsal.

    Raises
    ------
    UbrainError
        If they cannot be fetched, or the file is another one.
    """
    torch.manual_seed(0)
    model = models.alexnet()
    if weights == "hub":
        try:
            state = models.AlexNet_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UbrainError(
                f"torchvision's AlexNet could not be fetched: {error}. Name its file with --weights"
            ) from error
        model.load_state_dict(state)
    elif weights != "random":
        known = read()["alexnet"]["hash"]
        with open_regular(Path(weights)) as file:
            content = file.read(1 << 28)
        if not hashlib.sha256(content).hexdigest().startswith(known):
            raise UbrainError(
                f"{weights} is not torchvision's alexnet-owt-{known}.pth (IMAGENET1K_V1)"
            )
        model.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    features: nn.Sequential = model.eval().features
    return features


def shown(pixels: NDArray[np.uint8], degrees: Sequence[float], encoding: str) -> Image.Image:
    """What the model sees of an image (height, width, 3) that spans degrees[0]: the middle, of
    degrees[1]; not yet resized.

    encoding "jpeg" saves the image with quality 95, and what was cut out with Pillow's default, as
    Brain-Score's packaged images seem to have been.
    """
    image = Image.fromarray(pixels)
    if encoding == "jpeg":
        image = _as_jpeg(image, quality=95)
    size = [round(side * degrees[1] / degrees[0]) for side in image.size]
    left, top = ((whole - part) // 2 for whole, part in zip(image.size, size, strict=True))
    image = image.crop((left, top, left + size[0], top + size[1]))
    return _as_jpeg(image) if encoding == "jpeg" else image


def _as_jpeg(image: Image.Image, **options: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


@torch.inference_mode()
def activations(
    net: nn.Sequential,
    layer: int,
    crowd: Crowd,
    rows: NDArray[np.int64],
    degrees: Sequence[float],
    encoding: str = "none",
) -> NDArray[np.float32]:
    """Activations of a layer, flattened, to images of the crowd file: (n_images, n_units)."""
    known = read()["alexnet"]
    prepare = transforms.Compose(
        [
            transforms.Resize((known["size"],) * 2),
            transforms.ToTensor(),
            transforms.Normalize(known["mean"], known["std"]),
        ]
    )
    part, out = net[: layer + 1], list[Tensor]()
    for start in track(
        range(0, len(rows), BATCH), -(-len(rows) // BATCH), f"AlexNet, layer {layer}"
    ):
        some_rows = rows[start : start + BATCH]
        images = [prepare(shown(p, degrees, encoding)) for p in crowd.pixels(some_rows)]
        out.append(part(torch.stack(images)).flatten(1))
    return torch.cat(out).numpy()


# --- Brain-Score


class Measured(NamedTuple):
    """Responses of a subject in an area: (n_train, n_voxels), and of each repetition to the test
    images, (n_repetitions, n_test, n_voxels).
    """

    train: Array
    test: Array


class Found(NamedTuple):
    """What Brain-Score computes of a subject in an area."""

    r: float
    ceiling: float
    consistencies: Array  # (n_splits, n_voxels)
    alpha: float

    @property
    def score(self) -> float:
        """r² / ceiling."""
        return self.r**2 / self.ceiling


def brain_score(
    kernel: Array,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    measured: Measured,
    alphas: Sequence[float],
    eigen: tuple[Array, Array] | None = None,
) -> Found:
    """Ridge on the train images, median r over voxels on the test images, and the ceiling.

    Parameters
    ----------
    kernel, train, test : as of `rulers.ridge`.
    alphas : of several, the one that generalised cross-validation prefers.
    eigen : eigenvalues and eigenvectors of the kernel of the train images, to choose by.
    """
    alpha = alphas[0]
    if eigen is not None:
        alpha = rulers.choose_alpha(*eigen, measured.train, alphas)
    predicted = rulers.ridge(kernel, train, test, measured.train, alpha)
    r = scores.correlation(predicted, measured.test.mean(0))
    consistencies = rulers.consistency(measured.test)
    middle = rulers.ceiling(consistencies)
    return Found(float(np.nanmedian(r)), middle, consistencies, alpha)


def nsd_alexnet(
    crowd: Crowd,
    weights: str = "hub",
    encoding: str = "none",
    numbers: Mapping[str, Any] | None = None,
) -> Verdict:
    """AlexNet and ridge on NSD, as Brain-Score pins them (`Allen2022_fmri`, in the volume and on
    fsaverage).

    Parameters
    ----------
    crowd : NSD's subjects from `ubrain import nsd`, float32, images of their own size.
    weights : of AlexNet; see `alexnet`.
    encoding : none, or jpeg: see `shown`.
    numbers : what to compare with; default: what is published.

    Raises
    ------
    UbrainError
        If the crowd has no subjects of NSD, other images, or none of the areas.
    """
    known = numbers or read()["nsd"]
    subjects = _subjects(crowd, "NSD")
    rows = crowd.split_rows("test")
    for subject in subjects.values():
        rows = rows[subject.trials.repeats(rows) == known["repetitions"]]
    image = np.array([_nsd_number(crowd.image_ids[row]) for row in rows], np.int64)
    rows, image = rows[np.argsort(image)], np.sort(image)
    space = next(iter(subjects.values())).space
    variants = {v["images"]: v for v in known["variants"] if v["space"] == space}
    if (variant := variants.get(len(rows))) is None:
        raise UbrainError(
            f"{crowd.path.name}, {space}: all subjects have seen {len(rows)} test images"
            f" {known['repetitions']} times; expected {some(variants) or 'another space'} (import"
            " all sessions, with --test special515)"
        )
    train, test = rulers.brain_score_split(len(rows), known["seed"])
    lines = [
        *_firsts("split", "test position", test, variant),
        *_firsts("images", "test image", image[test], variant),
        *_firsts("images", "train image", image[train], variant),
    ]

    def measure(subject: Subject, voxels: NDArray[np.int64]) -> Measured:
        trial = _trials_of(subject, rows, known["repetitions"])
        z = subject.trials.zscored(trial.reshape(-1), voxels).astype(np.float64)
        z = z.reshape(*trial.shape, len(voxels))
        mean = z.mean(1)
        z = (z - mean.mean(0)) / _deviation(mean)  # over all images, test images included
        return Measured(z[train].mean(1), z[test].swapaxes(0, 1))

    task = _Task(crowd, subjects, rows, train, test, known["areas"][space], [known["alpha"]])
    return _compare(task, known, variant, measure, weights, encoding, lines)


def things_alexnet(
    crowd: Crowd,
    weights: str = "hub",
    encoding: str = "none",
    numbers: Mapping[str, Any] | None = None,
) -> Verdict:
    """AlexNet and ridge on THINGS-fMRI, as Brain-Score pins them (`Hebart2023_fmri`, ridgecv).

    Parameters and errors as of `nsd_alexnet`; the crowd comes from `ubrain import things`.
    """
    known = numbers or read()["things"]
    subjects = _subjects(crowd, "THINGS")
    first = next(iter(subjects.values()))
    seen = np.sort(np.concatenate([first.image_rows(s) for s in ("train", "val")]))
    once, often = seen, first.image_rows("test")
    for subject in subjects.values():
        once = once[subject.trials.repeats(once) == 1]
        often = often[subject.trials.repeats(often) == known["repetitions"]]
    rows, (variant,) = np.concatenate([once, often]), known["variants"]
    train, test = np.split(np.arange(len(rows)), [len(once)])
    if not len(train) or not len(test):
        raise UbrainError(
            f"{crowd.path.name}: all subjects have seen {len(once)} images once, and {len(often)}"
            f" test images {known['repetitions']} times; both are needed"
        )
    lines = [Line("things-images", "images", "all", "", len(rows), variant["images"])]
    alphas = [*known["few_alphas"]]
    for low, high, n in known["alphas"]:
        alphas += np.linspace(low, high, n, endpoint=False).tolist()
    alphas.append(known["alphas"][-1][1])

    def measure(subject: Subject, voxels: NDArray[np.int64]) -> Measured:
        trials = [_trials_of(subject, some_rows, n).T for some_rows, n in parts]
        raw = (subject.trials.raw(t.reshape(-1), voxels).astype(np.float64) for t in trials)
        z = [(x - x.mean(0)) / _deviation(x) for x in raw]
        return Measured(z[0], z[1].reshape(*trials[1].shape, len(voxels)))

    parts = ((once, 1), (often, known["repetitions"]))
    task = _Task(crowd, subjects, rows, train, test, known["areas"], alphas)
    return _compare(task, known, variant, measure, weights, encoding, lines)


class _Task(NamedTuple):
    crowd: Crowd
    subjects: dict[int, Subject]
    rows: NDArray[np.int64]  # of all images, of which `train` and `test` are positions
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    areas: dict[str, list[str]]
    alphas: Sequence[float]


def _compare(
    task: _Task,
    known: Mapping[str, Any],
    variant: Mapping[str, Any],
    measure: Any,
    weights: str,
    encoding: str,
    lines: list[Line],
) -> Verdict:
    """Score every subject in every area, and compare stage by stage."""
    if encoding not in ENCODINGS:
        raise UbrainError(f"--encoding {encoding}: expected one of {', '.join(ENCODINGS)}")
    for subject in task.subjects.values():
        if size := subject.settings.get("image_size"):
            raise UbrainError(
                f"images of {subject.name} were shrunk to {size} pixels; import it without"
                " --image-size"
            )
    if absent := set(task.subjects) - set(variant["subjects"]):
        raise UbrainError(f"{variant['name']}: subject {some(absent)} is not part of it")
    everyone = set(task.subjects) == set(variant["subjects"])
    if not everyone and "subject_score" not in variant:
        raise UbrainError(
            f"{variant['name']}: expected all of subjects {some(variant['subjects'])}"
        )
    net, layers = alexnet(weights), read()["alexnet"]["layers"]
    found: dict[tuple[str, int], Found] = {}
    n_all, n_kept = dict.fromkeys(task.areas, 0), dict[tuple[str, int], int]()
    kernel, eigen, layer = np.empty((0, 0)), None, -1
    for area, names in task.areas.items():
        if layers[area] != layer:
            layer = layers[area]
            x = activations(net, layer, task.crowd, task.rows, known["degrees"], encoding)
            kernel = rulers.centred_kernel(x, task.train)
            if len(task.alphas) > 1:  # once for all subjects: it takes minutes at full size
                eigen = eigh(kernel[np.ix_(task.train, task.train)])
        for number, subject in task.subjects.items():
            inside = _inside(subject, names)
            power = subject.voxels["ncsnr"].to_numpy(np.float64) ** 2
            percent = 100 * power / (power + 1 / known["repetitions"])
            kept = np.flatnonzero(inside & (percent > known["least_ceiling"]))  # NaN is not above
            n_all[area] += int(inside.sum())
            n_kept[area, number] = len(kept)
            if not len(kept):
                raise UbrainError(
                    f"{subject.name}: of {inside.sum()} voxels in {some(names)}, none has a noise"
                    f" ceiling above {known['least_ceiling']} %"
                )
            responses = measure(subject, kept)
            found[area, number] = brain_score(
                kernel, task.train, task.test, responses, task.alphas, eigen
            )
    lines += _lines(found, n_all, n_kept, known, variant, everyone)
    hints = {**read()["hints"], **known.get("hints", {})}
    return Verdict(f"Brain-Score, AlexNet, {variant['name']}", lines, hints)


def _lines(
    found: Mapping[tuple[str, int], Found],
    n_all: Mapping[str, int],
    n_kept: Mapping[tuple[str, int], int],
    known: Mapping[str, Any],
    variant: Mapping[str, Any],
    everyone: bool,
) -> Iterator[Line]:
    """Voxels, then ceilings, then what depends on the model; each of all, then by subject."""
    areas, numbers = list(n_all), sorted({number for _, number in found})
    at = [variant["subjects"].index(number) for number in numbers]

    def published(what: str, area: str) -> float | None:
        if everyone:
            value = variant.get(what, {}).get(area)
            return None if value is None else float(value)
        each = variant.get(f"subject_{what}", {}).get(area)
        return float(np.mean([each[i] for i in at])) if each else None

    for area in areas:
        kept = sum(n_kept[area, number] for number in numbers)
        for what, n in (("voxels", n_all[area]), ("kept", kept)):
            if everyone and (expected := variant.get(what, {}).get(area)) is not None:
                yield Line("voxels", what, "all", area, n, expected)
        for i, number in zip(at, numbers, strict=True):
            if each := variant.get("subject_kept", {}).get(area):
                yield Line("voxels", "kept", f"S{number}", area, n_kept[area, number], each[i])
    for area in areas:
        together = np.concatenate([found[area, n].consistencies for n in numbers], axis=1)
        if (expected := published("ceiling", area)) is not None:
            value = rulers.ceiling(together)
            yield Line("ceiling", "ceiling", "all", area, value, expected, known["tolerance"][area])
    for what in ("r", "score"):
        for area in areas:
            mine = [float(getattr(found[area, n], what)) for n in numbers]
            about, tolerance = ("model", what), known["tolerance"][area]
            if (expected := published(what, area)) is not None:
                decides, mean = what == "score", float(np.mean(mine))
                yield Line(*about, "all", area, mean, expected, tolerance, decides)
            if each := variant.get(f"subject_{what}", {}).get(area):
                for i, number, value in zip(at, numbers, mine, strict=True):
                    yield Line(*about, f"S{number}", area, value, each[i], tolerance)


def _firsts(
    stage: str, what: str, values: NDArray[np.int64], variant: Mapping[str, Any]
) -> Iterator[Line]:
    """The first numbers of a list, where they are published."""
    expected = variant.get(what.replace(" ", "_") + "s", [])
    for i, (mine, theirs) in enumerate(zip(values.tolist(), expected, strict=False)):
        yield Line(stage, f"{what} {i}", "all", "", mine, theirs)


def _subjects(crowd: Crowd, dataset: str) -> dict[int, Subject]:
    """The subjects of a dataset by their number."""
    mine = [crowd[name] for name in crowd.subjects]
    found = {number_of(s.name): s for s in mine if s.dataset.startswith(dataset)}
    if not found:
        known = some({s.dataset for s in mine})
        raise UbrainError(f"{crowd.path.name} has no subject of {dataset}, but of {known}")
    return dict(sorted(found.items()))


def number_of(name: str) -> int:
    """The number at the end of a subject's name: 1 of nsd-subj01."""
    found = re.search(r"(\d{1,6})$", name)
    if found is None:
        raise UbrainError(f"subject {name!r}: expected a name that ends in a number")
    return int(found[1])


def _nsd_number(image_id: str) -> int:
    found = re.fullmatch(r"nsd-(\d{5})(~\w+)?", image_id)
    if found is None:
        raise UbrainError(
            f"image {image_id!r} has no number of NSD; import NSD into a crowd file of its own"
        )
    return int(found[1])


def _inside(subject: Subject, names: Sequence[str]) -> NDArray[np.bool_]:
    """Voxels in one of some areas, whatever the atlas's name before them."""
    wanted = set(names)
    return np.array(
        [not wanted.isdisjoint(text.split(",")) for text in subject.voxels["areas"]], dtype=bool
    )


def _trials_of(subject: Subject, rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Trials in which each of some images was shown, in the order of time: (n_images, n)."""
    image = subject.trials.image
    order = np.argsort(image, kind="stable")
    first = np.searchsorted(image[order], rows)
    return order[first[:, None] + np.arange(n)]


def _deviation(x: Array) -> Array:
    """Standard deviation of columns; 1 where it is 0."""
    deviation = x.std(0)
    return np.where(deviation > 0, deviation, 1)


# --- checkpoints


def voxel_correlations(
    checkpoint: str,
    crowd: Crowd,
    subjects: Sequence[str] | None = None,
    device: str = "auto",
    weights: str | None = None,
) -> dict[str, Array]:
    """r over test images of all voxels of a crowd's subjects, (n_voxels,) each, by an encoder.

    Parameters
    ----------
    checkpoint : folder, or `owner/name` on the Hugging Face hub. Its subjects have the names of
        the crowd's, or the same numbers (S1 or subj01, and nsd-subj01). If it has voxels that the
        crowd file lacks, these are told by the crowd's column source_row.
    subjects : of the crowd; default: all that the checkpoint has, too.
    """
    folder = fetch(checkpoint)
    described = checkpoints.describe(folder)
    theirs = {name: name for name in described.subjects}
    numbered = {int(m[0]): n for n in theirs if (m := re.search(r"\d{1,6}$", n))}
    pairs: dict[str, str] = {}
    chosen = subjects or crowd.subjects
    one = len({crowd[name].dataset for name in chosen}) == 1  # else numbers tell nobody apart
    for name in chosen:
        number = re.search(r"\d{1,6}$", crowd[name].name)
        match = theirs.get(name) or (numbered.get(int(number[0])) if one and number else None)
        if match:
            pairs[name] = match
        elif subjects:
            raise UbrainError(f"{folder} has no subject {name!r}; it has {some(theirs)}")
    if not pairs:
        raise UbrainError(f"{folder} and {crowd.path.name} have no subject in common")
    if len({*pairs.values()}) < len(pairs):
        raise UbrainError(
            f"{some(pairs)} of {crowd.path.name} have the same numbers; choose with --subjects"
        )
    encoder, source = open_encoder(folder, crowd, device, weights)
    found = {}
    for name, other in pairs.items():
        subject, rows = crowd[name], crowd[name].image_rows("test")
        n, voxels = checkpoints.n_voxels_of(described, other, folder), None
        if n != subject.n_voxels:
            table = subject.voxels
            if "source_row" not in table or table["source_row"].max() >= n:
                raise UbrainError(
                    f"{name} has {subject.n_voxels} voxels, {other} of {folder} has {n}; they are"
                    " not the same"
                )
            voxels = table["source_row"].to_numpy(np.int64)
        predictor = ReadoutPredictor(load_readout(folder, other), encoder, other, voxels)
        found[name] = correlate(predictor, source, name, rows)
    return found


def ube(
    crowd: Crowd,
    checkpoint: str,
    device: str = "auto",
    weights: str | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> Verdict:
    """The authors' own run: median r of all voxels of subjects 1, 2, 5 and 7 on the 1000 shared
    images.

    Parameters
    ----------
    crowd : from `ubrain import ube`.
    checkpoint : the authors' encoder, from `ubrain checkpoint import`.
    """
    known = numbers or read()["ube"]
    wanted = {int(number): value for number, value in known["median_r"].items()}
    names = {number: s.name for number, s in _subjects(crowd, known["dataset"]).items()}
    here = [names[number] for number in wanted if number in names]
    if not here:
        raise UbrainError(f"{crowd.path.name}: expected subjects {some(wanted)}")
    found = voxel_correlations(checkpoint, crowd, here, device, weights)
    early, late, tolerance = list[Line](), list[Line](), known["tolerance"]
    for name, r in found.items():
        number, n_images = number_of(name), len(crowd[name].image_rows("test"))
        who = f"S{number}"
        n_voxels = known["voxels"][str(number)]
        early.append(Line("voxelcount", "voxels", who, "", len(r), n_voxels))
        early.append(Line("shared", "test images", who, "", n_images, known["images"]))
        value = float(np.nanmedian(r))
        late.append(Line("checkpoint", "median r", who, "", value, wanted[number], tolerance, True))
    if len(found) == len(wanted):
        pooled = float(np.nanmedian(np.concatenate([*found.values()])))
        late.append(Line("checkpoint", "median r", "all", "", pooled, known["pooled"], tolerance))
    return Verdict("Universal Brain Encoder, the authors' run", [*early, *late], read()["hints"])


def algonauts(
    crowd: Crowd,
    checkpoint: str,
    subjects: Sequence[str] | None = None,
    device: str = "auto",
    weights: str | None = None,
) -> pd.DataFrame:
    """Score of an encoder as in the Algonauts 2023 challenge, on the test images of a crowd file.

    Returns
    -------
    One row per subject: test images, voxels, those without a known ceiling (which are left out),
    median r, and the score in percent, a mean over voxels; then their mean over subjects, and over
    all voxels.
    """
    rows, every = {}, list[Array]()
    found = voxel_correlations(checkpoint, crowd, subjects, device, weights)
    for name, r in found.items():
        subject = crowd[name]
        value = rulers.algonauts_2023(r, subject.noise_ceiling("test"))
        unknown = np.isnan(value)
        if unknown.all():
            raise UbrainError(
                f"{name}: no voxel has a known noise ceiling, so there is no Algonauts score;"
                " import NSD on fsaverage with the challenge's masks (--mask), which has them"
            )
        every.append(value[~unknown])
        n_images = len(subject.image_rows("test"))
        row = [n_images, len(r), int(unknown.sum()), float(np.nanmedian(r)), every[-1].mean()]
        rows[name] = row
    columns = ["test images", "voxels", "no ceiling", "median r", "score (%)"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    mean, pooled = table["score (%)"].mean(), np.concatenate(every).mean()
    more = [[pd.NA] * 4 + [mean], [pd.NA] * 4 + [pooled]]
    ends = pd.DataFrame(more, ["mean of subjects", "all voxels"], columns)
    return pd.concat([table.astype(object), ends.astype(object)])


def rdm(
    crowd: Crowd, weights: str = "hub", alpha: float = 0.1, subjects: Sequence[str] | None = None
) -> pd.DataFrame:
    """Patterns from RDMs (`ubrain import rdm`), predicted by ridge on AlexNet, each image from all
    others.

    The layer is that of Brain-Score for V1, and for IT in areas called IT. The penalty is one for
    all voxels, in units of the mean diagonal of the kernel, and not chosen by the data.

    Returns
    -------
    One row per area, means over subjects: the squared Spearman correlation of AlexNet's RDM with
    the measured one, in percent of the noise ceiling of Algonauts 2019 (no such column where the
    number of images is that of none of its sets), and `rulers.similarity_to_others` of the
    predicted patterns.
    """
    if not 0 < alpha < np.inf:
        raise UbrainError(f"--alpha {alpha}: expected a number above 0")
    chosen = [crowd[name] for name in subjects or crowd.subjects]
    if others := [s.name for s in chosen if "most_negative" not in s.settings]:
        raise UbrainError(f"{crowd.path.name}: {some(others)}: no patterns of `ubrain import rdm`")
    known, net, rows = read(), alexnet(weights), np.unique(chosen[0].trials.image)
    ceilings = known["rdm"]["ceilings"].get(str(len(rows)), {})
    table = {}
    for area in dict.fromkeys(",".join(chosen[0].voxels["areas"]).split(",")):
        layer = known["alexnet"]["layers"]["IT" if area == "IT" else "V1"]
        x = activations(net, layer, crowd, rows, (1, 1))
        centred = x - x.mean(0)
        scaled = x / np.sqrt(np.mean(np.sum(centred.astype(np.float64) ** 2, 1)))
        found = []
        for subject in chosen:
            y = subject.responses_to(rows, _inside(subject, [area]))
            predicted = rulers.leave_one_image_out(scaled, y, alpha)
            own = rulers.rdm_similarity(rulers.rdm(x), rulers.rdm(y))
            found.append([own, rulers.similarity_to_others(predicted, y)])
        own, near = np.mean(found, axis=0)
        table[area] = [len(chosen), own, 100 * own / ceilings.get(area, np.nan), near]
    columns = ["subjects", "AlexNet ρ²", "% of ceiling", "predicted, ρ with others"]
    result = pd.DataFrame.from_dict(table, orient="index", columns=columns)
    return result.dropna(axis="columns", how="all")
