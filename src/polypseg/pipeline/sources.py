"""From what the command line names to an ordered list of files and cameras to read."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from polypseg.data.folder import IMAGE_SUFFIXES, natural_order
from polypseg.errors import PolypsegError, UsageError

log = logging.getLogger("polypseg")

Kind = Literal["image", "video", "dicom", "camera"]
VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".vob", ".wmv", ".asf",
    ".flv", ".ogv", ".mxf", ".3gp", ".h264", ".264", ".h265", ".265", ".hevc", ".y4m",
}  # fmt: skip
DICOM_SUFFIXES = {".dcm", ".dicom"}
_URLS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://")
# Files on the web whose names say so: what plays for ever has other endings (.m3u8, .mjpg, .ts, .flv) or none.
_FILES_ON_THE_WEB = {*IMAGE_SUFFIXES, *DICOM_SUFFIXES, ".gif", ".mp4", ".m4v", ".mov", ".mkv", ".avi", ".wmv"}
_HEAD = 1024  # bytes of a file that tell its kind
_IMAGE_STARTS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_VIDEO_STARTS = (
    b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u\x8ef\xcf\x11", b"FLV\1", b"OggS", b"\x06\x0e+4",
    b"\0\0\0\1g", b"\0\0\0\1@\1", b"YUV4MPEG2 ",
)  # fmt: skip
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # what ISO's container holds besides video


@dataclass(frozen=True)
class Source:
    """One thing to read.

    Attributes:
        kind: what it is; by its content where that tells, else by its name.
        location: the file's path as it was named, or a camera's index or URL.
        problem: one line that says why the file cannot be used, found beside others that can; None for most.
    """

    kind: Kind
    location: str
    problem: str | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.location)

    @property
    def camera(self) -> int | str | None:
        """The camera's index or URL; None for a file."""
        if self.kind != "camera":
            return None
        return int(self.location) if self.location.isdecimal() else self.location


def gather(named: Sequence[str], out: Path) -> list[Source]:
    """What the sources on a command line stand for, in their order; a file that is named twice is read once.

    Args:
        named: each an image, a video, a DICOM file, a folder (its own files, or those of its ``images/``), a glob,
            ``camera:N`` or N, or a camera's URL (rtsp, or a stream by http).
        out: the folder for the outputs: no file in it is a source.

    Returns:
        The sources; files of a folder or a glob in natural order.

    Raises:
        UsageError: nothing is named, or a camera beside other sources.
        PolypsegError: something named is missing, is of no known kind, holds nothing to read, or lies in ``out``.
    """
    if not named:
        raise UsageError("SOURCES: name images, folders, globs, videos, DICOM files or a camera")
    found: dict[str, Source] = {}
    for name in named:
        for source in _expand(name, out):
            key = source.location if source.kind == "camera" else os.path.abspath(source.location)
            found.setdefault(key, source)
    sources = list(found.values())
    camera = next((source for source in sources if source.kind == "camera"), None)
    if camera and len(sources) > 1:
        raise UsageError("SOURCES: a camera is read alone; name the other sources in a run of their own")
    return sources


def is_camera(name: str) -> bool:
    """Whether a source is a camera's number or URL."""
    return _camera(name) is not None


def check_utf8(path: str | Path) -> None:
    """Refuse a name that cannot stand in JSON, CSV or Parquet.

    Raises:
        PolypsegError: its bytes are no UTF-8.
    """
    if _shown(path) != str(path):
        raise PolypsegError(f"{_shown(path)}: its name is not UTF-8; rename it")


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


def _expand(name: str, out: Path) -> list[Source]:
    camera = _camera(name)
    if camera is not None:
        return [Source("camera", camera)]
    path = Path(name)
    if path.is_dir():
        return _of_folder(path, out)
    if not path.exists() and glob.has_magic(name):
        matches = [Path(match) for match in glob.glob(name, recursive=True)]
        inside = os.path.realpath(out) + os.sep
        matches = [match for match in matches if not os.path.realpath(match).startswith(inside)]
        return _readable(matches, out, name, "matches no image, video or DICOM file; check the pattern")
    if not path.is_file():
        trouble = "is neither a file nor a folder" if path.exists() else "is missing; check the name"
        raise PolypsegError(f"{_shown(path)}: {trouble}")
    kind = kind_of(path)
    if kind is None:
        raise PolypsegError(f"{_shown(path)}: is no image, video or DICOM file that polypseg knows; leave it out")
    source = _file(kind, path, out)
    if source.problem:
        raise PolypsegError(source.problem)
    return [source]


def _camera(name: str) -> str | None:
    """The index or URL of a camera, or None."""
    if name.lower().startswith(_URLS):
        if name.lower().startswith("http") and _web_suffix(name) in _FILES_ON_THE_WEB:
            raise UsageError(f"{name}: is a file on the web, and no camera; download it, and name the file")
        return name
    index = name.removeprefix("camera:")
    if not re.fullmatch("[0-9]+", index):
        if name.startswith("camera:"):
            raise UsageError(f"{name}: a camera is named by its number, as camera:0")
        return None
    return None if index == name and Path(name).exists() else index


def _web_suffix(url: str) -> str:
    try:
        return PurePosixPath(unquote(urlsplit(url).path)).suffix.lower()
    except ValueError:  # as of [ without ]
        return ""


def _of_folder(folder: Path, out: Path) -> list[Source]:
    images = folder / "images"
    folder = images if images.is_dir() else folder
    try:
        files = list(folder.iterdir())
    except OSError as error:
        raise PolypsegError(f"{folder}: cannot be read ({error.strerror})") from error
    advice = f"holds no image, video or DICOM file; sub-folders are read by '{folder}/**/*'"
    return _readable(files, out, str(folder), advice)


def _readable(files: Iterable[Path], out: Path, where: str, advice: str) -> list[Source]:
    """Those files of a folder or a glob that can be read, in natural order; says which others it passes over."""
    visible = [
        file
        for file in files
        if not file.is_dir() and not file.name.startswith(".") and file.name not in ("Thumbs.db", "desktop.ini")
    ]
    visible.sort(key=lambda file: [natural_order(part) for part in file.parts])
    kinds = [(file, kind_of(file)) for file in visible]
    unknown = [_shown(file) for file, kind in kinds if kind is None]
    sources = [_file(kind, file, out) for file, kind in kinds if kind is not None]
    if all(source.problem for source in sources):
        raise PolypsegError(sources[0].problem if sources else f"{where}: {advice}")
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        log.warning("%s%s: of no kind that polypseg reads, passed over", unknown[0], more)
    return sources


def _file(kind: Kind, path: Path, out: Path) -> Source:
    try:
        check_utf8(path)
    except PolypsegError as error:
        return Source(kind, str(path), str(error))
    if os.path.dirname(os.path.realpath(path)) == os.path.realpath(out):
        raise PolypsegError(f"{path}: lies in --out; choose another, so that no output overwrites a source")
    return Source(kind, str(path))


def _shown(path: str | Path) -> str:
    """A path that can be printed, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
