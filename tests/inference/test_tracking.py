"""Polyps keep their numbers, and the timeline says what was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polypseg.inference.tracking import START, Tracker, box_iou, grown, joined, pair_boxes
from polypseg.operating_point import OperatingPoint


def polyp(x: int, y: int = 50, size: int = 20, confidence: float = 0.9) -> dict[str, Any]:
    return {"box": [x, y, x + size, y + size], "area": size * size, "confidence": confidence}


def follow(frames: list[tuple[float, list[dict[str, Any]]]], **settings: Any) -> tuple[list[list[int | None]], Tracker]:
    tracker = Tracker(**{"min_seconds": 0.0, **settings})
    return [tracker.update(number, time, polyps).ids for number, (time, polyps) in enumerate(frames)], tracker


def test_a_polyp_gets_its_number_when_it_was_seen_in_three_frames() -> None:
    ids, tracker = follow([(index / 25, [polyp(10 + index)]) for index in range(5)])
    assert ids == [[None], [None], [1], [1], [1]]
    assert tracker.timeline() == [
        {
            "id": 1, "start": 0.0, "end": 0.16, "duration": 0.16, "confirmed": 0.08,
            "first_frame": 0, "last_frame": 4, "frames_seen": 5,
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
    ids, _ = follow([*frames, (0.12, [polyp(128), polyp(103)])])
    assert ids[-1] == [None, 1]


def shown(tracker: Tracker, times: list[float], polyps: Any, **frame: Any) -> list[Any]:
    """What the tracker makes of frames at these times that all show the same."""
    first = getattr(tracker, "frames", 0)
    tracker.frames = first + len(times)  # type: ignore[attr-defined]
    return [tracker.update(first + number, time, polyps, **frame) for number, time in enumerate(times)]


def test_a_number_takes_frames_and_seconds() -> None:
    """At 25 frames a second three frames are but a flash."""
    ids, _ = follow([(index / 25, [polyp(10)]) for index in range(6)], min_seconds=0.15)
    assert [found[0] for found in ids] == [None, None, None, None, 1, 1]
    ids, _ = follow([(index / 5, [polyp(10)]) for index in range(4)], min_seconds=0.15)
    assert [found[0] for found in ids] == [None, None, 1, 1]


def test_what_is_seen_in_every_third_frame_gets_no_number() -> None:
    ids, tracker = follow([(index / 25, [polyp(10)] if index % 3 == 0 else []) for index in range(60)])
    assert tracker.timeline() == [] and all(found in ([], [None]) for found in ids)


def test_little_confidence_begins_nothing_but_keeps() -> None:
    weak, strong, faint = ([polyp(10, confidence=value)] for value in (0.7, 0.95, 0.5))
    ids, tracker = follow([(index / 25, weak) for index in range(20)], start=0.9, keep=0.6)
    assert ids == [[None]] * 20 and not tracker.timeline()
    frames = [strong] * 3 + [weak] * 40 + [faint]
    ids, tracker = follow([(index / 25, polyps) for index, polyps in enumerate(frames)], start=0.9, keep=0.6)
    assert ids == [[None], [None], *[[1]] * 41, [None]]
    # After a while out of view it takes more than that.
    again = [(0.0, strong), (0.04, strong), (0.08, strong), (1.08, weak), (1.12, strong)]
    assert follow(again, start=0.9, keep=0.6)[0][-2:] == [[None], [1]]


def test_thresholds_follow_the_operating_point() -> None:
    assert (Tracker.at(OperatingPoint(0.5)).settings["start"]) == START["peak"]
    assert (Tracker.at(OperatingPoint(0.5, confidence="mean")).settings["start"]) == START["mean"]
    for least, kind in ((0.9, "peak"), (0.6, "mean")):
        settings = Tracker.at(OperatingPoint(0.4, least, kind)).settings  # type: ignore[arg-type]
        assert settings["start"] == least and settings["keep"] == pytest.approx((0.4 + least) / 2)


def test_a_missed_frame_is_bridged_by_the_last_outline() -> None:
    tracker = Tracker(min_seconds=0)
    region = {**polyp(10), "contour": [[10, 50], [29, 69]]}
    *_, last = shown(tracker, [0.0, 0.04, 0.08], [region])
    assert last.ids == [1] and last.carried == []
    missed = shown(tracker, [0.12, 0.5, 0.56, 1.0], [])
    assert [len(one.carried) for one in missed] == [1, 1, 0, 0]
    assert missed[0].carried == [{"id": 1, "from_frame": 2, **region}]
    (back,) = shown(tracker, [1.5], [region])
    assert back.ids == [1] and back.carried == []


def test_nothing_is_carried_into_another_view() -> None:
    tracker = Tracker(min_seconds=0)
    shown(tracker, [0.0, 0.04, 0.08], [polyp(10)])
    (jumped,) = shown(tracker, [0.12], [], jump=True)
    (after,) = shown(tracker, [0.16], [])
    (back,) = shown(tracker, [0.2], [polyp(10)])
    assert jumped.carried == after.carried == [] and back.ids == [1]


def test_poor_frames_neither_begin_nor_confirm_nor_end() -> None:
    tracker = Tracker(min_seconds=0)
    poor = shown(tracker, [index / 25 for index in range(20)], [polyp(10)], poor=True)
    assert all(one.ids == [None] for one in poor) and not tracker.timeline()
    shown(tracker, [1.0, 1.04], [polyp(10)])
    (still,) = shown(tracker, [1.08], [polyp(10)], poor=True)
    assert still.ids == [None]
    (clear,) = shown(tracker, [1.12], [polyp(10)])
    assert clear.ids == [1]
    # Three seconds of blur, longer than a polyp may be out of view.
    through = shown(tracker, [1.2 + index / 5 for index in range(15)], [], poor=True)
    assert [bool(one.carried) for one in through[:6]] == [True, True, True, True, True, False]
    (back,) = shown(tracker, [4.2], [polyp(10)])
    assert back.ids == [1]
    # What a poor frame shows elsewhere is not the polyp.
    (elsewhere,) = shown(tracker, [4.24], [polyp(35)], poor=True)
    assert elsewhere.ids == [None] and [one["id"] for one in elsewhere.carried] == [1]


def test_fragments_of_one_lesion_share_its_number() -> None:
    whole, halves = [polyp(10, size=40)], [polyp(10, 50, 18), polyp(29, 70, 20)]
    ids, tracker = follow([(index / 25, halves if index % 3 == 1 else whole) for index in range(9)])
    assert ids[2:] == [[1], [1], [1, 1], [1], [1], [1, 1], [1]] and len(tracker.timeline()) == 1
    # Two that had numbers of their own keep them where they come close.
    apart = [[polyp(10 + step), polyp(70 - step)] for step in range(0, 21)]
    ids, _ = follow([(index / 25, polyps) for index, polyps in enumerate(apart)])
    assert ids[-1] == [1, 2]


@pytest.mark.parametrize(
    ("boxes", "homes", "groups"),
    [
        ([], [], []),
        ([(0, 0, 20, 20), (21, 0, 41, 20)], [], [[0, 1]]),  # a gap of 1 between sides of 20
        ([(0, 0, 20, 20), (23, 0, 43, 20)], [], [[0], [1]]),
        ([(0, 0, 20, 20), (22, 0, 42, 20), (44, 0, 64, 20)], [], [[0, 1, 2]]),  # a chain
        ([(0, 0, 20, 20), (30, 30, 50, 50)], [(0, 0, 50, 50)], [[0, 1]]),
        ([(0, 0, 20, 20), (21, 0, 41, 20)], [(0, 0, 20, 20), (21, 0, 41, 20)], [[0], [1]]),
        ([(0, 0, 20, 20), (45, 0, 65, 20), (21, 0, 44, 20)], [(0, 0, 20, 20), (45, 0, 65, 20)], [[0, 2], [1]]),
    ],
)
def test_what_belongs_together(boxes: list[Any], homes: list[Any], groups: list[list[int]]) -> None:
    arrays = [np.asarray(one, float).reshape(-1, 4) for one in (boxes, homes)]
    assert joined(arrays[0], arrays[1], 0.1) == groups


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
