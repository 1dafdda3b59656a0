"""Transfer: matching finds a copy, evidence sharpens it, ours keeps up with its parts, shared
weights are untouched.
"""

import shutil
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import norm

from ubrain import checkpoint, transfer
from ubrain.backbone import Backbone
from ubrain.config import BackboneConfig, EncoderConfig, TransferConfig
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.exchange import hub, readouts, transfers
from ubrain.features import Features
from ubrain.model import UniversalEncoder
from ubrain.paths import cache_root
from ubrain.predict import Predictor
from ubrain.readout import BUFFERS, LinearReadout, features

SIZES = EncoderConfig(widths=(6, 8), n_tokens=9, embedding_size=8, channels=8, embedding_scale=6.0)
QUICK = TransferConfig(
    folds=3,
    temperatures=(0.03, 0.1, 0.3, 1.0),
    pulls=(0.3, 3.0, 30.0),
    steps=2,
    min_steps=60,
    epochs=1,
    learning_rate=0.03,
    batch_images=16,
    held_out="fold",
)


class Tokens:
    """A source of random tokens for 300 images."""

    def __init__(self, sizes=SIZES):
        draw = torch.Generator().manual_seed(1)
        self.levels = [
            torch.randn(300, sizes.n_tokens, width, generator=draw) for width in sizes.widths
        ]
        self.widths, self.n_tokens = sizes.widths, sizes.n_tokens

    def tokens(self, rows, device):
        return [level[torch.from_numpy(rows)] for level in self.levels]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return UniversalEncoder(SIZES, {"S1": 40, "S2": 30}).eval()


def responses(encoder, embeddings, rows, noise, seed=0):
    """What voxels with these embeddings would measure: unit variance, and noise."""
    head = transfer.Head(encoder, Tokens(), rows)
    clean = head.respond(embeddings)
    clean = (clean - clean.mean(0)) / clean.std(0)
    return head, clean + noise * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(seed)
    )


def crowd_of(encoder):
    return torch.cat([e.detach() for e in encoder.embeddings.values()])


def newcomer(encoder, embeddings, n, noise, config=QUICK):
    head, y = responses(encoder, embeddings, np.arange(n), noise)
    return transfer.Newcomer(head, crowd_of(encoder), y, config)


def test_the_head_predicts_what_the_encoder_predicts(encoder):
    rows = np.arange(40)
    head = transfer.Head(encoder, Tokens(), rows)
    with torch.no_grad():
        expected = encoder(Tokens().tokens(rows, None), "S1")
    torch.testing.assert_close(head.respond(encoder.subject("S1")), expected)


def test_slopes_are_the_change_of_the_responses(encoder):
    head = transfer.Head(encoder, Tokens(), np.arange(40))
    e = encoder.subject("S1").detach()[:6]
    base, slope = head.linearise(e, np.arange(40))
    step = 1e-2 * torch.randn(e.shape, generator=torch.Generator().manual_seed(0))
    change = (head.respond(e + step) - head.respond(e - step)) / 2
    torch.testing.assert_close(base, head.respond(e))
    torch.testing.assert_close(change, (slope @ step[:, :, None])[:, :, 0].T, rtol=1e-2, atol=1e-3)


def test_matching_recovers_the_embedding_of_a_copy(encoder):
    crowd = crowd_of(encoder)
    head, y = responses(encoder, crowd[[3, 50]], np.arange(100), noise=0.1)
    ((matched,),) = transfer.match(head, crowd, y, [np.arange(100)], [1.0])
    torch.testing.assert_close(matched.mean, crowd[[3, 50]], rtol=0, atol=1e-3)
    assert (matched.voxels < 1.01).all()


def test_matching_in_blocks_is_matching_at_once(encoder, monkeypatch):
    crowd, parts = crowd_of(encoder), [np.arange(0, 60, 2), np.arange(60)]
    head, y = responses(encoder, crowd[:5], np.arange(60), noise=1.0)
    whole = transfer.match(head, crowd, y, parts, [0.1, 1.0])
    monkeypatch.setattr(transfer, "CROWD_VOXELS", 7)
    for ours, theirs in zip(transfer.match(head, crowd, y, parts, [0.1, 1.0]), whole, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                (a.mean, a.noise, a.voxels), (b.mean, b.noise, b.voxels), rtol=1e-4, atol=1e-5
            )


