"""A Report as files: ``report.json``, ``per_image.csv`` and one page that needs no network."""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polypseg.catalog import Catalog
from polypseg.evaluation.evaluate import WORST, Report
from polypseg.evaluation.predictions import Predictor
from polypseg.files import atomic_write, csv_cells, write_json
from polypseg.visualization import charts
from polypseg.visualization.overlay import PREDICTION, TRUTH, overlay

PICTURE_WIDTH = 480  # pixels


def write_report(report: Report, catalog: Catalog, predictor: Predictor, out: str | Path) -> Path:
    """Write a Report.

    Args:
        report: what ``evaluate`` returned.
        catalog: the frames it is of.
        predictor: answers again for the pictures of the worst frames and of missed polyps.
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
    missed = report.per_image[report.per_image["missed"] > 0].nsmallest(WORST, "dice")
    page = _page(
        report.numbers,
        {name: _embed(content, "png") for name, content in _charts(report).items()},
        _pictures(report.worst(), catalog, predictor),
        _pictures(missed, catalog, predictor),
    )
    with atomic_write(out / "report.html", "w") as file:
        file.write(page)
    return out / "report.html"


def _charts(report: Report) -> dict[str, bytes]:
    numbers = report.numbers
    drawn = {
        "dice_and_area": charts.dice_and_area(report.per_image["area"], report.per_image["dice"]),
        "reliability": charts.reliability(numbers["calibration"]["bins"]),
    }
    if numbers["lesions"]["free_response"]:
        drawn["free_response"] = charts.free_response(numbers["lesions"]["free_response"])
    if numbers.get("robustness"):
        drawn["robustness"] = charts.robustness(numbers["robustness"], numbers["headline"]["dice"]["mean"])
    return drawn


def _pictures(rows: pd.DataFrame, catalog: Catalog, predictor: Predictor) -> list[dict[str, Any]]:
    """The rows with an overlay each, as the page embeds it."""
    if rows.empty:
        return []
    order = [int(index) for index in rows.index]
    chosen = Catalog(catalog.frames.iloc[order].reset_index(drop=True))
    result = []
    for position, answer in enumerate(predictor.answers(chosen)):
        picture = overlay(chosen.frame(position), chosen.mask(position), TRUTH, fill=0.15)
        drawn = overlay(picture, answer.mask, PREDICTION, fill=0.0)
        row = {str(name): value for name, value in rows.iloc[position].items()}
        result.append({**row, "picture": _jpeg(drawn)})
    return result


def _jpeg(picture: NDArray[np.uint8]) -> str:
    height = round(picture.shape[0] * PICTURE_WIDTH / picture.shape[1])
    small = cv2.resize(picture, (PICTURE_WIDTH, max(1, height)), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return _embed(encoded.tobytes(), "jpeg")


def _embed(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _page(values: dict[str, Any], drawn: dict[str, str], worst: list[Any], missed: list[Any]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True)
    environment.filters.update(number=_number, interval=_interval, percent=_percent, plain=_plain)
    template = environment.from_string((resources.files(__package__) / "report.html.j2").read_text("utf-8"))
    return template.render(values=values, charts=drawn, worst=worst, missed=missed)


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _interval(one: dict[str, Any]) -> str:
    if one.get("low") is None:
        return "–"
    return f"{one['low']:.4f} to {one['high']:.4f}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
