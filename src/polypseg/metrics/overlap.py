"""Overlap of a predicted mask with the truth: Dice and IoU, per image and pooled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice coefficient of one image, ``2 |P ∩ T| / (|P| + |T|)``, 0..1 (Dice, Ecology 1945).

    Both empty gives 1; anything predicted on an empty truth gives 0.

    Args:
        prediction: bool, any shape.
        truth: bool, the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    intersection, total = _counts(prediction, truth)
    return 1.0 if total == 0 else 2.0 * intersection / total


def iou(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union of one image, ``|P ∩ T| / |P ∪ T|``, 0..1 (Jaccard, 1912); empties as ``dice``."""
    intersection, total = _counts(prediction, truth)
    return 1.0 if total == 0 else intersection / (total - intersection)


def dice_at_thresholds(
    probability: NDArray[np.float32], truth: NDArray[np.bool_], thresholds: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Dice of one image at each of several thresholds (``probability >= threshold``), in one pass.

    Args:
        probability: float32 map, 0..1.
        truth: bool, same shape.
        thresholds: T float32 values, ascending.

    Returns:
        T float64 values, 0..1, empties as in ``dice``.
    """
    if probability.shape != truth.shape:
        raise ValueError(f"prediction is {probability.shape} but truth is {truth.shape}")
    # bin k contains the pixels that pass exactly the first k thresholds
    bins = np.searchsorted(thresholds, probability.ravel(), side="right")
    every = np.bincount(bins, minlength=len(thresholds) + 1)
    polyp = np.bincount(bins[truth.ravel()], minlength=len(thresholds) + 1)
    predicted = every[::-1].cumsum()[::-1][1:]
    intersection = polyp[::-1].cumsum()[::-1][1:]
    total = predicted + np.count_nonzero(truth)
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


def check_masks(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
    """Refuse anything but two H×W bool masks of one shape with at least one pixel, by ``ValueError``."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape} but truth is {truth.shape}")
    if truth.ndim != 2 or truth.size == 0:
        raise ValueError(f"masks must be H×W with at least one pixel, not {truth.shape}")
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(f"masks must be bool, not {prediction.dtype} and {truth.dtype}")


def _counts(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[int, int]:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape} but truth is {truth.shape}")
    intersection = int(np.count_nonzero(prediction & truth))
    return intersection, int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
