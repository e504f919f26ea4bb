"""Whether a frame can be trusted: sharp as those just before it, not washed out by glare, and of the same view.

All is measured on the green channel of a frame shrunk to about 160 pixels a side, where a blur that hides a polyp is
seen and the camera's noise is not, in well under a millisecond. The numbers go into the frame's record, rounded, and
the judgement is made of the rounded ones: so it is the same when a run is resumed from its records.

**Sharpness** is the mean absolute Laplacian of what is lit and not next to glare. **Poor** is a frame that falls below
``BLURRED`` of the sharpness of the last ``MEMORY`` seconds, or of which more than ``GLARING`` is washed out; but only
for ``LONGEST`` seconds on end, as what lasts is the view, not an accident. **A jump** is a frame that hardly resembles
the one before it.

A still has no frames before it. It **cannot be judged** (``judge``) where next to nothing of it is lit
(``DARK_SHARE``), where more than ``WASHED_OUT`` is so bright, where its sharpness is below ``OUT_OF_FOCUS``, or where
nothing is redder than green (``OUTSIDE``): then it shows a grey, green or blue room. What is red outside of the body
is not told from mucosa.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 160  # pixels, of the longer side of the shrunk frame
DARK, BRIGHT = 30, 235  # levels, 0..255: what is darker shows nothing, what is brighter is washed out
BLURRED, GLARING = 0.65, 0.15
MEMORY, LONGEST = 2.0, 1.5  # seconds
UNLIKE = 0.5  # correlation
DARK_SHARE = 0.2  # of a still: less than this share is lit
OUT_OF_FOCUS = 2.5  # levels, of a still's sharpness; a blur of 1/100 of its longer side comes below it
WASHED_OUT = 0.25  # of a still: more than this share of what is lit is washed out
OUTSIDE, REDDER = 0.02, 1.05  # of a still: less than this share of what is lit is redder than green by this factor
Reason = Literal["dark", "glare", "blurred", "outside"]
_NEAR, _BORDER = np.ones((7, 7), np.uint8), np.ones((5, 5), np.uint8)
_THUMBNAIL = (32, 24)


@dataclass(frozen=True)
class Quality:
    """A frame's numbers.

    Attributes:
        sharpness: in levels; to be compared with that of other frames of the same video only.
        glare: share of what is lit that is washed out, 0..1.
        likeness: correlation with the frame before, -1..1; 1 for the first.
        poor: whether it is blurred or glaring.
        jump: whether it shows another view than the frame before.
    """

    sharpness: float
    glare: float
    likeness: float
    poor: bool
    jump: bool

    def to_dict(self) -> dict[str, Any]:
        """In plain types, for JSON; ``jump`` follows from ``likeness``."""
        return {"sharpness": self.sharpness, "glare": self.glare, "likeness": self.likeness, "poor": self.poor}


@dataclass(frozen=True)
class Judgement:
    """Whether a still shows enough to look for a polyp in it.

    Attributes:
        reason: why it does not; None where it does.
        lit: share of the frame that is lit, 0..1.
        glare: share of what is lit that is washed out, 0..1.
        sharpness: in levels.
        red: share of what is lit that is redder than green, 0..1.
    """

    reason: Reason | None
    lit: float
    glare: float
    sharpness: float
    red: float

    def to_dict(self) -> dict[str, Any]:
        """In plain types, for JSON, with ``judgeable``."""
        return {"judgeable": self.reason is None, **asdict(self)}


def judge(pixels: NDArray[np.uint8]) -> Judgement:
    """Judge one frame by itself, H×W×3 uint8 RGB; its four numbers are rounded."""
    small = shrunk(pixels)
    sharpness, glare = _sharpness_and_glare(small)
    step = max(1, max(pixels.shape[:2]) // SIDE)
    red_of, green_of, blue_of = (pixels[::step, ::step, channel].ravel() for channel in range(3))
    is_lit = np.maximum(np.maximum(red_of, green_of), blue_of) > DARK
    redder = red_of[is_lit] > REDDER * green_of[is_lit]
    red = float(redder.mean()) if len(redder) else 0.0
    share = len(redder) / len(is_lit)
    reason: Reason | None = None
    if share < DARK_SHARE:
        reason = "dark"
    elif glare > WASHED_OUT:
        reason = "glare"
    elif red < OUTSIDE:
        reason = "outside"
    elif sharpness < OUT_OF_FOCUS:
        reason = "blurred"
    return Judgement(reason, round(share, 4), round(glare, 4), round(sharpness, 3), round(red, 4))


class QualityMeter:
    """Measures and judges the frames of one video, in order."""

    def __init__(self) -> None:
        self._thumbnail: NDArray[np.float32] | None = None
        self._usual: float | None = None  # sharpness of late
        self._time: float | None = None
        self._poor_for = 0.0  # seconds on end

    def measure(self, pixels: NDArray[np.uint8], time: float) -> Quality:
        """Take in the next frame, H×W×3 uint8 RGB, of ``time`` seconds."""
        small = shrunk(pixels)
        sharpness, glare = _sharpness_and_glare(small)
        thumbnail = np.asarray(cv2.resize(small, _THUMBNAIL, interpolation=cv2.INTER_AREA), np.float32)
        likeness = 1.0 if self._thumbnail is None else correlation(thumbnail, self._thumbnail)
        self._thumbnail = thumbnail
        return self._judge(round(sharpness, 3), round(glare, 4), round(likeness, 4), time)

    def recall(self, numbers: Mapping[str, Any], time: float) -> Quality:
        """Take in a frame by what ``Quality.to_dict`` gave of it."""
        return self._judge(numbers["sharpness"], numbers["glare"], numbers["likeness"], time)

    def look_back(self, pixels: NDArray[np.uint8]) -> None:
        """Take the pixels of the frame that was recalled last, with which the next one is compared."""
        small = shrunk(pixels)
        self._thumbnail = np.asarray(cv2.resize(small, _THUMBNAIL, interpolation=cv2.INTER_AREA), np.float32)

    def _judge(self, sharpness: float, glare: float, likeness: float, time: float) -> Quality:
        passed = 0.0 if self._time is None else time - self._time
        self._time = time
        usual = sharpness if self._usual is None else self._usual
        poor = sharpness < BLURRED * usual or glare > GLARING
        self._poor_for = self._poor_for + passed if poor else 0.0
        if self._poor_for > LONGEST:
            poor, usual = False, sharpness
        if not poor:
            usual += (1 - math.exp(-passed / MEMORY)) * (sharpness - usual)
        self._usual = usual
        return Quality(sharpness, glare, likeness, poor, likeness < UNLIKE)


def shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The green channel of an H×W×3 uint8 RGB frame, ``SIDE`` pixels on its longer side at most."""
    side = max(pixels.shape[:2])
    step = max(1, side // (2 * SIDE))
    green = np.ascontiguousarray(pixels[::step, ::step, 1])
    scale = min(1.0, SIDE / max(green.shape))
    size = max(1, round(green.shape[1] * scale)), max(1, round(green.shape[0] * scale))
    return np.asarray(cv2.resize(green, size, interpolation=cv2.INTER_AREA), np.uint8)


def _sharpness_and_glare(small: NDArray[np.uint8]) -> tuple[float, float]:
    hot = cv2.threshold(small, BRIGHT - 1, 1, cv2.THRESH_BINARY)[1]
    lit = cv2.threshold(small, DARK, 1, cv2.THRESH_BINARY)[1]
    glare = cv2.countNonZero(hot) / max(1, cv2.countNonZero(lit))
    seen = cv2.subtract(cv2.erode(lit, _BORDER), cv2.dilate(hot, _NEAR))
    edges = cv2.convertScaleAbs(cv2.Laplacian(small, cv2.CV_16S))
    return cv2.mean(edges, seen)[0], glare


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of the levels of two pictures, -1..1; of a flat one 1 or 0, whether the two are the same."""
    if not one.std() or not other.std():
        return float(np.array_equal(one, other))
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
