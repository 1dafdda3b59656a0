"""The bench measures what it says; its times are not tested."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench
from ubrain import cli, kernels
from ubrain.errors import UbrainError

TINY = bench.Sizes(
    images=3, voxels=12, crowd=40, tokens=9, width=8, levels=2, embedding_size=6, channels=4
)


@pytest.fixture(scope="module")
def found():
    return bench.bench(TINY, rounds=2, device="cpu")


def test_ratios_are_named_as_promised_and_come_from_the_rounds(found):
    assert {"train_fp32", "train_bf16", "predict_fp32", "memory"} <= found["ratios"].keys()
    pairs = zip(found["rounds"]["train reference"], found["rounds"]["train fp32"], strict=True)
    low, high = sorted(a / b for a, b in pairs)
    assert low <= found["ratios"]["train_fp32"] <= high
    extra = found["extra_bytes"]
    assert found["ratios"]["memory"] == extra["train fp32"] / extra["train reference"]


def test_the_table_and_the_file_hold_every_number(found, tmp_path):
    text = bench.table(found)
    for name in found["seconds"]:
        assert name in text
    bench.write_json(found, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(found))


def test_shares_of_time_add_up(found):
    for shares in found["where"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["matrix products"] > 0


@pytest.mark.parametrize(("seconds", "largest"), [(1e-3, 2048), (10.0, 256)])
def test_the_limit_is_found_in_bounded_time_where_products_are_slow(monkeypatch, seconds, largest):
    sizes = []
    monkeypatch.setattr(bench, "_time", lambda work, device: sizes.append(len(work())) or seconds)
    rate = bench._matrix_product(torch.device("cpu"), "fp32")
    assert max(sizes) == largest
    assert rate == pytest.approx(2 * largest**3 / seconds / 1e9)


@pytest.mark.parametrize(("train", "keep"), [(False, 0), (True, 0), (True, 1 << 20)])
def test_multiply_adds_are_those_that_happen(monkeypatch, train, keep):
    monkeypatch.setattr(kernels, "KEEP", keep)
    sizes = replace(TINY, images=4, voxels=64)
    setup = bench.Setup(sizes, torch.device("cpu"))
    setup.prepare()
    terms = [
        t._replace(**{k: v.clone().requires_grad_(train) for k, v in t._asdict().items()})
        for t in setup.terms
    ]
    setup.encoder.train(train)
    in_place = {
        torch.ops.aten.baddbmm_: lambda _, a, b, **rest: 2 * a[0] * a[1] * a[2] * b[2]
    }  # torch does not count it
    with FlopCounterMode(display=False, custom_mapping=in_place) as head:
        out = kernels.respond(setup.encoder, setup.encoder.project(setup.tokens), terms)
        if train:
            out.sum().backward()
    with FlopCounterMode(display=False) as tokens_only:
        for x in setup.encoder.project(setup.tokens):
            if train:
                x.sum().backward()
    counted = (head.get_total_flops() - tokens_only.get_total_flops()) / 2
    assert counted / (4 * 64) == pytest.approx(sizes.multiply_adds(train), rel=0.02)


def flops(voxels, work):
    setup = bench.Setup(bench.Sizes(images=1, voxels=voxels, crowd=voxels), torch.device("cpu"))
    setup.prepare()
    setup.encoder.requires_grad_(False)  # the counter's hooks want a graph, prediction has none
    with FlopCounterMode(display=False) as counter:
        work(setup)
    return counter.get_total_flops() / 2


def test_the_formulas_as_they_read_need_the_arithmetic_that_the_design_note_says():
    more = [
        flops(60, work) - flops(20, work)
        for work in (bench.Setup.predict_reference, bench.Setup.predict)
    ]
    assert more[0] / 40 == pytest.approx(1.64e6, rel=0.01)
    assert more[1] / 40 == pytest.approx(0.66e6, rel=0.01)
    assert more[1] / 40 == bench.Sizes().multiply_adds(train=False)


def test_without_a_checkout_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("ubrain.paths.project_root", lambda: tmp_path)
    with pytest.raises(UbrainError, match="run this in a checkout"):
        cli.run_bench()
