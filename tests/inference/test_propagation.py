"""A mask carried from frame to frame of a made sequence, whose true masks are known."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.inference.propagation import MIN_SURENESS, Propagation
from polypseg.metrics.overlap import dice

Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]
SIZE = (240, 200)  # columns, rows


def texture() -> Frame:
    """Mucosa as far as the flow is concerned: smooth blotches with some detail."""
    noise = np.random.default_rng(5).random((300, 360, 3))
    coarse, fine = (cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (9, 2))
    both = (coarse - coarse.mean()) / coarse.std() + 0.5 * (fine - fine.mean()) / fine.std()
    return np.asarray((128 + 40 * both).clip(0, 255), np.uint8)


def view(picture: NDArray[np.uint8], dx: float, dy: float, scale: float = 1.0) -> NDArray[np.uint8]:
    """What the camera sees when it has moved."""
    matrix = np.array([[scale, 0, -40 - dx], [0, scale, -40 - dy]], np.float64)
    return np.asarray(cv2.warpAffine(picture, matrix, SIZE, borderMode=cv2.BORDER_REFLECT), np.uint8)


@pytest.fixture(scope="module")
def seen() -> Callable[..., tuple[Frame, Mask]]:
    """A frame and its true mask, by where the camera is."""
    picture = texture()
    disc = np.zeros(picture.shape[:2], np.uint8)
    cv2.ellipse(disc, (150, 130), (38, 26), 20, 0, 360, 255, -1)

    def look(dx: float, dy: float, scale: float = 1.0) -> tuple[Frame, Mask]:
        return view(picture, dx, dy, scale), view(disc, dx, dy, scale) > 127

    return look


def nothing() -> NDArray[np.float32]:
    return np.zeros((100, 120), np.float32)


def test_a_mask_follows_what_it_marks_though_the_model_sees_nothing(seen: Callable[..., tuple[Frame, Mask]]) -> None:
    frame, mask = seen(0, 0)
    moving = Propagation(frame, nothing(), mask)
    for step in range(1, 5):
        frame, true = seen(6 * step, -4 * step, 1 + 0.02 * step)
        found = moving.step(frame, nothing())
        assert found.mask.shape == true.shape and dice(found.mask, true) > 0.93
        assert found.sureness > MIN_SURENESS
    assert dice(mask, true) < 0.8  # so it had to move


def test_a_jump_is_found_again_by_its_looks(seen: Callable[..., tuple[Frame, Mask]]) -> None:
    frame, mask = seen(0, 0)
    jumped, true = seen(34, -22)
    found = Propagation(frame, nothing(), mask).step(jumped, nothing())
    assert dice(mask, true) < 0.5 < 0.9 < dice(found.mask, true)


def test_where_the_model_is_right_its_outline_is_followed_and_the_correction_stays(
    seen: Callable[..., tuple[Frame, Mask]],
) -> None:
    """The model sees the polyp and a false one; the false one was erased. Then the polyp grows, which only it sees."""
    frame, mask = seen(0, 0)
    false = np.zeros_like(mask)
    false[10:40, 10:50] = True
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    moving = Propagation(frame, (mask | false).astype(np.float32), mask)
    found = moving.step(frame, (grown | false).astype(np.float32))
    assert dice(found.mask, grown) > 0.97 and not (found.mask & false).any()


def test_another_scene_is_not_sure_nor_is_anything_after_it(seen: Callable[..., tuple[Frame, Mask]]) -> None:
    frame, mask = seen(0, 0)
    other = np.random.default_rng(1).integers(0, 256, frame.shape, np.uint8)
    moving = Propagation(frame, nothing(), mask)
    lost = moving.step(other, nothing())
    assert lost.sureness < MIN_SURENESS / 2
    assert moving.step(frame, nothing()).sureness <= lost.sureness


def test_a_region_that_leaves_the_frame_ends(seen: Callable[..., tuple[Frame, Mask]]) -> None:
    frame, mask = seen(0, 0)
    moving = Propagation(frame, nothing(), mask)
    sureness = [moving.step(seen(25.0 * step, 0)[0], nothing()).sureness for step in range(1, 7)]
    assert sureness[0] > MIN_SURENESS > sureness[-1]
    assert sureness == sorted(sureness, reverse=True)


def test_sizes_must_agree(seen: Callable[..., tuple[Frame, Mask]]) -> None:
    frame, mask = seen(0, 0)
    with pytest.raises(ValueError, match="another size"):
        Propagation(frame, nothing(), mask[1:])
    with pytest.raises(ValueError, match="not of the size"):
        Propagation(frame, nothing(), mask).step(frame[1:], nothing())
