"""Encoders of strangers, damaged by accident or on purpose: each costs a sentence, or is taken.

`UBRAIN_FUZZ=1500` in the environment tries as many random damages instead of a few.
"""

import json
import os
import pickletools
import resource
import signal
import struct
import sys
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from ubrain import checkpoint
from ubrain.backbone import Backbone
from ubrain.config import BackboneConfig, EncoderConfig
from ubrain.errors import UbrainError
from ubrain.exchange import hub
from ubrain.exchange.readouts import load_readout
from ubrain.exchange.released import import_released, show
from ubrain.model import UniversalEncoder

MEMORY, SECONDS, CHARACTERS = 2 << 30, 30, 4000
E, C, D, P, LEVELS = 4, 2, 1024, 5, 5  # of a DINOv2 large at 28 pixels
N_FUZZ = int(os.environ.get("UBRAIN_FUZZ", "60"))


def outcome(action):
    """What comes of an action, in a process of its own: "accepted", or what an error says."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    if not (pid := os.fork()):
        said = "died"
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
            said = f"accepted {action() or ''}"
        except UbrainError as error:
            said = str(error)
        except BaseException as error:
            said = f"{type(error).__name__} escaped: {str(error)[:300]}"
        finally:
            os.write(writing, said.encode()[:60_000])  # what a pipe holds
            os._exit(0)
    os.close(writing)
    _, status, used = os.wait4(pid, 0)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode(errors="replace")
    said = f"hung for {SECONDS} s" if os.WIFSIGNALED(status) else said
    return f"took {used.ru_maxrss >> 10} MB" if used.ru_maxrss << 10 > MEMORY else said


def kind(said):
    """Accepted or refused, or else what went wrong."""
    if said.startswith("accepted"):
        return "accepted" if len(said) < 60_000 else "much was printed"
    wrong = ("hung for", "took ", "died") if " escaped: " not in said else said
    return said if said.startswith(wrong) or len(said) > CHARACTERS else "refused"


# --- files of torch.save, by hand


def text(word):
    """A text as opcodes."""
    raw = word.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def pairs(**values):
    """A dict of opcodes."""
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def record(kind, state):
    """An object of a class, with a state."""
    module, _, name = kind.rpartition(".")
    return f"c{module}\n{name}\n".encode() + b")\x81" + state + b"b"


def number(n):
    """A whole number as opcodes."""
    return b"J" + struct.pack("<i", n)


def tensor(key, count, shape, kind="FloatStorage"):
    """A tensor over the beginning of a storage."""
    strides = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
    storage = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    sizes = [b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides)]
    body = b"((" + storage + number(count) + b"tQ" + number(0) + b"".join(sizes) + b"\x89}t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + body + b"R"


def archive(path, pickled, numbers=None, **entries):
    """A file like those of torch.save, around any pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        for name, content in {**(numbers or {}), **entries}.items():
            file.writestr(f"a/{name}", content)
    return path


NESTED = b")q\x00" + b"h\x00\x86q\x00" * 200  # a tuple of 2^200 members
NORM = "torch.nn.modules.normalization.LayerNorm"
LISTED = "torch.nn.modules.container.ModuleList"
WEIGHT = {"data/0": bytes(8)}


def module(**state):
    """A whole module of the authors' class, with a tensor."""
    parameters = pairs(w=tensor("0", 2, (2,)))
    return record("models.encoder_models.Encoder", pairs(_parameters=parameters, **state))


def norm(eps):
    """The authors' module with one norm."""
    inner = record(LISTED, pairs(_modules=pairs(**{"0": record(NORM, pairs(eps=eps))})))
    return module(_modules=pairs(norm_in=inner))


def many(first, n):
    """A dict of one thing under n names, once as it is and then from the memo."""
    rest = b"".join(text(str(i)) + b"h\x09" for i in range(1, n))
    return b"}(" + text("0") + first + b"q\x09" + rest + b"u"


def many_modules(n):
    """Modules that share one list of n modules: n² names."""
    part = record(LISTED, b"}" + text("_modules") + b"h\x01s")
    listed = b"}q\x01(" + b"".join(text(str(i)) + part for i in range(n)) + b"u"
    return module(_modules=listed)


