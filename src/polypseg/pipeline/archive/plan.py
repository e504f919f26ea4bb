"""Which frame belongs to which partition: listed once, kept in a file, and followed by whoever resumes later."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from polypseg.errors import PolypsegError
from polypseg.pipeline.archive.rows import import_arrow
from polypseg.pipeline.archive.sources import Entry, Listing
from polypseg.pipeline.archive.store import Store
from polypseg.pipeline.options import MOST_FRAMES

PLAN = "plan.parquet"
MOST_BYTES = 2**30  # of a partition's names and columns


def partition_file(number: int) -> str:
    """Name of a partition's file in the results' folder."""
    return f"partitions/part-{number:07d}.parquet"


def partition_number(name: str) -> int | None:
    """The number of a file in ``partitions/``; None if it is none of ours."""
    match = re.fullmatch(r"part-([0-9]+)\.parquet", name)
    return int(match[1]) if match else None


def mask_folder(number: int) -> str:
    """Name of the folder of a partition's masks."""
    return f"masks/{number:07d}"


@dataclass(frozen=True)
class Planned:
    """What ``write_plan`` wrote.

    Attributes:
        hash: SHA-256 over all frames, in order, and where the partitions part them.
        frames: in all.
        partitions: of which the last may be shorter.
    """

    hash: str
    frames: int
    partitions: int


def write_plan(store: Store, listing: Listing, size: int) -> Planned:
    """List an archive, and write the plan: a Parquet file with one row group a partition.

    Args:
        store: the results' folder.
        listing: the frames.
        size: frames of a partition.

    Raises:
        PolypsegError: as ``Listing``; the disk is full.
    """
    pa = import_arrow()
    columns = pa.schema([(name, pa.string()) for name in ("path", *listing.columns)])
    digest = hashlib.sha256(f"{size}\n".encode())
    frames = partitions = 0
    entries = iter(listing)
    with store.writing(PLAN) as file, pa.parquet.ParquetWriter(file, columns, compression="zstd") as writer:
        while part := list(islice(entries, size)):
            rows = [{"path": entry.path, **entry.columns} for entry in part]
            for row in rows:
                digest.update(json.dumps(row).encode() + b"\n")
            writer.write_table(pa.Table.from_pylist(rows, columns), row_group_size=size)
            frames += len(part)
            partitions += 1
    return Planned(digest.hexdigest(), frames, partitions)


class Plan:
    """A plan to read.

    Args:
        store: the results' folder.

    Attributes:
        columns: the manifests' further columns.

    Raises:
        PolypsegError: it is missing or damaged.
    """

    def __init__(self, store: Store) -> None:
        pa = import_arrow()
        self._place = store.place(PLAN)
        self._errors = (pa.ArrowException, OSError, ValueError, KeyError)
        try:
            self._file = pa.parquet.ParquetFile(store.open(PLAN))
            columns = self._file.schema_arrow
        except self._errors as error:
            raise self._damaged(error) from error
        if columns.names[:1] != ["path"] or not all(pa.types.is_string(kind) for kind in columns.types):
            raise self._damaged("other columns than text, path the first")
        self.columns: list[str] = columns.names[1:]

    def __len__(self) -> int:
        count: int = self._file.num_row_groups
        return count

    def size(self, number: int) -> int:
        """Frames of a partition."""
        count: int = self._file.metadata.row_group(number).num_rows
        return count

    def partition(self, number: int) -> list[Entry]:
        """A partition's frames, in order.

        Raises:
            PolypsegError: it is damaged, or claims more than any partition has.
        """
        claimed = self._file.metadata.row_group(number)
        if claimed.num_rows > MOST_FRAMES or claimed.total_byte_size > MOST_BYTES:
            raise self._damaged(f"a partition of {claimed.num_rows} frames, {claimed.total_byte_size} bytes")
        try:
            return list(self._entries(self._file.read_row_group(number).to_pylist()))
        except self._errors as error:
            raise self._damaged(error) from error

    def _damaged(self, reason: object) -> PolypsegError:
        return PolypsegError(f"{self._place}: is damaged ({' '.join(str(reason).split())[:200]}); use --overwrite")

    @staticmethod
    def _entries(rows: list[dict[str, Any]]) -> Iterator[Entry]:
        for row in rows:
            yield Entry(row.pop("path"), {name: value for name, value in row.items() if value is not None})
