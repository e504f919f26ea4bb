"""Choosing the operating point on validation frames, whose maps the network computes once.

Two steps, for outline and decision need a threshold each. The outline comes first: the pixel threshold, then the
smallest region and the holes, by Dice on the frames with a polyp alone. Polyp-free frames must not have a say there: a
higher threshold makes them look better and every outline too small. Then the decision, on all frames: from which
confidence on a region is a polyp, and whether its confidence is its highest or its mean probability.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg.bundle import Preprocessing
from polypseg.catalog import Catalog
from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.field_of_view import outside_of
from polypseg.metrics.lesions import match_lesions, shows_polyp
from polypseg.metrics.overlap import dice, dice_at_thresholds
from polypseg.operating_point import Confidence, OperatingPoint
from polypseg.segmentation import Enlarged, Segmentation

OBJECTIVES: dict[str, str] = {
    "lesion_f1": "F1 of lesions found and regions right at IoU 0.3, over all frames",
    "dice": "mean Dice of the frames with a polyp",
}
THRESHOLDS: NDArray[np.float32] = np.linspace(0.05, 0.95, 19).astype(np.float32)
# Simplest first: of equal ones the first is taken.
CLEANINGS = tuple(
    OperatingPoint(min_area=min_area, fill_holes=fill_holes)
    for fill_holes in (False, True)
    for min_area in (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01)
)
SMALLEST_GAIN = 0.0005  # of the mean Dice or F1; what gains less on validation is chance, and is left out
MOST_FLOORS = 2000  # that are tried
IOU = 0.3  # at which a region is a lesion found
_LIMIT = np.float32(1e-7)  # nearer to 0 or 1 a float32 probability has no useful log-odds


class Predictor(Protocol):
    """A Segmenter, or what else predicts the maps of frames in order."""

    def probabilities(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """One h×w float32 map, 0..1, for each H×W×3 uint8 RGB frame."""
        ...


@dataclass
class Maps:
    """What a network said of frames whose masks are known, kept in memory: 2 bytes a pixel of its own size.

    Attributes:
        maps: of each frame h×w float16, log-odds.
        truths: of each frame its mask, H×W bits, packed; and H and W.
        shown: the frames that show a polyp.
        outside: of each frame where it shows nothing of the patient, as ``Segmentation.from_probability`` takes it.
    """

    maps: list[NDArray[np.float16]] = field(default_factory=list)
    truths: list[tuple[NDArray[np.uint8], tuple[int, int]]] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    outside: list[NDArray[np.bool_] | None] = field(default_factory=list)

    @classmethod
    def of(cls, predictor: Predictor, catalog: Catalog, progress: bool = True) -> Maps:
        """Predict every frame of a Catalog once.

        Raises:
            PolypsegError: a frame or a mask cannot be read.
        """
        found = cls()
        coming = tqdm(
            predictor.probabilities(found.frames(catalog)), "predicting", len(catalog), unit="frame",
            disable=not progress, leave=False,
        )  # fmt: skip
        for probability in coming:
            found.add(probability)
        return found

    def frames(self, catalog: Catalog) -> Iterator[NDArray[np.uint8]]:
        """The frames of a Catalog, of each of which all but the map is noted as it passes."""
        for index in range(len(catalog)):
            frame, truth = catalog.frame(index), catalog.mask(index)
            self.truths.append((np.packbits(truth), truth.shape))
            if shows_polyp(truth):
                self.shown.append(index)
            self.outside.append(outside_of(frame))
            yield frame

    def add(self, probability: NDArray[np.float32]) -> None:
        """The next frame's map, h×w float32 0..1."""
        self.maps.append(log_odds(probability).astype(np.float16))

    def __len__(self) -> int:
        return len(self.maps)

    def truth(self, index: int) -> NDArray[np.bool_]:
        """A frame's mask, H×W bool."""
        bits, (height, width) = self.truths[index]
        return np.unpackbits(bits, count=height * width).view(np.bool_).reshape(height, width)

    def enlarged(self, index: int) -> Enlarged:
        """A frame's probabilities, to be enlarged to its own size."""
        small = 0.5 + 0.5 * np.tanh(np.float32(0.5) * self.maps[index].astype(np.float32))
        return Enlarged(small, *self.truths[index][1])

    def predictions(self, point: OperatingPoint) -> Kept:
        """All of them, as a Segmenter at an operating point would give them."""
        return Kept(self, point)

    def segmentation(self, index: int, point: OperatingPoint) -> Segmentation:
        """A frame's prediction at an operating point."""
        return Segmentation.from_probability(self.enlarged(index), point, self.outside[index])


