"""Outlines of label files: filled as an independent implementation does, read from COCO and YOLO, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from polypseg.cli import main
from polypseg.data import read
from polypseg.errors import PolypsegError
from polypseg.io.label_files import outlined
from polypseg.io.outputs import coco_shape, outlines
from polypseg.io.polygons import filled, joined, runs_filled, runs_of_text

FRAMES = ("a", "b", "c")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-20, 120), st.integers(-20, 100)), min_size=3, max_size=9), st.booleans())
def test_a_polygon_is_filled_as_by_scikit_image(points: list[tuple[int, int]], shifted: bool) -> None:
    """Corners off the centres, by another distance in x than in y: no centre lies on an edge."""
    corners = np.array(points) / 1.01 + ((0.137, 0.0853) if shifted else (0.061, 0.0247))
    expected = polygon2mask((50, 70), corners[:, ::-1] - 0.5)
    found = filled([corners], 70, 50)
    assert (found == expected).mean() > 0.999


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_outlines_give_their_region_again_with_holes_and_joined(seed: int) -> None:
    noise = np.random.default_rng(seed).random((37, 53)).astype(np.float32)
    region = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5)) > 0.5
    whole, together = np.zeros_like(region), np.zeros_like(region)
    for rings in outlines(region):
        whole |= filled(rings, 53, 37)
        ring = [(round(x / 53, 9), round(y / 37, 9)) for x, y in joined(rings)]  # as YOLO's text has them
        together |= filled([np.array(ring) * (53, 37)], 53, 37)
    assert (whole == region).all() and (together == region).all()


def compressed(counts: list[int]) -> str:
    """COCO's text of run lengths, as the format's authors define it."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr((bits | 0x20 if more else bits) + 48)
            if not more:
                break
    return text


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=30))
def test_compressed_run_lengths_are_read(counts: list[int]) -> None:
    assert runs_of_text(compressed(counts)) == counts


def test_run_lengths_go_down_the_columns() -> None:
    region = np.zeros((4, 5), bool)
    region[1:3, 2] = True
    assert (runs_filled([9, 2, 9], 5, 4) == region).all()
    with pytest.raises(PolypsegError, match="cover 8 pixels of 5×4"):
        runs_filled([4, 4], 5, 4)


# ---- folders --------------------------------------------------------------------------------------------


