"""Archives by Ray: the same results, and every frame once, whoever is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypseg.cli import main
from polypseg.pipeline.archive import ray as module
from polypseg.pipeline.archive.worker import Job
from polypseg.pipeline.options import PredictOptions

pytest.importorskip("pyarrow")
Run = Callable[..., tuple[int, str, list[str]]]
Check = Callable[..., list[dict[str, Any]]]
Manifest = Callable[..., tuple[Path, list[str], list[int]]]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def processes() -> dict[int, tuple[int, str]]:
    """Of each process that runs its parent and its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
            if state != "Z":  # ended, and not yet told to its parent
                found[int(entry.name)] = int(parent), line
    return found


def below(process: int) -> dict[int, str]:
    """A process's descendants, with their command lines."""
    there = processes()
    found: dict[int, str] = {}
    grew = True
    while grew:
        grew = False
        for one, (parent, line) in there.items():
            if one not in found and (parent == process or parent in found):
                found[one], grew = line, True
    return found


def wait_until(reached: Callable[[], Any], process: subprocess.Popen[Any] | None = None, seconds: float = 600) -> Any:
    end = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.1)
    return found


# ---- the same, and once ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_files_as_by_the_local_engine(tmp_path: Path, run: Run, manifest: Manifest, check: Check) -> None:
    pytest.importorskip("ray")
    file, named, broken = manifest(60, broken_every=20)
    options = (file, "--partition", 8)
    status, printed, errors = run(*options, "--out", tmp_path / "ray", "--engine", "ray", "--workers", 2)
    assert status == 1
    # without Ray's own line on its log level, and progress, which is shown where it takes more than a minute
    ignored = " frames/s, ", "names a place outside the manifest's folder"
    told = [line for line in errors if not any(one in line for one in ignored) and not line.startswith("[20")]
    assert told == ["ray: 2 workers, 1 thread each", "3 of 60 frames could not be read; their rows say why"]
    assert f"{tmp_path / 'ray'}: 60 frames, " in printed
    check(tmp_path / "ray", named, broken)
    run(*options, "--out", tmp_path / "local", "--engine", "local")
    assert content(tmp_path / "ray") == content(tmp_path / "local")


@pytest.mark.slow
def test_driver_and_worker_killed_each_frame_is_answered_once(
    tmp_path: Path, command: Callable[..., list[str]], manifest: Manifest, check: Check
) -> None:
    pytest.importorskip("ray")
    file, named, broken = manifest(120, broken_every=30)
    out = tmp_path / "out"
    options = (file, "--out", out, "--engine", "ray", "--workers", 1, "--partition", 6)
    done = out / "partitions"

    def committed() -> list[Path]:
        return list(done.glob("*.parquet"))

    with subprocess.Popen(command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(committed()) >= 3, process)
        children = below(process.pid)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not children.keys() & processes().keys())  # Ray's own processes end with the driver's
    before = {path: path.stat().st_mtime_ns for path in committed()}
    assert 3 <= len(before) < 20

    with subprocess.Popen(
        command(*options, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: len(committed()) >= len(before) + 3, process)
        (worker,) = (one for one, line in below(process.pid).items() if re.match(r"ray::.*_Actor", line))
        os.kill(worker, signal.SIGKILL)
        at_kill = len(committed())
        printed, errors = process.communicate(timeout=900)  # Ray's workers are niced
    assert at_kill < 20  # it was at work
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1] == "4 of 120 frames could not be read; their rows say why"
    assert f"120 frames ({6 * len(before)} kept from before)" in printed
    check(out, named, broken)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


# ---- bad input ------------------------------------------------------------------------------------------


@pytest.fixture
def told(
    frames: list[Path], tmp_path: Path, light: Any, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a small archive by Ray in this process; its status, and the one line that it told."""

    def call(*arguments: str) -> tuple[int, str]:
        options = ["--out", str(tmp_path / "out"), "--model", str(light.folder), "--engine", "ray"]
        status = main(["predict", str(frames[0]), *options, *arguments])
        (line,) = capsys.readouterr().err.splitlines()
        return status, line

    return call


def test_no_ray_installed(told: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    status, line = told()
    assert status == 1
    assert line.startswith("polypseg: --engine ray: Ray is not installed") and "pip install 'polypseg[ray]'" in line


def test_the_local_engine_imports_no_ray() -> None:
    code = (
        "import sys; import polypseg.pipeline.archive.run, polypseg.pipeline.predict\n"
        "assert not {'ray', 's3fs', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def port() -> Iterator[int]:
    """A port where something listens and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_an_address_where_nothing_answers(
    told: Callable[..., tuple[int, str]], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # and does not listen
    with closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        status, line = told("--address", address)
        assert status == 1 and line.startswith(f"polypseg: {address}: no Ray cluster responds there")
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert told() == (1, line)
    monkeypatch.delenv("RAY_ADDRESS")
    stop = threading.Event()
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    monkeypatch.setattr(ray, "init", lambda *_, **__: stop.wait(60))  # as it does where no Ray answers, for minutes
    try:
        status, line = told("--address", f"127.0.0.1:{port}")
    finally:
        stop.set()
    assert status == 1 and "no Ray cluster responds there (in 0.1 s)" in line
    status, line = told("--address", "nonsense")
    assert status == 2 and "--address nonsense: is none" in line


def test_what_a_worker_cannot_do_is_an_answer(tmp_path: Path, light: Any) -> None:
    job = Job(str(tmp_path), "plan", "other", (str(light.folder),), PredictOptions(threads=1))
    actor = module._Actor(job)
    answer = actor({"partition": np.array([7])})
    assert answer["partition"] == [7] and "is not the model that the run began with" in answer["trouble"][0]
    actor = module._Actor(replace(job, hash=light.hash))
    (trouble,) = actor({"partition": np.array([0])})["trouble"]
    assert trouble.startswith(f"{tmp_path / 'plan.parquet'}: ") and "all workers see" in trouble


@pytest.mark.parametrize(
    ("resources", "options", "workers", "expected"),
    [
        ({"CPU": 8.0}, {}, 0, (False, 8)),
        ({"CPU": 8.0}, {"threads": 3}, 0, (False, 2)),
        ({"CPU": 8.0}, {"threads": 3}, 5, (False, 5)),
        ({"CPU": 8.0, "GPU": 2.0}, {}, 0, (True, 2)),
        ({"CPU": 8.0, "GPU": 2.0}, {"device": "cuda"}, 1, (True, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, {"device": "cpu"}, 0, (False, 8)),
        ({"CPU": 8.0, "GPU": 2.0}, {"runtime": "openvino"}, 0, (False, 8)),
        ({"CPU": 8.0}, {"device": "cuda"}, 0, "has no GPU"),
        ({"CPU": 2.0}, {"threads": 4}, 0, "has 2 CPUs"),
    ],
)
def test_as_many_workers_as_there_is_room_for(
    resources: dict[str, float], options: dict[str, Any], workers: int, expected: Any
) -> None:
    class Cluster:
        @staticmethod
        def cluster_resources() -> dict[str, float]:
            return resources

    asked = PredictOptions(**options, workers=workers, engine="ray")
    if isinstance(expected, str):
        with pytest.raises(Exception, match=expected):
            module._share(Cluster, asked)
    else:
        assert module._share(Cluster, asked) == expected
