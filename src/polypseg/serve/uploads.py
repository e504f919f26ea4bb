"""Files that strangers send: what they are called, what they are, and how much of them is decoded.

What opens a file here is run by ``Decoders``, in a process of its own.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.io.dicom import read_dicom
from polypseg.io.kinds import kind_of
from polypseg.io.pictures import read_frame, read_mask

if TYPE_CHECKING:
    from polypseg.io.dicom import DicomFrames

# Pillow reads more, some by programs that it starts.
FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
READABLE = "send JPEG, PNG, TIFF, BMP, WebP, JPEG 2000 or DICOM"
LONGEST_NAME = 100  # bytes


def own_name(filename: str | None) -> str:
    """An upload's own name, as one harmless file name: without any path, control character or leading dot."""
    name = unicodedata.normalize("NFC", (filename or "").encode("utf-8", "replace").decode())
    name = re.split(r"[/\\]", name)[-1]
    name = "".join("_" if char in '<>:"|?*%' or not char.isprintable() else char for char in name).strip(". ")
    if len(name.encode()) > LONGEST_NAME:
        ending = "".join(name.rpartition(".")[1:])
        ending = ending if len(ending.encode()) <= 10 else ""
        stem = name.removesuffix(ending).encode()[: LONGEST_NAME - len(ending.encode())]
        name = stem.decode(errors="ignore").rstrip(". ") + ending
    return name or "upload"


def told_apart(names: Sequence[str]) -> list[str]:
    """The names of a job's uploads so that no two of them give results of one name, whatever the file system.

    Results are called after the stem: ``<stem>.png``, ``<stem>-0001.json``, ``<stem>.timeline.json``; neither case nor
    the ending tells two stems apart. A name that would meet an earlier one gets its number before it, and never
    becomes one that another upload bears.
    """
    sent = [_stems(name) for name in names]
    taken: set[str] = set()  # stems, and what results of stems may look like results of
    whole: set[str] = {"coco", "predictions"}  # files of all frames together
    told = []

    def meets(name: str, others: set[str], beginnings: set[str]) -> bool:
        stem, beginning = _stems(name)
        return stem in others or beginning in others or stem in beginnings

    for number, name in enumerate(names):
        chosen = name
        if meets(name, whole, taken):
            stems, beginnings = (set(column) for column in zip(*sent, strict=True))
            candidates = (f"{number}-{further}-{name}" if further else f"{number}-{name}" for further in count())
            chosen = next(
                one for one in candidates if not meets(one, whole, taken) and not meets(one, stems, beginnings)
            )
        stem, beginning = _stems(chosen)
        whole.add(stem)
        taken.add(beginning)
        told.append(chosen)
    return told


def _stems(name: str) -> tuple[str, str]:
    """A name's stem, and of which stem's results its own may look like one: of ``a-0001.png`` those of ``a``."""
    stem = unicodedata.normalize("NFC", unicodedata.normalize("NFC", Path(name).stem).casefold())
    return stem, re.sub(r"(-\d{4,}|\.[a-z]+)$", "", stem)


@contextmanager
def stored(upload: IO[bytes], folder: Path) -> Iterator[Path]:
    """The upload as a file without a telling name, for as long as the block lasts."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix="upload-")
    path = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  (no path)
            shutil.copyfileobj(upload, file, 1 << 20)
        yield path
    finally:
        with suppress(OSError):  # Windows keeps what is open
            path.unlink()


def told(error: PolypsegError, path: Path, name: str) -> str:
    """An error's line as the sender may read it: with the upload's own name, without any path of this computer."""
    line = str(error).replace(str(path), name).replace(f"{path.parent}/", "")
    return re.sub(r"; (replace it or remove it|choose another --out|name a video file)$", "", line)


def read_still(path: Path, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """The one frame of an image or DICOM file: H×W×3 uint8 RGB.

    Raises:
        HTTPException: 415 it is something else, 413 it has more than ``max_pixels``, 422 it is damaged or contains
            several frames.
    """
    frames = open_still(path, name, max_pixels)
    try:
        if isinstance(frames, Path):
            return read_frame(frames)
        if len(frames) > 1:
            raise HTTPException(422, f"{name}: contains {len(frames)} frames; send it to /v1/jobs")
        return next(iter(frames))
    except PolypsegError as error:
        raise HTTPException(422, told(error, path, name)) from error


def read_jpeg(content: bytes, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """A JPEG that came as bytes: H×W×3 uint8 RGB.

    Raises:
        HTTPException: 413 it has more than ``max_pixels``, 422 it is something else, or damaged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = max_pixels + 1
    except Exception:  # noqa: BLE001  (a format's own code raises whatever it meets)
        raise HTTPException(422, f"{name}: is no JPEG that can be read") from None
    _check_pixels(name, pixels, max_pixels)
    try:
        return read_frame(name, content)
    except PolypsegError as error:
        raise HTTPException(422, told(error, Path(name), name)) from error


