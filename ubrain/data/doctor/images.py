"""Questions about images: as they came, in one split only, the right way round, in colour?"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ubrain.crowd import SPLITS, Crowd
from ubrain.data.crowdfile import PIXELS
from ubrain.data.doctor.findings import CHANCE, EXPECTED, SURE, Finding, listed
from ubrain.data.doctor.lookalikes import (
    CHANNELS,
    SIDE,
    VARIANTS,
    Gallery,
    Lookalike,
    find_lookalikes,
)
from ubrain.data.doctor.sample import Sample, match
from ubrain.trials import Rows

COMMON_IMAGES = 40  # photographs by which subjects are compared
TURNED_IMAGES = 200  # images of each subject that are compared with turned ones of the others
VERSION_PAIRS = 300  # pairs of versions of photographs that are compared
VERSIONS = 0.6  # how far their outlines correlate at least; uncut at 0.99
COLOUR = re.compile(
    r"nsd|natural.?scenes|algonauts|ube|bold5000|god|generic.?object|things|nod|natural.?object"
    r"|laion",
    re.I,
)


def contents(crowd: Crowd, gallery: Gallery) -> Iterator[Finding]:
    """Images that are altered or blank, or the same in two splits."""
    ids = crowd.image_ids[gallery.rows]
    altered = gallery.altered & np.isin(gallery.rows, _images_as_they_came(crowd))
    if altered.any():
        what = (
            f"{altered.sum()} images have other pixels than those that were imported (the digest"
            " differs)"
        )
        yield Finding("altered-images", "error", listed(ids[altered]), what, float(altered.sum()))
    blank = gallery.contrast < 1
    if blank.any():
        what = f"{blank.sum()} images show nothing: their contrast is below 1 grey level of 255"
        yield Finding("blank-images", "warning", listed(ids[blank]), what, float(blank.sum()))
    for view in (crowd, *map(crowd.with_scheme, crowd.schemes)):
        yield from _overlap_by_name(view)
        place = {split: gallery.places(view.split_rows(split)) for split in SPLITS}
        seen = np.concatenate([place["train"], place["val"]])
        yield from _overlap(view, gallery, "test", place["test"], seen)
        yield from _overlap(view, gallery, "val", place["val"], place["train"])


def _images_as_they_came(crowd: Crowd) -> Rows:
    """Images that no import can have resized: their digest is that of the pixels in the file."""
    rows = np.arange(len(crowd.image_ids))
    for group in crowd.file["subjects"].values():
        settings = json.loads(group.attrs.get("settings") or '{"image_size": null}')
        if settings.get("image_size", "unknown") is not None:
            rows = np.setdiff1d(rows, group["trials/image"][:])
    return rows


def _overlap_by_name(crowd: Crowd) -> Iterator[Finding]:
    """Photographs of which the file itself says that they are one, in two splits."""
    if "key" not in crowd.file["images"]:
        return
    photograph, names = photographs(crowd), dict[int, str]()
    splits: dict[int, set[str]] = defaultdict(set)
    for split in SPLITS:
        for number in photograph[crowd.split_rows(split)]:
            splits[number].add(split)
    for number, key in zip(photograph, crowd.file["images/key"].asstr()[:], strict=True):
        for name in key.split():
            names[number] = min(name, names.get(number, name))
    both = [number for number, of_number in splits.items() if len(of_number) > 1]
    if both:
        level = "error" if any("test" in splits[number] for number in both) else "warning"
        what = (
            f"versions of {len(both)} photographs, by their names in public collections, are in two"
            f" splits{_of_scheme(crowd)}"
        )
        yield Finding(
            "split-overlap", level, listed([names[n] for n in both]), what, float(len(both))
        )


def _of_scheme(crowd: Crowd) -> str:
    return f" of scheme {crowd.scheme}" if crowd.scheme else ""


def _overlap(
    crowd: Crowd, gallery: Gallery, split: str, held_out: Rows, others: Rows
) -> Iterator[Finding]:
    """Images of a split that are also in another, under another name or changed a little.

    There may be many schemes, so theirs are compared without undoing crops, and not mirrored.
    """
    same = _best(find_lookalikes(gallery, held_out, others, crops=not crowd.scheme))
    if same:
        equal = sum(np.array_equal(gallery.pixels(p.image), gallery.pixels(p.other)) for p in same)
        yield Finding(
            "split-overlap",
            "error" if split == "test" else "warning",
            _pairs(crowd, same),
            f"{len(same)} of {len(held_out)} {split} images are also in another split"
            f"{_of_scheme(crowd)}: {equal} equal, {len(same) - equal} resized, compressed, cropped"
            " by less than 12 % or recoloured (least similarity"
            f" {min(p.similarity for p in same):.2f} of 1)",
            len(same) / len(held_out),
        )
    if crowd.scheme:
        return
    rest = np.setdiff1d(held_out, np.searchsorted(gallery.rows, [p.image for p in same]))
    mirrored = _best(find_lookalikes(gallery, rest, others, "mirrored"))
    if mirrored:
        share = len(mirrored) / len(held_out)
        what = f"{len(mirrored)} of {len(held_out)} {split} images look like mirrored images of"
        what += " another split"
        yield Finding("mirrored-overlap", "note", _pairs(crowd, mirrored), what, share)


def _best(pairs: Iterable[Lookalike]) -> list[Lookalike]:
    """The most similar pair of each image."""
    ranked = sorted(pairs, key=lambda p: p.similarity)
    return list({p.image: p for p in ranked}.values())


def _pairs(crowd: Crowd, pairs: list[Lookalike]) -> str:
    return listed([f"{crowd.image_ids[p.image]} = {crowd.image_ids[p.other]}" for p in pairs], 4)


def orientation(crowd: Crowd, gallery: Gallery, rng: np.random.Generator) -> Iterator[Finding]:
    """Images that are turned images of another subject; photographs lit from the wrong side."""
    judged = set()
    for (first, second, variant), images in _turned(crowd, gallery, rng).items():
        if len(images) >= 3:  # fewer may be chance: one horizon looks like another mirrored
            judged |= {first, second}
            what = (
                f"{len(images)} images of {first}, {variant}, are images of {second}: one of the"
                " two is wrong"
            )
            code = "channel-order" if variant == CHANNELS else "orientation"
            yield Finding(code, "error", f"{first}, {second}", what, float(len(images)))
    for name in crowd.subjects:
        if name not in judged:
            places = gallery.places(np.unique(crowd[name].trials.image))
            yield from _light(name, gallery.thumbnails[places][:5000])


def _turned(
    crowd: Crowd, gallery: Gallery, rng: np.random.Generator
) -> dict[tuple[str, str, str], set[int]]:
    """(subject, later subject, change) -> images of the first that, changed, are the second's."""
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
            for p in find_lookalikes(
                gallery, gallery.places(mine), gallery.places(others), variant, crops=False
            ):
                owner = next(s for s in later if p.other in rows[s])
                # one file, read in two ways, is exactly alike
                if p.variant != "as it is" and p.similarity > 0.97:
                    found[name, owner, p.variant].add(p.image)
    return found


