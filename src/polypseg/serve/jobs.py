"""Videos and batches: taken in, worked through one after another, gone on with after a restart.

``jobs.sqlite`` is the table of jobs. The files of job ``<id>`` lie in ``jobs/<id>/in/<number>/`` (the uploads, until
the job has ended) and ``jobs/<id>/out/``. A file is spoken of only when it is whole: its name is entered into the table
after what wrote it has finished. A job without a row in the table never was: its files are written before the row, and
removed after it.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

import polypseg
from polypseg.catalog import read_frame
from polypseg.errors import PolypsegError
from polypseg.files import atomic_write, disk_error, read_json, sha256_file
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.outputs import (
    RUN_FILES,
    Output,
    frame_files,
    frame_record,
    with_shapes,
    write_frame,
    write_run,
)
from polypseg.inference.sources import kind_of
from polypseg.serve.observe import without_values
from polypseg.serve.settings import Settings
from polypseg.serve.uploads import READABLE, open_still, own_name, told

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

log = logging.getLogger("polypseg.serve")

SAVED: tuple[Output, ...] = ("mask", "overlay", "json")  # of each still
SAVED_OF_ALL: tuple[Output, ...] = ("coco", "csv")
VIDEO_SUFFIXES = (".mp4", ".jsonl", ".timeline.json")
MOST_WAITING = 100  # jobs
MOST_STARTS = 3  # of a job that gets no further: what kills the service must not do so for ever
STORE_EVERY = 0.5  # seconds between two entries of a job's progress
RETRY = 5.0  # seconds, where the table cannot be written
ENDED = ("done", "failed", "cancelled")
STATES = ("queued", "running", *ENDED)
COLUMNS = (
    "id TEXT PRIMARY KEY, state TEXT, kind TEXT, names TEXT, smoothing REAL, settings TEXT, files TEXT, done INTEGER, "
    "total INTEGER, error TEXT, created TEXT, starts INTEGER"
)

Map = NDArray[np.float32]


@dataclass
class Job:
    """A row of the table.

    Attributes:
        id: 32 hexadecimal digits.
        state: one of ``STATES``.
        kind: ``video`` for one video, ``batch`` for anything else.
        names: of the uploads, without any path.
        smoothing: as ``predict_video`` takes it.
        settings: what its outputs so far were made with; None before it began.
        files: its complete outputs: the name that is told, and the path below ``out/``.
        done: frames that are finished.
        total: frames in all, as far as the files say.
        error: one line, or None.
        created: ISO 8601, UTC.
        starts: how often it was begun since it last got further.
    """

    id: str
    state: str
    kind: str
    names: list[str]
    smoothing: float
    settings: dict[str, Any] | None
    files: dict[str, str]
    done: int
    total: int | None
    error: str | None
    created: str
    starts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What is told of it."""
        told = ("id", "state", "kind", "names", "done", "total", "error", "created")
        return {**{key: getattr(self, key) for key in told}, "files": list(self.files)}


