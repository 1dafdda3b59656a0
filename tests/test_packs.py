"""Packs: from one, nothing is trained; what is no pack of this version costs one sentence."""

import hashlib
import io
import json
import lzma
import shutil
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ubrain import checkpoint, paths, train
from ubrain.errors import UbrainError
from ubrain.report import packs
from ubrain.report.lab import SHIPPED, Lab, shipped_encoder

ROOT = Path(__file__).parent.parent
FILES = {
    "simulated-smoke-seed0-0123.h5": b"crowd" * 1000,
    "encoders/1-subjects-01/config.json": b"{}",
    "encoders/1-subjects-01/encoder.safetensors": b"weights",
    "encoders/1-subjects-01/voxels/S1.csv": b"areas",
    f"features/net-01/{'0' * 32}.json": b"[]",
    f"features/net-01/{'0' * 32}.bin": b"numbers",
    "kept/ridge-01.safetensors": b"fit",
}
RUN = {"run": "simulated-smoke", "suite": {}, "notebooks": []}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A pack of `FILES`, and an empty cache to put it into."""
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "there"))
    for name, content in FILES.items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(content)
    (tmp_path / "there" / "encoders/1-subjects-01/training").mkdir()  # no part of a pack
    (tmp_path / "there" / "encoders/1-subjects-01/training/state.json").touch()
    names = {n.split("/voxels")[0] if "encoders" in n else n for n in FILES}
    names = {str(Path(n).parent) if "1-subjects" in Path(n).parent.name else n for n in names}
    packs.write(tmp_path / "a.tar.xz", names, RUN)
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "here"))
    return tmp_path / "a.tar.xz"


def unpacked():
    files = (p for p in paths.cache_root().rglob("*") if p.is_file() and p.name != "lock")
    return {p.relative_to(paths.cache_root()).as_posix(): p.read_bytes() for p in files}


def repacked(path, change=None, members=None, kind=tarfile.REGTYPE):
    """Write a pack with a changed manifest, or with other content of some members."""
    with lzma.open(path) as stream, tarfile.open(fileobj=stream) as archive:
        held = {m.name: archive.extractfile(m).read() for m in archive}
    told = json.loads(held.pop(packs.MANIFEST))
    if change is not None:
        change(told)
    held |= members or {}
    with lzma.open(path, "wb", preset=0) as stream, tarfile.open(fileobj=stream, mode="w") as out:
        for name, content in {packs.MANIFEST: json.dumps(told).encode(), **held}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name in (members or {}):
                member.type, member.linkname = kind, "/etc/passwd"
            out.addfile(member, io.BytesIO(content))


def test_a_pack_holds_what_was_used_and_comes_back_as_it_was(made):
    packs.unpack(str(made), "smoke", 0)
    assert unpacked() == FILES
    mark = paths.cache_root() / "kept/ridge-01.safetensors"
    mark.write_bytes(b"mine")
    packs.unpack(str(made))
    assert mark.read_bytes() == b"mine"  # what is there stays


def test_the_same_files_give_the_same_pack(made, tmp_path, monkeypatch):
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "there"))
    packs.write(tmp_path / "b.tar.xz", {n for n in FILES if "encoders" not in n}, RUN)
    packs.write(tmp_path / "c.tar.xz", {n for n in FILES if "encoders" not in n}, RUN)
    assert (tmp_path / "b.tar.xz").read_bytes() == (tmp_path / "c.tar.xz").read_bytes()


def test_a_killed_unpacking_continues(made, monkeypatch):
    real, done = packs._copied, []

    def stops(content, to):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(to)
        return real(content, to)

    monkeypatch.setattr(packs, "_copied", stops)
    with pytest.raises(KeyboardInterrupt):
        packs.unpack(str(made))
    left = unpacked()
    assert 0 < len(left) < len(FILES)
    # a folder whose last file is there is whole
    assert not any(name.endswith(("config.json", ".bin")) for name in left)
    monkeypatch.setattr(packs, "_copied", real)
    packs.unpack(str(made))
    assert unpacked() == FILES


def other_format(told):
    told["format"] = "zip"


def other_version(told):
    told["versions"]["encoders"] += 1


def outside(told):
    told["files"]["../elsewhere.h5"] = [1, "0" * 64]


def unknown_place(told):
    told["files"]["notebooks/00.py"] = [1, "0" * 64]


def negative(told):
    told["files"]["kept/ridge-01.safetensors"][0] = -1


def too_large(told):
    told["files"]["kept/ridge-01.safetensors"][0] = 1 << 60


def one_more(told):
    told["files"]["kept/ridge-02.safetensors"] = [1, "0" * 64]


def no_files(told):
    told["files"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_format, "is no pack: its pack.json"),
        (other_version, "made by another version of ubrain"),
        (outside, "is no pack: its pack.json"),
        (unknown_place, "is no pack: its pack.json"),
        (negative, "is no pack: its pack.json"),
        (no_files, "is no pack: its pack.json"),
        (too_large, "are free in"),
        (one_more, r"damaged: kept/ridge-02.safetensors is missing"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused(made, change, message):
    repacked(made, change)
    with pytest.raises(UbrainError, match=message):
        packs.unpack(str(made))
    assert not (paths.cache_root().parent / "elsewhere.h5").exists()


@pytest.mark.parametrize(
    ("members", "kind", "message"),
    [
        ({"kept/ridge-01.safetensors": b"xxx"}, tarfile.REGTYPE, "has another checksum"),
        ({"kept/ridge-01.safetensors": b"longer"}, tarfile.REGTYPE, "is not as announced"),
        ({"kept/ridge-01.safetensors": b""}, tarfile.SYMTYPE, "is not as announced"),
        ({"kept/more-01.safetensors": b"more"}, tarfile.REGTYPE, "is not as announced"),
        ({"/elsewhere/more": b"more"}, tarfile.REGTYPE, "is not as announced"),
    ],
)
def test_content_that_was_not_announced_is_refused(made, members, kind, message):
    repacked(made, members=members, kind=kind)
    with pytest.raises(UbrainError, match=message):
        packs.unpack(str(made))
    assert unpacked().get("kept/ridge-01.safetensors", b"fit") == b"fit"


@pytest.mark.parametrize("content", [b"", b"no pack", lzma.compress(b"no tar" * 1000)])
def test_what_is_no_pack_is_refused(tmp_path, content):
    (tmp_path / "x.tar.xz").write_bytes(content)
    with pytest.raises(UbrainError, match=r"x\.tar\.xz is no pack"):
        packs.unpack(str(tmp_path / "x.tar.xz"))


def test_half_a_pack_is_refused(made):
    made.write_bytes(made.read_bytes()[:-40])
    with pytest.raises(UbrainError, match="get it again"):
        packs.unpack(str(made))


def test_a_pack_of_another_run_is_refused(made):
    with pytest.raises(UbrainError, match="holds the run simulated-smoke, not simulated-fast"):
        packs.unpack(str(made), "fast", 0)
    with pytest.raises(UbrainError, match="not simulated-smoke-seed3"):
        packs.unpack(str(made), "smoke", 3)


def test_where_a_pack_comes_from(made, tmp_path, monkeypatch):
    monkeypatch.delenv(packs.ADDRESS, raising=False)
    with pytest.raises(UbrainError, match="no pack is released yet: set UBRAIN_PACK_URL"):
        packs.unpack("release")
    with pytest.raises(UbrainError, match="cannot be unpacked: No such file"):
        packs.unpack(str(tmp_path / "missing.tar.xz"))
    with pytest.raises(UbrainError, match="ends in #sha256="):
        packs.unpack("https://example.org/pack.tar.xz")
    with pytest.raises(UbrainError, match="only https"):
        packs.unpack("http://example.org/pack.tar.xz#sha256=" + "0" * 64)
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    monkeypatch.setenv(packs.ADDRESS, f"https://example.org/a.tar.xz#sha256={digest}")
    monkeypatch.setattr("ubrain.data.fetch.download", lambda url, to, name: shutil.copy(made, to))
    packs.unpack("release")
    assert FILES.items() <= unpacked().items()


def test_a_place_that_cannot_be_written_is_found_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "run_notebooks", lambda *a, **k: pytest.fail("it ran"))
    (tmp_path / "file").touch()
    with pytest.raises(UbrainError, match="cannot be written"):
        packs.pack("00*", tmp_path / "file" / "a.tar.xz", "smoke")


class Steps:
    """How many optimiser steps were taken."""

    def __enter__(self):
        self.n = 0
        self.hook = register_optimizer_step_pre_hook(self.count)
        return self

    def count(self, *_):
        self.n += 1

    def __exit__(self, *_):
        self.hook.remove()


def run_here(source):
    """Execute a notebook's code in this process; returns what it recorded."""
    code = [c for c in jupytext.read(source).cells if c.cell_type == "code"]
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in code:
            exec(compile(cell.source, source.name, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names["profile"] = "smoke"
            plt.close("all")
    return names["lab"].records


@pytest.mark.parametrize("source", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem)
def test_from_a_pack_no_notebook_trains(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(source.parent)
    monkeypatch.setenv("UBRAIN_OUT", str(tmp_path / "out"))
    with Steps() as steps, packs.noting_use() as listing:
        expected = run_here(source)
        used = set(listing.read_text().split())
    if source.stem[:2] in ("03", "07", "08"):  # which nothing before has trained all of
        assert steps.n > 0
    packs.write(tmp_path / "a.tar.xz", used, RUN)
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path / "cache"))
    packs.unpack(str(tmp_path / "a.tar.xz"))
    with Steps() as steps:
        found = run_here(source)
    assert steps.n == 0
    for a, b in zip(found, expected, strict=True):
        assert (a.name, a.condition, a.subject) == (b.name, b.condition, b.subject)
        np.testing.assert_allclose(a.value, b.value, rtol=1e-6, equal_nan=True)


def test_the_shipped_encoder_is_the_one_that_the_profile_would_train():
    lab = Lab("98_test")
    settings = checkpoint.describe(SHIPPED).facts["settings"]
    assert settings["seed"] == 0
    training, backbone = lab.profile.training, lab.profile.backbone
    assert settings["training"] == json.loads(json.dumps(train.as_settings(training)))
    assert settings["backbone"] == json.loads(json.dumps(train.as_settings(backbone)))
    own = train.as_settings(lab.profile.encoder)
    assert {k: settings["encoder"][k] for k in own if k not in ("widths", "n_tokens")} == {
        k: v for k, v in json.loads(json.dumps(own)).items() if k not in ("widths", "n_tokens")
    }
    part = lab.profile.simulation[0]
    assert settings["subjects"] == [f"S{i + 1}" for i in range(part.subjects)]
    assert list(shipped_encoder().embeddings) == settings["subjects"]


def test_a_lab_takes_the_shipped_encoder_only_for_what_it_was_trained_on(lab, monkeypatch):
    monkeypatch.setattr(lab, "encoder", lambda subjects: "trained")
    assert lab.ready_encoder() == "trained"  # another profile
    ours = checkpoint.describe(SHIPPED)

    def described(folder):
        wanted = train.settings_of(
            lab.source,
            lab.subjects,
            replace(lab.profile.encoder, widths=lab.source.widths, n_tokens=lab.source.n_tokens),
            lab.profile.training,
            lab.seed,
        )
        return replace(ours, facts={"settings": {**wanted, "crowd": "elsewhere"}})

    monkeypatch.setattr(checkpoint, "describe", described)
    monkeypatch.setattr("ubrain.report.lab.shipped_encoder", lambda: "shipped")
    assert lab.ready_encoder() == "shipped"
    monkeypatch.setattr(lab, "is_default", False)
    assert lab.ready_encoder() == "trained"
