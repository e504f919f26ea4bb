"""The one way in which a mask is read: strictly, its values judged as the file contains them, before any conversion.

A mask is black and white. Edges may be grey, as JPEG and resizing leave them. Anything else (classes, a small range
in 16 bits, colours, transparency, areas of grey) is refused with the values found, or read by a kind that says how:

- ``binary``: above 127 of 255 is polyp.
- ``nonzero``: any value but 0.
- ``class:1`` or ``class:1,3``: these values, or palette indices.
- ``colour``: any colour but black.
- ``alpha``: what is opaque.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polypseg.errors import PolypsegError, UsageError
from polypseg.io.depth import deep_samples, is_deep

THRESHOLD = 127  # of 0..255; grey values above it are polyp
BLACK, WHITE = 31, 224  # of 0..255; values up to the one and from the other on are meant as black and white
EDGE = 0.02  # of the longer side; wider grey than this is no edge
COLOUR = {False: 63, True: 95}  # of 0..255; a brighter channel is colour: lossless, and JPEG, which blurs colours
TINT = 16  # grey values by which channels of a grey picture may differ
KINDS = ("binary", "nonzero", "class:N", "colour", "alpha")


class MaskError(PolypsegError):
    """A mask's values do not say for certain what is polyp."""


def check_kind(kind: str) -> str:
    """A kind of mask as it is written in a Catalog. Raises ``UsageError`` where there is no such kind."""
    kind = "colour" if kind == "color" else kind
    if kind not in KINDS[:2] + KINDS[3:] and not re.fullmatch(r"class:\d{1,5}(,\d{1,5})*", kind):
        raise UsageError(f"--masks {kind}: is no way to read masks; choose one of {', '.join(KINDS)} (as class:1)")
    return kind


def mask_values(image: Image.Image, path: str | Path, kind: str = "binary") -> NDArray[np.uint8]:
    """The grey values of a mask, not yet turned.

    Args:
        image: opened, not yet decoded.
        path: its file.
        kind: how it is read, as in ``KINDS``.

    Returns:
        H×W uint8; above ``THRESHOLD`` is polyp. For ``binary`` the file's own values, in 8 bits; else 0 and 255.

    Raises:
        MaskError: the file contains something that this kind does not read.
    """
    deep, lossy = is_deep(image), _is_lossy(image, path)
    if kind == "binary" and image.format == "JPEG" and image.mode == "RGB" and _is_grey(image, path):
        image.draft("L", image.size)  # as fast as without looking at the colours
    image.load()
    if image.mode in ("P", "PA") and kind in ("binary", "colour"):
        _check_palette(image, path)
    samples, alpha = _samples(image, path, deep)
    if kind == "alpha":
        if alpha is None:
            raise MaskError(f"{path}: mask has no alpha channel; read it without --masks alpha")
        return _black_and_white(alpha, path)
    if kind == "colour":
        return _coloured(samples, path, lossy)
    if kind == "binary":
        if alpha is not None and alpha.min(initial=255) < _white(alpha):
            raise MaskError(
                f"{path}: mask has an alpha channel that is not opaque; save it without one, or read the alpha "
                "(--masks alpha) or the colours (--masks colour)"
            )
        return _black_and_white(_grey(samples, path), path)
    if lossy:
        raise MaskError(f"{path}: is a JPEG or lossy WebP, which keeps no classes; save masks as PNG")
    classes = np.asarray(image) if image.mode in ("P", "PA") else _grey(samples, path)
    chosen = classes > 0 if kind == "nonzero" else np.isin(classes, [int(n) for n in kind[6:].split(",")])
    return chosen.astype(np.uint8) * np.uint8(255)


def _check_palette(image: Image.Image, path: str | Path) -> None:
    """Refuse several palette indices that all look alike, as where classes were saved and the palette was not."""
    indices = np.unique(np.asarray(image.getchannel(0) if image.mode == "PA" else image))
    if len(indices) > 1 and len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) == 1:
        raise MaskError(
            f"{path}: mask's palette has one colour for the indices {_found(indices)}; save polyps as white on black, "
            f"or read it with --masks {_remedy(indices, int(indices[-1]))}"
        )


