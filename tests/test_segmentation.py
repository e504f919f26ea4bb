"""A Segmentation's polyps, against scipy's own labelling."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from polypseg.segmentation import Segmentation


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
        assert polyp.confidence == pytest.approx(probability[region].mean(), abs=1e-5)
        assert threshold <= polyp.confidence <= 1
        assert polyp.contour.dtype == np.int32
        drawn = cv2.drawContours(np.zeros(region.shape, np.uint8), [polyp.contour[:, None]], -1, 1, cv2.FILLED)
        filled = ndimage.binary_fill_holes(region)
        np.testing.assert_array_equal(drawn.astype(bool), filled)
    assert not expected
    areas = [polyp.area for polyp in result.polyps]
    assert areas == sorted(areas, reverse=True)


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
