"""Prediction for anybody: the numbers of the encoder, at the right places, in bounded memory,
whatever interrupts it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ubrain import checkpoint, kernels, predict, scores
from ubrain.backbone import Backbone
from ubrain.cli import app
from ubrain.config import BackboneConfig, EncoderConfig
from ubrain.errors import UbrainError
from ubrain.exchange import maps, predictions
from ubrain.exchange.predictions import bytes_of, predict_images
from ubrain.features import Features, Source
from ubrain.model import UniversalEncoder
from ubrain.predict import Predictor

CNN = BackboneConfig("tf_efficientnet_lite0", "embedded", (1, 2), 32, 4, False, 0)
ENCODER = EncoderConfig(embedding_size=8, channels=6, embedding_scale=6.0)
SIZES = {"S1": 60, "S2": 20, "bare": 9}
N_IMAGES = 21
AREAS = ["FFA,EBA", "", "V1", "PPA", "V1,V2"]
AFFINE = np.array([[-1.8, 0, 0, 70], [0, 1.8, 0, -90], [0, 0, 1.8, -60], [0, 0, 0, 1.0]])
GRID = (5, 6, 7)


def encoder_on(backbone, subjects=SIZES):
    torch.manual_seed(1)
    return UniversalEncoder(
        replace(ENCODER, widths=backbone.widths, n_tokens=backbone.n_tokens), subjects
    ).eval()


def tables():
    rng = np.random.default_rng(2)
    places = np.stack(np.unravel_index(rng.permutation(np.prod(GRID))[:20], GRID))
    on_surface = {
        "hemisphere": ["L", "R", "R"] * 20,
        "vertex": rng.permutation(10242)[:60],
        "areas": AREAS * 12,
    }
    in_volume = dict(zip("ijk", places, strict=True)) | {
        "hemisphere": [""] * 20,
        "areas": AREAS * 4,
    }
    return {"S1": pd.DataFrame(on_surface), "S2": pd.DataFrame(in_volume)}


@pytest.fixture(scope="module")
def backbone():
    return Backbone(CNN).eval()


@pytest.fixture(scope="module", autouse=True)
def made_once(backbone):
    """The same backbone for every prediction, since making it takes longer than everything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            predictions, "Backbone", lambda config: backbone if config == CNN else Backbone(config)
        )
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone):
    """A checkpoint, pictures, and the encoder's own answer."""
    root = tmp_path_factory.mktemp("predict")
    encoder = encoder_on(backbone)
    recordings = {
        "S1": {"dataset": "test", "scanner": "7T", "space": "fsaverage5"},
        "S2": {"space": "func1pt8mm"},
    }
    checkpoint.save(
        encoder,
        root / "crowd",
        voxels=tables(),
        recordings=recordings,
        settings={"backbone": asdict(CNN)},
    )
    rng, pictures = np.random.default_rng(3), []
    (root / "images").mkdir()
    for i in range(N_IMAGES):
        pictures.append(rng.integers(0, 256, (40 + i, 50, 3), np.uint8))
        Image.fromarray(pictures[-1]).save(root / "images" / f"image{i}.png")
    with torch.no_grad():
        tokens = backbone(backbone.preprocess(pictures))
        direct = {name: encoder(tokens, name).numpy() for name in SIZES}
    return SimpleNamespace(
        root=root,
        crowd=root / "crowd",
        images=root / "images",
        pictures=pictures,
        encoder=encoder,
        tokens=tokens,
        direct=direct,
    )


@pytest.fixture
def call(made, tmp_path):
    """`call("x.h5", **changes)`: predict S1, four images at a time; gives the path."""

    def run(name="pred.h5", subject="S1", images=made.images, folder=made.crowd, **options):
        predict_images(
            folder, images, subject, tmp_path / name, **{"batch": 4, "device": "cpu"} | options
        )
        return tmp_path / name

    return run


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def responses(path):
    with h5py.File(path) as file:
        return file["responses"][:]


# --- what comes out


def test_a_file_holds_what_the_encoder_says(call, made):
    with h5py.File(call()) as file:
        close(file["responses"][:], made.direct["S1"])
        assert file["responses"].dtype == np.float32
        assert list(file["images"].asstr()) == [f"image{i}" for i in range(N_IMAGES)]  # 2 before 10
        assert list(file["voxels/voxel"]) == list(range(60))
        assert list(file["voxels/areas"].asstr()) == AREAS * 12
        assert list(file["voxels/vertex"]) == list(tables()["S1"]["vertex"])
        told = dict(file.attrs)
    assert (told["subject"], told["units"], told["space"], told["dataset"]) == (
        "S1",
        "z-scored response",
        "fsaverage5",
        "test",
    )
    assert re.fullmatch(r"[0-9a-f]{32}", told["checkpoint"])
    assert told["ubrain"]