def test_weights_are_those_of_the_formula(encoder):
    crowd = crowd_of(encoder)
    head, y = responses(encoder, crowd[:4], np.arange(30), noise=1.0)
    ((matched,),) = transfer.match(head, crowd, y, [np.arange(30)], [0.25])
    r = np.corrcoef(y.T.numpy(), head.respond(crowd).T.numpy())[:4, 4:]
    weight = (norm.cdf(r * np.sqrt(28 / (1 - r**2))) * (1 - r**2) ** (-28 / 2)) ** 0.25
    weight /= weight.sum(1, keepdims=True)
    np.testing.assert_allclose(matched.mean, weight @ crowd.numpy(), atol=1e-4)
    np.testing.assert_allclose(matched.voxels, np.exp(-(weight * np.log(weight)).sum(1)), rtol=1e-3)
    np.testing.assert_allclose(matched.noise, (weight * (1 - r**2)).sum(1), rtol=1e-3)


def test_the_posterior_sharpens_with_images_and_with_less_noise(encoder):
    def taking_part(n, noise):
        head, y = responses(encoder, crowd_of(encoder)[:20], np.arange(n), noise)
        return float(
            transfer.match(head, crowd_of(encoder), y, [np.arange(n)], [1.0])[0][0].voxels.mean()
        )

    assert taking_part(20, 2.0) > 1.3 * taking_part(60, 2.0) > 1.3 * taking_part(200, 2.0)
    assert taking_part(60, 4.0) > 1.3 * taking_part(60, 2.0) > 1.3 * taking_part(60, 1.0)


def true_r(encoder, embeddings, found):
    """Mean correlation with what the voxels would respond to other images, without noise."""
    head = transfer.Head(encoder, Tokens(), np.arange(200, 300))
    return transfer._mean_r(found.respond(head), head.respond(embeddings))


