"""Download from a local server that stalls, cuts, corrupts, redirects and recovers; no network."""

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from click.testing import CliRunner

from ubrain.cli import app
from ubrain.data import fetch as fetching
from ubrain.data.fetch import Entry, File, catalogue, conditions, fetch, find
from ubrain.errors import UbrainError
from ubrain.resume import locked

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers with BODY after its `faults`, one a request; `requests` are the headers that came."""

    daemon_threads = True

    def __init__(self) -> None:
        self.body, self.etag, self.ranges = BODY, '"first"', True
        self.faults: list[Callable[[Any], None]] = []
        self.requests: list[dict[str, str]] = []
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers.items()))
        if self.server.faults:
            self.server.faults.pop(0)(self)
        else:
            self.send_body()

    def start(self) -> tuple[int, bytes]:
        """Send the headers; the first byte and what is to be sent."""
        body, asked = self.server.body, self.headers.get("Range")
        first = (
            int(asked.removeprefix("bytes=").removesuffix("-"))
            if asked and self.server.ranges
            else 0
        )
        if asked and self.headers.get("If-Range", self.server.etag) != self.server.etag:
            first = 0
        if first >= len(body):
            self.answer(416, {"Content-Range": f"bytes */{len(body)}"})
            return first, b""
        headers = {"Content-Length": str(len(body) - first), "ETag": self.server.etag}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        self.answer(206 if first else 200, headers)
        return first, body[first:]

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def send_body(self, most: int | None = None) -> None:
        self.wfile.write(self.start()[1][:most])
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def answer(status: int, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(
        status, {k.replace("_", "-"): v for k, v in headers.items()}
    )


def cut(after: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_body(after)


def stall(handler: Handler) -> None:
    handler.send_body(200_000)
    handler.server.released.wait(5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "WAITS", (0,))
    monkeypatch.setattr(fetching, "STALL", 0.3)
    monkeypatch.setattr(fetching, "ATTEMPTS", 3)
    monkeypatch.setattr(fetching, "CHUNK", 1 << 14)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def entry(server: Server) -> Entry:
    return Entry("Title", files=(File("data.h5", f"{server.url}/data"),))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def asked_from(server: Server) -> list[int]:
    """First byte of each request."""
    return [int(r.get("Range", "bytes=0-")[6:-1]) for r in server.requests]


def left_over(out: Path) -> list[str]:
    return sorted(p.name for p in out.glob(".data*"))


def test_a_file_arrives_its_checksum_is_kept_and_it_is_not_asked_for_again(server, entry, out):
    (path,) = fetch(entry, out)
    assert path == out / "data.h5"
    assert path.read_bytes() == BODY
    assert (out / "SHA256SUMS").read_text() == f"{SHA256}  data.h5\n"
    assert sorted(p.name for p in out.iterdir()) == ["SHA256SUMS", "data.h5"]
    assert fetch(entry, out) == [path]
    assert len(server.requests) == 1


def test_a_file_damaged_on_disk_is_replaced(server, entry, out):
    (path,) = fetch(entry, out)
    path.write_bytes(BODY[:-1] + b"x")
    fetch(entry, out)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("fault", [cut(200_000), stall], ids=["cut", "stall"])
def test_what_stops_midway_is_continued_there(server, entry, out, fault):
    server.faults = [fault]
    (path,) = fetch(entry, out)
    assert path.read_bytes() == BODY
    first, second = asked_from(server)
    assert (first, second > 100_000) == (0, True)


def interrupted(server: Server, entry: Entry, out: Path) -> Path:
    """A command that gives up, and leaves a part; how large it is matters to the next one."""
    server.faults = [cut(200_000), *[answer(503, Content_Length="0")] * 5]
    with pytest.raises(
        UbrainError, match=r"answers 503.* are kept, and the same command continues"
    ):
        fetch(entry, out)
    assert len(server.requests) == 3
    assert not (out / "data.h5").exists()
    server.faults.clear()
    return out / ".data.h5.part"


@pytest.mark.parametrize("name", ["as it was", "complete", "too long"])
def test_another_command_continues_what_one_left(server, entry, out, name):
    part = interrupted(server, entry, out)
    part.write_bytes({"as it was": part.read_bytes(), "complete": BODY}.get(name, BODY + b"more"))
    (path,) = fetch(entry, out)
    assert path.read_bytes() == BODY
    asked = asked_from(server)[3:]
    assert {"as it was": asked > [100_000], "complete": asked == []}.get(name, asked[-1:] == [0])


def test_a_server_that_ignores_ranges_sends_it_all_again(server, entry, out):
    server.ranges, server.faults = False, [cut(200_000)]
    (path,) = fetch(entry, out)
    assert path.read_bytes() == BODY


def test_parts_of_two_versions_are_not_joined(server, entry, out):
    def change(handler: Handler) -> None:
        handler.send_body(200_000)
        server.body, server.etag = BODY[::-1], '"second"'

    server.faults = [change]
    (path,) = fetch(entry, out)
    assert path.read_bytes() == BODY[::-1]


def test_a_range_that_was_not_asked_for_is_not_used(server, entry, out):
    def elsewhere(handler: Handler) -> None:
        handler.answer(
            206,
            {
                "Content-Range": f"bytes 7-{len(BODY) - 1}/{len(BODY)}",
                "Content-Length": str(len(BODY) - 7),
            },
        )
        handler.wfile.write(BODY[7:])

    server.faults = [cut(200_000), elsewhere]
    (path,) = fetch(entry, out)
    assert path.read_bytes() == BODY


def test_a_body_of_unsaid_length_is_refused_since_a_cut_could_not_be_seen(server, entry, out):
    def short(handler: Handler) -> None:
        handler.answer(200, {})
        handler.wfile.write(BODY[:1000])

    server.faults = [short] * 9
    with pytest.raises(UbrainError, match="how long"):
        fetch(entry, out)
    assert not (out / "data.h5").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_recovers_is_asked_again(server, entry, out, status):
    server.faults = [answer(status, Content_Length="0")] * 2
    (path,) = fetch(entry, out)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("status", [403, 404, 202])
def test_a_refusal_is_final_and_leaves_nothing(server, entry, out, status):
    server.faults = [answer(status, Content_Length="0")]
    with pytest.raises(UbrainError, match=f"/data answers {status}"):
        fetch(entry, out)
    assert len(server.requests) == 1
    assert left_over(out) == []


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_published_checksum_is_checked(server, entry, out, algorithm):
    published = f"{algorithm}:{hashlib.new(algorithm, BODY).hexdigest()}"
    entry = replace(entry, files=(replace(entry.files[0], checksum=published),))
    fetch(entry, out)
    server.body = BODY[:-1] + b"x"
    with pytest.raises(UbrainError, match="damaged"):
        fetch(entry, out / "corrupted")
    assert not (out / "corrupted").exists()


def test_a_file_that_changed_since_it_was_first_seen_is_refused(server, entry, out):
    (path,) = fetch(entry, out)
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(UbrainError, match=r"damaged.*delete its line in .*SHA256SUMS"):
        fetch(entry, out)
    assert not path.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_text(p.read_text()[:40]),
        lambda p: p.write_text(p.read_text().replace("a", "g")),
        lambda p: p.write_text(p.read_text() + "\0" * 100),
        lambda p: p.write_text(f"{p.read_text()}\n{p.read_text()}"),
        lambda p: p.write_bytes(b"\xff" * 80),
        lambda p: (p.unlink(), p.mkdir()),
    ],
    ids=["cut", "no digest", "zeros", "an empty line", "no text", "a folder"],
)
def test_a_damaged_register_is_refused_and_named(server, entry, out, damage):
    fetch(entry, out)
    damage(out / "SHA256SUMS")
    with pytest.raises(UbrainError, match="SHA256SUMS"):
        fetch(entry, out)
    assert (out / "data.h5").read_bytes() == BODY


GOOD = {"name": "data.h5", "download_url": "https://a.b/c", "computed_md5": "0" * 32, "size": 5}
WRONG = [
    *({"name": wrong} for wrong in (5, None)),
    *({"download_url": wrong} for wrong in (5, ["x"])),
    *({"size": wrong} for wrong in ("many", None, math.inf)),
    {"computed_md5": 5},
]
TEXTS = ["[", "{}x", "5", '"text"', '{"name": "x"}', "[5]", "[null]", "[[]]", '["name"]', "[{}]"]


@pytest.mark.parametrize(
    "text", [*TEXTS, "[" * 20000, *(json.dumps([GOOD | change]) for change in WRONG)]
)
def test_a_damaged_list_of_figshare_is_refused(server, out, monkeypatch, text):
    monkeypatch.setattr(fetching, "FIGSHARE", f"{server.url}/{{}}")
    server.body = text.encode()
    with pytest.raises(
        UbrainError, match="figshare's list of the files of article 7 is not what was expected"
    ):
        fetch(Entry("Title", figshare=7), out)


@pytest.mark.parametrize(
    "note", ['{"version": 5}', '{"version": "a\\nb"}', "[]", "[" * 20000, "\0"]
)
def test_a_damaged_note_of_what_has_arrived_is_not_believed(server, entry, out, note):
    out.mkdir()
    (out / ".data.h5.part").write_bytes(b"x" * 100)
    url = json.dumps(entry.files[0].url)
    (out / ".data.h5.part.json").write_text(
        note.replace('{"', f'{{"url": {url}, "total": 300000, "', 1)
    )
    (path,) = fetch(entry, out)
    assert path.read_bytes() == BODY


def test_redirects_on_the_same_server_are_followed_but_name_no_files(server, entry, out):
    server.faults = [answer(302, Location="/../../evil.h5", Content_Length="0")] * 2
    assert fetch(entry, out) == [out / "data.h5"]
    assert (out / "data.h5").read_bytes() == BODY
    assert [p.name for p in out.parent.rglob("*.h5")] == ["data.h5"]


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost:9/data",
        "file:///etc/passwd",
        "ftp://127.0.0.1/data",
        "https://user:secret@example.org/data",
    ],
)
def test_redirects_to_anywhere_but_https_are_refused(server, entry, out, target):
    server.faults = [answer(302, Location=target, Content_Length="0")]
    with pytest.raises(UbrainError, match="only https addresses are followed"):
        fetch(entry, out)
    assert left_over(out) == []


def test_redirects_end(server, entry, out):
    server.faults = [answer(302, Location="/again", Content_Length="0")] * 99
    with pytest.raises(UbrainError, match="redirects more than 5 times"):
        fetch(entry, out)
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "name", ["../data.h5", "/data.h5", "a/b.h5", ".hidden", "", "SHA256SUMS", "a\nb"]
)
def test_file_names_that_leave_the_folder_are_refused(server, out, name):
    with pytest.raises(UbrainError, match="is refused"):
        fetch(Entry("Title", files=(File(name, f"{server.url}/data"),)), out)
    assert server.requests == []


def test_a_web_page_is_not_a_file(server, entry, out):
    server.faults = [answer(200, Content_Type="text/html; charset=utf-8", Content_Length="0")]
    with pytest.raises(UbrainError, match="sent a web page instead of"):
        fetch(entry, out)


def test_files_that_are_too_large_are_refused_before_they_come(server, entry, out, monkeypatch):
    monkeypatch.setattr(fetching, "LARGEST", 1000)
    with pytest.raises(UbrainError, match="are refused"):
        fetch(entry, out)
    assert left_over(out) == []


def test_a_full_disk_is_said_before_the_download(server, entry, out, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(BODY) - 1))
    with pytest.raises(UbrainError, match="are free"):
        fetch(entry, out)


def test_a_link_in_place_of_the_file_is_not_written_through(server, entry, out):
    out.mkdir()
    precious = out.parent / "precious"
    precious.write_text("mine")
    (out / "data.h5").symlink_to(precious)
    with pytest.raises(UbrainError, match="is a link"):
        fetch(entry, out)
    assert precious.read_text() == "mine"


def test_two_fetches_do_not_write_into_one_folder(server, entry, out):
    out.mkdir()
    with locked(out, "it"), pytest.raises(UbrainError, match="another process is busy"):
        fetch(entry, out)


def test_only_chooses_files(server, out):
    files = tuple(File(f"Subject{i}.h5", f"{server.url}/{i}") for i in range(3))
    assert fetch(Entry("Title", files=files), out, "Subject[12]*") == [
        out / "Subject1.h5",
        out / "Subject2.h5",
    ]
    with pytest.raises(UbrainError, match=r"no file matches 'x'; there are Subject0\.h5"):
        fetch(Entry("Title", files=files), out, "x")


def test_the_catalogue_has_safe_addresses_and_names():
    for entry in catalogue().values():
        for file in entry.files:
            assert file.url.startswith("https://")
            assert fetching.check_file_name(file.name) == file.name


def test_every_dataset_has_terms_citation_and_source_or_an_agreement():
    for name, entry in catalogue().items():
        if entry.agreement:
            with pytest.raises(UbrainError, match="https://"):
                find(name)
        else:
            assert find(name) == entry
            assert all((entry.terms, entry.citation, entry.page))
            assert all(
                text in conditions(name, entry)
                for text in (entry.terms, entry.citation, entry.page)
            )
            assert entry.files or entry.figshare or entry.mesh


@pytest.mark.parametrize("name", ["nsd", "algonauts", "vim1", "god-images"])
def test_what_needs_an_agreement_says_how_to_go_on(name):
    with pytest.raises(UbrainError, match=r"https://.*ubrain import"):
        find(name)


def test_unknown_names_are_refused():
    with pytest.raises(UbrainError, match="nothing is known about 'gods'"):
        find("gods")


def test_masks_of_bold5000_are_named_as_published():
    names = [f.name for f in find("bold5000-masks").files]
    assert len(set(names)) == 40
    assert "sub-CSI2_mask-RHRRSC.nii.gz" in names
    assert "sub-CSI2_mask-RHRSC.nii.gz" not in names


def test_terms_are_printed_before_the_first_byte(server, entry, out, monkeypatch):
    read = replace(entry, terms="CC0", citation="A paper", page="a page")
    monkeypatch.setattr(fetching, "catalogue", lambda: {"known": read})
    server.faults = [answer(404, Content_Length="0")]
    done = CliRunner().invoke(app, ["fetch", "known", "--out", str(out)])
    assert done.exit_code == 1
    assert all(text in done.stdout for text in ("CC0", "A paper", "a page"))
    done = CliRunner().invoke(app, ["fetch", "known", "--out", str(out)])
    assert done.stdout.index("CC0") < done.stdout.index("data.h5")
    assert (out / "data.h5").read_bytes() == BODY


def test_meshes_come_from_nilearn_and_are_verified_later(out, monkeypatch):
    def nilearn(mesh: str, data_dir: str) -> dict[str, str]:
        path = Path(data_dir) / mesh / "pial_left.gii.gz"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(BODY)
        return {"pial_left": str(path), "description": "a mesh"}

    monkeypatch.setattr("nilearn.datasets.fetch_surf_fsaverage", nilearn)
    (path,) = fetch(find("fsaverage6"), out)
    assert (out / "SHA256SUMS").read_text() == f"{SHA256}  fsaverage6/pial_left.gii.gz\n"
    path.write_bytes(b"damaged")
    with pytest.raises(UbrainError, match="not what it was at the first download"):
        fetch(find("fsaverage6"), out)


def test_a_mesh_that_nilearn_cannot_get_is_an_error_in_words(out, monkeypatch):
    def nilearn(mesh: str, data_dir: str) -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr("nilearn.datasets.fetch_surf_fsaverage", nilearn)
    with pytest.raises(UbrainError, match="nilearn could not fetch fsaverage6: no route"):
        fetch(find("fsaverage6"), out)
