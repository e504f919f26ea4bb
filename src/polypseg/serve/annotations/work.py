"""What takes long, in a thread of its own: imports, and the predictions of the frames that came in."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from polypseg.errors import PolypsegError
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.uncertainty import mean_entropy
from polypseg.serve.annotations.imports import Imports
from polypseg.serve.annotations.store import Prediction, Store
from polypseg.serve.jobs import LONGEST_RETRY, RETRY, Stopped
from polypseg.serve.log import without_values
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
        self._changed = threading.Condition()
        self._stopping = False
        self._news = False
        self._thread = threading.Thread(target=self._run, name="polypseg-annotations", daemon=True)
        store.added = self.wake

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def stop(self, seconds: float) -> None:
        """End after the present frame; waits so long for it. What is left is done by the next process."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)
        if not self._thread.is_alive():
            self._store.close()

    def _run(self) -> None:
        wait = RETRY
        while not self._stopping:
            try:
                if not self._one():
                    with self._changed:
                        self._changed.wait_for(lambda: self._news or self._stopping)
                        self._news = False
                wait = RETRY
            except Stopped:
                return
            except Exception as problem:  # noqa: BLE001  (nothing ends the thread for good)
                log.error("annotations wait", extra={"fields": without_values(problem)})
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, wait)
                wait = min(2 * wait, LONGEST_RETRY)

    def _one(self) -> bool:
        """Whether there was something to do: an import, else one frame to be predicted."""
        row = self._imports.waiting()
        if row is not None:
            self._imports.work(row, self._check)
            return True
        row = self._store.to_predict(self.segmenter.hash)
        if row is None:
            return False
        self._predict(row)
        return True

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
        if self._stopping:
            raise Stopped
