"""Rulers on files of the published layout, value by value against an independent few lines."""

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from published.nsd import GRID, Published
from published.rdm import images, make, write_npz
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import ShuffleSplit

from ubrain import cli
from ubrain.crowd import Crowd
from ubrain.data.importers.arrays import import_arrays
from ubrain.data.importers.nsd import NSD, import_nsd
from ubrain.data.importers.rdm import import_rdm
from ubrain.data.importers.recording import Options
from ubrain.errors import UbrainError
from ubrain.report import verify

LABELS = {"V1": [1, 2], "V2": [3, 4], "V4": [7]}  # of prf-visualrois; IT is 5 of streams
LAYERS = {"V1": 2, "V2": 7, "V4": 7, "IT": 12}
FIRST_AREA = {
    "func1pt8mm": {"V1": ["V1v", "V1d"]}
}  # of the smallest layer, for what needs no other
SUBJECTS, SESSIONS = (1, 2), (1, 2)


@pytest.fixture(scope="module", autouse=True)
def computed_once() -> Iterator[None]:
    """AlexNet, and what it says of the same images."""
    kept: dict[tuple, np.ndarray] = {}
    compute, net = verify.activations, functools.cache(verify.alexnet)

    def activations(net, layer, crowd, rows, *more):
        key = (layer, crowd.path, rows.tobytes(), str(more))
        if key not in kept:
            kept[key] = compute(net, layer, crowd, rows, *more)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "activations", activations)
        patch.setattr(verify, "alexnet", net)
        yield


# --- plain versions


@functools.cache
def plain_alexnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.alexnet().eval()


def features(pixels: list[np.ndarray], ratio: float) -> dict[int, np.ndarray]:
    """Of each layer of AlexNet with the random weights of seed 0."""
    net, out = plain_alexnet(), {layer: [] for layer in LAYERS.values()}
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for image in pixels:
        height, width = image.shape[:2]
        h, w = round(height * ratio), round(width * ratio)
        top, left = (height - h) // 2, (width - w) // 2
        small = Image.fromarray(image[top : top + h, left : left + w])
        small = small.resize((224, 224), Image.Resampling.BILINEAR)
        x = torch.tensor(np.asarray(small)).permute(2, 0, 1) / 255
        x = ((x - mean) / std)[None]
        with torch.no_grad():
            for number, step in enumerate(net.features):
                x = step(x)
                if number in out:
                    out[number].append(x.numpy().reshape(-1).astype(np.float64))
    return {layer: np.stack(values) for layer, values in out.items()}


def scored(
    x: np.ndarray, train: np.ndarray, test: np.ndarray, y: np.ndarray, reps: np.ndarray, model
):
    """Median r, ceiling and score; y (n_train, n_voxels), reps (n_reps, n_test, n_voxels)."""
    predicted, measured = model.fit(x[train], y).predict(x[test]), reps.mean(0)
    r = np.median([pearsonr(a, b).statistic for a, b in zip(predicted.T, measured.T, strict=True)])
    halves = []
    for one, other in ShuffleSplit(10, train_size=0.5, random_state=1).split(range(len(reps))):
        pairs = zip(reps[one].mean(0).T, reps[other].mean(0).T, strict=True)
        each = np.array([pearsonr(a, b).statistic for a, b in pairs])
        halves.append(np.median(2 * each / (1 + each)))
    return r, np.mean(halves), r**2 / np.mean(halves)


def by_line(verdict: verify.Verdict) -> dict[tuple[str, str, str], verify.Line]:
    return {(line.what, line.where, line.area): line for line in verdict.lines}


# --- NSD


