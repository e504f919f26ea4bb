"""PraNet's family of scores, as ``eval/main.m`` of PraNet (Fan et al., MICCAI 2020) defines it.

A prediction is stretched per image to 0..1 (min-max), kept in 8 bits, and compared with the truth at its 256
levels. ``meanDic`` and ``meanIoU`` are averages over those thresholds and over images: other quantities than
Dice and IoU at one threshold (``polypseg.metrics.overlap``), and not to be compared with them.

This module exists for comparability, so it follows the reference, PySODMetrics 1.6.2 (a port of the MATLAB code),
where that departs from this project's own rule for empty masks:

- *Empty truth.* Dice, IoU, precision, recall and weighted F are 0 whatever is predicted (the project's rule would
  give 1 for an empty prediction); S-measure is 1 - mean(prediction); E-measure is the share of pixels left out.
  (MATLAB's weighted F has no nearest polyp pixel to look up there.) Stretching turns even a faint map into one that
  reaches 1: frames without a polyp belong in other metrics.
- *Empty prediction* (all 0): at threshold 0 every pixel counts as predicted, so ``meanDic`` is not exactly 0.
- *Constant prediction*: cannot be stretched, is left as it is (PraNet's own ``MyTest.py`` would write zeros).

It departs from the reference in four corners: a quadrant of the S-measure without pixels (centroid in the last row or
column) counts 0 where the reference returns NaN; a constant quadrant has variance exactly 0, and a level exactly on the
adaptive threshold passes it, where in the reference rounding decides; the E-measure of a 1-pixel frame is divided by 1,
not by the machine epsilon.

Everything but the weighted F comes from one histogram of (quadrant, truth, level), so 256 thresholds cost what one
does: all scores of a 530×620 frame take 4 to 7 ms of one core, most of it the weighted F, where PySODMetrics takes 27
to 45 (both beside a running training).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]
Map: TypeAlias = NDArray[np.floating[Any]] | NDArray[np.uint8]
Curve: TypeAlias = NDArray[np.float64]

THRESHOLDS: Curve = np.arange(256) / 255  # entry t of every curve is the score of ``stretched map >= t / 255``

_EPS = float(np.spacing(1))  # MATLAB's eps, where the reference adds it
_LEVEL = np.arange(256, dtype=np.int64)
_REACH = 120  # pixels; 2^(-D/5) is below 2^-24 there
# steps (x, y) from a pixel of the 7×7 neighbourhood to any that may be its nearest, by distance
_NEAREST_FIRST = sorted(
    ((x, y) for x in range(-4, 5) for y in range(-4, 5) if 0 < x * x + y * y <= 18),
    key=lambda step: (step[0] ** 2 + step[1] ** 2, step),
)


@dataclass(frozen=True, eq=False)
class PranetScores:
    """The scores of one image, or their mean over images (``PranetMean``).

    ``dice``, ``iou``, ``precision``, ``recall``, ``e_measure`` are 256 float64 values, one for each of ``THRESHOLDS``;
    the rest are single values. All lie in 0..1, but for ``e_measure`` and ``adaptive_e`` of N pixels, which the
    reference divides by N - 1.
    """

    dice: Curve
    iou: Curve
    precision: Curve
    recall: Curve
    e_measure: Curve
    s_measure: float
    weighted_f: float
    mae: float
    adaptive_e: float
    adaptive_f: float

    def summary(self) -> dict[str, float]:
        """The single numbers under the names that PraNet prints: the curves' mean and maximum over thresholds.

        Of a data set, call it on the mean over images: the maximum is taken after averaging.
        """
        return {
            "meanDic": float(self.dice.mean()),
            "maxDic": float(self.dice.max()),
            "meanIoU": float(self.iou.mean()),
            "maxIoU": float(self.iou.max()),
            "Sm": self.s_measure,
            "wFm": self.weighted_f,
            "meanEm": float(self.e_measure.mean()),
            "maxEm": float(self.e_measure.max()),
            "adpEm": self.adaptive_e,
            "adpFm": self.adaptive_f,
            "MAE": self.mae,
        }


class PranetMean:
    """The mean of ``PranetScores`` over images, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Any] = {field.name: 0.0 for field in fields(PranetScores)}

    def add(self, scores: PranetScores) -> None:
        """Count one more image."""
        self.count += 1
        for name in self._sums:
            self._sums[name] = self._sums[name] + getattr(scores, name)

    def mean(self) -> PranetScores:
        """The mean over the images so far. Raises ``ValueError`` where there are none."""
        if self.count == 0:
            raise ValueError("no image was added; there is no mean")
        return PranetScores(**{name: total / self.count for name, total in self._sums.items()})


