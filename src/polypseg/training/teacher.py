"""A trained model that answers the frames of training, for another network to learn its answers (distillation)."""

from __future__ import annotations

import numpy as np
import torch

from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.inference.segmenter import Segmenter


class Teacher:
    """Probability maps of a bundle for batches of training, by its fastest runtime.

    Args:
        bundle: the teacher.
        preprocessing: of the network that learns.
        tta: the teacher's test-time augmentation, ``none``, ``flip`` or ``flips``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
    """

    def __init__(self, bundle: ModelBundle, preprocessing: Preprocessing, tta: str = "none", threads: int = 0) -> None:
        self.bundle = bundle
        self._tta, self._threads = tta, threads
        self._mean, self._std = (torch.tensor(one).view(3, 1, 1) for one in (preprocessing.mean, preprocessing.std))
        self._segmenter: Segmenter | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities for augmented frames.

        Args:
            images: N×3×H×W float, normalised for the network that learns.

        Returns:
            N×1×h×w float32 0..1, h×w the teacher's own size, on the images' device.
        """
        if self._segmenter is None:  # not before the process knows its device and has started its workers
            device = images.device.type
            self._segmenter = Segmenter(self.bundle, device=device, threads=self._threads, tta=self._tta)
        # Augmentation ends in 8 bits, so that nothing is lost on the way back to a frame.
        values = (images.float().cpu() * self._std + self._mean) * 255
        frames = values.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        maps = np.stack(list(self._segmenter.probabilities(frames, len(frames))))
        return torch.from_numpy(maps)[:, None].to(images.device)
