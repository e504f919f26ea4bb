"""A bundle and a frame in, a Segmentation out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.errors import UsageError
from polypseg.inference.augmentation import Axes, mirror, views
from polypseg.inference.choice import open_runtime
from polypseg.inference.runtimes import Runtime
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Enlarged, Segmentation


class Segmenter:
    """Runs one bundle's network, or an ensemble's, by the runtime that suits the machine. Thread-safe.

    Of several bundles, or of an ensemble's members, the probabilities are averaged, each network's with the same
    weight, at the first one's network size. Of several bundles' operating points it takes the mean threshold and
    ``min_confidence``, and the first one's other values.

    Args:
        bundle: an opened bundle, what ``ModelBundle.load`` takes, or a list of those; None is the shipped default.
        runtime: ``auto``, ``openvino``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: test-time augmentation, ``none``, ``flip`` (left-right, twice the work), ``flips`` (four times) or
            ``small`` (a second look at two thirds of the size, two fifths more work); by default the (first) bundle's.
        compile: PyTorch only: ``torch.compile``, slow to start.
        channels_last: PyTorch only: the memory layout.
        temperature: divides the logits, > 0; by default the bundle's.
        threshold, min_confidence, min_area, fill_holes: of the operating point (``OperatingPoint``); each by default
            the bundle's.

    Attributes:
        bundle: the (first) bundle.
        operating_point: what makes polyps of the probabilities.
        runtime: what computes it.
        reason: one sentence that says which runtime, device and precision were taken, and why.

    Raises:
        PolypsegError: a bundle or an export is not whole, its runtime is not installed, or its weights do not fit.
        UsageError: the options do not go together, or the device is not there.
    """

    def __init__(
        self,
        bundle: ModelBundle | str | Path | Sequence[ModelBundle | str | Path] | None = None,
        runtime: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        tta: str | None = None,
        compile: bool = False,
        channels_last: bool = True,
        temperature: float | None = None,
        threshold: float | None = None,
        min_confidence: float | None = None,
        min_area: float | None = None,
        fill_holes: bool | None = None,
    ) -> None:
        several = [bundle] if bundle is None or isinstance(bundle, ModelBundle | str | Path) else list(bundle)
        if not several:
            raise UsageError("--model: names no bundle")
        self.bundles = [one if isinstance(one, ModelBundle) else ModelBundle.load(one) for one in several]
        self.bundle = self.bundles[0]
        self.preprocessing = self.bundle.preprocessing
        self.tta = self.bundle.tta if tta is None else tta
        self.operating_point = _mean_point(self.bundles).override(
            threshold=threshold, min_confidence=min_confidence, min_area=min_area, fill_holes=fill_holes
        )
        self._own_temperature = temperature
        networks = [network for bundle in self.bundles for network in bundle.networks]
        # Of the same number for each network, so that the mean over all of them gives each the same weight.
        self._members: list[_Member] = []
        for one, (share, mirrored) in itertools.product(networks, views(self.tta).items()):
            seen = one.at(one.preprocessing.scaled(share))
            opened, reason = open_runtime(seen, runtime, device, precision, threads, compile, channels_last)
            if not self._members:
                self.runtime, self.reason = opened, reason
            own = one.temperature if temperature is None else temperature
            self._members.append(_Member(one.preprocessing, seen.preprocessing, mirrored, opened, own))
        if len(networks) > 1:
            self.reason = f"{len(networks)} networks, the first by {self.reason}"

    @property
    def threshold(self) -> float:
        """The operating point's: probability, 0..1, at and above which a pixel belongs to a region."""
        return self.operating_point.threshold

    @property
    def temperature(self) -> float:
        """What divides the (first bundle's) logits, > 0."""
        return self._members[0].temperature

    @property
    def device(self) -> str:
        """What it computes on, as ``cpu``."""
        return self.runtime.device

    @property
    def precision(self) -> str:
        """What it computes in: ``fp32``, ``bf16`` or ``int8``."""
        return self.runtime.precision

    @property
    def side_by_side(self) -> bool:
        """Whether several threads that ask at once are served at once; else frames are best given as batches."""
        return all(member.runtime.side_by_side for member in self._members)

    @property
    def hash(self) -> str:
        """The bundle's hash; of an ensemble those of all, joined by ``+``."""
        return "+".join(bundle.hash for bundle in self.bundles)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides an answer besides the frame, in plain types."""
        return {
            "model": self.hash,
            **asdict(self.operating_point),
            "temperature": self._own_temperature,  # None: the bundle's, which the hash covers
            "runtime": self.runtime.name,
            "device": self.device,
            "precision": self.precision,
            "tta": self.tta,
        }

    def segment(self, frame: NDArray[np.uint8]) -> Segmentation:
        """Segment one frame.

        Args:
            frame: H×W×3 uint8 RGB, any size.

        Returns:
            mask, probability and polyps at the frame's size.

        Raises:
            ValueError: the array has another shape or dtype.
        """
        return self.answer(self.probability(frame), *frame.shape[:2])

    def stream(self, frames: Iterable[NDArray[np.uint8]] | str | Path, batch_size: int = 1) -> Iterator[Segmentation]:
        """Segment frames one after another, in order. Raises as ``segment``, and as ``VideoReader`` for a video.

        Args:
            frames: each as in ``segment``, sizes may differ; or the path of a video.
            batch_size: frames in flight: as many are read ahead and computed at once, for the most in all. With 1, an
                answer comes as soon as it can.
        """
        if isinstance(frames, str | Path):
            from polypseg.inference.video.files import VideoReader

            with VideoReader(frames) as reader:
                yield from self.stream((frame.pixels for frame in reader), batch_size)
            return
        shapes: list[tuple[int, int]] = []

        def remembered() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                shapes.append(frame.shape[:2])
                yield frame

        for probability in self.probabilities(remembered(), batch_size):
            yield self.answer(probability, *shapes.pop(0))

    def answer(self, probability: NDArray[np.float32], height: int, width: int) -> Segmentation:
        """From a probability map of the network's size to the Segmentation of an H×W frame.

        Args:
            probability: h×w float32, 0..1, as from ``probabilities``.
            height: rows of the frame, pixels.
            width: columns of the frame, pixels.
        """
        return Segmentation.from_probability(Enlarged(probability, height, width), self.operating_point)

    def probability(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One frame's probability map at the network's size, h×w float32 0..1; ``frame`` as in ``segment``."""
        return next(self.probabilities([frame]))

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
        """The probability maps of frames, at the network's size, in order: h×w float32 0..1. As ``stream``."""
        first, *others = self._members
        if not others:
            yield from first.probabilities(frames, batch_size)
            return
        copies = itertools.tee(frames, len(self._members))
        streams = (member.probabilities(copy, batch_size) for member, copy in zip(self._members, copies, strict=True))
        height, width = self.preprocessing.height, self.preprocessing.width
        for maps in zip(*streams, strict=True):
            # In place: np.mean would copy them all into one array first.
            total = self.preprocessing.restore(maps[0], height, width).copy()
            for one in maps[1:]:
                total += self.preprocessing.restore(one, height, width)
            total /= np.float32(len(maps))
            yield total

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """N×h×w×3 uint8 of the network's size to N×h×w float32 logits, before temperature.

        Of an ensemble, and with test-time augmentation, the log-odds of the mean probability, after temperature.
        """
        if len(self._members) == 1 and self.tta == "none":
            return self.runtime.logits(images)
        mean = np.stack(list(self.probabilities(images, len(images)))).clip(1e-7, 1 - 1e-7)
        logits: NDArray[np.float32] = np.log(mean) - np.log1p(-mean)
        return logits


