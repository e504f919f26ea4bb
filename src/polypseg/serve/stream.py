"""Live streams: frames in, each newest one's polyps out, followed from frame to frame.

A session is the same whatever carries its messages (``Channel``): a WebSocket, or a socket for a process beside this
one. Its first message may be an ``Opening`` in JSON; frames follow, each a JPEG or raw RGB. A frame that comes while
another one waits takes its place: frames are dropped, and the delay does not grow. Each session has its own tracker
and operating point, and at most one frame that waits for the network, so that all get the same share.

**What strangers send.** A JPEG is decoded in a process of its own, as the uploads are. A session contains at most
four frames: the one on its way in, the newest, one that is decoded and one that is computed. What comes faster than
``PACE`` or ``MOST_BYTES`` is not read from the connection until its time has come.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.quality import QualityMeter, judge
from polypseg.inference.tracking import Tracker
from polypseg.operating_point import OperatingPoint
from polypseg.pipeline.video import follow, to_line, video_record
from polypseg.serve.decoding import Decoders
from polypseg.serve.log import without_values
from polypseg.serve.models import Models, Served
from polypseg.serve.observe import Metrics
from polypseg.serve.responses import encoded_maps
from polypseg.serve.settings import MIB, Settings
from polypseg.serve.uploads import read_jpeg
from polypseg.version import __version__

log = logging.getLogger("polypseg.serve")

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

OPEN_SECONDS = 10.0  # within which the first message must come
SILENT_SECONDS = 60.0  # after which a session without a message is closed
SEND_SECONDS = 10.0  # that a message may take to leave; who does not read is cut off
DECODE_SECONDS = 2.0  # that a frame may take to decode
MOST_WORK = 10_000  # frames after which a decoding process is replaced
PACE = 240  # messages a second
MOST_BYTES = 256 * MIB  # a second
BURST = 0.25  # seconds by which a session may be ahead of that
LATELY = 0.2  # weight of the last frame in how long they take
EARLIER = 1.5  # times that decoding takes, before the network is free, a frame is taken
MOST_BAD = 30  # frames on end that cannot be read, after which a session is closed
LONGEST_TEXT = 4096  # characters of a message in JSON
LONGEST_REASON = 123  # bytes of why a WebSocket is closed

# Why a session is closed, by the codes of RFC 6455.
DONE, INVALID, REFUSED, TOO_LARGE, FAILED, STOPPING = 1000, 1007, 1008, 1009, 1011, 1012


class Channel(Protocol):
    """What carries the messages of a session."""

    async def accept(self) -> None:
        """Let it begin."""
        ...

    async def receive(self) -> str | bytes | None:
        """The next message; None when the other side is gone."""
        ...

    async def send(self, text: str) -> None:
        """Send a message."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Say why it ends, and end it."""
        ...


