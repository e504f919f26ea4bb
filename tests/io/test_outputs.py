"""What is written for a frame and for a run, against readings and rasterisations of our own."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from polypseg.errors import PolypsegError
from polypseg.io import outputs
from polypseg.io.outputs import (
    CSV_COLUMNS,
    OUTPUTS,
    coco,
    coco_segmentation,
    frame_files,
    frame_record,
    geojson,
    outlines,
    with_shapes,
    write_frame,
    write_run,
)
from polypseg.io.pictures import read_mask
from polypseg.segmentation import Segmentation

Mask = NDArray[np.bool_]


def drawing(*rows: str) -> Mask:
    return np.array([[character == "#" for character in row] for row in rows])


def prediction(mask: Mask) -> Segmentation:
    return Segmentation(mask, np.where(mask, np.float32(0.8), np.float32(0.1)), 0.5)


def filled(rings: list[list[list[int]]], height: int, width: int) -> Mask:
    """Even-odd filling: a pixel's centre is inside where an odd number of edges lies to its left."""
    crossings = np.zeros((height, width + 1), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            assert (x0 == x1) != (y0 == y1), "an edge runs along pixels and has a length"
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return crossings.cumsum(1)[:, :width] % 2 == 1


def unpacked(segmentation: Any, height: int, width: int) -> Mask:
    """A COCO segmentation as pixels: polygons filled, or runs down the columns beginning outside."""
    if isinstance(segmentation, dict):
        assert segmentation["size"] == [height, width]
        values = np.arange(len(segmentation["counts"])) % 2 == 1
        return np.repeat(values, segmentation["counts"]).reshape(width, height).T
    pixels = np.zeros((height, width), bool)
    for flat in segmentation:
        assert len(flat) >= 8, "four corners at least, as COCO's readers demand"
        pixels |= filled([np.reshape(flat, (-1, 2)).tolist()], height, width)
    return pixels


def random_masks() -> list[Mask]:
    rng = np.random.default_rng(5)
    return [rng.random(rng.integers(1, 14, 2)) < rng.choice([0.3, 0.5, 0.7, 0.9, 1.0]) for _ in range(200)]


SHAPES = {
    "one pixel": drawing("...", ".#.", "..."),
    "one pixel alone": drawing("#"),
    "all of the frame": drawing("####", "####"),
    "a hole": drawing("####", "#..#", "####"),
    "a hole that touches the outside at a corner": drawing(".###", "#..#", "####"),
    "two holes that touch at a corner": drawing("#####", "#.#.#", "##.##", "#####"),
    "two parts that touch at a corner": drawing("##..", "##..", "..##"),
    "an island in a hole": drawing("#####", "#...#", "#.#.#", "#...#", "#####"),
    "at every edge": drawing("..#..", "#####", "..#.."),
}


# ---- shapes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_outlines_filled_give_the_region_again(name: str) -> None:
    mask = SHAPES[name]
    parts = [filled(rings, *mask.shape) for rings in outlines(mask)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), mask)  # none overlaps another


def test_outlines_of_any_region_are_exact_and_have_no_needless_corner() -> None:
    for mask in random_masks():
        polygons = outlines(mask, left=3, top=2)
        shifted = np.pad(mask, ((2, 0), (3, 0)))
        parts = [filled(rings, *shifted.shape) for rings in polygons]
        np.testing.assert_array_equal(np.sum(parts, axis=0, initial=0), shifted)
        count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
        assert len(polygons) == count - 1
        for rings in polygons:
            for ring in rings:  # edges along x and along y take turns
                vertical = [a[0] == b[0] for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)]
                assert all(one != two for one, two in zip(vertical, [*vertical[1:], vertical[0]], strict=True))


def test_outlines_look_at_each_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.indices((60, 60)).sum(0) % 2 == 0  # a chessboard: 1800 parts
    seen = 0
    find = cv2.findContours

    def counted(pixels: Any, *others: Any) -> Any:
        nonlocal seen
        seen += pixels.size
        return find(pixels, *others)

    monkeypatch.setattr(cv2, "findContours", counted)
    assert len(outlines(mask)) == 1800
    assert seen == 4 * 1800  # of each pixel 2×2, and nothing around it


@pytest.mark.parametrize("name", SHAPES)
def test_coco_shapes_are_the_mask(name: str) -> None:
    mask = SHAPES[name]
    found = prediction(mask)
    shapes = [unpacked(coco_segmentation(found, polyp), *mask.shape) for polyp in found.polyps]
    np.testing.assert_array_equal(np.sum(shapes, axis=0), mask)
    assert [shape.sum() for shape in shapes] == [polyp.area for polyp in found.polyps]


