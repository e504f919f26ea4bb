"""The service from Python: ``Client``, and ``AsyncClient`` for asyncio. Needs the extra ``polypseg[client]`` alone.

    with Client("http://localhost:8000") as service:
        found = service.segment("frame.jpg")
        job = service.wait(service.submit("exam.mp4"))
        service.download(job, "found")

What a busy or starting service refuses (429, 503), and a connection that breaks before a response, is tried again
until ``patience`` seconds have passed, as late as Retry-After says.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote

import numpy as np

from polypseg.errors import PolypsegError
from polypseg.extras import naming_extras
from polypseg.files import atomic_write
from polypseg.segmentation import Polyp

with naming_extras("client"):
    import httpx

Picture = str | os.PathLike[str] | bytes  # a file, or its content
T = TypeVar("T")

ENDED = ("done", "failed", "cancelled")
POLL = 0.5  # seconds between two requests about a job
SHORTEST, LONGEST = 0.25, 10.0  # seconds before another try, where the service says none
READ_AT_ONCE = 1 << 20  # bytes


class ServiceError(PolypsegError):
    """The service refuses, or cannot be reached; its message is the service's line.

    Attributes:
        status: HTTP status; 0 where there was no response.
        retry_after: seconds after which it may be asked again; None where it does not say.
    """

    def __init__(self, line: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(line)
        self.status, self.retry_after = status, retry_after

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, 429, 503)


@dataclass(frozen=True)
class Found:
    """What the service found in a frame.

    Attributes:
        polyps: as of a ``Segmentation``, the largest first.
        width, height: of the frame, pixels.
        model: hash of the model.
        record: all that the service said.
        milliseconds: of each step, as Server-Timing says: ``decode``, ``wait``, ``inference``, ``render``.
    """

    polyps: tuple[Polyp, ...]
    width: int
    height: int
    model: str
    record: dict[str, Any] = field(repr=False)
    milliseconds: dict[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Followed:
    """What the service found in a frame of a stream.

    Attributes:
        frame: its number among those that were sent, from 0.
        polyps: in it; whether one is ``confirmed`` says its number.
        ids: of each polyp the number of its track; None while that is not confirmed.
        milliseconds: from capture to prediction.
        dropped: frames that were passed over so far, because a newer one was there.
        problem: why the frame could not be read; None where it was.
        record: all that the service said.
    """

    frame: int
    polyps: tuple[Polyp, ...]
    ids: tuple[int | None, ...]
    milliseconds: float
    dropped: int
    problem: str | None
    record: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Job:
    """A video or a batch in work; ``record`` is all that the service said, ``files`` are its complete outputs."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int
    total: int | None
    error: str | None
    files: tuple[str, ...]
    record: dict[str, Any] = field(repr=False)


class Point(TypedDict, total=False):
    """What of the operating point is asked for, each 0..1; what is left out, or None, is the model's own."""

    threshold: float | None
    min_confidence: float | None
    min_area: float | None


@dataclass(frozen=True)
class _Request:
    """What is to be asked, so that it can be asked again."""

    method: str
    path: str
    parameters: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    fields: dict[str, str] = field(default_factory=dict)
    files: Sequence[tuple[str, str | os.PathLike[str]]] = ()

    def options(self, opened: ExitStack) -> dict[str, Any]:
        """For httpx; files are closed with ``opened``."""
        given: dict[str, Any] = {"params": self.parameters, "headers": self.headers}
        if self.content is not None:
            given["content"] = self.content
        if self.files:
            given["data"] = self.fields
            given["files"] = [
                ("file", (name, opened.enter_context(Path(path).open("rb"))))  # noqa: SIM115
                for name, path in self.files
            ]
        return given


@dataclass(frozen=True)
class _Pause:
    """To be waited for."""

    seconds: float


Steps = Generator[_Request | _Pause, httpx.Response | ServiceError | None, T]  # of what is asked, whoever asks it