def one_state_for_many(n):
    """One dict of n entries as the state of n objects."""
    state = b"}q\x01(" + b"".join(text(str(i)) + b"N" for i in range(n)) + b"u"
    return b"](" + state + record(LISTED, b"h\x01") * n + b"e"


def flagged(path, flag):
    """A file whose zip entries have a flag or version that zipfile does not know."""
    archive(path, pairs(w=tensor("0", 2, (2,))), WEIGHT)
    content = bytearray(path.read_bytes())
    for head, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(head)
        while at >= 0:
            content[at + place] |= flag
            at = content.find(head, at + 1)
    path.write_bytes(content)
    return path


def shapes():
    """Names and shapes of the weights of an encoder, without adapters."""
    found = {"feat_embed": (E, LEVELS * C), "pos_embed": (P, E), "voxel_embed": (3, E)}
    for i in range(LEVELS):
        layers = {"in_project": (C, D), "map_att.{}.project": (E, E), "mlp.{}.fc1": (4 * C, C)}
        layers |= {"map_att.{}.project_x": (E, C), "mlp.{}.fc2": (C, 4 * C)}
        for name, shape in layers.items():
            where = name.format(i) if "{}" in name else f"{name}.{i}"
            found |= {f"{where}.weight": shape, f"{where}.bias": shape[:1]}
        for name, size in (("norm_in", D), ("norm", C)):
            found |= {f"{name}.{i}.{part}": (size,) for part in ("weight", "bias")}
    return found


def weights(**changes):
    """The weights of an encoder, for torch.save."""
    torch.manual_seed(0)
    return {name: torch.rand(shape) for name, shape in shapes().items()} | changes


def saved_as(path, config=None, **changes):
    """A file of torch.save with an encoder in it."""
    told = {"select_layers": [1, 6, 12, 18, 24], "num_reg_tokens": 4} if config is None else config
    torch.save({"config": told, "shared": weights(**changes)}, path)
    return path


def flat(path):
    """An honest file whose tensors are views of one buffer of 64 MB."""
    parts = weights()
    buffer, at, views = torch.zeros(16 << 20), 0, {}
    for name, part in parts.items():
        views[name] = buffer[at : at + part.numel()].view(part.shape).copy_(part)
        at += part.numel()
    torch.save(views, path)
    return path


