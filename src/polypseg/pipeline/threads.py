"""Generators that run ahead of their readers, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

T = TypeVar("T")
_POLL = 0.1  # seconds after which a thread that waits looks whether it should stop
_END = object()


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _Stopped(Exception):
    """Ends a thread that waits for another one when all are to stop."""


class Stages:
    """The threads of one chain of generators; none of them outlives the ``with`` block.

    ``ahead`` lets a generator run up to ``size`` items ahead of whoever reads them. An error in it is raised where
    its items are read, after those before it; so is every error of the chain in the end raised to the last reader.
    Leaving the block, for whatever reason, ends all threads as soon as their present item is done.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def ahead(self, items: Generator[T, None, None], size: int) -> Iterator[T]:
        """The same items in the same order, made by a thread of their own; at most ``size`` of them wait."""
        waiting: queue.Queue[Any] = queue.Queue(size)
        name = f"polypseg-stage-{len(self._threads)}"
        thread = threading.Thread(target=self._run, args=(items, waiting), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._read(waiting)

    def _run(self, items: Generator[T, None, None], waiting: queue.Queue[Any]) -> None:
        try:
            for item in items:
                self._put(waiting, item)
            self._put(waiting, _END)
        except _Stopped:
            items.close()
        except BaseException as error:
            try:
                self._put(waiting, _Failure(error))
            except _Stopped:
                return

    def _put(self, waiting: queue.Queue[Any], item: Any) -> None:
        while not self._stop.is_set():
            try:
                return waiting.put(item, timeout=_POLL)
            except queue.Full:
                continue
        raise _Stopped

    def _read(self, waiting: queue.Queue[Any]) -> Iterator[Any]:
        while not self._stop.is_set():
            try:
                item = waiting.get(timeout=_POLL)
            except queue.Empty:
                continue
            if item is _END:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
        raise _Stopped
