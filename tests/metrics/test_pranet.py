"""PraNet's scores against PySODMetrics and against their definitions written out, and their properties."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from polypseg.metrics import pranet
from polypseg.metrics.overlap import dice, iou
from polypseg.metrics.pranet import (
    THRESHOLDS,
    PranetMean,
    PranetScores,
    pranet_scores,
    quantise,
)

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]


def reference(levels: NDArray[np.uint8], truth: Mask) -> dict[str, Any]:
    """PySODMetrics' scores of an 8-bit map, its curves turned to ascending thresholds."""
    sod = pytest.importorskip("py_sod_metrics")
    curves = {
        "dice": sod.DICEHandler(True, False),
        "iou": sod.IOUHandler(True, False),
        "precision": sod.PrecisionHandler(True, False),
        "recall": sod.RecallHandler(True, False),
        "adaptive_f": sod.FmeasureHandler(False, True, beta=0.3),
    }
    scorers = sod.FmeasureV2(curves), sod.Smeasure(), sod.WeightedFmeasure(), sod.Emeasure(), sod.MAE()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # means of empty quadrants
        for scorer in scorers:
            scorer.step(levels, truth.astype(np.uint8) * 255)
    overlap, s, w, e, m = (scorer.get_results() for scorer in scorers)
    return {
        **{name: overlap[name]["dynamic"][::-1] for name in ("dice", "iou", "precision", "recall")},
        "adaptive_f": overlap["adaptive_f"]["adaptive"],
        "e_measure": e["em"]["curve"][::-1],
        "adaptive_e": e["em"]["adp"],
        "s_measure": s["sm"],
        "weighted_f": w["wfm"],
        "mae": m["mae"],
    }


def assert_equals_reference(probability: NDArray[Any], truth: Mask) -> None:
    levels = probability if probability.dtype == np.uint8 else quantise(probability)
    scores = pranet_scores(probability, truth)
    above = levels.astype(int) - (levels.min() if levels.min() < levels.max() else 0)
    on_threshold = (above * above.size == 2 * above.sum()).any() and above.any()
    for name, expected in reference(levels, truth).items():
        if name == "s_measure" and np.isnan(expected):
            continue  # an empty quadrant; our rule is tested below
        if name in ("e_measure", "adaptive_e") and truth.size == 1:
            continue  # divided by eps there; our rule is tested below
        if name.startswith("adaptive") and on_threshold:
            continue  # the reference's rounding decides whether that level passes; with us it does
        # the background's distances are float32, the rest is float64
        assert getattr(scores, name) == pytest.approx(expected, abs=1e-7 if name == "weighted_f" else 1e-12), name


def blobs(height: int, width: int, *circles: tuple[float, float, float]) -> NDArray[np.float64]:
    """How deep each pixel lies inside the nearest circle (centre y, centre x, radius), negative outside."""
    y, x = np.mgrid[:height, :width]
    return np.max([r - np.hypot(y - cy, x - cx) for cy, cx, r in circles], axis=0)


SCENES = {
    "one": [(30.0, 40.0, 14.0)],
    "multi-polyp": [(15.0, 15.0, 8.0), (40.0, 60.0, 11.0), (12.0, 62.0, 5.0)],
    "touches a corner": [(0.0, 0.0, 20.0)],
    "touches three borders": [(30.0, 79.0, 34.0)],
    "one pixel": [(20.0, 33.0, 0.5)],
    "last row": [(59.0, 40.0, 0.5)],
    "empty": [(-100.0, 0.0, 1.0)],
    "full": [(30.0, 40.0, 200.0)],
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_against_pysodmetrics_on_scenes(scene: str, noise: float) -> None:
    rng = np.random.default_rng(3)
    depth = blobs(60, 80, *SCENES[scene])
    truth = depth >= 0
    soft = 1 / (1 + np.exp(-np.roll(depth, (3, -4), (0, 1)) / 3)) + noise * rng.random(depth.shape)
    probability = (soft / max(soft.max(), 1) * 0.9).astype(np.float32)
    assert_equals_reference(probability, truth)
    assert_equals_reference(np.flip(probability, 0), np.flip(truth, 0))  # views, too
    assert_equals_reference((probability > 0.5).astype(np.float32), truth)
    # an 8-bit file that does not span 0..255, whose levels fall between thresholds
    assert_equals_reference((probability * 200 + 11).astype(np.uint8), truth)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Map, Mask]:
    shape = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    truth = rng.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    kind = draw(st.sampled_from(["noise", "near", "binary", "zeros", "ones", "constant"]))
    maps = {
        "noise": rng.random(shape),
        "near": np.clip(0.8 * truth + 0.2 * rng.random(shape), 0, 1),
        "binary": rng.random(shape) < 0.4,
        "zeros": np.zeros(shape),
        "ones": np.ones(shape),
        "constant": np.full(shape, 0.5 if truth.all() or not truth.any() else 1.0),
    }
    return maps[kind].astype(np.float32), truth


