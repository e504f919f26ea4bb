"""Services in processes of their own, and what is sent to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra polypseg[serve] is not installed")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="session")
def node() -> str:
    """The Node that Playwright brings: new enough for WebSockets and for modules as browsers read them."""
    import playwright

    return str(Path(playwright.__file__).parent / "driver" / ("node.exe" if os.name == "nt" else "node"))


SERVE = "import sys; from polypseg.cli import main; sys.exit(main())"
LIMITS = ("--max_pixels", "1000000", "--max_mib", "1", "--max_job_mib", "8", "--max_video_seconds", "20")


class Service:
    """A process of ``polypseg serve``; ``web`` is a client of it."""

    def __init__(self, model: Path, state: Path, *options: str) -> None:
        self.state, self.log = state, state.parent / f"{state.name}.log"
        command = [sys.executable, "-c", SERVE, "serve", "--state", str(state), "--port", "0"]
        if "--model" not in options:
            command += ["--model", str(model)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        assert found, self.log.read_text()
        self.url, self.port = found[0], int(found[1])
        self.web = httpx.Client(base_url=self.url, timeout=60)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait; the exit status."""
        self.web.close()
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(60)

    def wait_for(self, job: str, reached: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        """The job when it has come so far."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = self.web.get(f"/v1/jobs/{job}").json()
            if reached(answer):
                return dict(answer)
            time.sleep(0.02)
        raise AssertionError(answer)

    def memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")


@pytest.fixture(scope="session")
def start(exported: Any) -> Iterator[Callable[..., Service]]:
    """Starts services; those that still run at the end are killed."""
    started: list[Service] = []

    def begin(state: Path, *options: str) -> Service:
        started.append(Service(exported.folder, state, *options))
        return started[-1]

    yield begin
    for service in started:
        if service.process.poll() is None:
            service.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def server(start: Callable[..., Service], tmp_path_factory: pytest.TempPathFactory) -> Service:
    """One service with small limits, for all tests that do not stop it."""
    return start(tmp_path_factory.mktemp("serve") / "state", *LIMITS)


@pytest.fixture(scope="session")
def segmenter(exported: Any) -> Any:
    """The same model in this process."""
    import polypseg

    return polypseg.load(exported.folder)


@pytest.fixture(scope="session")
def frames(phantom_folder: Path) -> list[Path]:
    """Files of phantom frames."""
    return sorted((phantom_folder / "images").iterdir())


def write_clip(path: Path, frames: int) -> Path:
    """A video of noise that drifts, 64×48, 25 frames a second."""
    from polypseg.io.video import VideoInfo, VideoWriter, finish_mp4

    noise = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    still = np.asarray(cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC), np.uint8)
    part = path.with_suffix(".part.mp4")
    writer = VideoWriter(part, VideoInfo(64, 48, 25.0, Fraction(1, 1000)))
    for index in range(frames):
        writer.write(np.roll(still, index, axis=1), 40 * index)
    writer.close()
    finish_mp4(part, path)
    part.unlink(missing_ok=True)
    return path


@pytest.fixture(scope="session")
def make_clip() -> Callable[[Path, int], Path]:
    """Writes a video of so many frames, and returns its path."""
    return write_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short video."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 30)
