"""Objects of the worklist become segmentations, one after another; what strangers sent is opened in other processes."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.io.dicom import read_dicom
from polypseg.io.dicom_seg import MadeBy, write_segmentation
from polypseg.pipeline.flow import segmentation, with_maps
from polypseg.pipeline.predict import made_by
from polypseg.pipeline.video import BATCH_SIZE
from polypseg.serve.decoding import Decoders
from polypseg.serve.dicom_network.settings import DicomSettings
from polypseg.serve.dicom_network.worklist import Object, Worklist
from polypseg.serve.log import LOGGER, without_values
from polypseg.serve.state import is_trouble
from polypseg.version import __version__

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

log = logging.getLogger(LOGGER)

MOST_STARTS = 3  # of an object that never ends: then others come first, and it waits longer and longer
LONGEST_WAIT = 600.0  # seconds, of that
WRITE_SECONDS = 600.0  # that writing a segmentation may take, for the most


class Stopped(PolypsegError):
    """The service is stopping."""


def refusal(status: int, line: str) -> PolypsegError:
    """What the processes that decode raise for an HTTP status and a line."""
    return Stopped(line) if status == 503 else PolypsegError(line)


@dataclass(frozen=True)
class Frame:
    """One: H×W×3 uint8 RGB."""

    pixels: NDArray[np.uint8]


def read_frames(path: Path) -> Iterator[Any]:
    """Of a DICOM image first how many frames it has, then each: H×W×3 uint8 RGB. Raises ``PolypsegError``."""
    frames = read_dicom(path)
    yield len(frames)
    yield from frames


def write(source: Path, masks: list[bytes], made: MadeBy, out: Path, uid: str, plane: bool = False) -> int:
    """As ``write_segmentation``, of masks as ``packed`` makes them; the ``errno`` with which the disk refuses, or 0."""
    frames = read_dicom(source)
    shape = frames.height, frames.width
    unpacked = (
        np.unpackbits(np.frombuffer(zlib.decompress(mask), np.uint8), count=shape[0] * shape[1])
        .reshape(shape)
        .view(bool)
        for mask in masks
    )
    try:
        write_segmentation(source, unpacked, made, out, uid, plane)
    except PolypsegError as error:
        cause = error.__cause__
        if cause is not None and isinstance(cause, OSError) and cause.errno and is_trouble(cause):
            return cause.errno
        raise
    return 0


def packed(mask: NDArray[np.bool_]) -> bytes:
    """An H×W mask in some hundred bytes: those of all frames of a long video are in memory."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


class Segmenting:
    """The step that makes the next segmentation.

    Args:
        segmenter: the model.
        worklist: what is to be done.
        decoders: what opens objects; raise as ``refusal`` says.
        made: called when there is one more segmentation.
        stopping: whether the service is.
        settings: after how long ended objects are forgotten, and whether segmentations are placed.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        worklist: Worklist,
        decoders: Decoders,
        made: Callable[[], object],
        stopping: Callable[[], bool],
        settings: DicomSettings,
    ) -> None:
        self._segmenter, self._worklist, self._decoders = segmenter, worklist, decoders
        self._made, self._stopping, self._settings = made, stopping, settings
        self._made_by = made_by(segmenter)
        self._began = time.monotonic()

    def step(self) -> float | None:
        """As ``Loop`` calls it; raises where the disk or the table refuses."""
        order = f"starts > {MOST_STARTS}, number"
        waiting = self._worklist.select("state = 'received'", order=order, limit=1)
        if not waiting:
            self._worklist.forget(self._settings.keep_days)
            return None
        one = waiting[0]
        if one.starts > MOST_STARTS:
            pause = min(2.0 ** (one.starts - MOST_STARTS), LONGEST_WAIT) - (time.monotonic() - self._began)
            if pause > 0:
                return pause
        self._worklist.change(one.number, starts=one.starts + 1)
        try:
            self._through(one)
        except Stopped:
            self._worklist.change(one.number, starts=one.starts)
            return None
        except Exception as problem:
            if is_trouble(problem):
                with contextlib.suppress(Exception):
                    self._worklist.change(one.number, starts=one.starts)
                raise
            self._fail(one, problem)
        return 0

    def _through(self, one: Object) -> None:
        out = self._worklist.segmentation(one)
        fields: dict[str, Any] = {"object": one.number}
        if not out.is_file():  # else an earlier process ended here
            began = time.monotonic()
            masks = self._masks(one)
            uid = self._uid(one)
            source = self._worklist.source(one)
            refused = self._decoders.call(
                one.name, write, source, masks, self._made_by, out, uid, self._settings.plane, seconds=WRITE_SECONDS
            )
            if refused:
                raise OSError(refused, os.strerror(refused))
            fields |= {"frames": len(masks), "seconds": round(time.monotonic() - began, 3)}
        self._worklist.change(one.number, state="segmented", starts=0)
        log.info("object segmented", extra={"fields": fields})
        self._made()

    def _masks(self, one: Object) -> list[bytes]:
        items = self._decoders.stream(one.name, read_frames, self._worklist.source(one), check=self._check)
        with contextlib.closing(items):
            count = next(items)
            frames = (Frame(pixels) for pixels in items)
            maps = with_maps(self._segmenter, frames, BATCH_SIZE if count > 1 else 1, self._check)
            return [packed(segmentation(self._segmenter, frame.pixels, one_map).mask) for frame, one_map in maps]

    def _uid(self, one: Object) -> str:
        """The same for the same object and model, whenever it is made: who gets it twice knows it again."""
        from pydicom.uid import generate_uid

        placed = ["plane"] if self._settings.plane else []
        point = repr(sorted(self._segmenter.settings.items()))
        return str(generate_uid(entropy_srcs=[one.uid, one.digest, self._segmenter.hash, point, *placed, __version__]))

    def _check(self) -> None:
        if self._stopping():
            raise Stopped

    def _fail(self, one: Object, problem: Exception) -> None:
        fields: dict[str, Any] = {"object": one.number}
        if isinstance(problem, PolypsegError):
            line = str(problem).replace(f"{self._worklist.source(one)}: ", "").replace(f"{one.name}: ", "")
            fields["reason"] = line
        else:
            line = "the service failed at this; its log says more"
            fields |= without_values(problem)
        self._worklist.end(one, "failed", line)
        log.error("object failed", extra={"fields": fields})
