"""Polyps followed from frame to frame, so that each keeps its number, and the timeline of what was seen.

Why our own hundred lines (checked 2026-11): ``trackers`` (Apache-2.0) installs ``opencv-python``, which breaks the
``opencv-python-headless`` beside it; ``supervision`` (MIT) gave its tracker up in favour of that package; ``norfair``
(BSD) forbids the present ``rich`` and rests on ``filterpy``, without a release since 2018, as ``motpy`` (MIT) does;
``boxmot`` is AGPL. Besides, they predict motion by a Kalman filter and count gaps in frames, while an endoscope's
motion has no steady velocity and our frame rates vary.

**Fragments.** Regions of one frame that lie close together, by their size, or in the last box of one track, are parts
of one lesion: they are joined before anything is compared, and get the same number.
**Start and keep.** A region of at least ``start`` confidence begins a track, and confirms it; one of less, but at least
``keep``, only keeps a track that was confirmed and seen a moment ago (as ByteTrack has it: Zhang et al., ECCV 2022).
**Association.** Boxes of the tracks that are alive and those of the frame are all grown by ``grow`` of their size on
every side, so that a polyp that jumped by its own width still overlaps itself (buffered IoU: Yang et al., WACV 2023),
and paired one to one with the highest sum of IoUs (linear assignment) among pairs of at least ``min_overlap``; first
those of at least ``start`` with all tracks, then the others with the confirmed tracks that are left. In a poor frame
nothing is grown.
**Numbers.** A track gets the next number, from 1, when it was seen with ``start`` confidence in ``min_frames`` frames,
in half of those since its first at least, and for ``min_seconds``; what flickers up for less stays without one, and is
neither drawn nor counted.
**Life.** A confirmed track lives ``max_gap`` seconds beyond its last polyp: one that was out of view for less keeps its
number. For the first ``carry`` of those seconds, unless the view jumps, its last outline stands for it and is marked as
such; in poor frames for as long again. A track that is not confirmed lives for a frame that misses it, or for
``UNCONFIRMED_GAP`` seconds.
**Poor frames**, by blur or glare (``quality``), neither begin nor confirm a track, and their time does not count
against any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from polypseg.operating_point import OperatingPoint

# What a region must have to begin a track where the operating point has no min_confidence. Chosen by the shipped model
# on clips of polyps and of polyp-free frames (benchmarks/video.py).
START = {"peak": 0.98, "mean": 0.8}
UNCONFIRMED_GAP = 0.25  # seconds

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class View:
    """A polyp as one frame shows it: the frame's index and time (s), area (pixels), box and confidence (0..1)."""

    frame: int
    time: float
    area: int
    box: Box
    confidence: float


@dataclass(frozen=True)
class Lesion:
    """Regions of one frame that belong to one lesion: their view together, and their places in the frame's list."""

    view: View
    members: tuple[int, ...]


@dataclass
class Track:
    """One polyp over time.

    Attributes:
        first, last: where it was seen first and last.
        largest: where its area was largest; the first of equals.
        frames: in how many frames it was seen.
        id: its number, from 1; None until it is confirmed.
        confirmed: when it got that, seconds.
        strong: frames, of those that are not poor, that showed it with the confidence to begin a track.
        since: frames, of those that are not poor, since its first, that one included.
        missed: of those, how many passed since its last.
        unseen: their seconds.
        shown: its regions in the last frame that showed it, as ``Polyp.to_dict``.
    """

    first: View
    last: View
    largest: View
    frames: int = 1
    id: int | None = None
    confirmed: float | None = None
    strong: int = 0
    since: int = 0
    missed: int = 0
    unseen: float = 0.0
    shown: list[dict[str, Any]] = field(default_factory=list, repr=False)

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
            "confirmed": self.confirmed,
            "first_frame": self.first.frame,
            "last_frame": self.last.frame,
            "frames_seen": self.frames,
            "largest_view": {**asdict(self.largest), "box": list(self.largest.box)},
        }


@dataclass(frozen=True)
class Followed:
    """What the tracker makes of one frame.

    Attributes:
        ids: of each region of the frame the number of its track; None where there is none, or none yet.
        kept: of each region whether a track has it, be it confirmed or not.
        carried: regions of confirmed tracks that this frame does not show, each with its ``id`` and the ``from_frame``
            that showed it.
    """

    ids: list[int | None]
    kept: list[bool]
    carried: list[dict[str, Any]]


