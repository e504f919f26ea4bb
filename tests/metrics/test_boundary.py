"""Boundary scores against MONAI, surface-distance and a brute force of their definitions, and their properties."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from polypseg.metrics.boundary import boundary_scores

Mask = NDArray[np.bool_]
TOLERANCES = (0.0, 1.0, math.sqrt(2), 2.0, math.sqrt(5), 3.5, 10.0)


def ellipse(shape: tuple[int, int], centre: tuple[int, int], axes: tuple[int, int], angle: float = 0.0) -> Mask:
    canvas = np.zeros(shape, np.uint8)
    return cv2.ellipse(canvas, centre, axes, angle, 0, 360, 1, -1).astype(bool)


def drawn_pairs() -> list[tuple[Mask, Mask]]:
    """Masks as frames have them: shifted, border-touching, of several polyps, tiny, full."""
    shape = (90, 120)
    one = ellipse(shape, (50, 40), (30, 20), 20)
    stray = one.copy()
    stray[0, 0] = True
    pixel, full, frame = np.zeros(shape, bool), np.ones(shape, bool), np.ones(shape, bool)
    pixel[70, 100] = True
    frame[1:-1, 1:-1] = False
    return [
        (one, one),
        (one, ellipse(shape, (54, 43), (28, 22), 35)),
        (one, stray),
        (one | ellipse(shape, (105, 75), (9, 8)), one),
        (ellipse(shape, (0, 0), (40, 30)), ellipse(shape, (5, 85), (45, 60))),
        (ellipse(shape, (119, 60), (20, 20)), one),
        (pixel, one),
        (pixel, pixel[::-1]),
        (full, one),
        (frame, one),
        (full, pixel),
    ]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two random masks of one shape, empty and full among them; some coarse, so that they contain thick regions."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grain = draw(st.sampled_from([1, 3]))
    masks = []
    for share in draw(st.tuples(*[st.sampled_from([0.0, 0.02, 0.3, 0.8, 1.0])] * 2)):
        coarse = rng.random((shape[0] // grain + 1, shape[1] // grain + 1)) < share
        masks.append(coarse.repeat(grain, 0).repeat(grain, 1)[: shape[0], : shape[1]])
    return masks[0], masks[1]


def by_definition(prediction: Mask, truth: Mask, width: int) -> dict[str, Any]:
    """The scores pixel by pixel, from the module's definitions: slow and plain. Neither mask is empty."""

    def surface(mask: Mask) -> NDArray[np.int64]:
        height, length = mask.shape
        found = []
        for y, x in np.argwhere(mask):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            if not all(0 <= v < height and 0 <= u < length and mask[v, u] for v, u in around):
                found.append((y, x))
        return np.array(found)

    def band(mask: Mask) -> Mask:
        outside = np.pad(mask, width + 1) == 0  # at least one pixel around the image
        near = np.zeros(mask.shape, bool)
        for y, x in np.argwhere(mask):
            near[y, x] = outside[y + 1 : y + 2 * width + 2, x + 1 : x + 2 * width + 2].any()
        return near

    ours, theirs = surface(prediction), surface(truth)
    distances = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(2))
    directed = [np.sort(distances.min(1)), np.sort(distances.min(0))]

    def percentile95(values: NDArray[np.float64]) -> float:
        rank = 0.95 * (len(values) - 1)
        low = math.floor(rank)
        high = min(low + 1, len(values) - 1)
        return float(values[low] + (rank - low) * (values[high] - values[low]))

    every = np.concatenate(directed)
    bands = band(prediction), band(truth)
    return {
        "hd_px": max(values[-1] for values in directed),
        "hd95_px": max(percentile95(values) for values in directed),
        "assd_px": every.sum() / len(every),
        "nsd": tuple(float((every <= tolerance + 1e-9).sum() / len(every)) for tolerance in TOLERANCES),
        "boundary_iou": (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum(),
    }


def assert_as_defined(prediction: Mask, truth: Mask, share: float) -> None:
    scores = boundary_scores(prediction, truth, TOLERANCES, share)
    assert scores.boundary_width_px == max(1, round(share * math.hypot(*truth.shape)))
    for name, value in by_definition(prediction, truth, scores.boundary_width_px).items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-9), name


@settings(deadline=None, max_examples=60)
@given(pairs(), st.sampled_from([0.02, 0.1, 0.3]))
def test_against_the_definition(masks: tuple[Mask, Mask], share: float) -> None:
    if masks[0].any() and masks[1].any():
        assert_as_defined(*masks, share)


def test_drawn_masks_against_the_definition() -> None:
    for prediction, truth in drawn_pairs()[:5]:
        assert_as_defined(prediction, truth, 0.02)


