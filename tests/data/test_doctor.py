"""The data doctor: quiet about healthy crowds, and each fault is found, once, at its place."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from ubrain.cli import app
from ubrain.config import SimulationConfig
from ubrain.crowd import Crowd
from ubrain.data import doctor, simulate
from ubrain.data.crowdfile import content_digest, write_crowd
from ubrain.data.doctor import TO_DO, Finding, check, exit_code, lookalikes, report, table
from ubrain.data.doctor.lookalikes import VARIANTS
from ubrain.data.doctor.sample import correlation_z, kernel_match, match
from ubrain.data.simulate import brains

checking = import_module("ubrain.data.doctor.check")  # the package has the function of that name
Fault = Callable[[h5py.File], None]


def simulated(
    folder: Path,
    scanner: str,
    seed: int,
    subjects: int = 3,
    images: int = 48,
    test: int = 24,
    voxels: int = 90,
) -> Path:
    """A crowd in sessions of some 60 trials."""
    path = folder / f"{scanner}-{seed}-{images}.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate.crowd, "TRIALS_PER_SESSION", 60)
        patch.setattr(brains, "REFERENCE_SCENES", 60)
        simulate.simulate_crowd(
            path, SimulationConfig(subjects, images, test, voxels, scanner), seed
        )
    return path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects in four sessions."""
    return simulated(tmp_path_factory.mktemp("healthy"), "7T", 0)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects with enough images to tell where they look."""
    return simulated(
        tmp_path_factory.mktemp("larger"), "7T", 1, subjects=2, images=180, test=60, voxels=160
    )


def seen_in(file: h5py.File) -> str:
    """Digest of all that judgements of images rest on: the images, and who has seen which."""
    images = file["images"]
    texts = [
        images[part].asstr()[:].tolist() for part in ("id", "content", "key") if part in images
    ]
    digest = hashlib.blake2b(str([texts, list(file["subjects"])]).encode())
    arrays = [images["split"], images["row"], *images["pixels"].values()]
    for array in [*arrays, *(subject["trials/image"] for subject in file["subjects"].values())]:
        digest.update(array[:].tobytes())
    return digest.hexdigest()


@pytest.fixture(autouse=True, scope="module")
def images_are_judged_once() -> Iterator[None]:
    """Most faults are elsewhere: what is found in the same images, seen by the same, is kept."""
    known: dict[tuple, Any] = {}
    make_gallery, judge_images, judge_orientation = (
        lookalikes.make_gallery,
        doctor.images.contents,
        doctor.images.orientation,
    )

    def gallery(file: h5py.File, rows: np.ndarray) -> lookalikes.Gallery:
        key = ("gallery", rows.tobytes(), seen_in(file))
        if key not in known:
            known[key] = make_gallery(file, rows)
        return replace(known[key], pixels=lookalikes._reader(file))

    def images(crowd: Crowd, gallery: lookalikes.Gallery) -> list[Finding]:
        key = ("images", gallery.rows.tobytes(), seen_in(crowd.file))
        if key not in known:
            known[key] = list(judge_images(crowd, gallery))
        return known[key]

    def orientation(
        crowd: Crowd, gallery: lookalikes.Gallery, rng: np.random.Generator
    ) -> list[Finding]:
        key = (
            "orientation",
            str(rng.bit_generator.state),
            gallery.rows.tobytes(),
            seen_in(crowd.file),
        )
        if key not in known:
            known[key] = list(judge_orientation(crowd, gallery, rng)), rng.bit_generator.state
        found, rng.bit_generator.state = known[key]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "make_gallery", gallery)
        patch.setattr(doctor.images, "contents", images)
        patch.setattr(doctor.images, "orientation", orientation)
        yield


def broken(path: Path, tmp_path: Path, fault: Fault) -> list[Finding]:
    """What is found in a copy of the crowd with a fault."""
    copy = tmp_path / "broken.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        fault(file)
    return check(copy)


def broken_images(path: Path, tmp_path: Path, fault: Fault) -> list[Finding]:
    """As `broken`, but only the images are looked at."""
    copy = tmp_path / "broken.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        fault(file)
    with Crowd(copy) as crowd:
        gallery = lookalikes.make_gallery(crowd.file, np.arange(len(crowd.image_ids)))
        rng = np.random.default_rng(0)
        found = [
            *doctor.images.contents(crowd, gallery),
            *doctor.images.orientation(crowd, gallery, rng),
        ]
    return found


def alarms(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.level != "note"]


def only(findings: list[Finding], code: str, level: str) -> Finding:
    """The one alarm among the findings."""
    assert [(f.code, f.level) for f in alarms(findings)] == [(code, level)], report(findings)
    return alarms(findings)[0]


def rewrite(
    file: h5py.File, subject: str, change: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Replace responses by change(responses, sessions), and the moments by theirs."""
    group = file[f"subjects/{subject}"]
    sessions = group["trials/session"][:]
    values = change(group["responses"][:], sessions)
    group["responses"][...] = values
    for s in range(sessions.max() + 1):
        group["session_moments"][:, s] = values[sessions == s].mean(0), values[sessions == s].std(0)
    group.attrs["digest"] = f"changed {subject}"


