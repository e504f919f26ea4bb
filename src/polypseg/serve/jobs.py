"""Videos and batches: taken in, worked through one after another, resumed after a restart.

``jobs.sqlite`` is the table of jobs. The files of job ``<id>`` lie in ``jobs/<id>/in/<number>/`` (the uploads, until
their results are there; a video's longer, where the settings keep it) and ``jobs/<id>/out/``. A file is spoken of only
when it is whole: its name is entered into the table after what wrote it has finished. A job without a row in the table
never was: its files are written before the row, and removed after it.

Nothing that happens to the computer ends a job: where the disk or the table refuses, it waits and continues; where the
service dies, the next process resumes. Only what is wrong with an upload ends one, or a fault of the service itself,
and then the upload is kept until the job is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.files import atomic_write, read_json, sha256_file
from polypseg.io.kinds import kind_of
from polypseg.io.outputs import RUN_FILES, Output, write_run
from polypseg.operating_point import OperatingPoint
from polypseg.pipeline.flow import Read
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.plan import VIDEO_SUFFIXES
from polypseg.pipeline.stills import Still, StillOutputs, stills_of
from polypseg.pipeline.threads import Inline
from polypseg.serve.decoding import Decoders
from polypseg.serve.log import without_values
from polypseg.serve.settings import Settings
from polypseg.serve.state import ENDED, Job, Table, is_full, is_trouble, now
from polypseg.serve.uploads import READABLE, count_frames, own_name, still_frames, told, told_apart, video_frames
from polypseg.version import __version__

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

log = logging.getLogger("polypseg.serve")

SAVED: tuple[Output, ...] = ("mask", "overlay", "json")  # of each still
SAVED_OF_ALL: tuple[Output, ...] = ("coco", "csv")
MOST_WAITING = 100  # jobs
MOST_STARTS = 3  # of a job that gets no further: then others come first, and it waits longer and longer
LONGEST_WAIT = 600.0  # seconds, of that
STORE_EVERY = 0.5  # seconds between two entries of a job's progress
RETRY, LONGEST_RETRY = 5.0, 60.0  # seconds, where the disk or the table refuses: at first, and for the most
EXPIRE_EVERY = 600.0  # seconds


class Stopped(Exception):
    """The present job is to end, because it is cancelled or the service stops."""


class Jobs:
    """Takes jobs in, and works through them in a thread of its own.

    Args:
        segmenter: the model.
        settings: limits, and the folder of the files.
        table: of the jobs in that folder; closed with it.
        decoders: what opens the uploads.
        counted: called for every frame computed.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Settings,
        table: Table,
        decoders: Decoders,
        counted: Callable[[], object] = lambda: None,
    ) -> None:
        self._settings = settings
        self.use(segmenter)
        self._table, self._decoders = table, decoders
        self._counted = counted
        self._folder = settings.state / "jobs"
        self._changed = threading.Condition()
        self._stopping = False
        self._current: str | None = None  # the job in work
        self._cancelled = False  # that one
        self._began = time.monotonic()
        self._expired = float("-inf")  # when expired jobs were last searched for
        self.trouble: str | None = None  # why jobs wait
        self._thread = threading.Thread(target=self._run, name="polypseg-jobs", daemon=True)

    def start(self) -> None:
        """Remove what an earlier process left without need, and begin.

        Raises:
            PolypsegError: the state folder cannot be read.
        """
        try:
            known = {job.id: job for job in self._table.select()}
            for folder in list(self._folder.iterdir()):
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)
                elif known[folder.name].state in ENDED and (folder / "in").exists():
                    self._tidy(folder.name)
        except (sqlite3.Error, OSError) as error:
            line = f"{self._settings.state}: cannot be read ({getattr(error, 'strerror', None) or error})"
            raise PolypsegError(line) from error
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End; the job in work is resumed by the next process. Waits so long for its present frame."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._table.close()

    def use(self, segmenter: Segmenter) -> None:
        """Take another model for the jobs after the present one."""
        self._segmenter = segmenter

    @property
    def alive(self) -> bool:
        """Whether jobs are worked through."""
        return self._thread.is_alive() and not self._stopping

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        return self._table.count(state)

    def submit(
        self,
        uploads: Sequence[tuple[str | None, IO[bytes]]],
        smoothing: float,
        point: Mapping[str, float] | None = None,
        replaces: str | None = None,
    ) -> Job:
        """Take files in as a job; when this returns, they and it survive a crash.

        Args:
            uploads: each one's name, as it was sent, and content.
            smoothing: of videos, as ``predict_video`` takes it.
            point: values of the operating point in place of the model's own, as ``Segmenter.at`` takes them.
            replaces: the job that is removed when this one is done.

        Raises:
            HTTPException: 415 a file is of no known kind, 413 one has too many pixels or seconds, 422 a video cannot be
                read, 429 too many jobs wait.
            PolypsegError: the disk refuses.
        """
        if self.count("queued") >= MOST_WAITING:
            raise HTTPException(429, f"{MOST_WAITING} jobs wait already; come again later", {"retry-after": "60"})
        identity = secrets.token_hex(16)
        folder = self._folder / identity
        names = told_apart([own_name(name) for name, _ in uploads])
        try:
            paths = [folder / "in" / str(number) / name for number, name in enumerate(names)]
            for path, (_, content) in zip(paths, uploads, strict=True):
                with atomic_write(path) as file:
                    shutil.copyfileobj(content, file, 1 << 20)
            kinds = [_kind(path) for path in paths]
            limits = self._settings.max_pixels, self._settings.max_video_seconds
            counts = [self._decoders.call(path.name, count_frames, path, path.name, *limits) for path in paths]
            total = None if None in counts else sum(count or 0 for count in counts)
            created = now()
            kind = "video" if kinds == ["video"] else "batch"
            job = Job(
                identity, "queued", kind, names, smoothing, None, {}, 0, total, None, created,
                point=dict(point or {}), replaces=replaces,
            )  # fmt: skip
            self._table.add(job)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._changed:
            self._changed.notify()
        return job

    def again(
        self, identity: str, point: Mapping[str, float], upload: IO[bytes] | None = None, replace: bool = False
    ) -> Job:
        """Take a job's video in once more, to be followed at another operating point.

        Args:
            identity: the job, which has ended.
            point: as of ``submit``.
            upload: the video's own file, where that is not kept.
            replace: whether the job is removed when the new one is done.

        Raises:
            HTTPException: as ``submit``; 404 there is no such job; 409 it is of no video or has not ended, its video is
                not kept, or ``upload`` is another file.
        """
        former = self.get(identity)
        if former.kind != "video":
            raise HTTPException(409, "only a video is followed anew; send the files to /v1/jobs")
        if former.state not in ENDED:
            raise HTTPException(409, "the job has not ended; wait for it, or cancel it")
        replaced = identity if replace else None
        if upload is not None:
            self._check_same(former, upload)
            return self.submit([(former.names[0], upload)], former.smoothing, point, replaced)
        with self._open_upload(former) as content:
            return self.submit([(former.names[0], content)], former.smoothing, point, replaced)

    def _open_upload(self, job: Job) -> IO[bytes]:
        if (path := self.upload(job)) is not None:
            with contextlib.suppress(FileNotFoundError):  # it may be removed at any time
                return path.open("rb")
        raise HTTPException(409, "the job's video is not kept; send its file too, as the field file")

    def _check_same(self, job: Job, upload: IO[bytes]) -> None:
        """Refuse a file that is not the one that a job's results were made of."""
        timeline = next((name for name in job.files if name.endswith(".timeline.json")), None)
        if timeline is None:
            return
        made_of = read_json(self.file(job.id, timeline))["source_sha256"]
        if hashlib.file_digest(upload, "sha256").hexdigest() != made_of:  # type: ignore[arg-type]
            raise HTTPException(409, f"{job.names[0]}: is another file than the job's; send it to /v1/jobs")
        upload.seek(0)

    def page(self, limit: int, after: str | None = None) -> list[Job]:
        """So many jobs, the oldest first, from the one on that comes after ``after``.

        Raises:
            HTTPException: 404 there is none of that name.
        """
        if after is None:
            found = self._table.select(limit=limit)
        else:
            self.get(after)
            found = self._table.select("WHERE rowid > (SELECT rowid FROM jobs WHERE id = ?)", after, limit=limit)
        return [self._told(job) for job in found]

    def get(self, identity: str) -> Job:
        """One job.

        Raises:
            HTTPException: 404 there is none of that name.
        """
        job = self._table.get(identity)
        if job is None:
            raise HTTPException(404, "there is no such job")
        return self._told(job)

    def file(self, identity: str, name: str) -> Path:
        """Where a complete output lies.

        Raises:
            HTTPException: 404 there is none of that name.
        """
        job = self.get(identity)
        if name not in job.files:
            raise HTTPException(404, "the job has no such file, or not yet")
        return self._folder / identity / "out" / job.files[name]

    def upload(self, job: Job) -> Path | None:
        """Where the video of a job that is done lies; None where it is not kept."""
        if job.kind != "video" or job.state != "done":
            return None
        path = self._folder / job.id / "in" / "0" / job.names[0]
        with contextlib.suppress(OSError):
            if path.stat().st_size <= self._settings.keep_video_bytes:
                return path
        return None

    def point(self, job: Job) -> OperatingPoint:
        """What its polyps were found at, or will be."""
        made_with = (job.settings or {}).get("operating_point")
        if made_with is not None:
            return OperatingPoint.from_dict(made_with)
        return self._segmenter.operating_point.override(**(job.point or {}))

    def cancel(self, identity: str, only: bool = False) -> Job | None:
        """Cancel a job that has not ended; remove one that has, with its files, and return None.

        Args:
            identity: the job.
            only: whether one that has ended is left as it is.

        Raises:
            HTTPException: 404 there is none of that name, 409 it has ended and is left.
        """
        with self._changed:
            job = self.get(identity)
            current = self._current == identity  # then the thread tidies up
            waiting = job.state not in ENDED
            if only and not waiting:
                raise HTTPException(409, "the job has ended")
            if waiting:
                self._cancelled |= current
                self._table.change(identity, state="cancelled", ended=now())
                self._changed.notify_all()
            else:
                self._table.remove(identity)
        if not current:
            self._tidy(identity)
        return self.get(identity) if waiting else None

    def _told(self, job: Job) -> Job:
        if job.id == self._current and job.state == "running" and self.trouble:
            job.error = self.trouble
        return job

    # ---- the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = RETRY
        while not self._stopping:
            try:
                self._one()
            except Exception as problem:  # noqa: BLE001  (nothing ends the jobs for good)
                wait = min(2 * wait, LONGEST_RETRY) if self.trouble else RETRY
                full = is_full(problem)
                self.trouble = "waits: the disk of the service is full" if full else "waits: the service cannot write"
                log.error("jobs wait", extra={"fields": {"job": self._current, **without_values(problem)}})
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self._cancelled, wait)

    def _one(self) -> None:
        """Work through the next job, or continue the present one. Raises where the disk or the table refuses."""
        job = self._take()
        if job is None:
            return
        log.info("job begins", extra={"fields": {"job": job.id, "kind": job.kind, "starts": job.starts}})
        state, error = "done", None
        try:
            state, error = _Work(self, job).through()
        except Stopped:
            if not self._cancelled:
                self._table.change(job.id, starts=0)
                return
            state = "cancelled"
        except Exception as problem:
            if is_trouble(problem):
                raise
            state = "failed"
            if isinstance(problem, PolypsegError):
                error = str(problem).replace(f"{self._folder / job.id}{os.sep}", "")
            else:
                error = "the service failed at this; its log says more"
                log.error("crash", extra={"fields": {"job": job.id, **without_values(problem)}})
        with self._changed:
            if self._cancelled:
                state, error = "cancelled", None
            replaced = job.replaces if state == "done" else None
            if replaced is not None:  # before it is told: whoever sees this one done finds it alone
                self._table.remove(replaced)
            self._table.change(job.id, state=state, error=error, ended=now())
            self._current = None
        for identity in (job.id, replaced):
            if identity is not None:
                self._tidy(identity)
        log.info("job ends", extra={"fields": {"job": job.id, "state": state}})

    def _take(self) -> Job | None:
        """The present job, where it has not ended, or the next one, taken in work; None when the service stops."""
        with self._changed:
            while not self._stopping:
                if self._current is not None:
                    job = self._table.get(self._current)
                    if job is not None and job.state == "running":
                        return job
                    ended, self._current, self._cancelled = self._current, None, False
                    self._tidy(ended)
                self._expire()
                # What an earlier process had in work comes first; last what it could not get further with.
                order = f"starts > {MOST_STARTS}, state = 'queued', rowid"
                waiting = self._table.select("WHERE state IN ('queued', 'running')", order=order, limit=1)
                pause = self._pause(waiting[0]) if waiting else None
                if waiting and not pause:
                    job = waiting[0]
                    job.starts += 1
                    self._table.change(job.id, state="running", starts=job.starts)
                    self._current, self._cancelled, self.trouble = job.id, False, None
                    return job
                self.trouble = None
                if self._settings.keep_days is not None:
                    pause = min(pause or EXPIRE_EVERY, EXPIRE_EVERY)
                self._changed.wait(pause)
        return None

    def _pause(self, job: Job) -> float:
        """Seconds until it is begun: one that may be what ends the service leaves it time for all else."""
        wait = min(2.0 ** (job.starts - MOST_STARTS), LONGEST_WAIT) if job.starts > MOST_STARTS else 0
        return max(0.0, wait - (time.monotonic() - self._began))

    def _expire(self) -> None:
        """Remove what ended more than ``keep_days`` ago."""
        if self._settings.keep_days is None or time.monotonic() - self._expired < EXPIRE_EVERY:
            return
        self._expired = time.monotonic()
        before = now(-self._settings.keep_days)
        for job in self._table.select(f"WHERE state IN {ENDED} AND COALESCE(ended, created) < ?", before):
            self._table.remove(job.id)
            self._tidy(job.id)
            log.info("job expires", extra={"fields": {"job": job.id}})

    def _tidy(self, identity: str) -> None:
        """Of a job that has ended keep its complete outputs, and uploads without any; of one that is removed nothing.

        What cannot be removed is left to the next start.
        """
        folder = self._folder / identity
        job = self._table.get(identity)
        if job is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        complete = {folder / "out" / path for path in job.files.values()} | {self.upload(job)}
        numbers = {path.partition("/")[0] for path in job.files.values()}
        for path in [path for path in folder.rglob("*") if path.is_file() and path not in complete]:
            place, number, *_ = (*path.relative_to(folder).parts, "")
            if place != "in" or number in numbers or job.state == "cancelled":
                with contextlib.suppress(OSError):
                    path.unlink()
        for path in sorted(folder.rglob("*"), reverse=True):  # folders that have become empty
            with contextlib.suppress(OSError):
                path.rmdir()


