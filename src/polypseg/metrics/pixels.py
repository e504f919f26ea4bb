"""Pixel-wise scores from one confusion count: precision, recall, specificity, F1, F2, accuracy.

Counts of several images add up (``+``, or ``sum(counts, Confusion())``), so that the same properties give the
data-set-global scores: those of all pixels pooled, where large polyps weigh more than small ones.

Where a score's denominator is 0 it is 1 if the whole count contains no error, else 0: an empty mask predicted empty
scores 1 in all, anything predicted on it 0 in precision, recall and F; specificity obeys the same rule on a truth that
is full. scikit-learn warns and returns 0 there, or what its ``zero_division`` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Confusion:
    """How many pixels are true and false positives, false and true negatives; a positive pixel shows a polyp.

    Every score lies in 0..1. Of no pixels at all they raise ``ValueError``.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        """The counts of both, pooled."""
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def precision(self) -> float:
        """``TP / (TP + FP)``: the share of what was predicted that is polyp (positive predictive value)."""
        return self._ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """``TP / (TP + FN)``: the share of the polyp that was predicted (sensitivity, true positive rate)."""
        return self._ratio(self.tp, self.tp + self.fn)

    @property
    def sensitivity(self) -> float:
        """``recall`` under its medical name."""
        return self.recall

    @property
    def specificity(self) -> float:
        """``TN / (TN + FP)``: the share of the background that was left alone (true negative rate)."""
        return self._ratio(self.tn, self.tn + self.fp)

    @property
    def accuracy(self) -> float:
        """``(TP + TN) / all``; on frames that are mostly background, high for an empty prediction too."""
        return self._ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def f1(self) -> float:
        """``f_beta(1)``, the harmonic mean of precision and recall: Dice by another name."""
        return self.f_beta(1)

    @property
    def f2(self) -> float:
        """``f_beta(2)``: recall counts twice as much as precision (EndoCV2021's main score)."""
        return self.f_beta(2)

    @property
    def dice(self) -> float:
        """``2 TP / (2 TP + FP + FN)``; of pooled counts, the data-set-global Dice."""
        return self.f_beta(1)

    @property
    def iou(self) -> float:
        """``TP / (TP + FP + FN)``; of pooled counts, the data-set-global IoU."""
        return self._ratio(self.tp, self.tp + self.fp + self.fn)

    def f_beta(self, beta: float) -> float:
        """``(1 + β²) TP / ((1 + β²) TP + β² FN + FP)``, β > 0 (van Rijsbergen, Information Retrieval, 1979)."""
        weighted = (1 + beta**2) * self.tp
        return self._ratio(weighted, weighted + beta**2 * self.fn + self.fp)

    def _ratio(self, part: float, whole: float) -> float:
        if whole:
            return part / whole
        if self == Confusion():
            raise ValueError("no pixel was counted; there is no score")
        return 1.0 if self.fp == self.fn == 0 else 0.0


def confusion(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Confusion:
    """Count one image's pixels.

    Args:
        prediction: bool, any shape.
        truth: bool, the same shape.

    Raises:
        ValueError: the shapes differ, or an array is not bool.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape} but truth is {truth.shape}")
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(f"prediction is {prediction.dtype} and truth is {truth.dtype}; both must be bool")
    tp = int(np.count_nonzero(prediction & truth))
    predicted, polyp = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    return Confusion(tp=tp, fp=predicted - tp, fn=polyp - tp, tn=truth.size - predicted - polyp + tp)
