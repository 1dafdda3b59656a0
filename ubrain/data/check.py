"""The data doctor: what is wrong with this crowd file, how bad it is, and what to do about it.

Every alarm answers a statistical question and says on which number it rests. Three rules settle the thresholds:

- What *should* be there (agreement of repeats, say) is missing if it would stand `EXPECTED` = 8 standard deviations above
  chance and stays below `CHANCE` = 3. Chance is random matching, whose mean and variance follow from these very data
  (see `ubrain.data.sample.match`), so no distribution is assumed.
- What should *not* be there (agreement with the wrong trial, say) counts from `SURE` = 6 standard deviations on: a chance of
  1e-9 for one question, so thousands can be asked of a file without a false alarm. A question that is asked once of each
  subject counts from `ONCE` = 4.5 on: 3e-6.
- Shares of voxels: whatever the distribution, at most 1 in 25 voxels lies beyond 5 standard errors and 1 in 9 beyond 3
  (Chebyshev). An alarm takes several times that share, since voxels err together.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from ubrain.data.crowd import Crowd
from ubrain.data.lookalikes import CHANNELS, SIDE, VARIANTS, Gallery, Lookalike, find_lookalikes, make_gallery
from ubrain.data.preparation import Rows, read_rows
from ubrain.data.sample import LAGS, Sample, correlation_z, match
from ubrain.data.store import PIXELS, SPLITS
from ubrain.errors import UbrainError
from ubrain.progress import track

EXPECTED, CHANCE, SURE, ONCE = 8.0, 3.0, 6.0, 4.5  # standard deviations; see above
IMAGES = 100_000  # images that are looked at
TURNED_IMAGES = 200  # images of each subject that are compared with turned ones of the others
COMMON_IMAGES, COMPARED_VOXELS = 40, 1 << 16  # images by which subjects are compared, and voxels of them at a time
PAIRED_BYTES = 192 << 20  # of responses in which copies of voxels are sought
MANY_IMAGES = 200  # from which on responses should fit their images even if nothing tells how well
VERSION_PAIRS, VERSIONS = 300, 0.6  # pairs of versions of photographs; how far their outlines correlate, uncut at 0.99
LEVELS = ("error", "warning", "note")
COLOUR = re.compile(r"nsd|natural.?scenes|algonauts|ube|bold5000|god|generic.?object|things|nod|natural.?object", re.I)
NSDGENERAL = {"func1pt8mm": 40_000, "func1mm": 232_000}  # voxels; twice what the largest subject has. Elsewhere:
NSDGENERAL_ELSEWHERE = 100_000  # vertices of a surface; with the voxels that its label file calls -1 it would be more
EARLY = {area: re.compile(f"{area}[vd]?", re.I) for area in ("V1", "V2", "V3")}
NO_AREA = {"0", "-1", "nan", "none", "null", "unknown", "unlabeled", "background", "???", "*"}

TO_DO = {  # every code, and what to do about it
    "unreadable": "import or simulate the data again",
    "altered-images": "import the data again; splits and cached features would belong to other images",
    "blank-images": "look at the files; one that could not be read may have been replaced by a blank image",
    "split-overlap": "give both the same split, or leave one out: a score on these images shows memory, not prediction",
    "mirrored-overlap": "look at them: empty horizons do so by chance",
    "orientation": "look at some images, best beside the same ones of another subject, and import them again, turned. "
                   "Arrays of MATLAB have to be transposed on reading; and are the hemispheres in the right order?",
    "channel-order": "look at some images, and import them again as RGB; OpenCV reads BGR",
    "grey-images": "import the images again, in colour",
    "few-test-images": "hold out more images",
    "no-val-images": "hold out some training images for validation",
    "repeat-numbers": "number the repeats of each image 0, 1, 2, ... in the order of the trials",
    "short-sessions": "join sessions, or leave these out",
    "not-finite": "import again without these voxels",
    "not-z-scored": "import again; responses are z-scored on reading, with numbers that are not theirs",
    "constant-voxels": "leave them out: they cannot be predicted, and pull every mean down",
    "duplicate-voxels": "keep one of each: copies count several times in every mean and interval",
    "scale": "check the scale factor of the import: it may have been applied twice, or not at all",
    "ncsnr-range": "check its unit: percent and r² are not ncsnr",
    "ncsnr-missing": "import without an ncsnr column: then it is computed from the repeats",
    "ncsnr-disagrees": "check its unit, and that its voxels are in the order of the responses",
    "repeats-do-not-agree": "the rows of responses and of trials are not in the same order; import again",
    "shifted-trials": "shift the trial list against the responses: a trial was lost or added, or an index counts from 1",
    "session-disagrees": "compare its trial list with the responses, or leave the session out",
    "images-do-not-fit": "images and responses are probably not in the same order: does the image index count from 1?",
    "versions-differ": "look at some images of both: in one of the two an index probably counts from 1 instead of 0",
    "copied-subject": "one recording was imported twice; leave one out",
    "area-names": "correct the names; results are averaged by name, and voxels without an area have none",
    "area-sizes": "check which number of the label file is which area",
    "areas-missing": "import the areas, or leave it so if they were not found in this subject",
    "not-checked": "nothing",
    "sampled": "nothing; another seed looks at others",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that could not be checked.

    Attributes
    ----------
    code : kind of finding, for programs.
    level : "error" (results would be wrong), "warning" (look at it) or "note".
    where : subject, and sessions, voxels or images.
    what : what was found, with the numbers.
    how_bad : the number on which the finding rests; `what` says which.
    """

    code: str
    level: str
    where: str
    what: str
    how_bad: float

    @property
    def to_do(self) -> str:
        """What to do about it."""
        return TO_DO[self.code]


