"""Files of torch.save are read without executing anything, whatever they say."""

import codecs
import functools
import io
import operator
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from ubrain.errors import UbrainError
from ubrain.exchange import torchfile


def allowed(name):
    return name.startswith("torch.nn.modules.")


def archive(path, pickled, compression=zipfile.ZIP_STORED, **entries):
    """A file like those of torch.save, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in entries.items():
            file.writestr(f"a/data/{name.removeprefix('_')}", content)
    return path


def refuse(path, match):
    with pytest.raises(UbrainError, match=match) as caught:
        torchfile.read(path, allowed)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_whole_module_gives_its_state_dict_and_its_attributes(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.LayerNorm(4, eps=0.5))
    )
    module.turned = nn.Parameter(torch.randn(5, 2).T)
    module.part = nn.Parameter(torch.randn(6, 4)[2:4, 1:])
    module.rough = nn.Parameter(torch.randn(3).bfloat16())
    module.nothing = nn.Parameter(torch.zeros(0, 3))
    module.root, module.count, module.names = np.sqrt(3.0), np.int64(7), ["a", "b"]
    module.place, module.size, module.kind = (
        torch.device("cuda", 1),
        torch.Size([2, 3]),
        torch.float32,
    )
    torch.save(module, tmp_path / "m.pth")
    found = torchfile.read(tmp_path / "m.pth", allowed)
    tensors = {name: stored.read() for name, stored in torchfile.tensors(found).items()}
    torch.testing.assert_close(tensors, dict(module.state_dict()), rtol=0, atol=0)
    state = found.state
    assert (state["root"], state["count"], state["names"]) == (np.sqrt(3.0), 7, ["a", "b"])
    assert (state["place"], state["size"], str(state["kind"])) == (
        "cuda:1",
        (2, 3),
        "torch.float32",
    )
    assert state["_modules"]["2"].state["_modules"]["0"].state["eps"] == 0.5


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_state_dict_is_read_whatever_the_protocol(tmp_path, protocol):
    state = nn.Linear(3, 4).state_dict()  # with the attribute _metadata
    torch.save(
        {
            "config": {"r": 7, "alpha": 0.01, "on": True, "none": None, "set": {"x"}},
            "shared": state,
        },
        tmp_path / "s.pth",
        pickle_protocol=protocol,
    )
    found = torchfile.read(tmp_path / "s.pth", allowed)
    assert found["config"] == {"r": 7, "alpha": 0.01, "on": True, "none": None, "set": {"x"}}
    for name, stored in found["shared"].items():
        torch.testing.assert_close(stored.read(), state[name], rtol=0, atol=0)


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def touch(marker):
    return f"import pathlib; pathlib.Path({str(marker)!r}).touch()"


def by_hand(name, *arguments):
    """`name(*arguments)` as opcodes, for names that pickle would not write."""
    words = b"".join(b"X" + struct.pack("<I", len(a.encode())) + a.encode() for a in arguments)
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n(" + words + b"tR."


ATTACKS = {
    "os.system": lambda m: pickle.dumps(Calls(os.system, f"touch {m}"), 2),
    "exec": lambda m: pickle.dumps(Calls(exec, touch(m)), 2),
    "eval": lambda m: pickle.dumps(Calls(eval, f"exec({touch(m)!r})"), 4),
    "popen": lambda m: by_hand("subprocess getoutput", f"touch {m}"),
    "inst": lambda m: b"(S'touch " + str(m).encode() + b"'\nios\nsystem\n.",
    "obj": lambda m: b"(cos\nsystem\nS'touch " + str(m).encode() + b"'\no.",
    "partial": lambda m: pickle.dumps(Calls(functools.partial(exec, touch(m))), 2),
    "reduce": lambda m: pickle.dumps(Calls(functools.reduce, operator.call, [exec, touch(m)]), 2),
    "in an ordered dict": lambda m: pickle.dumps(OrderedDict(a=Calls(exec, touch(m))), 2),
    "in the state of a module": lambda m: pickle.dumps(_with_attribute(Calls(exec, touch(m))), 2),
    "codecs": lambda m: pickle.dumps(
        Calls(exec, Calls(codecs.decode, codecs.encode(touch(m), "rot13"), "rot13")), 2
    ),
    "nested torch.load": lambda m: pickle.dumps(
        Calls(_load_nested, io.BytesIO(pickle.dumps(Calls(exec, touch(m))))), 2
    ),
}


def _with_attribute(value):
    module = nn.Identity()
    module.hook = value
    return module


def _load_nested(file):
    return pickle.load(file)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_runs_a_command_is_refused_and_the_command_is_not_run(tmp_path, attack):
    marker = tmp_path / "ran"
    pickled = ATTACKS[attack](marker)
    path = archive(tmp_path / "evil.pth", pickled)
    refuse(path, "refused")
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists(), "the attack is none, so the test shows nothing"


@pytest.mark.parametrize(
    "name",
    [
        "posix system",
        "builtins eval",
        "__builtin__ exec",
        "functools partial",
        "functools reduce",
        "copyreg __reduce_ex__",
        "copyreg _reconstructor",
        "torch.serialization load",
        "torch load",
        "torch.jit load",
        "torch._utils _rebuild_sparse_tensor",
        "torch.storage _load_from_bytes",
        "_codecs decode",
        "codecs open",
        "operator attrgetter",
        "numpy load",
        "torch.nn.modules.linear Linear.forward.__globals__",
        "torch._tensor _rebuild_from_type_v2",
        "models.unknown Encoder",
        "types CodeType",
    ],
)
@pytest.mark.parametrize("called", [True, False], ids=["called", "only named"])
def test_a_name_that_is_not_on_the_list_is_refused_by_name(tmp_path, name, called):
    def only_modules(asked):
        return asked.startswith("torch.nn.modules.") and asked.count(".") == 4

    pickled = (
        by_hand(name, "id") if called else b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    )
    path = archive(tmp_path / "evil.pth", pickled)
    with pytest.raises(UbrainError, match="names") as caught:
        torchfile.read(path, only_modules)
    assert repr(name.replace(" ", ".").replace("__builtin__", "builtins")) in str(caught.value)


MODULE = b"\x80\x02ctorch.nn.modules.linear\nLinear\n"
SIZE = b"\x80\x02ctorch\nSize\n"


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (MODULE + b")R.", "a call of 'torch.nn.modules.linear.Linear'"),
        (MODULE + b")\x81}X\x00\x00\x00\x00Nsb.", ""),
        (MODULE + b"}X\x04\x00\x00\x00nameK\x01sb.", "a state for a Name"),
        (SIZE + b"}X\x08\x00\x00\x00__call__K\x01sb.", "a state for a Name"),
        (SIZE + b")\x81.", "an object of 'torch.Size'"),
        (
            MODULE + b")\x81N}X\x09\x00\x00\x00__class__K\x01s\x86b.",
            "a state that is not its attributes",
        ),
        (b"\x80\x02]q\x00h\x00R.", "a call of a list"),
        (b"\x80\x02)R.", "damaged at byte"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "damaged"),
        (b"\x80\x04X\x01\x00\x00\x00a)}\x92.", "opcode NEWOBJ_EX"),
        (b"\x80\x02K\x01", "damaged"),
        (b"\x80\x02K\x01K\x02.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (
            b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
            "text encoded as 'rot13'",
        ),
        (b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.", "NumPy type 'O8'"),
    ],
)
def test_opcodes_that_torch_does_not_write_are_refused(tmp_path, pickled, match):
    path = archive(tmp_path / "evil.pth", pickled)
    if match:
        refuse(path, match)
    else:
        assert torchfile.read(path, allowed).state == {"": None}


def test_a_record_keeps_hooks_as_values_and_never_calls_them(tmp_path):
    words = (
        b"X\x0c\x00\x00\x00__setstate__ctorch\nSize\nsX\x0a\x00\x00\x00__reduce__ctorch\nSize\ns"
    )
    found = torchfile.read(
        archive(tmp_path / "a.pth", MODULE + b")\x81}" + words + b"b}b."), allowed
    )
    assert {key: str(value) for key, value in found.state.items()} == {
        "__setstate__": "torch.Size",
        "__reduce__": "torch.Size",
    }


NESTED = b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 200  # a tuple of 2^200 members
EXPENSIVE = {
    "hash": (NESTED + b"}h\x00Ns.", "a tuple as key"),
    "set": (NESTED + b"c__builtin__\nset\n]h\x00a\x85R.", "a tuple as key"),
    "name in an error": (NESTED + b"h\x00R.", "a call of a tuple"),
    "opcodes": (b"\x80\x02" + b"K\x01" * 1_000_001 + b".", "more than 1000000 opcodes"),
    "length": (b"\x80\x02" + b"N" * (8 << 20) + b".", "expected at most"),
    "copies": (
        b"\x80\x02ctorch\nSize\nq\x00](" + b"K\x01" * 100 + b"eq\x01" + b"h\x00h\x01\x85R" * 9,
        "of 100 members",
    ),
    "text": (b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "opcode LONG|damaged"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", EXPENSIVE)
def test_a_small_pickle_cannot_ask_for_much_work_or_memory(tmp_path, what):
    pickled, match = EXPENSIVE[what]
    refuse(archive(tmp_path / "bomb.pth", pickled), match)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "pickled",
    [b"\x80\x02]r\xff\xff\xff\xff.", b"\x80\x02" + b"(" * 400_000 + b"t" * 400_000 + b"."],
    ids=["memo", "depth"],
)
def test_a_large_memo_index_and_a_deep_tuple_cost_nothing(tmp_path, pickled):
    assert torchfile.read(archive(tmp_path / "odd.pth", pickled), allowed) is not None


def tensor_pickle(offset=0, shape=(2, 3), stride=(3, 1), count=6, kind="FloatStorage", key="0"):
    """A tensor with any claims, as torch.save would write it."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return (
                ("storage", getattr(torch, kind), key, "cpu", count)
                if isinstance(value, Storage)
                else None
            )

    file = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Pickler(file, 2).dump(Calls(rebuild, Storage(), offset, shape, stride, False, OrderedDict()))
    return file.getvalue()


