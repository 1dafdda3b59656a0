"""Download of recordings that anybody may download: terms first, resumed where it stopped,
checked, complete or absent.
"""

import contextlib
import fnmatch
import json
import re
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests
from filelock import FileLock, Timeout

from ubrain.errors import UbrainError
from ubrain.paths import write_text
from ubrain.progress import log, track
from ubrain.resume import require_space

FIGSHARE = "https://api.figshare.com/v2/articles/{}/files?page_size=1000"
MOSAIC = "https://mosaicfmri.s3.amazonaws.com/fMRIPrepv23_2_0/task_fMRI/betas/GLMsinglev1_2/{dataset}/{name}"
CHECKSUMS = "SHA256SUMS"  # what was seen at the first download; `sha256sum -c` reads it
LARGEST = 200 << 30  # bytes; a larger file is none of these
CHUNK = 1 << 20
CONNECT, STALL = 15, 60  # seconds until a silent server counts as down
ATTEMPTS = 6  # in a row without a single new byte
WAITS = (1, 2, 5, 15, 30)  # seconds before the next attempt
REDIRECTS = 5
pooch.get_logger().setLevel("WARNING")  # ubrain says what happens


@dataclass(frozen=True)
class File:
    """One file: its name on disk, its address, and a published checksum such as "md5:..." if there
    is one.
    """

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
    text = (resources.files("ubrain") / "data" / "open_data.toml").read_text(encoding="utf-8")
    return {name: _entry(values) for name, values in tomllib.loads(text).items()}


def _entry(values: dict[str, Any]) -> Entry:
    files = [
        File(f["name"], f["url"], next((f"{h}:{f[h]}" for h in ("sha256", "md5") if h in f), None))
        for f in values.pop("files", [])
    ]
    if masks := values.pop("masks", None):
        files += [
            File(name.rpartition("/")[2], masks["below"] + name)
            for area, subjects in masks["areas"].items()
            for name in (f"sub-CSI{i}/sub-CSI{i}_mask-{area}.nii.gz" for i in subjects)
        ]
    if mosaic := values.pop("mosaic", None):
        names = [f"sub-{i:02d}_{mosaic['short']}.hdf5" for i in range(1, mosaic["subjects"] + 1)]
        files += [File(name, MOSAIC.format(dataset=mosaic["dataset"], name=name)) for name in names]
    return Entry(files=tuple(files), **values)


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
    lines = [
        f"{name}: {entry.title}",
        f"  terms  {entry.terms}",
        f"  cite   {entry.citation}",
        f"  from   {entry.page}",
    ]
    if entry.unconfirmed:
        lines.append(f"  [unconfirmed] {entry.unconfirmed}")
    return "\n".join(lines)


def find(name: str, entries: Mapping[str, Entry] | None = None) -> Entry:
    """The entry of a name.

    Raises
    ------
    UbrainError
        For an unknown name, and for data that may be had only by agreement, with the place where to
        ask.
    """
    entries = catalogue() if entries is None else entries
    if name not in entries:
        raise UbrainError(
            f"nothing is known about {name!r}; `ubrain fetch --list` shows what there is"
        )
    if entries[name].agreement:
        raise UbrainError(
            f"{entries[name].title} cannot be downloaded by ubrain: {entries[name].agreement}"
        )
    return entries[name]


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
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        if entry.mesh:
            return _fetch_mesh(entry.mesh, out)
        files = entry.files if entry.figshare is None else _figshare_files(entry.figshare, out)
        chosen = [f for f in files if fnmatch.fnmatchcase(f.name, only)]
        if not chosen:
            raise UbrainError(
                f"no file matches {only!r}; there are {', '.join(f.name for f in files[:8])} ..."
            )
        require_space(
            out / "files", sum(f.size or 0 for f in chosen if not (out / f.name).exists())
        )
        return [_fetch_file(f, out) for f in chosen]


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    try:
        with FileLock(out / ".fetch.lock", timeout=0):
            yield
    except Timeout:
        raise UbrainError(
            f"another `ubrain fetch` is writing into {out}; wait for it, or use another folder"
        ) from None


