"""16-bit samples: how many of their bits are in use, and those of several channels, which Pillow cuts to 8 bits."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

log = logging.getLogger("polypseg")
_MAX_SAMPLE_VALUE = 281  # TIFF's tag
_told: set[tuple[str, str]] = set()  # folders of which a warning was given, and which


def is_deep(image: Image.Image) -> bool:
    """Whether an image file has samples of more than 8 bits; asked before it is decoded."""
    tiles = getattr(image, "tile", ())  # each names how its samples are packed, as RGB;16B
    packed = [tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0] for tile in tiles]
    return image.mode.startswith("I") or any(";16" in str(name) for name in packed)


def deep_samples(image: Image.Image, path: str | Path, content: bytes | None = None) -> NDArray[np.uint16]:
    """The samples of a deep image as they are stored: H×W or H×W×3 (RGB) or ×4 (RGBA) uint16, not yet turned.

    Args:
        image: decoded.
        path: its file.
        content: the file's bytes where they are known.
    """
    if image.mode.startswith("I"):
        return np.asarray(image).clip(0, 65535).astype(np.uint16)
    import cv2  # Pillow keeps only the high byte of each of several channels

    data = np.frombuffer(Path(path).read_bytes() if content is None else content, np.uint8)
    pixels: Any = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != image.size[::-1]:
        return np.asarray(image).astype(np.uint16) * np.uint16(257)
    return np.asarray(pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def eight_bits(image: Image.Image, path: str | Path, content: bytes | None = None) -> Image.Image:
    """A decoded deep image with 8 bits a sample, the highest of the bits that are in use.

    The bits are those that the file names (TIFF: BitsPerSample, MaxSampleValue; PNG: sBIT). One that names none and
    stays below 1/16 of the range contains 12 bits, or 8; that is said in a warning, once for a folder.

    Args:
        image: decoded, not yet turned.
        path: its file.
        content: the file's bytes where they are known.

    Returns:
        The image, with the same EXIF block; its mode is L, RGB or RGBA.
    """
    if not image.mode.startswith("I") and np.asarray(image).max(initial=0) >= 128:
        return image  # Pillow's high bytes span the range
    pixels = deep_samples(image, path, content)
    colours = pixels[..., :3] if pixels.ndim == 3 else pixels
    bits, doubt = _bits_in_use(image, colours, path, content)
    if doubt is not None:
        warn(path, doubt)
    result = Image.fromarray((colours >> (bits - 8)).astype(np.uint8))
    result.getexif().update(image.getexif())
    return result


def doubtful_bits(image: Image.Image, path: str | Path) -> str | None:
    """What ``eight_bits`` would warn of, as ``contains values up to …``; ``image`` is opened, not yet decoded."""
    if not is_deep(image):
        return None
    image.load()
    pixels = deep_samples(image, path)
    return _bits_in_use(image, pixels[..., :3] if pixels.ndim == 3 else pixels, path, None)[1]


def _bits_in_use(
    image: Image.Image, pixels: NDArray[np.uint16], path: str | Path, content: bytes | None
) -> tuple[int, str | None]:
    """How many bits of the samples are in use, 8..16, and what makes that doubtful."""
    greatest = int(pixels.max(initial=0))
    named = _named_bits(image, path, content)
    if named is not None:
        if image.format == "PNG" and named < 16 and not (pixels & ((1 << (16 - named)) - 1)).any():
            return 16, None  # as the standard wants it: the significant bits are the high ones
        return named if greatest < 1 << named else 16, None
    bits = bits_by_value(greatest)
    if greatest > 0 and bits < 16:
        return bits, f"contains values up to {greatest} of 65535 and is read as {bits} bits"
    if 0 < greatest < 16384:
        return 16, f"contains values up to {greatest} of 65535 and is read as 16 bits, that is, dark"
    return 16, None


def bits_by_value(greatest: int) -> int:
    """How many bits are taken to be in use, 8, 12 or 16, where nothing but the greatest value says it."""
    return 8 if greatest < 256 else 12 if greatest < 4096 else 16


def _named_bits(image: Image.Image, path: str | Path, content: bytes | None) -> int | None:
    """The bits of a sample that the file's own metadata name, 8..16; else None."""
    if isinstance(image, TiffImageFile):
        stored: Any = image.tag_v2.get(ExifTags.Base.BitsPerSample, 16)
        bits = max(stored) if isinstance(stored, tuple) else int(stored)
        largest: Any = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        if bits < 16:
            return max(bits, 8)
        if largest:
            return min(max(int(max(largest) if isinstance(largest, tuple) else largest).bit_length(), 8), 16)
        return None
    if image.format == "PNG":
        bits = _sbit(path, content)
        return None if bits is None else min(max(bits, 8), 16)
    return None


def _sbit(path: str | Path, content: bytes | None) -> int | None:
    """The greatest number of significant bits in a PNG's sBIT chunk, which stands before the pixels."""
    with Path(path).open("rb") if content is None else io.BytesIO(content) as file:
        file.seek(8)  # the signature
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT" and 0 < length <= 4:
                return max(file.read(length)[:3], default=None)
            file.seek(length + 4, io.SEEK_CUR)  # 4: the checksum
    return None


def warn(path: str | Path, what: str) -> None:
    """Warn of a doubtful depth, as ``contains values up to 2307 of 65535 and is read as 12 bits``.

    Once for a folder: its other files will be of the same kind.
    """
    key = str(Path(path).parent), what.rpartition(" and ")[2]
    if key not in _told:
        _told.add(key)
        log.warning(
            "%s: %s, and others like it beside it; a file says how many bits it has in TIFF's MaxSampleValue, PNG's "
            "sBIT or DICOM's BitsStored", path, what,
        )  # fmt: skip
