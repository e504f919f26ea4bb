"""Polyp-free frames made from frames with polyps: a network learns from pairs what a polyp is, and what its hospital.

Real frames without a polyp are few, and seldom of the hospitals that the others come from. So they are made, each time
anew, from the frame of training itself, in one of two ways:

- **painted**: the polyp's region is covered by mucosa of the same frame, blended in by its gradients (Pérez et al.,
  Poisson image editing, SIGGRAPH 2003), so that colour and light go over without a seam;
- **window**: where the polyp leaves a large part free, that part is enlarged to the whole frame.

Blending leaves traces. So that they give nothing away, ``decoy`` leaves the same on frames that keep their polyp.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Mask = NDArray[np.uint8]

_DARK = 30  # grey values below are the surround of an endoscope's view, or a lumen too dark to take mucosa from
_DARK_SHARE = 0.03  # most of it in a region that is covered, and in the piece that covers it
_LARGEST = 0.3  # of the frame; larger polyps leave nothing that could cover them
_WINDOW = 0.45  # least height and width of a window, of the frame's
_TRIES = 40


def without_polyp(frame: Frame, mask: Mask, rng: np.random.Generator) -> Frame | None:
    """A frame like this one, without its polyps.

    Args:
        frame: H×W×3 uint8 RGB; is not changed.
        mask: H×W uint8, 0 or 1, with a polyp.
        rng: draws the way, the place and the window.

    Returns:
        H×W×3 uint8; None where the polyps leave too little mucosa.
    """
    ways = [_painted, _window] if rng.random() < 0.7 else [_window, _painted]
    return next((made for way in ways if (made := way(frame, mask, rng)) is not None), None)


def decoy(frame: Frame, mask: Mask, rng: np.random.Generator) -> Frame:
    """The frame with a piece of its mucosa blended in beside its polyps, as ``without_polyp`` blends it over them.

    Args:
        frame: H×W×3 uint8 RGB; is not changed.
        mask: H×W uint8, 0 or 1.
        rng: draws the piece, its place and its shape.

    Returns:
        H×W×3 uint8; the frame itself where there is no room.
    """
    height, width = mask.shape
    region = np.zeros_like(mask)
    axes = [max(3, int(side * rng.uniform(0.05, 0.2))) for side in (width, height)]
    center = int(width * rng.uniform(0.2, 0.8)), int(height * rng.uniform(0.2, 0.8))
    cv2.ellipse(region, center, axes, rng.uniform(0, 180), 0, 360, 1, cv2.FILLED)
    near = np.asarray(cv2.dilate(mask, np.ones((9, 9), np.uint8)), np.uint8)
    if (region & near).any():
        return frame
    made = _covered(frame, region, near, rng)
    return frame if made is None else made


def _painted(frame: Frame, mask: Mask, rng: np.random.Generator) -> Frame | None:
    if mask.mean() > _LARGEST:
        return None
    reach = max(6, round(0.03 * max(mask.shape)))  # OpenCV keeps the gradients of the outer three pixels
    region = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(np.asarray(region, np.uint8), connectivity=8)
    made: Frame | None = frame
    for label in range(1, len(stats)):
        if made is not None:
            made = _covered(made, (labels == label).astype(np.uint8), np.asarray(region, np.uint8), rng)
    return made


def _covered(frame: Frame, region: Mask, taboo: Mask, rng: np.random.Generator) -> Frame | None:
    """The frame with ``region`` covered by a piece of the same shape, mirrored or not, from outside ``taboo``."""
    left, top, width, height = cv2.boundingRect(region)
    rows, columns = region.shape
    # At the frame's edge, or that of the endoscope's view, there is no mucosa whose colour the piece could take on.
    if left == 0 or top == 0 or left + width == columns or top + height == rows:
        return None
    dark = _is_dark(frame)
    if dark[region > 0].mean() > _DARK_SHARE:
        return None
    shape = region[top : top + height, left : left + width]
    unfit = np.maximum(taboo, dark)
    best: tuple[float, int, int] | None = None
    for _ in range(_TRIES):
        x, y = int(rng.integers(0, columns - width + 1)), int(rng.integers(0, rows - height + 1))
        share = float(unfit[y : y + height, x : x + width][shape > 0].mean())
        if best is None or share < best[0]:
            best = share, x, y
        if share == 0:
            break
    assert best is not None
    share, x, y = best
    if share > _DARK_SHARE:
        return None
    piece = np.ascontiguousarray(frame[y : y + height, x : x + width])
    # The region must not touch the piece's edge: OpenCV takes the colours to meet from there.
    pad = 2
    piece = np.asarray(cv2.copyMakeBorder(piece, pad, pad, pad, pad, cv2.BORDER_REFLECT_101), np.uint8)
    alpha = cv2.copyMakeBorder(shape * 255, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    room = cv2.copyMakeBorder(frame, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    middle = left + piece.shape[1] // 2, top + piece.shape[0] // 2
    blended = cv2.seamlessClone(piece, room, np.asarray(alpha, np.uint8), middle, cv2.NORMAL_CLONE)
    return np.ascontiguousarray(blended[pad:-pad, pad:-pad])


def _window(frame: Frame, mask: Mask, rng: np.random.Generator) -> Frame | None:
    """The largest of some windows without polyp and with little darkness, at the frame's size."""
    rows, columns = mask.shape
    sums = np.asarray(cv2.integral(cv2.dilate(mask, np.ones((7, 7), np.uint8))), np.int32)
    dark = np.asarray(cv2.integral(_is_dark(frame)), np.int32)
    best: tuple[float, int, int, int, int] | None = None
    for _ in range(3 * _TRIES):
        height, width = (int(side * rng.uniform(_WINDOW, 0.9)) for side in (rows, columns))
        if not 0.6 < (width / columns) / (height / rows) < 1.7:
            continue
        y, x = int(rng.integers(0, rows - height + 1)), int(rng.integers(0, columns - width + 1))
        if _inside(sums, x, y, width, height) or _inside(dark, x, y, width, height) > 0.25 * width * height:
            continue
        if best is None or width * height > best[0]:
            best = width * height, x, y, width, height
    if best is None:
        return None
    _, x, y, width, height = best
    cut = frame[y : y + height, x : x + width]
    return np.asarray(cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_CUBIC), np.uint8)


def _inside(integral: NDArray[np.int32], x: int, y: int, width: int, height: int) -> int:
    right, low = x + width, y + height
    return int(integral[low, right] - integral[y, right] - integral[low, x] + integral[y, x])


def _is_dark(frame: Frame) -> Mask:
    dark: Mask = (frame.max(axis=2) < _DARK).astype(np.uint8)
    return dark
