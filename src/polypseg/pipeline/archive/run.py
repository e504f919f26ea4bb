"""Leads through an archive: plans it once, has the engine predict what is left, and keeps account of what is done."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from polypseg import renamed, zoo
from polypseg.bundle import INTENDED_USE
from polypseg.errors import PolypsegError, UsageError
from polypseg.io.outputs import Output
from polypseg.pipeline.archive import rows
from polypseg.pipeline.archive.plan import PLAN, partition_number, write_plan
from polypseg.pipeline.archive.rows import Done
from polypseg.pipeline.archive.sources import Listing
from polypseg.pipeline.archive.store import Store, plain
from polypseg.pipeline.archive.worker import TRANSFERS, Job, Worker, committed
from polypseg.pipeline.options import MOST_FRAMES, PredictOptions
from polypseg.version import __version__

log = logging.getLogger("polypseg")

RUN = "run.json"
DONE = "done.csv"
PARTS = (RUN, PLAN, DONE, "partitions", "masks")  # all that a run writes
SAVED: tuple[Output, ...] = ("mask", "contours", "json")
SAVE_EVERY = 10.0  # seconds between two writings of done.csv
TELL_EVERY = 60.0  # seconds between two lines of progress, where no bar is shown


def predict_archive(sources: Sequence[str], out: str, options: PredictOptions, *, model: Sequence[str] = ()) -> int:
    """Segment an archive's frames into Parquet partitions and masks.

    The sources are listed once, into ``plan.parquet``: so many frames are a partition. Each partition becomes
    ``partitions/part-NNNNNNN.parquet``, a row a frame in the plan's order, whoever makes it and whenever. A frame that
    cannot be read is a row with its error.

    Args:
        sources: as ``Listing`` takes them.
        out: path or URL of the folder for the results.
        options: how it is done. ``save`` takes ``mask`` (PNG files) and ``contours`` (in the rows); ``json`` stands for
            the rows, written anyway. With ``resume`` the plan is the one of before: nothing is listed anew.
        model: bundles' or runs' folders; of several, their mean predictions; of none, the model that ships.

    Returns:
        The exit status: 0, or 1 if frames could not be read.

    Raises:
        UsageError: ``save`` names another output, or Ray is to read ``memory://``.
        PolypsegError: a source, the model, the store or the cluster cannot be used; results are there already, or were
            made otherwise than ``resume`` would make them; the disk is full.
    """
    start = time.perf_counter()
    other = [one for one in options.outputs if one not in SAVED]
    if other:
        raise UsageError(f"--save {other[0]}: an archive gets mask, contours and json; see --help")
    if options.engine == "ray" and any(name.startswith("memory://") for name in (out, *sources)):
        raise UsageError("memory://: is one process's own; --engine ray has many")
    store = Store(out)
    ray: AbstractContextManager[Callable[[], Any] | None] = nullcontext()
    if options.engine == "ray":
        from polypseg.pipeline.archive.ray import run, started

        # A run that was finished before may have nothing left to do for it.
        at_once = not (options.resume and store.exists(RUN))
        ray = started(options.address, max(1, options.threads) * options.workers, at_once)
    with ray as ready:
        rows.import_arrow()
        digest = "+".join(zoo.open(one).hash for one in model or (None,))
        made_with: dict[str, Any] = {
            "sources": [plain(name) for name in sources], "model": digest,
            "runtime": options.runtime, "device": options.device, "precision": options.precision, "tta": options.tta,
            "operating_point": options.point,
            "masks": "mask" in options.outputs, "contours": "contours" in options.outputs,
            "partition": options.partition,
        }  # fmt: skip
        if options.overwrite and store.exists(RUN):  # nothing is removed for what then cannot be done
            listing = Listing(sources, store.root)
            rows.schema(listing.columns)
            deque(listing, maxlen=0)
            if options.engine != "ray":
                options.load(model)
        record = _earlier(store, made_with, options) or _begin(store, sources, made_with)
        job = Job(store.root, record["plan"], digest, tuple(_from_anywhere(one) for one in model), options)
        account = _Account(store, record, options.progress)
        todo = account.begin()
        with logging_redirect_tqdm(), account:
            if todo and ready is not None:
                run(ready(), job, todo, account.add)
            elif todo:
                worker = Worker(job, account.tick)
                log.info("%s", worker.segmenter.reason)
                for number in todo:
                    account.add(worker.commit(number))
    return account.end(time.perf_counter() - start)


def _earlier(store: Store, made_with: dict[str, Any], options: PredictOptions) -> dict[str, Any] | None:
    """The record of the run to resume; None where there is none, or no more.

    Raises:
        PolypsegError: there is one and nothing says what to do with it, or it was made otherwise.
    """
    place = store.place(RUN)
    if not store.exists(RUN):
        if store.names("partitions"):
            raise PolypsegError(f"{store.place('partitions')}: is there, but no {RUN}; choose another --out")
        return None
    try:
        record = json.loads(store.read(RUN))
        known = isinstance(record, dict) and isinstance(record.get("plan"), str)
        known = known and all(type(record.get(name)) is int and record[name] > 0 for name in ("frames", "partitions"))
        known = known and record["partitions"] <= record["frames"] <= MOST_FRAMES * record["partitions"]
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise PolypsegError(f"{place}: is none of an archive's run; choose another --out")
    if options.overwrite:
        for name in reversed(PARTS):
            store.remove(name)
        return None
    if not options.resume:
        raise PolypsegError(f"{place}: is there already; use --resume, --overwrite or another --out")
    recorded = renamed.values(record, quiet=True)
    other = [name for name, value in made_with.items() if recorded.get(name) != value]
    if other:
        raise PolypsegError(f"{place}: was made with another {other[0]}; use --overwrite or another --out")
    return dict(record)


def _begin(store: Store, sources: Sequence[str], made_with: dict[str, Any]) -> dict[str, Any]:
    """List the sources and write the plan; the record of the run, which is written last."""
    for source in made_with["sources"]:
        if f"{source}/".startswith(f"{store.root}/"):
            raise PolypsegError(f"{source}: lies in --out; choose another")
    listing = Listing(sources, store.root)
    rows.schema(listing.columns)
    store.sweep("")
    planned = write_plan(store, listing, made_with["partition"])
    record = {
        "polypseg": __version__, "intended_use": INTENDED_USE, **made_with,
        "plan": planned.hash, "frames": planned.frames, "partitions": planned.partitions,
    }  # fmt: skip
    store.write(RUN, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return record


def _from_anywhere(model: str) -> str:
    """A model's path as a worker with another working folder finds it."""
    return os.path.abspath(model) if os.path.exists(model) else model


