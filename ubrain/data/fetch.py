"""Download of recordings that anybody may have: terms first, resumed, checked, all or nothing.

pooch compares checksums and gives a file its name when it is complete; it cannot continue a
download that was interrupted, so `download` does that.
"""

import contextlib
import fnmatch
import json
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests

from ubrain.errors import UbrainError
from ubrain.paths import write_text
from ubrain.progress import log, track
from ubrain.resume import locked, require_space

FIGSHARE = "https://api.figshare.com/v2/articles/{}/files?page_size=1000"
MOSAIC = "https://mosaicfmri.s3.amazonaws.com/fMRIPrepv23_2_0/task_fMRI/betas/GLMsinglev1_2/"
CHECKSUMS = "SHA256SUMS"  # what was seen at the first download; `sha256sum -c` reads it
LARGEST = 200 << 30  # bytes; a larger file is none of these
LONGEST_LIST = 16 << 20  # bytes of figshare's list of files
CHUNK = 1 << 20
CONNECT, STALL = 15, 60  # seconds until a silent server counts as down
ATTEMPTS = 6  # in a row without a single new byte
WAITS = (1, 2, 5, 15, 30)  # seconds before the next attempt
REDIRECTS = 5
pooch.get_logger().setLevel("WARNING")  # ubrain says what happens


@dataclass(frozen=True)
class File:
    """A file: name on disk, address, and a published checksum ("md5:...") if there is one."""

    name: str
    url: str
    checksum: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Entry:
    """A dataset in the catalogue: files, or the agreement that is needed for them.

    `figshare` is an article whose files are listed when they are fetched, `mesh` a name that
    nilearn knows.
    """

    title: str
    terms: str = ""
    citation: str = ""
    page: str = ""
    unconfirmed: str = ""
    agreement: str = ""
    files: tuple[File, ...] = ()
    figshare: int | None = None
    mesh: str = ""


def catalogue() -> dict[str, Entry]:
    """Everything that `fetch` knows, by name."""
    text = resources.files("ubrain.data").joinpath("open_data.toml").read_text(encoding="utf-8")
    return {name: _entry(**values) for name, values in tomllib.loads(text).items()}


def _entry(files: Any = (), masks: Any = None, mosaic: Any = None, **values: Any) -> Entry:
    """An entry of the catalogue; many files of regular names are written there as a pattern."""
    found = [
        File(f["name"], f["url"], next((f"{h}:{f[h]}" for h in ("sha256", "md5") if h in f), None))
        for f in files
    ]
    for area, subjects in masks["areas"].items() if masks else ():
        names = [f"sub-CSI{i}_mask-{area}.nii.gz" for i in subjects]
        found += [File(name, f"{masks['below']}{name[:8]}/{name}") for name in names]
    if mosaic:
        names = [f"sub-{i:02d}_{mosaic['short']}.hdf5" for i in range(1, mosaic["subjects"] + 1)]
        found += [File(name, f"{MOSAIC}{mosaic['dataset']}/{name}") for name in names]
    return Entry(files=tuple(found), **values)


def listing(entries: Mapping[str, Entry]) -> str:
    """The catalogue as text."""
    lines = []
    for name, entry in entries.items():
        count = len(entry.files) or "several"
        how = "needs an agreement" if entry.agreement else f"{count} file{'s' * (count != 1)}"
        lines.append(f"{name:<18} {entry.title} ({how})")
    return "\n".join(lines)


def conditions(name: str, entry: Entry) -> str:
    """Terms, citation and origin of a dataset: to be read before the first byte."""
    text = f"{name}: {entry.title}\n  terms  {entry.terms}\n  cite   {entry.citation}"
    text += f"\n  from   {entry.page}"
    return text + (f"\n  [unconfirmed] {entry.unconfirmed}" if entry.unconfirmed else "")


