"""Live streams: the Segmenter's polyps, followed; the newest frame wins; nobody harms another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.io.pictures import read_frame
from polypseg.serve import stream as module
from polypseg.serve.local import END, FRAME, HEAD, TEXT
from polypseg.serve.models import Served
from polypseg.serve.observe import Metrics
from polypseg.serve.settings import Settings
from polypseg.serve.stream import Streams

client = pytest.importorskip("websockets.sync.client")
exceptions = pytest.importorskip("websockets.exceptions")

STREAMS = 8  # by default


class Socket:
    """A stream over a WebSocket."""

    def __init__(self, server: Any, **opening: Any) -> None:
        url = server.url.replace("http", "ws")
        self.raw = client.connect(f"{url}/v1/stream", compression=None, max_size=None, proxy=None)
        self.ready: dict[str, Any] = {}
        if opening:
            self.say(**opening)
            self.ready = self.hear()

    def say(self, **message: Any) -> None:
        self.raw.send(json.dumps(message))

    def show(self, content: bytes) -> None:
        self.raw.send(content)

    def hear(self) -> dict[str, Any]:
        return dict(json.loads(self.raw.recv(30)))

    def asked(self, content: bytes) -> dict[str, Any]:
        self.show(content)
        return self.hear()

    def ended(self) -> tuple[int, str]:
        """The code and the reason of its end, whatever comes before."""
        try:
            while True:
                self.raw.recv(30)
        except exceptions.ConnectionClosed as closed:
            return (0, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)

    def close(self) -> None:
        self.raw.close()


@contextmanager
def streaming(server: Any, **opening: Any) -> Iterator[Socket]:
    opened = Socket(server, **opening)
    try:
        yield opened
    finally:
        opened.close()


def all_ended(server: Any) -> None:
    """Waits until the sessions of the tests before have gone."""
    end = time.monotonic() + 30
    while "polypseg_streams 0.0" not in server.web.get("/metrics").text:
        assert time.monotonic() < end


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".jpg", pixels[..., ::-1])[1])


# ---- what is answered -----------------------------------------------------------------------------------


def test_each_frame_has_the_segmenters_polyps(server: Any, segmenter: Any, frames: list[Path]) -> None:
    found = 0
    with streaming(server, probability=True) as stream:
        ready = stream.ready
        assert (ready["hash"], ready["operating_point"]["threshold"]) == (segmenter.hash, segmenter.threshold)
        for number, path in enumerate(frames[:6]):
            content = jpeg(read_frame(path))
            alone = segmenter.segment(cv2.imdecode(np.frombuffer(content, np.uint8), 1)[..., ::-1].copy())
            answer = stream.asked(content)
            assert (answer["frame"], answer["dropped"]) == (number, 0)
            assert (answer["height"], answer["width"]) == alone.mask.shape
            expected = json.loads(json.dumps([polyp.to_dict() for polyp in alone.polyps]))
            assert [without(one, "id", "confirmed") for one in answer["polyps"]] == expected
            assert 0 < answer["inference_ms"] <= answer["ms"] and answer["probability"]
            still = server.web.post("/v1/segment", files={"file": ("a.jpg", content)}).json()["quality"]
            assert answer["quality"].items() >= still.items() and {"poor", "likeness"} < set(answer["quality"])
            found += len(expected)
        dark = stream.asked(jpeg(read_frame(frames[0]) // 50))["quality"]
        assert (dark["judgeable"], dark["reason"]) == (False, "dark")
    assert found


def test_raw_frames_are_as_good(server: Any, segmenter: Any, frames: list[Path]) -> None:
    frame = read_frame(frames[1])
    height, width = frame.shape[:2]
    with streaming(server, format="rgb", width=width, height=height) as stream:
        answer = stream.asked(frame.tobytes())
    expected = json.loads(json.dumps([polyp.to_dict() for polyp in segmenter.segment(frame).polyps]))
    assert expected and [without(one, "id", "confirmed") for one in answer["polyps"]] == expected


def test_the_first_message_may_be_a_frame(server: Any, frames: list[Path]) -> None:
    with streaming(server) as stream:
        assert stream.asked(jpeg(read_frame(frames[0])))["ready"] is True
        assert stream.hear()["frame"] == 0


def steady(segmenter: Any, frame: NDArray[np.uint8]) -> dict[str, float]:
    """An operating point at which a frame's polyp is certain."""
    level = float(np.quantile(segmenter.probability(frame), 0.9))
    return {"threshold": round(level, 4), "min_confidence": round(level + 0.0002, 4)}


