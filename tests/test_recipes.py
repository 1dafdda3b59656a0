"""Recipes: the released one against a literal rewriting of its loop, and what a profile makes of
them.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from ubrain import config, optim, train, transfer
from ubrain.backbone import Backbone, smoothed
from ubrain.batches import Plan
from ubrain.config import EncoderConfig, TrainingConfig, TransferConfig
from ubrain.errors import UbrainError
from ubrain.model import UniversalEncoder

WIDTHS, TOKENS, IMAGES = (6, 5), 4, 40
ENCODER = EncoderConfig(WIDTHS, TOKENS, embedding_size=8, channels=6, dropout=0.0)
# 25 steps an epoch, of mixed images; the released code's own choices but for the sizes
TRAINING = TrainingConfig(epochs=2, batch_images=4, voxels_per_step=7, device="cpu")
VOXELS = {"A": 12, "B": 5, "C": 9}


class Crowd(dict):
    """Subjects with random responses to the same images."""

    fingerprint, scheme, subjects = "tiny", "", list(VOXELS)


@pytest.fixture
def source(monkeypatch):
    """A crowd of three in double precision, of which nobody reads anything from a disk."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    rng, crowd = np.random.default_rng(0), Crowd()
    for i, (name, n_voxels) in enumerate(VOXELS.items()):
        rows = np.arange(IMAGES)
        splits = {"train": rows[: 35 - 5 * (i % 2)], "val": rows[35:]}
        values = rng.normal(size=(IMAGES, n_voxels))

        def responses_to(some, voxels=slice(None), values=values):
            return values[some][:, voxels]

        crowd[name] = SimpleNamespace(
            name=name,
            n_voxels=n_voxels,
            dataset="",
            scanner="",
            space="",
            image_rows=splits.get,
            responses_to=responses_to,
            voxels=None,
        )
    tokens = torch.from_numpy(rng.normal(size=(IMAGES, TOKENS, sum(WIDTHS))))

    def ready(read, shift=0):
        shifts.append(shift)
        return read

    def levels(read):
        return list(read.split(WIDTHS, 2))

    shifts = []
    yield SimpleNamespace(
        crowd=crowd,
        features=None,
        shifts=shifts,
        tokens=lambda rows, device, shift=0: levels(ready(tokens[rows], shift)),
        widths=WIDTHS,
        n_tokens=TOKENS,
        config=config.BackboneConfig(adapter_rank=0),
        backbone=None,
        images=None,
        adapters=None,
        read=lambda rows: tokens[rows],
        levels=levels,
        ready=ready,
    )
    torch.set_default_dtype(torch.float32)


