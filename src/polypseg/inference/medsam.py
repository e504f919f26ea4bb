"""LiteMedSAM by OpenVINO: a box in, the outline of what is in it out. Needs no torch.

LiteMedSAM (Ma et al., https://github.com/bowang-lab/MedSAM, Apache-2.0) segments what a box encloses, in any kind of
medical picture. A frame is encoded once; each box takes the decoder alone. It was trained on boxes: clicks alone give
nothing of use, so none are taken. ``polypseg.export.medsam`` makes the folder that is opened here.

It was trained on public data that may include the test sets of this field: it helps to draw, and never scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.inference.runtimes.openvino import import_openvino

SIDE = 256  # pixels, of the square that the encoder takes
ENCODER, DECODER = "encoder.xml", "decoder.xml"
FILES = (ENCODER, "encoder.bin", DECODER, "decoder.bin")


@dataclass(frozen=True, eq=False)
class Encoded:
    """A frame as the decoder takes it.

    Attributes:
        features: 1×256×64×64 float32.
        height, width: the frame's, in pixels.
    """

    features: NDArray[np.float32]
    height: int
    width: int


class MedSam:
    """The encoder and the decoder of a folder.

    Args:
        folder: with the files ``FILES``.
        threads: of the computation; 0 leaves it to OpenVINO.

    Raises:
        PolypsegError: a file is missing or cannot be read.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise PolypsegError(f"{folder / missing[0]}: is missing; remove the folder, and it is made anew")
        core = import_openvino().Core()
        # In full precision: in the processor's shorter one outlines move, and a box is decoded in a tenth of a second.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            self._encoder, self._decoder = (
                core.compile_model(folder / name, "CPU", settings) for name in (ENCODER, DECODER)
            )
        except RuntimeError as error:
            raise PolypsegError(
                f"{folder}: cannot be read by OpenVINO; remove the folder, and it is made anew"
            ) from error

    def encode(self, frame: NDArray[np.uint8]) -> Encoded:
        """A frame, H×W×3 uint8 RGB, for any number of boxes; takes seconds on a slow processor."""
        height, width = frame.shape[:2]
        size = _inner(height, width)
        small = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.float32)
        low, high = float(small.min()), float(small.max())
        square = np.zeros((SIDE, SIDE, 3), np.float32)
        square[: size[1], : size[0]] = (small - low) / max(high - low, 1e-8)
        features = self._encoder.create_infer_request().infer([np.ascontiguousarray(square.transpose(2, 0, 1)[None])])
        return Encoded(np.array(features[0]), height, width)

    def segment(self, frame: Encoded, box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
        """What a box encloses: H×W bool, of the frame's size.

        Args:
            frame: from ``encode``.
            box: xmin, ymin, xmax, ymax in the frame's pixels, the maxima exclusive.
        """
        across, down = _inner(frame.height, frame.width)
        scale = np.array([across / frame.width, down / frame.height] * 2, np.float32)
        corners = (np.asarray(box, np.float32) * scale).reshape(1, 2, 2)
        logits = self._decoder.create_infer_request().infer([frame.features, corners])[0]
        inner = np.ascontiguousarray(logits[0, 0, :down, :across])
        return np.asarray(cv2.resize(inner, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR) > 0, np.bool_)


def _inner(height: int, width: int) -> tuple[int, int]:
    """Columns and rows that a frame takes of the square, whose rest is black."""
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