def test_the_responses_say_something_about_the_images(made):
    # else the comparisons of this file would compare nothing
    assert made.direct["S1"].std(0).min() > 0.02


def test_another_checkpoint_has_another_digest(call, made, tmp_path):
    first = call("a.h5")
    changed = checkpoint.load(made.crowd)
    with torch.no_grad():
        changed.position += 1
    checkpoint.save(changed, tmp_path / "other", like=made.crowd)
    with h5py.File(first) as a, h5py.File(call("b.h5", folder=tmp_path / "other")) as b:
        assert a.attrs["checkpoint"] != b.attrs["checkpoint"]


def test_a_subject_without_a_table_gets_numbers_only(call, made):
    with h5py.File(call(subject="bare")) as file:
        close(file["responses"][:], made.direct["bare"])
        assert list(file["voxels"]) == ["voxel"]


def test_an_archive_has_the_same_contents_and_no_pickles(call):
    h5, npz = call("p.h5", areas=["V1"]), call("p.npz", areas=["V1"])
    with h5py.File(h5) as file, np.load(npz, allow_pickle=False) as archive:
        names = {
            "responses",
            "images",
            *(f"voxels/{c}" for c in file["voxels"]),
            *(f"attributes/{a}" for a in file.attrs),
        }
        assert set(archive.files) == names
        np.testing.assert_array_equal(archive["responses"], file["responses"])
        assert list(archive["images"]) == list(file["images"].asstr())
        assert list(archive["voxels/areas"]) == list(file["voxels/areas"].asstr())
        assert list(archive["voxels/vertex"]) == list(file["voxels/vertex"])
        assert archive["attributes/checkpoint"] == file.attrs["checkpoint"]


def test_half_precision_is_the_rounded_number(call):
    for name in ("p.h5", "p.npz"):
        full, half = call(name), None
        full = responses(full) if name == "p.h5" else np.load(full)["responses"]
        half = call(f"half-{name}", dtype="float16")
        half = responses(half) if name == "p.h5" else np.load(half)["responses"]
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, full.astype(np.float16))


def test_areas_choose_voxels_that_have_any_of_them(call, made):
    path = call(areas=["FFA", "PPA"])
    chosen = [v for v in range(60) if v % 5 in (0, 3)]
    with h5py.File(path) as file:
        assert list(file["voxels/voxel"]) == chosen
        assert set(file["voxels/areas"].asstr()) == {"FFA,EBA", "PPA"}
        assert file.attrs["areas"] == "FFA,PPA"
    close(responses(path), made.direct["S1"][:, chosen])


def test_an_array_of_images_is_read_like_a_folder(call, made, tmp_path):
    np.save(tmp_path / "some.npy", np.stack([p[:40] for p in made.pictures]))
    folder = tmp_path / "cropped"
    folder.mkdir()
    for i, picture in enumerate(made.pictures):
        Image.fromarray(picture[:40]).save(folder / f"{i}.png")
    np.testing.assert_array_equal(
        responses(call("a.h5", images=tmp_path / "some.npy")),
        responses(call("b.h5", images=folder)),
    )


# --- maps


def test_surface_maps_have_each_voxel_at_its_vertex(call, made, tmp_path):
    call("p.func.gii", areas=["FFA", "V1"])
    table, wanted = tables()["S1"], [v for v in range(60) if v % 5 in (0, 2, 4)]
    for side, name, structure in (
        ("L", "p.lh.func.gii", "CortexLeft"),
        ("R", "p.rh.func.gii", "CortexRight"),
    ):
        image = nib.load(tmp_path / name)
        assert image.meta["AnatomicalStructurePrimary"] == structure
        assert [array.meta["Name"] for array in image.darrays] == [
            f"image{i}" for i in range(N_IMAGES)
        ]
        expected = np.full((N_IMAGES, 10242), np.nan)
        for v in wanted:
            if table["hemisphere"][v] == side:
                expected[:, table["vertex"][v]] = made.direct["S1"][:, v]
        close(np.stack([array.data for array in image.darrays]), expected)
    assert not (tmp_path / "p.func.gii").exists()


