"""Whatever a program has in its hands as a picture, or as many, to 8-bit RGB frames.

A picture is a file, a PIL image, an array or a tensor; many are a list of those, a video, a folder, a glob or a camera.
What a file contains is read as ``polypseg.io.pictures.read_frame`` does; arrays and tensors follow the same rules: grey
becomes three equal channels, an alpha channel is dropped, of 16 bits the highest 8 of those in use are kept.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from polypseg.errors import PolypsegError, UsageError
from polypseg.io.camera import camera_frames, camera_in, camera_name
from polypseg.io.depth import bits_by_value, is_deep
from polypseg.io.kinds import Kind, kind_of, readable, shown_path
from polypseg.io.pictures import read_frame

if TYPE_CHECKING:
    import torch

    Picture = str | os.PathLike[str] | Image.Image | NDArray[Any] | torch.Tensor
    Source = Picture | int | Iterable[Any]  # an int is a camera's number

log = logging.getLogger("polypseg")
Pixels = NDArray[np.uint8]
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


@dataclass(frozen=True)
class Frame:
    """A frame and where it comes from.

    Attributes:
        pixels: H×W×3 uint8 RGB.
        path: the file; None for none. Of a camera its name.
        index: its number there, from 0; None for the only picture of a file.
        time: seconds from the first; None for what has no times.
    """

    pixels: Pixels
    path: str | None = None
    index: int | None = None
    time: float | None = None


def read_picture(picture: Picture) -> Frame:
    """One picture.

    Args:
        picture: the path of an image or of a DICOM file of one frame; a PIL image; an array, H×W (grey), H×W×3 (RGB) or
            H×W×4 (RGBA), uint8 or uint16; or a torch tensor, C×H×W or H×W×C, uint8 or uint16, or float of 0..1.

    Raises:
        UsageError: the path is a folder, a video, a pattern or a URL.
        PolypsegError: the file is missing or cannot be read.
        ValueError: the image, the array or the tensor is of another shape, type or range.
        TypeError: it is none of these.
    """
    if isinstance(picture, str | os.PathLike):
        return _of_path(os.fspath(picture))
    if isinstance(picture, Image.Image):
        return Frame(_of_image(picture), getattr(picture, "filename", None) or None)
    if isinstance(picture, np.ndarray):
        return Frame(_of_array(picture))
    if _is_tensor(picture):
        return Frame(_of_tensor(picture))
    raise TypeError(
        f"a picture is a path, a PIL image, an array or a tensor, not {type(picture).__name__}; of many, give a list"
    )


def read_frames(source: Source) -> Iterator[Frame]:
    """The frames of a source, one after another, each read when it is asked for.

    Args:
        source: what ``read_picture`` takes; a video; a DICOM file; a folder (its own files, or those of its
            ``images/``, in natural order); a glob; a camera (its number, ``camera:0``, or its URL), which has no end;
            N×H×W×3 arrays; or any iterable of all those.

    Raises:
        PolypsegError: a file is missing, cannot be read, or, after its last frame, is a video cut off or damaged; a
            folder or a glob has nothing to read; or a camera cannot be opened or stops.
        ValueError, TypeError: as ``read_picture``.
    """
    if isinstance(source, str | os.PathLike):
        yield from _of_name(os.fspath(source))
    elif isinstance(source, int) and not isinstance(source, bool):
        yield from _of_camera(source)
    elif _is_many(source):
        for number, one in enumerate(source):
            for frame in read_frames(one):
                yield replace(frame, index=number) if frame.path is None else frame
    else:
        yield read_picture(source)  # type: ignore[arg-type]


def _is_many(source: Any) -> bool:
    """Whether a source is iterated over, and is no picture itself."""
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return bool(source.ndim == 4)
    return isinstance(source, Iterable) and not isinstance(source, Image.Image | bytes | bytearray | memoryview)


def _of_name(name: str) -> Iterator[Frame]:
    camera = camera_in(name)
    if camera is not None:
        yield from _of_camera(int(camera) if camera.isdecimal() else camera)
        return
    path, is_many = Path(name), True
    if path.is_dir():
        images = path / "images"
        files, advice = list((images if images.is_dir() else path).iterdir()), f"sub-folders are read by '{name}/**/*'"
    elif not path.exists() and glob.has_magic(name):
        files, advice = [Path(one) for one in glob.glob(name, recursive=True)], "check the pattern"
    else:
        files, advice, is_many = [_existing(path)], "name one", False
    known, unknown = readable(files) if is_many else ([(path, kind_of(path) or "image")], [])
    if not known:
        raise PolypsegError(f"{shown_path(path)}: has no image, video or DICOM file; {advice}")
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        log.warning("%s%s: of no kind that polypseg reads, skipped", shown_path(unknown[0]), more)
    for file, kind in known:
        yield from _of_file(file, kind)


def _of_file(path: Path, kind: Kind) -> Iterator[Frame]:
    if kind == "video":
        from polypseg.io.video import VideoReader

        with VideoReader(path) as reader:
            for frame in reader:
                yield Frame(frame.pixels, str(path), frame.index, frame.time)
        if reader.problem:
            raise PolypsegError(reader.problem)
    elif kind == "dicom":
        from polypseg.io.dicom import read_dicom

        frames = read_dicom(path)
        alone, times = len(frames) == 1, frames.times
        for number, pixels in enumerate(frames):
            yield Frame(pixels, str(path), None if alone else number, None if alone or not times else times[number])
    else:
        yield Frame(read_frame(path), str(path))


def _of_camera(camera: int | str) -> Iterator[Frame]:
    start = time.monotonic()
    for number, pixels in enumerate(camera_frames(camera)):
        now = time.monotonic()
        start = now if number == 0 else start
        yield Frame(pixels, camera_name(camera), number, now - start)


def _of_path(name: str) -> Frame:
    path, shown = Path(name), shown_path(name)
    if path.is_dir():
        raise UsageError(f"{shown}: is a folder; its pictures are read by stream({shown!r})")
    if not path.exists():
        if "://" in name:
            raise UsageError(f"{shown}: is no file; download it first, or read a camera by stream(…)")
        if glob.has_magic(name):
            raise UsageError(f"{shown}: is a pattern; its files are read by stream({shown!r})")
    kind = kind_of(_existing(path)) or "image"  # whose reader says what is wrong
    if kind == "video":
        raise UsageError(f"{shown}: is a video; its frames are read by stream({shown!r})")
    if kind == "dicom":
        from polypseg.io.dicom import read_dicom

        count = len(read_dicom(path))
        if count > 1:
            raise UsageError(f"{shown}: has {count} frames; they are read by stream({shown!r})")
    return next(_of_file(path, kind))


def _existing(path: Path) -> Path:
    """A file that is there; reading a pipe or a device may never end.

    Raises:
        PolypsegError: it is none.
    """
    if not path.is_file():
        trouble = "is neither a file nor a folder" if path.exists() else "is missing; check the name"
        raise PolypsegError(f"{shown_path(path)}: {trouble}")
    return path


def _of_image(image: Image.Image) -> Pixels:
    file = getattr(image, "filename", "")
    if is_deep(image) and file and Path(file).is_file():  # not decoded yet; Pillow would cut it to 8 bits its own way
        return read_frame(file)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError("the PIL image has several pictures; give one of them, as image.copy()")
    turned = ImageOps.exif_transpose(image)
    if turned.mode == "F":
        raise ValueError(
            "the PIL image has float samples; bring them to 0..255 first, as Image.fromarray(array.astype(np.uint8))"
        )
    if turned.mode.startswith("I"):
        samples = np.asarray(turned)
        if samples.size and not 0 <= samples.min() <= samples.max() <= 65535:
            raise ValueError("the PIL image has 32-bit samples beyond 0..65535; bring them to 8 or 16 bits first")
        return _of_array(samples.astype(np.uint16))
    return _of_array(np.asarray(turned.convert("RGB")))


def _of_array(array: NDArray[Any]) -> Pixels:
    """H×W or H×W×C, uint8 or uint16, to H×W×3 uint8; the array itself where it is that already."""
    remedy = _remedy(array.shape, array.dtype)
    if remedy:
        raise ValueError(f"a frame is H×W×3 uint8 RGB, not {array.shape} {array.dtype}; {remedy}")
    colours = array[..., :3] if array.ndim == 3 else array[..., None]
    if array.dtype.itemsize == 2:
        colours = (colours >> (bits_by_value(int(colours.max())) - 8)).astype(np.uint8)
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    return np.ascontiguousarray(colours)


def _remedy(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """What to do about an array that is no frame; None where it is one."""
    if 0 in shape:
        return "it is empty"
    if len(shape) == 4:
        return "give many frames as a list: list(array)"
    if len(shape) not in (2, 3):
        return "give rows, columns and channels"
    if len(shape) == 3 and shape[2] not in _CHANNELS:
        return "put the channels last: array.transpose(1, 2, 0)" if shape[0] in _CHANNELS else "give 1, 3 or 4 channels"
    if dtype.kind == "f":
        return "bring it to 0..255 first: (255 * array).round().astype(np.uint8), if it is of 0..1"
    if dtype.kind != "u" or dtype.itemsize > 2:
        return "bring it to 0..255 first: array.astype(np.uint8)"
    return None


def _is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor; torch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _of_tensor(tensor: Any) -> Pixels:
    if tensor.ndim == 4:
        raise ValueError(
            f"a frame is a C×H×W tensor, not {tuple(tensor.shape)}; give many frames as a list: list(tensor)"
        )
    values = tensor.detach().cpu()
    if values.ndim == 3 and values.shape[0] in _CHANNELS:
        values = values.permute(1, 2, 0)
    if not values.is_floating_point():
        return _of_array(values.numpy())
    array = values.float().numpy()
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"a float tensor is of 0..1, this one of {array.min():.3g} to {array.max():.3g}; give the frame as it was "
            "before normalisation, or uint8 of 0..255"
        )
    return _of_array(np.rint(255 * array).astype(np.uint8))
