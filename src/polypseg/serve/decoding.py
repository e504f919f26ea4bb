"""Decoding, in processes of its own: what strangers send may take for ever, take all memory, or bring a decoder down.

Each process does one piece of work at a time, and is killed if it takes too long; others and the service continue. They
are forked from a server process that has the modules loaded, where the system has fork, so a new one costs little.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from polypseg.errors import PolypsegError
from polypseg.serve.log import LOGGER, without_values

log = logging.getLogger(LOGGER)

MOST_IDLE = 4
MOST_WORK = 200
LOOK = 0.2  # seconds after which who waits looks whether it should stop
_ITEM, _END, _REFUSED, _CRASHED, _TOO_LARGE = range(5)


class Decoders:
    """Processes that decode. Thread-safe.

    Args:
        seconds: that an item may take: a frame, or a look at a file.
        memory: bytes that a process may take for it, where the system limits processes (Linux).
        most_work: pieces after which a process is replaced.
        most_idle: processes that are kept.
        refusal: what is raised, of an HTTP status and a line; by default Starlette's ``HTTPException``.
        preload: modules that the processes need, and find loaded.
    """

    def __init__(
        self,
        seconds: float,
        memory: int,
        *,
        most_work: int = MOST_WORK,
        most_idle: int = MOST_IDLE,
        refusal: Callable[[int, str], Exception] | None = None,
        preload: Sequence[str] = ("polypseg.serve.uploads", "av", "pydicom.pixels"),
    ) -> None:
        self._seconds, self._memory = seconds, memory
        self._most_work, self._most_idle = most_work, most_idle
        if refusal is None:
            from starlette.exceptions import HTTPException

            refusal = HTTPException
        self._refusal = refusal
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload([*preload, __name__])
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._open = True
        atexit.register(self.close)  # before multiprocessing waits for its processes

    def call(self, name: str, work: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
        """What ``work`` returns; raises as ``stream``."""
        (value,) = self.stream(name, work, *arguments, seconds=seconds)
        return value

    def stream(
        self,
        name: str,
        work: Callable[..., Any],
        *arguments: Any,
        check: Callable[[], object] = lambda: None,
        seconds: float | None = None,
    ) -> Generator[Any, None, None]:
        """The items that the generator ``work`` yields, a little ahead; of another function the one that it returns.

        Args:
            name: of the upload, for errors.
            work: a function of a module; what it takes and gives must be picklable.
            arguments: of ``work``.
            check: called now and then while an item is waited for; what it raises ends the work.
            seconds: that an item may take, where it is not what all may.

        Raises:
            refusal: as ``work``; 413 it took too long or too much memory, 422 it brought the process down, 503
                the decoders are closed.
            PolypsegError: as ``work``.
        """
        process = self._take()
        whole = False
        try:
            process.ask(work, arguments)
            while True:
                kind, value = self._wait(process, name, check, seconds or self._seconds)
                if kind == _ITEM:
                    yield value
                    continue
                whole = True
                if kind == _END:
                    return
                if kind == _REFUSED:
                    raise value
                if kind == _TOO_LARGE:
                    raise self._refusal(
                        413, f"{name}: takes more memory to decode than a frame may; send a smaller one"
                    )
                log.warning("decoder failed", extra={"fields": value})
                raise self._refusal(422, f"{name}: is damaged and cannot be decoded")
        finally:
            self._give_back(process, whole)

    def close(self) -> None:
        """End all processes, at once; who waits for one gets 503."""
        atexit.unregister(self.close)
        with self._lock:
            self._open = False
            idle, self._idle = self._idle, []
            working = self._all - set(idle)
            self._all = working
        for process in working:  # ended by who waits for them
            process.kill()
        for process in idle:
            process.end()

    def _wait(self, process: _Process, name: str, check: Callable[[], object], seconds: float) -> tuple[int, Any]:
        end = time.monotonic() + seconds
        try:
            while not process.pipe.poll(LOOK):
                check()
                if time.monotonic() > end:
                    line = f"{name}: takes more than {seconds:g} s to decode; save it anew, or send a smaller one"
                    raise self._refusal(413, line)
            return process.answer()
        except (EOFError, OSError) as error:
            check()
            if not self._open:
                raise self._refusal(503, "the service is stopping") from error
            log.warning("decoder died")
            raise self._refusal(422, f"{name}: brings its decoder down; it is damaged") from error

    def _take(self) -> _Process:
        with self._lock:
            if not self._open:
                raise self._refusal(503, "the service is stopping")
            while self._idle:
                process = self._idle.pop()
                if process.alive:
                    return process
                self._all.discard(process)
        process = _Process(self._context, self._memory)
        with self._lock:
            self._all.add(process)
        return process

    def _give_back(self, process: _Process, whole: bool) -> None:
        with self._lock:
            if whole and self._open and process.worked < self._most_work and len(self._idle) < self._most_idle:
                self._idle.append(process)
                return
            self._all.discard(process)
        process.end()


class _Process:
    """A process and the pipe to it."""

    def __init__(self, context: Any, memory: int) -> None:
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, memory), name="polypseg-decoder", daemon=True)
        self._process.start()
        theirs.close()
        self.worked = 0

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def ask(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.worked += 1
        with contextlib.suppress(OSError):  # it has died: the result is its end
            self.pipe.send((work, arguments))

    def answer(self) -> tuple[int, Any]:
        """What it sent: arrays come beside the rest, and are not copied again."""
        sizes, head = pickle.loads(self.pipe.recv_bytes())  # noqa: S301  (of our own process)
        buffers = [bytearray(size) for size in sizes]
        for buffer in buffers:
            if buffer:
                self.pipe.recv_bytes_into(buffer)
        answer: tuple[int, Any] = pickle.loads(head, buffers=buffers)  # noqa: S301
        return answer

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Any, memory: int) -> None:
    """Work through what comes over the pipe, until its other end is closed."""
    # The service says when to end, also where a terminal or systemd signals every process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.disable()  # decoders quote what they read
    warnings.simplefilter("ignore")
    _limit_memory(memory)
    with contextlib.suppress(EOFError, OSError):
        while True:
            work, arguments = pipe.recv()
            for answer in _answers(work, arguments):
                buffers: list[pickle.PickleBuffer] = []
                head = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
                raw = [buffer.raw() for buffer in buffers]
                pipe.send_bytes(pickle.dumps(([part.nbytes for part in raw], head)))
                for part in raw:
                    if part.nbytes:
                        pipe.send_bytes(part)


def _answers(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[tuple[int, Any]]:
    try:
        if inspect.isgeneratorfunction(work):
            for item in work(*arguments):
                yield _ITEM, item
        else:
            yield _ITEM, work(*arguments)
        yield _END, None
    except Exception as error:  # noqa: BLE001  (any: the process that asked reports it)
        if _for_want_of_memory(error):
            yield _TOO_LARGE, None
        elif isinstance(error, PolypsegError) or hasattr(error, "status_code"):
            yield _REFUSED, error
        else:
            yield _CRASHED, without_values(error)


def _for_want_of_memory(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _limit_memory(memory: int) -> None:
    """Let this process take no more than so many bytes besides what it has."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    has = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = has + memory
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