@settings(max_examples=150, deadline=None)
@given(frames())
def test_against_pysodmetrics_on_tiny_frames(frame: tuple[Map, Mask]) -> None:
    assert_equals_reference(*frame)


@settings(max_examples=60, deadline=None)
@given(frames())
def test_curves_are_what_they_say(frame: tuple[Map, Mask]) -> None:
    """Each threshold by itself, from the definition; no other program involved."""
    probability, truth = frame
    scores, stretched = pranet_scores(probability, truth), quantise(probability) / 255
    for t in (0, 1, 100, 128, 254, 255):
        binary = stretched >= THRESHOLDS[t]
        if truth.any():
            assert scores.dice[t] == pytest.approx(dice(binary, truth), abs=1e-12)
            assert scores.iou[t] == pytest.approx(iou(binary, truth), abs=1e-12)
            assert scores.recall[t] == pytest.approx(binary[truth].mean(), abs=1e-12)
        if truth.any() and not truth.all():
            p, q = binary - binary.mean(), truth - truth.mean()
            alignment = 2 * p * q / (p * p + q * q)
            assert scores.e_measure[t] == pytest.approx(((1 + alignment) ** 2 / 4).sum() / (truth.size - 1), abs=1e-9)
    assert scores.mae == pytest.approx(np.abs(stretched - truth).mean(), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(frames())
def test_properties(frame: tuple[Map, Mask]) -> None:
    probability, truth = frame
    scores = pranet_scores(probability, truth)
    for curve in (scores.dice, scores.iou, scores.precision, scores.recall):
        assert curve.shape == (256,) and curve.dtype == np.float64 and (curve >= 0).all() and (curve <= 1).all()
    assert scores.e_measure.min() >= 0 and scores.e_measure.max() <= truth.size / max(truth.size - 1, 1) + 1e-12
    for value in (scores.s_measure, scores.weighted_f, scores.mae, scores.adaptive_f):
        assert isinstance(value, float) and -1e-12 <= value <= 1 + 1e-12
    assert (scores.iou <= scores.dice).all()
    assert (np.diff(scores.recall) <= 0).all()  # a higher threshold never finds more
    flipped = pranet_scores(probability[::-1, ::-1], truth[::-1, ::-1])
    for name in ("dice", "iou", "precision", "recall", "e_measure", "mae", "adaptive_e", "adaptive_f"):
        assert np.array_equal(getattr(scores, name), getattr(flipped, name))
    if probability.min() < probability.max():  # stretching undoes a change of scale, here an exact one
        assert pranet_scores(probability / 2, truth).summary() == scores.summary()
        complement = pranet_scores(np.abs(quantise(probability) - np.float32(255)) / 255, ~truth)
        assert complement.mae == pytest.approx(scores.mae, abs=1e-12)


def test_a_perfect_map_scores_one() -> None:
    truth = blobs(40, 50, (20, 25, 10)) > 0
    scores = pranet_scores(truth.astype(np.float32), truth)
    assert (scores.dice[1:] == 1).all() and (scores.iou[1:] == 1).all()
    assert scores.s_measure == pytest.approx(1, abs=1e-12)
    assert scores.weighted_f == pytest.approx(1, abs=1e-12)
    assert scores.mae == 0
    # at threshold 0 all is predicted: that alone keeps meanDic from 1
    assert scores.dice[0] == pytest.approx(2 * truth.mean() / (1 + truth.mean()))


def test_worse_maps_score_worse() -> None:
    truth = blobs(40, 50, (20, 25, 10)) > 0
    shifted = [np.roll(truth, shift, 1).astype(np.float32) for shift in (0, 2, 5, 9)]
    scores = [pranet_scores(each, truth) for each in shifted]
    for values in (
        [each.s_measure for each in scores], [each.weighted_f for each in scores],
        [each.dice.mean() for each in scores], [1 - each.mae for each in scores],
    ):  # fmt: skip
        assert values == sorted(values, reverse=True) and len(set(values)) == 4


def test_weighted_f_weighs_by_distance() -> None:
    truth = np.zeros((60, 60), bool)
    truth[5:25, 5:25] = True
    near, far = truth.astype(np.float32), truth.astype(np.float32)
    near[10:15, 26:31] = 1
    far[50:55, 50:55] = 1  # as many wrong pixels, farther away
    closer, farther = pranet_scores(near, truth), pranet_scores(far, truth)
    assert closer.weighted_f > farther.weighted_f
    assert closer.dice[128] == farther.dice[128]


def test_empty_truth_follows_the_reference_not_our_rule() -> None:
    empty, nothing = np.zeros((5, 6), bool), np.zeros((5, 6), np.float32)
    scores = pranet_scores(nothing, empty)
    assert dice(empty, empty) == 1  # the project's rule
    assert not scores.dice.any() and not scores.iou.any() and not scores.precision.any() and not scores.recall.any()
    assert scores.weighted_f == 0
    assert scores.s_measure == 1
    assert scores.e_measure[0] == 0 and scores.e_measure[1:] == pytest.approx(30 / 29)
    faint = nothing.copy()
    faint[2, 2] = 1e-6  # stretched to 1
    assert pranet_scores(faint, empty).mae == pytest.approx(1 / 30)


def test_constant_maps_are_not_stretched() -> None:
    truth = blobs(10, 12, (5, 5, 3)) > 0
    for constant in (0.0, 0.4, 1.0):
        assert (quantise(np.full((10, 12), constant, np.float32)) == round(constant * 255)).all()
    scores = pranet_scores(np.full((10, 12), 0.4, np.float32), truth)
    assert (scores.recall[:103] == 1).all() and (scores.recall[103:] == 0).all()


def test_where_the_reference_has_no_answer() -> None:
    # centroid in the last row: two quadrants without pixels count nothing
    truth = np.zeros((6, 7), bool)
    truth[5, 3] = True
    assert pranet_scores(truth.astype(np.float32), truth).s_measure == pytest.approx(1, abs=1e-12)
    # three quadrants that are 0.2 throughout and show no polyp have no variance at all: similarity 1
    truth = np.zeros((9, 9), bool)
    truth[2, 2] = True
    probability = np.full((9, 9), 0.2, np.float32)
    probability[0, 0], probability[2, 2] = 0, 1
    frame = pranet._Frame.of(probability, truth)
    assert frame.quadrants.sum(axis=(1, 2)).tolist() == [9, 18, 18, 36]
    assert [pranet._similarity(quadrant, frame) for quadrant in frame.quadrants[1:]] == [1.0, 1.0, 1.0]
    # one pixel
    one, white = np.ones((1, 1), bool), np.ones((1, 1), np.float32)
    scores = pranet_scores(white, one)
    assert (scores.e_measure == 1).all() and (scores.dice == 1).all() and scores.s_measure == 1
    assert scores.weighted_f == pytest.approx(1, abs=1e-12)


def test_the_mean_of_a_data_set() -> None:
    rng = np.random.default_rng(5)
    truth = blobs(20, 30, (10, 12, 6)) > 0
    scores = [pranet_scores(rng.random((20, 30)).astype(np.float32) ** k, truth) for k in (0.3, 1.0, 4.0)]
    total = PranetMean()
    for each in scores:
        total.add(each)
    assert total.count == 3
    curve = np.mean([each.dice for each in scores], axis=0)
    assert total.mean().dice == pytest.approx(curve, abs=1e-15)
    numbers = total.mean().summary()
    assert numbers["meanDic"] == pytest.approx(np.mean([each.dice.mean() for each in scores]))
    assert numbers["maxDic"] == pytest.approx(curve.max())
    assert numbers["maxDic"] < np.mean([each.dice.max() for each in scores])  # averaged first, then the maximum
    assert numbers["Sm"] == pytest.approx(np.mean([each.s_measure for each in scores]))
    with pytest.raises(ValueError, match="no image"):
        PranetMean().mean()


@pytest.mark.parametrize(
    ("probability", "truth", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), bool), "prediction is"),
        (np.zeros((2, 3, 1), np.float32), np.zeros((2, 3, 1), bool), "H×W"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8), "bool"),
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), bool), "uint8"),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), bool), "no pixel"),
        (np.array([[0.0, np.nan]], np.float32), np.zeros((1, 2), bool), "0..1"),
        (np.array([[0.0, 1.1]], np.float32), np.zeros((1, 2), bool), "0..1"),
        (np.array([[-0.1, 1.0]], np.float32), np.zeros((1, 2), bool), "0..1"),
    ],
)
def test_bad_input(probability: Any, truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pranet_scores(probability, truth)


def test_scores_do_not_change_their_input() -> None:
    probability = np.random.default_rng(1).random((12, 13)).astype(np.float32)
    truth = probability > 0.6
    before = probability.copy(), truth.copy()
    assert isinstance(pranet_scores(probability, truth), PranetScores)
    assert np.array_equal(probability, before[0]) and np.array_equal(truth, before[1])


def test_a_prediction_far_from_the_polyp() -> None:
    """The weighted F's distance transform stops where its weight has vanished; the reference's does not."""
    truth = blobs(400, 700, (60.0, 70.0, 30.0)) >= 0
    far = blobs(400, 700, (330.0, 600.0, 40.0), (60.0, 75.0, 28.0))
    assert_equals_reference((1 / (1 + np.exp(-far / 5))).astype(np.float32), truth)
