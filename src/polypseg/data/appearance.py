"""What endoscopes, processors and screens add to a frame, as Albumentations transforms: glare, border, insets."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Glare(A.ImageOnlyTransform):
    """Specular spots: small white ellipses with soft edges, in a few clusters, as a wet mucosa reflects the lamp.

    Args:
        spots: fewest and most of them.
        p: probability.
    """

    def __init__(self, spots: tuple[int, int] = (3, 25), p: float = 0.5) -> None:
        super().__init__(p=p)
        self.spots = spots

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Where the spots lie; rows of x, y, half axes and angle, in shares of the frame."""
        rng = self.random_generator
        clusters = rng.uniform(0.1, 0.9, (rng.integers(1, 4), 2))
        count = int(rng.integers(self.spots[0], self.spots[1] + 1))
        places = clusters[rng.integers(0, len(clusters), count)] + rng.normal(0, 0.08, (count, 2))
        sizes = rng.uniform(0.002, 0.015, (count, 2)) * rng.uniform(0.5, 1.5, (count, 1))
        return {"drawn": np.hstack([places, sizes, rng.uniform(0, 180, (count, 1))])}

    def apply(self, img: Array, drawn: Array, **params: Any) -> Array:
        """H×W×3 uint8 to the same with spots."""
        height, width = img.shape[:2]
        light = np.zeros((height, width), np.uint8)
        for x, y, a, b, angle in drawn:
            axes = max(1, round(a * width)), max(1, round(b * height))
            cv2.ellipse(light, (round(x * width), round(y * height)), axes, angle, 0, 360, 255, cv2.FILLED)
        soft = cv2.GaussianBlur(light, (0, 0), 0.8)[..., None].astype(np.uint16)
        return ((img * (255 - soft) + 255 * soft) // 255).astype(np.uint8)


class Screen(A.DualTransform):
    """The border of an endoscope's view (a rectangle with cut or round corners, or a circle) and insets in its corners.

    What they cover shows no polyp.

    Args:
        border: probability of a border.
        inset: probability of an inset: a plain coloured box with a line, as of a position display, or a small copy of
            the frame, as of a second picture.
        p: probability of the whole.
    """

    def __init__(self, border: float = 0.5, inset: float = 0.5, p: float = 0.4) -> None:
        super().__init__(p=p)
        self.border, self.inset = border, inset

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The covering picture, H×W×3 uint8, and where it covers, H×W bool."""
        height, width = data["image"].shape[:2]
        rng = self.random_generator
        cover, covered = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
        if rng.random() < self.border:
            covered |= ~_view(height, width, rng)
            cover += np.uint8(rng.integers(0, 20))
        if rng.random() < self.inset:
            _add_inset(cover, covered, data["image"], rng)
        return {"cover": cover, "covered": covered}

    def apply(self, img: Array, cover: Array, covered: Array, **params: Any) -> Array:
        """H×W×3 uint8 to the same under border and insets."""
        return np.where(covered[..., None], cover, img)

    def apply_to_mask(self, mask: Array, covered: Array, **params: Any) -> Array:
        """H×W uint8 to the same without what is covered."""
        return np.where(covered, np.zeros_like(mask), mask)


def _view(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """What the endoscope shows of a frame, H×W bool."""
    view = np.zeros((height, width), np.uint8)
    left, top = int(width * rng.uniform(0, 0.2)), int(height * rng.uniform(0, 0.08))
    right, low = width - int(width * rng.uniform(0, 0.12)), height - int(height * rng.uniform(0, 0.08))
    if rng.random() < 0.25:  # a circle, as of older instruments
        center = (left + right) // 2, (top + low) // 2
        radius = int(0.5 * max(right - left, low - top) * rng.uniform(0.95, 1.15))
        cv2.circle(view, center, radius, 1, cv2.FILLED)
        view[:top], view[low:], view[:, :left], view[:, right:] = 0, 0, 0, 0
    else:
        cut = int(min(height, width) * rng.uniform(0.05, 0.3))
        corners = [
            (left + cut, top), (right - cut, top), (right, top + cut), (right, low - cut),
            (right - cut, low), (left + cut, low), (left, low - cut), (left, top + cut),
        ]  # fmt: skip
        cv2.fillPoly(view, [np.array(corners, np.int32)], 1)
    return view.astype(bool)


def _add_inset(cover: Array, covered: Array, frame: Array, rng: np.random.Generator) -> None:
    height, width = covered.shape
    high, wide = int(height * rng.uniform(0.15, 0.38)), int(width * rng.uniform(0.15, 0.32))
    top = 0 if rng.random() < 0.3 else height - high - int(height * rng.uniform(0, 0.03))
    left = int(width * rng.uniform(0, 0.05)) if rng.random() < 0.8 else width - wide
    part = np.s_[top : top + high, left : left + wide]
    if rng.random() < 0.3:
        cover[part] = cv2.resize(frame, (wide, high), interpolation=cv2.INTER_AREA)
    else:
        colours = ((46, 184, 146), (60, 90, 190), (0, 0, 0), (30, 30, 30))
        cover[part] = np.clip(np.array(colours[rng.integers(len(colours))]) + rng.integers(-12, 13, 3), 0, 255)
        line = np.cumsum(rng.normal(0, 0.1, (12, 2)), 0) + 0.5
        points = (np.clip(line, 0.05, 0.95) * (wide, high) + (left, top)).astype(np.int32)
        cv2.polylines(cover, [points], False, (40, 40, 40), 1 + int(rng.integers(0, 3)), cv2.LINE_AA)
    covered[part] = True
