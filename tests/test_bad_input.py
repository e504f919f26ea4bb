"""Every bad input is either read right or refused with one line that names the file.

Two tables: ``READ`` contains inputs that look odd and must give exactly these pixels, ``REFUSED`` those that must be
told. Each entry writes its files beside five good frames; the tests then go through the functions of
``polypseg.catalog``, through ``polypseg.data.read`` and through the command line.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from polypseg.catalog import Catalog
from polypseg.cli import main
from polypseg.data import read
from polypseg.data.folder import Problem
from polypseg.errors import PolypsegError
from polypseg.io.masks import MaskError
from polypseg.io.pictures import MAX_PIXELS, image_size, read_frame, read_mask

HEIGHT, WIDTH = 32, 48
GOOD = 5
RNG = np.random.default_rng(7)
# Flat 8×8 blocks on JPEG's own grid: such a picture survives JPEG to within a grey level or two.
PICTURE = RNG.integers(40, 216, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
GREY = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
POLYP = np.zeros((HEIGHT, WIDTH), bool)
POLYP[8:24, 16:40] = True  # whole blocks too; alike under no rotation or mirroring
POLYP[8:16, 16:24] = False
WHITE = POLYP.astype(np.uint8) * 255

Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def save(path: Path, pixels: NDArray[Any] | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def stored(shown: NDArray[Any], value: int) -> NDArray[Any]:
    """What a file must contain so that it looks like ``shown`` at this EXIF orientation.

    By the EXIF standard (CIPA DC-008, tag Orientation): where the stored first row and first column are seen.
    """
    return {
        1: shown,  # top, left
        2: shown[:, ::-1],  # top, right
        3: shown[::-1, ::-1],  # bottom, right
        4: shown[::-1],  # bottom, left
        5: shown.swapaxes(0, 1),  # left, top
        6: shown[:, ::-1].swapaxes(0, 1),  # right, top
        7: shown[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: shown[::-1].swapaxes(0, 1),  # left, bottom
    }[value]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_late_chunk(path: Path, kind: bytes, data: bytes) -> Path:
    """Put a chunk behind a PNG's pixels, where some tools write their metadata."""
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    path.write_bytes(content[:end] + png_chunk(kind, data) + content[end:])
    return path


