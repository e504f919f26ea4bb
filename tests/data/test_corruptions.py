"""Corruptions: more of the same with severity, the same by seed, nothing moved, the surround left dark."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from polypseg.data import phantom
from polypseg.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, field_of_view
from polypseg.errors import PolypsegError, UsageError

Frame = NDArray[np.uint8]
OF_THE_RECORDING = ("jpeg", "low-resolution")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return [phantom.draw(seed, 288, 352, 1)[0] for seed in (3, 8)]


def _distance(one: Frame, other: Frame) -> float:
    return float(np.sqrt(np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_further_from_the_original(name: str, frames: list[Frame]) -> None:
    for frame in frames:
        for seed in (0, 1, 2):
            distances = [_distance(corrupt(frame, name, severity, seed), frame) for severity in SEVERITIES]
            assert distances[0] > 0.5  # something can be seen
            assert (np.diff(distances) > 0.05).all(), distances


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_deterministic_and_without_side_effects(name: str, frames: list[Frame]) -> None:
    frame = frames[0].copy()
    one = corrupt(frame, name, 3, seed=4)
    np.random.default_rng().random()
    assert (one == corrupt(frame, name, 3, seed=4)).all()
    assert one.shape == frame.shape and one.dtype == np.uint8 and one.flags.c_contiguous
    assert (frame == frames[0]).all() and not np.shares_memory(one, frame)
    assert (one == corrupt(np.asfortranarray(frame), name, 3, seed=4)).all()
    drawn = name not in ("defocus-blur", "over-exposure", *OF_THE_RECORDING)
    assert bool((one != corrupt(frame, name, 3, seed=5)).any()) == drawn


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(list(CORRUPTIONS)),
    st.sampled_from(SEVERITIES),
    st.sampled_from(["noise", "black", "white", "red"]),
)
@settings(max_examples=120, deadline=None)
def test_any_frame_of_any_size(size: tuple[int, int], name: str, severity: int, kind: str) -> None:
    colours = {"black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0)}
    if kind == "noise":
        frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    else:
        frame = np.full((*size, 3), colours[kind], np.uint8)
    result = corrupt(frame, name, severity)
    assert result.shape == frame.shape and result.dtype == np.uint8
    if kind == "white" and name in ("motion-blur", "defocus-blur", "over-exposure", "low-resolution"):
        assert (result >= 254).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_nothing_moves(name: str) -> None:
    """A disc's edge stays where it was, seen from all sides, so that the mask remains the mask."""
    y, x = np.mgrid[:160, :200]
    distance = np.hypot(x - 110.3, y - 71.6)
    frame = np.where((distance < 40)[..., None], (190, 120, 110), (90, 45, 40)).astype(np.uint8)
    before, after = frame[..., 1].astype(float), corrupt(frame, name, 4, seed=1)[..., 1].astype(float)

    def likeness(one: NDArray[np.float64]) -> float:
        return float(np.corrcoef(before.ravel(), one.ravel())[0, 1])

    for shift, axis in itertools.product((-2, 2), (0, 1)):  # moved, it would fit worse in every direction
        assert likeness(after) > likeness(np.roll(after, shift, axis))
    if name not in ("specular-highlights", "darkness"):  # these are not the same on all sides
        inside = after > (after[65:78, 104:117].mean() + after[:8, :8].mean()) / 2
        assert np.abs([x[inside].mean() - 110.3, y[inside].mean() - 71.6]).max() < 1


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in OF_THE_RECORDING])
def test_the_surround_stays_as_it_is(name: str, frames: list[Frame]) -> None:
    for frame in frames:
        surround = ~field_of_view(frame)
        assert surround.mean() > 0.05
        changed = corrupt(frame, name, 5)
        assert (changed[surround] == frame[surround]).all()
        assert (changed[~surround] != frame[~surround]).mean() > 0.01


@pytest.mark.parametrize("name", OF_THE_RECORDING)
def test_the_surround_stays_dark_in_recordings(name: str, frames: list[Frame]) -> None:
    for frame in frames:
        surround = cv2.erode((~field_of_view(frame)).astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
        assert surround.any() and corrupt(frame, name, 5)[surround].mean() < 25


def test_field_of_view() -> None:
    """An octagon with a dark lumen, a blacked-out box, and text in the corner."""
    frame = np.full((240, 300, 3), 3, np.uint8)
    octagon = np.array([[60, 5], [240, 5], [295, 60], [295, 180], [240, 235], [60, 235], [5, 180], [5, 60]])
    cv2.fillPoly(frame, [octagon.astype(np.int32)], (180, 90, 80))
    expected = frame[..., 0] > 100
    cv2.circle(frame, (150, 120), 40, (5, 2, 2), -1)  # the lumen is part of the picture
    frame[190:, :70] = 3
    expected[190:, :70] = False
    cv2.putText(frame, "12:30", (4, 232), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
    view = field_of_view(frame)
    assert (frame[..., 1] > 200).sum() > 100  # the text, which lies outside
    assert (view != expected).mean() < 0.002
    for colour in (0, 90):
        assert field_of_view(np.full((50, 60, 3), colour, np.uint8)).all()
    assert field_of_view(np.full((1, 1, 3), 200, np.uint8)).all()


def test_highlights_are_white_specks_on_lit_wall(frames: list[Frame]) -> None:
    for frame in frames:
        white = [(corrupt(frame, "specular-highlights", s, 3).min(axis=2) > 245) for s in SEVERITIES]
        for fewer, more in itertools.pairwise(white):
            assert (fewer & ~more).sum() <= 0.05 * fewer.sum()  # the same specks, and more
        view = field_of_view(frame)
        assert 0.01 < white[-1][view].mean() - (frame.min(axis=2) > 245)[view].mean() < 0.08
        lumen = cv2.GaussianBlur(frame, (0, 0), 8).max(axis=2) < 25
        assert (corrupt(frame, "specular-highlights", 5, 3)[lumen & view] < 200).all()


def test_brightness_goes_the_right_way(frames: list[Frame]) -> None:
    for frame in frames:
        view = field_of_view(frame)
        dark = [corrupt(frame, "darkness", s)[view].mean() for s in SEVERITIES]
        bright = [corrupt(frame, "over-exposure", s)[view].mean() for s in SEVERITIES]
        assert sorted(dark, reverse=True) == dark and dark[0] < frame[view].mean() < bright[0]
        assert sorted(bright) == bright
        for severity in SEVERITIES:  # colour, not brightness
            shifted = corrupt(frame, "colour-shift", severity)
            levels = [cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[view].mean() for one in (frame, shifted)]
            assert levels[1] == pytest.approx(levels[0], rel=0.12)


def test_wrong_arguments(frames: list[Frame]) -> None:
    with pytest.raises(UsageError, match="corruption 'fog' is unknown; choose one of motion-blur"):
        corrupt(frames[0], "fog", 1)
    for severity in (0, 6):
        with pytest.raises(PolypsegError, match="choose 1 to 5"):
            corrupt(frames[0], "jpeg", severity)
    frame = frames[0]
    for wrong in (frame[..., 0], frame[:0], frame.astype(np.float32), frame[..., :2]):
        with pytest.raises(ValueError, match="H×W×3 uint8"):
            corrupt(np.asarray(wrong), "jpeg", 1)
