"""What tests of training share."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polypseg.training.callbacks import MetricsTable


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a training that Ctrl-C ends as an epoch, counted from 0, begins; of several runs, in the folder ``of``."""

    def run(epoch: int, training: Callable[[], Any], of: str | None = None) -> None:
        start = MetricsTable.on_train_epoch_start

        def interrupt(self: MetricsTable, trainer: Any, module: Any) -> None:
            start(self, trainer, module)
            if trainer.current_epoch == epoch and of in (None, self.path.parent.name):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MetricsTable, "on_train_epoch_start", interrupt)
            with pytest.raises(KeyboardInterrupt):
                training()

    return run


@pytest.fixture(autouse=True)
def plain(without_pictures: None) -> None:
    """Runs without their pictures, but for those of fixtures that several tests share."""


# Writes what is printed into files, and goes on to the program, in the folder in which the tests run.
BEFORE = """
import os, sys
for number, file in ((1, {out!r}), (2, {error!r})):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
os.chdir({folder!r})
sys.argv = {argv!r}
"""


class Forked:
    """A process that runs a Python program; forked from one that has imported what trains, which takes 10 s.

    Attributes:
        out, error: the files of what it prints; complete when it has ended.
    """

    def __init__(self, folder: Path, program: str, *arguments: object) -> None:
        folder.mkdir()
        self.out, self.error = folder / "out.txt", folder / "error.txt"
        words = {"out": str(self.out), "error": str(self.error), "folder": os.getcwd()}
        script = folder / "program.py"
        script.write_text(BEFORE.format(**words, argv=[str(script), *map(str, arguments)]) + program)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["polypseg.cli", "polypseg.training.tune"])
        self._process = context.Process(target=runpy.run_path, args=(str(script),), kwargs={"run_name": "__main__"})
        self._process.start()

    def poll(self) -> int | None:
        """The exit status, a signal's number below 0; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float = 300) -> int:
        """The exit status, when it has ended."""
        self._process.join(seconds)
        status = self._process.exitcode
        assert status is not None, f"it still runs after {seconds} s: {self.error.read_text()}"
        return status

    def wait_until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until it has come so far."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end and self.poll() is None, self.error.read_text()
            time.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal, and wait; the exit status."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        return self.wait()


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Starts a ``Forked`` of a program and its arguments; what still runs when the test ends is killed."""
    started: list[Forked] = []

    def start(program: str, *arguments: object) -> Forked:
        started.append(Forked(tmp_path / f"process-{len(started)}", program, *arguments))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.end()
