"""One frame's prediction: mask, probability and the list of polyps."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polypseg.drawing import with_confidences
from polypseg.errors import UsageError
from polypseg.files import atomic_write
from polypseg.operating_point import OperatingPoint

Saved = Literal["mask", "overlay", "json"]
_SUFFIXES: dict[str, Saved] = {".png": "mask", ".jpg": "overlay", ".jpeg": "overlay", ".json": "json"}
# In a folder, after the stem: as `polypseg predict` names them.
_NAMES: dict[Saved, str] = {"mask": ".png", "overlay": ".overlay.jpg", "json": ".json"}
Window = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True, eq=False, repr=False)
class Polyp:
    """One connected region of a mask. Two are equal if all their values are.

    Attributes:
        box: ``(xmin, ymin, xmax, ymax)`` in pixels of the original frame; the maxima are exclusive.
        area: pixels.
        confidence: the highest or the mean probability inside the region, 0..1; which, says the operating point.
        contour: N×2 int32 array of (x, y) points of the outer boundary, in pixels; read-only.
        confirmed: whether its confidence reaches the operating point's ``min_confidence``.
    """

    box: tuple[int, int, int, int]
    area: int
    confidence: float
    contour: NDArray[np.int32]
    confirmed: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "contour", read_only(self.contour))

    def __repr__(self) -> str:
        doubt = "" if self.confirmed else ", confirmed=False"
        return f"Polyp(box={self.box}, area={self.area}, confidence={self.confidence:.3f}{doubt})"

    def _key(self) -> tuple[Any, ...]:
        return self.box, self.area, self.confidence, self.confirmed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Polyp):
            return NotImplemented
        return self._key() == other._key() and np.array_equal(self.contour, other.contour)

    def __hash__(self) -> int:
        return hash(self._key())

    def to_dict(self) -> dict[str, Any]:
        """The polyp in plain Python types, for JSON."""
        return {
            "box": list(self.box),
            "area": self.area,
            "confidence": round(self.confidence, 6),
            "contour": self.contour.tolist(),
        }


class Enlarged:
    """A map of the network's size at a frame's size, bilinear, of which only the part that is asked for is computed.

    Pixel centres correspond as in OpenCV's INTER_LINEAR, from which it differs by rounding only.

    Args:
        small: h×w float32.
        height: rows of the frame, pixels.
        width: columns of the frame, pixels.
    """

    def __init__(self, small: NDArray[np.float32], height: int, width: int) -> None:
        self.small: NDArray[np.float32] = read_only(np.ascontiguousarray(small))
        self.height, self.width = height, width
        self._window: Window | None = None
        self._values: NDArray[np.float32] = self.small

    @property
    def whole(self) -> NDArray[np.float32]:
        """All of it, H×W float32."""
        return self.part((slice(0, self.height), slice(0, self.width)))

    def window(self, least: float) -> Window | None:
        """The rows and columns beyond which no value is ``least`` or more; None where none is at all."""
        reached = self.small >= np.float32(least) - np.float32(1e-6)  # rounding may lift a value in between
        left, top, across, down = cv2.boundingRect(reached.view(np.uint8))
        if not across:
            return None
        spans = []
        for first, count, size, length in (
            (top, down, self.small.shape[0], self.height), (left, across, self.small.shape[1], self.width),
        ):  # fmt: skip
            before, after, _ = _neighbours(size, length)
            touched = np.flatnonzero((after >= first) & (before < first + count))
            if not len(touched):  # shrunk, and passed over
                return None
            spans.append(slice(int(touched[0]), int(touched[-1]) + 1))
        return spans[0], spans[1]

    def part(self, window: Window) -> NDArray[np.float32]:
        """Some of its rows and columns, float32; what was computed last is kept, and a part of that is a view."""
        rows, columns = window
        if self.small.shape == (self.height, self.width):
            return self.small[window]
        if self._window is None or not _inside(window, self._window):
            above, below, weights = _neighbours(self.small.shape[0], self.height)
            before, after, weight = above[rows], below[rows], weights[rows, None]
            first = int(before[0])
            # OpenCV is quick along rows; down the columns only what is wanted is computed.
            lines = np.ascontiguousarray(self.small[first : int(after[-1]) + 1])
            wide = cv2.resize(lines, (self.width, len(lines)), interpolation=cv2.INTER_LINEAR)[:, columns]
            values: NDArray[np.float32] = np.take(wide, before - first, axis=0)
            step: NDArray[np.float32] = np.take(wide, after - first, axis=0)
            step -= values
            step *= weight
            values += step
            self._window, self._values = window, read_only(values)
        top, left = (kept.start for kept in self._window)
        return self._values[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


@lru_cache(maxsize=64)
def _neighbours(size: int, length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of ``length`` pixels along an axis, the two of ``size`` that it lies between and the second's weight."""
    position = (np.arange(length) + 0.5) * (size / length) - 0.5
    before = np.floor(position)
    weight = (position - before).astype(np.float32)
    return before.clip(0, size - 1).astype(np.intp), (before + 1).clip(0, size - 1).astype(np.intp), weight