def released(source, steps, eps):
    """The released loop: dense Adam on one table of all voxels, the encoder as its formulas read.

    Returns the encoder, and the embeddings of each subject after the steps.
    """
    torch.manual_seed(0)
    encoder = UniversalEncoder(ENCODER, VOXELS)
    encoder.fast = False
    first = dict(zip(VOXELS, np.cumsum([0, *VOXELS.values()]), strict=False))
    table = torch.nn.Parameter(torch.cat(list(encoder.embeddings.values())).detach())
    groups = [{"params": encoder.shared_parameters()}, {"params": [table], "eps": eps}]
    adam = torch.optim.Adam(groups, lr=1e-3, amsgrad=True)
    for step in steps:
        predicted, measured = [], []
        for name, row, voxels in step:
            e = table[first[name] + torch.from_numpy(voxels)]
            predicted.append(encoder(source.levels(source.read([row])), e))
            measured.append(torch.from_numpy(source.crowd[name].responses_to([row], voxels)))
        p, m = torch.cat(predicted), torch.cat(measured)
        loss = F.mse_loss(p, m) - 0.1 * F.cosine_similarity(p, m, dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return encoder, dict(zip(VOXELS, table.detach().split([*VOXELS.values()]), strict=True))


@pytest.mark.parametrize(("eps", "tolerance"), [(1e-30, 1e-9), (optim.EPSILON, 1e-3)])
def test_recipe_paper_is_the_released_loop(source, monkeypatch, eps, tolerance):
    """After 50 steps, as a share of how far a weight has moved; ε alone is added elsewhere."""
    monkeypatch.setattr(optim, "EPSILON", eps)
    plan = Plan(source.crowd, tuple(VOXELS), TRAINING, 0)
    steps = [
        [
            (batch.subject, row, voxels)
            for batch in step
            for row, voxels in zip(batch.rows, batch.voxels, strict=True)
        ]
        for epoch in range(2)
        for step in plan.steps(epoch)
    ]
    assert len(steps) == 50
    assert any(len({name for name, *_ in step}) == 3 for step in steps)
    assert any(len({name for name, *_ in step}) < 3 for step in steps)  # somebody coasts
    assert any(len(set(voxels)) < len(voxels) for step in steps for *_, voxels in step)
    theirs, table = released(source, steps, eps)
    last = {}
    monkeypatch.setattr(train.Trainee, "finish", lambda self, *_: last.update(vars(self)))
    train.fit(source, list(VOXELS), ENCODER, TRAINING)
    torch.manual_seed(0)
    start = UniversalEncoder(ENCODER, VOXELS)
    for name, before in start.named_parameters():
        subject = name.removeprefix("embeddings.")
        expected = table[subject] if subject in table else theirs.get_parameter(name).detach()
        moved = float((expected - before.detach()).norm())
        away = float((last["encoder"].get_parameter(name).detach() - expected).norm())
        assert away <= tolerance * moved + 1e-11, name  # the bias of keys has no gradient


def test_pooled_validation_correlates_columns_whatever_the_subject(source, monkeypatch):
    plan = Plan(source.crowd, tuple(VOXELS), TRAINING, 0)
    last = {}
    monkeypatch.setattr(
        train.Trainee, "finish", lambda self, state, _: last.update(vars(self), state=state)
    )
    train.fit(source, list(VOXELS), ENCODER, replace(TRAINING, epochs=1))
    encoder, state = last["encoder"].eval(), last["state"]
    predicted, measured = [], []
    for name in VOXELS:
        s, voxels = source.crowd[name], plan.val_voxels(name)
        rows = s.image_rows("val")
        assert voxels.shape == (len(rows), 7)
        with torch.no_grad():
            all_voxels = encoder(source.levels(source.read(rows)), name).numpy()
        for i, row in enumerate(rows):
            predicted.append(all_voxels[i, voxels[i]])
            measured.append(s.responses_to([row], voxels[i])[0])
    columns = zip(np.array(predicted).T, np.array(measured).T, strict=True)
    r = [np.corrcoef(p, m)[0, 1] for p, m in columns]
    assert state.history[-1]["val_r75"] == pytest.approx(np.percentile(r, 75), abs=1e-6)


def test_the_column_paper_is_the_default_of_every_option():
    paper, profile = config.recipes()["paper"], config.Profile()
    for section, options in paper.items():
        for name, value in options.items():
            assert getattr(getattr(profile, section), name) == value, name
    ours = config.recipes()["ours"]
    assert {s: set(options) for s, options in ours.items()} == {s: set(o) for s, o in paper.items()}


def test_a_profile_keeps_its_own_options_and_another_recipe_takes_their_place():
    smoke, other = config.load_profile("smoke"), config.load_profile("smoke", "paper")
    assert (smoke.recipe, smoke.training.schedule, smoke.training.learning_rate) == (
        "ours",
        "one-cycle",
        0.003,
    )
    assert (other.recipe, other.training.schedule, other.training.learning_rate) == (
        "paper",
        "plateau",
        0.001,
    )
    assert other.training.batch_images == smoke.training.batch_images == 16  # a size stays
    assert config.load_profile("fast").training.batches == "one-subject"
    assert config.load_profile("paper").training == TrainingConfig(precision="bf16")
    with pytest.raises(UbrainError, match="unknown recipe 'hers': expected one of ours, paper"):
        config.load_profile("fast", "hers")


def test_what_was_made_before_an_option_has_the_same_settings():
    ours = config.load_profile("fast")
    for part in (ours.encoder, ours.training, ours.backbone):
        told = config.as_settings(part)
        assert not set(told) & set(config.BEFORE)
        assert config.from_settings(type(part), told, "here") == part
    assert set(config.BEFORE) <= {
        name
        for part in (EncoderConfig(), TrainingConfig(), config.BackboneConfig())
        for name in config.as_settings(part)
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": "some"}, "unknown batches 'some': expected one of mixed, one-subject"),
        ({"voxel_draws": "all"}, "unknown voxel_draws 'all': expected one of per-image, shared"),
        ({"embedding_steps": ""}, "unknown embedding_steps '': expected one of all, own"),
        ({"validation": "r"}, "unknown validation 'r': expected one of pooled, by-subject"),
        ({"batches_per_step": 2}, "only with batches 'one-subject' and embedding_steps 'own'"),
    ],
)
def test_unknown_choices_are_refused(source, change, message):
    with pytest.raises(UbrainError, match=message):
        train.fit(source, list(VOXELS), ENCODER, replace(TRAINING, **change))


