"""A frame's polyps drawn into it, fast enough for every frame of a video.

They are drawn from the frame's record, so that an overlay can be made again without the network. Only the pixels of
the polyps' boxes and of the texts are touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.visualization.overlay import PREDICTION

MARK = "polypseg - research use only"
_FILL = 0.25  # opacity
# What becomes of each level of each channel under the fill; 1×256×3.
_TINTED = np.rint((1 - _FILL) * np.arange(256)[None, :, None] + _FILL * np.array(PREDICTION)).astype(np.uint8)
_FONT = cv2.FONT_HERSHEY_SIMPLEX  # has ASCII only


def draw_polyps(pixels: NDArray[np.uint8], polyps: Sequence[Mapping[str, Any]]) -> None:
    """Draw each polyp's outline, a translucent fill, its number and its confidence; and the research-use mark.

    Args:
        pixels: H×W×3 uint8 RGB, drawn into.
        polyps: dictionaries as of ``Polyp.to_dict``, with the ``id`` of their track or None.
    """
    height, width = pixels.shape[:2]
    scale = max(0.45, min(height, width) / 1200)
    line = max(1, round(min(height, width) / 400))
    for polyp in polyps:
        left, top, right, bottom = polyp["box"]
        window = pixels[top:bottom, left:right]
        contour = np.asarray(polyp["contour"], np.int32)
        inside = np.zeros(window.shape[:2], np.uint8)
        cv2.fillPoly(inside, [contour], 255, offset=(-left, -top))
        cv2.copyTo(cv2.LUT(window, _TINTED), inside, window)
        cv2.polylines(pixels, [contour], True, PREDICTION, line, cv2.LINE_AA)
    for polyp in polyps:  # over every outline
        name = "polyp" if polyp["id"] is None else f"polyp {polyp['id']}"
        _label(pixels, f"{name}  {polyp['confidence']:.0%}", polyp["box"], scale)
    margin = round(14 * scale)
    _text(pixels, MARK, (margin, height - margin), 0.75 * scale, (190, 190, 190))


def _label(pixels: NDArray[np.uint8], text: str, box: Sequence[int], scale: float) -> None:
    """Above the box; below it where there is no room, else inside at its top."""
    height, width = pixels.shape[:2]
    (text_width, text_height), descent = cv2.getTextSize(text, _FONT, scale, _weight(scale))
    left, top, _, bottom = box
    gap = round(10 * scale)
    base = top - gap
    if base - text_height < 0:
        base = bottom + gap + text_height
        if base + descent > height:
            base = top + gap + text_height
    _text(pixels, text, (max(0, min(left, width - text_width)), base), scale, PREDICTION)


def _text(
    pixels: NDArray[np.uint8], text: str, place: tuple[int, int], scale: float, colour: tuple[int, int, int]
) -> None:
    """Text with a dark rim, which can be read on any ground."""
    weight, (x, y) = _weight(scale), place
    rim = max(1, round(1.5 * scale))
    for across, down in ((-rim, -rim), (-rim, rim), (rim, -rim), (rim, rim)):
        cv2.putText(pixels, text, (x + across, y + down), _FONT, scale, (0, 0, 0), weight, cv2.LINE_AA)
    cv2.putText(pixels, text, place, _FONT, scale, colour, weight, cv2.LINE_AA)


def _weight(scale: float) -> int:
    return max(1, round(2 * scale))
