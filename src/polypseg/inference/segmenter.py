"""A bundle and a picture in, a Segmentation out."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg import renamed, zoo
from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.errors import UsageError
from polypseg.inference.augmentation import Axes, mirror, views
from polypseg.inference.choice import open_runtime
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.runtimes import Runtime
from polypseg.io.frames import Frame, read_frames, read_picture
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Enlarged, Segmentation

if TYPE_CHECKING:
    from polypseg.io.frames import Picture, Source

Model = ModelBundle | str | os.PathLike[str]  # an opened bundle, or what ``polypseg.zoo.open`` takes
Views = tuple[Sequence[NDArray[np.float32]], ...]  # a frame's logits, by network and size, then by view


class Segmenter:
    """Runs one bundle's network, or an ensemble's, by the runtime that suits the machine. Thread-safe.

    ``segmenter(picture)`` is ``segmenter.segment(picture)``. A copy, by pickle or deepcopy, opens the bundle anew.

    Of several bundles, or of an ensemble's members, the probabilities are averaged, each network's with the same
    weight, at the first one's network size. Of several bundles' operating points it takes the mean threshold and
    ``min_confidence``, and the first one's other values.

    Args:
        bundle: an opened bundle, what ``polypseg.zoo.open`` takes, or a list of those; None is the shipped default.
        runtime: ``auto``, ``openvino``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: test-time augmentation, ``none``, ``hflip`` (left-right, twice the work), ``flips`` (four times) or
            ``multiscale`` (a second view at two thirds of the size, two fifths more work); by default the (first)
            bundle's.
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

    def __init__(  # noqa: PLR0913  (an option each)
        self,
        bundle: Model | Sequence[Model] | None = None,
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
        several = [bundle] if bundle is None or isinstance(bundle, ModelBundle | str | os.PathLike) else list(bundle)
        if not several:
            raise UsageError("--model: names no bundle")
        self.bundles = [zoo.open(one) for one in several]
        self.bundle = self.bundles[0]
        self.preprocessing = self.bundle.preprocessing
        tta = renamed.value("tta", tta)
        self.tta = self.bundle.tta if tta is None else tta
        self.operating_point = _mean_point(self.bundles).override(
            threshold=threshold, min_confidence=min_confidence, min_area=min_area, fill_holes=fill_holes
        )
        self._own_temperature = temperature
        self._options: dict[str, Any] = {
            "runtime": runtime, "device": device, "precision": precision, "threads": threads, "tta": tta,
            "compile": compile, "channels_last": channels_last, "temperature": temperature, "threshold": threshold,
            "min_confidence": min_confidence, "min_area": min_area, "fill_holes": fill_holes,
        }  # fmt: skip
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

    def __repr__(self) -> str:
        point = self.operating_point
        views = "" if self.tta == "none" else f", tta {self.tta}"
        return (
            f"Segmenter({' + '.join(one.name for one in self.bundles)}: {self._told('name')} on {self.device} in "
            f"{self.precision}{views}, threshold {point.threshold:g}, min_confidence {point.min_confidence:g})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._options), (self.bundles,)

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

    def at(self, **point: float | bool | None) -> Segmenter:
        """The same at another operating point; both compute by one runtime.

        Args:
            point: ``threshold``, ``min_confidence``, ``min_area`` or ``fill_holes``; what is left out, or None, stays.

        Raises:
            UsageError: a value is out of its range.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.operating_point = self.operating_point.override(**point)
        given = {name: value for name, value in point.items() if value is not None}
        other._options = {**self._options, **given}
        return other

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
        """All that decides a prediction besides the frame, in plain types."""
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

    @overload
    def segment(self, picture: list[Any] | tuple[Any, ...], batch_size: int = 1) -> list[Segmentation]: ...
    @overload
    def segment(self, picture: Picture, batch_size: int = 1) -> Segmentation: ...
    def segment(
        self, picture: Picture | list[Any] | tuple[Any, ...], batch_size: int = 1
    ) -> Segmentation | list[Segmentation]:
        """Segment a picture, or each of a list.

        Args:
            picture: the path of an image or of a DICOM file; a PIL image; an H×W×3 array, RGB (OpenCV's are BGR: give
                ``array[..., ::-1]``), uint8 or uint16, H×W for grey, H×W×4 with an alpha channel, which is dropped; a
                torch tensor, C×H×W or H×W×C, uint8, or float of 0..1; or a list or tuple of any of those. Sizes may
                differ. Of 16 bits the highest 8 of those in use are kept.
            batch_size: of a list, pictures computed at once, 1 or more.

        Returns:
            mask, probability and polyps at the picture's own size; of a list a list, in its order.

        Raises:
            UsageError: the path is a folder, a video or a pattern, as ``stream`` takes; or ``batch_size`` is below 1.
            PolypsegError: the file is missing or cannot be read.
            ValueError: the array, the image or the tensor has another shape, type or range.
            TypeError: it is none of these.
        """
        check_batch_size(batch_size)
        if isinstance(picture, list | tuple):
            return list(self._stream((read_picture(one) for one in picture), batch_size))
        frame = read_picture(picture)
        return self._found(frame, self.probability(frame.pixels), outside_of(frame.pixels))

    __call__ = segment

    def stream(self, source: Source, batch_size: int = 1) -> Iterator[Segmentation]:
        """Segment the frames of a source one after another, in order, each as it is asked for.

        A result has its frame with it: who keeps the results of a long video keeps all its frames in memory.

        Args:
            source: a video; a folder; a glob; a camera (its number, ``camera:0`` or its URL), which has no end; a DICOM
                file; what ``segment`` takes; N×H×W×3 arrays; or any iterable of those, as a generator of arrays.
            batch_size: frames in flight, 1 or more: as many are read ahead and computed at once, for the most in all.
                With 1, a result comes as soon as it can.

        Raises:
            UsageError: ``batch_size`` is below 1.
            PolypsegError: a file is missing or cannot be read; there is nothing to read; a camera is gone; or, after
                the last frame, a video is found to be cut off or damaged.
            ValueError, TypeError: as ``segment``.
        """
        check_batch_size(batch_size)
        return self._stream(read_frames(source), batch_size)

    def _stream(self, frames: Iterable[Frame], batch_size: int) -> Iterator[Segmentation]:
        seen: deque[tuple[Frame, NDArray[np.bool_] | None]] = deque()

        def remembered() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                seen.append((frame, outside_of(frame.pixels)))
                yield frame.pixels

        for probability in self.probabilities(remembered(), batch_size):
            frame, outside = seen.popleft()
            yield self._found(frame, probability, outside)

    def _found(self, frame: Frame, probability: NDArray[np.float32], outside: NDArray[np.bool_] | None) -> Segmentation:
        found = self.segmentation(probability, *frame.pixels.shape[:2], outside=outside)
        return replace(found, frame=frame.pixels, path=frame.path, index=frame.index, time=frame.time, model=self.hash)

    def segmentation(
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
        """One frame's probability map at the network's size, h×w float32 0..1; ``frame`` as in ``views``."""
        return next(self.probabilities([frame]))

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
        """The probability maps of frames, at the network's size, in order: h×w float32 0..1. As ``views``."""
        return (self.mean(views) for views in self.views(frames, batch_size))

    def views(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[Views]:
        """What ``mean`` takes of each frame, in order: the logits of every view of every network.

        Args:
            frames: H×W×3 uint8 RGB, sizes may differ.
            batch_size: as of ``stream``.

        Raises:
            UsageError: ``batch_size`` is below 1.
            ValueError: an array has another shape or type.
        """
        check_batch_size(batch_size)
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


def check_batch_size(batch_size: int) -> None:
    """Raise ``UsageError`` where so many frames cannot be computed at once."""
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: must be 1 or more")


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
