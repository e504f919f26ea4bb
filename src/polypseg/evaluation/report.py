"""A Report as files: ``report.json``, ``per_image.csv`` and one page that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polypseg.catalog import Catalog
from polypseg.drawing import PREDICTION, TRUTH, overlay
from polypseg.evaluation.evaluate import WORST, Report
from polypseg.evaluation.predictions import Predictor
from polypseg.evaluation.wording import interval, number, percent, share
from polypseg.files import atomic_write, csv_cells, write_json
from polypseg.visualization import charts

PAGE = "report.html"
PICTURE_WIDTH = 640  # pixels
FALSE = ("false_free", "false_beside")  # sections of false regions: in polyp-free frames, and beside polyps
CRITERIA_IN_WORDS = {"any": "at any overlap", "0.3": "at IoU ≥ 0.3", "0.5": "at IoU ≥ 0.5"}


def write_report(report: Report, catalog: Catalog, predictor: Predictor, out: str | Path) -> Path:
    """Write a Report.

    Args:
        report: what ``evaluate`` returned.
        catalog: the frames it is of.
        predictor: predicts again for the pictures of the worst frames, of missed polyps and of false regions.
        out: the folder.

    Returns:
        The path of ``report.html``.

    Raises:
        PolypsegError: the folder cannot be written, or a frame cannot be read any more.
    """
    out = Path(out)
    write_json(out / "report.json", report.numbers)
    with atomic_write(out / "per_image.csv", "w") as file:
        csv_cells(report.per_image).to_csv(file, index=False, float_format="%.6g")
    page = _page(
        report.numbers,
        {name: _embed(content, "png") for name, content in _charts(report).items()},
        _pictures(_shown(report), report.per_image["false_boxes"], catalog, predictor),
    )
    with atomic_write(out / PAGE, "w") as file:
        file.write(page)
    return out / PAGE


def _charts(report: Report) -> dict[str, bytes]:
    numbers = report.numbers
    drawn = {"reliability": charts.reliability(numbers["calibration"]["bins"])}
    with_polyp = report.per_image[report.per_image["polyps"] > 0]
    if len(with_polyp):
        drawn["dice_by_area"] = charts.dice_by_area(with_polyp["area"], with_polyp["dice"])
        drawn["dice_histogram"] = charts.dice_histogram(with_polyp["dice"])
        drawn["froc"] = charts.froc(numbers["froc"]["curves"])
    if numbers["frames_roc"]["curve"]:
        drawn["roc"] = charts.roc(numbers["frames_roc"]["curve"], numbers["frames_roc"]["auc"]["mean"])
    if numbers.get("robustness"):
        drawn["robustness"] = charts.robustness(numbers["robustness"], numbers["headline"]["dice"]["mean"])
    return drawn


def _shown(report: Report) -> dict[str, pd.DataFrame]:
    """The rows whose frames are shown, by section."""
    table = report.per_image
    free, invented = table["polyps"] == 0, table["false_peak"].notna()
    return {
        "worst": report.worst(),
        "missed": table[table["missed"] > 0].nsmallest(WORST, "dice"),
        FALSE[0]: table[free & invented].nlargest(WORST, "false_peak"),
        FALSE[1]: table[~free & invented].nlargest(WORST, "false_peak"),
    }


def _pictures(
    shown: dict[str, pd.DataFrame], false_boxes: pd.Series, catalog: Catalog, predictor: Predictor
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each section with an overlay each, as the page embeds it; a frame is predicted once for all.

    Where false regions are shown they are in boxes.
    """
    order = sorted({int(index) for rows in shown.values() for index in rows.index})
    chosen = Catalog(catalog.frames.iloc[order].reset_index(drop=True))
    drawn: dict[bool, dict[int, str]] = {False: {}, True: {}}  # by whether false regions are in boxes
    for position, predicted in enumerate(predictor.predictions(chosen) if order else ()):
        picture = overlay(chosen.frame(position), chosen.mask(position), TRUTH, fill=0.15)
        for boxed, boxes in ((False, []), (True, json.loads(false_boxes.iloc[order[position]]))):
            drawn[boxed][order[position]] = _jpeg(overlay(picture, predicted.mask, PREDICTION, fill=0.0, boxes=boxes))
    return {
        name: [
            {**{str(key): value for key, value in row.items()}, "picture": drawn[name in FALSE][int(str(index))]}
            for index, row in rows.iterrows()
        ]
        for name, rows in shown.items()
    }


def _jpeg(picture: NDArray[np.uint8]) -> str:
    height = round(picture.shape[0] * PICTURE_WIDTH / picture.shape[1])
    small = cv2.resize(picture, (PICTURE_WIDTH, max(1, height)), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return _embed(encoded.tobytes(), "jpeg")


def _embed(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _page(values: dict[str, Any], drawn: dict[str, str], pictures: dict[str, list[dict[str, Any]]]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True)
    environment.filters.update(number=number, interval=interval, percent=percent, plain=_plain)
    environment.filters.update(share=share, bounds=_bounds, rate=_rate, words=CRITERIA_IN_WORDS.get)
    environment.filters.update(sha256=_sha256)
    template, script = (
        (resources.files(__package__) / name).read_text("utf-8") for name in ("report.html.j2", "report.js")
    )
    theme = (resources.files("polypseg.visualization") / "theme" / "theme.css").read_text("utf-8")
    return environment.from_string(template).render(values=values, charts=drawn, theme=theme, script=script, **pictures)


def lines(numbers: dict[str, Any]) -> list[str]:
    """What ``polypseg evaluate`` prints of a report: what is to be known first, detection, then every definition."""
    found = [*numbers["warnings"]]
    free, detection, roc = numbers["polyp_free"], numbers["detection"], numbers["frames_roc"]
    if free["frames"]:
        found.append(
            f"{'polyp-free marked':22} {share(free['marked'])}  {free['marked_frames']} of {free['frames']} frames"
        )
    for name, words in CRITERIA_IN_WORDS.items():
        one = detection[name]
        for key, what in (("found", "lesions found"), ("right", "regions right"), ("f1", "lesion F1")):
            if one[key]:
                found.append(f"{what:22} {share(one[key])}  {words}")
        found.append(f"{'false regions a frame':22} {_rate(one['false_regions_per_frame'])}  {words}")
    if roc["auc"]:
        found.append(f"{'AUC of frames':22} {_rate(roc['auc'])}  with and without a polyp")
        for specificity, one in roc["sensitivity_at_specificity"].items():
            found.append(f"{'sensitivity of frames':22} {share(one)}  at {100 * float(specificity):g} % specificity")
    for name, one in numbers["definitions"].items():
        bounds = "" if one.get("low") is None else f" ({one['low']:.4f} to {one['high']:.4f})"
        found.append(f"{name:22} {number(one['mean'])}{bounds:19}  {one['definition']}")
    return found


def _bounds(one: dict[str, Any]) -> str:
    """A share's interval alone, in %."""
    return "" if one["low"] is None else f"{100 * one['low']:.1f} to {100 * one['high']:.1f} %"


def _rate(one: dict[str, Any] | None) -> str:
    """A number with its interval."""
    if one is None:
        return "–"
    return f"{one['mean']:.3f}" + ("" if one.get("low") is None else f" ({one['low']:.3f} to {one['high']:.3f})")


def _sha256(text: str) -> str:
    """As a content security policy names a script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
