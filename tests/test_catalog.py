"""The Catalog's table; how single files are read is in test_bad_input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polypseg.catalog import COLUMNS, Catalog
from polypseg.errors import PolypsegError
from polypseg.io.pictures import read_mask_values


def rows(*names: str, dataset: str = "set", **values: Any) -> list[dict[str, Any]]:
    return [
        {
            "frame_id": name,
            "image_path": f"/data/{name}.png",
            "width": 48,
            "height": 32,
            "dataset": dataset,
            **values,
        }
        for name in names
    ]


def split(*entries: tuple[str, str], dataset: str = "set") -> pd.DataFrame:
    return pd.DataFrame([(dataset, *entry) for entry in entries], columns=["dataset", "frame_id", "split"])


def test_columns_and_defaults() -> None:
    catalog = Catalog.from_rows(
        [*rows("1"), *rows("007", mask_path="/m.png", boxes=[[1, 2, 3, 4]], group="g", split="val")]
    )
    assert list(catalog.frames.columns) == COLUMNS
    assert [type(value) for value in catalog.frames["frame_id"]] == [str, str]
    first, second = catalog
    assert first.mask_path is None  # not NaN, although the other is a string
    assert (first.boxes, first.group, first.split) == ([], "", "")
    assert (second.frame_id, second.mask_path, second.boxes) == ("007", "/m.png", [[1, 2, 3, 4]])
    assert (second.group, second.split) == ("g", "val")
    assert catalog.frames[["width", "height"]].dtypes.tolist() == [np.int64, np.int64]
    assert catalog.row(1).frame_id == "007"
    assert len(catalog) == 2


def test_boxes_of_one_frame_are_not_those_of_another() -> None:
    catalog = Catalog.from_rows(rows("a", "b"))
    catalog.row(0).boxes.append([0, 0, 1, 1])
    assert catalog.row(1).boxes == []


def test_an_empty_catalog_has_all_columns() -> None:
    for catalog in (Catalog.from_rows([]), Catalog.concatenate([])):
        assert len(catalog) == 0
        assert list(catalog.frames.columns) == COLUMNS


def test_a_missing_column_is_refused() -> None:
    with pytest.raises(ValueError, match="'group', 'split'"):
        Catalog(pd.DataFrame(columns=COLUMNS[:-4]))


def test_a_frame_twice_is_refused_but_not_in_two_data_sets() -> None:
    with pytest.raises(PolypsegError, match=r"/data/a\.png: frame a occurs twice in data set set"):
        Catalog.from_rows(rows("a", "b", "a"))
    one, other = Catalog.from_rows(rows("a", "b")), Catalog.from_rows(rows("a", dataset="other"))
    both = Catalog.concatenate([one, other])
    assert [(row.dataset, row.frame_id) for row in both] == [("set", "a"), ("set", "b"), ("other", "a")]
    assert both.frames.index.tolist() == [0, 1, 2]
    with pytest.raises(PolypsegError, match="occurs twice"):
        Catalog.concatenate([one, one])


def test_with_split_fills_in_and_keeps_the_order() -> None:
    catalog = Catalog.from_rows(rows("c", "a", "007", "1"))
    filled = catalog.with_split(split(("1", "test"), ("007", "val"), ("c", "train"), ("a", "train")))
    assert [(row.frame_id, row.split) for row in filled] == [
        ("c", "train"), ("a", "train"), ("007", "val"), ("1", "test"),
    ]  # fmt: skip
    assert list(filled.frames.columns) == COLUMNS
    assert [row.split for row in catalog] == [""] * 4  # left as it was
    assert [row.frame_id for row in filled.of_split("train")] == ["c", "a"]
    assert filled.of_split("test").frames.index.tolist() == [0]


def test_frames_that_the_split_does_not_name_are_left_out() -> None:
    catalog = Catalog.concatenate([Catalog.from_rows(rows("a", "b")), Catalog.from_rows(rows("a", dataset="x"))])
    assert [(row.dataset, row.frame_id) for row in catalog.with_split(split(("a", "val"), dataset="x"))] == [("x", "a")]


def test_what_is_wrong_with_a_split_is_told() -> None:
    catalog = Catalog.from_rows(rows("a", "b"))
    with pytest.raises(PolypsegError, match="names frame a twice"):
        catalog.with_split(split(("a", "train"), ("a", "test")))
    with pytest.raises(PolypsegError, match="names frame z of set, which is not in the data"):
        catalog.with_split(split(("a", "train"), ("z", "test")))
    with pytest.raises(PolypsegError, match="names frame a of other, which is not in the data"):
        catalog.with_split(split(("a", "train"), dataset="other"))
    with pytest.raises(PolypsegError, match="'test' contains no frames"):
        catalog.with_split(split(("a", "train"))).of_split("test")


def test_the_hash_is_of_names_and_content(tmp_path: Path) -> None:
    def catalog(folder: str, *names: str, **changes: Any) -> Catalog:
        made = []
        for name in names:
            image, mask = (tmp_path / folder / f"{name}.{kind}" for kind in ("jpg", "png"))
            image.parent.mkdir(exist_ok=True)
            for file in (image, mask):
                if not file.exists():
                    file.write_bytes(file.name.encode())
            made += rows(name, image_path=str(image), mask_path=str(mask), **changes)
        return Catalog.from_rows(made)

    one = catalog("one", "b", "a", "10")
    assert catalog("two", "10", "b", "a", split="test", group="g").hash() == one.hash()  # moved, in another order
    others = [catalog("one", "b", "a"), catalog("one", "b", "a", "10", dataset="other")]
    others.append(catalog("one", "b", "a", "10", mask_kind="nonzero"))
    for kind in ("jpg", "png"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"a.{kind}").write_bytes(b"swapped")
        others.append(catalog(kind, "b", "a", "10"))
    assert len({catalog.hash() for catalog in [one, *others]}) == 1 + len(others)
    before = one.content_hashes()
    (tmp_path / "one" / "a.png").write_bytes(b"png.a")  # of the same size, between two looks of one process
    assert [a == b for a, b in zip(before, one.content_hashes(), strict=True)] == [True, False, True]
    (tmp_path / "one" / "a.png").unlink()
    with pytest.raises(PolypsegError, match=r"a\.png: cannot be read"):
        one.hash()


def test_masks_are_checked_against_their_frames(tmp_path: Path) -> None:
    values = np.array([[0, 1, 126, 127], [128, 129, 254, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    path = str(tmp_path / "m.png")
    fits, turned, none = (
        Catalog.from_rows(rows("a", mask_path=mask, width=width, height=height))
        for mask, width, height in ((path, 4, 2), (path, 2, 4), (None, 4, 2))
    )
    np.testing.assert_array_equal(fits.mask(0), [[False] * 4, [True] * 4])
    np.testing.assert_array_equal(read_mask_values(path), values)
    with pytest.raises(PolypsegError, match=r"m\.png: mask is 4×2 but its frame is 2×4"):
        turned.mask(0)
    with pytest.raises(PolypsegError, match=r"/data/a\.png: has no mask"):
        none.mask(0)