def find(name: str, entries: Mapping[str, Entry] | None = None) -> Entry:
    """The entry of a name.

    Raises
    ------
    UbrainError
        For an unknown name, and for data that may be had only by agreement, with the place where to
        ask.
    """
    entry = (catalogue() if entries is None else entries).get(name)
    if entry is None:
        raise UbrainError(
            f"nothing is known about {name!r}; `ubrain fetch --list` shows what there is"
        )
    if entry.agreement:
        raise UbrainError(f"{entry.title} cannot be downloaded by ubrain: {entry.agreement}")
    return entry


def fetch(entry: Entry, out: str | Path, only: str = "*") -> list[Path]:
    """Download the files of an entry into a folder; what is there and unchanged stays, what was
    interrupted continues.

    A file appears under its name only when it is complete and its checksum right. Where its authors
    publish no checksum, the one seen at first is kept in `SHA256SUMS`, and later downloads have to
    have the same.

    Parameters
    ----------
    only : pattern of file names, such as "Subject1*".

    Raises
    ------
    UbrainError
        If nothing matches, the disk is too small, the server refuses or stays silent, or a checksum
        is wrong.
    """
    out = Path(out)
    with locked(out, f"a download into {out}"):
        if entry.mesh:
            return _fetch_mesh(entry.mesh, out)
        files = entry.files if entry.figshare is None else _figshare_files(entry.figshare, out)
        chosen = [f for f in files if fnmatch.fnmatchcase(f.name, only)]
        if not chosen:
            names = ", ".join(f.name for f in files[:8])
            raise UbrainError(f"no file matches {only!r}; there are {names} ...")
        missing = [f.size or 0 for f in chosen if not (out / f.name).exists()]
        require_space(out / "files", sum(missing))
        return [_fetch_file(f, out) for f in chosen]


def _fetch_mesh(mesh: str, out: Path) -> list[Path]:
    from nilearn.datasets import fetch_surf_fsaverage

    try:
        found = fetch_surf_fsaverage(mesh, data_dir=str(out))
    except (requests.RequestException, ValueError, RuntimeError) as error:
        raise UbrainError(f"nilearn could not fetch {mesh}: {error}; try again later") from error
    paths = {Path(v).resolve() for v in found.values() if isinstance(v, str) and Path(v).is_file()}
    seen = _checksums(out)
    for path in sorted(paths):
        name, digest = path.relative_to(out.resolve()).as_posix(), pooch.file_hash(str(path))
        if seen.setdefault(name, digest) != digest:
            raise UbrainError(
                f"{out / name} is not what it was at the first download; delete it and fetch it"
                f" again, or delete its line in {out / CHECKSUMS} if it may differ"
            )
    _write_checksums(out, seen)
    return sorted(paths)


def _figshare_files(article: int, out: Path) -> tuple[File, ...]:
    """The files of a figshare article, with the checksums that figshare publishes."""
    path = out / f"figshare-{article}.json"
    download(FIGSHARE.format(article), path)
    try:
        if path.stat().st_size > LONGEST_LIST:
            raise ValueError(f"it is longer than {LONGEST_LIST >> 20} MB")
        listed = json.loads(path.read_bytes())
        files = tuple(
            File(
                f["name"],
                f["download_url"],
                "md5:" + f["computed_md5"] if f.get("computed_md5") else None,
                int(f["size"]),
            )
            for f in listed
        )
        if wrong := [f for f in files if not isinstance(f.name, str) or not isinstance(f.url, str)]:
            raise ValueError(f"{wrong[0]!r:.80} has no name or no address")
    # whatever JSON can hold in place of the list that is expected
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise UbrainError(
            f"figshare's list of the files of article {article} is not what was expected: {e!r}"
        ) from None
    return files


