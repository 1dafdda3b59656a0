"""The data doctor: what is wrong with this crowd file, how bad it is, and what to do about it.

Every alarm answers a statistical question and says on which number it rests. Three rules settle the
thresholds:

- What *should* be there (agreement of repeats, say) is missing if it would stand `EXPECTED` = 8
  standard deviations above chance and stays below `CHANCE` = 3. Chance is random matching, whose
  mean and variance follow from these very data (see `ubrain.data.doctor.sample.match`), so no
  distribution is assumed.
- What should *not* be there (agreement with the wrong trial, say) counts from `SURE` = 6 standard
  deviations on: a chance of 1e-9 for one question, so thousands can be asked of a file without a
  false alarm. A question that is asked once of each subject counts from `ONCE` = 4.5 on: 3e-6.
- Shares of voxels: whatever the distribution, at most 1 in 25 voxels lies beyond 5 standard errors
  and 1 in 9 beyond 3 (Chebyshev). An alarm takes several times that share, since voxels err
  together.

The questions are in `images`, `voxels` and `trials`, each a function that yields findings; here it
is settled who is asked what, and in which order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from ubrain.crowd import Crowd
from ubrain.data.doctor import images, trials, voxels
from ubrain.data.doctor.findings import CHANCE, LEVELS, Finding
from ubrain.data.doctor.lookalikes import Gallery, make_gallery
from ubrain.data.doctor.sample import Sample
from ubrain.errors import UbrainError
from ubrain.progress import track
from ubrain.trials import Rows

IMAGES = 100_000  # images that are looked at
BY_SUBJECT = (
    trials.sizes_of_splits,
    trials.trial_table,
    voxels.finite,
    voxels.stored_moments,
    voxels.constant_voxels,
    voxels.duplicate_voxels,
    voxels.sessions_of_one_size,
)
BY_PEERS = (
    voxels.size_of_responses,
    trials.repeats,
    trials.sessions,
    trials.images_fit,
    trials.hemispheres,
    voxels.area_sizes,
)


def check(crowd: str | Path | Crowd, seed: int = 0) -> list[Finding]:
    """Look for everything that goes silently wrong between published files and a crowd file.

    The largest arrays are moments: 30 bytes for each voxel and session of the largest subject, so
    1.4 GB for 1.2 million voxels in 40 sessions; with all else, it may be 2.5 GB.

    Parameters
    ----------
    crowd : crowd file (.h5), or an opened one.
    seed : which trials, voxels and images are looked at where there are many; a note says so.

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
    gallery = make_gallery(crowd.file, _images_to_look_at(crowd, rng))
    findings = [*images.contents(crowd, gallery), *images.orientation(crowd, gallery, rng)]
    samples = [Sample(crowd[name], rng) for name in crowd.subjects]
    photograph = images.photographs(crowd)
    common = images.common_photographs(samples, photograph)
    for number, s in enumerate(track(samples, len(samples), "subjects")):
        s.read_moments()
        found = [f for question in BY_SUBJECT for f in question(s)]
        s.forget_moments()
        # else nothing can be said about z-scored responses
        if all(f.code != "not-z-scored" for f in found):
            s.measure(gallery)
            s.respond(photograph, common)
            found += trials.ncsnr(s)
        findings += found
        findings += [f for other in samples[:number] for f in voxels.copied_subject(other, s)]
        s.release()
    for s in samples:
        peers = [p for p in samples if p is not s and p.subject.dataset == s.subject.dataset]
        for compare in BY_PEERS:
            findings += compare(s, peers)
    findings += images.versions(samples, gallery, photograph)
    findings += [*voxels.area_names(samples), *images.grey_images(samples, gallery)]
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
        lines += [
            f"{f.level:<8} {f.code} | {f.where}",
            f"         {f.what}",
            f"         to do: {f.to_do}",
        ]
    return "\n".join(lines)


def _images_to_look_at(crowd: Crowd, rng: np.random.Generator) -> Rows:
    """All images; of a very large set all that are held out and a random choice of the others."""
    held_out = np.concatenate([crowd.split_rows("test"), crowd.split_rows("val")])[:IMAGES]
    others = rng.permutation(crowd.split_rows("train"))[: IMAGES - len(held_out)]
    return np.concatenate([held_out, others])


def _not_checked(
    samples: list[Sample], gallery: Gallery, crowd: Crowd, findings: list[Finding], seed: int
) -> Iterator[Finding]:
    """What these data cannot tell, and what was only sampled."""
    measured = [s for s in samples if s.measured]
    mixed_up = ("images-do-not-fit", "repeats-do-not-agree", "shifted-trials")
    said = {f.where.split(",")[0] for f in findings if f.code in mixed_up}
    blind = {
        "too few images were repeated: repeats, noise ceilings and the order of trials could not be"
        " checked": [s.name for s in measured if s.reliability is None],
        "repeats were too few or too noisy to tell whether they agree": [
            s.name for s in measured if s.reliability is not None and s.reliability.z < CHANCE
        ],
        "no images are repeated between sessions: whether one is shifted against the others could"
        " not be checked": [
            s.name
            for s in measured
            if s.reliability is not None and s.n_sessions > 1 and not s.by_lag
        ],
        "responses have no clear relation to the pixels of their images: whether they are in the"
        " same order was not checked": [
            s.name for s in measured if not trials.fits(s) and s.name not in said
        ],
        "hemispheres are unknown or prefer neither side: mirrored images would not be noticed": [
            s.name for s in measured if abs((s.lateral or (0, 0))[0]) < CHANCE
        ],
    }
    for what, names in blind.items():
        if names:
            yield Finding("not-checked", "note", ", ".join(names), what, len(names))
    n_images = len(crowd.image_ids)
    parts = [f"{len(gallery.rows)} of {n_images} images"] * (len(gallery.rows) < n_images)
    for s in samples:
        if len(s.raw_rows) < s.subject.n_trials or len(s.voxels) < s.subject.n_voxels:
            parts.append(
                f"of {s.name} {len(s.raw_rows)} of {s.subject.n_trials} trials with all voxels, and"
                f" the repeats of {len(s.voxels)} of {s.subject.n_voxels} voxels"
            )
    if parts:
        what = f"looked at {'; '.join(parts)} (seed {seed})"
        yield Finding("sampled", "note", crowd.path.name, what, len(parts))
