"""Lesion matching against scipy's labels and an exhaustive search, and its properties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from polypseg.metrics.lesions import LesionMatch, match_lesions, shows_polyp
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Segmentation

Mask = NDArray[np.bool_]
Pixels = frozenset[tuple[int, int]]
THRESHOLDS = (0.1, 0.3, 0.5, 0.75)


def drawing(*rows: str) -> Mask:
    return np.array([[cell == "#" for cell in row] for row in rows])


@st.composite
def frames(draw: st.DrawFn) -> tuple[Mask, Mask, NDArray[np.float32]]:
    """A truth of a few rectangles, a prediction of the same ones moved, cut or lost and of others, and a map."""
    shape = (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    truth, prediction = np.zeros((2, *shape), bool)
    for _ in range(draw(st.integers(0, 4))):
        y, x, height, width = (int(value) for value in rng.integers((0, 0, 1, 1), (*shape, 7, 7)))
        truth[y : y + height, x : x + width] = True
        if rng.random() < 0.8:
            dy, dx = rng.integers(-1, 2, 2)
            prediction[max(0, y + dy) : y + dy + height, max(0, x + dx) : x + dx + width] = True
    for _ in range(draw(st.integers(0, 3))):
        if rng.random() < 0.7:  # cuts a lesion in two
            prediction[:, rng.integers(shape[1])] = False
        else:
            y, x = (int(value) for value in rng.integers((0, 0), shape))
            prediction[y : y + 2, x : x + 3] = True
    # few different values, so that confidences tie
    probability = rng.choice(np.float32([0.0, 0.5, 0.75, 1.0]), shape)
    return prediction, truth, probability


# --- the reference: sets of pixels, and every way to pair them ---


def regions(mask: Mask, min_area: int) -> list[Pixels]:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    found = [frozenset((int(y), int(x)) for y, x in np.argwhere(labels == label)) for label in range(1, count + 1)]
    return [region for region in found if len(region) >= min_area]


def overlap(one: Pixels, other: Pixels) -> float:
    return len(one & other) / len(one | other)


def every_way(truths: list[Pixels], predictions: list[Pixels], threshold: float) -> Iterator[list[tuple[int, int]]]:
    """Every one-to-one pairing of which each pair reaches the threshold."""

    def ways(row: int, free: frozenset[int]) -> Iterator[list[tuple[int, int]]]:
        if row == len(truths):
            yield []
            return
        yield from ways(row + 1, free)
        for column in free:
            if overlap(truths[row], predictions[column]) >= threshold:
                for rest in ways(row + 1, free - {column}):
                    yield [(row, column), *rest]

    return ways(0, frozenset(range(len(predictions))))


def best(truths: list[Pixels], predictions: list[Pixels], threshold: float) -> tuple[int, float]:
    """(number of pairs, sum of their IoUs) of the best way."""
    return max(
        (len(way), sum(overlap(truths[row], predictions[column]) for row, column in way))
        for way in every_way(truths, predictions, threshold)
    )


def box_of(region: Pixels) -> tuple[int, int, int, int]:
    ys, xs = zip(*region, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


@settings(deadline=None, max_examples=150)
@given(frames(), st.sampled_from([1, 2, 4]))
def test_against_every_way_to_pair(frame: tuple[Mask, Mask, NDArray[np.float32]], min_area: int) -> None:
    prediction, truth, probability = frame
    match = match_lesions(prediction, truth, probability, min_area=min_area, iou_thresholds=THRESHOLDS)
    truths, predictions = regions(truth, min_area), regions(prediction, min_area)

    def described(found: Iterable[Pixels], others: list[Pixels], values: bool) -> list[Any]:
        rows = []
        for region in found:
            inside = [float(probability[pixel]) for pixel in region] if values else []
            best_iou = max((overlap(region, other) for other in others), default=0.0)
            mean, highest = (sum(inside) / len(inside), max(inside)) if values else (None, None)
            rows.append((box_of(region), len(region), best_iou, mean, highest))
        return sorted(rows)

    for lesions, found, others, values in [
        (match.truths, truths, predictions, False),
        (match.predictions, predictions, truths, True),
    ]:
        rows = [(x.box, x.area, x.best_iou, x.mean_probability, x.max_probability) for x in lesions]
        assert sorted(rows) == described(found, others, values)
        assert [x.area for x in lesions] == sorted((x.area for x in lesions), reverse=True)
    assert match.iou.shape == (len(truths), len(predictions))
    assert sorted(match.iou.ravel()) == sorted(overlap(t, p) for t in truths for p in predictions)

    for position, threshold in enumerate(THRESHOLDS):
        number, _ = best(truths, predictions, threshold)
        assert len(match.missed(threshold)) == len(truths) - number
        assert len(match.false_positives(threshold)) == len(predictions) - number
        # the flagged lesions can be paired among themselves, as well as any can
        flagged = [
            [region for region in found if any(x.matched[position] and x.box == box_of(region) for x in lesions)]
            for lesions, found in [(match.truths, truths), (match.predictions, predictions)]
        ]
        boxes = {x.box for x in match.truths}, {x.box for x in match.predictions}
        if (len(boxes[0]), len(boxes[1])) == (len(truths), len(predictions)):  # a box tells which region is meant
            assert best(*flagged, threshold) == pytest.approx(best(truths, predictions, threshold), abs=1e-12)


@settings(deadline=None)
@given(frames())
def test_properties(frame: tuple[Mask, Mask, NDArray[np.float32]]) -> None:
    prediction, truth, _ = frame

    def counts(match: LesionMatch) -> list[tuple[int, int]]:
        return [(len(match.missed(t)), len(match.false_positives(t))) for t in THRESHOLDS]

    options: dict[str, Any] = {"min_area": 1, "iou_thresholds": THRESHOLDS}
    match = match_lesions(prediction, truth, **options)
    missed = [numbers[0] for numbers in counts(match)]
    assert missed == sorted(missed)  # a stricter IoU never finds more
    assert [numbers[::-1] for numbers in counts(match_lesions(truth, prediction, **options))] == counts(match)
    for p, t in [(prediction[::-1], truth[::-1]), (prediction[:, ::-1], truth[:, ::-1]), (prediction.T, truth.T)]:
        assert counts(match_lesions(p, t, **options)) == counts(match)
    assert counts(match_lesions(truth, truth, **options)) == [(0, 0)] * len(THRESHOLDS)
    assert match.truths == match_lesions(prediction, truth, **options).truths
    # above 0.5 every IoU that reaches the threshold is a pair
    for lesion in (*match.truths, *match.predictions):
        assert lesion.matched[3] == (lesion.best_iou >= 0.75)
    # a region of its own is one more false positive, and changes nothing else
    apart = np.pad(prediction, ((0, 4), (0, 0)))
    apart[-2:, 0] = True
    more = match_lesions(apart, np.pad(truth, ((0, 4), (0, 0))), **options)
    assert counts(more) == [(miss, invented + 1) for miss, invented in counts(match)]


def test_same_regions_and_confidence_as_a_segmentation() -> None:
    rng = np.random.default_rng(5)
    probability = ndimage.gaussian_filter(rng.random((60, 80)), 3).astype(np.float32)
    probability = (probability - probability.min()) / np.ptp(probability)
    segmentation = Segmentation.from_probability(probability, OperatingPoint(0.6, confidence="mean"))
    match = match_lesions(segmentation.mask, segmentation.mask, probability, min_area=1)
    expected = {(polyp.box, polyp.area): polyp.confidence for polyp in segmentation.polyps}
    assert len(expected) > 5
    for lesion in match.predictions:
        assert lesion.mean_probability == pytest.approx(expected.pop((lesion.box, lesion.area)), abs=1e-6)
    assert not expected


# --- cases by hand ---


def test_two_polyps_merged_into_one_region() -> None:
    truth = drawing("####..##", "####..##")
    merged = np.ones_like(truth)
    match = match_lesions(merged, truth, min_area=1)
    assert [lesion.best_iou for lesion in match.truths] == [8 / 16, 4 / 16]
    assert [lesion.matched for lesion in match.truths] == [(True, True), (False, False)]
    assert [lesion.box for lesion in match.missed(0.5)] == [(6, 0, 8, 2)]
    assert match.false_positives(0.5) == match.false_positives(0.3) == ()


def test_one_polyp_split_into_two_regions() -> None:
    truth = drawing("##########")
    match = match_lesions(drawing("#####.####"), truth, min_area=1)
    assert match.missed(0.3) == match.missed(0.5) == ()
    # the halves have 0.5 and 0.4: both are candidates at 0.3, but one polyp is one find
    assert [lesion.area for lesion in match.false_positives(0.3)] == [4]
    assert [lesion.best_iou for lesion in match.predictions] == [0.5, 0.4]


def test_an_iou_equal_to_the_threshold_reaches_it() -> None:
    match = match_lesions(drawing("###......."), drawing("##########"), min_area=1)
    assert match.truths[0].best_iou == 0.3
    assert match.truths[0].matched == (True, False)


def test_touching_diagonally_is_one_lesion() -> None:
    truth = drawing("##...", "##...", "..##.", "..##.")
    match = match_lesions(truth & (np.arange(4)[:, None] < 2), truth, min_area=1)
    assert [lesion.area for lesion in match.truths] == [8]
    assert match.truths[0].box == (0, 0, 4, 4)
    assert match.truths[0].matched == (True, True)


def test_most_pairs_where_a_greedy_choice_loses_one() -> None:
    """The large region fits the large polyp better than both other pairs together, but only it finds the small one."""
    truth = drawing(
        "..............",
        "##########..##",
    )
    prediction = drawing(
        ".........###..",
        "##.#######..##",  # two pixels, and twelve joined over the top
    )
    match = match_lesions(prediction, truth, min_area=1, iou_thresholds=(0.15, 0.2, 0.25))
    assert match.iou.tolist() == [[7 / 15, 2 / 10], [2 / 12, 0]]
    assert match.missed(0.15) == match.false_positives(0.15) == ()
    assert [lesion.area for lesion in match.missed(0.2)] == [2]
    assert [lesion.area for lesion in match.false_positives(0.2)] == [2]


def test_the_better_fit_is_the_pair() -> None:
    truth = drawing("##########..........")
    prediction = drawing("####.###############")
    match = match_lesions(prediction, truth, min_area=1, iou_thresholds=(0.2,))
    assert match.iou.tolist() == [[5 / 20, 4 / 10]]
    assert [lesion.area for lesion in match.false_positives(0.2)] == [15]


def test_small_regions_are_ignored_in_both_masks() -> None:
    truth = np.zeros((30, 40), bool)
    truth[10:20, 10:20] = True
    prediction = truth.copy()
    truth[0, 0] = True  # as in the masks of Kvasir-SEG
    prediction[25, 30:39] = True
    match = match_lesions(prediction, truth)
    assert [lesion.area for lesion in match.truths] == [lesion.area for lesion in match.predictions] == [100]
    assert match.truths[0].best_iou == 1
    assert len(match_lesions(prediction, truth, min_area=9).predictions) == 2
    assert len(match_lesions(prediction, truth, min_area=1).missed(0.3)) == 1
    assert match_lesions(prediction & False, truth & (np.arange(40) == 0)).truths == ()


def test_empty_masks() -> None:
    empty, full = np.zeros((5, 6), bool), np.ones((5, 6), bool)
    nothing, invented, lost = match_lesions(empty, empty), match_lesions(full, empty), match_lesions(empty, full)
    assert nothing.truths == nothing.predictions == ()
    assert len(invented.false_positives(0.3)) == 1 and invented.predictions[0].best_iou == 0
    assert len(lost.missed(0.3)) == 1 and lost.truths[0].best_iou == 0


# --- steps of the FROC ---


def test_steps_find_again_what_a_lower_confidence_had_taken() -> None:
    """Of two candidates for one polyp the better fitting is less confident: without it the other is the find."""
    truth, prediction = drawing("##########"), drawing("#####.####")
    probability = np.where(np.arange(10) < 5, 0.6, 0.9)[None].astype(np.float32)
    match = match_lesions(prediction, truth, probability, min_area=1)
    assert sorted(match.steps(0.3), reverse=True) == [(pytest.approx(0.9), 1, 0), (pytest.approx(0.6), 0, 1)]
    assert sorted(match.steps(0.5), reverse=True) == [(pytest.approx(0.9), 0, 1), (pytest.approx(0.6), 1, 0)]
    assert match.steps(None) == [(pytest.approx(0.9), 1, 0)]  # both touch the polyp: neither is false


def test_any_overlap_is_not_one_to_one() -> None:
    bridge = match_lesions(drawing("##########"), drawing("###....###"), min_area=1)
    assert bridge.found(None).tolist() == [True, True] and bridge.right(None).tolist() == [True]
    halves = match_lesions(drawing("###....###"), drawing("##########"), min_area=1)
    assert halves.found(None).tolist() == [True] and halves.right(None).tolist() == [True, True]
    beside = match_lesions(drawing("###......."), drawing("...###...."), min_area=1)
    assert not beside.found(None).any() and not beside.right(None).any()  # neighbours share no pixel


def test_what_shows_a_polyp() -> None:
    speck = np.zeros((9, 9), bool)
    speck[2:5, 2:5] = True  # 9 pixels
    assert not shows_polyp(speck) and not shows_polyp(speck & False)
    speck[7, 7] = True  # 10 in all, but in no region
    assert not shows_polyp(speck)
    speck[5, 5] = True  # touches by its corner
    assert shows_polyp(speck) and shows_polyp(np.ones((4, 4), bool))


# --- wrong arguments ---

POLYP = np.ones((4, 4), bool)
MAP = np.full((4, 4), 0.5, np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((POLYP, np.ones((4, 5), bool)), {}, "prediction is"),
        ((POLYP[0], POLYP[0]), {}, "H×W"),
        ((POLYP[:0], POLYP[:0]), {}, "at least one pixel"),
        ((POLYP.astype(np.uint8), POLYP), {}, "must be bool"),
        ((POLYP, POLYP, MAP[:, :3]), {}, "probability is"),
        ((POLYP, POLYP, np.where(np.eye(4), np.nan, MAP)), {}, "NaN or values outside"),
        ((POLYP, POLYP, MAP * 3), {}, "NaN or values outside"),
        ((POLYP, POLYP, -MAP), {}, "NaN or values outside"),
        ((POLYP, POLYP), {"min_area": 0}, "min_area"),
        ((POLYP, POLYP), {"iou_thresholds": (0.0,)}, "IoU thresholds"),
        ((POLYP, POLYP), {"iou_thresholds": (1.5,)}, "IoU thresholds"),
        ((POLYP, POLYP), {"iou_thresholds": (float("nan"),)}, "IoU thresholds"),
        ((POLYP, POLYP), {"iou_thresholds": ()}, "at least one"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_lesions(*arguments, **options)


def test_wrong_use_of_a_match() -> None:
    match = match_lesions(POLYP, POLYP)
    for use in (match.missed, match.found, match.right):
        with pytest.raises(ValueError, match="not one of those"):
            use(0.4)
    for threshold in (None, 0.5):
        with pytest.raises(ValueError, match="without a probability map"):
            match.steps(threshold)
    with pytest.raises(ValueError, match="not one of those"):
        match_lesions(POLYP, POLYP, MAP).steps(0.4)