@dataclass(frozen=True)
class Kept:
    """Gives the kept predictions of frames again, in the place of a Segmenter.

    Attributes:
        maps: of these very frames.
        point: the operating point.
    """

    maps: Maps
    point: OperatingPoint

    def stream(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[Segmentation]:
        """One Segmentation a frame; the frames are not read."""
        return (self.maps.segmentation(index, self.point) for index in range(len(self.maps)))


def log_odds(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """``log(p / (1 - p))`` of float32 probabilities, within ±16."""
    mean = probability.clip(_LIMIT, 1 - _LIMIT)
    odds: NDArray[np.float32] = np.log(mean) - np.log1p(-mean)
    return odds


def choose_point(
    maps: Maps, objective: str = "lesion_f1", max_false_per_frame: float | None = None, progress: bool = True
) -> dict[str, Any]:
    """Choose the operating point; the steps stand in the module.

    Args:
        maps: of frames that the network has not learnt from.
        objective: ``lesion_f1``: the ``min_confidence`` with the best F1 of lesions, polyp-free frames counted;
            ``dice``: that with the best mean Dice of the frames with a polyp.
        max_false_per_frame: in place of the objective, the ``min_confidence`` at which most lesions are found with at
            most so many false regions a frame, >= 0.
        progress: show progress bars.

    Returns:
        ``operating_point``; ``threshold_choice``, ``{threshold: mean Dice}`` of all that were tried; and
        ``operating_point_choice``, how the rest was found, in plain types: as ``ModelBundle.update`` takes them.

    Raises:
        UsageError: the objective is unknown, or the number below 0.
        PolypsegError: no frame shows a polyp, or no region can be taken with so few false ones.
    """
    check_objective(objective, max_false_per_frame)
    shown = maps.shown
    threshold, thresholds = choose_threshold(maps, shown, progress)
    point, cleanings = _choose_cleaning(maps, shown, OperatingPoint(threshold), progress)
    table = _regions(maps, point, progress)
    auc = {kind: table.auc(kind) for kind in get_args(Confidence)}
    # Of equal ones the peak; one that is not known has no advantage.
    kind: Confidence = "mean" if (auc["mean"] or 0) > (auc["peak"] or 0) else "peak"
    if max_false_per_frame is None:
        least = table.best(kind, objective)
    else:
        least = table.most_sensitive(kind, max_false_per_frame)
    point = replace(point, min_confidence=least, confidence=kind)
    free = len(maps) - len(shown)
    if max_false_per_frame is None:
        how = {"objective": objective, "meaning": OBJECTIVES[objective]}
    else:
        meaning = f"most lesions found with at most {max_false_per_frame:g} false regions a frame, at IoU {IOU:g}"
        how = {"objective": "max_false_per_frame", "meaning": meaning}
    record = {
        **how,
        "n": len(maps),
        "polyp_free": free,
        "lesions": table.lesions,
        "cleaning": cleanings,
        "auc": auc,
        "marked": round(float(table.marked.mean()), 6),
        "before": table.at(kind, 0.0),
        "chosen": table.at(kind, least),
    }
    return {"operating_point": point, "threshold_choice": thresholds, "operating_point_choice": record}


def check_shows_polyp(
    frames: Catalog, purpose: str = "choose the operating point by", seen_as: Preprocessing | None = None
) -> None:
    """Refuse frames of which none shows a polyp. Masks are read up to the first one that does.

    Args:
        frames: one part of a split.
        purpose: what they are to be used for, for people.
        seen_as: what a network sees of them: a polyp counts that is left of at its size; None for the original one.

    Raises:
        PolypsegError: none does, or a mask cannot be read.
    """
    masks = (frames.mask(index) for index in range(len(frames)))
    if any(shows_polyp(mask) and (seen_as is None or seen_as.resize_mask(mask).any()) for mask in masks):
        return
    part = "".join(f"{one} " for one in sorted(set(frames.frames["split"])) if one)
    raise PolypsegError(
        f"{Path(frames.row(0).image_path).parent.parent}: none of the {len(frames)} {part}frames shows a polyp, so "
        f"there is nothing to {purpose}; add frames with polyps, or split them otherwise"
    )


def check_objective(objective: str, max_false_per_frame: float | None) -> None:
    """Raise ``UsageError`` where one of them is not to be used."""
    if objective not in OBJECTIVES:
        raise UsageError(f"--objective {objective}: is unknown; choose {' or '.join(OBJECTIVES)}")
    if max_false_per_frame is not None and not 0 <= max_false_per_frame < float("inf"):
        raise UsageError(f"--max_false_per_frame {max_false_per_frame:g}: must be 0 or more")


def choose_threshold(maps: Maps, shown: Sequence[int], progress: bool = True) -> tuple[float, dict[str, float]]:
    """The threshold of ``THRESHOLDS`` with the best mean Dice at original size.

    Args:
        maps: of frames.
        shown: those of them that show a polyp.
        progress: show a progress bar.

    Returns:
        The threshold and ``{threshold: mean Dice}`` of all that were tried.
    """
    total = np.zeros(len(THRESHOLDS))
    for index in tqdm(shown, "threshold", unit="frame", disable=not progress, leave=False):
        total += dice_at_thresholds(maps.enlarged(index).whole, maps.truth(index), THRESHOLDS)
    means = total / len(shown)
    tried = {f"{one:.2f}": round(float(mean), 6) for one, mean in zip(THRESHOLDS, means, strict=True)}
    return round(float(THRESHOLDS[means.argmax()]), 2), tried


def _choose_cleaning(
    maps: Maps, shown: Sequence[int], point: OperatingPoint, progress: bool
) -> tuple[OperatingPoint, list[dict[str, Any]]]:
    """The point with the one of ``CLEANINGS`` that has the best mean Dice; with none for a chance gain."""
    total = np.zeros(len(CLEANINGS))
    for index in tqdm(shown, "smallest region", unit="frame", disable=not progress, leave=False):
        truth, mask = maps.truth(index), maps.segmentation(index, point).mask
        total += [dice(one.clean(mask), truth) for one in CLEANINGS]
    means = total / len(shown)
    best = CLEANINGS[int(means.argmax()) if means.max() >= means[0] + SMALLEST_GAIN else 0]
    tried = [
        {"min_area": one.min_area, "fill_holes": one.fill_holes, "dice": round(float(mean), 6)}
        for one, mean in zip(CLEANINGS, means, strict=True)
    ]
    return replace(point, min_area=best.min_area, fill_holes=best.fill_holes), tried


@dataclass(frozen=True)
class _Regions:
    """Every region that a threshold leaves on some frames.

    Attributes:
        lesions: true lesions on them.
        polyp_free: whether each frame shows no polyp.
        truth: pixels of the truth of each frame.
        marked: share of each frame that the regions take.
        frame: of each region, its frame's number.
        right: whether it is a lesion found.
        confidence: of each kind, 0..1.
        area, common: its pixels, and those of them that are truth.
    """

    lesions: int
    polyp_free: NDArray[np.bool_]
    truth: NDArray[np.int64]
    marked: NDArray[np.float64]
    frame: NDArray[np.intp]
    right: NDArray[np.bool_]
    confidence: dict[Confidence, NDArray[np.float64]]
    area: NDArray[np.int64]
    common: NDArray[np.int64]

    def auc(self, kind: Confidence) -> float | None:
        """How well the confidence separates the regions that are right from the others; None without one of either."""
        values, right = self.confidence[kind], self.right
        if right.all() or not right.any():
            return None
        ordered = np.sort(values[~right])
        below = np.searchsorted(ordered, values[right], "left") + np.searchsorted(ordered, values[right], "right")
        return round(float(below.mean() / (2 * len(ordered))), 6)

    def floors(self, kind: Confidence) -> list[float]:
        """The values of ``min_confidence`` that make a difference, rising from 0.

        Each lies in the middle, in log-odds, between two confidences that occur: another device's rounding must not
        decide whether a region is one.
        """
        values = np.unique(self.confidence[kind].clip(1e-7, 1 - 1e-7))
        values = values[:: 1 + len(values) // MOST_FLOORS]
        odds = np.log(values) - np.log1p(-values)
        middles = 1 / (1 + np.exp(-(odds[1:] + odds[:-1]) / 2))
        return [0.0, *(round(float(one), 7) for one in middles)]

    def best(self, kind: Confidence, objective: str) -> float:
        """The ``min_confidence`` with the best value of an objective; 0 where that gains no more than chance."""
        floors = self.floors(kind)
        values = [self.at(kind, least)["lesion_f1" if objective == "lesion_f1" else "dice"] for least in floors]
        best = int(np.argmax(values))
        return floors[best] if values[best] >= values[0] + SMALLEST_GAIN else 0.0

    def most_sensitive(self, kind: Confidence, most: float) -> float:
        """The lowest ``min_confidence`` with at most so many false regions a frame.

        It is raised as far as all that is found there is still found.
        """
        scores = [(least, self.at(kind, least)) for least in self.floors(kind)]
        kept = [(least, one) for least, one in scores if one["false_per_frame"] <= most + 1e-12]
        if not kept:
            least = min(one["false_per_frame"] for _, one in scores)
            raise PolypsegError(
                f"max_false_per_frame {most:g}: cannot be kept, with the most confident regions alone there are "
                f"{least:.4g} a frame; give a larger one"
            )
        found = max(one["found"] for _, one in kept)
        return max(least for least, one in kept if one["found"] == found)

    def at(self, kind: Confidence, least: float) -> dict[str, float]:
        """What is found with only the regions of at least some confidence."""
        taken = self.confidence[kind] >= least
        right, frames = int((taken & self.right).sum()), len(self.polyp_free)
        total = self.lesions + int(taken.sum())
        free = int(self.polyp_free.sum())
        area = np.bincount(self.frame[taken], self.area[taken], frames)
        common = np.bincount(self.frame[taken], self.common[taken], frames)
        shown = ~self.polyp_free
        marked = (area > 0) & self.polyp_free
        scores = {
            "min_confidence": least,
            "found": right / self.lesions if self.lesions else 0.0,
            "right": right / taken.sum() if taken.any() else 0.0,
            "lesion_f1": 2 * right / total if total else 0.0,
            "false_per_frame": (int(taken.sum()) - right) / frames,
            "polyp_free_marked": marked.sum() / free if free else 0.0,
            "dice": np.mean(2 * common[shown] / (area + self.truth)[shown]),
        }
        if not free:  # a share of nothing is none
            del scores["polyp_free_marked"]
        return {name: round(float(value), 7) for name, value in scores.items()}


def _regions(maps: Maps, point: OperatingPoint, progress: bool) -> _Regions:
    lesions, truths, marked, free = 0, [], [], []
    rows: list[tuple[float, ...]] = []
    for index in tqdm(range(len(maps)), "confidence", unit="frame", disable=not progress, leave=False):
        truth, found = maps.truth(index), maps.segmentation(index, point)
        match = match_lesions(found.mask, truth, found.probability, iou_thresholds=(IOU,))
        lesions += len(match.truths)
        truths.append(np.count_nonzero(truth))
        marked.append(found.mask.mean())
        free.append(not match.truths)
        areas = np.array([[one.area for one in match.truths]]).T, np.array([one.area for one in match.predictions])
        # from each pair's IoU and areas the pixels that they share
        common = np.rint(match.iou * (areas[0] + areas[1]) / (1 + match.iou)).sum(0) if match.truths else 0 * areas[1]
        for one, shared in zip(match.predictions, common, strict=True):
            assert one.max_probability is not None and one.mean_probability is not None
            rows.append((index, one.matched[0], one.max_probability, one.mean_probability, one.area, shared))
    table = np.array(rows, np.float64).reshape(-1, 6)
    return _Regions(
        lesions=lesions,
        polyp_free=np.array(free, np.bool_),
        truth=np.array(truths, np.int64),
        marked=np.array(marked),
        frame=table[:, 0].astype(np.intp),
        right=table[:, 1] > 0,
        confidence={"peak": table[:, 2], "mean": table[:, 3]},
        area=table[:, 4].astype(np.int64),
        common=table[:, 5].astype(np.int64),
    )
