"""Test-time augmentation: the network sees a frame several ways, and the answers are averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypseg.errors import UsageError

# Each view as the axes to mirror, of H×W×…; mirroring undoes itself.
VIEWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "flip": ((), (1,)),
    "flips": ((), (1,), (0,), (0, 1)),
}


def views(name: str) -> tuple[tuple[int, ...], ...]:
    """The views of a kind of augmentation: ``none``, ``flip`` (left-right) or ``flips`` (both axes, four views).

    Raises:
        UsageError: there is no such kind.
    """
    if name not in VIEWS:
        raise UsageError(f"--tta {name}: is unknown; choose one of {', '.join(VIEWS)}")
    return VIEWS[name]


def mirror(array: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """An H×W×… array mirrored along axes 0 and 1, contiguous."""
    return np.ascontiguousarray(np.flip(array, axes)) if axes else array
