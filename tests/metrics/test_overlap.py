"""Dice and IoU against scikit-learn, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score

from polypseg.metrics.overlap import dice, dice_at_thresholds, iou

Mask = NDArray[np.bool_]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shares = draw(st.tuples(*[st.sampled_from([0.0, 0.03, 0.5, 1.0])] * 2))
    return rng.random(shape) < shares[0], rng.random(shape) < shares[1]


@given(pairs())
def test_against_scikit_learn(masks: tuple[Mask, Mask]) -> None:
    prediction, truth = masks
    reference = {"zero_division": 1.0}  # both empty
    assert dice(*masks) == pytest.approx(f1_score(truth.ravel(), prediction.ravel(), **reference), abs=1e-12)
    assert iou(*masks) == pytest.approx(jaccard_score(truth.ravel(), prediction.ravel(), **reference), abs=1e-12)


@given(pairs())
def test_properties(masks: tuple[Mask, Mask]) -> None:
    one, other = masks
    assert 0 <= iou(one, other) <= dice(one, other) <= 1
    assert dice(one, other) == dice(other, one) == dice(one[::-1], other[::-1]) == dice(one.T, other.T)
    assert dice(one, one) == iou(one, one) == 1
    assert dice(one, other) == pytest.approx(2 * iou(one, other) / (1 + iou(one, other)))
    assert dice(one & other, other) >= dice(one, other) - 1e-12 or not (one & other).any()


def test_the_empty_mask_rule() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert dice(empty, empty) == iou(empty, empty) == 1
    assert dice(full, empty) == iou(full, empty) == dice(empty, full) == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="prediction is"):
        dice(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


@settings(max_examples=50)
@given(pairs(), st.integers(0, 2**32))
def test_all_thresholds_in_one_pass(masks: tuple[Mask, Mask], seed: int) -> None:
    truth = masks[0]
    thresholds = np.linspace(0, 1, 11).astype(np.float32)
    # values on the thresholds themselves are the hard case: >= counts them
    probability = np.random.default_rng(seed).choice(np.r_[thresholds, 0.123, 0.987], truth.shape).astype(np.float32)
    expected = [dice(probability >= threshold, truth) for threshold in thresholds]
    assert dice_at_thresholds(probability, truth, thresholds) == pytest.approx(expected, abs=1e-12)
