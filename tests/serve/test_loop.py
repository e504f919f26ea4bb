"""A thread that does one thing after another, and what goes wrong with one of them."""

from __future__ import annotations

import errno
import threading

import pytest

from polypseg.serve import loop as module
from polypseg.serve.loop import Loop


def test_a_loop_outlives_what_goes_wrong(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    calls, done = [], threading.Event()

    def step() -> float | None:
        calls.append(1)
        if len(calls) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        if len(calls) == 4:
            done.set()
        return 0 if len(calls) == 3 else None

    loop = Loop("testing", step)
    loop.start()
    assert done.wait(10)
    assert len(calls) == 4 and caplog.text.count("testing waits") == 2
    loop.ask_to_stop()
    assert loop.ended(10)


def test_a_loop_is_called_again_when_it_is_woken() -> None:
    called = threading.Semaphore(0)
    loop = Loop("testing", called.release)
    loop.start()
    for _ in range(3):
        assert called.acquire(timeout=10)
        loop.wake()
    loop.ask_to_stop()
    assert loop.ended(10)


def test_a_loop_that_never_began_has_ended() -> None:
    assert Loop("testing", lambda: None).ended(0)