class Tracker:
    """Numbers the polyps of a video, frame by frame; the rules stand in the module.

    Args:
        start: confidence, 0..1, at and above which a region begins a track, and confirms it.
        keep: confidence at and above which a region keeps a confirmed track.
        max_gap: seconds that a polyp may be out of view and keep its number.
        min_frames: in how many frames it must be seen to get one.
        min_seconds: and for how long.
        carry: seconds for which a confirmed track that is not seen is carried on.
        grow: how far boxes are grown before they are compared, in their own size.
        min_overlap: lowest IoU of two grown boxes of one polyp, 0..1.
        join: regions closer than this are fragments of one lesion, as a share of the smaller one's side; None joins
            nothing.

    Attributes:
        keep: as above.
        settings: all of the above, by name.
        confirmed: the tracks that have a number, in its order.
    """

    def __init__(
        self,
        start: float = 0.0,
        keep: float = 0.0,
        max_gap: float = 2.0,
        min_frames: int = 3,
        min_seconds: float = 0.15,
        carry: float = 0.45,
        grow: float = 0.5,
        min_overlap: float = 0.1,
        join: float | None = 0.1,
    ) -> None:
        self.settings = {
            "start": start, "keep": keep, "max_gap": max_gap, "min_frames": min_frames, "min_seconds": min_seconds,
            "carry": carry, "grow": grow, "min_overlap": min_overlap, "join": join,
        }  # fmt: skip
        self._start, self.keep = start, keep
        self._max_gap, self._min_frames, self._min_seconds, self._carry = max_gap, min_frames, min_seconds, carry
        self._grow, self._min_overlap, self._join = grow, min_overlap, join
        self._alive: list[Track] = []
        self._time = 0.0
        self.confirmed: list[Track] = []

    @classmethod
    def at(cls, point: OperatingPoint) -> Tracker:
        """One for polyps found at an operating point.

        A region begins a track where it is a polyp by its confidence, ``min_confidence`` or, where that lets all pass,
        ``START``; half way between that and the pixel threshold, it still keeps one.
        """
        start = START[point.confidence] if point.takes_all else point.min_confidence
        return cls(round(start, 6), round((point.threshold + start) / 2, 6))

    def update(
        self, frame: int, time: float, polyps: Sequence[Mapping[str, Any]], poor: bool = False, jump: bool = False
    ) -> Followed:
        """Take in the next frame.

        Args:
            frame: its index.
            time: seconds, not before the last frame's.
            polyps: dictionaries with ``box``, ``area`` and ``confidence``, as of ``Polyp.to_dict``.
            poor: whether the frame is blurred or glaring.
            jump: whether it shows another view than the frame before.
        """
        self._let_time_pass(time, poor)
        ids: list[int | None] = [None] * len(polyps)
        kept = [False] * len(polyps)
        for lesion, track in self._associate(self._lesions(frame, time, polyps), poor):
            self._see(track, lesion, polyps, poor)
            for member in lesion.members:
                ids[member], kept[member] = track.id, True
        if jump:
            for track in self._alive:
                if track.last.frame != frame:
                    track.shown = []
        return Followed(ids, kept, [region for track in self._alive for region in self._carried(track, frame)])

    def timeline(self) -> list[dict[str, Any]]:
        """The confirmed tracks by number, each as ``Track.to_dict``."""
        return [track.to_dict() for track in self.confirmed]

    def _let_time_pass(self, time: float, poor: bool) -> None:
        passed = time - self._time
        self._time = time
        if not poor:
            for track in self._alive:
                track.unseen += passed
                track.missed += 1
                track.since += 1
        for track in self._alive:
            if not self._lives(track):
                track.shown = []  # a live stream has no end, and confirmed tracks are kept for the timeline
        self._alive = [track for track in self._alive if self._lives(track)]

    def _lives(self, track: Track) -> bool:
        if track.id is not None:
            return round(track.unseen, 6) <= self._max_gap
        return track.missed <= 2 or round(track.unseen, 6) <= UNCONFIRMED_GAP

    def _lesions(self, frame: int, time: float, polyps: Sequence[Mapping[str, Any]]) -> list[Lesion]:
        """The frame's regions of enough confidence, fragments joined."""
        places = [place for place, polyp in enumerate(polyps) if polyp["confidence"] >= self.keep]
        boxes = np.asarray([polyps[place]["box"] for place in places], np.float64).reshape(-1, 4)
        seen = [track for track in self._alive if track.id is not None and round(track.unseen, 6) <= self._carry]
        homes = np.asarray([track.last.box for track in seen], np.float64)
        lesions = []
        alone = [[place] for place in range(len(boxes))]
        for group in alone if self._join is None else joined(boxes, homes.reshape(-1, 4), self._join):
            members = [polyps[places[number]] for number in group]
            low, high = boxes[group, :2].min(0), boxes[group, 2:].max(0)
            box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
            area = sum(int(member["area"]) for member in members)
            view = View(frame, time, area, box, max(float(member["confidence"]) for member in members))
            lesions.append(Lesion(view, tuple(places[number] for number in group)))
        return lesions

    def _associate(self, lesions: Sequence[Lesion], poor: bool) -> list[tuple[Lesion, Track]]:
        """Each lesion with its track; those that have none, and may begin none, are left out."""
        strong = [lesion for lesion in lesions if lesion.view.confidence >= self._start]
        weak = [lesion for lesion in lesions if lesion.view.confidence < self._start]
        grow = 0.0 if poor else self._grow  # what a poor frame shows must lie where the polyp was
        found = self._pair(strong, self._alive, grow)
        taken = {id(track) for _, track in found}
        recent = [
            track for track in self._alive
            if track.id is not None and id(track) not in taken and round(track.unseen, 6) <= self._carry
        ]  # fmt: skip
        found += self._pair(weak, recent, grow)
        paired = {lesion.members for lesion, _ in found}
        if not poor:
            for lesion in strong:
                if lesion.members not in paired:
                    self._alive.append(Track.begun_at(lesion.view))
                    self._alive[-1].since = 1
                    found.append((lesion, self._alive[-1]))
        return found

    def _pair(self, lesions: Sequence[Lesion], tracks: Sequence[Track], grow: float) -> list[tuple[Lesion, Track]]:
        if not lesions or not tracks:
            return []
        seen = grown([lesion.view.box for lesion in lesions], grow)
        known = grown([track.last.box for track in tracks], grow)
        pairs = pair_boxes(box_iou(seen, known), self._min_overlap)
        return [(lesions[row], tracks[column]) for row, column in pairs]

    def _see(self, track: Track, lesion: Lesion, polyps: Sequence[Mapping[str, Any]], poor: bool) -> None:
        """Follow a track into a frame; it may be confirmed by it."""
        view = lesion.view
        if view is not track.last:
            track.add(view)
        track.unseen, track.missed = 0.0, 0
        track.shown = [
            {key: value for key, value in polyps[member].items() if key != "id"} for member in lesion.members
        ]
        track.strong += not poor and view.confidence >= self._start
        long_enough = round(view.time - track.first.time, 6) >= self._min_seconds or self._min_frames <= 1
        often = track.strong >= self._min_frames and 2 * track.strong >= track.since
        if track.id is None and often and long_enough:
            track.id, track.confirmed = len(self.confirmed) + 1, view.time
            self.confirmed.append(track)

    def _carried(self, track: Track, frame: int) -> list[dict[str, Any]]:
        """The regions that stand for a confirmed track in a frame that does not show it."""
        stale = round(track.unseen, 6) > self._carry or round(self._time - track.last.time, 6) > 2 * self._carry
        if track.id is None or track.last.frame == frame or stale:
            return []
        return [{"id": track.id, "from_frame": track.last.frame, **region} for region in track.shown]