def test_a_polyp_keeps_its_number_once_it_is_confirmed(server: Any, segmenter: Any, frames: list[Path]) -> None:
    frame = read_frame(frames[1])
    content, point = jpeg(frame), steady(segmenter, frame)
    began = 1000 * (time.time() - 60)
    with streaming(server, **point) as stream:
        assert stream.ready["operating_point"] == {**stream.ready["operating_point"], **point}
        answers = []
        for number in range(5):
            stream.say(captured=began + 100 * number)
            answers.append(stream.asked(content))
        assert [answer["captured"] for answer in answers] == [began + 100 * number for number in range(5)]
        assert all(answer["ms"] > 50_000 for answer in answers)  # from its capture, which was a minute ago
        assert np.allclose(np.diff([answer["time"] for answer in answers]), 0.1, atol=0.03)
        largest = [answer["polyps"][0] for answer in answers]
    assert [one["confirmed"] for one in largest] == [False, False, True, True, True]
    assert largest[0]["id"] is None and largest[2]["id"] == largest[3]["id"] == largest[4]["id"] is not None
    with streaming(server, **point) as other:  # has a tracker of its own
        assert other.asked(content)["polyps"][0]["id"] is None


def test_the_newest_frame_wins_and_the_others_are_counted(server: Any, frames: list[Path]) -> None:
    content = jpeg(read_frame(frames[0]))
    with streaming(server, format="jpeg") as stream:
        for _ in range(40):
            stream.show(content)
        answers = [stream.hear()]
        while answers[-1]["frame"] < 39:
            answers.append(stream.hear())
    numbers = [answer["frame"] for answer in answers]
    assert numbers == sorted(set(numbers))
    assert answers[-1]["dropped"] == 40 - len(answers) > 0


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opening", "code", "says"),
    [
        ({"treshold": 0.5}, 1008, "treshold: is unknown; known: model, format,"),
        ({"threshold": 1.5}, 1008, "threshold: "),
        ({"threshold": "0.5"}, 1008, "threshold: "),
        ({"min_area": 1}, 1008, "min_area 1: must lie below 1"),
        ({"format": "png"}, 1008, "format: "),
        ({"format": "rgb"}, 1008, "raw frames need their width and height"),
        ({"format": "rgb", "width": 4000, "height": 4000}, 1009, "frames have more than 1,000,000 pixels"),
        ({"width": 4}, 1008, "width and height are of raw frames alone"),
        ({"model": "other"}, 1008, "model: there is none of that name; there are exported"),
        ("{", 1008, "the message: Invalid JSON"),
        ("[" * 4000, 1008, "the message: "),
        (" " * 5000, 1008, "a message in JSON has at most 4096 characters"),
    ],
)
def test_a_wrong_opening_is_refused_in_one_line(server: Any, opening: Any, code: int, says: str) -> None:
    with streaming(server) as stream:
        stream.raw.send(opening if isinstance(opening, str) else json.dumps(opening))
        line = stream.hear()["error"]
        assert line.startswith(says) and "\n" not in line
        assert stream.ended() == (code, line.encode()[:123].decode(errors="ignore"))