def quantise(probability: Map) -> NDArray[np.uint8]:
    """The 8-bit map that PraNet scores: stretched to 0..255 (min-max of this image) and rounded.

    PraNet's ``MyTest.py`` writes it so, with 1e-8 added to the range. A constant map is only rounded; a uint8 map is
    returned as it is.

    Args:
        probability: floats, any shape, 0..1; or uint8.

    Raises:
        ValueError: it is neither, contains no pixel, or a value is NaN or outside 0..1.
    """
    if probability.size == 0:
        raise ValueError("prediction contains no pixel")
    if probability.dtype == np.uint8:
        return probability.astype(np.uint8, copy=False)
    if not np.issubdtype(probability.dtype, np.floating):
        raise ValueError(f"prediction is {probability.dtype}; it must be float, 0..1, or uint8")
    low, high = probability.min(), probability.max()
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise ValueError(f"prediction contains values from {low} to {high}; they must lie in 0..1")
    if low == high:
        return np.full(probability.shape, round(float(low) * 255), np.uint8)
    stretched = probability - low
    stretched /= high - low
    stretched *= 255
    rounded: NDArray[np.uint8] = np.rint(stretched, out=stretched).astype(np.uint8)
    return rounded


def pranet_scores(probability: Map, truth: Mask) -> PranetScores:
    """Every score of one image, with the shared work done once.

    Args:
        probability: H×W floats, 0..1; or a uint8 map that another program wrote, taken as ``main.m`` takes a file
            (stretched, but not rounded again).
        truth: H×W bool.

    Raises:
        ValueError: the shapes differ or are not H×W, ``truth`` is not bool, the image is empty, or a value is NaN or
            outside 0..1.
    """
    frame = _Frame.of(probability, truth)
    adaptive_e, adaptive_f = _adaptive(frame)
    return PranetScores(
        **_overlap_curves(frame),
        e_measure=_e_measure(frame, *frame.passing()),
        s_measure=_s_measure(frame),
        weighted_f=_weighted_f(frame),
        mae=_mae(frame),
        adaptive_e=adaptive_e,
        adaptive_f=adaptive_f,
    )


@dataclass(frozen=True, eq=False)
class _Frame:
    """One image's 8-bit map and what its histogram says. A level's value is ``(level - low) / span``."""

    level: NDArray[np.uint8]
    truth: Mask
    rows: NDArray[np.int64]  # polyp pixels in each row
    columns: NDArray[np.int64]
    quadrants: NDArray[np.int64]  # 4 × 2 × 256 pixels: quadrant, truth, level
    low: int
    span: int

    @classmethod
    def of(cls, probability: Map, truth: Mask) -> _Frame:
        if probability.shape != truth.shape:
            raise ValueError(f"prediction is {probability.shape} but truth is {truth.shape}")
        if truth.ndim != 2 or truth.dtype != np.bool_:
            raise ValueError(f"truth is {truth.dtype} {truth.shape}; it must be bool H×W")
        level, truth = np.ascontiguousarray(quantise(probability)), np.ascontiguousarray(truth)

        # one pixel past the centroid, as MATLAB's 1:X includes X; round is half to even, as in PySODMetrics
        rows, columns = np.count_nonzero(truth, axis=1), np.count_nonzero(truth, axis=0)
        polyp = max(int(rows.sum()), 1)
        y = round(float(rows @ np.arange(len(rows))) / polyp) + 1
        x = round(float(columns @ np.arange(len(columns))) / polyp) + 1
        code = truth.astype(np.uint16)
        code <<= 8
        code |= level
        parts = (code[:y, :x], code[:y, x:], code[y:, :x], code[y:, x:])
        quadrants = np.stack([np.bincount(part.ravel(), minlength=512).reshape(2, 256) for part in parts])

        present = np.flatnonzero(quadrants.any(axis=(0, 1)))
        low, high = int(present[0]), int(present[-1])
        low, span = (0, 255) if low == high else (low, high - low)
        return cls(level, truth, rows, columns, quadrants, low, span)

    @property
    def background(self) -> NDArray[np.int64]:
        """Pixels of each level where the truth shows no polyp."""
        pixels: NDArray[np.int64] = self.quadrants[:, 0].sum(axis=0)
        return pixels

    @property
    def polyp(self) -> NDArray[np.int64]:
        """Pixels of each level on the polyp."""
        pixels: NDArray[np.int64] = self.quadrants[:, 1].sum(axis=0)
        return pixels

    @property
    def value(self) -> Curve:
        """The 256 levels' stretched values, 0..1."""
        # with the reference's roundings: they decide which threshold a level of a uint8 map reaches
        low, high = self.low / 255, (self.low + self.span) / 255
        return np.clip((_LEVEL / 255 - low) / (high - low), 0, 1)

    def passing(self) -> tuple[Curve, Curve]:
        """Pixels at or above each threshold: on the polyp (TP) and beside it (FP)."""
        reached = (self.value * 255).astype(np.intp)
        true = np.bincount(reached, self.polyp, minlength=256)[::-1].cumsum()[::-1]
        false = np.bincount(reached, self.background, minlength=256)[::-1].cumsum()[::-1]
        return true, false