def test_a_voxel_unlike_any_of_the_crowd_ends_above_its_embedding(encoder):
    """Half of these voxels read the channels linearly, which no embedding of the crowd does."""
    rows = np.arange(300)
    head, y = responses(encoder, crowd_of(encoder)[:30], rows, noise=0.3)
    parts = torch.cat([part.flatten(1) for part in head.features()], 1)
    linear = parts @ torch.randn(parts.shape[1], 15, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(300, 15, generator=torch.Generator().manual_seed(8))
    y[:, :15] = (linear - linear.mean(0)) / linear.std(0) + 0.3 * noise
    fitted = transfer.ours(
        transfer.Newcomer(
            transfer.Head(encoder, Tokens(), rows[:200]), crowd_of(encoder), y[:200], QUICK
        )
    )
    test = transfer.Head(encoder, Tokens(), rows[200:])
    with_rest, alone = (
        _r(p, y[200:]) for p in (fitted.respond(test), test.respond(fitted.embeddings))
    )
    assert with_rest[:15].mean() > alone[:15].mean() + 0.3
    assert with_rest[15:].mean() > alone[15:].mean() - 0.02


def _r(predicted, measured):
    return (transfer._unit(predicted) * transfer._unit(measured)).sum(0)


@pytest.mark.parametrize("n", [20, 60, 200])
def test_ours_keeps_up_with_the_best_of_its_parts(encoder, n):
    torch.manual_seed(5)
    new = (
        0.6 * crowd_of(encoder)[torch.randperm(70)[:30]]
        + 0.8 * torch.randn(30, 8) * crowd_of(encoder).std()
    )
    case = newcomer(encoder, new, n, noise=1.0)
    methods = (transfer.ours, transfer.matching, transfer.gradient)
    found = {method.__name__: true_r(encoder, new, method(case)) for method in methods}
    assert found["ours"] > max(found["matching"], found["gradient"]) - 0.03, found


def test_the_pull_goes_to_the_prior_or_lets_go(encoder):
    case = newcomer(
        encoder, torch.randn(6, 8, generator=torch.Generator().manual_seed(3)), 60, noise=0.5
    )
    prior = transfer._Prior.of(case)
    block = transfer._Block(case, prior, slice(0, 6))
    distance = [
        float((block.fit(pull) - prior.matched.mean).norm()) for pull in (np.inf, 1e9, 10, 0.1)
    ]
    assert distance[0] == 0
    assert distance[1] < 1e-3 < distance[2] < distance[3]


def test_a_weaker_pull_must_be_clearly_better():
    rng = torch.Generator().manual_seed(0)
    base, noise = torch.rand(50, generator=rng), torch.randn(3, 50, generator=rng)
    noise -= noise.mean(1, keepdim=True)
    gain = torch.tensor([[0.0], [0.01], [0.0]])
    assert transfer._strongest(base + gain + 0.2 * noise) == 2
    assert transfer._strongest(base + gain + 0.01 * noise) == 1


def test_draws_matched_together_are_those_fitted_alone(encoder):
    whole = newcomer(encoder, crowd_of(encoder)[:6], 60, noise=1.0)
    some = [(np.arange(0, 60, 3), 1), (np.arange(60), 0)]
    for view, (images, seed) in zip(whole.draws(some), some, strict=True):
        head = transfer.Head(encoder, Tokens(), images)
        alone = transfer.Newcomer(head, whole.crowd, whole.responses[images], QUICK, seed)
        for method in ("ours", "matching", "gradient"):
            together, expected = view.fit(method), alone.fit(method)
            assert together.chosen == expected.chosen
            torch.testing.assert_close(
                together.embeddings, expected.embeddings, rtol=1e-3, atol=1e-4
            )


def test_the_same_seed_gives_the_same_embeddings(encoder):
    case = newcomer(encoder, crowd_of(encoder)[:4], 40, noise=1.0)
    for method in (transfer.ours, transfer.gradient):
        assert torch.equal(method(case).embeddings, method(case).embeddings)
    other = transfer.gradient(replace(case, seed=1)).embeddings
    assert not torch.equal(transfer.gradient(case).embeddings, other)


# From here on a real checkpoint and a crowd file
# ---------------------------------------------------------------------

BONES = BackboneConfig(
    "tf_efficientnet_lite0", "random", (1, 3), 64, grid=4, keep_cls=False, adapter_rank=0
)


@pytest.fixture(scope="module")
def trained(small_crowd, tmp_path_factory):
    """A checkpoint folder of an encoder of S1 of the small crowd, not trained."""
    folder = tmp_path_factory.mktemp("trained") / "crowd"
    with Crowd(small_crowd) as crowd:
        features = Features(crowd, BONES, cache_root() / "features", "cpu")
        torch.manual_seed(0)
        sizes = EncoderConfig(features.widths, features.n_tokens, embedding_size=8, channels=8)
        made = UniversalEncoder(sizes, {"S1": crowd["S1"].n_voxels})
        made.subject("S1").data *= 30
        checkpoint.save(made, folder, settings={"backbone": asdict(BONES), "crowd": "another"})
    return folder


def test_shared_weights_are_bit_identical_after_transfer(trained, crowd, tmp_path):
    table = transfers.transfer(trained, crowd, tmp_path / "new", ["S2"], config=QUICK)
    before, after = (
        load_file(trained / checkpoint.WEIGHTS),
        load_file(tmp_path / "new" / checkpoint.WEIGHTS),
    )
    assert set(after) == {n for n in before if not n.startswith("embeddings.")} | {"embeddings.S2"}
    readout = load_file(tmp_path / "new" / checkpoint.READOUT)
    assert set(readout) == {f"S2.{name}" for name in BUFFERS}
    assert all(torch.equal(before[n], after[n]) for n in before if n in after)
    assert table["subject"].tolist() == ["S2"]
    assert table["voxels"].tolist() == [crowd["S2"].n_voxels]
    assert checkpoint.backbone_config(tmp_path / "new") == BONES
    assert checkpoint.describe(tmp_path / "new").recordings["S2"]["scanner"] == "7T"
    assert not (tmp_path / "new" / transfers.PARTS).exists()


def test_a_file_of_weights_stands_in_for_those_that_the_checkpoint_names(trained, crowd, tmp_path):
    checkpoint.save(
        checkpoint.load(trained),
        tmp_path / "theirs",
        val_r75=0.4321,
        settings={"backbone": {**asdict(BONES), "weights": "elsewhere.safetensors"}},
    )
    save_file(Backbone(BONES).model.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UbrainError, match=r"elsewhere\.safetensors cannot be read: No such file"):
        transfers.transfer(tmp_path / "theirs", crowd, tmp_path / "new", ["S2"], config=QUICK)
    call = (crowd, tmp_path / "new", ["S2"], "matching")
    weights = tmp_path / "weights.safetensors"
    transfers.transfer(tmp_path / "theirs", *call, config=QUICK, weights=weights)
    transfers.transfer(trained, crowd, tmp_path / "same", *call[2:], config=QUICK)
    got, expected = (load_file(tmp_path / n / checkpoint.WEIGHTS) for n in ("new", "same"))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert "0.4321" not in (tmp_path / "new" / hub.CARD).read_text()
    with pytest.raises(UbrainError, match="a transfer with other settings"):
        transfers.transfer(tmp_path / "theirs", *call, config=QUICK)


def with_readout(trained, folder, in_encoder=False):
    """A copy of the checkpoint whose S1 has a linear readout; as older versions wrote it."""
    encoder = checkpoint.load(trained)
    n_voxels, n_features = len(encoder.subject("S1")), 2 * 21 * encoder.config.channels
    shapes = (n_features, 3), (3,), (3, n_voxels), (n_voxels,), (n_voxels,)
    rng = torch.Generator().manual_seed(1)
    made = LinearReadout(*(torch.randn(shape, generator=rng) for shape in shapes))
    checkpoint.save(encoder, folder, like=trained, readouts={} if in_encoder else {"S1": made})
    if in_encoder:
        weights = load_file(folder / checkpoint.WEIGHTS)
        weights |= {f"rests.S1.{name}": t for name, t in made.state_dict().items()}
        save_file(weights, folder / checkpoint.WEIGHTS)
    return made


@pytest.mark.parametrize("in_encoder", [False, True], ids=["own file", "older folder"])
def test_a_readout_is_kept_with_its_subject_and_added_to_its_predictions(
    trained, tmp_path, in_encoder
):
    made = with_readout(trained, tmp_path / "made", in_encoder)
    hub.drop(tmp_path / "made", [], tmp_path / "copy")
    found, encoder = readouts.load_readout(tmp_path / "copy", "S1"), checkpoint.load(trained)
    torch.testing.assert_close(found.state_dict(), made.state_dict(), rtol=0, atol=0)
    tokens = [torch.randn(2, encoder.config.n_tokens, width) for width in encoder.config.widths]
    some = np.array([5, 2])
    alone = torch.from_numpy(Predictor(encoder, "S1", some)(tokens))
    whole = readouts.ReadoutPredictor(found, encoder, "S1", some)(tokens)
    with torch.no_grad():
        phi = torch.cat([f.flatten(1) for f in features(encoder.project(tokens))], 1)
    rest = (phi @ made.basis - made.shift) @ made.weights[:, some] + made.offset[some]
    torch.testing.assert_close(torch.from_numpy(whole), made.scale[some] * alone + rest)
    hub.drop(tmp_path / "copy", ["S1"], tmp_path / "none")
    assert not (tmp_path / "none" / checkpoint.READOUT).exists()
    checkpoint.save(encoder, tmp_path / "copy")  # another encoder in the same folder
    assert readouts.load_readout(tmp_path / "copy", "S1") is None
    assert readouts.load_readout(trained, "S1") is None


def test_a_readout_that_does_not_fit_the_encoder_is_refused(trained, tmp_path):
    made = with_readout(trained, tmp_path)
    made.offset = made.offset[1:]
    checkpoint.save(checkpoint.load(trained), tmp_path, like=trained, readouts={"S1": made})
    with pytest.raises(UbrainError, match=r"linear readout S1\.offset: expected"):
        readouts.load_readout(tmp_path, "S1")


def test_a_killed_transfer_is_continued(trained, crowd, tmp_path, monkeypatch):
    fitted = []

    def fit(encoder, source, subject, *rest):
        if fitted == ["S2"]:
            raise KeyboardInterrupt
        fitted.append(subject)
        return original(encoder, source, subject, *rest)

    original = transfer.fit
    monkeypatch.setattr(transfer, "fit", fit)
    call = (trained, crowd, tmp_path / "new", ["S2", "S1"], "ours", 12, QUICK)
    with pytest.raises(KeyboardInterrupt):
        transfers.transfer(*call)
    assert not (tmp_path / "new" / checkpoint.CONFIG).exists()
    fitted.clear()
    with pytest.raises(UbrainError, match=r"other settings \(images was 12, is 13\)"):
        transfers.transfer(*call[:5], 13, QUICK)
    transfers.transfer(*call)
    assert fitted == ["S1"]
    whole = tmp_path / "whole"
    monkeypatch.setattr(transfer, "fit", original)
    transfers.transfer(trained, crowd, whole, *call[3:])
    for name in (checkpoint.WEIGHTS, checkpoint.READOUT):
        assert (whole / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": ["S9"]}, "no subject 'S9'"),
        ({"method": "magic"}, "unknown method 'magic': expected one of ours, matching, gradient"),
        ({"n_images": 9}, "9 train and val images with responses are too few.*at least 10"),
        ({"n_images": 4000}, "has 40 train and val images, 4000 were asked for"),
    ],
)
def test_what_cannot_be_transferred_is_refused(trained, crowd, tmp_path, change, message):
    with pytest.raises(UbrainError, match=message):
        transfers.transfer(
            trained, crowd, tmp_path / "new", **{"subjects": ["S2"], "config": QUICK, **change}
        )
    assert not (tmp_path / "new" / checkpoint.CONFIG).exists()


