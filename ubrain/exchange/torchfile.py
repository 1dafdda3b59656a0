"""Files of torch.save, read without executing anything.

Such a file is a zip archive: `data.pkl` says in pickle opcodes how the object is put together, and
`data/N` are the numbers of its tensors. Unpickling runs whatever the file names, so no unpickler is
used here: `pickletools` lists the opcodes, and `_Machine` follows those few that torch.save writes.
A name in the file stays a word. The words for tensors and plain containers are on a list, objects
of classes that the caller allows become a `Record` of their attributes, and any other word is
refused. Tensors are read when asked for, one at a time.

torch's own restricted loader (`torch.load(weights_only=True)`, tried with 2.14) is no substitute:
it takes a tensor of shape (10⁶, 10⁶) with stride 0, wrong storage sizes when memory-mapped, any
codec and any size of `bytearray`, and does not read protocols 4 and 5.
"""

import pickletools
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ubrain.crowd import reading
from ubrain.errors import UbrainError, cut
from ubrain.paths import open_regular

# A whole module with a ViT-L has about 0.5 MB and 130,000 opcodes.
MAX_PICKLE, MAX_OPCODES = 8 << 20, 1_000_000
MAX_DIMENSIONS, MAX_DEPTH, MAX_ITEMS = 8, 32, 64  # of a tensor, of modules, of a set or a size
MAX_NAME, MAX_TENSORS, MAX_NAMES = 200, 10_000, 100_000  # characters; in a file; of its modules
CHUNK = 1 << 24  # bytes read at a time
LEGACY = b"\x80\x02"  # how a pickle starts that is not in an archive
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_DTYPES = {
    f"torch.{name}"
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}


@dataclass(frozen=True)
class Name:
    """The name of a class or function in the file: a word, nothing behind it."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False)
class Record:
    """The attributes of an object whose class was named, not imported."""

    kind: str
    state: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Storage:
    """The numbers behind one or more tensors: an uncompressed entry of the archive."""

    path: Path
    entry: str
    dtype: torch.dtype
    count: int
    checked: "set[Storage]" = field(default_factory=set, compare=False, repr=False)

    def read(self, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop`; the archive's checksum is checked when the first are read."""
        size, whole = self.dtype.itemsize, self.count * self.dtype.itemsize
        raw = torch.empty((stop - start) * size, dtype=torch.uint8)
        view, at = raw.numpy().data, 0
        with (
            reading(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.entry) as file,
        ):
            if self in self.checked:
                at = file.seek(start * size)
            while at < (stop * size if self in self.checked else whole):
                if not (block := file.read(min(CHUNK, whole - at))):
                    raise ValueError(f"expected {whole} bytes, got {at}")
                low, high = max(at, start * size), min(at + len(block), stop * size)
                if low < high:
                    view[low - start * size : high - start * size] = block[low - at : high - at]
                at += len(block)
            file.read(1)  # the checksum is compared at the end
        self.checked.add(self)
        return raw.view(self.dtype)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes, without what else its storage holds."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        numbers = self.storage.read(self.offset, self.offset + _reach(self.shape, self.stride))
        found = numbers.as_strided(self.shape, self.stride)
        return found if found.numel() == len(numbers) else found.clone()


def read(path: str | Path, classes: Callable[[str], bool]) -> Any:
    """What a file of torch.save holds, as plain containers, `Record` and `StoredTensor`.

    Parameters
    ----------
    classes : whether objects of a class may be in the file, given its full name such as
        `torch.nn.modules.linear.Linear`.

    Raises
    ------
    UbrainError
        If the file is damaged, of another format, larger inside than outside, or names anything
        that is not allowed.
    """
    path = Path(path)
    with reading(path, "a file of torch.save"):
        entries = _entries(path)
        tops = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(tops) != 1:
            raise UbrainError(
                f"{path} is a zip archive, but not one of torch.save: it has {len(tops)} data.pkl"
            )
        folder, order = tops[0].removesuffix("data.pkl"), str(sys.byteorder)
        with zipfile.ZipFile(path) as archive:
            for name, most in ((tops[0], MAX_PICKLE), (f"{folder}byteorder", MAX_ITEMS)):
                if (size := entries.get(name, 0)) > most:
                    short = name.removeprefix(folder)
                    raise UbrainError(f"{path}: {short} has {size} bytes; expected at most {most}")
            pickle = archive.read(tops[0])
            if f"{folder}byteorder" in entries:
                order = archive.read(f"{folder}byteorder").decode()
        if order != sys.byteorder:
            raise UbrainError(
                f"{path} was written on a {order!r}-endian machine; this one is {sys.byteorder!r}"
            )
        return _Machine(path, folder, entries, classes).run(pickle)


