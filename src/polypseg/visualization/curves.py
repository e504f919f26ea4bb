"""The curves of a training run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polypseg.files import atomic_write
from polypseg.visualization.gallery import drawable


def draw_curves(metrics: pd.DataFrame, path: str | Path, title: str = "") -> None:
    """Loss and Dice of training and validation over the epochs, as PNG; the best epoch is marked.

    Args:
        metrics: columns ``epoch`` (0-based), ``train_loss``, ``val_loss``, ``train_dice``, ``val_dice``.
        path: the PNG.
        title: above the picture.

    Raises:
        PolypsegError: ``path`` cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = metrics["epoch"] + 1
    best = int(metrics["val_dice"].to_numpy().argmax())
    marker = "o" if len(metrics) < 15 else None
    for axis, name, label in zip(figure.subplots(1, 2), ("loss", "dice"), ("loss", "Dice"), strict=True):
        axis.plot(epochs, metrics[f"train_{name}"], color="#0072b2", marker=marker, markersize=4, label="training")
        axis.plot(epochs, metrics[f"val_{name}"], color="#d55e00", marker=marker, markersize=4, label="validation")
        axis.axvline(epochs.iloc[best], color="0.6", linestyle=":", label=f"best epoch ({epochs.iloc[best]})")
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    axis.set_title(f"best validation Dice {metrics['val_dice'].iloc[best]:.4f}", fontsize=10)
    figure.suptitle(drawable(title))
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