def check(crowd: str | Path | Crowd, seed: int = 0) -> list[Finding]:
    """Look for everything that goes silently wrong between published files and a crowd file.

    Where there are many images, trials or voxels, some are looked at; `seed` decides which, and a note says so. The largest
    arrays are moments: 30 bytes for each voxel and session of the largest subject, so 1.4 GB for 1.2 million voxels in 40
    sessions; with all else, it may be 2.5 GB.

    Returns
    -------
    Findings, errors first. A file that cannot be read as a crowd file is one finding, "unreadable".
    """
    if not isinstance(crowd, Crowd):
        try:
            with Crowd(crowd) as opened:
                return check(opened, seed)
        except (UbrainError, OSError) as error:
            return [Finding("unreadable", "error", str(crowd), str(error), 1)]
    rng = np.random.default_rng(seed)
    gallery = make_gallery(crowd._file, _images_to_look_at(crowd, rng))
    findings = [*_images(crowd, gallery), *_orientation(crowd, gallery, rng)]
    samples = [Sample(crowd[name], rng) for name in crowd.subjects]
    photograph = _photographs(crowd)
    common = _common_photographs(samples, photograph)
    for number, s in enumerate(track(samples, len(samples), "subjects")):
        found = [f for question in BY_SUBJECT for f in question(s)]
        if not any(f.code == "not-z-scored" for f in found):  # else nothing can be said about z-scored responses
            s.forget_moments()
            s.measure(gallery)
            s.respond(photograph, common)
            found += _ncsnr(s)
        findings += found
        findings += [f for other in samples[:number] for f in _copy(other, s)]
        s.release()
    for s in samples:
        peers = [p for p in samples if p is not s and p.subject.dataset == s.subject.dataset]
        for compare in BY_PEERS:
            findings += compare(s, peers)
    findings += [*_versions(samples, gallery, photograph), *_area_names(samples), *_grey(samples, gallery)]
    findings += _not_checked(samples, gallery, crowd, findings, seed)
    return sorted(findings, key=lambda f: LEVELS.index(f.level))


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if there are errors, 1 if there are warnings, else 0."""
    return max((2 - LEVELS.index(f.level) for f in findings), default=0)


def table(findings: Iterable[Finding]) -> pd.DataFrame:
    """The findings as a table, one a row; for notebooks."""
    rows = [asdict(f) | {"to_do": f.to_do} for f in findings]
    return pd.DataFrame(rows, columns=[*Finding.__dataclass_fields__, "to_do"])


def as_json(findings: Iterable[Finding]) -> str:
    """The findings as a JSON list of objects with the columns of `table`."""
    return str(table(findings).to_json(orient="records", indent=1, force_ascii=False))


def report(findings: list[Finding]) -> str:
    """The findings as text: how many, and for each what was found, where, and what to do."""
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    lines = [", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items())]
    for f in findings:
        lines += [f"{f.level:<8} {f.code} | {f.where}", f"         {f.what}", f"         to do: {f.to_do}"]
    return "\n".join(lines)


def _images_to_look_at(crowd: Crowd, rng: np.random.Generator) -> Rows:
    """All images; of a very large set all that are held out and a random choice of the others."""
    held_out = np.concatenate([crowd.split_rows("test"), crowd.split_rows("val")])[:IMAGES]
    return np.concatenate([held_out, rng.permutation(crowd.split_rows("train"))[: IMAGES - len(held_out)]])


def _photographs(crowd: Crowd) -> Rows:
    """Which photograph each image is a version of, by the names and the contents that images have in common: (n_images,)."""
    n, names = len(crowd.content), {PIXELS + digest: row for row, digest in enumerate(crowd.content)}
    keys = crowd._file["images/key"].asstr()[:] if "key" in crowd._file["images"] else []
    links = [(row, names.setdefault(name, len(names))) for row, key in enumerate(keys) for name in key.split()]
    image, name = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (image, name)), shape=(len(names), len(names)))
    return np.asarray(connected_components(graph, directed=False)[1][:n], dtype=np.int64)


def _common_photographs(samples: list[Sample], photograph: Rows) -> Rows:
    """The photographs by which subjects are compared: for each dataset those that most subjects have seen."""
    seen = [np.unique(photograph[s.trials.image]) for s in samples]
    images, counts = np.unique(np.concatenate(seen), return_counts=True)
    images, counts = images[counts > 1], counts[counts > 1]
    chosen = []
    for dataset in {s.subject.dataset for s in samples}:
        own = np.concatenate([i for i, s in zip(seen, samples, strict=True) if s.subject.dataset == dataset])
        mine = np.isin(images, own)
        chosen.append(images[mine][np.argsort(-counts[mine], kind="stable")][:COMMON_IMAGES])
    return np.unique(np.concatenate(chosen))


# ------------------------------------------------------------------------------------------------------ images


def _images(crowd: Crowd, gallery: Gallery) -> Iterator[Finding]:
    ids = crowd.image_ids[gallery.rows]
    altered = gallery.altered & np.isin(gallery.rows, _images_as_they_came(crowd))
    if altered.any():
        what = f"{altered.sum()} images have other pixels than those that were imported (the digest differs)"
        yield Finding("altered-images", "error", _some(ids[altered]), what, float(altered.sum()))
    blank = gallery.contrast < 1
    if blank.any():
        what = f"{blank.sum()} images show nothing: their contrast is below 1 grey level of 255"
        yield Finding("blank-images", "warning", _some(ids[blank]), what, float(blank.sum()))
    yield from _overlap_by_name(crowd)
    place = {split: gallery.places(crowd.split_rows(split)) for split in ("train", "val", "test")}
    yield from _overlap(crowd, gallery, "test", place["test"], np.concatenate([place["train"], place["val"]]))
    yield from _overlap(crowd, gallery, "val", place["val"], place["train"])


def _images_as_they_came(crowd: Crowd) -> Rows:
    """Images of which the digest is that of the pixels in the file: those that no import can have resized."""
    rows = np.arange(len(crowd.image_ids))
    for group in crowd._file["subjects"].values():
        settings = json.loads(group.attrs.get("settings") or '{"image_size": null}')
        if settings.get("image_size", "unknown") is not None:
            rows = np.setdiff1d(rows, group["trials/image"][:])
    return rows


def _overlap_by_name(crowd: Crowd) -> Iterator[Finding]:
    """Photographs of which the file itself says that they are one, in two splits."""
    splits = defaultdict(set)
    if "key" in crowd._file["images"]:
        keys, split = crowd._file["images/key"].asstr()[:], crowd._file["images/split"][:]
        for key, number in zip(keys, split, strict=True):
            for name in key.split():
                splits[name].add(int(number))
    torn = [name for name, numbers in splits.items() if len(numbers) > 1]
    if torn:
        test = any(SPLITS.index("test") in splits[name] for name in torn)
        what = f"versions of {len(torn)} photographs, by their names in public collections, are in two splits"
        yield Finding("split-overlap", "error" if test else "warning", _some(torn), what, float(len(torn)))


def _overlap(crowd: Crowd, gallery: Gallery, split: str, held_out: Rows, others: Rows) -> Iterator[Finding]:
    """Images of a split that are also in another, under another name or changed a little."""
    same = _best(find_lookalikes(gallery, held_out, others))
    if same:
        equal = sum(np.array_equal(gallery.pixels(p.image), gallery.pixels(p.other)) for p in same)
        yield Finding(
            "split-overlap", "error" if split == "test" else "warning", _pairs(crowd, same),
            f"{len(same)} of {len(held_out)} {split} images are also in another split: {equal} equal, {len(same) - equal} "
            f"resized, compressed, cropped by less than 12 % or recoloured (least similarity "
            f"{min(p.similarity for p in same):.2f} of 1)", len(same) / len(held_out),
        )  # fmt: skip
    rest = np.setdiff1d(held_out, np.searchsorted(gallery.rows, [p.image for p in same]))
    mirrored = _best(find_lookalikes(gallery, rest, others, "mirrored"))
    if mirrored:
        what = f"{len(mirrored)} of {len(held_out)} {split} images look like mirrored images of another split"
        yield Finding("mirrored-overlap", "note", _pairs(crowd, mirrored), what, len(mirrored) / len(held_out))


def _best(pairs: Iterable[Lookalike]) -> list[Lookalike]:
    """The most similar pair of each image."""
    ranked = sorted(pairs, key=lambda p: p.similarity)
    return list({p.image: p for p in ranked}.values())


def _orientation(crowd: Crowd, gallery: Gallery, rng: np.random.Generator) -> Iterator[Finding]:
    """Images of one subject that are turned images of another; and photographs whose light comes from the wrong side."""
    judged = set()
    for (first, second, variant), images in _turned(crowd, gallery, rng).items():
        if len(images) >= 3:  # fewer may be chance: one horizon looks like another mirrored
            judged |= {first, second}
            what = f"{len(images)} images of {first}, {variant}, are images of {second}: one of the two is wrong"
            code = "channel-order" if variant == CHANNELS else "orientation"
            yield Finding(code, "error", f"{first}, {second}", what, float(len(images)))
    for name in crowd.subjects:
        if name not in judged:
            yield from _light(name, gallery.thumbnails[gallery.places(np.unique(crowd[name].trials.image))][:5000])


def _turned(crowd: Crowd, gallery: Gallery, rng: np.random.Generator) -> dict[tuple[str, str, str], set[int]]:
    """(subject, later subject, change) -> images of the first that, changed, are images of the second."""
    found = defaultdict(set)
    rows = {name: np.unique(crowd[name].trials.image) for name in crowd.subjects}
    test = crowd.split_rows("test")
    for number, name in enumerate(crowd.subjects[:-1]):
        later = crowd.subjects[number + 1 :]
        shuffled = rng.permutation(rows[name])
        test_first = shuffled[np.argsort(~np.isin(shuffled, test), kind="stable")]
        mine = np.concatenate([test_first[: TURNED_IMAGES // 2], shuffled[: TURNED_IMAGES // 2]])
        others = np.setdiff1d(np.unique(np.concatenate([rows[s] for s in later])), rows[name])
        for variant in VARIANTS:
            for p in find_lookalikes(gallery, gallery.places(mine), gallery.places(others), variant, crops=False):
                owner = next(s for s in later if p.other in rows[s])
                if p.variant != "as it is" and p.similarity > 0.97:  # one file, read in two ways, is exactly alike
                    found[name, owner, p.variant].add(p.image)
    return found


def _light(name: str, thumbnails: NDArray[np.uint8]) -> Iterator[Finding]:
    """Photographs are lighter and bluer at the top. Where that is clearly otherwise, say so; where unclear, nothing."""
    x, half = thumbnails.astype(np.float32), SIDE // 2
    grey, blue = x.mean(3), x[..., 2] - x[..., 0]
    top = _z_of_mean(grey[:, :half].mean((1, 2)) - grey[:, half:].mean((1, 2)))
    side = _z_of_mean(grey[:, :, :half].mean((1, 2)) - grey[:, :, half:].mean((1, 2)))
    sky = _z_of_mean(blue[:, :half].mean((1, 2)) - blue[:, half:].mean((1, 2)))
    if abs(side) > SURE and abs(side) > 2 * abs(top):
        what = f"images are lighter at one side (z = {abs(side):.0f}), not at the top (z = {top:.0f}), unlike photographs: "
        yield Finding("orientation", "warning", name, what + "rows and columns may be swapped", abs(side))
    elif top < -SURE:
        what = f"images are darker at the top than below (z = {top:.0f}), unlike photographs: they may be upside down"
        yield Finding("orientation", "warning", name, what, -top)
    elif sky < -SURE:
        what = f"images are redder at the top than below (z = {-sky:.0f}), but skies are blue: red and blue may be swapped"
        yield Finding("channel-order", "warning", name, what, -sky)


def _z_of_mean(x: NDArray) -> float:
    error = float(x.std(ddof=1)) / np.sqrt(len(x)) if len(x) > 1 else 0.0
    return float(x.mean()) / error if error > 0 else 0.0


def _grey(samples: list[Sample], gallery: Gallery) -> Iterator[Finding]:
    share = {}
    for s in samples:
        x = gallery.thumbnails[gallery.places(np.unique(s.trials.image))][:5000]
        share[s.name] = float((x.astype(np.float32).std(3).mean((1, 2)) < 2).mean()) if len(x) else 0.0
    for s in samples:
        peers = [share[p.name] for p in samples if p is not s and p.subject.dataset == s.subject.dataset]
        if share[s.name] > 0.99 and (COLOUR.search(s.subject.dataset) or (peers and np.median(peers) < 0.5)):
            what = f"{share[s.name]:.0%} of the images are grey, but those of {s.subject.dataset} are in colour"
            yield Finding("grey-images", "warning", s.name, what, share[s.name])


# ------------------------------------------------------------------------------------------------- one subject


def _sizes_of_splits(s: Sample) -> Iterator[Finding]:
    """With fewer than 12 images a voxel's correlation of 0.5 is within chance (one-sided, 5 %)."""
    test, val = (len(s.subject.image_rows(split)) for split in ("test", "val"))
    if test < 12:
        what = f"{test} test images: below 12, a voxel's correlation of 0.5 is within chance"
        yield Finding("few-test-images", "warning", s.name, what, test)
    if val == 0:
        yield Finding("no-val-images", "warning", s.name, "no val images, by which training decides when to stop", val)


