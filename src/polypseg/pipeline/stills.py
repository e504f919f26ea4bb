"""Frames that are read and written on their own: their names, which are done already, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polypseg import renamed
from polypseg.errors import PolypsegError
from polypseg.files import read_json
from polypseg.io.outputs import FRAME_SUFFIXES, Output, frame_files, frame_record, with_shapes, write_frame
from polypseg.pipeline.flow import Map, Read, segmentation, with_maps
from polypseg.pipeline.threads import in_order

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

AHEAD = 4  # frames that are read before they are needed, and predictions that wait to be written


@dataclass(frozen=True)
class Still:
    """A frame that is read and written on its own: an image, or one frame of a DICOM file.

    Attributes:
        path: the file that contains it.
        stem: what the names of its outputs begin with.
        index: its number in its file, from 0; None for an image.
        time: seconds from its file's first frame; None where the file does not say.
    """

    path: Path
    stem: str
    index: int | None = None
    time: float | None = None


def stills_of(path: Path, count: int, times: Sequence[float] | None) -> list[Still]:
    """The frames of a DICOM file: how many it has, and when each was taken, seconds, where it says so."""
    stems = [path.stem] if count == 1 else [f"{path.stem}-{number:04d}" for number in range(1, count + 1)]
    return [Still(path, stem, index, times[index] if times else None) for index, stem in enumerate(stems)]


@dataclass(frozen=True)
class Written:
    """A still whose outputs are written: its record, and its mask, eight pixels a byte."""

    still: Still
    record: dict[str, Any]
    mask: NDArray[np.uint8]


class StillOutputs:
    """The files of stills in a folder.

    Args:
        segmenter: what makes them.
        out: the folder.
        save: which they are.
        resume: keep those that are there.
    """

    def __init__(self, segmenter: Segmenter, out: Path, save: Collection[Output], resume: bool) -> None:
        self.segmenter, self.out, self.save, self.resume = segmenter, out, save, resume
        # All that decides a prediction besides the file itself; a frame made with anything else is not kept.
        self.made_with = segmenter.settings

    def files(self, still: Still) -> list[Path]:
        """A still's files."""
        return frame_files(self.out, still.stem, self.save)

    def earlier(self, still: Still, digest: str) -> dict[str, Any] | None:
        """The record of a still whose outputs are complete, if they are to be kept; else None.

        Raises:
            PolypsegError: they were made of another file, by another model or with other settings.
        """
        file = self.out / f"{still.stem}{FRAME_SUFFIXES['json']}"
        if not self.resume or not file.is_file():
            return None
        record = read_json(file)
        wanted = {"source": still.path.name, "source_sha256": digest, **self.made_with}
        known = renamed.values(record, quiet=True) if isinstance(record, dict) else {}
        other = [key for key, value in wanted.items() if known.get(key) != value]
        if other:
            raise PolypsegError(f"{file}: was made with another {other[0]}; use --overwrite or another --out")
        complete = all(path.is_file() for path in self.files(still))
        if "coco" in self.save:  # which is made of the records
            complete &= all("segmentation" in polyp for polyp in record["polyps"])
        return dict(record) if complete else None

    def write(self, read: Read[Still], probability: Map) -> Written:
        """Write a still's files, of its map. Raises ``PolypsegError`` where the disk refuses."""
        still = read.of
        found = segmentation(self.segmenter, read.pixels, probability)
        record = frame_record(
            found, source=still.path.name, model=self.segmenter.hash, index=still.index, time=still.time
        )
        record = {**record, **self.made_with, "source_sha256": read.digest}
        if "coco" in self.save:
            record = with_shapes(record, found)
        write_frame(self.out, still.stem, read.pixels, found, record, self.save)
        return Written(still, record, np.packbits(found.mask))

    def through(
        self,
        stills: Iterable[Read[Still]],
        pool: Executor,
        batch_size: int = 1,
        most: int = AHEAD,
        computed: Callable[[], object] = lambda: None,
    ) -> Iterator[Written]:
        """Segment stills and write them, ``most`` at once by the pool's threads; further arguments as ``with_maps``."""
        maps = with_maps(self.segmenter, stills, batch_size, computed)
        return in_order(pool, lambda one: self.write(*one), maps, most)
