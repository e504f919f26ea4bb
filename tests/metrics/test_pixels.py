"""Pixel-wise scores against scikit-learn, their empty rule and their pooling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    fbeta_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from polypseg.metrics.overlap import dice, iou
from polypseg.metrics.pixels import Confusion, confusion

Mask = NDArray[np.bool_]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shares = draw(st.tuples(*[st.sampled_from([0.0, 0.03, 0.5, 1.0])] * 2))
    return rng.random(shape) < shares[0], rng.random(shape) < shares[1]


@pytest.mark.slow
@settings(deadline=None)
@given(pairs())
def test_against_scikit_learn(masks: tuple[Mask, Mask]) -> None:
    prediction, truth = masks[0].ravel(), masks[1].ravel()
    count = confusion(*masks)
    (tn, fp), (fn, tp) = confusion_matrix(truth, prediction, labels=[False, True])
    assert count == Confusion(tp=tp, fp=fp, fn=fn, tn=tn)
    # 0 / 0 by our rule: 1 where nothing is wrong, else 0
    rule = {"zero_division": float((prediction == truth).all())}
    expected = {
        "precision": precision_score(truth, prediction, **rule),
        "recall": recall_score(truth, prediction, **rule),
        "sensitivity": recall_score(truth, prediction, **rule),
        "specificity": recall_score(~truth, ~prediction, **rule),
        "f1": fbeta_score(truth, prediction, beta=1, **rule),
        "f2": fbeta_score(truth, prediction, beta=2, **rule),
        "dice": fbeta_score(truth, prediction, beta=1, **rule),
        "iou": jaccard_score(truth, prediction, **rule),
        "accuracy": accuracy_score(truth, prediction),
    }
    for name, value in expected.items():
        assert getattr(count, name) == pytest.approx(value, abs=1e-12), name


@given(pairs())
def test_properties(masks: tuple[Mask, Mask]) -> None:
    prediction, truth = masks
    count = confusion(prediction, truth)
    assert count.tp + count.fp + count.fn + count.tn == truth.size
    assert all(type(n) is int for n in (count.tp, count.fp, count.fn, count.tn))
    assert count == confusion(prediction[::-1], truth[::-1]) == confusion(prediction.T, truth.T)
    swapped = confusion(truth, prediction)
    assert (swapped.precision, swapped.f1, swapped.accuracy) == (count.recall, count.f1, count.accuracy)
    assert confusion(~prediction, ~truth).recall == count.specificity
    assert count.f1 == count.dice == pytest.approx(dice(prediction, truth), abs=1e-12)
    assert count.iou == pytest.approx(iou(prediction, truth), abs=1e-12)
    low, high = sorted((count.precision, count.recall))
    assert low - 1e-12 <= count.f1 <= high + 1e-12 and low - 1e-12 <= count.f2 <= high + 1e-12
    # finding more of the polyp never hurts
    better = confusion(prediction | truth, truth)
    assert better.recall >= count.recall and better.f2 >= count.f2


@given(st.lists(pairs(), min_size=1, max_size=4))
def test_pooled_counts_are_those_of_all_pixels(images: list[tuple[Mask, Mask]]) -> None:
    pooled = sum((confusion(*masks) for masks in images), Confusion())
    prediction = np.concatenate([one.ravel() for one, _ in images])
    truth = np.concatenate([other.ravel() for _, other in images])
    assert pooled == confusion(prediction, truth)
    assert pooled.dice == pytest.approx(dice(prediction, truth), abs=1e-12)


def test_the_empty_mask_rule() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    names = ("precision", "recall", "specificity", "f1", "f2", "iou", "accuracy")
    for same in (confusion(empty, empty), confusion(full, full)):
        assert all(getattr(same, name) == 1 for name in names)
    for wrong in (confusion(full, empty), confusion(empty, full)):
        assert all(getattr(wrong, name) == 0 for name in names)
    one = empty.copy()
    one[0, 0] = True
    alarm = confusion(one, empty)
    assert alarm.precision == alarm.recall == alarm.f1 == alarm.f2 == 0
    assert alarm.specificity == alarm.accuracy == 15 / 16


def test_f_beta_leans_to_recall() -> None:
    count = Confusion(tp=6, fp=2, fn=6, tn=10)
    assert (count.precision, count.recall) == (0.75, 0.5)
    assert count.f1 == pytest.approx(0.6)
    assert count.f2 == pytest.approx(5 * 0.75 * 0.5 / (4 * 0.75 + 0.5))
    assert count.f_beta(0.5) == pytest.approx(1.25 * 0.75 * 0.5 / (0.25 * 0.75 + 0.5))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="prediction is"):
        confusion(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="bool"):
        confusion(np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="no pixel"):
        _ = Confusion().f1
