"""Everything that is said of a model's predictions on frames with masks, gathered in one pass."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from polypseg.bundle import INTENDED_USE, versions
from polypseg.catalog import Catalog
from polypseg.errors import PolypsegError
from polypseg.evaluation.detection import AREA_STRATA, DetectionSummary, area_name, summarise
from polypseg.evaluation.predictions import Predictor
from polypseg.evaluation.scoring import DEFINITIONS, NO_POLYP, NetworkSize
from polypseg.metrics import boundary
from polypseg.metrics.boundary import boundary_scores
from polypseg.metrics.calibration import Reliability
from polypseg.metrics.detection import CRITERIA, Detections
from polypseg.metrics.lesions import LesionMatch, match_lesions
from polypseg.metrics.pixels import Confusion, confusion
from polypseg.metrics.pranet import PranetMean, pranet_scores
from polypseg.metrics.statistics import bootstrap_interval
from polypseg.segmentation import Segmentation

RESOLUTION_STRATA = ((0, 250_000), (250_000, 1_000_000), (1_000_000, 10**12))  # pixels
MOST_GROUPS = 40  # more groups than this have no stratum each: a table of 900 rows says nothing
WORST = 12
PRANET_DEFINITIONS = {
    "meanDic": "PraNet's: map stretched to 0..1 per image, Dice averaged over 256 thresholds and images with a polyp",
    "maxDic": "the same, at the best of the 256 thresholds (chosen on these very frames)",
    "meanIoU": "as meanDic, with IoU",
    "maxIoU": "as maxDic, with IoU",
    "Sm": "S-measure (Fan et al., ICCV 2017), mean over images with a polyp",
    "wFm": "weighted F-measure (Margolin et al., CVPR 2014), mean over images with a polyp",
    "meanEm": "E-measure (Fan et al., IJCAI 2018) averaged over 256 thresholds and images with a polyp",
    "maxEm": "the same, at the best of the 256 thresholds",
    "adpEm": "E-measure at twice the map's mean",
    "adpFm": "F-measure at twice the map's mean",
    "MAE": "mean absolute difference of stretched map and truth; lower is better",
}
PIXEL_DEFINITIONS = {
    "precision": "share of the predicted pixels that are polyp, mean over images with a polyp",
    "recall": "share of the polyp's pixels that are predicted (sensitivity), mean over images with a polyp",
    "specificity": "share of the other pixels that are not predicted, mean over images with a polyp",
    "f1": "harmonic mean of precision and recall of each image (its Dice), mean over images with a polyp",
    "f2": "the same with recall weighted four times (beta 2), mean over images with a polyp",
    "accuracy": "share of pixels that are right, mean over images with a polyp",
}
BOUNDARY_DEFINITIONS = {
    "hd95": "95th percentile of the distances between the two outlines, the larger direction, mean over images with a "
    "polyp",
    "assd": "average symmetric distance between the two outlines, mean over images with a polyp",
    "nsd": "share of both outlines within the tolerance of the other (normalised surface Dice), mean over images with "
    "a polyp",
    "boundary_iou": "IoU of the bands along both outlines, 2 % of the diagonal wide, mean over images with a polyp",
}
IOU_GLOBAL = "IoU of all images' pixels pooled, at the bundle's threshold, at original size"
LESION_DEFINITION = (
    "8-connected regions of 10 pixels or more, paired one to one at the IoU; recall and precision over all regions"
)
# Columns that compare outlines; a frame without a polyp has none of them.
_OF_POLYPS = ("dice", "iou", *PIXEL_DEFINITIONS, *boundary.NAMES, "mean_dice_256", "mae")
CALIBRATION_DEFINITION = "over all pixels of all images; ECE in 15 equal bins of the probability of polyp"


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Numbers with intervals, and the table behind them.

    Attributes:
        numbers: what ``report.json`` contains.
        per_image: one row a frame: what ``per_image.csv`` contains.
        folder: where its files lie; None where they were not written.
    """

    numbers: dict[str, Any]
    per_image: pd.DataFrame
    folder: Path | None = None

    def __repr__(self) -> str:
        dice = self.numbers["headline"]["dice"]
        mean = "no Dice" if dice["mean"] is None else f"Dice {dice['mean']:.4f}"
        bounds = "" if dice.get("low") is None else f" ({dice['low']:.4f} to {dice['high']:.4f})"
        return (
            f"Report({len(self.per_image)} frames, {mean}{bounds}{'' if self.folder is None else f', {self.folder}'})"
        )

    def worst(self, count: int = WORST) -> pd.DataFrame:
        """The frames with a polyp that have the lowest Dice, lowest first."""
        return self.per_image.dropna(subset="dice").nsmallest(count, "dice")


@dataclass
class _Sums:
    """What is gathered over frames beside the table; but for a few numbers a frame its size does not grow with them."""

    pooled: Confusion = field(default_factory=Confusion)
    pranet: PranetMean = field(default_factory=PranetMean)
    detections: Detections = field(default_factory=Detections)
    reliability: Reliability = field(default_factory=Reliability)
    metrics_seconds: float = 0.0


