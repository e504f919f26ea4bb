"""Phantom frames: deterministic, honest masks, and a folder that other code can rely on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import polypseg.data
from polypseg.data import phantom
from polypseg.errors import PolypsegError, UsageError
from polypseg.io.pictures import read_frame, read_mask, read_mask_values

SMALL = (72, 88)  # height and width: the same scenes, drawn faster


@cache
def scenes() -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """100 small frames with whatever number of polyps chance gives."""
    return [phantom.draw(seed, *SMALL) for seed in range(100)]


def component_count(mask: NDArray[np.bool_]) -> int:
    return int(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0]) - 1


def black_corners(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What has exactly the colour of a corner pixel and is joined to that corner."""
    black = np.zeros(frame.shape[:2], bool)
    for row, column in ((0, 0), (0, -1), (-1, -1)):  # the position display may lie over the fourth
        labels = cv2.connectedComponents((frame == frame[row, column]).all(2).astype(np.uint8))[1]
        black |= labels == labels[row, column]
    return black


def test_same_arguments_draw_the_same_frame_and_others_another() -> None:
    frame, mask = phantom.draw(5)
    again, mask_again = phantom.draw(5)
    assert np.array_equal(frame, again)
    assert np.array_equal(mask, mask_again)
    assert not np.array_equal(frame, phantom.draw(6)[0])


@pytest.mark.parametrize(("height", "width"), [(288, 352), (65, 97), (32, 32), (33, 330), (330, 33), (401, 300)])
def test_any_size(height: int, width: int) -> None:
    for seed in range(4):
        frame, mask = phantom.draw(seed, height, width, polyps=1)
        assert frame.shape == (height, width, 3)
        assert frame.dtype == np.uint8
        assert mask.shape == (height, width)
        assert mask.dtype == np.bool_
        assert component_count(mask) == 1


@pytest.mark.parametrize("polyps", [0, 1, 2, 3])
def test_as_many_components_as_polyps(polyps: int) -> None:
    assert [component_count(phantom.draw(seed, *SMALL, polyps)[1]) for seed in range(12)] == [polyps] * 12


def test_the_first_polyp_is_drawn_even_where_no_place_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "ATTEMPTS", 1)  # straight to the last resort
    for seed in range(12):
        assert component_count(phantom.draw(seed, 32, 40, polyps=1)[1]) == 1


@pytest.mark.slow
def test_chance_draws_none_one_or_several() -> None:
    counts = np.bincount([component_count(mask) for _, mask in scenes()], minlength=4) / len(scenes())
    assert 0.01 <= counts[0] <= 0.2
    assert counts[1] > 0.6
    assert 0.03 < counts[2:].sum() < 0.3
    assert len(counts) == 4


def test_areas_are_those_of_real_frames() -> None:
    areas = np.array([mask.mean() for _, mask in scenes() if mask.any()])
    assert areas.min() >= 0.01
    assert areas.max() <= 0.31
    assert 0.07 <= np.median(areas) <= 0.13
    assert areas.min() < 0.03  # both ends occur
    assert areas.max() > 0.2


def test_no_mask_in_the_black_corners() -> None:
    cut = 0
    for frame, mask in scenes():
        black = black_corners(frame)
        assert black.mean() > 0.01
        assert not (mask & black).any()
        cut += (mask & cv2.dilate(black.astype(np.uint8), np.ones((5, 5))).astype(bool)).any()
    assert cut > 5  # polyps do reach the corners, so the line above had something to find


def test_no_mask_on_the_position_display() -> None:
    shown = 0
    for frame, mask in scenes():
        display = (frame == (8, 66, 34)).all(2)
        shown += display.any()
        assert not (mask & display).any()
    assert 10 < shown < 50


