"""The charts of a report, looked at by their pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from polypseg.visualization import charts
from polypseg.visualization.charts import COLOURS


def decode(content: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    picture = np.asarray(image.convert("RGB"))
    assert 200 < picture.shape[0] < 1200 and 300 < picture.shape[1] < 2400
    return picture


def places(picture: NDArray[np.uint8], colour: str) -> NDArray[np.bool_]:
    """Where the picture has nearly that colour."""
    return np.abs(picture.astype(int) - np.round(255 * np.array(to_rgb(colour)))).max(axis=-1) < 30


def halves(picture: NDArray[np.uint8], colour: str) -> tuple[int, int]:
    """Pixels of the colour in the left and in the right half."""
    found = places(picture, colour)
    return int(found[:, : found.shape[1] // 2].sum()), int(found[:, found.shape[1] // 2 :].sum())


def centre(picture: NDArray[np.uint8], colour: str) -> NDArray[np.float64]:
    """Mean (row, column) of the colour, 0..1 of the picture."""
    return np.argwhere(places(picture, colour)).mean(axis=0) / picture.shape[:2]


POINT = "#60a6cf"  # the points are translucent


def test_dice_by_area_shows_every_frame() -> None:
    rng = np.random.default_rng(0)
    area, dice = rng.uniform(0, 0.4, 60), rng.uniform(0.5, 1, 60)
    area[:5] = 0  # no polyp; the axis is logarithmic
    assert places(decode(charts.dice_by_area(area, dice)), POINT).sum() > 300
    small, large = (
        centre(decode(charts.dice_by_area([0.001, 0.9, value], [0.1, 0.1, 0.9]))[:180], POINT) for value in (0.01, 0.5)
    )
    assert large[1] > small[1] + 0.2  # the point stands further to the right


def test_dice_histogram_has_a_bar_where_frames_are() -> None:
    few, many = (places(decode(charts.dice_histogram([value])), COLOURS[0]).sum() for value in (0.2, 0.9))
    assert few > 500 and many > 500  # one bar each
    low, high = (centre(decode(charts.dice_histogram([value] * 9)), COLOURS[0]) for value in (0.2, 0.9))
    assert high[1] > low[1] + 0.2  # the bar stands further to the right


@pytest.mark.parametrize(("area", "dice"), [([0.0], [1.0]), ([0.0, 0.0], [0.0, 1.0]), ([0.3], [0.0])])
def test_dice_by_area_of_unusual_data(area: list[float], dice: list[float]) -> None:
    assert places(decode(charts.dice_by_area(area, dice)), POINT).sum() > 15
    assert places(decode(charts.dice_histogram(dice)), COLOURS[0]).sum() > 500


def test_reliability_lies_where_the_bins_lie() -> None:
    def bins(shift: float) -> list[dict[str, float]]:
        return [{"confidence": p, "frequency": float(np.clip(p + shift, 0, 1))} for p in (0.1, 0.3, 0.5, 0.7, 0.9)]

    under, over = (decode(charts.reliability(bins(shift))) for shift in (0.1, -0.1))
    assert places(under, COLOURS[0]).sum() > 300
    assert centre(under, COLOURS[0])[0] < centre(over, COLOURS[0])[0] - 0.05  # higher up
    single = decode(charts.reliability([{"confidence": 0.5, "frequency": 0.5}]))
    assert 10 < places(single, COLOURS[0]).sum() < 300


def test_froc_draws_a_line_for_each_criterion() -> None:
    curves = {
        "any": {"sensitivity": [0.2, 0.6, 0.9], "false_regions_per_frame": [0.0, 0.1, 0.4]},
        "0.5": {"sensitivity": [0.1, 0.3, 0.5], "false_regions_per_frame": [0.0, 0.2, 0.6]},
    }
    picture = decode(charts.froc(curves))
    assert places(picture, COLOURS[0]).sum() > 200 and places(picture, COLOURS[1]).sum() > 200
    assert centre(picture, COLOURS[0])[0] < centre(picture, COLOURS[1])[0]  # more polyps found
    nothing: dict[str, Any] = {"0.3": {"sensitivity": [], "false_regions_per_frame": []}}
    assert decode(charts.froc(nothing)).std() > 1  # nothing predicted: axes and legend


def test_roc_of_a_better_model_lies_higher() -> None:
    alarms = [0.0, 0.1, 0.5, 1.0]
    good, poor = (
        decode(charts.roc({"false_alarms": alarms, "sensitivity": values}, 0.9))
        for values in ([0.5, 0.9, 1.0, 1.0], [0.0, 0.2, 0.6, 1.0])
    )
    assert centre(good, COLOURS[0])[0] < centre(poor, COLOURS[0])[0] - 0.05


def test_robustness_draws_every_corruption_from_the_same_clean_value() -> None:
    names = [f"corruption {number}" for number in range(8)]
    curves = {name: list(np.linspace(0.85, 0.8 - 0.1 * number, 5)) for number, name in enumerate(names)}
    picture = decode(charts.robustness(curves, 0.9))
    for colour in COLOURS:
        assert places(picture, colour).sum() > 150, colour
    heights = [centre(picture[:, : picture.shape[1] * 6 // 10], colour)[0] for colour in COLOURS[:6]]
    assert heights == sorted(heights)  # what falls more lies lower
    one = decode(charts.robustness({"blur": [0.5] * 5}, 0.5))
    rows = np.flatnonzero(places(one[:, : one.shape[1] // 2], COLOURS[0]).any(axis=1))
    assert np.ptp(rows) < 20  # severity 0 is the clean value: a level line


def test_colours_are_told_apart() -> None:
    values = np.array([to_rgb(colour) for colour in COLOURS])
    distances = np.abs(values[:, None] - values[None]).max(axis=-1) + np.eye(len(values))
    assert len(COLOURS) == 8 and distances.min() > 0.2


def spread(rows: dict[str, dict[str, tuple[float, float, float]]]) -> int:
    """Columns from the first to the last pixel of the first series."""
    return int(np.ptp(np.argwhere(places(decode(charts.differences(rows, "")), COLOURS[0]))[:, 1]))


def test_differences_lie_left_and_right_of_none() -> None:
    rows = {
        "worse": {"here": (-0.2, -0.3, -0.1), "there": (-0.25, -0.28, -0.22)},
        "better": {"here": (0.2, 0.1, 0.3), "there": (0.25, 0.22, 0.28)},
        "better there": {"there": (0.2, 0.18, 0.22)},
    }
    picture = decode(charts.differences(rows, "difference of Dice"))
    left, right = halves(picture[50:], COLOURS[0])  # below the legend
    assert left > 50 and 0.5 < left / right < 2
    left, right = halves(picture[50:], COLOURS[1])
    assert right > 1.5 * left > 50
    wide, narrow = (
        spread({"one": {"a": values}, "two": {"b": (0, -1, 1)}}) for values in ((0.1, -0.8, 0.9), (0.1, 0, 0.2))
    )
    assert wide > narrow > 0


def test_differences_of_one_row() -> None:
    assert places(decode(charts.differences({"one": {"a": (0.0, 0.0, 0.0)}}, "")), COLOURS[0]).any()
