"""What is written for a segmented frame, and for a whole run."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.bundle import INTENDED_USE
from polypseg.drawing import overlay
from polypseg.errors import PolypsegError
from polypseg.files import atomic_write, csv_cell
from polypseg.segmentation import Polyp, Segmentation

Output = Literal["mask", "probability", "overlay", "contours", "json", "coco", "csv"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
DEFAULT_OUTPUTS: tuple[Output, ...] = ("mask", "json")
# Of each frame, after its stem. The JSON is written last: where it lies, the others of its frame are whole.
FRAME_SUFFIXES: dict[Output, str] = {
    "mask": ".png",
    "probability": ".probability.png",
    "overlay": ".overlay.jpg",
    "contours": ".geojson",
    "json": ".json",
}
RUN_FILES: dict[Output, str] = {"coco": "coco.json", "csv": "predictions.csv"}
CSV_COLUMNS = (
    "source", "frame", "width", "height", "polyps", "polyp", "xmin", "ymin", "xmax", "ymax", "area", "confidence",
)  # fmt: skip

Ring = list[list[int]]  # (x, y) corners in pixels; closed, but the first is not repeated at its end


def frame_record(
    segmentation: Segmentation, *, source: str, model: str, index: int | None = None, time: float | None = None
) -> dict[str, Any]:
    """One frame's prediction in plain Python types, for JSON.

    Args:
        segmentation: the prediction.
        source: name of the file that the frame comes from, without its folder.
        model: hash of the bundle that made the prediction.
        index: number of the frame in its source, from 0; None for a picture.
        time: seconds from the source's start; None for a picture.

    Returns:
        ``source``, ``frame``, ``time``, ``width``, ``height`` (pixels), ``threshold`` (0..1), ``model`` and
        ``polyps``: what ``Polyp.to_dict`` gives, largest first.
    """
    height, width = segmentation.mask.shape
    return {
        "source": source,
        "frame": index,
        "time": time,
        "width": width,
        "height": height,
        "threshold": segmentation.threshold,
        "model": model,
        "polyps": [polyp.to_dict() for polyp in segmentation.polyps],
    }


def with_shapes(record: dict[str, Any], segmentation: Segmentation) -> dict[str, Any]:
    """The record with each polyp's exact shape as ``segmentation``, so that ``coco.json`` can be made from it alone."""
    shapes = [coco_segmentation(segmentation, polyp) for polyp in segmentation.polyps]
    polyps = [{**polyp, "segmentation": shape} for polyp, shape in zip(record["polyps"], shapes, strict=True)]
    return {**record, "polyps": polyps}


def frame_files(folder: Path, stem: str, save: Collection[Output]) -> list[Path]:
    """The files that ``write_frame`` writes."""
    return [folder / f"{stem}{suffix}" for output, suffix in FRAME_SUFFIXES.items() if output in save]


def write_frame(
    folder: Path,
    stem: str,
    frame: NDArray[np.uint8],
    segmentation: Segmentation,
    record: dict[str, Any],
    save: Collection[Output],
) -> None:
    """Write one frame's chosen outputs, each atomically, the JSON last.

    Args:
        folder: where to.
        stem: what the files' names begin with.
        frame: H×W×3 uint8 RGB.
        segmentation: its prediction, of the same size.
        record: what the JSON contains.
        save: the outputs; those of the whole run are passed over.

    Raises:
        PolypsegError: the disk is full, the folder cannot be written, or the frame is too large for JPEG.
    """
    paths = {output: folder / f"{stem}{suffix}" for output, suffix in FRAME_SUFFIXES.items() if output in save}
    if "mask" in paths:
        _write_picture(paths["mask"], mask_picture(paths["mask"], segmentation.mask))
    if "probability" in paths:
        levels = np.rint(segmentation.probability * np.float32(65535)).astype(np.uint16)
        _write_picture(paths["probability"], _picture(paths["probability"], levels))
    if "overlay" in paths:
        boxes = [polyp.box for polyp in segmentation.polyps]
        drawn = overlay(frame, segmentation.mask, boxes=boxes)[..., ::-1]  # BGR
        _write_picture(paths["overlay"], _picture(paths["overlay"], drawn))
    if "contours" in paths:
        _write_compact_json(paths["contours"], geojson(segmentation))
    if "json" in paths:
        _write_compact_json(paths["json"], record)


def write_run(folder: Path, records: Iterable[dict[str, Any]], save: Collection[Output]) -> None:
    """Write the chosen outputs of the whole run: ``coco.json`` and ``predictions.csv``.

    Args:
        folder: where to.
        records: of every frame, in order; for ``coco`` ``with_shapes``.
        save: the outputs; those of single frames are passed over.

    Raises:
        PolypsegError: the disk is full, or the folder cannot be written.
    """
    records = list(records)
    if "coco" in save:
        _write_compact_json(folder / RUN_FILES["coco"], coco(records))
    if "csv" in save:
        with atomic_write(folder / RUN_FILES["csv"], "w") as file:
            table = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(row for record in records for row in _csv_rows(record))