def test_coco_shapes_of_any_mask_are_the_mask() -> None:
    kinds = set()
    for mask in random_masks():
        found = prediction(mask)
        shapes = [coco_segmentation(found, polyp) for polyp in found.polyps]
        kinds |= {type(shape) for shape in shapes}
        pixels = [unpacked(shape, *mask.shape) for shape in shapes]
        np.testing.assert_array_equal(np.sum(pixels, axis=0, initial=0), mask)
    assert kinds == {list, dict}  # runs only where a polygon cannot say it


def test_only_holes_need_runs() -> None:
    kinds = {name: type(coco_segmentation(found := prediction(mask), found.polyps[0])) for name, mask in SHAPES.items()}
    assert [name for name, kind in kinds.items() if kind is dict] == [name for name in SHAPES if "hole" in name]


def test_geojson_holds_closed_rings_of_the_right_area() -> None:
    def signed(ring: list[list[int]]) -> float:
        x, y = np.array(ring, float).T
        return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)

    for mask in [*SHAPES.values(), *random_masks()]:
        found = prediction(mask)
        value = json.loads(json.dumps(geojson(found)))
        assert value["type"] == "FeatureCollection"
        for feature, polyp in zip(value["features"], found.polyps, strict=True):
            coordinates = feature["geometry"]["coordinates"]
            polygons = [coordinates] if feature["geometry"]["type"] == "Polygon" else coordinates
            assert (len(polygons) == 1) == (feature["geometry"]["type"] == "Polygon")
            area = 0.0
            for outer, *holes in polygons:
                assert all(ring[0] == ring[-1] for ring in (outer, *holes))
                assert all(signed(outer) * signed(hole) < 0 for hole in holes)  # run the other way round
                area += abs(signed(outer)) - sum(abs(signed(hole)) for hole in holes)
            assert area == polyp.area == feature["properties"]["area"]
            assert feature["properties"]["classification"] == {"name": "polyp"}


# ---- records --------------------------------------------------------------------------------------------


def test_a_record_is_plain_and_holds_the_polyps_largest_first() -> None:
    mask = drawing("#...", "...#", "..##")
    record = frame_record(prediction(mask), source="a.png", model="abc", index=3, time=0.125)
    assert json.loads(json.dumps(record)) == record
    assert {key: record[key] for key in record if key != "polyps"} == {
        "source": "a.png", "frame": 3, "time": 0.125, "width": 4, "height": 3, "threshold": 0.5, "model": "abc",
    }  # fmt: skip
    assert [(polyp["area"], polyp["box"]) for polyp in record["polyps"]] == [(3, [2, 1, 4, 3]), (1, [0, 0, 1, 1])]
    assert record["polyps"][0]["confidence"] == pytest.approx(0.8)
    assert frame_record(prediction(mask & False), source="a.png", model="abc")["polyps"] == []


