"""Phantom frames: drawn, colonoscopy-like pictures with exact masks, for the demo, the docs and the tests.

No real frame goes into them. They are drawn from a number: a tube of mucosa seen from inside, with its dark
lumen, folds, vessels, wet highlights and black corners, and polyps on its wall. They show that the software
works; they say nothing about how a model does on patients.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg.data.folder import Problem, pair
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import atomic_write, disk_error, read_json, write_json
from polypseg.io.pictures import read_mask

NAME = "phantom"
INDEX = "phantom.json"
VERSION = 1  # raise it whenever the same seed draws other pictures
EMPTY_FRACTION = 0.08  # of frames without a polyp
SEVERAL_FRACTION = 0.14  # of the others, with two or three
MIN_SIDE = 32  # pixels; below it nothing can be recognised
MAX_ASPECT = 10  # longer side over shorter
MAX_POLYPS = 5
ATTEMPTS = 60  # to find a polyp's place
AREA = (0.012, 0.28)  # smallest and largest polyp, as fractions of the frame

Field = NDArray[np.floating[Any]]  # H×W
Points = NDArray[np.float64]  # N×2, pixels, x before y


# --- the data set in a folder ---


def write(
    out: str | Path,
    count: int,
    seed: int = 0,
    height: int = 288,
    width: int = 352,
    empty_fraction: float = EMPTY_FRACTION,
) -> Path:
    """Draw a data set into a folder: ``images/*.jpg``, ``masks/*.png`` (0 or 255) and ``phantom.json``.

    Frame i depends on ``(seed, i)`` alone, so that a smaller set is the beginning of a larger one. A folder
    that already contains frames of the same seed and size is completed: only missing frames are drawn.

    Args:
        out: the folder; made where it is missing.
        count: number of frames, 1 or more.
        seed: 0 or more.
        height: of the frames, pixels, as for ``draw``.
        width: likewise.
        empty_fraction: expected fraction of frames without a polyp, 0..1.

    Returns:
        ``out``, which ``polypseg.data.read`` reads.

    Raises:
        UsageError: an argument is out of its range.
        PolypsegError: the folder contains other files, or phantom frames drawn otherwise, or more of them than
            ``count``; or it cannot be written.
    """
    out = Path(out)
    if count < 1:
        raise UsageError(f"--count is {count}; give 1 or more frames")
    if not 0 <= empty_fraction <= 1:
        raise UsageError(f"--empty-fraction is {empty_fraction}; give a number from 0 to 1")
    _check(seed, height, width)
    drawn = {
        "version": VERSION, "seed": seed, "height": height, "width": width, "empty_fraction": empty_fraction,
    }  # fmt: skip
    boxes = _resume(out, drawn, count)
    # Written before the first frame, so that a broken-off run is known as ours and can be taken up again.
    write_json(out / INDEX, {**drawn, "count": count, "boxes": boxes})
    quiet = count < 50
    for index in tqdm(range(count), desc="phantom frames", unit="frame", file=sys.stderr, disable=quiet):
        name = frame_id(index)
        image_path, mask_path = out / "images" / f"{name}.jpg", out / "masks" / f"{name}.png"
        if image_path.is_file() and mask_path.is_file():
            if name not in boxes:
                boxes[name] = boxes_of(read_mask(mask_path))
            continue
        own = np.random.SeedSequence([seed, index])
        polyps = _polyp_count(np.random.default_rng(own), empty_fraction)
        frame, mask = draw(int(own.generate_state(1)[0]), height, width, polyps)
        boxes[name] = boxes_of(mask)
        _encode(image_path, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
        _encode(mask_path, mask.astype(np.uint8) * 255, [])
    write_json(out / INDEX, {**drawn, "count": count, "boxes": dict(sorted(boxes.items()))})
    return out


def frame_id(index: int) -> str:
    """The stem of frame ``index``, as ``phantom-0007``."""
    return f"{NAME}-{index:04d}"


def boxes_of(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The boxes of a mask's 8-connected components, from top to bottom.

    Args:
        mask: H×W bool.

    Returns:
        ``[xmin, ymin, xmax, ymax]`` in pixels for each, maxima exclusive; an empty list for an empty mask.
    """
    statistics = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2][1:]
    return [[int(x), int(y), int(x + w), int(y + h)] for x, y, w, h, _ in statistics]


def recognise(path: Path) -> bool:
    """Whether the folder contains a ``phantom.json``."""
    return (path / INDEX).is_file()


def rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Catalog rows with the boxes of ``phantom.json``; a frame that it counts but is missing is a problem.

    Raises:
        PolypsegError: ``phantom.json`` is no JSON or is missing a field, or there are no frames at all.
    """
    index = path / INDEX
    try:
        values = read_json(index)
        count, boxes = int(values["count"]), dict(values["boxes"])
    except (KeyError, TypeError, ValueError) as error:
        raise PolypsegError(f"{index}: is missing an expected field ({error!r}); draw the frames again") from error
    if not (path / "images").is_dir():
        raise PolypsegError(f"{path / 'images'}: is missing; draw the frames again")
    found = pair(path / "images", path / "masks", NAME, problems)
    present = {file.stem for file in (path / "images").iterdir()}
    for name in map(frame_id, range(count)):
        if name not in present:
            file = path / "images" / f"{name}.jpg"
            message = f"{file}: is missing, but {INDEX} counts it; draw the frames again with the same arguments"
            problems.append(Problem("missing-frame", str(file), message))
    for row in found:
        row["boxes"] = boxes.get(row["frame_id"], [])
    return found


def _resume(out: Path, drawn: dict[str, Any], count: int) -> dict[str, list[list[int]]]:
    """The boxes of the frames that lie in ``out`` already; raises where the folder is not ours."""
    if not out.exists():
        return {}
    if not out.is_dir():
        raise PolypsegError(f"{out}: is a file; choose another --out")
    if not recognise(out):
        try:
            foreign = any(out.iterdir())
        except OSError as error:
            raise disk_error(out, error) from error
        if foreign:
            raise PolypsegError(f"{out}: contains other files, which are left alone; choose another --out")
        return {}
    index = out / INDEX
    values = read_json(index)
    values = values if isinstance(values, dict) else {}
    if not isinstance(values.get("boxes"), dict) or not isinstance(values.get("count"), int):
        raise PolypsegError(f"{index}: is no index of phantom frames; choose another --out")
    for key, value in drawn.items():
        if values.get(key) != value:
            message = f"was drawn with {key} {values.get(key)}, not {value}; choose another --out"
            raise PolypsegError(f"{index}: {message}")
    if values["count"] > count:
        raise PolypsegError(f"{index}: counts {values['count']} frames, more than {count}; choose another --out")
    return dict(values["boxes"])


def _encode(path: Path, picture: NDArray[Any], options: list[int]) -> None:
    done, data = cv2.imencode(path.suffix, picture, options)
    assert done, path  # OpenCV encodes every uint8 picture
    with atomic_write(path) as file:
        file.write(data.tobytes())


# --- one frame ---


def draw(
    seed: int, height: int = 288, width: int = 352, polyps: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one frame and its mask, fully determined by the arguments (and the versions of NumPy and OpenCV).

    The scene depends on the seed and the size alone: ``polyps=0`` draws the same wall without its polyps.

    Args:
        seed: 0 or more.
        height: pixels, 32 or more.
        width: likewise; one is at most ten times the other.
        polyps: how many, 0..5, each an own component of the mask; where the frame has no room for the last
            ones they are left out, but never the first. None draws none (about 8 %), one (most) or more.

    Returns:
        The frame, H×W×3 uint8 RGB, and the mask, H×W bool: the visible part of every polyp, so nothing in
        the black corners or behind a fold. A polyp covers 1 to 30 % of the frame, about 10 % in the median.

    Raises:
        UsageError: an argument is out of its range.
    """
    _check(seed, height, width)
    if polyps is not None and not 0 <= polyps <= MAX_POLYPS:
        raise UsageError(f"polyps is {polyps}; give 0 to {MAX_POLYPS}")
    # Three streams, so that what stands on the wall changes neither the wall nor the camera.
    scene, lesions, camera = np.random.default_rng(seed).spawn(3)
    wanted = _polyp_count(lesions, EMPTY_FRACTION)
    if polyps is not None:
        wanted = polyps

    view, display = _view(scene, height, width)
    tube = _tube(scene, height, width)
    light, albedo = tube.light.copy(), _mucosa(scene, tube)
    wet = tube.crest * np.float32(scene.uniform(0.3, 1.0))

    mask: NDArray[np.bool_] = np.zeros((height, width), bool)
    for polyp in _place(lesions, tube, view, wanted):
        _add_polyp(lesions, polyp, light, albedo, wet)
        mask |= polyp.mask

    picture = _expose(camera, light, albedo)
    picture = _highlights(camera, picture, light, wet)
    picture = _lens_and_sensor(camera, picture)
    return _screen(camera, picture, display, view), mask


def _check(seed: int, height: int, width: int) -> None:
    if seed < 0:
        raise UsageError(f"seed is {seed}; give 0 or more")
    if min(height, width) < MIN_SIDE:
        raise UsageError(f"a frame of {width}×{height} is too small; give at least {MIN_SIDE}×{MIN_SIDE}")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UsageError(f"a frame of {width}×{height} is too narrow; give sides up to {MAX_ASPECT}:1")


def _polyp_count(rng: np.random.Generator, empty_fraction: float) -> int:
    empty, several, three = rng.random(3)
    if empty < empty_fraction:
        return 0
    return (3 if three < 0.35 else 2) if several < SEVERAL_FRACTION else 1


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Field:
    """Smooth noise of about unit variance whose blobs are ``cell`` pixels wide."""
    cell = max(cell, 1.0)
    grid = (math.ceil(height / cell) + 3, math.ceil(width / cell) + 3)
    coarse = rng.standard_normal(grid, dtype=np.float32)
    size = (math.ceil(grid[1] * cell), math.ceil(grid[0] * cell))
    fine = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    y, x = round(1.2 * cell), round(1.2 * cell)
    return np.asarray(fine[y : y + height, x : x + width] * 1.35, np.float32)


def _blur(field: Field, sigma: float) -> NDArray[np.float32]:
    """Gaussian blur, ``sigma`` in pixels, of H×W or H×W×3."""
    if sigma < 0.2:
        return field
    if sigma < 5:
        return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)
    # A wide blur leaves no detail, so it is computed on a small copy.
    height, width = field.shape[:2]
    small = (max(1, round(3 * width / sigma)), max(1, round(3 * height / sigma)))
    coarse = cv2.GaussianBlur(cv2.resize(field, small, interpolation=cv2.INTER_AREA), (0, 0), 3)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _polar(x: NDArray[Any], y: NDArray[Any]) -> tuple[Field, Field]:
    """Distance from the origin, and angle, 0..2π."""
    distance, angle = cv2.cartToPolar(np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.float32))
    return np.asarray(distance, np.float32), np.asarray(angle, np.float32)


def _smoothstep(values: NDArray[Any], low: float, high: float) -> Field:
    """0 below ``low``, 1 above ``high``, and a smooth slope between them."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _wave(rng: np.random.Generator, angle: Field, orders: range, amplitude: float) -> Field:
    """A sum of cosines of an angle (0..2π): an outline's irregularity, the higher orders weaker."""
    turn = np.linspace(0, math.tau, 2048, dtype=np.float32)
    total = np.zeros_like(turn)
    for order in orders:
        size, phase = rng.normal(0, amplitude / math.sqrt(order - orders[0] + 1)), rng.uniform(0, math.tau)
        total += size * np.cos(order * turn + phase)
    nearest = np.clip(angle * (len(turn) / math.tau), 0, len(turn) - 1).astype(np.int32)
    return np.asarray(total[nearest], np.float32)


def _outline(rng: np.random.Generator, height: int, width: int) -> Points:
    """The outline of the lit field: an octagon (to the edge or set in from it) or a cut, rounded square."""
    kind = rng.random()
    x, y = (width - 1) / 2, (height - 1) / 2
    if kind < 0.7:
        inset = 0.0 if kind < 0.45 else rng.uniform(0.02, 0.07) * min(height, width)
        x, y = x - inset, y - inset
        cut_x, cut_y = rng.uniform(0.20, 0.36) * min(height, width), rng.uniform(0.20, 0.34) * height
        corner = np.array([[x, y - cut_y], [x - cut_x, y]])
        quarter = [corner, corner[::-1] * [-1, 1], -corner, corner[::-1] * [1, -1]]
        points = np.concatenate(quarter)
    else:
        angle = np.linspace(0, math.tau, 96, endpoint=False)
        power = 2 / rng.uniform(2.2, 4.0)
        cosine, sine = np.cos(angle), np.sin(angle)
        x, y = x * rng.uniform(0.98, 1.08), y * rng.uniform(1.0, 1.1)
        points = np.stack([x * np.sign(cosine) * abs(cosine) ** power, y * np.sign(sine) * abs(sine) ** power], 1)
    outline: Points = points + np.array([(width - 1) / 2, (height - 1) / 2])
    return outline


def _view(rng: np.random.Generator, height: int, width: int) -> tuple[Field, tuple[int, int, int, int] | None]:
    """What the screen shows of the scene (1, or 0 in the black corners), and where the position display lies.

    Returns:
        H×W float32 0..1, and the display's ``(xmin, ymin, xmax, ymax)`` or None.
    """
    canvas = np.zeros((height, width), np.uint8)
    points = np.round(_outline(rng, height, width) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], 255, lineType=cv2.LINE_AA, shift=4)
    share = rng.uniform(0.28, 0.36, 2)
    if rng.random() >= 0.25:
        return canvas.astype(np.float32) / np.float32(255), None
    box = (0, height - round(share[1] * height), round(share[0] * width), height)
    canvas[box[1] :, : box[2]] = 0
    return canvas.astype(np.float32) / np.float32(255), box


@dataclass
class _Ring:
    """One haustral fold: a ring around the lumen, seen from the near side."""

    ratio: Field  # distance from the ring's centre over its radius there: below 1 lies what is deeper
    height: Field  # 0..1, how far the fold stands out at this angle


@dataclass
class _Tube:
    """The colon's wall without its colour."""

    light: Field  # how much of the endoscope's light comes back, about 1 on the near wall
    crest: Field  # 0..1, where the wall faces the endoscope and is wet
    depth: Field  # distance from the lumen, in half frames: the wall is near where it is large
    angle: Field  # around the lumen, radians
    rings: list[_Ring]


def _tube(rng: np.random.Generator, height: int, width: int) -> _Tube:
    half = min(height, width) / 2
    x = np.broadcast_to((np.arange(width, dtype=np.float32) - (width - 1) / 2) / half, (height, width))
    y = ((np.arange(height, dtype=np.float32) - (height - 1) / 2) / half)[:, None]
    x = x + 0.05 * _noise(rng, height, width, 0.6 * half)
    y = y + 0.05 * _noise(rng, height, width, 0.6 * half)

    away, direction, bends = rng.uniform(0.1, 0.75), rng.uniform(0, math.tau), 0.62
    if rng.random() < 0.35:  # the endoscope looks at the wall; the lumen lies at the frame's edge or outside
        away, bends = rng.uniform(0.9, 1.5), 0.2
    lumen = (away * math.cos(direction) * width / (2 * half), away * math.sin(direction))
    depth, angle = _polar(x - lumen[0], y - lumen[1])
    depth *= 1 + _wave(rng, angle, range(2, 4), 0.08)

    light = 0.02 + (depth / (depth + 0.75)) ** rng.uniform(1.1, 1.6) * 2
    light *= 1 - np.exp(-((depth / rng.uniform(0.12, 0.24)) ** 2))
    # One side of the tube is nearer than the other and may be overexposed.
    side = rng.uniform(0, math.tau)
    light *= np.exp(rng.uniform(0.0, 0.45) * (x * math.cos(side) + y * math.sin(side)))
    light *= 1 + 0.10 * _noise(rng, height, width, 0.35 * half) + 0.12 * _noise(rng, height, width, 0.9 * half)
    crest = np.full((height, width), 0.05, np.float32)

    rings = []
    radius, shrink, turn = rng.uniform(0.9, 1.7), rng.uniform(0.58, 0.74), rng.uniform(0, math.tau)
    first, line = radius, 1.2 / half  # an edge is drawn about a pixel wide
    while radius > 0.16:
        # Nearer rings lie nearer to the frame's centre: the tube bends towards its lumen.
        bend = 1 - bends * (radius / first) * rng.uniform(0.8, 1.1)
        distance, around = _polar(x - lumen[0] * bend, y - lumen[1] * bend)
        # Three muscle bands hold the wall in, which makes the opening a rounded triangle.
        triangle = 1 + rng.uniform(0.02, 0.1) * np.cos(3 * around + turn) + _wave(rng, around, range(1, 6), 0.05)
        ratio = distance / (np.float32(radius) * triangle)
        stands = np.clip(rng.uniform(0.25, 0.7) + 0.75 * np.cos(around - rng.uniform(0, math.tau)), 0, 1)
        stands *= rng.uniform(0.6, 1.0)
        near = ratio - 1
        outside = _smoothstep(near * np.float32(radius), -line, line)
        beyond, within = np.clip(near, 0, None), np.clip(near, None, 0)
        face = 0.55 * np.exp(-beyond / rng.uniform(0.12, 0.25)) + 0.45 * np.exp(-beyond / 0.035)
        valley = np.exp(within / rng.uniform(0.16, 0.4))
        light *= 1 + stands * (outside * (0.62 * face) - (1 - outside) * (0.14 + 0.5 * valley))
        crest = np.maximum(crest, outside * stands * face)
        rings.append(_Ring(ratio, stands))
        radius *= shrink * rng.uniform(0.85, 1.15)
        turn += rng.normal(0, 0.3)
    return _Tube(np.asarray(light, np.float32), crest, depth, angle, rings)


@dataclass
class _Polyp:
    """A polyp that has its place in the frame."""

    mask: NDArray[np.bool_]  # H×W, the part that is seen
    ratio: Field  # distance from the middle over the outline's there: below 1 inside
    x: Field  # from the middle, in radii, in the frame's axes
    y: Field
    radius: float  # pixels, the longer one
    kind: str  # sessile, pedunculated or flat


def _place(rng: np.random.Generator, tube: _Tube, view: Field, wanted: int) -> list[_Polyp]:
    """Find a place for each polyp: lit, mostly in view, and apart from the others."""
    height, width = view.shape
    shown = view >= 0.5
    taken = np.zeros((height, width), bool)
    placed: list[_Polyp] = []
    for _ in range(wanted):
        kind = str(rng.choice(["sessile", "pedunculated", "flat"], p=[0.55, 0.27, 0.18]))
        median = 0.115 if wanted == 1 else 0.05
        share = float(np.clip(median * math.exp(rng.normal(0, 0.8)), AREA[0], AREA[1] / wanted))
        behind = rng.random() < 0.5
        for attempt in range(ATTEMPTS):  # what is asked of a place grows less with every attempt
            must = attempt == ATTEMPTS - 1 and not placed
            middle = int(rng.beta(1.4, 1.4) * height), int(rng.beta(1.4, 1.4) * width)
            if must:  # the first polyp is never left out: a small one, far from every edge
                inside = cv2.distanceTransform(np.pad(shown, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
                middle, share = divmod(int(inside.argmax()), width), AREA[0]
            else:
                dark = tube.light[middle] < 0.45 or tube.depth[middle] < 0.22 < 8 * share
                if not shown[middle] or taken[middle] or (dark and attempt < 40):
                    continue
            polyp = _shape(rng, kind, middle, share, (height, width))
            whole = np.count_nonzero(polyp.mask)
            visible = polyp.mask & shown
            if behind and attempt < 30:
                for ring in tube.rings:
                    if ring.ratio[middle] < 1:  # the fold is nearer; where it fades, the polyp stands over it
                        visible &= ring.ratio < 1 + 3 * (1 - ring.height) ** 2
            polyp.mask = _largest(visible)
            area = np.count_nonzero(polyp.mask)
            fits = area >= (0.85 if attempt < 8 else 0.65) * whole and area >= 0.01 * height * width
            if must or (fits and not (polyp.mask & taken).any()):
                placed.append(polyp)
                gap = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.08 * polyp.radius) + 5,) * 2)
                taken |= cv2.dilate(polyp.mask.astype(np.uint8), gap) > 0
                break
            share = max(share * 0.94, AREA[0])
    return placed


def _shape(rng: np.random.Generator, kind: str, middle: tuple[int, int], share: float, size: tuple[int, int]) -> _Polyp:
    """A whole polyp at ``middle`` (row, column) that covers about ``share`` of the frame."""
    oblong = rng.uniform(0.82, 1.0) if kind == "pedunculated" else rng.uniform(0.58, 0.95)
    radius = math.sqrt(share * size[0] * size[1] / (math.pi * oblong))
    row, column = (np.arange(side, dtype=np.float32) - at for side, at in zip(size, middle, strict=True))
    x, y = np.broadcast_to(column / radius, size), np.broadcast_to(row[:, None] / radius, size)
    turn = rng.uniform(0, math.pi)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    distance, angle = _polar(along, across / oblong)
    uneven = _wave(rng, angle, range(2, 8), 0.025 if kind == "pedunculated" else 0.06)
    ratio = distance / (1 + uneven)
    return _Polyp(ratio < 1, ratio, x, y, radius, kind)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 8-connected component; a fold or a corner may have cut a crumb off."""
    labels, statistics = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[1:3]
    return mask if len(statistics) <= 2 else labels == 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())


def _mucosa(rng: np.random.Generator, tube: _Tube) -> NDArray[np.float32]:
    """The wall's colour, H×W×3: what share of red, green and blue light it gives back."""
    height, width = tube.light.shape
    tones = [
        (0.85, 0.30, 0.24),
        (0.90, 0.37, 0.19),
        (0.75, 0.25, 0.18),
        (0.87, 0.45, 0.34),
        (0.87, 0.33, 0.27),
    ]
    tone = np.array(tones[rng.integers(len(tones))]) * np.exp(rng.normal(0, [0.04, 0.10, 0.13]))
    blood = 0.09 * _noise(rng, height, width, 0.30 * min(height, width))
    blood += 0.05 * _noise(rng, height, width, 0.08 * min(height, width))
    blood += rng.uniform(0.02, 0.05) * _noise(rng, height, width, 0.012 * min(height, width))
    blood += rng.uniform(0.3, 1.1) * _vessels(rng, tube)
    blood += 0.35 * np.exp(-tube.depth / 0.25)  # light that comes back from the deep has met more of it
    absorbed = np.array([0.20, 0.98, 0.80], np.float32)
    albedo: NDArray[np.float32] = tone.astype(np.float32) * np.exp(-blood[..., None] * absorbed)
    if rng.random() < 0.2:  # a film of yellow residue
        patches = _noise(rng, height, width, 0.16 * min(height, width)) + 0.6 * _noise(rng, height, width, 8)
        film = rng.uniform(0.2, 0.6) * _smoothstep(patches, 1.7, 3.2)[..., None]
        albedo = albedo * (1 - film) + film * np.array([0.90, 0.63, 0.17], np.float32)
    return albedo


def _vessels(rng: np.random.Generator, tube: _Tube) -> Field:
    """Branching vessels, 0..1: random walks that bear thinner ones."""
    height, width = tube.light.shape
    unit = min(height, width) / 288
    canvas = np.zeros((height, width), np.uint8)
    trunks = [
        (rng.uniform(0, 1, 2) * [width, height], rng.uniform(0, math.tau), rng.uniform(1.2, 2.2))
        for _ in range(rng.integers(5, 13))
    ]
    while trunks:
        start, heading, calibre = trunks.pop()
        steps = int(rng.integers(12, 28))
        headings = heading + np.cumsum(rng.normal(0, 0.28, steps))
        stride = (2.2 + 1.6 * calibre) * unit
        path = start + stride * np.cumsum(np.stack([np.cos(headings), np.sin(headings)], 1), axis=0)
        strength = int(70 + 75 * calibre)
        cv2.polylines(
            canvas, [np.round(path * 16).astype(np.int32)], False, min(strength, 255),
            max(1, round(calibre * unit)), cv2.LINE_AA, shift=4,
        )  # fmt: skip
        if calibre > 0.62:
            for at in rng.integers(3, steps, rng.integers(1, 4)):
                side = rng.choice([-1, 1]) * rng.uniform(0.4, 1.1)
                trunks.append((path[at], headings[at] + side, calibre * rng.uniform(0.55, 0.8)))
    vessels = _blur(canvas.astype(np.float32) / np.float32(255), 0.7 * unit)
    patchy = _smoothstep(_noise(rng, height, width, 0.35 * min(height, width)), -1.2, 0.8)
    return vessels * patchy * _smoothstep(tube.depth, 0.1, 0.5)


def _add_polyp(rng: np.random.Generator, polyp: _Polyp, light: Field, albedo: NDArray[np.float32], wet: Field) -> None:
    """Change the scene's light, colour and wetness in place: a polyp, its shadow and its stalk."""
    unit = min(light.shape) / 288
    left, top, width, height = cv2.boundingRect(polyp.mask.astype(np.uint8))
    pad = round(0.9 * polyp.radius) + 4
    window = np.s_[max(top - pad, 0) : top + height + pad, max(left - pad, 0) : left + width + pad]
    light, albedo, wet = light[window], albedo[window], wet[window]
    mask, ratio, x, y = polyp.mask[window], polyp.ratio[window], polyp.x[window], polyp.y[window]
    height, width = mask.shape

    bulge = {"sessile": 0.9, "pedunculated": 0.985, "flat": 0.62}[polyp.kind] * rng.uniform(0.97, 1.0)
    alpha = _blur(mask.astype(np.float32), (1.6 if polyp.kind == "flat" else 0.8) * unit)
    there = light[mask]
    level = float(np.clip(np.percentile(there, 75), 0.6, 1.6)) * rng.uniform(1.05, 1.35)
    around = np.clip(_blur(light, 0.5 * polyp.radius) / max(float(there.mean()), 1e-3), 0.5, 1.6)
    base = _blur(albedo, 0.3 * polyp.radius)

    if polyp.kind == "pedunculated" and rng.random() < 0.7:
        # The stalk is ordinary mucosa, and so it is no part of the mask.
        lean, thick = rng.uniform(0, math.tau), rng.uniform(0.3, 0.45)
        along, aside = x * math.cos(lean) + y * math.sin(lean), y * math.cos(lean) - x * math.sin(lean)
        aside = np.abs(aside) / (thick * (0.75 + 0.35 * along**2))
        stalk = _smoothstep(1 - aside, 0, 0.15) * _smoothstep(along, 0, 0.3) * (1 - _smoothstep(along, 1.25, 1.75))
        light += stalk * (level * (0.35 + 0.6 * np.sqrt(np.clip(1 - aside**2, 0, 1))) - light)

    lamp, tilt = rng.uniform(0, math.tau), rng.uniform(0.1, 0.45)
    lamp_x, lamp_y = tilt * math.cos(lamp), tilt * math.sin(lamp)
    reach = (0.05 if polyp.kind == "flat" else 0.16) * polyp.radius
    shift = np.array([[1, 0, -lamp_x * 2.2 * reach], [0, 1, -lamp_y * 2.2 * reach]], np.float32)
    cast = cv2.warpAffine(mask.astype(np.float32), shift, (width, height))
    shadow = _blur(np.asarray(cast, np.float32), reach)
    light *= 1 - {"sessile": 0.45, "pedunculated": 0.6, "flat": 0.15}[polyp.kind] * shadow

    # A dome: the normal leans outwards with the distance from the middle; noise makes it lobed and pitted.
    slope = bulge * np.clip(ratio, 0, 1) ** (2.0 if polyp.kind == "flat" else 1.0)
    distance = np.sqrt(x**2 + y**2) + 1e-6
    lobes = _noise(rng, height, width, max(0.42 * polyp.radius, 2)) * polyp.radius * rng.uniform(0.01, 0.035)
    pits = _noise(rng, height, width, max(rng.uniform(0.05, 0.1) * polyp.radius, 1.6 * unit))
    relief = lobes + pits * polyp.radius * rng.uniform(0.002, 0.005)
    normal_x = slope * x / distance - cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=0.125)
    normal_y = slope * y / distance - cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=0.125)
    normal_z = np.sqrt(np.clip(1 - slope**2, 0.02, None))
    length = np.sqrt(normal_x**2 + normal_y**2 + normal_z**2)
    facing = np.clip((normal_x * lamp_x + normal_y * lamp_y + normal_z) / (length * math.hypot(1, tilt)), 0, 1)
    own_light = level * np.sqrt(around) * (0.15 + 0.85 * facing)

    # Reddish, pale, or close to the wall's own colour; the pits hold more blood than the ridges.
    change = rng.choice(3, p=[0.45, 0.25, 0.3])
    tint = np.array([(0.98, 0.70, 0.74), (1.04, 1.18, 1.20), (1.0, 0.88, 0.90)][change], np.float32)
    tint **= np.float32(rng.uniform(0.6, 1.4))
    blood = 0.10 * _noise(rng, height, width, max(0.35 * polyp.radius, 2)) - rng.uniform(0.02, 0.09) * pits
    own_albedo = base * tint * np.exp(-blood[..., None] * np.array([0.25, 1.15, 0.95], np.float32))

    shiny = np.exp(-((x - 0.7 * lamp_x) ** 2 + (y - 0.7 * lamp_y) ** 2) / rng.uniform(0.05, 0.18))
    light += alpha * (own_light - light)
    albedo += alpha[..., None] * (own_albedo - albedo)
    wet += alpha * (shiny * rng.uniform(0.5, 1.0) - wet)


def _expose(rng: np.random.Generator, light: Field, albedo: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light and colour into a picture, H×W×3, 0..1; bright parts fade into warm white."""
    height, width = light.shape
    row, column = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    light = light * (1 - rng.uniform(0.05, 0.25) * (row[:, None] ** 2 + column**2))  # vignette
    gain = rng.uniform(1.4, 2.1)
    balance = np.exp(rng.normal(0, [0.03, 0.03, 0.06])).astype(np.float32)
    picture = 1 - np.exp(-gain * np.clip(light, 0.0, 4)[..., None] * (balance * albedo))
    exposed: NDArray[np.float32] = 0.6 * picture + 0.4 * picture * picture * (3 - 2 * picture)
    return exposed


def _highlights(
    rng: np.random.Generator, picture: NDArray[np.float32], light: Field, wet: Field
) -> NDArray[np.float32]:
    """The lamp's reflections on wet mucosa: small, ragged, nearly white."""
    height, width = light.shape
    unit = min(height, width) / 288
    small, large = _noise(rng, height, width, 3.6 * unit), _noise(rng, height, width, 9 * unit)
    clusters = _noise(rng, height, width, 40 * unit)
    amount = 0.40 * small + 0.60 * large + 0.8 * clusters + 2.2 * np.clip(wet, 0, 1.1) + 0.3 * np.clip(light, 0, 2)
    threshold = rng.uniform(3.1, 4.0)
    shine = _smoothstep(amount, threshold, threshold + 0.25) * _smoothstep(light, 0.12, 0.3)
    glow = 0.25 * _blur(shine, 2.5 * unit)
    shine = np.clip(shine + glow, 0, 1)[..., None]
    return picture + shine * (np.array([1.0, 0.99, 0.97], np.float32) - picture)


def _lens_and_sensor(rng: np.random.Generator, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lens blur and sensor noise."""
    height, width = picture.shape[:2]
    picture = _blur(picture, rng.choice([0.45, 0.7, 1.1], p=[0.5, 0.35, 0.15]) * min(height, width) / 288)
    grain = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(0.004, 0.014)
    return np.clip(picture, 0, 1) + grain[..., None]


def _screen(
    rng: np.random.Generator, picture: NDArray[np.float32], box: tuple[int, int, int, int] | None, view: Field
) -> NDArray[np.uint8]:
    """The picture as the processor shows it: black corners and perhaps the position display."""
    black = np.array([1, 1, 1], np.float32) * rng.uniform(0, 8)
    values = picture * 255 * view[..., None] + black * (1 - view[..., None])
    screen = np.clip(np.round(values), 0, 255).astype(np.uint8)
    if box is not None:
        left, top, right, bottom = box
        screen[top:bottom, left:right] = (8, 66, 34)
        size = np.array([right - left, bottom - top])
        bends = [(0.5, 0.96), (0.52, 0.6), (0.72, 0.32), (0.5, 0.2), (0.3, 0.32), (0.28, 0.7)]
        knots = (np.array(bends) + rng.normal(0, 0.03, (len(bends), 2))) * size + [left, top]
        curve = cv2.resize(knots.astype(np.float32)[:, None], (1, 60), interpolation=cv2.INTER_CUBIC)
        thickness = max(1, round(0.03 * min(size)))
        tube = np.round(curve * 16).astype(np.int32)
        cv2.polylines(screen, [tube], False, (96, 220, 120), thickness, cv2.LINE_AA, shift=4)
    return screen