class Made:
    """Two sessions of subjects 1 and 2 with all areas, imported; and what should come of it."""

    def __init__(self, folder: Path) -> None:
        self.nsd, self.betas = Published(folder / "nsd"), {}
        rng = np.random.default_rng(7)
        visual, streams = (rng.integers(0, 8, GRID).astype(float) for _ in range(2))
        visual[2:4], streams[2:4] = 0, 5
        self.labels = {"visual": visual, "streams": streams}
        self.ncsnr = {s: rng.uniform(0.1, 1, GRID).astype(np.float32) for s in SUBJECTS}
        for s in SUBJECTS:
            place = f"nsddata/ppdata/subj{s:02d}/func1pt8mm/roi"
            self.nsd.write_nifti(f"{place}/prf-visualrois.nii.gz", visual)
            self.nsd.write_nifti(f"{place}/streams.nii.gz", streams)
            self.nsd.write_nifti(
                f"{self.nsd.betas_folder(s, 'func1pt8mm')}/ncsnr.nii.gz", self.ncsnr[s]
            )
            for session in SESSIONS:
                self.betas[s, session] = self.signal(s, session)
        self.crowd = folder / "nsd.h5"
        wanted = "V1v,V1d,V2v,V2d,hV4,ventral"
        import_nsd(
            self.nsd.root, self.crowd, Options(dtype="float32"), areas=wanted, test="special515"
        )

    def signal(self, subject: int, session: int) -> np.ndarray:
        """Betas in which something comes back with the image."""
        betas = self.nsd.write_volume(subject, session)
        shown = self.nsd.shown(subject, session)
        kinds = np.random.default_rng(subject).normal(0, 300, (73000, 1))[shown, 0]
        gains = np.random.default_rng(9).uniform(-2, 2, GRID)
        betas = np.where(betas == 0, 0, betas + gains[..., None] * kinds).astype(np.int16)
        name = f"{self.nsd.betas_folder(subject, 'func1pt8mm')}/betas_session{session:02d}"
        self.nsd.write_volume_file(name, betas, "hdf5")
        return betas

    def expected(self) -> tuple[np.ndarray, dict[tuple[str, int], tuple[int, int, tuple]]]:
        """Images, and of each area and subject: voxels, voxels kept, and r, ceiling, score."""
        shown = {s: np.concatenate([self.nsd.shown(s, n) for n in SESSIONS]) for s in SUBJECTS}
        image = np.array(
            [i for i in self.nsd.shared if all((shown[s] == i).sum() == 3 for s in SUBJECTS)]
        )
        image.sort()
        order = np.arange(len(image))
        np.random.RandomState(42).shuffle(order)
        cut = int(0.8 * len(order))
        train, test = np.sort(order[:cut]), np.sort(order[cut:])
        found, of_layer = {}, features([self.nsd.pixels[i] for i in image], 8 / 8.4)
        for area, layer in LAYERS.items():
            x = of_layer[layer]
            for s in SUBJECTS:
                mask = (
                    self.labels["streams"] == 5
                    if area == "IT"
                    else np.isin(self.labels["visual"], LABELS[area])
                )
                mask &= self.betas[s, 1].std(-1) > 0  # others are dropped on import
                percent = 100 * self.ncsnr[s] ** 2 / (self.ncsnr[s] ** 2 + 1 / 3)
                z = []
                for session in SESSIONS:
                    part = self.betas[s, session][mask & (percent > 30)].T / 300
                    z.append((part - part.mean(0)) / part.std(0))
                z = np.concatenate(z)
                reps = np.stack([z[shown[s] == i] for i in image], axis=1)  # (3, n, V)
                mean = reps.mean(0)
                y, reps = ((v - mean.mean(0)) / mean.std(0) for v in (mean, reps))
                result = scored(x, train, test, y[train], reps[:, test], Ridge(alpha=1.0))
                found[area, s] = int(mask.sum()), z.shape[1], result
        return image, found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("verify"))


def numbers_of(made: Made) -> dict:
    """`verify.toml` for these files: what the plain version says is what is published."""
    image, found = made.expected()
    known = copy.deepcopy(verify.read()["nsd"])
    areas = list(LAYERS)
    each = {
        what: {a: [found[a, s][2][i] for s in SUBJECTS] for a in areas}
        for i, what in ((0, "r"), (2, "score"))
    }
    variant = {
        "name": "made up",
        "space": "func1pt8mm",
        "images": len(image),
        "subjects": list(SUBJECTS),
        "voxels": {a: sum(found[a, s][0] for s in SUBJECTS) for a in areas},
        "kept": {a: sum(found[a, s][1] for s in SUBJECTS) for a in areas},
        "subject_kept": {a: [found[a, s][1] for s in SUBJECTS] for a in areas},
        **{
            what: {a: float(np.mean(v)) for a, v in values.items()} for what, values in each.items()
        },
        **{f"subject_{what}": values for what, values in each.items()},
    }
    known["variants"] = [variant]
    known["tolerance"] = dict.fromkeys(areas, 1e-5)
    return known