def bomb(width: int, height: int) -> bytes:
    """A JPEG whose header claims that size."""
    content = bytearray(jpeg(np.zeros((8, 8, 3), np.uint8)))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def test_a_frame_that_cannot_be_read_costs_itself_alone(server: Any, frames: list[Path]) -> None:
    good = jpeg(read_frame(frames[0]))
    bad = [b"", b"x", good[: len(good) // 2], b"\xff\xd8\xff" + bytes(5000), b"\x89PNG\r\n\x1a\n" + bytes(100)]
    with streaming(server, format="jpeg") as stream:
        for content in bad:
            assert stream.asked(content)["error"].startswith("frame: ")
            assert "polyps" in stream.asked(good)
        for _ in range(module.MOST_BAD):
            stream.asked(b"x")
        assert stream.ended() == (1007, f"{module.MOST_BAD} frames on end could not be read")
    with streaming(server, format="rgb", width=8, height=8) as stream:
        assert stream.asked(bytes(191))["error"] == "frame: has 191 bytes, and 8×8 RGB has 192"
        assert "polyps" in stream.asked(bytes(192))


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda stream: stream.show(bomb(60_000, 60_000)), 1009),
        (lambda stream: stream.show(bomb(1001, 1000)), 1009),
        (lambda stream: stream.show(bytes(2 << 20)), 1009),
        (lambda stream: stream.raw.send([b"x"] * 50_000), 0),  # cut off while more comes
        (lambda stream: stream.raw.send("hello"), 1008),
        (lambda stream: stream.say(captured=float("inf")), 1008),
        (lambda stream: stream.say(captured=1, more=2), 1008),
    ],
    ids=["bomb", "pixels", "bytes", "pieces", "text", "no time", "unknown"],
)
def test_what_does_harm_ends_its_own_session(
    server: Any, frames: list[Path], send: Callable[[Socket], None], code: int
) -> None:
    good = jpeg(read_frame(frames[0]))
    with streaming(server, format="jpeg") as other, streaming(server, format="jpeg") as stream:
        with suppress(exceptions.ConnectionClosed):  # before all was sent
            send(stream)
        assert stream.ended()[0] in (code, 0)  # 0: what still came got its end lost
        assert "polyps" in other.asked(good)
    assert "crash" not in server.log.read_text()


def test_pings_without_end_are_cut_off(server: Any, frames: list[Path]) -> None:
    with streaming(server, format="jpeg") as stream, streaming(server, format="jpeg") as other:
        flood = b"\x89\x80\0\0\0\0" * 5000
        with suppress(OSError):  # as soon as it is cut off
            for _ in range(100):
                stream.raw.socket.sendall(flood)
        assert stream.ended() == (0, "")
        assert "polyps" in other.asked(jpeg(read_frame(frames[0])))


def refusal(server: Any, **options: Any) -> Any:
    with pytest.raises(exceptions.InvalidStatus) as refused:
        client.connect(f"{server.url.replace('http', 'ws')}{options.pop('path', '/v1/stream')}", proxy=None, **options)
    return refused.value.response


def test_a_hundred_sessions_share_what_there_is(server: Any, frames: list[Path]) -> None:
    good = jpeg(read_frame(frames[0]))
    all_ended(server)
    before = server.memory()
    opened = [Socket(server, format="jpeg") for _ in range(STREAMS)]
    try:
        for _ in range(100 - STREAMS):
            answer = refusal(server)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert json.loads(answer.body)["error"] == "8 streams are open; come again later"
        for stream in opened:
            for _ in range(30):
                stream.show(good)
        for stream in opened:
            while stream.hear()["frame"] < 29:
                pass
        assert server.web.get("/health/ready").status_code == 200
        assert "polypseg_streams 8.0" in server.web.get("/metrics").text
    finally:
        for stream in opened:
            stream.close()
    assert server.memory() - before < 60_000_000


def test_who_may_stream(server: Any) -> None:
    assert refusal(server, origin="http://evil.example").status_code == 403
    assert refusal(server, additional_headers={"Host": "evil.example"}).status_code in (400, 421)
    answer = refusal(server, path="/v1/stream?threshold=1")
    assert answer.status_code == 422 and json.loads(answer.body)["error"].startswith("a stream has no parameters")
    assert refusal(server, path="/v1/none").status_code == 403
    for length, status in ((5000, 431), (9000, 400)):
        headers = {f"X-{number}": "y" * length for number in range(7)}
        assert refusal(server, additional_headers=headers).status_code == status


# ---- a socket of this computer --------------------------------------------------------------------------


class Local:
    """A stream over a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.raw = socket.socket(socket.AF_UNIX)
        self.raw.settimeout(30)
        self.raw.connect(str(path))

    def send(self, kind: int, content: bytes) -> None:
        self.raw.sendall(HEAD.pack(kind, len(content)) + content)

    def hear(self) -> tuple[int, bytes]:
        kind, length = HEAD.unpack(self._exactly(HEAD.size))
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        content = b""
        while len(content) < length:
            part = self.raw.recv(length - len(content))
            assert part
            content += part
        return content

    def ended(self) -> tuple[int, str]:
        while (heard := self.hear())[0] != END:
            pass
        return struct.unpack(">H", heard[1][:2])[0], heard[1][2:].decode()


@pytest.fixture(scope="module")
def beside(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with a socket, which takes one stream."""
    folder = tmp_path_factory.mktemp("s")
    service = start(folder / "state", "--socket", str(folder / "s"), "--streams", "1", "--max_mib", "1")
    service.path = folder / "s"
    return service


