"""The Catalog: a table of frames, and the one way in which a frame and its mask are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from polypseg.errors import PolypsegError
from polypseg.files import sha256_lines

COLUMNS = [
    "frame_id", "image_path", "mask_path", "width", "height", "boxes", "dataset", "group", "split",
]  # fmt: skip
SPLITS = ("train", "val", "test")
MASK_THRESHOLD = 127  # of 0..255; grey values above it are polyp
MAX_PIXELS = 80_000_000  # a frame larger than this is refused before it is decoded

# Pillow's own warning starts above our limit; we refuse such files ourselves, in one line.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(path: str | Path) -> Image.Image:
    """Open an image file lazily (its header only) and check that its size is sane.

    Returns:
        A Pillow image, not yet decoded, EXIF orientation not yet applied.

    Raises:
        PolypsegError: the file is missing, empty, no image, or larger than ``MAX_PIXELS``.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise PolypsegError(f"{path}: is empty (0 bytes); restore it or remove it")
        image = Image.open(path)
    except PolypsegError:
        raise
    except Image.DecompressionBombError as error:
        raise PolypsegError(f"{path}: is larger than {MAX_PIXELS:,} pixels and was not decoded") from error
    except UnidentifiedImageError as error:
        raise PolypsegError(f"{path}: is not an image that can be read; replace it or remove it") from error
    except (OSError, ValueError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PolypsegError(f"{path}: cannot be read ({reason})") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise PolypsegError(f"{path}: is larger than {MAX_PIXELS:,} pixels and was not decoded")
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation, from the header alone. Raises as ``open_image``."""
    with open_image(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def read_frame(path: str | Path) -> NDArray[np.uint8]:
    """Read a frame as 8-bit RGB: EXIF orientation applied, any bit depth and channel count.

    16-bit samples keep their high byte, grey becomes three equal channels, an alpha channel is dropped,
    CMYK and palette images are converted.

    Returns:
        H×W×3 uint8, RGB, 0..255.

    Raises:
        PolypsegError: the file cannot be read, or its sample format has no defined 8-bit meaning.
    """
    return np.array(_decode(path, "RGB"), dtype=np.uint8)


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read a mask, thresholded once, here: a pixel is polyp where its grey value is above 127.

    Returns:
        H×W bool, EXIF orientation applied.

    Raises:
        PolypsegError: as ``read_frame``.
    """
    return read_mask_values(path) > MASK_THRESHOLD


def read_mask_values(path: str | Path) -> NDArray[np.uint8]:
    """The grey values of a mask before thresholding, H×W uint8 0..255; for the audit. Raises as above."""
    return np.array(_decode(path, "L"), dtype=np.uint8)


def _decode(path: str | Path, mode: str) -> Image.Image:
    with open_image(path) as image:
        try:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey ("I;16…"), or 32-bit holding 16
                values = np.asarray(image).astype(np.int64)
                if values.min() < 0 or values.max() > 65535:
                    raise PolypsegError(f"{path}: has 32-bit samples; save it with 8 or 16 bits")
                image = Image.fromarray((values >> 8).astype(np.uint8))
            elif image.mode == "F":
                raise PolypsegError(f"{path}: has floating-point samples; save it with 8 or 16 bits")
            return image.convert(mode)
        except (OSError, ValueError, SyntaxError, IndexError) as error:
            raise PolypsegError(f"{path}: is damaged and cannot be decoded ({error})") from error


@dataclass(frozen=True)
class Catalog:
    """Frames as a pandas table, in a fixed order; made by the readers in ``polypseg.data``.

    Columns of ``frames``:
        frame_id: the file's stem, unique within ``dataset``. str.
        image_path: absolute path of the frame. str.
        mask_path: absolute path of its mask, or None. str.
        width, height: pixels, EXIF orientation applied. int.
        boxes: list of ``[xmin, ymin, xmax, ymax]`` in pixels, as the data set publishes them.
        dataset: name of the data set, as ``kvasir-seg``. str.
        group: frames with the same group must not be parted by a grouped split. str.
        split: ``train``, ``val``, ``test``, or an empty string where no split was applied. str.
    """

    frames: pd.DataFrame

    def __post_init__(self) -> None:
        missing = [column for column in COLUMNS if column not in self.frames.columns]
        if missing:
            raise ValueError(f"a Catalog needs the columns {missing}")
        duplicated = self.frames.duplicated(["dataset", "frame_id"])
        if duplicated.any():
            row = self.frames[duplicated].iloc[0]
            raise PolypsegError(
                f"{row.image_path}: frame {row.frame_id} occurs twice in data set {row.dataset}; rename one"
            )

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]]) -> Catalog:
        """A Catalog from one dict a frame; columns left out get ``None``, ``[]`` or an empty string."""
        defaults: dict[str, Any] = {"mask_path": None, "boxes": [], "group": "", "split": ""}
        table = pd.DataFrame([{**defaults, **row} for row in rows], columns=COLUMNS)
        return cls(table.astype({"width": int, "height": int}))

    @classmethod
    def concatenate(cls, catalogs: Sequence[Catalog]) -> Catalog:
        """One Catalog of several, in their order.

        Raises:
            PolypsegError: two of them hold the same frame of the same data set.
        """
        return cls(pd.concat([catalog.frames for catalog in catalogs], ignore_index=True))

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Any]:
        """Rows as named tuples, one a frame."""
        return self.frames.itertuples(index=False)

    def row(self, index: int) -> Any:
        """One frame's row, by position: its columns are attributes."""
        return self.frames.iloc[index]

    def frame(self, index: int) -> NDArray[np.uint8]:
        """The frame at a position: H×W×3 uint8 RGB. Raises as ``read_frame``."""
        return read_frame(self.frames["image_path"].iloc[index])

    def mask(self, index: int) -> NDArray[np.bool_]:
        """The mask at a position: H×W bool, of the frame's size.

        Raises:
            PolypsegError: there is none, it cannot be read, or its size is not the frame's.
        """
        row = self.row(index)
        if row.mask_path is None:
            raise PolypsegError(f"{row.image_path}: has no mask")
        mask = read_mask(row.mask_path)
        if mask.shape != (row.height, row.width):
            raise PolypsegError(size_disagreement(row.mask_path, mask.shape[::-1], (row.width, row.height)))
        return mask

    def of_split(self, split: str) -> Catalog:
        """The frames of one split, in order.

        Raises:
            PolypsegError: there are none.
        """
        chosen = self.frames[self.frames["split"] == split]
        if chosen.empty:
            raise PolypsegError(f"split {split!r} holds no frames; check the split file")
        return Catalog(chosen.reset_index(drop=True))

    def with_split(self, split: pd.DataFrame) -> Catalog:
        """This Catalog with its ``split`` column filled from a table ``dataset, frame_id, split``.

        Frames that the table does not name are left out; that is how one split file serves several sets.

        Raises:
            PolypsegError: the table names a frame that the Catalog does not hold, or names one twice.
        """
        names = split[["dataset", "frame_id", "split"]].astype(str)
        twice = names.duplicated(["dataset", "frame_id"])
        if twice.any():
            raise PolypsegError(f"the split names frame {names[twice].iloc[0].frame_id} twice")
        joined = self.frames.drop(columns="split").merge(names, on=["dataset", "frame_id"], how="inner")
        if len(joined) < len(names):
            held = set(zip(self.frames["dataset"], self.frames["frame_id"], strict=True))
            dataset, frame_id = next(
                key for key in zip(names["dataset"], names["frame_id"], strict=True) if key not in held
            )
            raise PolypsegError(
                f"the split names frame {frame_id} of {dataset}, which is not in the data; give its --data too"
            )
        return Catalog(joined[COLUMNS])

    def hash(self) -> str:
        """SHA-256 over data set, frame and size of every row, in sorted order; independent of paths."""
        return sha256_lines(sorted(f"{row.dataset},{row.frame_id},{row.width},{row.height}" for row in self))


def size_disagreement(mask_path: str | Path, mask: tuple[int, int], frame: tuple[int, int]) -> str:
    """The one line for a mask (width, height) that differs from its frame's."""
    return f"{mask_path}: mask is {mask[0]}×{mask[1]} but its frame is {frame[0]}×{frame[1]}; resize or remove it"