@pytest.fixture(scope="module")
def numbers(made: Made) -> dict:
    return numbers_of(made)


def test_nsd_value_by_value(made: Made, numbers: dict) -> None:
    """Voxels, r and score of every area and subject: int16 betas to the end."""
    with Crowd(made.crowd) as crowd:
        verdict = verify.nsd_alexnet(crowd, "random", numbers=numbers)
    lines = by_line(verdict)
    assert {("score", f"S{s}", a) for s in SUBJECTS for a in LAYERS} < set(lines)
    assert [line for line in verdict.lines if not line.agrees] == []
    assert verdict.passed
    assert verdict.text().endswith("passed within tolerance")
    spread = {round(line.found, 3) for line in verdict.lines if line.what == "r"}
    assert len(spread) > 6  # the comparison is of different numbers


def test_nsd_of_one_subject(made: Made, numbers: dict, tmp_path: Path) -> None:
    """It is compared with its own published numbers; the mean of all is not."""
    with Crowd(made.crowd) as crowd:
        one = crowd.select(crowd["nsd-subj02"])
        known = copy.deepcopy(numbers)
        known["variants"][0]["images"] = len(
            one.split_rows("test")[one["nsd-subj02"].trials.repeats(one.split_rows("test")) == 3]
        )
        verdict = verify.nsd_alexnet(one, "random", numbers=known)
        assert {line.where for line in verdict.lines if line.what == "r"} == {"all", "S2"}
        del known["variants"][0]["subject_score"]
        with pytest.raises(UbrainError, match="made up: expected all of subjects 1, 2"):
            verify.nsd_alexnet(one, "random", numbers=known)


def changed(numbers: dict, **more: object) -> dict:
    known = copy.deepcopy(numbers)
    known["variants"][0].update(more)
    return {**known, "areas": FIRST_AREA}


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"test_positions": [0, 1]}, "the split: positions are drawn by"),
        ({"test_images": [1, 2]}, "the images, or their order"),
        ({"kept": {"V1": 1}}, "the choice of voxels"),
        ({"ceiling": {"V1": 0.99}}, "the responses: the version of the betas"),
        ({"r": {"V1": 0.99}}, "the model's side"),
    ],
)
def test_where_to_look_is_the_first_stage_that_differs(
    made: Made, numbers: dict, change: dict, hint: str
) -> None:
    known = changed(numbers, **change, score={"V1": 0.5})
    with Crowd(made.crowd) as crowd:
        verdict = verify.nsd_alexnet(crowd, "random", numbers=known)
    assert not verdict.passed
    assert verdict.where_to_look()[0].startswith(hint)
    assert "differs, and this is where to look:\n- " in verdict.text()


def test_a_wrong_penalty_or_other_images_are_noticed(made: Made, numbers: dict) -> None:
    """As a crop, or an encoding, that is not theirs."""
    numbers = {**numbers, "areas": FIRST_AREA}
    with Crowd(made.crowd) as crowd:
        for other in ({"alpha": 1e5}, {"degrees": [16.0, 8.0]}, {"seed": 43}):
            assert not verify.nsd_alexnet(crowd, "random", numbers={**numbers, **other}).passed
        assert not verify.nsd_alexnet(crowd, "random", "jpeg", numbers=numbers).passed


def test_a_subject_that_differs_is_named(made: Made, numbers: dict) -> None:
    each = copy.deepcopy(numbers["variants"][0]["subject_r"])
    each["V1"][1] += 0.1
    known = changed(numbers, subject_r=each, score={"V1": 0.5})
    with Crowd(made.crowd) as crowd:
        hints = verify.nsd_alexnet(crowd, "random", numbers=known).where_to_look()
    assert hints[-1].startswith("S2: the others agree")


