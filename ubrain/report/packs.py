"""Packs: what a run has read from the cache, in one file, so that another machine need not train.

A pack is a `.tar.xz`. Its first member, `pack.json`, says of which run and suite it is, which
versions made it, and of every other member size and SHA-256; the others are files of the cache.
Unpacked into a cache, they are found there as if they had been computed there: a notebook then only
scores and draws.

What takes long to import is imported where it is used: the help of a command need not wait for it.
"""

import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ubrain import paths
from ubrain.errors import UbrainError
from ubrain.progress import log, track
from ubrain.report.runs import run_notebooks
from ubrain.resume import locked, remove_partials, require_space

FORMAT, MANIFEST, MOST = "ubrain-pack", "pack.json", 4 << 20  # bytes of a manifest
ADDRESS = "UBRAIN_PACK_URL"
# What a cache holds, and a pack may: nothing else is unpacked.
MEMBER = re.compile(
    r"simulated-[\w-]+\.h5|kept/[\w-]+\.safetensors|features/[\w.-]+/[0-9a-f]{32}\.(bin|json)"
    r"|encoders/[\w-]+/(config\.json|log\.csv|encoder\.safetensors|voxels/[\w-]+\.csv)"
)
# Crowds that were simulated again have the same images: a window in which they are seen twice.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 28}]
BLOCK = 1 << 20


def pack(
    pattern: str = "*",
    out: str | Path | None = None,
    profile: str = "fast",
    seed: int = 0,
    jobs: int | None = None,
) -> Path:
    """Run notebooks, and put everything that they took from the cache into one file.

    Parameters
    ----------
    pattern : name or pattern of notebooks, for example `0[0-4]*`.
    out : the file; default: `ubrain-RUN.tar.xz`, of a run such as simulated-fast.
    profile : smoke, fast or paper.
    seed : seed of the simulated crowd, and of everything random.
    jobs : notebooks at the same time; see `ubrain run`.

    Raises
    ------
    UbrainError
        If a notebook fails, the file cannot be written, or another process is making it.
    """
    from ubrain.report.lab import run_name

    run = run_name(None, profile, seed)
    out = Path(out or f"ubrain-{run}.tar.xz")
    paths.check_out(out)
    with locked(out.with_name(f".{out.name}.work"), f"the pack {out}"):
        remove_partials(out.absolute().parent, out.name)
        with noting_use() as listing:
            outcomes = run_notebooks(pattern, profile, None, seed, jobs=jobs)
            names = set(listing.read_text(encoding="utf-8").split())
        document = json.loads(outcomes[0].file.read_text(encoding="utf-8"))
        about = {
            "run": run,
            "suite": document["suite"],
            "commit": document["commit"],
            "notebooks": [outcome.notebook for outcome in outcomes],
        }
        write(out, names, about)
    return out


@contextmanager
def noting_use() -> Iterator[Path]:
    """A file in which all processes started meanwhile note what they read from the cache."""
    before = os.environ.get(paths.USED)
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "used.txt"
        listing.touch()
        os.environ[paths.USED] = str(listing)
        try:
            yield listing
        finally:
            os.environ.pop(paths.USED)
            if before is not None:
                os.environ[paths.USED] = before


