"""Calibration: do the probabilities mean what they say, how to mend them, and a threshold with a guarantee.

Everything here is gathered frame by frame in memory that does not grow with the number of frames, but for the
conformal threshold, which keeps one curve a frame. Probabilities are float32 0..1, truths bool of the same shape.
A polyp-free frame counts like any other in ECE, Brier score and temperature; in ``miss_rates`` its risk is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from polypseg.errors import PolypsegError

TEMPERATURES = (0.05, 20.0)  # the range that is searched
# Zero, at which nothing is missed, then even steps of logit: a missed polyp's probabilities crowd near 0.
CONFORMAL_THRESHOLDS: NDArray[np.float32] = np.r_[0, expit(np.linspace(-12, 12, 961))].astype(np.float32)


class Reliability:
    """Reliability of pixel probabilities, in equal bins of 0..1 (DeGroot & Fienberg, The Statistician 1983).

    Bin k contains ``edges[k] <= p < edges[k + 1]``; the last one contains 1 as well. Binary, not top-label: the
    confidence of a pixel is its probability of polyp. Most pixels are plain background and right; they make every
    number here small, so compare it between models on the same frames only.

    Attributes:
        edges: bins + 1 float32 values from 0 to 1.
        counts: pixels a bin, int64.
        confidence_sum: sum of their probabilities, float64.
        positives: polyp pixels among them, int64.
        squared_error: sum over all pixels of ``(p - truth)²``.
    """

    def __init__(self, bins: int = 15) -> None:
        """Start empty. Raises ValueError where ``bins`` is below 1."""
        if bins < 1:
            raise ValueError(f"bins is {bins}; give 1 or more")
        self.edges: NDArray[np.float32] = np.linspace(0, 1, bins + 1, dtype=np.float32)
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.confidence_sum: NDArray[np.float64] = np.zeros(bins)
        self.positives: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.squared_error = 0.0

    def add(self, probability: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Count one frame's pixels.

        Args:
            probability: float32, 0..1, any shape.
            truth: bool, the same shape.

        Raises:
            ValueError: shapes or types are wrong, or a probability is NaN or outside 0..1.
        """
        values, polyp = _checked(probability, truth)
        bins = len(self.counts)
        # Most pixels lie in the first or the last bin, which need no search.
        first = values < self.edges[1]
        last = (values >= self.edges[-2]) & ~first
        for inside, position in ((first, 0), (last, -1)):
            self.counts[position] += np.count_nonzero(inside)
            self.positives[position] += np.count_nonzero(inside & polyp)
            self.confidence_sum[position] += values[inside].sum(dtype=np.float64)
        between = np.flatnonzero(~(first | last))
        index = np.searchsorted(self.edges, values[between], side="right") - 1
        self.counts += np.bincount(index, minlength=bins)
        self.positives += np.bincount(index[polyp[between]], minlength=bins)
        self.confidence_sum += np.bincount(index, weights=values[between], minlength=bins)
        error = values.astype(np.float64) - polyp
        self.squared_error += float(error @ error)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Mean probability in each bin, 0..1; NaN in an empty one."""
        return self._of_each(self.confidence_sum)

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Share of polyp pixels in each bin, 0..1; NaN in an empty one."""
        return self._of_each(self.positives)

    def _of_each(self, sums: NDArray[Any]) -> NDArray[np.float64]:
        empty = np.full(len(self.counts), np.nan)
        means: NDArray[np.float64] = np.divide(sums, self.counts, out=empty, where=self.counts > 0)
        return means

    def ece(self) -> float:
        """Expected calibration error, ``Σ_k n_k / n · |frequency_k - confidence_k|``, 0..1.

        Naeini, Cooper & Hauskrecht, AAAI 2015, in its binary form. Torchmetrics' ``BinaryCalibrationError`` with
        ``norm="l1"`` has the same bins and the same binary convention, but gives the pixels of probability exactly 1
        a bin of their own, so that it has 16 where it says 15; the two agree where there are none.

        Raises:
            ValueError: no pixel was added.
        """
        return float(np.abs(self.positives - self.confidence_sum).sum() / self._pixels())

    def brier(self) -> float:
        """Brier score, the mean over all pixels of ``(p - truth)²``, 0..1 (Brier, Monthly Weather Review 1950).

        Raises:
            ValueError: no pixel was added.
        """
        return self.squared_error / self._pixels()

    def _pixels(self) -> int:
        pixels = int(self.counts.sum())
        if pixels == 0:
            raise ValueError("no pixels were added")
        return pixels


