"""The charts of a report, each as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito


def dice_by_area(area: ArrayLike, dice: ArrayLike) -> bytes:
    """Dice of each frame over its polyp area; both 0..1 arrays of one length."""
    from matplotlib.ticker import LogLocator

    figure, axis = _figure((4.4, 3.6))
    axis.scatter(np.maximum(100 * np.asarray(area), 0.05), dice, s=12, alpha=0.6, color=COLOURS[0], linewidths=0)
    axis.set(
        title="Dice by area of polyp", xscale="log", xlabel="polyp area, % of the frame", ylabel="Dice",
        ylim=(-0.03, 1.03),
    )  # fmt: skip
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    return _png(figure)


def dice_histogram(dice: ArrayLike) -> bytes:
    """How many frames have which Dice, 0..1."""
    figure, axis = _figure((4.4, 3.6))
    axis.hist(np.asarray(dice), bins=np.linspace(0, 1, 21), color=COLOURS[0])
    axis.set(title="Frames by Dice", xlabel="Dice", ylabel="frames", xlim=(0, 1))
    axis.yaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def reliability(bins: Sequence[Mapping[str, float]]) -> bytes:
    """Share of polyp pixels over mean probability in each bin; on the diagonal a probability means what it says."""
    figure, axis = _figure((4.4, 3.6))
    axis.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    axis.plot([one["confidence"] for one in bins], [one["frequency"] for one in bins], "o-", color=COLOURS[0])
    axis.set(
        title="Calibration of pixels", xlabel="predicted probability", ylabel="share of polyp pixels", xlim=(0, 1),
        ylim=(0, 1.02),
    )  # fmt: skip
    return _png(figure)


def froc(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Share of lesions found over false regions a frame, a line for each criterion."""
    figure, axis = _figure((4.4, 3.6))
    for (name, curve), colour, width in zip(curves.items(), COLOURS, (4, 2.5, 1.2), strict=False):  # equal ones show
        label = "any overlap" if name == "any" else f"IoU ≥ {name}"
        x, y = curve["false_regions_per_frame"], curve["sensitivity"]
        axis.step([0, *x], [0, *y], where="post", color=colour, linewidth=width, label=label)
        axis.plot(x[-1:], y[-1:], "o", color=colour, markersize=4)  # what lies beyond is not known
    axis.set(
        title="FROC of lesions", xlabel="false regions a frame (all frames)", ylabel="lesions found", ylim=(0, 1.02)
    )
    axis.set_xlim(left=0)
    axis.legend(frameon=False, loc="lower right")
    return _png(figure)


def roc(curve: Mapping[str, Sequence[float]], auc: float) -> bytes:
    """Share of the frames with a polyp over that of the polyp-free frames which reach a score."""
    figure, axis = _figure((4.4, 3.6))
    axis.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for specificity in (0.9, 0.95):
        axis.axvline(1 - specificity, color="0.7", linestyle=":", linewidth=1)
    axis.plot([0, *curve["false_alarms"]], [0, *curve["sensitivity"]], color=COLOURS[0], label=f"AUC {auc:.3f}")
    axis.set(
        title="ROC of frames", xlabel="polyp-free frames taken for one with a polyp",
        ylabel="frames with a polyp recognised", xlim=(-0.01, 1), ylim=(0, 1.02),
    )  # fmt: skip
    axis.legend(frameon=False, loc="lower right")
    return _png(figure)


def robustness(curves: Mapping[str, Sequence[float]], uncorrupted: float) -> bytes:
    """Mean Dice over the severity 0 (as it is) to 5 of each corruption."""
    figure, axis = _figure((6.4, 3.6))
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        axis.plot(range(len(values) + 1), [uncorrupted, *values], "o-", markersize=3, color=colour, label=name)
    axis.set(
        title="Dice on corrupted frames", xlabel="severity (0 is the frame as it is)", ylabel="mean Dice", ylim=(0, 1)
    )
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def speed(groups: Mapping[str, Mapping[str, tuple[float, float]]]) -> bytes:
    """Frames a second of each way of running in each group: ``(the network alone, from a frame to its polyps)``."""
    from matplotlib.figure import Figure

    sizes = [len(ways) for ways in groups.values()]
    figure = Figure(figsize=(8.4, 1.2 + 0.36 * sum(sizes) + 0.5 * len(sizes)), layout="constrained")
    rows = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=[size + 0.5 for size in sizes])
    for axis, (title, ways) in zip(rows[:, 0], groups.items(), strict=True):
        places = np.arange(len(ways))
        for share, label, colour in ((-0.2, "network alone", COLOURS[0]), (0.2, "frame to polyps", COLOURS[4])):
            values = [pair[share > 0] for pair in ways.values()]
            bars = axis.barh(places + share, values, 0.38, color=colour, label=label)
            axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        axis.set_yticks(places, list(ways), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.25)
    rows[-1, 0].set_xlabel("frames a second")
    figure.legend(*rows[0, 0].get_legend_handles_labels(), frameon=False, ncols=2, loc="outside upper right")
    return _png(figure)


def differences(rows: Mapping[str, Mapping[str, tuple[float, float, float]]], label: str) -> bytes:
    """A line for each row, and on it for each series ``(difference, low, high)``; what crosses 0 may be chance."""
    figure, axis = _figure((8.4, 1.4 + 0.34 * len(rows)))
    series = list(dict.fromkeys(name for found in rows.values() for name in found))
    for number, (name, colour) in enumerate(zip(series, COLOURS, strict=False)):
        places = [place for place, found in enumerate(rows.values()) if name in found]
        value, low, high = np.array([found[name] for found in rows.values() if name in found]).T
        height = np.array(places) + 0.24 * (number - (len(series) - 1) / 2)
        axis.errorbar(
            value,
            height,
            xerr=(value - low, high - value),
            fmt="o",
            markersize=4,
            linewidth=1,
            color=colour,
            label=name,
        )
    axis.axvline(0, color="0.4", linewidth=1)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, ncols=len(series), loc="outside upper right")
    return _png(figure)


def _figure(size: tuple[float, float]) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