def outlines(region: NDArray[np.bool_], left: int = 0, top: int = 0) -> list[list[Ring]]:
    """The exact outlines of a region, along the edges of its pixels.

    Filling them by the even-odd rule, pixel (x, y) being the square from (x, y) to (x + 1, y + 1), gives the region
    again. They are valid polygons: parts that only touch at a corner are polygons of their own.

    Args:
        region: h×w bool.
        left: added to every x, pixels.
        top: added to every y, pixels.

    Returns:
        One polygon a 4-connected part: its outer ring, then those of its holes.
    """
    polygons = []
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    for label, (x, y, width, height, _) in enumerate(boxes[1:].tolist(), 1):
        part = labels[y : y + height, x : x + width] == label  # a noisy mask has thousands of parts
        # Each pixel as 2×2: then a contour of pixel centres, halved and rounded up, runs along the edges.
        doubled = part.astype(np.uint8).repeat(2, 0).repeat(2, 1)
        contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        rings = [_corners((contour.reshape(-1, 2) + 1) // 2 + (left + x, top + y)) for contour in contours]
        rings.sort(key=lambda ring: min(ring))  # the outer one begins leftmost
        polygons.append(rings)
    return polygons


def _corners(points: NDArray[Any]) -> Ring:
    """A closed ring without repeated points and without those in the middle of a straight edge."""
    points = points[(points != np.roll(points, 1, 0)).any(1)]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    ring: Ring = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]].tolist()
    return ring


def polyp_region(segmentation: Segmentation, polyp: Polyp) -> NDArray[np.bool_]:
    """Which pixels inside a polyp's box are its own: h×w bool, of the box's size."""
    left, top, right, bottom = polyp.box
    _, labels = cv2.connectedComponents(segmentation.mask[top:bottom, left:right].astype(np.uint8), connectivity=8)
    x, y = polyp.contour[0]
    return np.asarray(labels == labels[y - top, x - left])


def polyp_outlines(segmentation: Segmentation, polyp: Polyp) -> list[list[Ring]]:
    """``outlines`` of a polyp, in pixels of its frame."""
    left, top, _, _ = polyp.box
    return outlines(polyp_region(segmentation, polyp), left, top)


def coco_segmentation(segmentation: Segmentation, polyp: Polyp) -> list[list[int]] | dict[str, Any]:
    """``coco_shape`` of a polyp."""
    left, top, _, _ = polyp.box
    return coco_shape(polyp_region(segmentation, polyp), left, top, segmentation.mask.shape)


def coco_shape(
    region: NDArray[np.bool_], left: int, top: int, size: tuple[int, ...]
) -> list[list[int]] | dict[str, Any]:
    """A region as COCO has it: polygons ``[x, y, x, y, …]``; RLE where it has holes, which those cannot say.

    Args:
        region: h×w bool.
        left: where it begins in its frame, pixels.
        top: likewise.
        size: rows and columns of the frame.
    """
    polygons = outlines(region, left, top)
    if all(len(rings) == 1 for rings in polygons):
        return [[value for point in rings[0] for value in point] for rings in polygons]
    whole = np.zeros(size, bool)
    whole[top : top + region.shape[0], left : left + region.shape[1]] = region
    columns = whole.ravel(order="F")  # COCO runs down the columns, and begins with the pixels outside
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    runs = np.diff([0, *changes, columns.size]).tolist()
    return {"size": list(whole.shape), "counts": [0, *runs] if columns[0] else runs}


def geojson(segmentation: Segmentation) -> dict[str, Any]:
    """A frame's polyps as a GeoJSON FeatureCollection in pixels, with the properties that QuPath gives its objects."""
    features = []
    for polyp in segmentation.polyps:
        polygons = [[[*ring, ring[0]] for ring in rings] for rings in polyp_outlines(segmentation, polyp)]
        one = len(polygons) == 1
        features.append(
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon" if one else "MultiPolygon",
                    "coordinates": polygons[0] if one else polygons,
                },
                "properties": {
                    "classification": {"name": "polyp"},
                    "confidence": round(polyp.confidence, 6),
                    "area": polyp.area,
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def coco(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A whole run in COCO's format: one image a frame, one annotation a polyp, one category.

    Args:
        records: of every frame, in order, ``with_shapes``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        image = {"id": len(images) + 1, "file_name": record["source"], "width": record["width"]}
        image |= {"height": record["height"], "frame": record["frame"]}
        images.append(image)
        for polyp in record["polyps"]:
            left, top, right, bottom = polyp["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 1,
                    "segmentation": polyp["segmentation"],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": polyp["area"],
                    "iscrowd": 0,
                    "score": polyp["confidence"],
                }
            )
    return {
        "info": {"description": f"Predictions of polypseg. {INTENDED_USE}"},
        "licenses": [],
        "categories": [{"id": 1, "name": "polyp", "supercategory": ""}],
        "images": images,
        "annotations": annotations,
    }


def _csv_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a polyp; a frame without any has one row, so that every frame is in the table."""
    frame = {key: csv_cell(record[key]) for key in ("source", "frame", "width", "height")}
    frame["polyps"] = len(record["polyps"])
    return [
        {
            **frame,
            "polyp": number,
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), polyp["box"], strict=True)),
            "area": polyp["area"],
            "confidence": polyp["confidence"],
        }
        for number, polyp in enumerate(record["polyps"], 1)
    ] or [frame]


def mask_picture(path: str | Path, mask: NDArray[np.bool_]) -> bytes:
    """A mask as the PNG that ``path`` is to contain: 0 and 255."""
    return _picture(path, mask.astype(np.uint8) * np.uint8(255))


def _write_picture(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def _picture(path: str | Path, pixels: NDArray[Any]) -> bytes:
    """H×W or H×W×3 (BGR) pixels in the format that the name ends with."""
    try:
        done, content = cv2.imencode(Path(path).suffix, np.ascontiguousarray(pixels))
    except cv2.error:
        done = False
    if not done:
        height, width = pixels.shape[:2]
        raise PolypsegError(f"{path}: {width}×{height} pixels are too many for this format; leave it out of --save")
    return content.tobytes()


def _write_compact_json(path: Path, value: Any) -> None:
    """JSON in one line: indented, every number of an outline would take a line."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