def _overlap_curves(frame: _Frame) -> dict[str, Curve]:
    """Dice, IoU, precision and recall at the 256 thresholds; 0 where TP is 0."""
    true, false = frame.passing()
    polyp = frame.polyp.sum()
    return {
        "dice": _ratio(2 * true, true + false + polyp),
        "iou": _ratio(true, false + polyp),
        "precision": _ratio(true, true + false),
        "recall": _ratio(true, polyp),
    }


def _ratio(numerator: Curve, denominator: Any) -> Curve:
    """Numerator / denominator, 0 for 0 / 0."""
    ratio: Curve = numerator / np.maximum(denominator, 1)
    return ratio


def _e_measure(frame: _Frame, true: Any, false: Any) -> Curve:
    """E-measure (Fan et al., IJCAI 2018) of binary maps that hit ``true`` polyp pixels and ``false`` others.

    With P and T the binary maps less their means, ``Σ (1 + 2 P T / (P² + T²))² / 4 / (N - 1)`` over the N pixels;
    empty truth: the pixels not predicted / (N - 1); full truth: the pixels predicted / (N - 1). One count, or a vector
    of them.
    """
    size, polyp = frame.truth.size, int(frame.polyp.sum())
    predicted = np.asarray(true + false, dtype=np.float64)
    if polyp == 0:
        total = size - predicted
    elif polyp == size:
        total = predicted
    else:
        total = np.zeros_like(predicted)
        p, t = predicted / size, polyp / size
        parts = (
            (true, 1 - p, 1 - t),
            (false, 1 - p, -t),
            (polyp - true, -p, 1 - t),
            (size - polyp - false, -p, -t),
        )
        for count, a, b in parts:
            total += count * (1 + 2 * a * b / (a * a + b * b + _EPS)) ** 2 / 4
    return total / max(size - 1, 1)


def _adaptive(frame: _Frame) -> tuple[float, float]:
    """E-measure, and F-measure with β² = 0.3 (Achanta et al., CVPR 2009), at the threshold min(2 · mean, 1)."""
    background, polyp, size = frame.background, frame.polyp, frame.truth.size
    above = _LEVEL - frame.low
    # value >= min(2 mean, 1), in whole numbers: a level on the threshold itself always passes
    cut = min(2 * int(above @ (background + polyp)), frame.span * size)
    passes = above * size >= cut
    true, false, positive = int(polyp[passes].sum()), int(background[passes].sum()), int(polyp.sum())
    # (1 + β²) P R / (β² P + R), times TP
    f_measure = 1.3 * true / (true + false + 0.3 * positive) if true else 0.0
    return float(_e_measure(frame, true, false)), f_measure


def _mae(frame: _Frame) -> float:
    """Mean absolute error of the stretched map (Perazzi et al., CVPR 2012)."""
    above = _LEVEL - frame.low
    wrong = int(above @ frame.background) + int((frame.span - above) @ frame.polyp)
    return wrong / (frame.span * frame.truth.size)


def _s_measure(frame: _Frame) -> float:
    """Structure measure with α = 0.5 (Fan et al., ICCV 2017).

    Half the object score (mean and spread of the map on the polyp and beside it), half the region score (a structural
    similarity of the four quadrants around the truth's centroid, weighted by area); below 0 counts 0. Empty truth:
    1 - mean(map); full truth: mean(map).
    """
    size, polyp = frame.truth.size, int(frame.polyp.sum())
    if polyp in (0, size):
        mean = int((_LEVEL - frame.low) @ (frame.background + frame.polyp)) / (frame.span * size)
        return 1 - mean if polyp == 0 else mean
    share = polyp / size
    mean, spread = _mean_and_spread(frame.polyp, frame)
    on = 2 * mean / (mean**2 + 1 + spread + _EPS)
    mean, spread = _mean_and_spread(frame.background, frame)
    beside = 2 * (1 - mean) / ((1 - mean) ** 2 + 1 + spread + _EPS)
    region = sum(_similarity(quadrant, frame) * int(quadrant.sum()) / size for quadrant in frame.quadrants)
    return max(0.0, 0.5 * (share * on + (1 - share) * beside) + 0.5 * region)


def _mean_and_spread(counts: NDArray[np.int64], frame: _Frame) -> tuple[float, float]:
    """Mean and standard deviation (N - 1) of the values that a histogram counts."""
    above, n = _LEVEL - frame.low, int(counts.sum())
    total, squares = int(above @ counts), int(above**2 @ counts)
    # n Σk² - (Σk)² in whole numbers: nothing cancels, and a constant map has no spread at all
    return total / (n * frame.span), math.sqrt((n * squares - total**2) / (n * max(n - 1, 1))) / frame.span


