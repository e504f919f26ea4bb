"""The operating point: from a probability map to polyps, against scipy's labelling and hole filling."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

import polypseg
from polypseg.bundle import ModelBundle
from polypseg.data import phantom
from polypseg.errors import UsageError
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Enlarged, Segmentation

EIGHT = np.ones((3, 3), int)
shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
maps = shapes.flatmap(
    lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 4)).map(lambda one: np.float32(one) / 4)
)
points = st.builds(
    OperatingPoint,
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]),
    st.sampled_from(["peak", "mean"]),
    st.sampled_from([0.0, 0.03, 0.1]),
    st.booleans(),
)


def regions(probability: np.ndarray, point: OperatingPoint) -> list[tuple[np.ndarray, float]]:
    """Each region with its confidence, by scipy."""
    mask = probability >= point.threshold
    # what is outside reaches the border without a step over a corner, as regions are joined over corners
    mask = ndimage.binary_fill_holes(mask) if point.fill_holes else mask
    labels, count = ndimage.label(mask, EIGHT)
    found = [labels == label for label in range(1, count + 1)]
    kind = np.max if point.confidence == "peak" else np.mean
    return [(one, float(kind(probability[one]))) for one in found if one.sum() >= point.min_area * mask.size]


@settings(max_examples=150, deadline=None)
@given(maps, points)
def test_equals_scipys(probability: np.ndarray, point: OperatingPoint) -> None:
    before = probability.copy()
    result = Segmentation.from_probability(probability, point)
    expected = regions(probability, point)
    confirmed = [(one, value) for one, value in expected if value >= point.min_confidence - 1e-6]
    empty = [(np.zeros(probability.shape, bool), 0.0)]
    np.testing.assert_array_equal(result.candidate_mask, np.any([one for one, _ in expected + empty], axis=0))
    np.testing.assert_array_equal(result.mask, np.any([one for one, _ in confirmed + empty], axis=0))
    for polyps, reference in ((result.candidates, expected), (result.polyps, confirmed)):
        found = sorted((polyp.area, polyp.confidence) for polyp in polyps)
        true = sorted((int(one.sum()), value) for one, value in reference)
        np.testing.assert_allclose(np.reshape(found, (-1, 2)), np.reshape(true, (-1, 2)), atol=1e-4)
    assert [polyp for polyp in result.candidates if polyp.confirmed] == result.polyps
    assert sum(polyp.area for polyp in result.polyps) == result.mask.sum()
    np.testing.assert_array_equal(probability, before)


@pytest.mark.parametrize("confidence", ["peak", "mean"])
@pytest.mark.parametrize("least", [0.0, 0.6, 0.9])
def test_an_enlarged_map_gives_what_the_whole_one_does(confidence: Any, least: float) -> None:
    small = cv2.GaussianBlur(np.random.default_rng(1).random((48, 48), np.float32), (0, 0), 3)
    small = (small - small.min()) / (small.max() - small.min())
    point = OperatingPoint(0.5, least, confidence, 0.001, True)
    lazy = Segmentation.from_probability(Enlarged(small, 300, 410), point)
    eager = Segmentation.from_probability(Enlarged(small, 300, 410).whole, point)
    np.testing.assert_array_equal(lazy.mask, eager.mask)
    for one, other in zip(lazy.candidates, eager.candidates, strict=True):
        assert (one.box, one.area, one.confirmed) == (other.box, other.area, other.confirmed)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
    assert len(lazy.polyps) < len(lazy.candidates) or least < 0.9


def test_a_region_outside_the_field_of_view_is_none() -> None:
    probability = np.zeros((60, 80), np.float32)
    probability[10:20, 2:8] = 0.9  # all outside
    probability[30:40, 6:12] = 0.9  # a third outside: columns 6 and 7
    probability[50:55, 5:9] = 0.9  # three quarters outside
    probability[10:20, 60:70] = 0.9
    outside = np.zeros((6, 10), bool)
    outside[:, 0] = True  # the first eight columns of the frame
    found = Segmentation.from_probability(probability, 0.5, outside)
    assert [polyp.box for polyp in found.candidates] == [(60, 10, 70, 20), (6, 30, 12, 40)]
    assert found.mask.sum() == 160 and found.mask[30:40, 6:12].all()
    whole = Segmentation.from_probability(probability, 0.5, np.zeros((6, 10), bool))
    assert len(whole.polyps) == 4


def test_a_segmenter_uses_its_bundles(exported: ModelBundle, tmp_path: Path) -> None:
    chosen = OperatingPoint(0.3, 0.0, "mean", 0.05, True)
    bundle = ModelBundle.save(
        tmp_path / "bundle", exported.weights(), name="processed", architecture=exported.architecture,
        preprocessing=exported.preprocessing, operating_point=chosen,
    )  # fmt: skip
    assert bundle.operating_point == chosen and bundle.hash != exported.hash
    segmenter = polypseg.load(bundle.folder, device="cpu")
    predictions = [segmenter.segment(phantom.draw(seed, 80, 110)[0]) for seed in range(8)]
    for prediction in predictions:
        expected = chosen.clean(prediction.probability >= np.float32(0.3))
        np.testing.assert_array_equal(prediction.mask, expected)
        assert all(polyp.area >= 0.05 * expected.size for polyp in prediction.polyps)
    confidences = [polyp.confidence for prediction in predictions for polyp in prediction.polyps]
    floor = float(np.median(confidences))
    strict = polypseg.load(bundle.folder, device="cpu", min_confidence=floor)
    assert strict.settings["operating_point"] == {**asdict(chosen), "min_confidence": floor}
    left = [polyp for seed in range(8) for polyp in strict.segment(phantom.draw(seed, 80, 110)[0]).polyps]
    assert 0 < len(left) < len(confidences) and all(polyp.confidence >= floor - 1e-6 for polyp in left)
    every = polypseg.load(bundle.folder, device="cpu", threshold=0.4, min_area=0.0, fill_holes=False)
    assert every.operating_point == OperatingPoint(0.4, 0.0, "mean")
    with pytest.raises(UsageError, match=r"^--min_confidence 2: must lie in 0..1$"):
        polypseg.load(bundle.folder, device="cpu", min_confidence=2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"threshold": 1.5}, "threshold 1.5: must lie in 0..1"),
        ({"threshold": float("nan")}, "threshold nan: must lie in 0..1"),
        ({"threshold": "high"}, "threshold 'high': must lie in 0..1"),
        ({"threshold": True}, "threshold True: must lie in 0..1"),
        ({"threshold": 10**400}, "must lie in 0..1"),
        ({"min_confidence": -0.1}, "min_confidence -0.1: must lie in 0..1"),
        ({"min_area": 1.0}, "min_area 1: must lie below 1"),
        ({"confidence": "max"}, "confidence 'max': must be peak or mean"),
        ({"fill_holes": 1}, "fill_holes 1: must be true or false"),
        ({"treshold": 0.5}, "an operating point has no treshold"),
    ],
)
def test_senseless_values_are_refused_in_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="") as error:
        OperatingPoint.from_dict(values)
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_dictionary_and_back() -> None:
    point = OperatingPoint(0.4, 0.9, "mean", 0.001, True)
    assert OperatingPoint.from_dict(asdict(point)) == point
    assert OperatingPoint.from_dict({}) == OperatingPoint()


def test_the_probability_is_to_be_read_only() -> None:
    probability = np.full((4, 6), 0.8, np.float32)
    for source in (probability, Enlarged(probability, 4, 6), Enlarged(probability, 8, 12)):
        result = Segmentation.from_probability(source, 0.5)
        with pytest.raises(ValueError, match="read-only"):
            result.probability[0, 0] = 0
        assert result.polyps[0].confidence == pytest.approx(0.8)
