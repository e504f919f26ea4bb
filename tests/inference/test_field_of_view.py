"""Where a frame shows nothing of the patient: drawn frames of every kind that endoscopes make."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.inference.field_of_view import outside_of

Frame = NDArray[np.uint8]
HEIGHT, WIDTH = 432, 576
MUCOSA = (190, 110, 90)


def mucosa(seed: int = 0) -> Frame:
    """A whole frame of it, uneven."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((HEIGHT, WIDTH)).astype(np.float32), (0, 0), 9)
    light = 0.7 + 0.6 * (noise - noise.min()) / (noise.max() - noise.min())
    return (np.array(MUCOSA) * light[..., None]).clip(0, 255).astype(np.uint8)


def view() -> NDArray[np.bool_]:
    """An octagon, as most endoscopes show."""
    corners = [(150, 20), (440, 20), (540, 110), (540, 330), (440, 412), (150, 412), (60, 330), (60, 110)]
    return cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [np.array(corners)], 1) > 0


def bordered(level: int = 0, frame: Frame | None = None) -> Frame:
    frame = mucosa() if frame is None else frame.copy()
    frame[~view()] = level
    return frame


def stretched(frame: Frame) -> NDArray[np.bool_]:
    """What is outside, at the frame's size."""
    found = outside_of(frame)
    assert found is not None
    size = frame.shape[1], frame.shape[0]
    return cv2.resize(found.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def as_jpeg(frame: Frame, quality: int = 60) -> Frame:
    _, content = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)[..., ::-1].copy()


def agrees(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> bool:
    """But for a pixel of the shrunk frame along the edges."""
    border = cv2.morphologyEx(expected.view(np.uint8), cv2.MORPH_GRADIENT, np.ones((15, 15), np.uint8)) > 0
    return bool((found == expected)[~border].all())


@pytest.mark.parametrize("level", [0, 8, 16, 24])
@pytest.mark.parametrize("change", [np.copy, as_jpeg])
def test_the_dark_surround_is_outside(level: int, change: Callable[[Frame], Frame]) -> None:
    assert agrees(stretched(change(bordered(level))), ~view())


def test_noise_in_the_surround_does_not_make_it_the_view() -> None:
    noisy = bordered(6).astype(np.int16) + np.random.default_rng(1).integers(-5, 6, (HEIGHT, WIDTH, 1))
    assert agrees(stretched(noisy.clip(0, 255).astype(np.uint8)), ~view())


def test_text_in_the_surround_is_outside() -> None:
    frame = bordered()
    for line in range(5):
        cv2.putText(frame, "29.11.26", (2, 40 + 16 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1)
    assert agrees(stretched(frame), ~view())


def test_a_dark_lumen_belongs_to_the_view() -> None:
    frame = mucosa()
    cv2.circle(frame, (300, 210), 90, (4, 2, 2), -1)
    assert agrees(stretched(bordered(frame=frame)), ~view())


@pytest.mark.parametrize("seed", range(3))
def test_a_frame_without_a_surround_is_all_view(seed: int) -> None:
    frame = mucosa(seed)
    assert outside_of(frame) is None
    cv2.circle(frame, (0, 200), 30, (5, 3, 3), -1)  # a shadow at the edge is too little to be one
    assert outside_of(frame) is None
    assert outside_of(np.full((3, 2, 3), 120, np.uint8)) is None  # frames of any size
    assert outside_of(np.full((1, 1, 3), 200, np.uint8)) is None


def test_a_second_picture_in_the_surround_is_outside_and_the_view_is_not() -> None:
    frame = bordered()
    small = cv2.resize(frame, (80, 60), interpolation=cv2.INTER_AREA)
    wide = np.zeros((HEIGHT, WIDTH + 120, 3), np.uint8)
    wide[:, 120:] = frame
    wide[300:360, 10:90] = small
    expected = np.ones(wide.shape[:2], bool)
    expected[:, 120:] = ~view()
    assert agrees(stretched(wide), expected)


@pytest.mark.parametrize("colour", [(26, 187, 150), (75, 110, 190)])
@pytest.mark.parametrize("change", [np.copy, as_jpeg])
def test_the_drawing_of_the_scope_is_outside(colour: tuple[int, int, int], change: Callable[[Frame], Frame]) -> None:
    frame = bordered()
    frame[290:420, 20:180] = colour
    cv2.polylines(frame, [np.array([(40, 400), (60, 330), (120, 340), (150, 300)])], False, (10, 60, 50), 3)
    expected = ~view()
    expected[290:420, 20:180] = True
    assert agrees(stretched(change(frame)), expected)


def test_dyed_mucosa_is_no_drawing() -> None:
    """Blue dye under a polyp, round and uneven; and a green field of narrow-band light."""
    frame = mucosa()
    light = frame[..., :1] / 190
    dyed = (np.array((70, 130, 190)) * light).clip(0, 255).astype(np.uint8)
    for shape in (cv2.MORPH_ELLIPSE, cv2.MORPH_RECT):
        blob = np.zeros((HEIGHT, WIDTH), np.uint8)
        blob[120:320, 180:420] = cv2.getStructuringElement(shape, (240, 200))
        found = stretched(bordered(frame=np.where(blob[..., None] > 0, dyed, frame)))
        assert agrees(found, ~view())
    green = (np.array((90, 150, 120)) * light).clip(0, 255).astype(np.uint8)
    assert agrees(stretched(bordered(frame=green)), ~view())


def test_a_black_frame_has_no_view() -> None:
    found = outside_of(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert found is not None and found.all()
