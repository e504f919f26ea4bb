"""The pictures of a run: its curves, and frames beside truth and errors."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polypseg.catalog import Catalog
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.lesions import shows_polyp
from polypseg.metrics.overlap import dice

EXAMPLES = "predictions.png"  # written last: a run that has it is complete


def draw_curves(segmenter: Segmenter, folder: Path) -> None:
    """Draw ``curves.png`` from ``metrics.csv``."""
    from polypseg.visualization.curves import draw_curves as draw

    draw(pd.read_csv(folder / "metrics.csv"), folder / "curves.png", title=segmenter.bundle.name)


def draw_examples(segmenter: Segmenter, catalog: Catalog, folder: Path) -> None:
    """Draw up to eight test frames, or of validation where there are none, beside truth and errors."""
    from polypseg.visualization.gallery import Panel, draw_predictions

    split = "test" if "test" in set(catalog.frames["split"]) else "val"
    frames, title = catalog.of_split(split), f"{segmenter.bundle.name}, {split} split"
    step = max(1, len(frames) // 8)  # spread over the split; not picked by how well they went
    panels = []
    for index in range(0, len(frames), step)[:8]:
        frame, truth = frames.frame(index), frames.mask(index)
        mask = segmenter.segment(frame).mask
        score = dice(mask, truth) if shows_polyp(truth) else None
        panels.append(Panel(frames.row(index).frame_id, frame, truth, mask, dice=score))
    draw_predictions(panels, folder / EXAMPLES, title=title)
