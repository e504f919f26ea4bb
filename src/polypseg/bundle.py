"""The ModelBundle: one folder that contains a trained model and everything needed to use it rightly.

``model.safetensors`` contains the weights, ``metadata.json`` the rest: architecture, preprocessing, operating
point and where they come from. Exports of the same network lie beside them, ``openvino/`` and ``onnx/``,
each named with its hash in ``metadata.json``. There is no pickle and no code inside. Torch is imported only to read
the weights.

An ensemble is a bundle too. It contains whole bundles, its members, instead of weights, and names them with their
hashes.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import itertools
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg import metadata as rules
from polypseg import renamed
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import (
    atomic_write,
    csv_cell,
    disk_error,
    make_folder,
    plain_cell,
    sha256_file,
    sha256_lines,
    sync,
    write_json,
)
from polypseg.metadata import CARD_FILE, FRAMES_FILE, METADATA_FILE, MOST_FILE_BYTES, MOST_FRAMES_BYTES, WEIGHTS_FILE
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Enlarged

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 2  # 1 had ``threshold`` and ``postprocessing`` in place of ``operating_point``; it is read too
MOST_SIDE = 8192  # rows or columns of a network's input
MOST_CHANNELS = 4096  # of a decoder's stage
_MOST_STAGES = 16
_MOST_HEADER = 4 * 2**20  # bytes that name the weights; a thousand tensors take a hundredth of it
_NUMBERS = {"mean": (-10.0, 10.0), "std": (1e-3, 1e3)}  # ranges
_TEMPERATURES = (1e-3, 1e3)
ZOO = Path(__file__).parent / "zoo"  # the models that ship with the package, which `polypseg.zoo` finds by name
_COMMIT = re.compile(r"[0-9a-f]{40}")
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or treatment."
_REQUIRED = ("schema_version", "name", "architecture", "preprocessing", "operating_point", "weights_sha256")
_DECIDING = (
    "weights_sha256", "members", "architecture", "preprocessing", "threshold", "temperature", "postprocessing",
    "operating_point", "tta",
)  # fmt: skip
_FORMER = ("threshold", "postprocessing")  # of schema 1
# What ``save`` writes by itself, and what was found with these very weights.
_WRITTEN = (*_REQUIRED, *_FORMER, "intended_use", "versions", "compacted_from", "frames")
_MEASURED = ("exports", "metrics", "metric_definitions", "evaluations", "speed", "failures")
_PACKAGES = ("polypseg", "torch", "segmentation-models-pytorch", "timm", "albumentations", "numpy")


@dataclass(frozen=True)
class Architecture:
    """A network of segmentation-models-pytorch with one output channel (logits).

    Args:
        name: class in segmentation_models_pytorch, as UnetPlusPlus, Unet or FPN.
        encoder: encoder by SMP's name, as efficientnet-b3 or tu-tf_efficientnet_lite2.
        decoder_channels: channels of the decoder's stages, deepest first; none keeps SMP's own.
        decoder_dropout: dropout rate of the decoder, 0..1, where SMP has a place for it.
        output_stride: rows of the frame to a row of the map that the decoder computes, which is enlarged bilinearly to
            the frame's size: 1; 2 for the last stage at half the size, with the same weights; 4 without the stage
            before it and the encoder's finest features. 2 and 4 are quicker; Unet and UnetPlusPlus alone.
        presence: whether the network also judges, from the encoder's deepest features and the map, where a polyp is
            plausible at all; where it is not, what the map marks loses confidence, never its outline.
    """

    name: str = "UnetPlusPlus"
    encoder: str = "efficientnet-b3"
    decoder_channels: tuple[int, ...] | None = None
    decoder_dropout: float = 0.0
    output_stride: Literal[1, 2, 4] = 1
    presence: bool = False

    def __post_init__(self) -> None:
        rules.check_network(self.name, self.encoder)
        channels = () if self.decoder_channels is None else self.decoder_channels
        if len(channels) > _MOST_STAGES or not all(_is_whole(one, MOST_CHANNELS) for one in channels):
            raise ValueError(
                f"decoder_channels {_short(channels)} are not up to {_MOST_STAGES} whole numbers, 1 to {MOST_CHANNELS}"
            )
        if not _is_number(self.decoder_dropout, 0.0, 1.0):
            raise ValueError(f"decoder_dropout {_short(self.decoder_dropout)} is not in 0..1")
        if self.output_stride not in (1, 2, 4):
            raise ValueError(f"output_stride {_short(self.output_stride)} is not 1, 2 or 4")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """From the plain types of ``metadata.json``."""
        channels = values.get("decoder_channels")
        return cls(**{**values, "decoder_channels": None if channels is None else tuple(channels)})

    def weights_differ_by(self, other: Architecture) -> str | None:
        """The first setting by which the other network has other weights; None where each can take the other's."""
        for name in ("name", "encoder", "decoder_channels", "presence"):
            if getattr(self, name) != getattr(other, name):
                return name
        return "output_stride" if (self.output_stride == 4) != (other.output_stride == 4) else None


