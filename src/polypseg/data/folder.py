"""Any ``images/`` + ``masks/`` folder, and the pairing by stem that every reader shares."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypseg.catalog import size_disagreement
from polypseg.errors import PolypsegError
from polypseg.files import natural_order
from polypseg.io.kinds import IMAGE_SUFFIXES
from polypseg.io.pictures import image_header


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one file.

    Attributes:
        kind: a short name for the audit, as ``missing-mask``.
        path: the file.
        message: the whole line, with the file's name.
    """

    kind: str
    path: str
    message: str


def recognise(path: Path) -> bool:
    """Whether the folder contains an ``images`` folder."""
    return (path / "images").is_dir()


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows of a folder with ``images/`` and ``masks/``, in natural order of stems."""
    return pair(path / "images", path / "masks", dataset_name(path), problems)


def dataset_name(path: Path) -> str:
    """The folder's name in lower case with hyphens, as ``my-clinic``."""
    name = path.resolve().name
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-") or "folder"


def pair(
    images: Path, masks: Path, dataset: str, problems: list[Problem], rename: Callable[[str], str] = str
) -> list[dict[str, Any]]:
    """Pair the frames in ``images`` with the masks in ``masks`` by stem.

    Where every mask has the same addition to its frame's stem, as ``<stem>_mask``, they are paired without it.
    Everything that keeps a frame from being used is appended to ``problems``: a file that is no image, two
    files of the same stem, a frame without mask, a mask without frame, an unreadable header, a difference in
    size or in EXIF orientation. Hidden files are passed over. Accents may be written in either Unicode form;
    stems are NFC.

    Args:
        images: the folder of the frames.
        masks: the folder of the masks.
        dataset: the data set's name.
        problems: where to append.
        rename: makes a frame's name of a file's stem.

    Returns:
        Rows for ``Catalog.from_rows`` of the frames that have no problem, in natural order.
    """
    frames = _by_stem(images, problems, rename)
    truths = _by_stem(masks, problems, rename) if masks.is_dir() else {}
    if frames and not masks.is_dir():
        problems.append(Problem("missing-mask", str(masks), f"{masks}: is missing; put the masks there"))
        return []
    addition = _addition(set(frames), set(truths))
    if addition and all(stem.endswith(addition) for stem in truths):
        truths = {stem.removesuffix(addition): file for stem, file in truths.items()}
    elif addition:
        odd = next(file for stem, file in truths.items() if not stem.endswith(addition))
        message = f"{masks}: some masks are named <stem>{addition}, but not {odd.name}; name all in one way"
        problems.append(Problem("mask-names", str(masks), message))
        return []
    for stem, file in truths.items():
        if stem not in frames:
            message = f"{file}: mask without a frame; add {images.name}/{stem}.* or remove it"
            problems.append(Problem("missing-frame", str(file), message))
    result = []
    for stem in sorted(frames, key=natural_order):
        file = frames[stem]
        if stem not in truths:
            message = f"{file}: frame without a mask; add {masks.name}/{stem}.* or remove it"
            problems.append(Problem("missing-mask", str(file), message))
            continue
        reading = file
        try:
            size, turn = image_header(reading)
            reading = truths[stem]
            mask_size, mask_turn = image_header(reading)
        except PolypsegError as error:
            problems.append(Problem("unreadable", str(reading), str(error)))
            continue
        if size != mask_size:
            message = size_disagreement(truths[stem], mask_size, size)
            problems.append(Problem("size", str(truths[stem]), message))
            continue
        if mask_turn not in (1, turn):
            message = (
                f"{truths[stem]}: mask has the EXIF orientation {mask_turn}, its frame {turn}; save it as the frame is "
                "seen, without one"
            )
            problems.append(Problem("turned-mask", str(truths[stem]), message))
            continue
        result.append(_row(stem, file, truths[stem], size, dataset))
    return result


Truth = tuple[Path, str, tuple[int, int] | None, str]


def labelled(images: Path, truths: Mapping[str, Truth], dataset: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """Pair the frames in ``images`` with what label files say of them.

    Args:
        images: the folder of the frames.
        truths: by stem the label file, its kind with the frame's size left open (``{}x{}``), the size that the file
            gives (width, height; None where it gives none), and how to call this part of it.
        dataset: the data set's name.
        problems: where to append.

    Returns:
        Rows as of ``pair``, each with its ``mask_kind``.
    """
    frames = _by_stem(images, problems, str)
    truths = {unicodedata.normalize("NFC", stem): truth for stem, truth in truths.items()}
    for stem, (*_, called) in truths.items():
        if stem not in frames:
            message = f"{called}: names a frame that is not in {images.name}/; add {images.name}/{stem}.* or remove it"
            problems.append(Problem("missing-frame", called, message))
    result = []
    for stem in sorted(frames, key=natural_order):
        file = frames[stem]
        if stem not in truths:
            message = f"{file}: frame without labels; label it (as polyp-free, where it is) or remove it"
            problems.append(Problem("missing-mask", str(file), message))
            continue
        labels, kind, told, called = truths[stem]
        try:
            size = image_header(file)[0]
            if told is not None and told != size:
                problems.append(Problem("size", called, size_disagreement(called, told, size)))
                continue
        except PolypsegError as error:
            problems.append(Problem("unreadable", str(file), str(error)))
            continue
        result.append({**_row(stem, file, labels, size, dataset), "mask_kind": kind.format(*size)})
    return result


def _row(stem: str, frame: Path, mask: Path, size: tuple[int, int], dataset: str) -> dict[str, Any]:
    return {
        "frame_id": stem,
        "image_path": str(frame.resolve()),
        "mask_path": str(mask.resolve()),
        "width": size[0],
        "height": size[1],
        "dataset": dataset,
        "group": f"{dataset}/{stem}",
    }


def _addition(frames: set[str], truths: set[str]) -> str:
    """What most masks whose stem is no frame's have behind a frame's stem, as ``_mask``; else an empty string."""
    lost = truths - frames
    found = Counter(
        stem[end:]
        for stem in lost
        for end in range(1, len(stem))
        if stem[end] in "_-. " and re.search("[a-z]", stem[end:], re.IGNORECASE) and stem[:end] in frames - truths
    )
    addition, count = found.most_common(1)[0] if found else ("", 0)
    return addition if 2 * count > len(lost) else ""


def _by_stem(directory: Path, problems: list[Problem], rename: Callable[[str], str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(directory.iterdir()):
        if file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini"):
            continue
        # macOS writes é as two characters and others as one: the same name to whoever reads it.
        stem = rename(unicodedata.normalize("NFC", file.stem))
        shown = os.fsencode(file).decode("utf-8", "backslashreplace")
        if shown != str(file):  # such a name can be neither printed nor written into a split
            message = f"{shown}: its name is not UTF-8; rename it"
            problems.append(Problem("not-an-image", shown, message))
        elif file.is_dir():
            message = f"{file}: is a folder, and folders in {directory.name}/ are not read; move it elsewhere"
            problems.append(Problem("not-an-image", str(file), message))
        elif file.suffix.lower() not in IMAGE_SUFFIXES:
            message = f"{file}: is not an image by its name; remove it ({', '.join(sorted(IMAGE_SUFFIXES))})"
            problems.append(Problem("not-an-image", str(file), message))
        elif stem in found:
            message = f"{file}: has the same stem as {found[stem].name}; remove one"
            problems.append(Problem("same-stem", str(file), message))
        else:
            found[stem] = file
    return found
