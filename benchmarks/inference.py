"""Speed of inference on a CPU, polypseg's runtimes beside other ways, all in one run and in turns.

Two groups, each measured in rounds that all of its members take turns in:

- U-Net++ with EfficientNet-B3 at 352, the network of the baseline recipe, with random weights, which are as fast as
  trained ones;
- U-Net++ with EfficientNet-Lite2 at 352 and a slim decoder, with random weights too, or the bundles of ``--model``.

Beside each stand plain PyTorch (eager, fp32, default memory layout: what all others are compared with) and plain ONNX
Runtime, as a notebook would use them; beside the second group also the tool that people would pick instead,
Ultralytics' newest nano segmentation network, exported to OpenVINO by its own exporter at its default size. Its weights
are random as well: speed only, and its boxes (column ``polyps``) mean nothing. Those three run in environments of their
own, which are made on first use and contain no polypseg; none is a dependency.

Networks with random weights find nothing here, their threshold is 1: what follows the network then takes least.

At the end, whole videos: the clips of ``--videos`` to JSON lines, and to JSON lines and overlay video.

    python benchmarks/inference.py --data ../shared/data/Kvasir-SEG --model runs/realtime
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from results import add_rows

import polypseg
from polypseg.benchmark.speed import (
    NAIVE,
    USUAL,
    Contender,
    Worker,
    contenders,
    frames_of,
    provenance,
    table,
    take_turns,
)
from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.data import phantom, read, read_all
from polypseg.errors import PolypsegError
from polypseg.evaluation.selection import select
from polypseg.export.run import export
from polypseg.files import atomic_write, sha256_lines

OTHERS = Path(__file__).with_name("inference_others.py")
ENVIRONMENTS = {
    "plain": ["torch", "segmentation-models-pytorch", "safetensors", "onnxruntime", "opencv-python-headless"],
    "ultralytics": ["ultralytics", "openvino", "nncf", "opencv-python-headless"],  # AGPL: run, never imported
}
SIZE = 352
NETWORKS = {
    "U-Net++ B3": Architecture("UnetPlusPlus", "efficientnet-b3"),
    "U-Net++ Lite2": Architecture("UnetPlusPlus", "tu-tf_efficientnet_lite2", (128, 64, 32, 16, 8)),
}
EXPORTS = [("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnx", "fp32"), ("onnx", "int8")]
CALIBRATION, CHECKED = 24, 4  # frames that untrained networks are quantised and verified on


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", action="append", help="folder of a data set, may be given several times; phantom frames without"
    )
    parser.add_argument("--split", default="val", help="part of the split that --model's Dice is measured on")
    parser.add_argument("--split_file", help="a CSV; by default the split that the bundle was trained with")
    parser.add_argument("--model", nargs="+", default=[], help="bundles to measure instead of the untrained Lite2")
    parser.add_argument("--videos", default="../shared/data/video", help="folder with the clips; skipped if missing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frame_size", default=(1280, 720), type=_size, help="WIDTHxHEIGHT of the timed frames")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6, help="timed calls of each kind in each round")
    cache = Path.home() / ".cache" / "polypseg-benchmark"
    parser.add_argument("--envs", type=Path, default=cache, help="folder that keeps environments and exports")
    parser.add_argument("--out", default="results/inference-speed.csv", help="CSV to which rows are added")
    parser.add_argument("--chart", default="docs/images/inference-speed.png")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options, Path(temporary))
        untrained = dict(list(NETWORKS.items())[: 1 if options.model else None])
        bundles = [bench.untrained(name, architecture) for name, architecture in untrained.items()]
        bundles += [ModelBundle.load(path) for path in options.model]
        rows = []
        for bundle in bundles:
            rows += bench.group(bundle, with_ultralytics=bundle is bundles[-1])
        rows += bench.videos(bundles[-1])
    add_rows(options.out, rows)
    draw(rows, Path(options.chart))
    print(f"{options.out}: {len(rows)} rows added\n{options.chart}")
    return 0


class Bench:
    """The environments, frames and untrained bundles of one run, and what is measured with them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        width, height = options.frame_size
        # Before the exports, whose own work would be counted.
        self.facts = provenance(width, height)
        print(f"load average {self.facts['load_average']}, {self.facts['processor']}, {options.threads} threads")
        self.pythons = {name: self._environment(name) for name in ENVIRONMENTS}
        self.catalog = read_all(options.data) if options.data else None
        self.frames = folder / "frames.npy"
        np.save(self.frames, frames_of(self.catalog, width, height))
        self.few = self._few_frames()

    def _environment(self, name: str) -> str:
        """The interpreter of an environment, made if it is not there yet."""
        folder = self.options.envs / name
        python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        if not (folder / "complete").exists():
            print(f"making {folder} (once)", flush=True)
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run([python, "-m", "pip", "install", "-qq", *ENVIRONMENTS[name]], check=True)
            (folder / "complete").touch()
        return str(python)

    def _few_frames(self) -> Path:
        """A small data set with a split, for the quantisation of untrained networks."""
        folder = self.folder / "few"
        count = CALIBRATION + CHECKED
        if self.catalog is None:
            phantom.write(folder, count)
        else:
            for index in np.linspace(0, len(self.catalog) - 1, count).astype(int):
                row = self.catalog.row(int(index))
                for kind, path in (("images", Path(row.image_path)), ("masks", Path(row.mask_path))):
                    (folder / kind).mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, folder / kind / path.name)
        table_ = read(folder).frames[["dataset", "frame_id"]]
        table_ = table_.assign(split=["train"] * CALIBRATION + ["val"] * (len(table_) - CALIBRATION))
        table_.to_csv(folder.with_suffix(".csv"), index=False)
        return folder

    def untrained(self, name: str, architecture: Architecture) -> ModelBundle:
        """A bundle with random weights, and all its exports; kept for as long as what makes them is the same."""
        import torch

        from polypseg.export import formats
        from polypseg.models.network import build

        makers = [Path(formats.__file__).read_text(encoding="utf-8"), str(architecture), str(self.facts["versions"])]
        folder = self.options.envs / "untrained" / f"{name.replace(' ', '-')}-{sha256_lines(makers)[:12]}"
        if not folder.exists():
            torch.manual_seed(0)
            ModelBundle.save(
                folder, build(architecture).state_dict(), name=name, architecture=architecture,
                preprocessing=Preprocessing(SIZE, SIZE), threshold=1.0, untrained=True,
            )  # fmt: skip
        there = {(one.runtime, one.precision) for one in ModelBundle.load(folder).exports}
        for runtime, precision in EXPORTS:
            if (runtime, precision) in there:
                continue
            print(f"{name}: exporting {runtime} {precision} (once)", flush=True)
            data = {"data": [self.few], "split_file": self.few.with_suffix(".csv"), "max_drop": 1.0}
            try:
                export(folder, runtime, precision, **(data if precision == "int8" else {}))
            except PolypsegError as error:
                print(error)
        return ModelBundle.load(folder)

    def group(self, bundle: ModelBundle, with_ultralytics: bool) -> list[dict[str, Any]]:
        """Measure one bundle beside the others; the rows of the CSV."""
        labels = {"tool": "polypseg", "model": bundle.name, "weights": _weights(bundle)}
        score, n = None, None
        if self.options.data and labels["weights"] == "trained":
            score = {"data": self.options.data, "split": self.options.split, "split_file": self.options.split_file}
            n = len(select(read_all(self.options.data), self.options.split, self.options.split_file, bundle)[0])
        ours = contenders(bundle, USUAL, self.options.threads, self.frames, score, **labels)
        plain = list(self._plain(bundle, labels))
        foreign = list(self._ultralytics()) if with_ultralytics else []
        print(f"{bundle.name}: {len(ours + plain + foreign)} ways, {self.options.rounds} rounds", flush=True)
        take_turns([*plain, *ours, *foreign], self.options.repeats, self.options.rounds, sys.stderr.isatty())
        naive = next((one for one in plain if one.turns), None) or next(
            one for one in ours if one.job["way"] == asdict(NAIVE)
        )
        size = f"{bundle.preprocessing.width}x{bundle.preprocessing.height}"
        rows = [
            {**one.row(naive), "network_size": size, "n": n if one.dice is not None else None} for one in plain + ours
        ]
        for one in foreign:
            computed = {"variant": f"computed in {one.loaded['computes']}"} if one.loaded else {}
            rows.append({**one.row(None), **computed, "network_size": "640x640"})
        print(table([{**row, "runtime": f"{row['tool']}: {row['runtime']}"} for row in rows]), flush=True)
        return [self._row(row, "frames", self.facts["frame_size"]) for row in rows]

    def _plain(self, bundle: ModelBundle, labels: dict[str, Any]) -> Iterator[Contender]:
        job = {
            "threads": self.options.threads,
            "frames": str(self.frames),
            "preprocessing": asdict(bundle.preprocessing),
            "threshold": bundle.threshold,
            "source": str(Path(polypseg.__file__).parents[1]),
            "architecture": asdict(bundle.architecture),
            "weights": str(bundle.folder / "model.safetensors"),
        }
        command = [self.pythons["plain"], "-P", str(OTHERS)]
        common = {"device": "cpu", "precision": "fp32"}
        yield Contender(
            command, {**job, "kind": "torch"},
            {**labels, "tool": "plain PyTorch", "runtime": "torch", **common, "variant": "default layout, eager"},
        )  # fmt: skip
        for one in bundle.exports:
            if (one.runtime, one.precision) == ("onnx", "fp32"):
                yield Contender(
                    command, {**job, "kind": "onnx", "model": str(one.model)},
                    {**labels, "tool": "plain ONNX Runtime", "runtime": "onnx", **common, "variant": ""},
                )  # fmt: skip

    def _ultralytics(self) -> Iterator[Contender]:
        """Its exports, kept beside its environment: they take longer than all that is measured of them."""
        command = [self.pythons["ultralytics"], "-P", str(OTHERS)]
        folder = self.options.envs / "ultralytics-exports"
        os.environ["YOLO_CONFIG_DIR"] = str(folder)  # its settings; nothing is written into the user's home
        folder.mkdir(parents=True, exist_ok=True)
        for precision in ("fp32", "fp16", "int8"):
            labels = {
                "tool": "Ultralytics", "model": "", "weights": "random", "runtime": "openvino", "device": "cpu",
                "precision": precision, "variant": "",
            }  # fmt: skip
            record = folder / f"{precision}.json"
            try:
                if not record.exists():
                    print(f"Ultralytics: exporting {precision} (once)", flush=True)
                    job = {
                        "kind": "export", "precision": precision, "folder": str(folder.resolve() / precision),
                        "data": str(self._yolo_data()),
                    }  # fmt: skip
                    with Worker(command, job) as worker:
                        record.write_text(json.dumps(worker.loaded))
                made = json.loads(record.read_text())
            except PolypsegError as error:
                yield Contender(command, {}, labels, reason=str(error))
                continue
            job = {
                "kind": "ultralytics", "model": made["model"], "threads": self.options.threads,
                "frames": str(self.frames),
            }  # fmt: skip
            yield Contender(command, job, {**labels, "model": made["name"]})

    def _yolo_data(self) -> Path:
        """The few frames as Ultralytics wants them, to calibrate its int8 export on."""
        folder = self.folder / "yolo"
        catalog = read(self.few)
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(len(catalog)):
            row = catalog.row(index)
            cv2.imwrite(str(folder / "images" / f"{row.frame_id}.png"), catalog.frame(index)[..., ::-1])
            points = np.argwhere(catalog.mask(index))[:, ::-1]
            corners = cv2.boxPoints(cv2.minAreaRect(points.astype(np.float32))) / (row.width, row.height)
            line = " ".join(f"{value:.4f}" for value in np.clip(corners, 0, 1).ravel())
            (folder / "labels" / f"{row.frame_id}.txt").write_text(f"0 {line}\n")
        (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n  0: polyp\n")
        return folder / "data.yaml"

    def videos(self, bundle: ModelBundle) -> list[dict[str, Any]]:
        """Whole clips by the runtime that ``auto`` takes, without and with the overlay, in turns."""
        import av

        from polypseg.inference.segmenter import Segmenter
        from polypseg.pipeline.video import predict_video

        clips = []
        for path in sorted(Path(self.options.videos).glob("*.mp4")):
            with av.open(path) as container:
                stream = container.streams.video[0]
                if (stream.width, stream.height) == (1380, 1080):
                    clips.append(path)
        if not clips:
            print(f"{self.options.videos}: contains no clip of 1380x1080; videos are skipped")
            return []
        segmenter = Segmenter(bundle, threads=self.options.threads)
        outputs = {"video to JSON lines": False, "video to JSON lines and overlay": True}
        fps: dict[str, list[float]] = {task: [] for task in outputs}
        frames, polyps = 0, 0
        for number in range(1 + min(self.options.rounds, 3)):  # the first is a warm-up
            for task, overlay in outputs.items():
                frames, seconds, polyps = 0, 0.0, 0
                for clip in clips:
                    out = self.folder / "video"
                    summary = predict_video(segmenter, clip, out, save=["overlay"] if overlay else (), overwrite=True)
                    frames, seconds = frames + summary.frames, seconds + summary.seconds
                    lines = (out / f"{clip.stem}.jsonl").read_text(encoding="utf-8").splitlines()
                    polyps += sum(len(json.loads(line)["polyps"]) for line in lines)
                if number:
                    fps[task].append(frames / seconds)
        rows = []
        for task, values in fps.items():
            print(f"{task}: {statistics.median(values):.1f} frames/s ({min(values):.1f} to {max(values):.1f}), "
                  f"{segmenter.reason}")  # fmt: skip
            row = {
                "tool": "polypseg", "model": bundle.name, "weights": _weights(bundle),
                "runtime": segmenter.runtime.name, "device": segmenter.device, "precision": segmenter.precision,
                "threads": segmenter.runtime.threads, "calls": frames * len(values),
                "stream_fps": round(statistics.median(values), 3), "polyps": polyps / frames,
                "network_size": f"{bundle.preprocessing.width}x{bundle.preprocessing.height}",
            }  # fmt: skip
            rows.append(self._row(row, task, "1380x1080"))
        return rows

    def _row(self, row: dict[str, Any], task: str, frame_size: str) -> dict[str, Any]:
        """A row of the CSV, of one set of columns whatever was measured."""
        origin = {name: self.facts[name] for name in ("date", "commit", "load_average", "processor")}
        packages = self.facts["versions"]
        if row["tool"] != "polypseg":
            name = "ultralytics" if row["tool"] == "Ultralytics" else "plain"
            packages = self._packages(name)
        columns = {**dict.fromkeys(COLUMNS), **row, "task": task, "frame_size": frame_size, **origin}
        columns["packages"] = " ".join(f"{package}-{version}" for package, version in packages.items())
        return {name: columns[name] for name in COLUMNS}

    def _packages(self, name: str) -> dict[str, str]:
        listed = subprocess.run(
            [self.pythons[name], "-m", "pip", "list", "--format", "json"], capture_output=True, check=True, text=True
        )
        found = {one["name"].replace("_", "-"): one["version"] for one in json.loads(listed.stdout)}
        return {package: found[package] for package in ENVIRONMENTS[name] if package in found}


COLUMNS = (
    "date", "commit", "task", "tool", "model", "weights", "network_size", "frame_size", "runtime", "device",
    "precision", "variant", "threads", "calls", "network_p50_ms", "network_p95_ms", "network_speedup", "before_ms",
    "after_ms", "before_and_after_share", "end_to_end_p50_ms", "end_to_end_p95_ms", "end_to_end_speedup", "stream_fps",
    "load_s", "memory_mb", "polyps", "dice", "n", "reason", "load_average", "packages", "processor",
)  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The chart of the frames a second of every row."""
    from polypseg.visualization.charts import speed

    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row["network_p50_ms"]:
            group = "Ultralytics" if row["tool"] == "Ultralytics" else row["model"]
            bars = groups.setdefault(f"{group} at {row['network_size'].split('x')[0]}", {})
            bars[_name(row)] = (1000 / row["network_p50_ms"], 1000 / row["end_to_end_p50_ms"])
    with atomic_write(path) as file:
        file.write(speed(groups))


def _name(row: dict[str, Any]) -> str:
    runtime = {"openvino": "OpenVINO", "onnx": "ONNX Runtime", "torch": "PyTorch"}[row["runtime"]]
    if row["tool"] == "Ultralytics":
        return f"{row['model']}, {runtime}, {row['precision']}"
    layout = " channels_last" if row["variant"].startswith("channels_last") else ""
    return f"{'polypseg' if row['tool'] == 'polypseg' else 'plain'}, {runtime} {row['precision']}{layout}"


def _weights(bundle: ModelBundle) -> str:
    return "random" if bundle.metadata.get("untrained") else "trained"


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