def header_that_claims(path: Path, width: int, height: int) -> Path:
    """A PNG of under 100 bytes whose header claims any size."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", size), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    return path


# ---- what is read ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Readable:
    """Writes one frame and its mask, and says what they must be read as.

    Attributes:
        write: writes into the data set's folder.
        frame: H×W×3 uint8.
        mask: H×W bool.
        tolerance: grey levels by which the frame may differ, for JPEG.
        stem: the frame's name.
    """

    write: Callable[[Path], object]
    frame: Frame = field(default_factory=PICTURE.copy)
    mask: Mask = field(default_factory=POLYP.copy)
    tolerance: int = 0
    stem: str = "odd"


def frame_file(name: str, pixels: NDArray[Any] | Image.Image, **options: Any) -> Callable[[Path], object]:
    """Writes an odd frame with a plain mask."""

    def write(folder: Path) -> None:
        save(folder / "images" / name, pixels, **options)
        save(folder / "masks" / f"{Path(name).stem}.png", WHITE)

    return write


def mask_file(name: str, pixels: NDArray[Any] | Image.Image, **options: Any) -> Callable[[Path], object]:
    """Writes a plain frame with an odd mask."""

    def write(folder: Path) -> None:
        save(folder / "images" / f"{Path(name).stem}.png", PICTURE)
        save(folder / "masks" / name, pixels, **options)

    return write


def both(*writers: Callable[[Path], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        for writer in writers:
            writer(folder)

    return write


def by_opencv(name: str, pixels: NDArray[Any]) -> Callable[[Path], object]:
    """Writes with OpenCV, which, unlike Pillow, knows PNGs with 16 bits in each of several channels."""

    def write(folder: Path) -> None:
        assert cv2.imwrite(str(folder / "images" / name), pixels)
        save(folder / "masks" / f"{Path(name).stem}.png", WHITE)

    return write


def late_exif(kind: bytes, data: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        with_late_chunk(save(folder / "images" / "odd.png", stored(PICTURE, 6)), kind, data)
        save(folder / "masks" / "odd.png", WHITE)

    return write


def turned_pair(value: int) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        save(folder / "images" / "odd.png", stored(PICTURE, value), exif=orientation(value))
        save(folder / "masks" / "odd.tif", stored(WHITE, value), exif=orientation(value))

    return write


def three(grey: NDArray[Any]) -> Frame:
    return np.stack([grey] * 3, 2).astype(np.uint8)


def with_sbit(pixels: NDArray[np.uint16], bits: int) -> Callable[[Path], object]:
    """Writes a 16-bit PNG that says how many bits are significant."""

    def write(folder: Path) -> None:
        path = save(folder / "images" / "odd.png", pixels)
        content = path.read_bytes()
        path.write_bytes(content[:33] + png_chunk(b"sBIT", bytes([bits])) + content[33:])  # behind the header
        save(folder / "masks" / "odd.png", WHITE)

    return write


def palette(indices: NDArray[np.uint8], colours: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    return image


INDICES = RNG.integers(0, 200, (HEIGHT, WIDTH), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
GREY12 = (GREY16 >> 4).astype(np.uint16)
DARK12 = (GREY16 >> 8).astype(np.uint16)  # of 12 bits, the lower 8
RGB12 = RNG.integers(0, 4096, (HEIGHT, WIDTH, 3), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
RGBA16 = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
CMYK = PICTURE[..., [0, 1, 2, 0]] // np.uint8(2)  # dark enough that no sum is cut off
EDGE = WHITE.copy()
EDGE[0, :6] = (0, 126, 127, 128, 129, 255)
EDGE_MASK = POLYP.copy()
EDGE_MASK[0, :6] = (False, False, False, True, True, True)
XMP = '<rdf:Description tiff:Orientation="6"/>'
JPEG = {"quality": 100, "subsampling": 0}
NFC = unicodedata.normalize("NFC", "polyp é ü 中")
NFD = unicodedata.normalize("NFD", NFC)


def multiplied(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Frame:
    return np.rint(a.astype(float) * b / 255).astype(np.uint8)


READ: dict[str, Readable] = {
    "grey PNG": Readable(frame_file("odd.png", GREY), three(GREY)),
    "grey JPEG": Readable(frame_file("odd.jpg", PICTURE[..., 0], quality=100), three(PICTURE[..., 0]), tolerance=2),
    "grey+alpha PNG": Readable(frame_file("odd.png", Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), three(GREY)),
    "RGBA PNG": Readable(frame_file("odd.png", np.dstack([PICTURE, ALPHA]))),
    "palette PNG": Readable(frame_file("odd.png", palette(INDICES, COLOURS)), COLOURS[INDICES]),
    "palette PNG, one index transparent": Readable(
        frame_file("odd.png", palette(INDICES, COLOURS), transparency=int(INDICES[0, 0])), COLOURS[INDICES]
    ),
    "1-bit PNG": Readable(frame_file("odd.png", Image.fromarray(POLYP)), three(WHITE)),
    "16-bit grey PNG": Readable(frame_file("odd.png", GREY16), three(GREY16 // 256)),
    "16-bit grey TIFF": Readable(frame_file("odd.tif", GREY16), three(GREY16 // 256)),
    "16-bit RGB PNG": Readable(by_opencv("odd.png", RGB16[..., ::-1]), (RGB16 // 256).astype(np.uint8)),
    "16-bit RGBA PNG": Readable(
        by_opencv("odd.png", RGBA16[..., [2, 1, 0, 3]]), (RGBA16[..., :3] // 256).astype(np.uint8)
    ),
    "CMYK JPEG": Readable(
        frame_file("odd.jpg", Image.fromarray(CMYK, "CMYK"), **JPEG),
        multiplied(255 - CMYK[..., :3], 255 - CMYK[..., 3:]),
        tolerance=3,
    ),
    "JPEG named .png": Readable(frame_file("odd.png", PICTURE, format="JPEG", **JPEG), tolerance=2),
    "BMP": Readable(frame_file("odd.bmp", PICTURE)),
    "lossless WebP": Readable(frame_file("odd.webp", PICTURE, lossless=True)),
    "camera JPEG with a preview (MPO)": Readable(
        frame_file(
            "odd.jpg",
            PICTURE,
            format="MPO",
            save_all=True,
            append_images=[Image.fromarray(255 - PICTURE)],
            **JPEG,
        ),
        tolerance=2,
    ),
    "upper-case endings": Readable(
        both(
            lambda folder: save(folder / "images" / "ODD.JPG", PICTURE, **JPEG),
            lambda folder: save(folder / "masks" / "ODD.PNG", WHITE),
        ),
        tolerance=2,
        stem="ODD",
    ),
    "spaces and accents": Readable(frame_file(f"{NFC}.png", PICTURE), stem=NFC),
    "accents composed in the frame's name, combining in the mask's": Readable(
        both(
            lambda folder: save(folder / "images" / f"{NFC}.png", PICTURE),
            lambda folder: save(folder / "masks" / f"{NFD}.png", WHITE),
        ),
        stem=NFC,
    ),
    "a frame called 1": Readable(frame_file("1.png", PICTURE), stem="1"),
    "a frame called 007": Readable(frame_file("007.png", PICTURE), stem="007"),
    **{
        f"EXIF orientation {value}, JPEG frame": Readable(
            frame_file("odd.jpg", stored(PICTURE, value), exif=orientation(value), **JPEG), tolerance=2
        )
        for value in range(1, 9)
    },
    **{f"EXIF orientation {value}, PNG frame and TIFF mask": Readable(turned_pair(value)) for value in range(1, 9)},
    "EXIF orientation 6, 16-bit grey PNG": Readable(
        frame_file("odd.png", np.ascontiguousarray(stored(GREY16, 6)), exif=orientation(6)),
        three(GREY16 // 256),
    ),
    "EXIF orientation 9, which is none": Readable(frame_file("odd.png", PICTURE, exif=orientation(9))),
    "EXIF behind the pixels of a PNG": Readable(late_exif(b"eXIf", orientation(6).tobytes()[6:])),
    "XMP orientation behind the pixels of a PNG": Readable(
        late_exif(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())
    ),
    "a comment behind the pixels of a PNG": Readable(
        both(
            frame_file("odd.png", PICTURE),
            lambda folder: with_late_chunk(folder / "images" / "odd.png", b"tEXt", b"Comment\0bare"),
        )
    ),
    "mask with values around 127 and 128": Readable(mask_file("odd.png", EDGE), mask=EDGE_MASK),
    "1-bit mask": Readable(mask_file("odd.png", Image.fromarray(POLYP))),
    "RGBA mask, opaque": Readable(mask_file("odd.png", np.dstack([three(WHITE), np.full_like(ALPHA, 255)]))),
    "JPEG mask": Readable(mask_file("odd.jpg", WHITE, quality=90)),
    "RGB JPEG mask": Readable(mask_file("odd.jpg", three(WHITE), quality=90)),
    "TIFF mask of 1 bit": Readable(mask_file("odd.tif", Image.fromarray(POLYP))),
    "1-bit mask with an inverted palette": Readable(
        mask_file("odd.png", palette((~POLYP).astype(np.uint8), np.array([[255] * 3, [0] * 3], np.uint8)), bits=1)
    ),
    "empty mask": Readable(mask_file("odd.png", np.zeros_like(WHITE)), mask=np.zeros_like(POLYP)),
    "12 bits in a 16-bit PNG": Readable(frame_file("odd.png", GREY12), three(GREY12 // 16)),
    "12 bits in a 16-bit RGB PNG": Readable(by_opencv("odd.png", RGB12[..., ::-1]), (RGB12 // 16).astype(np.uint8)),
    "12-bit TIFF by its MaxSampleValue": Readable(
        frame_file("odd.tif", GREY12, tiffinfo={281: 4095}), three(GREY12 // 16)
    ),
    "dark 16-bit TIFF by its MaxSampleValue": Readable(
        frame_file("odd.tif", GREY12, tiffinfo={281: 65535}), three(GREY12 // 256)
    ),
    "12-bit PNG by its sBIT": Readable(with_sbit(GREY12, 12), three(GREY12 // 16)),
    "dark 16-bit PNG by its sBIT": Readable(with_sbit(GREY12, 16), three(GREY12 // 256)),
    "12-bit PNG whose samples are shifted, dark": Readable(with_sbit(DARK12 << 4, 12), three(DARK12 // 16)),
    "dark 16-bit PNG": Readable(frame_file("odd.png", GREY16 // 8), three(GREY16 // 8 // 256)),
    "palette mask, black and white": Readable(
        mask_file("odd.png", palette(POLYP.astype(np.uint8), np.array([[0] * 3, [255] * 3], np.uint8)))
    ),
    "16-bit mask": Readable(mask_file("odd.png", POLYP.astype(np.uint16) * 65535)),
}


# ---- what is refused ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """Writes a bad input.

    Attributes:
        write: writes into the data set's folder and returns the path that the message must name.
        says: a pattern that the message contains.
        decoded: whether only decoding the pixels brings it out; else ``read`` refuses it.
        usable: good frames that the audit can still use.
        whole: whether the data set itself cannot be read, so that ``data check`` has nothing to list.
    """

    write: Callable[[Path], Path]
    says: str
    decoded: bool = False
    usable: int = GOOD
    whole: bool = False


def bad_frame(name: str, content: bytes | Callable[[Path], object]) -> Callable[[Path], Path]:
    """Writes a bad frame with a good mask; returns the frame's path."""

    def write(folder: Path) -> Path:
        path = folder / "images" / name
        save(folder / "masks" / f"{path.stem}.png", WHITE)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        return path

    return write


