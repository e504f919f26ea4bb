"""A region for clicks or a box, from the model's own probability: what an annotator points at is outlined.

A model often sees a polyp that its operating point drops, or outlines too little or too much of it. A click says where
one is, so a far lower threshold will do: the region grows from the click. The page does the same by itself, from the
probability map that ``/v1/segment`` gives, and this is its reference.

**A click that adds** grows the region around it down to ``RATIO`` of the highest probability beside the click, or to
``threshold``; where even that one is below ``FLOOR``, nothing grows. **A click that takes away** does the reverse: of
the region that it lies in, what is connected to the click and no likelier than the place of the click goes; on the
likeliest place all of it goes. Clicks work in their order. **A box** takes the threshold whose region has the likest
box of its own; what of it leads out of the box is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.segmentation import Enlarged

RATIO = 0.5  # of the probability at a click, down to which its region grows
FLOOR = 0.02  # probability; what is less likely is nothing that could grow
REACH = 1  # pixels of the probability map around a click in which its highest probability is looked for
LEVELS = 24  # thresholds that are tried for a box
Box = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in the frame's pixels, the maxima exclusive


@dataclass(frozen=True)
class Click:
    """A place in a frame, in its pixels from its upper left corner, and whether what is there belongs to the region."""

    x: float
    y: float
    adds: bool = True


@dataclass(frozen=True, eq=False)
class Grown:
    """What clicks or a box mark.

    Attributes:
        mask: H×W bool, at the frame's size.
        threshold: the probability down to which it last grew, 0..1; None where nothing did.
    """

    mask: NDArray[np.bool_]
    threshold: float | None


def grow(
    probability: NDArray[np.float32], height: int, width: int, clicks: Sequence[Click], threshold: float | None = None
) -> Grown:
    """The region that clicks mark, from none.

    Args:
        probability: h×w float32, 0..1, of the network's size, as ``Segmenter.probability`` gives it.
        height: rows of the frame, pixels.
        width: columns of the frame, pixels.
        clicks: in their order, inside the frame.
        threshold: probability, 0..1, down to which every click grows; by default each one's own, by ``RATIO``.

    Raises:
        ValueError: a click lies outside of the frame.
    """
    enlarged = Enlarged(probability, height, width).whole
    mask = np.zeros((height, width), np.bool_)
    last: float | None = None
    for click in clicks:
        if not (0 <= click.x < width and 0 <= click.y < height):
            raise ValueError(f"the click at {click.x:g}, {click.y:g} lies outside of the frame of {width}×{height}")
        if not click.adds:
            mask &= ~_connected(mask & (enlarged <= enlarged[int(click.y), int(click.x)]), int(click.x), int(click.y))
            continue
        x, y = _likeliest(enlarged, click, probability.shape)
        seed = float(enlarged[y, x])
        if seed < FLOOR:
            continue
        last = max(FLOOR, RATIO * seed) if threshold is None else threshold
        mask |= _filled(_connected(enlarged >= np.float32(last), x, y))
    return Grown(mask, last)


def grow_in_box(probability: NDArray[np.float32], height: int, width: int, box: Box) -> Grown:
    """The region of a box: around its likeliest place, down to that of ``LEVELS`` thresholds that fits the box best.

    Args:
        probability: as of ``grow``.
        height: rows of the frame, pixels.
        width: columns of the frame, pixels.
        box: inside the frame.

    Raises:
        ValueError: the box is empty, or leads out of the frame.
    """
    left, top, right, bottom = check_box(box, height, width)
    across, down = (right - left) // 4, (bottom - top) // 4
    rows = slice(max(0, top - down), min(height, bottom + down))
    columns = slice(max(0, left - across), min(width, right + across))
    around = Enlarged(probability, height, width).part((rows, columns))
    own = (left - columns.start, top - rows.start, right - columns.start, bottom - rows.start)
    within = np.zeros(around.shape, np.bool_)
    within[own[1] : own[3], own[0] : own[2]] = True
    mask = np.zeros((height, width), np.bool_)
    seed = int(np.where(within, around, -1).argmax())
    y, x = divmod(seed, around.shape[1])
    most = float(around[y, x])
    if most < FLOOR:
        return Grown(mask, None)
    tried = [max(FLOOR, most * level / (LEVELS + 1)) for level in range(1, LEVELS + 1)]
    regions = [_connected(around >= np.float32(one), x, y) for one in tried]
    best = max(range(LEVELS), key=lambda number: _overlap(box_of(regions[number]), own))
    mask[rows, columns] = _filled(regions[best] & within)
    return Grown(mask, tried[best])


def check_box(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """The box in whole pixels.

    Raises:
        ValueError: it is empty, or leads out of the frame.
    """
    left, top, right, bottom = (round(value) for value in box)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        size = f"the frame of {width}×{height}"
        raise ValueError(f"the box {left}, {top}, {right}, {bottom} is empty or leads out of {size}")
    return left, top, right, bottom


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """The box around all of a mask, maxima exclusive; None of an empty one."""
    left, top, across, down = cv2.boundingRect(mask.view(np.uint8))
    return (left, top, left + across, top + down) if across else None


def _likeliest(enlarged: NDArray[np.float32], click: Click, shape: tuple[int, ...]) -> tuple[int, int]:
    """The column and row of the highest probability within ``REACH`` pixels of the map around a click."""
    height, width = enlarged.shape
    across, down = REACH * width / shape[1], REACH * height / shape[0]
    left, top = max(0, int(click.x - across)), max(0, int(click.y - down))
    part = enlarged[top : int(click.y + down) + 1, left : int(click.x + across) + 1]
    row, column = np.unravel_index(int(part.argmax()), part.shape)
    return left + int(column), top + int(row)


def _connected(mask: NDArray[np.bool_], x: int, y: int) -> NDArray[np.bool_]:
    """The 8-connected region of a mask at a place; nothing where that is none."""
    if not mask[y, x]:
        return np.zeros_like(mask)
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    found: NDArray[np.bool_] = labels == labels[y, x]
    return found


def _overlap(one: tuple[int, int, int, int] | None, other: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    if one is None:
        return 0.0
    across, down = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    common = max(0, across) * max(0, down)
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled.view(np.bool_)
