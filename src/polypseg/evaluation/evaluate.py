"""Everything that is said of a model's answers on frames with masks, gathered in one pass."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from polypseg.bundle import INTENDED_USE, versions
from polypseg.catalog import Catalog
from polypseg.errors import PolypsegError
from polypseg.evaluation.predictions import Predictor
from polypseg.evaluation.scoring import DEFINITIONS
from polypseg.metrics.boundary import boundary_scores
from polypseg.metrics.calibration import Reliability
from polypseg.metrics.lesions import LesionAccumulator, match_lesions
from polypseg.metrics.pixels import Confusion, confusion
from polypseg.metrics.pranet import PranetMean, pranet_scores
from polypseg.metrics.statistics import bootstrap_interval

AREA_STRATA = ((0.0, 0.02), (0.02, 0.05), (0.05, 0.15), (0.15, 1.01))  # of the frame
RESOLUTION_STRATA = ((0, 250_000), (250_000, 1_000_000), (1_000_000, 10**12))  # pixels
MOST_GROUPS = 40  # more groups than this have no stratum each: a table of 900 rows says nothing
WORST = 12
PRANET_DEFINITIONS = {
    "meanDic": "PraNet's: map stretched to 0..1 per image, Dice averaged over 256 thresholds and images",
    "maxDic": "the same, at the best of the 256 thresholds (chosen on these very frames)",
    "meanIoU": "as meanDic, with IoU",
    "maxIoU": "as maxDic, with IoU",
    "Sm": "S-measure (Fan et al., ICCV 2017), mean over images",
    "wFm": "weighted F-measure (Margolin et al., CVPR 2014), mean over images",
    "meanEm": "E-measure (Fan et al., IJCAI 2018) averaged over 256 thresholds and images",
    "maxEm": "the same, at the best of the 256 thresholds",
    "adpEm": "E-measure at twice the map's mean",
    "adpFm": "F-measure at twice the map's mean",
    "MAE": "mean absolute difference of stretched map and truth; lower is better",
}
PIXEL_DEFINITIONS = {
    "precision": "share of the predicted pixels that are polyp, mean over images",
    "recall": "share of the polyp's pixels that are predicted (sensitivity), mean over images",
    "specificity": "share of the other pixels that are not predicted, mean over images",
    "f1": "harmonic mean of precision and recall of each image (its Dice), mean over images",
    "f2": "the same with recall weighted four times (beta 2), mean over images",
    "accuracy": "share of pixels that are right, mean over images",
}
BOUNDARY_DEFINITIONS = {
    "hd95": "95th percentile of the distances between the two outlines, the larger direction, mean over images",
    "assd": "average symmetric distance between the two outlines, mean over images",
    "nsd": "share of both outlines within the tolerance of the other (normalised surface Dice), mean over images",
    "boundary_iou": "IoU of the bands along both outlines, 2 % of the diagonal wide, mean over images",
}
LESION_DEFINITION = (
    "8-connected regions of 10 pixels or more, paired one to one at the IoU; recall and precision over all regions"
)
CALIBRATION_DEFINITION = "over all pixels of all images; ECE in 15 equal bins of the probability of polyp"


@dataclass(frozen=True)
class Report:
    """Numbers with intervals, and the table behind them.

    Attributes:
        numbers: what ``report.json`` holds.
        per_image: one row a frame: what ``per_image.csv`` holds.
    """

    numbers: dict[str, Any]
    per_image: pd.DataFrame

    def worst(self, count: int = WORST) -> pd.DataFrame:
        """The frames with the lowest Dice, lowest first."""
        return self.per_image.nsmallest(count, "dice")


@dataclass
class _Sums:
    """What is gathered over frames beside the table; its size does not grow with their number."""

    pooled: Confusion = field(default_factory=Confusion)
    pranet: PranetMean = field(default_factory=PranetMean)
    lesions: LesionAccumulator = field(default_factory=LesionAccumulator)
    reliability: Reliability = field(default_factory=Reliability)
    metrics_seconds: float = 0.0


def evaluate(
    predictor: Predictor,
    catalog: Catalog,
    *,
    network_size: dict[str, float] | None = None,
    provenance: dict[str, Any] | None = None,
    progress: bool = True,
) -> Report:
    """Score a predictor on every frame of a Catalog, at original size.

    Args:
        predictor: gives one Segmentation a frame.
        catalog: frames with masks; its ``group`` column makes the intervals honest where groups hold several frames.
        network_size: scores by the definitions that need the network's size (``scoring.at_network_size``).
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
    answers = predictor.answers(catalog)
    for index, answer in enumerate(tqdm(answers, "evaluating", len(catalog), unit="frame", disable=not progress)):
        truth = catalog.mask(index)
        before = time.perf_counter()
        rows.append(_measure(catalog.row(index), answer.mask, answer.probability, truth, sums))
        sums.metrics_seconds += time.perf_counter() - before
    seconds = time.perf_counter() - started
    table = pd.DataFrame(rows)
    groups = table["group"].tolist()
    numbers = {
        "name": predictor.name,
        "n": len(table),
        "threshold": predictor.threshold,
        "headline": {name: _interval(table[name], groups, DEFINITIONS[name]) for name in ("dice", "iou")},
        "definitions": _definitions(table, groups, sums, network_size),
        "pixels": {name: _interval(table[name], groups, text) for name, text in PIXEL_DEFINITIONS.items()},
        "boundary": {
            name: _interval(table[name], groups, definition)
            for stem, definition in BOUNDARY_DEFINITIONS.items()
            for name in table.columns
            if name.startswith(stem)
        },
        "lesions": _lesions(sums.lesions),
        "strata": _strata(table),
        "calibration": _calibration(sums.reliability),
        "provenance": {
            **predictor.provenance(),
            "datasets": table["dataset"].value_counts().to_dict(),
            "data_hash": catalog.hash(),
            "groups": int(table["group"].nunique()),
            "intervals": "95 % bootstrap; whole groups are drawn where groups hold several frames",
            "seconds": {"total": round(seconds, 2), "metrics": round(sums.metrics_seconds, 2)},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            **(provenance or {}),
        },
        "intended_use": INTENDED_USE,
    }
    return Report(json.loads(json.dumps(numbers, default=_plain, allow_nan=False)), table)


