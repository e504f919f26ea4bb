"""Masks drawn over their frame."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Told apart also by people with red-green colour blindness (Okabe and Ito, 2008), and rare in the colon.
TRUTH = (0, 158, 255)
PREDICTION = (255, 230, 0)
HIT = (0, 200, 100)  # truth and prediction, as their colours mixed
BOX = (255, 255, 255)


def overlay(
    frame: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    colour: tuple[int, int, int] = PREDICTION,
    fill: float = 0.25,
    boxes: Sequence[Sequence[int]] = (),
) -> NDArray[np.uint8]:
    """Draw a mask's outline and a translucent fill, and boxes, over a copy of the frame.

    Args:
        frame: H×W×3 uint8 RGB.
        mask: H×W bool.
        colour: RGB, 0..255.
        fill: opacity of the fill, 0..1.
        boxes: ``[xmin, ymin, xmax, ymax]`` in pixels.

    Returns:
        H×W×3 uint8 RGB.

    Raises:
        ValueError: the mask's size is not the frame's.
    """
    if mask.shape != frame.shape[:2]:
        raise ValueError(f"mask is {mask.shape} but frame is {frame.shape[:2]}")
    drawn = frame.copy()
    drawn[mask] = ((1 - fill) * frame[mask] + fill * np.asarray(colour)).astype(np.uint8)
    width = max(1, round(max(frame.shape[:2]) / 256))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, colour, width, cv2.LINE_AA)
    for left, top, right, bottom in boxes:
        cv2.rectangle(drawn, (int(left), int(top)), (int(right), int(bottom)), BOX, width, cv2.LINE_AA)
    return drawn


def error_map(
    frame: NDArray[np.uint8], truth: NDArray[np.bool_], prediction: NDArray[np.bool_], fill: float = 0.45
) -> NDArray[np.uint8]:
    """Over the frame in grey: what was hit, what was missed in the truth's colour, what is false in the prediction's.

    Args:
        frame: H×W×3 uint8 RGB.
        truth: H×W bool.
        prediction: likewise.
        fill: opacity of the fills, 0..1.

    Returns:
        H×W×3 uint8 RGB.

    Raises:
        ValueError: a mask's size is not the frame's.
    """
    drawn = np.repeat(np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)[..., None], 3, axis=2)
    for mask, colour in ((truth & prediction, HIT), (truth & ~prediction, TRUTH), (prediction & ~truth, PREDICTION)):
        drawn = overlay(drawn, mask, colour, fill)
    return drawn


def with_confidences(
    frame: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    polyps: Sequence[tuple[tuple[int, int, int, int], float]],
    fill: float = 0.25,
) -> Image.Image:
    """``overlay``, and above each polyp its confidence, or within it where there is no room above.

    Args:
        frame: H×W×3 uint8 RGB.
        mask: H×W bool.
        polyps: of each the box ``(xmin, ymin, xmax, ymax)`` in pixels, and the confidence, 0..1.
        fill: opacity of the fill, 0..1.

    Raises:
        ValueError: the mask's size is not the frame's.
    """
    picture = Image.fromarray(overlay(frame, mask, fill=fill))
    draw = ImageDraw.Draw(picture)
    size = max(10, round(max(frame.shape[:2]) / 32))
    font = ImageFont.load_default(size)
    taken: list[tuple[float, float]] = []  # left and top of each text
    for (left, top, right, _), confidence in polyps:
        text = f"{confidence:.2f}"
        length = draw.textlength(text, font)
        x = min(max(0.0, (left + right - length) / 2), max(0.0, picture.width - length))
        y = max(0.0, top - 1.5 * size)
        while any(abs(x - one) < length and abs(y - other) < size for one, other in taken):
            y += size  # below the text that is there
        taken.append((x, y))
        draw.text((x, y), text, PREDICTION, font, stroke_width=max(1, size // 12), stroke_fill=(0, 0, 0))
    return picture
