"""The teacher of knowledge distillation: a trained model that predicts the student's frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import interpolate

from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.inference.augmentation import views
from polypseg.inference.runtimes.torch import TorchRuntime
from polypseg.inference.segmenter import Segmenter

# N×3×H×W float frames, 0..1, to N×1×h×w float32 probabilities on the same device.
Predict = Callable[[torch.Tensor], torch.Tensor]


class Teacher:
    """Probability maps of a bundle for batches of training, by what is fastest where the batch lies.

    Args:
        bundle: the teacher.
        preprocessing: of the student.
        tta: the teacher's test-time augmentation, as ``Segmenter`` takes it.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
    """

    def __init__(self, bundle: ModelBundle, preprocessing: Preprocessing, tta: str = "none", threads: int = 0) -> None:
        self.bundle = bundle
        self._tta, self._threads = tta, threads
        self._preprocessing = preprocessing
        self._predict: Predict | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities for augmented frames.

        Args:
            images: N×3×H×W float, normalised for the student.

        Returns:
            N×1×h×w float32 0..1, h×w the teacher's own size, on the images' device.
        """
        if self._predict is None:  # not before the process knows its device and has started its workers
            self._mean, self._std = _constants(self._preprocessing, images.device)
            self._predict = (
                by_segmenter(self.bundle, self._tta, self._threads)
                if images.device.type == "cpu"
                else by_networks(self.bundle, self._tta, str(images.device))
            )
        return self._predict(images.float() * self._std + self._mean)


def by_segmenter(bundle: ModelBundle, tta: str, threads: int) -> Predict:
    """Predictions by the runtime that is fastest on a CPU."""
    segmenter = Segmenter(bundle, device="cpu", threads=threads, tta=tta)

    def predict(frames: torch.Tensor) -> torch.Tensor:
        # Augmentation ends in 8 bits, so that nothing is lost on the way back to a frame.
        pixels = (frames * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(np.stack(list(segmenter.probabilities(pixels, len(pixels)))))[:, None]

    return predict


def by_networks(bundle: ModelBundle, tta: str, device: str) -> Predict:
    """Predictions by PyTorch on the frames' own device: on a GPU the way over the CPU would take longer."""
    networks = [
        (one, TorchRuntime(one, device), *_constants(one.preprocessing, torch.device(device)))
        for one in bundle.networks
    ]
    size = bundle.preprocessing.height, bundle.preprocessing.width

    @torch.no_grad()
    def predict(frames: torch.Tensor) -> torch.Tensor:
        maps = []
        for (one, runtime, mean, std), (share, mirrored) in itertools.product(networks, views(tta).items()):
            seen = one.preprocessing.scaled(share)
            own = (_resized(frames, (one.preprocessing.height, one.preprocessing.width)) - mean) / std
            own = _resized(own, (seen.height, seen.width))
            turned = [tuple(axis + 2 for axis in axes) for axes in mirrored]  # the axes of N×C×H×W
            predicted = [(runtime.compute(own.flip(axes)) / one.temperature).sigmoid().flip(axes) for axes in turned]
            maps.append(_resized(torch.stack(predicted).mean(0), size))
        return torch.stack(maps).mean(0)

    return predict


def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, 3×1×1, on a device."""
    mean, std = (torch.tensor(one, device=device).view(3, 1, 1) for one in (preprocessing.mean, preprocessing.std))
    return mean, std


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return images if images.shape[2:] == size else interpolate(images, size, mode="bilinear")