def _trial_table(s: Sample) -> Iterator[Finding]:
    """Repeats have to be numbered once each. Z-scoring over n trials removes 1/n of the variance; 10 % is the limit."""
    image, repeat = s.trials.image, s.group["trials/repeat"][:].astype(np.int64)
    twice = len(image) - len(np.unique(image * (int(repeat.max(initial=0)) + 1) + repeat))
    if twice:
        what = f"{twice} trials have the image and the repeat number of another trial"
        yield Finding("repeat-numbers", "warning", s.name, what, twice)
    count, _ = s.trial_counts
    short = np.flatnonzero(count < 10)
    if len(short) and s.trials.normalise != "none":
        what = f"{len(short)} of {len(count)} have fewer than 10 trials; z-scoring over so few removes their signal"
        yield Finding("short-sessions", "warning", _units(s, short), what, float(count[short].min()))


def _finite(s: Sample) -> Iterator[Finding]:
    bad = np.logical_or(~np.isfinite(s.raw_moments).all((0, 1)), ~np.isfinite(s.moments).all((0, 1)))
    if bad.any():
        what = f"{bad.sum()} voxels have responses or session moments that are NaN or infinite"
        yield Finding("not-finite", "error", _voxels(s, bad), what, float(bad.mean()))


def _moments(s: Sample) -> Iterator[Finding]:
    """Do the moments, with which responses are z-scored on reading, belong to the responses?

    The mean of n of the N trials of a session has the standard error σ / √n · √((N − n) / (N − 1)), and the standard
    deviation one of about σ times that: 0 if all trials were read, so that then every single voxel is judged, up to rounding.
    """
    total, n = s.trial_counts
    error = 5 * np.sqrt((total - n) / np.maximum(total - 1, 1) / np.maximum(n, 1))[:, None]
    wrong, off = np.empty(s.moments.shape[1:], bool), np.empty(s.moments.shape[1:], np.float32)
    for start in range(0, s.subject.n_voxels, COMPARED_VOXELS):
        block = np.s_[:, start : start + COMPARED_VOXELS]
        stored, found = s.moments[:, *block].astype(np.float64), s.raw_moments[:, *block]
        rounding = 4 * float(np.finfo(s.group["responses"].dtype).eps) * (np.abs(found[0]) + 5 * found[1]) + 1e-30
        away = np.nan_to_num(np.abs(stored - found), posinf=float(np.finfo(np.float32).max))
        wrong[block] = away[0] > error * stored[1] + rounding
        wrong[block] |= away[1] > np.expm1(error) * np.minimum(stored[1], found[1]) + rounding  # the error of its logarithm
        off[block] = away.max(0)
    share = wrong.mean(1)
    bad = np.flatnonzero(np.where(n < total, share > 0.25, share > 0) & (n > 1))
    if len(bad):
        deviation, (mean, scale) = s.raw_moments[1, bad][wrong[bad]], s.moments[:, bad]
        by = float(np.median(off[bad][wrong[bad]] / np.maximum(deviation, 1e-30)))
        plain = np.allclose(mean, 0, atol=1e-6) and np.allclose(scale, 1, atol=1e-6)
        why = "the file takes the responses for z-scored, but they are not" if plain else "they are those of other responses"
        what = (f"the stored mean or standard deviation of {share[bad].mean():.0%} of the voxels is off by {by:.2g} standard "
                f"deviations of the responses: {why}")  # fmt: skip
        yield Finding("not-z-scored", "error", _units(s, bad), what, by)
    elif s.trials.normalise == "none":
        yield from _z_scored_already(s, s.raw_moments)


