"""What all ways of predicting share: the options, and how frames pass through."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from polypseg.errors import UsageError
from polypseg.pipeline.flow import Read, with_maps
from polypseg.pipeline.options import PredictOptions
from polypseg.pipeline.threads import Inline, in_order


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"batch_size": 0}, "--batch_size 0: must be 1 or more"),
        ({"smoothing": 1.0}, "--smoothing 1: must be at least 0 and below 1"),
        ({"smoothing": -0.5}, "--smoothing -0.5"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite"),
        ({"threshold": 2.0}, "--threshold 2: must lie in 0..1"),
        ({"engine": "spark"}, "--engine spark: is unknown; choose local or ray"),
        ({"workers": 2}, "--workers: is for --engine ray"),
        ({"engine": "ray", "workers": -1}, "--workers -1: must be 0 or more"),
        ({"partition": 0}, "--partition 0: must be 1 or more"),
        ({"partition": 10**7}, "--partition 10000000: must be 1000000 or less"),
        ({"memory": 0}, "--memory 0: must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused_when_they_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        PredictOptions(**fields)
    assert str(caught.value).startswith(says)


def test_what_options_say() -> None:
    usual, chosen = PredictOptions(), PredictOptions(save=["json", "csv"], threshold=0.4, fill_holes=False)
    assert (usual.outputs, usual.overlay, usual.point) == (("mask", "json"), True, {})
    assert (chosen.outputs, chosen.overlay) == (("json", "csv"), False)
    assert chosen.point == {"threshold": 0.4, "fill_holes": False}
    assert PredictOptions(save=()).outputs == ()


def test_results_come_in_order_and_a_few_ahead() -> None:
    at_once = most_at_once = 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal at_once, most_at_once
        with lock:
            at_once += 1
            most_at_once = max(most_at_once, at_once)
        time.sleep(0.02 if number % 3 == 0 else 0.001)
        with lock:
            at_once -= 1
        return -number

    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(12):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(8) as pool:
        results = in_order(pool, work, numbers(), 3)
        assert next(results) == 0 and taken == [0, 1, 2]
        assert list(results) == [-number for number in range(1, 12)]
    assert 1 < most_at_once <= 3


def test_an_error_of_the_items_comes_after_what_was_begun_and_one_of_the_work_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("the file is cut")

    found: list[int] = []
    with pytest.raises(OSError, match="cut"):
        found.extend(in_order(Inline(), lambda number: number, items(), 8))
    assert found == [1, 2, 3]

    found.clear()
    with pytest.raises(ZeroDivisionError):
        found.extend(in_order(Inline(), lambda number: 1 // number, [1, 0, 1], 1))
    assert found == [1]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_frame_gets_its_own_map(batch_size: int) -> None:
    class Mean:
        def probabilities(self, frames: Any, batch_size: int) -> Iterator[Any]:
            waiting = []
            for frame in frames:
                waiting.append(frame)
                if len(waiting) == batch_size:
                    yield from (one.mean() for one in waiting)
                    waiting = []
            yield from (one.mean() for one in waiting)

    segmenter: Any = Mean()
    frames = [Read(number, "digest", np.full((2, 2, 3), number, np.uint8)) for number in range(7)]
    computed: list[None] = []
    pairs = list(with_maps(segmenter, frames, batch_size, lambda: computed.append(None)))
    assert [(read.of, int(mean)) for read, mean in pairs] == [(number, number) for number in range(7)]
    assert len(computed) == 7
