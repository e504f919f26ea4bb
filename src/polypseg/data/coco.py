"""COCO: ``images/`` and one JSON with an outline a polyp, as CVAT, Label Studio, Roboflow and polypseg write it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from polypseg.data.folder import Problem, dataset_name, labelled
from polypseg.errors import PolypsegError
from polypseg.io.label_files import read_coco

NAMES = ("annotations.json", "coco.json", "_annotations.coco.json")


def recognise(path: Path) -> bool:
    """Whether the folder contains ``images/``, no ``masks/``, and a file of annotations."""
    return (path / "images").is_dir() and not (path / "masks").is_dir() and bool(_files(path))


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows in natural order of stems; the masks lie in the JSON, which names every frame.

    Raises:
        PolypsegError: the JSON cannot be read, or there are several.
    """
    files = _files(path)
    if len(files) > 1:
        raise PolypsegError(f"{path}: contains {files[0].name} and {files[1].name}; leave the one that is meant")
    coco = read_coco(files[0])
    truths = {}
    for key, image in coco.images.items():
        stem = PurePosixPath(image.file_name.replace("\\", "/")).stem
        truths[stem] = (files[0], f"coco:{key}", (image.width, image.height), f"{files[0]}: {image.file_name}")
    return labelled(path / "images", truths, dataset_name(path), problems)


def _files(path: Path) -> list[Path]:
    found = [path / name for name in NAMES if (path / name).is_file()]
    return found or sorted((path / "annotations").glob("*.json"))