class Opening(BaseModel):
    """The first message of a session; all of it may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = Field(default=None, description="Name of a model; the first by default")
    format: Literal["jpeg", "rgb"] = Field(default="jpeg", description="Of the frames")
    width: int | None = Field(default=None, ge=1, description="Of raw frames, pixels")
    height: int | None = Field(default=None, ge=1, description="Of raw frames, pixels")
    threshold: Share | None = None
    min_confidence: Share | None = None
    min_area: Share | None = None
    fill_holes: bool | None = None
    probability: bool = Field(default=False, description="Whether each prediction has its probability map")


class _Captured(BaseModel):
    """What may be said of the next frame."""

    model_config = ConfigDict(extra="forbid", strict=True)
    captured: float = Field(ge=0, le=1e15, allow_inf_nan=False, description="When, milliseconds since 1970")


class _Closed(Exception):
    """The session ends; ``code`` and the message say why."""

    def __init__(self, code: int, line: str = "") -> None:
        super().__init__(line)
        self.code = code


@dataclass(frozen=True)
class _Arrived:
    """A frame as it came: its number, when it was captured and when it came (s, ``time.monotonic``)."""

    number: int
    content: bytes
    captured: float
    came: float
    said: float | None  # as the client said it


@dataclass(frozen=True)
class _Read:
    """A frame that was decoded, or the line that says why it was not; and the milliseconds that it took."""

    of: _Arrived
    pixels: Pixels | None
    problem: str
    decode_ms: float


class Streams:
    """All sessions.

    Args:
        models: what computes the frames.
        settings: limits.
        metrics: what is counted.

    Attributes:
        count: sessions that are open.
    """

    def __init__(self, models: Models, settings: Settings, metrics: Metrics) -> None:
        self.models, self.settings, self.metrics = models, settings, metrics
        self.decoders = Decoders(
            min(DECODE_SECONDS, settings.decode_seconds),
            settings.decode_memory,
            most_work=MOST_WORK,
            most_idle=settings.streams,
        )
        # A session decodes one frame while it describes another.
        self.pool = ThreadPoolExecutor(2 * settings.streams, "polypseg-streams")
        self._sessions: set[asyncio.Task[Any]] = set()
        metrics.streams.set_function(lambda: self.count)

    @property
    def count(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    @property
    def full(self) -> bool:
        """Whether no further session is taken."""
        return self.count >= self.settings.streams

    async def serve(self, channel: Channel) -> None:
        """A session, from its first message to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        session = Session(self, channel)
        began = time.monotonic()
        closed = _Closed(FAILED, "the service failed at this; its log says more")
        try:
            await channel.accept()
            closed = await session.through()
        except asyncio.CancelledError:
            closed = _Closed(STOPPING, "the service is stopping")
        except Exception as crash:  # noqa: BLE001  (any: it is logged, and the client gets a line)
            log.error("crash", extra={"fields": {"route": "/v1/stream", **without_values(crash)}})
        finally:
            self._sessions.discard(task)
            counts = {"frames": session.frames, "answered": session.answered, "dropped": session.dropped}
            fields = {**counts, "code": closed.code, "seconds": round(time.monotonic() - began, 1)}
            log.info("stream", extra={"fields": fields})
        with suppress(Exception):  # it may be gone
            async with asyncio.timeout(SEND_SECONDS):
                if closed.args[0]:
                    await channel.send(json.dumps({"error": closed.args[0]}, ensure_ascii=False))
                await channel.close(closed.code, shortened(closed.args[0]))

    async def end(self) -> None:
        """End all sessions."""
        for task in list(self._sessions):
            task.cancel()
        if self._sessions:
            await asyncio.wait(list(self._sessions), timeout=SEND_SECONDS)

    def close(self) -> None:
        """End what decodes."""
        self.decoders.close()
        self.pool.shutdown(wait=False, cancel_futures=True)


