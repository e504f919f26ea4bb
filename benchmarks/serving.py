"""The service under load: throughput against the bare Segmenter's, latency, mixed-up answers, memory.

The bare Segmenter gets decoded frames through ``stream``, as many in flight as the service computes at once; it and the
service, which also receives, decodes and describes, take turns. Locust makes the load, on the same computer: what it
needs itself is missing to the service. Then the service gets a share of its measured throughput, evenly spread over
users that do not wait for one another, for the latencies, and for as long as ``--soak`` says, for the memory. Every
answer of every request is compared with what the Segmenter says of that frame alone.

    pip install -e '.[serve]' locust
    python benchmarks/serving.py --model runs/realtime --data ../shared/data/Kvasir-SEG
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import datetime
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import add_rows, processor

import polypseg
from polypseg.data import phantom, read
from polypseg.files import commit
from polypseg.inference.runtimes import usable_cores
from polypseg.io.outputs import frame_record
from polypseg.io.pictures import read_frame

IN_FLIGHT = 4
AREA, CONFIDENCE = 0.01, 0.005  # share of the area, and difference, by which computing frames together may change them


@dataclass(frozen=True)
class Answer:
    """A request's frame, latency (s), status and polyps."""

    name: str
    seconds: float
    status: int
    polyps: list[Any] | None


class Service:
    """``polypseg serve`` in a process of its own."""

    def __init__(self, model: str, state: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "polypseg.cli",
            "serve",
            "--model",
            model,
            "--state",
            str(state),
            "--port",
            "0",
        ]
        self._log = (state.parent / "log.txt").open("w")
        self._process = subprocess.Popen(
            [*command, "--batch_size", str(IN_FLIGHT)], stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None
        found = re.search(r"http://\S+", self._process.stdout.readline())
        if found is None:
            sys.exit(f"the service did not start:\n{(state.parent / 'log.txt').read_text()}")
        self.url = found[0]

    def memory(self) -> float:
        """Resident MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


def load(service: Service, frames: Path, users: int, seconds: float, rate: float = 0.0) -> list[Answer]:
    """What Locust got; ``rate`` is of all users together, requests a second, 0 for as many as are answered."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.jsonl"
        environment = {**os.environ, "FRAMES": str(frames), "ANSWERS": str(answers), "RATE": str(rate / users)}
        environment["USERS"] = str(users)
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("serving_load.py")), "--headless"]
        command += ["--host", service.url, "-u", str(users), "-r", str(users), "-t", f"{seconds:g}s"]
        command += ["--stop-timeout", "60", "--only-summary", "--loglevel", "ERROR"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not answers.exists():
            sys.exit(f"locust did not start:\n{done.stderr}")
        lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return [
        Answer(name, took, status, json.loads(text)["polyps"] if status == 200 else None)
        for name, took, status, text in lines
    ]


def is_right(answer: Answer, expected: list[Any]) -> bool:
    """Whether a frame's polyps are those that the Segmenter finds in it alone."""
    return (
        answer.polyps is not None
        and len(answer.polyps) == len(expected)
        and all(
            abs(one["area"] - other["area"]) <= max(4, AREA * other["area"])
            and abs(one["confidence"] - other["confidence"]) <= CONFIDENCE
            and np.abs(np.subtract(one["box"], other["box"])).max() <= 4
            for one, other in zip(answer.polyps, expected, strict=True)
        )
    )


@contextmanager
def memory_of(service: Service) -> Iterator[list[float]]:
    """Gathers the service's memory, once a second."""
    samples: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            samples.append(service.memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a bundle's or a run's folder")
    parser.add_argument("--data", help="folder of a data set; phantom frames without one")
    parser.add_argument("--frames", type=int, default=64, help="different frames that are sent")
    parser.add_argument("--users", type=int, default=8, help="that wait for their responses, for the throughput")
    parser.add_argument("--seconds", type=float, default=20, help="of each turn, and of the load")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--share", type=float, default=0.8, help="of the throughput, for the latencies")
    parser.add_argument("--soak", type=float, default=300, help="seconds of load over which memory is watched")
    parser.add_argument("--out", default="results/serving.csv", help="CSV to which a row is added; empty: none")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = Path(options.data) if options.data else phantom.write(folder / "phantom", options.frames)
        sent = folder / "frames"
        sent.mkdir()
        for row in list(read(data))[: options.frames]:
            shutil.copy(row.image_path, sent)
        names = sorted(path.name for path in sent.iterdir())
        frames = [read_frame(sent / name) for name in names]
        segmenter = polypseg.load(options.model)
        expected = {
            name: frame_record(segmenter.segment(frame), source=name, model="")["polyps"]
            for name, frame in zip(names, frames, strict=True)
        }
        service = Service(options.model, folder / "state")
        try:
            load(service, sent, options.users, 3)  # warms both sides up
            answers: list[Answer] = []
            pairs: list[tuple[float, float]] = []
            for _ in range(options.rounds):
                count, began = 0, time.perf_counter()
                while time.perf_counter() - began < options.seconds:
                    count += sum(1 for _ in segmenter.stream(frames, IN_FLIGHT))
                bare = count / (time.perf_counter() - began)
                found = load(service, sent, options.users, options.seconds)
                answers += found
                pairs.append((bare, len(found) / options.seconds))
                print(f"bare {bare:.1f}/s, served {pairs[-1][1]:.1f}/s, {pairs[-1][1] / bare:.0%}", flush=True)
            served = statistics.median(one for _, one in pairs)
            steady_seconds = max(options.soak, options.seconds)
            with memory_of(service) as memory:
                steady = load(service, sent, 2 * options.users, steady_seconds, options.share * served)
            answers += steady
        finally:
            service.stop()

    latencies = 1000 * np.array([answer.seconds for answer in steady])
    shares = [one / bare for bare, one in pairs]
    tenth = max(1, len(memory) // 10)
    row = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "model": segmenter.bundle.name,
        "bundle_hash": segmenter.hash,
        "runtime": segmenter.runtime.name,
        "precision": segmenter.precision,
        "device": segmenter.device,
        "data": data.name if options.data else "phantom",
        "frames": len(frames),
        "megapixels": round(float(np.mean([frame.shape[0] * frame.shape[1] for frame in frames])) / 1e6, 3),
        "users": options.users,
        "seconds": options.seconds,
        "bare_per_s": round(statistics.median(bare for bare, _ in pairs), 2),
        "served_per_s": round(served, 2),
        "share_min": round(min(shares), 3),
        "share": round(statistics.median(shares), 3),
        "share_max": round(max(shares), 3),
        "load_per_s": round(len(steady) / steady_seconds, 2),
        "p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "p95_ms": round(float(np.percentile(latencies, 95)), 1),
        "p99_ms": round(float(np.percentile(latencies, 99)), 1),
        "p99_over_p50": round(float(np.percentile(latencies, 99) / np.percentile(latencies, 50)), 2),
        "requests": len(answers),
        "refused": sum(answer.status != 200 for answer in answers),
        "wrong": sum(answer.status == 200 and not is_right(answer, expected[answer.name]) for answer in answers),
        "soak_s": steady_seconds,
        "memory_first_tenth_mib": round(statistics.median(memory[:tenth]), 1),
        "memory_last_tenth_mib": round(statistics.median(memory[-tenth:]), 1),
        "memory_max_mib": round(max(memory), 1),
        "cores": usable_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "processor": processor(),
    }
    for key, value in row.items():
        print(f"{key:24} {value}")
    if options.out:
        add_rows(options.out, [row])


if __name__ == "__main__":
    main()