def test_what_cannot_be_compared(made: Made, numbers: dict, tmp_path: Path, crowd: Crowd) -> None:
    with pytest.raises(UbrainError, match=r"no subject of NSD, but of"):
        verify.nsd_alexnet(crowd, "random")
    with Crowd(made.crowd) as opened:
        with pytest.raises(UbrainError, match=r"test images 3 times; expected 1000, 515"):
            verify.nsd_alexnet(opened, "random")
        with pytest.raises(UbrainError, match="--encoding png: expected one of none, jpeg"):
            verify.nsd_alexnet(opened, "random", "png", numbers=numbers)
        other = tmp_path / "alexnet.pth"
        torch.save({}, other)
        with pytest.raises(UbrainError, match=r"is not torchvision's alexnet-owt-7be5be79\.pth"):
            verify.nsd_alexnet(opened, str(other), numbers=numbers)
    options = Options(dtype="float32", image_size=2)
    import_nsd(made.nsd.root, tmp_path / "small.h5", options, areas="V1v", test="special515")
    with Crowd(tmp_path / "small.h5") as opened, pytest.raises(UbrainError, match="were shrunk"):
        verify.nsd_alexnet(opened, "random", numbers=numbers)


def test_areas_are_called_as_the_importer_calls_them() -> None:
    """Values 1,2 / 3,4 / 7 of prf-visualrois and Kastner2015, and 5 of streams."""
    areas = verify.read()["nsd"]["areas"]
    assert NSD.labels["streams"].split()[4] == "ventral"
    for space, prefix, file in (
        ("func1pt8mm", "", "prf-visualrois"),
        ("fsaverage", "Kastner2015:", "Kastner2015"),
    ):
        names = NSD.labels[file].split()
        for area, numbers in LABELS.items():
            assert areas[space][area] == [prefix + names[i - 1] for i in numbers]
        assert areas[space]["IT"] == ["ventral"]


def test_published_numbers_fit_together() -> None:
    """Means over subjects are the published means, to their rounding; and so are the counts."""
    first = verify.read()["nsd"]["variants"][0]
    for what in ("score", "r"):
        for area, each in first[f"subject_{what}"].items():
            assert np.mean(each) == pytest.approx(first[what][area], abs=2e-4)
    assert sum(first["voxels"].values()) == 84564
    assert sum(first["subject_kept"]["V4"]) == first["kept"]["V4"]
    things = verify.read()["things"]
    assert sum(n for _, _, n in things["alphas"]) + len(things["few_alphas"]) + 1 == 99
    counts = things["variants"][0]["subject_kept"]
    assert [sum(c[i] for c in counts.values()) for i in range(3)] == [1044, 1248, 526]
    assert set(things["areas"]) == set(LAYERS)


# --- THINGS


