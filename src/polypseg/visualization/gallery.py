"""Pictures of many frames: a data set's, a model's predictions, a contact sheet."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polypseg.drawing import HIT, PREDICTION, TRUTH, error_map, overlay
from polypseg.errors import PolypsegError
from polypseg.files import atomic_write
from polypseg.io.pictures import read_frame, read_mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polypseg.catalog import Catalog

CAPTION_POINTS = 9
CAPTION_CHARACTER = 0.08  # inches, of a character at that size


@dataclass(frozen=True)
class Panel:
    """One frame of a picture.

    Attributes:
        caption: shown above it.
        frame: H×W×3 uint8 RGB.
        truth: H×W bool, or None.
        prediction: H×W bool, or None.
        boxes: ``[xmin, ymin, xmax, ymax]`` in pixels.
        dice: Dice of the prediction, shown above its errors, 0..1, or None.
    """

    caption: str
    frame: NDArray[np.uint8]
    truth: NDArray[np.bool_] | None = None
    prediction: NDArray[np.bool_] | None = None
    boxes: Sequence[Sequence[int]] = field(default_factory=list)
    dice: float | None = None


def load_panel(caption: str, image_path: str, mask_path: str | None, mask_kind: str = "binary") -> Panel:
    """A Panel from files; one that cannot be read becomes a grey panel that says so in its caption."""
    try:
        frame = read_frame(image_path)
    except PolypsegError:
        return Panel(f"{caption} (unreadable)", np.full((240, 320, 3), 128, np.uint8))
    try:
        mask = None if mask_path is None else read_mask(mask_path, mask_kind)
    except PolypsegError:
        mask = None
    return Panel(caption, frame, mask if mask is not None and mask.shape == frame.shape[:2] else None)


def draw_frames(panels: Sequence[Panel], path: str | Path, title: str = "", pairs: int = 2) -> None:
    """Frames beside the overlay of their truth and boxes, ``pairs`` frames a row, as PNG.

    Raises:
        PolypsegError: ``path`` cannot be written.
    """
    rows = max(1, math.ceil(len(panels) / pairs))
    figure, axes = _grid(panels, rows, 2 * pairs, title)
    for axis, panel in zip(axes.flat[::2], panels, strict=False):
        _show(axis, panel.frame, panel.caption)
    for axis, panel in zip(axes.flat[1::2], panels, strict=False):
        if panel.truth is not None:
            caption = "mask and boxes" if panel.truth.any() else "no polyp"
            _show(axis, overlay(panel.frame, panel.truth, TRUTH, boxes=panel.boxes), caption)
    _save(figure, path)


def draw_some(catalog: Catalog, path: str | Path, count: int, seed: int = 0, title: str = "") -> Path:
    """A few frames of a Catalog beside their masks and boxes, as PNG.

    Args:
        catalog: frames with masks.
        path: the PNG.
        count: frames to draw.
        seed: decides which.
        title: names the frames.

    Raises:
        PolypsegError: a frame cannot be read, or ``path`` cannot be written.
    """
    chosen = sorted(map(int, np.random.default_rng(seed).permutation(len(catalog))[:count]))
    rows = [catalog.row(index) for index in chosen]
    panels = [
        Panel(f"{row.frame_id} ({row.width}×{row.height})", catalog.frame(index), catalog.mask(index), boxes=row.boxes)
        for index, row in zip(chosen, rows, strict=True)
    ]
    draw_frames(panels, path, title=f"{title}: {len(panels)} of {len(catalog)} frames")
    return Path(path)


def draw_predictions(panels: Sequence[Panel], path: str | Path, title: str = "", triples: int = 2) -> None:
    """Frame, truth and map of errors side by side with the Dice of each, ``triples`` frames a row, as PNG.

    Raises:
        PolypsegError: ``path`` cannot be written.
    """
    from matplotlib.patches import Patch

    rows = max(1, math.ceil(len(panels) / triples))
    figure, axes = _grid(panels, rows, 3 * triples, title)
    for position, panel in enumerate(panels):
        frame, truth, errors = axes.flat[3 * position : 3 * position + 3]
        _show(frame, panel.frame, panel.caption)
        if panel.truth is None:
            continue
        _show(truth, overlay(panel.frame, panel.truth, TRUTH), "truth" if panel.truth.any() else "truth: no polyp")
        if panel.prediction is not None:
            said = "false positive" if panel.prediction.any() else "no polyp marked"
            said = said if panel.dice is None else f"prediction, Dice {panel.dice:.3f}"
            _show(errors, error_map(panel.frame, panel.truth, panel.prediction), said)
    patches = [Patch(color=(red / 255, green / 255, blue / 255)) for red, green, blue in (HIT, TRUTH, PREDICTION)]
    figure.legend(patches, ["hit", "missed", "false"], ncols=3, loc="outside lower center", frameon=False)
    _save(figure, path)


def draw_contact_sheet(panels: Sequence[Panel], path: str | Path, title: str = "", columns: int = 6) -> None:
    """Small overlays with captions, ``columns`` a row, as PNG.

    Raises:
        PolypsegError: ``path`` cannot be written.
    """
    figure, axes = _grid(panels, max(1, math.ceil(len(panels) / columns)), columns, title, side=1.9)
    for axis, panel in zip(axes.flat, panels, strict=False):
        drawn = panel.frame if panel.truth is None else overlay(panel.frame, panel.truth, TRUTH, fill=0.0)
        _show(axis, drawn, panel.caption)
    _save(figure, path)


def _grid(
    panels: Sequence[Panel], rows: int, columns: int, title: str, side: float = 2.3
) -> tuple[Figure, NDArray[np.object_]]:
    """Axes whose cells have the shape of most frames; ``side`` is their width in inches."""
    from matplotlib.figure import Figure

    shape = float(np.median([panel.frame.shape[0] / panel.frame.shape[1] for panel in panels])) if panels else 1.0
    figure = Figure(figsize=(side * columns, (side * shape + 0.36) * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.xaxis.set_visible(False)
        axis.yaxis.set_visible(False)
    figure.suptitle(drawable(title), fontsize=13)
    return figure, axes


def _show(axis: Any, image: NDArray[np.uint8], caption: str) -> None:
    axis.imshow(image, interpolation="antialiased")
    width = axis.figure.get_size_inches()[0] / axis.get_gridspec().ncols  # inches
    lines = textwrap.wrap(drawable(caption), int(width / CAPTION_CHARACTER))
    # With its place given, no tick is measured for it.
    axis.set_title("\n".join(lines), fontsize=CAPTION_POINTS, y=1.0)


def drawable(text: str) -> str:
    """A text with ``□`` in place of what Matplotlib's own font has no glyph for, as of names in Chinese."""
    known = _glyphs()
    return "".join(letter if ord(letter) in known else "□" for letter in text)


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset((*get_font(findfont("DejaVu Sans")).get_charmap(), ord("\n")))


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110, pil_kwargs={"compress_level": 3})