def _fetch_mesh(mesh: str, out: Path) -> list[Path]:
    from nilearn.datasets import fetch_surf_fsaverage

    try:
        found = fetch_surf_fsaverage(mesh, data_dir=str(out))
    except (requests.RequestException, ValueError, RuntimeError) as error:
        raise UbrainError(f"nilearn could not fetch {mesh}: {error}; try again later") from error
    paths = sorted(
        {Path(v).resolve() for v in found.values() if isinstance(v, str) and Path(v).is_file()}
    )
    seen = _checksums(out)
    now = {
        p.relative_to(out.resolve()).as_posix(): pooch.file_hash(str(p), alg="sha256")
        for p in paths
    }
    for name, digest in now.items():
        if seen.get(name, digest) != digest:
            raise UbrainError(
                f"{out / name} is not what it was at the first download; delete it and fetch it"
                f" again, or delete its line in {out / CHECKSUMS} if it may differ"
            )
    _write_checksums(out, seen | now)
    return paths


def _figshare_files(article: int, out: Path) -> tuple[File, ...]:
    """The files of a figshare article, with the checksums that figshare publishes."""
    listed = File(f"figshare-{article}.json", FIGSHARE.format(article))
    Download(listed, out)(listed.url, out / listed.name)
    try:
        if (out / listed.name).stat().st_size > 16 << 20:
            raise ValueError("it is longer than 16 MB")
        found = json.loads((out / listed.name).read_bytes())
        return tuple(
            File(
                _text(f["name"]),
                _text(f["download_url"]),
                f"md5:{_text(f['computed_md5'])}" if f.get("computed_md5") else None,
                int(f["size"]),
            )
            for f in found
        )
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UbrainError(
            f"figshare's list of the files of article {article} is not what was expected: {error!r}"
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    return value


def _fetch_file(file: File, out: Path) -> Path:
    check_file_name(file.name)
    seen = _checksums(out)
    known = file.checksum or seen.get(file.name)
    target = out / file.name
    if target.is_symlink():
        raise UbrainError(f"{target} is a link; delete it, or choose another folder")
    if target.exists() and known is None:
        log.info("%s was there already; its checksum is unknown, so it is not checked", target)
        return target
    try:
        pooch.retrieve(file.url, known, fname=file.name, path=out, downloader=Download(file, out))
    except ValueError as error:
        if isinstance(error, UbrainError):
            raise
        first = (
            ""
            if file.checksum
            else f"; if the authors have changed it, delete its line in {out / CHECKSUMS}"
        )
        raise UbrainError(
            f"{file.name} from {file.url} is damaged: its checksum is not {known}{first}. "
            "Fetch it again"
        ) from None
    if file.name not in seen:
        _write_checksums(out, seen | {file.name: pooch.file_hash(str(target), alg="sha256")})
    return target


def check_file_name(name: str) -> str:
    """A name that stays in its folder, is not hidden, and works on every system."""
    if (
        not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.()+ -]{0,199}", name)
        or name.endswith((".", " "))
        or name == CHECKSUMS
    ):
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
    write_text(
        out / CHECKSUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    )