def test_shape_maps_say_that_they_are_shapes(call, tmp_path):
    call("p.shape.gii")
    for side in ("lh", "rh"):
        assert {array.intent for array in nib.load(tmp_path / f"p.{side}.shape.gii").darrays} == {
            2005
        }  # NIFTI_INTENT_SHAPE


@pytest.fixture
def reference(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(GRID, np.int16), AFFINE), tmp_path / "mask.nii.gz")
    return tmp_path / "mask.nii.gz"


@pytest.mark.parametrize("name", ["p.nii", "p.nii.gz"])
def test_a_volume_has_each_voxel_at_its_place(call, made, reference, name):
    image = nib.load(call(name, subject="S2", reference=reference))
    expected = np.full((*GRID, N_IMAGES), np.nan)
    table = tables()["S2"]
    for v in range(20):
        expected[table["i"][v], table["j"][v], table["k"][v]] = made.direct["S2"][:, v]
    close(image.get_fdata(), expected)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert image.header.get_zooms()[:3] == pytest.approx((1.8, 1.8, 1.8))
    told = json.loads(image.header.extensions[0].get_content())
    assert told["images"] == [f"image{i}" for i in range(N_IMAGES)]
    assert told["subject"] == "S2"


def test_more_images_than_nifti_1_can_count(reference, tmp_path):
    table, n = pd.DataFrame({"voxel": [0], "i": [1], "j": [2], "k": [3]}), maps.MAX_NIFTI1 + 1
    values = np.arange(n, dtype=np.float32)[:, None]
    write = maps.writer(tmp_path / "many.nii", table, "", np.dtype("float32"), reference)
    write(maps.Responses([""] * n, table, values.dtype, {}, lambda: iter([values])))
    image = nib.load(tmp_path / "many.nii")
    assert image.shape == (*GRID, n)
    np.testing.assert_array_equal(image.dataobj[1, 2, 3], values[:, 0])


# --- in blocks and batches


def least(encoder, subject="S1", **options):
    """The smallest budget, as the refusal of a smaller one tells it."""
    with pytest.raises(UbrainError, match=r"at least (\d+) bytes") as caught:
        Predictor(encoder, subject, memory=1, **options)
    return int(re.search(r"least (\d+) bytes", str(caught.value))[1])


def test_blocks_and_batches_do_not_show(made):
    whole = Predictor(made.encoder, "S1")
    assert (whole.images, len(whole._blocks)) == (predict.IMAGES, 1)
    few = Predictor(made.encoder, "S1", memory=least(made.encoder))
    assert few.images == 1
    assert few.block < 60
    one_by_one = [few([t[i : i + 1] for t in made.tokens]) for i in range(N_IMAGES)]
    close(np.concatenate(one_by_one), made.direct["S1"])
    close(whole(made.tokens), made.direct["S1"])
    close(few(made.tokens), made.direct["S1"])


@pytest.mark.parametrize("precision", predict.PRECISIONS)
def test_the_budget_is_the_smallest_that_is_said_to_do(made, precision):
    need = least(made.encoder, precision=precision)
    Predictor(made.encoder, "S1", memory=need, precision=precision)
    with pytest.raises(UbrainError, match="too little"):
        Predictor(made.encoder, "S1", memory=need - 1, precision=precision)


@pytest.mark.parametrize("precision", predict.PRECISIONS)
def test_tokens_and_terms_fit_into_the_memory_and_use_it(made, precision):
    predictor = Predictor(made.encoder, "S1", precision=precision)
    predictor(made.tokens)
    kept = [t for level in predictor._kept for t in level]
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    per_voxel = sum(stored.values()) / 60
    per_image = 4 * sum(t[0].numel() for t in made.tokens)
    config, need = made.encoder.config, least(made.encoder, precision=precision)
    for memory in (need, need + 1, 2 * need, 10 * need, 1 << 24, 1 << 28):
        images, block = predict.share_memory(config, 60, memory, 32, precision, "cpu")
        assert 1 <= images <= 32
        assert block >= 1
        assert images * per_image + block * per_voxel <= memory
    assert images == 32
    assert block * per_voxel > memory / 20