def joined(boxes: NDArray[np.float64], homes: NDArray[np.float64], share: float) -> list[list[int]]:
    """Group N boxes ``(xmin, ymin, xmax, ymax)`` into lesions.

    Two belong together where the gap between them is at most ``share`` of the smaller one's mean side, or where one
    home has three quarters of both. What belongs together with one box of a group belongs to the group; but no group
    has two homes.

    Args:
        boxes: N×4.
        homes: M×4, the last boxes of tracks.
        share: 0 joins only what touches or overlaps.

    Returns:
        the groups, each the numbers of its boxes in rising order, by their first.
    """
    if len(boxes) < 2:
        return [[place] for place in range(len(boxes))]
    group = list(range(len(boxes)))
    home = _home_of(boxes, homes)
    of_group = [{place} - {-1} for place in home]
    side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    for one in range(len(boxes)):
        for other in range(one):
            if group[one] == group[other]:
                continue
            apart = np.maximum(boxes[one, :2] - boxes[other, 2:], boxes[other, :2] - boxes[one, 2:])
            close = apart.max() <= share * min(side[one], side[other])
            both = of_group[group[one]] | of_group[group[other]]
            if (close or home[one] == home[other] >= 0) and len(both) <= 1:
                of_group[group[other]] = both
                group = [group[other] if number == group[one] else number for number in group]
    return [[place for place, name in enumerate(group) if name == number] for number in sorted(set(group))]


def _home_of(boxes: NDArray[np.float64], homes: NDArray[np.float64]) -> list[int]:
    """Of each box the home that has most of it, three quarters at least; -1 where there is none."""
    if not len(boxes) or not len(homes):
        return [-1] * len(boxes)
    low = np.maximum(boxes[:, None, :2], homes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], homes[None, :, 2:])
    share = np.prod(np.clip(high - low, 0, None), axis=2) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[:, None]
    best = share.argmax(1)
    return [int(place) if share[row, place] >= 0.75 else -1 for row, place in enumerate(best)]


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
    iou: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return iou


def pair_boxes(overlaps: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """Pair rows with columns one to one, by the highest sum of overlaps (N×M, >= 0) among those of at least ``least``.

    Returns:
        ``(row, column)`` of each pair.
    """
    allowed = np.where(overlaps >= least, overlaps, 0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if overlaps[row, column] >= least]
