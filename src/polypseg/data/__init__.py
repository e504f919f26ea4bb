"""Data sets: reading, downloading, auditing, splitting, drawing, and feeding them to training.

``read(folder)`` recognises a data set by what lies in its folder. To add one, write a file with
``recognise(folder) -> bool`` and ``rows(folder, problems) -> list[dict]`` and name it in ``READERS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from polypseg.catalog import Catalog
from polypseg.data import clinicdb, coco, folder, kvasir, phantom, polypgen, yolo
from polypseg.data.folder import Problem
from polypseg.errors import PolypsegError, UsageError
from polypseg.io.masks import check_kind

# The first that recognises it reads it.
READERS: tuple[ModuleType, ...] = (phantom, kvasir, clinicdb, polypgen, coco, yolo, folder)

# What may stand before a folder: how its masks are read, or that it is (a part of) CVC-ClinicDB.
_PREFIX = re.compile(r"(binary|nonzero|colou?r|alpha|class:[\d,]+|clinicdb):(.+)", re.DOTALL)


def read(source: str | Path, problems: list[Problem] | None = None) -> Catalog:
    """Read the data set in a folder into a Catalog.

    Images and masks are paired by stem; sizes are read from the files' headers, nothing is decoded.

    Args:
        source: the data set's folder, which contains ``images/`` and ``masks/``. Before it may stand how its masks are
            read (``colour:DIR``; ``polypseg.io.masks`` lists the kinds), and ``clinicdb:`` for a part of CVC-ClinicDB.
        problems: where given, every pairing problem is appended to it and the frames without one are
            returned; otherwise the first problem is raised.

    Returns:
        A Catalog with empty ``split``.

    Raises:
        PolypsegError: the folder is missing or contains no frames; or a frame is missing its mask, a mask is missing
            its frame, one cannot be read, or their sizes differ.
    """
    path, kind, named = _parse(source)
    found: list[Problem] = [] if problems is None else problems
    try:
        if not path.is_dir():
            raise PolypsegError(f"{path}: is no folder; --data names the folder that contains images/ and masks/")
        reader = named or next((module for module in READERS if module.recognise(path)), None)
        rows = [] if reader is None else reader.rows(path, found)
    except OSError as error:  # a folder that may not be listed
        raise PolypsegError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    if reader is None:
        raise PolypsegError(
            f"{path}: contains no images/ folder; --data names the folder that contains images/ and masks/"
        )
    if problems is None and found:
        more = f" ({len(found) - 1} more; see `polypseg data check`)" if len(found) > 1 else ""
        raise PolypsegError(f"{found[0].message}{more}")
    if not rows and problems is None:
        raise PolypsegError(f"{path}: contains no frames; put them into images/ and their masks into masks/")
    return Catalog.from_rows({"mask_kind": kind, **row} for row in rows)


def _parse(source: str | Path) -> tuple[Path, str, ModuleType | None]:
    """The folder, how its masks are read, and its reader where it is named."""
    rest, kind, reader = str(source), "binary", None
    while not Path(rest).exists() and (prefix := _PREFIX.fullmatch(rest)):
        word, rest = prefix.groups()
        if word == "clinicdb":
            reader = clinicdb
        else:
            kind = check_kind(word)
    return Path(rest), kind, reader


def with_masks(sources: Iterable[str | Path], kind: str) -> list[str]:
    """The sources with how their masks are read before them; one that says so itself keeps it."""
    return [f"{check_kind(kind)}:{source}" if kind != "binary" else str(source) for source in sources]


def read_all(sources: Iterable[str | Path]) -> Catalog:
    """Read several data sets into one Catalog. Raises as ``read``, and where there are no sources."""
    catalogs = [read(source) for source in sources]
    if not catalogs:
        raise UsageError("--data: names no folder; it names the folder that contains images/ and masks/")
    return Catalog.concatenate(catalogs)