def test_a_predictor_shares_the_weights_and_leaves_the_encoder_as_it_was(made, backbone):
    encoder = encoder_on(backbone).train()
    predictor = Predictor(encoder, "S1")
    assert encoder.training
    assert all(p.requires_grad for p in encoder.parameters())
    assert not any(t.requires_grad for t in predictor.encoder.state_dict(keep_vars=True).values())
    with torch.no_grad():
        encoder.position += 1
        encoder.functional *= 2
    close(predictor(made.tokens), encoder.eval()(made.tokens, "S1").detach().numpy())


def test_voxel_terms_are_computed_once_if_they_fit(made, monkeypatch):
    calls, real = [], kernels.voxel_terms
    monkeypatch.setattr(
        kernels, "voxel_terms", lambda encoder, e: calls.append(len(e)) or real(encoder, e)
    )
    predictor = Predictor(made.encoder, "S1", np.arange(7))
    for _ in range(3):
        predictor(made.tokens)
    assert calls == [7]


def test_a_tiny_budget_gives_the_same_file(call, made):
    close(responses(call(memory=least(made.encoder))), made.direct["S1"])


def test_bf16_comes_close(call, made):
    found = responses(call(precision="bf16"))
    assert np.abs(found - made.direct["S1"]).max() > 1e-6
    assert np.corrcoef(found.ravel(), made.direct["S1"].ravel())[0, 1] > 0.99


