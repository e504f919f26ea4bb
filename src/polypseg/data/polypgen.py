"""PolypGen (Ali et al., Scientific Data 2023): single frames of six centres, with and without a polyp.

Read as published (``data_C1/images_C1``, ``data_C1/masks_C1``, …) and as one folder ``images/`` + ``masks/`` whose
stems begin with the centre; a frame gets the same name either way. The frames of ``sequenceData`` are not read.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from polypseg.data.folder import Problem, pair
from polypseg.io.kinds import IMAGE_SUFFIXES

NAME = "polypgen"
CENTRES = ("C1", "C2", "C3", "C4", "C5", "C6")
# Paris (C1) names the examination and Oslo (C4) the video; the others number all frames of all examinations
# in turn, a few of each, so that neighbours are kept together.
BLOCK = 25  # numbers
_PUBLISHED = re.compile(r"C[1-6]_(?:.*endocv2021.*|(?:\d+OLCV1_)?\d+[HS]\d+)", re.IGNORECASE)
_NAMED = re.compile(r"C1_(\d+OLCV1)_|C4_(\d+)_", re.IGNORECASE)


def recognise(path: Path) -> bool:
    """Whether the published folders are there, or every stem begins with a centre and most are PolypGen's."""
    if _centres(path):
        return True
    if not (path / "images").is_dir():
        return False
    stems = [file.stem for file in (path / "images").iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    known = sum(bool(_PUBLISHED.fullmatch(stem)) for stem in stems)
    return 2 * known > len(stems) and all(re.match(r"C[1-6]_", stem) for stem in stems)


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows with ``centre`` C1..C6; ``group`` is the examination, the video or a block of numbers."""
    centres = _centres(path)
    if centres:
        found = []
        for centre in centres:
            folder = path / f"data_{centre}"
            images, masks = folder / f"images_{centre}", folder / f"masks_{centre}"
            found += pair(images, masks, NAME, problems, partial(_name, centre=centre))
    else:
        found = pair(path / "images", path / "masks", NAME, problems)
    for row in found:
        row["centre"] = row["frame_id"][:2]
        row["group"] = f"{NAME}/{group(row['frame_id'])}"
    return found


def group(frame_id: str) -> str:
    """The examination, video or block of 25 numbers that a frame belongs to, as ``C3_EndoCV2021_/100-124``."""
    named = _NAMED.match(frame_id)
    if named:
        return frame_id[:3] + (named[1] or named[2])
    numbered = re.fullmatch(r"(.*?)(\d+)\D*", frame_id)
    if numbered is None:
        return frame_id
    first = int(numbered[2]) // BLOCK * BLOCK
    return f"{numbered[1]}/{first}-{first + BLOCK - 1}"


def _centres(path: Path) -> list[str]:
    return [centre for centre in CENTRES if (path / f"data_{centre}" / f"images_{centre}").is_dir()]


def _name(stem: str, centre: str) -> str:
    stem = stem.rstrip("_")  # C3's frame 00489_ has the mask 00489_mask
    return stem if stem.startswith(f"{centre}_") else f"{centre}_{stem}"
