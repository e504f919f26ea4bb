"""Polyps found, missed and invented: each connected region counts once, whatever its size.

A **lesion** is an 8-connected region of a mask, as in ``Segmentation.polyps``, of at least ``min_area`` pixels;
smaller regions are ignored in both masks, as if they were background. (143 of Kvasir-SEG's 1000 masks contain one stray
pixel, and nothing else below 400 pixels: counted as lesions they would all be missed.) A frame whose truth contains no
lesion is a frame without a polyp.

**Matching.** At an IoU threshold, predicted lesions are paired with true ones, one to one, where the IoU of the two
regions reaches it. Of all ways to do so we take one with the most pairs, and of those the one with the highest sum of
IoUs (linear assignment). A greedy choice by IoU can lose a pair below 0.5; above 0.5 no lesion has more than one
candidate (Kirillov et al., Panoptic Segmentation, CVPR 2019) and all ways agree. A paired true lesion is found, an
unpaired one missed; an unpaired predicted lesion is a false positive, also where it is the second half of a polyp
predicted in two pieces.

**Any overlap** (``None`` in place of a threshold) is no pairing: a true lesion is found where a predicted one shares a
pixel with it, and a predicted one is right where it shares a pixel with a true one. Both halves of a polyp predicted in
two pieces are right, and one region across two polyps finds both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from polypseg.metrics.overlap import check_masks

IOU_THRESHOLDS = (0.3, 0.5)
MIN_AREA = 10  # pixels


@dataclass(frozen=True)
class Lesion:
    """One region of the truth or of the prediction.

    Attributes:
        box: ``(xmin, ymin, xmax, ymax)`` in pixels; the maxima are exclusive.
        area: pixels.
        best_iou: highest IoU with any one lesion of the other mask, 0..1; 0 where none overlaps.
        matched: whether it is paired at each of the match's IoU thresholds.
        mean_probability, max_probability: over the region, 0..1; None for a true lesion, or without a map.
    """

    box: tuple[int, int, int, int]
    area: int
    best_iou: float
    matched: tuple[bool, ...]
    mean_probability: float | None = None
    max_probability: float | None = None


@dataclass(frozen=True, eq=False)
class LesionMatch:
    """The lesions of one frame, true and predicted, and which belong together; made by ``match_lesions``.

    Attributes:
        iou_thresholds: those that were matched at.
        truths, predictions: largest first.
        iou: of every true lesion (rows) with every predicted one (columns), float64, 0..1, in the order above.
    """

    iou_thresholds: tuple[float, ...]
    truths: tuple[Lesion, ...]
    predictions: tuple[Lesion, ...]
    iou: NDArray[np.float64]

    def missed(self, iou_threshold: float) -> tuple[Lesion, ...]:
        """The true lesions without a partner at one of ``iou_thresholds``; ValueError for another threshold."""
        return self._unpaired(self.truths, iou_threshold)

    def false_positives(self, iou_threshold: float) -> tuple[Lesion, ...]:
        """The predicted lesions without a partner at one of ``iou_thresholds``; ValueError for another."""
        return self._unpaired(self.predictions, iou_threshold)

    def found(self, iou_threshold: float | None) -> NDArray[np.bool_]:
        """Whether each of ``truths`` is found, at one of ``iou_thresholds`` or, with None, at any overlap."""
        return self._agreeing(self.truths, iou_threshold)

    def right(self, iou_threshold: float | None) -> NDArray[np.bool_]:
        """Whether each of ``predictions`` is right; the argument as in ``found``."""
        return self._agreeing(self.predictions, iou_threshold)

    def steps(self, iou_threshold: float | None) -> list[Step]:
        """What each predicted lesion adds when they come one by one, the highest ``max_probability`` first.

        The sums of the steps down to a confidence are what would be found, and what would be false, had only the
        predicted lesions of at least that confidence been predicted.

        Args:
            iou_threshold: as in ``found``.

        Raises:
            ValueError: a predicted lesion has no confidence, as it was matched without a probability map.
        """
        confidences = [lesion.max_probability for lesion in self.predictions]
        known = [confidence for confidence in confidences if confidence is not None]
        if len(known) < len(confidences):
            raise ValueError("the frame was matched without a probability map: its lesions have no confidence")
        if iou_threshold is None:
            touched = self.iou > 0
            newly = [Step(max(known[column] for column in np.flatnonzero(row)), 1, 0) for row in touched if row.any()]
            return newly + [Step(known[column], 0, 1) for column in np.flatnonzero(~touched.any(0))]
        _position(self.iou_thresholds, iou_threshold)
        hits = _hits(self.iou, known, iou_threshold)
        return [Step(one, int(hit), int(not hit)) for one, hit in zip(known, hits, strict=True)]

    def _agreeing(self, lesions: tuple[Lesion, ...], iou_threshold: float | None) -> NDArray[np.bool_]:
        if iou_threshold is None:
            return np.array([lesion.best_iou > 0 for lesion in lesions], np.bool_)
        position = _position(self.iou_thresholds, iou_threshold)
        return np.array([lesion.matched[position] for lesion in lesions], np.bool_)

    def _unpaired(self, lesions: tuple[Lesion, ...], iou_threshold: float) -> tuple[Lesion, ...]:
        position = _position(self.iou_thresholds, iou_threshold)
        return tuple(lesion for lesion in lesions if not lesion.matched[position])


class Step(NamedTuple):
    """What one predicted lesion adds: its confidence, 0..1, the true lesions found and the false regions."""

    confidence: float
    found: int
    false: int


def shows_polyp(truth: NDArray[np.bool_], min_area: int = MIN_AREA) -> bool:
    """Whether a mask (H×W bool) contains a lesion; one without is that of a polyp-free frame."""
    if np.count_nonzero(truth) < min_area:
        return False
    left, top, width, height = cv2.boundingRect(truth.view(np.uint8))
    return bool(_regions(truth[top : top + height, left : left + width], min_area).stats)


def match_lesions(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    probability: NDArray[np.floating] | None = None,
    *,
    min_area: int = MIN_AREA,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> LesionMatch:
    """Find the lesions of one frame's prediction and truth and pair them; the rules stand in the module.

    Args:
        prediction: H×W bool.
        truth: H×W bool, the same shape.
        probability: H×W float, 0..1, the map that the prediction was thresholded from; gives each predicted lesion
            its confidence, which the free-response curve needs.
        min_area: smaller regions are ignored in both masks; pixels, >= 1.
        iou_thresholds: each > 0 and <= 1; an IoU equal to the threshold reaches it.

    Raises:
        ValueError: a mask is not two-dimensional bool, the shapes differ, the map contains NaN or values outside 0..1,
            or another argument is out of its range.
    """
    _check(prediction, truth, probability)
    if min_area < 1:
        raise ValueError(f"min_area must be >= 1 pixel, not {min_area}")
    thresholds = _checked_thresholds(iou_thresholds)

    # Only the box around all that is in either mask is looked at; of two empty masks one pixel.
    left, top, width, height = cv2.boundingRect((prediction | truth).view(np.uint8))
    window = np.s_[top : top + max(height, 1), left : left + max(width, 1)]
    true, predicted = _regions(truth[window], min_area), _regions(prediction[window], min_area)
    iou = _iou_of_all(true, predicted)
    pairs = [_pair(iou, threshold) for threshold in thresholds]
    paired_rows = [{row for row, _ in found} for found in pairs]
    paired_columns = [{column for _, column in found} for found in pairs]
    truths = [
        Lesion(
            box=(left + x, top + y, left + x + w, top + y + h),
            area=area,
            best_iou=float(iou[row].max(initial=0.0)),
            matched=tuple(row in rows for rows in paired_rows),
        )
        for row, (_, x, y, w, h, area) in enumerate(true.stats)
    ]
    predictions = []
    for column, (label, x, y, w, h, area) in enumerate(predicted.stats):
        mean = highest = None
        if probability is not None:
            inside = predicted.labels[y : y + h, x : x + w] == label
            values = probability[window][y : y + h, x : x + w][inside]
            mean, highest = float(values.mean(dtype=np.float64)), float(values.max())
        predictions.append(
            Lesion(
                box=(left + x, top + y, left + x + w, top + y + h),
                area=area,
                best_iou=float(iou[:, column].max(initial=0.0)),
                matched=tuple(column in columns for columns in paired_columns),
                mean_probability=mean,
                max_probability=highest,
            )
        )
    return LesionMatch(thresholds, tuple(truths), tuple(predictions), iou)


@dataclass(frozen=True, eq=False)
class _Regions:
    labels: NDArray[np.int32]  # H×W, of all regions, the ignored ones too
    count: int  # of labels, background included
    stats: list[list[int]]  # label, x, y, width, height and area of each region that counts, largest first


def _check(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], probability: NDArray[np.floating] | None) -> None:
    check_masks(prediction, truth)
    if probability is None:
        return
    if probability.shape != truth.shape:
        raise ValueError(f"probability is {probability.shape} but truth is {truth.shape}")
    if not (probability.min() >= 0 and probability.max() <= 1):  # NaN fails both
        raise ValueError("probability contains NaN or values outside 0..1")


def _checked_thresholds(iou_thresholds: Sequence[float]) -> tuple[float, ...]:
    thresholds = tuple(float(threshold) for threshold in iou_thresholds)
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"IoU thresholds must be > 0 and <= 1, and at least one, not {thresholds}")
    return thresholds


def _position(iou_thresholds: tuple[float, ...], iou_threshold: float) -> int:
    if iou_threshold not in iou_thresholds:
        raise ValueError(f"IoU threshold {iou_threshold} is not one of those matched at, {iou_thresholds}")
    return iou_thresholds.index(iou_threshold)


def _regions(mask: NDArray[np.bool_], min_area: int) -> _Regions:
    # OpenCV's own statistics take several times as long
    count, found = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    labels = np.asarray(found, np.int32)
    areas = np.bincount(labels.ravel(), minlength=count)
    order = 1 + np.argsort(-areas[1:], kind="stable")  # 0 is the background
    windows = ndimage.find_objects(labels)  # of label 1, 2, …
    stats = []
    for label in order[areas[order] >= min_area].tolist():
        rows, columns = windows[label - 1]
        size = columns.stop - columns.start, rows.stop - rows.start
        stats.append([label, columns.start, rows.start, *size, int(areas[label])])
    return _Regions(labels, count, stats)


def _iou_of_all(true: _Regions, predicted: _Regions) -> NDArray[np.float64]:
    """IoU of every true region that counts (rows) with every such predicted one (columns)."""
    shape = (len(true.stats), len(predicted.stats))
    both = (true.labels > 0) & (predicted.labels > 0)
    rows, columns = _positions(true)[true.labels[both]], _positions(predicted)[predicted.labels[both]]
    counts = (rows >= 0) & (columns >= 0)
    intersection = np.bincount(rows[counts] * shape[1] + columns[counts], minlength=shape[0] * shape[1]).reshape(shape)
    true_areas = np.array([row[-1] for row in true.stats], dtype=np.int64)
    predicted_areas = np.array([row[-1] for row in predicted.stats], dtype=np.int64)
    return intersection / (true_areas[:, None] + predicted_areas[None] - intersection)


def _positions(regions: _Regions) -> NDArray[np.int64]:
    """By label: the region's place in ``stats``, or -1 where it is ignored."""
    positions = np.full(regions.count, -1, dtype=np.int64)
    positions[[row[0] for row in regions.stats]] = np.arange(len(regions.stats))
    return positions