def evaluate(
    predictor: Predictor,
    catalog: Catalog,
    *,
    network_size: NetworkSize | None = None,
    provenance: dict[str, Any] | None = None,
    progress: bool = True,
) -> Report:
    """Score a predictor on every frame of a Catalog, at original size, in one pass.

    Dice and all else that compares outlines is a mean over the frames with a polyp; the others are counted apart.

    Args:
        predictor: gives one Segmentation a frame.
        catalog: frames with masks; its ``group`` column makes the intervals honest where groups contain several frames.
        network_size: gathers the scores by the definitions that need the network's size.
        provenance: further entries for the report, as the split's hash.
        progress: show a progress bar.

    Returns:
        The Report.

    Raises:
        PolypsegError: there are no frames, or a frame, a mask or a prediction cannot be read.
    """
    if not len(catalog):
        raise PolypsegError("there are no frames to evaluate; check --data and --split")
    rows: list[dict[str, Any]] = []
    sums = _Sums()
    started = time.perf_counter()
    predictions = predictor.predictions(catalog)
    for index, predicted in enumerate(
        tqdm(predictions, "evaluating", len(catalog), unit="frame", disable=not progress)
    ):
        truth = catalog.mask(index)
        before = time.perf_counter()
        rows.append(_measure(catalog.row(index), predicted, truth, sums))
        if network_size is not None:
            network_size.add(predicted, truth)
        sums.metrics_seconds += time.perf_counter() - before
    before = time.perf_counter()
    table = pd.DataFrame(rows).astype(dict.fromkeys(_OF_POLYPS, float))
    shown = table[table["polyps"] > 0]
    groups = shown["group"].tolist()
    detection = summarise(sums.detections, table)
    sums.metrics_seconds += time.perf_counter() - before
    numbers = {
        "name": predictor.name,
        "n": len(table),
        "warnings": [] if len(shown) else [NO_POLYP],
        "threshold": predictor.threshold,
        "headline": {name: _interval(shown[name], groups, DEFINITIONS[name]) for name in ("dice", "iou")},
        "polyp_free": detection.polyp_free,
        "detection": detection.detection,
        "froc": detection.froc,
        "frames_roc": detection.frames_roc,
        "definitions": _definitions(shown, groups, sums, network_size),
        "pixels": {name: _interval(shown[name], groups, text) for name, text in PIXEL_DEFINITIONS.items()},
        "boundary": {
            name: _interval(shown[name], groups, definition)
            for stem, definition in BOUNDARY_DEFINITIONS.items()
            for name in table.columns
            if name.startswith(stem)
        },
        "lesions": _lesions(detection),
        "strata": _strata(shown),
        "calibration": _calibration(sums.reliability),
        "provenance": {
            **predictor.provenance(),
            "datasets": table["dataset"].value_counts().to_dict(),
            "data_hash": catalog.hash(),
            "groups": int(table["group"].nunique()),
            "intervals": "95 % bootstrap; whole groups are drawn where groups contain several frames",
            "seconds": {
                "total": round(time.perf_counter() - started, 2), "metrics": round(sums.metrics_seconds, 2),
            },
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            **(provenance or {}),
        },
        "intended_use": INTENDED_USE,
    }  # fmt: skip
    return Report(json.loads(json.dumps(numbers, default=_plain, allow_nan=False)), table)


def _measure(row: Any, predicted: Segmentation, truth: Any, sums: _Sums) -> dict[str, Any]:
    mask, probability = predicted.mask, predicted.probability
    counts = confusion(mask, truth)
    sums.pooled = sums.pooled + counts
    sums.reliability.add(probability, truth)
    match = match_lesions(mask, truth, probability)
    every = predicted.candidate_mask
    candidates = match if every is mask else match_lesions(every, truth, probability)
    peak = _frame_score(candidates, probability, predicted.threshold)
    sums.detections.add(match, candidates, peak, truth.size)
    invented = [lesion for lesion in match.predictions if not lesion.best_iou]
    return {
        "dataset": row.dataset,
        "frame_id": row.frame_id,
        "group": row.group,
        "centre": row.centre,
        "width": row.width,
        "height": row.height,
        "area": float(truth.mean()),
        "polyps": len(match.truths),
        **_outlines(mask, probability, truth, counts, match, sums),
        "predicted": len(match.predictions),
        "missed": len(match.missed(0.5)),
        "missed_boxes": json.dumps([list(lesion.box) for lesion in match.missed(0.5)]),
        "false_positives": len(match.false_positives(0.5)),
        "false_boxes": json.dumps([list(lesion.box) for lesion in invented]),
        "false_peak": max((lesion.max_probability or 0.0 for lesion in invented), default=np.nan),
        "peak": peak,
    }


def _frame_score(candidates: LesionMatch, probability: Any, threshold: float) -> float:
    """The peak of the most confident region; without one the map's, below the threshold."""
    peaks = [lesion.max_probability or 0.0 for lesion in candidates.predictions]
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    return max(peaks, default=min(float(probability.max()), below))