def assert_as_monai(prediction: Mask, truth: Mask) -> None:
    metrics = pytest.importorskip("monai.metrics")
    import torch

    p, t = (torch.from_numpy(mask.copy())[None, None] for mask in (prediction, truth))
    kept: dict[str, Any] = {"include_background": True}  # the one channel is the polyp
    ours = boundary_scores(prediction, truth, TOLERANCES)

    def agrees(value: float, reference: Any) -> None:
        assert value == pytest.approx(float(reference), rel=1e-6, abs=1e-6)  # MONAI counts in float32

    agrees(ours.hd_px, metrics.compute_hausdorff_distance(p, t, **kept))
    agrees(ours.hd95_px, metrics.compute_hausdorff_distance(p, t, percentile=95, **kept))
    agrees(ours.assd_px, metrics.compute_average_surface_distance(p, t, symmetric=True, **kept))
    for tolerance, value in zip(TOLERANCES, ours.nsd, strict=True):
        agrees(value, metrics.compute_surface_dice(p, t, [tolerance], **kept))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(pairs())
def test_random_masks_against_monai(masks: tuple[Mask, Mask]) -> None:
    if masks[0].any() and masks[1].any():
        assert_as_monai(*masks)


def test_drawn_masks_against_monai() -> None:
    for prediction, truth in drawn_pairs():
        assert_as_monai(prediction, truth)


