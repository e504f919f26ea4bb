"""Frames that are made polyp-free: nothing of the polyp is left; other frames bear the same traces and keep theirs."""

import cv2
import numpy as np
import pytest

from polypseg.data.polyp_free import decoy, without_polyp

SIDE = 96


@pytest.fixture
def mucosa() -> np.ndarray:
    """Reddish texture, so that a piece of it can be told from a plain polyp."""
    rng = np.random.default_rng(3)
    grain = cv2.GaussianBlur(rng.integers(0, 256, (SIDE, SIDE), np.uint8), (0, 0), 2)[..., None] // 4
    return (np.array([160, 80, 60]) + grain).astype(np.uint8)


def with_polyp(frame: np.ndarray, radius: int, center: tuple[int, int] = (48, 48)) -> tuple[np.ndarray, np.ndarray]:
    mask = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), center, radius, 1, cv2.FILLED)
    shown = frame.copy()
    shown[mask > 0] = (40, 200, 240)
    return shown, mask


@pytest.mark.parametrize("center", [(30, 48), (4, 4), (SIDE - 2, 50)])  # at the edge there are windows alone
def test_no_pixel_of_the_polyps_colour_is_left(mucosa: np.ndarray, center: tuple[int, int]) -> None:
    shown, mask = with_polyp(mucosa, 9, center)
    for seed in range(8):
        made = without_polyp(shown, mask, np.random.default_rng(seed))
        assert made is not None and made.shape == shown.shape and made.dtype == np.uint8
        assert (made[..., 2] < 200).all()  # the polyp is blue, the mucosa red


def test_painting_over_leaves_what_is_far_from_the_polyp(mucosa: np.ndarray) -> None:
    shown, mask = with_polyp(mucosa, 9, (30, 48))
    painted = [without_polyp(shown, mask, np.random.default_rng(seed)) for seed in range(8)]
    far = cv2.dilate(mask, np.ones((17, 17), np.uint8)) == 0
    same = [made is not None and np.abs(made[far].astype(int) - shown[far]).max() <= 1 for made in painted]
    assert any(same)  # painted; the others are windows, enlarged
    assert not all(same)


def test_a_frame_full_of_polyp_cannot_be_made_polyp_free(mucosa: np.ndarray) -> None:
    shown, mask = with_polyp(mucosa, 60)
    assert without_polyp(shown, mask, np.random.default_rng(0)) is None


def test_a_frame_is_not_changed_in_place_and_depends_on_the_generator_alone(mucosa: np.ndarray) -> None:
    shown, mask = with_polyp(mucosa, 9)
    before = shown.copy()
    first, second = (without_polyp(shown, mask, np.random.default_rng(5)) for _ in range(2))
    assert (shown == before).all()
    assert first is not None and second is not None and (first == second).all()


def test_a_decoy_leaves_the_polyp_and_changes_something_beside_it(mucosa: np.ndarray) -> None:
    shown, mask = with_polyp(mucosa, 9)
    changed = 0
    for seed in range(20):
        made = decoy(shown, mask, np.random.default_rng(seed))
        assert np.abs(made[mask > 0].astype(int) - shown[mask > 0]).max() <= 1
        changed += int((made != shown).any())
    assert changed >= 5
