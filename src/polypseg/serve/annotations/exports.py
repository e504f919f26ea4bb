"""A project's frames as a data set: images and masks, COCO or YOLO, each of which ``polypseg.data`` reads."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from polypseg.bundle import INTENDED_USE
from polypseg.io.outputs import coco_shape, outlines
from polypseg.io.polygons import joined
from polypseg.names import DataFormat
from polypseg.serve.annotations import records
from polypseg.serve.annotations.store import Store
from polypseg.serve.corrections import png, stem_of

Put = Callable[[str, bytes | Path], None]  # a file's name within the data set, and its content


@dataclass(frozen=True)
class Exported:
    """A frame on its way out: its row, the name of its picture without ending, its mask."""

    row: dict[str, Any]
    stem: str
    mask: NDArray[np.bool_]

    def polyps(self, default: str) -> Iterator[tuple[NDArray[np.bool_], int, int, str, dict[str, str]]]:
        """Each region of the mask: its pixels within its box, left, top, class and attributes."""
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(self.mask.astype(np.uint8), connectivity=8)
        said = {int(numbers[one["at"][1], one["at"][0]]): one for one in json.loads(self.row["polyps"])}
        for number, (left, top, width, height, _) in enumerate(stats.tolist()):
            if number:
                one = said.get(number, {"class": default, "attributes": {}})
                region = numbers[top : top + height, left : left + width] == number
                yield region, left, top, one["class"], one["attributes"]


def export(store: Store, project: str, kind: DataFormat, states: Sequence[str], put: Put) -> int:
    """Hand out every file of a data set; how many frames it contains.

    Args:
        store: of the projects.
        project: which of them.
        kind: ``folder`` (images and masks), ``coco`` or ``yolo``.
        states: of the frames.
        put: takes each file.

    Raises:
        HTTPException: 404 there is no such project, 409 it has no such frame, or one without a mask yet.
    """
    store.project(project)
    places = ", ".join("?" * len(states))
    rows = store.database.all(
        f"SELECT * FROM frames WHERE project = ? AND deleted IS NULL AND state IN ({places}) ORDER BY sort, key",  # noqa: S608
        project, *states,
    )  # fmt: skip
    if not rows:
        raise HTTPException(409, f"no frame is {' or '.join(states)}; look at some first, or choose other states")
    write = {"folder": _folder, "coco": _coco, "yolo": _yolo}[kind]
    write(store, _frames(store, rows, put), put)
    put(records.FILE, records.written(rows, [_file_name(row) for row in rows]))
    return len(rows)


def write_zip(store: Store, project: str, kind: DataFormat, states: Sequence[str], file: Path | IO[bytes]) -> int:
    """``export`` into a ZIP file, below a folder of the project's name."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, content: bytes | Path) -> None:
            if isinstance(content, Path):
                archive.write(content, f"{project}/{name}")
            else:
                archive.writestr(f"{project}/{name}", content)

        return export(store, project, kind, states, put)


def _frames(store: Store, rows: Sequence[dict[str, Any]], put: Put) -> Iterator[Exported]:
    """Each frame, its picture handed out."""
    for row in rows:
        mask = store.mask(row["project"], row["hash"])
        if mask is None:
            raise HTTPException(409, f"{row['name']}: has no mask yet; wait for its prediction, or choose other states")
        stem = stem_of(row["name"])
        put(f"images/{_file_name(row)}", store.folder / row["project"] / "frames" / row["file"])
        yield Exported(row, stem, mask)


def _file_name(row: dict[str, Any]) -> str:
    return f"{stem_of(row['name'])}{Path(row['file']).suffix}"


def _folder(_: Store, frames: Iterator[Exported], put: Put) -> None:
    for frame in frames:
        put(f"masks/{frame.stem}.png", png(frame.mask.astype(np.uint8) * 255))


def _coco(store: Store, frames: Iterator[Exported], put: Put) -> None:
    classes = _Classes(store)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in frames:
        row = frame.row
        image = {"id": len(images) + 1, "file_name": _file_name(row), "width": row["width"], "height": row["height"]}
        images.append(image)
        for region, left, top, label, attributes in frame.polyps(store.labels.default):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": classes.number(label) + 1,
                    "segmentation": coco_shape(region, left, top, frame.mask.shape),
                    "bbox": [left, top, region.shape[1], region.shape[0]],
                    "area": int(region.sum()),
                    "iscrowd": 0,
                    "attributes": attributes,
                }
            )
    content = {
        "info": {"description": f"Annotations made with polypseg. {INTENDED_USE}"},
        "licenses": [],
        "categories": [
            {"id": number + 1, "name": name, "supercategory": "polyp"} for number, name in enumerate(classes.names)
        ],
        "images": images,
        "annotations": annotations,
    }
    put("annotations.json", json.dumps(content, ensure_ascii=False).encode())


def _yolo(store: Store, frames: Iterator[Exported], put: Put) -> None:
    classes = _Classes(store)
    for frame in frames:
        width, height = frame.row["width"], frame.row["height"]
        lines = []
        for region, left, top, label, _ in frame.polyps(store.labels.default):
            for rings in outlines(region, left, top):
                corners = " ".join(f"{x / width:.9g} {y / height:.9g}" for x, y in joined(rings))
                lines.append(f"{classes.number(label)} {corners}\n")
        put(f"labels/{frame.stem}.txt", "".join(lines).encode())
    names = dict(enumerate(classes.names))
    content = {"path": ".", "train": "images", "val": "images", "names": names, "polyps": list(names)}
    put("data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


class _Classes:
    """The numbers of classes: as the labels list them, then those that only older versions have."""

    def __init__(self, store: Store) -> None:
        self.names = [one.name for one in store.labels.classes]

    def number(self, name: str) -> int:
        """That of a class, from 0."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)
