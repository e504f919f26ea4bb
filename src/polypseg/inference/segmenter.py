"""A bundle and a frame in, a Segmentation out."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.augmentation import Axes, mirror, views
from polypseg.inference.choice import open_runtime
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.runtimes import Runtime
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Enlarged, Segmentation

Views = tuple[Sequence[NDArray[np.float32]], ...]  # a frame's logits, by network and size, then by view


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
        reasons = []
        for one in networks:
            opened, reason = open_runtime(one, runtime, device, precision, threads, compile, channels_last)
            reasons.append(reason)
            own = one.temperature if temperature is None else temperature
            for share, mirrored in views(self.tta).items():
                seen = one.preprocessing.scaled(share)
                there = opened if seen == one.preprocessing else opened.at(seen)
                self._members.append(_Member(one.preprocessing, seen, mirrored, there, own))
        self.runtime, self.reason = self._members[0].runtime, reasons[0]
        if len(networks) > 1:
            self.reason = f"{len(networks)} networks, the first by {self.reason}"
            kinds = [reason.partition(":")[0] for reason in reasons]
            if len(set(kinds)) > 1:
                self.reason += f"; the others by {', '.join(kinds[1:])}"

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
        """What it computes on, as ``cpu``; of networks that differ each one's, joined by ``+``."""
        return self._told("device")

    @property
    def precision(self) -> str:
        """What it computes in: ``fp32``, ``bf16`` or ``int8``; of networks that differ each one's, joined by ``+``."""
        return self._told("precision")

    def _told(self, name: str) -> str:
        """What the runtimes of all networks say of themselves; once where they agree."""
        told = [str(getattr(member.runtime, name)) for member in self._members[:: len(views(self.tta))]]
        return told[0] if len(set(told)) == 1 else "+".join(told)

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
            "threshold": self.threshold,
            "operating_point": asdict(self.operating_point),
            "temperature": self._own_temperature,  # None: the bundle's, which the hash covers
            "runtime": self._told("name"),
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
        return self.answer(self.probability(frame), *frame.shape[:2], outside=outside_of(frame))

    def stream(self, frames: Iterable[NDArray[np.uint8]] | str | Path, batch_size: int = 1) -> Iterator[Segmentation]:
        """Segment frames one after another, in order.

        Raises as ``segment``; for a video as ``VideoReader``, and, after its last frame, a ``PolypsegError`` that tells
        where it is cut off or damaged.

        Args:
            frames: each as in ``segment``, sizes may differ; or the path of a video.
            batch_size: frames in flight: as many are read ahead and computed at once, for the most in all. With 1, an
                answer comes as soon as it can.
        """
        if isinstance(frames, str | Path):
            from polypseg.io.video import VideoReader

            with VideoReader(frames) as reader:
                yield from self.stream((frame.pixels for frame in reader), batch_size)
            if reader.problem:
                raise PolypsegError(reader.problem)
            return
        seen: deque[tuple[int, int, NDArray[np.bool_] | None]] = deque()

        def remembered() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                _check(frame)
                seen.append((frame.shape[0], frame.shape[1], outside_of(frame)))
                yield frame

        for probability in self.probabilities(remembered(), batch_size):
            height, width, outside = seen.popleft()
            yield self.answer(probability, height, width, outside=outside)

    def answer(
        self,
        probability: NDArray[np.float32],
        height: int,
        width: int,
        *,
        outside: NDArray[np.bool_] | None = None,
        point: OperatingPoint | None = None,
    ) -> Segmentation:
        """From a probability map of the network's size to the Segmentation of an H×W frame.

        Args:
            probability: h×w float32, 0..1, as from ``probabilities``.
            height: rows of the frame, pixels.
            width: columns of the frame, pixels.
            outside: where the frame shows nothing of the patient, as ``field_of_view.outside_of`` finds it: regions
                that lie there for the most are no polyps. None takes all of it for the patient.
            point: an operating point in place of the segmenter's own.
        """
        found = Enlarged(probability, height, width)
        return Segmentation.from_probability(found, point or self.operating_point, outside)

    def probability(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One frame's probability map at the network's size, h×w float32 0..1; ``frame`` as in ``segment``."""
        return next(self.probabilities([frame]))

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
        """The probability maps of frames, at the network's size, in order: h×w float32 0..1. As ``stream``."""
        return (self.mean(views) for views in self.views(frames, batch_size))

    def views(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[Views]:
        """What ``mean`` takes of each frame, in order: the logits of every view of every network. As ``stream``."""
        copies = itertools.tee(frames, len(self._members))
        streams = (member.logits(copy, batch_size) for member, copy in zip(self._members, copies, strict=True))
        return zip(*streams, strict=True)

    def mean(self, views: Views, temperature: float | None = None) -> NDArray[np.float32]:
        """The mean probability of a frame's views, at the network's size: h×w float32 0..1.

        Args:
            views: of one frame, as from ``views``.
            temperature: in place of the networks' own, > 0.
        """
        first, *others = (
            member.probability(logits, temperature) for member, logits in zip(self._members, views, strict=True)
        )
        if not others:
            return first
        height, width = self.preprocessing.height, self.preprocessing.width
        # In place: np.mean would copy them all into one array first.
        total = self.preprocessing.restore(first, height, width).copy()
        for one in others:
            total += self.preprocessing.restore(one, height, width)
        total /= np.float32(1 + len(others))
        return total

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """N×h×w×3 uint8 of the network's size to N×h×w float32 logits, before temperature.

        Of an ensemble, and with test-time augmentation, the log-odds of the mean probability, after temperature.
        """
        if len(self._members) == 1 and self.tta == "none":
            return self.runtime.logits(images)
        mean = np.stack(list(self.probabilities(images, len(images)))).clip(1e-7, 1 - 1e-7)
        logits: NDArray[np.float32] = np.log(mean) - np.log1p(-mean)
        return logits


def _check(frame: NDArray[np.uint8]) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise ValueError(f"a frame is H×W×3 uint8 RGB, not {frame.shape} {frame.dtype}")


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

    def logits(self, frames: Iterable[NDArray[np.uint8]], batch_size: int) -> Iterator[list[NDArray[np.float32]]]:
        """Of each frame the logits of its views, at this size."""
        logits = self.runtime.stream(self._images(frames), batch_size * len(self.views))
        while True:
            # The views come first: zip must not take a map that belongs to the next frame.
            maps = [one for _, one in zip(self.views, logits, strict=False)]
            if not maps:
                return
            yield maps

    def probability(self, logits: Sequence[NDArray[np.float32]], temperature: float | None) -> NDArray[np.float32]:
        """The mean probability of a frame's views, each mirrored back."""
        half = np.float32(0.5 / (temperature or self.temperature))
        # tanh overflows nowhere, and gives the sigmoid's values.
        maps = [mirror(0.5 + 0.5 * np.tanh(one * half), axes) for axes, one in zip(self.views, logits, strict=True)]
        return maps[0] if len(maps) == 1 else np.mean(maps, axis=0, dtype=np.float32)

    def _images(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        for frame in frames:
            _check(frame)
            resized = self.preprocessing.resize_frame(frame)
            if resized.shape[1::-1] != self.size:
                resized = np.asarray(cv2.resize(resized, self.size, interpolation=cv2.INTER_LINEAR), np.uint8)
            yield from (mirror(resized, axes) for axes in self.views)
