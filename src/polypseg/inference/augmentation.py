"""Test-time augmentation: the network sees several views of a frame, and their predictions are averaged."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.errors import UsageError

Augmented = Literal["none", "hflip", "flips", "multiscale"]
Axes = tuple[int, ...]  # to mirror, of H×W×…; mirroring undoes itself

# The views at each share of the network's size. Every size counts alike, and every view of a size.
VIEWS: dict[str, dict[float, tuple[Axes, ...]]] = {
    "none": {1.0: ((),)},
    "hflip": {1.0: ((), (1,))},
    "flips": {1.0: ((), (1,), (0,), (0, 1))},
    "multiscale": {1.0: ((),), 2 / 3: ((0, 1),)},
}


def views(name: str) -> dict[float, tuple[Axes, ...]]:
    """The views of a kind of augmentation, by the share of the network's size at which they are seen.

    ``hflip`` has a second view, mirrored left-right; ``flips`` four, mirrored along both axes; ``multiscale`` a second
    one at two thirds of the size, turned by 180°, which takes two fifths more work.

    Raises:
        UsageError: there is no such kind.
    """
    if name not in VIEWS:
        raise UsageError(f"--tta {name}: is unknown; choose one of {', '.join(VIEWS)}")
    return VIEWS[name]


_FLIP_CODE = {(0,): 0, (1,): 1, (0, 1): -1}  # OpenCV's


def mirror(array: NDArray[Any], axes: Axes) -> NDArray[Any]:
    """An H×W or H×W×C array mirrored along axes 0 and 1, contiguous."""
    return np.asarray(cv2.flip(array, _FLIP_CODE[axes])) if axes else array
