"""ONNX Runtime on the CPU: the portable way."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from polypseg.bundle import Export, Preprocessing
from polypseg.errors import PolypsegError
from polypseg.inference.runtimes import batched, of_another_size, usable_cores


class ONNXRuntime:
    """An ONNX export of a bundle.

    Args:
        export: of the runtime ``onnx``.
        preprocessing: the bundle's.
        threads: threads of a call; 0 takes every core.

    Raises:
        PolypsegError: ONNX Runtime is not installed, or the file is missing, cut, changed or not to be opened.
        UsageError: the export is for frames of another size.
    """

    name = "onnx"
    side_by_side = False
    device = "cpu"

    def __init__(self, export: Export, preprocessing: Preprocessing, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise PolypsegError(
                f"onnxruntime: cannot be loaded ({error}); install it with: pip install 'polypseg[onnx]'"
            ) from error
        export.verify()
        self.precision = export.precision
        self.threads = threads or usable_cores()
        self._preprocessing = preprocessing
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Weights in other files have no hash here: neither beside the export nor elsewhere are any looked for.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(export.model.parent / "none")
        )
        try:
            content = export.model.read_bytes()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class of their own
            reason = " ".join(str(error).split())[:200]
            raise PolypsegError(
                f"{export.model}: cannot be opened by ONNX Runtime ({reason}); export it again"
            ) from error
        given = self._session.get_inputs()[0]
        self._model, self._input, self._size = export.model, given.name, given.shape[2:]
        self._check_size()

    def at(self, preprocessing: Preprocessing) -> ONNXRuntime:
        other = copy.copy(self)
        other._preprocessing = preprocessing
        other._check_size()
        return other

    def _check_size(self) -> None:
        size = self._preprocessing.height, self._preprocessing.width
        # An axis that the export leaves open has a name in place of a number.
        if any(isinstance(own, int) and own != asked for own, asked in zip(self._size, size, strict=True)):
            raise of_another_size(self._model, size, (self._size[0], self._size[1]))

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = self._session.run(None, {self._input: self._preprocessing.normalise(images)})
        logits: NDArray[np.float32] = np.asarray(outputs[0])[:, 0]
        return logits

    def stream(self, images: Iterable[NDArray[np.uint8]], in_flight: int) -> Iterator[NDArray[np.float32]]:
        return batched(self, images, in_flight)