@dataclass(frozen=True)
class _Frame:
    """A frame of a video, as ``video.files.Frame``."""

    index: int
    pts: int
    time: float
    pixels: NDArray[np.uint8]


class _Video:
    """A video that another process decodes, as a ``VideoReader``."""

    def __init__(self, path: Path, items: Generator[Any, None, None]) -> None:
        self.path, self._items = path, items
        self.info = next(items)
        self.problem: str | None = None

    def __iter__(self) -> Iterator[_Frame]:
        for item in self._items:
            if isinstance(item, tuple):
                yield _Frame(*item)
            else:
                self.problem = item

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._items.close()


class _Work:
    """One job being worked through."""

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self._jobs, self._job = jobs, job
        self._table, self._decoders = jobs._table, jobs._decoders
        self._segmenter = jobs._segmenter.at(**job.point) if job.point else jobs._segmenter
        self._made_with = {**self._segmenter.settings, "polypseg": __version__}
        self._folder = jobs._folder / job.id
        self._files: dict[str, str] = dict(job.files)
        self._records: list[dict[str, Any]] = []
        self._problems: list[str] = []
        self._done = 0
        self._stored_at = self._published_at = 0.0
        # Of the present video: frames that were computed, that may be, and after which it should be done.
        self._seen, self._most, self._expected = 0, math.inf, math.inf

    def through(self) -> tuple[str, str | None]:
        """The state and the line in which it ends."""
        if self._job.settings != self._made_with:  # another model has begun it
            shutil.rmtree(self._folder / "out", ignore_errors=True)
            self._files = {}
            self._table.change(self._job.id, settings=self._made_with, files={}, done=0)
        for number, name in enumerate(self._job.names):
            self._check()
            source, out = self._folder / "in" / str(number) / name, self._folder / "out" / str(number)
            before = self._done
            self._seen, self._most, self._expected = 0, math.inf, math.inf
            try:
                if _kind(source) == "video":
                    self._video(source, out)
                else:
                    self._stills(source, out)
            except (PolypsegError, HTTPException) as problem:
                if is_trouble(problem):
                    raise
                if isinstance(problem, HTTPException) and problem.status_code == 503:
                    raise Stopped from problem
                line = problem.detail if isinstance(problem, HTTPException) else told(problem, source, name)
                line = line.replace(f"{self._folder}{os.sep}", "")
                self._problems.append(line if line.startswith(name) else f"{name}: {line}")
                self._publish(out, [out / f"{source.stem}{suffix}" for suffix in VIDEO_SUFFIXES], whole=True)
            if self._done == before:  # it was refused: that is done too
                self._done += 1
            self._store()
        if self._records:
            out = self._folder / "out"
            write_run(out, self._records, SAVED_OF_ALL)
            self._publish(out, [out / RUN_FILES[output] for output in SAVED_OF_ALL])
        if not self._problems:
            return "done", None
        several = len(self._job.names) > 1
        more = f" (and {len(self._problems) - 1} more)" if len(self._problems) > 1 else ""
        line = f"{self._problems[0]}{more}" if several else self._problems[0]
        return ("done" if self._files else "failed"), line

    def _video(self, path: Path, out: Path) -> None:
        from polypseg.io.video_outputs import whole_lines
        from polypseg.pipeline.video import DamagedVideo, predict_video

        limits = self._jobs._settings
        pixels, seconds = limits.max_pixels, limits.max_video_seconds
        announced = self._decoders.call(path.name, count_frames, path, path.name, pixels, seconds)
        before = self._done
        self._most = 1.1 * max(announced or 0, seconds * 120)
        self._expected = before + (announced or math.inf)
        for lines in (out / f"{path.stem}.jsonl", out / f"{path.stem}.part.jsonl"):
            if lines.exists():
                self._done = before + len(whole_lines(lines))
                break
        items = self._decoders.stream(path.name, video_frames, path, pixels, check=self._check)
        options = PredictOptions(smoothing=self._job.smoothing, resume=True, progress=False)
        damage = None
        with _Video(path, items) as video:
            try:
                found = predict_video(self._segmenter, path, out, options, video=video, computed=self._count)
            except DamagedVideo as problem:
                found, damage = problem.summary, problem
        self._done = before + found.frames
        self._publish(out, found.files)
        if damage is not None:
            raise damage

    def _stills(self, path: Path, out: Path) -> None:
        items = self._decoders.stream(
            path.name, still_frames, path, path.name, self._jobs._settings.max_pixels, check=self._check
        )
        with contextlib.closing(items):
            count, times = next(items)
            stills = stills_of(path, count, times) if count > 1 else [Still(path, path.stem)]
            outputs = StillOutputs(self._segmenter, out, (*SAVED, *SAVED_OF_ALL), resume=True)
            digest = sha256_file(path)
            records = {still: outputs.earlier(still, digest) for still in stills}
            ready = [file for still in stills if records[still] is not None for file in outputs.files(still)]
            self._done += sum(record is not None for record in records.values())

            def missing() -> Iterator[Read[Still]]:
                for still, pixels in zip(stills, items, strict=False):
                    if records[still] is None:
                        yield Read(still, digest, pixels)
                next(items, None)  # which say at the end whether there are more than was said

            try:
                reads = missing() if None in records.values() else ()
                for written in outputs.through(reads, Inline(), most=1, computed=self._count):
                    records[written.still] = written.record
                    ready += outputs.files(written.still)
                    if time.monotonic() - self._published_at > STORE_EVERY:
                        self._publish(out, ready)
                        ready = []
            finally:
                self._publish(out, ready)
                self._records += [record for record in records.values() if record is not None]

    def _count(self) -> None:
        """One more frame is computed.

        Raises:
            Stopped: the job is to end.
            PolypsegError: the video is longer than it said.
        """
        self._check()
        self._seen += 1
        if self._seen > self._most:
            raise PolypsegError(f"is longer than {self._jobs._settings.max_video_seconds:g} s")
        if self._done < self._expected:  # some are computed again
            self._done += 1
        self._jobs._counted()
        if time.monotonic() - self._stored_at > STORE_EVERY:
            self._store()

    def _publish(self, out: Path, files: Iterable[Path], whole: bool = False) -> None:
        """List these files, which are complete; with ``whole`` only where all of them are there."""
        files = list(files)
        if whole and not all(file.is_file() for file in files):
            return
        root = self._folder / "out"
        known = set(self._files.values())
        for file in files:
            path = file.relative_to(root).as_posix()
            if path not in known:
                name = file.name
                while name in self._files:  # only of jobs that an earlier version took in
                    name = f"{out.name}-{name}"
                self._files[name] = path
        self._table.change(self._job.id, files=self._files)
        self._jobs.trouble = None
        self._published_at = time.monotonic()

    def _check(self) -> None:
        if self._jobs._cancelled or self._jobs._stopping:
            raise Stopped

    def _store(self) -> None:
        """Enter the progress into the table; a job that gets further may be begun again."""
        if self._done > self._job.done:
            self._job.done = self._done
            self._table.change(self._job.id, done=self._done, starts=0)
            self._jobs.trouble = None
        self._stored_at = time.monotonic()


def _kind(path: Path) -> str:
    """What an upload is.

    Raises:
        HTTPException: 415 it is of no kind that is known.
    """
    kind = kind_of(path)
    if kind is None:
        raise HTTPException(415, f"{path.name}: is no image, video or DICOM file that can be read; {READABLE}, or MP4")
    return kind