def masks() -> list[NDArray[np.bool_]]:
    ring = np.zeros((40, 60), np.uint8)
    cv2.circle(ring, (20, 20), 12, 1, 4)
    bar = np.zeros((40, 60), np.uint8)
    bar[5:9, 30:50] = 1
    return [ring.astype(bool), bar.astype(bool), np.zeros((40, 60), bool)]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO folder: a ring as compressed run lengths, a bar as a polygon, a frame without polyp."""
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for number, (name, mask) in enumerate(zip(FRAMES, masks(), strict=True), 1):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((40, 60, 3), 40 * number, np.uint8))
        images.append({"id": number, "file_name": f"images/{name}.png", "width": 60, "height": 40})
        if mask.any():
            shape: Any = coco_shape(mask, 0, 0, mask.shape)
            if isinstance(shape, dict):
                shape = {"size": shape["size"], "counts": compressed(shape["counts"])}
            annotations.append({"id": number, "image_id": number, "category_id": 7, "segmentation": shape})
    annotations[0]["attributes"] = {"paris": "Is", "occluded": False}
    tool = {"id": 9, "image_id": 3, "category_id": 8, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    content = {
        "images": images, "annotations": [*annotations, tool],
        "categories": [{"id": 7, "name": "polyp"}, {"id": 8, "name": "instrument"}],
    }  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def changed(folder: Path, change: Any) -> Path:
    file = folder / "annotations.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder


def test_a_coco_folder_is_a_data_set(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = read(coco)
    assert [row.frame_id for row in catalog] == list(FRAMES)
    for index, mask in enumerate(masks()):
        assert (catalog.mask(index) == mask).all()  # the instrument is none
    row = catalog.row(0)
    (polyp,) = outlined(row.mask_path, row.mask_kind)
    assert (polyp.label, polyp.attributes) == ("polyp", {"paris": "Is"})
    assert len(set(catalog.content_hashes())) == 3
    assert main(["data", "check", "--data", str(coco), "--out", str(coco / "out")]) == 0
    assert "empty masks" in capsys.readouterr().out


def test_cvats_layout_is_read(coco: Path) -> None:
    (coco / "annotations").mkdir()
    (coco / "annotations.json").rename(coco / "annotations" / "instances_default.json")
    assert len(read(coco)) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one["images"].append({**one["images"][0], "id": 4, "file_name": "d.png"}), "d.png: names a frame"),
        (lambda one: one["images"].pop(), "c.png: frame without labels|names the absent image 3"),
        (lambda one: one["images"][0].update(width=61), "mask is 61×40 but its frame is 60×40"),
        (lambda one: one["images"][0].update(width=0), "a.png is 0×40; correct it"),
        (lambda one: one["images"][0].update(width=10**9), "correct it"),
        (lambda one: one.pop("images"), "is no COCO file"),
        (lambda one: one["annotations"][0].update(image_id="x"), "is no COCO file"),
        (lambda one: one["categories"][0].update(name="adenoma"), "does not say which of its categories are polyps"),
    ],
)  # fmt: skip
def test_a_coco_file_that_does_not_fit_is_refused(coco: Path, change: Any, says: str) -> None:
    with pytest.raises(PolypsegError, match=says) as raised:
        read(changed(coco, change))
    assert "\n" not in str(raised.value) and "annotations.json" in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([], "has no outline; a box does not say"), (None, "has no outline"),
        ([[1, 2, 3]], "cannot be read"), ([[1, 2, 3, 4, "x", 6]], "cannot be read"),
        ([[1, 2, 3, 4, 1e300, 6]], "cannot be read"), ({"size": [40, 60], "counts": [1, 2]}, "cover 3 pixels of 60×40"),
        ({"size": [60, 40], "counts": [2400]}, "pixels, but its frame 60×40"),
        ({"size": [40, 60], "counts": "\x7f"}, "damaged"), ({"size": [40, 60]}, "cannot be read"),
    ],
)  # fmt: skip
def test_an_outline_that_cannot_be_read_is_told_by_the_check(
    coco: Path, capsys: pytest.CaptureFixture[str], shape: Any, says: str
) -> None:
    changed(coco, lambda one: one["annotations"][0].update(segmentation=shape))
    with pytest.raises(PolypsegError, match=says):
        read(coco).check_masks()
    assert main(["data", "check", "--data", str(coco), "--out", str(coco / "out")]) == 1
    assert "masks that are not black and white" in capsys.readouterr().out


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """A YOLO folder of the same frames, with classes."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number, (name, mask) in enumerate(zip(FRAMES, masks(), strict=True), 1):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((40, 60, 3), 40 * number, np.uint8))
        lines = [
            f"{number - 1} " + " ".join(f"{x / 60:.9g} {y / 40:.9g}" for x, y in joined(rings)) + "\n"
            for rings in outlines(mask)
        ]
        (tmp_path / "labels" / f"{name}.txt").write_text("".join(lines))
    (tmp_path / "data.yaml").write_text("names: {0: flat polyp, 1: raised polyp}\n")
    return tmp_path


def test_a_yolo_folder_is_a_data_set(yolo: Path) -> None:
    catalog = read(yolo)
    for index, mask in enumerate(masks()):
        assert (catalog.mask(index) == mask).all()
    row = catalog.row(1)
    assert [one.label for one in outlined(row.mask_path, row.mask_kind)] == ["raised polyp"]
    (yolo / "data.yaml").write_text("names: [flat, raised]\npolyps: [0]\n")
    assert not read(yolo).mask(1).any()
    (yolo / "data.yaml").unlink()
    assert read(yolo).mask(1).any()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1 is a box"), ("0 0.1 0.1 0.5 0.1 0.5", "no class with an outline"),
        ("x 0.1 0.1 0.5 0.1 0.5 0.5", "no class with an outline"), ("0 10 10 50 10 50 50", "must be 0 to 1"),
        ("5 0.1 0.1 0.5 0.1 0.5 0.5", "the class 5, which data.yaml does not name"), ("0 nan 0 0 0 1 1", "no class"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_outline_is_refused(yolo: Path, line: str, says: str) -> None:
    (yolo / "labels" / "a.txt").write_text(line)
    with pytest.raises(PolypsegError, match=rf"a\.txt: .*{says}"):
        read(yolo).check_masks()


def test_a_yolo_folder_that_does_not_fit_is_refused(yolo: Path) -> None:
    (yolo / "labels" / "d.txt").write_text("")
    with pytest.raises(PolypsegError, match=r"d\.txt: names a frame that is not in images/"):
        read(yolo)
    (yolo / "labels" / "d.txt").rename(yolo / "labels" / "notes.md")
    (yolo / "labels" / "a.txt").unlink()
    with pytest.raises(PolypsegError, match=r"a\.png: frame without labels"):
        read(yolo)
    (yolo / "data.yaml").write_text("names: [flat, raised]\n")
    with pytest.raises(PolypsegError, match="does not say which of its classes are polyps"):
        read(yolo)
    (yolo / "data.yaml").write_text("nc: 2\n")
    with pytest.raises(PolypsegError, match="has no list of names"):
        read(yolo)
