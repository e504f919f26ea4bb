"""Answers the frames of one partition after another: fetching, decoding, the network and writing at the same time."""

from __future__ import annotations

import hashlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

import polypseg
from polypseg.errors import PolypsegError
from polypseg.inference.field_of_view import outside_of
from polypseg.io.outputs import mask_picture
from polypseg.io.pictures import read_frame
from polypseg.pipeline.archive import rows
from polypseg.pipeline.archive.plan import Plan, mask_folder, partition_file
from polypseg.pipeline.archive.sources import Entry
from polypseg.pipeline.archive.store import Store, read_bytes

MIB = 2**20
BYTES_A_PIXEL = 12  # of a frame in flight: 3 itself, 4 its probability, 1 its mask, 4 the regions' labels
TRANSFERS = 16  # at once: an object store answers late, but many at a time
AHEAD = 16  # frames that are fetched before they are needed, and masks that wait to be written
CODERS = 2  # threads that decode frames and encode masks, at least


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know, in plain types.

    Attributes:
        out: path or URL of the results.
        plan: the plan's hash.
        hash: the model's.
        model: as ``polypseg.load`` takes it, likewise ``runtime``, ``device``, ``precision``, ``threads``, ``tta``.
        point: what of the operating point is not the model's own, as ``polypseg.load`` takes it.
        batch_size: most frames that are computed at once; 0 leaves it to the device.
        memory: what the frames in flight may take, MiB; so many are computed at once as it allows.
        masks: write the masks.
        contours: keep the polyps' contours in the rows.
    """

    out: str
    plan: str
    hash: str
    model: tuple[str, ...] = ()
    runtime: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    tta: str | None = None
    point: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 0
    memory: int = 512
    masks: bool = True
    contours: bool = False


class Inline(Executor):
    """An executor that does everything at once, in the thread that asks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """``fn``'s result, or what it raised, as a Future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class _Fetched:
    """A frame's bytes, or why they are not to be had."""

    index: int
    entry: Entry
    content: bytes
    digest: str | None
    error: str | None = None


@dataclass(frozen=True)
class _Read:
    """A frame to be segmented, H×W×3 uint8 RGB."""

    index: int
    entry: Entry
    digest: str
    frame: NDArray[np.uint8]
    batch_size: int


class Worker:
    """One model, and the partitions that it is given.

    With ``threads=1`` all computing happens in the thread that calls, so that as many workers as cores share them
    evenly; fetching and writing wait for disks and stores, in threads of their own.

    Args:
        job: what to do.
        progress: called after each frame.

    Raises:
        PolypsegError: the model, the plan or the results' folder cannot be opened.
    """

    def __init__(self, job: Job, progress: Callable[[], object] = lambda: None) -> None:
        self.job = job
        self.segmenter = polypseg.load(
            list(job.model) or None, job.runtime, job.device, job.precision, job.threads, job.tta, **job.point
        )
        if self.segmenter.hash != job.hash:
            where = f"{', '.join(job.model) or 'the default model'} on {socket.gethostname()}"
            raise PolypsegError(f"{where}: is not the model that the run began with")
        self.store = Store(job.out)
        self.plan = Plan(self.store)
        self._schema = rows.schema(self.plan.columns)
        self._progress = progress
        self._one_thread = job.threads == 1 and self.segmenter.device == "cpu"
        self.coders = 1 if self._one_thread else max(CODERS, job.threads)
        # More frames in flight than threads gain nothing on a CPU; a GPU is busy only with many.
        usual = 16 if self.segmenter.device != "cpu" else 1 if self._one_thread else 4
        self._most = job.batch_size or usual

    def commit(self, number: int) -> rows.Done:
        """Answer a partition's frames and write its file, unless that is there.

        The file comes last, in one step: where it lies, its frames are answered and their masks written. What a worker
        that was killed has written of it is written over.

        Raises:
            PolypsegError: a store does not answer, or the disk is full. The partition is to be done again.
        """
        name = partition_file(number)
        done = committed(self.store, number, self.job.plan)
        if done is not None:
            return done
        if self.job.masks:
            self.store.sweep(mask_folder(number))
        coders: Executor = Inline() if self._one_thread else ThreadPoolExecutor(self.coders, "polypseg-code")
        with ThreadPoolExecutor(TRANSFERS, "polypseg-transfer") as transfers, coders:
            try:
                found = _Partition(self, number, transfers, coders).answer()
            except BaseException:
                transfers.shutdown(cancel_futures=True)
                coders.shutdown(cancel_futures=True)
                raise
        done = rows.summarise(number, found)
        self.store.write(name, rows.to_parquet(found, self._schema, done, self.job.plan))
        return done

    def batch_size(self, height: int, width: int) -> int:
        """How many frames of a size are computed at once: a power of two, so that sizes that differ little agree."""
        room = self.job.memory * MIB // (height * width * BYTES_A_PIXEL)
        return max(1, min(self._most, 1 << max(0, room.bit_length() - 1)))


