"""Scoring a Segmenter on frames with masks: per image at original size, and by the known recipe's definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg.catalog import Catalog
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.overlap import dice, dice_at_thresholds
from polypseg.metrics.pixels import Confusion, confusion
from polypseg.models.losses import LossConfig, segmentation_loss
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Segmentation

DEFINITIONS = {
    "dice": "mean over images of Dice at the bundle's threshold, at original size; empty on empty is 1",
    "iou": "mean over images of IoU at the bundle's threshold, at original size; empty on empty is 1",
    "dice_network_size": "mean over images of Dice at probability 0.5, at the network's size",
    "dice_global": "Dice of all images' pixels pooled, at the bundle's threshold, at original size",
    "dice_batch": "the known recipe's: Dice pooled over each batch of 16 at the network's size, at 0.5, mean over "
    "batches",
    "loss": "the recipe's training loss, mean over images",
}
RECIPE_BATCH = 16  # the known recipe's; the value of dice_batch depends on it
THRESHOLDS: NDArray[np.float32] = np.linspace(0.05, 0.95, 19).astype(np.float32)
# Simplest first: of equal ones the first is taken.
CLEANINGS = tuple(
    OperatingPoint(min_area=min_area, fill_holes=fill_holes)
    for fill_holes in (False, True)
    for min_area in (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01)
)
SMALLEST_GAIN = 0.0005  # of mean Dice; what gains less on validation is chance, and is left out


class Answers(Protocol):
    """A Segmenter, or what else answers frames in order."""

    def stream(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[Segmentation]:
        """One Segmentation for each H×W×3 uint8 RGB frame."""
        ...


@dataclass(frozen=True)
class Scores:
    """What a Segmenter scored.

    Attributes:
        summary: the value of each of ``DEFINITIONS``, and ``n``, the number of frames.
        per_image: columns ``dataset, frame_id, dice, iou, area`` (polyp pixels over all pixels).
    """

    summary: dict[str, float]
    per_image: pd.DataFrame


def score(segmenter: Segmenter, catalog: Catalog, loss: LossConfig, progress: bool = True) -> Scores:
    """Score a Segmenter once on the frames of a Catalog.

    Args:
        segmenter: what to test.
        catalog: frames with masks.
        loss: the loss to report.
        progress: show a progress bar.

    Raises:
        PolypsegError: a frame or a mask cannot be read.
    """
    per_image, dice_global = score_masks(segmenter, catalog, progress)
    summary = {
        "n": len(per_image),
        "dice": float(per_image["dice"].mean()),
        "iou": float(per_image["iou"].mean()),
        "dice_global": dice_global,
        **at_network_size(segmenter, catalog, loss),
    }
    return Scores(summary, per_image)


def score_masks(segmenter: Answers, catalog: Catalog, progress: bool = True) -> tuple[pd.DataFrame, float]:
    """``Scores.per_image``, and the Dice of all images' pixels pooled. Raises as ``score``."""
    rows = []
    pooled = Confusion()
    frames = (catalog.frame(index) for index in range(len(catalog)))
    answers = tqdm(segmenter.stream(frames), "testing", len(catalog), unit="frame", disable=not progress, leave=False)
    for index, answer in enumerate(answers):
        truth = catalog.mask(index)
        row, counts = catalog.row(index), confusion(answer.mask, truth)
        pooled = pooled + counts
        rows.append(
            {
                "dataset": row.dataset,
                "frame_id": row.frame_id,
                "dice": counts.dice,
                "iou": counts.iou,
                "area": float(truth.mean()),
            }
        )
    return pd.DataFrame(rows), pooled.dice


def at_network_size(segmenter: Segmenter, catalog: Catalog, loss: LossConfig) -> dict[str, float]:
    """The definitions that need the network's size: ``dice_network_size``, ``dice_batch`` and ``loss``.

    Raises:
        PolypsegError: a frame or a mask cannot be read.
    """
    losses: list[float] = []
    per_batch: list[float] = []
    per_image: list[float] = []
    preprocessing = segmenter.preprocessing
    for start in range(0, len(catalog), RECIPE_BATCH):
        batch = range(start, min(start + RECIPE_BATCH, len(catalog)))
        images = np.stack([preprocessing.resize_frame(catalog.frame(index)) for index in batch])
        truth = np.stack([preprocessing.resize_mask(catalog.mask(index)) for index in batch])[:, None] > 0
        logits = torch.from_numpy(segmenter.logits(images))[:, None]
        prediction = (logits > 0).numpy()  # probability above 0.5
        losses += [float(segmentation_loss(logits, torch.from_numpy(truth), loss))] * len(truth)
        per_batch.append(dice(prediction, truth))
        per_image += [dice(one, other) for one, other in zip(prediction, truth, strict=True)]
    return {
        "dice_network_size": float(np.mean(per_image)),
        "dice_batch": float(np.mean(per_batch)),
        "loss": float(np.mean(losses)),
    }


def choose_threshold(segmenter: Answers, catalog: Catalog, progress: bool = True) -> tuple[float, dict[str, Any]]:
    """The threshold of ``THRESHOLDS`` with the best mean per-image Dice at original size.

    Returns:
        The threshold and ``{threshold: mean Dice}`` of all that were tried.

    Raises:
        PolypsegError: a frame or a mask cannot be read.
    """
    total = np.zeros(len(THRESHOLDS))
    frames = (catalog.frame(index) for index in range(len(catalog)))
    answers = tqdm(
        segmenter.stream(frames), "choosing the threshold", len(catalog), unit="frame", disable=not progress,
        leave=False,
    )  # fmt: skip
    for index, answer in enumerate(answers):
        total += dice_at_thresholds(answer.probability, catalog.mask(index), THRESHOLDS)
    means = total / len(catalog)
    return round(float(THRESHOLDS[means.argmax()]), 2), {
        f"{threshold:.2f}": round(float(mean), 6) for threshold, mean in zip(THRESHOLDS, means, strict=True)
    }


def choose_cleaning(
    segmenter: Answers, catalog: Catalog, point: OperatingPoint, progress: bool = True
) -> tuple[OperatingPoint, list[dict[str, Any]]]:
    """The point with the one of ``CLEANINGS`` that has the best mean per-image Dice at original size; none for a
    chance gain.

    Args:
        segmenter: whose probabilities are taken.
        catalog: frames with masks.
        point: whose threshold makes the masks.
        progress: show a progress bar.

    Returns:
        The choice, and each that was tried as ``{"min_area": …, "fill_holes": …, "dice": …}``.

    Raises:
        PolypsegError: a frame or a mask cannot be read.
    """
    total = np.zeros(len(CLEANINGS))
    frames = (catalog.frame(index) for index in range(len(catalog)))
    answers = tqdm(
        segmenter.stream(frames), "choosing the smallest region", len(catalog), unit="frame", disable=not progress,
        leave=False,
    )  # fmt: skip
    for index, answer in enumerate(answers):
        truth = catalog.mask(index)
        mask = answer.probability >= np.float32(point.threshold)
        total += [dice(one.clean(mask), truth) for one in CLEANINGS]
    means = total / len(catalog)
    best = CLEANINGS[int(means.argmax()) if means.max() >= means[0] + SMALLEST_GAIN else 0]
    tried = [
        {"min_area": one.min_area, "fill_holes": one.fill_holes, "dice": round(float(mean), 6)}
        for one, mean in zip(CLEANINGS, means, strict=True)
    ]
    return replace(point, min_area=best.min_area, fill_holes=best.fill_holes), tried
