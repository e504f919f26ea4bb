"""Over everything that is named: read, segment and write, so that a broken file or a broken run loses nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from polypseg.errors import PolypsegError, UsageError, one_line
from polypseg.files import locked
from polypseg.io.outputs import RUN_FILES, write_run
from polypseg.io.pictures import read_frame
from polypseg.pipeline.archive.sources import is_archive
from polypseg.pipeline.archive.store import is_url, plain
from polypseg.pipeline.flow import Read, Unreadable, digest_of
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.plan import SEG_SUFFIX, Plan
from polypseg.pipeline.sources import gather
from polypseg.pipeline.stills import AHEAD, Still, StillOutputs, Written
from polypseg.pipeline.threads import in_order

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter
    from polypseg.io.dicom import DicomFrames
    from polypseg.io.dicom_seg import MadeBy

log = logging.getLogger("polypseg")

THREADS = 2  # that read, and as many that write; most of their time passes in C code


def predict(
    sources: str | Sequence[str],
    out: str | Path = "predictions",
    options: PredictOptions | None = None,
    *,
    model: str | Path | Sequence[str | Path] = (),
    **fields: Any,
) -> int:
    """Segment images, DICOM files and videos, or what a camera sees, or an archive, and write the chosen outputs.

    ``<stem>`` being a file's name without its ending, ``out`` gets of each image the ``FRAME_SUFFIXES`` of the chosen
    outputs; of each DICOM file the same, as ``<stem>-0001`` and so on if it has several frames, and
    ``<stem>.seg.dcm``; of each video the ``VIDEO_SUFFIXES``, without the first where ``save`` leaves ``overlay`` out;
    and of all images and DICOM frames together the ``RUN_FILES``. A file that cannot be read is reported in one line
    and skipped. Of an archive it gets what ``predict_archive`` writes.

    Args:
        sources: as ``sources.gather`` takes them; of an archive as ``archive.sources.Listing`` does. With ``live`` and
            none, the first camera is meant.
        out: folder for the outputs, of an archive also its URL; no source may lie in it.
        options: how it is done.
        model: bundles' or runs' folders; of several, their mean predictions; of none, the model that ships.
        fields: of ``PredictOptions``, in place of those of ``options``.

    Returns:
        The exit status: 0, or 1 if a source could not be read.

    Raises:
        UsageError: the options and sources contradict one another.
        PolypsegError: a source is missing or of no known kind; two sources would be written to the same file; an
            output is there already, or was not made as ``resume`` would make it; the model cannot be used; the disk
            refuses.
    """
    options = replace(options or PredictOptions(), **fields)
    sources = [sources] if isinstance(sources, str) else sources
    model = [model] if isinstance(model, str | Path) else model
    if options.engine is None and not any(is_archive(name) for name in sources):
        with locked(out):
            return _predict(sources, Path(out), options, model)
    from polypseg.pipeline.archive.run import predict_archive

    if options.live or options.smoothing:
        raise UsageError(f"--{'live' if options.live else 'smoothing'}: is for videos; an archive contains images")
    with contextlib.nullcontext() if is_url(str(out)) else locked(plain(str(out))):
        return predict_archive(sources, str(out), options, model=[str(one) for one in model])


def _predict(sources: Sequence[str], out: Path, options: PredictOptions, model: Sequence[str | Path]) -> int:
    """What ``predict`` does with files and cameras, in its own folder."""
    named = gather(["camera:0"] if options.live and not sources else sources, out)
    camera = named[0].camera
    if options.live and named[0].kind == "video" and len(named) == 1:
        camera = named[0].location
    if options.live and camera is None:
        raise UsageError("--live: is for one camera, as camera:0, or one video that stands for it")
    plan = Plan([] if camera is not None else named, out, options.outputs)
    if options.resume and plan.stills and "json" not in options.outputs:
        raise UsageError("--resume: needs json among --save, which records how a frame's outputs were made")
    if not options.resume and not options.overwrite:
        plan.refuse_existing()
    segmenter = options.load(model)
    log.info("%s", segmenter.reason)
    if camera is not None:
        from polypseg.pipeline.live import run_live

        run_live(segmenter, camera, out, options)
        return 0
    start = time.perf_counter()
    plan.make_folder()
    run = _Run(segmenter, plan, options)
    with logging_redirect_tqdm(), run.bar, run.readers, run.writers:
        run.stills()
    for path in plan.videos:
        run.video(path)
    print(one_line(f"{out}: {run.summary()}, {time.perf_counter() - start:.1f} s"))
    if run.failed:
        log.error("%d of %d could not be read, or not to the end", run.failed, len(named))
    return 1 if run.failed else 0


class _Run:
    """Goes through what was planned: reading, the network and writing at the same time, a few frames apart.

    Attributes:
        failed: how many sources could not be read.
    """

    def __init__(self, segmenter: Segmenter, plan: Plan, options: PredictOptions) -> None:
        self.plan, self.options = plan, options
        self.outputs = StillOutputs(segmenter, plan.out, options.outputs, options.resume)
        self.records: dict[Still, dict[str, Any]] = {}  # where the files of the whole run need them
        self.videos: list[str] = []  # what was found in each
        self.failed = self.frames = self.kept = self.with_polyps = self.polyps = 0
        hidden = None if options.progress and plan.stills else True
        self.bar = tqdm(total=len(plan.stills), unit="frame", disable=hidden)
        self.readers = ThreadPoolExecutor(THREADS, "polypseg-read")
        self.writers = ThreadPoolExecutor(THREADS, "polypseg-write")

    def stills(self) -> None:
        """Segment all images and DICOM files, and write the files of the whole run."""
        for error in self.plan.unreadable:
            self._fail(error)
        for written in self._written(self._images()):
            self._count(written.still, written.record)
        for frames, stills in self.plan.dicoms:
            try:
                self._dicom(frames, stills)
            except Unreadable as error:
                self._fail(error)
        if self.plan.stills:
            records = [self.records[still] for still in self.plan.stills if still in self.records]
            write_run(self.plan.out, records, self.options.outputs)

    def video(self, path: Path) -> None:
        """Segment a video, as ``predict_video`` does; one that cannot be read is reported and skipped."""
        from polypseg.pipeline.video import DamagedVideo, predict_video

        try:
            found = predict_video(self.outputs.segmenter, path, self.plan.out, self.options)
        except DamagedVideo as damage:
            self._fail(damage)
            found = damage.summary
        except PolypsegError as error:
            self._fail(error)
            return
        self.videos.append(f"{path.name}: {found.frames} frames, {len(found.tracks)} polyps")

    def summary(self) -> str:
        """What was found, for people."""
        kept = f" ({self.kept} kept from before)" if self.kept else ""
        pictures = f"{self.frames} pictures{kept}, {self.with_polyps} with polyps, {self.polyps} polyps"
        return "; ".join([pictures] * bool(self.frames) + self.videos) or "nothing"

    def _images(self) -> Iterator[Read[Still]]:
        """The images that are to be segmented."""
        batch_size = self.options.batch_size or 1
        images = self.plan.images
        for still, read in zip(images, in_order(self.readers, self._read, images, AHEAD + batch_size), strict=True):
            if isinstance(read, Read):
                yield read
            elif isinstance(read, Unreadable):
                self._fail(read)
                self.bar.update()
            else:
                self._count(still, read, kept=True)

    def _read(self, still: Still) -> Read[Still] | dict[str, Any] | Unreadable:
        """Read an image; its record, if its outputs are complete already; or why it cannot be read."""
        try:
            digest = digest_of(still.path)
            earlier = self.outputs.earlier(still, digest)
        except Unreadable as error:
            return error
        if earlier is not None:
            return earlier
        try:
            return Read(still, digest, read_frame(still.path))
        except PolypsegError as error:
            return Unreadable(error)

    def _dicom(self, frames: DicomFrames, stills: Sequence[Still]) -> None:
        """Segment the frames of a DICOM file, and write their masks as a DICOM Segmentation too.

        Raises:
            Unreadable: the file cannot be read, or not to its end; or it is missing what a segmentation needs of it.
        """
        from polypseg.io.dicom_seg import write_segmentation

        file = self.plan.out / f"{frames.path.stem}{SEG_SUFFIX}"
        digest = digest_of(frames.path)
        earlier = [self.outputs.earlier(still, digest) for still in stills]
        kept = [record for record in earlier if record is not None]
        if file.is_file() and len(kept) == len(stills):
            for still, record in zip(stills, kept, strict=True):
                self._count(still, record, kept=True)
            return
        masks: list[NDArray[np.uint8]] = []  # eight pixels a byte: those of a long video would fill the memory
        for written in self._written(_reads(frames, stills, digest)):
            self._count(written.still, written.record)
            masks.append(written.mask)
        shape = frames.height, frames.width
        unpacked = (np.unpackbits(mask, count=shape[0] * shape[1]).reshape(shape).view(bool) for mask in masks)
        try:
            write_segmentation(frames.path, unpacked, made_by(self.outputs.segmenter), file)
        except PolypsegError as error:  # as of a file without the identifiers to refer to
            raise Unreadable(error) from error

    def _written(self, reads: Iterable[Read[Still]]) -> Iterator[Written]:
        return self.outputs.through(reads, self.writers, self.options.batch_size or 1)

    def _fail(self, error: Exception) -> None:
        """Report a source that cannot be read."""
        log.error("%s", error)
        self.failed += 1

    def _count(self, still: Still, record: dict[str, Any], kept: bool = False) -> None:
        polyps = len(record["polyps"])
        self.frames += 1
        self.kept += kept
        self.with_polyps += polyps > 0
        self.polyps += polyps
        if not RUN_FILES.keys().isdisjoint(self.options.outputs):
            self.records[still] = record
        self.bar.update()


def _reads(frames: DicomFrames, stills: Sequence[Still], digest: str) -> Iterator[Read[Still]]:
    """The frames of a DICOM file. Raises ``Unreadable``."""
    try:
        for still, pixels in zip(stills, frames, strict=True):
            yield Read(still, digest, pixels)
    except PolypsegError as error:
        raise Unreadable(error) from error


def made_by(segmenter: Segmenter) -> MadeBy:
    """What a DICOM Segmentation says of what made it."""
    from polypseg.io.dicom_seg import MadeBy

    return MadeBy(
        segmenter.bundle.name, segmenter.hash, segmenter.threshold, segmenter.operating_point.min_confidence,
        segmenter.runtime.name, segmenter.precision,
    )  # fmt: skip
