"""The benchmarks measure what they say; their times are not tested."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench, gpu
from ubrain import cli, kernels
from ubrain.crowd import Crowd
from ubrain.errors import UbrainError

TINY = bench.Sizes(
    3, 12, 40, 9, (8, 8), 6, 4, replace(bench.CNN, levels=(1,), image_size=32, grid=2), 2
)


@pytest.fixture(scope="module")
def found():
    return bench.bench(TINY, rounds=2, device="cpu")


def test_every_form_is_compared_with_the_reference_within_its_round(found):
    rows = {(r["form"], r["work"], r["precision"]): r for r in found["head"]}
    assert len(rows) == 2 * 2 * 2
    for (form, work, precision), row in rows.items():
        reference = rows["reference", work, precision]
        pairs = zip(reference["rounds"], row["rounds"], strict=True)
        low, high = sorted(a / b for a, b in pairs)
        assert low <= row["times_faster"] <= high
        assert row["pairs_per_second"] == pytest.approx(3 * 12 / row["seconds"])
        assert form != "reference" or row["times_faster"] == 1


def test_parts_of_a_step_are_the_step(found):
    (parts,) = found["step"].values()
    whole = parts.pop("in all")
    assert {"backbone, forward", "head, forward", "head, backward"} <= parts.keys()
    assert 0 < sum(parts.values()) < 2 * whole  # medians need not add up


def test_the_table_and_the_file_hold_every_number(found, tmp_path):
    text = bench.table(found)
    for row in found["head"]:
        assert f"{row['work']}, {row['precision']}, {row['form']}" in text
    bench.write_json(found, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(found))


def test_a_busy_machine_is_warned_of(found):
    busy = found | {"others": {"cores": 0.6, "names": ["cc1plus"]}}
    assert "cc1plus" in bench.table(busy)
    assert "WARNING" in bench.table(busy)
    assert "WARNING" not in bench.table(found | {"others": {"cores": 0.1, "names": []}})


def test_what_others_compute_is_seen_even_if_they_have_ended(monkeypatch):
    times = iter([{7: ("cc1plus", 1.0), 8: ("idle", 5.0)}, {7: ("cc1plus", 9.0), 8: ("idle", 5.0)}])
    busy = iter([100.0, 1e6])
    monkeypatch.setattr(bench, "_processes", lambda: next(times))
    monkeypatch.setattr(bench, "_busy_seconds", lambda: next(busy))
    with bench.watched() as others:
        pass
    assert others["names"] == ["cc1plus"]
    assert others["cores"] > 1


def test_the_crowd_of_the_bench_is_one(tmp_path):
    bench.write_crowd(tmp_path / "crowd.h5", {"S1": 7, "S2": 5}, 20, pixels=16)
    with Crowd(tmp_path / "crowd.h5") as crowd:
        assert crowd.subjects == ["S1", "S2"]
        assert crowd["S2"].responses("val").shape == (2, 5)
        assert np.stack(crowd.pixels(np.arange(20))).shape == (20, 16, 16, 3)


@pytest.mark.parametrize(("seconds", "largest"), [(1e-3, 2048), (10.0, 256)])
def test_the_limit_is_found_in_bounded_time_where_products_are_slow(monkeypatch, seconds, largest):
    sizes = []
    monkeypatch.setattr(bench, "timed", lambda work, device: sizes.append(len(work())) or seconds)
    rate = bench.matrix_product(torch.device("cpu"), "fp32")
    assert max(sizes) == largest
    assert rate == pytest.approx(2 * largest**3 / seconds / 1e9)


@pytest.mark.parametrize("train", [False, True])
def test_multiply_adds_are_those_that_happen_where_nothing_is_computed_twice(monkeypatch, train):
    monkeypatch.setattr(kernels, "KEEP", 1 << 40)
    setup = bench.Setup(replace(TINY, images=4, voxels=64), torch.device("cpu"))
    terms = [
        kernels.VoxelTerms(*(t.detach().requires_grad_(train) for t in terms))
        for terms in kernels.voxel_terms(setup.encoder, setup.encoder.subject("S"))
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
    assert counted / (4 * 64) == pytest.approx(setup.sizes.multiply_adds(train), rel=0.02)


def flops(voxels, form):
    sizes = replace(bench.PAPER, images=1, voxels=voxels)
    setup = bench.Setup(sizes, torch.device("cpu"))
    setup.encoder.eval().requires_grad_(False)  # the counter's hooks want a graph
    if form == "ours":
        setup.ours()  # prepared once
    with FlopCounterMode(display=False) as counter:
        getattr(setup, form)()
    return counter.get_total_flops() / 2


def test_the_formulas_as_they_read_need_the_arithmetic_that_the_design_note_says():
    reference, ours = ((flops(60, f) - flops(20, f)) / 40 for f in ("reference", "ours"))
    assert reference == pytest.approx(1.64e6, rel=0.01)
    assert ours == pytest.approx(0.66e6, rel=0.01)
    assert ours == bench.PAPER.multiply_adds(training=False)


def test_without_a_checkout_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("ubrain.paths.project_root", lambda: tmp_path)
    with pytest.raises(UbrainError, match="run this in a checkout"):
        cli.run_bench()


def test_the_script_for_a_card_runs_every_section_without_one(tmp_path):
    script, out = Path(bench.__file__).with_name("gpu.py"), tmp_path / "gpu.json"
    command = [sys.executable, script, "--out", out, "--tiny", "--device", "cpu"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    sections = json.loads(out.read_text())["sections"]
    assert list(sections) == [section.__name__ for section in gpu.SECTIONS]
    assert "error" not in out.read_text()
    differences = sections["head"]["largest difference from plain, in fp32, in standard deviations"]
    assert len(differences) == 6
    assert max(differences.values()) < 1e-4
    assert sections["card"]["card"] == sections["whole_step"]["no adapters"]["busy_share"]
