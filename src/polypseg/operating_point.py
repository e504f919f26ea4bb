"""The operating point: what turns a probability map into polyps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.errors import UsageError

Confidence = Literal["peak", "mean"]


@dataclass(frozen=True)
class OperatingPoint:
    """Which pixels are outlined, and which of the regions they form are polyps; chosen on validation.

    ``threshold`` draws the outline; ``min_confidence`` decides whether a region is a polyp. They are two values, as one
    alone either shrinks the outlines or lets false regions through.

    Args:
        threshold: probability, 0..1, at and above which a pixel belongs to a region.
        min_confidence: regions of less confidence are no polyps, 0..1; 0 takes all.
        confidence: what a region's confidence is: ``peak``, the highest probability inside it, or ``mean``.
        min_area: regions (8-connected) smaller than this share of the frame are removed, 0..1, exclusive; 0 keeps all.
        fill_holes: whether holes inside a region become part of it.

    Raises:
        ValueError: a value is out of its range.
    """

    threshold: float = 0.5
    min_confidence: float = 0.0
    confidence: Confidence = "peak"
    min_area: float = 0.0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        for name in ("threshold", "min_confidence", "min_area"):
            object.__setattr__(self, name, _share(name, getattr(self, name)))
        if self.min_area == 1:
            raise ValueError("min_area 1: must lie below 1, or no region is large enough")
        if self.confidence not in get_args(Confidence):
            raise ValueError(f"confidence {self.confidence!r}: must be peak or mean")
        if not isinstance(self.fill_holes, bool):
            raise ValueError(f"fill_holes {self.fill_holes!r}: must be true or false")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OperatingPoint:
        """From the plain types of ``metadata.json``, ``dataclasses.asdict``'s; what is missing has its default.

        Raises:
            ValueError: a value is out of its range, or has no such name.
        """
        unknown = [name for name in values if name not in {one.name for one in fields(cls)}]
        if unknown:
            raise ValueError(f"an operating point has no {unknown[0]}")
        return cls(**values)

    def override(self, **values: float | bool | None) -> OperatingPoint:
        """The same with other values, as from the command line; None leaves one as it is.

        Raises:
            UsageError: a value is out of its range.
        """
        try:
            return replace(self, **{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"--{error}") from error

    def clean(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask with holes filled, then small regions removed, where the operating point asks for it.

        Args:
            mask: H×W bool; it is left as it is.

        Returns:
            H×W bool; the argument itself where nothing is to be done.
        """
        if not self.min_area and not self.fill_holes:
            return mask
        # Only the part that contains regions is worked on: labelling every pixel is costly on large frames.
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        if not width:
            return mask
        part = np.s_[top : top + height, left : left + width]
        regions = mask[part].astype(np.uint8)
        contours: Sequence[Any] = ()
        if self.fill_holes:
            contours, _ = cv2.findContours(regions, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(regions, contours, -1, 1, cv2.FILLED)
        if self.min_area and len(contours) == 1:  # the one region, which needs no labels
            if cv2.countNonZero(regions) < self.min_area * mask.size:
                return np.zeros_like(mask)
        elif self.min_area:
            _, labels, stats, _ = cv2.connectedComponentsWithStats(regions, connectivity=8)
            kept = stats[:, cv2.CC_STAT_AREA] >= self.min_area * mask.size
            kept[0] = False  # the background
            if not kept[1:].all():
                regions = kept[labels].view(np.uint8)
        result = np.zeros_like(mask)
        result[part] = regions.view(np.bool_)
        return result

    @property
    def takes_all(self) -> bool:
        """Whether every region has confidence enough, whatever its probabilities: a peak reaches the threshold."""
        return self.min_confidence == 0 or (self.confidence == "peak" and self.min_confidence <= self.threshold)


def _share(name: str, value: Any) -> float:
    try:
        number = float("nan") if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        number = float("nan")
    if not 0 <= number <= 1:
        shown = f"{value:g}" if isinstance(value, float) else repr(value)[:40]
        raise ValueError(f"{name} {shown}: must lie in 0..1")
    return number
