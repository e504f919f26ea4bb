"""The pictures show what they should, by their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polypseg.data import phantom
from polypseg.drawing import HIT, PREDICTION, TRUTH, error_map, overlay
from polypseg.errors import PolypsegError
from polypseg.visualization.curves import draw_curves
from polypseg.visualization.gallery import (
    Panel,
    draw_contact_sheet,
    draw_frames,
    draw_predictions,
    load_panel,
)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(axis=-1) < 40).sum())


def test_overlay_draws_outline_and_fill_and_leaves_the_rest() -> None:
    frame = np.full((80, 100, 3), 60, np.uint8)
    mask = np.zeros((80, 100), bool)
    mask[20:50, 30:70] = True
    drawn = overlay(frame, mask, TRUTH, fill=0.5)
    assert near(drawn[20, 30:70], TRUTH) > 30  # the outline
    assert abs(int(drawn[35, 50, 2]) - (60 + 255) // 2) <= 1  # the fill, half way to blue
    outside = np.ones((80, 100), bool)
    outside[17:53, 27:73] = False
    assert (drawn[outside] == 60).all() and (frame == 60).all()
    boxed = overlay(frame, np.zeros((80, 100), bool), boxes=[[10, 12, 40, 44]])
    assert (boxed[12, 15:35] > 200).all() and (boxed[60:, 60:] == 60).all()
    with pytest.raises(ValueError, match="mask is"):
        overlay(frame, mask[:, :50])


def test_an_error_map_tells_hit_missed_and_false_apart() -> None:
    frame = np.full((120, 160, 3), (200, 40, 40), np.uint8)
    truth, prediction = np.zeros((2, 120, 160), bool)
    truth[20:100, 20:100] = True
    prediction[20:100, 60:140] = True
    drawn = error_map(frame, truth, prediction, fill=1)
    for column, colour in ((40, TRUTH), (80, HIT), (120, PREDICTION)):  # missed, hit, false
        assert (drawn[30:90, column] == colour).all()
    assert np.ptp(drawn[5, 5].astype(int)) == 0 and (frame == (200, 40, 40)).all()  # elsewhere the frame in grey
    assert not near(error_map(frame, truth, truth, fill=1), TRUTH)  # all is hit
    with pytest.raises(ValueError, match="mask is"):
        error_map(frame, truth[:50], prediction[:50])


def test_galleries_show_truth_and_errors(tmp_path: Path) -> None:
    panels = []
    for seed in range(3):
        frame, mask = phantom.draw(seed, 96, 128, polyps=1)
        panels.append(Panel(f"frame {seed}", frame, mask, np.roll(mask, 9, 1), [[5, 5, 60, 60]], dice=0.5))
    draw_predictions(panels, tmp_path / "predictions.png", "three")
    picture = np.asarray(Image.open(tmp_path / "predictions.png").convert("RGB"))
    assert all(near(picture, colour) > 100 for colour in (TRUTH, PREDICTION, HIT))
    draw_frames(panels, tmp_path / "frames.png")
    picture = np.asarray(Image.open(tmp_path / "frames.png").convert("RGB"))
    assert near(picture, TRUTH) > 100 and near(picture, PREDICTION) == 0
    draw_contact_sheet(panels, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 500


def test_a_frame_that_cannot_be_read_still_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    panel = load_panel("broken", str(tmp_path / "broken.jpg"), None)
    assert panel.caption == "broken (unreadable)" and panel.truth is None


def test_curves_show_both_splits(tmp_path: Path) -> None:
    table = pd.DataFrame({"epoch": range(5)})
    for name, start in (("train_loss", 1.0), ("val_loss", 1.2), ("train_dice", 0.5), ("val_dice", 0.4)):
        table[name] = start + np.linspace(0, 0.3, 5)
    draw_curves(table, tmp_path / "curves.png", "title")
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert near(picture, (0, 114, 178)) > 200 and near(picture, (213, 94, 0)) > 200


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PolypsegError, match="cannot be written"):
        draw_frames([], tmp_path / "file" / "frames.png")
