"""A camera, live: always its newest frame, and how long the prediction took.

OpenCV opens the camera by its number, the one way that is alike on Linux, macOS and Windows, or by its URL. A thread
puts its frames into a mailbox with one slot, where a newer frame replaces one that the network did not get to: frames
are dropped, and the delay does not grow. **Latency** is the time from a frame's arrival from the driver to its
prediction.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polypseg.bundle import INTENDED_USE
from polypseg.inference.quality import Quality, QualityMeter
from polypseg.inference.tracking import Tracker
from polypseg.io.camera import PATIENCE, CameraGone, camera_frames, camera_name
from polypseg.io.video import VideoInfo, VideoReader
from polypseg.io.video_outputs import VideoOutputs
from polypseg.pipeline.flow import Pixels, segmentation
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.threads import Stages
from polypseg.pipeline.video import Smoother, follow, made_with, numbers_of, to_line, video_record
from polypseg.segmentation import Segmentation

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

_SILENCE = 10.0  # seconds without a frame after which a camera is taken for gone, besides a stream's PATIENCE
_REPORT_EVERY = 1.0  # seconds
_JOIN = 2.0  # seconds that a driver gets to let go


@dataclass(frozen=True)
class LiveSummary:
    """What ``run_live`` has done.

    Attributes:
        frames: predicted.
        dropped: not predicted, because a newer one was there.
        seconds: from the first frame to the last.
        latency_p50, latency_p95: milliseconds.
        files: what was written.
    """

    frames: int
    dropped: int
    seconds: float
    latency_p50: float
    latency_p95: float
    files: list[Path]


def run_live(
    segmenter: Segmenter,
    camera: int | str | Iterable[Pixels],
    out_dir: str | Path | None = None,
    options: PredictOptions = PredictOptions(),  # noqa: B008  (frozen)
) -> LiveSummary:
    """Segment what a camera sees until Ctrl-C, or until it ends; print latency once a second.

    With ``out_dir`` it writes there ``live-<date>-<time>.jsonl``, ``.timeline.json`` and, unless ``save`` leaves
    ``overlay`` out, ``.mp4``, as ``predict_video`` does, of the frames that were predicted; times count from the first.

    Args:
        segmenter: the model.
        camera: its number; its URL; a video file, played at its own pace; or H×W×3 uint8 RGB frames as they arrive.
        out_dir: folder for the outputs; None writes nothing.
        options: ``save`` and ``smoothing`` are heeded.

    Raises:
        PolypsegError: there is no such camera; or, with all outputs complete, it stopped sending frames; or the disk
            refuses.
    """
    smoother = Smoother(options.smoothing)
    name = camera_name(camera)
    frames = _frames_of(camera) if isinstance(camera, int | str) else iter(camera)
    first = next(frames, None)
    if first is None:
        raise CameraGone(f"{name}: sends no frame; check its cable, and that no other program uses it")
    height, width = first.shape[:2]
    silence = _SILENCE + (PATIENCE if isinstance(camera, str) and "://" in camera else 0)
    tracker, meter, mailbox = Tracker.at(segmenter.operating_point), _Meter(), _Mailbox(name, silence)
    settings = {"source": name, **made_with(segmenter, tracker), "smoothing": options.smoothing}
    outputs = None
    if out_dir is not None:
        stem = datetime.now().strftime("live-%Y%m%d-%H%M%S")
        outputs = VideoOutputs(Path(out_dir), stem, settings, overlay=options.overlay)
    gone: CameraGone | None = None
    try:
        if outputs is not None:
            outputs.start(VideoInfo(width, height, fps=25.0, time_base=Fraction(1, 1000)))
        with Stages() as stages, mailbox.filled_from(itertools.chain([first], frames)):
            for one in stages.ahead(_predicted(segmenter, smoother, mailbox), 1):
                record = video_record(
                    one.segmentation, one.quality, tracker.keep,
                    source=name, model=settings["model"], index=meter.frames, time=one.time,
                )  # fmt: skip
                record = follow(record, tracker, one.quality.jump)
                if outputs is not None:
                    outputs.add(one.pixels, round(one.time * 1000), record, to_line(record))
                meter.add(one, mailbox.dropped, len(numbers_of(record)))
    except KeyboardInterrupt:  # how a session ends
        pass
    except CameraGone as error:
        gone = error
    except BaseException:
        if outputs is not None:
            outputs.close()
        raise
    summary = meter.summary(mailbox.dropped, outputs.files if outputs is not None else [])
    if outputs is not None:
        outputs.complete(
            {
                "intended_use": INTENDED_USE,
                **settings,
                "frames": summary.frames,
                "width": width,
                "height": height,
                "fps": round(summary.frames / max(summary.seconds, 1e-3), 6),
                "seconds": summary.seconds,
                "problem": None if gone is None else str(gone),
                "tracks": tracker.timeline(),
            }
        )
    end_of_line = "\n" if sys.stdout.isatty() else ""  # of the seconds' line, which is written over again and again
    print(
        f"{end_of_line}{name}: {summary.frames} frames predicted in {summary.seconds:.1f} s, "
        f"{summary.dropped} dropped, latency p50 {summary.latency_p50:.0f} ms, p95 {summary.latency_p95:.0f} ms",
        flush=True,
    )  # fmt: skip
    if gone is not None:
        raise gone
    return summary


@dataclass(frozen=True)
class _Predicted:
    """A frame, when it came (s, after the first), its prediction and quality, and how long that took (s)."""

    pixels: Pixels
    time: float
    segmentation: Segmentation
    quality: Quality
    latency: float


def _predicted(segmenter: Segmenter, smoother: Smoother, mailbox: _Mailbox) -> Generator[_Predicted, None, None]:
    start = last = None
    measured = QualityMeter()
    while (newest := mailbox.take()) is not None:
        arrived, pixels = newest
        start = arrived if start is None else start
        # Milliseconds are the mp4's ticks; two frames must not share one.
        since = round(arrived - start, 3)
        since = since if last is None else max(since, round(last + 0.001, 3))
        last = since
        probability = smoother(next(segmenter.probabilities([pixels])), since)
        found = segmentation(segmenter, pixels, probability)
        _ = found.polyps  # part of the prediction, and computed when first asked for
        quality = measured.measure(pixels, since)
        yield _Predicted(pixels, since, found, quality, time.perf_counter() - arrived)


class _Mailbox:
    """One slot between a camera and the network: whoever takes gets the newest frame, whatever was put before.

    Args:
        name: of the camera, for errors.
        silence: seconds without a frame after which the camera is taken for gone.

    Attributes:
        dropped: frames that were replaced before anyone took them.
    """

    def __init__(self, name: str, silence: float) -> None:
        self.dropped = 0
        self._name, self._silence = name, silence
        self._changed = threading.Condition()
        self._slot: tuple[float, Pixels] | None = None
        self._ended = False
        self._error: Exception | None = None

    @contextlib.contextmanager
    def filled_from(self, frames: Iterator[Pixels]) -> Iterator[None]:
        """Within the block, a thread puts these frames in; after it, nobody waits any more."""
        thread = threading.Thread(target=self._fill, args=(frames,), name="polypseg-camera", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end()
            thread.join(_JOIN)  # a driver that hangs is left behind

    def take(self) -> tuple[float, Pixels] | None:
        """The newest frame and when it came (``time.perf_counter``), as soon as there is one; None at the end.

        Raises:
            CameraGone: there came none for long.
            PolypsegError: whatever the camera raised.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._slot is not None or self._ended, self._silence):
                raise CameraGone(f"{self._name}: sent no frame for {self._silence:.0f} s; check its cable")
            taken, self._slot = self._slot, None
            if taken is None and self._error is not None:
                raise self._error
            return taken

    def _fill(self, frames: Iterator[Pixels]) -> None:
        error: Exception | None = None
        try:
            for pixels in frames:
                arrived = time.perf_counter()
                with self._changed:
                    if self._ended:
                        return
                    self.dropped += self._slot is not None
                    self._slot = arrived, pixels
                    self._changed.notify_all()
        except Exception as raised:  # noqa: BLE001  (raised again by the reader)
            error = raised
        finally:
            self._end(error)

    def _end(self, error: Exception | None = None) -> None:
        with self._changed:
            self._ended = True
            self._error = self._error or error
            self._changed.notify_all()