# ---- files ----------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 40, 60
FRAME = (
    np.random.default_rng(1).integers(60, 200, (HEIGHT // 8, WIDTH // 4, 3), dtype=np.uint8).repeat(8, 0).repeat(4, 1)
)
PROBABILITY = cv2.GaussianBlur(np.random.default_rng(2).random((HEIGHT, WIDTH), np.float32), (0, 0), 4)
PROBABILITY = (PROBABILITY - PROBABILITY.min()) / np.ptp(PROBABILITY)
FOUND = Segmentation.from_probability(PROBABILITY, 0.55)


def write(folder: Path, stem: str = "frame", save: Any = OUTPUTS) -> dict[str, Any]:
    record = with_shapes(frame_record(FOUND, source=f"{stem}.jpg", model="abc"), FOUND)
    write_frame(folder, stem, FRAME, FOUND, record, save)
    return record


def test_every_output_of_a_frame_says_the_same(tmp_path: Path) -> None:
    record = write(tmp_path)
    assert len(FOUND.polyps) > 1
    assert {file.name for file in tmp_path.iterdir()} == {
        "frame.png", "frame.probability.png", "frame.overlay.jpg", "frame.geojson", "frame.json",
    }  # fmt: skip
    with Image.open(tmp_path / "frame.png") as mask:
        assert mask.mode == "L" and set(np.unique(np.asarray(mask))) == {0, 255}
    np.testing.assert_array_equal(read_mask(tmp_path / "frame.png"), FOUND.mask)
    levels = cv2.imread(str(tmp_path / "frame.probability.png"), cv2.IMREAD_UNCHANGED)
    assert levels is not None and levels.dtype == np.uint16 and levels.max() == 65535
    assert np.abs(levels / 65535 - PROBABILITY).max() <= 0.5 / 65535 + 1e-7
    with Image.open(tmp_path / "frame.overlay.jpg") as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    boxes = np.zeros((HEIGHT, WIDTH), np.uint8)
    for polyp in FOUND.polyps:
        boxes[polyp.box[1] : polyp.box[3] + 1, polyp.box[0] : polyp.box[2] + 1] = 1
    outside = cv2.dilate(boxes, np.ones((19, 19))) == 0  # JPEG smears over blocks of 16 pixels
    assert outside.any() and np.abs(drawn - FRAME)[outside].mean() < 6
    inside = cv2.erode(FOUND.mask.astype(np.uint8), np.ones((5, 5))) > 0
    assert (drawn - FRAME)[inside].mean(0)[1] > 10  # yellow is brighter in green and darker in blue
    assert (drawn - FRAME)[inside].mean(0)[2] < -10
    assert json.loads((tmp_path / "frame.json").read_text(encoding="utf-8")) == record
    assert json.loads((tmp_path / "frame.geojson").read_text(encoding="utf-8")) == geojson(FOUND)


@pytest.mark.parametrize("output", OUTPUTS)
def test_only_what_is_chosen_is_written(output: outputs.Output, tmp_path: Path) -> None:
    write(tmp_path, save=[output])
    expected = frame_files(tmp_path, "frame", [output])
    assert list(tmp_path.iterdir()) == expected
    assert len(expected) == (output not in ("coco", "csv"))


def test_the_json_comes_last_so_that_it_vouches_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = os.replace

    def watched(source: str, target: Path) -> None:
        order.append(Path(target).suffix)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write(tmp_path)
    assert len(order) == 5 and order[-1] == ".json"


@pytest.mark.parametrize("output", ["mask", "probability", "overlay", "contours", "json"])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    output: outputs.Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PolypsegError, match="the disk is full") as error:
        write(tmp_path, save=[output])
    assert str(frame_files(tmp_path, "frame", [output])[0]) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_too_wide_for_jpeg_is_told(tmp_path: Path) -> None:
    wide = Segmentation.from_probability(np.zeros((1, 70_000), np.float32), 0.5)
    with pytest.raises(PolypsegError, match=r"wide\.overlay\.jpg: 70000×1 pixels") as error:
        write_frame(tmp_path, "wide", np.zeros((1, 70_000, 3), np.uint8), wide, {}, ["overlay"])
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def records() -> list[dict[str, Any]]:
    masks = [drawing("##..", "##.#"), drawing("....", "...."), drawing("###", "#.#", "###")]
    return [
        with_shapes(frame_record(prediction(mask), source=f"{number}.png", model="abc"), prediction(mask))
        for number, mask in enumerate(masks)
    ]


def test_coco_of_a_run_is_whole_and_consistent(tmp_path: Path) -> None:
    write_run(tmp_path, records(), ["coco", "mask"])
    assert [file.name for file in tmp_path.iterdir()] == ["coco.json"]
    value = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
    assert value["categories"] == [{"id": 1, "name": "polyp", "supercategory": ""}]
    assert [(image["id"], image["file_name"], image["width"], image["height"]) for image in value["images"]] == [
        (1, "0.png", 4, 2), (2, "1.png", 4, 2), (3, "2.png", 3, 3),
    ]  # fmt: skip
    assert [one["id"] for one in value["annotations"]] == [1, 2, 3]
    assert [one["image_id"] for one in value["annotations"]] == [1, 1, 3]
    for one in value["annotations"]:
        image = value["images"][one["image_id"] - 1]
        pixels = unpacked(one["segmentation"], image["height"], image["width"])
        ys, xs = np.nonzero(pixels)
        assert one["area"] == pixels.sum()
        assert one["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert one["category_id"] == 1 and one["iscrowd"] == 0 and one["score"] == pytest.approx(0.8)
    assert coco([])["annotations"] == []


def test_a_name_is_no_formula_in_the_csv(tmp_path: Path) -> None:
    write_run(tmp_path, [{**records()[0], "source": "=cmd|x.png"}], ["csv"])
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert {row["source"] for row in csv.DictReader(file)} == {"'=cmd|x.png"}


def test_the_csv_has_a_row_a_polyp_and_one_for_a_frame_without(tmp_path: Path) -> None:
    write_run(tmp_path, records(), ["csv"])
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        list(CSV_COLUMNS),
        ["0.png", "", "4", "2", "2", "1", "0", "0", "2", "2", "4", "0.8"],
        ["0.png", "", "4", "2", "2", "2", "3", "1", "4", "2", "1", "0.8"],
        ["1.png", "", "4", "2", "0", "", "", "", "", "", "", ""],
        ["2.png", "", "3", "3", "1", "1", "0", "0", "3", "3", "8", "0.8"],
    ]