def compressed(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def cropped(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(
        Image.fromarray(pixels[6:, 4:-2]).resize((112, 112), Image.Resampling.BICUBIC)
    )


# --- healthy crowds


@pytest.mark.parametrize(("scanner", "seed"), [("3T", 0), ("4T", 0)])
def test_healthy_crowds_raise_no_alarm(tmp_path: Path, scanner: str, seed: int) -> None:
    findings = check(simulated(tmp_path, scanner, seed, subjects=2))
    assert not alarms(findings), report(findings)
    assert any(
        "too few images were repeated" in f.what and f.where == "S1, S2" for f in findings
    ) == (scanner == "4T")


def test_a_healthy_crowd_is_well_enough_recorded_to_be_judged(healthy: Path) -> None:
    """Else faults would not be found for want of data, and nothing found would mean nothing."""
    findings = check(healthy)
    assert not alarms(findings), report(findings)
    assert all("hemispheres" in f.what for f in findings), report(findings)


# --- responses


def shuffle(file: h5py.File) -> None:
    rng = np.random.default_rng(1)
    rewrite(file, "S2", lambda values, _: values[rng.permutation(len(values))])


def roll_session(by: int, session: int | None) -> Fault:
    """The responses of a session (or of all) come `by` trials late."""

    def change(values: np.ndarray, sessions: np.ndarray) -> np.ndarray:
        for s in np.unique(sessions) if session is None else [session]:
            values[sessions == s] = np.roll(values[sessions == s], by, axis=0)
        return values

    return lambda file: rewrite(file, "S2", change)


def shuffle_session(file: h5py.File) -> None:
    def change(values: np.ndarray, sessions: np.ndarray) -> np.ndarray:
        values[sessions == 1] = np.random.default_rng(2).permutation(values[sessions == 1])
        return values

    rewrite(file, "S1", change)


def repeat_voxel(values: np.ndarray, _: np.ndarray) -> np.ndarray:
    values[:, 7] = 3 * values[:, 3] + 1
    return values


def stop_voxel(values: np.ndarray, _: np.ndarray) -> np.ndarray:
    values[:, 5] = 1.25
    return values


def scale_session(values: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    values[sessions == 2] *= 300
    return values


def spoil(values: np.ndarray, _: np.ndarray) -> np.ndarray:
    values[11, 4] = np.nan
    return values


def set_ncsnr(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def fault(file: h5py.File) -> None:
        file["subjects/S3/voxels/ncsnr"][...] = change(file["subjects/S3/voxels/ncsnr"][:])

    return fault


def set_one(value: float) -> Fault:
    def change(ncsnr: np.ndarray) -> np.ndarray:
        ncsnr[9] = value
        return ncsnr

    return set_ncsnr(change)


def scale_as_z_scored(file: h5py.File) -> None:
    """The responses as they were measured, but the file says that they are z-scored."""
    file["subjects/S1/session_moments"][0], file["subjects/S1/session_moments"][1] = 0, 1


def moments_of_another_session(file: h5py.File) -> None:
    moments = file["subjects/S3/session_moments"]
    moments[:, 1] = moments[:, 0]


def copy_subject(file: h5py.File) -> None:
    """S3 becomes S1 with its voxels in another order and another scale."""
    del file["subjects/S3"]
    file.copy("subjects/S1", "subjects/S3")
    order = np.random.default_rng(0).permutation(file["subjects/S3/responses"].shape[1])
    rewrite(file, "S3", lambda values, _: 2 * values[:, order])
    for column in file["subjects/S3/voxels"].values():
        column[...] = column[:][order]


def average_repeats(file: h5py.File, subject: str) -> None:
    """One trial per image, in one session, and no ncsnr: as many datasets are published."""
    group = file[f"subjects/{subject}"]
    images, owner = np.unique(group["trials/image"][:], return_inverse=True)
    values = np.stack([group["responses"][:][owner == i].mean(0) for i in range(len(images))])
    for column in ("responses", "session_moments", *(f"trials/{name}" for name in group["trials"])):
        del group[column]
    group["responses"], group["trials/image"] = values, images
    group["trials/session"] = group["trials/repeat"] = np.zeros(len(images), np.int64)
    group["session_moments"] = np.stack([values.mean(0), values.std(0)])[:, None]
    group["voxels/ncsnr"][...] = np.nan
    group.attrs["digest"] = f"averaged {subject}"


def number_repeats_once(file: h5py.File) -> None:
    file["subjects/S1/trials/repeat"][...] = 0


def scale(subject: str, factor: float) -> Fault:
    return lambda file: rewrite(file, subject, lambda values, _: values * factor)


def change_values(subject: str, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Fault:
    return lambda file: rewrite(file, subject, change)


unknown = set_ncsnr(lambda ncsnr: ncsnr * np.nan)
all_sessions = "S1, sessions 0, 1, 2, 3"
RESPONSE_FAULTS: dict[str, tuple[Fault, str, str, str]] = {  # fault, code, level, where
    "rows shuffled": (shuffle, "repeats-do-not-agree", "error", "S2"),
    "a voxel twice": (
        change_values("S1", repeat_voxel),
        "duplicate-voxels",
        "warning",
        "S1, voxels 3, 7",
    ),
    "a constant voxel": (
        change_values("S1", stop_voxel),
        "constant-voxels",
        "warning",
        "S1, voxels 5",
    ),
    "a subject in NSD's integers": (scale("S2", 300), "scale", "warning", "S2"),
    "a subject as a fraction": (scale("S2", 1 / 50), "scale", "warning", "S2"),
    "a session in NSD's integers": (
        change_values("S3", scale_session),
        "scale",
        "warning",
        "S3, sessions 2",
    ),
    "a missing response": (change_values("S2", spoil), "not-finite", "error", "S2, voxels 4"),
    "not z-scored": (scale_as_z_scored, "not-z-scored", "error", all_sessions),
    "others' moments": (moments_of_another_session, "not-z-scored", "error", "S3, sessions 1"),
    "ncsnr negative": (set_one(-0.3), "ncsnr-range", "error", "S3, voxels 9"),
    "ncsnr too large": (set_one(40), "ncsnr-range", "warning", "S3, voxels 9"),
    "ncsnr infinite": (set_one(np.inf), "ncsnr-range", "warning", "S3, voxels 9"),
    "ncsnr unknown": (unknown, "ncsnr-missing", "warning", "S3"),
    "a subject twice": (copy_subject, "copied-subject", "error", "S1, S3"),
    "repeats not numbered": (number_repeats_once, "repeat-numbers", "warning", "S1"),
}


@pytest.mark.parametrize("name", RESPONSE_FAULTS)
def test_a_fault_in_the_responses_is_found_at_its_place(
    healthy: Path, tmp_path: Path, name: str
) -> None:
    fault, code, level, where = RESPONSE_FAULTS[name]
    assert only(broken(healthy, tmp_path, fault), code, level).where == where


@pytest.mark.parametrize("subjects", [("S1", "S2", "S3"), ("S1",)])
def test_a_scale_that_all_subjects_or_the_only_one_have_twice_is_found(
    healthy: Path, tmp_path: Path, subjects: tuple[str, ...]
) -> None:
    def fault(file: h5py.File) -> None:
        for name in list(file["subjects"]):
            if name not in subjects:
                del file["subjects"][name]
                continue
            rewrite(file, name, lambda values, _: values / 300)

    found = alarms(broken(healthy, tmp_path, fault))
    assert [(f.code, f.where) for f in found] == [("scale", name) for name in subjects], report(
        found
    )


def test_averaged_responses_that_do_not_fit_their_images_are_noted_and_if_many_are_an_alarm(
    larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No repeats, no ceilings, no peers in order: only the images tell."""

    def average(file: h5py.File) -> None:
        for name in file["subjects"]:
            average_repeats(file, name)

    def shuffle_too(file: h5py.File) -> None:
        average(file)
        for name in file["subjects"]:
            rewrite(file, name, lambda values, _: np.random.default_rng(1).permutation(values))

    findings = broken(larger, tmp_path, average)
    assert not alarms(findings), report(findings)
    assert not any("same order" in f.what for f in findings), report(findings)
    findings = broken(larger, tmp_path, shuffle_too)
    assert not alarms(findings), report(findings)
    assert [f.where for f in findings if "same order" in f.what] == ["S1, S2"]
    monkeypatch.setattr(doctor.trials, "MANY_IMAGES", 100)
    findings = check(tmp_path / "broken.h5")
    assert {(f.code, f.level, f.where) for f in alarms(findings)} == {
        ("images-do-not-fit", "warning", f"{name}, train images") for name in ("S1", "S2")
    }, report(findings)
    assert not any("same order" in f.what for f in findings)


@pytest.mark.parametrize(
    ("by", "session", "said"),
    [(2, 1, "2 trials later"), (-1, 3, "1 trial earlier"), (-2, None, "2 trials earlier")],
)
def test_a_shift_is_found_with_its_size_and_direction(
    healthy: Path, tmp_path: Path, by: int, session: int | None, said: str
) -> None:
    found = only(broken(healthy, tmp_path, roll_session(by, session)), "shifted-trials", "error")
    assert found.where == f"S2, {'all sessions' if session is None else f'session {session}'}"
    assert found.how_bad == by
    assert said in found.what


def test_a_session_in_disorder_is_found(larger: Path, tmp_path: Path) -> None:
    found = only(broken(larger, tmp_path, shuffle_session), "session-disagrees", "warning")
    assert found.where == "S1, session 1"


def test_ncsnr_in_another_order_of_voxels_is_found(larger: Path, tmp_path: Path) -> None:
    def fault(file: h5py.File) -> None:
        ncsnr = file["subjects/S2/voxels/ncsnr"]
        ncsnr[...] = np.random.default_rng(0).permutation(ncsnr[:])

    assert only(broken(larger, tmp_path, fault), "ncsnr-disagrees", "warning").where == "S2"


def test_of_two_sessions_the_shifted_one_is_found(healthy: Path, tmp_path: Path) -> None:
    def fault(file: h5py.File) -> None:
        for group in file["subjects"].values():  # join the four sessions into two
            group["trials/session"][...] = group["trials/session"][:] // 2
            moments = group["session_moments"][:, :2]
            del group["session_moments"]
            group["session_moments"] = moments
        for name in file["subjects"]:
            rewrite(file, name, lambda values, _: values)
        roll_session(1, 1)(file)

    assert (
        only(broken(healthy, tmp_path, fault), "shifted-trials", "error").where == "S2, session 1"
    )


def test_a_file_that_is_z_scored_only_by_its_own_account_is_found(
    healthy: Path, tmp_path: Path
) -> None:
    def fault(file: h5py.File) -> None:
        rewrite(file, "S1", lambda values, _: 4 * values)
        file["subjects/S1"].attrs["normalise"] = "none"

    found = broken(healthy, tmp_path, fault)
    assert ("not-z-scored", "S1") in {(f.code, f.where) for f in found}, report(found)


def test_responses_of_the_wrong_images_are_found_though_repeats_agree(
    larger: Path, tmp_path: Path
) -> None:
    def fault(file: h5py.File) -> None:
        images = file["subjects/S2/trials/image"]
        seen = np.unique(images[:])
        following = dict(zip(seen, np.roll(seen, -1), strict=True))  # an index that counts from 1
        images[...] = [following[i] for i in images[:]]

    found = only(broken(larger, tmp_path, fault), "images-do-not-fit", "error")
    assert found.where == "S2, train images"


# --- areas


def rename(subject: str, **names: str) -> Fault:
    def fault(file: h5py.File) -> None:
        areas = file[f"subjects/{subject}/voxels/areas"]
        areas[...] = [names.get(a, names.get("else_", a)) for a in areas.asstr()[:]]

    return fault


AREA_FAULTS: dict[str, tuple[Fault, str, str]] = {  # fault, code, where
    "V1 everywhere but in one voxel of V2": (
        rename("S1", V2="V2", V3="V3", else_="V1"),
        "area-sizes",
        "S1, V1",
    ),
    "one area, two spellings": (rename("S2", FFA="ffa"), "area-names", "S2, ffa"),
    "unlabelled voxels as an area": (rename("S3", LO="Unknown"), "area-names", "S3, Unknown"),
    "no areas": (rename("S1", else_=""), "areas-missing", "S1"),
}


def name_parts_of_areas(file: h5py.File) -> None:
    """V1v and V1d instead of V1, as in NSD."""
    for subject in file["subjects"].values():
        areas = subject["voxels/areas"]
        areas[...] = [
            a + "vd"[i % 2] if a in ("V1", "V2", "V3") else a
            for i, a in enumerate(areas.asstr()[:])
        ]


def test_sizes_of_areas_in_parts_are_summed(healthy: Path, tmp_path: Path) -> None:
    assert not alarms(broken(healthy, tmp_path, name_parts_of_areas))
    with Crowd(healthy) as crowd:
        areas = crowd["S1"].voxels["areas"]
    n_v1, n_v2 = int((~areas.isin(["V2", "V3"])).sum()), int((areas == "V2").sum())

    def fault(file: h5py.File) -> None:
        rename("S1", V2="V2", V3="V3", else_="V1")(file)
        name_parts_of_areas(file)

    found = only(broken(healthy, tmp_path, fault), "area-sizes", "warning")
    assert found.where == "S1, V1"
    assert found.how_bad == n_v1
    assert (
        f"V1 has {n_v1} voxels, but V2 only {n_v2}" in found.what or "more than half" in found.what
    )


@pytest.mark.parametrize(
    ("space", "alarm"), [("func1pt8mm", True), ("func1mm", False), ("fsaverage", False)]
)
def test_an_impossible_nsdgeneral_is_found(tmp_path: Path, space: str, alarm: bool) -> None:
    n_trials, n_voxels = 24, 45_000
    with write_crowd(tmp_path / "wide.h5") as writer:
        rng = np.random.default_rng(0)
        rows = [
            writer.add_image(f"{i}", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), "test")
            for i in range(n_trials)
        ]
        trials = pd.DataFrame({"image": rows, "session": 0, "repeat": 0})
        voxels = pd.DataFrame(
            {"hemisphere": ["L", "R"] * (n_voxels // 2), "areas": "nsdgeneral", "ncsnr": np.nan}
        )
        values = rng.normal(size=(n_trials, n_voxels)).astype(np.float32)
        writer.add_subject("S1", trials, voxels, [values], dataset="NSD", scanner="7T", space=space)
    found = [f for f in check(tmp_path / "wide.h5") if f.code == "area-sizes"]
    assert [(f.level, f.where, f.how_bad) for f in found] == [
        ("warning", "S1, nsdgeneral", 45_000)
    ] * alarm


@pytest.mark.parametrize("name", AREA_FAULTS)
def test_a_fault_in_the_areas_is_found_at_its_place(
    healthy: Path, tmp_path: Path, name: str
) -> None:
    fault, code, where = AREA_FAULTS[name]
    assert only(broken(healthy, tmp_path, fault), code, "warning").where == where


def test_an_area_that_only_one_subject_lacks_is_a_note(healthy: Path, tmp_path: Path) -> None:
    findings = broken(healthy, tmp_path, rename("S1", PPA=""))
    assert not alarms(findings)
    assert [f.where for f in findings if f.code == "areas-missing"] == ["S1, PPA"]


# --- images


def set_images(
    file: h5py.File, rows: Iterable[int], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    content = file["images/content"].asstr()[:]
    for row in rows:
        place = file["images/row"][row]
        pixels = change(file["images/pixels/112x112"][place])
        file["images/pixels/112x112"][place] = pixels
        content[row] = content_digest(pixels)
        if (content == content[row]).sum() > 1:
            content[row] = content[row][::-1]  # as if it had been stored under another digest
    file["images/content"][...] = content


def leak(change: Callable[[np.ndarray], np.ndarray], number: int = 0) -> Fault:
    """A train image of S1 becomes a changed copy of a test image."""

    def fault(file: h5py.File) -> None:
        split = file["images/split"][:]
        test = np.flatnonzero(split == 2)[5 + number]
        train = np.intersect1d(np.flatnonzero(split == 0), file["subjects/S1/trials/image"][:])[
            7 + number
        ]
        copy = change(file["images/pixels/112x112"][file["images/row"][test]])
        set_images(file, [train], lambda _: copy)

    return fault


def test_test_images_among_the_train_images_are_found(healthy: Path, tmp_path: Path) -> None:
    changes = [
        lambda x: np.asarray(Image.fromarray(x).convert("L").convert("RGB")),
        compressed,
        cropped,
        lambda x: compressed(cropped(x)),
    ]

    def fault(file: h5py.File) -> None:
        for number, change in enumerate(changes):
            leak(change, number)(file)

    found = only(broken_images(healthy, tmp_path, fault), "split-overlap", "error")
    with Crowd(healthy) as crowd:
        for number in range(len(changes)):
            assert crowd.image_ids[crowd.split_rows("test")[5 + number]] in found.where
    assert found.how_bad == pytest.approx(len(changes) / 24)


def test_an_equal_image_under_another_digest_is_found(healthy: Path, tmp_path: Path) -> None:
    findings = broken_images(healthy, tmp_path, leak(lambda x: x))
    assert {f.code for f in alarms(findings)} == {"split-overlap", "altered-images"}
    assert "1 equal" in next(f.what for f in findings if f.code == "split-overlap")


def test_a_mirrored_test_image_is_a_note(healthy: Path, tmp_path: Path) -> None:
    findings = broken_images(healthy, tmp_path, leak(lambda x: x[:, ::-1]))
    assert not alarms(findings), report(findings)
    assert [f.how_bad for f in findings if f.code == "mirrored-overlap"] == [1 / 24]


def test_versions_of_a_photograph_in_two_splits_are_found_by_their_name(
    healthy: Path, tmp_path: Path
) -> None:
    def fault(file: h5py.File) -> None:
        split = file["images/split"][:]
        keys = [""] * len(split)
        keys[np.flatnonzero(split == 2)[0]], keys[np.flatnonzero(split == 0)[0]] = (
            "coco:7 nsd:3",
            "coco:7",
        )
        file["images"].create_dataset("key", data=keys, dtype=h5py.string_dtype())

    assert only(broken_images(healthy, tmp_path, fault), "split-overlap", "error").where == "coco:7"


@pytest.mark.parametrize("by", ["name", "pixels"])
def test_leaks_are_found_in_every_scheme(healthy: Path, tmp_path: Path, by: str) -> None:
    """Two images are one picture, and both train; but in the scheme one of them is a test image."""

    def fault(file: h5py.File) -> None:
        split = file["images/split"][:]
        mine = np.intersect1d(np.flatnonzero(split == 0), file["subjects/S1/trials/image"][:])
        one, other = mine[:2]
        if by == "name":
            keys = np.full(len(split), "", object)
            keys[[one, other, mine[2]]] = "coco:7", "nsd:3", "coco:7 nsd:3"  # the last is in none
            file["images"].create_dataset("key", data=keys, dtype=h5py.string_dtype())
        else:
            copy = compressed(file["images/pixels/112x112"][file["images/row"][one]])
            set_images(file, [other], lambda _: copy)
        split[one], split[mine[2]] = 2, 255
        file["images/schemes/tau"] = split
        file["images/schemes/same"] = file["images/split"][:]

    found = only(broken_images(healthy, tmp_path, fault), "split-overlap", "error")
    assert "of scheme tau" in found.what
    with Crowd(healthy) as crowd:
        mine = np.intersect1d(crowd.split_rows("train"), crowd["S1"].trials.image)
        name = "coco:7" if by == "name" else crowd.image_ids[mine[0]]
    assert name in found.where


def test_a_blank_image_is_found(healthy: Path, tmp_path: Path) -> None:
    findings = broken_images(
        healthy, tmp_path, lambda f: set_images(f, [40], lambda x: np.full_like(x, 128))
    )
    assert only(findings, "blank-images", "warning").where == "scene-000040"


def test_changed_pixels_are_found(healthy: Path, tmp_path: Path) -> None:
    def fault(file: h5py.File) -> None:
        file["images/pixels/112x112"][30, 0, 0, 0] ^= 1

    assert (
        only(broken_images(healthy, tmp_path, fault), "altered-images", "error").where
        == "scene-000030"
    )


@pytest.fixture
def no_copies_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes half of the time, and has its own tests."""
    monkeypatch.setattr(doctor.images, "_overlap", lambda *_: iter(()))


def own_images(
    file: h5py.File,
    subject: str,
    change: Callable[[np.ndarray], np.ndarray],
    splits: tuple[int, ...],
) -> None:
    """A subject's images become changed copies, as if its importer had read the files wrongly."""
    images, group = file["images"], file[f"subjects/{subject}"]
    pixels = images["pixels/112x112"]
    n, old = len(images["id"]), np.flatnonzero(np.isin(images["split"][:], splits))
    copies = [change(pixels[images["row"][i]]) for i in old]
    for name, values in {
        "id": [f"other-{i}" for i in old],
        "split": images["split"][:][old],
        "shape": (112, 112),
        "row": len(pixels) + np.arange(len(old)),
        "content": [content_digest(c) for c in copies],
    }.items():
        images[name].resize(n + len(old), axis=0)
        images[name][n:] = values
    pixels.resize(len(pixels) + len(old), axis=0)
    pixels[-len(old) :] = np.stack(copies)
    new = dict(zip(old, n + np.arange(len(old)), strict=True))
    group["trials/image"][...] = [new.get(i, i) for i in group["trials/image"][:]]


def own_images_of_test(
    file: h5py.File, subject: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    own_images(file, subject, change, (2,))


def own_versions(
    file: h5py.File,
    subject: str,
    change: Callable[[np.ndarray], np.ndarray],
    splits: tuple[int, ...],
    off_by: int = 0,
) -> None:
    """As `own_images`, with names of photographs in NSD; those of the copies are off by some."""
    n = len(file["images/id"])
    own_images(file, subject, change, splits)
    of_copies = [int(name.removeprefix("other-")) for name in file["images/id"].asstr()[n:]]
    keys = [f"nsd:{i}" for i in (*range(n), *np.roll(of_copies, off_by))]
    file["images"].create_dataset("key", data=keys, dtype=h5py.string_dtype())


@pytest.mark.usefixtures("no_copies_are_sought")
def test_a_subject_twice_is_found_though_its_images_came_in_another_size(
    healthy: Path, tmp_path: Path
) -> None:
    def fault(file: h5py.File) -> None:
        copy_subject(file)
        own_versions(file, "S3", compressed, (0, 1, 2))
        file["subjects/S3/responses"][0, 5] = np.nan

    found = {(f.code, f.level, f.where) for f in alarms(broken(healthy, tmp_path, fault))}
    assert ("copied-subject", "error", "S1, S3") in found
    assert not {code for code, _, _ in found} & {"versions-differ", "orientation"}


@pytest.mark.usefixtures("no_copies_are_sought")
def test_versions_of_photographs_that_do_not_look_alike_are_found(
    healthy: Path, tmp_path: Path
) -> None:
    def change(x: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(x[:90, 22:]).resize((112, 112)))

    findings = broken(healthy, tmp_path, lambda f: own_versions(f, "S2", change, (2,)))
    assert not alarms(findings), report(findings)
    findings = broken(healthy, tmp_path, lambda f: own_versions(f, "S2", change, (2,), off_by=1))
    found = only(findings, "versions-differ", "error")
    assert found.where == "S1, S2, S3"
    assert "24 images of S" in found.what


@pytest.mark.usefixtures("no_copies_are_sought")
@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        (lambda x: x.transpose(1, 0, 2), "orientation", "with rows and columns swapped"),
        (lambda x: x[:, ::-1], "orientation", "mirrored"),
        (lambda x: x[::-1], "orientation", "upside down"),
        (lambda x: np.rot90(x, -1), "orientation", "turned by 90 degrees"),
        (lambda x: x[..., ::-1], "channel-order", "with red and blue swapped"),
    ],
)
def test_images_read_the_wrong_way_are_found_by_another_subject(
    healthy: Path, tmp_path: Path, change: Callable, code: str, what: str
) -> None:
    findings = broken_images(healthy, tmp_path, lambda f: own_images_of_test(f, "S2", change))
    found = [f for f in alarms(findings) if f.level == "error"]
    assert [(f.code, f.where) for f in found] == [(code, "S1, S2"), (code, "S2, S3")], report(
        findings
    )
    assert what in found[0].what
    assert all(f.how_bad == 24 for f in found)


def everything(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    return lambda file: set_images(file, np.arange(len(file["images/id"])), change)


@pytest.mark.usefixtures("no_copies_are_sought")
@pytest.mark.parametrize(
    ("change", "code", "evidence"),
    [
        (
            lambda x: x.transpose(1, 0, 2),
            "orientation",
            {"lighter at one side", "one hemisphere prefers contrast at the top"},
        ),
        (lambda x: x[::-1], "orientation", {"darker at the top"}),
        (lambda x: x[:, ::-1], "orientation", {"the left hemisphere prefers contrast at the left"}),
        (lambda x: x[..., ::-1], "channel-order", {"skies are blue"}),
    ],
)
def test_images_that_all_subjects_saw_the_wrong_way_are_found_by_light_and_hemispheres(
    larger: Path, tmp_path: Path, change: Callable, code: str, evidence: set[str]
) -> None:
    found = alarms(broken(larger, tmp_path, everything(change)))
    assert {(f.code, f.where) for f in found} == {(code, "S1"), (code, "S2")}, report(found)
    assert {e for e in evidence if any(e in f.what for f in found)} == evidence
    assert all(any(e in f.what for e in evidence) for f in found)


def test_swapped_hemispheres_are_found(larger: Path, tmp_path: Path) -> None:
    def fault(file: h5py.File) -> None:
        side = file["subjects/S1/voxels/hemisphere"]
        side[...] = [{"L": "R", "R": "L"}[s] for s in side.asstr()[:]]

    assert only(broken(larger, tmp_path, fault), "orientation", "warning").where == "S1"


def test_grey_images_of_one_subject_among_colour_are_found(healthy: Path, tmp_path: Path) -> None:
    def fault(file: h5py.File) -> None:
        split, seen = file["images/split"][:], file["subjects/S3/trials/image"][:]
        grey = lambda x: x.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)  # noqa: E731
        set_images(file, np.intersect1d(seen, np.flatnonzero(split < 2)), grey)
        own_images_of_test(file, "S3", grey)

    assert only(broken(healthy, tmp_path, fault), "grey-images", "warning").where == "S3"


@pytest.mark.parametrize(("split", "code"), [(2, "few-test-images"), (1, "no-val-images")])
def test_too_few_held_out_images_are_found(
    healthy: Path, tmp_path: Path, split: int, code: str
) -> None:
    def fault(file: h5py.File) -> None:
        splits = file["images/split"][:]
        splits[np.flatnonzero(splits == split)[5 if split == 2 else 0 :]] = 0
        file["images/split"][...] = splits

    found = alarms(broken(healthy, tmp_path, fault))
    assert [(f.code, f.where) for f in found] == [(code, s) for s in ("S1", "S2", "S3")], report(
        found
    )


# --- large files


def test_a_sample_is_enough_and_is_mentioned(
    larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of the trials and voxels: no false alarm, and wrong moments are still found."""
    from ubrain.data.doctor import sample

    with Crowd(larger) as crowd:
        n_trials, n_voxels = crowd["S1"].n_trials, crowd["S1"].n_voxels
    monkeypatch.setattr(sample, "RAW_BYTES", n_trials // 2 * n_voxels * 4)
    monkeypatch.setattr(sample, "VOXELS", n_voxels // 2)
    monkeypatch.setattr(checking, "IMAGES", 150)
    findings = check(larger)
    assert not alarms(findings), report(findings)
    assert "150 of 420 images" in next(f.what for f in findings if f.code == "sampled")
    assert f"of {n_trials} trials" in next(f.what for f in findings if f.code == "sampled")

    def fault(file: h5py.File) -> None:
        file["subjects/S2/session_moments"][:, 4] *= 3

    assert only(broken(larger, tmp_path, fault), "not-z-scored", "error").where == "S2, sessions 4"


def test_the_same_seed_finds_the_same(healthy: Path) -> None:
    assert check(healthy, seed=3) == check(healthy, seed=3)


def test_there_are_eight_ways_to_turn_an_image() -> None:
    image = np.arange(4 * 4 * 3).reshape(4, 4, 3)
    assert len({change(image).tobytes() for change in VARIANTS.values()}) == 8
    np.testing.assert_array_equal(
        VARIANTS["turned by 90 degrees"](image[None])[0], np.rot90(image, -1)
    )


# --- statistics


def test_chance_of_a_match_is_that_of_shuffling() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(40, 6)) ** 3  # far from normal
    a, b = (0.3 * signal + rng.standard_t(3, size=(40, 6)) for _ in range(2))
    products = a @ b.T / 6
    centred = products - products.mean(0) - products.mean(1)[:, None] + products.mean()
    null = np.array([np.trace(centred[:, rng.permutation(40)]) / 40 for _ in range(20000)])
    found = match(a, b)
    assert found.r == pytest.approx(np.trace(centred) / 40)
    assert found.sd == pytest.approx(null.std(), rel=0.03)
    assert null.mean() == pytest.approx(0, abs=4 * found.sd / np.sqrt(20000))
    assert found.z == pytest.approx(found.r / found.sd)


def test_statistics_have_mean_0_and_deviation_1_where_nothing_is_to_be_found() -> None:
    rng = np.random.default_rng(0)
    z = {"match": [], "kernel": [], "correlation": []}
    for _ in range(200):
        a, b = rng.normal(size=(30, 20)), rng.normal(size=(30, 20))
        z["match"].append(match(a, b).z)
        z["kernel"].append(kernel_match(a, b, rng, 100))
        z["correlation"].append(correlation_z(a[:, 0], b[:, 0]))
    for name, values in z.items():
        assert abs(np.mean(values)) < 4 / np.sqrt(200), name
        assert 0.8 < np.std(values) < 1.25, name


# --- report


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_bytes(b"nothing")
    found = only(check(tmp_path / "no.h5"), "unreadable", "error")
    assert "not an HDF5 file" in found.what


def test_the_report_says_what_where_how_bad_and_what_to_do(healthy: Path, tmp_path: Path) -> None:
    findings = broken(healthy, tmp_path, lambda f: rewrite(f, "S1", stop_voxel))
    text = report(findings)
    assert text.startswith("0 errors, 1 warning, ")
    for part in (
        "constant-voxels",
        "S1, voxels 5",
        "1 voxels never change",
        TO_DO["constant-voxels"],
    ):
        assert part in text
    rows = table(findings)
    assert list(rows) == ["code", "level", "where", "what", "how_bad", "to_do"]
    assert rows.to_dict("records")[0]["to_do"] == TO_DO["constant-voxels"]
    assert isinstance(table([]), pd.DataFrame)


@pytest.mark.parametrize(
    ("levels", "code"),
    [(["note"], 0), ([], 0), (["note", "warning"], 1), (["error", "warning"], 2)],
)
def test_the_exit_code_is_that_of_the_worst_finding(levels: list[str], code: int) -> None:
    assert exit_code([Finding("sampled", level, "", "", 0) for level in levels]) == code


def test_check_on_the_command_line(healthy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sick.h5"
    shutil.copy(healthy, copy)
    with h5py.File(copy, "r+") as file:
        rewrite(file, "S1", stop_voxel)
    done = CliRunner().invoke(app, ["check", str(copy), "--json"])
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)[0]["code"] == "constant-voxels"
    done = CliRunner().invoke(app, ["check", str(tmp_path / "absent.h5")])
    assert done.exit_code == 2
    assert "1 error" in done.stdout