def bad_mask(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "masks" / name
        save(folder / "images" / f"{path.stem}.png", PICTURE)
        path.write_bytes(content)
        return path

    return write


def encoded(kind: str, pixels: NDArray[Any] = GREY, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def cut(content: bytes, part: float = 0.6) -> bytes:
    return content[: int(len(content) * part)]


def flipped(content: bytes) -> bytes:
    """One byte of a PNG's pixels changed: the checksum tells."""
    place = content.index(b"IDAT") + 40
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def pages(path: Path) -> None:
    save(path, PICTURE, save_all=True, append_images=[Image.fromarray(255 - PICTURE)])


def many_pages(path: Path) -> None:
    save(path, PICTURE, save_all=True, append_images=[Image.fromarray(PICTURE)] * 150)


def scans(path: Path, count: int, behind: bytes = b"") -> None:
    """A progressive JPEG whose last scan is there so many times; after its end come other bytes."""
    content = encoded("JPEG", PICTURE, progressive=True)
    start = content.rindex(b"\xff\xda")
    path.write_bytes(content[:start] + content[start:-2] * count + content[-2:] + behind)


def tile_that_claims(path: Path, side: int) -> None:
    """A TIFF of 64×64 in one tile that claims to be larger, LZW."""
    tags = {256: 64, 257: 64, 258: 8, 259: 5, 262: 1, 277: 1, 322: side, 323: side, 324: 134, 325: 12}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(16))


def two_of_one_stem(folder: Path) -> Path:
    save(folder / "masks" / "odd.png", WHITE)
    save(folder / "images" / "odd.jpg", PICTURE)
    return save(folder / "images" / "odd.png", PICTURE)


def emptied(*subfolders: str) -> Callable[[Path], Path]:
    """Leaves of the good data set only empty folders of these names."""

    def write(folder: Path) -> Path:
        for name in ("images", "masks"):
            for file in (folder / name).iterdir():
                file.unlink()
            (folder / name).rmdir()
        for name in subfolders:
            (folder / name).mkdir()
        return folder

    return write


def missing(folder: Path) -> Path:
    emptied()(folder)
    folder.rmdir()
    return folder


def a_file(folder: Path) -> Path:
    missing(folder).write_bytes(b"")
    return folder


def without_masks(folder: Path) -> Path:
    for file in (folder / "masks").iterdir():
        file.unlink()
    (folder / "masks").rmdir()
    return folder / "masks"


def sub_folder(folder: Path) -> Path:
    return save(folder / "images" / "more" / "a.png", PICTURE).parent


def dangling(folder: Path) -> Path:
    save(folder / "masks" / "odd.png", WHITE)
    (folder / "images" / "odd.png").symlink_to(folder / "moved-away.png")
    return folder / "images" / "odd.png"


def kvasir_boxes(content: Any, named: str = "kavsir_bboxes.json") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "kavsir_bboxes.json").write_text(text)
        return folder / named

    return write


