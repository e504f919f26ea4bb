"""Corruptions: what goes wrong in an endoscope's picture, in five severities, to measure what a model withstands.

The idea and the five severities are those of ImageNet-C (Hendrycks & Dietterich, ICLR 2019); the corruptions are
drawn anew for colonoscopy. What happens to the light (blur, brightness, wet highlights, colour) is computed in linear
light and inside the field of view alone: the black surround and what is written on it are added by the processor
afterwards and stay sharp and dark. What happens to the recording (JPEG, resolution) befalls the whole picture. No
corruption moves anything, so a frame's mask remains its mask. Lengths grow with the frame's shorter side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from polypseg.errors import UsageError

Frame = NDArray[np.uint8]  # H×W×3
Field = NDArray[np.floating[Any]]  # H×W, or H×W×3 of linear light, 0..1
Corruption = Callable[[Frame, int, np.random.Generator], Frame]

SEVERITIES = (1, 2, 3, 4, 5)
GAMMA = 2.2
BLACK, DARK = 14, 24  # of 0..255: the surround's samples lie below BLACK, all but the lumen's above DARK
TO_LINEAR = ((np.arange(256) / 255) ** GAMMA).astype(np.float32)
LEVELS = 4096
FROM_LINEAR = np.round(255 * (np.arange(LEVELS) / (LEVELS - 1)) ** (1 / GAMMA)).astype(np.uint8)
NORMAL = ndtri((np.arange(256) + 0.5) / 256).astype(np.float32)  # a random byte to a normal variate


def corrupt(frame: Frame, name: str, severity: int, seed: int = 0) -> Frame:
    """A corrupted copy of a frame.

    The same seed gives the same picture; of one seed, a higher severity is more of the same (the same direction of
    motion, the same highlights and more).

    Args:
        frame: H×W×3 uint8, RGB.
        name: one of ``CORRUPTIONS``.
        severity: 1 (slight, common) to 5 (a frame that a doctor would discard).
        seed: 0 or more.

    Returns:
        H×W×3 uint8, RGB.

    Raises:
        UsageError: there is no corruption of that name or no such severity.
        ValueError: the frame is no H×W×3 uint8.
    """
    if name not in CORRUPTIONS:
        raise UsageError(f"corruption {name!r} is unknown; choose one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity} is unknown; choose 1 to 5")
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0 or frame.dtype != np.uint8:
        raise ValueError(f"frame is {frame.shape} {frame.dtype}; it must be H×W×3 uint8")
    return CORRUPTIONS[name](np.ascontiguousarray(frame), severity, np.random.default_rng(seed))


def field_of_view(frame: Frame) -> NDArray[np.bool_]:
    """Where the endoscope's picture is, without its black surround, the text upon it and what was blacked out.

    The convex hull of the largest region that is not dark, less the black regions that touch the frame's edge; so
    the dark lumen belongs to it, and cut corners and boxes do not. The whole frame where the largest region is
    smaller than a fifth of it.

    Args:
        frame: H×W×3 uint8.

    Returns:
        H×W bool.
    """
    height, width = frame.shape[:2]
    brightest = np.maximum(np.maximum(frame[..., 0], frame[..., 1]), frame[..., 2])
    step = 4  # the hull needs no more, and thin text that touches the picture is cut off by the opening
    small = cv2.resize(brightest, (max(1, width // step), max(1, height // step)), interpolation=cv2.INTER_AREA)
    lit = cv2.morphologyEx((small > DARK).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    regions = cv2.findContours(lit, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    largest = max((cv2.convexHull(region) for region in regions), key=cv2.contourArea, default=None)
    if largest is None or cv2.contourArea(largest) < 0.2 * small.size:
        return np.ones((height, width), bool)
    hull = np.round((largest + 0.5) * [width / small.shape[1], height / small.shape[0]]).astype(np.int32)
    view = cv2.fillConvexPoly(np.zeros((height, width), np.uint8), hull, 1)
    cv2.polylines(view, [hull], True, 1, 4 * step)  # a little wider: the black regions give the exact edge
    labels = cv2.connectedComponents((brightest < BLACK).astype(np.uint8), connectivity=4)[1]
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    surround = np.zeros(int(labels.max()) + 1, bool)
    surround[edge[edge > 0]] = True
    view[surround[labels]] = 0
    # text in a corner that was blacked out is a speck of its own
    labels, statistics = cv2.connectedComponentsWithStats(view, connectivity=4)[1:3]
    return np.asarray(labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax())


# --- to the light ---


def motion_blur(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """The tip moves during the exposure: a streak of 1.2 to 8 % of the shorter side in a random direction."""
    length = min(frame.shape[:2]) * (0.012, 0.022, 0.036, 0.055, 0.08)[severity - 1]
    angle = rng.uniform(0, np.pi)
    reach = max(1, int(np.ceil(length / 2)))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    end = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    ends = [np.round((reach + sign * end) * 256).astype(int).tolist() for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 255, 1, cv2.LINE_AA, shift=8)
    return _blur(frame, kernel)


def defocus_blur(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Too near to be in focus: each point becomes a disc of 0.4 to 2.2 % of the shorter side in radius."""
    radius = min(frame.shape[:2]) * (0.004, 0.007, 0.011, 0.016, 0.022)[severity - 1]
    reach = int(np.ceil(radius))
    axis = np.arange(-reach, reach + 1)
    distance = np.hypot(axis[:, None], axis)
    return _blur(frame, np.clip(radius + 0.5 - distance, 0, 1))