def test_a_process_beside_it_gets_the_same(beside: Any, server: Any, frames: list[Path]) -> None:
    content = jpeg(read_frame(frames[1]))
    with streaming(server, format="jpeg") as stream:
        expected = stream.asked(content)
    assert beside.path.stat().st_mode & 0o777 == 0o600
    local = Local(beside.path)
    local.send(TEXT, b'{"format": "jpeg"}')
    assert json.loads(local.hear()[1])["ready"]
    local.send(FRAME, content)
    kind, answer = local.hear()
    timed = ("ms", "decode_ms", "wait_ms", "inference_ms")
    assert kind == TEXT and without(json.loads(answer), *timed) == without(expected, *timed)
    assert Local(beside.path).ended() == (1013, "1 streams are open; come again later")
    assert refusal(beside).status_code == 503
    local.send(END, b"\x03\xe8")
    assert local.ended() == (1000, "")


def test_messages_come_whole_however_they_were_cut(beside: Any, frames: list[Path]) -> None:
    """In pieces of a byte and across their borders, an empty one among them; none is lost while others wait."""
    all_ended(beside)
    content = jpeg(read_frame(frames[1]))
    local = Local(beside.path)
    opening = b'{"format": "jpeg"}'
    for byte in HEAD.pack(TEXT, len(opening)) + opening:
        local.raw.sendall(bytes([byte]))
    assert json.loads(local.hear()[1])["ready"]
    messages = [HEAD.pack(FRAME, len(content)) + content] * 5 + [HEAD.pack(FRAME, 0)]
    sent = b"".join(messages)
    for start in range(0, len(sent), 1009):
        local.raw.sendall(sent[start : start + 1009])
    answers: list[dict[str, Any]] = []
    while not answers or answers[-1]["frame"] < 5:
        answers.append(json.loads(local.hear()[1]))
    assert "error" in answers[-1] and not any("error" in one for one in answers[:-1])
    assert len(answers) + answers[-1]["dropped"] == 6
    local.raw.shutdown(socket.SHUT_WR)  # it still listens
    assert local.ended() == (1000, "")


@pytest.mark.parametrize(
    ("sent", "end"),
    [
        (HEAD.pack(FRAME, 1 << 31), (1009, "a message of 2147483648 bytes; 1048576 are the most")),
        (HEAD.pack(7, 1) + b"x", (1008, "there is no message of kind 7")),
        (HEAD.pack(TEXT, 1) + b"\xff", (1007, "a text is not in UTF-8")),
    ],
)
def test_wrong_messages_end_a_local_stream(beside: Any, sent: bytes, end: tuple[int, str]) -> None:
    all_ended(beside)
    local = Local(beside.path)
    local.raw.sendall(sent)
    assert local.ended() == end
    half = Local(beside.path)
    half.raw.sendall(HEAD.pack(FRAME, 1000) + b"half a frame")
    half.raw.close()


def test_a_stream_is_told_that_the_service_stops(beside: Any) -> None:
    all_ended(beside)
    with streaming(beside, format="jpeg") as stream:
        beside.process.send_signal(signal.SIGTERM)
        assert stream.ended()[0] == 1012
    assert beside.end() == 0
    assert not beside.path.exists()
    assert "crash" not in beside.log.read_text()


# ---- inside ---------------------------------------------------------------------------------------------


class Scripted:
    """A channel that shows what it is told to, and keeps what it hears."""

    def __init__(self, *messages: Any, reads: bool = True, then: bytes | None = None) -> None:
        self.messages, self.reads, self.then = list(messages), reads, then
        self.heard: list[dict[str, Any]] = []
        self.end: tuple[int, str] | None = None

    async def accept(self) -> None:
        pass

    async def receive(self) -> Any:
        while True:
            await asyncio.sleep(0)
            if self.messages:
                return self.messages.pop(0)
            if self.then is not None:
                return self.then
            await asyncio.Event().wait()

    async def send(self, text: str) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.heard.append(json.loads(text))

    async def close(self, code: int, reason: str) -> None:
        self.end = code, reason


