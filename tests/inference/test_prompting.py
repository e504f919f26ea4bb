"""Regions that clicks and boxes mark in a probability map."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from polypseg.inference.prompting import FLOOR, RATIO, Click, box_of, grow, grow_in_box
from polypseg.segmentation import Enlarged

HEIGHT, WIDTH = 120, 160


def hill(x: float, y: float, peak: float, spread: float = 8.0) -> NDArray[np.float32]:
    """A probability map of 60×80 with one rounded hill, in its own pixels."""
    rows, columns = np.mgrid[:60, :80]
    return np.asarray(peak * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2)), np.float32)


def expected(probability: NDArray[np.float32], threshold: float, x: int, y: int) -> NDArray[np.bool_]:
    """By SciPy: the connected region above a threshold around a place, its holes filled."""
    labels, _ = ndimage.label(Enlarged(probability, HEIGHT, WIDTH).whole >= np.float32(threshold), np.ones((3, 3)))
    return np.asarray(ndimage.binary_fill_holes(labels == labels[y, x]))


def test_a_click_grows_the_region_around_it_down_to_a_share_of_what_is_likely_there() -> None:
    probability = hill(20, 30, 0.3) + hill(60, 30, 0.9)
    grown = grow(probability, HEIGHT, WIDTH, [Click(40, 60)])
    assert grown.threshold == pytest.approx(RATIO * 0.3, rel=0.02)
    assert np.array_equal(grown.mask, expected(probability, grown.threshold or 0, 40, 60))
    assert not grown.mask[60, 120]  # the other one, though likelier
    both = grow(probability, HEIGHT, WIDTH, [Click(40, 60), Click(120, 60)])
    assert both.mask[60, 40] and both.mask[60, 120]


def test_a_threshold_in_place_of_the_clicks_own_is_the_level_of_the_region() -> None:
    probability = hill(40, 30, 0.9)
    low, high = (grow(probability, HEIGHT, WIDTH, [Click(80, 60)], threshold=one) for one in (0.1, 0.6))
    assert np.array_equal(low.mask, expected(probability, 0.1, 80, 60)) and low.mask[high.mask].all()
    assert np.array_equal(high.mask, expected(probability, 0.6, 80, 60)) and high.threshold == 0.6


def test_a_hole_in_what_is_grown_is_filled() -> None:
    probability = hill(40, 30, 0.9, 12)
    probability[28:33, 38:43] = 0.0
    mask = grow(probability, HEIGHT, WIDTH, [Click(80, 44)]).mask
    assert mask[44, 80] and mask[60, 80]


def test_a_click_where_nothing_is_likely_marks_nothing() -> None:
    grown = grow(hill(20, 30, 0.9) + np.float32(FLOOR / 4), HEIGHT, WIDTH, [Click(150, 100)])
    assert not grown.mask.any() and grown.threshold is None


def test_a_click_that_takes_away_leaves_what_is_likelier_and_on_the_top_nothing() -> None:
    probability = hill(40, 30, 0.9)
    whole = grow(probability, HEIGHT, WIDTH, [Click(80, 60)], threshold=0.1)
    edge = Click(80 + 24, 60, adds=False)
    less = grow(probability, HEIGHT, WIDTH, [Click(80, 60), edge], threshold=0.1).mask
    large = Enlarged(probability, HEIGHT, WIDTH).whole
    assert np.array_equal(less, whole.mask & (large > large[60, 104])) and 0 < less.sum() < whole.mask.sum()
    top = divmod(int(large.argmax()), WIDTH)
    assert not grow(probability, HEIGHT, WIDTH, [Click(80, 60), Click(top[1], top[0], adds=False)], 0.1).mask.any()


def test_clicks_work_in_their_order() -> None:
    probability = hill(40, 30, 0.9)
    top = divmod(int(Enlarged(probability, HEIGHT, WIDTH).whole.argmax()), WIDTH)
    away, adds = Click(top[1], top[0], adds=False), Click(80, 60)
    assert grow(probability, HEIGHT, WIDTH, [away, adds]).mask.any()
    assert not grow(probability, HEIGHT, WIDTH, [adds, away]).mask.any()


@pytest.mark.parametrize("level", [0.08, 0.3, 0.6])
def test_a_box_around_a_level_gives_that_level(level: float) -> None:
    probability = hill(40, 30, 0.9)
    wanted = expected(probability, level, 80, 60)
    box = box_of(wanted)
    assert box is not None
    found = grow_in_box(probability, HEIGHT, WIDTH, box)
    assert 2 * (found.mask & wanted).sum() / (found.mask.sum() + wanted.sum()) > 0.95
    left, top, right, bottom = box_of(found.mask) or (0, 0, 0, 0)
    assert box[0] <= left and box[1] <= top and right <= box[2] and bottom <= box[3]


def test_a_box_where_nothing_is_likely_is_empty() -> None:
    assert not grow_in_box(hill(10, 10, 0.9, 3), HEIGHT, WIDTH, (100, 60, 150, 110)).mask.any()


def test_what_lies_outside_of_the_frame_is_refused() -> None:
    probability = hill(40, 30, 0.9)
    with pytest.raises(ValueError, match="outside of the frame of 160×120"):
        grow(probability, HEIGHT, WIDTH, [Click(160, 10)])
    for box in ((10.0, 10.0, 10.0, 20.0), (-1.0, 0.0, 20.0, 20.0), (0.0, 0.0, 161.0, 20.0)):
        with pytest.raises(ValueError, match="empty or leads out"):
            grow_in_box(probability, HEIGHT, WIDTH, box)


def test_a_larger_frame_has_the_same_region_larger() -> None:
    probability = hill(40, 30, 0.8)
    small = grow(probability, HEIGHT, WIDTH, [Click(80, 60)]).mask
    large = grow(probability, 4 * HEIGHT, 4 * WIDTH, [Click(320, 240)]).mask
    again = cv2.resize(large.astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) > 0
    assert 2 * (again & small).sum() / (again.sum() + small.sum()) > 0.97