def chromaticity(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour without brightness, so that a shadow leaves it nearly as it was."""
    return frame / (frame.sum(2, keepdims=True) + 30.0)


def test_the_mask_is_where_the_frame_differs_from_the_same_scene_without_polyps() -> None:
    height, width = 144, 176
    inside, outside = [], []
    for seed in range(12):
        frame, mask = phantom.draw(seed, height, width, polyps=1)
        bare, empty = phantom.draw(seed, height, width, polyps=0)
        assert not empty.any()
        # The shadow and the stalk end a radius away; beyond them not one value may change.
        xmin, ymin, xmax, ymax = phantom.boxes_of(mask)[0]
        reach = max(xmax - xmin, ymax - ymin) + 12
        far = np.ones((height, width), bool)
        far[max(ymin - reach, 0) : ymax + reach, max(xmin - reach, 0) : xmax + reach] = False
        assert np.array_equal(frame[far], bare[far])
        change = np.abs(chromaticity(frame) - chromaticity(bare)).max(2)
        cell = np.ones((3, 3), np.uint8)
        just_inside = mask & ~cv2.erode(mask.astype(np.uint8), cell, iterations=4, borderValue=1).astype(bool)
        just_outside = cv2.dilate(mask.astype(np.uint8), cell, iterations=6).astype(bool) & ~cv2.dilate(
            mask.astype(np.uint8), cell, iterations=2
        ).astype(bool)
        inside.append(change[just_inside].mean())
        outside.append(change[just_outside].mean())
    assert np.mean(inside) > 3 * np.mean(outside)


@pytest.mark.slow
def test_polyps_look_different_from_the_wall_around_them_but_not_by_one_colour() -> None:
    """Colour tells a polyp from the wall next to it better than it tells two parts of the same bare wall."""
    polyp_contrast: list[float] = []
    wall_contrast: list[float] = []
    redness, brightness = [], []
    for seed in range(40):
        frame, mask = phantom.draw(seed, *SMALL, polyps=1)
        bare, _ = phantom.draw(seed, *SMALL, polyps=0)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))).astype(bool)
        apart = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
        ring = near & ~apart & ~black_corners(frame) & (frame != (8, 66, 34)).any(2)
        for picture, contrast in ((frame, polyp_contrast), (bare, wall_contrast)):
            inside, outside = chromaticity(picture)[mask], chromaticity(picture)[ring]
            spread = np.sqrt((inside.var(0) + outside.var(0)) / 2)
            contrast.append((np.abs(inside.mean(0) - outside.mean(0)) / spread).max())
        redness.append((chromaticity(frame)[mask] - chromaticity(bare)[mask]).mean(0)[0])
        brightness.append(np.median(frame[mask].sum(1)) / np.median(bare[mask].sum(1) + 1.0))
    assert np.median(polyp_contrast) > 2 * np.median(wall_contrast)
    assert np.median(polyp_contrast) < 3  # and yet a threshold on colour does not solve it
    paler = np.mean(np.array(redness) < 0)
    assert 0.1 < paler < 0.5
    assert 0.3 < np.mean(np.array(brightness) > 1) < 0.9  # a dome of its own, not only a shadow on the wall


def test_boxes_are_tight_around_components() -> None:
    mask = np.zeros((40, 50), bool)
    mask[3:10, 5:21] = True
    mask[30:40, 49] = True  # reaches the frame's edge
    mask[20, 20] = mask[21, 21] = True  # joined by a corner only
    assert phantom.boxes_of(mask) == [[5, 3, 21, 10], [20, 20, 22, 22], [49, 30, 50, 40]]
    assert phantom.boxes_of(np.zeros((4, 4), bool)) == []


def test_write_and_read_back(tmp_path: Path) -> None:
    assert phantom.write(tmp_path / "set", 9, seed=4, height=72, width=88, empty_fraction=0.4) == tmp_path / "set"
    catalog = polypseg.data.read(tmp_path / "set")
    assert [row.frame_id for row in catalog] == [f"phantom-{index:04d}" for index in range(9)]
    assert {row.dataset for row in catalog} == {"phantom"}
    assert len({row.group for row in catalog}) == 9
    assert {(row.width, row.height) for row in catalog} == {(88, 72)}
    empty = 0
    for index, row in enumerate(catalog):
        mask = catalog.mask(index)
        assert row.boxes == phantom.boxes_of(mask)
        assert set(np.unique(read_mask_values(row.mask_path))) <= {0, 255}
        empty += not mask.any()
    assert 0 < empty < 9
    index = json.loads((tmp_path / "set" / "phantom.json").read_text())
    assert (index["version"], index["seed"], index["count"], len(index["boxes"])) == (1, 4, 9, 9)


def test_the_jpeg_shows_the_frame_that_was_drawn_in_its_colours(tmp_path: Path) -> None:
    phantom.write(tmp_path / "set", 1, height=72, width=88)
    frame = read_frame(tmp_path / "set" / "images" / "phantom-0000.jpg").astype(float)
    mean = frame[frame.max(2) > 60].mean(0)
    assert mean[0] > mean[1] + 20  # mucosa is red, so the channels are in order
    assert mean[0] > mean[2] + 20


@pytest.mark.parametrize("empty_fraction", [0.0, 1.0])
def test_empty_fraction(tmp_path: Path, empty_fraction: float) -> None:
    phantom.write(tmp_path / "set", 6, height=40, width=40, empty_fraction=empty_fraction)
    catalog = polypseg.data.read(tmp_path / "set")
    assert [catalog.mask(index).any() for index in range(6)] == [empty_fraction == 0] * 6


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*s/*")}


def test_a_smaller_set_is_the_beginning_of_a_larger_one_and_is_completed(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    phantom.write(small, 3, seed=7, height=40, width=48)
    phantom.write(large, 5, seed=7, height=40, width=48)
    assert contents(small).items() < contents(large).items()
    before = (small / "images" / "phantom-0000.jpg").stat().st_mtime_ns
    phantom.write(small, 5, seed=7, height=40, width=48)
    assert contents(small) == contents(large)
    assert (small / "phantom.json").read_bytes() == (large / "phantom.json").read_bytes()
    assert (small / "images" / "phantom-0000.jpg").stat().st_mtime_ns == before


def test_a_broken_off_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    phantom.write(whole, 4, height=40, width=48)
    draw, calls = phantom.draw, []

    def stop_at_third(*arguments: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(phantom, "draw", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        phantom.write(broken, 4, height=40, width=48)
    with pytest.raises(PolypsegError, match=r"phantom-0002\.jpg: is missing"):
        polypseg.data.read(broken)
    (broken / "masks" / "phantom-0001.png").unlink()
    phantom.write(broken, 4, height=40, width=48)
    assert len(calls) == 6  # frames 0, 1, (2 broken off), then 1, 2 and 3
    assert contents(broken) == contents(whole)
    assert (broken / "phantom.json").read_bytes() == (whole / "phantom.json").read_bytes()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PolypsegError, match="contains other files"):
        phantom.write(tmp_path, 2, height=40, width=40)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(PolypsegError, match="is a file"):
        phantom.write(tmp_path / "notes.txt", 2, height=40, width=40)


def test_another_set_is_not_mixed_in(tmp_path: Path) -> None:
    out = phantom.write(tmp_path / "set", 3, seed=1, height=40, width=48)
    before = contents(out)
    with pytest.raises(PolypsegError, match=r"phantom\.json: was drawn with seed 1, not 2"):
        phantom.write(out, 3, seed=2, height=40, width=48)
    with pytest.raises(PolypsegError, match="was drawn with width 48, not 52"):
        phantom.write(out, 3, seed=1, height=40, width=52)
    with pytest.raises(PolypsegError, match="counts 3 frames, more than 2"):
        phantom.write(out, 2, seed=1, height=40, width=48)
    (out / "phantom.json").write_text("[1]")
    with pytest.raises(PolypsegError, match="is no index of phantom frames"):
        phantom.write(out, 3, seed=1, height=40, width=48)
    assert contents(out) == before


def test_a_lost_frame_and_a_damaged_index_are_named(tmp_path: Path) -> None:
    out = phantom.write(tmp_path / "set", 3, height=40, width=48)
    for kind in ("images/phantom-0001.jpg", "masks/phantom-0001.png"):
        (out / kind).unlink()
    problems: list[polypseg.data.Problem] = []
    assert len(polypseg.data.read(out, problems)) == 2
    assert [(problem.kind, Path(problem.path).name) for problem in problems] == [("missing-frame", "phantom-0001.jpg")]
    (out / "phantom.json").write_text("{}")
    with pytest.raises(PolypsegError, match="is missing an expected field"):
        polypseg.data.read(out)


def test_progress_is_shown_for_large_sets_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom.write(tmp_path / "few", 2, height=32, width=32)
    assert capsys.readouterr().err == ""
    phantom.write(tmp_path / "many", 50, height=32, width=32)
    printed = capsys.readouterr()
    assert "50/50" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"height": 31}, "352×31 is too small"),
        ({"height": 32, "width": 321}, "too narrow"),
        ({"polyps": 6}, "polyps is 6"),
        ({"polyps": -1}, "polyps is -1"),
    ],
)
def test_draw_refuses_arguments_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        phantom.draw(**{"seed": 0, **arguments})


def test_write_refuses_arguments_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--count is 0"):
        phantom.write(tmp_path / "set", 0)
    with pytest.raises(UsageError, match=r"--empty-fraction is 1\.5"):
        phantom.write(tmp_path / "set", 2, empty_fraction=1.5)
    with pytest.raises(UsageError, match="seed is -3"):
        phantom.write(tmp_path / "set", 2, seed=-3)
    assert not (tmp_path / "set").exists()


def test_masks_on_disk_are_those_that_draw_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, masks = phantom.draw, []

    def keep(*arguments: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        frame, mask = draw(*arguments)
        masks.append(mask)
        return frame, mask

    monkeypatch.setattr(phantom, "draw", keep)
    out = phantom.write(tmp_path / "set", 3, height=65, width=97)
    assert len(masks) == 3
    for index, mask in enumerate(masks):
        assert np.array_equal(read_mask(out / "masks" / f"phantom-{index:04d}.png"), mask)