def log_loss(probability: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Mean negative log-likelihood of a frame's pixels, each 16.1 at most; arguments as of ``Reliability.add``."""
    values, polyp = _checked(probability, truth)
    right = np.where(polyp, values, 1 - values)
    return float(-np.log(np.maximum(right, np.float32(1e-7))).mean(dtype=np.float64))


def fit_temperature(predict: Callable[[float], Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]]]) -> float:
    """The temperature T > 0 with the least ``log_loss``, mean over frames.

    Guo, Pleiss, Sun & Weinberger, ICML 2017. T > 1 softens an over-confident model. Where a model parts the classes
    without error T would go to 0; it stops where 32 bits show no difference any more, at 0.05 at the latest.

    Args:
        predict: from a temperature to each frame's probabilities and truth, as a model uses it: of a mean of several
            views, that of views with logits divided by T. The frames are such as the model was not trained on.

    Returns:
        T, 0.05..20.

    Raises:
        PolypsegError: the frames contain no polyp pixel, or nothing else.
    """
    polyp = [(truth.any(), truth.all()) for _, truth in predict(1.0)]
    if not any(some for some, _ in polyp) or all(every for _, every in polyp):
        kind = "background" if any(some for some, _ in polyp) else "polyp"
        raise PolypsegError(f"temperature: the calibration frames contain no {kind} pixels; add frames that show both")

    def loss(log_temperature: float) -> float:
        return float(np.mean([log_loss(*frame) for frame in predict(float(np.exp(log_temperature)))]))

    bounds = tuple(np.log(TEMPERATURES))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def miss_rates(
    probability: NDArray[np.float32], truth: NDArray[np.bool_], thresholds: NDArray[np.float32]
) -> NDArray[np.float64]:
    r"""Missed-pixel fraction of one frame at each threshold, ``|T \ P| / |T|`` with P where ``p >= threshold``.

    One pass over the polyp's pixels. It never falls as the threshold rises. A frame without a polyp has nothing to
    miss: its fraction is 0 at every threshold, whatever is predicted.

    Args:
        probability: float32, 0..1, any shape.
        truth: bool, the same shape.
        thresholds: T float32 values, ascending.

    Returns:
        T float64 values, 0..1.

    Raises:
        ValueError: as ``Reliability.add``, or the thresholds do not ascend.
    """
    values, polyp = _checked(probability, truth)
    limits = _ascending(thresholds)
    inside = values[polyp]
    # bin k contains the pixels that pass exactly the first k thresholds
    passed = np.bincount(np.searchsorted(limits, inside, side="right"), minlength=len(limits) + 1)
    return passed.cumsum()[:-1] / max(len(inside), 1)


@dataclass(frozen=True)
class ConformalThreshold:
    """A threshold whose expected missed-pixel fraction is controlled.

    Attributes:
        threshold: a pixel is polyp at this probability and above; 0 predicts every pixel.
        alpha: the promised bound of the expected missed-pixel fraction.
        risk: the mean missed-pixel fraction of the calibration frames at the threshold.
        n: calibration frames.
    """

    threshold: float
    alpha: float
    risk: float
    n: int


def conformal_threshold(
    rates: NDArray[np.float64], thresholds: NDArray[np.float32], alpha: float
) -> ConformalThreshold:
    """The largest threshold λ with ``n / (n + 1) · R(λ) + 1 / (n + 1) <= α``, R the mean of the frames' miss rates.

    Conformal risk control (Angelopoulos, Bates, Fisch, Lei & Schuster, ICLR 2024) of a risk bounded by 1. Promised:
    on a new frame that is exchangeable with the calibration frames, the expected missed-pixel fraction is at most α.
    "Expected" is over the draw of the calibration frames and of the new one; a single polyp may be missed
    altogether. The promise is void where the model was trained or chosen on these frames, where the frames are of
    another hospital, or where many of them are of one sequence. Frames without a polyp have risk 0 and count in n:
    leave them out on both sides for a promise about frames with a polyp.

    Args:
        rates: n×T float64, ``miss_rates`` of each calibration frame.
        thresholds: T float32 values, ascending, fixed before the frames were seen (``CONFORMAL_THRESHOLDS``).
        alpha: 0..1, exclusive.

    Raises:
        PolypsegError: no threshold keeps the bound: there are too few frames for this α, or too much is missed at
            the lowest threshold.
        ValueError: shapes are wrong, a rate is NaN, outside 0..1 or falls as the threshold rises, or α is not
            between 0 and 1.
    """
    curves = np.asarray(rates, np.float64)
    limits = _ascending(thresholds)
    if curves.ndim != 2 or curves.shape[1] != len(limits) or len(curves) == 0:
        raise ValueError(f"rates are {curves.shape} but there are {len(limits)} thresholds; give one row a frame")
    if not (curves.min() >= 0 and curves.max() <= 1) or (np.diff(curves, axis=1) < 0).any():
        raise ValueError("rates must lie in 0..1 and never fall as the threshold rises")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    n = len(curves)
    risks = curves.mean(axis=0)
    kept = np.flatnonzero((n * risks + 1) / (n + 1) <= alpha * (1 + 1e-12))  # n = 19 must do for α = 0.05
    if len(kept) == 0:
        if 1 / (n + 1) > alpha * (1 + 1e-12):
            needed = int(np.ceil(1 / alpha * (1 - 1e-12))) - 1
            raise PolypsegError(f"alpha {alpha:g}: needs at least {needed} calibration frames but there are {n}")
        raise PolypsegError(
            f"alpha {alpha:g}: cannot be kept, {risks[0]:.3f} of the polyp's pixels are missed even at threshold "
            f"{limits[0]:g}; give a larger alpha or lower thresholds"
        )
    chosen = int(kept[-1])
    return ConformalThreshold(float(limits[chosen]), float(alpha), float(risks[chosen]), n)


def _checked(
    probability: NDArray[np.float32], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Both flat, after the checks that every frame needs."""
    values, polyp = np.asarray(probability, np.float32), np.asarray(truth)
    if values.shape != polyp.shape:
        raise ValueError(f"prediction is {values.shape} but truth is {polyp.shape}")
    if polyp.dtype != np.bool_:
        raise ValueError(f"truth is {polyp.dtype}; it must be bool")
    _check_range(values)
    return values.ravel(), polyp.ravel()


def _check_range(values: NDArray[np.float32]) -> None:
    # a NaN is the minimum of what contains one, and fails the comparison
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("probabilities must lie in 0..1 and contain no NaN")


def _ascending(thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
    limits = np.asarray(thresholds, np.float32)
    if limits.ndim != 1 or len(limits) == 0 or not (np.diff(limits) > 0).all():
        raise ValueError("thresholds must be a row of ascending numbers")
    return limits
