"""Polyps keep their numbers, and the timeline says what was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polypseg.inference.video.tracking import Tracker, box_iou, grown, pair_boxes


def polyp(x: int, y: int = 50, size: int = 20, confidence: float = 0.9) -> dict[str, Any]:
    return {"box": [x, y, x + size, y + size], "area": size * size, "confidence": confidence}


def follow(frames: list[tuple[float, list[dict[str, Any]]]], **settings: Any) -> tuple[list[list[int | None]], Tracker]:
    tracker = Tracker(**settings)
    return [tracker.update(number, time, polyps) for number, (time, polyps) in enumerate(frames)], tracker


def test_a_polyp_gets_its_number_when_it_was_seen_in_three_frames() -> None:
    ids, tracker = follow([(index / 25, [polyp(10 + index)]) for index in range(5)])
    assert ids == [[None], [None], [1], [1], [1]]
    assert tracker.timeline() == [
        {
            "id": 1, "start": 0.0, "end": 0.16, "duration": 0.16, "first_frame": 0, "last_frame": 4, "frames_seen": 5,
            "largest_view": {"frame": 0, "time": 0.0, "area": 400, "box": [10, 50, 30, 70], "confidence": 0.9},
        }
    ]  # fmt: skip


def test_what_flickers_up_gets_no_number() -> None:
    ids, tracker = follow([(0.0, [polyp(10)]), (0.04, [polyp(10)]), (0.08, []), (0.12, [])])
    assert ids == [[None], [None], [], []] and tracker.timeline() == []


def test_two_polyps_keep_theirs_while_one_list_is_turned_round() -> None:
    frames = []
    for index in range(12):
        both = [polyp(10 + 5 * index, 20), polyp(200 - 5 * index, 150, 24)]
        frames.append((index / 25, both[::-1] if index % 2 else both))
    ids, tracker = follow(frames)
    assert all(sorted(found) == [1, 2] for found in ids[2:])  # type: ignore[type-var]
    of_first = {found[1 if index % 2 else 0] for index, found in enumerate(ids) if index >= 2}
    assert len(of_first) == 1 and len(tracker.timeline()) == 2


def test_a_jump_by_its_own_width_is_followed() -> None:
    """At 5 frames a second a polyp moves by more than its size: plain IoU is 0 there."""
    ids, _ = follow([(index / 5, [polyp(10 + 22 * index)]) for index in range(5)])
    assert ids[-1] == [1]
    ids, _ = follow([(index / 5, [polyp(10 + 60 * index)]) for index in range(5)])
    assert ids[-1] == [None]


def test_a_gap_is_bridged_in_seconds_and_no_longer() -> None:
    seen = [(index / 10, [polyp(10)]) for index in range(3)]
    for gap, expected in ((1.9, [1]), (2.1, [None])):
        ids, _ = follow([*seen, (0.2 + gap, [polyp(12)])])
        assert ids[-1] == expected
    # As many seconds in as many more frames: the same.
    empty = [(0.2 + step / 50, list[dict[str, Any]]()) for step in range(1, 95)]
    ids, tracker = follow([*seen, *empty, (2.1, [polyp(12)])])
    assert ids[-1] == [1] and tracker.timeline()[0]["frames_seen"] == 4


def test_the_largest_view_is_kept() -> None:
    sizes = [20, 26, 40, 30, 40]
    _, tracker = follow([(index / 10, [polyp(50, 50, size, size / 100)]) for index, size in enumerate(sizes)])
    view = tracker.timeline()[0]["largest_view"]
    assert view == {"frame": 2, "time": 0.2, "area": 1600, "box": [50, 50, 90, 90], "confidence": 0.4}


def test_the_nearer_of_two_keeps_the_number() -> None:
    frames = [(index / 25, [polyp(100)]) for index in range(3)]
    ids, _ = follow([*frames, (0.12, [polyp(118), polyp(103)])])
    assert ids[-1] == [None, 1]


def test_box_iou_against_drawn_boxes() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 30, (12, 2))
    boxes = np.hstack([low, low + rng.integers(1, 20, (12, 2))]).astype(float)
    masks = np.zeros((12, 60, 60), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    expected = [[(one & two).sum() / (one | two).sum() for two in masks[5:]] for one in masks[:5]]
    np.testing.assert_allclose(box_iou(boxes[:5], boxes[5:]), expected)
    assert box_iou(boxes[:5], np.zeros((0, 4))).shape == (5, 0)


def test_boxes_grow_on_every_side() -> None:
    np.testing.assert_array_equal(grown([(10, 20, 20, 40)], 0.5), [[5, 10, 25, 50]])
    assert grown([], 0.5).shape == (0, 4)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2), (1, 1), (0, 3)])
def test_pairs_have_the_highest_sum(shape: tuple[int, int]) -> None:
    """Against every way to pair."""
    rng = np.random.default_rng(sum(shape))

    def best(rows: list[int], columns: list[int]) -> float:
        if not rows or not columns:
            return 0.0
        row, *rest = rows
        with_row = [
            overlaps[row, column] + best(rest, [other for other in columns if other != column])
            for column in columns
            if overlaps[row, column] >= 0.3
        ]
        return max([best(rest, columns), *with_row])

    for _ in range(20):
        overlaps = rng.random(shape)
        pairs = pair_boxes(overlaps, 0.3)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
        assert all(overlaps[pair] >= 0.3 for pair in pairs)
        assert sum(overlaps[pair] for pair in pairs) == pytest.approx(best(*(list(range(n)) for n in shape)))
