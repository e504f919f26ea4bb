"""Post-processing of masks, against scipy's labelling and hole filling."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

import polypseg
from polypseg.bundle import ModelBundle, Postprocessing
from polypseg.data import phantom

EIGHT = np.ones((3, 3), int)
masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays.arrays(bool, shape))


@settings(max_examples=300, deadline=None)
@given(masks, st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.5]), st.booleans())
def test_equals_scipys(mask: np.ndarray, min_area: float, fill_holes: bool) -> None:
    before = mask.copy()
    found = Postprocessing(min_area, fill_holes).apply(mask)
    # what is outside reaches the border without a step over a corner, as regions are joined over corners
    expected = ndimage.binary_fill_holes(mask) if fill_holes else mask.copy()
    labels, count = ndimage.label(expected, EIGHT)
    for label in range(1, count + 1):
        if (labels == label).sum() < min_area * mask.size:
            expected[labels == label] = False
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mask, before)
    assert found.dtype == bool


def test_a_segmenter_uses_its_bundles(exported: ModelBundle, tmp_path: Path) -> None:
    chosen = Postprocessing(0.05, True)
    bundle = ModelBundle.save(
        tmp_path / "bundle", exported.weights(), name="processed", architecture=exported.architecture,
        preprocessing=exported.preprocessing, threshold=0.3, postprocessing=asdict(chosen),
    )  # fmt: skip
    assert bundle.postprocessing == chosen and bundle.hash != exported.hash
    segmenter = polypseg.load(bundle.folder, device="cpu")
    differed = 0
    for seed in range(8):
        answer = segmenter.segment(phantom.draw(seed, 80, 110)[0])
        plain = answer.probability >= np.float32(0.3)
        np.testing.assert_array_equal(answer.mask, chosen.apply(plain))
        differed += (answer.mask != plain).any()
        assert all(polyp.area >= 0.05 * plain.size for polyp in answer.polyps)
    assert differed


@pytest.mark.parametrize("values", [(-0.1, False), (1.0, False), (0.1, 1)])
def test_senseless_values_are_refused(values: tuple[float, bool]) -> None:
    with pytest.raises(ValueError):
        Postprocessing(*values)