class _Service:
    """What is asked and how it is understood, for both clients."""

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def _asked(self, request: _Request) -> Steps[httpx.Response]:
        """A request that is repeated while that helps and patience lasts."""
        end = time.monotonic() + self._patience
        pause = SHORTEST
        while True:
            answer = yield request
            assert answer is not None
            problem = answer if isinstance(answer, ServiceError) else _refusal(answer)
            if problem is None:
                assert isinstance(answer, httpx.Response)
                return answer
            after = pause * random.uniform(0.75, 1.25) if problem.retry_after is None else problem.retry_after  # noqa: S311  (spreads clients)
            if not problem.passing or time.monotonic() + after > end:
                raise problem
            yield _Pause(after)
            pause = min(2 * pause, LONGEST)

    def _segment(self, picture: Picture, probability: bool, **options: Any) -> Steps[Found]:
        content = picture if isinstance(picture, bytes) else _content(picture)
        name = "frame" if isinstance(picture, bytes) else Path(picture).name
        headers = {
            "content-type": "image/jpeg" if content.startswith(b"\xff\xd8") else "image/*",
            "content-disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        }
        parameters = _given({**options, "probability": probability or None})
        response = yield from self._asked(_Request("POST", "/v1/segment", parameters, headers, content))
        record = response.json()
        return Found(
            _polyps(record), record["width"], record["height"], record["model"], record,
            _milliseconds(response.headers.get("server-timing", "")),
        )  # fmt: skip

    def _submit(
        self, sources: Sequence[str | os.PathLike[str]], smoothing: float, **point: Unpack[Point]
    ) -> Steps[Job]:
        files = _files(sources)
        request = _Request("POST", "/v1/jobs", _given({**point}), fields={"smoothing": str(smoothing)}, files=files)
        return _job((yield from self._asked(request)).json())

    def _again(
        self, job: Job | str, source: str | os.PathLike[str] | None, replace: bool, **point: Unpack[Point]
    ) -> Steps[Job]:
        files = [] if source is None else _files([source])
        path = f"/v1/jobs/{quote(_id(job))}/again"
        request = _Request("POST", path, _given({**point}), fields={"replace": str(replace).lower()}, files=files)
        return _job((yield from self._asked(request)).json())

    def _job(self, job: Job | str) -> Steps[Job]:
        return _job((yield from self._asked(_Request("GET", f"/v1/jobs/{quote(_id(job))}"))).json())

    def _wait(self, job: Job | str, seconds: float | None, progress: Callable[[Job], object]) -> Steps[Job]:
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            now = yield from self._job(job)
            progress(now)
            if now.state in ENDED:
                return now
            if end is not None and time.monotonic() + POLL > end:
                raise PolypsegError(f"job {now.id}: has not ended after {seconds:g} s; it goes on, wait again")
            yield _Pause(POLL)

    def _model(self, name: str | None) -> Steps[dict[str, Any]]:
        found: dict[str, Any] = (yield from self._asked(_Request("GET", "/v1/model", _given({"model": name})))).json()
        return found

    def _remove(self, job: Job | str) -> Steps[None]:
        """The first request cancels one that has not ended; the next removes it."""
        path = f"/v1/jobs/{quote(_id(job))}"
        if (yield from self._asked(_Request("DELETE", path))).status_code != 204:
            yield from self._asked(_Request("DELETE", path))


def _connection(address: str, token: str | None, seconds: float) -> dict[str, Any]:
    token = token or os.environ.get("POLYPSEG_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return {"base_url": address, "timeout": seconds, "headers": headers}


class Client(_Service):
    """The service, for programs without asyncio. Thread-safe; closed by ``close`` or at the end of a ``with``.

    Args:
        address: of the service.
        token: of the service; POLYPSEG_TOKEN's by default.
        patience: seconds for which a request is tried again, 0 for never.
        timeout: seconds without a byte after which a connection is given up.
    """

    def __init__(
        self,
        address: str = "http://localhost:8000",
        token: str | None = None,
        patience: float = 60,
        timeout: float = 60,
    ) -> None:
        super().__init__(patience)
        self._http = httpx.Client(**_connection(address, token, timeout))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def model(self, name: str | None = None) -> dict[str, Any]:
        """What ``GET /v1/model`` says of a model, the first by default. Raises ``ServiceError``."""
        return self._run(self._model(name))

    def segment(
        self,
        picture: Picture,
        *,
        threshold: float | None = None,
        min_confidence: float | None = None,
        min_area: float | None = None,
        model: str | None = None,
        probability: bool = False,
    ) -> Found:
        """Segment one frame.

        Args:
            picture: the path of an image or a DICOM file, or the content of an image file.
            threshold: of the operating point, 0..1, as the next two; by default the model's.
            min_confidence: likewise.
            min_area: likewise.
            model: its name; the first by default.
            probability: whether ``record`` has the probability map, a PNG in base64.

        Raises:
            ServiceError: the service refuses, or cannot be reached.
            PolypsegError: the file cannot be read.
        """
        return self._run(
            self._segment(
                picture, probability, threshold=threshold, min_confidence=min_confidence, min_area=min_area, model=model
            )
        )

    def submit(
        self,
        *sources: str | os.PathLike[str],
        smoothing: float = 0.0,
        **point: Unpack[Point],
    ) -> Job:
        """Send a video, or several pictures, to be worked through.

        Args:
            sources: paths of the files.
            smoothing: of videos, weight of the earlier frames in each frame's prediction, 0 to below 1.
            point: ``threshold``, ``min_confidence`` and ``min_area`` as of ``segment``.

        Raises:
            ServiceError: the service refuses, or cannot be reached.
            PolypsegError: a file cannot be read.
        """
        return self._run(self._submit(sources, smoothing, **point))

    def again(
        self,
        job: Job | str,
        source: str | os.PathLike[str] | None = None,
        *,
        replace: bool = False,
        **point: Unpack[Point],
    ) -> Job:
        """Follow a job's video anew, at another operating point: a new job.

        Args:
            job: itself or its id; it has ended.
            source: path of the video, where the service does not keep it.
            replace: whether it is removed when the new one is done.
            point: as of ``submit``.

        Raises:
            ServiceError: the service refuses (409: it needs the video's file), or cannot be reached.
            PolypsegError: the file cannot be read.
        """
        return self._run(self._again(job, source, replace, **point))

    def job(self, job: Job | str) -> Job:
        """How a job stands now, by itself or its id. Raises ``ServiceError``."""
        return self._run(self._job(job))

    def wait(
        self, job: Job | str, seconds: float | None = None, progress: Callable[[Job], object] = lambda _: None
    ) -> Job:
        """The job once it has ended; how, says its ``state``.

        Args:
            job: itself or its id.
            seconds: for which it is waited at most; None for ever.
            progress: called with the job now and then.

        Raises:
            PolypsegError: it has not ended after ``seconds``.
            ServiceError: the service cannot be reached, or knows no such job.
        """
        return self._run(self._wait(job, seconds, progress))

    def download(self, job: Job | str, folder: str | os.PathLike[str]) -> list[Path]:
        """Write a job's complete files into a folder, each whole or not at all; their paths.

        Raises:
            ServiceError: as ``wait``.
            PolypsegError: the disk refuses.
        """
        found = self.job(job)
        return [self._fetch(found.id, name, _target(folder, name)) for name in found.files]

    def remove(self, job: Job | str) -> None:
        """Cancel a job that has not ended, and remove it with its files. Raises ``ServiceError``."""
        self._run(self._remove(job))

    def _fetch(self, identity: str, name: str, path: Path) -> Path:
        try:
            with self._http.stream("GET", _file(identity, name)) as response, atomic_write(path) as file:
                if response.is_error:
                    response.read()
                    raise _refusal(response) or ServiceError("", response.status_code)
                for part in response.iter_bytes(READ_AT_ONCE):
                    file.write(part)
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error
        return path

    def _run(self, steps: Steps[T]) -> T:
        answer: httpx.Response | ServiceError | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                return cast(T, stop.value)
            answer = None
            if isinstance(step, _Pause):
                time.sleep(step.seconds)
                continue
            with ExitStack() as opened:
                try:
                    answer = self._http.request(step.method, step.path, **step.options(opened))
                except httpx.HTTPError as error:
                    answer = _unreachable(error, self._http.base_url)


class AsyncClient(_Service):
    """The service, for asyncio; as ``Client``, and ``stream`` for live frames."""

    def __init__(
        self,
        address: str = "http://localhost:8000",
        token: str | None = None,
        patience: float = 60,
        timeout: float = 60,
    ) -> None:
        super().__init__(patience)
        connection = _connection(address, token, timeout)
        self._http = httpx.AsyncClient(**connection)
        self._headers: dict[str, str] = connection["headers"]

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def model(self, name: str | None = None) -> dict[str, Any]:
        """As ``Client.model``."""
        return await self._run(self._model(name))

    async def segment(
        self,
        picture: Picture,
        *,
        threshold: float | None = None,
        min_confidence: float | None = None,
        min_area: float | None = None,
        model: str | None = None,
        probability: bool = False,
    ) -> Found:
        """As ``Client.segment``."""
        return await self._run(
            self._segment(
                picture, probability, threshold=threshold, min_confidence=min_confidence, min_area=min_area, model=model
            )
        )

    async def submit(
        self,
        *sources: str | os.PathLike[str],
        smoothing: float = 0.0,
        **point: Unpack[Point],
    ) -> Job:
        """As ``Client.submit``."""
        return await self._run(self._submit(sources, smoothing, **point))

    async def again(
        self,
        job: Job | str,
        source: str | os.PathLike[str] | None = None,
        *,
        replace: bool = False,
        **point: Unpack[Point],
    ) -> Job:
        """As ``Client.again``."""
        return await self._run(self._again(job, source, replace, **point))

    async def job(self, job: Job | str) -> Job:
        """As ``Client.job``."""
        return await self._run(self._job(job))

    async def wait(
        self, job: Job | str, seconds: float | None = None, progress: Callable[[Job], object] = lambda _: None
    ) -> Job:
        """As ``Client.wait``."""
        return await self._run(self._wait(job, seconds, progress))

    async def download(self, job: Job | str, folder: str | os.PathLike[str]) -> list[Path]:
        """As ``Client.download``."""
        found = await self.job(job)
        return [await self._fetch(found.id, name, _target(folder, name)) for name in found.files]

    async def remove(self, job: Job | str) -> None:
        """As ``Client.remove``."""
        await self._run(self._remove(job))

    async def stream(self, frames: AsyncIterable[bytes] | Iterable[bytes], **opening: Any) -> AsyncIterator[Followed]:
        """Send frames as they come, and give the newest ones' polyps as they are found, followed from frame to frame.

        Frames that come faster than they are computed are passed over. Needs the package ``websockets``.

        Args:
            frames: JPEG files, or raw RGB with ``format="rgb"``, ``width`` and ``height``; each is taken for captured
                when it is given.
            opening: as of the first message: ``model``, ``threshold``, ``min_confidence``, ``min_area``,
                ``fill_holes``, ``probability``, ``format``, ``width``, ``height``.

        Raises:
            ServiceError: the service refuses, ends the stream, or cannot be reached.
            PolypsegError: ``websockets`` is not installed.
        """
        with naming_extras("client"):
            from websockets.asyncio.client import connect
            from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

        address = str(self._http.base_url.join("/v1/stream")).replace("http", "ws", 1)
        options: dict[str, Any] = {"compression": None, "max_size": None, "additional_headers": self._headers}
        try:
            async with connect(address, **options) as socket:
                await socket.send(json.dumps(opening))
                _heard(await socket.recv())
                sending = asyncio.create_task(_send(socket, frames))
                receiving: asyncio.Task[Any] | None = None
                answered = 0
                try:
                    while not sending.done() or answered < sending.result():  # the newest is always answered
                        receiving = receiving or asyncio.create_task(socket.recv())
                        awaited = {receiving} if sending.done() else {receiving, sending}
                        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                        if receiving.done():
                            found = _followed(_heard(receiving.result()))
                            receiving, answered = None, found.frame + 1
                            yield found
                finally:
                    for task in (sending, receiving):
                        if task is not None:
                            task.cancel()
        except InvalidStatus as refused:
            answer = refused.response
            response = httpx.Response(
                answer.status_code, headers=dict(answer.headers.raw_items()), content=bytes(answer.body)
            )
            raise _refusal(response) or ServiceError("the service knows no streams", answer.status_code) from None
        except ConnectionClosed as closed:
            reason = closed.rcvd.reason if closed.rcvd else ""
            raise ServiceError(reason or "the service ended the stream") from closed
        except (OSError, InvalidHandshake) as error:
            raise _unreachable(error, self._http.base_url) from error

    async def _fetch(self, identity: str, name: str, path: Path) -> Path:
        try:
            async with self._http.stream("GET", _file(identity, name)) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response) or ServiceError("", response.status_code)
                with atomic_write(path) as file:
                    async for part in response.aiter_bytes(READ_AT_ONCE):
                        file.write(part)
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error
        return path

    async def _run(self, steps: Steps[T]) -> T:
        answer: httpx.Response | ServiceError | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                return cast(T, stop.value)
            answer = None
            if isinstance(step, _Pause):
                await asyncio.sleep(step.seconds)
                continue
            with ExitStack() as opened:
                try:
                    answer = await self._http.request(step.method, step.path, **step.options(opened))
                except httpx.HTTPError as error:
                    answer = _unreachable(error, self._http.base_url)


async def _send(socket: Any, frames: AsyncIterable[bytes] | Iterable[bytes]) -> int:
    """Send frames, and say how many there were."""
    count = 0
    async for frame in _as_they_come(frames):
        await socket.send(json.dumps({"captured": 1000 * time.time()}))
        await socket.send(frame)
        count += 1
    return count


async def _as_they_come(frames: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
        return
    iterator = iter(frames)
    while (one := await asyncio.to_thread(next, iterator, None)) is not None:  # which may wait for a camera
        yield one


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PolypsegError(f"{path}: cannot be read ({error.strerror or error})") from error


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refusal(response: httpx.Response) -> ServiceError | None:
    """The error that a response is; None where it is none."""
    if not response.is_error:
        return None
    line = ""
    try:
        said = response.json()
        line = said.get("error", "") if isinstance(said, dict) else ""
    except ValueError:  # of a proxy, perhaps
        pass
    line = line or f"the service responded {response.status_code} {response.reason_phrase}".strip()
    return ServiceError(line, response.status_code, _seconds(response.headers.get("retry-after")))


def _seconds(header: str | None) -> float | None:
    """What Retry-After says: seconds, or a date."""
    if header is None:
        return None
    try:
        return max(
            0.0,
            float(header) if header.strip().isdecimal() else parsedate_to_datetime(header).timestamp() - time.time(),
        )
    except ValueError:
        return None


def _unreachable(error: Exception, address: object) -> ServiceError:
    what = " ".join(str(error).split()) or type(error).__name__
    return ServiceError(f"{address}: cannot be reached ({what}); is the service running?")


def _milliseconds(header: str) -> dict[str, float]:
    pairs = (part.strip().partition(";dur=") for part in header.split(","))
    return {name: float(value) for name, _, value in pairs if value}


def _polyps(record: dict[str, Any]) -> tuple[Polyp, ...]:
    return tuple(
        Polyp(
            tuple(one["box"]), one["area"], one["confidence"],
            np.asarray(one["contour"], np.int32).reshape(-1, 2), one.get("confirmed", True),
        )
        for one in record["polyps"]
    )  # fmt: skip


def _job(record: dict[str, Any]) -> Job:
    return Job(
        record["id"], record["state"], record["done"], record["total"], record["error"], tuple(record["files"]), record
    )


def _heard(message: str | bytes) -> dict[str, Any]:
    """A message of a stream; the line that ends one is raised."""
    said: dict[str, Any] = json.loads(message)
    if "error" in said and "frame" not in said:
        raise ServiceError(said["error"])
    return said


def _followed(record: dict[str, Any]) -> Followed:
    problem = record.get("error")
    if problem is not None:
        return Followed(record["frame"], (), (), float("nan"), record["dropped"], problem, record)
    ids = tuple(one["id"] for one in record["polyps"])
    return Followed(record["frame"], _polyps(record), ids, record["ms"], record["dropped"], None, record)


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def _files(sources: Sequence[str | os.PathLike[str]]) -> list[tuple[str, str | os.PathLike[str]]]:
    for source in sources:
        if not Path(source).is_file():
            raise PolypsegError(f"{source}: there is no such file")
    return [(Path(source).name, source) for source in sources]


def _file(identity: str, name: str) -> str:
    return f"/v1/jobs/{quote(identity)}/files/{quote(name)}"


def _target(folder: str | os.PathLike[str], name: str) -> Path:
    """Where a file goes: a name from outside names no folder."""
    if name in ("", ".", "..") or {"/", os.sep} & set(name):
        raise PolypsegError(f"{name}: is no name of a file")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / name