def test_a_transfer_within_a_crowd_file_keeps_its_splits(trained, small_crowd, tmp_path):
    path, folder = tmp_path / "crowd.h5", tmp_path / "trained"
    shutil.copy(small_crowd, path)
    with h5py.File(path, "r+") as file:
        split = file["images/split"][:]
        for name, shift in (("a", 1), ("b", 2)):
            file[f"images/schemes/{name}"] = np.roll(split, shift)
    with Crowd(path) as crowd:
        a, b = map(crowd.with_scheme, crowd.schemes)
        known = checkpoint.describe(trained).facts["settings"]
        settings = {**known, "crowd": a.fingerprint, "split_scheme": "a"}
        checkpoint.save(checkpoint.load(trained), folder, like=trained, settings=settings)
        for other in (crowd, b):
            with pytest.raises(UbrainError, match="with the splits of scheme 'a'; transfer with"):
                transfers.transfer(folder, other, tmp_path / "new", ["S2"], config=QUICK)
        with pytest.raises(UbrainError, match="was trained on subject 'S1' of this crowd file"):
            transfers.transfer(folder, a, tmp_path / "new", ["S1"], config=QUICK)
        transfers.transfer(folder, a, tmp_path / "new", ["S2"], config=QUICK)
    facts = checkpoint.describe(tmp_path / "new").facts
    assert facts["transfer"]["split_scheme"] == facts["settings"]["split_scheme"] == "a"


