"""Corrected masks and their frames: a data set of ``images/`` and ``masks/`` that ``polypseg train --data`` reads."""

from __future__ import annotations

import re
import threading
import unicodedata
import zipfile
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
        self._images, self._masks = folder / "images", folder / "masks"
        self._name = folder.name
        self._lock = threading.Lock()
        frames = {_key(path.stem) for path in _whole(self._images)}
        for mask in _whole(self._masks):  # left by a crash between the two files of a pair; or somebody's own
            if _key(mask.stem) not in frames:
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
        if frame.shape[:2] != mask.shape:
            sizes = " but its frame ".join(f"{one.shape[1]}×{one.shape[0]}" for one in (mask, frame))
            raise HTTPException(422, f"mask: is {sizes}")
        picture = _png(frame[..., ::-1])
        stem = re.sub(r"\.(png|jpe?g|tiff?|bmp|webp)$", "", own_name(name), flags=re.IGNORECASE)
        with self._lock:
            chosen, number = stem, 1
            taken = {_key(path.stem): path for path in _whole(self._images)}
            while (there := taken.get(_key(chosen))) is not None and there.read_bytes() != picture:
                number += 1
                chosen = f"{stem}-{number}"
            if there is not None:
                chosen = there.stem
            with atomic_write(self._masks / f"{chosen}.png") as file:
                file.write(_png(mask.astype(np.uint8) * 255))
            with atomic_write(self._images / f"{chosen}.png") as file:
                file.write(picture)
        return chosen

    def write_zip(self, path: Path) -> None:
        """Write the data set as a ZIP file."""
        with self._lock, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for folder in (self._images, self._masks):
                for file in sorted(_whole(folder)):
                    archive.write(file, f"{self._name}/{folder.name}/{file.name}")


def _key(stem: str) -> str:
    """What two names share that some file systems take for one: they differ in case, or in how accents are written."""
    return unicodedata.normalize("NFC", stem).casefold()


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.suffix != ".part"]  # a part was being written at a crash


def _png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()
