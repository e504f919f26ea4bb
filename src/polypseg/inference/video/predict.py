"""A whole video: decode, segment, follow the polyps, draw and write, all at the same time."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import polypseg
from polypseg.bundle import INTENDED_USE
from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.options import check_batch_size, check_one_of
from polypseg.inference.outputs import frame_record
from polypseg.inference.video.files import Frame, VideoReader
from polypseg.inference.video.outputs import VideoOutputs
from polypseg.inference.video.threads import Stages
from polypseg.inference.video.tracking import Tracker

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

MAX_GAP = 1.0  # seconds; frames further apart are of two scenes, which are not averaged
_STATE_EVERY = 25  # frames after which the smoothed map is stored; as many are computed again on resuming
_WAITING = 2  # frames that may wait between two threads

Map = NDArray[np.float32]


@dataclass(frozen=True)
class VideoSummary:
    """What ``predict_video`` has done.

    Attributes:
        source: the video.
        files: what was written.
        timeline: the content of ``<stem>.timeline.json``.
        computed: frames that the network saw in this call; fewer than all after resuming.
        seconds: how long the call took.
    """

    source: Path
    files: list[Path]
    timeline: dict[str, Any] = field(repr=False)
    computed: int
    seconds: float

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return int(self.timeline["frames"])

    @property
    def tracks(self) -> list[dict[str, Any]]:
        """The polyps of the timeline, each as ``Track.to_dict``."""
        return list(self.timeline["tracks"])


def predict_video(
    segmenter: Segmenter,
    path: str | Path,
    out_dir: str | Path,
    *,
    overlay: bool = True,
    smoothing: float = 0.0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    batch_size: int = 4,
    video: VideoReader | None = None,
) -> VideoSummary:
    """Segment every frame of a video and follow its polyps.

    Writes into ``out_dir``, of a video ``<stem>.…``:

    - ``<stem>.jsonl``: a line a frame, as ``frame_record``, and of each polyp the ``id`` of its track (or null);
    - ``<stem>.timeline.json``: the tracks (``Track.to_dict``) and how they were made;
    - ``<stem>.mp4``: the video with the polyps drawn, if ``overlay``.

    Interrupted, however, it leaves ``<stem>.part.*``, which ``resume`` goes on from.

    Args:
        segmenter: the model.
        path: the video.
        out_dir: folder for the outputs; made if missing.
        overlay: whether to write the mp4.
        smoothing: weight of the past in an exponential average of the probability maps, 0 (none) to below 1; it
            begins anew after a gap of more than ``MAX_GAP`` seconds.
        resume: go on from an interrupted run of the same settings, or leave a complete one as it is.
        overwrite: replace outputs of an earlier run.
        progress: show a progress bar on stderr.
        batch_size: frames that the network works on at once.
        video: what reads the video in place of a ``VideoReader`` of its path, as one in another process; it is closed.

    Raises:
        UsageError: an option is out of its range, or an output would replace the video.
        PolypsegError: the video cannot be read; outputs are there already; the disk refuses. Also, at the very end and
            with all outputs complete, that the video is cut off or damaged: what could be decoded was answered.
    """
    smoother = Smoother(smoothing)
    check_batch_size(batch_size)
    check_one_of(resume, overwrite)
    started = time.perf_counter()
    with video or VideoReader(path) as reader:
        run = _Run(segmenter, reader, smoother, batch_size)
        outputs = VideoOutputs(
            Path(out_dir), reader.path.stem, run.settings, overlay=overlay, resume=resume, overwrite=overwrite,
            source=reader.path,
        )  # fmt: skip
        timeline = outputs.timeline
        if timeline is None:
            try:
                timeline = run.through(outputs, progress)
            finally:
                outputs.close()
    if timeline["problem"]:
        raise PolypsegError(timeline["problem"])
    return VideoSummary(reader.path, outputs.files, timeline, run.computed, time.perf_counter() - started)


class Smoother:
    """An exponential average over the probability maps of a video; it begins anew after a gap.

    Args:
        weight: of the past, 0 (no smoothing) to below 1.

    Attributes:
        average: the last map that was given back, at ``time`` seconds; None before the first.

    Raises:
        UsageError: the weight is out of its range.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise UsageError(f"--smoothing {weight:g}: must be at least 0 and below 1")
        self.weight = weight
        self.average: Map | None = None
        self.time = 0.0

    def __call__(self, probability: Map, time: float) -> Map:
        """The average after the next map, h×w float32 0..1, of the frame at ``time`` seconds."""
        if self.weight and self.average is not None and time - self.time <= MAX_GAP:
            past = np.float32(self.weight)
            probability = past * self.average + (1 - past) * probability
        self.average, self.time = probability, time
        return probability


def made_with(segmenter: Segmenter, tracker: Tracker) -> dict[str, Any]:
    """What decides the answers besides the video, in plain types."""
    return {**segmenter.settings, "tracker": tracker.settings, "polypseg": polypseg.__version__}