def committed(store: Store, number: int, plan: str) -> rows.Done | None:
    """What a partition's file holds; None where there is none, or none of this plan."""
    name = partition_file(number)
    if not store.exists(name):
        return None
    with store.open(name) as file:
        return rows.noted(file, plan)


class _Partition:
    """One partition on its way through a worker."""

    def __init__(self, worker: Worker, number: int, transfers: Executor, coders: Executor) -> None:
        self.worker, self.number = worker, number
        self.transfers, self.coders = transfers, coders
        self.entries = worker.plan.partition(number)
        self.rows: list[dict[str, Any]] = [{} for _ in self.entries]
        self.coding: deque[Future[tuple[int, str | None, bytes]]] = deque()
        self.writing: deque[Future[None]] = deque()

    def answer(self) -> Sequence[dict[str, Any]]:
        """The rows, in order; all masks are written."""
        for batch_size, reads in groupby(self._decoded(), key=lambda read: read.batch_size):
            self._segment(reads, batch_size)
        while self.coding:
            self._write_mask()
        for future in self.writing:
            future.result()
        return self.rows

    def _fetch(self, index: int, entry: Entry) -> _Fetched:
        try:
            content = read_bytes(entry.path)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "is missing" if missing else f"cannot be read ({error.strerror or error})"
            return _Fetched(index, entry, b"", None, f"{entry.path}: {reason}; replace it or remove it")
        return _Fetched(index, entry, content, hashlib.sha256(content).hexdigest())

    def _decode(self, fetched: _Fetched) -> _Read | _Fetched:
        if fetched.error is not None or fetched.digest is None:
            return fetched
        try:
            frame = read_frame(fetched.entry.path, fetched.content)
        except PolypsegError as error:
            return _Fetched(fetched.index, fetched.entry, b"", fetched.digest, str(error))
        batch_size = self.worker.batch_size(*frame.shape[:2])
        return _Read(fetched.index, fetched.entry, fetched.digest, frame, batch_size)

    def _decoded(self) -> Iterator[_Read]:
        """The frames, in order, a few ahead; those that cannot be read get their rows here."""
        coming = iter(enumerate(self.entries))
        fetching: deque[Future[_Fetched]] = deque()
        decoding: deque[Future[_Read | _Fetched]] = deque()
        while True:
            while len(fetching) < AHEAD and (one := next(coming, None)) is not None:
                fetching.append(self.transfers.submit(self._fetch, *one))
            while fetching and len(decoding) < self.worker.coders:
                decoding.append(self.coders.submit(self._decode, fetching.popleft().result()))
            if not decoding:
                return
            read = decoding.popleft().result()
            if isinstance(read, _Read):
                yield read
                continue
            assert read.error is not None
            settings = self.worker.segmenter.settings
            self.rows[read.index] = rows.error_row(read.entry, read.digest, read.error, settings)
            self.worker._progress()

    def _segment(self, reads: Iterator[_Read], batch_size: int) -> None:
        waiting: deque[_Read] = deque()

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for read in reads:
                waiting.append(read)
                yield read.frame

        for probability in self.worker.segmenter.probabilities(pixels(), batch_size):
            self.coding.append(self.coders.submit(self._encode, waiting.popleft(), probability))
            if len(self.coding) > self.worker.coders:
                self._write_mask()

    def _encode(self, read: _Read, probability: NDArray[np.float32]) -> tuple[int, str | None, bytes]:
        """Make a frame's row, and its mask as PNG."""
        answer = self.worker.segmenter.answer(probability, *read.frame.shape[:2], outside=outside_of(read.frame))
        job = self.worker.job
        name = None
        if job.masks:
            stem = os.path.splitext(read.entry.path.rpartition("/")[2])[0]
            stem = stem.encode()[:150].decode(errors="ignore")  # a file's name may have 255 bytes
            name = f"{mask_folder(self.number)}/{read.index:05d}-{stem}.png"
        self.rows[read.index] = rows.answer_row(
            read.entry, read.digest, answer, self.worker.segmenter.settings, name, job.contours
        )
        return read.index, name, b"" if name is None else mask_picture(name, answer.mask)

    def _write_mask(self) -> None:
        """Send the oldest mask on its way."""
        _, name, content = self.coding.popleft().result()
        if name is not None:
            self.writing.append(self.transfers.submit(self.worker.store.write, name, content))
            if len(self.writing) > AHEAD:
                self.writing.popleft().result()
        self.worker._progress()
