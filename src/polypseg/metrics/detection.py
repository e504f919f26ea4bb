"""Detection: lesions found, regions right, and what becomes of frames without a polyp.

What a lesion, a region and an agreement is stands in ``metrics.lesions``; a frame whose truth contains no lesion is a
**polyp-free frame**. Everything is counted by three criteria (``CRITERIA``): any overlap, and one-to-one pairs at an
IoU of 0.3 and of 0.5.

- **lesions found** (recall): found / true lesions. **regions right** (precision): right / predicted regions.
  **f1**: their harmonic mean; 0 where there are lesions and nothing was predicted. **false regions a frame**: predicted
  regions that are not right / all frames.
- **polyp-free frames marked**: the share of them with a predicted region, and the predicted regions on each.
- **FROC**, the free-response ROC curve (Bunch et al., Proc. SPIE 1977): lesions found against false regions a frame,
  over all frames, when only regions of at least a confidence count, from the highest confidence down. The regions keep
  their outline. Its end is what the mask without any floor of confidence finds.
- **frames' ROC**: a frame with a polyp is separated from one without by its score, at each score that occurs.

The **confidence** of a region is its peak, its highest probability; the **score** of a frame is that of its most
confident region. A frame without a region has the highest probability of its map, but less than the threshold.

Intervals are percentile intervals over draws of whole groups (``statistics.group_bootstrap``). Where a share is 0 or 1,
or no event was seen, the draws say nothing of the spread, and the exact bounds of as many draws as there are groups
stand in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polypseg.metrics.lesions import LesionMatch, Step
from polypseg.metrics.statistics import Interval, exact_rate_of_none, exact_share, group_bootstrap

CRITERIA: dict[str, float | None] = {"any": None, "0.3": 0.3, "0.5": 0.5}
RATES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)  # false regions a frame at which the FROC is read
SPECIFICITIES = (0.9, 0.95)
_COUNTS = ("lesions", "regions", *(f"{kind} {name}" for name in CRITERIA for kind in ("found", "right")))

Floats = NDArray[np.float64]
Weights = NDArray[np.float32]


class FrocCurve(NamedTuple):
    """Points of a FROC, from the highest confidence down; empty where nothing was predicted.

    Attributes:
        confidence: each that occurs, falling, float64.
        sensitivity: share of the lesions found down to it, 0..1, never falling.
        false_regions_per_frame: never falling.
    """

    confidence: Floats
    sensitivity: Floats
    false_regions_per_frame: Floats


class RocCurve(NamedTuple):
    """Points of a ROC of frames, from the highest score down.

    Attributes:
        score: each that occurs, falling, float64.
        sensitivity: share of the frames with a polyp that reach it, 0..1, never falling.
        false_alarms: share of the polyp-free frames that reach it, 0..1, never falling.
    """

    score: Floats
    sensitivity: Floats
    false_alarms: Floats


@dataclass(frozen=True)
class DetectionScores:
    """Scores of some frames; the value of an Interval is NaN where it has no denominator.

    Attributes:
        frames, polyp_free: frames, and those of them without a polyp.
        marked_frames: polyp-free frames with a predicted region.
        lesions, regions: true lesions and predicted regions.
        found, right, f1, false_regions_per_frame: by criterion.
        marked: share of the polyp-free frames.
        false_regions_per_polyp_free_frame: what it says.
        auc: of the frames' ROC.
        sensitivity_at_specificity: of the frames' ROC, by specificity: the highest that a score reaches there.
        sensitivity_at_rate: of the FROC, by criterion and false regions a frame: the highest with at most so many.
    """

    frames: int
    polyp_free: int
    marked_frames: int
    lesions: int
    regions: int
    found: dict[str, Interval]
    right: dict[str, Interval]
    f1: dict[str, Interval]
    false_regions_per_frame: dict[str, Interval]
    marked: Interval
    false_regions_per_polyp_free_frame: Interval
    auc: Interval
    sensitivity_at_specificity: dict[float, Interval]
    sensitivity_at_rate: dict[str, dict[float, Interval]]


class Detections:
    """What was found, frame by frame; keeps a few numbers for each frame, lesion and region."""

    def __init__(self) -> None:
        self._counts: list[list[int]] = []
        self._peaks: list[float] = []
        self._lesions: list[tuple[float, ...]] = []  # frame, share of the frame, whether found by each criterion
        self._regions: list[tuple[float, ...]] = []  # the same of predicted regions, whether right
        self._steps: dict[str, list[tuple[int, Step]]] = {name: [] for name in CRITERIA}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, match: LesionMatch, candidates: LesionMatch, peak: float, pixels: int) -> None:
        """Add one frame.

        Args:
            match: its mask against its truth, at IoU 0.3 and 0.5.
            candidates: the same before any floor of confidence, with the probability map; the same object where there
                is no floor.
            peak: the frame's score, 0..1.
            pixels: of the frame.

        Raises:
            ValueError: the match was made at other IoU thresholds, or ``candidates`` without the map.
        """
        frame = len(self)
        found, right = ([of(iou) for iou in CRITERIA.values()] for of in (match.found, match.right))
        pairs = zip(found, right, strict=True)
        counts = [len(match.truths), len(match.predictions), *(int(one.sum()) for pair in pairs for one in pair)]
        steps = {name: candidates.steps(iou) for name, iou in CRITERIA.items()}
        self._counts.append(counts)
        self._peaks.append(peak)
        for table, lesions, flags in (
            (self._lesions, match.truths, found), (self._regions, match.predictions, right),
        ):  # fmt: skip
            table += [
                (frame, lesion.area / pixels, *(bool(flag[position]) for flag in flags))
                for position, lesion in enumerate(lesions)
            ]
        for name, each in steps.items():
            self._steps[name] += [(frame, step) for step in each]

    @property
    def polyps(self) -> NDArray[np.bool_]:
        """Whether each frame shows a polyp."""
        return self._table[:, 0] > 0

    def scores(self, groups: Sequence[object], rows: NDArray[np.bool_] | None = None) -> DetectionScores:
        """The scores of all frames, or of some.

        Args:
            groups: one label a frame, of all frames; whole groups are drawn for the intervals.
            rows: n bool, the frames that count; all by default.
        """
        chosen = np.flatnonzero(np.ones(len(self), bool) if rows is None else rows)
        return _Scorer(self._table[chosen], np.array(self._peaks)[chosen], self._events(chosen)).scores(
            [groups[index] for index in chosen.tolist()]
        )

    def scores_by_size(self, groups: Sequence[object], least: float, most: float) -> DetectionScores:
        """The counts of lesions and regions of one size, over all frames; what is of whole frames is NaN.

        A lesion counts by its own size, a predicted region by its own.

        Args:
            groups: as in ``scores``.
            least: share of the frame, 0..1.
            most: likewise; exclusive.
        """
        table = np.zeros_like(self._table)
        for column, rows in ((0, self._lesions), (1, self._regions)):
            values = np.array(rows, np.float64).reshape(-1, 2 + len(CRITERIA))
            values = values[(values[:, 1] >= least) & (values[:, 1] < most)]
            frames = values[:, 0].astype(np.intp)
            table[:, column] = np.bincount(frames, minlength=len(self))
            for position in range(len(CRITERIA)):
                counted = np.bincount(frames, values[:, 2 + position], len(self))
                table[:, 2 + 2 * position + column] = counted
        return _Scorer(table, None, None).scores(groups)

    def froc(self, criterion: str) -> FrocCurve:
        """The FROC of all frames by one of ``CRITERIA``; ValueError where no frame contains a lesion."""
        if not self.polyps.any():
            raise ValueError("no true lesion was added: sensitivity is undefined")
        events = self._events(np.arange(len(self)))[criterion]
        found, false = events.sums(np.ones((1, len(self)), np.float32))
        return FrocCurve(events.confidence[events.ends], found[0] / self._table[:, 0].sum(), false[0] / len(self))

    def roc(self) -> RocCurve:
        """The ROC of all frames; ValueError where none shows a polyp, or all do."""
        polyps = self.polyps
        if polyps.all() or not polyps.any():
            raise ValueError("a ROC needs frames with and without a polyp")
        roc = _FrameOrder(np.array(self._peaks), polyps)
        sensitivity, alarms = roc.curve(np.ones((1, len(self)), np.float32))
        return RocCurve(roc.score, sensitivity[0], alarms[0])

    @property
    def _table(self) -> Floats:
        return np.array(self._counts, np.float64).reshape(-1, len(_COUNTS))

    def _events(self, chosen: NDArray[np.intp]) -> dict[str, _Events]:
        place = np.full(len(self), -1, np.intp)
        place[chosen] = np.arange(len(chosen))
        events = {}
        for name, steps in self._steps.items():
            values = np.array([(place[frame], *step) for frame, step in steps], np.float64).reshape(-1, 4)
            events[name] = _Events.of(values[values[:, 0] >= 0])
        return events


@dataclass(frozen=True, eq=False)
class _Events:
    """The steps of a FROC from the highest confidence down; equal confidences are one point, at ``ends``."""

    frame: NDArray[np.intp]
    confidence: Floats
    found: Weights
    false: Weights
    ends: NDArray[np.intp]

    @classmethod
    def of(cls, values: Floats) -> _Events:
        """From rows of frame, confidence, found and false."""
        values = values[np.argsort(-values[:, 1], kind="stable")]
        frame, confidence, found, false = values.T
        return cls(
            frame.astype(np.intp), confidence, found.astype(np.float32), false.astype(np.float32), _ends(confidence)
        )

    def sums(self, weights: Weights) -> tuple[Weights, Weights]:
        """b×n weights of the frames to b×p sums of lesions found and of false regions, at each point."""
        each = weights[:, self.frame]
        found: Weights = (each * self.found).cumsum(1, np.float32)[:, self.ends]
        false: Weights = (each * self.false).cumsum(1, np.float32)[:, self.ends]
        return found, false


class _FrameOrder:
    """Frames from the highest score down; equal scores are one point."""

    def __init__(self, peaks: Floats, polyps: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-peaks, kind="stable")
        self._ends = _ends(peaks[self._order])
        self._polyps = polyps[self._order].astype(np.float32)
        self.score = peaks[self._order][self._ends]

    def curve(self, weights: Weights) -> tuple[Floats, Floats]:
        """b×n weights of the frames to b×p sensitivity and share of false alarms; NaN where a kind is missing."""
        ordered = weights[:, self._order]
        with_polyp, without = (
            (ordered * kind).cumsum(1, np.float32).astype(np.float64) for kind in (self._polyps, 1 - self._polyps)
        )
        return (
            _ratio(with_polyp[:, self._ends], with_polyp[:, -1:]),
            _ratio(without[:, self._ends], without[:, -1:]),
        )


class _Scorer:
    """Every statistic of some frames, computed for many draws at once.

    Args:
        table: a row a frame, columns ``_COUNTS``.
        peaks: the frames' scores; None leaves out all that is of whole frames.
        events: the FROC's steps by criterion, likewise.
    """

    def __init__(self, table: Floats, peaks: Floats | None, events: dict[str, _Events] | None) -> None:
        self.table, self.events = table, events
        self.polyps = table[:, 0] > 0
        self.order = None if peaks is None or not len(peaks) else _FrameOrder(peaks, self.polyps)
        free, marked = ~self.polyps, table[:, 1] > 0
        self.marked = free & marked
        columns = [*table.T, np.ones(len(table)), free, self.marked, free * table[:, 1]]
        self.columns = np.array(columns, np.float32).T

    def __call__(self, weights: Weights) -> Floats:
        sums = (weights @ self.columns).astype(np.float64)
        lesions, regions, *agreeing, frames, free, marked, invented = sums.T
        values = []
        for found, right in zip(agreeing[::2], agreeing[1::2], strict=True):
            recall, precision = _ratio(found, lesions), _ratio(right, regions)
            both = recall + np.nan_to_num(precision)
            f1 = np.where(both == 0, 0 * recall, 2 * recall * np.nan_to_num(precision) / np.where(both == 0, 1, both))
            values += [recall, precision, f1, _ratio(regions - right, frames)]
        values += [_ratio(marked, free), _ratio(invented, free)]
        if self.order is not None:
            values += self._roc(weights)
        if self.events is not None:
            for events in self.events.values():
                values += self._froc(events, weights, lesions, frames)
        return np.stack(values, axis=1)

    def _roc(self, weights: Weights) -> list[Floats]:
        assert self.order is not None
        sensitivity, alarms = self.order.curve(weights)
        start = np.zeros((len(weights), 1))
        before, width = np.hstack([start, sensitivity[:, :-1]]), np.diff(alarms, axis=1, prepend=0)
        auc = (width * (before + sensitivity) / 2).sum(1)
        whole = np.hstack([start, sensitivity])
        reached = [np.count_nonzero(alarms <= 1 - one + 1e-9, axis=1) for one in SPECIFICITIES]
        undefined = np.isnan(auc)
        return [auc, *(np.where(undefined, np.nan, _at(whole, position)) for position in reached)]

    def _froc(self, events: _Events, weights: Weights, lesions: Floats, frames: Floats) -> list[Floats]:
        found, false = events.sums(weights)
        whole = np.hstack([np.zeros((len(weights), 1)), found])
        positions = [np.count_nonzero(false <= rate * frames[:, None] + 1e-6, axis=1) for rate in RATES]
        return [_ratio(_at(whole, position), lesions) for position in positions]

    def scores(self, groups: Sequence[object]) -> DetectionScores:
        """All of them, with their intervals."""
        codes = np.unique([str(group) for group in groups], return_inverse=True)[1]
        value, low, high = group_bootstrap(self, groups)
        bounds = iter(zip(value, low, high, strict=True))
        frames = len(self.table)

        def take(counts: NDArray[np.bool_], share: bool = True) -> Interval:
            return _bounded(*next(bounds), len(set(codes[counts])), share, int(counts.sum()))

        lesions, regions = self.polyps, self.table[:, 1] > 0
        everywhere, free = np.ones(frames, bool), ~self.polyps
        by_criterion = {
            name: (take(lesions), take(regions), take(lesions | regions), take(everywhere, share=False))
            for name in CRITERIA
        }
        marked, invented = take(free), take(free, share=False)
        unknown = Interval(np.nan, np.nan, np.nan, 0)
        scarcer = lesions if len(set(codes[lesions])) < len(set(codes[free])) else free
        auc = unknown if self.order is None else take(scarcer)
        at_specificity = {one: unknown if self.order is None else take(lesions) for one in SPECIFICITIES}
        at_rate = {
            name: {rate: take(lesions) for rate in RATES} for name in (CRITERIA if self.events is not None else ())
        }
        found, right, f1, false = ({name: one[k] for name, one in by_criterion.items()} for k in range(4))
        return DetectionScores(
            frames, int(free.sum()), int(self.marked.sum()), int(self.table[:, 0].sum()), int(self.table[:, 1].sum()),
            found, right, f1, false, marked, invented, auc, at_specificity, at_rate,
        )  # fmt: skip


def _bounded(value: float, low: float, high: float, draws: int, share: bool, n: int) -> Interval:
    """The interval, with exact bounds where the draws saw no spread at the end of what is possible."""
    if draws >= 2 and np.isfinite(low):
        if share and min(value, 1 - value) < 1e-9:
            low, high = exact_share(value > 0.5, draws)
        elif not share and value == 0:
            low, high = exact_rate_of_none(draws)
    elif draws < 2:
        low = high = np.nan
    return Interval(float(value), float(low), float(high), n)


def _ends(falling: Floats) -> NDArray[np.intp]:
    """The last place of each run of equal values."""
    return np.flatnonzero(np.append(np.diff(falling) != 0, True)) if len(falling) else np.array([], np.intp)


def _ratio(part: Any, whole: Any) -> Floats:
    """Part over whole; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    ratio: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _at(rows: Any, position: NDArray[np.intp]) -> Floats:
    """The entry of each row at its position."""
    return np.asarray(np.take_along_axis(rows, position[:, None], axis=1)[:, 0], np.float64)
