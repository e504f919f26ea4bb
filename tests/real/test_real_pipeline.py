"""The path through everything on real frames; skipped where the real data is absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import polypseg
from polypseg.catalog import Catalog
from polypseg.data import read
from polypseg.data.splits import make_split, write_split
from polypseg.io.pictures import read_frame

pytestmark = pytest.mark.real


def test_metadata_is_read_with_pandas_in_the_files_order(real_data: Path) -> None:
    catalog = read(real_data / "Kvasir-SEG")
    published = json.loads((real_data / "Kvasir-SEG" / "kavsir_bboxes.json").read_text())
    assert list(catalog.frames["frame_id"]) == list(published)
    for row in catalog:
        entry = published[row.frame_id]
        assert (row.width, row.height) == (entry["width"], entry["height"])
        assert row.boxes == [[box["xmin"], box["ymin"], box["xmax"], box["ymax"]] for box in entry["bbox"]]


def test_seed_split_is_scikit_learns(real_data: Path) -> None:
    names = list(json.loads((real_data / "Kvasir-SEG" / "kavsir_bboxes.json").read_text()))
    train, rest = train_test_split(names, test_size=0.3, random_state=42)
    test, val = train_test_split(rest, test_size=0.5, random_state=42)
    table = make_split("random", read(real_data / "Kvasir-SEG"))
    for split, expected in (("train", train), ("val", val), ("test", test)):
        assert set(table["frame_id"][table["split"] == split]) == set(expected)
    assert (len(train), len(val), len(test)) == (700, 150, 150)


@pytest.mark.slow
def test_a_small_network_learns_from_real_polyps(
    real_data: Path, tmp_path: Path, small_recipe: Callable[..., Any]
) -> None:
    """60 frames, a network with ImageNet weights, a minute: better than calling everything or nothing polyp."""
    from polypseg.training.run import train

    catalog = read(real_data / "Kvasir-SEG")
    frames = Catalog(catalog.frames.iloc[:80].reset_index(drop=True))
    table = make_split("random", frames)
    write_split(table, tmp_path / "split.csv")
    recipe = small_recipe(
        split=str(tmp_path / "split.csv"),
        threshold=None,
        frames={"size": 96, "augmentation": "none"},
        model={"encoder": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet"},
        optimizer={"learning_rate": 3e-3, "encoder_learning_rate": 1e-3, "schedule": "one_cycle"},
        trainer={"epochs": 10, "precision": "32-true"},
    )
    out = train(recipe, [real_data / "Kvasir-SEG"], tmp_path / "run")
    scores = json.loads((out / "test.json").read_text())["metrics"]["test"]
    held_out = frames.with_split(table).of_split("test")
    everything = np.mean([2 * held_out.mask(i).mean() / (1 + held_out.mask(i).mean()) for i in range(len(held_out))])
    assert scores["n"] == 12 and scores["dice"] > everything + 0.15
    prediction = polypseg.load(out).segment(read_frame(held_out.row(0).image_path))
    assert prediction.mask.shape == (held_out.row(0).height, held_out.row(0).width)