def _similarity(quadrant: NDArray[np.int64], frame: _Frame) -> float:
    """The reference's SSIM of map and truth in one quadrant, from its 2 × 256 histogram; 0 for no pixels."""
    n, above = int(quadrant.sum()), _LEVEL - frame.low
    if n == 0:
        return 0.0
    polyp = int(quadrant[1].sum())
    on, total = int(above @ quadrant[1]), int(above @ quadrant.sum(axis=0))
    squares = int(above**2 @ quadrant.sum(axis=0))
    pairs = n * max(n - 1, 1)
    x, y = total / (n * frame.span), polyp / n
    variance = (n * squares - total**2) / (pairs * frame.span**2) + (n * polyp - polyp**2) / pairs
    covariance = (n * on - total * polyp) / (pairs * frame.span)
    alike, scale = 4 * x * y * covariance, (x * x + y * y) * variance
    if alike != 0:
        return alike / (scale + _EPS)
    return 1.0 if scale == 0 else 0.0


def _weighted_f(frame: _Frame) -> float:
    """Weighted F-measure with β = 1 (Margolin et al., CVPR 2014).

    An error on the polyp is forgiven as far as its 7×7 neighbourhood (Gaussian, σ = 5) is right; one beside it weighs
    ``2 - exp(ln(0.5) / 5 · D)``, D pixels from the polyp. Empty truth: 0.
    """
    polyp = int(frame.polyp.sum())
    if polyp == 0:
        return 0.0
    missed, extra = _missed(frame), _extra(frame)
    hit = polyp - missed
    recall, precision = 1 - missed / polyp, hit / (hit + extra + _EPS)
    return 2 * recall * precision / (recall + precision + _EPS)


def _missed(frame: _Frame) -> float:
    """The weighted error on the polyp: of each pixel, or of its neighbourhood where that is less."""
    # all that lies under the 7×7 kernel is the polyp's bounding box and 3 pixels around it, of which the outermost
    # may lie outside the image and count 0
    rows, columns = np.flatnonzero(frame.rows), np.flatnonzero(frame.columns)
    box = slice(max(rows[0] - 3, 0), rows[-1] + 4), slice(max(columns[0] - 3, 0), columns[-1] + 4)
    truth, error = frame.truth[box], 1 - frame.value[frame.level[box]]

    # a pixel beside the polyp takes the error of the nearest one on it, at most 3√2 away; of several the leftmost, then
    # the topmost, as in scipy's distance transform (which does the same for all pixels, slowly)
    near = cv2.dilate(truth.view(np.uint8), np.ones((7, 7), np.uint8)) > truth
    spread, width = np.pad(error, 4), truth.shape[1] + 8
    on, filled, pending = np.pad(truth, 4).ravel(), spread.ravel(), np.flatnonzero(np.pad(near, 4))
    for x, y in _NEAREST_FIRST:
        step = y * width + x
        found = on[pending + step]
        filled[pending[found]] = filled[pending[found] + step]
        pending = pending[~found]

    kernel = cv2.getGaussianKernel(7, 5, cv2.CV_64F)
    blurred = cv2.sepFilter2D(spread[4:-4, 4:-4], cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    return float(np.minimum(error, blurred)[truth].sum())


def _extra(frame: _Frame) -> float:
    """The weighted error beside the polyp: ``Σ value · (2 - 2^(-D/5))``."""
    # Pixels of level 0 have value 0 and add nothing, and beyond _REACH in float32 the weight is 2: what is
    # left lies in the bounding box of polyp and prediction, near the polyp's.
    rows, columns = np.flatnonzero(frame.rows), np.flatnonzero(frame.columns)
    left, top, width, height = cv2.boundingRect(frame.level)
    box = (
        slice(max(min(rows[0], top), rows[0] - _REACH), min(max(rows[-1] + 1, top + height), rows[-1] + 1 + _REACH)),
        slice(
            max(min(columns[0], left), columns[0] - _REACH),
            min(max(columns[-1] + 1, left + width), columns[-1] + 1 + _REACH),
        ),
    )
    beside = np.logical_not(frame.truth[box]).view(np.uint8)
    distance = np.asarray(cv2.distanceTransform(beside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
    # OpenCV's last bit depends on how memory lies; the squares are whole numbers, so rounding them settles it
    distance *= distance
    np.sqrt(np.rint(distance, out=distance), out=distance)
    distance *= np.float32(-0.2)
    near = np.exp2(distance, out=distance)
    near *= cv2.LUT(frame.level[box], frame.value.astype(np.float32))
    near *= beside
    return 2 * float(frame.value @ frame.background) - float(near.sum(dtype=np.float64))
