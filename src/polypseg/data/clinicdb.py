"""CVC-ClinicDB (Bernal et al., CMIG 2015): 612 frames of 29 sequences, which become the groups."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

from polypseg.data.folder import Problem, pair
from polypseg.errors import PolypsegError
from polypseg.io.kinds import IMAGE_SUFFIXES
from polypseg.io.pictures import image_size

NAME = "cvc-clinicdb"
FRAMES = 612
SIZE = (384, 288)  # pixels, of every one
# The first frame number of each sequence; a sequence ends where the next one starts.
SEQUENCE_STARTS = (
    1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343, 364, 384, 409, 429, 448,
    467, 479, 504, 529, 547, 572, 592,
)  # fmt: skip
# (frames, masks): as it is usually copied, and as it is published.
_LAYOUTS = (("images", "masks"), ("Original", "Ground Truth"))


def recognise(path: Path) -> bool:
    """Whether all 612 frames are there, called by their numbers, and have the published size.

    A part of them looks like anybody's numbered frames; ``polypseg.data.read`` takes it as ``clinicdb:DIR``.
    """
    images = _folders(path)[0]
    if not images.is_dir():
        return False
    files = {file.stem: file for file in images.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES}
    if set(files) != {str(number) for number in range(1, FRAMES + 1)}:
        return False
    try:
        return all(image_size(files[str(number)]) == SIZE for number in (1, FRAMES // 2, FRAMES))
    except PolypsegError:
        return False


def sequence(frame_id: str) -> int:
    """The sequence 1..29 of a frame's number."""
    return bisect.bisect_right(SEQUENCE_STARTS, int(frame_id))


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows with ``group`` = ``cvc-clinicdb/sequence-NN``."""
    images, masks = _folders(path)
    if not images.is_dir():
        raise PolypsegError(f"{images}: is missing; clinicdb: names the folder that contains images/ and masks/")
    found = pair(images, masks, NAME, problems)
    for row in found:
        if not (row["frame_id"].isdecimal() and 1 <= int(row["frame_id"]) <= FRAMES):
            raise PolypsegError(f"{row['image_path']}: is no frame of CVC-ClinicDB, which are called 1 to {FRAMES}")
        row["group"] = f"{NAME}/sequence-{sequence(row['frame_id']):02d}"
    return found


def _folders(path: Path) -> tuple[Path, Path]:
    images, masks = next((layout for layout in _LAYOUTS if (path / layout[0]).is_dir()), _LAYOUTS[0])
    return path / images, path / masks