CORE = cv2.erode(POLYP.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
CLASSES = POLYP.astype(np.uint8) + CORE
HALVES = np.where(np.arange(WIDTH) < 28, WHITE // 2, WHITE)
VOC = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
RED = three(WHITE) * np.array([1, 0, 0], np.uint8)
# Masks that are not black and white: file, pixels, what is said of the values, options of Pillow.
ODD_MASKS: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "0 and 1": ("odd.png", POLYP.astype(np.uint8), "values 0 and 1, no white .* --masks nonzero or class:1$", {}),
    "0 and 1, JPEG": ("odd.jpg", POLYP.astype(np.uint8), "values 0 and 1, no white", {"quality": 100}),
    "0 and 1, BMP": ("odd.bmp", POLYP.astype(np.uint8), "values 0 and 1, no white", {}),
    "0 and 1, WebP": ("odd.webp", three(POLYP), "values 0 and 1, no white", {"lossless": True}),
    "classes": ("odd.png", CLASSES, "values 0, 1 and 2, no white", {}),
    "0 and 127": ("odd.png", POLYP * np.uint8(127), "values 0 and 127, no white", {}),
    "0/1 in 16 bits": ("odd.png", POLYP.astype(np.uint16), r"16-bit values 0 and 1, no white \(65535\)", {}),
    "0/255 in 16 bits": ("odd.tif", POLYP * np.uint16(255), "16-bit values 0 and 255, no white", {}),
    "0/4095 in 16 bits": ("odd.png", POLYP * np.uint16(4095), "16-bit values 0 and 4095, no white", {}),
    "three greys": ("odd.png", HALVES, "areas of grey.*0, 127 and 255", {}),
    "a class with a void border": (
        "odd.png", np.where(CORE, 1, WHITE).astype(np.uint8), "white is only a border around areas of the value 1", {},
    ),
    "red": ("odd.png", RED, r"in colour \(\(255, 0, 0\)\).* --masks colour", {}),
    "red JPEG": ("odd.jpg", RED, "in colour", {"quality": 75}),
    "palette of colours": ("odd.png", palette(CLASSES, VOC), r"in colour \(\(0, 128, 0\), \(128, 0, 0\)\)", {}),
    "palette of one colour": (
        "odd.png", palette(CLASSES, np.zeros((3, 3), np.uint8)), "one colour for the indices 0, 1 and 2; .*class:2$",
        {},
    ),
    "alpha": ("odd.png", np.dstack([three(WHITE) | 255, WHITE]), r"alpha channel .*\(--masks alpha\)", {}),
    "grey and alpha": ("odd.png", Image.fromarray(np.dstack([WHITE, WHITE]), "LA"), "not opaque", {}),
    "transparent index": (
        "odd.png", palette(POLYP.astype(np.uint8), np.array([[0] * 3, [255] * 3], np.uint8)), "not opaque",
        {"transparency": 0},
    ),
}  # fmt: skip

BOX = {"label": "polyp", "xmin": 1, "ymin": 2, "xmax": 9, "ymax": 9}

REFUSED: dict[str, Refused] = {
    "zero bytes": Refused(bad_frame("odd.jpg", b""), "is empty"),
    "zero bytes, mask": Refused(bad_mask("odd.png", b""), "is empty"),
    "text named .jpg": Refused(bad_frame("odd.jpg", b"Dear colleague,\n"), "not an image that can be read"),
    "text file in images/": Refused(bad_frame("odd.txt", b"notes\n"), "not an image by its name"),
    "PNG cut in its header": Refused(bad_frame("odd.png", encoded("PNG")[:20]), "not an image|cannot be read"),
    "JPEG cut in its header": Refused(bad_frame("odd.jpg", encoded("JPEG")[:40]), "not an image|cannot be read"),
    "truncated PNG": Refused(bad_frame("odd.png", cut(encoded("PNG"))), "damaged", decoded=True),
    "truncated JPEG": Refused(bad_frame("odd.jpg", cut(encoded("JPEG"), 0.8)), "damaged", decoded=True),
    "truncated TIFF": Refused(bad_frame("odd.tif", cut(encoded("TIFF"))), "damaged", decoded=True),
    "truncated mask": Refused(bad_mask("odd.png", cut(encoded("PNG"))), "damaged", decoded=True),
    "PNG with one flipped byte": Refused(bad_frame("odd.png", flipped(encoded("PNG"))), "damaged", decoded=True),
    "header that claims 50000×50000": Refused(
        bad_frame("odd.png", lambda path: header_that_claims(path, 50000, 50000)), "larger than 80,000,000"
    ),
    "9000×9000 in 10 kB": Refused(
        bad_frame("odd.png", lambda path: save(path, Image.new("1", (9000, 9000)))), "larger than 80,000,000"
    ),
    "header that claims 1000×1000": Refused(  # a size that agrees with its mask's, and no pixels behind it
        lambda folder: (
            save(folder / "masks" / "odd.png", Image.new("L", (1000, 1000)))
            and header_that_claims(folder / "images" / "odd.png", 1000, 1000)
        ),
        "damaged",
        decoded=True,
    ),
    "floating-point TIFF": Refused(
        bad_frame("odd.tif", encoded("TIFF", GREY.astype(np.float32))), "floating-point or 32-bit"
    ),
    "32-bit TIFF": Refused(bad_frame("odd.tif", encoded("TIFF", GREY.astype(np.int32))), "floating-point or 32-bit"),
    "TIFF of two pages": Refused(bad_frame("odd.tif", pages), "contains 2 pictures"),
    "TIFF of many pages": Refused(bad_frame("odd.tif", many_pages), "contains more than 100 pictures"),
    "TIFF of a huge tile": Refused(
        bad_frame("odd.tif", lambda path: tile_that_claims(path, 40_000)), "larger than 80,000,000"
    ),
    "JPEG of many scans": Refused(bad_frame("odd.jpg", lambda path: scans(path, 200)), "a JPEG of 2[0-9]+ scans"),
    "animated PNG": Refused(bad_frame("odd.png", pages), "contains 2 pictures"),
    "animated WebP": Refused(bad_frame("odd.webp", pages), "contains 2 pictures"),
    "animated GIF named .png": Refused(
        bad_frame(
            "odd.png",
            lambda path: save(
                path, PICTURE, format="GIF", save_all=True, append_images=[Image.fromarray(255 - PICTURE)]
            ),
        ),
        "contains 2 pictures",
    ),
    "GIF": Refused(bad_frame("odd.gif", lambda path: save(path, PICTURE)), "not an image by its name"),
    "frame without a mask": Refused(
        lambda folder: save(folder / "images" / "odd.png", PICTURE), "frame without a mask"
    ),
    "mask without a frame": Refused(lambda folder: save(folder / "masks" / "odd.png", WHITE), "mask without a frame"),
    "mask of another size": Refused(
        lambda folder: (
            bad_frame("odd.png", encoded("PNG"))(folder) and save(folder / "masks" / "odd.png", WHITE[:, : WIDTH // 2])
        ),
        "mask is 24×32 but its frame is 48×32",
    ),
    "mask turned by EXIF, frame not": Refused(
        lambda folder: (
            bad_frame("odd.png", encoded("PNG"))(folder)
            and save(folder / "masks" / "odd.png", WHITE, exif=orientation(6))
        ),
        "mask is 32×48 but its frame is 48×32",
    ),
    "mask turned by EXIF, upright frame of the same size": Refused(
        lambda folder: (
            bad_frame("odd.png", encoded("PNG"))(folder)
            and save(folder / "masks" / "odd.png", WHITE, exif=orientation(3))
        ),
        "mask has the EXIF orientation 3, its frame 1",
    ),
    "mask of 0 and 1": Refused(
        lambda folder: bad_mask("odd.png", encoded("PNG", POLYP.astype(np.uint8)))(folder),
        "values 0 and 1, no white",
        decoded=True,
    ),
    "two files of one stem": Refused(two_of_one_stem, "same stem as odd.jpg", usable=GOOD + 1),
    "folder inside images/": Refused(sub_folder, "is a folder"),
    "link to a file that is gone": Refused(dangling, "No such file"),
    "empty folder": Refused(emptied(), "contains no images/ folder", usable=0, whole=True),
    "images/ empty": Refused(emptied("images", "masks"), "contains no frame", usable=0),
    "missing folder": Refused(missing, "is no folder", usable=0, whole=True),
    "a file in place of the folder": Refused(a_file, "is no folder", usable=0, whole=True),
    "images/ without masks/": Refused(without_masks, "is missing; put the masks there", usable=0),
    "boxes that are no JSON": Refused(kvasir_boxes("{not JSON"), "not valid JSON", usable=0, whole=True),
    "boxes nested too deep": Refused(kvasir_boxes("[" * 100_000), "not valid JSON", usable=0, whole=True),
    "boxes that are a list": Refused(kvasir_boxes([]), "is missing an expected field", usable=0, whole=True),
    "boxes without ymax": Refused(
        kvasir_boxes(
            {"good-0": {"height": 32, "width": 48, "bbox": [{key: BOX[key] for key in BOX if key != "ymax"}]}}
        ),
        "is missing an expected field",
        usable=0,
        whole=True,
    ),
    "boxes without a size": Refused(
        kvasir_boxes({"good-0": {"bbox": [BOX]}}), "is missing an expected field", usable=0, whole=True
    ),
    "boxes of infinite size": Refused(
        kvasir_boxes('{"good-0": {"height": 1e999, "width": 48, "bbox": []}}'),
        "is missing an expected field",
        usable=0,
        whole=True,
    ),
    "boxes of a frame that is not there": Refused(
        kvasir_boxes({"gone": {"height": 32, "width": 48, "bbox": [BOX]}}, "images/gone.jpg"),
        "is missing, but kavsir_bboxes.json names it",
    ),
}


# ---- the tests ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of five good frames, unlike each other."""
    for number in range(GOOD):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        save(tmp_path / "my data" / "images" / f"good-{number}.png", pixels)
        save(tmp_path / "my data" / "masks" / f"good-{number}.png", WHITE)
    return tmp_path / "my data"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def assert_one_line(message: str, path: Path, says: str) -> None:
    assert len(message.splitlines()) == 1, message
    assert str(path) in message, message
    assert re.search(says, message), message


def commands(data: Path, out: Path, split: str) -> Iterator[tuple[object, ...]]:
    """The verbs that read a data set whole."""
    yield "data", "split", "--data", data, "--name", split, "--out", out / "split.csv"
    yield "data", "show", "--data", data, "--out", out / "frames.png"
    yield "train", "--data", data, "--out", out / "run", "--split", split, "--model.encoder_weights", "none"


@pytest.mark.parametrize("name", READ)
def test_odd_input_is_read_as_the_pixels_it_means(name: str, folder: Path) -> None:
    case = READ[name]
    case.write(folder)
    problems: list[Problem] = []
    catalog = read(folder, problems)
    assert problems == []
    assert len(catalog) == GOOD + 1
    assert catalog.frames.equals(read(folder).frames)
    index = catalog.frames["frame_id"].tolist().index(case.stem)
    row = catalog.row(index)
    frame, mask = catalog.frame(index), catalog.mask(index)
    assert frame.dtype == np.uint8
    assert frame.shape == case.frame.shape
    assert (row.height, row.width) == frame.shape[:2] == image_size(row.image_path)[::-1]
    assert np.abs(frame.astype(int) - case.frame).max() <= case.tolerance
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, case.mask)
    np.testing.assert_array_equal(frame, read_frame(row.image_path))
    np.testing.assert_array_equal(mask, read_mask(row.mask_path))


@pytest.mark.slow
def test_odd_inputs_pass_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data: list[object] = []
    for number, case in enumerate(READ.values()):  # each a data set of its own, all in one call
        for kind in ("images", "masks"):
            (tmp_path / f"set-{number}" / kind).mkdir(parents=True)
        case.write(tmp_path / f"set-{number}")
        data += ["--data", tmp_path / f"set-{number}"]
    split = tmp_path / "split.csv"
    status, _, error = run(capsys, "data", "split", *data, "--name", "grouped", "--out", split)
    assert (status, error) == (0, "")
    rows = split.read_text(encoding="utf-8")
    for number, case in enumerate(READ.values()):
        assert f"set-{number},{case.stem}," in rows
    status, _, error = run(capsys, "data", "check", *data, "--out", tmp_path / "check")
    findings = json.loads((tmp_path / "check" / "audit.json").read_text(encoding="utf-8"))["findings"]
    told = {(item["kind"], *item["frames"]) for item in findings if item["severity"] == "error"}
    assert told == set()
    assert (status, error) == (0, "")


@pytest.mark.parametrize("name", ["16-bit grey PNG", "EXIF orientation 6, JPEG frame", "spaces and accents"])
def test_odd_input_is_shown(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    READ[name].write(folder)
    status, _, error = run(capsys, "data", "show", "--data", folder, "--out", tmp_path / "frames.png")
    assert (status, error) == (0, "")
    assert np.asarray(Image.open(tmp_path / "frames.png")).std() > 10


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_line(name: str, folder: Path) -> None:
    case = REFUSED[name]
    path = case.write(folder)
    if case.decoded:  # headers look right; every way to the pixels must tell
        catalog = read(folder)
        index = catalog.frames["frame_id"].tolist().index(path.stem)
        reader, of_catalog = (read_frame, catalog.frame) if path.parent.name == "images" else (read_mask, catalog.mask)
        with pytest.raises(PolypsegError) as error:
            of_catalog(index)
        assert_one_line(str(error.value), path, case.says)
        with pytest.raises(PolypsegError) as error:
            reader(path)
    else:
        with pytest.raises(PolypsegError) as error:
            read(folder)
    assert_one_line(str(error.value), path, case.says)


@pytest.mark.parametrize("name", ODD_MASKS)
def test_a_mask_that_is_not_black_and_white_is_refused(name: str, tmp_path: Path) -> None:
    file, pixels, says, options = ODD_MASKS[name]
    path = save(tmp_path / file, pixels, **options)
    with pytest.raises(MaskError) as error:
        read_mask(path)
    assert_one_line(str(error.value), path, says)


def test_edges_may_be_grey(tmp_path: Path) -> None:
    """As JPEG, antialiasing, resizing and blur leave them."""
    large = cv2.resize(WHITE, None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST)
    small = cv2.resize(large, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    variants = [
        cv2.GaussianBlur(large, (0, 0), 2.5),
        small,
        cv2.resize(small, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC),
        cv2.resize(WHITE, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR),
    ]
    for number, values in enumerate(variants):
        for ending, options in (("png", {}), ("jpg", {"quality": 30})):
            mask = read_mask(save(tmp_path / f"{number}.{ending}", values, **options))
            np.testing.assert_allclose(mask.mean(), POLYP.mean(), rtol=0.02)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("0 and 1", "nonzero", POLYP),
        ("0/1 in 16 bits", "nonzero", POLYP),
        ("0/255 in 16 bits", "class:255", POLYP),
        ("classes", "nonzero", POLYP),
        ("classes", "class:2", CORE),
        ("classes", "class:1,2", POLYP),
        ("a class with a void border", "class:1", CORE),
        ("palette of colours", "class:1", POLYP & ~CORE),
        ("palette of one colour", "class:1", POLYP & ~CORE),
        ("palette of colours", "nonzero", POLYP),
        ("palette of colours", "colour", POLYP),
        ("red", "colour", POLYP),
        ("red JPEG", "colour", POLYP),
        ("alpha", "alpha", POLYP),
        ("grey and alpha", "alpha", POLYP),
        ("grey and alpha", "colour", POLYP),
        ("transparent index", "colour", POLYP),
        ("transparent index", "alpha", POLYP),
    ],
)
def test_a_mask_is_read_as_it_is_told_to(name: str, kind: str, expected: Mask, tmp_path: Path) -> None:
    file, pixels, _, options = ODD_MASKS[name]
    np.testing.assert_array_equal(read_mask(save(tmp_path / file, pixels, **options), kind), expected)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("0 and 1", "alpha", "has no alpha channel"),
        ("0 and 1, JPEG", "nonzero", "keeps no classes"),
        ("0 and 1", "colour", "too dark to tell from black"),
        ("red", "class:1", "in colour"),
    ],
)
def test_a_mask_that_cannot_be_read_as_it_is_told_to_is_refused(
    name: str, kind: str, says: str, tmp_path: Path
) -> None:
    file, pixels, _, options = ODD_MASKS[name]
    path = save(tmp_path / file, pixels, **options)
    with pytest.raises(MaskError) as error:
        read_mask(path, kind)
    assert_one_line(str(error.value), path, says)


