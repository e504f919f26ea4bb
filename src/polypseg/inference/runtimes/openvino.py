"""OpenVINO on the CPU: the fastest way there."""

from __future__ import annotations

import contextlib
import copy
import queue
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.bundle import Export, Preprocessing
from polypseg.errors import PolypsegError
from polypseg.inference.runtimes import of_another_size, usable_cores


@lru_cache
def import_openvino() -> Any:
    """The ``openvino`` package, without its telemetry: nothing here phones home.

    Raises:
        PolypsegError: it is not installed, or cannot be loaded on this machine.
    """
    # OpenVINO and NNCF send usage statistics through this package, at import already; without it they send none.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise PolypsegError(f"openvino: cannot be loaded ({error}); install it with: pip install openvino") from error
    return openvino


class OpenVINORuntime:
    """An OpenVINO export of a bundle, compiled for this machine.

    Normalisation is added to the graph when it is opened, from the bundle's ``metadata.json``; the file contains none.

    Args:
        export: of the runtime ``openvino``.
        preprocessing: the bundle's.
        precision: ``fp32``, ``bf16`` or ``int8``; what the export does not compute in int8 runs in fp32, or in bf16.
        threads: threads in all; 0 takes every core.

    Raises:
        PolypsegError: OpenVINO is not installed, or a file is missing, cut, changed or not to be compiled.
        UsageError: the export is for frames of another size, and its network cannot take others.
    """

    name = "openvino"
    device = "cpu"
    side_by_side = True

    def __init__(self, export: Export, preprocessing: Preprocessing, precision: str, threads: int = 0) -> None:
        self._openvino = import_openvino()
        export.verify()
        self._file = export.model
        self.precision = precision
        self._own = preprocessing.height, preprocessing.width
        self.threads = threads or usable_cores()
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            # OpenVINO would bind them to the first cores, and several processes' threads to the same ones.
            **({"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False} if threads else {}),
        }
        with self._opening():
            self._read = self._core.read_model(self._file)
        self._compile(preprocessing)

    def at(self, preprocessing: Preprocessing) -> OpenVINORuntime:
        other = copy.copy(self)
        other.__dict__.pop("_steadiest", None)  # it was compiled for this size
        other._compile(preprocessing)
        return other

    def _compile(self, preprocessing: Preprocessing) -> None:
        """Make the graph ready for frames of a size; the weights stay those that were read."""
        self._size = (preprocessing.width, preprocessing.height)
        with self._opening():
            self._model = self._without_last_enlargement(self._with_normalisation(preprocessing))
            self._quickest = self._core.compile_model(
                self._model, "CPU", {**self._settings, "PERFORMANCE_HINT": "LATENCY"}
            )
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._idle_steady: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise PolypsegError(f"{self._file}: cannot be opened by OpenVINO ({reason}); export it again") from error

    @cached_property
    def _core(self) -> Any:
        return self._openvino.Core()

    def _with_normalisation(self, preprocessing: Preprocessing) -> Any:
        """The graph for one image: 1×h×w×3 uint8 to 1×1×h×w logits."""
        ov = self._openvino
        model = self._read.clone()
        size = preprocessing.height, preprocessing.width
        try:
            model.reshape([1, 3, *size])
        except RuntimeError as error:
            raise of_another_size(self._file, size, self._own) from error
        steps = ov.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
            [255 * value for value in preprocessing.mean]
        ).scale([255 * value for value in preprocessing.std])
        return steps.build()

    def _without_last_enlargement(self, model: Any) -> Any:
        """The graph without a bilinear enlargement at its end, as of ``output_stride`` 4.

        OpenCV takes a tenth of the time for it, in ``_enlarged``.
        """
        last = model.get_results()[0].input_value(0).get_node()
        if last.get_type_name() != "Interpolate":
            return model
        how = last.get_attributes()
        halved = how["coordinate_transformation_mode"] in ("half_pixel", "pytorch_half_pixel")
        if not how["mode"].startswith("linear") or not halved or how["antialias"]:
            return model
        return self._openvino.Model([last.input_value(0)], model.get_parameters())

    def _enlarged(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of an output, 1×1×h×w, at the network's size."""
        logits: NDArray[np.float32] = output[0, 0]
        if logits.shape[::-1] == self._size:
            return logits.copy()
        return np.asarray(cv2.resize(logits, self._size, interpolation=cv2.INTER_LINEAR), np.float32)

    @cached_property
    def _steadiest(self) -> Any:
        """Compiled for frames side by side, one thread each; made when first asked for."""
        settings = {**self._settings, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": max(1, self.threads)}
        return self._core.compile_model(self._model, "CPU", settings)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        request = _taken(self._idle) or self._quickest.create_infer_request()
        try:
            return np.stack([self._enlarged(request.infer([image[None]], share_inputs=True)[0]) for image in images])
        finally:
            self._idle.put(request)

    def stream(self, images: Iterable[NDArray[np.uint8]], in_flight: int) -> Iterator[NDArray[np.float32]]:
        if in_flight == 1:
            for image in images:
                yield self.logits(image[None])[0]
            return
        busy: deque[Any] = deque()
        try:
            for image in images:
                if len(busy) == in_flight:
                    yield self._result(busy)
                request = _taken(self._idle_steady) or self._steadiest.create_infer_request()
                request.start_async([image[None]])
                busy.append(request)
            while busy:
                yield self._result(busy)
        finally:
            for request in busy:  # whoever left early: none may still compute when its memory goes
                request.wait()

    def _result(self, busy: deque[Any]) -> NDArray[np.float32]:
        """Of the earliest request, which is idle then."""
        request = busy.popleft()
        request.wait()
        logits = self._enlarged(request.get_output_tensor(0).data)
        self._idle_steady.put(request)
        return logits


def _taken(idle: queue.SimpleQueue[Any]) -> Any | None:
    """A request that no other call uses; it belongs to one call at a time."""
    try:
        return idle.get_nowait()
    except queue.Empty:
        return None
