"""What takes long, in a thread of its own: imports, and the predictions of the frames that came in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from polypseg.errors import PolypsegError
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.uncertainty import mean_entropy
from polypseg.serve.annotations.imports import Imports
from polypseg.serve.annotations.store import Prediction, Store
from polypseg.serve.jobs import Stopped
from polypseg.serve.log import without_values
from polypseg.serve.loop import Loop
from polypseg.serve.state import is_trouble

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polypseg.inference.segmenter import Segmenter

log = logging.getLogger("polypseg.serve")


def predicted(segmenter: Segmenter, frame: NDArray[np.uint8]) -> Prediction:
    """What a model finds in an H×W×3 uint8 RGB frame, at its own operating point."""
    outside = outside_of(frame)
    probability = segmenter.probability(frame)
    found = segmenter.segmentation(probability, *frame.shape[:2], outside=outside)
    beyond = None
    if outside is not None:
        size = (probability.shape[1], probability.shape[0])
        beyond = cv2.resize(outside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    confidence = max((polyp.confidence for polyp in found.polyps), default=0.0)
    return Prediction(found.mask, float(confidence), mean_entropy(probability, beyond), segmenter.hash)


class Work:
    """The thread. Nothing that the disk refuses ends it: it waits, and tries again.

    Args:
        store: of the projects.
        imports: that arrive.
        segmenter: the model.
    """

    def __init__(self, store: Store, imports: Imports, segmenter: Segmenter) -> None:
        self._store, self._imports, self.segmenter = store, imports, segmenter
        self._loop = Loop("annotating", self._step)
        self.wake = self._loop.wake  # there is something to do
        store.added = self.wake

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._loop.start()

    def stop(self, seconds: float) -> None:
        """End after the present frame; waits so long for it. What is left is done by the next process."""
        self._loop.ask_to_stop()
        if self._loop.ended(seconds):
            self._store.close()

    def _step(self) -> float | None:
        """Do an import, else predict one frame. As ``Loop`` calls it: 0 where there was something to do, else None."""
        row = self._imports.waiting()
        if row is not None:
            try:
                self._imports.work(row, self._check)
            except Stopped:
                return None
            return 0
        row = self._store.to_predict(self.segmenter.hash)
        if row is None:
            return None
        self._predict(row)
        return 0

    def _predict(self, row: dict[str, Any]) -> None:
        try:
            found = predicted(self.segmenter, self._store.pixels(row))
        except PolypsegError as error:
            if is_trouble(error):
                raise
            log.error("frame cannot be predicted", extra={"fields": without_values(error)})
            self._store.give_up(row, self.segmenter.hash)
            return
        self._store.predict(row, found)

    def _check(self) -> None:
        if self._loop.stopping:
            raise Stopped