def test_things_value_by_value(tmp_path: Path) -> None:
    """One penalty per subject and area, z-scores over presentations, raw trials of sessions."""
    rng = np.random.default_rng(3)
    n_train, n_test, n_reps, path = 30, 8, 12, tmp_path / "things.h5"
    pixels = rng.integers(0, 256, (n_train + n_test, 10, 10, 3), np.uint8)
    np.save(tmp_path / "i.npy", pixels)
    shown = np.concatenate([np.arange(n_train), np.repeat(np.arange(n_test) + n_train, n_reps)])
    shown = rng.permutation(shown)
    session = np.arange(len(shown)) // 60
    pd.DataFrame({"image": shown, "session": session}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "test.txt").write_text("\n".join(map(str, range(n_train, n_train + n_test))))
    areas = np.repeat(["V1", "V2", "hV4", "glasser-FFC", "glasser-VVC"], 4)
    kept = np.tile([1.0, 0.3, 0.1, np.nan], 5)  # ncsnr; above 30 % of 12 repetitions from 0.19 on
    pd.DataFrame({"areas": areas, "ncsnr": kept}).to_csv(tmp_path / "v.csv", index=False)
    tables = {
        k: tmp_path / f"{v}"
        for k, v in (("trials", "t.csv"), ("voxels", "v.csv"), ("test_images", "test.txt"))
    }
    crops = [p[1:9, 1:9] for p in pixels]
    signal = np.stack([c.mean((0, 1)) for c in crops])[shown] @ rng.normal(size=(3, 20))
    raw = {}
    for s in (1, 2):
        raw[s] = signal + rng.normal(0, signal.std(), signal.shape) + 5 * session[:, None]
        raw[s] = raw[s].astype(np.float32)
        np.save(tmp_path / "r.npy", raw[s])
        import_arrays(
            tmp_path / "i.npy",
            tmp_path / "r.npy",
            f"things-sub{s:02d}",
            path,
            dataset="THINGS",
            append=s > 1,
            **tables,
        )
    known = copy.deepcopy(verify.read()["things"])
    alphas = [*known["few_alphas"]]
    for low, high, n in known["alphas"]:
        alphas += [low + i * (high - low) / n for i in range(n)]
    alphas.append(1e7)
    assert len(alphas) == 99
    score, counts, of_layer = {}, {}, features(list(pixels), 0.8)
    for area, names in known["areas"].items():
        x = of_layer[LAYERS[area]]
        score[area], counts[area] = [], []
        for s in (1, 2):
            voxels = np.isin(areas, names) & (kept > 0.19)
            y = raw[s][:, voxels].astype(np.float64)
            train = np.stack([y[shown == i][0] for i in range(n_train)])
            reps = np.stack([y[shown == i + n_train] for i in range(n_test)], axis=1)
            train = (train - train.mean(0)) / train.std(0)
            reps = (reps - reps.mean((0, 1))) / reps.std((0, 1))
            positions = np.arange(n_train + n_test)
            model = RidgeCV(alphas=alphas)
            found = scored(x, positions[:n_train], positions[n_train:], train, reps, model)
            score[area].append(found[2])
            counts[area].append(int(voxels.sum()))
    known["variants"] = [
        {
            "name": "made up",
            "images": n_train + n_test,
            "subjects": [1, 2],
            "score": {a: float(np.mean(v)) for a, v in score.items()},
            "subject_score": score,
            "subject_kept": counts,
        }
    ]
    known["tolerance"] = dict.fromkeys(score, 1e-5)
    with Crowd(path) as crowd:
        verdict = verify.things_alexnet(crowd, "random", numbers=known)
    assert "nine parcels of Glasser" in verdict.hints["voxels"][0], "not those of NSD"
    assert verdict.hints["subjects"] == verify.read()["hints"]["subjects"]
    assert [line for line in verdict.lines if not line.agrees] == []
    assert verdict.passed


# --- encoders


def test_the_authors_run(explorable: tuple[Path, Path]) -> None:
    folder, path = explorable
    with Crowd(path) as crowd:
        found = verify.voxel_correlations(str(folder), crowd)
        medians = {str(i): float(np.median(found[f"S{i}"])) for i in (1, 2)}
        known = {
            "dataset": "simulated",
            "images": len(crowd.split_rows("test")),
            "tolerance": 1e-6,
            "median_r": medians,
            "pooled": float(np.median(np.concatenate([found["S1"], found["S2"]]))),
            "voxels": {str(i): crowd[f"S{i}"].n_voxels for i in (1, 2)},
        }
        verdict = verify.ube(crowd, str(folder), numbers=known)
        assert verdict.passed
        assert all(line.agrees for line in verdict.lines)
        known["median_r"] = {**medians, "2": medians["2"] + 0.1}
        verdict = verify.ube(crowd, str(folder), numbers=known)
        assert not verdict.passed
        assert verdict.where_to_look()[0].startswith("the checkpoint: is it the authors'")
        assert verdict.where_to_look()[-1].startswith("S2: the others agree")
        verdict = verify.ube(crowd, str(folder), numbers={**known, "images": 1000})
        assert verdict.where_to_look()[0].startswith("the test images: the 1000 shared")