def _light(name: str, thumbnails: NDArray[np.uint8]) -> Iterator[Finding]:
    """Photographs are lighter and bluer at the top: said where that is clearly otherwise."""
    x, half = thumbnails.astype(np.float32), SIDE // 2
    grey, blue = x.mean(3), x[..., 2] - x[..., 0]
    top = _z_of_mean(grey[:, :half].mean((1, 2)) - grey[:, half:].mean((1, 2)))
    side = _z_of_mean(grey[:, :, :half].mean((1, 2)) - grey[:, :, half:].mean((1, 2)))
    sky = _z_of_mean(blue[:, :half].mean((1, 2)) - blue[:, half:].mean((1, 2)))
    if abs(side) > SURE and abs(side) > 2 * abs(top):
        what = (
            f"images are lighter at one side (z = {abs(side):.0f}), not at the top (z = {top:.0f}),"
            " unlike photographs: "
        )
        yield Finding(
            "orientation", "warning", name, what + "rows and columns may be swapped", abs(side)
        )
    elif top < -SURE:
        what = (
            f"images are darker at the top than below (z = {top:.0f}), unlike photographs: they may"
            " be upside down"
        )
        yield Finding("orientation", "warning", name, what, -top)
    elif sky < -SURE:
        what = (
            f"images are redder at the top than below (z = {-sky:.0f}), but skies are blue: red and"
            " blue may be swapped"
        )
        yield Finding("channel-order", "warning", name, what, -sky)