def test_memory_grows_neither_with_images_nor_with_voxels():
    """29 MB of responses and 22 MB of voxel terms within 6 MB, beside 5 MB of embeddings that are
    loaded.
    """
    script = """
        import resource, sys, tempfile
        from dataclasses import asdict, replace
        from pathlib import Path
        import numpy as np, torch
        from ubrain import checkpoint
        from ubrain.backbone import Backbone
        from ubrain.config import BackboneConfig, EncoderConfig
        from ubrain.model import UniversalEncoder
        from ubrain.exchange.predictions import (predict_images)
        CNN = BackboneConfig("tf_efficientnet_lite0", "embedded", (1,), 32, 2, False, 0)
        backbone = Backbone(CNN)
        config = EncoderConfig(backbone.widths, backbone.n_tokens, 8, 4)
        encoder = UniversalEncoder(config, {"small": 1000, "large": 150_000})
        scale = 1024 if sys.platform != "darwin" else 1
        with tempfile.TemporaryDirectory() as root:
            root = Path(root)
            checkpoint.save(encoder, root / "crowd", settings={"backbone": asdict(CNN)})
            images = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
            np.save(root / "few.npy", images[:6]), np.save(root / "many.npy", images)
            predict_images(root / "crowd", root / "few.npy", "small", root / "small.h5", batch=3)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
            many, out = root / "many.npy", root / "large.h5"
            predict_images(root / "crowd", many, "large", out, memory=6_000_000)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
            print(out.stat().st_size, peak - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written, grown = map(int, done.stdout.split())
    assert written > 28e6
    assert grown < 20e6


# --- interrupted


class Killed(Exception):
    pass


def stop_after(monkeypatch, batches):
    """Make the next prediction fail after so many batches; gives a way to stop that."""
    real, calls = predictions.Predicted.add, []

    def add(self, values):
        if len(calls) == batches:
            raise Killed
        calls.append(1)
        real(self, values)

    monkeypatch.setattr(predictions.Predicted, "add", add)
    return lambda: monkeypatch.setattr(predictions.Predicted, "add", real)


@pytest.fixture
def cut(call, monkeypatch):
    """Stop a prediction after two batches of four images."""

    def run(name="cut.h5", **options):
        go_on = stop_after(monkeypatch, 2)
        with pytest.raises(Killed):
            call(name, **options)
        go_on()

    return run


def count_predicted(monkeypatch):
    real, counts = Predictor.__call__, []
    monkeypatch.setattr(
        Predictor,
        "__call__",
        lambda self, tokens: counts.append(len(tokens[0])) or real(self, tokens),
    )
    return counts


def work_of(tmp_path, name="cut.h5"):
    return tmp_path / f".{name}.work"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cut.h5", {"dtype": "float16"}),
        ("cut.npz", {"areas": ["V1"]}),
        ("cut.func.gii", {}),
        ("cut.h5", {"precision": "bf16"}),
    ],
)
def test_what_was_stopped_goes_on_as_if_nothing_had_happened(
    call, cut, made, tmp_path, monkeypatch, name, options
):
    call(name, **options)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        path.unlink()
    cut(name, **options)
    assert {path.name for path in tmp_path.iterdir()} == {f".{name}.work"}
    counts = count_predicted(monkeypatch)
    call(name, **options)
    assert counts == [4, 4, 4, 1]  # 8 of 21 images were done
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("rows", [0, 3.5, 4, 9.99, 20.5])
def test_a_torn_batch_is_predicted_again(call, cut, tmp_path, monkeypatch, rows):
    whole = call("whole.h5")
    cut()
    raw = work_of(tmp_path) / "responses.raw"
    raw.write_bytes((responses(whole).tobytes() + b"\xff" * 60 * 4)[: int(rows * 60 * 4)])
    counts = count_predicted(monkeypatch)
    call("cut.h5")
    assert sum(counts) == N_IMAGES - int(rows) // 4 * 4
    assert (tmp_path / "cut.h5").read_bytes() == whole.read_bytes()


def test_kill_minus_nine_and_the_same_call_again(made, tmp_path):
    arguments = (str(made.crowd), str(made.images), "S1", str(tmp_path / "killed.h5"))
    code = textwrap.dedent(f"""
        import time, torch
        from ubrain.exchange import predictions
        torch.set_num_threads({torch.get_num_threads()})
        real = predictions.Predicted.add
        predictions.Predicted.add = lambda self, values: (real(self, values), time.sleep(0.05))
        predictions.predict_images(*{arguments!r}, batch=2, device="cpu")
    """)
    raw = work_of(tmp_path, "killed.h5") / "responses.raw"
    with subprocess.Popen([sys.executable, "-c", code]) as victim:
        while victim.poll() is None and (not raw.exists() or raw.stat().st_size < 3 * 2 * 60 * 4):
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL, "it ended before it could be killed"
    (tmp_path / ".killed.h5.12345.partial").write_bytes(
        b"left behind by another that was killed while it wrote the target"
    )
    for name in ("killed.h5", "whole.h5"):
        predict_images(made.crowd, made.images, "S1", tmp_path / name, batch=2, device="cpu")
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"killed.h5", "whole.h5"}


def test_if_only_the_target_was_not_written_nothing_is_predicted_again(call, tmp_path, monkeypatch):
    whole = call("whole.h5")
    real = predictions.Predicted.batches

    def breaks(self):
        yield next(real(self))
        raise Killed

    monkeypatch.setattr(predictions.Predicted, "batches", breaks)
    (tmp_path / "cut.h5").write_bytes(b"an older file")
    with pytest.raises(Killed):
        call("cut.h5")
    assert (tmp_path / "cut.h5").read_bytes() == b"an older file"
    monkeypatch.setattr(predictions.Predicted, "batches", real)
    counts = count_predicted(monkeypatch)
    call("cut.h5")
    assert counts == []
    assert (tmp_path / "cut.h5").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": "bare"}, "subject was 'S1', is 'bare'"),
        ({"areas": ["V1"]}, "areas was 'all', is 'V1'"),
        ({"batch": 5}, "images at a time was 4, is 5"),
        ({"dtype": "float16"}, "dtype was 'float32', is 'float16'"),
        ({"precision": "bf16"}, "precision was 'fp32', is 'bf16'"),
    ],
)
def test_half_a_prediction_is_not_finished_with_other_settings(
    call, cut, tmp_path, change, message
):
    cut()
    before = (work_of(tmp_path) / "responses.raw").read_bytes()
    with pytest.raises(UbrainError, match=re.escape(message)):
        call("cut.h5", **change)
    assert (work_of(tmp_path) / "responses.raw").read_bytes() == before
    call("cut.h5")


def test_half_a_prediction_is_not_finished_by_another_checkpoint(call, cut, made, tmp_path):
    cut()
    changed = checkpoint.load(made.crowd)
    changed.subject("S1").data += 1
    checkpoint.save(changed, tmp_path / "other", like=made.crowd)
    with pytest.raises(UbrainError, match=r"begun with other settings \(checkpoint was"):
        call("cut.h5", folder=tmp_path / "other")


def copied(made, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made.images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_image_that_has_changed_since_it_was_predicted_is_noticed(cut, call, made, tmp_path):
    images = copied(made, tmp_path)
    cut(images=images)
    Image.fromarray(made.pictures[0]).save(images / "image5.png")
    with pytest.raises(UbrainError, match=r"image image5\.png is no longer what it was"):
        call("cut.h5", images=images)


def test_an_unreadable_image_is_named_and_the_run_continues_when_it_is_mended(
    call, made, tmp_path, monkeypatch
):
    images = copied(made, tmp_path)
    whole = call("whole.h5", images=images)
    good = (images / "image10.png").read_bytes()
    (images / "image10.png").write_bytes(good[:200])
    with pytest.raises(UbrainError, match=r"image10\.png cannot be read"):
        call("cut.h5", images=images)
    (images / "image10.png").write_bytes(good)
    counts = count_predicted(monkeypatch)
    call("cut.h5", images=images)
    assert sum(counts) == N_IMAGES - 8
    assert (tmp_path / "cut.h5").read_bytes() == whole.read_bytes()


def test_images_that_were_added_at_the_end_are_predicted_too(call, made, tmp_path, monkeypatch):
    images = copied(made, tmp_path)
    last = images / "image20.png"
    content = last.read_bytes()
    last.unlink()
    monkeypatch.setattr(predictions.maps, "_write_h5", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        call("cut.h5", images=images)  # all 20 are predicted
    monkeypatch.undo()
    last.write_bytes(content)
    call("cut.h5", images=images)
    assert (tmp_path / "cut.h5").read_bytes() == call("whole.h5", images=images).read_bytes()


def test_two_at_a_time_are_refused(call, tmp_path):
    work_of(tmp_path).mkdir()
    with (
        FileLock(work_of(tmp_path) / "lock"),
        pytest.raises(UbrainError, match="another process is busy with the prediction of"),
    ):
        call("cut.h5")
    call("cut.h5")


def test_a_damaged_record_of_the_work_is_a_clear_error(call, cut, tmp_path):
    cut()
    (work_of(tmp_path) / "settings.json").write_text("{")
    with pytest.raises(
        UbrainError, match=r"settings\.json cannot be read.*delete .*cut\.h5\.work to start"
    ):
        call("cut.h5")


# --- refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x" * 240 + ".h5", {}, "the name of .* is too long; choose a shorter one"),
        ("p.csv", {}, r"p\.csv: unknown format; expected a name that ends in \.h5"),
        ("p.gii", {}, "unknown format"),
        (".h5", {}, "unknown format"),
        ("p.h5", {"subject": "S9"}, "no subject 'S9'; it has S1, S2, bare"),
        ("p.h5", {"folder": Path("nowhere")}, "no folder 'nowhere'"),
        ("p.h5", {"images": Path("nowhere")}, "expected a folder of images"),
        ("p.h5", {"areas": ["FFA", "V9"]}, "no area 'V9'; it has EBA, FFA, PPA, V1, V2"),
        ("p.h5", {"areas": []}, "it has EBA"),
        ("p.h5", {"subject": "bare", "areas": ["V1"]}, "no voxel table of 'bare'"),
        ("p.h5", {"precision": "fp8"}, "unknown precision 'fp8': expected one of fp32, bf16"),
        ("p.h5", {"dtype": "int8"}, "unknown dtype 'int8'"),
        ("p.h5", {"device": "cuda:77"}, "'cuda:77' is not available"),
        ("p.h5", {"memory": 100}, "100 bytes of memory are too little"),
        ("p.h5", {"reference": "mask.nii"}, r"gives the grid of a \.nii"),
        ("p.h5", {"weights": "missing.safetensors"}, "No such file"),
        ("p.func.gii", {"dtype": "float16"}, "holds float32, not float16"),
        ("p.func.gii", {"subject": "S2"}, "needs hemisphere, vertex of every voxel.*has no vertex"),
        ("p.func.gii", {"subject": "bare"}, "needs hemisphere, vertex of every voxel"),
        ("p.nii", {"subject": "S1"}, "has no i, j, k"),
        (
            "p.nii.gz",
            {"subject": "S2"},
            "needs the grid and the affine.*'func1pt8mm'; give --reference",
        ),
        ("p.nii", {"subject": "S2", "reference": "nowhere.nii"}, "nowhere.nii cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_at_once_and_leaves_nothing(
    call, tmp_path, name, options, message
):
    with pytest.raises(UbrainError, match=message):
        call(name, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_over(call, tmp_path):
    (tmp_path / "p.rh.func.gii").mkdir()
    with pytest.raises(UbrainError, match=r"p\.rh\.func\.gii is a folder"):
        call("p.func.gii")


def test_an_empty_array_of_images_is_refused(call, tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(UbrainError, match="there are no images in it"):
        call(images=tmp_path / "none.npy")


def test_images_without_pixels_are_refused(call, tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((3, 0, 0, 3), np.uint8))
    with pytest.raises(
        UbrainError, match=r"expected images \(n, height, width.*got \(3, 0, 0, 3\)"
    ):
        call(images=tmp_path / "none.npy")


@pytest.mark.parametrize("resize", ["gaussian", "antialias"])
def test_a_large_image_is_made_small_a_channel_at_a_time(monkeypatch, resize):
    """The same numbers, in a third of the memory."""
    backbone = Backbone(replace(CNN, resize=resize, image_size=60))
    pixels = [np.random.default_rng(0).integers(0, 256, (150, 170, 3), np.uint8)]
    at_once = backbone.resize(pixels)
    monkeypatch.setattr("ubrain.backbone.LARGE", 1000)
    assert torch.equal(backbone.resize(pixels), at_once)


def test_a_file_that_is_no_volume_is_no_reference(call, tmp_path):
    (tmp_path / "mask.nii").write_text("not a volume")
    with pytest.raises(UbrainError, match=r"mask\.nii cannot be read"):
        call("p.nii", subject="S2", reference=tmp_path / "mask.nii")
    nib.save(nib.Nifti1Image(np.zeros((5, 6), np.int16), AFFINE), tmp_path / "flat.nii")
    with pytest.raises(UbrainError, match=r"expected a volume.*\(5, 6\)"):
        call("p.nii", subject="S2", reference=tmp_path / "flat.nii")


SURFACE = {"voxel": [10, 11, 12], "hemisphere": ["L", "L", "R"], "vertex": [5, 6, 5]}
VOLUME = {"voxel": [10, 11, 12], "i": [0, 1, 4], "j": [0, 1, 5], "k": [0, 1, 6]}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "p.func.gii",
            {"hemisphere": ["L", "", "R"]},
            "hemisphere of voxel 11 is ''; expected L or R",
        ),
        (
            "p.func.gii",
            {"vertex": [5, 6, 10242]},
            "vertex of voxel 12 is 10242; expected a whole number from 0 to 10241",
        ),
        ("p.func.gii", {"vertex": [5, np.nan, 7]}, "vertex of voxel 11 is nan"),
        ("p.func.gii", {"vertex": ["5", "6.5", "7"]}, "vertex of voxel 11 is 6.5"),
        ("p.func.gii", {"vertex": [5, 5, 5]}, "voxels 10 and 11 are at the same place"),
        ("p.nii", {"i": [0, 1, 5]}, "i of voxel 12 is 5; expected a whole number from 0 to 4"),
        ("p.nii", {"k": [-1, 1, 2]}, "k of voxel 10 is -1"),
        (
            "p.nii",
            {"i": [0, 1, 0], "j": [0, 1, 0], "k": [0, 1, 0]},
            "voxels 10 and 12 are at the same place",
        ),
    ],
)
def test_places_that_cannot_be_are_refused(reference, tmp_path, name, change, message):
    good = VOLUME if name == "p.nii" else SURFACE
    options = {
        "space": "fsaverage5",
        "dtype": np.dtype("float32"),
        "reference": reference if name == "p.nii" else None,
    }
    maps.writer(tmp_path / name, pd.DataFrame(good), **options)
    with pytest.raises(UbrainError, match=re.escape(message)):
        maps.writer(tmp_path / name, pd.DataFrame({**good, **change}), **options)


@pytest.mark.parametrize(("space", "said"), [("", "nothing"), ("nativesurface", "nativesurface")])
def test_vertices_of_an_unknown_surface_are_refused(tmp_path, space, said):
    with pytest.raises(
        UbrainError, match=f"expected a space of fsaverage, .*the checkpoint says '?{said}"
    ):
        maps.writer(tmp_path / "p.func.gii", pd.DataFrame(SURFACE), space, np.dtype("float32"))


def test_responses_that_are_no_numbers_are_not_written(call, made, tmp_path):
    broken = checkpoint.load(made.crowd)
    broken.subject("S1").data[7] = 3e38
    checkpoint.save(broken, tmp_path / "broken", like=made.crowd)
    with pytest.raises(UbrainError, match="responses to image 'image0' are not finite"):
        call(folder=tmp_path / "broken")
    assert not (tmp_path / "pred.h5").exists()


# --- backbones


def test_only_the_embeddings_of_the_subject_are_loaded(call, monkeypatch):
    loaded, real = [], predictions.load
    monkeypatch.setattr(predictions, "load", lambda *args: loaded.append(real(*args)) or loaded[-1])
    call(subject="S2")
    assert list(loaded[0].embeddings) == ["S2"]


def test_adapters_come_with_the_checkpoint(call, made, tmp_path):
    config = BackboneConfig(
        "vit_tiny_patch16_224", "random", (1, 3), 32, None, True, 2, adapter_alpha=1.0
    )
    backbone = Backbone(config).eval()
    for p in backbone.adapters.parameters():
        nn.init.normal_(p, std=0.3)
    encoder = encoder_on(backbone, {"S1": 12})
    checkpoint.save(
        encoder, tmp_path / "adapted", backbone.adapters, settings={"backbone": asdict(config)}
    )
    with torch.no_grad():
        pixels = backbone.preprocess(made.pictures)
        expected, without = (
            encoder(backbone(pixels), "S1"),
            encoder(Backbone(config).eval()(pixels), "S1"),
        )
    assert (expected - without).abs().max() > 0.01
    close(responses(call(folder=tmp_path / "adapted")), expected.numpy())


def test_a_file_of_weights_replaces_those_that_are_not_here(call, made, backbone, tmp_path):
    absent = replace(CNN, weights="on_another_machine.safetensors")
    checkpoint.save(made.encoder, tmp_path / "moved", settings={"backbone": asdict(absent)})
    with pytest.raises(UbrainError, match=r"on_another_machine\.safetensors.*--weights"):
        call(folder=tmp_path / "moved")
    save_file(backbone.model.state_dict(), tmp_path / "mine.safetensors")
    close(
        responses(call(folder=tmp_path / "moved", weights=tmp_path / "mine.safetensors")),
        made.direct["S1"],
    )


# --- the command


def test_the_command_does_what_the_function_does(call, made, tmp_path):
    options = [
        "--checkpoint",
        made.crowd,
        "--images",
        made.images,
        "--subject",
        "S1",
        "--areas",
        "FFA, PPA",
        "--out",
        tmp_path / "cli.h5",
        "--device",
        "cpu",
        "--precision",
        "bf16",
        "--memory",
        "1.5MB",
        "--batch",
        "4",
        "--dtype",
        "float16",
    ]
    done = CliRunner().invoke(app, ["predict", *map(str, options)])
    assert done.exit_code == 0, done.output
    assert "".join(done.output.split()) == str(tmp_path / "cli.h5")
    same = call(areas=["FFA", "PPA"], precision="bf16", memory=1_500_000, dtype="float16")
    assert (tmp_path / "cli.h5").read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GB", 2_000_000_000), ("1.5 MiB", 3 << 19), ("500kb", 500_000), ("77", 77)],
)
def test_memory_in_words(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "2 bananas", "-1GB", "1e9"])
def test_memory_in_other_words_is_refused(text):
    with pytest.raises(UbrainError, match="expected a number with a unit"):
        bytes_of(text)


# --- prediction and evaluation of the images of a crowd


@pytest.fixture(scope="module")
def crowd_source(crowd, tmp_path_factory):
    features = Features(crowd, CNN, tmp_path_factory.mktemp("features"))
    source = Source(crowd, features)
    return source, encoder_on(features, {name: crowd[name].n_voxels for name in crowd.subjects})


def test_a_crowd_is_predicted_and_evaluated_the_same_in_the_least_memory(crowd_source):
    source, encoder = crowd_source
    name = source.crowd.subjects[0]
    rows = source.crowd[name].image_rows("train")
    memory = least(encoder, name)
    with torch.no_grad():
        plain = encoder(source.tokens(rows, torch.device("cpu")), name).numpy()
    predictor = predict.Predictor(encoder, name, memory=memory)
    parts = list(predict.stream(predictor, source, rows))
    assert [len(part) for part, _ in parts] == [1] * len(rows)
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), rows)
    close(np.concatenate([predicted for _, predicted in parts]), plain)
    close(predict.predict(encoder, source, name, rows, memory=memory), plain)
    expected = scores.correlation(plain, source.crowd[name].responses_to(rows))
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(
        predict.correlate(predictor, source, name, rows),
        expected,
        atol=1e-4,
    )


def test_no_images_of_a_crowd_give_no_responses(crowd_source):
    source, encoder = crowd_source
    name = source.crowd.subjects[0]
    none = np.empty(0, np.int64)
    assert predict.predict(encoder, source, name, none).shape == (0, source.crowd[name].n_voxels)
    assert np.isnan(predict.correlate(predict.Predictor(encoder, name), source, name, none)).all()