class Counting:
    """An engine that computes one frame after another, first come, first served."""

    def __init__(self, seconds: float) -> None:
        self.order: list[int] = []
        self.seconds = seconds
        self.turn = asyncio.Lock()

    async def timed(self, frame: NDArray[np.uint8]) -> tuple[Any, float]:
        async with self.turn:
            await asyncio.sleep(self.seconds)
            self.order.append(int(frame[0, 0, 0]))
        return np.zeros((8, 8), np.float32), 0.001


@pytest.fixture
def sessions(segmenter: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Runs sessions until one ends, or for so many computed frames; gives the engine."""
    made: list[Streams] = []

    def run(*channels: Scripted, frames: int = 0, seconds: float = 0.001) -> Counting:
        async def together() -> Counting:
            engine = Counting(seconds)
            served = Served("small", segmenter, engine)  # type: ignore[arg-type]
            models: Any = SimpleNamespace(get=lambda name: served)
            made.append(streams := Streams(models, Settings(tmp_path), Metrics()))
            tasks = [asyncio.create_task(streams.serve(channel)) for channel in channels]
            if frames:
                while len(engine.order) < frames:
                    await asyncio.sleep(0.001)
                await streams.end()
            await asyncio.wait(tasks)
            assert streams.count == 0
            return engine

        return asyncio.run(together())

    yield run
    for one in made:
        one.close()


RAW = '{"format": "rgb", "width": 8, "height": 8}'


def test_two_streams_share_fairly(sessions: Callable[..., Counting], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACE", 1e9)
    monkeypatch.setattr(module, "MOST_BYTES", 1e12)
    one, other = (Scripted(RAW, then=bytes([value]) * 192) for value in (1, 2))
    order = sessions(one, other, frames=40, seconds=0.02).order  # the network is what they wait for
    assert 16 <= order[:40].count(1) <= 24
    assert one.end == other.end == (1012, "the service is stopping")


def test_silence_and_deafness_end_a_session(sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SECONDS", 0.05)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(module, "SEND_SECONDS", 0.15)
    silent, deaf, gone = Scripted(), Scripted(RAW, reads=False), Scripted(RAW, None)
    sessions(silent, deaf, gone)
    assert silent.end == (1008, "nothing came for 0.05 s")
    assert deaf.end is None and gone.end == (1000, "")  # who does not read is not told either
    late = Scripted(RAW, bytes(192))
    sessions(late)
    assert late.end == (1008, "nothing came for 0.1 s") and len(late.heard) == 3


def test_a_flood_is_not_read_faster_than_its_pace(
    sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    wait = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await wait(min(seconds, 0.0))

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module, "MOST_BYTES", 192)  # a frame a second
    flood = Scripted(RAW, *[bytes(192)] * 5, None)
    sessions(flood)
    assert max(slept) > 2  # the later ones would wait for seconds


def test_a_crash_is_one_line(sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._View, "record", lambda *_: 1 / 0)
    broken = Scripted(RAW, bytes(192))
    sessions(broken)
    assert broken.end == (1011, "the service failed at this; its log says more")
    assert "ZeroDivision" not in str(broken.heard)


@pytest.mark.skipif(os.name == "nt", reason="there are no Unix sockets")
@pytest.mark.parametrize("there", ["file", "other"])
def test_a_socket_that_cannot_be_had(
    there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polypseg.errors import PolypsegError
    from polypseg.serve.local import listen

    path = tmp_path / "s"
    monkeypatch.chdir(tmp_path)
    streams: Any = SimpleNamespace()
    if there == "file":
        path.write_text("x")
        with pytest.raises(PolypsegError, match="is there already, and is no socket"):
            asyncio.run(listen(path, streams))
        assert path.read_text() == "x"
        return

    async def twice() -> None:
        first = await listen(path, streams)
        with pytest.raises(PolypsegError, match="another process listens there"):
            await listen(path, streams)
        first.close()

    asyncio.run(twice())
    if not path.exists():  # newer Pythons remove it
        abandoned = socket.socket(socket.AF_UNIX)
        abandoned.bind(str(path))
        abandoned.close()
    asyncio.run(listen(path, streams)).close()
