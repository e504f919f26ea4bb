"""YOLO: ``images/`` and ``labels/`` with a text a frame, an outline a line, and the classes in ``data.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polypseg.data.folder import Problem, dataset_name, labelled
from polypseg.io.label_files import YOLO_NAMES, yolo_classes


def recognise(path: Path) -> bool:
    """Whether the folder contains ``images/`` and ``labels/``, and no ``masks/``."""
    return (path / "images").is_dir() and (path / "labels").is_dir() and not (path / "masks").is_dir()


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows in natural order of stems; a frame without polyp has an empty text.

    Raises:
        PolypsegError: ``data.yaml`` cannot be read.
    """
    yolo_classes(path / YOLO_NAMES)
    texts = [file for file in sorted((path / "labels").glob("*.txt")) if not file.name.startswith(".")]
    truths = {file.stem: (file, "yolo:{}x{}", None, str(file)) for file in texts if file.name != "classes.txt"}
    return labelled(path / "images", truths, dataset_name(path), problems)
