"""A thread that does one thing after another, and outlives whatever goes wrong with one of them."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable

from polypseg.serve.log import LOGGER, without_values
from polypseg.serve.state import is_full

log = logging.getLogger(LOGGER)

RETRY, LONGEST_RETRY = 5.0, 60.0  # seconds after which what the computer refused is tried again: at first, and for long


class Loop:
    """Calls ``step`` again and again in a thread.

    Args:
        name: of the thread, and of what it does, for the log.
        step: does the next thing. It returns the seconds until it is to be called again, 0 for at once, None for when
            ``wake`` is called. What it raises is logged, and it is called again later and later.
    """

    def __init__(self, name: str, step: Callable[[], float | None]) -> None:
        self._name, self._step = name, step
        self._changed = threading.Condition()
        self._woken = False
        self.stopping = False
        self._thread = threading.Thread(target=self._run, name=f"polypseg-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def ask_to_stop(self) -> None:
        """No further step."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    def ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        wait = RETRY
        while not self.stopping:
            try:
                pause = self._step()
                wait = RETRY
            except Exception as problem:  # noqa: BLE001  (nothing ends it for good)
                full = is_full(problem)
                reason = "the disk is full" if full else "the state folder cannot be used"
                known = full or isinstance(problem, OSError | sqlite3.Error)
                log.error(
                    f"{self._name} waits",
                    extra={"fields": {"reason": reason if known else "", **without_values(problem)}},
                )
                pause, wait = wait, min(2 * wait, LONGEST_RETRY)
            with self._changed:
                if pause != 0:
                    self._changed.wait_for(lambda: self._woken or self.stopping, pause)
                self._woken = False