def _z_of_mean(x: NDArray) -> float:
    error = float(x.std(ddof=1)) / np.sqrt(len(x)) if len(x) > 1 else 0.0
    return float(x.mean()) / error if error > 0 else 0.0


def grey_images(samples: list[Sample], gallery: Gallery) -> Iterator[Finding]:
    """Grey images of a dataset whose images are in colour."""
    share = {}
    for s in samples:
        x = gallery.thumbnails[gallery.places(np.unique(s.trials.image))][:5000]
        grey = x.astype(np.float32).std(3).mean((1, 2)) < 2
        share[s.name] = float(grey.mean()) if len(x) else 0.0
    for s in samples:
        dataset = s.subject.dataset
        peers = [share[p.name] for p in samples if p is not s and p.subject.dataset == dataset]
        in_colour = COLOUR.search(dataset) or (peers and np.median(peers) < 0.5)
        if share[s.name] > 0.99 and in_colour:
            what = (
                f"{share[s.name]:.0%} of the images are grey, but those of {dataset} are in colour"
            )
            yield Finding("grey-images", "warning", s.name, what, share[s.name])


def photographs(crowd: Crowd) -> Rows:
    """Which photograph each image is a version of, by common names and contents: (n_images,)."""
    n = len(crowd.content)
    names = {PIXELS + digest: row for row, digest in enumerate(crowd.content)}
    keys = crowd.file["images/key"].asstr()[:] if "key" in crowd.file["images"] else []
    links = [
        (row, names.setdefault(name, len(names)))
        for row, key in enumerate(keys)
        for name in key.split()
    ]
    image, name = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (image, name)), shape=(len(names), len(names)))
    return np.asarray(connected_components(graph, directed=False)[1][:n], dtype=np.int64)


def common_photographs(samples: list[Sample], photograph: Rows) -> Rows:
    """Photographs by which subjects are compared: of each dataset those that most have seen."""
    seen = [np.unique(photograph[s.trials.image]) for s in samples]
    images, counts = np.unique(np.concatenate(seen), return_counts=True)
    images, counts = images[counts > 1], counts[counts > 1]
    chosen = []
    for dataset in {s.subject.dataset for s in samples}:
        own = np.concatenate(
            [i for i, s in zip(seen, samples, strict=True) if s.subject.dataset == dataset]
        )
        mine = np.isin(images, own)
        chosen.append(images[mine][np.argsort(-counts[mine], kind="stable")][:COMMON_IMAGES])
    return np.unique(np.concatenate(chosen))


def versions(samples: list[Sample], gallery: Gallery, photograph: Rows) -> Iterator[Finding]:
    """Images that are one photograph by their names look alike, even if cut out differently.

    Their outlines should correlate at `VERSIONS` at least, over the pairs of two subjects.
    """
    seen = {s.name: np.intersect1d(s.trials.image, gallery.rows) for s in samples}
    bad = defaultdict(list)
    for a, b in combinations(samples, 2):
        x, y = (np.setdiff1d(seen[s.name], seen[other.name]) for s, other in ((a, b), (b, a)))
        _, i, j = np.intersect1d(photograph[x], photograph[y], return_indices=True)
        if len(i) < 12:
            continue
        some = np.unique(np.linspace(0, len(i) - 1, VERSION_PAIRS).astype(int))
        places = np.searchsorted(gallery.rows, np.concatenate([x[i[some]], y[j[some]]]))
        outlines = gallery.outlines(places)[1]
        found = match(outlines[: len(some)], outlines[len(some) :])
        expected = VERSIONS / outlines.shape[1]
        if found.z < CHANCE and found.sd > 0 and expected / found.sd >= EXPECTED:
            bad[a.subject.dataset, b.subject.dataset].append((a.name, b.name, found.z, len(some)))
    for pairs in bad.values():
        first, second, z, n = min(pairs, key=lambda pair: pair[2])
        what = (
            f"{n} images of {first} have the names of photographs of {second}, but do not look like"
            f" them more than like others (z = {z:.1f})"
        )
        names = dict.fromkeys(name for one, other, *_ in pairs for name in (one, other))
        yield Finding("versions-differ", "error", ", ".join(names), what, z)
