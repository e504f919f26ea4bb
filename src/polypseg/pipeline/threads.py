"""Work that runs ahead of whoever reads its results: generators in a thread each, a function in a pool's threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_POLL = 0.1  # seconds after which a thread that waits checks whether it should stop
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
        except BaseException as error:  # noqa: BLE001  (raised again by the reader)
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


class Inline(Executor):
    """An executor that does everything at once, in the thread that asks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """``fn``'s result, or what it raised, as a Future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (raised again by the Future)
            future.set_exception(error)
        return future


def in_order(pool: Executor, function: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[R]:
    """The function's results, in the items' order; it works on ``most`` items at once, ahead of the reader.

    Its errors are raised in their item's place; those of ``items`` after the results of the items before them.
    """
    waiting: deque[Future[R]] = deque()
    coming = iter(items)
    problem = None
    while problem is None:
        try:
            item = next(coming)
        except Exception as error:  # noqa: BLE001  (raised again below)
            problem = error
        else:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if not isinstance(problem, StopIteration):
        raise problem
