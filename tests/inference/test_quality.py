"""Frames are judged by what just came before them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.inference.quality import LONGEST, QualityMeter, judge

Picture = NDArray[np.uint8]


def mucosa(seed: int = 0, height: int = 240, width: int = 320) -> Picture:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 180, (height // 20, width // 20, 3), np.uint8)
    fine = rng.integers(0, 40, (height, width, 3), np.uint8)
    return np.asarray(cv2.add(cv2.resize(coarse, (width, height)), fine), np.uint8)


def blurred(picture: Picture) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 6), np.uint8)


def glaring(picture: Picture) -> Picture:
    washed = picture.copy()
    washed[:100, :200] = 255
    return washed


@pytest.mark.parametrize("spoil", [blurred, glaring])
@pytest.mark.parametrize("size", [(240, 320), (1080, 1380), (60, 80)])
def test_a_few_spoilt_frames_are_poor(spoil: object, size: tuple[int, int]) -> None:
    meter, picture = QualityMeter(), mucosa(0, *size)
    worse = np.asarray(cv2.resize(spoil(mucosa()), size[::-1]), np.uint8)  # type: ignore[operator]
    picture = np.asarray(cv2.resize(mucosa(), size[::-1]), np.uint8)
    found = [meter.measure(worse if 10 <= index < 14 else picture, index / 25).poor for index in range(30)]
    assert found == [10 <= index < 14 for index in range(30)]


def test_what_lasts_is_the_view_and_no_accident() -> None:
    meter = QualityMeter()
    found = [meter.measure(blurred(mucosa()) if index >= 10 else mucosa(), index / 10).poor for index in range(60)]
    last = max(index for index, poor in enumerate(found) if poor)
    assert not any(found[:10]) and all(found[10 : last + 1]) and not any(found[last + 1 :])
    assert (last - 10) / 10 == pytest.approx(LONGEST, abs=0.11)


def test_a_slow_change_is_no_accident() -> None:
    meter, picture = QualityMeter(), mucosa()
    pictures = [np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.3 + index / 100), np.uint8) for index in range(100)]
    assert not any(meter.measure(one, index / 10).poor for index, one in enumerate(pictures))


def test_another_view_is_a_jump() -> None:
    meter = QualityMeter()
    shifted = [np.roll(mucosa(), 3 * index, 1) for index in range(5)]
    found = [meter.measure(one, index / 25).jump for index, one in enumerate([*shifted, mucosa(1), mucosa(1)])]
    assert found == [False] * 5 + [True, False]


def test_a_recalled_run_judges_as_it_did() -> None:
    pictures = [blurred(mucosa()) if index in (12, 13, 22, 23) else mucosa(index // 20) for index in range(40)]
    through = QualityMeter()
    found = [through.measure(one, index / 25) for index, one in enumerate(pictures)]
    again = QualityMeter()
    for index, quality in enumerate(found[:22]):
        assert again.recall(quality.to_dict(), index / 25) == quality
    again.look_back(pictures[21])
    assert [again.measure(one, index / 25) for index, one in enumerate(pictures) if index >= 22] == found[22:]


def test_black_and_flat_frames_are_measured() -> None:
    meter = QualityMeter()
    for index, level in enumerate((0, 0, 255, 128)):
        quality = meter.measure(np.full((48, 64, 3), level, np.uint8), index / 25)
        assert 0 <= quality.glare <= 1 and quality.sharpness == 0


# ---- a still by itself ------------------------------------------------------------------------------------


def lit_mucosa() -> NDArray[np.uint8]:
    """A lit, sharp, reddish picture with a dark corner."""
    noise = np.random.default_rng(3).normal(0, 1, (240, 320, 1))
    detail = cv2.GaussianBlur(noise, (0, 0), 2)[..., None]
    frame = np.array([170, 90, 80]) * (1 + 0.25 * detail / detail.std())
    frame[:60, :60] = 3
    return np.asarray(frame.clip(0, 255), np.uint8)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda frame: frame, None),
        (lambda frame: frame // 20, "dark"),
        (lambda frame: np.zeros_like(frame), "dark"),
        (lambda frame: np.full_like(frame, 255), "glare"),
        (lambda frame: np.minimum(frame.astype(int) * 6, 255).astype(np.uint8), "glare"),
        (lambda frame: cv2.GaussianBlur(frame, (0, 0), 8), "blurred"),
        (lambda frame: frame[..., ::-1], "outside"),
        (lambda frame: np.repeat(frame[..., :1], 3, axis=2), "outside"),
    ],
)
def test_a_still_that_shows_too_little_says_why(spoil: Any, reason: str | None) -> None:
    judged = judge(np.ascontiguousarray(spoil(lit_mucosa())))
    assert judged.reason == reason and judged.to_dict()["judgeable"] is (reason is None)


@pytest.mark.parametrize("size", [(64, 48), (320, 240), (1920, 1080)])
def test_the_size_of_a_still_does_not_decide(size: tuple[int, int]) -> None:
    assert judge(np.asarray(cv2.resize(lit_mucosa(), size, interpolation=cv2.INTER_AREA), np.uint8)).reason is None