def write(out: Path, names: set[str], about: Mapping[str, Any]) -> None:
    """Write a pack of files and folders of the cache, given by their names in it."""
    root = paths.cache_root()
    found = [p for name in names for p in ((root / name), *(root / name).rglob("*"))]
    members = {p.relative_to(root).as_posix(): p for p in found if p.is_file()}
    members = {
        name: members[name] for name in sorted(members, key=_order) if MEMBER.fullmatch(name)
    }
    files: dict[str, tuple[int, str]] = {
        name: (path.stat().st_size, _digest(path)) for name, path in members.items()
    }
    told = {"format": FORMAT, "versions": versions(), **about, "files": files}
    with (
        paths.atomic(out) as partial,
        lzma.open(partial, "wb", filters=FILTERS) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        manifest = json.dumps(told, indent=1).encode()
        _add(archive, MANIFEST, len(manifest), io.BytesIO(manifest))
        for name, path in track(members.items(), len(members), "packing"):
            with path.open("rb") as file:
                _add(archive, name, files[name][0], file)


def unpack(pack: str = "release", profile: str | None = None, seed: int | None = None) -> Path:
    """Put the files of a pack into the cache; those that are there stay as they are.

    Parameters
    ----------
    pack : the file, an https address that ends in `#sha256=...`, or "release": the address in
        `$UBRAIN_PACK_URL`.
    profile, seed : of the run that it is wanted for; None: of any.

    Returns
    -------
    The cache.

    Raises
    ------
    UbrainError
        If it is no pack, is damaged, was made by other versions or for another run, or does not fit
        on the disk.
    """
    from ubrain.report.lab import run_name

    path, root = find(pack), paths.cache_root()
    with locked(root / "unpacking", f"a pack in {root}", wait=True), _opened(path) as archive:
        told = _manifest(path, archive)
        wanted = run_name(None, profile, seed or 0) if profile else told["run"]
        if told["run"] != wanted:
            raise UbrainError(
                f"{path} holds the run {told['run']}, not {wanted}; give its profile and seed, or"
                " make another pack with `ubrain pack`"
            )
        files = told["files"]
        missing = {name for name in files if not (root / name).exists()}
        require_space(root / "pack", sum(files[name][0] for name in missing))
        log.info("%s: %d of %d files are new here", path.name, len(missing), len(files))
        if missing:
            _extract(path, archive, files, missing, root)
    return root


def find(pack: str) -> Path:
    """The file of a pack, fetched if it is an address; see `unpack`."""
    from ubrain.data.fetch import Entry, File, fetch

    pack = os.environ.get(ADDRESS, "") if pack == "release" else pack
    if not pack:
        raise UbrainError(
            f"no pack is released yet: set {ADDRESS} to the address of one, give a file, or make"
            " one with `ubrain pack` (it trains what is not in the cache)"
        )
    if "://" not in pack:
        return Path(pack)
    address, _, checksum = pack.partition("#sha256=")
    if not re.fullmatch("[0-9a-f]{64}", checksum):
        raise UbrainError(f"{pack}: expected an address that ends in #sha256= and 64 hex digits")
    name = address.rsplit("/", 1)[-1] or "pack.tar.xz"
    entry = Entry("pack", files=(File(name, address, f"sha256:{checksum}"),))
    return fetch(entry, paths.cache_root() / "packs")[0]


def versions() -> dict[str, Any]:
    """What has to be the same where a pack is made and where it is used."""
    from ubrain import features, train
    from ubrain.data import simulate
    from ubrain.report import kept

    return {
        "encoders": train.VERSION,
        "crowds": simulate.VERSION,
        "fits": kept.VERSION,
        "features": features.MADE_WITH,
    }


def _order(name: str) -> tuple[bool, str]:
    """What says that a folder or an array is complete comes last: a killed unpacking continues."""
    return name.endswith(("/config.json", ".bin")), name


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)  # without time and owner: the same files give the same pack
    member.size = size
    archive.addfile(member, content)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A pack, to be read from front to end; whatever is wrong with it is one clear error."""
    try:
        with lzma.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UbrainError(f"{path} is no pack, or damaged ({error}); get it again") from error
    except OSError as error:
        raise UbrainError(f"{path} cannot be unpacked: {error.strerror or error}") from error


def _manifest(path: Path, archive: tarfile.TarFile) -> dict[str, Any]:
    """What the first member says, once it is known to be well-formed and of these versions."""
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > MOST:
        raise UbrainError(f"{path} is no pack: it does not begin with {MANIFEST}")
    content = archive.extractfile(first)
    try:
        told = json.loads(content.read(MOST) if content else b"")
        known = told["format"] == FORMAT and isinstance(told["run"], str)
        for name, (size, digest) in told["files"].items():
            known &= isinstance(size, int) and size >= 0 and isinstance(digest, str)
            known &= MEMBER.fullmatch(name) is not None
        made_by = told["versions"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        known = False
    if not known:
        raise UbrainError(f"{path} is no pack: its {MANIFEST} does not say what a pack's does")
    if made_by != versions():
        raise UbrainError(
            f"{path} was made by another version of ubrain ({json.dumps(made_by)}, here"
            f" {json.dumps(versions())}); make one anew with `ubrain pack`"
        )
    return dict(told)


def _extract(
    path: Path,
    archive: tarfile.TarFile,
    files: Mapping[str, Sequence[Any]],
    missing: set[str],
    root: Path,
) -> None:
    """Write the missing of the announced files, each under its name only when it is complete and
    its digest right.
    """
    for member in track(iter(archive.next, None), len(files), "unpacking"):
        size, digest = files.get(member.name, (None, None))
        content = archive.extractfile(member) if member.isreg() and member.size == size else None
        if content is None:
            raise UbrainError(f"{path} is damaged: {member.name} is not as announced; get it again")
        if member.name in missing:
            with paths.atomic(root / member.name) as partial:
                if _copied(content, partial) != digest:
                    raise UbrainError(f"{path} is damaged: {member.name} has another checksum")
            missing.remove(member.name)
    if missing:
        raise UbrainError(f"{path} is damaged: {min(missing)} is missing; get it again")


def _copied(content: IO[bytes], to: Path) -> str:
    """Copy to a file; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with to.open("wb") as file:
        while block := content.read(BLOCK):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