def darkness(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Too little light: 60 to 10 % of it, less still towards the edge, and the sensor's noise shows."""
    gain = (0.6, 0.4, 0.26, 0.16, 0.1)[severity - 1]
    height, width = frame.shape[:2]
    x, y = (np.linspace(-1, 1, side, dtype=np.float32) for side in (width, height))
    falloff = gain * np.exp(np.float32(np.log(gain) / 4) * (y[:, None] ** 2 + x**2))
    light = _linear(frame) * falloff[..., None]
    # of each sensor colour; shot noise grows with the root of the light, read noise does not
    noise = NORMAL[np.frombuffer(rng.bytes(frame.size), np.uint8).reshape(frame.shape)]
    light += noise * (np.sqrt(light) * np.float32(0.012) + np.float32(0.0008 * severity))
    return _inside(field_of_view(frame), _display(light), frame)


def over_exposure(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Too much light: 1.4 to 5 times it, white where the wall is near, and the white spills over."""
    gain = (1.4, 1.9, 2.6, 3.6, 5.0)[severity - 1]
    light = _linear(frame) * np.float32(gain)
    excess = _smooth(np.clip(light - 1, 0, 2), min(frame.shape[:2]) * 0.03)
    return _inside(field_of_view(frame), _display(light + np.float32(0.35) * excess), frame)


def specular_highlights(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Wet mucosa mirrors the lamp: white specks in clusters over 0.3 to 4.5 % of the field of view, on lit wall."""
    share = (0.003, 0.006, 0.012, 0.024, 0.045)[severity - 1]
    size = frame.shape[:2]
    side = min(size)
    view = field_of_view(frame)
    brightness = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
    wall, around, near = (_smooth_inside(brightness, view, side * sigma) for sigma in (0.02, 0.04, 0.008))
    # Specks come where ripples, wetness and the wall's relief coincide; crests are brighter than what is around.
    ripple = 0.8 * _noise(rng, size, side * 0.006) + _noise(rng, size, side * 0.014)
    shine = ripple + 1.3 * _noise(rng, size, side * 0.06) + 12 * (near - around) + 2 * np.minimum(wall, 0.6)
    lit = view & (wall > 0.16) & (near < 0.8)  # not the lumen, and not what is white already
    candidates = shine[lit]
    count = min(round(share * np.count_nonzero(view)), len(candidates) // 2)
    if count == 0:
        return frame.copy()
    limit = np.partition(candidates, -count)[-count]
    strength = np.where(lit, np.clip((shine - limit) / np.float32(0.8) + 0.4, 0, 1), 0).astype(np.float32)
    glow = _smooth(strength, side * 0.008)
    light = _linear(frame) + (strength * np.float32(1.1) + glow * np.float32(0.12))[..., None]
    return _inside(view, _display(light), frame)


def colour_shift(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Another lamp, processor or white balance: warmer or colder, greener or pinker, paler or deeper."""
    amount = (0.1, 0.2, 0.32, 0.46, 0.62)[severity - 1]
    warmth = rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.0)
    tint, depth = rng.uniform(-0.45, 0.45), rng.uniform(-0.5, 0.5)
    gains = np.exp(amount * np.array([warmth - tint / 2, tint, -warmth - tint / 2]))
    weights = np.array([0.2126, 0.7152, 0.0722])  # luminance of linear RGB (ITU-R BT.709)
    mean = np.array(cv2.mean(cv2.LUT(frame, TO_LINEAR))[:3]) + 1e-6
    gains *= (weights @ mean) / (weights @ (gains * mean))  # the picture stays as bright as it was
    mix = (1 + amount * depth) * np.eye(3) + (-amount * depth) * weights  # towards or away from grey
    shifted = cv2.transform(_linear(frame), (mix @ np.diag(gains)).astype(np.float32))
    return _inside(field_of_view(frame), _display(np.asarray(shifted, np.float32)), frame)


# --- to the recording ---


def jpeg(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Compressed by a recorder or an archive: JPEG of quality 45 down to 8."""
    quality = (45, 30, 20, 13, 8)[severity - 1]
    encoded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def low_resolution(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """An old camera or a small capture: reduced to between 1/1.5 and 1/7 of its sides, and enlarged again."""
    factor = (1.5, 2.2, 3.2, 4.7, 7.0)[severity - 1]
    height, width = frame.shape[:2]
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "motion-blur": motion_blur,
    "defocus-blur": defocus_blur,
    "darkness": darkness,
    "over-exposure": over_exposure,
    "specular-highlights": specular_highlights,
    "colour-shift": colour_shift,
    "jpeg": jpeg,
    "low-resolution": low_resolution,
}


# --- their tools ---


def _linear(frame: Frame) -> Field:
    """Samples as light, 0..1."""
    return np.asarray(cv2.LUT(frame, TO_LINEAR), np.float32)


def _display(light: Field) -> Frame:
    """Light as samples; what is beyond 0..1 is clipped, as the sensor does."""
    levels = np.clip(light * np.float32(LEVELS - 1) + np.float32(0.5), 0, LEVELS - 1).astype(np.uint16)
    samples: Frame = FROM_LINEAR[levels]
    return samples


def _inside(view: NDArray[np.bool_], corrupted: Frame, frame: Frame) -> Frame:
    """The corrupted picture inside the field of view, the frame as it was around it."""
    return np.asarray(cv2.copyTo(corrupted, view.astype(np.uint8), frame.copy()), np.uint8)


def _blur(frame: Frame, kernel: NDArray[np.generic]) -> Frame:
    """Convolution of the light inside the field of view, which the black around it does not darken."""
    weights = kernel.astype(np.float32) / np.float32(kernel.sum())
    view = field_of_view(frame)
    light = _linear(frame) * view[..., None]
    blurred = np.asarray(cv2.filter2D(light, -1, weights, borderType=cv2.BORDER_REFLECT_101), np.float32)
    if not view.all():
        covered = cv2.filter2D(view.astype(np.float32), -1, weights, borderType=cv2.BORDER_REFLECT_101)
        blurred /= np.maximum(covered, np.float32(1e-3))[..., None]
    return _inside(view, _display(blurred), frame)


def _smooth(field: Field, sigma: float) -> Field:
    """A Gaussian of sigma pixels, computed at a reduced size where sigma allows it."""
    height, width = field.shape[:2]
    step = max(1, int(sigma / 2))
    size = (max(1, width // step), max(1, height // step))
    small = cv2.resize(field, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), max(sigma / step, 0.1))
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _smooth_inside(field: Field, view: NDArray[np.bool_], sigma: float) -> Field:
    """As ``_smooth``, of what lies in the field of view alone."""
    weights = view.astype(np.float32)
    covered = np.maximum(_smooth(weights, sigma), np.float32(1e-3))
    return np.divide(_smooth(field * weights, sigma), covered, dtype=np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Field:
    """Smooth noise of unit variance with features of about sigma pixels."""
    height, width = shape
    step = max(1.0, sigma)
    grid = rng.standard_normal((round(height / step) + 3, round(width / step) + 3), dtype=np.float32)
    smooth = cv2.resize(cv2.GaussianBlur(grid, (0, 0), 1.0), (width, height), interpolation=cv2.INTER_CUBIC)
    field: Field = np.asarray(smooth, np.float32)
    field = (field - field.mean()) / np.float32(max(float(field.std()), 1e-6))
    return field