def test_transfer_as_released_keeps_the_epoch_that_is_best_on_the_val_images(source):
    torch.manual_seed(1)
    encoder = UniversalEncoder(replace(ENCODER, embedding_scale=9.0), {"A": 12})
    settings = TransferConfig(epochs=6, batch_images=8, voxels_per_step=4, learning_rate=0.05)
    few = transfer.Newcomer.of(encoder, source, "C", np.arange(20, 40), settings, seed=2)
    found = few.fit("gradient")
    assert {shift for shift in source.shifts if shift} == {3}

    subject, fitted, val = source.crowd["C"], np.arange(20, 35), np.arange(35, 40)
    torch.manual_seed(2)
    e = torch.nn.Parameter(encoder.embedding_std * torch.randn(9, 8))
    adam, rng = torch.optim.Adam([e], lr=0.05, amsgrad=True), np.random.default_rng(2)
    scores, ends = [], []
    for _ in range(6):
        order = rng.permutation(15)
        for part in (order[:8], order[8:]):
            images = fitted[part]
            losses = []
            for some in (slice(0, 4), slice(4, 8), slice(8, 9)):
                p = encoder(source.tokens(images, None), e[some])
                m = torch.from_numpy(subject.responses_to(images, some))
                cosine = F.cosine_similarity(p, m, dim=1).mean()
                losses.append(F.mse_loss(p, m) - 0.1 * cosine)
            adam.zero_grad()
            sum(losses).backward()
            adam.step()
        p = encoder(source.tokens(val, None), e).detach().numpy()
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, subject.responses_to(val).T, strict=True)]
        scores.append(np.percentile(r, 75))
        ends.append(e.detach().clone())
    best = int(np.argmax(scores))
    assert found.chosen == f"epoch {best + 1} of 6"
    assert found.validation == pytest.approx(scores[best], abs=1e-5)
    torch.testing.assert_close(found.embeddings, ends[best], rtol=1e-5, atol=1e-6)


def test_transfer_as_released_needs_val_images(source):
    encoder = UniversalEncoder(ENCODER, {"A": 12})
    source.crowd["C"].image_rows = {"val": np.arange(36, 40)}.get
    few = transfer.Newcomer.of(encoder, source, "C", np.arange(20), TransferConfig())
    with pytest.raises(UbrainError, match="subject 'C': 4 val images and 20 others are too few"):
        few.fit("gradient")


@pytest.mark.parametrize("size", [(425, 425), (97, 230), (224, 300)])
def test_images_are_resized_as_scikit_image_does(size):
    """Which filters by these very two functions of scipy."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    small = (96, 112)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    found = smoothed(images, small)[0].permute(1, 2, 0).numpy()
    sigma = [max(0, (old / new - 1) / 2) for old, new in zip(size, small, strict=True)]
    smooth = ndimage.gaussian_filter(pixels / 255, (*sigma, 0), mode="mirror", truncate=4)
    zoom = [new / old for old, new in zip(size, small, strict=True)]
    expected = ndimage.zoom(smooth, (*zoom, 1), order=1, mode="mirror", grid_mode=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    try:
        from skimage.transform import resize
    except ImportError:
        return
    np.testing.assert_allclose(found, resize(pixels, small), atol=1e-6)


def test_the_backbone_gets_whole_grey_values():
    torch.manual_seed(0)
    pixels = [np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)]
    sizes = {"levels": (1,), "image_size": 32, "weights": "random", "adapter_rank": 0}
    made = Backbone(config.BackboneConfig("vit_tiny_patch16_224", **sizes)).resize(pixels)
    torch.testing.assert_close((made * 255).round(), made * 255)
    with pytest.raises(UbrainError, match="unknown resize 'best'; expected one of gaussian"):
        Backbone(config.BackboneConfig("vit_tiny_patch16_224", resize="best"))