def test_a_tensor_made_by_hand_is_read_as_torch_would(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    path = archive(tmp_path / "t.pth", tensor_pickle(1, (2, 2), (1, 2)), _0=numbers.tobytes())
    assert torchfile.read(path, allowed).read().tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("claims", "match"),
    [
        ({"count": 7}, "should have '7' numbers of torch.float32, but has 24 bytes"),
        ({"count": 5}, "should have '5' numbers"),
        ({"count": -6}, "should have '-6' numbers"),
        ({"count": 10**12}, "should have '1000000000000' numbers"),
        ({"count": "6"}, "should have '6' numbers"),
        ({"kind": "DoubleStorage"}, "numbers of torch.float64, but has 24 bytes"),
        ({"key": "1"}, "has no bytes"),
        ({"key": "../data.pkl"}, "has no bytes"),
        ({"offset": 1}, "reaches outside its storage"),
        ({"offset": -1}, "without a valid storage"),
        ({"shape": (3, 3)}, "reaches outside its storage"),
        ({"stride": (4, 1)}, "reaches outside its storage"),
        ({"stride": (-1, 1)}, "without a valid storage"),
        ({"shape": (10**6, 10**6), "stride": (0, 0)}, "reaches outside its storage"),
        ({"shape": (1,) * 9, "stride": (1,) * 9}, "without a valid storage"),
        ({"shape": (2, 3, 1)}, "without a valid storage"),
        ({"shape": (2.0, 3.0)}, "without a valid storage"),
        ({"shape": (True, 3)}, "without a valid storage"),
    ],
)
def test_a_tensor_that_reaches_outside_its_numbers_is_refused(tmp_path, claims, match):
    refuse(archive(tmp_path / "t.pth", tensor_pickle(**claims), _0=bytes(24)), match)


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    (tmp_path / "empty.pth").touch()
    refuse(tmp_path / "empty.pth", "is empty")
    refuse(tmp_path / "missing.pth", "No such file")
    refuse(tmp_path, "is a folder")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, share):
    torch.save(nn.Linear(30, 40), tmp_path / "m.pth")
    content = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(content[: int(share * len(content))])
    refuse(tmp_path / "m.pth", "cut short")