def _measure(row: Any, mask: Any, probability: Any, truth: Any, sums: _Sums) -> dict[str, Any]:
    counts = confusion(mask, truth)
    sums.pooled = sums.pooled + counts
    family = pranet_scores(probability, truth)
    sums.pranet.add(family)
    match = match_lesions(mask, truth, probability)
    sums.lesions.add(match)
    sums.reliability.add(probability, truth)
    return {
        "dataset": row.dataset,
        "frame_id": row.frame_id,
        "group": row.group,
        "width": row.width,
        "height": row.height,
        "area": float(truth.mean()),
        "polyps": len(match.truths),
        "dice": counts.dice,
        "iou": counts.iou,
        **{name: getattr(counts, name) for name in PIXEL_DEFINITIONS},
        **boundary_scores(mask, truth).to_dict(),
        "mean_dice_256": float(family.dice.mean()),
        "mae": family.mae,
        "missed": len(match.missed(0.5)),
        "missed_boxes": json.dumps([list(lesion.box) for lesion in match.missed(0.5)]),
        "false_positives": len(match.false_positives(0.5)),
    }


def _interval(values: Iterable[float], groups: list[str], definition: str | None = None) -> dict[str, Any]:
    scores = np.asarray(list(values), np.float64)
    mean = bootstrap_interval(scores, "mean", groups)
    low, high = (None if np.isnan(bound) else bound for bound in (mean.low, mean.high))  # one group has no spread
    result = {"mean": mean.value, "low": low, "high": high, "median": float(np.median(scores)), "n": mean.n}
    return {**result, "definition": definition} if definition else result


def _definitions(
    table: pd.DataFrame, groups: list[str], sums: _Sums, network_size: dict[str, float] | None
) -> dict[str, Any]:
    """Every definition of the field under its own name; intervals where the value is a mean over images."""
    found: dict[str, Any] = {
        "dice": _interval(table["dice"], groups, DEFINITIONS["dice"]),
        "iou": _interval(table["iou"], groups, DEFINITIONS["iou"]),
        "dice_global": {"mean": sums.pooled.dice, "definition": DEFINITIONS["dice_global"]},
        "iou_global": {
            "mean": sums.pooled.iou,
            "definition": "IoU of all images' pixels pooled, at the bundle's threshold, at original size",
        },
    }
    for name, value in (network_size or {}).items():
        found[name] = {"mean": value, "definition": DEFINITIONS[name]}
    family = sums.pranet.mean().summary()
    for name, definition in PRANET_DEFINITIONS.items():
        found[name] = {"mean": family[name], "definition": definition}
    found["meanDic"] = {**found["meanDic"], **_interval(table["mean_dice_256"], groups)}
    return found


def _lesions(accumulator: LesionAccumulator) -> dict[str, Any]:
    summary = accumulator.summary()
    curves = {}
    for threshold in summary.iou_thresholds:
        if summary.lesions == 0:
            continue
        curve = accumulator.froc(threshold)
        curves[f"{threshold:g}"] = {
            "sensitivity": curve.sensitivity.tolist(),
            "false_positives_per_frame": curve.false_positives_per_frame.tolist(),
        }
    return {
        "definition": LESION_DEFINITION,
        "lesions": summary.lesions,
        "predicted": summary.predicted,
        "at_iou": {
            f"{threshold:g}": {
                "recall": summary.recall[position],
                "precision": summary.precision[position],
                "false_positives_per_frame": summary.false_positives_per_frame[position],
            }
            for position, threshold in enumerate(summary.iou_thresholds)
        },
        "frames_without_polyp": summary.frames_without_polyp,
        "specificity_on_frames_without_polyp": summary.specificity,
        "free_response": curves,
    }


def _strata(table: pd.DataFrame) -> list[dict[str, Any]]:
    pixels = table["width"] * table["height"]
    chosen: list[tuple[str, str, pd.Series]] = []
    for low, high in AREA_STRATA:
        name = f"under {100 * high:g} %" if low == 0 else (f"{100 * low:g} to {100 * high:g} %")
        name = "over 15 %" if high > 1 else name
        chosen.append(("polyp area", name, (table["area"] > 0) & (table["area"] >= low) & (table["area"] < high)))
    for name, rows in (("none", table["polyps"] == 0), ("one", table["polyps"] == 1), ("several", table["polyps"] > 1)):
        chosen.append(("polyps in the frame", name, rows))
    for name, (least, most) in zip(("under 0.25", "0.25 to 1", "over 1"), RESOLUTION_STRATA, strict=True):
        chosen.append(("resolution, megapixels", name, (pixels >= least) & (pixels < most)))
    for dataset in sorted(set(table["dataset"])):
        chosen.append(("data set", dataset, table["dataset"] == dataset))
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