def _fetch_file(file: File, out: Path) -> Path:
    check_file_name(file.name)
    seen, target = _checksums(out), out / file.name
    known = file.checksum or seen.get(file.name)
    if target.is_symlink():
        raise UbrainError(f"{target} is a link; delete it, or choose another folder")
    if target.exists() and known is None:
        log.info("%s was there already; its checksum is unknown, so it is not checked", target)
        return target

    def downloader(url: str, output: str, _: object) -> None:
        download(url, Path(output), name=file.name)

    try:
        pooch.retrieve(file.url, known, fname=file.name, path=out, downloader=downloader)
    except UbrainError:
        raise
    except ValueError:
        changed = f"; if the authors have changed it, delete its line in {out / CHECKSUMS}"
        raise UbrainError(
            f"{file.name} from {file.url} is damaged: its checksum is not {known}"
            f"{'' if file.checksum else changed}. Fetch it again"
        ) from None
    if file.name not in seen:
        _write_checksums(out, seen | {file.name: pooch.file_hash(str(target))})
    return target


def check_file_name(name: str) -> str:
    """A name that stays in its folder, is not hidden, and works on every system."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.()+ -]{0,199}", name)
    if not plain or name.endswith((".", " ")) or name == CHECKSUMS:
        raise UbrainError(
            f"a file called {name!r} is refused: expected letters, digits and '_.-+() ' only"
        )
    return name


def _checksums(out: Path) -> dict[str, str]:
    path = out / CHECKSUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UbrainError(
            f"{path} cannot be read: {error}; delete it, and the files in {out} are taken as"
            " they are"
        ) from error
    bad = [line for line in lines if not re.fullmatch(r"[0-9a-f]{64}  .+", line)]
    if bad:
        raise UbrainError(
            f"{path}: {bad[0][:80]!r} is not a checksum and a name; delete that line, or the file"
        )
    return {line[66:]: line[:64] for line in lines}


def _write_checksums(out: Path, digests: Mapping[str, str]) -> None:
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    write_text(out / CHECKSUMS, "".join(lines))


# --- one file, in as many attempts as it takes


class Again(Exception):
    """The answer was no good, but another attempt may be; `seconds` is what the server asks for."""

    def __init__(self, message: str, seconds: float = 0) -> None:
        super().__init__(message)
        self.seconds = seconds


def download(url: str, to: Path, name: str = "") -> None:
    """Download a file, from where it stopped; give up only when nothing moves any more.

    What has arrived is kept beside it in `.NAME.part`, its origin in `.NAME.part.json`.

    Parameters
    ----------
    name : of the file when it is complete, if not that of `to`.

    Raises
    ------
    UbrainError
        If the server refuses or stays silent, redirects to an unsafe place, does not say how long
        the file is, or if it is too large.
    """
    check_url(url)
    part, attempts = to.with_name(f".{name or to.name}.part"), 0
    if part.is_symlink():
        raise UbrainError(f"{part} is a link; delete it, or choose another folder")
    while True:
        before = _size(part)
        try:
            _continue(url, part)
            break
        except (requests.RequestException, Again) as error:
            attempts = 1 if _size(part) > before else attempts + 1
            if attempts >= ATTEMPTS:
                raise UbrainError(
                    f"{url} does not answer as it should ({error}); {_size(part) / 1e6:.1f} MB of "
                    f"{name or to.name} are kept, and the same command continues"
                ) from None
            wait = max(WAITS[min(attempts, len(WAITS)) - 1], getattr(error, "seconds", 0))
            log.info("%s: %s; next attempt in %.0f s", name or to.name, error, wait)
            time.sleep(wait)
        except OSError as error:
            raise UbrainError(
                f"{part} cannot be written: {error}; the same command continues"
            ) from error
    part.replace(to)
    _note(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    """Where the address, version and size of what arrives are noted."""
    return part.with_name(part.name + ".json")


def _read_note(part: Path, url: str) -> dict[str, Any]:
    """The note, or nothing if it is of another address or damaged."""
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        return note if note["url"] == url and note["version"].isprintable() else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _continue(url: str, part: Path) -> None:
    """One attempt: ask for what is missing, and write it. Returns if the file is complete."""
    start, note = _size(part), _read_note(part, url)
    if start and start == note.get("total"):
        return
    if not note.get("version"):
        start = 0  # the server may have another file by now
    ask = {"Range": f"bytes={start}-", "If-Range": note["version"]} if start else {}
    with contextlib.closing(_open(url, ask)) as response:
        start, total = _place(response, part, start)
        if total is not None and total > LARGEST:
            raise UbrainError(
                f"{url} has {total / 1e9:.0f} GB; files above {LARGEST / 1e9:.0f} GB are refused"
            )
        require_space(part, (total or 0) - start)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        version = "" if version.startswith("W/") else version  # a weak one may hide changes
        write_text(_note(part), json.dumps({"url": url, "version": version, "total": total}))
        with open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            chunks = response.iter_content(CHUNK)
            for chunk in track(chunks, (total or start) - start, part.stem[1:], len):
                file.write(chunk)
                file.flush()
                if file.tell() > (LARGEST if total is None else total):
                    file.truncate(0)
                    raise Again("it sent more bytes than it said")
    if total is not None and _size(part) < total:
        raise Again(f"it ended after {_size(part)} of {total} bytes")


def _place(response: requests.Response, part: Path, start: int) -> tuple[int, int | None]:
    """Where in the file the answer begins, and the size of the whole, if the server says it."""
    headers = response.headers
    if response.status_code in (206, 416):
        said = headers.get("Content-Range", "nothing")
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said)
        if response.status_code == 416 or not found or int(found[1]) != start:
            part.unlink(missing_ok=True)
            raise Again(f"asked for byte {start} and on, it sent {said!r}")
        return start, int(found[3])
    if "html" in headers.get("Content-Type", "") and not part.stem.endswith((".html", ".htm")):
        raise UbrainError(
            f"{response.url} sent a web page instead of {part.stem[1:]}; open it in a browser to"
            " see why"
        )
    length = headers.get("Content-Length", "")
    if not length.isdecimal() and headers.get("Transfer-Encoding") != "chunked":
        raise UbrainError(
            f"{response.url} does not say how long {part.stem[1:]} is, so a cut could not be"
            " noticed; download it with a browser"
        )
    return 0, int(length) if length.isdecimal() else None


def check_url(url: str, before: str = "") -> str:
    """Only https; http only to this machine, or to stay on a server that was asked by http."""
    new, old = urlsplit(url), urlsplit(before)
    stays = new.scheme == old.scheme == "http" and new.netloc == old.netloc
    local = not before and new.scheme == "http" and new.hostname in ("127.0.0.1", "localhost")
    if not (new.scheme == "https" or stays or local) or new.username or not new.hostname:
        raise UbrainError(
            f"{f'{before} redirects to ' if before else ''}{url}: only https addresses are followed"
        )
    return url


def _open(url: str, headers: Mapping[str, str]) -> requests.Response:
    """The answer to a request, after redirections to safe places only. The caller closes it.

    Raises
    ------
    UbrainError
        If the file is not there, or the server refuses. Errors that may pass are `Again` or those
        of requests.
    """
    check_url(url)
    for _ in range(REDIRECTS + 1):
        response = requests.get(
            url,
            headers={"Accept-Encoding": "identity", "User-Agent": "ubrain", **headers},
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT, STALL),
        )
        if not response.is_redirect:
            break
        response.close()
        url = check_url(urljoin(url, response.headers["Location"]), before=url)
    status = response.status_code
    if status in (200, 206, 416):
        return response
    response.close()
    if response.is_redirect:
        raise UbrainError(f"{url} redirects more than {REDIRECTS} times")
    if status in (408, 425, 429) or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise Again(
            f"the server answers {status}", min(float(after), 120) if after.isdecimal() else 0
        )
    raise UbrainError(
        f"{url} answers {status} {response.reason}: the address may have changed, or needs an"
        " agreement"
    )
