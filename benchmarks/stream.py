"""Live streams under load: a looped clip stands for a camera.

The clip's frames, at --height lines (1280×720 by default), JPEGs or raw, are sent at the camera's rate to ``polypseg
serve`` in a process of its own, over a WebSocket and over a Unix socket, by one camera and by two at once. Each row is
one way: frames answered a second, capture-to-answer milliseconds as this side measures them (from when a frame is due
to when its answer is here), what was dropped, how evenly two streams shared, and the service's memory at the start and
at the end. The sender runs on the same computer: what it needs is missing to the service.

    python benchmarks/stream.py --clip ../shared/data/video/ldpolyp-clip.mp4 --seconds 600
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import asyncio
import datetime
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from results import add_rows, processor
from websockets.asyncio.client import connect

from polypseg.files import commit
from polypseg.inference.runtimes import usable_cores
from polypseg.io.video import VideoReader

HEAD = struct.Struct(">BI")  # of a message over the Unix socket
TEXT, FRAME = 1, 2
SETTLE = 3.0  # seconds at the start that do not count


class Link(Protocol):
    async def text(self, message: str) -> None: ...
    async def frame(self, content: bytes) -> None: ...
    async def hear(self) -> dict[str, Any]: ...


class OverWebSocket:
    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.text = self.frame = socket.send

    async def hear(self) -> dict[str, Any]:
        return dict(json.loads(await self._socket.recv()))


class OverUnixSocket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def text(self, message: str) -> None:
        await self._send(TEXT, message.encode())

    async def frame(self, content: bytes) -> None:
        await self._send(FRAME, content)

    async def _send(self, kind: int, content: bytes) -> None:
        self._writer.write(HEAD.pack(kind, len(content)))
        self._writer.write(content)
        await self._writer.drain()

    async def hear(self) -> dict[str, Any]:
        _, length = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        return dict(json.loads(await self._reader.readexactly(length)))


class Service:
    """``polypseg serve`` in a process of its own."""

    def __init__(self, model: str | None, folder: Path) -> None:
        self.path = folder / "s"
        command = [sys.executable, "-m", "polypseg.cli", "serve", "--port", "0", "--state", str(folder / "state")]
        command += ["--socket", str(self.path), *(["--model", model] if model else [])]
        self._log = (folder / "log.txt").open("w")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self._process.stdout is not None
        self.greeting = self._process.stdout.readline()
        found = re.search(r"http(://\S+)", self.greeting)
        if found is None:
            sys.exit(f"the service did not start:\n{(folder / 'log.txt').read_text()}")
        self.url = f"ws{found[1]}/v1/stream"

    @asynccontextmanager
    async def linked(self, way: str) -> AsyncIterator[Link]:
        if way == "websocket":
            async with connect(self.url, compression=None, max_size=None) as socket:
                yield OverWebSocket(socket)
            return
        reader, writer = await asyncio.open_unix_connection(self.path)
        yield OverUnixSocket(reader, writer)
        writer.close()

    def memory(self) -> float:
        """MiB of the service and of what decodes for it, without what they share."""
        mine = [self._process.pid, *_children(self._process.pid)]
        found = [re.search(r"Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in mine]
        return sum(int(one[1]) for one in found if one) / 1024

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


def _children(pid: int) -> list[int]:
    direct = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return direct + [other for one in direct for other in _children(one)]


@dataclass
class Taken:
    """What one camera measured: of each answer when it came (s) and after how many milliseconds; sent and dropped."""

    times: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    sent: int = 0
    dropped: int = 0


async def camera(link: Link, frames: list[bytes], opening: dict[str, Any], rate: float, seconds: float) -> Taken:
    taken = Taken()
    await link.text(json.dumps(opening))
    await link.hear()
    start = time.perf_counter()
    since = time.time() - start

    async def listen() -> None:
        while True:
            answer = await link.hear()
            now = time.perf_counter()
            taken.times.append(now - start)
            taken.milliseconds.append(1000 * (now - start - answer["frame"] / rate))
            taken.said.append({name: answer[name] for name in ("decode_ms", "wait_ms", "inference_ms")})
            taken.dropped = answer["dropped"]

    listening = asyncio.create_task(listen())
    for number in range(int(seconds * rate)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await link.text(json.dumps({"captured": 1000 * (since + due)}))
        await link.frame(frames[number % len(frames)])
        taken.sent += 1
    await asyncio.sleep(1)
    listening.cancel()
    return taken


async def cameras(service: Service, way: str, count: int, **how: Any) -> list[Taken]:
    async def one() -> Taken:
        async with service.linked(way) as link:
            return await camera(link, **how)

    return list(await asyncio.gather(*(one() for _ in range(count))))


def clip(path: Path, height: int, shape: str) -> tuple[list[bytes], dict[str, Any]]:
    """The frames as they are sent, 16:9, and the first message."""
    width = height * 16 // 9
    with VideoReader(path) as reader:
        frames = [cv2.resize(frame.pixels, (width, height), interpolation=cv2.INTER_AREA) for frame in reader]
    if shape == "rgb":
        return [frame.tobytes() for frame in frames], {"format": "rgb", "width": width, "height": height}
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
    return [cv2.imencode(".jpg", frame[..., ::-1], quality)[1].tobytes() for frame in frames], {"format": "jpeg"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", type=Path, required=True, help="a video")
    parser.add_argument("--model", help="a bundle's or a run's folder; the model that ships by default")
    parser.add_argument("--height", type=int, default=720, help="lines of a frame")
    parser.add_argument("--rate", type=float, default=30, help="frames a second of each camera")
    parser.add_argument("--seconds", type=float, default=60, help="of each way")
    parser.add_argument("--ways", nargs="+", default=["websocket", "unix"], choices=["websocket", "unix"])
    parser.add_argument("--shapes", nargs="+", default=["jpeg", "rgb"], choices=["jpeg", "rgb"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 2], help="cameras at once")
    parser.add_argument("--out", default="results/stream.csv", help="CSV to which rows are added; empty: none")
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        frames, opening = clip(options.clip, options.height, shape)
        for way in options.ways:
            for count in options.streams:
                row = measure(options, frames, opening, way, count)
                rows.append(row)
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                if options.out:
                    add_rows(options.out, [row])


def measure(
    options: argparse.Namespace, frames: list[bytes], opening: dict[str, Any], way: str, count: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        service = Service(options.model, Path(folder))
        try:
            how = {"frames": frames, "opening": opening, "rate": options.rate}
            asyncio.run(cameras(service, way, count, **how, seconds=5))  # warms both sides up
            before = service.memory()
            found = asyncio.run(cameras(service, way, count, **how, seconds=options.seconds))
            after = service.memory()
        finally:
            service.stop()
    times = [np.array(one.times) for one in found]
    late = [np.array(one.milliseconds) for one in found]
    steady = np.concatenate([ms[when > SETTLE] for ms, when in zip(late, times, strict=True)])
    tenth = options.seconds / 10
    first, last = (
        np.concatenate([ms[(when > low) & (when <= high)] for ms, when in zip(late, times, strict=True)])
        for low, high in ((SETTLE, SETTLE + tenth), (options.seconds - tenth, options.seconds))
    )
    said = [one for taken in found for one in taken.said]
    shares = [len(one.times) for one in found]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "model": re.findall(r"http\S+\s+(\S+):", service.greeting)[0],
        "clip": options.clip.name,
        "height": options.height,
        "format": opening["format"],
        "way": way,
        "streams": count,
        "rate": options.rate,
        "seconds": options.seconds,
        "answered_per_s": round(float(np.mean(shares)) / options.seconds, 2),
        "p50_ms": round(float(np.percentile(steady, 50)), 1),
        "p99_ms": round(float(np.percentile(steady, 99)), 1),
        "p50_first_tenth_ms": round(float(np.percentile(first, 50)), 1) if len(first) else None,
        "p50_last_tenth_ms": round(float(np.percentile(last, 50)), 1) if len(last) else None,
        "dropped_share": round(sum(one.dropped for one in found) / sum(one.sent for one in found), 4),
        "least_over_most": round(min(shares) / max(shares), 3),
        **{name: round(float(np.median([one[name] for one in said])), 2) for name in said[0]},
        "memory_before_mib": round(before, 1),
        "memory_after_mib": round(after, 1),
        "cores": usable_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "processor": processor(),
    }


if __name__ == "__main__":
    main()
