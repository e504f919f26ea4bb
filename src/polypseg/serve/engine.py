"""Frames of many requests through one Segmenter: those that wait are computed together, none is held back."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

Frame = NDArray[np.uint8]
Map = NDArray[np.float32]


class Engine:
    """A thread that computes whatever frames wait, at most ``batch_size`` at once.

    A frame that comes alone is computed at once, by the runtime's quickest way. Several that wait go through its way
    for many; those that come meanwhile follow them, until none waits.

    Args:
        segmenter: the model.
        batch_size: frames in flight, for the most.
        observe: called with the number of frames that waited, whenever some are taken up.
    """

    def __init__(
        self, segmenter: Segmenter, batch_size: int, observe: Callable[[int], object] = lambda _: None
    ) -> None:
        self._segmenter = segmenter
        self._batch_size = batch_size
        self._observe = observe
        self._waiting: deque[tuple[Frame, Future[Map]]] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="polypseg-engine", daemon=True)

    def start(self) -> None:
        """Compute one frame in each way, which makes the runtime ready, and begin."""
        preprocessing = self._segmenter.preprocessing
        blank = np.zeros((preprocessing.height, preprocessing.width, 3), np.uint8)
        for together in sorted({1, self._batch_size}):
            list(self._segmenter.probabilities([blank] * together, together))
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether frames are taken and computed."""
        return self._open and self._thread.is_alive()

    async def probability(self, frame: Frame) -> Map:
        """The probability map of an H×W×3 uint8 RGB frame, at the network's size: h×w float32 0..1.

        Cancelled while it waits, the frame is not computed.
        """
        future: Future[Map] = Future()
        with self._changed:
            if not self._open:
                raise RuntimeError("the engine is closed")
            self._waiting.append((frame, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Compute what waits, then end."""
        with self._changed:
            self._open = False
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                together = min(len(self._waiting), self._batch_size)
            if not together:
                return
            self._observe(together)
            taken: deque[Future[Map]] = deque()
            frames = self._take(taken)
            # One alone is not followed by others: they would miss the way for many.
            chosen = itertools.islice(frames, 1) if together == 1 else frames
            try:
                for probability in self._segmenter.probabilities(chosen, together):
                    taken.popleft().set_result(probability)
            except Exception as error:
                for future in taken:
                    future.set_exception(error)

    def _take(self, taken: deque[Future[Map]]) -> Iterator[Frame]:
        """Frames as long as some wait; their futures go to ``taken``."""
        while True:
            with self._changed:
                if not self._waiting:
                    return
                frame, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                taken.append(future)
                yield frame
