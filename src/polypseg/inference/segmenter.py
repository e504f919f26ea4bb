"""A bundle and a frame in, a Segmentation out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from polypseg.bundle import ModelBundle
from polypseg.errors import PolypsegError
from polypseg.models.device import choose_device, gains_from_bf16
from polypseg.models.network import build
from polypseg.segmentation import Segmentation


class Segmenter:
    """Runs a bundle's network with PyTorch.

    Args:
        bundle: an opened bundle, or the path of one or of a run folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``; auto takes bf16 where the device gains from it.
        temperature: divides the logits, > 0; by default the bundle's.

    Raises:
        PolypsegError: the bundle is not whole, or its weights do not fit its architecture.
        UsageError: the device is not there.
    """

    def __init__(
        self,
        bundle: ModelBundle | str | Path,
        device: str = "auto",
        precision: str = "auto",
        temperature: float | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, ModelBundle) else ModelBundle.load(bundle)
        self.preprocessing = self.bundle.preprocessing
        self.threshold = self.bundle.threshold
        self.temperature = self.bundle.temperature if temperature is None else temperature
        self.device = choose_device(device)
        bf16 = precision == "bf16" or (precision == "auto" and gains_from_bf16(self.device.type))
        self.precision = "bf16" if bf16 else "fp32"
        network = build(self.bundle.architecture)
        load_weights(network, self.bundle)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()

    def segment(self, frame: NDArray[np.uint8]) -> Segmentation:
        """Segment one frame.

        Args:
            frame: H×W×3 uint8 RGB, any size.

        Returns:
            mask, probability and polyps at the frame's size.

        Raises:
            ValueError: the array has another shape or dtype.
        """
        return next(self.stream([frame]))

    def stream(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[Segmentation]:
        """Segment frames one after another, in order, in batches of ``batch_size``. Raises as ``segment``."""
        batch: list[NDArray[np.uint8]] = []
        for frame in frames:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
                raise ValueError(f"a frame is H×W×3 uint8 RGB, not {frame.shape} {frame.dtype}")
            batch.append(frame)
            if len(batch) == batch_size:
                yield from self._segment(batch)
                batch = []
        if batch:
            yield from self._segment(batch)

    def _segment(self, frames: list[NDArray[np.uint8]]) -> Iterator[Segmentation]:
        images = torch.from_numpy(np.stack([self.preprocessing.apply(frame) for frame in frames]))
        for frame, probability in zip(frames, self.probabilities(images), strict=True):
            restored = self.preprocessing.restore(probability, *frame.shape[:2])
            yield Segmentation.from_probability(restored, self.threshold)

    def probabilities(self, images: torch.Tensor) -> NDArray[np.float32]:
        """N×3×H×W float32 network input to N×H×W float32 probabilities, 0..1, at the network's size."""
        probability: NDArray[np.float32] = (self.logits(images) / self.temperature).sigmoid()[:, 0].numpy()
        return probability

    def probability(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One frame's probability map at the network's size, H×W float32 0..1; ``frame`` as in ``segment``."""
        return self.probabilities(torch.from_numpy(self.preprocessing.apply(frame)[None]))[0]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """N×3×H×W float32 network input to N×1×H×W float32 logits, before temperature, on the CPU."""
        images = images.to(self.device, memory_format=torch.channels_last)
        autocast = (
            torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        )
        with torch.inference_mode(), autocast:
            return self.network(images).float().cpu()


def load_weights(network: torch.nn.Module, bundle: ModelBundle) -> None:
    """Fill a network with a bundle's weights.

    Raises:
        PolypsegError: a name or a shape does not fit.
    """
    try:
        network.load_state_dict(bundle.weights())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise PolypsegError(f"{bundle.folder}: its weights do not fit its architecture ({reason})") from error
