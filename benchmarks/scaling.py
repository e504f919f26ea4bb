"""What Ray costs, what it gains, and what it contains in memory, over the same frames as the local engine.

Three measures, each of whole runs of ``polypseg predict`` in processes of their own, over a manifest that names the
frames of ``--data`` as often as it takes:

- overhead: ``--engine ray --workers 1`` against ``--engine local``, in turns, over ``--frames`` frames;
- memory: the driver's peak over a quarter, half, all and twice as many frames;
- workers: 1, 2 and 4 of them, a thread each, over half as many.

``wall_s`` is the whole command; ``steady_frames_per_s`` leaves out each worker's first partition, and with it the
start; ``start_s`` is the difference of the two. ``ratio`` is of the wall times: Ray's to the local engine's, or one
worker's to several workers'; ``steady_ratio`` is the same of the steady rates, upside down.

    python benchmarks/scaling.py --data ../shared/data/Kvasir-SEG --model runs/realtime
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from results import add_rows, processor

from polypseg.bundle import ModelBundle, versions
from polypseg.data import phantom
from polypseg.errors import PolypsegError
from polypseg.files import commit
from polypseg.pipeline.archive.sources import Listing

COLUMNS = (
    "date", "commit", "measure", "engine", "workers", "threads", "frames", "partition", "round", "wall_s",
    "frames_per_s", "steady_frames_per_s", "start_s", "ratio", "steady_ratio", "driver_mb", "bytes_in", "bytes_out",
    "model", "runtime", "precision", "network_size", "cores", "load_average", "packages", "processor",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", action="append", help="folder of a data set, may be given several times; phantom frames without"
    )
    parser.add_argument("--model", required=True, help="a bundle's or a run's folder")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1, help="of each worker, and of the local engine")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="of the measure of that name")
    parser.add_argument("--partition", type=int, default=64, help="frames of a partition")
    parser.add_argument("--rounds", type=int, default=2, help="of the overhead's measure")
    parser.add_argument("--measures", nargs="+", default=["overhead", "memory", "workers"])
    parser.add_argument("--out", default="results/scaling.csv", help="CSV to which rows are added")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options, Path(temporary))
        for measure in options.measures:
            rows = getattr(bench, measure)()
            add_rows(options.out, [{name: row.get(name) for name in COLUMNS} for row in rows])
            print(f"{options.out}: {len(rows)} rows added", flush=True)
    return 0


class Bench:
    """The frames, the model, and one run after another over them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        data = options.data or [str(phantom.write(folder / "phantom", 40))]
        self.paths = [entry.path for entry in Listing(data, str(folder / "out"))]
        bundle = ModelBundle.load(options.model)
        size = bundle.preprocessing
        packages = versions("openvino", "onnxruntime", "opencv-python-headless", "ray", "pyarrow")
        self.facts = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "model": bundle.name,
            "network_size": f"{size.width}x{size.height}",
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),  # before the first run
            "packages": " ".join(f"{name}-{version}" for name, version in packages.items()),
            "processor": processor(),
        }
        print(f"load average {self.facts['load_average']}, {self.facts['processor']}, {len(self.paths)} frames of data")

    def overhead(self) -> list[dict[str, Any]]:
        """Ray with one worker against the local engine, in turns."""
        rows = []
        for number in range(self.options.rounds):
            for engine in ("local", "ray"):
                rows.append({**self.run(engine, self.options.frames, 1), "measure": "overhead", "round": number})
        for row in rows:
            local, own = ([one for one in rows if one["engine"] == engine] for engine in ("local", row["engine"]))
            row["ratio"] = round(_median(own, "wall_s") / _median(local, "wall_s"), 4)
            row["steady_ratio"] = _over(_median(local, "steady_frames_per_s"), _median(own, "steady_frames_per_s"))
        print(f"overhead: {rows[-1]['ratio']} of the local engine's time, {rows[-1]['steady_ratio']} without the start")
        return rows

    def memory(self) -> list[dict[str, Any]]:
        """The driver's peak over ever more frames."""
        rows = []
        for frames in (self.options.frames * share // 4 for share in (1, 2, 4, 8)):
            rows.append({**self.run("ray", max(frames, 1), min(2, os.cpu_count() or 1)), "measure": "memory"})
        told = [f"{row['driver_mb']} MB at {row['frames']} frames" for row in rows]
        print(f"memory: {', '.join(told)}")
        return rows

    def workers(self) -> list[dict[str, Any]]:
        """One, two and four workers."""
        rows = []
        for workers in self.options.workers:
            row = {**self.run("ray", max(self.options.frames // 2, 1), workers), "measure": "workers"}
            rows.append(row)
            row["ratio"] = round(rows[0]["wall_s"] / row["wall_s"], 4)
            row["steady_ratio"] = _over(row["steady_frames_per_s"], rows[0]["steady_frames_per_s"])
            print(f"{workers} workers: {row['steady_ratio']} times one, {row['ratio']} with the start", flush=True)
        return rows

    def run(self, engine: str, frames: int, workers: int) -> dict[str, Any]:
        """One run over so many frames; what was measured of it."""
        manifest = self.folder / "manifest.csv"
        named = islice(cycle(self.paths), frames)
        manifest.write_text("path\n" + "".join(f'"{path}"\n' for path in named), encoding="utf-8")
        out = self.folder / "out"
        command = [
            sys.executable, "-m", "polypseg", "predict", str(manifest), "--model", self.options.model,
            "--out", str(out), "--engine", engine, "--threads", str(self.options.threads),
            "--partition", str(self.options.partition), "--overwrite",
        ]  # fmt: skip
        command += ["--workers", str(workers)] if engine == "ray" else []
        start = time.time()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            peak = _watch(process)
            errors = process.stderr.read() if process.stderr else ""
        wall = time.time() - start
        if process.returncode:
            raise PolypsegError(f"{engine}: ended with status {process.returncode} ({errors.strip()[-300:]})")
        row = {
            **self.facts, "engine": engine, "workers": workers, "threads": self.options.threads, "frames": frames,
            "partition": self.options.partition, "wall_s": round(wall, 2), "frames_per_s": round(frames / wall, 3),
            "driver_mb": round(peak / 1e6, 1), **_results(out, workers),
            "bytes_in": round(statistics.mean(Path(path).stat().st_size for path in islice(cycle(self.paths), frames))),
        }  # fmt: skip
        if row["steady_frames_per_s"]:
            row["start_s"] = round(wall - frames / row["steady_frames_per_s"], 2)
        print(f"{engine}, {workers} workers, {frames} frames: {wall:.1f} s, steady {row['steady_frames_per_s']}/s, "
              f"driver {row['driver_mb']} MB", flush=True)  # fmt: skip
        return row


def _watch(process: subprocess.Popen[Any]) -> int:
    """Wait for a process; the most memory that it itself had, bytes."""
    peak = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.1)
    return peak


def _results(out: Path, workers: int) -> dict[str, Any]:
    """Of a run's files: the rate after each worker's first partition, their bytes a frame, and what computed them."""
    import pyarrow.parquet as pq

    parts = sorted((out / "partitions").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    counts = [pq.read_metadata(path).num_rows for path in parts]
    rate = None
    if len(parts) > 2 * workers:
        seconds = (parts[-1].stat().st_mtime_ns - parts[workers - 1].stat().st_mtime_ns) / 1e9
        rate = round(sum(counts[workers:]) / seconds, 3)
    size = sum(path.stat().st_size for name in ("partitions", "masks") for path in (out / name).rglob("*.p*"))
    first = pq.read_table(parts[0], columns=["runtime", "precision"]).to_pylist()[0]
    return {"steady_frames_per_s": rate, "bytes_out": round(size / sum(counts)), **first}


def _median(rows: Sequence[dict[str, Any]], name: str) -> float:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.median(values) if values else 0.0


def _over(one: float | None, other: float | None) -> float | None:
    return round(one / other, 4) if one and other else None


if __name__ == "__main__":
    sys.exit(main())
