"""Frames of many requests through one Segmenter: computed together or side by side, none is held back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from polypseg.inference.segmenter import Segmenter

Frame = NDArray[np.uint8]
Map = NDArray[np.float32]


class Engine:
    """Threads that compute whatever frames wait, at most ``batch_size`` at once.

    A frame that comes alone is computed at once, by the runtime's quickest way. Of several, a runtime that computes
    frames side by side gets each as soon as one of its own is done, so that none waits for a batch to fill or to end;
    a runtime that gains from batches gets those that wait as one.

    Args:
        segmenter: the model.
        batch_size: frames that are computed at once, for the most.
        observe: called with the number of frames that waited, whenever some are taken up.
        timed: called with the seconds that computing a frame took.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        batch_size: int,
        observe: Callable[[int], object] = lambda _: None,
        timed: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._segmenter, self._timed = segmenter, timed
        lanes, self._together = (batch_size, 1) if segmenter.side_by_side else (1, batch_size)
        self._observe = observe
        self._waiting: deque[tuple[Frame, Future[tuple[Map, float]]]] = deque()
        self._computing = 0
        self._changed = threading.Condition()
        self._open = True
        self._threads = [
            threading.Thread(target=self._run, name=f"polypseg-engine-{number}", daemon=True) for number in range(lanes)
        ]

    def start(self) -> None:
        """Compute one frame in each way, which makes the runtime ready, and begin."""
        preprocessing = self._segmenter.preprocessing
        blank = np.zeros((preprocessing.height, preprocessing.width, 3), np.uint8)
        for together in sorted({1, max(len(self._threads), self._together)}):
            list(self._segmenter.probabilities([blank] * together, together))
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether frames are taken and computed."""
        return self._open and all(thread.is_alive() for thread in self._threads)

    async def probability(self, frame: Frame) -> Map:
        """The probability map of an H×W×3 uint8 RGB frame, at the network's size: h×w float32 0..1.

        Cancelled while it waits, the frame is not computed.
        """
        return (await self.timed(frame))[0]

    async def timed(self, frame: Frame) -> tuple[Map, float]:
        """As ``probability``, and the seconds that computing it took."""
        future: Future[tuple[Map, float]] = Future()
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
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        while taken := self._take():
            frames, futures = zip(*taken, strict=True)
            try:
                with self._changed:
                    alone = self._computing == 1 == len(taken) and not self._waiting
                # A batch size above 1 asks for the way for many, also where these are fewer.
                together = 1 if alone else max(2, len(taken))
                began = time.perf_counter()
                for future, probability in zip(futures, self._segmenter.probabilities(frames, together), strict=True):
                    seconds = time.perf_counter() - began
                    self._timed(seconds)
                    future.set_result((probability, seconds))
            except Exception as error:  # noqa: BLE001  (raised again by the Futures)
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            with self._changed:
                self._computing -= 1

    def _take(self) -> list[tuple[Frame, Future[tuple[Map, float]]]]:
        """Frames to compute now; none when the engine is closed and all is done."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return []
                self._observe(min(len(self._waiting), len(self._threads) * self._together))
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._together))]
                taken = [(frame, future) for frame, future in taken if future.set_running_or_notify_cancel()]
                if taken:
                    self._computing += 1
                    return taken
