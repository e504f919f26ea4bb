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


def dice_and_area(area: ArrayLike, dice: ArrayLike) -> bytes:
    """Dice of each frame over its polyp area (both 0..1 arrays of one length), with the histogram of Dice beside."""
    figure, (scatter, histogram) = _figure(2, (8.4, 3.1))
    scatter.scatter(np.maximum(100 * np.asarray(area), 0.05), dice, s=12, alpha=0.6, color=COLOURS[0], linewidths=0)
    scatter.set(xscale="log", xlabel="polyp area, % of the frame", ylabel="Dice", ylim=(-0.03, 1.03))
    histogram.hist(np.asarray(dice), bins=np.linspace(0, 1, 21), color=COLOURS[0])
    histogram.set(xlabel="Dice", ylabel="frames", xlim=(0, 1))
    return _png(figure)


def reliability(bins: Sequence[Mapping[str, float]]) -> bytes:
    """Share of polyp pixels over mean probability in each bin; on the diagonal a probability means what it says."""
    figure, (axis,) = _figure(1, (4.2, 3.4))
    axis.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    axis.plot([one["confidence"] for one in bins], [one["frequency"] for one in bins], "o-", color=COLOURS[0])
    axis.set(xlabel="predicted probability", ylabel="share of polyp pixels", xlim=(0, 1), ylim=(0, 1))
    return _png(figure)


def free_response(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Share of polyps found over false alarms a frame, for each IoU threshold."""
    figure, (axis,) = _figure(1, (4.2, 3.4))
    for (threshold, curve), colour in zip(curves.items(), COLOURS, strict=False):
        steps = {"color": colour, "where": "post", "label": f"IoU ≥ {threshold}"}
        axis.step([0, *curve["false_positives_per_frame"]], [0, *curve["sensitivity"]], **steps)
    axis.set(xlabel="false positives a frame", ylabel="polyps found", ylim=(0, 1.02))
    axis.set_xlim(left=0)
    axis.legend(frameon=False, loc="lower right")
    return _png(figure)


def robustness(curves: Mapping[str, Sequence[float]], clean: float) -> bytes:
    """Mean Dice over the severity 0 (clean) to 5 of each corruption."""
    figure, (axis,) = _figure(1, (6.4, 3.6))
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        axis.plot(range(len(values) + 1), [clean, *values], "o-", markersize=3, color=colour, label=name)
    axis.set(xlabel="severity", ylabel="mean Dice", ylim=(0, 1))
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def _figure(count: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, count)))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