def _z_scored_already(s: Sample, moments: NDArray[np.float64]) -> Iterator[Finding]:
    """Responses said to be z-scored: averages of up to 35 repeats keep a standard deviation of 1/√35 to 1, and mean 0."""
    mean, deviation = np.abs(moments[0][:, ~s.constant]), moments[1][:, ~s.constant]
    if mean.size and (np.median(mean) > 0.5 or not 0.1 < np.median(deviation) < 2):
        what = (f"the file says that responses are z-scored, but the median voxel has the mean ±{np.median(mean):.3g} and the "
                f"standard deviation {np.median(deviation):.3g}")  # fmt: skip
        yield Finding("not-z-scored", "error", s.name, what, float(np.median(deviation)))


def _constant_voxels(s: Sample) -> Iterator[Finding]:
    if s.constant.any():
        what = f"{s.constant.sum()} voxels never change within a session"
        yield Finding("constant-voxels", "warning", _voxels(s, s.constant), what, float(s.constant.mean()))


def _duplicate_voxels(s: Sample) -> Iterator[Finding]:
    """Columns that correlate above 0.999 over 12 trials or more: two unrelated ones do so with a chance of 1e-14.

    Copies have the same projection on random weights, so it is enough to compare neighbours in the order of projections.
    """
    most = max(24, PAIRED_BYTES // (4 * s.subject.n_voxels))
    rows = np.sort(s.rng.permutation(s.raw_rows)[: min(most, 256)])
    usable = np.flatnonzero(~s.constant & np.isfinite(s.raw_moments).all((0, 1)))
    if len(rows) < 12:
        return
    z, values = np.zeros((len(rows), len(usable)), np.float32), read_rows(s.group["responses"], rows)
    for row, unit in enumerate(s.unit[rows]):
        mean, deviation = s.raw_moments[:, unit, usable]
        np.divide(values[row, usable] - mean, deviation, out=z[row], where=deviation > 0, casting="same_kind")
    del values
    z -= z.mean(0)
    z /= np.maximum(np.linalg.norm(z, axis=0), 1e-12)
    order = np.argsort(s.rng.standard_normal(len(z)).astype(np.float32) @ z)
    copies = np.zeros(s.subject.n_voxels, bool)
    for step in range(1, min(5, len(order))):
        for start in range(0, len(order) - step, COMPARED_VOXELS):
            left = order[start : start + COMPARED_VOXELS][: len(order) - step - start]
            right = order[start + step : start + step + COMPARED_VOXELS]
            alike = (z[:, left] * z[:, right]).sum(0) > 0.999
            copies[usable[left[alike]]] = copies[usable[right[alike]]] = True
    if copies.any():
        what = f"{copies.sum()} voxels are copies of one another (correlation above 0.999)"
        yield Finding("duplicate-voxels", "warning", _voxels(s, copies), what, float(copies.mean()))


def _sessions_of_one_size(s: Sample) -> Iterator[Finding]:
    """Between sessions gains differ by some ten per cent; a factor of 10 is halfway to one of 100 (or 300), in logarithm."""
    ratio = s.sizes / max(float(np.median(s.sizes)), 1e-30) if len(s.sizes) else np.empty(0)
    odd = np.flatnonzero((ratio > 10) | (ratio < 0.1))
    if len(odd):
        worst = float(ratio[odd][np.argmax(np.abs(np.log(np.maximum(ratio[odd], 1e-30))))])
        what = f"responses are {worst:.3g} times as large as in the median session"
        yield Finding("scale", "warning", _units(s, odd), what, worst)


def _ncsnr(s: Sample) -> Iterator[Finding]:
    """Is ncsnr possible, and is it that of the repeats? (After `measure`.)"""
    stored = s.subject.voxels["ncsnr"].to_numpy(np.float64)
    for bad, level, what in (
        ((stored < 0) & ~s.constant, "error", "negative"),
        ((stored > 5) & ~s.constant, "warning", "above 5: single trials would be 96 % signal, which no scanner measures"),
    ):
        if bad.any():
            worst = float(stored[bad][np.argmax(np.abs(stored[bad]))])
            what = f"ncsnr of {bad.sum()} voxels is {what} (the worst: {worst:.3g})"
            yield Finding("ncsnr-range", level, _voxels(s, bad), what, worst)
    if s.repeated and np.isnan(stored).all():
        yield Finding("ncsnr-missing", "warning", s.name, "ncsnr is unknown in all voxels, but images were repeated", 1)
    elif s.reliability is not None and s.reliability.z > CHANCE and not _shifted(s):
        yield from _ncsnr_of_repeats(s, stored)


def _ncsnr_of_repeats(s: Sample, stored: NDArray[np.float64]) -> Iterator[Finding]:
    """Is 1 / (1 + ncsnr²) the noise variance that the repeats have?

    Beyond 10 % and 3 standard errors of it should lie at most 1 voxel in 9. And over voxels the two should correlate, all
    the more the more voxels differ beyond the error of the estimate; else ncsnr is that of other voxels.
    """
    noise, error = s.repeat_noise()
    snr = stored[s.voxels]
    implied = 1 / (1 + snr**2)
    usable = (snr >= 0) & (snr <= 5) & (noise > 0) & ~s.constant[s.voxels]
    off = (np.abs(noise - implied) > 0.1 * implied + 3 * error) & ~((snr == 0) & (noise > 1))
    if usable.sum() < 12:
        return
    share, found = float(off[usable].mean()), np.sqrt(np.maximum(1 / noise[usable] - 1, 0))
    x, y = np.log(implied[usable]), np.log(noise[usable])
    spread, blur = float(np.std(x)), float(np.median(error[usable] / noise[usable]))
    expected = np.arctanh(min(spread / max(np.hypot(spread, blur), 1e-30), 0.999)) * np.sqrt(len(x) - 3)
    if share > 1 / 3:
        what = (f"ncsnr of {share:.0%} of the voxels is not that of the repeats (median {np.median(snr[usable]):.2f} in the "
                f"file, {np.median(found):.2f} by the repeats)")  # fmt: skip
        yield Finding("ncsnr-disagrees", "warning", s.name, what, share)
    elif expected >= EXPECTED and (z := correlation_z(rankdata(x), rankdata(y))) < CHANCE:
        what = f"ncsnr has no relation to that of the repeats (over voxels, z = {z:.1f}, expected {expected:.0f})"
        yield Finding("ncsnr-disagrees", "warning", s.name, what, z)


# --------------------------------------------------------------------------------------- one subject and its peers


def _scale(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Percent signal change has a standard deviation of 1 to 3, z-scores have 1, averages of 35 repeats at least 0.17.

    A factor of 300 too much or too little is told from that halfway, in logarithm: at 30, and at 1/√300, which is 0.06.
    """
    sizes = [float(np.median(p.sizes)) for p in (s, *peers) if len(p.sizes)]
    if not len(s.sizes) or s.trials.normalise == "none":
        return
    ratio = sizes[0] / max(float(np.median(sizes)), 1e-30) if len(sizes) > 2 else 1.0
    if not 0.05 < sizes[0] < 30:
        what = (f"the median voxel has a standard deviation of {sizes[0]:.3g}; percent signal change has 1 to 3 (NSD's files "
                "hold 300 times that), z-scores have 1")  # fmt: skip
        yield Finding("scale", "warning", s.name, what, sizes[0])
    elif not 0.1 < ratio < 10:
        what = f"responses are {ratio:.3g} times as large as those of the other subjects of {s.subject.dataset}"
        yield Finding("scale", "warning", s.name, what, ratio)


def _repeats(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Do responses to repeats of an image agree, as they are or after a shift of all trials?"""
    if s.reliability is None or not _at_chance(s, peers):
        return
    lags = {lag: match(*halves) for lag in range(-LAGS, LAGS + 1) if lag and len((halves := s.halves(lag))[0]) >= 10}
    best = max(lags, key=lambda lag: lags[lag].z, default=0)
    if best and lags[best].z > SURE:
        what = (f"repeats of an image agree only if responses are taken {_later(best)} (z = {lags[best].z:.0f}, and "
                f"{s.reliability.z:.1f} as they are)")  # fmt: skip
        yield Finding("shifted-trials", "error", f"{s.name}, all sessions", what, float(best))
    else:
        what = (f"responses to repeats of an image agree no more than those to different images (z = {s.reliability.z:.1f}, "
                f"expected at least {_expected_z(s, peers):.0f})")  # fmt: skip
        yield Finding("repeats-do-not-agree", "error", s.name, what, s.reliability.z)


def _at_chance(s: Sample, peers: list[Sample]) -> bool:
    return s.reliability is not None and s.reliability.z < CHANCE and _expected_z(s, peers) >= EXPECTED


def _expected_z(s: Sample, peers: list[Sample]) -> float:
    """What the agreement of repeats should be at least: by ncsnr, by the other subjects, or with 1 % of signal."""
    snr = s.subject.voxels["ncsnr"].to_numpy(np.float64)[s.voxels]
    power = np.where(np.isfinite(snr) & (snr >= 0), snr, 0) ** 2
    others = [p.reliability.r for p in peers if p.reliability is not None and p.reliability.z > SURE]
    signal = max(float(np.mean(power / (1 + power))), float(np.median(others)) if others else 0.0, 0.01)
    return signal / s.reliability.sd if s.reliability is not None and s.reliability.sd > 0 else 0.0


def _sessions(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Sessions that agree with the repeats in other sessions only after a shift, or not at all."""
    if _at_chance(s, peers):
        return  # said by _repeats
    shifted = _shifted(s)
    for session, lag in shifted.items():
        z = [s.by_lag[session][k].z for k in (lag, 0)]
        what = (f"responses agree with the repeats of their images in other sessions only if they are taken {_later(lag)} "
                f"(z = {z[0]:.0f}, and {z[1]:.1f} as they are)")  # fmt: skip
        yield Finding("shifted-trials", "error", f"{s.name}, session {session}", what, float(lag))
    signal = float(np.median([lags[0].r for lags in s.by_lag.values()])) if len(s.by_lag) > 2 else 0.0
    for session in sorted(set(s.by_lag) - set(shifted)):
        here = s.by_lag[session][0]
        if here.sd > 0 and signal / here.sd >= EXPECTED and here.z < CHANCE:
            what = (f"responses do not agree with the repeats of their images in other sessions (z = {here.z:.1f}, expected "
                    f"{signal / here.sd:.0f})")  # fmt: skip
            yield Finding("session-disagrees", "warning", f"{s.name}, session {session}", what, here.z)


def _shifted(s: Sample) -> dict[int, int]:
    """Session -> lag at which its responses agree far better with the repeats in other sessions than as they are."""
    best = {session: max(lags, key=lambda lag: lags[lag].z) for session, lags in s.by_lag.items()}
    return {i: lag for i, lag in best.items() if lag and s.by_lag[i][lag].z > SURE + max(s.by_lag[i][0].z, 0)}


def _later(lag: int) -> str:
    return f"{abs(lag)} trial{'s' if abs(lag) > 1 else ''} {'later' if lag > 0 else 'earlier'}"


def _images_fit(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Images alike in contrast, lightness and colour evoke responses more alike than chance; if not, images are mixed up.

    What to expect follows from the subject's other split and from its peers; the statistic grows as the number of images.
    Subjects differ twofold in it, so twice as much is asked for as elsewhere.
    """
    if _at_chance(s, peers) or _shifted(s):
        return  # said by _repeats or _sessions
    rates = [z / n for p in (s, *peers) for z, n in p.fit.values() if z > SURE]
    rate = float(np.median(rates)) if rates else 0.0
    reliable = s.reliability is not None and s.reliability.z > 10
    large = MANY_IMAGES if not rates and (reliable or not _fits(s)) else np.inf
    bad = {split: (z, n) for split, (z, n) in s.fit.items() if z < CHANCE and (rate * n >= 2 * EXPECTED or n >= large)}
    if bad:
        z, n = min(bad.values())
        why = f", expected {rate * n:.0f}" if rates else ", although repeats agree" if reliable else ", without repeats"
        what = f"responses to {n} images have no relation to their contrast, lightness and colour (z = {z:.1f}{why})"
        yield Finding("images-do-not-fit", "error" if rates else "warning", f"{s.name}, {' and '.join(bad)} images", what, z)


def _fits(s: Sample) -> bool:
    """Whether responses have a relation to the pixels of their images in one split at least."""
    return any(z >= CHANCE for z, _ in s.fit.values())


def _hemispheres(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """Each hemisphere sees the opposite half of the image, so the left one prefers images with contrast at the right."""
    across, down = s.lateral or (0.0, 0.0)
    if across < -ONCE:
        what = f"the left hemisphere prefers contrast at the left (z = {across:.0f}): mirrored images, or swapped hemispheres"
        yield Finding("orientation", "warning", s.name, what, -across)
    elif abs(down) > ONCE and abs(down) > 2 * abs(across):
        what = (f"one hemisphere prefers contrast at the top (z = {abs(down):.0f}), not at one side (z = {across:.0f}): rows "
                "and columns may be swapped")  # fmt: skip
        yield Finding("orientation", "warning", s.name, what, abs(down))


def _area_sizes(s: Sample, peers: list[Sample]) -> Iterator[Finding]:
    """V1, V2 and V3 are about equally large, and V1 varies threefold between people: a factor of 5 is none of nature's."""
    mine, others = s.areas, [p.areas for p in peers if p.areas]
    if not mine and others:
        what = f"no voxel is in an area, but the other subjects of {s.subject.dataset} have areas"
        yield Finding("areas-missing", "warning", s.name, what, 0)
        return
    odd = {area: (n, why) for area, n, why in (*_odd_early_areas(s), *_odd_nsdgeneral(s))}
    shared = sorted(set(mine).intersection(*others)) if others else []
    for area in shared:
        usual = float(np.median([o[area] / sum(o.values()) for o in others])) * sum(mine.values())
        if not odd and (_far_larger(mine[area], usual) or _far_larger(usual, mine[area])):
            odd[area] = mine[area], f"where the other subjects would have about {usual:.0f}"
    for area, (n, why) in odd.items():
        yield Finding("area-sizes", "warning", f"{s.name}, {area}", f"{area} has {n} voxels, {why}", n)
    missing = sorted(set.intersection(*(set(o) for o in others)) - set(mine)) if len(others) > 1 else []
    if missing:
        what = f"{len(missing)} areas that all other subjects of {s.subject.dataset} have are absent"
        yield Finding("areas-missing", "note", f"{s.name}, {_some(missing)}", what, len(missing))


def _odd_early_areas(s: Sample) -> Iterator[tuple[str, int, str]]:
    """An area, its size and why that cannot be; V1 is also what is called V1v or V1d."""
    together = s.subject.voxels["areas"].value_counts()
    sizes = {area: sum(int(n) for names, n in together.items() if any(map(pattern.fullmatch, re.split(r"\s*,\s*", names))))
             for area, pattern in EARLY.items()}  # fmt: skip
    known = sorted((n, area) for area, n in sizes.items() if n)
    if known and _far_larger(known[-1][0], known[0][0]):
        yield known[-1][1], known[-1][0], f"but {known[0][1]} only {known[0][0]}"
    elif known and len(s.areas) > 2 and known[-1][0] > s.subject.n_voxels / 2:
        yield known[-1][1], known[-1][0], f"more than half of all {s.subject.n_voxels}"


def _odd_nsdgeneral(s: Sample) -> Iterator[tuple[str, int, str]]:
    n, most = s.areas.get("nsdgeneral", 0), NSDGENERAL.get(s.subject.space, NSDGENERAL_ELSEWHERE)
    if n > most:
        yield "nsdgeneral", n, f"but nobody has more than {most}: does it include the voxels that are numbered -1?"


def _far_larger(a: float, b: float) -> bool:
    """More than 5 times as large, by more than 5 standard deviations of counts."""
    return a - 5 * b > 5 * float(np.sqrt(a + 25 * b))


# ---------------------------------------------------------------------------------------------------- all subjects


def _copy(a: Sample, b: Sample) -> Iterator[Finding]:
    """Subjects with the same responses. Noise is never the same: over 12 images no voxel of one should be one of another."""
    same = a.group.attrs["digest"] == b.group.attrs["digest"] or a.moments_digest == b.moments_digest
    share = 1.0 if same else _shared_voxels(a, b)
    if share > 0.05:
        what = f"{share:.0%} of the voxels of {a.name} are also voxels of {b.name}, noise included"
        yield Finding("copied-subject", "error" if share > 0.5 else "warning", f"{a.name}, {b.name}", what, share)


def _shared_voxels(a: Sample, b: Sample) -> float:
    """Share of the voxels that a has kept that correlate above 0.99 with some voxel of b over the images both have seen."""
    images = sorted(a.common.keys() & b.common.keys())
    if len(images) < 12:
        return 0.0
    x = _of_length_1(np.stack([a.common[i] for i in images]))
    best = np.full(x.shape[1], -1.0)
    for start in range(0, b.subject.n_voxels, COMPARED_VOXELS):
        block = slice(start, start + COMPARED_VOXELS)
        y = _of_length_1(np.stack([b.common[i][block] for i in images])[:, ~b.constant[block]])
        best = np.maximum(best, (x.T @ y).max(1, initial=-1))
    return float((best > 0.99).mean()) if best.size else 0.0


def _of_length_1(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = columns - columns.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12)


def _versions(samples: list[Sample], gallery: Gallery, photograph: Rows) -> Iterator[Finding]:
    """Images of two subjects that are one photograph by their names look alike, even if they were cut out of it differently.

    Their outlines should correlate at `VERSIONS` at least, over the pairs.
    """
    seen = {s.name: np.intersect1d(s.trials.image, gallery.rows) for s in samples}
    bad = defaultdict(list)
    for a, b in combinations(samples, 2):
        x, y = (np.setdiff1d(seen[s.name], seen[other.name]) for s, other in ((a, b), (b, a)))
        _, i, j = np.intersect1d(photograph[x], photograph[y], return_indices=True)
        if len(i) < 12:
            continue
        some = np.unique(np.linspace(0, len(i) - 1, VERSION_PAIRS).astype(int))
        outlines = gallery.outlines(np.searchsorted(gallery.rows, np.concatenate([x[i[some]], y[j[some]]])))[1]
        found = match(outlines[: len(some)], outlines[len(some) :])
        if found.z < CHANCE and found.sd > 0 and VERSIONS / outlines.shape[1] / found.sd >= EXPECTED:
            bad[a.subject.dataset, b.subject.dataset].append((a.name, b.name, found.z, len(some)))
    for pairs in bad.values():
        first, second, z, n = min(pairs, key=lambda pair: pair[2])
        what = (f"{n} images of {first} have the names of photographs of {second}, but do not look like them more than like "
                f"others (z = {z:.1f})")  # fmt: skip
        names = dict.fromkeys(name for one, other, *_ in pairs for name in (one, other))
        yield Finding("versions-differ", "error", ", ".join(names), what, z)


def _area_names(samples: list[Sample]) -> Iterator[Finding]:
    spelled: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for s in samples:
        for area in s.areas:
            spelled[re.sub(r"[\s_-]+", "", area.casefold())][area].append(s)
        none = [a for a in s.areas if a.casefold() in NO_AREA]
        if none:
            n = sum(s.areas[a] for a in none)
            what = f"{n} voxels are in areas whose name means none"
            yield Finding("area-names", "warning", f"{s.name}, {_some(none)}", what, n)
    for ways in spelled.values():
        if len(ways) > 1:
            rare = min(ways, key=lambda way: sum(s.areas[way] for s in ways[way]))
            yield Finding("area-names", "warning", f"{', '.join(s.name for s in ways[rare])}, {rare}",
                          f"one area is spelled in {len(ways)} ways: {', '.join(sorted(ways))}", len(ways))  # fmt: skip


def _not_checked(
    samples: list[Sample], gallery: Gallery, crowd: Crowd, findings: list[Finding], seed: int
) -> Iterator[Finding]:
    """What these data cannot tell, and what was only sampled."""
    measured = [s for s in samples if s.measured]
    mixed_up = ("images-do-not-fit", "repeats-do-not-agree", "shifted-trials")
    said = {f.where.split(",")[0] for f in findings if f.code in mixed_up}
    blind = {
        "too few images were repeated: repeats, noise ceilings and the order of trials could not be checked":
            [s.name for s in measured if s.reliability is None],
        "repeats were too few or too noisy to tell whether they agree":
            [s.name for s in measured if s.reliability is not None and s.reliability.z < CHANCE],
        "no images are repeated between sessions: whether one is shifted against the others could not be checked":
            [s.name for s in measured if s.reliability is not None and s.n_sessions > 1 and not s.by_lag],
        "responses have no clear relation to the pixels of their images: whether they are in the same order was not checked":
            [s.name for s in measured if not _fits(s) and s.name not in said],
        "hemispheres are unknown or prefer neither side: mirrored images would not be noticed":
            [s.name for s in measured if abs((s.lateral or (0, 0))[0]) < CHANCE],
    }  # fmt: skip
    for what, names in blind.items():
        if names:
            yield Finding("not-checked", "note", ", ".join(names), what, len(names))
    parts = [f"{len(gallery.rows)} of {len(crowd.image_ids)} images"] if len(gallery.rows) < len(crowd.image_ids) else []
    for s in samples:
        if len(s.raw_rows) < s.subject.n_trials or len(s.voxels) < s.subject.n_voxels:
            parts.append(f"of {s.name} {len(s.raw_rows)} of {s.subject.n_trials} trials with all voxels, and the repeats of "
                         f"{len(s.voxels)} of {s.subject.n_voxels} voxels")  # fmt: skip
    if parts:
        yield Finding("sampled", "note", crowd.path.name, f"looked at {'; '.join(parts)} (seed {seed})", len(parts))


def _some(names: ArrayLike, most: int = 6) -> str:
    """Names or numbers, of which only the first are shown."""
    all_names = [str(n) for n in np.asarray(names, dtype=object)]
    more = len(all_names) - most
    return ", ".join(all_names[:most]) + (f" and {more} more" if more > 0 else "")


def _voxels(s: Sample, which: NDArray[np.bool_]) -> str:
    return f"{s.name}, voxels {_some(np.flatnonzero(which))}"


def _units(s: Sample, which: NDArray[np.int64]) -> str:
    """Sessions, or runs where responses are z-scored by run."""
    return f"{s.name}, {'runs' if s.trials.normalise == 'run' else 'sessions'} {_some(which)}"


def _pairs(crowd: Crowd, pairs: list[Lookalike]) -> str:
    return _some([f"{crowd.image_ids[p.image]} = {crowd.image_ids[p.other]}" for p in pairs], 4)


BY_SUBJECT = (_sizes_of_splits, _trial_table, _finite, _moments, _constant_voxels, _duplicate_voxels, _sessions_of_one_size)
BY_PEERS = (_scale, _repeats, _sessions, _images_fit, _hemispheres, _area_sizes)
