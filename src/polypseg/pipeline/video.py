"""A whole video: decode, segment, follow the polyps, draw and write, all at the same time."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from polypseg.bundle import INTENDED_USE
from polypseg.errors import PolypsegError
from polypseg.files import sha256_file
from polypseg.inference.quality import UNLIKE, Quality, QualityMeter
from polypseg.inference.tracking import Tracker
from polypseg.io.outputs import frame_record
from polypseg.io.video import VideoInfo, VideoReader
from polypseg.io.video_outputs import VideoOutputs
from polypseg.pipeline.flow import Map, Readable, segmentation, with_maps
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.threads import Stages
from polypseg.version import __version__

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter
    from polypseg.segmentation import Segmentation

BATCH_SIZE = 4  # frames, of a video
MAX_GAP = 1.0  # seconds; frames further apart are of two scenes, which are not averaged
_STATE_EVERY = 25  # frames after which the smoothed map is stored; as many are computed again on resuming
_WAITING = 2  # frames that may wait between two threads


class Frame(Readable, Protocol):
    """A frame of a video, as ``io.video.Frame``."""

    @property
    def index(self) -> int:
        """Its number, from 0."""
        ...

    @property
    def pts(self) -> int:
        """When it is shown, in units of the time base."""
        ...

    @property
    def time(self) -> float:
        """When it is shown, seconds."""
        ...


class Video(Protocol):
    """What reads a video, as ``io.video.VideoReader``."""

    path: Path
    info: VideoInfo
    problem: str | None

    def __iter__(self) -> Iterator[Frame]: ...
    def __enter__(self) -> Video: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


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


class DamagedVideo(PolypsegError):
    """A video is cut off or damaged; what could be decoded was predicted, and all outputs are complete.

    Attributes:
        summary: what was done.
    """

    def __init__(self, summary: VideoSummary) -> None:
        super().__init__(summary.timeline["problem"])
        self.summary = summary


def predict_video(
    segmenter: Segmenter,
    path: str | Path,
    out_dir: str | Path,
    options: PredictOptions = PredictOptions(progress=False),  # noqa: B008  (frozen)
    *,
    video: Video | None = None,
    computed: Callable[[], object] = lambda: None,
    **fields: Any,
) -> VideoSummary:
    """Segment every frame of a video and follow its polyps.

    Writes into ``out_dir``, of a video ``<stem>.…``:

    - ``<stem>.jsonl``: a line a frame, as ``video_record`` and ``follow`` make it;
    - ``<stem>.timeline.json``: the tracks (``Track.to_dict``) and how they were made;
    - ``<stem>.mp4``: the video with the polyps drawn that have a number, unless ``save`` leaves ``overlay`` out.

    Interrupted, however, it leaves ``<stem>.part.*``, which ``resume`` continues.

    Args:
        segmenter: the model.
        path: the video.
        out_dir: folder for the outputs; made if missing.
        options: how it is done. Smoothing begins anew after a gap of more than ``MAX_GAP`` seconds.
        video: what reads the video in place of a ``VideoReader`` of its path, as one in another process; it is closed.
        computed: called after each frame that the network saw; what it raises ends the run.
        fields: of ``PredictOptions``, in place of those of ``options``.

    Raises:
        UsageError: an option is out of its range, or an output would replace the video.
        PolypsegError: the video cannot be read; outputs are there already; the disk refuses.
        DamagedVideo: at the very end and with all outputs complete.
    """
    options = replace(options, **fields)
    started = time.perf_counter()
    with video or VideoReader(path) as reader:
        run = _Run(segmenter, reader, options, computed)
        outputs = VideoOutputs(
            Path(out_dir), reader.path.stem, run.settings, overlay=options.overlay, resume=options.resume,
            overwrite=options.overwrite, source=reader.path,
        )  # fmt: skip
        timeline = outputs.timeline
        if timeline is None:
            try:
                timeline = run.through(outputs, options.progress)
            finally:
                outputs.close()
    summary = VideoSummary(reader.path, outputs.files, timeline, run.computed, time.perf_counter() - started)
    if timeline["problem"]:
        raise DamagedVideo(summary)
    return summary


class Smoother:
    """An exponential average over the probability maps of a video; it begins anew after a gap.

    Args:
        weight: of the past, 0 (no smoothing) to below 1.

    Attributes:
        average: the last map that was given back, at ``time`` seconds; None before the first.
    """

    def __init__(self, weight: float) -> None:
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
    """What decides the predictions besides the video, in plain types."""
    return {**segmenter.settings, "tracker": tracker.settings, "polypseg": __version__}


def video_record(segmentation: Segmentation, quality: Quality, keep: float, **names: Any) -> dict[str, Any]:
    """A frame's record before its polyps are followed.

    Args:
        segmentation: the frame's.
        quality: the frame's.
        keep: regions of at least this confidence are listed though they are no polyps by the operating point.
        names: as ``frame_record`` takes them.

    Returns:
        what ``frame_record`` gives; ``candidates``, the regions of too little confidence, as polyps are listed; and
        ``quality``.
    """
    record = frame_record(segmentation, **names)
    less = [one for one in segmentation.candidates if not one.confirmed and one.confidence >= keep]
    return {**record, "candidates": [one.to_dict() for one in less], "quality": quality.to_dict()}


def follow(record: dict[str, Any], tracker: Tracker, jump: bool) -> dict[str, Any]:
    """The record after the tracker has taken the frame in.

    Each region has the ``id`` of its track first, or null where that is not confirmed; what a track has is among the
    ``polyps``, whatever its confidence. ``carried`` lists the regions that stand for tracks that the frame does not
    show.
    """
    found = {id(one) for one in record["polyps"]}
    regions = _regions(record)
    followed = tracker.update(record["frame"], record["time"], regions, record["quality"]["poor"], jump)
    polyps: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for region, number, kept in zip(regions, followed.ids, followed.kept, strict=True):
        (polyps if kept or id(region) in found else candidates).append({"id": number, **region})
    return {**record, "polyps": polyps, "candidates": candidates, "carried": followed.carried}


def numbers_of(record: Mapping[str, Any]) -> set[int]:
    """The tracks that are drawn into a frame: those it shows and those that are carried over."""
    return {one["id"] for one in (*record["polyps"], *record["carried"]) if one["id"] is not None}


def recall(record: Mapping[str, Any], tracker: Tracker) -> None:
    """Bring a tracker to where it was after a frame, by its record."""
    quality = record["quality"]
    tracker.update(record["frame"], record["time"], _regions(record), quality["poor"], quality["likeness"] < UNLIKE)


def _regions(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All regions of a record in one order, whatever list they are in."""
    return sorted(record["polyps"] + record["candidates"], key=lambda one: (-one["area"], one["box"]))


