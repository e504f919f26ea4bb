"""Polyps found in a video whose boxes are known frame by frame, and how soon.

The answers are the lines that ``predict_video`` writes; the boxes a JSON file ``{"width", "height", "frames":
[[{"bbox": [xmin, ymin, xmax, ymax]}, …], …]}`` with one list a frame, in pixels, maxima exclusive.

**Found.** In a frame, predicted polyps are paired with annotated boxes, one to one, where they agree: where the IoU of
the two boxes reaches 0.3 or 0.5, or where the centre of the predicted box lies in the annotated one. Of all ways to
pair, one with the most pairs is taken. **Recall** is the share of annotated boxes, of all frames together, that have a
partner; a predicted polyp without one is a **false positive**.

**A lesion** is one polyp over time. Where every box has a ``"lesion"`` (any name), that says whose it is; else boxes of
successive frames are joined by ``tracking.Tracker``. Its **time to first detection** is the time from the first frame
in which it is annotated to the first in which it is found.
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
from polypseg.inference.video.tracking import Tracker, box_iou, pair_boxes

IOU_THRESHOLDS = (0.3, 0.5)
CRITERIA = (*(f"iou_{threshold}" for threshold in IOU_THRESHOLDS), "centre")


@dataclass(frozen=True)
class LesionFound:
    """One lesion: whether and when it was found.

    Attributes:
        lesion: its name.
        start, end: seconds of the first and last frame in which it is annotated.
        frames: in how many it is.
        frames_found: by criterion, in how many of those it was found.
        first_detection: by criterion, seconds from ``start`` to the first of those; None where there is none.
    """

    lesion: str
    start: float
    end: float
    frames: int
    frames_found: dict[str, int]
    first_detection: dict[str, float | None]


@dataclass(frozen=True)
class VideoScores:
    """Scores of one video, by criterion (``CRITERIA``); the definitions stand in the module.

    Attributes:
        frames, boxes, predicted: how many frames, annotated boxes and predicted polyps there are.
        recall: found boxes / boxes, 0..1; None without boxes.
        false_positives_per_frame: predicted polyps without a partner / frames.
        lesions_found: how many lesions were found in at least one frame.
        lesions: each of them, by its first frame.
    """

    frames: int
    boxes: int
    predicted: int
    recall: dict[str, float | None]
    false_positives_per_frame: dict[str, float]
    lesions_found: dict[str, int]
    lesions: list[LesionFound]

    def to_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return asdict(self)


def score_video(records: Sequence[Mapping[str, Any]], boxes: Sequence[Sequence[Mapping[str, Any]]]) -> VideoScores:
    """Score the answers to a video.

    Args:
        records: one a frame, in order, with ``time`` (s) and ``polyps``, as of ``frame_record``.
        boxes: one list a frame, of dictionaries with ``bbox`` and perhaps ``lesion``.

    Raises:
        ValueError: there are more or fewer records than lists of boxes, or none.
    """
    if len(records) != len(boxes) or not records:
        raise ValueError(f"{len(records)} frames were answered but {len(boxes)} have boxes")
    lesions: dict[str, list[tuple[float, set[str]]]] = {}  # of each frame: its time, and the criteria that found it
    found = dict.fromkeys(CRITERIA, 0)
    predicted = 0
    for record, truths, names in zip(records, boxes, _lesion_names(records, boxes), strict=True):
        predicted += len(record["polyps"])
        pairs = _pairs([truth["bbox"] for truth in truths], [polyp["box"] for polyp in record["polyps"]])
        for number, name in enumerate(names):
            by = {criterion for criterion in CRITERIA if number in pairs[criterion]}
            lesions.setdefault(name, []).append((record["time"], by))
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
        lesions=scored,
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
    answers = _read_lines(records)
    if len(answers) != len(frames):
        raise PolypsegError(f"{boxes}: has boxes of {len(frames)} frames but {records} answers {len(answers)}")
    sizes = {(answer["width"], answer["height"]) for answer in answers}
    if sizes != {(truth.get("width"), truth.get("height"))}:
        raise PolypsegError(f"{boxes}: is of a video of another size than {records}")
    return score_video(answers, frames)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if not {"time", "width", "height", "polyps"} <= line.keys():
                raise ValueError
    except OSError as error:
        raise PolypsegError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError) as error:
        raise PolypsegError(f"{file}: is no .jsonl of polypseg predict") from error
    if not lines:
        raise PolypsegError(f"{file}: holds no frame")
    return lines


def _pairs(truths: Sequence[Sequence[float]], polyps: Sequence[Sequence[float]]) -> dict[str, set[int]]:
    """By criterion, which annotated boxes have a partner."""
    true, predicted = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (truths, polyps))
    iou = box_iou(true, predicted)
    centre = (predicted[:, :2] + predicted[:, 2:]) / 2
    inside = np.all((true[:, None, :2] <= centre[None]) & (centre[None] < true[:, None, 2:]), axis=2)
    agree = {f"iou_{threshold}": iou >= threshold for threshold in IOU_THRESHOLDS} | {"centre": np.asarray(inside)}
    return {criterion: _partnered(allowed, iou) for criterion, allowed in agree.items()}


def _partnered(allowed: NDArray[np.bool_], iou: NDArray[np.float64]) -> set[int]:
    # A pair more weighs more than all the IoUs that it may cost.
    weight = np.where(allowed, 1 + min(iou.shape) + iou, 0)
    return {row for row, _ in pair_boxes(weight, 1)}


def _lesion_names(
    records: Sequence[Mapping[str, Any]], boxes: Sequence[Sequence[Mapping[str, Any]]]
) -> list[list[str]]:
    """The lesion of each box."""
    if all("lesion" in box for frame in boxes for box in frame):
        return [[str(box["lesion"]) for box in frame] for frame in boxes]
    tracker = Tracker(min_frames=1)
    names = []
    for number, (record, frame) in enumerate(zip(records, boxes, strict=True)):
        views = [{"box": box["bbox"], "area": 0, "confidence": 1.0} for box in frame]
        names.append([str(track) for track in tracker.update(number, record["time"], views)])
    return names


def _lesion_found(name: str, seen: Sequence[tuple[float, set[str]]]) -> LesionFound:
    start = seen[0][0]
    when = {criterion: [time for time, by in seen if criterion in by] for criterion in CRITERIA}
    return LesionFound(
        lesion=name,
        start=start,
        end=seen[-1][0],
        frames=len(seen),
        frames_found={criterion: len(times) for criterion, times in when.items()},
        first_detection={key: round(times[0] - start, 6) if times else None for key, times in when.items()},
    )
