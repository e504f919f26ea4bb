"""The regions of a mask, and which polyp each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.serve.annotations.labels import Labels

MOST_LISTED = 200  # regions of a mask, the largest; further ones are crumbs


@dataclass(frozen=True)
class Given:
    """What somebody says of the region that contains the pixel ``at`` (x, y)."""

    at: tuple[int, int]
    label: str
    attributes: Mapping[str, str] = field(default_factory=dict)


class Regions:
    """The 8-connected regions of a mask, H×W bool, the largest first."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        _, self._numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        order = np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:MOST_LISTED] + 1
        self._listed = [(int(number), stats[number].tolist()) for number in order]

    def described(self, given: Sequence[Given], labels: Labels, checked: bool = True) -> list[dict[str, Any]]:
        """Each region as ``{at, box, area, class, attributes}``; those of which nothing is said have the default class.

        Args:
            given: what is said of them.
            labels: the classes and attributes of now.
            checked: whether that must be among them; what an older version says may have gone from the file.

        Raises:
            PolypsegError: a pixel lies in no region, a region is named twice, or a class or attribute is unknown.
        """
        named: dict[int, Given] = {}
        for one in given:
            x, y = one.at
            height, width = self._numbers.shape
            number = int(self._numbers[y, x]) if 0 <= x < width and 0 <= y < height else 0
            if number == 0:
                raise PolypsegError(f"polyps: the pixel {x}, {y} lies in no region of the mask")
            if number in named:
                raise PolypsegError(f"polyps: the region at {x}, {y} is named twice; name it once")
            if checked and (problem := labels.problem(one.label, one.attributes)):
                raise PolypsegError(f"polyps: {problem}")
            named[number] = one
        nothing = Given((0, 0), labels.default)
        return [
            {
                "at": self._inside(number, box),
                "box": [box[0], box[1], box[0] + box[2], box[1] + box[3]],
                "area": box[4],
                "class": named.get(number, nothing).label,
                "attributes": dict(named.get(number, nothing).attributes),
            }
            for number, box in self._listed
        ]

    def carried(self, mask: NDArray[np.bool_], polyps: Sequence[Mapping[str, Any]]) -> list[Given]:
        """What was said of an earlier mask's regions, said of those of this one that overlap them most."""
        before = Regions(mask)
        said = {int(before._numbers[one["at"][1], one["at"][0]]): one for one in polyps}
        found = []
        for number, box in self._listed:
            window = (slice(box[1], box[1] + box[3]), slice(box[0], box[0] + box[2]))
            overlap = np.bincount(before._numbers[window][self._numbers[window] == number])
            overlap[0] = 0
            one = said.get(int(overlap.argmax())) if overlap.any() else None
            if one is not None:
                x, y = self._inside(number, box)
                found.append(Given((x, y), one["class"], one["attributes"]))
        return found

    def _inside(self, number: int, box: list[int]) -> list[int]:
        """The pixel of a region that is farthest from its outline."""
        left, top, width, height, _ = box
        region = self._numbers[top : top + height, left : left + width] == number
        depth = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 3)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        return [left + int(x) - 1, top + int(y) - 1]