@pytest.mark.parametrize("kind", ["colours", "class", "class:", "class:a", "class:-1"])
def test_a_way_to_read_masks_that_there_is_not(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "split.csv"
    status, _, error = run(capsys, "data", "split", "--data", folder, "--name", "random", "--masks", kind, "--out", out)
    assert status == 2 and f"--masks {kind}: is no way to read masks" in error


def test_a_frame_of_fewer_bits_than_its_file_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        save(folder / "images" / f"{name}.png", GREY12)
    for name in "ab":
        read_frame(folder / "images" / f"{name}.png")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{folder / 'images' / 'a.png'}: contains values up to ")
    assert "is read as 12 bits" in record.getMessage()


@pytest.mark.parametrize("name", [name for name, case in REFUSED.items() if not case.whole])
def test_problems_are_gathered_and_the_good_frames_kept(name: str, folder: Path) -> None:
    case = REFUSED[name]
    path = case.write(folder)
    problems: list[Problem] = []
    catalog = read(folder, problems)
    assert len(catalog) == case.usable + case.decoded
    if not case.decoded and case.usable:
        assert str(path) in [problem.path for problem in problems]
        assert_one_line("".join(item.message for item in problems if item.path == str(path)), path, case.says)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_stops_every_verb_with_one_line(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = REFUSED[name]
    path = case.write(folder)
    for command in commands(folder, tmp_path, "grouped" if case.decoded else "random"):
        status, _, error = run(capsys, *command)
        assert status == 1, command
        assert error.startswith("polypseg: ")
        assert_one_line(error, path, case.says)
    assert not (tmp_path / "split.csv").exists()
    assert not (tmp_path / "frames.png").exists()
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_the_audit_tells_every_bad_input_and_goes_on(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = REFUSED[name]
    path = case.write(folder)
    status, out, error = run(capsys, "data", "check", "--data", folder, "--out", tmp_path / "check")
    assert status == 1
    if case.whole:
        assert error.startswith("polypseg: ")
        assert_one_line(error, path, case.says)
        return
    assert error == ""
    found = json.loads((tmp_path / "check" / "audit.json").read_text())
    messages = [item["message"] for item in found["findings"] if item["severity"] == "error"]
    told = [message for message in messages if str(path) in message and re.search(case.says, message)]
    assert len(told) == 1, messages
    assert told[0] in out


def test_the_audit_lists_all_bad_inputs_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "a.jpg": b"", "b.jpg": b"text", "c.txt": b"text", "d.png": cut(encoded("PNG")),
        "e.jpg": cut(encoded("JPEG"), 0.8), "f.tif": encoded("TIFF", GREY.astype(np.float32)),
    }  # fmt: skip
    paths = [bad_frame(name, content)(folder) for name, content in cases.items()]
    status, _, error = run(capsys, "data", "check", "--data", folder, "--out", tmp_path / "check")
    assert (status, error) == (1, "")
    messages = [
        item["message"]
        for item in json.loads((tmp_path / "check" / "audit.json").read_text())["findings"]
        if item["severity"] == "error"
    ]
    for path in paths:
        assert sum(message.startswith(str(path)) for message in messages) == 1, path


def test_one_frame_can_be_read_but_neither_split_nor_trained_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, GOOD):
        for kind in ("images", "masks"):
            (folder / kind / f"good-{number}.png").unlink()
    assert len(read(folder)) == 1
    assert run(capsys, "data", "show", "--data", folder, "--out", tmp_path / "frames.png")[0] == 0
    assert run(capsys, "data", "check", "--data", folder, "--out", tmp_path / "check")[0] == 0
    out = tmp_path / "split.csv"
    for split in ("random", "grouped", "kfold", "pranet", "medico"):
        status, _, error = run(capsys, "data", "split", "--data", folder, "--name", split, "--out", out)
        assert status == 1
        assert error.startswith("polypseg: ")
        assert len(error.splitlines()) == 1
        assert not out.exists()
    for split in ("random", "grouped"):
        run_folder = tmp_path / f"run-{split}"
        status, _, error = run(
            capsys, "train", "--data", folder, "--out", run_folder, "--split", split,
            "--model.encoder_weights", "none",
        )  # fmt: skip
        assert status == 1
        assert error.startswith("polypseg: ")
        assert len(error.splitlines()) == 1
        assert not (run_folder / "checkpoints").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "split", "--name", "random"],
        ["data", "split", "--data", "x", "--name", "kfold", "--folds", "1"],
        ["data", "check", "--data"],
        ["train", "--data", "x", "--trainer.epochs", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder) if word == "x" else word for word in arguments]
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("polypseg")
    assert len(error.splitlines()) == 1