def test_another_backbone_is_refused(encoder):
    with pytest.raises(
        UbrainError, match=r"widths \(6, 8\) with 9 tokens, the backbone gives \(6, 4\) with 9"
    ):
        transfer.Head(encoder, Tokens(replace(SIZES, widths=(6, 4))), np.arange(3))


def test_an_encoder_without_voxels_can_only_be_used_by_gradient(trained, crowd, tmp_path):
    hub.drop(trained, ["S1"], tmp_path / "shared")
    with pytest.raises(UbrainError, match=r"no voxels to match with.*'gradient' instead of 'ours'"):
        transfers.transfer(tmp_path / "shared", crowd, tmp_path / "new", ["S2"], config=QUICK)
    transfers.transfer(
        tmp_path / "shared",
        crowd,
        tmp_path / "new",
        ["S2"],
        "gradient",
        config=replace(QUICK, min_steps=3),
    )


def test_another_transfer_in_the_folder_is_not_overwritten(trained, crowd, tmp_path):
    for _ in range(2):
        transfers.transfer(trained, crowd, tmp_path / "new", ["S2"], "matching", config=QUICK)
    with pytest.raises(UbrainError, match="another encoder, or a transfer with other settings"):
        transfers.transfer(
            trained, crowd, tmp_path / "new", ["S2"], "matching", config=QUICK, seed=1
        )
    with pytest.raises(UbrainError, match="transferred from"):
        transfers.transfer(trained, crowd, trained, ["S2"], config=QUICK)


def test_the_command_transfers_and_its_result_predicts(trained, small_crowd, tmp_path, run_cli):
    assert "--checkpoint" in run_cli("transfer", "--help").stdout
    done = run_cli(
        "transfer",
        "--checkpoint",
        trained,
        "--crowd",
        small_crowd,
        "--out",
        tmp_path / "new",
        "--subjects",
        "S2",
        "--images",
        20,
        "--profile",
        "smoke",
        "--method",
        "matching",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "S2" in done.stdout
    np.save(tmp_path / "images.npy", np.zeros((2, 16, 16, 3), np.uint8))
    done = run_cli(
        "predict",
        "--checkpoint",
        tmp_path / "new",
        "--images",
        tmp_path / "images.npy",
        "--subject",
        "S2",
        "--out",
        tmp_path / "p.npz",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
