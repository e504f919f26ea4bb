"""Kvasir-SEG (Jha et al., MMM 2020): 1000 frames, JPEG masks and ``kavsir_bboxes.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from polypseg.data.folder import Problem, pair
from polypseg.errors import PolypsegError
from polypseg.files import read_json

NAME = "kvasir-seg"
BOXES = "kavsir_bboxes.json"  # spelt so by its publishers


def recognise(path: Path) -> bool:
    """Whether the folder contains the published file of boxes."""
    return (path / BOXES).is_file()


def read_boxes(file: Path) -> pd.DataFrame:
    """The published metadata as a table, in the file's order.

    Returns:
        Columns ``frame_id``, ``height``, ``width`` (pixels) and ``boxes`` (lists of ``[xmin, ymin, xmax,
        ymax]`` in pixels).

    Raises:
        PolypsegError: the file is no JSON or is missing an expected field.
    """
    try:
        return pd.DataFrame(
            [
                {
                    "frame_id": name,
                    "height": int(entry["height"]),
                    "width": int(entry["width"]),
                    "boxes": [[int(box[side]) for side in ("xmin", "ymin", "xmax", "ymax")] for box in entry["bbox"]],
                }
                for name, entry in read_json(file).items()
            ],
            columns=["frame_id", "height", "width", "boxes"],
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise PolypsegError(f"{file}: is missing an expected field ({error!r}); download it again") from error


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows in the JSON's order, boxes kept; frames that the JSON does not name follow."""
    boxes = read_boxes(path / BOXES)
    known = {row.frame_id: (order, row.boxes) for order, row in enumerate(boxes.itertuples())}
    if not (path / "images").is_dir():
        raise PolypsegError(f"{path / 'images'}: is missing; download the data set again")
    found = pair(path / "images", path / "masks", NAME, problems)
    present = {file.stem for file in (path / "images").iterdir()}
    for frame_id in boxes["frame_id"]:
        if frame_id not in present:
            message = f"{path / 'images' / frame_id}.jpg: is missing, but {BOXES} names it; download it again"
            problems.append(Problem("missing-frame", f"{path / 'images' / frame_id}.jpg", message))
    for row in found:
        row["boxes"] = known.get(row["frame_id"], (0, []))[1]
    return sorted(found, key=lambda row: known.get(row["frame_id"], (len(known), []))[0])
