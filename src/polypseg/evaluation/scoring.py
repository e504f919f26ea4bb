"""Scoring a Segmenter on frames with masks: per image at original size, and by the known recipe's definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg.catalog import Catalog
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.overlap import dice
from polypseg.metrics.pixels import Confusion, confusion
from polypseg.models.losses import LossConfig, segmentation_loss
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


def score(
    segmenter: Segmenter, catalog: Catalog, loss: LossConfig, progress: bool = True, kept: Answers | None = None
) -> Scores:
    """Score a Segmenter once on the frames of a Catalog.

    Args:
        segmenter: what to test.
        catalog: frames with masks.
        loss: the loss to report.
        progress: show a progress bar.
        kept: what the segmenter said of these frames before, so that it is not asked again.

    Raises:
        PolypsegError: a frame or a mask cannot be read.
    """
    per_image, dice_global = score_masks(kept or segmenter, catalog, progress)
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