class Session:
    """One stream.

    Attributes:
        frames: that came.
        answered: of those.
        dropped: of those, because a newer one was there.
    """

    def __init__(self, streams: Streams, channel: Channel) -> None:
        self._streams, self._channel = streams, channel
        self.frames = self.answered = self.dropped = 0
        self._newest: _Arrived | None = None
        self._came = asyncio.Event()
        self._bad = 0
        self._due = 0.0  # when the next message may come
        self._captured: float | None = None

    async def through(self) -> _Closed:
        """From the first message to the end, and why it ends."""
        try:
            first = await self._receive(OPEN_SECONDS)
            opening = Opening() if isinstance(first, bytes) else _parsed(Opening, first)
            served, point = self._chosen(opening)
            with served.used():
                await self._send({"ready": True, **self._told(served, point)})
                if isinstance(first, bytes):
                    self._take(first)
                await self._work(opening, _View(served, point, opening.probability))
        except _Closed as closed:
            return closed
        return _Closed(DONE)

    # ---- what comes in ------------------------------------------------------------------------------------

    def _chosen(self, opening: Opening) -> tuple[Served, OperatingPoint]:
        if opening.format == "rgb":
            if opening.width is None or opening.height is None:
                raise _Closed(REFUSED, "raw frames need their width and height in the first message")
            if opening.width * opening.height > self._streams.settings.max_pixels:
                raise _Closed(TOO_LARGE, f"frames have more than {self._streams.settings.max_pixels:,} pixels")
        elif opening.width is not None or opening.height is not None:
            raise _Closed(REFUSED, "width and height are of raw frames alone; a JPEG says its own")
        try:
            served = self._streams.models.get(opening.model)
            point = served.segmenter.operating_point.override(
                threshold=opening.threshold, min_confidence=opening.min_confidence, min_area=opening.min_area,
                fill_holes=opening.fill_holes,
            )  # fmt: skip
        except HTTPException as refusal:
            raise _Closed(REFUSED, refusal.detail) from None
        except PolypsegError as error:
            raise _Closed(REFUSED, str(error).removeprefix("--")) from None
        return served, point

    @staticmethod
    def _told(served: Served, point: OperatingPoint) -> dict[str, Any]:
        return {
            "model": served.name, "hash": served.segmenter.hash, "version": __version__,
            "operating_point": asdict(point),
        }  # fmt: skip

    async def _receive(self, seconds: float) -> str | bytes:
        """The next message, when its time has come."""
        ahead = self._due - time.monotonic()
        if ahead > BURST:
            await asyncio.sleep(ahead - BURST)
        try:
            async with asyncio.timeout(seconds):
                message = await self._channel.receive()
        except TimeoutError:
            raise _Closed(REFUSED, f"nothing came for {seconds:g} s") from None
        if message is None:
            raise _Closed(DONE)
        cost = max(1 / PACE, len(message) / MOST_BYTES)
        self._due = max(self._due, time.monotonic()) + cost
        return message

    async def _read(self) -> None:
        """Take in what comes, until it ends."""
        while True:
            message = await self._receive(SILENT_SECONDS)
            if isinstance(message, bytes):
                self._take(message)
            else:
                self._captured = _parsed(_Captured, message).captured

    def _take(self, content: bytes) -> None:
        now = time.monotonic()
        captured = now
        if self._captured is not None:  # never after it came, whatever the clocks say
            captured = now - max(0.0, time.time() - self._captured / 1000)
        if self._newest is not None:
            self.dropped += 1
            self._streams.metrics.stream_frames.labels("dropped").inc()
        self._newest = _Arrived(self.frames, content, captured, now, self._captured)
        self._captured = None
        self.frames += 1
        self._came.set()

    # ---- what becomes of it -------------------------------------------------------------------------------

    async def _work(self, opening: Opening, view: _View) -> None:
        """Answer the newest frame again and again; the next one is decoded while one is computed.

        It is taken no sooner than it must be to be ready when the other one is answered: so it is as new as can be.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                ahead = tasks.create_task(self._decoded(opening, 0.0))
                answering = decoding = 0.0  # seconds lately
                while True:
                    one = await ahead
                    decoding += LATELY * (one.decode_ms / 1000 - decoding)
                    ahead = tasks.create_task(self._decoded(opening, answering - EARLIER * decoding))
                    began = time.monotonic()
                    await self._answer(one, view)
                    answering += LATELY * (time.monotonic() - began - answering)
        except BaseExceptionGroup as group:
            raise _cause(group) from None

    async def _decoded(self, opening: Opening, pause: float) -> _Read:
        """The newest frame after a pause (s), as soon as there is one."""
        await asyncio.sleep(max(0.0, pause))
        while self._newest is None:
            self._came.clear()
            await self._came.wait()
        one, self._newest = self._newest, None
        began = time.monotonic()
        pixels, problem = None, ""
        try:
            pixels = await self._pixels(one.content, opening)
        except HTTPException as refusal:
            if refusal.status_code == 413:
                raise _Closed(TOO_LARGE, refusal.detail) from None
            if refusal.status_code == 503:
                raise _Closed(STOPPING, refusal.detail) from None
            problem = refusal.detail
        return _Read(one, pixels, problem, 1000 * (time.monotonic() - began))

    async def _pixels(self, content: bytes, opening: Opening) -> Pixels:
        """H×W×3 uint8 RGB. Raises ``HTTPException``."""
        if opening.format == "jpeg":
            most = self._streams.settings.max_pixels
            found: Pixels = await self._in_thread(
                self._streams.decoders.call, "frame", read_jpeg, content, "frame", most
            )
            return found
        height, width = opening.height or 0, opening.width or 0
        if len(content) != 3 * height * width:
            raise HTTPException(
                422, f"frame: has {len(content)} bytes, and {width}×{height} RGB has {3 * height * width}"
            )
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    async def _answer(self, one: _Read, view: _View) -> None:
        if one.pixels is None:
            self._streams.metrics.stream_frames.labels("refused").inc()
            await self._send({"frame": one.of.number, "error": one.problem, "dropped": self.dropped})
            self._bad += 1
            if self._bad >= MOST_BAD:
                raise _Closed(INVALID, f"{MOST_BAD} frames on end could not be read")
            return
        self._bad = 0
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._streams.settings.timeout):
                probability, seconds = await view.served.engine.timed(one.pixels)
        except TimeoutError:
            raise _Closed(FAILED, f"a frame took more than {self._streams.settings.timeout:g} s") from None
        waited = time.monotonic() - began - seconds
        record = await self._in_thread(view.record, one, probability)
        now = time.monotonic()
        self.answered += 1
        self._streams.metrics.stream_frames.labels("answered").inc()
        self._streams.metrics.stream_seconds.observe(now - one.of.captured)
        took = {"decode_ms": one.decode_ms, "wait_ms": 1000 * waited, "inference_ms": 1000 * seconds}
        await self._send(
            record | {"ms": round(1000 * (now - one.of.captured), 2)}
            | {name: round(value, 2) for name, value in took.items()}
            | ({} if one.of.said is None else {"captured": one.of.said}) | {"dropped": self.dropped}
        )  # fmt: skip

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._channel.send(to_line(message))
        except TimeoutError:
            raise _Closed(REFUSED, f"predictions were not read for {SEND_SECONDS:g} s") from None
        except ConnectionError:
            raise _Closed(DONE) from None

    def _in_thread(self, work: Any, *arguments: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._streams.pool, work, *arguments)


class _View:
    """The frames of one session, described one after another: its tracker, and what it compares frames by."""

    def __init__(self, served: Served, point: OperatingPoint, probability: bool) -> None:
        self.served = served
        self._point, self._probability = point, probability
        self._tracker, self._meter = Tracker.at(point), QualityMeter()
        self._start: float | None = None
        self._time = -math.inf

    def record(self, one: _Read, probability: Map) -> dict[str, Any]:
        """A frame's polyps, as a line of a video has them, each ``confirmed`` or not."""
        assert one.pixels is not None
        segmenter = self.served.segmenter
        outside = outside_of(one.pixels)
        found = segmenter.segmentation(probability, *one.pixels.shape[:2], outside=outside, point=self._point)
        # Of two frames of one time the later comes a millisecond after.
        self._start = one.of.captured if self._start is None else self._start
        self._time = max(round(one.of.captured - self._start, 3), round(self._time + 0.001, 3))
        quality = self._meter.measure(one.pixels, self._time)
        record = video_record(
            found, quality, self._tracker.keep, source="", model="", index=one.of.number, time=self._time
        )
        record = follow(record, self._tracker, quality.jump)
        record["quality"] = {**judge(one.pixels).to_dict(), **record["quality"]}
        for name in ("source", "threshold", "model"):  # which the first message said
            del record[name]
        for region in record["polyps"]:
            region["confirmed"] = region["id"] is not None
        if self._probability:
            record |= encoded_maps(probability, outside)
        return record


def _parsed(kind: type[Any], text: str | bytes) -> Any:
    """A message in JSON."""
    if isinstance(text, bytes) or len(text) > LONGEST_TEXT:
        raise _Closed(REFUSED, f"a message in JSON has at most {LONGEST_TEXT} characters")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:40]
        known = f"; known: {', '.join(kind.model_fields)}" if first["type"] == "extra_forbidden" else ""
        what = "is unknown" if known else first["msg"]
        raise _Closed(REFUSED, f"{where or 'the message'}: {what}{known}") from None


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what went wrong at once, the crash if there is one, else why the session ends."""
    found = [_cause(one) if isinstance(one, BaseExceptionGroup) else one for one in group.exceptions]
    return next((one for one in found if not isinstance(one, _Closed)), found[0])


def shortened(line: str) -> str:
    """A line as long as the reason of a WebSocket's end may be."""
    return line.encode()[:LONGEST_REASON].decode(errors="ignore")
