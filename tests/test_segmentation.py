"""A Segmentation's polyps, against scipy's own labelling."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Enlarged, Segmentation


def blobs(seed: int, height: int = 60, width: int = 90) -> NDArray[np.float32]:
    """A smooth probability map with several regions, some with holes, some at the border."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, 2.0)
    return (1 / (1 + np.exp(-20 * smooth))).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_polyps_are_the_connected_regions(seed: int, threshold: float) -> None:
    probability = blobs(seed)
    result = Segmentation.from_probability(probability, threshold)
    np.testing.assert_array_equal(result.mask, probability >= np.float32(threshold))
    labels, count = ndimage.label(result.mask, structure=np.ones((3, 3)))
    assert count > 3
    expected = {}
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        region = labels == label
        box = (columns.start, rows.start, columns.stop, rows.stop)
        # Two regions may share a box, one around the other; box and area tell them apart.
        expected[box, int(region.sum())] = region
    assert len(result.polyps) == count == len(expected)
    for polyp in result.polyps:
        region = expected.pop((polyp.box, polyp.area))
        assert polyp.confidence == pytest.approx(probability[region].max(), abs=1e-5)
        assert threshold <= polyp.confidence <= 1
        assert polyp.contour.dtype == np.int32
        drawn = cv2.drawContours(np.zeros(region.shape, np.uint8), [polyp.contour[:, None]], -1, 1, cv2.FILLED)
        filled = ndimage.binary_fill_holes(region)
        np.testing.assert_array_equal(drawn.astype(bool), filled)
    assert not expected
    areas = [polyp.area for polyp in result.polyps]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("enlarged", [True, False])
@pytest.mark.parametrize("point", [OperatingPoint(0.5), OperatingPoint(0.5, min_confidence=0.99)])
def test_no_array_of_a_result_can_be_written_to(enlarged: bool, point: OperatingPoint) -> None:
    """Else whoever writes into one would change what is asked for afterwards."""
    given = blobs(0)
    result = Segmentation.from_probability(Enlarged(given, 120, 180) if enlarged else given, point)
    result = replace(result, frame=np.zeros((*result.mask.shape, 3), np.uint8))
    before = json.dumps(result.to_dict()), result.mask.copy(), result.probability.copy()
    small = result.source.small if isinstance(result.source, Enlarged) else result.source
    window = slice(0, 9), slice(0, 9)
    part = result.source.part(window) if isinstance(result.source, Enlarged) else small[window]
    assert result.candidates and result.frame is not None
    contours = [polyp.contour for polyp in (*result.polyps, *result.candidates)]
    for array in (result.mask, result.candidate_mask, result.probability, result.frame, small, part, *contours):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    result.polyps.clear()
    result.to_dict()["polyps"].clear()
    assert json.dumps(result.to_dict()) == before[0]
    np.testing.assert_array_equal(result.mask, before[1])
    np.testing.assert_array_equal(result.probability, before[2])
    given[:] = 0.5  # the caller's own stays writable


def test_corners_connect() -> None:
    probability = np.zeros((4, 4), np.float32)
    probability[1, 1] = probability[2, 2] = 1
    (polyp,) = Segmentation.from_probability(probability, 0.5).polyps
    assert (polyp.box, polyp.area) == ((1, 1, 3, 3), 2)


def test_nothing_everything_and_one_pixel() -> None:
    assert Segmentation.from_probability(np.zeros((5, 7), np.float32), 0.5).polyps == []
    (whole,) = Segmentation.from_probability(np.ones((5, 7), np.float32), 0.5).polyps
    assert (whole.box, whole.area, whole.confidence) == ((0, 0, 7, 5), 35, 1.0)
    single = np.zeros((5, 7), np.float32)
    single[4, 6] = 0.75
    (polyp,) = Segmentation.from_probability(single, 0.75).polyps  # at the threshold counts
    assert (polyp.box, polyp.area, polyp.confidence) == ((6, 4, 7, 5), 1, 0.75)
    assert polyp.contour.tolist() == [[6, 4]]


def test_the_threshold_is_compared_in_the_precision_of_the_map() -> None:
    probability = np.full((1, 2), np.float32(0.1))
    assert float(probability[0, 0]) != 0.1  # 0.1 has another nearest value in float32
    assert Segmentation.from_probability(probability, 0.1).mask.all()


def test_a_polyp_becomes_json() -> None:
    polyp = Segmentation.from_probability(blobs(0), 0.5).polyps[0]
    values = json.loads(json.dumps(polyp.to_dict()))
    assert values["box"] == list(polyp.box)
    assert values["area"] == polyp.area
    assert values["confidence"] == pytest.approx(polyp.confidence, abs=1e-6)
    assert values["contour"] == polyp.contour.tolist()


@settings(max_examples=300, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape)))
def test_polyps_of_any_small_mask_are_scipys_regions(mask: NDArray[np.bool_]) -> None:
    found = Segmentation(mask, mask.astype(np.float32), 0.5).polyps
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    expected = [
        ((columns.start, rows.start, columns.stop, rows.stop), int((labels == label).sum()))
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1)
    ]
    assert sorted((polyp.box, polyp.area) for polyp in found) == sorted(expected)
    for polyp in found:
        xs, ys = polyp.contour.T
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == polyp.box and mask[ys, xs].all()


SIZES = [(352, 352, 1080, 1380), (60, 90, 61, 90), (60, 90, 480, 97), (60, 90, 25, 40), (1, 1, 9, 4), (32, 32, 1, 1)]


@pytest.mark.parametrize(("rows", "columns", "height", "width"), SIZES)
def test_enlarged_maps_are_opencvs(rows: int, columns: int, height: int, width: int) -> None:
    small = blobs(3, rows, columns)
    expected = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    whole = Enlarged(small, height, width).whole
    assert whole.shape == (height, width) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, expected, rtol=0, atol=5e-6)  # OpenCV computes positions in float32


@pytest.mark.parametrize(("rows", "columns", "height", "width"), SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.97, 1.0])
def test_only_a_part_is_enlarged_and_nothing_is_missed(
    rows: int, columns: int, height: int, width: int, threshold: float
) -> None:
    small = blobs(5, rows, columns) * np.float32(0.99)
    small[rows // 3 :] *= np.float32(0.4)  # polyps in the upper third only
    lazy = Segmentation.from_probability(Enlarged(small, height, width), threshold)
    whole = Enlarged(small, height, width).whole
    eager = Segmentation.from_probability(whole, threshold)
    np.testing.assert_array_equal(lazy.mask, eager.mask)
    assert [polyp.to_dict() for polyp in lazy.polyps] == [polyp.to_dict() for polyp in eager.polyps]
    np.testing.assert_array_equal(lazy.probability, whole)


def test_a_part_of_an_enlarged_map_is_that_part_of_the_whole_in_any_order() -> None:
    small = blobs(1)
    whole = Enlarged(small, 333, 555).whole
    lazy = Enlarged(small, 333, 555)
    for top, bottom, left, right in (
        (10, 20, 5, 500),
        (12, 15, 6, 7),
        (0, 333, 0, 555),
        (0, 1, 554, 555),
        (9, 21, 4, 9),
    ):
        part = lazy.part((slice(top, bottom), slice(left, right)))
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])
