"""Over everything that is named: read, segment and write, so that a broken file or a broken run loses nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import polypseg
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import disk_error, locked, part_prefix, read_json, sha256_file
from polypseg.inference.field_of_view import outside_of
from polypseg.io.outputs import (
    DEFAULT_OUTPUTS,
    FRAME_SUFFIXES,
    RUN_FILES,
    Output,
    frame_files,
    frame_record,
    with_shapes,
    write_frame,
    write_run,
)
from polypseg.io.pictures import read_frame
from polypseg.operating_point import OperatingPoint
from polypseg.pipeline.archive.sources import is_archive
from polypseg.pipeline.archive.store import is_url, plain
from polypseg.pipeline.options import check_batch_size, check_one_of, check_ray_only
from polypseg.pipeline.sources import Source, gather

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter
    from polypseg.io.dicom import DicomFrames

log = logging.getLogger("polypseg")

VIDEO_SUFFIXES = (".mp4", ".jsonl", ".timeline.json")  # of a video's outputs, after its stem
VIDEO_PARTS = (".part.new.npz", ".mp4..12345678.part")  # the longest of those that are there for a while
SEG_SUFFIX = ".seg.dcm"
THREADS = 2  # that read, and as many that write; most of their time passes in C code
AHEAD = 4  # frames that are read before they are needed, and answers that wait to be written

Frame = NDArray[np.uint8]


def predict(
    sources: Sequence[str],
    *,
    model: Sequence[str] = (),
    out: str | Path = "predictions",
    save: Sequence[Output] | None = None,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    tta: str | None = None,
    threshold: float | None = None,
    min_confidence: float | None = None,
    min_area: float | None = None,
    fill_holes: bool | None = None,
    batch_size: int | None = None,
    smoothing: float = 0.0,
    resume: bool = False,
    overwrite: bool = False,
    live: bool = False,
    engine: str | None = None,
    address: str | None = None,
    workers: int = 0,
    partition: int = 128,
    memory: int = 512,
    progress: bool = True,
) -> int:
    """Segment images, DICOM files and videos, or what a camera sees, and write the chosen outputs.

    ``<stem>`` being a file's name without its ending, ``out`` gets of each image the ``FRAME_SUFFIXES`` of the chosen
    outputs; of each DICOM file the same, as ``<stem>-0001`` and so on if it has several frames, and
    ``<stem>.seg.dcm``; of each video the ``VIDEO_SUFFIXES``, without the first where ``save`` leaves ``overlay`` out;
    and of all images and DICOM frames together the ``RUN_FILES``. A file that cannot be read is told in one line, and
    the others are gone on with.

    Args:
        sources: as ``sources.gather`` takes them.
        model: bundles' or runs' folders; of several, their mean answers; of none, the model that ships.
        out: folder for the outputs; no source may lie in it.
        save: the outputs; by default ``mask`` and ``json`` of frames, and the overlay of videos.
        runtime: as ``polypseg.load`` takes it; likewise all up to ``fill_holes``.
        batch_size: frames that are computed at once, 1 or more; by default 1 of pictures, and as ``predict_video`` has
            it of videos. Of several, a frame's answer may differ by its company, in the last digits.
        smoothing: videos only; as ``predict_video`` takes it.
        resume: keep what is complete and was made of the same file by the same model; needs the ``json`` output.
        overwrite: replace outputs that are there already.
        live: drop late frames and tell latency, as it is done with a camera anyway; for a video that is to be played
            like one. Without sources, the first camera is meant.
        engine: ``local`` or ``ray`` make an archive's results of the sources, as ``predict_archive`` does, which is
            also done where one is a manifest or a URL; None, of files, what is said above.
        address: archives only, as ``predict_archive`` takes it; likewise ``workers``, ``partition`` and ``memory``.
        progress: show a progress bar on stderr, if that is a terminal.

    Returns:
        The exit status: 0, or 1 if a source could not be read.

    Raises:
        UsageError: the arguments contradict one another.
        PolypsegError: a source is missing or of no known kind; two sources would be written to the same file; an
            output is there already, or was not made as ``resume`` would make it; the model cannot be used; the disk
            refuses.
    """
    point: dict[str, Any] = {
        name: value
        for name, value in (
            ("threshold", threshold), ("min_confidence", min_confidence), ("min_area", min_area),
            ("fill_holes", fill_holes),
        )
        if value is not None
    }  # fmt: skip
    OperatingPoint().override(**point)  # what is out of its range is told before the work
    if engine is not None or any(is_archive(name) for name in sources):
        from polypseg.pipeline.archive.run import predict_archive

        if live or smoothing:
            raise UsageError(f"--{'live' if live else 'smoothing'}: is for videos; an archive holds images")
        with contextlib.nullcontext() if is_url(str(out)) else locked(plain(str(out))):
            return predict_archive(
                sources, model=model, out=str(out), save=save, runtime=runtime, device=device, precision=precision,
                threads=threads, tta=tta, point=point, batch_size=batch_size, engine=engine, address=address,
                workers=workers, partition=partition, memory=memory, resume=resume, overwrite=overwrite,
                progress=progress,
            )  # fmt: skip
    check_ray_only(engine, address, workers)
    check_batch_size(batch_size)
    if not 0 <= smoothing < 1:
        raise UsageError(f"--smoothing {smoothing:g}: must be at least 0 and below 1")
    check_one_of(resume, overwrite)
    with locked(out):
        return _predict(
            sources, model, Path(out), save, (runtime, device, precision, threads, tta), point, batch_size, smoothing,
            resume, overwrite, live, progress,
        )  # fmt: skip


def _predict(
    sources: Sequence[str],
    model: Sequence[str],
    out: Path,
    save: Sequence[Output] | None,
    how: tuple[str, str, str, int, str | None],
    point: dict[str, Any],
    batch_size: int | None,
    smoothing: float,
    resume: bool,
    overwrite: bool,
    live: bool,
    progress: bool,
) -> int:
    """What ``predict`` does with files and cameras, in its own folder; ``how`` and ``point`` are for ``load``."""
    chosen = DEFAULT_OUTPUTS if save is None else tuple(save)
    overlay = save is None or "overlay" in save  # of videos
    named = gather(["camera:0"] if live and not sources else sources, out)
    camera = named[0].camera
    if live and named[0].kind == "video" and len(named) == 1:
        camera = named[0].location
    if live and camera is None:
        raise UsageError("--live: is for one camera, as camera:0, or one video that stands for it")
    plan = _Plan([] if camera is not None else named, out, chosen)
    if resume and plan.stills and "json" not in chosen:
        raise UsageError("--resume: needs json among --save, which tells how a frame's outputs were made")
    if not resume and not overwrite:
        plan.refuse_existing()
    segmenter = polypseg.load(list(model) or None, *how, **point)
    log.info("%s", segmenter.reason)
    if camera is not None:
        from polypseg.pipeline.live import run_live

        run_live(segmenter, camera, out, overlay=overlay, smoothing=smoothing)
        return 0
    start = time.perf_counter()
    plan.make_folder()
    bar = tqdm(total=len(plan.stills), unit="frame", disable=None if progress and plan.stills else True)
    with logging_redirect_tqdm(), bar, _Run(segmenter, out, chosen, batch_size or 1, resume, bar) as run:
        for error in plan.unreadable:
            run.fail(error)
        run.images(plan.images)
        for frames, stills in plan.dicoms:
            run.dicom(frames, stills)
    if plan.stills:
        write_run(out, [run.records[still] for still in plan.stills if still in run.records], chosen)
    for path in plan.videos:
        run.video(
            path, overlay=overlay, smoothing=smoothing, resume=resume, overwrite=overwrite,
            progress=progress, **({} if batch_size is None else {"batch_size": batch_size}),
        )  # fmt: skip
    print(f"{out}: {run.summary()}, {time.perf_counter() - start:.1f} s")
    if run.failed:
        log.error("%d of %d could not be read, or not to the end", run.failed, len(named))
    return 1 if run.failed else 0


@dataclass(frozen=True)
class Still:
    """A frame that is read and written on its own: an image, or one frame of a DICOM file.

    Attributes:
        path: the file that holds it.
        stem: what the names of its outputs begin with.
        index: its number in its file, from 0; None for an image.
        time: seconds from its file's first frame; None where the file does not say.
    """

    path: Path
    stem: str
    index: int | None = None
    time: float | None = None


class _Plan:
    """What is to be read and which files that will become; no frame is decoded yet.

    Raises:
        PolypsegError: two sources would be written to the same file.
    """

    def __init__(self, sources: Iterable[Source], out: Path, save: Sequence[Output]) -> None:
        self.out = out
        self.stills: list[Still] = []  # all frames of images and DICOM files, in order
        self.images: list[Still] = []
        self.dicoms: list[tuple[DicomFrames, list[Still]]] = []
        self.videos: list[Path] = []
        self.unreadable: list[Exception] = []
        self.files: list[Path] = []
        self._owners: dict[str, str] = {}
        self._reserve([out / RUN_FILES[output] for output in save if output in RUN_FILES], "what the whole run writes")
        self._longest = _longest_name(out)
        for source in sources:
            try:
                self._add(source, save)
            except _Unreadable as error:
                self.unreadable.append(error)

    def _add(self, source: Source, save: Sequence[Output]) -> None:
        """Plan for one source. Raises ``_Unreadable`` where nothing can become of it."""
        if source.problem:
            raise _Unreadable(source.problem)
        path, suffixes = source.path, [FRAME_SUFFIXES[one] for one in save if one in FRAME_SUFFIXES]
        if source.kind == "video":
            self._check_length(path, [*VIDEO_SUFFIXES, *VIDEO_PARTS])
            self.videos.append(path)
            self._reserve([self.out / f"{path.stem}{suffix}" for suffix in VIDEO_SUFFIXES], source.location)
            return
        if source.kind == "image":
            self._check_length(path, suffixes)
            stills = [Still(path, path.stem)]
            self.images += stills
        else:
            self._check_length(path, [SEG_SUFFIX, *(f"-0000000{suffix}" for suffix in suffixes)])
            stills = self._stills_of_dicom(path)
        for still in stills:
            self._reserve(frame_files(self.out, still.stem, save), source.location)
        self.stills += stills

    def _check_length(self, path: Path, suffixes: Sequence[str]) -> None:
        """Refuse a file whose outputs would have longer names than the folder can hold."""
        room = self._longest - max(len(suffix) for suffix in [*suffixes, ""])
        if len(os.fsencode(path.stem)) > room:
            raise _Unreadable(f"{path}: its outputs' names would be too long; rename it to {room} bytes or less")

    def refuse_existing(self) -> None:
        """Raise where an output is there already."""
        there = [file for file in self.files if file.exists()]
        if there:
            more = f" ({len(there) - 1} more outputs too)" if len(there) > 1 else ""
            raise PolypsegError(f"{there[0]}: is there already{more}; use --resume, --overwrite or another --out")

    def make_folder(self) -> None:
        """Make ``out``, and remove what a killed writer of one of these outputs left in it."""
        beginnings = {part_prefix(file.name) for file in self.files}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for remnant in self.out.glob(".*.part"):
                if remnant.name.removesuffix(".part").rpartition(".")[0] + "." in beginnings:
                    remnant.unlink()
        except OSError as error:
            raise disk_error(self.out, error) from error

    def _stills_of_dicom(self, path: Path) -> list[Still]:
        from polypseg.io.dicom import read_dicom

        try:
            frames = read_dicom(path)
        except PolypsegError as error:
            raise _Unreadable(error) from error
        count = len(frames)
        stems = [path.stem] if count == 1 else [f"{path.stem}-{number:04d}" for number in range(1, count + 1)]
        times = frames.times or [None] * count
        stills = [Still(path, stem, index, times[index]) for index, stem in enumerate(stems)]
        self.dicoms.append((frames, stills))
        self._reserve([self.out / f"{path.stem}{SEG_SUFFIX}"], str(path))
        return stills

    def _reserve(self, files: Iterable[Path], owner: str) -> None:
        for file in files:
            # As file systems see it that know neither case nor the two ways to write an accent.
            other = self._owners.setdefault(unicodedata.normalize("NFC", file.name).casefold(), owner)
            if other != owner:
                advice = "rename one, or give it a run and an --out of its own"
                raise PolypsegError(f"{owner}: would be written to {file}, as {other} would; {advice}")
            self.files.append(file)


def _longest_name(folder: Path) -> int:
    """Bytes that a file's name may have in a folder, which may be missing yet."""
    there = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), Path("/"))
    try:
        return os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # as on Windows
        return 255