def with_ids(record: dict[str, Any], tracker: Tracker) -> dict[str, Any]:
    """The record with each polyp's ``id`` first; the tracker takes the frame in."""
    ids = tracker.update(record["frame"], record["time"], record["polyps"])
    return {**record, "polyps": [{"id": number, **polyp} for number, polyp in zip(ids, record["polyps"], strict=True)]}


def to_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON, without line feed."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class _Answer:
    """A frame on its way to the outputs: its record without ids, or its line where that was written before.

    ``average`` is the smoothed map after it, where that is to be stored.
    """

    frame: Frame
    record: dict[str, Any] | None = None
    line: str | None = None
    average: Map | None = None


class _Run:
    """One video through one segmenter: three threads, each a generator over the one before, and the caller's own."""

    def __init__(self, segmenter: Segmenter, reader: VideoReader, smoother: Smoother, batch_size: int) -> None:
        self.computed = 0
        self._segmenter, self._reader = segmenter, reader
        self._smoother, self._tracker = smoother, Tracker()
        self._batch_size = batch_size
        self.settings = {
            "source": reader.path.name,
            "source_bytes": reader.path.stat().st_size,
            **made_with(segmenter, self._tracker),
            "smoothing": smoother.weight,
            "batch_size": batch_size,
        }

    def through(self, outputs: VideoOutputs, progress: bool) -> dict[str, Any]:
        """Answer every frame and complete the outputs; the timeline."""
        outputs.start(self._reader.info)
        known = outputs.finished
        begin = self._where_to_begin(outputs)
        info = self._reader.info
        bar = tqdm(total=info.frames, unit="frame", desc=self._reader.path.name, disable=None if progress else True)
        with Stages() as stages, bar:
            frames = stages.ahead(self._decode(begin, outputs.overlay is not None), _WAITING)
            maps = stages.ahead(self._compute(frames, begin), _WAITING)
            answers = stages.ahead(self._answer(maps, known), _WAITING)
            count, seconds = 0, 0.0
            for answer in answers:
                record = with_ids(answer.record or json.loads(answer.line or ""), self._tracker)
                pixels = None if outputs.overlay is None else answer.frame.pixels
                outputs.add(pixels, answer.frame.pts, record, to_line(record) if answer.line is None else None)
                if answer.average is not None:
                    outputs.keep_state(answer.frame.index, answer.average)
                count, seconds = count + 1, answer.frame.time
                bar.update()
        timeline = {
            "intended_use": INTENDED_USE,
            **self.settings,
            "frames": count,
            "width": info.width,
            "height": info.height,
            "fps": round(info.fps, 6),
            "seconds": round(seconds + 1 / info.fps, 6),
            "problem": self._reader.problem,
            "tracks": self._tracker.timeline(),
        }
        outputs.complete(timeline)
        return timeline

    @property
    def _state_every(self) -> int:
        """Whole batches: resuming then begins one where an uninterrupted run did, and its answers are the same."""
        return self._batch_size * math.ceil(_STATE_EVERY / self._batch_size)

    def _where_to_begin(self, outputs: VideoOutputs) -> int:
        """The first frame that the network must see; the smoother is brought to where it was before that frame."""
        if not self._smoother.weight:
            return len(outputs.finished) // self._batch_size * self._batch_size
        state = outputs.kept_state()
        if state is None:
            return 0
        index, self._smoother.average = state
        self._smoother.time = json.loads(outputs.finished[index])["time"]
        return index + 1

    def _decode(self, begin: int, overlay: bool) -> Generator[Frame, None, None]:
        for frame in self._reader:
            if overlay or frame.index >= begin:
                frame.pixels  # noqa: B018  (converts, here and not in a later thread)
            yield frame

    def _compute(self, frames: Iterator[Frame], begin: int) -> Generator[tuple[Frame, Map | None], None, None]:
        for frame in itertools.islice(frames, begin):
            yield frame, None
        handed: deque[Frame] = deque()

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                handed.append(frame)
                yield frame.pixels

        for probability in self._segmenter.probabilities(pixels(), self._batch_size):
            self.computed += 1
            yield handed.popleft(), probability

    def _answer(self, maps: Iterator[tuple[Frame, Map | None]], known: list[str]) -> Generator[_Answer, None, None]:
        for frame, probability in maps:
            smoothed = None if probability is None else self._smoother(probability, frame.time)
            if frame.index < len(known):
                yield _Answer(frame, line=known[frame.index])
                continue
            assert smoothed is not None
            record = frame_record(
                self._segmenter.answer(smoothed, *frame.pixels.shape[:2], outside=outside_of(frame.pixels)),
                source=self._reader.path.name, model=self.settings["model"], index=frame.index, time=frame.time,
            )  # fmt: skip
            stored = self._smoother.weight and (frame.index + 1) % self._state_every == 0
            yield _Answer(frame, record, average=smoothed if stored else None)