@dataclass(frozen=True)
class Preprocessing:
    """From a frame to the network's input; the one definition that training and inference share.

    Args:
        height: rows of the network's input, pixels.
        width: columns of the network's input, pixels.
        mean: subtracted from RGB scaled to 0..1.
        std: divided by afterwards.
        interpolation: ``linear`` (bilinear) or ``area`` (area averaging when shrinking).
    """

    height: int = 256
    width: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["linear", "area"] = "linear"

    def __post_init__(self) -> None:
        if not all(_is_whole(side, MOST_SIDE) for side in (self.height, self.width)):
            raise ValueError(
                f"size {_short(self.height)}×{_short(self.width)} is not in whole pixels, up to {MOST_SIDE}"
            )
        for name, (low, high) in _NUMBERS.items():
            values = getattr(self, name)
            if len(values) != 3 or not all(_is_number(one, low, high) for one in values):
                raise ValueError(f"{name} {_short(values)} is not of three numbers, {low:g} to {high:g}")
        if self.interpolation not in ("linear", "area"):
            raise ValueError(f"interpolation {_short(self.interpolation)} is neither linear nor area")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """From the plain types of ``metadata.json``."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @property
    def cv2_interpolation(self) -> int:
        """OpenCV's constant for ``interpolation``."""
        return {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}[self.interpolation]

    def resize_frame(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """H×W×3 uint8 to ``height``×``width``×3 uint8."""
        if frame.shape[:2] == (self.height, self.width):
            return frame
        resized = cv2.resize(frame, (self.width, self.height), interpolation=self.cv2_interpolation)
        return np.asarray(resized, dtype=np.uint8)

    def resize_mask(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """H×W bool or 0/1 uint8 to ``height``×``width`` uint8 0/1, by nearest neighbour."""
        values = np.ascontiguousarray(mask).astype(np.uint8, copy=False)
        if values.shape == (self.height, self.width):
            return values
        # NEAREST_EXACT samples pixel centres, as the bilinear resize of the frame does; plain NEAREST is shifted.
        size = (self.width, self.height)
        return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)

    def normalise(self, resized: NDArray[np.uint8]) -> NDArray[np.float32]:
        """…×``height``×``width``×3 uint8 to …×3×``height``×``width`` float32: ``(x / 255 - mean) / std``."""
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        shift = (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(resized * scale - shift, -1, -3))

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """H×W×3 uint8 RGB to the network's input, 3×``height``×``width`` float32."""
        return self.normalise(self.resize_frame(frame))

    def scaled(self, share: float) -> Preprocessing:
        """The same for another size: ``share`` of this one's rows and columns, in multiples of 32; itself for 1."""
        if share == 1:
            return self
        height, width = (max(32, 32 * round(side * share / 32)) for side in (self.height, self.width))
        return replace(self, height=height, width=width)

    def restore(self, probability: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        """A probability map of the network's size to H×W float32 0..1 of the frame's size, bilinear."""
        return Enlarged(probability, height, width).whole


class FrameRecord(NamedTuple):
    """One frame of the split that a bundle was trained by: its name, its part, and the SHA-256 of its file."""

    dataset: str
    frame_id: str
    split: str
    sha256: str


def merge_frames(*tables: Iterable[FrameRecord]) -> list[FrameRecord]:
    """The frames of several, each once: what one was trained on is ``train``, whatever it was to another."""
    order = {"train": 0, "val": 1, "test": 2}
    found: dict[tuple[str, str, str], FrameRecord] = {}
    for one in (record for table in tables for record in table):
        key = one.dataset, one.frame_id, one.sha256
        if key not in found or order.get(one.split, 3) < order.get(found[key].split, 3):
            found[key] = one
    return sorted(found.values(), key=lambda one: (order.get(one.split, 3), one))


@dataclass(frozen=True)
class Export:
    """The same network in another runtime's format, beside ``model.safetensors``.

    Attributes:
        runtime: ``openvino`` or ``onnx``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        model: the file that the runtime opens.
        record: what ``metadata.json`` says of it: its files' hashes and what its verification found.
    """

    runtime: str
    precision: str
    model: Path
    record: dict[str, Any] = field(repr=False)

    def verify(self) -> None:
        """Compare its files with ``metadata.json``.

        Raises:
            PolypsegError: a file is missing, cut or changed.
        """
        bundle = self.model.parent.parent
        remedy = _remedy(bundle, f", or polypseg export --overwrite --format {self.runtime}")
        for name, expected in self.record["files"].items():
            _verify(bundle / name, expected, remedy)


@dataclass(frozen=True)
class ModelBundle:
    """A trained model on disk.

    Attributes:
        folder: where ``model.safetensors`` and ``metadata.json`` lie.
        metadata: the content of ``metadata.json``.
        members: of an ensemble, whose ``folder`` has theirs and no ``model.safetensors``; none of a single network.
    """

    folder: Path
    metadata: dict[str, Any] = field(repr=False)
    members: tuple[ModelBundle, ...] = field(default=(), repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> ModelBundle:
        """Open a bundle and verify that it is whole; its exports are verified when one is used.

        Args:
            path: a bundle's folder, or a run folder that contains one as ``bundle/``. Models by name, the default one,
                those that ship and those on the Hugging Face hub, are opened by ``polypseg.zoo.open``.

        Raises:
            PolypsegError: there is no bundle, a file is missing or was changed, or a newer polypseg wrote it.
        """
        folder = _find(path)
        remedy = _remedy(folder)
        file = folder / METADATA_FILE
        _check_inside(folder, METADATA_FILE)
        metadata = rules.read_metadata(file)
        version = metadata.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise PolypsegError(f"{file}: was written by a newer polypseg (schema {version}); upgrade polypseg")
        ensemble = "members" in metadata
        required = [_FORMER[0] if version == 1 and key == "operating_point" else key for key in _REQUIRED]
        missing = [key for key in required if key not in metadata and not (ensemble and key == "weights_sha256")]
        if missing:
            raise PolypsegError(f"{file}: is missing {', '.join(missing)}; {remedy}")
        if version not in (1, SCHEMA_VERSION):
            raise PolypsegError(f"{file}: has schema {version!r}, which never was; {remedy}")
        bundle = cls(folder, metadata)
        try:
            rules.check_kinds(metadata)
            members, _ = rules.member_names(metadata), rules.export_files(metadata)
            _ = bundle.architecture, bundle.preprocessing, bundle.operating_point, bundle.temperature
            _ = bundle.exports, bundle.hash
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise PolypsegError(f"{file}: contains an unusable value ({error}); {remedy}") from error
        # The card and the exports' folders, too, are read or written by these names.
        for name in (*bundle.files, *members, CARD_FILE, *rules.FORMATS):
            _check_inside(folder, name)
        if ensemble:
            return replace(bundle, members=_members(bundle, members, remedy))
        _verify(folder / WEIGHTS_FILE, metadata["weights_sha256"], remedy)
        _check_header(folder / WEIGHTS_FILE, remedy)
        return bundle

    @classmethod
    def save(
        cls,
        folder: str | Path,
        state: Mapping[str, torch.Tensor],
        *,
        name: str,
        architecture: Architecture,
        preprocessing: Preprocessing,
        operating_point: OperatingPoint | None = None,
        threshold: float | None = None,
        half: bool = False,
        **details: Any,
    ) -> ModelBundle:
        """Write a bundle; the folder appears whole or not at all, and replaces one of the same name.

        Args:
            folder: where to write it; what lies there must be a bundle or empty.
            state: the network's ``state_dict`` (weights and buffers, written contiguously as they are).
            name: the model's name.
            architecture: what builds the network.
            preprocessing: what makes its input.
            operating_point: what makes polyps of its probabilities; by default that of ``threshold``.
            threshold: for short, an operating point that has this threshold, 0..1, and the defaults else.
            half: write kernels as float16, half the size. What has one dimension, as the statistics of batch norm,
                stays as it is, for it is small and may be out of float16's range; so does a kernel out of it.
            details: further JSON-able entries of ``metadata.json``: threshold_split, metrics, data, split,
                encoder_weights, licence, …

        Raises:
            PolypsegError: the disk is full, the folder cannot be written, or something else lies there.
        """
        from safetensors.torch import save

        folder = Path(folder)
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        payload = save({key: _halved(value) for key, value in tensors.items()} if half else tensors)
        with _replacing(folder) as fresh:
            (fresh / WEIGHTS_FILE).write_bytes(payload)
            metadata = {
                "schema_version": SCHEMA_VERSION,
                "name": name,
                "intended_use": INTENDED_USE,
                "architecture": asdict(architecture),
                "preprocessing": asdict(preprocessing),
                "operating_point": asdict(_point(operating_point, threshold)),
                "weights_sha256": sha256_file(fresh / WEIGHTS_FILE),
                **details,
                "versions": versions(),
            }
            write_json(fresh / METADATA_FILE, metadata)
        return cls.load(folder)

    @classmethod
    def join(
        cls,
        folder: str | Path,
        members: Mapping[str, ModelBundle],
        *,
        name: str,
        operating_point: OperatingPoint | None = None,
        threshold: float | None = None,
        **details: Any,
    ) -> ModelBundle:
        """Write an ensemble, which predicts the mean of its members' probabilities; as ``save``.

        The members are copied whole, with their exports. The first one's network size is the ensemble's; the members'
        own temperatures count, their operating points do not.

        Args:
            folder: where to write it; what lies there must be a bundle or empty.
            members: single networks, by the name of the sub-folder each will have, as ``fold-1``.
            name: the ensemble's name.
            operating_point: what makes polyps of the mean probabilities; by default that of ``threshold``.
            threshold: for short, as in ``save``.
            details: further entries of ``metadata.json``: operating_point_split, metrics, …

        Raises:
            PolypsegError: the disk is full, the folder cannot be written, or something else lies there.
            ValueError: there are no members, one is an ensemble itself, or its name is no plain folder's.
        """
        folder = Path(folder)
        if not 0 < len(members) <= rules.MOST_MEMBERS or not all(rules.is_member(one) for one in members):
            raise ValueError(f"members {', '.join(members) or 'none'}: name each like a folder, as fold-1")
        if any(one.members for one in members.values()):
            raise ValueError("a member of an ensemble is a single network")
        for export in (export for one in members.values() for export in one.exports):
            export.verify()
        first = next(iter(members.values()))
        with _replacing(folder) as fresh:
            for one, bundle in members.items():
                for file in bundle.files:
                    (fresh / one / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle.folder / file, fresh / one / file)
            metadata = {
                "schema_version": SCHEMA_VERSION,
                "name": name,
                "intended_use": INTENDED_USE,
                "members": {one: bundle.network_hash for one, bundle in members.items()},
                "architecture": first.metadata["architecture"],
                "preprocessing": first.metadata["preprocessing"],
                "operating_point": asdict(_point(operating_point, threshold)),
                **details,
                "versions": versions(),
            }
            write_json(fresh / METADATA_FILE, metadata)
        return cls.load(folder)

    def update(
        self, *, operating_point: OperatingPoint | None = None, threshold: float | None = None, **details: Any
    ) -> ModelBundle:
        """Write further entries into ``metadata.json`` and return the bundle as it is now.

        Where that gives the bundle another hash, what was measured with the former one is dropped: metrics,
        evaluations, speed and failures, unless they are among ``details``.

        Args:
            operating_point: another operating point.
            threshold: for short, the bundle's operating point with another threshold, 0..1.
            details: entries; those of the same name are replaced.

        Raises:
            PolypsegError: the disk refuses, or it is a bundle that stays as it is.
        """
        self.check_own()
        metadata = {**self.metadata, **details}
        if operating_point is not None or threshold is not None:
            metadata = {key: value for key, value in metadata.items() if key not in _FORMER}
            point = operating_point or self.operating_point.override(threshold=threshold)
            metadata |= {"schema_version": SCHEMA_VERSION, "operating_point": asdict(point)}
        if replace(self, metadata=metadata).hash != self.hash:
            stale = [key for key in _MEASURED if key != "exports" and key not in details]
            metadata = {key: value for key, value in metadata.items() if key not in stale}
        write_json(self.folder / METADATA_FILE, metadata)
        return ModelBundle.load(self.folder)

    def record_frames(self, records: Iterable[FrameRecord]) -> ModelBundle:
        """Write which frames it was trained on, chosen on and tested on, as ``frames.csv``; return it as it is now.

        Raises:
            PolypsegError: as ``update``.
        """
        self.check_own()
        with atomic_write(self.folder / FRAMES_FILE, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(FrameRecord._fields)
            writer.writerows([csv_cell(value) for value in one] for one in merge_frames(records))
        return self.update(frames={"sha256": sha256_file(self.folder / FRAMES_FILE)})

    def frames(self) -> list[FrameRecord] | None:
        """The frames of its split and of what it was fine-tuned from, ``train`` first; an ensemble's of all members.

        Returns:
            A record a frame; None where none were written, as by former versions.

        Raises:
            PolypsegError: the file is not the one that ``metadata.json`` describes.
        """
        if self.members:
            tables = [member.frames() for member in self.members]
            known = [table for table in tables if table is not None]
            return merge_frames(*known) if len(known) == len(tables) else None
        if "frames" not in self.metadata:
            return None
        file = self.folder / FRAMES_FILE
        try:
            _verify(file, self.metadata["frames"]["sha256"], _remedy(self.folder), MOST_FRAMES_BYTES)
            with file.open(encoding="utf-8", newline="") as rows:
                return [FrameRecord(*map(plain_cell, row)) for row in itertools.islice(csv.reader(rows), 1, None)]
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise PolypsegError(f"{file}: cannot be read ({error}); {_remedy(self.folder)}") from error

    def check_own(self) -> None:
        """Refuse to change a shipped bundle, or one of the hub: under its name, everyone expects what was published.

        Raises:
            PolypsegError: it is one of those.
        """
        if _is_shipped(self.folder) or _is_fetched(_whole(self.folder)):
            raise PolypsegError(
                f"{self.folder}: is a published model, which stays as it is; copy the folder and name the copy"
            )

    def check_single(self, what: str = "") -> None:
        """Refuse an ensemble where one network is needed.

        Args:
            what: what is to be done instead; by default to take its members one by one.

        Raises:
            PolypsegError: it is one.
        """
        if self.members:
            names = ", ".join(str(one.folder) for one in self.members)
            raise PolypsegError(f"{self.folder}: is an ensemble; {what or f'take its members one by one: {names}'}")

    def lineage(self) -> dict[str, Any]:
        """How the weights came to be, as far as ``metadata.json`` says.

        This is written down of a bundle that others were fine-tuned from, or averaged from.

        Returns:
            ``name`` and ``hash`` (of weights in 16 bits, that of the bundle before); of a mean of others' weights
            ``averaged_from``, a list of such lineages; of an ensemble ``ensemble_of``, the same of its members, or, of
            the folds of one recipe, ``recipe`` and their number ``folds``; else ``epoch``, ``recipe`` and, where
            training started from a bundle or was distilled from one, ``started_from`` and ``taught_by``, their
            lineages.
        """
        known: dict[str, Any] = {"name": self.name, "hash": self.metadata.get("compacted_from", self.hash)}
        if "averaged_from" in self.metadata:
            return {**known, "averaged_from": self.metadata["averaged_from"]}
        if self.members and "recipe" in self.metadata:
            return {**known, "recipe": self.metadata["recipe"], "folds": len(self.members)}
        if self.members:
            return {**known, "ensemble_of": [one.lineage() for one in self.members]}
        known |= {key: self.metadata.get(key) for key in ("epoch", "recipe")}
        start = (self.metadata.get("encoder_weights") or {}).get("bundle")
        others = {"started_from": start, "taught_by": self.metadata.get("taught_by")}
        return known | {key: value for key, value in others.items() if value}

    def compact(self, folder: str | Path, name: str | None = None) -> ModelBundle:
        """Write the same model with its kernels as float16 (``save``'s ``half``), and return it.

        Its exports and scores are left out, as they are of the weights before.

        Args:
            folder: where to write it.
            name: another name for it.

        Raises:
            PolypsegError: as ``save``.
        """
        kept = {key: value for key, value in self.metadata.items() if key not in _WRITTEN and key not in _MEASURED}
        frames = self.frames()
        made = ModelBundle.save(
            folder, self.weights(), name=name or self.name, architecture=self.architecture,
            preprocessing=self.preprocessing, operating_point=self.operating_point, half=True, **kept,
            compacted_from=self.hash,
        )  # fmt: skip
        return made if frames is None else made.record_frames(frames)

    def __repr__(self) -> str:
        network, size = self.architecture, self.preprocessing
        count = f"{len(self.members)} × " if self.members else ""
        return (
            f"ModelBundle({self.name}: {count}{network.name} {network.encoder}, {size.width}×{size.height}, hash "
            f"{self.hash[:12]}, {self.folder})"
        )

    def __hash__(self) -> int:
        return hash((self.folder, self.hash))

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.metadata["name"])

    @property
    def architecture(self) -> Architecture:
        """What builds the network."""
        return Architecture.from_dict(self.metadata["architecture"])

    @property
    def preprocessing(self) -> Preprocessing:
        """What makes the network's input."""
        return Preprocessing.from_dict(self.metadata["preprocessing"])

    @property
    def operating_point(self) -> OperatingPoint:
        """What makes polyps of its probabilities."""
        if "operating_point" in self.metadata:
            return OperatingPoint.from_dict(self.metadata["operating_point"])
        former = {"threshold": self.metadata["threshold"], **self.metadata.get("postprocessing", {})}
        return OperatingPoint.from_dict({**former, "confidence": "mean"})  # as schema 1 had it

    @property
    def threshold(self) -> float:
        """The operating point's threshold: probability, 0..1, at and above which a pixel belongs to a region."""
        return self.operating_point.threshold

    @property
    def temperature(self) -> float:
        """What divides the logits before they become probabilities, > 0; 1 where none was fitted."""
        value = self.metadata.get("temperature", 1.0)
        if not _is_number(value, *_TEMPERATURES):
            raise ValueError(
                f"temperature {_short(value)} is not a number, {_TEMPERATURES[0]:g} to {_TEMPERATURES[1]:g}"
            )
        return float(value)

    @property
    def tta(self) -> str:
        """Its own test-time augmentation, as ``Segmenter`` takes it: what it is meant to be run with."""
        return renamed.value("tta", str(self.metadata.get("tta", "none")), quiet=True)

    def at(self, preprocessing: Preprocessing) -> ModelBundle:
        """The same bundle with another preprocessing, as for another size of its input; nothing is written."""
        return replace(self, metadata={**self.metadata, "preprocessing": asdict(preprocessing)})

    @property
    def networks(self) -> tuple[ModelBundle, ...]:
        """The bundles that contain weights: its members, or itself."""
        return self.members or (self,)

    @property
    def files(self) -> list[str]:
        """The files of the whole bundle, by their names in its folder; the model card is none of them."""
        names = [METADATA_FILE, *([FRAMES_FILE] if "frames" in self.metadata else [])]
        for member in self.members:
            names += [f"{member.folder.name}/{file}" for file in member.files]
        if not self.members:
            names += [WEIGHTS_FILE, *(file for export in self.exports for file in export.record["files"])]
        return names

    @property
    def exports(self) -> list[Export]:
        """Its exports, as ``metadata.json`` names them; those of other weights are left out.

        An ensemble has none: its members have theirs.
        """
        return [
            Export(record["runtime"], record["precision"], self.folder / rules.model_file(record), record)
            for record in self.metadata.get("exports", [])
            if record["weights_sha256"] == self.metadata["weights_sha256"]
        ]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all that decides a prediction: weights, architecture, preprocessing, operating point, ….

        The exports' files count too, as one of them may be what computes it; of an ensemble those of its members.
        """
        if self.members:
            return self._hash({"members": {one.folder.name: one.hash for one in self.members}})
        exports = [{"runtime": one.runtime, "precision": one.precision, **one.record["files"]} for one in self.exports]
        return self._hash({"exports": sorted(exports, key=rules.canonical)} if exports else {})

    @cached_property
    def network_hash(self) -> str:
        """The hash without the exports, which are made and left out afterwards: by it an ensemble knows a member."""
        return self._hash({})

    def _hash(self, further: dict[str, Any]) -> str:
        parts = {part: self.metadata[part] for part in _DECIDING if part in self.metadata} | further
        return hashlib.sha256(rules.canonical(parts).encode()).hexdigest()

    @property
    def _former_hash(self) -> str:
        """As an ensemble of an earlier version names its members."""
        return sha256_lines(f"{part}={self.metadata[part]}" for part in _DECIDING if part in self.metadata)

    def weights(self) -> dict[str, torch.Tensor]:
        """The network's ``state_dict``, on the CPU; float32 and int64, also where the file contains float16.

        Raises:
            PolypsegError: the file is damaged, or it is an ensemble, whose members have the weights.
        """
        self.check_single()
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(self.folder / WEIGHTS_FILE)
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of ``weights``, by what the file says at its beginning; no weight is read.

        Raises:
            PolypsegError: as ``weights``.
        """
        self.check_single()
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / WEIGHTS_FILE, "numpy") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> PolypsegError:
        return PolypsegError(f"{self.folder / WEIGHTS_FILE}: is damaged ({error}); {_remedy(self.folder)}")


def _find(path: str | os.PathLike[str] | None) -> Path:
    """The folder of the bundle that a path means, as ``ModelBundle.load`` takes it."""
    if path is None:
        raise UsageError("ModelBundle.load: names no folder; the shipped model is opened by polypseg.zoo.open()")
    folder = Path(path)
    if not (folder / METADATA_FILE).is_file() and (folder / "bundle" / METADATA_FILE).is_file():
        folder = folder / "bundle"
    if not (folder / METADATA_FILE).is_file():
        remedy = _remedy(folder) if _is_shipped(folder) else "name a bundle or a run folder"
        if not folder.exists() and (str(path).startswith("hf://") or folder.name == str(path)):
            remedy += f"; a model by its name is opened by polypseg.zoo.open({str(path)!r})"
        raise PolypsegError(f"{path}: is no model bundle (no {METADATA_FILE}); {remedy}")
    return folder


def _remedy(folder: Path, otherwise: str = "") -> str:
    """What to do about a bundle that is not whole."""
    folder = _whole(folder)
    if _is_shipped(folder):
        return "reinstall it: pip install --force-reinstall --no-deps polypseg"
    if _is_fetched(folder):
        return f"remove {folder.parents[1]} to have it fetched again, or ask its owner"
    return f"copy the bundle again{otherwise}"


def _is_shipped(folder: Path) -> bool:
    return ZOO in (folder.parent, folder.parent.parent)


def _is_fetched(folder: Path) -> bool:
    """Whether a folder is a commit in the cache of the Hugging Face hub."""
    return folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) is not None


def _whole(folder: Path) -> Path:
    """The folder of the ensemble that a bundle is a member of; its own where it is none."""
    return folder.parent if (folder.parent / METADATA_FILE).is_file() else folder


def _members(bundle: ModelBundle, names: list[str], remedy: str) -> tuple[ModelBundle, ...]:
    """The members of an ensemble, each the very one that its ``metadata.json`` describes."""
    file, recorded = bundle.folder / METADATA_FILE, bundle.metadata["members"]
    if not names:
        raise PolypsegError(f"{file}: contains an unusable value (no members); {remedy}")
    members = []
    for name in sorted(names):  # whatever the order of the keys
        folder = bundle.folder / name
        if not (folder / METADATA_FILE).is_file():
            raise PolypsegError(f"{folder / METADATA_FILE}: is missing; {remedy}")
        if "members" in rules.read_metadata(folder / METADATA_FILE):  # which may contain others without an end
            raise PolypsegError(f"{folder}: is not the member that {file} describes; {remedy}")
        member = ModelBundle.load(folder)
        if recorded[name] not in (member.network_hash, member._former_hash):  # noqa: SLF001  (of its own class)
            raise PolypsegError(f"{folder}: is not the member that {file} describes; {remedy}")
        members.append(member)
    return tuple(members)


def _check_inside(folder: Path, name: str) -> None:
    """Refuse what leads out of a bundle's folder, or out of the hub's cache, whose files are links to its own.

    Raises:
        PolypsegError: it does.
    """
    whole = _whole(folder)
    homes = [folder.resolve()]
    if _is_fetched(whole):
        homes.append(whole.resolve().parents[1] / "blobs")
    try:
        real = (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise PolypsegError(f"{folder / name}: leads nowhere; do not use this bundle") from error
    if not any(home in real.parents for home in homes):
        raise PolypsegError(
            f"{folder / name}: leads out of the bundle, to {real}; do not use it, or copy the file there"
        )


def _verify(file: Path, expected: str, remedy: str, most: int = MOST_FILE_BYTES) -> None:
    """Compare a file with its SHA-256.

    Raises:
        PolypsegError: it is missing, no file, larger than any, or not the one that ``metadata.json`` describes.
    """
    if not file.is_file():
        raise PolypsegError(f"{file}: is missing; {remedy}")
    try:
        size = file.stat().st_size
        found = sha256_file(file) if size <= most else None
    except OSError as error:
        raise PolypsegError(f"{file}: cannot be read ({error.strerror}); {remedy}") from error
    if found is None:
        raise PolypsegError(f"{file}: is larger than {most // 2**20} MiB, which no bundle's is; do not use it")
    if found != expected:
        raise PolypsegError(f"{file}: is not the file that {METADATA_FILE} describes; {remedy}")


def _check_header(file: Path, remedy: str) -> None:
    """Refuse weights whose header, the names and shapes, claims more than there is, or more than any network's."""
    with file.open("rb") as opened:
        claimed, size = int.from_bytes(opened.read(8), "little"), file.stat().st_size
    if not 0 < claimed <= min(_MOST_HEADER, size - 8):
        raise PolypsegError(f"{file}: is damaged (a header of {claimed} bytes); {remedy}")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which then takes the place of a bundle's.

    Raises:
        PolypsegError: the disk is full, the folder cannot be written, or something that is no bundle lies there.
    """
    if folder.exists() and not (folder / METADATA_FILE).is_file() and not _is_empty(folder):
        raise PolypsegError(f"{folder}: contains something that is no bundle, which is left alone; name another")
    try:
        make_folder(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            yield fresh
            for one in (*fresh.rglob("*"), fresh):
                sync(one)
            old = Path(temporary) / "old"
            if folder.exists():
                folder.rename(old)
            try:
                fresh.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
            sync(folder.parent)
    except OSError as error:
        raise disk_error(folder, error) from error


def _point(point: OperatingPoint | None, threshold: float | None) -> OperatingPoint:
    return point or (OperatingPoint() if threshold is None else OperatingPoint(threshold))


def _is_whole(value: Any, most: int) -> bool:
    """Whether a value is a whole number, 1 to ``most``; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _halved(value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point() or value.ndim < 2:
        return value
    half = value.half()
    return half if half.isfinite().all() else value


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def versions(*further: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, and of ``further`` ones; of those installed."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *further):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