def test_headers_are_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        save(tmp_path / "plain.png", PICTURE),
        save(tmp_path / "exif.png", PICTURE, exif=orientation(6)),
        save(tmp_path / "plain.jpg", PICTURE, exif=orientation(6)),
        save(tmp_path / "plain.tif", PICTURE),
        with_late_chunk(save(tmp_path / "late.png", PICTURE), b"tEXt", b"date:create\x002026"),
    ]
    information = PngInfo()
    information.add_itxt("XML:com.adobe.xmp", XMP)
    paths.append(save(tmp_path / "xmp.png", PICTURE, pnginfo=information))

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    turned = {"exif.png", "plain.jpg", "xmp.png"}
    for path in paths:
        assert image_size(path) == ((HEIGHT, WIDTH) if path.name in turned else (WIDTH, HEIGHT)), path.name


def test_the_largest_frame_allowed_is_a_limit_not_a_suggestion(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    assert image_size(save(tmp_path / "a.png", Image.new("1", (side, side)))) == (side, side)
    with pytest.raises(PolypsegError, match="larger than"):
        image_size(save(tmp_path / "b.png", Image.new("1", (side + 1, side + 1))))


IN_PIECES: dict[str, tuple[str, int, bytes]] = {
    "PNG, text before the pixels": ("PNG", 33, png_chunk(b"tEXt", b"a\0b")),
    "PNG, empty chunks before the pixels": ("PNG", 33, png_chunk(b"prIv", b"")),
    "PNG, behind the pixels": ("PNG", -12, png_chunk(b"prIv", b"")),
    "JPEG, comments": ("JPEG", 2, b"\xff\xfe\0\2"),
    "JPEG, application's": ("JPEG", 2, b"\xff\xe4\0\2"),
    "JPEG, markers without a length": ("JPEG", 2, b"\xff\xd0"),
    "JPEG, padding": ("JPEG", 2, b"\xff"),
}


@pytest.mark.parametrize("kind", IN_PIECES)
def test_a_picture_in_millions_of_pieces_is_refused_before_pillow_opens_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would take 5 µs for each: 13 s for a PNG of 18 MB."""
    form, place, piece = IN_PIECES[kind]
    whole = encoded(form, PICTURE)
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(whole[:place] + piece * 1000 + whole[place:])
    assert read_frame(path).shape == PICTURE.shape
    path.write_bytes(whole[:place] + piece * 100_000 + whole[place:])
    monkeypatch.setattr(Image, "open", None)
    says = "is cut into more than 10,000 pieces and was not decoded; save it anew"
    for reader in (read_frame, read_mask, image_size, lambda path: read_frame(path, path.read_bytes())):
        with pytest.raises(PolypsegError, match=says) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value).splitlines()) == 1


def test_a_large_picture_may_have_many_pieces(tmp_path: Path) -> None:
    """One a KiB: programs write pixels in chunks of 8 KiB."""
    whole = encoded("PNG", PICTURE)
    path = tmp_path / "a.png"
    path.write_bytes(whole[:33] + png_chunk(b"prIv", bytes(1100)) * 11_000 + whole[33:])
    assert read_frame(path).shape == PICTURE.shape


def test_damage_of_any_byte_never_escapes_as_another_error(tmp_path: Path) -> None:
    """A file cut or changed anywhere is either read, at the size that its header gave, or refused."""
    good = {
        "a.jpg": encoded("JPEG", PICTURE, exif=orientation(6)),
        "a.png": encoded("PNG", PICTURE, exif=orientation(6)),
        "b.png": encoded("PNG", GREY16),
        "a.tif": encoded("TIFF", PICTURE),
        "a.bmp": encoded("BMP", PICTURE),
        "a.webp": encoded("WEBP", PICTURE, exif=orientation(6)),
    }
    rng = np.random.default_rng(3)
    refused = 0
    for name, content in good.items():
        path = tmp_path / name
        for _ in range(40):
            damaged = bytearray(content[: rng.integers(1, len(content))] if rng.random() < 0.4 else content)
            damaged[rng.integers(min(len(damaged), 200))] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                size = image_size(path)
                assert read_frame(path).shape == (*size[::-1], 3)
                assert read_mask(path).shape == size[::-1]
            except PolypsegError as error:
                assert_one_line(str(error), path, "")
                refused += 1
    assert refused > 40


def test_two_spellings_of_one_name_in_one_folder_are_two_files_of_one_stem(folder: Path) -> None:
    save(folder / "images" / f"{NFC}.png", PICTURE)
    save(folder / "images" / f"{NFD}.png", PICTURE)
    if len(list((folder / "images").iterdir())) < GOOD + 2:
        pytest.skip("this file system contains one of the two only")
    save(folder / "masks" / f"{NFC}.png", WHITE)
    with pytest.raises(PolypsegError, match="same stem"):
        read(folder)


def test_a_name_that_is_no_utf8_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        source = folder / "images" / "good-0.png"
        source.rename(os.fsdecode(os.fsencode(folder) + b"/images/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(PolypsegError, match=r"caf\\xe9.png: its name is not UTF-8"):
        read(folder)
    status, out, error = run(capsys, "data", "check", "--data", folder, "--out", tmp_path / "check")
    assert (status, error) == (1, "")
    assert r"caf\xe9.png: its name is not UTF-8" in out


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_of_two_lines_is_told_in_one(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("images", "masks"):
        (folder / kind / "good-0.png").rename(folder / kind / "a\n\x1b[31mb\u2028.png")
    save(folder / "masks" / "a\n\x1b[31mb\u2028.png", POLYP.astype(np.uint8))
    shown = r"masks/a\n\x1b[31mb\u2028.png: mask contains the values 0 and 1"
    status, _, error = run(capsys, "data", "split", "--data", folder, "--name", "grouped", "--out", tmp_path / "s.csv")
    assert status == 1 and shown in error and len(error.splitlines()) == 1
    status, out, _ = run(capsys, "data", "check", "--data", folder, "--out", tmp_path / "check")
    assert status == 1 and any(shown in line for line in out.splitlines())


def test_hidden_files_of_desktops_are_passed_over(folder: Path) -> None:
    for name in (".DS_Store", "._good-0.png", "Thumbs.db", "desktop.ini"):
        (folder / "images" / name).write_bytes(b"x")
        (folder / "masks" / name).write_bytes(b"x")
    assert len(read(folder)) == GOOD


def test_the_same_data_given_twice_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["check"], ["split", "--name", "random"], ["show"]):
        status, _, error = run(capsys, "data", *verb, "--data", folder, "--data", folder)
        assert status == 1
        assert_one_line(error, folder / "images" / "good-0.png", "occurs twice")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", [".", "images", "masks", "images/good-0.png", "masks/good-0.png"])
def test_no_permission(place: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = (folder / place).resolve()
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        for command in commands(folder, tmp_path, "random"):
            status, _, error = run(capsys, *command)
            assert status == 1
            assert_one_line(error, path, "Permission denied")
        assert run(capsys, "data", "check", "--data", folder, "--out", tmp_path / "check")[0] == 1
    finally:
        path.chmod(mode)


def test_a_folder_that_may_not_be_listed_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as root, to whom permissions mean nothing."""
    listing = Path.iterdir

    def refuse(self: Path) -> Iterator[Path]:
        if self.name == "masks":
            raise PermissionError(13, "Permission denied", str(self))
        return listing(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for gather in (False, True):
        with pytest.raises(PolypsegError) as error:
            read(folder, [] if gather else None)
        assert_one_line(str(error.value), folder / "masks", "Permission denied")


def test_the_process_itself_ends_with_the_status_and_the_line(folder: Path) -> None:
    path = REFUSED["truncated PNG"].write(folder)
    done = subprocess.run(
        [sys.executable, "-m", "polypseg.cli", "data", "split", "--data", str(folder), "--name", "grouped"],
        capture_output=True, text=True, cwd=folder.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"polypseg: {path}: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_empty_catalog_stays_a_catalog() -> None:
    assert len(Catalog.concatenate([])) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "split",
    [
        "train",
        "val",
        "test",
    ],
)
def test_a_damaged_frame_of_any_split_is_told_before_training(
    split: str, folder: Path, tmp_path: Path, small_recipe: Callable[..., Any]
) -> None:
    """A split given as a file decodes nothing; the damage must not come out only after hours, at the test."""
    from polypseg.training.run import train

    path = REFUSED["truncated JPEG"].write(folder)
    parts = [("good-0", "train"), ("good-1", "train"), ("good-2", "val"), ("good-3", "test"), ("odd", split)]
    rows = ["dataset,frame_id,split", *(f"my-data,{stem},{part}" for stem, part in parts)]
    (tmp_path / "split.csv").write_text("\n".join(rows) + "\n")
    recipe = small_recipe(split=str(tmp_path / "split.csv"), trainer={"epochs": 1})
    with pytest.raises(PolypsegError) as error:
        train(recipe, [folder], tmp_path / "run")
    assert_one_line(str(error.value), path, "damaged")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_scans_that_are_none_do_not_count(tmp_path: Path) -> None:
    """Of a preview in its head, and of what follows its end, as the film that some telephones append."""
    exif = Image.Exif()
    exif[0x9286] = b"\xff\xda" * 300
    content = encoded("JPEG", PICTURE, progressive=True, exif=exif.tobytes()) + b"\xff\xda" * 300
    (tmp_path / "odd.jpg").write_bytes(content)
    assert (read_frame(tmp_path / "odd.jpg") == read_frame("odd", encoded("JPEG", PICTURE, progressive=True))).all()
