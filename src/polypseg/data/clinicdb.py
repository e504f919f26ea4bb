"""CVC-ClinicDB (Bernal et al., CMIG 2015): 612 frames of 29 sequences, which become the groups."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

from polypseg.data.folder import IMAGE_SUFFIXES, Problem, pair

NAME = "cvc-clinicdb"
FRAMES = 612
# The first frame number of each sequence; a sequence ends where the next one starts.
SEQUENCE_STARTS = (
    1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343, 364, 384, 409, 429, 448,
    467, 479, 504, 529, 547, 572, 592,
)  # fmt: skip
# (frames, masks): as it is usually copied, and as it is published.
_LAYOUTS = (("images", "masks"), ("Original", "Ground Truth"))


def recognise(path: Path) -> bool:
    """Whether every frame is called by a number of 1..612, and all are there or the folder says ClinicDB."""
    images = _folders(path)[0]
    if not images.is_dir():
        return False
    stems = [file.stem for file in images.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    numbered = bool(stems) and all(stem.isdecimal() and 1 <= int(stem) <= FRAMES for stem in stems)
    return numbered and (len(stems) == FRAMES or "clinic" in path.resolve().name.lower())


def sequence(frame_id: str) -> int:
    """The sequence 1..29 of a frame's number."""
    return bisect.bisect_right(SEQUENCE_STARTS, int(frame_id))


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows with ``group`` = ``cvc-clinicdb/sequence-NN``."""
    found = pair(*_folders(path), NAME, problems)
    for row in found:
        row["group"] = f"{NAME}/sequence-{sequence(row['frame_id']):02d}"
    return found


def _folders(path: Path) -> tuple[Path, Path]:
    images, masks = next((layout for layout in _LAYOUTS if (path / layout[0]).is_dir()), _LAYOUTS[0])
    return path / images, path / masks
