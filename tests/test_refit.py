"""Subjects refitted: from the others and from their own responses, chosen on val images only."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ubrain import checkpoint, scores, transfer
from ubrain.config import BackboneConfig, EncoderConfig, TransferConfig
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError
from ubrain.exchange import transfers
from ubrain.features import Features
from ubrain.model import UniversalEncoder
from ubrain.paths import cache_root

SIZES = EncoderConfig(widths=(6, 8), n_tokens=9, embedding_size=8, channels=8, embedding_scale=6.0)
QUICK = TransferConfig(temperatures=(0.1, 1.0), pulls=(1.0, 10.0), steps=1)
ROWS = {"train": np.arange(5, 65), "val": np.arange(65, 125, 2), "test": np.arange(200, 300)}
VOXELS = 12


class Source:
    """Random tokens, and a subject S2 whose voxels are like the first ones of S1, with noise."""

    def __init__(self, encoder):
        draw = torch.Generator().manual_seed(1)
        shapes = [(300, SIZES.n_tokens, width) for width in SIZES.widths]
        self.levels = [torch.randn(shape, generator=draw) for shape in shapes]
        self.widths, self.n_tokens = SIZES.widths, SIZES.n_tokens
        head = transfer.Head(encoder, self, np.arange(300))
        self.true = head.respond(encoder.subject("S1").detach()[:VOXELS]).numpy()
        self.true = (self.true - self.true.mean(0)) / self.true.std(0)
        noise = np.random.default_rng(0).standard_normal(self.true.shape)
        self.measured = (self.true + noise).astype(np.float32)
        subject = SimpleNamespace(image_rows=ROWS.get, responses_to=self.responses_to)
        self.crowd = {"S2": subject}

    def responses_to(self, rows, voxels=slice(None)):
        return self.measured[rows][:, voxels]

    def tokens(self, rows, device):
        return [level[torch.from_numpy(rows)] for level in self.levels]


@pytest.fixture
def encoder():
    """S2 was trained to nothing."""
    torch.manual_seed(0)
    encoder = UniversalEncoder(SIZES, {"S1": 40, "S2": VOXELS}).eval()
    encoder.subject("S2").data.fill_(torch.nan)
    return encoder


def test_a_subject_is_refitted_from_the_others_and_its_own_responses(encoder):
    source = Source(encoder)
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    fitted = transfer.fit(encoder, source, "S2", method="refit", config=QUICK)
    predicted = fitted.respond(transfer.Head(encoder, source, ROWS["test"])).numpy()
    assert np.median(scores.correlation(predicted, source.true[ROWS["test"]])) > 0.9
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_settings_are_chosen_on_val_images_only(encoder, monkeypatch):
    source, seen = Source(encoder), []
    monkeypatch.setattr(transfer.Newcomer, "fit", lambda self, method: seen.append(self))
    transfer.fit(encoder, source, "S2", method="refit", config=QUICK)
    (member,) = seen
    ((fitted, held),) = member.folds()
    rows = np.sort(np.concatenate([ROWS["train"], ROWS["val"]]))
    np.testing.assert_array_equal(rows[held], ROWS["val"])
    np.testing.assert_array_equal(rows[fitted], ROWS["train"])
    np.testing.assert_array_equal(member.responses.numpy(), source.measured[rows])
    torch.testing.assert_close(member.crowd, encoder.subject("S1").detach())


def test_nobody_is_refitted_alone(encoder):
    source = Source(encoder)
    encoder.drop_subject("S1")
    with pytest.raises(UbrainError, match="no voxels to match with"):
        transfer.fit(encoder, source, "S2", method="refit", config=QUICK)


@pytest.mark.parametrize("n_val", [0, 4, 90])
def test_a_refit_needs_val_images_and_others(encoder, monkeypatch, n_val):
    source = Source(encoder)
    rows = np.sort(np.concatenate([ROWS["train"], ROWS["val"]]))
    source.crowd["S2"].image_rows = {**ROWS, "val": rows[:n_val]}.get
    with pytest.raises(UbrainError, match=f"'S2': {n_val} of 90 images are val images; a refit"):
        transfer.fit(encoder, source, "S2", rows, "refit", QUICK)


def test_a_checkpoint_of_refitted_subjects(small_crowd, tmp_path):
    backbone = BackboneConfig(
        "tf_efficientnet_lite0", "random", (1, 3), 64, grid=4, keep_cls=False, adapter_rank=0
    )
    with Crowd(small_crowd) as crowd:
        features = Features(crowd, backbone, cache_root() / "features", "cpu")
        sizes = EncoderConfig(features.widths, features.n_tokens, embedding_size=8, channels=8)
        made = UniversalEncoder(sizes, {s: crowd[s].n_voxels for s in ("S1", "S2")})
        settings = {"backbone": asdict(backbone), "crowd": crowd.fingerprint}
        checkpoint.save(made, tmp_path / "trained", settings=settings)
        call = {"crowd": crowd, "method": "refit", "config": QUICK, "device": "cpu"}
        table = transfers.transfer(
            tmp_path / "trained", out=tmp_path / "new", subjects=["S2"], **call
        )
        assert table["subject"].tolist() == ["S2"]
        assert list(checkpoint.describe(tmp_path / "new").subjects) == ["S2"]
        before = made.subject("S2").detach()
        assert not torch.equal(checkpoint.load(tmp_path / "new").subject("S2"), before)
        checkpoint.save(made, tmp_path / "other", settings=settings | {"crowd": "another"})
        with pytest.raises(UbrainError, match="not trained on subject 'S2' of this crowd"):
            transfers.transfer(tmp_path / "other", out=tmp_path / "x", subjects=["S2"], **call)