def _pair(iou: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
    """The (row, column) of the pairs of a largest one-to-one matching, of those one with the highest sum of IoUs."""
    reaches = iou >= threshold
    rows, columns = np.flatnonzero(reaches.any(1)), np.flatnonzero(reaches.any(0))
    if len(rows) == 0:
        return []
    iou, reaches = iou[np.ix_(rows, columns)], reaches[np.ix_(rows, columns)]
    # Each pair is worth 1, so that their number decides; all IoUs together are worth less than 1.
    worth = np.where(reaches, 1 + iou / (min(iou.shape) + 1), 0)
    chosen = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
    return [(int(rows[i]), int(columns[j])) for i, j in chosen if reaches[i, j]]


def _hits(iou: NDArray[np.float64], confidences: Sequence[float], threshold: float) -> list[bool]:
    """For each predicted lesion, whether it lets one more be found than those with more confidence do alone.

    So the hits at or above any confidence are as many as the pairs of a matching of just these predicted lesions:
    adding one to them, a largest matching grows by one or stays.
    """
    hits = [False] * len(confidences)
    candidates = [int(column) for column in np.flatnonzero((iou >= threshold).any(0))]
    candidates.sort(key=lambda column: -confidences[column])
    found = 0
    for end, column in enumerate(candidates, 1):
        pairs = len(_pair(iou[:, candidates[:end]], threshold))
        hits[column] = pairs > found
        found = pairs
    return hits
