"""How far a predicted outline lies from the true one: Hausdorff and surface distances, surface Dice, boundary IoU.

The **surface** of a mask is the set of its pixels of which at least one of the four edge neighbours is not in the
mask; what lies outside the image is not in the mask, so a mask's pixels on the image border are surface. That is the
mask minus its binary erosion with a cross, as in MONAI's ``get_mask_edges``. Distances are Euclidean, between pixel
centres, in pixels. The ``surface-distance`` package of Nikolov et al. instead lays the surface between pixels and
weights each piece by its length; its numbers differ from these by parts of a pixel.

**Empty masks.** Both empty: every distance 0, surface Dice 1, boundary IoU 1. One of them empty: every distance is
the image's diagonal (100 %, more than any two pixels can be apart), surface Dice 0, boundary IoU 0. MONAI returns
nan or inf there, which a mean over images would drop or be ruined by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from polypseg.metrics.overlap import check_masks

TOLERANCES = (2.0, 5.0, 10.0)  # pixels
BOUNDARY_WIDTH = 0.02  # of the diagonal; Cheng et al.'s choice

# The columns of ``BoundaryScores.to_dict`` at the usual tolerances.
NAMES = (
    *(f"{name}_{unit}" for name in ("hd", "hd95", "assd") for unit in ("px", "percent")),
    *(f"nsd_{size:g}px" for size in TOLERANCES), "boundary_iou",
)  # fmt: skip

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True)
class BoundaryScores:
    """The boundary scores of one image; made by ``boundary_scores``, where the definitions stand.

    Attributes:
        diagonal_px: the image's diagonal, ``sqrt(height² + width²)``, in pixels.
        hd_px: Hausdorff distance, 0..diagonal.
        hd95_px: its 95th percentile, 0..hd_px.
        assd_px: average symmetric surface distance, 0..hd_px.
        tolerances_px: the tolerances of the surface Dice, as given.
        nsd: normalised surface Dice at each tolerance, 0..1.
        boundary_iou: 0..1.
        boundary_width_px: the ``d`` of boundary IoU.
    """

    diagonal_px: float
    hd_px: float
    hd95_px: float
    assd_px: float
    tolerances_px: tuple[float, ...]
    nsd: tuple[float, ...]
    boundary_iou: float
    boundary_width_px: int

    def to_dict(self) -> dict[str, float]:
        """One flat row for a table, as ``NAMES``: distances in pixels and in % of the diagonal."""
        distances: dict[str, float] = {}
        for name, pixels in (("hd", self.hd_px), ("hd95", self.hd95_px), ("assd", self.assd_px)):
            distances |= {f"{name}_px": float(pixels), f"{name}_percent": 100.0 * (pixels / self.diagonal_px)}
        surface_dice = {f"nsd_{size:g}px": value for size, value in zip(self.tolerances_px, self.nsd, strict=True)}
        return {**distances, **surface_dice, "boundary_iou": self.boundary_iou}


def boundary_scores(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    tolerances: Sequence[float] = TOLERANCES,
    boundary_width: float = BOUNDARY_WIDTH,
) -> BoundaryScores:
    """All boundary scores of one image. Surface and empty masks: see the module.

    With ``d(p)`` the distance from a surface pixel of the prediction to the nearest one of the truth, ``d(t)`` the
    reverse, and ``n`` the number of surface pixels of both masks together:

    - Hausdorff distance: the largest of all ``d(p)`` and ``d(t)`` (Huttenlocher et al., IEEE TPAMI 1993). One stray
      pixel decides it, in the truth too: read HD95.
    - HD95: the larger of the 95th percentile of ``d(p)`` and that of ``d(t)``, interpolated linearly between ranks.
      Some tools take one percentile of both sets pooled, which is another number.
    - Average symmetric surface distance: ``(Σ d(p) + Σ d(t)) / n`` (Heimann et al., IEEE TMI 2009).
    - Normalised surface Dice at a tolerance: the share of the ``n`` surface pixels whose distance is at most the
      tolerance (Nikolov et al., 2018, arXiv 1809.04430; counted in pixels as in Seidlitz et al., Medical Image
      Analysis 2022).
    - Boundary IoU: the IoU of the two masks' inner bands, those pixels of a mask from which a pixel outside of it
      can be reached in at most ``d`` steps, diagonal ones allowed (Cheng et al., CVPR 2021). ``d`` is
      ``boundary_width × diagonal``, rounded, at least 1. Outside the image is outside the mask, as in their code.

    The first four equal MONAI's ``compute_hausdorff_distance``, ``compute_average_surface_distance(symmetric=True)``
    and ``compute_surface_dice`` where neither mask is empty.

    Args:
        prediction: H×W bool, at least one pixel.
        truth: H×W bool, the same shape.
        tolerances: for the surface Dice, in pixels, finite, >= 0. Tolerances in pixels mean other sizes of polyp at
            other resolutions; pass shares of the diagonal times the diagonal to compare across them.
        boundary_width: of boundary IoU, share of the diagonal, > 0.

    Raises:
        ValueError: a mask is not two-dimensional bool or has no pixels, the shapes differ, or a tolerance or the
            width is out of its range.
    """
    check_masks(prediction, truth)
    tolerances_px = tuple(float(tolerance) for tolerance in tolerances)
    if not all(math.isfinite(tolerance) and tolerance >= 0 for tolerance in tolerances_px):
        raise ValueError(f"tolerances must be finite and >= 0, not {tolerances_px}")
    if not (math.isfinite(boundary_width) and boundary_width > 0):
        raise ValueError(f"boundary_width must be finite and > 0, not {boundary_width}")
    diagonal = math.hypot(*truth.shape)
    width = max(1, round(boundary_width * diagonal))

    predicted, real = _crop_to_union(prediction, truth)
    if predicted.any() and real.any():
        predicted_surface, real_surface = _surface(predicted), _surface(real)
        # Surfaces are thin: a tree over their pixels is faster than a distance transform of the whole area.
        to_truth = KDTree(real_surface).query(predicted_surface)[0]
        to_prediction = KDTree(predicted_surface).query(real_surface)[0]
        every = np.concatenate([to_truth, to_prediction])
        hd, assd = float(every.max()), float(every.mean())
        hd95 = float(max(np.quantile(to_truth, 0.95), np.quantile(to_prediction, 0.95)))
        nsd = tuple(float(np.mean(every <= tolerance)) for tolerance in tolerances_px)
        boundary_iou = _boundary_iou(predicted, real, width)
    else:
        agree = not predicted.any() and not real.any()
        hd = hd95 = assd = 0.0 if agree else diagonal
        boundary_iou = 1.0 if agree else 0.0
        nsd = (boundary_iou,) * len(tolerances_px)
    return BoundaryScores(diagonal, hd, hd95, assd, tolerances_px, nsd, boundary_iou, width)


def _crop_to_union(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    """Both masks as 0 and 1, cropped to the box around all that is in either; that changes no score."""
    union = (prediction | truth).view(np.uint8)
    x, y, width, height = cv2.boundingRect(union)  # all 0 where the union is empty
    window = np.s_[y : y + height, x : x + width]
    return [np.ascontiguousarray(mask[window]).view(np.uint8) for mask in (prediction, truth)]


def _surface(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The (x, y) of the surface pixels of a mask of 0 and 1: N×2 int32."""
    eroded = cv2.erode(mask, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(cv2.findNonZero(mask - eroded), dtype=np.int32).reshape(-1, 2)


def _boundary_iou(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], width: int) -> float:
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * width + 1, 2 * width + 1))
    ours, theirs = (
        mask > cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=0) for mask in (prediction, truth)
    )
    # a mask that is not empty has a band that is not empty
    return float(np.count_nonzero(ours & theirs) / np.count_nonzero(ours | theirs))
