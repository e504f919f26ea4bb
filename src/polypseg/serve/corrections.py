"""Corrected masks and their frames: a data set of ``images/`` and ``masks/`` that ``polypseg train --data`` reads."""

from __future__ import annotations

import re
import threading
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from polypseg.files import atomic_write
from polypseg.serve.uploads import own_name


class Corrections:
    """The data set in a folder. Thread-safe.

    Args:
        folder: made with the first correction.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images, self._masks = folder / "images", folder / "masks"
        self._lock = threading.RLock()
        frames = {key_of(path.stem) for path in _whole(self._images)}
        for mask in _whole(self._masks):  # left by a crash between the two files of a pair; or somebody's own
            if key_of(mask.stem) not in frames:
                aside = folder / "without-frame"
                aside.mkdir(exist_ok=True)
                mask.replace(aside / mask.name)

    def names(self) -> list[str]:
        """The stems, in order."""
        return sorted(path.stem for path in _whole(self._images))

    def add(self, name: str, frame: NDArray[np.uint8], mask: NDArray[np.bool_]) -> str:
        """Store a pair, and return its stem: a frame that is there already gets the new mask, another one a new name.

        Args:
            name: of the frame, as it was sent.
            frame: H×W×3 uint8 RGB.
            mask: H×W bool.

        Raises:
            HTTPException: 422 the two are not of one size.
            PolypsegError: the disk refuses.
        """
        check_size(mask, frame.shape[:2])
        picture = png(frame[..., ::-1])
        stem = stem_of(own_name(name))
        with self._lock:
            chosen, number = stem, 1
            taken = {key_of(path.stem): path for path in _whole(self._images)}
            while (there := taken.get(key_of(chosen))) is not None and there.read_bytes() != picture:
                number += 1
                chosen = f"{stem}-{number}"
            if there is not None:
                chosen = there.stem
            with atomic_write(self._masks / f"{chosen}.png") as file:
                file.write(png(mask.astype(np.uint8) * 255))
            with atomic_write(self._images / f"{chosen}.png") as file:
                file.write(picture)
        return chosen

    def keep(self, stem: str | None, name: str, frame: Callable[[], NDArray[np.uint8]], mask: NDArray[np.bool_]) -> str:
        """Store the mask of the pair of that stem, or, where there is none, a pair; return its stem. Raises as ``add``.

        Args:
            stem: as an earlier call returned it, or None.
            name: of the frame, as it was sent.
            frame: gives H×W×3 uint8 RGB, where it is needed.
            mask: H×W bool.
        """
        with self._lock:
            image, masks = self.files(stem) if stem is not None else (None, [])
            if image is not None:
                target = self._masks / f"{image.stem}.png"
                with atomic_write(target) as file:
                    file.write(png(mask.astype(np.uint8) * 255))
                for other in masks:
                    if key_of(other.name) != key_of(target.name):
                        other.unlink(missing_ok=True)
                return image.stem
        return self.add(name, frame(), mask)

    def remove(self, stem: str) -> None:
        """Remove the pair of a stem, if it is there."""
        with self._lock:
            image, masks = self.files(stem)
            for path in masks if image is None else [image, *masks]:
                path.unlink(missing_ok=True)

    def files(self, stem: str) -> tuple[Path | None, list[Path]]:
        """The frame of a stem (None where there is none), and its masks."""
        image = next((path for path in _whole(self._images) if key_of(path.stem) == key_of(stem)), None)
        return image, [path for path in _whole(self._masks) if key_of(path.stem) == key_of(stem)]

    def pairs(self) -> dict[str, tuple[Path, Path]]:
        """The frames and masks by the frames' stems, in order; what is no pair is left out."""
        masks = {key_of(path.stem): path for path in _whole(self._masks)}
        images = sorted(_whole(self._images))
        return {path.stem: (path, masks[key_of(path.stem)]) for path in images if key_of(path.stem) in masks}

    def write_zip(self, path: Path) -> None:
        """Write the data set as a ZIP file."""
        with self._lock, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for folder in (self._images, self._masks):
                for file in sorted(_whole(folder)):
                    archive.write(file, f"{self.folder.name}/{folder.name}/{file.name}")


def check_size(mask: NDArray[np.bool_], frame: tuple[int, ...]) -> None:
    """Raises ``HTTPException``, 422, where a mask has not the height and width of its frame."""
    if mask.shape != frame:
        sizes = " but its frame ".join(f"{width}×{height}" for height, width in (mask.shape, frame))
        raise HTTPException(422, f"mask: is {sizes}")


def stem_of(name: str) -> str:
    """A frame's name without the ending of a picture."""
    return re.sub(r"\.(png|jpe?g|tiff?|bmp|webp)$", "", name, flags=re.IGNORECASE)


def key_of(stem: str) -> str:
    """What two names share that some file systems take for one: they differ in case, or in how accents are written."""
    return unicodedata.normalize("NFC", stem).casefold()


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.suffix != ".part"]  # a part was being written at a crash


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of grey values, or of BGR."""
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()