class Table:
    """The table of jobs in a file that one process at a time may use. Thread-safe."""

    _AS_JSON = ("names", "settings", "files")

    def __init__(self, file: Path) -> None:
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(file, timeout=2, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._connection.execute("BEGIN EXCLUSIVE")
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS jobs ({COLUMNS})")
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                line = f"{file.parent}: another polypseg serve works in this folder; stop it or choose another --state"
                raise PolypsegError(line) from error
            raise PolypsegError(f"{file}: cannot be opened ({error}); choose another --state") from error
        except sqlite3.DatabaseError as error:
            raise PolypsegError(f"{file}: is no table of jobs ({error}); move it away") from error

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            self._connection.close()

    def add(self, job: Job) -> None:
        """A new row."""
        values = self._stored(vars(job))
        self._execute(f"INSERT INTO jobs VALUES ({', '.join(f':{key}' for key in values)})", values)

    def change(self, identity: str, **values: Any) -> None:
        """Change these columns of a row, if it is there."""
        changes = ", ".join(f"{key} = :{key}" for key in values)
        self._execute(f"UPDATE jobs SET {changes} WHERE id = :id", {**self._stored(values), "id": identity})

    def remove(self, identity: str) -> None:
        """Remove a row."""
        self._execute("DELETE FROM jobs WHERE id = ?", (identity,))

    def get(self, identity: str) -> Job | None:
        """A row."""
        return next(iter(self.select("WHERE id = ?", identity)), None)

    def select(self, condition: str = "", *values: Any) -> list[Job]:
        """Rows, in the order in which they were added."""
        rows = self._execute(f"SELECT * FROM jobs {condition} ORDER BY rowid", values)
        return [
            Job(**{key: json.loads(row[key]) if key in self._AS_JSON else row[key] for key in row.keys()})  # noqa: SIM118
            for row in rows
        ]

    def count(self, state: str) -> int:
        """How many rows are in a state."""
        return int(self._execute("SELECT COUNT(*) FROM jobs WHERE state = ?", (state,))[0][0])

    def _execute(self, statement: str, values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _stored(self, values: dict[str, Any]) -> dict[str, Any]:
        return {key: json.dumps(value) if key in self._AS_JSON else value for key, value in values.items()}


class Stopped(Exception):
    """The present job is to end, because it is cancelled or the service stops."""


class Jobs:
    """Takes jobs in, and works through them in a thread of its own.

    Args:
        segmenter: the model.
        settings: limits, and the folder of the table and the files.
        counted: called for every frame computed.

    Raises:
        PolypsegError: the folder cannot be written, or another process works in it.
    """

    def __init__(self, segmenter: Segmenter, settings: Settings, counted: Callable[[], object] = lambda: None) -> None:
        self._segmenter = segmenter
        self._settings = settings
        self._counted = counted
        self._folder = settings.state / "jobs"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _state_error(settings.state, error) from error
        self._table = Table(settings.state / "jobs.sqlite")
        self._made_with = {**segmenter.settings, "polypseg": polypseg.__version__}
        self._changed = threading.Condition()
        self._stopping = False
        self._current: str | None = None  # the job in work
        self._cancelled = False  # that one
        self._thread = threading.Thread(target=self._run, name="polypseg-jobs", daemon=True)

    def start(self) -> None:
        """Put back what an earlier process left in work, remove what it left without a row, and begin."""
        for job in self._table.select("WHERE state = 'running'"):
            self._table.change(job.id, state="queued")
        known = {job.id for job in self._table.select()}
        for folder in self._folder.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End; the job in work is gone on with by the next process. Waits so long for its present frame."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._table.close()

    @property
    def alive(self) -> bool:
        """Whether jobs are worked through."""
        return self._thread.is_alive() and not self._stopping

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        return self._table.count(state)

    def submit(self, uploads: Sequence[tuple[str | None, IO[bytes]]], smoothing: float) -> Job:
        """Take files in as a job; when this returns, they and it survive a crash.

        Args:
            uploads: each one's name, as it was sent, and content.
            smoothing: of videos, as ``predict_video`` takes it.

        Raises:
            HTTPException: 415 a file is of no known kind, 413 one has too many pixels or seconds, 422 a video cannot be
                read, 429 too many jobs wait.
            PolypsegError: the disk refuses.
        """
        if self.count("queued") >= MOST_WAITING:
            raise HTTPException(429, f"{MOST_WAITING} jobs wait already; come again later", {"retry-after": "60"})
        identity = secrets.token_hex(16)
        folder = self._folder / identity
        names = [own_name(name) for name, _ in uploads]
        try:
            paths = [folder / "in" / str(number) / name for number, name in enumerate(names)]
            for path, (_, content) in zip(paths, uploads, strict=True):
                with atomic_write(path) as file:
                    shutil.copyfileobj(content, file, 1 << 20)
            kinds = [_kind(path) for path in paths]
            counts = [self._count_frames(path, kind) for path, kind in zip(paths, kinds, strict=True)]
            total = None if None in counts else sum(count or 0 for count in counts)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            kind = "video" if kinds == ["video"] else "batch"
            job = Job(identity, "queued", kind, names, smoothing, None, {}, 0, total, None, created)
            self._table.add(job)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._changed:
            self._changed.notify()
        return job

    def all(self) -> list[Job]:
        """Every job, the oldest first."""
        return self._table.select()

    def get(self, identity: str) -> Job:
        """One job.

        Raises:
            HTTPException: 404 there is none of that name.
        """
        job = self._table.get(identity)
        if job is None:
            raise HTTPException(404, "there is no such job")
        return job

    def file(self, identity: str, name: str) -> Path:
        """Where a complete output lies.

        Raises:
            HTTPException: 404 there is none of that name.
        """
        job = self.get(identity)
        if name not in job.files:
            raise HTTPException(404, "the job has no such file, or not yet")
        return self._folder / identity / "out" / job.files[name]

    def cancel(self, identity: str) -> Job | None:
        """Cancel a job that has not ended; remove one that has, with its files, and return None.

        Raises:
            HTTPException: 404 there is none of that name.
        """
        with self._changed:
            job = self.get(identity)
            current = self._current == identity
            if job.state not in ENDED:
                self._cancelled |= current
                self._table.change(identity, state="cancelled")
                if not current:
                    self._tidy(identity)
                return self.get(identity)
            self._table.remove(identity)
            if not current:
                shutil.rmtree(self._folder / identity, ignore_errors=True)
            return None

    # ---- the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._next()) is not None:
            log.info("job begins", extra={"fields": {"job": job.id, "kind": job.kind}})
            state, error = "done", None
            try:
                if job.starts > MOST_STARTS:
                    raise PolypsegError(f"stopped the service {MOST_STARTS} times without getting further; given up")
                state, error = _Work(self, job).through()
            except Stopped:
                if self._stopping and not self._cancelled:
                    self._table.change(job.id, starts=0)
                    return
            except PolypsegError as problem:
                state, error = "failed", str(problem).replace(f"{self._folder / job.id}{os.sep}", "")
            except Exception as crash:
                state, error = "failed", "the service failed at this; its log tells more"
                log.error("crash", extra={"fields": {"job": job.id, **without_values(crash)}})
            self._end(job.id, state, error)

    def _next(self) -> Job | None:
        """The next job, taken in work; None when the service stops."""
        with self._changed:
            while not self._stopping:
                waiting = self._table.select("WHERE state = 'queued'")
                if waiting:
                    job = waiting[0]
                    job.starts += 1
                    self._current, self._cancelled = job.id, False
                    self._table.change(job.id, state="running", starts=job.starts)
                    return job
                self._changed.wait()
        return None

    def _end(self, identity: str, state: str, error: str | None) -> None:
        with self._changed:
            while not self._stopping:
                if self._cancelled:
                    state = "cancelled"
                try:
                    self._table.change(identity, state=state, error=error)
                    self._current = None
                    self._tidy(identity)
                    break
                except sqlite3.Error as problem:  # as of a full disk
                    log.error("cannot write", extra={"fields": {"job": identity, **without_values(problem)}})
                    self._changed.wait(RETRY)
        log.info("job ends", extra={"fields": {"job": identity, "state": state}})

    def _tidy(self, identity: str) -> None:
        """Of a job that has ended, keep its complete outputs only; nothing where it was removed meanwhile."""
        folder = self._folder / identity
        job = self._table.get(identity)
        if job is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        shutil.rmtree(folder / "in", ignore_errors=True)
        kept = {folder / "out" / path for path in job.files.values()}
        for path in [path for path in folder.rglob("*") if path.is_file() and path not in kept]:
            path.unlink(missing_ok=True)

    def _count_frames(self, path: Path, kind: str) -> int | None:
        """How many frames a file says that it has, after a look at its limits; its pixels are not decoded."""
        name, limits = path.name, self._settings
        if kind == "video":
            return _count_video_frames(path, limits)
        try:
            frames = open_still(path, name, limits.max_pixels)
        except HTTPException as refusal:
            if refusal.status_code == 422:  # told when its turn comes; the others are gone on with
                return 1
            raise
        return 1 if isinstance(frames, Path) else len(frames)


class _Work:
    """One job being worked through. To ``predict_video`` it is a Segmenter that counts, and stops when told to."""

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self._jobs, self._job = jobs, job
        self._table = jobs._table
        self._segmenter = jobs._segmenter
        self._folder = jobs._folder / job.id
        self._files: dict[str, str] = dict(job.files)
        self._records: list[dict[str, Any]] = []
        self._problems: list[str] = []
        self._done = 0
        self._stored_at = 0.0
        self._most: float = float("inf")  # frames of the present video

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[Map]:
        """As the Segmenter's own.

        Raises:
            Stopped: the job is to end.
            PolypsegError: the video goes on for longer than it said.
        """
        for probability in self._segmenter.probabilities(self._checked(frames), batch_size):
            self._check()
            if self._done >= self._most:
                raise PolypsegError(f"goes on for more than {self._jobs._settings.max_video_seconds:g} s")
            self._done += 1
            self._jobs._counted()
            if time.monotonic() - self._stored_at > STORE_EVERY:
                self._store()
            yield probability

    def _checked(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        most = self._jobs._settings.max_pixels
        for frame in frames:
            if frame.shape[0] * frame.shape[1] > most:
                raise PolypsegError(f"has frames of more than {most:,} pixels")
            yield frame

    def through(self) -> tuple[str, str | None]:
        """The state and the line in which it ends."""
        if self._job.settings != self._jobs._made_with:  # another model has begun it
            shutil.rmtree(self._folder / "out", ignore_errors=True)
            self._files = {}
            self._table.change(self._job.id, settings=self._jobs._made_with, files={}, done=0)
        for number, name in enumerate(self._job.names):
            self._check()
            source, out = self._folder / "in" / str(number) / name, self._folder / "out" / str(number)
            before = self._done
            try:
                if _kind(source) == "video":
                    self._video(source, out)
                else:
                    self._stills(source, out)
            except (PolypsegError, HTTPException) as problem:
                line = problem.detail if isinstance(problem, HTTPException) else told(problem, source, name)
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
        from polypseg.inference.video.outputs import whole_lines
        from polypseg.inference.video.predict import predict_video

        limits = self._jobs._settings
        announced = _count_video_frames(path, limits)
        before = self._done
        self._most = before + 1.1 * max(announced or 0, limits.max_video_seconds * 120)
        for lines in (out / f"{path.stem}.jsonl", out / f"{path.stem}.part.jsonl"):
            if lines.exists():
                self._done = before + len(whole_lines(lines))
                break
        watched: Any = self
        found = predict_video(watched, path, out, smoothing=self._job.smoothing, resume=True)
        self._done = before + found.frames
        self._publish(out, found.files)

    def _stills(self, path: Path, out: Path) -> None:
        from polypseg.inference.dicom import DicomFrames

        found = open_still(path, path.name, self._jobs._settings.max_pixels)
        several = isinstance(found, DicomFrames) and len(found) > 1
        times = found.times if isinstance(found, DicomFrames) else None
        frames = found if isinstance(found, DicomFrames) else [read_frame(found)]
        digest = sha256_file(path)
        for index, frame in enumerate(frames):
            stem = f"{path.stem}-{index + 1:04d}" if several else path.stem
            files = frame_files(out, stem, SAVED)
            if files[-1].is_file():  # the record, which is written last
                self._records.append(read_json(files[-1]))
                self._done += 1
            else:
                probability = next(iter(self.probabilities([frame])))
                answer = self._segmenter.answer(probability, *frame.shape[:2], outside=outside_of(frame))
                record = frame_record(
                    answer, source=path.name, model=self._segmenter.hash, index=index if several else None,
                    time=times[index] if several and times else None,
                )  # fmt: skip
                record = with_shapes({**record, **self._segmenter.settings, "source_sha256": digest}, answer)
                write_frame(out, stem, frame, answer, record, SAVED)
                self._records.append(record)
            self._publish(out, files)

    def _publish(self, out: Path, files: Iterable[Path], whole: bool = False) -> None:
        """Tell of these files, which are complete; with ``whole`` only where all of them are there."""
        files = list(files)
        if whole and not all(file.is_file() for file in files):
            return
        root = self._folder / "out"
        known = set(self._files.values())
        for file in files:
            path = file.relative_to(root).as_posix()
            if path not in known:
                taken = file.name in self._files
                self._files[f"{out.name}-{file.name}" if taken else file.name] = path
        self._table.change(self._job.id, files=self._files)

    def _check(self) -> None:
        if self._jobs._cancelled or self._jobs._stopping:
            raise Stopped

    def _store(self) -> None:
        """Enter the progress into the table; a job that gets further may be begun again."""
        if self._done > self._job.done:
            self._job.done = self._done
            self._table.change(self._job.id, done=self._done, starts=0)
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


def _count_video_frames(path: Path, limits: Settings) -> int | None:
    """How many frames a video announces.

    Raises:
        HTTPException: 413 it is too long or its frames are too large, 422 it cannot be read.
    """
    from polypseg.inference.video.files import TooLargeError, probe

    try:
        info = probe(path, limits.max_pixels)
    except TooLargeError as error:
        raise HTTPException(413, told(error, path, path.name)) from error
    except PolypsegError as error:
        raise HTTPException(422, told(error, path, path.name)) from error
    if info.frames is not None and info.frames / info.fps > limits.max_video_seconds:
        raise HTTPException(413, f"{path.name}: is longer than {limits.max_video_seconds:g} s; cut it into parts")
    return info.frames


def _state_error(folder: Path, error: OSError) -> PolypsegError:
    return PolypsegError(str(disk_error(folder, error)).replace("--out", "--state"))
