"""The one way in which a frame or a mask is read from a picture file."""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from polypseg.errors import PolypsegError
from polypseg.io.depth import doubtful_bits, eight_bits, is_deep
from polypseg.io.label_files import is_label_kind, label_mask
from polypseg.io.masks import THRESHOLD as MASK_THRESHOLD
from polypseg.io.masks import mask_values

MAX_PIXELS = 80_000_000  # a frame larger than this is refused before it is decoded
MAX_SCANS = 100  # of a JPEG: editors make a dozen, and each costs a pass over the whole picture
MAX_PIECES = 10_000  # of a PNG or JPEG, or one a KiB: Pillow takes 5 µs for each, and a hostile file has millions
MAX_PAGES = 100  # are counted, of a TIFF: a hostile one has hundreds of thousands, and counting takes minutes
_JPEG_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xF0), 0xFE} - {0xC8}  # the markers with a length behind them
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither padding nor what stands within a scan


def open_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Open an image file lazily (its header only) and check that it contains one picture of a sane size.

    Args:
        path: the file.
        content: its bytes, where something else has read them; ``path``, perhaps a URL, then only names it in errors.

    Returns:
        A Pillow image, not yet decoded, EXIF orientation not yet applied.

    Raises:
        PolypsegError: the file is missing, empty, no image, larger than ``MAX_PIXELS``, of more than ``MAX_SCANS``,
            contains several pictures (an animation, pages), or has samples without a defined 8-bit meaning.
    """
    file = Path(path) if content is None else io.BytesIO(content)
    try:
        size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
        if size == 0:
            raise PolypsegError(f"{path}: is empty (0 bytes); restore it or remove it")
        _check_pieces(path, file, size)
        image = Image.open(file)
        # A JPEG of a camera may carry its own preview as a second picture (MPO): the first is the frame.
        pictures = 1 if image.format == "MPO" else _count_pictures(image)
        scans = _count_scans(file) if image.format in ("JPEG", "MPO") else 1
        # A tile is decoded as a whole, whatever the size of the picture.
        tile = image.tag_v2.get(322, 0) * image.tag_v2.get(323, 0) if isinstance(image, TiffImageFile) else 0
    except PolypsegError:
        raise
    except Image.DecompressionBombError as error:
        raise PolypsegError(f"{path}: is larger than {MAX_PIXELS:,} pixels and was not decoded") from error
    except UnidentifiedImageError as error:
        raise PolypsegError(f"{path}: is not an image that can be read; replace it or remove it") from error
    # Besides OSError, a format's own code raises whatever it meets: struct.error, EOFError, zlib.error, …
    except Exception as error:
        raise PolypsegError(f"{path}: cannot be read ({_reason(error)}); replace it or remove it") from error
    if max(image.width * image.height, tile) > MAX_PIXELS:
        image.close()
        raise PolypsegError(f"{path}: is larger than {MAX_PIXELS:,} pixels and was not decoded")
    if pictures > 1:
        image.close()
        number = pictures if pictures <= MAX_PAGES else f"more than {MAX_PAGES}"
        raise PolypsegError(f"{path}: contains {number} pictures; save the one to use as a file of its own")
    if scans > MAX_SCANS:
        image.close()
        raise PolypsegError(f"{path}: is a JPEG of {scans} scans, {MAX_SCANS} at most are decoded; save it anew")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # older Pillows: I for 16-bit PNG
        image.close()
        raise PolypsegError(f"{path}: has floating-point or 32-bit samples; save it with 8 or 16 bits")
    return image


def _check_pieces(path: str | Path, file: Path | io.BytesIO, size: int) -> None:
    """Refuse a PNG or JPEG that is cut into so many pieces that going through them takes seconds."""
    most = max(MAX_PIECES, size // 1024)
    if size < 4 * most:  # no piece is smaller
        return
    with file.open("rb") if isinstance(file, Path) else io.BytesIO(file.getbuffer()) as content:
        start = content.read(8)
        pieces = _chunks if start == b"\x89PNG\r\n\x1a\n" else _segments if start[:2] == b"\xff\xd8" else None
        if pieces is not None and next(itertools.islice(pieces(content), most, None), None) is not None:
            raise PolypsegError(f"{path}: is cut into more than {most:,} pieces and was not decoded; save it anew")


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    """The heads, 8 bytes, of the chunks of a PNG; hops from one to the next."""
    content.seek(8)  # the signature
    while len(head := content.read(8)) == 8:
        yield head
        content.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)  # 4: the checksum


def _segments(content: IO[bytes]) -> Iterator[bytes]:
    """The heads, 4 bytes, of the segments of a JPEG before its first scan; a byte between them counts as one."""
    content.seek(2)
    while len(head := content.read(4)) == 4 and head[:2] != b"\xff\xda":
        yield head
        if head[0] == 0xFF and head[1] in _JPEG_SEGMENTS:
            content.seek(max(2, int.from_bytes(head[2:])) - 2, os.SEEK_CUR)
        else:
            content.seek(-3, os.SEEK_CUR)


def _count_pictures(image: Image.Image) -> int:
    """How many pictures a file contains; of a TIFF ``MAX_PAGES`` + 1 where there are more than ``MAX_PAGES``."""
    if not isinstance(image, TiffImageFile):
        return int(getattr(image, "n_frames", 1))
    if image.is_animated:
        for page in range(1, MAX_PAGES + 1):
            try:
                image.seek(page)
            except EOFError:
                return page
        return MAX_PAGES + 1
    return 1


def _count_scans(file: Path | io.BytesIO) -> int:
    """How many scans a JPEG has, by its markers; neither those of its preview count nor those behind its end."""
    content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    if content.count(b"\xff\xda") <= MAX_SCANS:  # no fewer than there are
        return 1
    scans, place = 0, 2
    while (marker := _JPEG_MARKER.search(content, place)) and marker[0] != b"\xff\xd9":
        place = marker.end()
        if marker[0] not in (b"\xff\x01", b"\xff\xd8"):  # which have no length
            place += max(2, int.from_bytes(content[place : place + 2]))
        scans += marker[0] == b"\xff\xda"
    return scans


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation, from the header. Raises as ``read_frame``."""
    return image_header(path)[0]