@dataclass
class Download:
    """A downloader for pooch that continues where it stopped, and gives up only when nothing moves
    any more.

    What has arrived is kept in `.NAME.part` beside the file, with its origin in `.NAME.part.json`.
    """

    file: File
    out: Path
    attempts: int = field(default=0, init=False)

    def __call__(self, url: str, output_file: str | Path, _: object = None) -> None:
        """Download `url` to `output_file`."""
        check_url(url)
        if self.part.is_symlink():
            raise UbrainError(f"{self.part} is a link; delete it, or choose another folder")
        while True:
            before = self._arrived()
            try:
                self._continue(url)
                break
            except (requests.RequestException, _Again) as error:
                self._wait(url, error, moved=self._arrived() > before)
            except OSError as error:
                raise UbrainError(
                    f"{self.part} cannot be written: {error}; the same command continues"
                ) from error
        self.part.replace(output_file)
        self._origin.unlink(missing_ok=True)

    @property
    def part(self) -> Path:
        """Where the file is while it is incomplete."""
        return self.out / f".{self.file.name}.part"

    @property
    def _origin(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _wait(self, url: str, error: Exception, moved: bool) -> None:
        self.attempts = 1 if moved else self.attempts + 1
        if self.attempts >= ATTEMPTS:
            raise UbrainError(
                f"{url} does not answer as it should ({error}); {self._arrived() / 1e6:.1f} MB of "
                f"{self.file.name} are kept, and the same command continues"
            ) from None
        seconds = max(WAITS[min(self.attempts, len(WAITS)) - 1], getattr(error, "seconds", 0))
        log.info("%s: %s; next attempt in %.0f s", self.file.name, error, seconds)
        time.sleep(seconds)

    def _continue(self, url: str) -> None:
        """One attempt: ask for what is missing, and write it. Returns if the file is complete."""
        start, origin = self._arrived(), self._read_origin(url)
        if start and start == origin.get("total"):
            return
        if start and not origin.get("version"):
            start = 0  # nobody can tell whether the server still has the same file
        ask = {"Range": f"bytes={start}-", "If-Range": origin["version"]} if start else {}
        with contextlib.closing(_open(url, ask)) as response:
            start, total = self._place(response, start)
            if total is not None and total > LARGEST:
                raise UbrainError(
                    f"{url} has {total / 1e9:.0f} GB; files above {LARGEST / 1e9:.0f} GB are"
                    " refused"
                )
            require_space(self.part, (total or 0) - start)
            version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            weak = version.startswith("W/")
            write_text(
                self._origin,
                json.dumps({"url": url, "version": "" if weak else version, "total": total}),
            )
            self._write(response, start, total)
        if total is not None and self._arrived() < total:
            raise _Again(f"it ended after {self._arrived()} of {total} bytes")

    def _read_origin(self, url: str) -> dict[str, Any]:
        try:
            origin = json.loads(self._origin.read_text(encoding="utf-8"))
            known = origin.get("url") == url and isinstance(origin.get("version"), str)
            return origin if known and origin["version"].isprintable() else {}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}

    def _place(self, response: requests.Response, start: int) -> tuple[int, int | None]:
        """Where in the file the answer begins, and the size of the whole, if the server says it."""
        if response.status_code in (206, 416):
            found = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", "")
            )
            if response.status_code == 416 or not found or int(found[1]) != start:
                self.part.unlink(missing_ok=True)
                raise _Again(
                    f"asked for byte {start} and on, it sent"
                    f" {response.headers.get('Content-Range', 'nothing')!r}"
                )
            return start, int(found[3])
        if "html" in response.headers.get("Content-Type", "") and not self.file.name.endswith(
            (".html", ".htm")
        ):
            raise UbrainError(
                f"{response.url} sent a web page instead of {self.file.name}; open it in a browser"
                " to see why"
            )
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal() and response.headers.get("Transfer-Encoding") != "chunked":
            raise UbrainError(
                f"{response.url} does not say how long {self.file.name} is, so a cut could not be"
                " noticed; download it with a browser"
            )
        return 0, int(length) if length.isdecimal() else None

    def _write(self, response: requests.Response, start: int, total: int | None) -> None:
        with open(self.part, "r+b" if start else "wb") as part:
            part.seek(start)
            part.truncate()
            for chunk in track(
                response.iter_content(CHUNK), (total or start) - start, self.file.name, len
            ):
                part.write(chunk)
                part.flush()
                if part.tell() > (LARGEST if total is None else total):
                    part.truncate(0)
                    raise _Again("it sent more bytes than it said")


class _Again(Exception):
    """The answer was no good, but another attempt may be; `seconds`: how long the server wants to
    be left alone.
    """

    def __init__(self, message: str, seconds: float = 0) -> None:
        super().__init__(message)
        self.seconds = seconds


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
        If the file is not there, or the server refuses. Errors that may pass are `_Again` or those
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
        raise _Again(
            f"the server answers {status}", min(float(after), 120) if after.isdecimal() else 0
        )
    raise UbrainError(
        f"{url} answers {status} {response.reason}: the address may have changed, or needs an"
        " agreement"
    )
