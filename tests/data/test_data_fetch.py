"""Downloads from a server on the loopback that cuts off, ignores ranges, and serves the wrong file."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gossamer.data import default_task, load_task
from gossamer.data.catalog import DATASETS
from gossamer.data.fetch import fetch
from gossamer.errors import BadInput, CorruptFile

CONTENT = bytes(range(256)) * 4000
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """cut: the connection closes after so many bytes of an answer, as often as there are entries."""

    url: str = ""
    content: dict[str, bytes] = field(default_factory=lambda: {"/file": CONTENT})
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    status: int = 0
    requests: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.requests.append(asked)
            content = state.content.get(self.path)
            if state.status or content is None:
                self.send_error(state.status or 404)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + state.cut.pop(0)] if state.cut else content[start:])

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}/file"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_is_downloaded_checked_and_kept(server: Server, tmp_path: Path, algorithm: str) -> None:
    checksum = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    path = fetch(server.url, tmp_path / "deep" / "file", checksum)
    assert path.read_bytes() == CONTENT
    fetch(server.url, path, checksum)
    assert server.requests == [None]
    assert not path.with_name("file.part").exists()


def test_an_interruption_is_continued_at_once_from_where_it_was(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000, 200_000]
    assert fetch(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=500000-"]


def test_what_came_is_kept_for_the_next_run_when_the_server_gives_up(server: Server, tmp_path: Path) -> None:
    server.cut = [100_000, 100_000, 100_000]
    with pytest.raises(BadInput, match=r"cannot download http.*closed after 100000 of 824000.*300000 bytes are kept"):
        fetch(server.url, tmp_path / "file", SHA256)
    assert not (tmp_path / "file").exists()
    assert fetch(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=300000-"


def test_a_server_that_ignores_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    assert fetch(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_part_that_is_already_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_stays(server: Server, tmp_path: Path) -> None:
    server.content["/file"] = CONTENT[:-1] + b"x"
    with pytest.raises(CorruptFile, match=f"wrong checksum, it must be {SHA256}"):
        fetch(server.url, tmp_path / "file", SHA256)
    assert {p.name for p in tmp_path.iterdir()} <= {"file.lock"}


def test_a_part_of_another_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"other" * 100)
    assert fetch(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert server.requests == ["bytes=500-", None]


def test_a_missing_file_is_not_asked_for_again_and_a_struggling_server_is(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(BadInput, match="404"):
        fetch(server.url, tmp_path / "file", SHA256)
    assert len(server.requests) == 1
    server.status = 503
    with pytest.raises(BadInput, match="503"):
        fetch(server.url, tmp_path / "file", SHA256)
    assert len(server.requests) == 4


def test_no_server_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot download http://127\.0\.0\.1:1/file"):
        fetch("http://127.0.0.1:1/file", tmp_path / "file", SHA256)


def test_several_at_once_download_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(server.url, tmp_path / "file", SHA256), range(4)))
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert server.requests == [None]


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(BadInput, match=r"cannot write .*taken.*\$GOSSAMER_DATA"):
        fetch(server.url, tmp_path / "taken" / "file", SHA256)


def idx(kind: str, n: int) -> bytes:
    if kind == "images":
        return gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(n * 784))
    return gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, n]) + bytes(i % 2 for i in range(n)))


def test_a_data_set_is_downloaded_into_its_folder_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, files = server.url.removesuffix("file"), []
    for file in DATASETS["mnist"].files:
        raw = idx("images" if "images" in file.name else "labels", 12)
        server.content[f"/{file.name}"] = raw
        files.append(replace(file, url=base + file.name, checksum="md5:" + hashlib.md5(raw).hexdigest()))
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], files=tuple(files)))
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))  # the user may have the data
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / files[1].also[0]).write_bytes(gzip.decompress(idx("labels", 12)))
    for _ in range(2):
        assert len(load_task("mnist", validation=2, batch_size=5).train) == 2
    assert len(server.requests) == 3  # one was there, unpacked
    assert (tmp_path / "mnist" / files[0].name).exists()
    server.status = 404
    (tmp_path / "mnist" / files[3].name).unlink()
    with pytest.raises(BadInput, match=r"mnist was not found in .*, and cannot download .*404.*put http"):
        load_task("mnist", validation=2)


def test_the_default_is_digits_where_the_download_fails(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fashion = DATASETS["fashion-mnist"]
    files = tuple(replace(file, url=server.url, checksum="md5:0") for file in fashion.files)
    monkeypatch.setitem(DATASETS, "fashion-mnist", replace(fashion, files=files))
    monkeypatch.setattr("gossamer.data.load.roots", lambda root=None: [tmp_path])
    task, note = default_task()
    assert task.name == "digits"
    assert "wrong checksum" in note