def _mean_point(bundles: Sequence[ModelBundle]) -> OperatingPoint:
    points = [one.operating_point for one in bundles]
    if len(points) == 1:
        return points[0]
    threshold, least = (
        float(np.mean([getattr(one, name) for one in points])) for name in ("threshold", "min_confidence")
    )
    return replace(points[0], threshold=threshold, min_confidence=least)


class _Member:
    """One network of a Segmenter at one size, with its runtime, the views of that size and its temperature."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        seen: Preprocessing,
        views: Sequence[Axes],
        runtime: Runtime,
        temperature: float,
    ) -> None:
        self.preprocessing = preprocessing
        self.size = (seen.width, seen.height)
        self.runtime = runtime
        self.views = views
        self.temperature = float(temperature)

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int) -> Iterator[NDArray[np.float32]]:
        logits = self.runtime.stream(self._images(frames), batch_size * len(self.views))
        while True:
            # The views come first: zip must not take a map that belongs to the next frame.
            maps = [mirror(self._sigmoid(one), axes) for axes, one in zip(self.views, logits, strict=False)]
            if not maps:
                return
            yield maps[0] if len(maps) == 1 else np.mean(maps, axis=0, dtype=np.float32)

    def _images(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        for frame in frames:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
                raise ValueError(f"a frame is H×W×3 uint8 RGB, not {frame.shape} {frame.dtype}")
            resized = self.preprocessing.resize_frame(frame)
            if resized.shape[1::-1] != self.size:
                resized = np.asarray(cv2.resize(resized, self.size, interpolation=cv2.INTER_LINEAR), np.uint8)
            yield from (mirror(resized, axes) for axes in self.views)

    def _sigmoid(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        # tanh overflows nowhere, and gives the same values.
        probability: NDArray[np.float32] = 0.5 + 0.5 * np.tanh(logits * (np.float32(0.5 / self.temperature)))
        return probability