def test_distances_against_a_distance_transform_at_full_size() -> None:
    """scipy's exact transform of a whole frame, farther than float32 tells integers' square roots apart."""
    prediction, truth = np.zeros((2, 1072, 1920), bool)
    prediction[:25, :30] = True
    truth[1000:, 1880:] = True
    truth[500:510, 900:950] = True
    surfaces = [mask ^ ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    directed = [ndimage.distance_transform_edt(~surfaces[1 - i])[surfaces[i]] for i in (0, 1)]
    scores = boundary_scores(prediction, truth)
    assert scores.hd_px == max(values.max() for values in directed)
    assert scores.assd_px == pytest.approx(np.concatenate(directed).mean(), rel=1e-12)
    assert scores.hd95_px == pytest.approx(max(np.percentile(values, 95) for values in directed), rel=1e-12)


def deepmind(prediction: Mask, truth: Mask) -> Any:
    module = pytest.importorskip("surface_distance.metrics")
    return module, module.compute_surface_distances(truth, prediction, (1.0, 1.0))


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(0, 9)] * 4), st.tuples(*[st.integers(1, 9)] * 2))
def test_against_surface_distance_where_definitions_agree(
    margins: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    """A rectangle within another: the distance from corner to corner, wherever in its pixel the surface lies."""
    top, bottom, left, right = margins
    outer = np.zeros((32, 32), bool)
    outer[2 : 2 + top + size[0] + bottom, 3 : 3 + left + size[1] + right] = True
    inner = np.zeros((32, 32), bool)
    inner[2 + top : 2 + top + size[0], 3 + left : 3 + left + size[1]] = True
    module, distances = deepmind(inner, outer)
    scores = boundary_scores(inner, outer)
    assert scores.hd_px == pytest.approx(module.compute_robust_hausdorff(distances, 100), abs=1e-12)
    assert scores.hd_px == pytest.approx(math.hypot(max(left, right), max(top, bottom)), abs=1e-12)


def test_close_to_surface_distance_on_smooth_outlines() -> None:
    """Its surface runs between pixels and is weighted by length: parts of a pixel apart, no more."""
    for prediction, truth in drawn_pairs()[:2]:
        module, distances = deepmind(prediction, truth)
        scores = boundary_scores(prediction, truth, (2.0,))
        assert scores.hd95_px == pytest.approx(module.compute_robust_hausdorff(distances, 95), abs=1.0)
        forth, back = module.compute_average_surface_distance(distances)
        assert scores.assd_px == pytest.approx((forth + back) / 2, abs=0.25)
        assert scores.nsd[0] == pytest.approx(module.compute_surface_dice_at_tolerance(distances, 2.0), abs=0.1)


@settings(deadline=None)
@given(pairs())
def test_properties(masks: tuple[Mask, Mask]) -> None:
    one, other = masks
    scores = boundary_scores(one, other, TOLERANCES)
    # HD95 interpolates; its last bit depends on the order
    assert 0 <= scores.hd95_px <= scores.hd_px * (1 + 1e-12) <= scores.diagonal_px * (1 + 1e-12)
    assert 0 <= scores.assd_px <= scores.hd_px * (1 + 1e-12)
    assert all(0 <= value <= 1 for value in (*scores.nsd, scores.boundary_iou))
    assert list(scores.nsd) == sorted(scores.nsd)  # a wider tolerance never lowers it
    # all of both surfaces lies within the Hausdorff distance, unless a mask is missing
    assert (boundary_scores(one, other, (scores.hd_px,)).nsd[0] == 1) == (one.any() == other.any())
    for a, b in [(other, one), (one[::-1], other[::-1]), (one[:, ::-1], other[:, ::-1]), (one.T, other.T)]:
        assert boundary_scores(a, b, TOLERANCES).to_dict() == pytest.approx(scores.to_dict(), abs=1e-12)
    same = boundary_scores(one, one, TOLERANCES)
    assert (same.hd_px, same.hd95_px, same.assd_px, same.boundary_iou) == (0, 0, 0, 1) and set(same.nsd) == {1.0}


@settings(deadline=None, max_examples=30)
@given(pairs(), st.tuples(*[st.integers(0, 5)] * 4))
def test_a_margin_changes_no_distance(masks: tuple[Mask, Mask], margin: tuple[int, int, int, int]) -> None:
    """What lies outside the image is outside the mask, so moving the image's border outwards changes nothing."""
    if not (masks[0].any() and masks[1].any()):
        return
    tight = boundary_scores(*masks, boundary_width=1e-9)  # 1 pixel in both, whatever the diagonal
    wide = boundary_scores(*(np.pad(mask, (margin[:2], margin[2:])) for mask in masks), boundary_width=1e-9)
    assert (wide.hd_px, wide.hd95_px, wide.assd_px, wide.nsd, wide.boundary_iou) == (
        tight.hd_px, tight.hd95_px, tight.assd_px, tight.nsd, tight.boundary_iou
    )  # fmt: skip


def test_shift_by_hand() -> None:
    square = np.zeros((40, 60), bool)
    square[10:20, 10:20] = True
    shifted = np.roll(square, (3, 4), axis=(0, 1))
    scores = boundary_scores(shifted, square, (4.0, 5.0))
    assert scores.hd_px == 5  # corner to corner
    assert scores.nsd[0] < 1 and scores.nsd[1] == 1
    assert scores.diagonal_px == math.hypot(40, 60)
    assert scores.to_dict()["hd_percent"] == pytest.approx(500 / math.hypot(40, 60))
    assert set(scores.to_dict()) == {
        "hd_px", "hd_percent", "hd95_px", "hd95_percent", "assd_px", "assd_percent",
        "nsd_4px", "nsd_5px", "boundary_iou",
    }  # fmt: skip


def test_boundary_iou_by_hand() -> None:
    """Bands of one pixel of squares of 10 and 8 about one centre: 36 and 28 pixels, none in common."""
    outer, inner = np.zeros((2, 20, 20), bool)
    outer[5:15, 5:15] = True
    inner[6:14, 6:14] = True
    assert boundary_scores(inner, outer).boundary_iou == 0  # 2 % of 28.3 pixels: d = 1
    wider = boundary_scores(inner, outer, boundary_width=0.07)
    assert wider.boundary_width_px == 2
    assert wider.boundary_iou == pytest.approx(28 / (36 + 28 + 20))  # bands of 36+28 and 28+20, 28 in common
    full = np.ones((20, 20), bool)
    missing_corner = full.copy()
    missing_corner[0, 0] = False
    # the image border bounds the full mask: 76 pixels; without its corner (1, 1) joins and (0, 0) leaves
    assert boundary_scores(missing_corner, full).boundary_iou == pytest.approx(75 / 77)


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (30, 41)])
def test_the_empty_mask_rule(shape: tuple[int, int]) -> None:
    empty, some = np.zeros(shape, bool), np.zeros(shape, bool)
    some[0, -1] = True
    both = boundary_scores(empty, empty, (0.0, 2.0))
    assert (both.hd_px, both.hd95_px, both.assd_px, both.to_dict()["hd_percent"]) == (0, 0, 0, 0)
    assert both.nsd == (1, 1) and both.boundary_iou == 1
    # nor does a tolerance as wide as the image excuse a polyp missed or invented
    for prediction, truth in [(empty, some), (some, empty), (~empty, empty)]:
        missed = boundary_scores(prediction, truth, (0.0, 1e6))
        assert missed.hd_px == missed.hd95_px == missed.assd_px == math.hypot(*shape)
        assert [missed.to_dict()[f"{name}_percent"] for name in ("hd", "hd95", "assd")] == [100, 100, 100]
        assert missed.nsd == (0, 0) and missed.boundary_iou == 0


def test_views_and_fortran_order_score_the_same() -> None:
    prediction, truth = drawn_pairs()[1]
    expected = boundary_scores(prediction, truth)
    assert boundary_scores(np.asfortranarray(prediction), truth.repeat(2, 1)[:, ::2]) == expected


@pytest.mark.parametrize(
    ("prediction", "truth", "options", "message"),
    [
        (np.zeros((2, 3), bool), np.zeros((3, 2), bool), {}, "prediction is"),
        (np.zeros(4, bool), np.zeros(4, bool), {}, "H×W"),
        (np.zeros((0, 4), bool), np.zeros((0, 4), bool), {}, "at least one pixel"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool), {}, "must be bool"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), np.float32), {}, "must be bool"),
        (np.ones((2, 2), bool), np.ones((2, 2), bool), {"tolerances": (1.0, -0.1)}, "tolerances"),
        (np.ones((2, 2), bool), np.ones((2, 2), bool), {"tolerances": (float("nan"),)}, "tolerances"),
        (np.ones((2, 2), bool), np.ones((2, 2), bool), {"boundary_width": 0.0}, "boundary_width"),
    ],
)
def test_wrong_arguments(prediction: Any, truth: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundary_scores(prediction, truth, **options)
