"""What shared memory would save a live stream: a raw frame handed to another process, over the Unix socket or by it.

Over the socket, as ``polypseg serve --socket`` reads it. By shared memory, the sender copies the frame there and sends
a message of a few bytes; the receiver takes the frame where it lies, or copies it out. Each frame is acknowledged. No
network, no model: only what the way itself costs, as 10th, 50th and 90th percentile.

    python benchmarks/shared_memory.py --repeats 300
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import tempfile
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvloop

from polypseg.serve.local import FRAME, HEAD, listen

HEIGHT, WIDTH = 720, 1280
BYTES = HEIGHT * WIDTH * 3
HERE, HERE_AND_COPIED = b"here", b"here, to be copied"  # what is sent in place of a frame in shared memory


class Receiver:
    """In the place of the service's sessions: takes each frame, and sends back its last byte."""

    full = False
    settings = SimpleNamespace(max_bytes=BYTES)

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self.done = asyncio.Event()

    async def serve(self, channel: Any) -> None:
        while (content := await channel.receive()) is not None:
            if content in (HERE, HERE_AND_COPIED):
                shared = self._memory.buf[:BYTES]
                content = shared if content == HERE else bytes(shared)
            await channel.send(chr(np.frombuffer(content, np.uint8)[-1]))
            content = shared = None
        self.done.set()


def receive(path: str, name: str) -> None:
    """The receiver's process: until the sender closes."""

    async def until_done() -> None:
        memory = SharedMemory(name)
        receiver: Any = Receiver(memory)
        server = await listen(Path(path), receiver)
        await receiver.done.wait()
        server.close()
        memory.close()

    uvloop.run(until_done())


def measure(link: socket.socket, memory: SharedMemory, message: bytes | None, repeats: int) -> np.ndarray[Any, Any]:
    """Milliseconds from when a frame is to be sent to when the other side has it; by shared memory with a message."""
    shared = np.frombuffer(memory.buf, np.uint8, BYTES)
    found = []
    for number in range(repeats):
        frame = np.full(BYTES, number % 128, np.uint8)
        began = time.perf_counter()
        if message is not None:
            np.copyto(shared, frame)
        content = frame if message is None else message
        link.sendall(HEAD.pack(FRAME, len(content)))
        link.sendall(content)
        seen = link.recv(HEAD.size + 1)[-1]
        found.append(1000 * (time.perf_counter() - began))
        assert seen == number % 128
    return np.array(found[repeats // 10 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=300, help="frames of each way")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "s")
        memory = SharedMemory(create=True, size=BYTES)
        process = multiprocessing.get_context("spawn").Process(target=receive, args=(path, memory.name))
        process.start()
        while not Path(path).exists():
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(path)
            ways = {"Unix socket": None, "shared memory": HERE, "shared memory, copied out": HERE_AND_COPIED}
            for name, message in ways.items():
                found = np.percentile(measure(link, memory, message, options.repeats), (10, 50, 90))
                print(f"{name:26} {' '.join(f'{one:6.2f}' for one in found)} ms")
        process.join()
        memory.close()
        memory.unlink()


if __name__ == "__main__":
    main()
