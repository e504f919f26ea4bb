"""The way of every frame, whatever it is read from and written to: read, segmented, written, in order.

Sources give frames that are read, anything with ``pixels``, and an ``Unreadable`` for what cannot be: it is reported in
one line and skipped. Sinks take each frame with its probability map.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from polypseg.files import sha256_file
from polypseg.inference.field_of_view import outside_of

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter
    from polypseg.segmentation import Segmentation

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]
T = TypeVar("T")


class Unreadable(Exception):
    """A source, or a frame of one, that cannot be read; its message is the line that says so."""


class Readable(Protocol):
    """A frame: ``pixels`` is H×W×3 uint8 RGB."""

    @property
    def pixels(self) -> Pixels:
        """H×W×3 uint8 RGB."""
        ...


F = TypeVar("F", bound=Readable)


@dataclass(frozen=True)
class Read(Generic[T]):
    """A frame that is read.

    Attributes:
        of: what it is of.
        digest: SHA-256 of its file.
        pixels: H×W×3 uint8 RGB.
    """

    of: T
    digest: str
    pixels: Pixels


def with_maps(
    segmenter: Segmenter, frames: Iterable[F], batch_size: int = 1, computed: Callable[[], object] = lambda: None
) -> Iterator[tuple[F, Map]]:
    """Each frame with its probability map, h×w float32 0..1 of the network's size, in order.

    Args:
        segmenter: the model.
        frames: as they are read; as many are in flight as are computed at once.
        batch_size: so many.
        computed: called after each; what it raises ends the flow.
    """
    waiting: deque[F] = deque()

    def pixels() -> Iterator[Pixels]:
        for frame in frames:
            waiting.append(frame)
            yield frame.pixels

    for probability in segmenter.probabilities(pixels(), batch_size):
        computed()
        yield waiting.popleft(), probability


def segmentation(segmenter: Segmenter, pixels: Pixels, probability: Map) -> Segmentation:
    """A frame's Segmentation, of its map: no polyps where the frame shows nothing of the patient."""
    return segmenter.segmentation(probability, *pixels.shape[:2], outside=outside_of(pixels))


def digest_of(path: Path) -> str:
    """SHA-256 of a file. Raises ``Unreadable``."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror}); replace it or remove it") from error
