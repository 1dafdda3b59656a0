"""The optimiser of the embeddings against dense Adam."""

import pytest
import torch

from ubrain import optim
from ubrain.errors import UbrainError
from ubrain.optim import EmbeddingAdam, Rate


def train_both(amsgrad, epochs, steps, dtype=torch.float64):
    """The same draws and gradients through dense Adam and through ours: (dense, ours)."""
    torch.manual_seed(0)
    start = torch.randn(40, 8, dtype=dtype)
    target, scale = torch.randn(40, 8, dtype=dtype), torch.rand(40, 1, dtype=dtype) * 10
    dense = start.clone().requires_grad_()
    adam = torch.optim.Adam([dense], lr=0.05, amsgrad=amsgrad)
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, 0.05, total_steps=epochs * steps + 1)
    ours = EmbeddingAdam(start.clone(), amsgrad)
    seen = []
    for _ in range(epochs):
        draws = [torch.randperm(40)[:7] for _ in range(steps)]
        noise = [torch.randn(7, 8, dtype=dtype) for _ in range(steps)]
        plan = []
        for rows, n in zip(draws, noise, strict=True):
            group = adam.param_groups[0]
            plan.append(Rate(group["lr"], group["betas"][0]))
            gradient = torch.zeros_like(dense)
            gradient[rows] = scale[rows] * (dense.detach()[rows] - target[rows] + n)
            seen.append(dense.detach()[rows].clone())
            dense.grad = gradient
            adam.step()
            rates.step()
        ours.plan(plan)
        for rows, n in zip(draws, noise, strict=True):
            values = ours.read(rows)
            torch.testing.assert_close(values, seen.pop(0), rtol=1e-5, atol=1e-5)
            ours.step(rows, values, scale[rows] * (values - target[rows] + n))
    return dense.detach(), ours


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (5, 30), (1, 600)])
def test_every_read_and_the_result_are_those_of_dense_adam(amsgrad, epochs, steps):
    dense, ours = train_both(amsgrad, epochs, steps)
    torch.testing.assert_close(ours.embeddings, dense, rtol=1e-6, atol=1e-6)
    assert (dense.std(0) > 0.1).all()


def test_single_precision_follows_too():
    dense, ours = train_both(False, 3, 40, torch.float32)
    torch.testing.assert_close(ours.embeddings, dense, rtol=1e-4, atol=1e-4)


def test_rows_that_are_never_drawn_stay():
    ours = EmbeddingAdam(torch.ones(5, 3))
    ours.plan([Rate(0.1)] * 4)
    for _ in range(4):
        values = ours.read(torch.tensor([1, 3]))
        ours.step(torch.tensor([1, 3]), values, values)
    assert (ours.embeddings[[0, 2, 4]] == 1).all()
    assert (ours.embeddings[[1, 3]] < 1).all()


@pytest.mark.parametrize(("amsgrad", "rows"), [(False, 3), (True, 4)])
def test_memory_is_three_or_four_times_the_embeddings(amsgrad, rows):
    ours = EmbeddingAdam(torch.zeros(100, 256), amsgrad)
    held = [t for t in vars(ours).values() if isinstance(t, torch.Tensor)] + list(
        ours.moments.values()
    )
    assert sum(t.nbytes for t in held) == rows * 100 * 256 * 4


def test_a_step_does_not_touch_other_rows():
    ours = EmbeddingAdam(torch.randn(50, 4))
    ours.plan([Rate(0.1)] * 3)
    before = ours.embeddings.clone()
    rows = torch.tensor([7, 8])
    ours.step(rows, ours.read(rows), torch.ones(2, 4))
    changed = (ours.embeddings != before).any(1)
    assert changed.nonzero().flatten().tolist() == [7, 8]


def test_planned_steps_that_were_not_made_are_an_error():
    ours = EmbeddingAdam(torch.zeros(2, 2))
    ours.plan([Rate(0.1)] * 2)
    with pytest.raises(UbrainError, match="2 planned steps were not made"):
        ours.plan([Rate(0.1)])


def test_planning_needs_no_second_copy_of_the_embeddings(monkeypatch):
    largest = []
    ratio = EmbeddingAdam._ratio
    monkeypatch.setattr(
        EmbeddingAdam, "_ratio", lambda self, m: largest.append(len(m["m"])) or ratio(self, m)
    )
    ours = EmbeddingAdam(torch.zeros(10_000, 4))
    ours.plan([Rate(0.1)])
    assert max(largest) <= 4096
    assert sum(largest) == 10_000


@pytest.mark.parametrize("amsgrad", [False, True])
def test_coasting_through_steps_without_a_draw_is_dense_adam_over_all_steps(amsgrad, monkeypatch):
    """Two subjects take turns at random; both move in all 600 steps. Without ε, to rounding."""
    monkeypatch.setattr(optim, "EPSILON", 1e-30)
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(2, 20, 4, generator=draw, dtype=torch.float64)
    dense = start.clone().requires_grad_()
    adam = torch.optim.Adam([dense], lr=0.05, amsgrad=amsgrad, eps=1e-30)
    ours = [EmbeddingAdam(part.clone(), amsgrad) for part in start]
    for each in ours:
        each.plan([Rate(0.05)] * 600)
    for _ in range(600):
        who = int(torch.randint(2, (), generator=draw))
        rows = torch.randperm(20, generator=draw)[:3]
        values = ours[who].read(rows)
        torch.testing.assert_close(values, dense.detach()[who, rows], rtol=1e-9, atol=1e-9)
        gradient = values + torch.randn(3, 4, generator=draw, dtype=torch.float64)
        dense.grad = torch.zeros_like(dense)
        dense.grad[who, rows] = gradient
        adam.step()
        ours[who].step(rows, values, gradient)
        ours[1 - who].coast()
    together = torch.stack([each.embeddings for each in ours])
    torch.testing.assert_close(together, dense.detach(), rtol=1e-9, atol=1e-9)