def _outlines(
    mask: Any, probability: Any, truth: Any, counts: Confusion, match: LesionMatch, sums: _Sums
) -> dict[str, float | None]:
    """What compares outlines; of a polyp-free frame there is nothing to compare."""
    if not match.truths:
        return dict.fromkeys(_OF_POLYPS)
    family = pranet_scores(probability, truth)
    sums.pranet.add(family)
    return {
        "dice": counts.dice,
        "iou": counts.iou,
        **{name: getattr(counts, name) for name in PIXEL_DEFINITIONS},
        **boundary_scores(mask, truth).to_dict(),
        "mean_dice_256": float(family.dice.mean()),
        "mae": family.mae,
    }


def _interval(values: Iterable[float], groups: list[str], definition: str | None = None) -> dict[str, Any]:
    scores = np.asarray(list(values), np.float64)
    words = {"definition": definition} if definition else {}
    if not len(scores):
        return {**dict.fromkeys(("mean", "low", "high", "median")), "n": 0, **words, "reason": NO_POLYP}
    mean = bootstrap_interval(scores, "mean", groups)
    low, high = (None if np.isnan(bound) else bound for bound in (mean.low, mean.high))  # one group has no spread
    return {"mean": mean.value, "low": low, "high": high, "median": float(np.median(scores)), "n": mean.n, **words}


def _definitions(
    shown: pd.DataFrame, groups: list[str], sums: _Sums, network_size: NetworkSize | None
) -> dict[str, Any]:
    """Every definition of the field under its own name; intervals where the value is a mean over images."""
    pooled = sums.pooled if len(shown) else None
    found: dict[str, Any] = {
        "dice": _interval(shown["dice"], groups, DEFINITIONS["dice"]),
        "iou": _interval(shown["iou"], groups, DEFINITIONS["iou"]),
        "dice_global": {"mean": pooled and pooled.dice, "definition": DEFINITIONS["dice_global"]},
        "iou_global": {"mean": pooled and pooled.iou, "definition": IOU_GLOBAL},
    }
    for name, value in (network_size.summary() if network_size else {}).items():
        found[name] = {"mean": value, "definition": DEFINITIONS[name]}
    family = sums.pranet.mean().summary() if len(shown) else {}
    for name, definition in PRANET_DEFINITIONS.items():
        found[name] = {"mean": family.get(name), "definition": definition}
    found["meanDic"] = {**found["meanDic"], **_interval(shown["mean_dice_256"], groups)}
    return found


def _lesions(found: DetectionSummary) -> dict[str, Any]:
    """The counts of all frames together, without intervals; ``detection`` has more."""
    overall = found.overall
    return {
        "definition": LESION_DEFINITION,
        "lesions": overall.lesions,
        "predicted": overall.regions,
        "at_iou": {
            name: {
                "recall": _known(overall.found[name].value),
                "precision": _known(overall.right[name].value),
                "false_positives_per_frame": _known(overall.false_regions_per_frame[name].value),
            }
            for name in CRITERIA
            if name != "any"
        },
        "frames_without_polyp": overall.polyp_free,
        "specificity_on_frames_without_polyp": _known(1 - overall.marked.value),
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _strata(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Dice of parts of the frames with a polyp."""
    pixels = table["width"] * table["height"]
    chosen: list[tuple[str, str, pd.Series]] = []
    for low, high in AREA_STRATA:
        chosen.append(("polyp area", area_name(low, high), (table["area"] >= low) & (table["area"] < high)))
    for name, rows in (("one", table["polyps"] == 1), ("several", table["polyps"] > 1)):
        chosen.append(("polyps in the frame", name, rows))
    for name, (least, most) in zip(("under 0.25", "0.25 to 1", "over 1"), RESOLUTION_STRATA, strict=True):
        chosen.append(("resolution, megapixels", name, (pixels >= least) & (pixels < most)))
    for dataset in sorted(set(table["dataset"])):
        chosen.append(("data set", dataset, table["dataset"] == dataset))
    for centre in sorted(set(table["centre"]) - {""}):
        chosen.append(("centre", centre, table["centre"] == centre))
    sizes = table["group"].value_counts()
    if 1 < len(sizes) <= MOST_GROUPS and sizes.max() > 1:
        for group in sorted(sizes.index):
            chosen.append(("group", group, table["group"] == group))
    return [
        {"by": by, "stratum": name, **_interval(table["dice"][rows], table["group"][rows].tolist())}
        for by, name, rows in chosen
        if rows.any()
    ]


def _calibration(reliability: Reliability) -> dict[str, Any]:
    return {
        "definition": CALIBRATION_DEFINITION,
        "ece": reliability.ece(),
        "brier": reliability.brier(),
        "bins": [
            {"confidence": confidence, "frequency": frequency, "pixels": count}
            for confidence, frequency, count in zip(
                reliability.confidence, reliability.frequency, reliability.counts, strict=True
            )
            if count
        ],
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