def read_still_mask(path: Path, name: str, max_pixels: int) -> NDArray[np.bool_]:
    """A mask that was sent: H×W bool.

    Raises:
        HTTPException: as ``read_still``; 422 it is not black and white.
    """
    if not isinstance(open_still(path, name, max_pixels), Path):
        raise HTTPException(415, f"{name}: is a DICOM file; send an image, white on black")
    try:
        return read_mask(path)
    except PolypsegError as error:
        line = re.sub(r", or read .*--masks .*$", "", told(error, path, name))  # an option that a service has not
        raise HTTPException(422, line) from error


def open_still(path: Path, name: str, max_pixels: int) -> Path | DicomFrames:
    """Look at an image or DICOM file without decoding its pixels: the path of the one, the frames of the other.

    Raises:
        HTTPException: as ``read_still``.
    """
    kind = kind_of(path)
    if kind == "video":
        raise HTTPException(415, f"{name}: is a video; send it to /v1/jobs")
    if kind == "dicom":
        return _open_dicom(path, name, max_pixels)
    if path.stat().st_size == 0:
        raise HTTPException(422, f"{name}: is empty (0 bytes)")
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels = image.width * image.height
            # Asked for here, because counting the pages of a hostile TIFF takes minutes.
            several = image.format != "MPO" and getattr(image, "is_animated", False)
    except UnidentifiedImageError:
        raise HTTPException(415, f"{name}: is no image that can be read; {READABLE}") from None
    except Image.DecompressionBombError:
        pixels, several = max_pixels + 1, False
    except Exception:  # noqa: BLE001  (a format's own code raises whatever it meets)
        raise HTTPException(422, f"{name}: is damaged and cannot be decoded") from None
    _check_pixels(name, pixels, max_pixels)
    if several:
        raise HTTPException(422, f"{name}: contains several pictures; send the one that is meant")
    return path


def still_frames(path: Path, name: str, max_pixels: int) -> Iterator[Any]:
    """Of an image or DICOM file first (how many frames, their times or None), then each: H×W×3 uint8 RGB.

    Raises:
        HTTPException: as ``read_still``.
        PolypsegError: a frame cannot be decoded.
    """
    found = open_still(path, name, max_pixels)
    if isinstance(found, Path):
        yield 1, None
        yield read_frame(found)
    else:
        yield len(found), found.times
        yield from found


def video_frames(path: Path, max_pixels: int) -> Iterator[Any]:
    """Of a video first its ``VideoInfo``, then of each frame (index, pts, time, pixels), then its problem or None.

    Raises:
        PolypsegError: it cannot be read, or has larger frames.
    """
    from polypseg.io.video import VideoReader

    with VideoReader(path) as reader:
        yield reader.info
        for frame in reader:
            if frame.pixels.shape[0] * frame.pixels.shape[1] > max_pixels:
                raise PolypsegError(f"{path}: has frames of more than {max_pixels:,} pixels")
            yield frame.index, frame.pts, frame.time, frame.pixels
        yield reader.problem and reader.problem.replace(str(path), path.name)


def count_frames(path: Path, name: str, max_pixels: int, max_seconds: float) -> int | None:
    """How many frames a file says that it has, after a look at its limits; None where it does not say.

    Raises:
        HTTPException: 413 it is too long or its frames are too large, 415 it is something else, 422 a video cannot be
            read; of a still that cannot be read one frame is counted.
    """
    if kind_of(path) == "video":
        return _count_video_frames(path, name, max_pixels, max_seconds)
    try:
        frames = open_still(path, name, max_pixels)
    except HTTPException as refusal:
        if refusal.status_code == 422:  # reported when its turn comes; the others continue
            return 1
        raise
    return 1 if isinstance(frames, Path) else len(frames)


def _count_video_frames(path: Path, name: str, max_pixels: int, max_seconds: float) -> int | None:
    from polypseg.io.video import TooLargeError, probe

    try:
        info = probe(path, max_pixels)
    except TooLargeError as error:
        raise HTTPException(413, told(error, path, name)) from error
    except PolypsegError as error:
        raise HTTPException(422, told(error, path, name)) from error
    if info.frames is not None and info.frames / info.fps > max_seconds:
        raise HTTPException(413, f"{name}: is longer than {max_seconds:g} s; cut it into parts")
    return info.frames


def _open_dicom(path: Path, name: str, max_pixels: int) -> DicomFrames:
    try:
        if _is_deflated(path):  # inflated as a whole, by a factor of up to 1000
            raise HTTPException(415, f"{name}: is deflated as a whole; send it uncompressed or as JPEG")
        frames = read_dicom(path)
    except PolypsegError as error:
        raise HTTPException(422, told(error, path, name)) from error
    _check_pixels(name, frames.width * frames.height, max_pixels)
    return frames


def _is_deflated(path: Path) -> bool:
    try:
        from pydicom.filereader import read_file_meta_info

        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        return bool(syntax is not None and syntax.is_deflated)
    except Exception:  # noqa: BLE001  (no such header, or no pydicom: read_dicom says so)
        return False


def _check_pixels(name: str, pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise HTTPException(413, f"{name}: has more than {max_pixels:,} pixels; send a smaller one")
