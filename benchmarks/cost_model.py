"""The cost model of docs/explanation/scale.md, computed from what was measured: no figure of its table is typed.

Reads ``results/scaling.csv`` (benchmarks/scaling.py: frames a second of a worker, bytes a frame, the start) and
``results/inference-speed.csv`` (benchmarks/inference.py: the network alone), takes the newest rows of each, and writes
the tables between the page's marks.

    python benchmarks/cost_model.py --page docs/explanation/scale.md
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, str]

SIZES = ((10**6, 1, "a day"), (10**8, 7, "a week"), (10**10, 90, "a quarter"))  # frames, days to do it in
DAY = 86400
# What one of each gives; how many of them a size needs, is the model's answer. Taken, not measured here.
CORES = 16  # of a machine
LINK = 10e9 / 8  # bytes a second, of 10 Gbit/s
GETS, PUTS = 5500, 3500  # requests a second, of one prefix of S3, as its documentation promises
NAMES = 10 * 1000  # a second: ten listings of a thousand names each
DISK = 20e12  # bytes
MARKS = "<!-- cost model: {} -->", "<!-- end of {} -->"


@dataclass(frozen=True)
class Measured:
    """What the model is computed from.

    Attributes:
        rate: frames a second of one worker with one thread, all included but the start.
        start: seconds until the first worker works.
        bytes_in: of a frame's file.
        bytes_out: of its row and mask.
        partition: frames of a partition.
        network: frames a second of the network alone, on ``network_threads`` threads; None where it was not measured.
        gpu: frames a second of one GPU; None where it was not measured.
    """

    rate: float
    start: float
    bytes_in: float
    bytes_out: float
    partition: int
    network: float | None
    network_threads: int
    gpu: float | None
    note: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scaling", type=Path, default=Path("results/scaling.csv"))
    parser.add_argument("--speed", type=Path, default=Path("results/inference-speed.csv"))
    parser.add_argument("--page", type=Path, help="a Markdown page whose marked parts are written anew")
    options = parser.parse_args()
    runs = newest([row for row in read(options.scaling) if row["measure"] == "workers"])
    if not runs:
        print(f"{options.scaling}: contains no measure of workers; run benchmarks/scaling.py", file=sys.stderr)
        return 1
    found = measured(runs, read(options.speed))
    parts = {"measured": inputs(found), "sizes": sizes(found), "check": check(found, runs)}
    for name, text in parts.items():
        print(f"\n{text}")
        if options.page:
            begin, end = (mark.format(name) for mark in MARKS)
            page = options.page.read_text(encoding="utf-8")
            page, count = re.subn(f"(?s){begin}.*?{end}", lambda _, t=f"{begin}\n\n{text}\n\n{end}": t, page)
            if count != 1:
                print(f"{options.page}: contains no part marked {begin}", file=sys.stderr)
                return 1
            options.page.write_text(page, encoding="utf-8")
    return 0


def read(path: Path) -> list[Row]:
    """The rows of a CSV; none where it is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the last run among them."""
    last = max((row["date"] for row in rows), default="")
    return [row for row in rows if row["date"] == last]


def measured(runs: Sequence[Row], speeds: Sequence[Row]) -> Measured:
    """What the model takes from the CSVs."""
    one = next(row for row in runs if row["workers"] == "1")
    ours = [row for row in speeds if row["tool"] == "polypseg" and row["task"] == "frames" and row["network_p50_ms"]]
    same = [row for row in ours if (row["runtime"], row["precision"]) == (one["runtime"], one["precision"])]
    cpu = newest([row for row in same if row["device"] == "cpu" and row["network_size"] == one["network_size"]])
    gpu = newest([row for row in ours if row["device"] == "cuda"])
    fastest = min(cpu, key=lambda row: float(row["network_p50_ms"]), default=None)
    return Measured(
        float(one["steady_frames_per_s"]), float(one["start_s"]), float(one["bytes_in"]), float(one["bytes_out"]),
        int(one["partition"]), 1000 / float(fastest["network_p50_ms"]) if fastest else None,
        int(fastest["threads"]) if fastest else 0,
        max((float(row["stream_fps"]) for row in gpu if row["stream_fps"]), default=None),
        f"{one['model']}, {one['runtime']} {one['precision']} at {one['network_size']}, {one['processor']}, "
        f"commit {one['commit']}, {one['date'][:10]}",
    )  # fmt: skip


def inputs(found: Measured) -> str:
    """The table of what was measured."""
    alone = "not measured"
    if found.network is not None:
        alone = f"{found.network:.1f} on {found.network_threads} threads"
    rows = [
        ("*f*", "frames a second of one worker with one thread", f"{found.rate:.1f}"),
        ("", "of the network alone", alone),
        ("*g*", "frames a second of one GPU", "not measured" if found.gpu is None else f"{found.gpu:.0f}"),
        ("*s*", "seconds until the workers work", f"{found.start:.0f}"),
        ("*i*", "bytes of a frame's file", f"{found.bytes_in:,.0f}"),
        ("*o*", "bytes of its row and its mask", f"{found.bytes_out:,.0f}"),
    ]
    return table(("", "what", "measured"), rows) + f"\n\n{found.note}."


def sizes(found: Measured) -> str:
    """The table of the three sizes."""
    rows = []
    for frames, days, told in SIZES:
        seconds = days * DAY
        needs = {
            "computing": frames / (found.rate * seconds) / CORES,
            "network": frames * (found.bytes_in + found.bytes_out) / seconds / LINK,
            "reading requests": frames / seconds / GETS,
            "writing requests": frames / seconds / PUTS,
            "listing": frames / NAMES / seconds,
            "storage of results": frames * found.bytes_out / DISK,
        }
        binds = max(needs, key=lambda name: needs[name])
        rows.append(
            (
                f"{frames:.0e}".replace("e+0", "e").replace("e+", "e"),
                told,
                quantity(frames / found.rate / 3600),
                quantity(max(1, frames / (found.rate * seconds))),
                "" if found.gpu is None else quantity(max(1, frames / (found.gpu * seconds))),
                f"{quantity(frames * found.bytes_in / seconds / 1e6)} MB/s",
                f"{quantity(frames / seconds)}/s",
                quantity(frames / NAMES / 60) + " min",
                f"{size(frames * found.bytes_in)} / {size(frames * found.bytes_out)}",
                f"{binds} ({quantity(needs[binds])}×)",
            )
        )
    head = (
        "frames", "in", "core hours", "cores", "GPUs", "read", "GET and PUT, each", "listing", "archive / results",
        "binds",
    )  # fmt: skip
    if found.gpu is None:
        head, rows = head[:4] + head[5:], [row[:4] + row[5:] for row in rows]
    return table(head, rows)


def check(found: Measured, runs: Sequence[Row]) -> str:
    """The table of what the model says of the measured runs."""
    rows = []
    for row in runs:
        workers, frames = int(row["workers"]), int(row["frames"])
        busy = min(workers, int(row["cores"]))
        said, took = found.start + frames / (found.rate * busy), float(row["wall_s"])
        rows.append((workers, frames, f"{said:.0f} s", f"{took:.0f} s", f"{said / took - 1:+.0%}"))
    return table(("workers", "frames", "model", "measured", "difference"), rows)


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def quantity(value: float) -> str:
    """Two digits that count: 0.012, 3.4, 120, 5600."""
    if value >= 99.5:
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{value:.2g}"


def size(count: float) -> str:
    """Bytes, for people."""
    power = min(5, max(1, (len(f"{count:.0f}") - 1) // 3))
    return f"{quantity(count / 1000**power)} {('kB', 'MB', 'GB', 'TB', 'PB')[power - 1]}"


if __name__ == "__main__":
    sys.exit(main())
