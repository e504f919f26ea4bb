"""What holds of every input: sizes and kinds of frames, masks of any shape, an interrupt at any moment."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import Image

import polypseg
from polypseg.bundle import ModelBundle
from polypseg.data.splits import hash_split, read_split, write_split
from polypseg.inference.segmenter import Segmenter
from polypseg.io import outputs
from polypseg.io.pictures import read_mask
from polypseg.operating_point import OperatingPoint
from polypseg.pipeline import stills
from polypseg.pipeline.predict import predict
from polypseg.segmentation import Segmentation

# Formats that keep what they are given, and JPEG, which keeps its size.
FILES = {"L": ("png", "tif", "bmp", "jpg", "webp"), "RGB": ("png", "tif", "bmp", "jpg", "webp"), "RGBA": ("png", "tif"),
         "I;16": ("png", "tif"), "P": ("png", "bmp"), "1": ("png", "tif")}  # fmt: skip


@pytest.fixture(scope="module")
def segmenter(light: ModelBundle) -> Segmenter:
    return polypseg.load(light.folder, threads=1)


@st.composite
def pixels(draw: st.DrawFn) -> NDArray[Any]:
    """H×W, H×W×1, H×W×3 or H×W×4 of 8 or 16 bits."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    channels = draw(st.sampled_from([(), (1,), (3,), (4,)]))
    kind = draw(st.sampled_from([np.uint8, np.uint16]))
    made = np.random.default_rng(draw(st.integers(0, 999))).integers(0, np.iinfo(kind).max, (height, width, *channels))
    made = made.astype(kind)
    return made[::-1, ::-1] if draw(st.booleans()) else made  # a view with negative steps is an array too


def check(found: Segmentation, height: int, width: int) -> None:
    assert found.mask.shape == found.probability.shape == (height, width)
    assert (found.mask.dtype, found.probability.dtype) == (bool, np.float32)
    assert 0 <= found.probability.min() <= found.probability.max() <= 1
    union = np.zeros((height, width), bool)
    for polyp in found.polyps:
        left, top, right, bottom = polyp.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and 0 <= polyp.confidence <= 1
        union[top:bottom, left:right] |= outputs.polyp_region(found, polyp)
    np.testing.assert_array_equal(union, found.mask)
    assert sum(polyp.area for polyp in found.polyps) == found.mask.sum()


@settings(deadline=None, max_examples=60)
@given(frame=pixels())
def test_a_frame_of_any_size_and_depth_gets_a_mask_of_its_size(segmenter: Segmenter, frame: NDArray[Any]) -> None:
    check(segmenter(frame), *frame.shape[:2])


