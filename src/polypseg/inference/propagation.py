"""A corrected mask carried from frame to frame: by optical flow, together with the model's probability.

Not the mask is carried but the correction: what the mask says beyond the model's probability, moved along the flow, is
added to the next frame's own probability. So where the model is right there, the outline follows the polyp, and where
it was put right, it stays so. Where the flow cannot be trusted, the correction fades, and the model stands alone.

The flow is OpenCV's DIS, on frames shrunk to ``SIDE`` pixels, forward and backward; a pixel is trusted where both agree
within ``APART``. As frames of an examination jump, it is tried from three beginnings, from rest, from where the region
is found again by its looks, and from where the model sees its largest one; what explains the region best is taken.

**Sureness**, 0..1, is of a step the overlap (Dice) of the new mask with the moved one, times the better of two
witnesses: the flow (share of trusted pixels times the correlation of what was moved with what is there) and the model
(its mean probability inside the new mask). Of a frame it is the least of all steps so far. ``MIN_SURENESS`` is where a
mask is offered no more; docs/explanation/annotation.md says what that gives on real sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.inference.quality import correlation
from polypseg.metrics.overlap import dice

SIDE = 288  # pixels, of the longer side of the frames that the flow is computed on
APART = 1.5  # of those pixels: the most that forward and backward flow differ where they are trusted
MIN_SURENESS = 0.5
LEAST = 10  # of those pixels: a smaller region cannot be followed
AWAY = 3.0  # of those pixels: a second beginning that lies nearer than this to rest is none
MARGIN = 6  # of those pixels around a region, looked for with it
_NEAR = np.ones((9, 9), np.uint8)
Map = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Propagated:
    """A frame's mask as it was carried there.

    Attributes:
        mask: H×W bool, at the frame's size.
        sureness: 0..1.
    """

    mask: NDArray[np.bool_]
    sureness: float


class Propagation:
    """Carries a mask on from one frame to the next, in either direction of time.

    Args:
        frame: H×W×3 uint8 RGB, of which the mask is.
        probability: the model's of that frame, h×w float32 0..1, of any size.
        mask: H×W bool.

    Raises:
        ValueError: the mask is not of the frame's size.
    """

    def __init__(self, frame: NDArray[np.uint8], probability: Map, mask: NDArray[np.bool_]) -> None:
        if frame.shape[:2] != mask.shape:
            raise ValueError(f"the mask is {mask.shape[1]}×{mask.shape[0]} but its frame is of another size")
        self._shape = mask.shape
        scale = min(1.0, SIDE / max(mask.shape))
        self._size = max(16, round(mask.shape[1] * scale)), max(16, round(mask.shape[0] * scale))
        columns, rows = (np.arange(side, dtype=np.float32) for side in self._size)
        self._grid: Map = np.dstack(np.meshgrid(columns, rows))
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._grey, self._probability = self._looks(frame), self._resized(probability)
        self._mask = self._resized(mask.astype(np.float32))
        self.sureness = 1.0

    def step(self, frame: NDArray[np.uint8], probability: Map) -> Propagated:
        """Carry the mask to a neighbour of the frame before.

        Args:
            frame: H×W×3 uint8 RGB, of the same size.
            probability: the model's of that frame, h×w float32 0..1.

        Raises:
            ValueError: the frame is of another size.
        """
        if frame.shape[:2] != self._shape:
            raise ValueError(f"the frame is {frame.shape[1]}×{frame.shape[0]}, not of the size of the first")
        grey, own = self._looks(frame), self._resized(probability)
        region = self._mask >= 0.5
        if np.count_nonzero(region) < LEAST:
            return self._take(grey, own, np.zeros_like(own), 0.0)
        flows = (self._follow(grey, region, start) for start in self._starts(grey, region, own))
        explained, positions, trusted = max(flows, key=lambda one: one[0])
        mask = _remap(self._mask, positions)
        faded = cv2.GaussianBlur(trusted.astype(np.float32), (0, 0), 3.0)
        fused = np.clip(own + faded * (mask - _remap(self._probability, positions)), 0, 1).astype(np.float32)
        expected = mask >= 0.5
        touching = _touching(fused >= 0.5, expected)
        if touching.any():
            fused[~touching] = 0  # what the model sees elsewhere was not corrected
        found = fused >= 0.5
        witness = max(explained, float(own[found].mean()) if found.any() else 0.0)
        return self._take(grey, own, fused, dice(found, expected) * witness if found.any() else 0.0)

    def _take(self, grey: NDArray[np.uint8], probability: Map, mask: Map, sureness: float) -> Propagated:
        self._grey, self._probability, self._mask = grey, probability, mask
        self.sureness = min(self.sureness, max(0.0, sureness))
        large = cv2.resize(mask, self._shape[::-1], interpolation=cv2.INTER_LINEAR)
        return Propagated(large >= np.float32(0.5), self.sureness)

    def _looks(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The green channel, shrunk, with its contrast evened out."""
        green = cv2.resize(np.ascontiguousarray(frame[..., 1]), self._size, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.createCLAHE(2.0, (8, 8)).apply(green), np.uint8)

    def _resized(self, values: Map) -> Map:
        shrinks = values.shape[0] > self._size[1]
        kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(values, self._size, interpolation=kind), np.float32)

    def _starts(self, grey: NDArray[np.uint8], region: NDArray[np.bool_], own: Map) -> Iterator[tuple[float, float]]:
        """Displacements, from a pixel to where it was before, that the flow may begin with."""
        yield 0.0, 0.0
        x, y, across, down = cv2.boundingRect(region.view(np.uint8))
        left, top = max(0, x - MARGIN), max(0, y - MARGIN)
        pattern = np.ascontiguousarray(self._grey[top : y + down + MARGIN, left : x + across + MARGIN])
        if min(np.subtract(grey.shape, pattern.shape)) >= AWAY:
            likeness = cv2.matchTemplate(grey, pattern, cv2.TM_CCOEFF_NORMED)
            _, _, _, (column, row) = cv2.minMaxLoc(likeness)
            if np.hypot(left - column, top - row) > AWAY:
                yield float(left - column), float(top - row)
        seen = _largest(own >= 0.5)
        if seen is not None:
            across_by, down_by = seen
            centre = cv2.moments(region.view(np.uint8), binaryImage=True)
            dx, dy = centre["m10"] / centre["m00"] - across_by, centre["m01"] / centre["m00"] - down_by
            if np.hypot(dx, dy) > AWAY:
                yield dx, dy

    def _follow(
        self, grey: NDArray[np.uint8], region: NDArray[np.bool_], start: tuple[float, float]
    ) -> tuple[float, Map, NDArray[np.bool_]]:
        """How well the flow from a start explains the region, 0..1; where each pixel was; where that is trusted."""
        begin = np.empty_like(self._grid)
        begin[:] = start
        backward = np.asarray(self._flow.calc(grey, self._grey, begin.copy()), np.float32)
        forward = np.asarray(self._flow.calc(self._grey, grey, -begin), np.float32)
        positions: Map = self._grid + backward
        apart = np.linalg.norm(backward + _remap(forward, positions), axis=2)
        inside = ((positions >= 0) & (positions <= np.subtract(self._size, 1))).all(axis=2)
        trusted: NDArray[np.bool_] = (apart < APART) & inside
        there = _remap(region.astype(np.float32), positions) >= 0.5
        area = np.count_nonzero(there)
        if area < LEAST:
            return 0.0, positions, trusted
        kept = min(1.0, area / (0.7 * np.count_nonzero(region)))  # a region that all but vanishes was not found
        levels = grey.astype(np.float32)
        likeness = max(0.0, correlation(_remap(self._grey.astype(np.float32), positions)[there], levels[there]))
        return float(trusted[there].mean()) * likeness * kept, positions, trusted


def _remap(values: Map, positions: Map) -> Map:
    return np.asarray(
        cv2.remap(values, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),  # type: ignore[call-overload]
        np.float32,
    )


def _touching(mask: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The regions of a mask that lie near those of another."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    kept = np.zeros(count, np.bool_)
    kept[np.unique(labels[cv2.dilate(others.view(np.uint8), _NEAR) > 0])] = True
    kept[0] = False
    found: NDArray[np.bool_] = kept[labels]
    return found


def _largest(mask: NDArray[np.bool_]) -> tuple[float, float] | None:
    """The centre (x, y) of the largest region of a mask; None of an empty one."""
    count, _, stats, centres = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count < 2:
        return None
    x, y = centres[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())]
    return float(x), float(y)