def _entries(path: Path) -> dict[str, int]:
    """Bytes of each entry of the archive, none of them compressed, together no more than the
    file.
    """
    with open_regular(path) as file:
        start, size = file.read(2), file.seek(0, 2)
    if not size:
        raise UbrainError(f"{path} is empty")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        if start == LEGACY:
            raise UbrainError(
                f"{path} is a bare pickle, as torch wrote before 1.6: it cannot be read without"
                " executing it. Ask for a newer file, or for .safetensors"
            ) from None
        raise UbrainError(
            f"{path} is not a file of torch.save, or cut short at {size} bytes: {error}"
        ) from error
    for info in infos:
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.compress_size != info.file_size
            or info.flag_bits & 1
        ):
            raise UbrainError(
                f"{path}: {cut(info.filename)!r} is compressed or encrypted, which torch.save never"
                " does; refused"
            )
    entries = {info.filename: info.file_size for info in infos}
    if len(entries) != len(infos) or sum(entries.values()) > size:
        raise UbrainError(
            f"{path}: its entries overlap or repeat: {len(infos)} entries of"
            f" {sum(entries.values())} bytes in a file of {size}; refused"
        )
    return entries


class _Refused(UbrainError):
    """An error of ours on the way through the opcodes; every other exception there means a damaged
    file.
    """