def test_a_flipped_bit_among_the_numbers_is_noticed(tmp_path):
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "m.pth")
    content = bytearray((tmp_path / "m.pth").read_bytes())
    content[content.index(np.float32(500).tobytes())] ^= 1
    (tmp_path / "m.pth").write_bytes(content)
    stored = torchfile.read(tmp_path / "m.pth", allowed)["w"]
    with pytest.raises(UbrainError, match="Bad CRC-32 for file 'm/data/0'"):
        stored.read()


def test_the_format_before_torch_1_6_is_refused_with_a_reason(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "old.pth", "as torch wrote before 1.6")


def test_compressed_entries_are_refused_before_anything_is_unpacked(tmp_path):
    bomb = archive(tmp_path / "bomb.pth", tensor_pickle(), zipfile.ZIP_DEFLATED, _0=bytes(1 << 24))
    assert bomb.stat().st_size < 1 << 16
    refuse(bomb, "is compressed or encrypted")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    path = archive(tmp_path / "bomb.pth", tensor_pickle(), _0=bytes(1 << 16), _1=bytes(1 << 16))
    content = path.read_bytes()
    first = content.index(
        b"PK\x03\x04", 1
    )  # the head of data/0; data/1 is cut out and points to it instead
    second = content.index(b"PK\x03\x04", first + 1)
    directory = content.index(b"PK\x01\x02")
    tail = bytearray(content[directory:])
    entry = tail.index(b"a/data/1") - 4
    tail[entry : entry + 4] = struct.pack("<I", first)
    end = tail.index(b"PK\x05\x06")
    tail[end + 16 : end + 20] = struct.pack("<I", second)
    path.write_bytes(content[:second] + tail)
    refuse(path, "overlap or repeat|Overlapped")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as file:
        file.writestr("hello.txt", "hello")
    refuse(tmp_path / "z.pth", "but not one of torch.save")


def test_modules_inside_themselves_are_walked_once(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["self"] = module
    torch.save(module, tmp_path / "m.pth")
    assert set(torchfile.tensors(torchfile.read(tmp_path / "m.pth", allowed))) == {
        "0.weight",
        "0.bias",
    }


def test_whatever_the_bytes_say_the_answer_is_a_value_or_an_error_of_ours(tmp_path):
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as file:
        pickled = file.read("m/data.pkl")
        numbers = {f"_{i}": file.read(f"m/data/{i}") for i in range(4)}
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        changed = bytearray(pickled)
        changed[rng.integers(len(changed))] = rng.integers(256)
        path = archive(tmp_path / "changed.pth", bytes(changed), **numbers)
        try:
            torchfile.read(path, allowed)
        except UbrainError:
            refused += 1
    assert 100 < refused < 400
