"""The simulated crowd: reproducible, like its scanner, and its noise is what its ceiling says."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from ubrain.config import SimulationConfig
from ubrain.crowd import Crowd
from ubrain.data import simulate
from ubrain.data.importers.arrays import import_arrays
from ubrain.data.simulate import brains, simulate_crowd, truth
from ubrain.data.simulate.brains import EARLY, make_brain
from ubrain.data.simulate.maps import energy_maps
from ubrain.data.simulate.scenes import CATEGORIES, SIZE, render
from ubrain.errors import UbrainError


@pytest.fixture(autouse=True, scope="module")
def few_reference_scenes(small_crowd: Path) -> Iterator[None]:
    """Most of the time of a small simulation goes into the 300 scenes that scale its signals.

    `small_crowd` is simulated before, with all of them: other modules use it, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brains, "REFERENCE_SCENES", 60)
        yield


TINY = {"subjects": 1, "images": 10, "test_images": 4, "voxels": 30}


def contents(path: Path) -> dict[str, np.ndarray]:
    """Every dataset of a file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def test_same_seed_same_content(tmp_path: Path) -> None:
    for name in ("first.h5", "again.h5"):
        simulate_crowd(tmp_path / name, SimulationConfig(**TINY), seed=0)
    first, again = contents(tmp_path / "first.h5"), contents(tmp_path / "again.h5")
    assert first.keys() == again.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)


def test_other_seed_other_content(small_crowd: Path, tmp_path: Path) -> None:
    simulate_crowd(tmp_path / "other.h5", SimulationConfig(**TINY), seed=1)
    with Crowd(small_crowd) as first, Crowd(tmp_path / "other.h5") as other:
        assert not set(first.content) & set(other.content)
        assert set(first.image_ids) >= set(other.image_ids)  # names are numbers of scenes
        n = min(first["S1"].n_voxels, other["S1"].n_voxels)
        assert not np.array_equal(first["S1"].voxels.vertex[:n], other["S1"].voxels.vertex[:n])


def test_subjects_share_test_images_only(crowd: Crowd) -> None:
    for name in crowd.subjects:
        assert len(crowd[name].images("test")) == 10
        np.testing.assert_array_equal(crowd[name].image_rows("test"), crowd.split_rows("test"))
        assert len(crowd[name].images("train")) + len(crowd[name].images("val")) == 40
        assert len(crowd[name].images("val")) > 0
    seen = [{*crowd[name].images("train"), *crowd[name].images("val")} for name in crowd.subjects]
    assert not seen[0] & seen[1]


def test_7t_repeats_every_image_three_times(crowd: Crowd) -> None:
    for split in ("train", "val", "test"):
        assert (crowd["S1"].trials.repeats(crowd["S1"].image_rows(split)) == 3).all()


def test_sizes_differ_between_subjects(crowd: Crowd) -> None:
    sizes = [crowd[name].n_voxels for name in crowd.subjects]
    assert sizes[0] != sizes[1]
    assert all(34 <= n <= 50 for n in sizes)


def test_truth_is_there_and_only_there(crowd: Crowd) -> None:
    assert crowd.simulated
    for name in crowd.subjects:
        subject, known = crowd[name], truth.voxels(crowd, name)
        assert set(subject.voxels.columns) == {"hemisphere", "vertex", "areas", "ncsnr"}
        assert set(known.columns) == {"type", "x", "y", "sigma", "ncsnr", "private"}
        assert len(known) == subject.n_voxels
        assert not np.allclose(known.ncsnr, subject.voxels.ncsnr, atol=0.01)
        assert truth.noiseless_responses(crowd, name).shape == (10, subject.n_voxels)
        with h5py.File(crowd.path) as file:
            assert {*file["subjects"][name]} == {"responses", "session_moments", "trials", "voxels"}


def test_truth_describes_every_image(crowd: Crowd) -> None:
    scenes = truth.scenes(crowd)
    assert set(scenes) == set(crowd.image_ids)
    assert {scene["place"] for scene in scenes.values()} == {"none", "indoor", "outdoor"}
    things = [thing for scene in scenes.values() for thing in scene["objects"]]
    assert {thing["category"] for thing in things} == set(CATEGORIES)
    assert all(abs(thing["x"]) < 4.2 and abs(thing["y"]) < 4.2 for thing in things)


def test_nobody_knows_the_truth_about_recordings(recording: SimpleNamespace) -> None:
    out = recording.folder / "out.h5"
    import_arrays(recording.images, recording.responses, "A", out)
    with Crowd(out) as crowd:
        assert not crowd.simulated
        with pytest.raises(UbrainError, match="nobody knows the truth"):
            truth.voxels(crowd, "A")


@pytest.mark.parametrize("read", [truth.voxels, truth.noiseless_responses])
def test_truth_of_unknown_subject(crowd: Crowd, read) -> None:
    with pytest.raises(UbrainError, match="'S9'"):
        read(crowd, "S9")


# --- other stimuli


def test_an_object_is_left_out_or_replaced_and_nothing_else_changes() -> None:
    """Pixels change only within the size of the object; the other objects stay, in their order."""
    for index in range(12):
        pixels, scene = render(0, index)
        for number, thing in enumerate(scene.things):
            for category in ("", "vehicle"):
                changed, left = render(0, index, {number: category})
                y, x = np.nonzero((changed != pixels).any(2))
                degrees = 8.4 / SIZE
                away = np.hypot(
                    (x + 0.5 - SIZE / 2) * degrees - thing.x,
                    (SIZE / 2 - y - 0.5) * degrees - thing.y,
                )
                assert len(y) > 10
                assert away.max() < thing.size
                others = scene.things[:number] + scene.things[number + 1 :]
                assert (
                    tuple(t for i, t in enumerate(left.things) if i != number or not category)
                    == others
                )
                assert left.place == scene.place
                assert not category or left.things[number].category == category


def test_without_its_place_a_scene_keeps_its_objects() -> None:
    scenes = [(i, *render(0, i)) for i in range(12)]
    for index, pixels, scene in scenes:
        bare, left = render(0, index, without_place=True)
        assert (left.place, left.things) == ("none", scene.things)
        assert (bare != pixels).any() == (scene.place != "none")
    assert any(scene.place != "none" for _, _, scene in scenes)


@pytest.mark.parametrize("name", ["small", "4T"])
def test_the_truth_answers_for_any_image(request, name: str) -> None:
    """A brain grown again responds to its test images as it did in the simulation."""
    opened = request.getfixturevalue("crowd" if name == "small" else "four_tesla")
    images = opened["S1"].images("test")
    drawn = [truth.render_again(opened, image) for image in images]
    pixels = np.stack([p for p, _ in drawn])
    np.testing.assert_array_equal(pixels, opened.pixels(opened["S1"].image_rows("test")))
    found = truth.responses(opened, "S1", pixels, [scene for _, scene in drawn])
    np.testing.assert_allclose(found, truth.noiseless_responses(opened, "S1"), atol=1e-4)


def test_without_a_face_the_true_response_of_face_voxels_falls(crowd: Crowd) -> None:
    shown = truth.contents(crowd)
    image = crowd.image_ids[np.flatnonzero(shown["face"] & ~shown["body"])[0]]
    objects = truth.scenes(crowd)[image]["objects"]
    faces = {i: "" for i, o in enumerate(objects) if o["category"] == "face"}
    (before, after) = (truth.render_again(crowd, image, instead) for instead in ({}, faces))
    pixels, scenes = zip(before, after, strict=True)
    known = truth.voxels(crowd, "S1")["type"]
    fall = -np.diff(truth.responses(crowd, "S1", np.stack(pixels), scenes), axis=0)[0]
    assert (fall[known == "face"] > 0).all()
    assert abs(fall[known == "place"]).mean() < 0.3 * fall[known == "face"].mean()


def test_contents_are_those_of_the_scenes(crowd: Crowd) -> None:
    table = truth.contents(crowd)
    assert len(table) == len(crowd.image_ids)
    assert (table[["none", "indoor", "outdoor"]].sum(axis=1) == 1).all()
    for image, row in zip(crowd.image_ids, table.to_dict("records"), strict=True):
        scene = truth.scenes(crowd)[image]
        assert row[scene["place"]]
        assert {c for c in CATEGORIES if row[c]} == {o["category"] for o in scene["objects"]}


def test_a_brain_of_another_version_is_not_grown_again(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "VERSION", 0)
    with pytest.raises(UbrainError, match="another version"):
        truth.responses(crowd, "S1", np.zeros((0, SIZE, SIZE, 3), np.uint8), [])


def test_no_scene_no_rendering(crowd: Crowd) -> None:
    with pytest.raises(UbrainError, match=r"no scene of image 'cat\.png'"):
        truth.render_again(crowd, "cat.png")


# --- private functions


def test_the_dial_changes_the_function_of_its_share_of_voxels_and_nothing_else() -> None:
    whole, half, none = (make_brain(0, 1, 400, shared_function=s).voxels for s in (1, 0.5, 0))
    assert not whole.private.any()
    assert none.private.all()
    assert half.private.mean() == pytest.approx(0.5, abs=0.1)
    for table in (half, none):
        same = ~table.private
        assert (table.type[same] == whole.type[same]).all()
        kept = ["area", "vertex", "x", "y", "sigma", "ncsnr"]
        np.testing.assert_array_equal(table[kept].to_numpy(), whole[kept].to_numpy())
    assert not set(none.type) & {*EARLY, *CATEGORIES, "place"}
    assert not set(none.type) & set(make_brain(0, 2, 400, shared_function=0).voxels.type)
    assert none.groupby(whole.type).type.nunique().eq(1).all()  # as many types as before


def test_private_functions_of_two_brains_are_uncorrelated_on_average() -> None:
    pixels, scenes = brains.reference_scenes(0)
    maps = energy_maps(pixels)

    def mean_r(share: float) -> float:
        signals = []
        for number in (0, 1):
            brain = make_brain(0, number, 60, shared_function=share)
            signals.append(brain._raw(pixels, scenes, maps).T)
        return np.corrcoef(*signals)[: len(signals[0]), len(signals[0]) :].mean()

    assert mean_r(1) > 0.1
    assert abs(mean_r(0)) < 0.05


# --- noise


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """One subject with 150 test images."""
    path = tmp_path_factory.mktemp("measured") / "crowd.h5"
    simulate_crowd(
        path, SimulationConfig(subjects=1, images=60, test_images=150, voxels=300), seed=2
    )
    with Crowd(path) as opened:
        yield opened


def test_responses_correlate_with_truth_as_the_ceiling_predicts(measured: Crowd) -> None:
    found = measured["S1"].responses("test").astype(np.float64)
    signal = truth.noiseless_responses(measured, "S1").astype(np.float64)
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, signal.T, strict=True)])
    ceiling = np.sqrt(measured["S1"].noise_ceiling("test"))
    assert np.median(r) == pytest.approx(np.median(ceiling), abs=0.1)
    true = truth.voxels(measured, "S1").ncsnr.to_numpy()
    assert np.median(r) == pytest.approx(np.median(np.sqrt(true**2 / (true**2 + 1 / 3))), abs=0.1)
    assert np.corrcoef(r, ceiling)[0, 1] > 0.7


def test_measured_ncsnr_follows_the_true_one(measured: Crowd) -> None:
    found, true = measured["S1"].voxels.ncsnr, truth.voxels(measured, "S1").ncsnr
    assert np.corrcoef(found, true)[0, 1] > 0.8
    assert np.median(found) == pytest.approx(np.median(true), rel=0.15)


def test_noiseless_responses_are_of_unit_scale(measured: Crowd) -> None:
    signal = truth.noiseless_responses(measured, "S1")
    assert np.median(signal.std(0)) == pytest.approx(1, abs=0.15)
    assert abs(np.median(signal.mean(0))) < 0.2


# 5, 25, 50, 75, 95 %: lowest and highest of the subjects of NSD, early areas
PERCENT = [5, 25, 50, 75, 95]
LOWEST, HIGHEST = [0.10, 0.22, 0.33, 0.45, 0.63], [0.15, 0.31, 0.48, 0.71, 1.0]


def test_ncsnr_of_early_areas_is_as_in_nsd() -> None:
    """Quantiles of the true ncsnr, mean over eight brains."""
    grown = [make_brain(0, number, 5000).voxels for number in range(8)]
    quantiles = np.mean([np.percentile(b.ncsnr[b.area.isin(EARLY)], PERCENT) for b in grown], 0)
    assert ((quantiles >= LOWEST) & (quantiles <= HIGHEST)).all(), quantiles


# --- other scanners


@pytest.fixture(scope="module")
def mixed(small_crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """`small_crowd` with a subject at 3T appended."""
    path = tmp_path_factory.mktemp("mixed") / "crowd.h5"
    shutil.copy(small_crowd, path)
    simulate_crowd(path, SimulationConfig(**TINY, scanner="3T"), seed=0, append=True)
    with Crowd(path) as opened:
        yield opened


def test_append_makes_one_file_of_two_scanners(mixed: Crowd, crowd: Crowd) -> None:
    assert mixed.subjects == ["S1", "S2", "S3"]
    assert [mixed[name].scanner for name in mixed.subjects] == ["7T", "7T", "3T"]
    for name in crowd.subjects:
        np.testing.assert_array_equal(mixed[name].responses("test"), crowd[name].responses("test"))
        np.testing.assert_array_equal(mixed[name].images("train"), crowd[name].images("train"))
    assert set(truth.scenes(mixed)) == set(mixed.image_ids)
    assert truth.noiseless_responses(mixed, "S3").shape == mixed["S3"].responses("test").shape


def test_3t_repeats_test_images_only(mixed: Crowd) -> None:
    subject = mixed["S3"]
    repeats = {s: subject.trials.repeats(subject.image_rows(s)) for s in ("train", "val", "test")}
    assert list(repeats["test"]) == [35] * 4
    assert [*repeats["train"], *repeats["val"]] == [1] * 10
    assert np.isfinite(subject.noise_ceiling("test")).all()


def test_3t_is_noisier_and_coarser(mixed: Crowd) -> None:
    """A voxel at 3T has 0.4 of the ncsnr and averages four units, whose types mix."""
    assert truth.voxels(mixed, "S3").ncsnr.median() < 0.6 * truth.voxels(mixed, "S1").ncsnr.median()
    seven, three = make_brain(0, 0, 500), make_brain(0, 0, 500, units_per_voxel=4, snr=0.4)
    assert len(seven.units) == len(seven.voxels)
    assert len(three.units) == 4 * len(three.voxels)


@pytest.fixture(scope="module")
def four_tesla(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    path = tmp_path_factory.mktemp("4T") / "crowd.h5"
    simulate_crowd(path, SimulationConfig(**TINY, scanner="4T"), seed=0)
    with Crowd(path) as opened:
        yield opened


def test_4t_has_averages_only(four_tesla: Crowd) -> None:
    subject = four_tesla["S1"]
    assert subject.n_trials == len(four_tesla.image_ids) == 14
    assert subject.voxels.ncsnr.isna().all()
    assert np.isnan(subject.noise_ceiling("test")).all()
    assert truth.voxels(four_tesla, "S1").ncsnr.notna().all()


def test_4t_images_are_grey_in_a_circle(four_tesla: Crowd) -> None:
    for name in four_tesla.image_ids:
        pixels = four_tesla.image(name)
        assert (pixels == pixels[..., :1]).all()
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 127).all()
        assert pixels[40:70, 40:70].std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scanner": "9T"}, "unknown scanner '9T': expected one of 7T, 3T, 4T"),
        ({"subjects": 0}, "subjects: expected at least 1, got 0"),
        ({"voxels": 3}, "voxels: expected at least 20, got 3"),
        ({"images": 5}, "images: expected at least 10, got 5"),
        ({"images": 0, "voxels": 20}, "images: expected at least 10, got 0"),
        ({"test_images": 0}, "test_images: expected at least 2, got 0"),
        ({"images": -1}, "images: expected at least 10, got -1"),
        ({"shared_function": 1.5}, "shared_function: expected 0 to 1, got 1.5"),
    ],
    ids=str,
)
def test_bad_sizes(tmp_path: Path, refused, options: dict, message: str) -> None:
    with refused(tmp_path / "out.h5", message):
        simulate_crowd(tmp_path / "out.h5", SimulationConfig(**TINY | options))


def test_space_is_checked_before_anything_is_simulated(
    tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough for the images but not for the responses: 10^6 trials and voxels would take 4 TB."""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: SimpleNamespace(total=10**12, used=0, free=10**12)
    )
    with refused(tmp_path / "out.h5", r"needs about .* .B, but only 1\.0 TB are free"):
        simulate_crowd(tmp_path / "out.h5", SimulationConfig(1, 10**6, 10, 10**6))


