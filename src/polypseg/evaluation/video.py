"""Polyps found in a video whose boxes are known frame by frame, and how soon; and how steadily they are shown.

The predictions are the lines that ``predict_video`` writes; the boxes a JSON file ``{"width", "height", "frames":
[[{"bbox": [xmin, ymin, xmax, ymax]}, …], …]}`` with one list a frame, in pixels, maxima exclusive.

**What is shown** are the polyps that are drawn: those with a number, carried ones included. All regions of a frame with
one number are one polyp, whose box contains them all. What has no number is no prediction here, but for the time to
first detection, which a single frame's polyp, followed or not, ends.

**Found.** In a frame, shown polyps are paired with annotated boxes, one to one, where they agree: where the two boxes
overlap at all (``any``), where their IoU reaches 0.3 or 0.5, or where the centre of the shown box lies in the annotated
one. Of all ways to pair, one with the most pairs is taken. **Recall** is the share of annotated boxes, of all frames
together, that have a partner; a shown polyp without one is a **false positive**.

**A lesion** is one polyp over time. Where every box has a ``"lesion"`` (any name), that says whose it is; else boxes of
successive frames are joined by ``tracking.Tracker``. Its **time to first detection** is the time from the first frame
in which it is annotated to the first with a polyp there, **to confirmation** to the first in which it is shown. It has
an **identity switch** wherever its number is another than the one it was shown with before.

**Steadiness** (``steadiness``) needs no boxes: how often a number appears or disappears, and how often the count of
shown polyps changes from one frame to the next. In a video without any polyp each number is a **false alarm**.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.files import read_json
from polypseg.inference.tracking import Tracker, box_iou, pair_boxes

IOU_THRESHOLDS = (0.3, 0.5)
CRITERIA = ("any", *(f"iou_{threshold}" for threshold in IOU_THRESHOLDS), "centre")


@dataclass(frozen=True)
class LesionFound:
    """One lesion: whether and when it was found.

    Attributes:
        lesion: its name.
        start, end: seconds of the first and last frame in which it is annotated.
        frames: in how many it is.
        frames_found: by criterion, in how many of those it was found.
        first_detection: by criterion, seconds from ``start`` to the first of those with a polyp there, whether it has a
            number or not; None where there is none.
        confirmation: by criterion, seconds from ``start`` to the first of those in which it was shown; or None.
        identity_switches: by criterion, how often its number changed.
    """

    lesion: str
    start: float
    end: float
    frames: int
    frames_found: dict[str, int]
    first_detection: dict[str, float | None]
    confirmation: dict[str, float | None]
    identity_switches: dict[str, int]


@dataclass(frozen=True)
class Steadiness:
    """How steadily polyps are shown; the definitions stand in the module.

    Attributes:
        frames, seconds: how many frames, and from the first to the end of the last.
        numbers: how many polyps were shown in all.
        numbers_per_minute: false alarms a minute where the video shows no polyp.
        frames_shown: in how many frames any was shown.
        count_changes: how often the count of shown polyps changed between two frames; of ``frames - 1`` steps.
        changes_per_second: appearances and disappearances of a number between two frames, a second.
    """

    frames: int
    seconds: float
    numbers: int
    numbers_per_minute: float
    frames_shown: int
    count_changes: int
    changes_per_second: float


@dataclass(frozen=True)
class VideoScores:
    """Scores of one video, by criterion (``CRITERIA``); the definitions stand in the module.

    Attributes:
        frames, boxes, predicted: how many frames, annotated boxes and shown polyps there are.
        recall: found boxes / boxes, 0..1; None without boxes.
        false_positives_per_frame: shown polyps without a partner / frames.
        lesions_found: how many lesions were found in at least one frame.
        identity_switches: of all lesions together.
        lesions: each of them, by its first frame.
        steadiness: of what is shown, right or wrong.
    """

    frames: int
    boxes: int
    predicted: int
    recall: dict[str, float | None]
    false_positives_per_frame: dict[str, float]
    lesions_found: dict[str, int]
    identity_switches: dict[str, int]
    lesions: list[LesionFound]
    steadiness: Steadiness

    def to_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return asdict(self)


def score_video(records: Sequence[Mapping[str, Any]], boxes: Sequence[Sequence[Mapping[str, Any]]]) -> VideoScores:
    """Score the predictions of a video.

    Args:
        records: one a frame, in order, with ``time`` (s) and ``polyps``, as of ``frame_record``.
        boxes: one list a frame, of dictionaries with ``bbox`` and perhaps ``lesion``.

    Raises:
        ValueError: there are more or fewer records than lists of boxes, or none.
    """
    if len(records) != len(boxes) or not records:
        raise ValueError(f"{len(records)} frames were predicted but {len(boxes)} have boxes")
    lesions: dict[str, list[_Seen]] = {}
    found = dict.fromkeys(CRITERIA, 0)
    predicted = 0
    for record, truths, names in zip(records, boxes, _lesion_names(records, boxes), strict=True):
        drawn = shown(record)
        predicted += len(drawn)
        annotated = [truth["bbox"] for truth in truths]
        pairs = _pairs(annotated, list(drawn.values()))
        single = _pairs(annotated, [polyp["box"] for polyp in record["polyps"]])
        numbers = list(drawn)
        for place, name in enumerate(names):
            by = {key: numbers[partner[place]] for key, partner in pairs.items() if place in partner}
            lesions.setdefault(name, []).append(
                _Seen(record["time"], by, {key for key, partner in single.items() if place in partner} | by.keys())
            )
            for criterion in by:
                found[criterion] += 1
    total = sum(len(truths) for truths in boxes)
    scored = [_lesion_found(name, seen) for name, seen in lesions.items()]
    return VideoScores(
        frames=len(records),
        boxes=total,
        predicted=predicted,
        recall={criterion: count / total if total else None for criterion, count in found.items()},
        false_positives_per_frame={key: (predicted - count) / len(records) for key, count in found.items()},
        lesions_found={key: sum(lesion.frames_found[key] > 0 for lesion in scored) for key in CRITERIA},
        identity_switches={key: sum(lesion.identity_switches[key] for lesion in scored) for key in CRITERIA},
        lesions=scored,
        steadiness=steadiness(records),
    )


def shown(record: Mapping[str, Any]) -> dict[int, list[int]]:
    """The box of each polyp that is drawn into a frame, ``[xmin, ymin, xmax, ymax]``, by its number."""
    parts: dict[int, list[list[int]]] = {}
    for polyp in (*record["polyps"], *record.get("carried", ())):
        if polyp["id"] is not None:
            parts.setdefault(polyp["id"], []).append(polyp["box"])
    return {
        number: [*np.min(boxes, axis=0)[:2].tolist(), *np.max(boxes, axis=0)[2:].tolist()]
        for number, boxes in sorted(parts.items())
    }


def steadiness(records: Sequence[Mapping[str, Any]]) -> Steadiness:
    """How steadily a video's polyps are shown; in one without polyps, how often there is a false alarm.

    Args:
        records: one a frame, in order, as of ``score_video``.

    Raises:
        ValueError: there is none.
    """
    if not records:
        raise ValueError("there is no frame")
    drawn = [frozenset(shown(record)) for record in records]
    times = [record["time"] for record in records]
    seconds = (times[-1] - times[0]) * len(records) / max(1, len(records) - 1)
    steps = list(itertools.pairwise(drawn))
    changes = sum(len(before ^ after) for before, after in steps)
    numbers = len(frozenset().union(*drawn))
    return Steadiness(
        frames=len(records),
        seconds=round(seconds, 6),
        numbers=numbers,
        numbers_per_minute=60 * numbers / seconds if seconds else 0.0,
        frames_shown=sum(map(bool, drawn)),
        count_changes=sum(len(before) != len(after) for before, after in steps),
        changes_per_second=changes / seconds if seconds else 0.0,
    )


def score_video_files(records: str | Path, boxes: str | Path) -> VideoScores:
    """Score a ``.jsonl`` of ``predict_video`` against a file of boxes.

    Raises:
        PolypsegError: a file cannot be read, is of another form, or they are of different videos.
    """
    records, boxes = Path(records), Path(boxes)
    truth = read_json(boxes)
    try:
        frames = [list(frame) for frame in truth["frames"]]
        for box in itertools.chain(*frames):
            xmin, ymin, xmax, ymax = map(float, box["bbox"])
            if not (xmin < xmax and ymin < ymax):
                raise ValueError("a box without area")
    except (TypeError, KeyError, ValueError) as error:
        form = '{"width", "height", "frames": [[{"bbox": [xmin, ymin, xmax, ymax]}, ...], ...]}'
        raise PolypsegError(f"{boxes}: is no file of boxes ({form})") from error
    predicted = _read_lines(records)
    if len(predicted) != len(frames):
        raise PolypsegError(f"{boxes}: has boxes of {len(frames)} frames but {records} predicts {len(predicted)}")
    sizes = {(one["width"], one["height"]) for one in predicted}
    if sizes != {(truth.get("width"), truth.get("height"))}:
        raise PolypsegError(f"{boxes}: is of a video of another size than {records}")
    return score_video(predicted, frames)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if not {"time", "width", "height", "polyps"} <= line.keys():
                raise ValueError
            if not all({"id", "box"} <= polyp.keys() for polyp in line["polyps"]):
                raise ValueError
    except OSError as error:
        raise PolypsegError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise PolypsegError(f"{file}: is no .jsonl of polypseg predict") from error
    if not lines:
        raise PolypsegError(f"{file}: contains no frame")
    return lines


def _pairs(truths: Sequence[Sequence[float]], polyps: Sequence[Sequence[float]]) -> dict[str, dict[int, int]]:
    """By criterion, the partner of each annotated box that has one."""
    true, predicted = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (truths, polyps))
    iou = box_iou(true, predicted)
    centre = (predicted[:, :2] + predicted[:, 2:]) / 2
    inside = np.all((true[:, None, :2] <= centre[None]) & (centre[None] < true[:, None, 2:]), axis=2)
    agree = {"any": iou > 0} | {f"iou_{threshold}": iou >= threshold for threshold in IOU_THRESHOLDS}
    agree["centre"] = inside
    return {criterion: _partners(np.asarray(allowed), iou) for criterion, allowed in agree.items()}


def _partners(allowed: NDArray[np.bool_], iou: NDArray[np.float64]) -> dict[int, int]:
    # A pair more weighs more than all the IoUs that it may cost.
    weight = np.where(allowed, 1 + min(iou.shape) + iou, 0)
    return dict(pair_boxes(weight, 1))


def _lesion_names(
    records: Sequence[Mapping[str, Any]], boxes: Sequence[Sequence[Mapping[str, Any]]]
) -> list[list[str]]:
    """The lesion of each box."""
    if all("lesion" in box for frame in boxes for box in frame):
        return [[str(box["lesion"]) for box in frame] for frame in boxes]
    tracker = Tracker(min_frames=1, join=None)
    names = []
    for number, (record, frame) in enumerate(zip(records, boxes, strict=True)):
        views = [{"box": box["bbox"], "area": 0, "confidence": 1.0} for box in frame]
        names.append([str(track) for track in tracker.update(number, record["time"], views).ids])
    return names


@dataclass(frozen=True)
class _Seen:
    """A lesion in a frame: its time, by criterion the number it is shown with, and the criteria that a polyp meets."""

    time: float
    numbers: dict[str, int]
    detected: set[str]


def _lesion_found(name: str, seen: Sequence[_Seen]) -> LesionFound:
    start = seen[0].time

    def soonest(times: list[float]) -> float | None:
        return round(times[0] - start, 6) if times else None

    shown_as = {key: [one.numbers[key] for one in seen if key in one.numbers] for key in CRITERIA}
    return LesionFound(
        lesion=name,
        start=start,
        end=seen[-1].time,
        frames=len(seen),
        frames_found={key: len(numbers) for key, numbers in shown_as.items()},
        first_detection={key: soonest([one.time for one in seen if key in one.detected]) for key in CRITERIA},
        confirmation={key: soonest([one.time for one in seen if key in one.numbers]) for key in CRITERIA},
        identity_switches={
            key: sum(one != other for one, other in itertools.pairwise(numbers)) for key, numbers in shown_as.items()
        },
    )
