"""The Catalog: a table of frames, and how one of them is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.files import sha256_lines, sha256_of_file
from polypseg.io.pictures import read_frame, read_mask

COLUMNS = [
    "frame_id", "image_path", "mask_path", "width", "height", "boxes", "dataset", "group", "split", "centre",
    "mask_kind",
]  # fmt: skip
_DEFAULTS = {"centre": "", "mask_kind": "binary"}  # of columns that may be left out
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Catalog:
    """Frames as a pandas table, in a fixed order; made by the readers in ``polypseg.data``.

    Two are equal if their tables are. As a table may be changed, a Catalog is no key of a dict; its ``hash()`` is that
    of the files' content.

    Columns of ``frames``:
        frame_id: the file's stem, unique within ``dataset``. str.
        image_path: absolute path of the frame. str.
        mask_path: absolute path of its mask, or None. str.
        width, height: pixels, EXIF orientation applied. int.
        boxes: list of ``[xmin, ymin, xmax, ymax]`` in pixels, as the data set publishes them.
        dataset: name of the data set, as ``kvasir-seg``. str.
        group: frames with the same group must stay in one subset of a grouped split. str.
        split: ``train``, ``val``, ``test``, or an empty string where no split was applied. str.
        centre: the hospital, as ``C1``, where the data set names it; else, and where the column is left out, an
            empty string. str.
        mask_kind: how its mask is read, as in ``polypseg.io.masks``; ``binary`` where the column is left out. str.
    """

    frames: pd.DataFrame

    def __post_init__(self) -> None:
        absent = {column: value for column, value in _DEFAULTS.items() if column not in self.frames.columns}
        if absent:
            object.__setattr__(self, "frames", self.frames.assign(**absent))
        missing = [column for column in COLUMNS if column not in self.frames.columns]
        if missing:
            raise ValueError(f"a Catalog needs the columns {missing}")
        duplicated = self.frames.duplicated(["dataset", "frame_id"])
        if duplicated.any():
            row = self.frames[duplicated].iloc[0]
            raise PolypsegError(
                f"{row.image_path}: frame {row.frame_id} occurs twice in data set {row.dataset}; rename one"
            )

    def __repr__(self) -> str:
        sets = self.frames["dataset"].value_counts(sort=False)
        parts = ", ".join(f"{name} {count}" for name, count in sets.items())
        split = self.frames["split"].value_counts(sort=False)
        splits = ", ".join(f"{name} {split[name]}" for name in SPLITS if name in split)
        masks = int(self.frames["mask_path"].notna().sum())
        return f"Catalog({len(self)} frames, {masks} with a mask: {parts or 'none'}{f'; {splits}' if splits else ''})"

    def __eq__(self, other: object) -> bool:
        return self.frames.equals(other.frames) if isinstance(other, Catalog) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]]) -> Catalog:
        """A Catalog from one dict a frame; columns left out get ``None``, ``[]`` or an empty string."""
        filled = [{"mask_path": None, "boxes": [], "group": "", "split": "", **_DEFAULTS, **row} for row in rows]
        # dtype object: pandas would make a missing mask_path NaN among strings.
        table = pd.DataFrame(filled, columns=COLUMNS, dtype=object)
        return cls(table.astype({"width": int, "height": int}))

    @classmethod
    def concatenate(cls, catalogs: Sequence[Catalog]) -> Catalog:
        """One Catalog of several, in their order; of none, one without frames.

        Raises:
            PolypsegError: two of them contain the same frame of the same data set.
        """
        if not catalogs:
            return cls.from_rows([])
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
        mask = read_mask(row.mask_path, row.mask_kind)
        if mask.shape != (row.height, row.width):
            raise PolypsegError(size_disagreement(row.mask_path, mask.shape[::-1], (row.width, row.height)))
        return mask

    def check_masks(self) -> None:
        """Read every mask once. Raises as ``mask``, for the first that cannot be read."""
        with ThreadPoolExecutor(2) as pool:  # Pillow and OpenCV release the interpreter lock
            for _ in pool.map(self.mask, np.flatnonzero(self.frames["mask_path"].notna())):
                pass

    def of_split(self, split: str) -> Catalog:
        """The frames of one split, in order.

        Raises:
            PolypsegError: there are none.
        """
        chosen = self.frames[self.frames["split"] == split]
        if chosen.empty:
            raise PolypsegError(f"split {split!r} contains no frames; check the split file")
        return Catalog(chosen.reset_index(drop=True))

    def with_split(self, split: pd.DataFrame) -> Catalog:
        """This Catalog with its ``split`` column filled from a table ``dataset, frame_id, split``.

        Frames that the table does not name are left out; that is how one split file serves several sets.

        Raises:
            PolypsegError: the table names a frame that the Catalog does not contain, or names one twice.
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
        """SHA-256 over data set, name and content hash of every frame, in sorted order; independent of paths."""
        names = zip(self.frames["dataset"], self.frames["frame_id"], self.content_hashes(), strict=True)
        return sha256_lines(sorted(",".join(name) for name in names))

    def content_hashes(self) -> list[str]:
        """SHA-256 a frame, in order: of the bytes of its file and its mask's, and of how the mask is read.

        A file that was hashed before by this process, and has kept size and time of change, is not read again.

        Raises:
            PolypsegError: a file cannot be read.
        """
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(_content_hash, self))


def _content_hash(row: Any) -> str:
    files = (row.image_path, row.mask_path)
    return sha256_lines([*("" if path is None else sha256_of_file(path) for path in files), row.mask_kind])


def size_disagreement(mask_path: str | Path, mask: tuple[int, int], frame: tuple[int, int]) -> str:
    """The one line for a mask (width, height) that differs from its frame's."""
    return f"{mask_path}: mask is {mask[0]}×{mask[1]} but its frame is {frame[0]}×{frame[1]}; resize or remove it"
