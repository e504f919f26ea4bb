"""Other ways of segmenting a frame, timed as ``polypseg.benchmark.speed`` times ours.

``inference.py`` runs this file in environments of their own, which contain no polypseg: of it, only the definition of
the network is read. It speaks the protocol of a ``Worker``: its job is a line of JSON on standard input, then come
requests, each answered with a line.
"""

# ruff: noqa: E402  (the clock starts before the imports)
from __future__ import annotations

import os
import sys
import time

STARTED = time.perf_counter()

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# As in polypseg.benchmark.speed.
WARM_UP = 2  # calls of each kind before the timed ones, in every turn
AWAKE = 1.0  # seconds of work at the start of every turn


class _Plain:
    """What a notebook does around a network: resize, normalise, compute, sigmoid, resize back, threshold, contours."""

    def __init__(self, job: dict[str, Any]) -> None:
        preprocessing = job["preprocessing"]
        self.size = preprocessing["width"], preprocessing["height"]
        self.mean, self.std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
        self.threshold = job["threshold"]

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return cv2.resize(frame, self.size)

    def network(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = (image.astype(np.float32) / 255 - self.mean) / self.std
        return self.logits(np.ascontiguousarray(values.transpose(2, 0, 1)[None]))[0, 0]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        raise NotImplementedError

    def end_to_end(self, frame: NDArray[np.uint8]) -> int:
        """How many regions it finds."""
        probability = 1 / (1 + np.exp(-self.network(self.prepare(frame))))
        mask = cv2.resize(probability, frame.shape[1::-1]) >= self.threshold
        return len(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0])


class PlainTorch(_Plain):
    """PyTorch, eager, fp32, default memory layout."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import torch
        from safetensors.torch import load_file

        if job["threads"]:
            torch.set_num_threads(job["threads"])
        self.torch, self.threads = torch, torch.get_num_threads()
        sys.path.append(job["source"])
        from polypseg.bundle import Architecture
        from polypseg.models.network import build

        self.model = build(Architecture.from_dict(job["architecture"]))
        self.model.load_state_dict(load_file(job["weights"]))
        self.model.eval()

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with self.torch.no_grad():
            answer: NDArray[np.float32] = self.model(self.torch.from_numpy(images)).numpy()
        return answer


class PlainONNX(_Plain):
    """ONNX Runtime with its defaults."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        self.threads = job["threads"] or os.cpu_count()
        self.session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = self.session.run(None, {self.name: images})[0]
        return answer


class Ultralytics:
    """An OpenVINO export of Ultralytics' exporter, computed as its own predictor does it.

    In its favour, the conversion of the frame to the network's floats is left out of the network's time.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import openvino
        from ultralytics import YOLO

        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY"}
        if job["threads"]:
            settings["INFERENCE_NUM_THREADS"] = job["threads"]
        compiled = core.compile_model(next(Path(job["model"]).glob("*.xml")), "CPU", settings)
        self.threads = compiled.get_property("INFERENCE_NUM_THREADS")
        self.computes = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.request = compiled.create_infer_request()
        self.side = int(compiled.input(0).partial_shape[2].get_length())
        self.model = YOLO(job["model"], task="segment")

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        scale = self.side / max(frame.shape)
        small = cv2.resize(frame, None, fx=scale, fy=scale)
        square = np.full((self.side, self.side, 3), 114, np.uint8)
        square[: small.shape[0], : small.shape[1]] = small
        return np.ascontiguousarray(square.transpose(2, 0, 1)[None].astype(np.float32) / 255)

    def network(self, image: NDArray[np.float32]) -> Any:
        return self.request.infer([image], share_inputs=True)

    def end_to_end(self, frame: NDArray[np.uint8]) -> int:
        """How many boxes it finds, at its default confidence of 0.25."""
        return len(self.model.predict(frame[..., ::-1], verbose=False)[0].boxes)


def export_ultralytics(job: dict[str, Any]) -> dict[str, Any]:
    """Export the newest nano segmentation network, with random weights, and say which and where."""
    import ultralytics
    from ultralytics import YOLO

    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    known = Path(ultralytics.__file__).parent.glob("cfg/models/*/yolo[0-9]*-seg.yaml")
    newest = max(int(found[1]) for path in known if (found := re.fullmatch(r"yolo(\d+)-seg\.yaml", path.name)))
    model = YOLO(f"yolo{newest}n-seg.yaml")
    options = {"fp32": {}, "fp16": {"quantize": 16}, "int8": {"quantize": 8, "data": job["data"]}}[job["precision"]]
    exported = Path(model.export(format="openvino", imgsz=640, verbose=False, **options)).resolve()
    return {"model": str(exported), "name": f"yolo{newest}n-seg", "load_s": None}


def timed(way: Any, frames: Sequence[NDArray[np.uint8]], repeats: int) -> dict[str, Any]:
    """As ``polypseg.benchmark.speed.timed``, of what this way has."""
    images = [way.prepare(frame) for frame in frames]

    start = time.perf_counter()
    while time.perf_counter() - start < AWAKE:
        way.end_to_end(frames[0])

    def seconds(call: Callable[[int], Any]) -> list[float]:
        spent = []
        for number in range(WARM_UP + repeats):
            start = time.perf_counter()
            call(number % len(frames))
            spent.append(time.perf_counter() - start)
        return spent[WARM_UP:]

    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()) if sys.platform == "linux" else None
    return {
        "network": seconds(lambda index: way.network(images[index])),
        "end_to_end": seconds(lambda index: way.end_to_end(frames[index])),
        "polyps": float(np.mean([way.end_to_end(frame) for frame in frames])),
        "memory_mb": None if peak is None else int(peak[1]) * 1024 / 1e6,
    }


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    # Nothing is fetched, installed or reported behind our back.
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    way: Any = None
    frames = np.empty(0, np.uint8)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if request.get("kind") == "export":
                answer = export_ultralytics(request)
            elif way is None:
                way = {"torch": PlainTorch, "onnx": PlainONNX, "ultralytics": Ultralytics}[request["kind"]](request)
                answer = {"load_s": time.perf_counter() - STARTED, "threads": way.threads}
                answer["computes"] = getattr(way, "computes", None)
                if request["threads"]:
                    cv2.setNumThreads(request["threads"])
                frames = np.load(request["frames"])
            else:
                answer = timed(way, list(frames), request["repeats"])
        except BaseException as error:  # noqa: BLE001  (any, an exporter's sys.exit too: a row says so)
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
