"""One frame's answer: mask, probability and the list of polyps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Polyp:
    """One connected region of a mask.

    Attributes:
        box: ``(xmin, ymin, xmax, ymax)`` in pixels of the original frame; the maxima are exclusive.
        area: pixels.
        confidence: mean probability inside the region, 0..1.
        contour: N×2 int32 array of (x, y) points of the outer boundary, in pixels.
    """

    box: tuple[int, int, int, int]
    area: int
    confidence: float
    contour: NDArray[np.int32]

    def to_dict(self) -> dict[str, Any]:
        """The polyp in plain Python types, for JSON."""
        return {
            "box": list(self.box),
            "area": self.area,
            "confidence": round(self.confidence, 6),
            "contour": self.contour.tolist(),
        }


@dataclass(frozen=True)
class Segmentation:
    """What a model says of one frame, at the frame's original size.

    Attributes:
        mask: H×W bool; ``probability >= threshold``, then post-processed where the model has that.
        probability: H×W float32, 0..1.
        threshold: 0..1.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    threshold: float

    @classmethod
    def from_probability(cls, probability: NDArray[np.float32], threshold: float) -> Segmentation:
        """Threshold an H×W float32 probability map (0..1) into a Segmentation."""
        return cls(mask=probability >= np.float32(threshold), probability=probability, threshold=threshold)

    @cached_property
    def polyps(self) -> list[Polyp]:
        """The 8-connected regions of the mask, largest first."""
        # Labels only the part of the frame that holds polyps: that is most of the cost on large frames.
        left, top, across, down = cv2.boundingRect(self.mask.view(np.uint8))
        if not across:
            return []
        part = np.s_[top : top + down, left : left + across]
        mask, probability = np.ascontiguousarray(self.mask[part]), self.probability[part]
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        polyps = []
        for label in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[label])
            window = np.s_[y : y + height, x : x + width]
            region = labels[window] == label
            x, y = x + left, y + top
            contours, _ = cv2.findContours(
                region.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
            )
            polyps.append(
                Polyp(
                    box=(x, y, x + width, y + height),
                    area=area,
                    confidence=cv2.mean(probability[window], region.view(np.uint8))[0],
                    contour=max(contours, key=len).reshape(-1, 2).astype(np.int32),
                )
            )
        return sorted(polyps, key=lambda polyp: -polyp.area)