class _Machine:
    """Follows pickle opcodes with a stack and a memo. It calls its own methods, and nothing that
    the file names.
    """

    def __init__(
        self, path: Path, folder: str, entries: dict[str, int], classes: Callable[[str], bool]
    ) -> None:
        self.path, self.folder, self.entries, self.classes = path, folder, entries, classes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.checked = set[Storage]()
        self.n_steps = 0

    def run(self, pickle: bytes) -> Any:
        position = 0
        try:
            for opcode, argument, at in pickletools.genops(pickle):
                position = at or 0
                self._spend(1)
                if opcode.name in _PUSH_ARGUMENT:
                    self.stack.append(argument)
                elif opcode.name in _PUSH_NEW:
                    self.stack.append(_PUSH_NEW[opcode.name]())
                elif opcode.name in _STEPS:
                    _STEPS[opcode.name](self, argument)
                else:
                    raise _Refused(
                        f"{self.path}: opcode {opcode.name} is not one that torch.save writes;"
                        " refused"
                    )
            (found,) = self.stack
        except _Refused:
            raise
        except Exception as error:
            raise UbrainError(
                f"{self.path}: data.pkl is damaged at byte {position}: {error}"
            ) from error
        return found

    def _spend(self, n_steps: int) -> None:
        self.n_steps += n_steps
        if self.n_steps > MAX_OPCODES:
            raise _Refused(f"{self.path}: more than {MAX_OPCODES} opcodes; refused")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise _Refused(
                f"{self.path}: a {type(self.stack[-1]).__name__} where a {kind.__name__} was"
                " expected; refused"
            )
        return self.stack[-1]

    def _tuple(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) < size:
            raise IndexError("too few objects for a tuple")
        del self.stack[-size:]
        self.stack.append(items)

    def _append(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        for key in keys:
            self._plain(key)
        self._top(dict).update(zip(keys, values, strict=True))

    def _add_items(self, items: list[Any]) -> None:
        self._top(set).update(self._plain(item) for item in items)

    def _plain(self, value: Any) -> Any:
        """A key or member: hashing a deep tuple would take for ever."""
        if type(value) not in (str, int, bool, float, bytes, type(None)):
            raise _Refused(f"{self.path}: a {type(value).__name__} as key or member; refused")
        if type(value) in (str, bytes) and len(value) > MAX_NAME:
            raise _Refused(f"{self.path}: a name of {len(value)} characters; refused")
        return value

    def _name(self, text: str) -> None:
        text = text.replace("__builtin__.", "builtins.", 1)
        known = text in _REBUILD or text in STORAGES or text in _DTYPES
        if not known and not (len(text) <= MAX_NAME and self.classes(text)):
            raise _Refused(
                f"{self.path} names {text[:MAX_NAME]!r}, which is not on the list of what such a"
                " file may hold; refused, and nothing of it was executed"
            )
        self.stack.append(Name(text))

    def _stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a name that is not text")
        self._name(f"{module}.{name}")

    def _new(self) -> None:
        self.stack.pop()  # arguments of __new__: modules have none, and nothing is called
        kind = self.stack.pop()
        if type(kind) is not Name or not self.classes(kind.text):
            raise _Refused(
                f"{self.path}: an object of {word(kind)}, which is no class that such a file may"
                " hold; refused"
            )
        self.stack.append(Record(kind.text))

    def _reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or name.text not in _REBUILD or type(arguments) is not tuple:
            raise _Refused(
                f"{self.path}: a call of {word(name)}; refused, and nothing of it was executed"
            )
        self.stack.append(_REBUILD[name.text](self, *arguments))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record:
            self._spend(len(state) if type(state) is dict else 0)
            if type(state) is not dict or not all(type(key) is str for key in state):
                raise _Refused(
                    f"{self.path}: a {target.kind} with a state that is not its attributes; refused"
                )
            target.state.update(state)
        elif isinstance(target, np.dtype):
            if type(state) is not tuple or state[1] not in ("<", "|"):
                raise _Refused(f"{self.path}: a NumPy type of another byte order; refused")
        elif type(target) is not dict:  # a state dict has remarks on versions, which are left out
            raise _Refused(f"{self.path}: a state for a {type(target).__name__}; refused")

    def _storage(self) -> None:
        kind, name, key, _device, count = self.stack.pop()
        if (
            kind != "storage"
            or type(key) is not str
            or type(name) is not Name
            or name.text not in STORAGES
        ):
            raise _Refused(f"{self.path}: a storage of type {word(name)}; refused")
        entry, dtype = f"{self.folder}data/{key}", STORAGES[name.text]
        if (
            type(count) is not int
            or entry not in self.entries
            or self.entries[entry] != count * dtype.itemsize
        ):
            raise _Refused(
                f"{self.path}: storage {cut(entry)!r} should have {word(count)} numbers of {dtype},"
                f" but has {self.entries.get(entry, 'no')} bytes"
            )
        self.stack.append(Storage(self.path, entry, dtype, count, self.checked))

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any
    ) -> StoredTensor:
        if (
            type(storage) is not Storage
            or len(shape) != len(stride)
            or len(shape) > MAX_DIMENSIONS
            or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
        ):
            raise _Refused(
                f"{self.path}: a tensor without a valid storage, shape and stride; refused"
            )
        if max(prod(shape), offset + _reach(shape, stride)) > storage.count:
            raise _Refused(
                f"{self.path}: a tensor of shape {tuple(shape)} reaches outside its storage"
                f" {storage.entry!r} of {storage.count} numbers; refused"
            )
        return StoredTensor(storage, offset, tuple(shape), tuple(stride))

    def _parameter(self, data: Any, *_rest: Any) -> StoredTensor:
        if type(data) is not StoredTensor:
            raise _Refused(f"{self.path}: a parameter that is not a tensor; refused")
        return data

    def _ordered(self) -> dict[Any, Any]:
        return {}

    def _items(self, items: Any = ()) -> Any:
        """The members of a set or a size: few, so that no opcode makes much of little."""
        if len(items) > MAX_ITEMS:
            raise _Refused(f"{self.path}: a set or text of {len(items)} members; refused")
        return items

    def _set(self, items: Any = ()) -> set[Any]:
        return {self._plain(item) for item in self._items(items)}

    def _size(self, items: Any = ()) -> tuple[Any, ...]:
        return tuple(self._items(items))

    def _device(self, kind: Any, index: Any = 0) -> str:
        if type(kind) is not str or type(index) is not int:
            raise _Refused(f"{self.path}: a device that is not one; refused")
        return f"{self._items(kind)}:{index}"

    def _bytes(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise _Refused(f"{self.path}: text encoded as {word(encoding)}; refused")
        return self._items(text).encode("latin1")

    def _dtype(self, text: Any, *_flags: Any) -> np.dtype[Any]:
        if type(text) is not str or not re.fullmatch(r"[fiu][1248]|b1", text):
            raise _Refused(f"{self.path}: NumPy type {word(text)}; refused")
        return np.dtype(text)

    def _scalar(self, dtype: Any, data: Any) -> Any:
        if (
            not isinstance(dtype, np.dtype)
            or type(data) is not bytes
            or len(data) != dtype.itemsize
        ):
            raise _Refused(f"{self.path}: a NumPy number that is not one; refused")
        return np.frombuffer(data, dtype)[0].item()


def _reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Numbers from the first of a tensor to its last."""
    last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    return last + 1 if prod(shape) else 0


def word(value: Any) -> str:
    """A value from the file in an error: short, whatever it is."""
    if type(value) in (str, int, float, bool, Name):
        return repr(str(value)[:MAX_NAME])
    return f"a {type(value).__name__}"


_PUSH_ARGUMENT = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
}
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "BINPUT": lambda m, key: m.memo.__setitem__(key, m.stack[-1]),
    "LONG_BINPUT": lambda m, key: m.memo.__setitem__(key, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "TUPLE": lambda m, _: m.stack.append(tuple(m._since_mark())),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "APPEND": lambda m, _: m._append([m.stack.pop()]),
    "APPENDS": lambda m, _: m._append(m._since_mark()),
    "SETITEM": lambda m, _: m._set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m._set_items(m._since_mark()),
    "ADDITEMS": lambda m, _: m._add_items(m._since_mark()),
    "GLOBAL": lambda m, name: m._name(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m._stack_name(),
    "NEWOBJ": lambda m, _: m._new(),
    "REDUCE": lambda m, _: m._reduce(),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._storage(),
}
_REBUILD: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Machine._ordered,
    "builtins.set": _Machine._set,
    "torch.Size": _Machine._size,
    "torch.device": _Machine._device,
    "torch._utils._rebuild_tensor": _Machine._tensor,
    "torch._utils._rebuild_tensor_v2": _Machine._tensor,
    "torch._utils._rebuild_parameter": _Machine._parameter,
    "torch._utils._rebuild_parameter_with_state": _Machine._parameter,
    "_codecs.encode": _Machine._bytes,
    "numpy.dtype": _Machine._dtype,
    "numpy.core.multiarray.scalar": _Machine._scalar,
    "numpy._core.multiarray.scalar": _Machine._scalar,
}


def tensors(found: Record | dict[Any, Any]) -> dict[str, StoredTensor]:
    """Parameters and buffers of a module that was saved as a whole, by their full names, as in a
    state dict; or the tensors of a dict and of the dicts in it.
    """
    if isinstance(found, Record):
        groups: Iterable[tuple[Sequence[str], Any]] = (
            (where, owner.state.get(group))
            for where, owner in modules(found)
            for group in ("_parameters", "_buffers")
        )
    else:
        groups = (((), group) for group in (found, *found.values()))
    named, n_names = dict[str, StoredTensor](), 0
    for where, group in groups:
        if type(group) is dict:
            n_names += len(group)
            values = ((n, v) for n, v in group.items() if type(v) is StoredTensor)
            named |= {".".join((*where, str(name))): value for name, value in values}
            if n_names > MAX_NAMES or len(named) > MAX_TENSORS:
                raise UbrainError(f"the file names more than {MAX_TENSORS} tensors; refused")
    return named


def modules(module: Record) -> Iterator[tuple[tuple[str, ...], Record]]:
    """A module and all below it, each once, with the names that lead to it."""
    waiting: list[tuple[tuple[str, ...], Record]] = [((), module)]
    seen, n_names = set[int](), 0
    while waiting:
        where, owner = waiting.pop()
        if id(owner) not in seen:
            seen.add(id(owner))
            yield where, owner
            below = owner.state.get("_modules")
            if type(below) is dict and len(where) < MAX_DEPTH:
                if (n_names := n_names + len(below)) > MAX_NAMES:
                    raise UbrainError(f"the file names more than {MAX_NAMES} modules; refused")
                waiting += [
                    ((*where, str(n)), m) for n, m in reversed(below.items()) if type(m) is Record
                ]
