"""Predicts the frames of one partition after another: fetching, decoding, the network and writing at the same time."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from polypseg.errors import PolypsegError
from polypseg.io.outputs import mask_picture
from polypseg.io.pictures import read_frame
from polypseg.pipeline.archive import rows
from polypseg.pipeline.archive.plan import Plan, mask_folder, partition_file
from polypseg.pipeline.archive.sources import Entry
from polypseg.pipeline.archive.store import Store, read_bytes
from polypseg.pipeline.flow import Map, Pixels, Read, segmentation, with_maps
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.threads import Inline, in_order

MIB = 2**20
BYTES_A_PIXEL = 12  # of a frame in flight: 3 itself, 4 its probability, 1 its mask, 4 the regions' labels
TRANSFERS = 16  # at once: an object store responds late, but many at a time
AHEAD = 16  # frames that are fetched before they are needed, and masks that wait to be written
CODERS = 2  # threads that decode frames and encode masks, at least


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know.

    Attributes:
        out: path or URL of the results.
        plan: the plan's hash.
        hash: the model's.
        model: bundles' folders; of none, the model that ships.
        options: how it is done.
    """

    out: str
    plan: str
    hash: str
    model: tuple[str, ...] = ()
    options: PredictOptions = field(default_factory=PredictOptions)


@dataclass(frozen=True)
class Place:
    """A frame's place in its partition, from 0."""

    index: int
    entry: Entry


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
        options = job.options
        self.segmenter = options.load(job.model)
        if self.segmenter.hash != job.hash:
            where = f"{', '.join(job.model) or 'the default model'} on {socket.gethostname()}"
            raise PolypsegError(f"{where}: is not the model that the run began with")
        self.store = Store(job.out)
        self.plan = Plan(self.store)
        self._schema = rows.schema(self.plan.columns)
        self.progress = progress
        self._one_thread = options.threads == 1 and self.segmenter.device == "cpu"
        self.coders = 1 if self._one_thread else max(CODERS, options.threads)
        # More frames in flight than threads gain nothing on a CPU; a GPU is busy only with many.
        usual = 16 if self.segmenter.device != "cpu" else 1 if self._one_thread else 4
        self._most = options.batch_size or usual
        self.masks = "mask" in options.outputs
        self.contours = "contours" in options.outputs

    def commit(self, number: int) -> rows.Done:
        """Predict a partition's frames and write its file, unless that is there.

        The file comes last, in one step: where it lies, its frames are predicted and their masks written. What a worker
        that was killed has written of it is written over.

        Raises:
            PolypsegError: a store does not respond, or the disk is full. The partition is to be done again.
        """
        name = partition_file(number)
        done = committed(self.store, number, self.job.plan)
        if done is not None:
            return done
        if self.masks:
            self.store.sweep(mask_folder(number))
        coders: Executor = Inline() if self._one_thread else ThreadPoolExecutor(self.coders, "polypseg-code")
        with ThreadPoolExecutor(TRANSFERS, "polypseg-transfer") as transfers, coders:
            try:
                found = _Partition(self, number, transfers, coders).predict()
            except BaseException:
                transfers.shutdown(cancel_futures=True)
                coders.shutdown(cancel_futures=True)
                raise
        done = rows.summarise(number, found)
        self.store.write(name, rows.to_parquet(found, self._schema, done, self.job.plan))
        return done

    def batch_size(self, height: int, width: int) -> int:
        """How many frames of a size are computed at once: a power of two, so that sizes that differ little agree."""
        room = self.job.options.memory * MIB // (height * width * BYTES_A_PIXEL)
        return max(1, min(self._most, 1 << max(0, room.bit_length() - 1)))


def committed(store: Store, number: int, plan: str) -> rows.Done | None:
    """What a partition's file contains; None where there is none, or none of this plan."""
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

    def predict(self) -> Sequence[dict[str, Any]]:
        """The rows, in order; all masks are written."""
        places = [Place(index, entry) for index, entry in enumerate(self.entries)]
        fetched = in_order(self.transfers, self._fetch, places, AHEAD)
        decoded = in_order(self.coders, self._decode, fetched, self.worker.coders)
        coded = in_order(self.coders, self._encode, self._with_maps(decoded), self.worker.coders + 1)
        for _ in in_order(self.transfers, self._write, coded, AHEAD):
            self.worker.progress()
        return self.rows

    def _with_maps(self, decoded: Iterable[Read[Place] | None]) -> Iterator[tuple[Read[Place], Map]]:
        """The frames with their maps; those of one size after another share batches."""
        for batch_size, reads in groupby(self._readable(decoded), lambda read: self._batch_size(read.pixels)):
            yield from with_maps(self.worker.segmenter, reads, batch_size)

    def _readable(self, decoded: Iterable[Read[Place] | None]) -> Iterator[Read[Place]]:
        for read in decoded:
            if read is None:
                self.worker.progress()
            else:
                yield read

    def _batch_size(self, pixels: Pixels) -> int:
        return self.worker.batch_size(*pixels.shape[:2])

    def _fetch(self, place: Place) -> tuple[Place, bytes] | None:
        """A frame's bytes; None where they are not to be had, which its row says."""
        path = place.entry.path
        try:
            return place, read_bytes(path)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "is missing" if missing else f"cannot be read ({error.strerror or error})"
            self._unreadable(place, None, f"{path}: {reason}; replace it or remove it")
            return None

    def _decode(self, fetched: tuple[Place, bytes] | None) -> Read[Place] | None:
        """The frame; None where it cannot be read, which its row says."""
        if fetched is None:
            return None
        place, content = fetched
        digest = hashlib.sha256(content).hexdigest()
        try:
            return Read(place, digest, read_frame(place.entry.path, content))
        except PolypsegError as error:
            self._unreadable(place, digest, str(error))
            return None

    def _unreadable(self, place: Place, digest: str | None, line: str) -> None:
        self.rows[place.index] = rows.error_row(place.entry, digest, line, self.worker.segmenter.settings)

    def _encode(self, one: tuple[Read[Place], Map]) -> tuple[str, bytes] | None:
        """Make a frame's row, and its mask as PNG with its name."""
        read, probability = one
        place, worker = read.of, self.worker
        found = segmentation(worker.segmenter, read.pixels, probability)
        name = None
        if worker.masks:
            stem = os.path.splitext(place.entry.path.rpartition("/")[2])[0]
            stem = stem.encode()[:150].decode(errors="ignore")  # a file's name may have 255 bytes
            name = f"{mask_folder(self.number)}/{place.index:05d}-{stem}.png"
        self.rows[place.index] = rows.prediction_row(
            place.entry, read.digest, found, worker.segmenter.settings, name, worker.contours
        )
        return None if name is None else (name, mask_picture(name, found.mask))

    def _write(self, mask: tuple[str, bytes] | None) -> None:
        if mask is not None:
            self.worker.store.write(*mask)