def _inside(window: Window, other: Window) -> bool:
    return all(outer.start <= one.start and one.stop <= outer.stop for one, outer in zip(window, other, strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """What a model says of one frame, at the frame's original size. Its arrays are read-only.

    Two are equal if mask, probabilities and operating point are, wherever they come from.

    Args:
        candidate_mask: H×W bool; all regions at the operating point's threshold, cleaned as it says.
        source: the probabilities, 0..1: H×W float32, or a smaller map to be enlarged where it is needed.
        point: the operating point; a number stands for one with that threshold and no least confidence.
        frame: the frame itself, H×W×3 uint8 RGB, no copy of it; None where it was not kept.
        path: the file that it was read from; None for none.
        index: its number in a video or a stream, from 0; None for a single picture.
        time: seconds from the video's start; None for what has none.
        model: the hash of the bundle that predicted it; None where that is not known.
    """

    candidate_mask: NDArray[np.bool_]
    source: NDArray[np.float32] | Enlarged
    point: OperatingPoint = field(default_factory=OperatingPoint)
    frame: NDArray[np.uint8] | None = None
    path: str | None = None
    index: int | None = None
    time: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "point", _as_point(self.point))
        object.__setattr__(self, "candidate_mask", read_only(self.candidate_mask))
        if not isinstance(self.source, Enlarged):
            object.__setattr__(self, "source", read_only(self.source))
        if self.frame is not None:
            object.__setattr__(self, "frame", read_only(self.frame))

    def __repr__(self) -> str:
        height, width = self.candidate_mask.shape
        polyps = self.polyps
        count = f"{len(polyps)} polyp{'' if len(polyps) == 1 else 's'}" if polyps else "no polyp"
        shown = ", ".join(f"{one.confidence:.3f}" for one in polyps[:5]) + ", …" * (len(polyps) > 5)
        place = "" if self.path is None else f"{self.path}, "
        place += "" if self.index is None else f"frame {self.index}, "
        return f"Segmentation({place}{width}×{height}, {count}{f' of confidence {shown}' if polyps else ''})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        return (
            self.point == other.point
            and np.array_equal(self.candidate_mask, other.candidate_mask)
            and np.array_equal(self.probability, other.probability)
        )

    def __hash__(self) -> int:
        return hash((self.point, self.candidate_mask.shape, int(np.count_nonzero(self.candidate_mask))))

    @classmethod
    def from_probability(
        cls,
        probability: NDArray[np.float32] | Enlarged,
        point: OperatingPoint | float,
        outside: NDArray[np.bool_] | None = None,
    ) -> Segmentation:
        """From a probability map to regions.

        Args:
            probability: H×W float32, 0..1, or a smaller map that is to be enlarged.
            point: the operating point, or a threshold alone.
            outside: h×w bool of any size, stretched over the frame: where no polyp can be, as in the black border. A
                region that lies there with more than half of its pixels is none.
        """
        point = _as_point(point)
        threshold = np.float32(point.threshold)
        if isinstance(probability, Enlarged):
            mask = np.zeros((probability.height, probability.width), np.bool_)
            # Most of a frame is far from any polyp: enlarging all of it would cost more than all else after the
            # network.
            window = probability.window(point.threshold)
            if window is not None:
                np.greater_equal(probability.part(window), threshold, out=mask[window])
        else:
            mask = probability >= threshold
        mask = point.clean(mask)
        return cls(mask if outside is None else _without(mask, outside), probability, point)

    @property
    def threshold(self) -> float:
        """The operating point's: probability, 0..1, at and above which a pixel belongs to a region."""
        return self.point.threshold

    @property
    def probability(self) -> NDArray[np.float32]:
        """H×W float32, 0..1."""
        return self.source.whole if isinstance(self.source, Enlarged) else self.source

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """H×W bool; the polyps: the regions whose confidence reaches the operating point's ``min_confidence``."""
        dropped = () if self.point.takes_all else [one for one in self._candidates if not one[0].confirmed]
        if not dropped:
            return self.candidate_mask
        mask = self.candidate_mask.copy()
        for polyp, region in dropped:
            mask[_window(polyp)] &= ~region
        return read_only(mask)

    @property
    def polyps(self) -> list[Polyp]:
        """The 8-connected regions of the mask, largest first."""
        return [polyp for polyp, _ in self._candidates if polyp.confirmed]

    @property
    def candidates(self) -> list[Polyp]:
        """All regions, those of too little confidence to be polyps among them (``confirmed`` says), largest first."""
        return [polyp for polyp, _ in self._candidates]

    def plot(self, frame: NDArray[np.uint8] | None = None, *, fill: float = 0.25) -> Image.Image:
        """The frame with each polyp's outline and confidence.

        Args:
            frame: H×W×3 uint8 RGB, of the mask's size; by default the one that was segmented.
            fill: opacity of what lies inside the outlines, 0..1.

        Returns:
            An RGB picture of the frame's size, as ``.save("overlay.png")`` writes it.

        Raises:
            ValueError: there is no frame, as where only a probability map was given, or it has another size.
        """
        shown = self.frame if frame is None else frame
        if shown is None:
            raise ValueError("this Segmentation has no frame to draw on: give it, as result.plot(frame)")
        return with_confidences(shown, self.mask, [(one.box, one.confidence) for one in self.polyps], fill)

    def save(self, where: str | os.PathLike[str], outputs: Collection[Saved] = ("mask", "json")) -> list[Path]:
        """Write it as files, which replace those of the same name.

        Args:
            where: a file ending in ``.png`` (the mask, 0 and 255), ``.jpg`` (the overlay of ``plot``) or ``.json``
                (``to_dict``); or a folder, which gets the ``outputs``, named as ``polypseg predict`` names them:
                ``STEM.png``, ``STEM.overlay.jpg``, ``STEM.json``. STEM is that of ``path``, or ``frame``, and the
                frame's number, from 1, where it has one.
            outputs: what a folder gets.

        Returns:
            The files.

        Raises:
            UsageError: ``where`` ends in something else, or there is no such output.
            PolypsegError: the disk is full, or the place cannot be written.
            ValueError: as ``plot``, for the overlay.
        """
        target, is_folder = Path(where), os.fspath(where).endswith(("/", os.sep))
        if target.is_dir() or is_folder or not target.suffix:
            unknown = [one for one in outputs if one not in _NAMES]
            if unknown or isinstance(outputs, str):
                raise UsageError(f"outputs {outputs!r}: choose of {', '.join(get_args(Saved))}, as a list")
            number = "" if self.index is None else f"-{self.index + 1:04d}"
            stem = f"{'frame' if self.path is None else Path(self.path).stem}{number}"
            files = {target / f"{stem}{suffix}": name for name, suffix in _NAMES.items() if name in outputs}
        elif target.suffix.lower() in _SUFFIXES:
            files = {target: _SUFFIXES[target.suffix.lower()]}
        else:
            raise UsageError(f"{target}: name a folder, or a file .png (mask), .jpg (overlay) or .json")
        for file, output in files.items():
            with atomic_write(file) as opened:
                if output == "mask":
                    Image.fromarray(self.mask.view(np.uint8) * np.uint8(255)).save(opened, "PNG")
                elif output == "overlay":
                    self.plot().save(opened, "JPEG", quality=95)
                else:
                    line = json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))
                    opened.write(f"{line}\n".encode())
        return list(files)

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays in plain Python types, for JSON; keys as in the files of ``polypseg predict``.

        Returns:
            ``source`` (the file's name without its folder), ``frame`` (its number, from 0), ``time`` (seconds),
            ``width``, ``height`` (pixels), ``threshold`` (0..1), ``model`` and ``polyps``, each ``Polyp.to_dict``.
        """
        height, width = self.candidate_mask.shape
        return {
            "source": None if self.path is None else Path(self.path).name,
            "frame": self.index,
            "time": self.time,
            "width": width,
            "height": height,
            "threshold": self.threshold,
            "model": self.model,
            "polyps": [polyp.to_dict() for polyp in self.polyps],
        }

    @cached_property
    def _candidates(self) -> list[tuple[Polyp, NDArray[np.bool_]]]:
        """Each with its pixels inside its box."""
        # Labels only the part of the frame that contains regions: that is most of the cost on large frames.
        left, top, across, down = cv2.boundingRect(self.candidate_mask.view(np.uint8))
        if not across:
            return []
        part = slice(top, top + down), slice(left, left + across)
        mask = np.ascontiguousarray(self.candidate_mask[part])
        probability = self.source.part(part) if isinstance(self.source, Enlarged) else self.source[part]
        found = []
        for x, y, width, height, area, region, contour in _regions(mask):
            values = np.ascontiguousarray(probability[y : y + height, x : x + width])
            confidence = _confidence(values, region, self.point)
            polyp = Polyp(
                box=(x + left, y + top, x + left + width, y + top + height),
                area=area,
                confidence=confidence,
                contour=np.add(contour.reshape(-1, 2), (x + left, y + top), dtype=np.int32),
                confirmed=self.point.takes_all or bool(np.float32(confidence) >= np.float32(self.point.min_confidence)),
            )
            found.append((polyp, region))
        return sorted(found, key=lambda one: -one[0].area)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view of an array that cannot be written to; the array itself stays as it is."""
    view = array.view()
    view.flags.writeable = False
    return view


def _as_point(point: OperatingPoint | float) -> OperatingPoint:
    return point if isinstance(point, OperatingPoint) else OperatingPoint(point)


def _confidence(values: NDArray[np.float32], region: NDArray[np.bool_], point: OperatingPoint) -> float:
    inside = region.view(np.uint8)
    if point.confidence == "mean":
        return cv2.mean(values, inside)[0]
    return cv2.minMaxLoc(values, inside)[1]


def _window(polyp: Polyp) -> Window:
    left, top, right, bottom = polyp.box
    return slice(top, bottom), slice(left, right)


def _without(mask: NDArray[np.bool_], outside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without the regions of which more than half lies outside."""
    left, top, across, down = cv2.boundingRect(mask.view(np.uint8))
    if not across:
        return mask
    part = slice(top, top + down), slice(left, left + across)
    rows = (np.arange(top, top + down) + 0.5) * outside.shape[0] // mask.shape[0]
    columns = (np.arange(left, left + across) + 0.5) * outside.shape[1] // mask.shape[1]
    beyond = outside[rows.astype(np.intp)][:, columns.astype(np.intp)] & mask[part]
    if not beyond.any():
        return mask
    count, labels = cv2.connectedComponents(np.ascontiguousarray(mask[part]).view(np.uint8), connectivity=8)
    areas = np.bincount(labels.ravel(), minlength=count)
    kept = 2 * np.bincount(labels[beyond], minlength=count) <= areas
    kept[0] = False  # the background
    if kept[1:].all():
        return mask
    result = np.zeros_like(mask)
    result[part] = kept[labels]
    return result


def _regions(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int, int, NDArray[np.bool_], NDArray[Any]]]:
    """The 8-connected regions of a mask that reaches its edges: box (x, y, width, height), area, region and contour."""
    contours: Sequence[Any]
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) == 1:  # one region without holes, as nearly always, needs no labels
        yield 0, 0, mask.shape[1], mask.shape[0], cv2.countNonZero(mask.view(np.uint8)), mask, contours[0]
        return
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    for label in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[label])
        region = labels[y : y + height, x : x + width] == label
        contours, _ = cv2.findContours(region.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        yield x, y, width, height, area, region, max(contours, key=len)
