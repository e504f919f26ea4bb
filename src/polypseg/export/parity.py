"""The proof of an export: its predictions beside PyTorch's in fp32, on the same frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.lesions import shows_polyp
from polypseg.metrics.overlap import dice


@dataclass(frozen=True)
class Parity:
    """How far an export is from PyTorch in fp32.

    Attributes:
        frames: number of frames compared.
        largest: largest difference of a pixel's probability, at the network's size.
        mean: mean difference of a pixel's probability.
        agreement: mean Dice of one mask against the other, at original size; 1 where they are the same.
        dice: mean Dice of both against the truth, ``{"torch": …, "export": …}``, over frames with a polyp; None where
            there are none, or no masks.
    """

    frames: int
    largest: float
    mean: float
    agreement: float
    dice: dict[str, float] | None

    @property
    def drop(self) -> float:
        """Mean Dice that the export loses; 0 where there are no masks."""
        return 0.0 if self.dice is None else self.dice["torch"] - self.dice["export"]

    def to_dict(self) -> dict[str, Any]:
        """In plain types, as the bundle keeps it."""
        return {
            "against": "torch fp32",
            "frames": self.frames,
            "probability_difference": {"largest": round(self.largest, 7), "mean": round(self.mean, 7)},
            "mask_agreement": round(self.agreement, 6),
            "dice": None if self.dice is None else {name: round(value, 6) for name, value in self.dice.items()},
        }


def compare(
    reference: Segmenter, export: Segmenter, frames: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]
) -> Parity:
    """Predict the same frames twice and compare.

    Args:
        reference: the bundle by PyTorch in fp32.
        export: the same bundle by an export.
        frames: H×W×3 uint8 RGB frames, each with its H×W bool mask; all or none have one. At least one.
    """
    largest, means, agreements, scores = 0.0, [], [], []
    for frame, truth in frames:
        maps = reference.probability(frame), export.probability(frame)
        difference = np.abs(maps[1] - maps[0])
        largest = max(largest, float(difference.max()))
        means.append(float(difference.mean()))
        expected, found = (reference.segmentation(one, *frame.shape[:2]).mask for one in maps)
        agreements.append(dice(found, expected))
        if truth is not None and shows_polyp(truth):
            scores.append((dice(expected, truth), dice(found, truth)))
    both = dict(zip(("torch", "export"), np.mean(scores, axis=0).tolist(), strict=True)) if scores else None
    return Parity(len(means), largest, float(np.mean(means)), float(np.mean(agreements)), both)