@settings(deadline=None, max_examples=60)
@given(
    chosen=st.sampled_from([(mode, suffix) for mode, suffixes in FILES.items() for suffix in suffixes]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    turn=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_a_file_of_any_kind_size_and_orientation_gets_a_mask_as_it_is_seen(
    segmenter: Segmenter, chosen: tuple[str, str], size: tuple[int, int], turn: int, seed: int
) -> None:
    mode, suffix = chosen
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(values)
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn  # orientation: from 5 on, rows are columns
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"frame.{suffix}")
        told = {"exif": exif} if suffix in ("png", "jpg", "webp") else {}
        picture.save(file, **told)
        width, height = size[::-1] if told and turn > 4 else size
        check(segmenter(file), height, width)


@settings(deadline=None, max_examples=100)
@given(mask=st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays(bool, shape)))
def test_any_mask_survives_every_format(mask: NDArray[np.bool_]) -> None:
    """The mask file, JSON with its COCO shapes, and GeoJSON, each read back; outlines are filled by Matplotlib."""
    height, width = mask.shape
    found = Segmentation(mask, np.where(mask, np.float32(0.8), np.float32(0.1)), 0.5)
    centres = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) + 0.5

    def filled(rings: list[Any]) -> NDArray[np.bool_]:
        inside = sum(Outline(np.array(ring, float)).contains_points(centres).astype(int) for ring in rings)
        return np.asarray(inside % 2 == 1).reshape(height, width)

    with tempfile.TemporaryDirectory() as folder:
        record = outputs.frame_record(found, source="a.png", model="m")
        record = outputs.with_shapes(record, found)
        save = {"mask", "json", "contours"}
        outputs.write_frame(Path(folder), "a", np.zeros((height, width, 3), np.uint8), found, record, save)
        np.testing.assert_array_equal(read_mask(Path(folder, "a.png")), mask)
        kept = json.loads(Path(folder, "a.json").read_text())
        shapes = json.loads(next(Path(folder).glob("a*.geojson")).read_text())
    from_coco = np.zeros((height, width), bool)
    for polyp in kept["polyps"]:
        shape = polyp["segmentation"]
        if isinstance(shape, dict):
            runs = np.repeat(np.arange(len(shape["counts"])) % 2 == 1, shape["counts"])
            from_coco |= runs.reshape((height, width), order="F")
        else:
            for polygon in shape:
                from_coco |= filled([np.reshape(polygon, (-1, 2))])
    np.testing.assert_array_equal(from_coco, mask)
    from_geojson = np.zeros((height, width), bool)
    for feature in shapes["features"]:
        geometry = feature["geometry"]
        for rings in [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]:
            from_geojson |= filled(rings)
    np.testing.assert_array_equal(from_geojson, mask)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["one", "two"]),
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1).filter(
                lambda name: name == name.strip() and "/" not in name and "\\" not in name
            ),
            st.sampled_from(["train", "val", "test"]),
        ),
        min_size=1, max_size=12, unique_by=lambda row: row[:2],
    )
)  # fmt: skip
def test_a_split_survives_its_file(rows: list[tuple[str, str, str]]) -> None:
    table = pd.DataFrame(rows, columns=["dataset", "frame_id", "split"]).sort_values(["dataset", "frame_id"])
    with tempfile.TemporaryDirectory() as folder:
        write_split(table, Path(folder, "split.csv"))
        again = read_split(Path(folder, "split.csv"))
    assert hash_split(again) == hash_split(table)
    columns = ["dataset", "frame_id", "split"]
    assert sorted(map(tuple, again[columns].to_numpy().tolist())) == sorted(
        map(tuple, table[columns].to_numpy().tolist())
    )


share = st.floats(0, 1, width=32)


@settings(deadline=None)
@given(
    threshold=share, least=share, area=st.floats(0, 1, exclude_max=True, width=32), holes=st.booleans(),
    by=st.sampled_from(["peak", "mean"]),
)  # fmt: skip
def test_an_operating_point_survives_json(threshold: float, least: float, area: float, holes: bool, by: Any) -> None:
    point = OperatingPoint(threshold, min_confidence=least, min_area=area, fill_holes=holes, confidence=by)
    assert OperatingPoint.from_dict(json.loads(json.dumps(asdict(point)))) == point


# ---- an interrupt at any moment ----


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def undisturbed(light: ModelBundle, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert predicted(light, phantom_folder, out) == 0
    return content(out)


def predicted(light: ModelBundle, data: Path, out: Path, resume: bool = False) -> int:
    names = [str(path) for path in sorted((data / "images").iterdir())[:12]]
    save = ("mask", "json", "coco", "csv")
    return predict(names, out, model=light.folder, threads=1, progress=False, save=save, resume=resume)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(stops=st.lists(st.integers(0, 11), min_size=1, max_size=3))
def test_interrupted_anywhere_any_number_of_times_it_ends_alike(
    light: ModelBundle, phantom_folder: Path, undisturbed: dict[str, bytes], stops: list[int]
) -> None:
    """Ctrl-C at the n-th frame that is written, again and again; then it is resumed to its end."""
    write = stills.write_frame

    def until(stop: int, begun: Iterator[int], *arguments: Any) -> None:
        if next(begun) >= stop:
            raise KeyboardInterrupt
        write(*arguments)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        for stop in stops:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stills, "write_frame", functools.partial(until, stop, itertools.count()))
                with contextlib.suppress(KeyboardInterrupt):
                    predicted(light, phantom_folder, out, resume=True)
        assert predicted(light, phantom_folder, out, resume=True) == 0
        assert content(out) == undisturbed