class _Unreadable(Exception):
    """A source that cannot be read; its message is the line that says so."""


@dataclass(frozen=True)
class _Read:
    """A frame to be segmented: H×W×3 uint8 RGB, and the SHA-256 of its file."""

    still: Still
    digest: str
    frame: Frame


@dataclass(frozen=True)
class _Kept:
    """A frame whose outputs are there already, and its record."""

    still: Still
    record: dict[str, Any]


class _Run:
    """Segments what was planned: reading, the network and writing at the same time, a few frames apart.

    Attributes:
        records: of each frame, where the files of the whole run need them.
        failed: how many sources could not be read.
    """

    def __init__(
        self, segmenter: Segmenter, out: Path, save: Sequence[Output], batch_size: int, resume: bool, bar: tqdm[Any]
    ) -> None:
        self.segmenter, self.out, self.save = segmenter, out, save
        self.batch_size, self.resume, self.bar = batch_size, resume, bar
        # All that decides an answer besides the file itself; a frame made with anything else is not kept.
        self.made_with = segmenter.settings
        self.records: dict[Still, dict[str, Any]] = {}
        self.videos: list[str] = []  # what was found in each
        self.failed = self.frames = self.kept = self.with_polyps = self.polyps = 0
        self._readers = ThreadPoolExecutor(THREADS, "polypseg-read")
        self._writers = ThreadPoolExecutor(THREADS, "polypseg-write")

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until what is being written is whole."""
        self._readers.shutdown(cancel_futures=True)
        self._writers.shutdown()

    def fail(self, error: Exception) -> None:
        """Tell of a source that cannot be read."""
        log.error("%s", error)
        self.failed += 1

    def summary(self) -> str:
        """What was found, for people."""
        kept = f" ({self.kept} kept from before)" if self.kept else ""
        pictures = f"{self.frames} pictures{kept}, {self.with_polyps} with polyps, {self.polyps} polyps"
        return "; ".join([pictures] * bool(self.frames) + self.videos) or "nothing"

    def images(self, stills: Iterable[Still]) -> None:
        """Segment images; one that cannot be read is told and passed over."""
        coming = iter(stills)
        reading: deque[Future[_Read | _Kept]] = deque()

        def frames() -> Iterator[_Read]:
            while True:
                while len(reading) < AHEAD + self.batch_size and (still := next(coming, None)) is not None:
                    reading.append(self._readers.submit(self._read, still))
                if not reading:
                    return
                try:
                    read = reading.popleft().result()
                except _Unreadable as error:
                    self.fail(error)
                    self.bar.update()
                    continue
                if isinstance(read, _Read):
                    yield read
                else:
                    self._count(read.still, read.record, kept=True)

        self._segment(frames())

    def dicom(self, frames: DicomFrames, stills: Sequence[Still]) -> None:
        """Segment the frames of a DICOM file, and write their masks as a DICOM Segmentation too."""
        from polypseg.io.dicom import write_segmentation

        segmentation = self.out / f"{frames.path.stem}{SEG_SUFFIX}"
        shape = frames.height, frames.width
        masks: list[NDArray[np.uint8]] = []  # eight pixels a byte: those of a long video would fill the memory

        def read() -> Iterator[_Read]:
            try:
                for still, frame in zip(stills, frames, strict=True):
                    yield _Read(still, digest, frame)
            except PolypsegError as error:
                raise _Unreadable(error) from error

        try:
            digest = _digest(frames.path)
            earlier = [self._earlier(still, digest) for still in stills]
            kept = [one for one in earlier if one is not None]
            if segmentation.is_file() and len(kept) == len(stills):
                for one in kept:
                    self._count(one.still, one.record, kept=True)
                return
            self._segment(read(), masks)
        except _Unreadable as error:
            self.fail(error)
            return
        unpacked = (np.unpackbits(mask, count=shape[0] * shape[1]).reshape(shape).view(bool) for mask in masks)
        try:
            write_segmentation(frames.path, unpacked, self.segmenter, segmentation)
        except PolypsegError as error:  # as of a file without the identifiers to refer to
            self.fail(error)

    def video(self, path: Path, **options: Any) -> None:
        """Segment a video, as ``predict_video`` does; one that cannot be read is told and passed over."""
        from polypseg.pipeline.video import DamagedVideo, predict_video

        try:
            found = predict_video(self.segmenter, path, self.out, **options)
        except DamagedVideo as damage:
            self.fail(damage)
            found = damage.summary
        except PolypsegError as error:
            self.fail(error)
            return
        self.videos.append(f"{path.name}: {found.frames} frames, {len(found.tracks)} polyps")

    def _read(self, still: Still) -> _Read | _Kept:
        """Read an image, unless its outputs are complete already."""
        digest = _digest(still.path)
        earlier = self._earlier(still, digest)
        if earlier is not None:
            return earlier
        try:
            return _Read(still, digest, read_frame(still.path))
        except PolypsegError as error:
            raise _Unreadable(error) from error

    def _earlier(self, still: Still, digest: str) -> _Kept | None:
        """A frame whose outputs are complete; None where they are not.

        Raises:
            PolypsegError: they were made of another file, by another model or with other settings.
        """
        file = self.out / f"{still.stem}{FRAME_SUFFIXES['json']}"
        if not self.resume or not file.is_file():
            return None
        record = read_json(file)
        wanted = {"source": still.path.name, "source_sha256": digest, **self.made_with}
        other = [key for key, value in wanted.items() if not isinstance(record, dict) or record.get(key) != value]
        if other:
            raise PolypsegError(f"{file}: was made with another {other[0]}; use --overwrite or another --out")
        complete = all(path.is_file() for path in frame_files(self.out, still.stem, self.save))
        if "coco" in self.save:  # which is made of the records
            complete &= all("segmentation" in polyp for polyp in record["polyps"])
        return _Kept(still, record) if complete else None

    def _segment(self, frames: Iterable[_Read], masks: list[NDArray[np.uint8]] | None = None) -> None:
        """Segment frames and write what was chosen of each; ``masks`` gets their masks, packed, in order."""
        waiting: deque[_Read] = deque()
        writing: deque[tuple[Still, Future[tuple[dict[str, Any], NDArray[np.uint8]]]]] = deque()

        def pixels() -> Iterator[Frame]:
            for read in frames:
                waiting.append(read)
                yield read.frame

        def finish() -> None:
            still, future = writing.popleft()
            record, mask = future.result()
            self._count(still, record)
            if masks is not None:
                masks.append(mask)

        try:
            for probability in self.segmenter.probabilities(pixels(), self.batch_size):
                read = waiting.popleft()
                writing.append((read.still, self._writers.submit(self._write, read, probability)))
                if len(writing) > AHEAD:
                    finish()
        finally:  # what was segmented is written, whatever ends the run
            while writing:
                finish()

    def _write(self, read: _Read, probability: NDArray[np.float32]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Write a frame's outputs; returns its record and its mask, eight pixels a byte."""
        still = read.still
        answer = self.segmenter.answer(probability, *read.frame.shape[:2], outside=outside_of(read.frame))
        record = frame_record(
            answer, source=still.path.name, model=self.segmenter.hash, index=still.index, time=still.time
        )
        record = {**record, **self.made_with, "source_sha256": read.digest}
        if "coco" in self.save:
            record = with_shapes(record, answer)
        write_frame(self.out, still.stem, read.frame, answer, record, self.save)
        return record, np.packbits(answer.mask)

    def _count(self, still: Still, record: dict[str, Any], kept: bool = False) -> None:
        polyps = len(record["polyps"])
        self.frames += 1
        self.kept += kept
        self.with_polyps += polyps > 0
        self.polyps += polyps
        if not RUN_FILES.keys().isdisjoint(self.save):
            self.records[still] = record
        self.bar.update()


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise _Unreadable(f"{path}: cannot be read ({error.strerror}); replace it or remove it") from error