def _samples(image: Image.Image, path: str | Path, deep: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The samples as they are stored, H×W or H×W×3, uint8 or uint16, and the alpha channel where there is one."""
    if deep:
        pixels = deep_samples(image, path)
        return (pixels[..., :3], pixels[..., 3]) if pixels.ndim == 3 and pixels.shape[2] == 4 else (pixels, None)
    if image.mode == "1":
        return np.asarray(image.convert("L")), None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        return np.asarray(image.convert("RGB")), np.asarray(image.getchannel("A"))
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")), None


def _grey(samples: NDArray[Any], path: str | Path) -> NDArray[Any]:
    """One channel of samples that are grey."""
    if samples.ndim == 2:
        return samples
    scale = _white(samples) // 255
    spread, green = _spread(samples)
    if spread > TINT * scale:
        wide = samples.max(-1).astype(int) - samples.min(-1) > TINT * scale
        colours = np.unique(samples[wide][:: max(1, int(wide.sum()) // 10_000)], axis=0)
        shown = ", ".join(str(tuple(map(int, colour))) for colour in colours[-3:])
        more = f" and {len(colours) - 3} more" if len(colours) > 3 else ""
        raise MaskError(
            f"{path}: mask is in colour ({shown}{more}); save polyps as white on black, or read every colour but "
            "black as polyp with --masks colour"
        )
    return green


def _spread(samples: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """How much the channels of H×W×3 samples differ from the second one, at most, and that one."""
    import cv2

    red, green, blue = cv2.split(np.ascontiguousarray(samples))
    return max(cv2.norm(red, green, cv2.NORM_INF), cv2.norm(blue, green, cv2.NORM_INF)), np.asarray(green)


def _is_grey(image: Image.Image, path: str | Path) -> bool:
    """Whether a JPEG has no colour, by its 8×8 blocks' means."""
    with Image.open(path) as small:
        small.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        return _spread(np.asarray(small))[0] <= TINT


def _black_and_white(values: NDArray[Any], path: str | Path) -> NDArray[np.uint8]:
    """Values that are black and white with grey edges, in 8 bits; others are refused."""
    top = _white(values)
    levels: NDArray[np.uint8] = np.ascontiguousarray(values if top == 255 else values // 257, dtype=np.uint8)
    greatest = int(values.max(initial=0))
    depth = "16-bit " if top == 65535 else ""
    if 0 < greatest < WHITE * (top // 255):
        raise MaskError(
            f"{path}: mask contains the {depth}values {_found(values)}, no white ({top}); save polyps as {top}, or "
            f"read it with --masks {_remedy(values, greatest)}"
        )
    area = _grey_area(levels) if greatest else None
    if area is None:
        return levels
    value = int(np.bincount(levels[area]).argmax())
    native = int(values[area & (levels == value)][0])
    if value > BLACK:
        raise MaskError(
            f"{path}: mask contains areas of grey, neither polyp nor background (the {depth}values {_found(values)}); "
            f"save polyps as {top}, or read it with --masks {_remedy(values, native)}"
        )
    if not _eroded(levels >= WHITE, _edge(levels)).any():
        raise MaskError(
            f"{path}: white is only a border around areas of the {depth}value {native}, as of classes with a void "
            f"border; save polyps as {top}, or read it with --masks class:{native}"
        )
    return levels


def _grey_area(levels: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Where a mask is grey but for edges: too wide for one, or 3×3 and more of one middle value; None if nowhere."""
    if not _between(levels, 1, 254).any():  # as nearly always
        return None
    side = _edge(levels)
    step = side // 5
    some = np.ascontiguousarray(levels[::step, ::step])  # most masks need no closer look
    for low, high in ((BLACK + 1, WHITE - 1), (1, BLACK)):
        if _eroded(_between(some, low, high), 5).any():
            wide = _eroded(_between(levels, low, high), side)
            if wide.any():
                return wide
    if _between(some, BLACK + 1, WHITE - 1).any():
        middle = _between(levels, BLACK + 1, WHITE - 1)
        counts = np.bincount(levels[middle], minlength=256)
        flat = _eroded(levels == counts.argmax(), 3)
        if 2 * counts.max() > counts.sum() and flat.any():
            return flat
    return None


def _edge(levels: NDArray[np.uint8]) -> int:
    """How many pixels wide the grey of an edge may be, 7 or more."""
    return max(7, round(max(levels.shape, default=0) * EDGE))


def _between(levels: NDArray[np.uint8], low: int, high: int) -> NDArray[np.bool_]:
    import cv2

    return np.asarray(cv2.inRange(levels, low, high) > 0) if levels.size else levels.astype(bool)


def _eroded(inside: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    import cv2

    kernel = np.ones((side, side), np.uint8)
    return cv2.erode(np.ascontiguousarray(inside).view(np.uint8), kernel).astype(bool) if inside.size else inside


def _coloured(samples: NDArray[Any], path: str | Path, lossy: bool) -> NDArray[np.uint8]:
    """255 where the brightest channel is colour; refused where areas are too dark to tell from black."""
    brightest = samples.max(-1) if samples.ndim == 3 else samples
    levels = np.ascontiguousarray(brightest if _white(brightest) == 255 else brightest >> 8, dtype=np.uint8)
    threshold = COLOUR[lossy]
    dark = _eroded(_between(levels, BLACK + 1, threshold), _edge(levels))
    if dark.any() or (0 < int(levels.max(initial=0)) <= threshold):
        raise MaskError(
            f"{path}: mask contains areas too dark to tell from black (up to {threshold} of 255); save polyps brighter"
        )
    return np.where(levels > threshold, np.uint8(255), np.uint8(0))


def _white(values: NDArray[Any]) -> int:
    return 65535 if values.dtype == np.uint16 else 255


def _found(values: NDArray[Any]) -> str:
    """The values of a mask for a message, as ``0, 1 and 2``."""
    found = [int(value) for value in np.unique(values)]
    if len(found) > 5:
        return f"{found[0]}, {found[1]}, {found[2]} … {found[-1]}, {len(found)} in all"
    return " and ".join([", ".join(map(str, found[:-1])), str(found[-1])] if len(found) > 1 else map(str, found))


def _remedy(values: NDArray[Any], value: int) -> str:
    """The kinds that may be meant; of a continuum of greys no single value is."""
    return f"nonzero or class:{value}" if len(np.unique(values)) <= 16 else "nonzero"


def _is_lossy(image: Image.Image, path: str | Path) -> bool:
    if image.format == "WEBP":
        with Path(path).open("rb") as file:
            return b"VP8L" not in file.read(64)
    return image.format in ("JPEG", "MPO")