def image_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """(width, height) in pixels after EXIF orientation, and that orientation, 1..8. Raises as ``read_frame``.

    Only a PNG with an EXIF block behind its pixels is decoded for it.
    """
    with open_image(path) as image:
        try:
            # PNG's own getexif decodes the pixels, to see what follows them; that is seldom needed.
            early = image.format == "PNG" and not _has_late_exif(Path(path))
            exif = Image.Image.getexif(image) if early else image.getexif()
            turn = exif.get(ExifTags.Base.Orientation, 1)
            turned = turn in (5, 6, 7, 8)
            width, height = image.size
            if isinstance(image, TiffImageFile):  # whose size Pillow gives turned or not, by its version
                width, height = (
                    image.tag_v2[ExifTags.Base.ImageWidth],
                    image.tag_v2[ExifTags.Base.ImageLength],
                )
            return (height, width) if turned else (width, height), turn if turn in range(1, 9) else 1
        except Exception as error:
            raise PolypsegError(_damage(path, error)) from error


def _has_late_exif(path: Path) -> bool:
    """Whether a PNG has something with an orientation behind its pixels; hops from chunk to chunk."""
    behind_pixels = False
    with path.open("rb") as file:
        for head in _chunks(file):
            kind, place = head[4:], file.tell()
            if behind_pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                start = file.read(min(int.from_bytes(head[:4]), 22))
                if kind == b"eXIf" or start.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
                    return True
                file.seek(place)
            behind_pixels |= kind == b"IDAT"
    return False


def read_frame(path: str | Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read a frame as 8-bit RGB: EXIF orientation applied, any bit depth and channel count.

    16-bit samples keep the highest 8 of the bits in use (``polypseg.io.depth``), grey becomes three equal channels,
    an alpha channel is dropped, CMYK and palette images are converted; 32-bit and floating-point samples are
    refused.

    Args:
        path: the file.
        content: as in ``open_image``.

    Returns:
        H×W×3 uint8, RGB, 0..255.

    Raises:
        PolypsegError: the file cannot be read, or its sample format has no defined 8-bit meaning.
    """
    return np.array(_decode(path, "RGB", content), dtype=np.uint8)


def read_mask(path: str | Path, kind: str = "binary") -> NDArray[np.bool_]:
    """Read a mask, thresholded once, here: a pixel is polyp where its grey value is above 127.

    Args:
        path: the file.
        kind: how it is read, as in ``polypseg.io.masks``.

    Returns:
        H×W bool, EXIF orientation applied.

    Raises:
        MaskError: its values do not say for certain what is polyp.
        PolypsegError: as ``read_frame``.
    """
    return read_mask_values(path, kind) > MASK_THRESHOLD


def read_mask_values(path: str | Path, kind: str = "binary") -> NDArray[np.uint8]:
    """The grey values of a mask before thresholding, H×W uint8 0..255; for the audit. Arguments and errors as above."""
    if is_label_kind(kind):
        return label_mask(path, kind).astype(np.uint8) * np.uint8(255)
    with open_image(path) as image:
        try:
            if isinstance(image, TiffImageFile):
                image.filename = ""  # as in _decode
            values = mask_values(image, path, kind)
            turn = image.getexif().get(ExifTags.Base.Orientation, 1)
            if turn != 1:
                turned = Image.fromarray(values)
                turned.getexif()[ExifTags.Base.Orientation] = turn
                values = np.asarray(ImageOps.exif_transpose(turned))
            return values
        except PolypsegError:
            raise
        except Exception as error:  # as in open_image
            raise PolypsegError(_damage(path, error)) from error


def _decode(path: str | Path, mode: str, content: bytes | None = None) -> Image.Image:
    with open_image(path, content) as image:
        try:
            if isinstance(image, TiffImageFile):
                image.filename = ""  # else Pillow 13 maps the file into memory, and mangles one that EXIF turns
            deep = is_deep(image)
            image.load()
            if deep:
                image = eight_bits(image, path, content)
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied
                image = ImageOps.exif_transpose(image)
            return image if image.mode == mode else image.convert(mode)
        except Exception as error:  # as in open_image
            raise PolypsegError(_damage(path, error)) from error


def depth_doubt(path: str | Path) -> str | None:
    """What makes the depth of a frame's 16-bit samples doubtful, as ``contains values up to …``. Raises as above."""
    with open_image(path) as image:
        try:
            return doubtful_bits(image, path)
        except Exception as error:  # as in open_image
            raise PolypsegError(_damage(path, error)) from error


def _damage(path: str | Path, error: Exception) -> str:
    return f"{path}: is damaged and cannot be decoded ({_reason(error)}); replace it or remove it"


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
