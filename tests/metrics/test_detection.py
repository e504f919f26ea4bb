"""Detection scores against counting by hand, MONAI's FROC and scikit-learn's ROC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn import metrics as sk

from polypseg.metrics.detection import RATES, SPECIFICITIES, Detections
from polypseg.metrics.lesions import match_lesions
from polypseg.metrics.statistics import group_bootstrap

Mask = NDArray[np.bool_]
Frame = tuple[Mask, Mask, NDArray[np.float32]]  # prediction, truth, map


def made(*frames: Frame) -> Detections:
    """Of frames whose prediction is what the map reaches, each a pixel or more."""
    detections = Detections()
    for prediction, truth, probability in frames:
        match = match_lesions(prediction, truth, probability, min_area=1)
        detections.add(match, match, float(probability.max()), truth.size)
    return detections


def one_by_one(count: int) -> list[str]:
    return [str(index) for index in range(count)]


POLYP = np.zeros((20, 20), bool)
POLYP[2:8, 2:8] = True
THIRD = POLYP & (np.arange(20) < 4)  # IoU 1/3
ELSEWHERE = POLYP[::-1, ::-1]
EMPTY = np.zeros_like(POLYP)


def drawn(prediction: Mask, truth: Mask, confidence: float = 0.8) -> Frame:
    return prediction, truth, np.where(prediction, confidence, 0.1).astype(np.float32)


def test_scores_by_hand() -> None:
    frames = [
        drawn(POLYP, POLYP), drawn(THIRD, POLYP), drawn(EMPTY, POLYP | ELSEWHERE), drawn(ELSEWHERE, EMPTY),
        drawn(EMPTY, EMPTY),
    ]  # fmt: skip
    scores = made(*frames).scores(one_by_one(5))
    assert (scores.frames, scores.polyp_free, scores.marked_frames, scores.lesions, scores.regions) == (5, 2, 1, 4, 3)

    def values(of: Any) -> list[float]:
        return [of[name].value for name in ("any", "0.3", "0.5")]

    assert values(scores.found) == pytest.approx([2 / 4, 2 / 4, 1 / 4])
    assert values(scores.right) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert values(scores.f1) == pytest.approx([4 / 7, 4 / 7, 2 / 7])
    assert values(scores.false_regions_per_frame) == pytest.approx([1 / 5, 1 / 5, 2 / 5])
    assert scores.marked.value == scores.false_regions_per_polyp_free_frame.value == 1 / 2
    for one in (*scores.found.values(), *scores.right.values(), *scores.false_regions_per_frame.values()):
        assert one.low < one.value < one.high
    sized = made(*frames).scores_by_size(one_by_one(5), 0.05, 1.0)  # a third of a polyp is smaller
    assert (sized.lesions, sized.regions) == (4, 2) and sized.found["0.3"].value == 2 / 4
    assert sized.right["0.3"].value == 1 / 2 and np.isnan(sized.auc.value)


def test_a_score_without_a_denominator_is_nan() -> None:
    nothing_shown = made(drawn(POLYP, EMPTY), drawn(EMPTY, EMPTY))
    scores = nothing_shown.scores(one_by_one(2))
    for one in (scores.found["any"], scores.f1["0.3"], scores.auc, *scores.sensitivity_at_specificity.values()):
        assert np.isnan([one.value, one.low, one.high]).all()
    assert all(np.isnan(one.value) for rates in scores.sensitivity_at_rate.values() for one in rates.values())
    assert scores.right["any"].value == 0  # what was predicted is wrong, whatever there was to be found
    for curve in (lambda: nothing_shown.froc("any"), nothing_shown.roc):
        with pytest.raises(ValueError):
            curve()
    silent = made(drawn(EMPTY, POLYP), drawn(EMPTY, POLYP)).scores(one_by_one(2))
    assert np.isnan(silent.right["any"].value) and np.isnan(silent.marked.value)
    assert silent.f1["any"].value == silent.found["any"].value == 0
    empty = made(drawn(EMPTY, POLYP)).froc("0.5")
    assert len(empty.confidence) == len(empty.sensitivity) == len(empty.false_regions_per_frame) == 0


def test_no_share_is_certain_because_all_frames_agree() -> None:
    """Of 15 polyp-free frames none is marked: the exact bound of Clopper and Pearson; of 3 groups a wider one."""
    detections = made(*[drawn(EMPTY, EMPTY)] * 15, *[drawn(POLYP, POLYP)] * 4)
    scores = detections.scores(one_by_one(19))
    assert (scores.marked.value, scores.marked.low) == (0, 0)
    assert scores.marked.high == pytest.approx(0.218, abs=5e-4)  # tables say 21.8 %
    assert scores.found["0.5"].value == scores.found["0.5"].high == scores.auc.value == 1
    assert scores.found["0.5"].low == pytest.approx(0.398, abs=5e-4)  # 4 of 4: 39.8 %
    assert scores.false_regions_per_frame["any"].high == pytest.approx(-np.log(0.025) / 19)
    grouped = detections.scores([str(index // 5) for index in range(19)])
    assert grouped.marked.high == pytest.approx(0.708, abs=5e-4)  # 0 of 3
    assert np.isnan(grouped.found["0.5"].low)  # one group of frames with a polyp says nothing of the spread


def test_groups_are_drawn_whole() -> None:
    frames = [drawn(POLYP, POLYP)] * 20 + [drawn(EMPTY, POLYP)] * 20
    alone = made(*frames).scores(one_by_one(40)).found["any"]
    grouped = made(*frames).scores([str(index // 10) for index in range(40)]).found["any"]
    assert alone.value == grouped.value == 0.5
    assert grouped.low == 0 and grouped.high == 1 and alone.high - alone.low < 0.35
    values, low, high = group_bootstrap(lambda times: times.sum(1, keepdims=True) * 1.0, one_by_one(7))
    assert values[0] == low[0] == high[0] == 7  # as many groups are drawn as there are


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    shape = (draw(st.integers(2, 12)), draw(st.integers(2, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    truth, prediction = np.zeros((2, *shape), bool)
    for _ in range(draw(st.integers(0, 3))):
        y, x, height, width = (int(value) for value in rng.integers((0, 0, 1, 1), (*shape, 6, 6)))
        truth[y : y + height, x : x + width] = True
        if rng.random() < 0.8:
            prediction[max(0, y - 1) : y - 1 + height, x : x + width] = True
    if rng.random() < 0.7:
        prediction[:, rng.integers(shape[1])] ^= True
    # few different values, so that confidences tie
    return prediction, truth, rng.choice(np.float32([0.25, 0.5, 0.75, 1.0]), shape)


def regions(mask: Mask) -> list[Mask]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return [labels == label for label in range(1, count + 1)]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(frames(), min_size=1, max_size=4))
def test_froc_against_predicting_less(data: list[Frame]) -> None:
    """Each point: leave the less confident regions out of the masks, and count what is left."""
    detections = made(*data)
    if not detections.polyps.any():
        return
    for name in ("any", "0.3", "0.5"):
        curve = detections.froc(name)
        for level, sensitivity, false in zip(*curve, strict=True):
            kept = []
            for prediction, truth, probability in data:
                parts = [region for region in regions(prediction) if probability[region].max() >= level]
                kept.append((np.any([EMPTY[:1, :1] & prediction, *parts], axis=0), truth, probability))
            less = made(*kept).scores(one_by_one(len(kept)))
            assert sensitivity == pytest.approx(less.found[name].value)
            assert false == pytest.approx(less.false_regions_per_frame[name].value)
        scores = detections.scores(one_by_one(len(data)))
        for rate in RATES:
            best = max((s for _, s, f in zip(*curve, strict=True) if f <= rate), default=0)
            assert scores.sensitivity_at_rate[name][rate].value == pytest.approx(best)


def many(count: int = 120, seed: int = 0) -> list[Frame]:
    """Frames with up to two polyps and up to three predicted regions, a third without a polyp; squares in a grid."""
    rng = np.random.default_rng(seed)
    made_frames = []
    for index in range(count):
        cells = [np.s_[10 * cell : 10 * cell + 7, 3:9] for cell in range(4)]
        truth, prediction = np.zeros((2, 40, 12), bool)
        probability = np.full((40, 12), 0.05, np.float32) + rng.random(dtype=np.float32) / 50
        for cell in rng.permutation(4)[: 0 if index % 3 == 0 else rng.integers(1, 3)]:
            truth[cells[cell]] = True
        for cell in rng.permutation(4)[: rng.integers(0, 4)]:
            prediction[cells[cell]] = True
            real = truth[cells[cell]].any()
            probability[cells[cell]] = np.float32(round(rng.beta(5, 2) if real else rng.beta(2, 3), 2) / 2 + 0.5)
        made_frames.append((prediction, truth, probability))
    return made_frames


def test_froc_is_monais() -> None:
    froc = pytest.importorskip("monai.metrics.froc")
    data = many()
    fp_probs, tp_probs, targets = [], [], 0
    for prediction, truth, probability in data:
        found = [(region, float(probability[region].max())) for region in regions(prediction)]
        fp_probs += [confidence for region, confidence in found if not (region & truth).any()]
        lesions = regions(truth)
        targets += len(lesions)
        hits = [max((c for region, c in found if (region & lesion).any()), default=0.0) for lesion in lesions]
        tp_probs += [hit for hit in hits if hit]
    per_image, sensitivity = froc.compute_froc_curve_data(np.array(fp_probs), np.array(tp_probs), targets, len(data))
    curve = made(*data).froc("any")
    ours = np.vstack([(0, 0), np.stack([curve.false_regions_per_frame, curve.sensitivity], axis=1)])
    theirs = np.stack([per_image, sensitivity], axis=1)[::-1]
    np.testing.assert_allclose(theirs, ours[:-1])  # they leave the last point out
    assert len(theirs) > 20
    rates = (0.1, 0.25, 0.5)
    score = froc.compute_froc_score(per_image, sensitivity, rates)
    assert score == pytest.approx(np.interp(rates, *ours[:-1].T).mean(), abs=1e-9)


@pytest.mark.slow
def test_the_roc_of_frames_is_scikit_learns() -> None:
    data = many()
    detections = made(*data)
    labels, scores = [bool(truth.any()) for _, truth, _ in data], [float(p.max()) for _, _, p in data]
    curve = detections.roc()
    alarms, sensitivity, levels = sk.roc_curve(labels, scores, drop_intermediate=False)
    assert curve.score.tolist() == levels[1:].tolist()
    assert curve.false_alarms == pytest.approx(alarms[1:]) and curve.sensitivity == pytest.approx(sensitivity[1:])
    found = detections.scores(one_by_one(len(data)))
    auc = sk.roc_auc_score(labels, scores)
    assert found.auc.value == pytest.approx(auc) and 0.6 < auc < 0.98
    for specificity in SPECIFICITIES:
        best = max(sensitivity[alarms <= 1 - specificity + 1e-12])
        assert found.sensitivity_at_specificity[specificity].value == pytest.approx(best)
    # its interval is that of scikit-learn's AUC of drawn frames
    rng = np.random.default_rng(1)
    drawn_frames = [rng.integers(len(data), size=len(data)) for _ in range(400)]
    aucs = [sk.roc_auc_score(np.array(labels)[one], np.array(scores)[one]) for one in drawn_frames]
    assert [found.auc.low, found.auc.high] == pytest.approx(np.quantile(aucs, [0.025, 0.975]), abs=0.02)


def test_a_part_of_the_frames_scores_as_if_it_were_alone() -> None:
    data = many(30)
    rows = np.arange(30) % 4 > 0
    groups = [str(index // 2) for index in range(30)]
    part = made(*data).scores(groups, rows)
    alone = made(*[frame for frame, kept in zip(data, rows, strict=True) if kept])
    assert part == alone.scores([group for group, kept in zip(groups, rows, strict=True) if kept])
