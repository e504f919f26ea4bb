"""Scoring a Segmenter on frames with masks: per image at original size, and by the baseline recipe's definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg.catalog import Catalog
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.lesions import shows_polyp
from polypseg.metrics.overlap import dice
from polypseg.metrics.pixels import Confusion, confusion
from polypseg.models.losses import LossConfig, segmentation_loss
from polypseg.segmentation import Enlarged, Segmentation

NO_POLYP = "no frame shows a polyp"
DEFINITIONS = {
    "dice": "mean over images with a polyp of Dice at the bundle's threshold, at original size",
    "iou": "mean over images with a polyp of IoU at the bundle's threshold, at original size",
    "dice_network_size": "mean over images with a polyp of Dice at probability 0.5, at the network's size",
    "dice_global": "Dice of all images' pixels pooled, at the bundle's threshold, at original size",
    "dice_batch": "the baseline recipe's: Dice pooled over each batch of 16 at the network's size, at 0.5, mean over "
    "batches with a polyp",
    "loss": "the recipe's training loss, mean over images",
}
RECIPE_BATCH = 16  # the baseline recipe's; the value of dice_batch depends on it


class Streams(Protocol):
    """A Segmenter, or what else predicts frames in order."""

    def stream(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[Segmentation]:
        """One Segmentation for each H×W×3 uint8 RGB frame."""
        ...


@dataclass(frozen=True)
class Scores:
    """What a Segmenter scored.

    Attributes:
        summary: the value of each of ``DEFINITIONS``, None where no frame shows a polyp, and ``n``, the number of
            frames.
        per_image: columns ``dataset, frame_id, dice, iou, area`` (polyp pixels over all pixels); Dice and IoU of a
            frame without a polyp are NaN.
    """

    summary: dict[str, float | None]
    per_image: pd.DataFrame


def score(
    segmenter: Segmenter, catalog: Catalog, loss: LossConfig, progress: bool = True, kept: Streams | None = None
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
    network_size = NetworkSize(segmenter, loss)
    per_image, dice_global = score_masks(kept or segmenter, catalog, progress, network_size)
    shown = per_image.dropna(subset="dice")
    summary = {
        "n": len(per_image),
        "dice": float(shown["dice"].mean()) if len(shown) else None,
        "iou": float(shown["iou"].mean()) if len(shown) else None,
        "dice_global": dice_global,
        **network_size.summary(),
    }
    return Scores(summary, per_image)


def score_masks(
    segmenter: Streams, catalog: Catalog, progress: bool = True, network_size: NetworkSize | None = None
) -> tuple[pd.DataFrame, float | None]:
    """``Scores.per_image``, and the Dice of all images' pixels pooled, None where no frame shows a polyp.

    Args:
        segmenter: what predicts the frames.
        catalog: frames with masks.
        progress: show a progress bar.
        network_size: gathers its scores from the same predictions.

    Raises:
        PolypsegError: a frame or a mask cannot be read.
    """
    rows = []
    pooled = Confusion()
    frames = (catalog.frame(index) for index in range(len(catalog)))
    predictions = tqdm(
        segmenter.stream(frames), "testing", len(catalog), unit="frame", disable=not progress, leave=False
    )
    for index, predicted in enumerate(predictions):
        truth = catalog.mask(index)
        row, counts = catalog.row(index), confusion(predicted.mask, truth)
        pooled = pooled + counts
        polyp = shows_polyp(truth)
        rows.append(
            {
                "dataset": row.dataset,
                "frame_id": row.frame_id,
                "dice": counts.dice if polyp else np.nan,
                "iou": counts.iou if polyp else np.nan,
                "area": float(truth.mean()),
            }
        )
        if network_size is not None:
            network_size.add(predicted, truth)
    table = pd.DataFrame(rows)
    return table, pooled.dice if table["dice"].notna().any() else None


class NetworkSize:
    """Gathers the definitions that need the network's size: ``dice_network_size``, ``dice_batch`` and ``loss``.

    They are taken from the probabilities that were predicted, so that no frame is computed twice. A probability of
    float32 cannot distinguish logits beyond ±16; a loss counts them as such. Without torch there is no
    loss.

    Args:
        segmenter: whose predictions will come, in order.
        loss: to report.
    """

    def __init__(self, segmenter: Segmenter, loss: LossConfig) -> None:
        self._preprocessing = segmenter.preprocessing
        # The training loss is that of logits before the temperature; of a mean there is only what it gives.
        single = len(segmenter.bundles) == len(segmenter.bundle.networks) == 1 and segmenter.tta == "none"
        self._temperature = segmenter.temperature if single else 1.0
        self._loss, self._with_loss = loss, find_spec("torch") is not None
        self._batch: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
        self._losses: list[float] = []
        self._per_batch: list[float] = []
        self._per_image: list[float] = []

    def add(self, predicted: Segmentation, truth: NDArray[np.bool_]) -> None:
        """Count one frame: its prediction, and its truth of the frame's size."""
        assert isinstance(predicted.source, Enlarged)
        mask = self._preprocessing.resize_mask(truth) > 0
        self._batch.append((predicted.source.small, mask))
        if len(self._batch) == RECIPE_BATCH:
            self._finish()

    def summary(self) -> dict[str, float | None]:
        """The three of all frames so far; a mean without a frame that shows a polyp is None."""
        if self._batch:
            self._finish()
        values = {"dice_network_size": self._per_image, "dice_batch": self._per_batch, "loss": self._losses}
        return {name: float(np.mean(one)) if one else None for name, one in values.items()}

    def _finish(self) -> None:
        small, truth = (np.stack(one) for one in zip(*self._batch, strict=True))
        self._batch = []
        mean = small.clip(1e-7, 1 - 1e-7)
        logits = self._temperature * (np.log(mean) - np.log1p(-mean))
        if self._with_loss:
            import torch

            pair = torch.from_numpy(logits)[:, None], torch.from_numpy(truth)[:, None]
            self._losses += [float(segmentation_loss(*pair, self._loss))] * len(truth)
        prediction = small > np.float32(0.5)
        shown = truth.any((1, 2))
        if shown.any():
            self._per_batch.append(dice(prediction, truth))
        self._per_image += [dice(prediction[index], truth[index]) for index in np.flatnonzero(shown)]
