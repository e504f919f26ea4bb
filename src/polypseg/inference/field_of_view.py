"""Where a frame shows nothing of the patient: the dark surround of the endoscope's view, and pictures set into it.

A network may see a polyp in a clock's digits or in the drawing of a scope's position; nobody looks for one there. All
is decided on a frame shrunk to at most 160 pixels a side, and in doubt a pixel belongs to the view.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 160  # pixels, of the longer side of the shrunk frame
DARKEST_EDGE = 30  # a surround's level, of the brightest of the three channels, is at most this, 0..255
SPREAD = 12  # and its pixels are at most this much brighter
EDGE = 0.1  # share of the frame's edge that a surround takes at least
TEXT = 0.004  # share of the frame; what is smaller, and within the surround, is text
SECOND_PICTURE = 0.12  # a second picture within the surround is at most this large, as a share of the view
RECTANGLE = (0.008, 0.2)  # least and greatest share of the frame that a flat rectangle takes
FILLED = 0.88  # share of its box that it fills; an ellipse fills 0.79
HUES = ((40, 95), (95, 125))  # OpenCV's, of green and of blue
FLAT = 12  # most that three quarters of its pixels differ from its colour in each channel
_SQUARE = np.ones((3, 3), np.uint8)


def outside_of(frame: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Where a frame shows nothing of the patient.

    Outside are: the dark surround that reaches the frame's edge, with text in it; small pictures within that surround;
    and flat green or blue rectangles, as the drawing of a scope's position. A frame without a surround has none, and a
    dark lumen belongs to the view.

    Args:
        frame: H×W×3 uint8 RGB.

    Returns:
        h×w bool, a shrunk frame; stretched over the frame it is what ``Segmentation.from_probability`` takes. None
        where all belongs to the view.
    """
    scale = min(1.0, SIDE / max(frame.shape[:2]))
    size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    small = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    outside = _surround(small)
    inset = _flat_rectangles(small)
    if inset is not None:
        outside = inset if outside is None else outside | inset
    return outside


def _surround(small: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """What is dark and reaches the edge, with what lies in it."""
    red, green, blue = cv2.split(small)
    light = cv2.medianBlur(cv2.max(cv2.max(red, green), blue), 3)  # numpy's maximum of three takes ten times as long
    ring = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    dark = ring[ring <= DARKEST_EDGE]
    if len(dark) < EDGE * len(ring):
        return None
    # The frame around the frame is of the surround's level: one filling from its corner reaches every part.
    level = int(np.median(dark))
    spread = cv2.copyMakeBorder(light, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=level)
    reached = np.zeros((spread.shape[0] + 2, spread.shape[1] + 2), np.uint8)
    flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY
    cv2.floodFill(spread, reached, (0, 0), 0, loDiff=255, upDiff=SPREAD, flags=flags)
    outside = np.ascontiguousarray(reached[2:-2, 2:-2])
    # Contours of what is left: labels would take several times as long.
    contours, _ = cv2.findContours(1 - outside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    areas = [cv2.contourArea(contour) for contour in contours]
    for contour, area in zip(contours, areas, strict=True):
        _, _, width, height = cv2.boundingRect(contour)
        second = area <= SECOND_PICTURE * max(areas) and area >= 0.7 * width * height
        if area < max(areas) and (area <= TEXT * outside.size or second):
            cv2.drawContours(outside, [contour], -1, 1, cv2.FILLED)
    return outside.view(np.bool_)


def _flat_rectangles(small: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Upright rectangles of one green or blue, which no mucosa has."""
    hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
    found = np.zeros(small.shape[:2], np.bool_)
    for least, most in HUES:
        coloured = cv2.inRange(hsv, (least, 80, 60), (most, 255, 255))
        if cv2.countNonZero(coloured) < RECTANGLE[0] * coloured.size:
            continue
        closed = cv2.morphologyEx(coloured, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(closed, cv2.MORPH_OPEN, _SQUARE))
        for x, y, width, height, area in stats[1:]:
            share = area / coloured.size
            part = np.s_[y : y + height, x : x + width]
            if RECTANGLE[0] <= share <= RECTANGLE[1] and area >= FILLED * width * height and _is_flat(small[part]):
                found[part] = True
    return found if found.any() else None


def _is_flat(pixels: NDArray[np.uint8]) -> bool:
    differences = np.abs(pixels.astype(np.int16) - np.median(pixels, axis=(0, 1)))
    return float(np.mean(differences.max(2) <= FLAT)) >= 0.75
