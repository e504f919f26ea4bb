"""What kind of file something is: a picture, a video or DICOM, by its content and its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from polypseg.files import natural_order

Kind = Literal["image", "video", "dicom", "camera"]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".vob", ".wmv", ".asf",
    ".flv", ".ogv", ".mxf", ".3gp", ".h264", ".264", ".h265", ".265", ".hevc", ".y4m",
}  # fmt: skip
DICOM_SUFFIXES = {".dcm", ".dicom"}
_HEAD = 1024  # bytes of a file that show its kind
_IMAGE_STARTS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_VIDEO_STARTS = (
    b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u\x8ef\xcf\x11", b"FLV\1", b"OggS", b"\x06\x0e+4",
    b"\0\0\0\1g", b"\0\0\0\1@\1", b"YUV4MPEG2 ",
)  # fmt: skip
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # what ISO's container contains besides video


def kind_of(path: Path) -> Kind | None:
    """What a file is: by its first bytes; where they say nothing, by its name, and its reader says what is wrong.

    None for what is no file, as a pipe or a device, or a link to one: reading it may never end.
    """
    from polypseg.io.dicom import is_dicom

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:  # its reader says why
        head = b""
    if head and is_dicom(path):
        return "dicom"
    return _kind_by_content(head) or _kind_by_name(path)


def _kind_by_content(head: bytes) -> Kind | None:
    riff = head[8:12] if head.startswith(b"RIFF") else b""
    box = head[4:8]  # of ISO's container (MP4, MOV, AVIF, …)
    bitmap = head.startswith(b"BM") and head[6:10] == b"\0\0\0\0"
    if head.startswith(_IMAGE_STARTS) or riff == b"WEBP" or bitmap:
        return "image"
    if box == b"ftyp":
        return "image" if head[8:12] in _IMAGE_BRANDS else "video"
    stream = any(len(head) > at + 376 and head[at] == head[at + step] == head[at + 2 * step] == 0x47
                 for at, step in ((0, 188), (4, 192)))  # fmt: skip
    if head.startswith(_VIDEO_STARTS) or riff == b"AVI " or box in (b"moov", b"mdat", b"wide") or stream:
        return "video"
    return None


def _kind_by_name(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "dicom" if suffix in DICOM_SUFFIXES else None


def readable(files: Iterable[Path]) -> tuple[list[tuple[Path, Kind]], list[Path]]:
    """Of a folder's or a glob's files those that polypseg reads, each with its kind, and the others; in natural order.

    Folders, hidden files and what a file manager leaves behind are in neither.
    """
    visible = [
        file
        for file in files
        if not file.is_dir() and not file.name.startswith(".") and file.name not in ("Thumbs.db", "desktop.ini")
    ]
    visible.sort(key=lambda file: [natural_order(part) for part in file.parts])
    kinds = [(file, kind_of(file)) for file in visible]
    return [(file, kind) for file, kind in kinds if kind is not None], [file for file, kind in kinds if kind is None]


def shown_path(path: str | Path) -> str:
    """A path that can be printed, whatever bytes it contains."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
