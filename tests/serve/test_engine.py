"""Frames that wait are computed together or side by side, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.serve.engine import Engine


class Gated:
    """Stands for a Segmenter: answers a frame with its own value, when the gate is open."""

    preprocessing = SimpleNamespace(height=2, width=2)

    def __init__(self, side_by_side: bool = False) -> None:
        self.side_by_side = side_by_side
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.together: list[int] = []
        self.computed: list[int] = []

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int) -> Iterator[NDArray[np.float32]]:
        self.together.append(batch_size)
        for frame in frames:
            self.entered.set()
            assert self.gate.wait(10)
            if frame[0, 0, 0] == 255:
                raise RuntimeError("the network broke")
            self.computed.append(int(frame[0, 0, 0]))
            yield np.full((2, 2), frame[0, 0, 0], np.float32)


def frame(value: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 3), value, np.uint8)


@asynccontextmanager
async def started(gated: Gated, batch_size: int = 4) -> AsyncIterator[Engine]:
    engine = Engine(gated, batch_size)  # type: ignore[arg-type]
    engine.start()
    gated.together.clear()
    gated.computed.clear()
    gated.entered.clear()
    yield engine
    gated.gate.set()
    await asyncio.to_thread(engine.close)


async def behind_one(gated: Gated, engine: Engine, values: Iterable[int]) -> tuple[Any, list[Any]]:
    """A frame that is being computed, and others that came meanwhile, as tasks."""
    gated.gate.clear()
    first = asyncio.create_task(engine.probability(frame(1)))
    await asyncio.to_thread(gated.entered.wait, 10)
    others = [asyncio.create_task(engine.probability(frame(value))) for value in values]
    await asyncio.sleep(0)
    return first, others


def test_a_frame_that_comes_alone_is_computed_alone() -> None:
    async def run() -> None:
        gated = Gated()
        async with started(gated) as engine:
            for value in (3, 4):
                assert (await engine.probability(frame(value)) == value).all()
            assert gated.together == [1, 1]

    asyncio.run(run())


def test_frames_that_wait_are_computed_together_and_none_is_mixed_up() -> None:
    async def run() -> None:
        gated = Gated()
        async with started(gated, batch_size=4) as engine:
            first, others = await behind_one(gated, engine, range(2, 12))
            gated.gate.set()
            assert [int(found[0, 0]) for found in await asyncio.gather(first, *others)] == list(range(1, 12))
            assert gated.together == [1, 4, 4, 2]
            assert gated.computed == list(range(1, 12))

    asyncio.run(run())


def test_side_by_side_none_waits_for_another_to_end_and_none_is_mixed_up() -> None:
    async def run() -> None:
        gated = Gated(side_by_side=True)
        async with started(gated, batch_size=4) as engine:
            first, others = await behind_one(gated, engine, range(2, 12))
            for _ in range(200):  # four are taken up while the first one is not done
                if len(gated.together) == 4:
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert gated.together == [1, 2, 2, 2]  # by the way for many, and no more than four
            gated.gate.set()
            assert [int(found[0, 0]) for found in await asyncio.gather(first, *others)] == list(range(1, 12))
            assert sorted(gated.computed) == list(range(1, 12))

    asyncio.run(run())


def test_side_by_side_a_failure_concerns_one_frame_only() -> None:
    async def run() -> None:
        gated = Gated(side_by_side=True)
        async with started(gated, batch_size=2) as engine:
            first, others = await behind_one(gated, engine, (255, 3, 4))
            gated.gate.set()
            found = await asyncio.gather(first, *others, return_exceptions=True)
            assert isinstance(found[1], RuntimeError)
            assert [int(one[0, 0]) for one in (found[0], *found[2:])] == [1, 3, 4]
            assert engine.alive

    asyncio.run(run())


def test_a_frame_given_up_while_it_waits_is_not_computed() -> None:
    async def run() -> None:
        gated = Gated()
        async with started(gated) as engine:
            first, others = await behind_one(gated, engine, (2, 3, 4))
            others[1].cancel()
            await asyncio.sleep(0)
            gated.gate.set()
            await asyncio.gather(first, others[0], others[2])
            assert gated.computed == [1, 2, 4]

    asyncio.run(run())


def test_a_failure_is_told_to_whom_it_concerns_and_the_next_frame_is_computed() -> None:
    async def run() -> None:
        gated = Gated()
        async with started(gated) as engine:
            with pytest.raises(RuntimeError, match="broke"):
                await engine.probability(frame(255))
            assert engine.alive
            assert (await engine.probability(frame(7)) == 7).all()

    asyncio.run(run())


def test_closing_computes_what_waits() -> None:
    async def run() -> None:
        gated = Gated()
        async with started(gated) as engine:
            first, others = await behind_one(gated, engine, (2, 3))
            closing = asyncio.create_task(asyncio.to_thread(engine.close))
            await asyncio.sleep(0.05)
            gated.gate.set()
            await closing
            assert [int((await task)[0, 0]) for task in (first, *others)] == [1, 2, 3]
            assert not engine.alive
            with pytest.raises(RuntimeError, match="closed"):
                await engine.probability(frame(4))

    asyncio.run(run())
