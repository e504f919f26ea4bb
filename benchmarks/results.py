"""What the benchmarks share: adding rows to a CSV, and naming the processor."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polypseg.benchmark.speed import processor as processor


def add_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows of the same columns to a CSV, which gets its header when it is new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
