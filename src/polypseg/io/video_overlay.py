"""A frame's followed polyps drawn into it, fast enough for every frame of a video.

They are drawn from the frame's record, so that an overlay can be made again without the network. Only the pixels of
the polyps' boxes and of the texts are touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.drawing import PREDICTION

MARK = "polypseg - research use only"
_FILL = 0.25  # opacity
# What becomes of each level of each channel under the fill; 1×256×3.
_TINTED = np.rint((1 - _FILL) * np.arange(256)[None, :, None] + _FILL * np.array(PREDICTION)).astype(np.uint8)
_RIM = (40, 30, 20)
_FONT = cv2.FONT_HERSHEY_SIMPLEX  # has ASCII only

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom


def draw_polyps(pixels: NDArray[np.uint8], record: Mapping[str, Any]) -> None:
    """Draw the polyps that have a number, and the research-use mark.

    What the frame shows has an outline, a translucent fill, its number and its confidence; what is carried over from an
    earlier frame a dashed outline and its number. What has no number yet is not drawn.

    Args:
        pixels: H×W×3 uint8 RGB, drawn into.
        record: the frame's, with ``polyps`` and, where there are any, ``carried``.
    """
    height, width = pixels.shape[:2]
    scale = max(0.45, min(height, width) / 1200)
    line = max(1, round(min(height, width) / 400))
    drawn = [polyp for polyp in record["polyps"] if polyp["id"] is not None] + list(record.get("carried", ()))
    contours = [np.asarray(polyp["contour"], np.int32).reshape(-1, 2) for polyp in drawn]
    for polyp, contour in zip(drawn, contours, strict=True):
        if "from_frame" in polyp:
            _dashed(pixels, contour.astype(np.float64), line)
            continue
        left, top, right, bottom = polyp["box"]
        window = pixels[top:bottom, left:right]
        inside = np.zeros(window.shape[:2], np.uint8)
        cv2.fillPoly(inside, [contour], 255, offset=(-left, -top))
        cv2.copyTo(cv2.LUT(window, _TINTED), inside, window)
        _line(pixels, [contour], True, line)
    margin = round(14 * scale)
    mark = _Text.of(MARK, 0.75 * scale)
    mark.put(pixels, margin, height - margin - mark.below, (190, 190, 190))
    labels = _labels(drawn, contours, scale)
    places = place_labels(
        [box for box, _, _ in labels], [ends for _, ends, _ in labels],
        [(text.width, text.height) for _, _, text in labels], width, height, round(6 * scale),
        [(margin, height - margin - mark.height, margin + mark.width, height - margin)],
    )  # fmt: skip
    for (_, _, text), place in zip(labels, places, strict=True):  # over every outline
        if place is not None:
            text.put(pixels, place[0], place[1] + text.above, PREDICTION)


def place_labels(
    boxes: Sequence[Rectangle],
    ends: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    width: int,
    height: int,
    gap: int,
    taken: Sequence[Rectangle] = (),
) -> list[Rectangle | None]:
    """Find a place for each label: by its box, inside the frame, over no other label, and over no box if that can be.

    Tried are places at the outline's highest and lowest point and beside its box, in a fixed order, so that a label
    stays where it is while its outline moves; then what is free around it, the nearest first.

    Args:
        boxes: of the outline that each label belongs to, pixels.
        ends: column of each outline's highest and of its lowest point.
        sizes: width and height of each label.
        width: of the frame.
        height: of the frame.
        gap: between a label and whatever it stands beside.
        taken: where no label may be.

    Returns:
        of each label its rectangle; None where the frame has no room for it.
    """
    placed: list[Rectangle] = list(taken)
    found: list[Rectangle | None] = []
    for box, end, size in zip(boxes, ends, sizes, strict=True):
        free = [
            place
            for place in _beside(box, end, size, gap, width)
            if _within(place, width, height) and not any(_common(place, other, gap) for other in placed)
        ]
        place = min(free, key=lambda one: sum(_common(one, other) for other in boxes), default=None)
        if place is None:
            spread = _spread(box, size, width, height)
            place = next((one for one in spread if not any(_common(one, other, gap) for other in placed)), None)
        found.append(place)
        if place is not None:
            placed.append(place)
    return found


def _beside(box: Rectangle, ends: tuple[int, int], size: tuple[int, int], gap: int, width: int) -> Iterator[Rectangle]:
    """Above the highest point and below the lowest; right and left of the box; then inside it."""
    left, top, right, bottom = box
    across, down = size
    for end, y in zip(ends, (top - gap - down, bottom + gap), strict=True):
        for x in (min(max(0, end - across // 2), width - across), left, right - across):
            yield x, y, x + across, y + down
    for x, y in itertools.product((right + gap, left - gap - across), (top, bottom - down)):
        yield x, y, x + across, y + down
    for y in (top + gap, bottom - gap - down):
        yield left + gap, y, left + gap + across, y + down


def _spread(box: Rectangle, size: tuple[int, int], width: int, height: int) -> list[Rectangle]:
    """A raster of places all over the frame, by their distance from the box's middle."""
    across, down = size
    x, y = (box[0] + box[2] - across) / 2, (box[1] + box[3] - down) / 2
    places = itertools.product(
        range(0, width - across + 1, max(1, across // 4)), range(0, height - down + 1, max(1, down // 2))
    )
    nearest = sorted(places, key=lambda place: (place[0] - x) ** 2 + (place[1] - y) ** 2)
    return [(left, top, left + across, top + down) for left, top in nearest]


def _within(place: Rectangle, width: int, height: int) -> bool:
    return place[0] >= 0 and place[1] >= 0 and place[2] <= width and place[3] <= height


def _common(one: Rectangle, other: Rectangle, gap: int = 0) -> int:
    """Pixels that two rectangles have in common, the first grown by a gap."""
    across = min(one[2] + gap, other[2]) - max(one[0] - gap, other[0])
    down = min(one[3] + gap, other[3]) - max(one[1] - gap, other[1])
    return across * down if across > 0 and down > 0 else 0


def _labels(
    drawn: Sequence[Mapping[str, Any]], contours: Sequence[NDArray[np.int32]], scale: float
) -> list[tuple[Rectangle, tuple[int, int], _Text]]:
    """One a number, in their order: the box of all its parts, the columns of its highest and lowest point, its text."""
    parts: dict[int, list[int]] = {}
    for place, polyp in enumerate(drawn):
        parts.setdefault(polyp["id"], []).append(place)
    labels = []
    for number in sorted(parts):
        points = np.concatenate([contours[place] for place in parts[number]])
        low, high = points.min(0), points.max(0)
        near = max(1, (high[1] - low[1]) // 20)  # a flat end has its middle
        ends = (points[points[:, 1] <= low[1] + near, 0], points[points[:, 1] >= high[1] - near, 0])
        columns = int(ends[0].mean()), int(ends[1].mean())
        text = f"polyp {number}"
        if "from_frame" not in drawn[parts[number][0]]:
            text += f"  {max(drawn[place]['confidence'] for place in parts[number]):.0%}"
        box = int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1
        labels.append((box, columns, _Text.of(text, scale)))
    return labels


def _dashed(pixels: NDArray[np.uint8], contour: NDArray[np.float64], line: int) -> None:
    closed = np.vstack([contour, contour[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    count = max(2, round(along[-1] / (10 * line)))  # of dashes and as many gaps
    ends = np.linspace(0, along[-1], 2 * count, endpoint=False)
    steps = ends[:, None] + np.linspace(0, along[-1] / (2 * count), 4)
    dashes = np.stack([np.interp(steps, along, closed[:, axis]) for axis in (0, 1)], axis=2)[::2]
    _line(pixels, list(np.rint(dashes).astype(np.int32)), False, line)


def _line(pixels: NDArray[np.uint8], paths: Sequence[NDArray[np.int32]], closed: bool, line: int) -> None:
    """Lines with a dark rim, as a yellow polyp is near the colour of its outline."""
    cv2.polylines(pixels, paths, closed, _RIM, line + 2 * max(1, line // 2), cv2.LINE_AA)
    cv2.polylines(pixels, paths, closed, PREDICTION, line, cv2.LINE_AA)


@dataclass(frozen=True)
class _Text:
    """A line of text with a dark rim, which can be read on any ground; its sizes in pixels."""

    text: str
    scale: float
    width: int
    above: int  # the line that it stands on
    below: int

    @classmethod
    def of(cls, text: str, scale: float) -> _Text:
        (width, above), below = cv2.getTextSize(text, _FONT, scale, max(1, round(2 * scale)))
        rim = max(1, round(1.5 * scale))
        return cls(text, scale, width + 2 * rim, above + rim, below + rim)

    @property
    def height(self) -> int:
        return self.above + self.below

    def put(self, pixels: NDArray[np.uint8], left: int, base: int, colour: tuple[int, int, int]) -> None:
        """Write it, standing on the row ``base``."""
        rim, weight = max(1, round(1.5 * self.scale)), max(1, round(2 * self.scale))
        place = left + rim, base
        for across, down in ((-rim, -rim), (-rim, rim), (rim, -rim), (rim, rim)):
            there = place[0] + across, place[1] + down
            cv2.putText(pixels, self.text, there, _FONT, self.scale, (0, 0, 0), weight, cv2.LINE_AA)
        cv2.putText(pixels, self.text, place, _FONT, self.scale, colour, weight, cv2.LINE_AA)
