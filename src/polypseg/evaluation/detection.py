"""What ``report.json`` says of lesions, false regions and frames without a polyp (``metrics.detection``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polypseg.evaluation.scoring import NO_POLYP
from polypseg.metrics.detection import CRITERIA, Detections, DetectionScores
from polypseg.metrics.statistics import Interval

AREA_STRATA = ((0.0, 0.02), (0.02, 0.05), (0.05, 0.15), (0.15, 1.01))  # of the frame
ALL_POLYPS = "every frame shows a polyp"
POLYP_FREE_DEFINITION = (
    "frames whose truth contains no region of 10 pixels or more; marked: with a predicted region of 10 pixels or more"
)
DEFINITION = (
    "true lesions found, predicted regions right, their harmonic mean, and predicted regions that are not right over "
    "all frames. any: true and predicted region share a pixel, not one to one; 0.3 and 0.5: pairs, one to one, of at "
    "least that IoU. Regions are 8-connected, of 10 pixels or more"
)
FROC_DEFINITION = (
    "lesions found against false regions a frame, over all frames, as regions of less and less confidence count, down "
    "to 0; confidence is the region's highest probability, and the regions are those before the least confidence"
)
ROC_DEFINITION = (
    "a frame with a polyp against one without by its score: the highest probability of its regions, or, where there is "
    "none, of its map, but less than the threshold; sensitivity is the highest at that specificity or more"
)


@dataclass(frozen=True)
class DetectionSummary:
    """Sections of ``report.json``, and the scores of all frames that they come from."""

    overall: DetectionScores
    polyp_free: dict[str, Any]
    detection: dict[str, Any]
    froc: dict[str, Any]
    frames_roc: dict[str, Any]


def summarise(found: Detections, table: pd.DataFrame) -> DetectionSummary:
    """Every section, over all frames and by data set, centre and size of lesion.

    Args:
        found: of all frames.
        table: a row a frame in the same order, with ``group``, ``dataset`` and ``centre``.
    """
    groups = table["group"].tolist()
    overall = found.scores(groups)
    strata = []
    for by, name, rows in _parts(table):
        scores = overall if rows.all() else found.scores(groups, rows)
        strata.append({"by": by, "stratum": name, **_counts(scores), **_of_frames(scores)})
    for least, most in AREA_STRATA:
        scores = found.scores_by_size(groups, least, most)
        if scores.lesions or scores.regions:
            sized = {name: {**one, "f1": None} for name, one in _counts(scores).items() if isinstance(one, dict)}
            counted = {"lesions": scores.lesions, "predicted": scores.regions, **sized}
            strata.append({"by": "lesion size", "stratum": area_name(least, most), **counted})
    reason = _reason(overall)
    return DetectionSummary(
        overall,
        {"definition": POLYP_FREE_DEFINITION, **_of_frames(overall)["polyp_free"]},
        {"definition": DEFINITION, **_counts(overall), "strata": strata},
        {
            "definition": FROC_DEFINITION,
            "sensitivity_at": _of_frames(overall)["froc"],
            "curves": {name: _listed(found.froc(name)._asdict()) for name in CRITERIA} if overall.lesions else {},
            **({} if overall.lesions else {"reason": NO_POLYP}),
        },
        {
            "definition": ROC_DEFINITION,
            **_of_frames(overall)["frames_roc"],
            "curve": None if reason else _listed(found.roc()._asdict()),
            **({"reason": reason} if reason else {}),
        },
    )


def area_name(least: float, most: float) -> str:
    """A stratum of area in words."""
    if most > 1:
        return f"over {100 * least:g} %"
    return f"under {100 * most:g} %" if least == 0 else f"{100 * least:g} to {100 * most:g} %"


def _parts(table: pd.DataFrame) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Data sets and centres, where there are any."""
    for dataset in sorted(set(table["dataset"])):
        yield "data set", dataset, (table["dataset"] == dataset).to_numpy()
    for centre in sorted(set(table["centre"]) - {""}):
        yield "centre", centre, (table["centre"] == centre).to_numpy()


def _reason(scores: DetectionScores) -> str | None:
    """Why there is no ROC of frames."""
    if not scores.lesions:
        return NO_POLYP
    return None if scores.polyp_free else ALL_POLYPS


def _counts(scores: DetectionScores) -> dict[str, Any]:
    return {
        "lesions": scores.lesions,
        "predicted": scores.regions,
        **{
            name: {
                "found": _interval(scores.found[name]),
                "right": _interval(scores.right[name]),
                "f1": _interval(scores.f1[name]),
                "false_regions_per_frame": _interval(scores.false_regions_per_frame[name]),
            }
            for name in CRITERIA
        },
    }


def _of_frames(scores: DetectionScores) -> dict[str, Any]:
    return {
        "frames": scores.frames,
        "polyp_free": {
            "frames": scores.polyp_free,
            "marked_frames": scores.marked_frames,
            "marked": _interval(scores.marked),
            "false_regions_per_frame": _interval(scores.false_regions_per_polyp_free_frame),
        },
        "frames_roc": {
            "auc": _interval(scores.auc),
            "sensitivity_at_specificity": {
                f"{one:g}": _interval(value) for one, value in scores.sensitivity_at_specificity.items()
            },
        },
        "froc": {
            name: {f"{rate:g}": _interval(value) for rate, value in one.items()}
            for name, one in scores.sensitivity_at_rate.items()
        },
    }


def _interval(one: Interval) -> dict[str, Any] | None:
    """In plain types; None where there is no denominator."""
    if np.isnan(one.value):
        return None
    low, high = (None if np.isnan(bound) else bound for bound in (one.low, one.high))
    return {"mean": one.value, "low": low, "high": high}


def _listed(curve: dict[str, NDArray[np.float64]]) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in curve.items()}