class _Account:
    """What is done, for people and for a later run.

    The partitions' files are the truth; ``done.csv`` says what they contain, so that not every one needs to be opened.

    Args:
        store: the results' folder.
        record: of the run.
        progress: show how far it is.

    Attributes:
        done: by the partition's number.
    """

    def __init__(self, store: Store, record: dict[str, Any], progress: bool) -> None:
        self.store, self.plan, self.partitions = store, record["plan"], record["partitions"]
        self.total = record["frames"]
        self.done: dict[int, Done] = {}
        self.frames = self.kept = 0
        self._start = self._saved = self._told = time.monotonic()
        self._bar = tqdm(total=self.total, unit="frame", disable=None if progress else True, delay=0.1)
        self._tell = progress and self._bar.disable

    def begin(self) -> list[int]:
        """Take account of what is there; the numbers of the partitions that are not."""
        self.store.sweep("partitions")
        self.store.sweep("")
        noted = self._read()
        there = {number for name in self.store.names("partitions") if (number := partition_number(name)) is not None}
        unknown = sorted(there - noted.keys())
        with ThreadPoolExecutor(TRANSFERS) as pool:
            found = list(pool.map(lambda number: committed(self.store, number, self.plan), unknown))
        for done in [*(noted[number] for number in there & noted.keys()), *(one for one in found if one is not None)]:
            self.done[done.partition] = done
        self.frames = self.kept = sum(done.frames for done in self.done.values())
        self._bar.initial = self._bar.n = self.kept
        return [number for number in range(self.partitions) if number not in self.done]

    def tick(self) -> None:
        """One more frame is predicted, of a partition that is not written yet."""
        self._bar.update()

    def add(self, done: Done) -> None:
        """One more partition is written."""
        if done.partition not in self.done:
            self.done[done.partition] = done
            self.frames += done.frames
        self._bar.update(self.frames - self._bar.n)
        now = time.monotonic()
        if now - self._saved > SAVE_EVERY:
            self._saved = now
            self._save()
        if self._tell and now - self._told > TELL_EVERY:
            self._told = now
            rate = (self.frames - self.kept) / (now - self._start)
            left = tqdm.format_interval((self.total - self.frames) / rate)
            log.info("%d of %d frames, %.1f frames/s, %s left", self.frames, self.total, rate, left)

    def __enter__(self) -> _Account:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._save()

    def end(self, seconds: float) -> int:
        """Report what was found; the exit status.

        Raises:
            PolypsegError: a partition was not made.
        """
        missing = self.partitions - len(self.done)
        if missing:
            raise PolypsegError(f"{self.store.root}: {missing} of {self.partitions} partitions are not made; --resume")
        kept = f" ({self.kept} kept from before)" if self.kept else ""
        with_polyps, polyps, errors = (
            sum(getattr(done, name) for done in self.done.values()) for name in ("with_polyps", "polyps", "errors")
        )
        found = f"{self.frames} frames{kept}, {with_polyps} with polyps, {polyps} polyps"
        print(f"{self.store.root}: {found}, {seconds:.1f} s")
        if errors:
            log.error("%d of %d frames could not be read; their rows say why", errors, self.frames)
        return 1 if errors else 0

    def _read(self) -> dict[int, Done]:
        if not self.store.exists(DONE):
            return {}
        lines = csv.DictReader(io.StringIO(self.store.read(DONE).decode()))
        try:
            found = [Done(**{field.name: int(line[field.name]) for field in fields(Done)}) for line in lines]
        except (KeyError, TypeError, ValueError):  # it can be made again
            return {}
        return {done.partition: done for done in found}

    def _save(self) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, [field.name for field in fields(Done)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(self.done[number]) for number in sorted(self.done))
        self.store.write(DONE, text.getvalue().encode())
