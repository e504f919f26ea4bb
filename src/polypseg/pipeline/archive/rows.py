"""One frame's bytes and prediction to one row, and rows to a Parquet file. Pure: the same wherever it runs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from polypseg.errors import PolypsegError
from polypseg.io.outputs import frame_record
from polypseg.pipeline.archive.sources import Entry
from polypseg.segmentation import Segmentation

if TYPE_CHECKING:
    import pyarrow as pa

# In the order of the columns; those of a manifest follow.
COLUMNS = (
    "source", "source_sha256", "width", "height", "polyps", "mask", "error", "model", "threshold", "operating_point",
    "runtime", "device", "precision", "tta",
)  # fmt: skip
_METADATA = b"polypseg"


def import_arrow() -> Any:
    """The ``pyarrow`` package, with its ``parquet``.

    Raises:
        PolypsegError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PolypsegError("pyarrow: is not installed; pip install 'polypseg[archive]'") from error
    return pyarrow


def schema(further: Sequence[str]) -> pa.Schema:
    """What a row contains; ``further`` names the columns of manifests, which are text.

    Raises:
        PolypsegError: a manifest's column has a name of ours.
    """
    pa = import_arrow()
    taken = [name for name in further if name in COLUMNS]
    if taken:
        raise PolypsegError(f"a manifest's column {taken[0]!r} is a name of polypseg's own; rename it")
    polyp = pa.struct(
        [
            ("box", pa.list_(pa.int32())),
            ("area", pa.int64()),
            ("confidence", pa.float64()),
            ("contour", pa.list_(pa.list_(pa.int32()))),
        ]
    )
    point = pa.struct(
        [
            ("threshold", pa.float64()),
            ("min_confidence", pa.float64()),
            ("confidence", pa.string()),
            ("min_area", pa.float64()),
            ("fill_holes", pa.bool_()),
        ]
    )
    kinds = {
        "operating_point": point,
        "width": pa.int32(),
        "height": pa.int32(),
        "threshold": pa.float64(),
        "polyps": pa.list_(polyp),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in (*COLUMNS, *further)])


def prediction_row(
    entry: Entry,
    digest: str,
    predicted: Segmentation,
    settings: Mapping[str, Any],
    mask: str | None = None,
    contours: bool = False,
) -> dict[str, Any]:
    """The row of a frame that was segmented.

    Args:
        entry: the frame.
        digest: SHA-256 of its bytes.
        predicted: by the model.
        settings: ``Segmenter.settings``.
        mask: name of the mask's file in the results' folder; None where there is none.
        contours: keep the polyps' contours.
    """
    record = frame_record(predicted, source=entry.path, model=settings["model"])
    polyps = [{**polyp, "contour": polyp["contour"] if contours else None} for polyp in record["polyps"]]
    return {**record, **settings, "polyps": polyps, "source_sha256": digest, "mask": mask, **entry.columns}


def error_row(entry: Entry, digest: str | None, error: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a frame that cannot be read: ``error`` is the line that says why."""
    return {"source": entry.path, "source_sha256": digest, "error": error, **settings, **entry.columns}


@dataclass(frozen=True)
class Done:
    """A partition that is written: what it contains, as its file's metadata say too.

    Attributes:
        partition: its number.
        frames: its rows.
        with_polyps: rows of frames that show polyps.
        polyps: polyps in all of them.
        errors: rows of frames that could not be read.
    """

    partition: int
    frames: int
    with_polyps: int
    polyps: int
    errors: int


def summarise(partition: int, rows: Sequence[Mapping[str, Any]]) -> Done:
    """What rows contain."""
    polyps = [len(row.get("polyps") or ()) for row in rows]
    errors = sum(row.get("error") is not None for row in rows)
    return Done(partition, len(rows), sum(count > 0 for count in polyps), sum(polyps), errors)


def to_parquet(rows: Sequence[Mapping[str, Any]], columns: pa.Schema, done: Done, plan: str) -> bytes:
    """The file of a partition.

    Args:
        rows: as ``prediction_row`` and ``error_row`` make them, in order.
        columns: as ``schema`` gives it.
        done: what they contain.
        plan: the hash of the plan that the partition is of.
    """
    pa = import_arrow()
    note = json.dumps({**asdict(done), "plan": plan}).encode()
    columns = columns.with_metadata({_METADATA: note})
    table = pa.Table.from_pylist([{name: row.get(name) for name in columns.names} for row in rows], columns)
    file = io.BytesIO()
    pa.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def noted(file: Any, plan: str) -> Done | None:
    """What an open partition's file contains, from its metadata; None if it is no partition of this plan."""
    pa = import_arrow()
    try:
        metadata = pa.parquet.read_metadata(file).metadata or {}
        note = json.loads(metadata.get(_METADATA, b"{}"))
        if note.pop("plan", None) != plan or not all(type(one) is int and one >= 0 for one in note.values()):
            return None
        return Done(**note)
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