def test_voxels_that_an_import_dropped_are_told_by_their_number(
    recorded: Path, tmp_path: Path, save_encoder
) -> None:
    save_encoder(recorded, tmp_path / "encoder")
    responses = np.load(tmp_path / "r.npy")  # of subject C
    responses[:, 2] = 1
    np.save(tmp_path / "r2.npy", responses)
    fractions = {"test_fraction": 0.2, "val_fraction": 0.2}
    files = tmp_path / "i.npy", tmp_path / "r2.npy"
    import_arrays(*files, "C", tmp_path / "fewer.h5", bad_voxels="drop", **fractions)
    with Crowd(recorded) as crowd, Crowd(tmp_path / "fewer.h5") as fewer:
        whole = verify.voxel_correlations(str(tmp_path / "encoder"), crowd, ["C"])["C"]
        found = verify.voxel_correlations(str(tmp_path / "encoder"), fewer, ["C"])["C"]
        with pytest.raises(UbrainError, match="no subject 'D' in"):
            verify.voxel_correlations(str(tmp_path / "encoder"), crowd, ["D"])
    np.testing.assert_allclose(found, np.delete(whole, 2), atol=1e-6)


def test_algonauts_of_any_checkpoint(explorable: tuple[Path, Path]) -> None:
    folder, path = explorable
    with Crowd(path) as crowd:
        r = verify.voxel_correlations(str(folder), crowd)
        values = {}
        for name in crowd.subjects:
            nc = crowd[name].noise_ceiling("test")
            each = []
            for x, most in zip(r[name], nc, strict=True):
                x = 0.0 if x < 0 else x
                most = 1e-14 if most == 0 else most
                each.append(min(100 * x**2 / most, 100.0))
            values[name] = each
        table = verify.algonauts(crowd, str(folder))
    for name, each in values.items():
        assert table.loc[name, "score (%)"] == pytest.approx(np.mean(each))
    mean = np.mean([np.mean(v) for v in values.values()])
    assert table.loc["mean of subjects", "score (%)"] == pytest.approx(mean)
    pooled = np.mean(np.concatenate([*values.values()]))
    assert table.loc["all voxels", "score (%)"] == pytest.approx(pooled)


def test_algonauts_needs_ceilings(recorded: Path, tmp_path: Path, save_encoder) -> None:
    save_encoder(recorded, tmp_path / "encoder")
    with Crowd(recorded) as crowd, pytest.raises(UbrainError, match="no voxel has a known noise"):
        verify.algonauts(crowd, str(tmp_path / "encoder"))


def test_rdms_of_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(write_npz)(tmp_path / "rdm").root
    import_rdm(root, tmp_path / "c.h5", **images(root))
    with Crowd(tmp_path / "c.h5") as crowd:
        table = verify.rdm(crowd, "random")
    assert list(table.index) == ["EVC", "IT"]
    assert (table["subjects"] == 3).all()
    assert table["AlexNet ρ²"].max() < 0.2  # noise
    assert "% of ceiling" not in table, "no set of Algonauts 2019 has 30 images"
    known = verify.read()
    known["rdm"]["ceilings"]["30"] = {"EVC": 0.5, "IT": 0.25}
    monkeypatch.setattr(verify, "read", lambda: known)
    with Crowd(tmp_path / "c.h5") as crowd:
        same = verify.rdm(crowd, "random")
        with pytest.raises(UbrainError, match="--alpha 0: expected a number above 0"):
            verify.rdm(crowd, "random", 0)
    np.testing.assert_allclose(same["% of ceiling"], 100 * table["AlexNet ρ²"] / [0.5, 0.25])


def test_commands(
    explorable: tuple[Path, Path], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = explorable
    run = CliRunner().invoke
    named = ["--crowd", str(path), "--checkpoint", str(folder)]
    assert "all voxels" in run(cli.app, ["verify", "algonauts", *named]).output
    found = run(cli.app, ["verify", "ube", *named])
    assert "has no subject of UBE, but of simulated-7T" in str(found.exception)
    known = verify.read()
    known["ube"]["dataset"] = "simulated"
    with monkeypatch.context() as patch:
        patch.setattr(verify, "read", lambda: known)
        found = run(cli.app, ["verify", "ube", *named])
    assert found.exit_code == 1
    assert "differs, and this is where to look:" in found.output
    found = run(cli.app, ["verify", "nsd-alexnet", "--crowd", str(made.crowd)])
    assert isinstance(found.exception, UbrainError)
