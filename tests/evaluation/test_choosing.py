"""Choosing the operating point: every step by hand, on maps that were made for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.choosing import CLEANINGS, THRESHOLDS, Maps, choose_point
from polypseg.metrics.overlap import dice
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Segmentation

SIZE = 48
Blob = tuple[int, int, int, float, float]  # row, column, side, peak, probability of the rest


def drawn(*blobs: Blob) -> NDArray[np.float32]:
    probability = np.full((SIZE, SIZE), 0.02, np.float32)
    for row, column, side, peak, rest in blobs:
        probability[row : row + side, column : column + side] = rest
        probability[row + side // 2, column + side // 2] = peak
    return probability


def square(row: int, column: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[row : row + side, column : column + side] = True
    return mask


class Drawn:
    """Stands for a Catalog and for what predicts its frames."""

    def __init__(self, frames: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> None:
        self.frames = list(frames)
        self.passes = 0

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, index: int) -> NDArray[np.uint8]:
        self.passes += 1
        return np.full((SIZE, SIZE, 3), 128, np.uint8)

    def mask(self, index: int) -> NDArray[np.bool_]:
        return self.frames[index][1]

    def probabilities(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        return (probability for _, (probability, _) in zip(frames, self.frames, strict=True))


def maps_of(frames: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> Maps:
    drawn = Drawn(frames)
    maps = Maps.of(drawn, drawn, progress=False)  # type: ignore[arg-type]
    assert drawn.passes == len(drawn) == len(maps)
    return maps


NOTHING = np.zeros((SIZE, SIZE), bool)
TRUE = square(10, 10, 12)
# Peaks tell the polyps apart, means do not: the false regions are flat, the true ones have a summit.
FRAMES = [
    *((drawn((10, 10, 12, 0.90 + 0.01 * one, 0.6)), TRUE) for one in range(6)),
    (drawn((10, 10, 12, 0.99, 0.6), (30, 30, 10, 0.8, 0.7)), TRUE),
    *((drawn((20, 20, 10, 0.78 + 0.01 * one, 0.7)), NOTHING) for one in range(4)),
    (drawn(), NOTHING),
]


def test_the_floor_of_confidence_is_the_best_for_lesions() -> None:
    chosen = choose_point(maps_of(FRAMES), progress=False)
    point, choice = chosen["operating_point"], chosen["operating_point_choice"]
    assert point.confidence == "peak" and 0.81 < point.min_confidence < 0.90
    assert (choice["n"], choice["polyp_free"], choice["lesions"]) == (12, 5, 7)
    assert choice["objective"] == "lesion_f1" and choice["auc"]["peak"] == 1 > choice["auc"]["mean"]
    before, after = choice["before"], choice["chosen"]
    assert before["found"] == after["found"] == after["right"] == after["lesion_f1"] == 1
    assert before["right"] == pytest.approx(7 / 12) and before["false_per_frame"] == pytest.approx(5 / 12)
    assert before["polyp_free_marked"] == 0.8 and after["polyp_free_marked"] == after["false_per_frame"] == 0


def test_polyp_free_frames_do_not_move_the_outline() -> None:
    with_polyps = [frame for frame in FRAMES if frame[1].any()]
    one, other = (choose_point(maps_of(frames), progress=False) for frames in (with_polyps, FRAMES + FRAMES[7:] * 3))
    assert one["threshold_choice"] == other["threshold_choice"]
    assert one["operating_point"].threshold == other["operating_point"].threshold
    assert one["operating_point"].min_area == other["operating_point"].min_area
    assert one["operating_point_choice"]["polyp_free"] == 0
    assert "polyp_free_marked" not in one["operating_point_choice"]["chosen"]


def random_frames(count: int, seed: int = 0) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        row, column = (int(one) for one in rng.integers(2, 14, 2))
        blobs: list[Blob] = [(28, int(rng.integers(0, 30)), 4 + number % 9, float(rng.uniform(0.43, 0.88)), 0.42)]
        truth = NOTHING
        if number % 3:
            truth = square(row, column, 12)
            blobs.append(
                (row + 1, column, 11 + number % 3, float(rng.uniform(0.6, 0.99)), float(rng.uniform(0.2, 0.9)))
            )
        frames.append((drawn(*blobs), truth))
    return frames


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["lesion_f1", "dice"])
def test_every_step_against_a_search_by_hand(objective: str) -> None:
    frames = random_frames(24)
    chosen = choose_point(maps_of(frames), objective, progress=False)
    point = chosen["operating_point"]
    shown = [frame for frame in frames if frame[1].any()]

    def mean_dice(point: OperatingPoint) -> float:
        masks = (Segmentation.from_probability(probability, point).mask for probability, _ in shown)
        return float(np.mean([dice(mask, truth) for mask, (_, truth) in zip(masks, shown, strict=True)]))

    by_threshold = {f"{one:.2f}": mean_dice(OperatingPoint(float(one))) for one in THRESHOLDS}
    assert chosen["threshold_choice"] == pytest.approx(by_threshold, abs=2e-3)  # maps are kept in 16 bits
    assert by_threshold[f"{point.threshold:.2f}"] >= max(by_threshold.values()) - 2e-3
    for one, record in zip(CLEANINGS, chosen["operating_point_choice"]["cleaning"], strict=True):
        cleaned = OperatingPoint(point.threshold, min_area=one.min_area, fill_holes=one.fill_holes)
        assert record["dice"] == pytest.approx(mean_dice(cleaned), abs=2e-3)

    def value(least: float) -> float:
        at = OperatingPoint(point.threshold, least, point.confidence, point.min_area, point.fill_holes)
        if objective == "dice":
            return mean_dice(at)
        right = regions = 0
        for probability, truth in frames:
            for polyp in Segmentation.from_probability(probability, at).polyps:
                left, top, right_edge, bottom = polyp.box
                common = truth[top:bottom, left:right_edge].sum()  # these regions are rectangles
                regions += 1
                right += common / (polyp.area + truth.sum() - common) >= 0.3
        return float(2 * right / (len(shown) + regions))

    tried = [value(float(least)) for least in np.linspace(0, 1, 201)]
    assert value(point.min_confidence) >= max(tried) - 2e-3
    found = chosen["operating_point_choice"]["chosen"]
    assert found[objective] == pytest.approx(value(point.min_confidence), abs=2e-3)


def test_the_kind_of_confidence_is_the_one_that_separates() -> None:
    frames = [(drawn((10, 10, 12, 0.95, 0.5 + 0.02 * one)), TRUE) for one in range(10)]
    frames += [(drawn((20, 20, 12, 0.95 + 0.004 * one, 0.45)), NOTHING) for one in range(10)]
    chosen = choose_point(maps_of(frames), progress=False)
    auc = chosen["operating_point_choice"]["auc"]
    assert chosen["operating_point"].confidence == "mean" and auc["mean"] == 1
    right = [1] * 10 + [0] * 10
    assert auc["peak"] == pytest.approx(roc_auc_score(right, [one.max() for one, _ in frames]), abs=1e-6)


def test_as_many_false_regions_as_are_put_up_with() -> None:
    frames = random_frames(30, 1)
    found = {}
    for most in (0.0, 0.1, 0.3, 5.0):
        chosen = choose_point(maps_of(frames), max_false_per_frame=most, progress=False)
        one = chosen["operating_point_choice"]["chosen"]
        assert one["false_per_frame"] <= most and chosen["operating_point_choice"]["objective"] == "max_false_per_frame"
        found[most] = one["found"]
    assert list(found.values()) == sorted(found.values()) and found[0.0] < found[5.0]
    wrong = [(drawn((20, 20, 10, 0.99, 0.9)), NOTHING), (drawn((10, 10, 12, 0.5, 0.4)), TRUE)]
    with pytest.raises(PolypsegError, match=r"max_false_per_frame 0: cannot be kept"):
        choose_point(maps_of(wrong), max_false_per_frame=0.0, progress=False)


def test_wrong_arguments_are_told_in_one_line() -> None:
    maps = maps_of(FRAMES)
    with pytest.raises(UsageError, match=r"^--objective iou: is unknown; choose lesion_f1 or dice$"):
        choose_point(maps, "iou")
    for most in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"^--max_false_per_frame .*: must be 0 or more$"):
            choose_point(maps, max_false_per_frame=most)


def test_kept_predictions_are_given_again_without_reading_the_frames() -> None:
    maps = maps_of(FRAMES)
    point = OperatingPoint(0.5, 0.85)
    again = list(maps.predictions(point).stream(iter(())))
    for prediction, (probability, truth), index in zip(again, FRAMES, range(len(maps)), strict=True):
        np.testing.assert_array_equal(prediction.mask, Segmentation.from_probability(probability, point).mask)
        np.testing.assert_allclose(prediction.probability, probability, atol=1e-3)
        np.testing.assert_array_equal(maps.truth(index), truth)