def test_space_check_knows_of_test_images(
    mixed: Crowd, tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less space than the test images and their 35 repeats take alone, the simulation must
    not even start.
    """
    needed = mixed["S3"].n_trials * mixed["S3"].n_voxels * 4 + 14 * mixed.image("scene-000000").size
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: SimpleNamespace(total=needed, used=0, free=needed - 1)
    )
    with refused(tmp_path / "out.h5", "needs about"):
        simulate_crowd(tmp_path / "out.h5", SimulationConfig(**TINY, scanner="3T"))


# --- retinotopy


@pytest.mark.parametrize(("hemisphere", "side"), [("L", 1), ("R", -1)])
def test_v1_sees_the_other_half_of_the_field(hemisphere: str, side: int) -> None:
    voxels = make_brain(0, 0, 3000).voxels
    v1 = voxels[(voxels.area == "V1") & (voxels.hemisphere == hemisphere)]
    assert len(v1) > 50
    assert (side * v1.x > 0).mean() > 0.9


def test_receptive_fields_grow_along_the_hierarchy() -> None:
    voxels = make_brain(0, 0, 3000).voxels
    sigma = voxels.groupby("area").sigma.median()
    assert sigma["V1"] < sigma["V2"] < sigma["V3"] < sigma["hV4"] < sigma["FFA"]


PINNED = {  # by version 1: sums of three images; moments of 100 trials, ncsnr; places of voxels
    "pixels": [3571002, 4100757, 4711330],
    "responses": [-0.10602, 3.82255, 0.27955],
    "x": [1.16860, -4.27271, -0.07343, -1.85187],
}


def test_simulate_version_is_raised_when_what_is_simulated_changes(crowd: Crowd) -> None:
    """Simulated crowds are cached by config, seed and `simulate.VERSION`."""
    first = crowd["S1"]
    raw = first.trials.raw(np.arange(100)).astype(float)
    found = {
        "pixels": [int(image.sum(dtype=int)) for image in crowd.pixels(np.arange(0, 60, 20))],
        "responses": [raw.mean(), raw.std(), float(np.median(first.voxels["ncsnr"]))],
        "x": truth.voxels(crowd, "S1")["x"][:4].tolist(),
    }
    assert simulate.VERSION == 1, "pin the numbers of the new version here"
    for what, values in found.items():
        np.testing.assert_allclose(
            values,
            PINNED[what],
            rtol=1e-3,
            atol=1e-3,
            err_msg=f"the simulated {what} changed: raise simulate.VERSION, and pin {values}",
        )
