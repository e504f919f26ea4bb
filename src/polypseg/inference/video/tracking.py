"""Polyps followed from frame to frame, so that each keeps its number, and the timeline of what was seen.

Why our own hundred lines (checked 2026-11): ``trackers`` (Apache-2.0) installs ``opencv-python``, which breaks the
``opencv-python-headless`` beside it; ``supervision`` (MIT) gave its tracker up in favour of that package; ``norfair``
(BSD) forbids the present ``rich`` and rests on ``filterpy``, without a release since 2018, as ``motpy`` (MIT) does;
``boxmot`` is AGPL. Besides, they predict motion by a Kalman filter and count gaps in frames, while an endoscope's
motion has no steady velocity and our frame rates vary.

**Association.** Boxes of the tracks that are alive and those of the frame are all grown by ``grow`` of their size on
every side, so that a polyp that jumped by its own width still overlaps itself (buffered IoU: Yang et al., WACV 2023),
and paired one to one with the highest sum of IoUs (linear assignment) among pairs of at least ``min_overlap``.
**Life.** A track lives ``max_gap`` seconds beyond its last polyp: one that was out of view for less goes on.
**Numbers.** A track gets the next number, from 1, when it has been seen in ``min_frames`` frames; what flickers up for
fewer stays without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class View:
    """A polyp as one frame shows it: the frame's index and time (s), area (pixels), box and confidence (0..1)."""

    frame: int
    time: float
    area: int
    box: Box
    confidence: float


@dataclass
class Track:
    """One polyp over time.

    Attributes:
        first, last: where it was seen first and last.
        largest: where its area was largest; the first of equals.
        frames: in how many frames it was seen.
        id: its number, from 1; None until it is confirmed.
    """

    first: View
    last: View
    largest: View
    frames: int = 1
    id: int | None = None

    @classmethod
    def begun_at(cls, view: View) -> Track:
        """A track of one frame."""
        return cls(view, view, view)

    def add(self, view: View) -> None:
        """Follow it into one more frame."""
        self.last = view
        self.frames += 1
        if view.area > self.largest.area:
            self.largest = view

    def to_dict(self) -> dict[str, Any]:
        """Its line of the timeline: ``start`` and ``end`` are the times (s) of its first and last frame."""
        return {
            "id": self.id,
            "start": self.first.time,
            "end": self.last.time,
            "duration": round(self.last.time - self.first.time, 6),
            "first_frame": self.first.frame,
            "last_frame": self.last.frame,
            "frames_seen": self.frames,
            "largest_view": {**asdict(self.largest), "box": list(self.largest.box)},
        }


class Tracker:
    """Numbers the polyps of a video, frame by frame; the rules stand in the module.

    Args:
        max_gap: seconds that a polyp may be out of view and keep its number.
        min_frames: in how many frames it must be seen to get one.
        grow: how far boxes are grown before they are compared, in their own size.
        min_overlap: lowest IoU of two grown boxes of one polyp, 0..1.
    """

    def __init__(self, max_gap: float = 2.0, min_frames: int = 3, grow: float = 0.5, min_overlap: float = 0.1) -> None:
        self.settings = {"max_gap": max_gap, "min_frames": min_frames, "grow": grow, "min_overlap": min_overlap}
        self._max_gap, self._min_frames = max_gap, min_frames
        self._grow, self._min_overlap = grow, min_overlap
        self._alive: list[Track] = []
        self.confirmed: list[Track] = []

    def update(self, frame: int, time: float, polyps: Sequence[Mapping[str, Any]]) -> list[int | None]:
        """Take in the next frame.

        Args:
            frame: its index.
            time: seconds, not before the last frame's.
            polyps: dictionaries with ``box``, ``area`` and ``confidence``, as of ``Polyp.to_dict``.

        Returns:
            The number of each polyp, or None where its track is not confirmed yet.
        """
        self._alive = [track for track in self._alive if time - track.last.time <= self._max_gap]
        views = [View(frame, time, polyp["area"], (*polyp["box"],), polyp["confidence"]) for polyp in polyps]
        seen = grown([view.box for view in views], self._grow)
        known = grown([track.last.box for track in self._alive], self._grow)
        partner = dict(pair_boxes(box_iou(seen, known), self._min_overlap))
        tracks = []
        for number, view in enumerate(views):
            if number in partner:
                track = self._alive[partner[number]]
                track.add(view)
            else:
                track = Track.begun_at(view)
                self._alive.append(track)
            if track.id is None and track.frames >= self._min_frames:
                track.id = len(self.confirmed) + 1
                self.confirmed.append(track)
            tracks.append(track)
        return [track.id for track in tracks]

    def timeline(self) -> list[dict[str, Any]]:
        """The confirmed tracks by number, each as ``Track.to_dict``."""
        return [track.to_dict() for track in self.confirmed]


def grown(boxes: Sequence[Sequence[float]], share: float) -> NDArray[np.float64]:
    """N boxes ``(xmin, ymin, xmax, ymax)``, each made larger by ``share`` of its size on every side; N×4."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    margin = share * (corners[:, 2:] - corners[:, :2])
    return np.hstack([corners[:, :2] - margin, corners[:, 2:] + margin])


def box_iou(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of each of N boxes with each of M, N×4 and M×4 ``(xmin, ymin, xmax, ymax)``, maxima exclusive; N×M, 0..1."""
    low = np.maximum(rows[:, None, :2], columns[None, :, :2])
    high = np.minimum(rows[:, None, 2:], columns[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (rows, columns)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def pair_boxes(overlaps: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """Pair rows with columns one to one, by the highest sum of overlaps (N×M, >= 0) among those of at least ``least``.

    Returns:
        ``(row, column)`` of each pair.
    """
    allowed = np.where(overlaps >= least, overlaps, 0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if overlaps[row, column] >= least]
