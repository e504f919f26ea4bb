"""Outlines of regions, as label files have them: filled, and joined where a format knows no holes.

A ring is a closed line through corners (x, y) in pixels, the first not repeated at its end. Pixel (x, y) is the square
from (x, y) to (x + 1, y + 1), and belongs to what is filled where its centre does, by the even-odd rule. So filling
``io.outputs.outlines`` gives the region again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polypseg.errors import PolypsegError


def filled(rings: Iterable[ArrayLike], width: int, height: int) -> NDArray[np.bool_]:
    """The region inside rings, by the even-odd rule over all of them together.

    Args:
        rings: each N×2, (x, y) in pixels; what lies beyond the frame is cut off.
        width: of the frame, pixels.
        height: of the frame, pixels.

    Returns:
        height×width bool.
    """
    flips = np.zeros((height, width + 1), np.int32)
    for ring in rings:
        corners = np.asarray(ring, np.float64).reshape(-1, 2)
        for ends in zip(corners.tolist(), np.roll(corners, -1, 0).tolist(), strict=True):
            # From the upper end: a line that is gone to and fro crosses each row at the very same place.
            (x, y), (to_x, to_y) = sorted(ends, key=lambda end: end[1])
            first, last = (int(np.clip(np.ceil(value - 0.5), 0, height)) for value in (y, to_y))
            if first < last:  # rows whose centre line it crosses
                rows = np.arange(first, last)
                crossed = x + (rows + 0.5 - y) * ((to_x - x) / (to_y - y))
                np.add.at(flips, (rows, np.clip(np.ceil(crossed - 0.5), 0, width).astype(np.intp)), 1)
    return np.asarray(np.cumsum(flips, axis=1)[:, :width] % 2 == 1)


def runs_filled(counts: Sequence[int], width: int, height: int) -> NDArray[np.bool_]:
    """A region of COCO's run lengths: down the columns, pixels outside first.

    Raises:
        PolypsegError: they do not cover the frame.
    """
    lengths = np.asarray(counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != width * height:
        raise PolypsegError(f"its run lengths cover {int(lengths.sum())} pixels of {width}×{height}")
    values = np.arange(len(lengths)) % 2 == 1
    return np.asarray(np.repeat(values, lengths).reshape((height, width), order="F"))


def runs_of_text(text: str) -> list[int]:
    """Run lengths of COCO's compressed form: five bits a character, the lowest first, differences from the third on.

    Raises:
        PolypsegError: a character is none of its.
    """
    counts: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise PolypsegError("its compressed run lengths are damaged")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def joined(rings: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """One ring of an outer ring and those of its holes, for formats without holes.

    A line without width leads to each hole and back, so that filling by the even-odd rule gives the same region.
    """
    first = list(rings[0][0])
    whole = [list(point) for point in rings[0]]
    for hole in rings[1:]:
        whole += [first, *(list(point) for point in hole), list(hole[0]), first]
    return whole