def to_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON, without line feed."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class _Predicted:
    """A frame on its way to the outputs: its record before it was followed, or its line where that was written before.

    ``jump`` is whether it shows another view than its predecessor; ``average`` the smoothed map after it, where that is
    to be stored.
    """

    frame: Frame
    record: dict[str, Any] | None = None
    jump: bool = False
    line: str | None = None
    average: Map | None = None


class _Run:
    """One video through one segmenter: three threads, each a generator over the one before, and the caller's own."""

    def __init__(
        self, segmenter: Segmenter, reader: Video, options: PredictOptions, computed: Callable[[], object]
    ) -> None:
        self.computed = 0
        self._segmenter, self._reader, self._tell = segmenter, reader, computed
        self._smoother, self._tracker = Smoother(options.smoothing), Tracker.at(segmenter.operating_point)
        self._batch_size = BATCH_SIZE if options.batch_size is None else options.batch_size
        self.settings = {
            "source": reader.path.name,
            "source_sha256": sha256_file(reader.path),
            **made_with(segmenter, self._tracker),
            "smoothing": options.smoothing,
            "batch_size": self._batch_size,
        }

    def through(self, outputs: VideoOutputs, progress: bool) -> dict[str, Any]:
        """Predict every frame and complete the outputs; the timeline."""
        outputs.start(self._reader.info)
        info = self._reader.info
        done = len(outputs.finished)
        hidden = None if progress else True
        bar = tqdm(total=info.frames, initial=done, unit="frame", desc=self._reader.path.name, disable=hidden)
        with Stages() as stages, bar:
            count, seconds = 0, 0.0
            for one in self._predicted(outputs, stages):
                record = self._followed(one)
                shown = outputs.overlay is not None and one.frame.index >= outputs.drawn
                pixels = one.frame.pixels if shown else None
                outputs.add(pixels, one.frame.pts, record, to_line(record) if one.line is None else None)
                if one.average is not None:
                    outputs.keep_state(one.frame.index, one.average)
                count, seconds = count + 1, one.frame.time
                bar.update(one.line is None)
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

    def _followed(self, one: _Predicted) -> dict[str, Any]:
        if one.record is not None:
            return follow(one.record, self._tracker, one.jump)
        record: dict[str, Any] = json.loads(one.line or "")
        recall(record, self._tracker)
        return record

    @property
    def _state_every(self) -> int:
        """Whole batches: resuming then begins one where an uninterrupted run did, and its predictions are the same."""
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

    def _predicted(self, outputs: VideoOutputs, stages: Stages) -> Iterator[_Predicted]:
        begin = self._where_to_begin(outputs)
        # Before these nothing is computed or drawn: their frames are decoded, as what follows rests on them.
        needed = min(begin, outputs.drawn) if outputs.overlay is not None else begin
        frames = stages.ahead(self._decode(min(needed, max(0, len(outputs.finished) - 1))), _WAITING)
        maps = stages.ahead(self._compute(frames, begin), _WAITING)
        return stages.ahead(self._found(maps, outputs.finished), _WAITING)

    def _decode(self, begin: int) -> Generator[Frame, None, None]:
        for frame in self._reader:
            if frame.index >= begin:
                frame.pixels  # noqa: B018  (converts, here and not in a later thread)
            yield frame

    def _compute(self, frames: Iterator[Frame], begin: int) -> Generator[tuple[Frame, Map | None], None, None]:
        for frame in itertools.islice(frames, begin):
            yield frame, None
        yield from with_maps(self._segmenter, frames, self._batch_size, self._count)

    def _count(self) -> None:
        self.computed += 1
        self._tell()

    def _found(self, maps: Iterator[tuple[Frame, Map | None]], known: list[str]) -> Generator[_Predicted, None, None]:
        meter = QualityMeter()
        for frame, probability in maps:
            smoothed = None if probability is None else self._smoother(probability, frame.time)
            if frame.index < len(known):
                meter.recall(json.loads(known[frame.index])["quality"], frame.time)
                if frame.index + 1 == len(known):
                    meter.look_back(frame.pixels)
                yield _Predicted(frame, line=known[frame.index])
                continue
            assert smoothed is not None
            quality = meter.measure(frame.pixels, frame.time)
            record = video_record(
                segmentation(self._segmenter, frame.pixels, smoothed),
                quality, self._tracker.keep,
                source=self._reader.path.name, model=self.settings["model"], index=frame.index, time=frame.time,
            )  # fmt: skip
            stored = self._smoother.weight and (frame.index + 1) % self._state_every == 0
            yield _Predicted(frame, record, quality.jump, average=smoothed if stored else None)
