"""polypseg.data.download against a server on this machine that cuts, changes, refuses and lies."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import random
import shutil
import socket
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polypseg.data import download as module
from polypseg.data import read
from polypseg.data.download import DATASETS, DataSet, download
from polypseg.errors import PolypsegError, UsageError

FRAMES = 3
REAL = Path(__file__).parents[3] / "shared" / "data"


def make_zip(extra: dict[str, bytes] | None = None, frames: int = FRAMES) -> bytes:
    """An archive with Tiny/images, Tiny/masks, the litter of macOS, and ``extra`` entries."""
    file = io.BytesIO()
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(frames):
            for kind in ("images", "masks"):
                picture = io.BytesIO()
                pixels = noise.integers(0, 256, (64, 80, 3), np.uint8)  # so that it does not compress
                Image.fromarray(pixels).save(picture, "png")
                archive.writestr(f"Tiny/{kind}/{index}.png", picture.getvalue())
        archive.writestr("__MACOSX/Tiny/._0.png", b"litter")
        archive.writestr("Tiny/images/.DS_Store", b"litter")
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return file.getvalue()


ARCHIVE = make_zip()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Step:
    """How the server responds one request."""

    body: bytes = ARCHIVE
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    cut: int | None = None  # bytes of body after which the connection is dropped
    status: int | None = None  # answer with this error instead


@dataclass
class Server:
    """Answers the steps in order, the last one for ever."""

    url: str = ""
    steps: list[Step] = field(default_factory=lambda: [Step()])
    ranges: list[str | None] = field(default_factory=list)  # of each request
    conditions: list[str | None] = field(default_factory=list)  # If-Range of each request
    sent: list[int] = field(default_factory=list)  # bytes of body in each answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            step = state.steps.pop(0) if len(state.steps) > 1 else state.steps[0]
            asked, condition = self.headers["Range"], self.headers["If-Range"]
            state.ranges.append(asked)
            state.conditions.append(condition)
            if step.status:
                self.send_error(step.status)
                return
            start = 0
            if asked and step.ranges and condition in (None, step.etag, step.modified):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(step.body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(step.body) - 1}/{len(step.body)}")
            else:
                self.send_response(200)
            if step.etag:
                self.send_header("ETag", step.etag)
            if step.modified:
                self.send_header("Last-Modified", step.modified)
            body = step.body[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            body = body[: step.cut]
            state.sent.append(len(body))
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{listener.server_port}/tiny.zip"
        yield state
        listener.shutdown()
        thread.join()


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """A data set of three frames on that server, entered as ``tiny``."""
    data_set = DataSet(
        "tiny", "Tiny", FRAMES, "Tiny", "free", "nobody", "https://tiny.example/", server.url, sha256(ARCHIVE)
    )
    monkeypatch.setitem(DATASETS, "tiny", data_set)
    return data_set


def fetch(out: Path, **options: Any) -> Path:
    return download("tiny", out, **{"progress": False, "backoff": 0.001, "retries": 2, **options})


def check_whole(folder: Path, out: Path) -> None:
    assert folder == out / "Tiny"
    assert len(read(folder)) == FRAMES
    with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as archive:
        for index in range(FRAMES):
            name = f"Tiny/images/{index}.png"
            assert (out / name).read_bytes() == archive.read(name)
    # Nothing else: no litter of macOS, no part, no state, no temporary folder.
    assert sorted(path.name for path in out.iterdir()) == ["Tiny", "tiny.zip"]
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        f"{index}.png" for index in range(FRAMES) for _ in range(2)
    ]


def fails(call: Callable[[], Any], *parts: str, kind: type[PolypsegError] = PolypsegError) -> str:
    with pytest.raises(PolypsegError) as caught:
        call()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def test_a_whole_download(tiny: DataSet, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_whole(download("tiny", tmp_path / "new" / "out"), tmp_path / "new" / "out")
    assert server.ranges == [None]
    bar = capfd.readouterr().err
    assert "tiny.zip" in bar
    assert "B/s" in bar


def test_a_cut_connection_is_taken_up_where_it_was_cut(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    cut = 20_000
    server.steps = [Step(cut=cut), Step()]
    check_whole(fetch(tmp_path), tmp_path)
    assert server.ranges == [None, f"bytes={cut}-"]
    assert server.conditions == [None, '"v1"']
    assert server.sent == [cut, len(ARCHIVE) - cut]


def test_the_next_call_takes_up_what_an_earlier_one_left(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(cut=20_000)]
    fails(lambda: fetch(tmp_path, retries=0), "connection was cut after", "are kept", "run the command again")
    assert not (tmp_path / "tiny.zip").exists()
    server.steps = [Step()]
    check_whole(fetch(tmp_path), tmp_path)
    assert server.ranges[-1] == "bytes=20000-"


def test_last_modified_guards_the_resumption_where_there_is_no_strong_etag(
    tiny: DataSet, server: Server, tmp_path: Path
) -> None:
    date = "Wed, 01 Jan 2020 00:00:00 GMT"
    server.steps = [Step(etag='W/"weak"', modified=date, cut=1000), Step(etag='W/"weak"', modified=date)]
    check_whole(fetch(tmp_path), tmp_path)
    assert server.conditions == [None, date]
    assert server.sent == [1000, len(ARCHIVE) - 1000]


def test_a_server_without_ranges_starts_over(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(cut=20_000, ranges=False), Step(ranges=False)]
    check_whole(fetch(tmp_path), tmp_path)
    assert server.sent == [20_000, len(ARCHIVE)]


def test_a_file_that_changed_between_the_parts_starts_over(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    old = bytes(len(ARCHIVE))
    server.steps = [Step(body=old, etag='"v0"', cut=20_000), Step()]
    check_whole(fetch(tmp_path), tmp_path)
    assert server.conditions == [None, '"v0"']
    assert server.sent == [20_000, len(ARCHIVE)]


def test_a_part_of_another_address_is_not_continued(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(cut=20_000)]
    fails(lambda: fetch(tmp_path, retries=0), "cut")
    server.steps = [Step()]
    check_whole(fetch(tmp_path, url=f"{server.url}?mirror"), tmp_path)
    assert server.ranges == [None, None]


def test_a_part_longer_than_the_file_starts_over(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(body=ARCHIVE * 2, etag=None, cut=len(ARCHIVE) + 5), Step(etag=None)]
    check_whole(fetch(tmp_path), tmp_path)  # the second answer is 416, the third everything
    assert server.ranges == [None, f"bytes={len(ARCHIVE) + 5}-", None]


def test_a_connection_reset_keeps_the_part(tiny: DataSet, tmp_path: Path) -> None:
    """A TCP reset, which the client meets as an error and not as an early end."""
    part = tmp_path / "tiny.zip.part"

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        head = f'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: {len(ARCHIVE)}\r\n\r\n'.encode()
        connection.sendall(head + ARCHIVE[:5000])
        pause = threading.Event()
        for _ in range(500):  # until the client reads the body
            if part.is_file():
                break
            pause.wait(0.01)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/tiny.zip"
        fails(lambda: fetch(tmp_path, url=url, retries=0), "cut (Connection reset by peer)")
        thread.join()
    assert ARCHIVE.startswith(part.read_bytes())


def test_a_wrong_checksum_removes_the_file(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(body=make_zip({"Tiny/more.txt": b"x"}))]
    fails(lambda: fetch(tmp_path), sha256(ARCHIVE), sha256(server.steps[0].body), "removed")
    assert list(tmp_path.iterdir()) == []


def test_truncated_for_good_gives_up_and_keeps_the_part(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(cut=20_000), Step(cut=0)]
    fails(lambda: fetch(tmp_path), "2 retries did not help", "tiny.example", str(tmp_path / "tiny.zip"))
    assert server.ranges == [None] + ["bytes=20000-"] * 2
    assert (tmp_path / "tiny.zip.part").read_bytes() == ARCHIVE[:20_000]


def test_tries_go_on_while_each_gets_further(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [*(Step(cut=6000) for _ in range(5)), Step()]
    check_whole(fetch(tmp_path, retries=1), tmp_path)
    assert server.ranges == [None] + [f"bytes={6000 * count}-" for count in range(1, 6)]


def test_404_is_told_at_once(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(status=404)]
    fails(lambda: fetch(tmp_path), server.url, "404", "by hand from https://tiny.example/")
    assert len(server.ranges) == 1


def test_503_and_then_the_file(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(status=503), Step(status=503), Step()]
    check_whole(fetch(tmp_path), tmp_path)


def test_503_for_ever(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    server.steps = [Step(status=503)]
    fails(lambda: fetch(tmp_path), "503", "2 retries did not help")
    assert len(server.ranges) == 3


def test_nothing_listens(tiny: DataSet, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    message = fails(
        lambda: fetch(tmp_path, url=f"http://127.0.0.1:{port}/tiny.zip"),
        f"127.0.0.1:{port}",
        "cannot be reached (Connection refused)",
    )
    assert f"by hand from https://tiny.example/, save it as {tmp_path / 'tiny.zip'} and run" in message


def test_a_silent_server_counts_as_cut(tiny: DataSet, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/tiny.zip"
        fails(lambda: fetch(tmp_path, url=url, timeout=0.1, retries=1), "timed out", "1 retries")


def test_an_archive_fetched_by_hand_is_used(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip").write_bytes(ARCHIVE)
    check_whole(fetch(tmp_path), tmp_path)
    assert server.ranges == []


def test_a_wrong_archive_fetched_by_hand_is_left_to_its_owner(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip").write_bytes(ARCHIVE[:-1])
    fails(lambda: fetch(tmp_path), sha256(ARCHIVE), "remove it")
    assert (tmp_path / "tiny.zip").read_bytes() == ARCHIVE[:-1]
    assert server.ranges == []


def test_an_interruption_can_be_taken_up(
    tiny: DataSet, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        """A bar that is interrupted after the first chunk."""

        def __init__(self, **options: Any) -> None:
            pass

        def __enter__(self) -> Interrupted:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, count: int) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_CHUNK", 4096)
        patch.setattr(module, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path)
    kept = (tmp_path / "tiny.zip.part").read_bytes()
    assert 0 < len(kept) <= 4096
    assert kept == ARCHIVE[: len(kept)]
    check_whole(fetch(tmp_path), tmp_path)
    assert server.ranges == [None, f"bytes={len(kept)}-"]


def test_an_already_complete_data_set_is_left_alone(
    tiny: DataSet, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(tmp_path)
    (tmp_path / "tiny.zip").unlink()
    capsys.readouterr()
    assert fetch(tmp_path) == tmp_path / "Tiny"
    assert "already complete" in capsys.readouterr().err
    assert len(server.ranges) == 1


def test_a_folder_with_something_else_is_not_touched(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    fetch(tmp_path)
    (tmp_path / "Tiny" / "masks" / "1.png").unlink()
    fails(lambda: fetch(tmp_path), str(tmp_path / "Tiny"), "2 of 3 frames", "move it away")
    assert (tmp_path / "Tiny" / "images" / "1.png").exists()
    assert len(server.ranges) == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_broken_off_unpacking_leaves_no_half_folder(
    tiny: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    copied: list[int] = []
    real = shutil.copyfileobj

    def copy(source: Any, sink: Any, length: int = 0) -> None:
        copied.append(1)
        if len(copied) == 4:
            assert not (tmp_path / "Tiny").exists()
            raise failure
        real(source, sink, length)

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfileobj", copy)
        with pytest.raises((KeyboardInterrupt, PolypsegError)) as caught:
            fetch(tmp_path)
    if isinstance(failure, OSError):
        assert "the disk is full" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.zip"]
    check_whole(fetch(tmp_path), tmp_path)


def test_what_a_killed_unpacking_left_is_cleared(tiny: DataSet, tmp_path: Path) -> None:
    left = tmp_path / ".tiny.unpack" / "Tiny" / "images"
    left.mkdir(parents=True)
    (left / "0.png").write_bytes(b"half")
    check_whole(fetch(tmp_path), tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_one_line(tiny: DataSet, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip.part").symlink_to("/dev/full")
    fails(lambda: fetch(tmp_path), str(tmp_path / "tiny.zip.part"), "the disk is full")


def test_an_output_that_is_a_file_is_one_line(tiny: DataSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fails(lambda: fetch(tmp_path / "file"), str(tmp_path / "file"), "--out")


# --- archives that must not be unpacked ---------------------------------------------------------------------


def refuses(tiny: DataSet, server: Server, out: Path, archive: bytes, *parts: str) -> None:
    server.steps = [Step(body=archive)]
    outside = sorted(out.parent.rglob("*"))
    fails(lambda: fetch(out, sha256=sha256(archive)), str(out / "tiny.zip"), *parts)
    assert [path.name for path in out.iterdir()] == ["tiny.zip"]
    assert sorted(set(out.parent.rglob("*")) - set(outside)) == [out, out / "tiny.zip"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        "Tiny/../../evil.txt",
        "/tmp/evil.txt",
        "C:/evil.txt",
        "C:evil.txt",
        "Tiny\\..\\evil.txt",
    ],
)
def test_an_entry_that_leads_elsewhere(tiny: DataSet, server: Server, tmp_path: Path, name: str) -> None:
    refuses(tiny, server, tmp_path / "out", make_zip({name: b"evil"}), repr(name), "not safe")


def with_entry(info: zipfile.ZipInfo, content: bytes) -> bytes:
    file = io.BytesIO(ARCHIVE)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(info, content)
    return file.getvalue()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_a_link_or_device(tiny: DataSet, server: Server, tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("Tiny/images/9.png")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    refuses(tiny, server, tmp_path / "out", with_entry(info, b"/etc/passwd"), "Tiny/images/9.png", "link")


def test_an_encrypted_entry(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    archive = bytearray(with_entry(zipfile.ZipInfo("Tiny/secret.txt"), b"secret"))
    entry = archive.rindex(b"PK\x01\x02")  # the last one in the central directory
    archive[entry + 8] |= 0x1
    refuses(tiny, server, tmp_path / "out", bytes(archive), "Tiny/secret.txt", "encrypted")


def test_a_bomb_by_ratio(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    archive = make_zip({"Tiny/zeros": bytes(20_000_000)})
    assert len(archive) * module.MAX_RATIO < 20_000_000
    refuses(tiny, server, tmp_path / "out", archive, "more than 100 times its size")


def test_a_bomb_by_size(tiny: DataSet, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 50_000)
    refuses(tiny, server, tmp_path / "out", ARCHIVE, "more than 50,000")


def test_a_bomb_by_number(tiny: DataSet, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 5)
    refuses(tiny, server, tmp_path / "out", ARCHIVE, "more than 5")


def test_an_entry_that_understates_its_size_is_not_unpacked(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(1000) * 20
    archive = bytearray(make_zip({"Tiny/grows": content}))
    for position in (archive.rindex(b"PK\x01\x02") + 24, archive.index(b"Tiny/grows") - 8):
        assert archive[position : position + 4] == len(content).to_bytes(4, "little")
        archive[position : position + 4] = (10).to_bytes(4, "little")
    refuses(tiny, server, tmp_path / "out", bytes(archive), "no ZIP archive that can be unpacked")


def test_two_entries_of_one_name(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    archive = with_entry(zipfile.ZipInfo("Tiny/Images/0.png"), b"another")
    refuses(tiny, server, tmp_path / "out", archive, "Tiny/Images/0.png", "twice")


def test_no_archive_at_all(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    refuses(tiny, server, tmp_path / "out", b"<html>sign in</html>", "no ZIP archive")


def test_an_archive_with_too_few_frames(tiny: DataSet, server: Server, tmp_path: Path) -> None:
    refuses(tiny, server, tmp_path / "out", make_zip(frames=2), "2 of 3 frames")


# --- arguments ----------------------------------------------------------------------------------------------


def test_the_wrong_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    fails(lambda: download("Kvasir", tmp_path), "did you mean kvasir-seg", kind=UsageError)
    fails(lambda: download("zzz", tmp_path), "kvasir-seg, cvc-clinicdb", kind=UsageError)


def test_what_cannot_be_fetched_says_how_to_get_it(tmp_path: Path) -> None:
    data_set = DATASETS["cvc-clinicdb"]
    folder = str(tmp_path / "CVC-ClinicDB")
    fails(lambda: download(data_set.name, tmp_path), data_set.homepage, "research and education", folder)
    fails(lambda: download("phantom", tmp_path), "nothing to download")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/tiny.zip", "tiny.zip"])
def test_only_http_addresses(tiny: DataSet, tmp_path: Path, url: str) -> None:
    fails(lambda: fetch(tmp_path, url=url), url, "http", kind=UsageError)


def test_a_redirect_to_a_file_is_not_followed(tiny: DataSet, tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1:9/tiny.zip")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.handle_request)
        thread.start()
        fails(lambda: fetch(tmp_path, url=f"http://127.0.0.1:{listener.server_port}/"), "unknown url type: ftp")
        thread.join()


def test_an_archive_without_a_known_checksum_is_not_fetched(tmp_path: Path, server: Server) -> None:
    fails(lambda: download("cvc-clinicdb", tmp_path, url=server.url), "SHA-256", kind=UsageError)
    fails(lambda: download("kvasir-seg", tmp_path, url=server.url, sha256="12"), "SHA-256", kind=UsageError)
    assert server.ranges == []


def test_the_table_is_sound() -> None:
    for name, data_set in DATASETS.items():
        assert data_set.name == name
        assert data_set.terms
        assert "\n" not in data_set.terms
        assert (data_set.url is None) == (data_set.sha256 is None)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
@pytest.mark.parametrize("name", ["kvasir-seg", "cvc-clinicdb"])
def test_the_real_data_counts_as_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert download(name, REAL) == REAL / DATASETS[name].folder
    assert "already complete" in capsys.readouterr().err