class _Meter:
    """Measures, and prints what the last second was like; of a session of any length it keeps as much."""

    # Latencies of the whole session are counted in bins of one part in a hundred, from 0.01 ms to 17 minutes.
    _BINS = 0.01 * 1.01 ** np.arange(1851)  # milliseconds

    def __init__(self) -> None:
        self.frames = 0
        self._counts = np.zeros(len(self._BINS) + 1, np.int64)
        self._recent: list[float] = []  # milliseconds, since the last report
        self._last_time = 0.0
        self._reported = time.perf_counter()
        self._dropped_then = 0

    def add(self, one: _Predicted, dropped: int, polyps: int) -> None:
        """Count one frame in."""
        latency = one.latency * 1000
        self.frames += 1
        self._counts[np.searchsorted(self._BINS, latency)] += 1
        self._recent.append(latency)
        self._last_time = one.time
        now = time.perf_counter()
        if now - self._reported < _REPORT_EVERY:
            return
        p50, p95 = np.percentile(self._recent, (50, 95))
        rate = len(self._recent) / (now - self._reported)
        print(
            f"{rate:5.1f} frames/s   latency p50 {p50:4.0f} ms, p95 {p95:4.0f} ms   "
            f"{dropped - self._dropped_then} dropped   {polyps} polyps in view",
            end="\r" if sys.stdout.isatty() else "\n", flush=True,
        )  # fmt: skip
        self._reported, self._dropped_then = now, dropped
        self._recent.clear()

    def summary(self, dropped: int, files: list[Path]) -> LiveSummary:
        """The whole session."""
        return LiveSummary(
            self.frames, dropped, round(self._last_time, 3), self._percentile(50), self._percentile(95), files
        )

    def _percentile(self, percent: float) -> float:
        """Of all latencies, milliseconds, to one part in a hundred; 0 where there is none."""
        if not self.frames:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._counts), percent / 100 * self.frames))
        return float(self._BINS[min(place, len(self._BINS) - 1)])


def _frames_of(camera: int | str) -> Iterator[Pixels]:
    """H×W×3 uint8 RGB frames of a camera, a stream or a file, when their time comes.

    Raises:
        CameraGone: it cannot be opened, or, but for a file, sends no more.
    """
    if isinstance(camera, str) and not camera.isdecimal() and Path(camera).is_file():
        yield from _played(Path(camera))
        return
    yield from camera_frames(camera)


def _played(path: Path) -> Iterator[Pixels]:
    """The frames of a file, each when its time comes.

    Raises:
        PolypsegError: it cannot be read; or, at its end, that it is cut off or damaged.
    """
    with VideoReader(path) as reader:
        start = time.perf_counter()
        for frame in reader:
            time.sleep(max(0.0, start + frame.time - time.perf_counter()))
            yield frame.pixels
        if reader.problem:
            raise CameraGone(reader.problem)