def shared(path):
    """Weights for many voxels that are all the same numbers, 40 MB, under hundreds of names."""
    n = 10_000_000
    found = dict(shapes())
    found |= {
        name: (n // D, D) for name in found if name.startswith("in_project") and "weight" in name
    }
    names = {**found, **{f"embed_model.{i}": (n,) for i in range(300)}}
    content = pairs(**{name: tensor("0", n, shape) for name, shape in names.items()})
    return archive(path, content, {"data/0": bytes(4 * n)})


def relabelled(path):
    """Floats that are said to be int32."""
    tensors = {}
    for i, (name, part) in enumerate(weights().items()):
        tensors[name] = (str(i), part)
    told = {n: tensor(k, p.numel(), tuple(p.shape), "IntStorage") for n, (k, p) in tensors.items()}
    return archive(
        path, pairs(**told), {f"data/{k}": p.numpy().tobytes() for k, p in tensors.values()}
    )


def pipe(path):
    """Nothing but a pipe."""
    os.mkfifo(path)
    return path


FILES = {
    "honest": (saved_as, "accepted"),
    "flat buffer": (flat, "accepted"),
    "deep tuple in an oddity": (lambda p: archive(p, norm(NESTED), WEIGHT), "built otherwise"),
    "long text in an oddity": (lambda p: archive(p, norm(text("x" * 4_000_000)), WEIGHT), "built"),
    "shared storage": (shared, "more than the file"),
    "long device": (
        lambda p: archive(p, b"ctorch\ndevice\n" + text("c") + text("x" * 4_000_000) + b"\x86R"),
        "device",
    ),
    "long class name": (
        lambda p: archive(p, record(f"models.encoder_models.{'x' * 4_000_000}", b"}")),
        "names 'models",
    ),
    "long name": (
        lambda p: archive(p, pairs(**{"x" * 4_000_000: tensor("0", 2, (2,))}), WEIGHT),
        "a name of 4000000 characters",
    ),
    "long names in depth": (lambda p: archive(p, deep_names(), WEIGHT), "a name of"),
    "many rows": (lambda p: archive(p, many(tensor("0", 2, (2,)), 60_000), WEIGHT), "more than"),
    "n squared modules": (lambda p: archive(p, many_modules(20_000), WEIGHT), "more than"),
    "n squared attributes": (lambda p: archive(p, one_state_for_many(60_000)), "opcodes"),
    "n squared groups": (
        lambda p: archive(p, many(many(tensor("0", 2, (2,)), 9000), 60_000), WEIGHT),
        "more than",
    ),
    "long shape": (lambda p: archive(p, long_shapes(), WEIGHT), "without a valid storage"),
    "config a text": (lambda p: saved_as(p, "text"), "accepted"),
    "config a list": (lambda p: saved_as(p, [1, 2]), "accepted"),
    "config a tensor": (lambda p: saved_as(p, torch.zeros(3)), "1 unexpected: config"),
    "config a record": (
        lambda p: archive(p, pairs(config=record(LISTED, b"}"), w=tensor("0", 2, (2,))), WEIGHT),
        "is not an encoder",
    ),
    "facts without end": (lambda p: archive(p, many_facts(), WEIGHT), "facts"),
    "zip flag 32": (lambda p: flagged(p, 32), "cannot be read"),
    "zip flag 64": (lambda p: flagged(p, 64), "cannot be read"),
    "byteorder of 40 MB": (
        lambda p: archive(p, pairs(w=tensor("0", 2, (2,))), WEIGHT, byteorder=b"x" * 40_000_000),
        "byteorder",
    ),
    "a long storage": (
        lambda p: archive(p, pairs(w=tensor("x" * 4_000_000, 2, (2,)))),
        "should have",
    ),
    "nan": (lambda p: saved_as(p, pos_embed=torch.full((P, E), torch.nan)), "not finite"),
    "relabelled": (relabelled, "int32"),
    "alpha inf": (
        lambda p: saved_as(
            p, {"select_layers": [1, 6, 12, 18, 24], "lora_scale": torch.inf}, **adapters()
        ),
        "scale",
    ),
    "lora_scale nan": (
        lambda p: saved_as(
            p, {"select_layers": [1, 6, 12, 18, 24], "lora_scale": torch.nan}, **adapters()
        ),
        "scale",
    ),
    "one token": (lambda p: saved_as(p, pos_embed=torch.zeros(1, E)), "1 tokens"),
    "pipe": (pipe, "a pipe or a device"),
    "device": (lambda p: Path("/dev/zero"), "a pipe or a device"),
}


def adapters():
    """Weights of adapters of rank 1 on all blocks."""
    down = {f"lora_B.{i}.weight": torch.zeros(1, D) for i in range(24)}
    return down | {f"lora_A.{i}.weight": torch.zeros(D, 1) for i in range(24)}


def deep_names():
    """A name of 250,000 characters for each of 30 modules, one in the other, with many tensors."""
    inner = record(
        LISTED,
        pairs(
            _parameters=b"}("
            + b"".join(text(str(i)) + tensor("0", 2, (2,)) for i in range(3000))
            + b"u"
        ),
    )
    for i in range(30):
        inner = record(LISTED, pairs(_modules=pairs(**{f"{i}" + "x" * 200_000: inner})))
    return module(_modules=pairs(a=inner))


def long_shapes():
    """Tensors of 100,000 axes, time and again."""
    shape = b"(" + b"K\x01" * 100_000 + b"tq\x01"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(N" + number(0) + b"h\x01h\x01\x89}tR"
    return b"](" + shape + call * 40_000 + b"e"


def many_facts():
    """A list of long texts, under many names."""
    listed = b"](" + text("x" * 400) + b"q\x01" + b"h\x01" * 60 + b"e"
    return pairs(config=many(listed, 10_000), w=tensor("0", 2, (2,)))


def look(path, folder):
    """Show a file and import it; what is shown is short."""
    shown = show(path)
    import_released(path, folder, subjects={"S1": 3})
    return shown


@pytest.mark.timeout(120)
@pytest.mark.parametrize("what", FILES)
def test_a_file_of_a_stranger_costs_a_sentence(tmp_path, what):
    make, expected = FILES[what]
    path = make(tmp_path / "a.pth")
    said = outcome(lambda: look(path, tmp_path / "out"))
    assert kind(said) == ("accepted" if expected == "accepted" else "refused"), said[:500]
    assert expected in said, said[:500]


# --- checkpoint folders


SIZES = EncoderConfig(widths=(12, 20), n_tokens=17, embedding_size=16, channels=8)
BONES = asdict(BackboneConfig("vit_tiny_patch16_224", "random", (0, 5), 64, adapter_rank=0))


@pytest.fixture
def saved(tmp_path):
    """An encoder of A and B, with a voxel table and a linear readout of A."""
    torch.manual_seed(1)
    encoder = UniversalEncoder(SIZES, {"A": 30, "B": 9})
    table = {"hemisphere": ["L", "R", ""] * 10, "areas": ["FFA,EBA", "", "V1"] * 10}
    voxels = {"A": pd.DataFrame({**table, "vertex": np.arange(30), "ncsnr": np.linspace(0, 1, 30)})}
    about = {"A": {"dataset": "NSD", "scanner": "7T", "space": "fsaverage"}}
    facts = {"settings": {"backbone": BONES, "crowd": "c0ffee"}, "val_r75": 0.5, "notes": "Ours."}
    checkpoint.save(encoder, tmp_path / "its", voxels=voxels, recordings=about, **facts)
    return tmp_path / "its"


def use(folder, out):
    """What is done with a folder of a stranger: everything but to predict."""
    shown = show(folder)
    checkpoint.load(folder)
    hub.drop(folder, ["B"], out)
    checkpoint.backbone_config(folder)
    checkpoint.voxel_table(folder, "A")
    load_readout(folder, "A")
    return shown


def told(change):
    """A change of what config.json says."""

    def edit(folder):
        content = json.loads((folder / checkpoint.CONFIG).read_text())
        change(content)
        (folder / checkpoint.CONFIG).write_text(json.dumps(content))

    return edit


def said(name, value):
    """config.json with another text for a value."""

    def edit(folder):
        told(lambda c: c.update({name: "HERE"}))(folder)
        content = (folder / checkpoint.CONFIG).read_text()
        (folder / checkpoint.CONFIG).write_text(content.replace('"HERE"', value))

    return edit


def weighed(change):
    """A change of the weights."""

    def edit(folder):
        found = load_file(folder / checkpoint.WEIGHTS)
        change(found)
        save_file(found, folder / checkpoint.WEIGHTS)

    return edit


def tabled(content):
    """Another voxel table."""

    def edit(folder):
        (folder / "voxels" / "A.csv").write_bytes(content)

    return edit


def instead(name, make):
    """Something else where a file is expected."""

    def edit(folder):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return edit


ROWS = b"L,V1,0,0.5\n" * 29
FOLDERS = {
    "honest": (lambda folder: None, "accepted"),
    "nan": (weighed(lambda w: w["position"].fill_(torch.nan)), "not finite"),
    "inf": (weighed(lambda w: w["embeddings.A"][3].fill_(torch.inf)), "not finite"),
    "int32": (
        weighed(lambda w: w.update(position=w["position"].view(torch.int32))),
        "expected floats",
    ),
    "dropout nan": (told(lambda c: c["config"].update(dropout=float("nan"))), "expected float"),
    "dropout 2": (told(lambda c: c["config"].update(dropout=2)), "dropout of 2"),
    "alpha inf": (
        told(lambda c: c["facts"]["settings"]["backbone"].update(adapter_alpha=float("inf"))),
        "adapter_alpha: expected float",
    ),
    "no tokens": (told(lambda c: c["config"].update(n_tokens=0)), "whole numbers above 0"),
    "no levels": (told(lambda c: c["config"].update(widths=[])), "expected 1 to 64 levels"),
    "levels": (told(lambda c: c["config"].update(widths=[12] * 50_000)), "expected 1 to 64 levels"),
    "voxels of 30.7": (told(lambda c: c["subjects"].update(A=30.7)), "whole numbers above 0"),
    "subjects a list": (told(lambda c: c.update(subjects=["A"])), "does not hold an encoder"),
    "subjects": (
        told(lambda c: c.update(subjects={f"S{i}": 1 for i in range(40_000)})),
        "too few",
    ),
    "config a text": (told(lambda c: c.update(config="x" * 900_000)), "does not hold an encoder"),
    "config of 2 MB": (told(lambda c: c.update(facts={"a": "x" * 2_000_000})), "expected at most"),
    "deep": (said("facts", '{"a": ' + "[" * 900 + "]" * 900 + "}"), "in each other"),
    "deeper": (said("facts", "[" * 100_000 + "]" * 100_000), "does not hold an encoder"),
    "settings a list": (told(lambda c: c["facts"].update(settings=[1])), "does not hold"),
    "facts a text": (told(lambda c: c.update(facts="all")), "does not hold an encoder"),
    "recordings a text": (told(lambda c: c.update(recordings={"A": "NSD"})), "does not hold"),
    "dataset a list": (
        told(lambda c: c["recordings"]["A"].update(dataset=["x" * 1000] * 100)),
        "accepted",
    ),
    "long fact": (told(lambda c: c["facts"].update(notes="x" * 500_000)), "accepted"),
    "table is a folder": (
        instead("voxels/A.csv", lambda path: path.mkdir()),
        "A.csv is a folder; expected a file",
    ),
    "table is a pipe": (instead("voxels/A.csv", os.mkfifo), "is a pipe or a device"),
    "table is binary": (tabled(bytes(range(256)) * 40), "A.csv"),
    "table cut short": (
        tabled(b'hemisphere,areas,vertex,ncsnr\nL,"V1'),
        "A.csv does not hold a voxel table",
    ),
    "table of words": (tabled(b"hemisphere,areas,vertex,ncsnr\n" + ROWS + b"L,V1,0,x"), "A.csv"),
    "table of other columns": (
        tabled(b"hemisphere,areas\n" + ROWS),
        "more columns than its first line",
    ),
    "table is empty": (tabled(b""), "A.csv does not hold a voxel table"),
    "wide table": (tabled(b"a," * 4_000_000), "first line is longer"),
    "formula": (
        tabled(b"hemisphere,areas,vertex,ncsnr\n" + ROWS + b"L,=HYPERLINK(0),0,1\n"),
        "is no name of",
    ),
    "formula as a column": (
        tabled(b"hemisphere,=1+1,vertex,ncsnr\n" + ROWS + ROWS[:11]),
        "no name",
    ),
    "weights a pipe": (instead(checkpoint.WEIGHTS, os.mkfifo), "is a pipe or a device"),
    "weights a device": (
        instead(checkpoint.WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
        "is a pipe or a device",
    ),
    "weights a folder": (instead(checkpoint.WEIGHTS, lambda path: path.mkdir()), "is a folder"),
    "config a device": (
        instead(checkpoint.CONFIG, lambda path: path.symlink_to("/dev/zero")),
        "is missing",
    ),
    "readout a device": (
        instead(checkpoint.READOUT, lambda path: path.symlink_to("/dev/zero")),
        "is a pipe or a device",
    ),
    "readout without parts": (
        instead(checkpoint.READOUT, lambda path: save_file({"A.shift": torch.zeros(2)}, path)),
        "does not hold an encoder",
    ),
    "header": (
        lambda folder: (folder / checkpoint.WEIGHTS).write_bytes(
            struct.pack("<Q", 90_000_000) + b" " * 90_000_000
        ),
        "a header of more",
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_of_a_stranger_costs_a_sentence(saved, tmp_path, what):
    change, expected = FOLDERS[what]
    change(saved)
    said = outcome(lambda: use(saved, tmp_path / "out"))
    assert kind(said) == ("accepted" if expected == "accepted" else "refused"), said[:500]
    assert any(words in said for words in expected.split("|")), said[:500]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("eva02_enormous_patch14_clip_224", "hub", "has 4349 million parameters"),
        ("vit_giant_patch14_reg4_dinov2", "random", "expected at most 500 million"),
        ("vit_tiny_patch16_224", "PIPE.safetensors", "is a pipe or a device"),
        ("vit_tiny_patch16_224", "FOLDER.safetensors", "is a folder; expected a file"),
    ],
)
def test_a_backbone_is_looked_at_before_it_is_built(tmp_path, name, weights, message):
    os.mkfifo(tmp_path / "PIPE.safetensors")
    (tmp_path / "FOLDER.safetensors").mkdir()
    place = str(tmp_path / weights) if "." in weights else weights
    said = outcome(lambda: Backbone(BackboneConfig(name, place, image_size=None)) and None)
    assert kind(said) == "refused"
    assert message in said


# --- at random


def flipped(rng, content):
    """Bytes with some of them changed, doubled or left out."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at, n = int(rng.integers(len(content))), int(rng.integers(1, 40))
        match rng.integers(4):
            case 0:
                content[at] = rng.integers(256)
            case 1:
                content[at : at + n] = rng.bytes(n)
            case 2:
                content[at:at] = content[at : at + n] * int(rng.integers(1, 50))
            case 3:
                del content[at : at + n]
        content = content or bytearray(1)
    return bytes(content)


VALUES = (None, True, -1, 0, 1.5, 10**9, 10**400, float("nan"), float("inf"), "", "x" * 3000)
VALUES = (*VALUES, "=1", "../..", "\x1b[2J", [], {}, [[]], {"a": {}}, [1] * 1000, {"A": 1})


def damaged(rng, path, folder):
    """A file of torch.save, or a folder, with one or two damages; what to do with it."""
    if rng.integers(2):
        saved_as(path)
        if rng.integers(2):
            path.write_bytes(flipped(rng, path.read_bytes()))
        else:  # of the pickle alone, behind right checksums
            with zipfile.ZipFile(path) as file:
                parts = {name: file.read(name) for name in file.namelist()}
            with zipfile.ZipFile(path, "w") as file:
                for name, content in parts.items():
                    if name.endswith("data.pkl") and rng.integers(3):
                        content = flipped(rng, content)
                    elif name.endswith("data.pkl"):  # a command among the opcodes
                        at = rng.choice([place for *_, place in pickletools.genops(content)])
                        call = (
                            b"cposix\nsystem\n" + text(f"touch {path.with_name('ran')}") + b"\x85R"
                        )
                        content = content[:at] + call + content[at:]
                    file.writestr(name, content)
        return lambda: look(path, path.with_name("out"))
    for _ in range(rng.integers(1, 3)):
        target = folder / ("config.json", "encoder.safetensors", "voxels/A.csv")[rng.integers(3)]
        if target.name == checkpoint.CONFIG and rng.integers(4):
            content = json.loads(target.read_text())
            inner, value = content, VALUES[rng.integers(len(VALUES))]
            while rng.integers(3) and isinstance(inner, dict) and inner:
                above, key = inner, list(inner)[rng.integers(len(inner))]
                inner = inner[key]
            if inner is not content:
                above[key] = value
            target.write_text(json.dumps(content))
        else:
            target.write_bytes(flipped(rng, target.read_bytes()))
            if target.name == checkpoint.CONFIG:
                break
    return lambda: use(folder, path.with_name("out"))


@pytest.mark.timeout(0)
def test_whatever_is_damaged_the_answer_is_a_sentence(saved, tmp_path):
    rng, outcomes = np.random.default_rng(2026), Counter()
    kept = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    for _ in range(N_FUZZ):
        for path, content in kept.items():
            path.write_bytes(content)
        outcomes[kind(outcome(damaged(rng, tmp_path / "a.pth", saved)))] += 1
    print(dict(outcomes))
    assert set(outcomes) == {"accepted", "refused"}, outcomes
    assert not (tmp_path / "ran").exists()
