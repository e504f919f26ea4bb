"""The ModelBundle: one folder that holds a trained model and everything needed to use it rightly.

``model.safetensors`` holds the weights, ``metadata.json`` the rest: architecture, preprocessing, threshold,
post-processing and where they come from. Exports of the same network lie beside them, ``openvino/`` and ``onnx/``,
each named with its hash in ``metadata.json``. There is no pickle and no code inside. Torch is imported only to read
the weights.
"""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.files import disk_error, read_json, sha256_file, sha256_lines, write_json

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
METADATA_FILE = "metadata.json"
ZOO = Path(__file__).parent / "zoo"  # the models that ship with the package
DEFAULT_MODEL = "polypseg-realtime"
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or treatment."
_REQUIRED = ("schema_version", "name", "architecture", "preprocessing", "threshold", "weights_sha256")
_DECIDING = ("weights_sha256", "architecture", "preprocessing", "threshold", "temperature", "postprocessing")
_PACKAGES = ("polypseg", "torch", "segmentation-models-pytorch", "timm", "albumentations", "numpy")


@dataclass(frozen=True)
class Architecture:
    """A network of segmentation-models-pytorch with one output channel (logits).

    Args:
        name: class in segmentation_models_pytorch, as UnetPlusPlus, Unet or FPN.
        encoder: encoder by SMP's name, as efficientnet-b3 or tu-tf_efficientnet_lite2.
        decoder_channels: channels of the decoder's stages, deepest first; none keeps SMP's own.
        decoder_dropout: dropout rate of the decoder, 0..1, where SMP has a place for it.
    """

    name: str = "UnetPlusPlus"
    encoder: str = "efficientnet-b3"
    decoder_channels: tuple[int, ...] | None = None
    decoder_dropout: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """From the plain types of ``metadata.json``."""
        channels = values.get("decoder_channels")
        return cls(**{**values, "decoder_channels": None if channels is None else tuple(channels)})


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
        if not (isinstance(self.height, int) and isinstance(self.width, int) and min(self.height, self.width) > 0):
            raise ValueError(f"size {self.height}×{self.width} is not in whole pixels")
        numbers = len(self.mean) == len(self.std) == 3 and np.isfinite([*self.mean, *self.std]).all()
        if not numbers or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} are not three numbers each, std above 0")
        if self.interpolation not in ("linear", "area"):
            raise ValueError(f"interpolation {self.interpolation!r} is neither linear nor area")

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

    def restore(self, probability: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        """A probability map of the network's size to H×W float32 0..1 of the frame's size, bilinear."""
        if probability.shape == (height, width):
            return probability
        resized = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, dtype=np.float32)


@dataclass(frozen=True)
class Postprocessing:
    """What is done to the thresholded mask; chosen on validation by ``polypseg calibrate``.

    Args:
        min_area: regions (8-connected) smaller than this share of the frame are removed, 0..1; 0 keeps all.
        fill_holes: whether holes inside a region become part of it.
    """

    min_area: float = 0.0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_area < 1.0 or not isinstance(self.fill_holes, bool):
            raise ValueError(f"post-processing {self.min_area!r}, {self.fill_holes!r} is no share in 0..1 and a bool")

    def apply(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask with holes filled, then small regions removed; H×W bool to H×W bool, the argument is unchanged."""
        if not self.min_area and not self.fill_holes:
            return mask
        # Only the part that holds regions is worked on: labelling every pixel is costly on large frames.
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        if not width:
            return mask
        part = np.s_[top : top + height, left : left + width]
        regions = mask[part].astype(np.uint8)
        if self.fill_holes:
            contours, _ = cv2.findContours(regions, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(regions, contours, -1, 1, cv2.FILLED)
        if self.min_area:
            _, labels, stats, _ = cv2.connectedComponentsWithStats(regions, connectivity=8)
            kept = stats[:, cv2.CC_STAT_AREA] >= self.min_area * mask.size
            kept[0] = False  # the background
            regions = kept[labels].view(np.uint8)
        result = np.zeros_like(mask)
        result[part] = regions.view(np.bool_)
        return result


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
        remedy = f"copy the bundle again, or polypseg export --overwrite --format {self.runtime}"
        for name, expected in self.record["files"].items():
            try:
                found = sha256_file(bundle / name)
            except OSError as error:
                raise PolypsegError(f"{bundle / name}: cannot be read ({error.strerror}); {remedy}") from error
            if found != expected:
                raise PolypsegError(f"{bundle / name}: is not the file that {METADATA_FILE} describes; {remedy}")


@dataclass(frozen=True)
class ModelBundle:
    """A trained model on disk.

    Attributes:
        folder: where ``model.safetensors`` and ``metadata.json`` lie.
        metadata: the content of ``metadata.json``.
    """

    folder: Path
    metadata: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: str | Path | None = None) -> ModelBundle:
        """Open a bundle and verify that it is whole; its exports are verified when one is used.

        Args:
            path: a bundle's folder, a run folder that holds one as ``bundle/``, or the name of a shipped model; None
                is the shipped default.

        Raises:
            PolypsegError: there is no bundle, a file is missing or was changed, or a newer polypseg wrote it.
        """
        if path is None:
            path = ZOO / DEFAULT_MODEL
            if not path.is_dir():
                raise PolypsegError(
                    "no model was named, and this polypseg ships with none; name a bundle or a run folder"
                )
        folder = Path(path)
        if not folder.exists() and folder.name == str(path) and (ZOO / folder).is_dir():
            folder = ZOO / folder
        if not (folder / METADATA_FILE).is_file() and (folder / "bundle" / METADATA_FILE).is_file():
            folder = folder / "bundle"
        if not (folder / METADATA_FILE).is_file():
            raise PolypsegError(f"{path}: is no model bundle (no {METADATA_FILE}); name a bundle or a run folder")
        metadata = read_json(folder / METADATA_FILE)
        file = folder / METADATA_FILE
        if not isinstance(metadata, dict):
            raise PolypsegError(f"{file}: is not a JSON object; copy the bundle again")
        version = metadata.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise PolypsegError(f"{file}: was written by a newer polypseg (schema {version}); upgrade polypseg")
        missing = [key for key in _REQUIRED if key not in metadata]
        if missing:
            raise PolypsegError(f"{file}: lacks {', '.join(missing)}; copy the bundle again")
        if version != SCHEMA_VERSION:
            raise PolypsegError(f"{file}: has schema {version!r}, which never was; copy the bundle again")
        bundle = cls(folder, metadata)
        try:
            _ = bundle.architecture, bundle.preprocessing, bundle.threshold, bundle.temperature
            _ = bundle.postprocessing, bundle.exports
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise PolypsegError(f"{file}: holds an unusable value ({error}); copy the bundle again") from error
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise PolypsegError(f"{weights}: is missing; copy the bundle again")
        try:
            checksum = sha256_file(weights)
        except OSError as error:
            raise PolypsegError(f"{weights}: cannot be read ({error.strerror})") from error
        if checksum != metadata["weights_sha256"]:
            raise PolypsegError(f"{weights}: is not the file that {METADATA_FILE} describes; copy the bundle again")
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
        threshold: float,
        **details: Any,
    ) -> ModelBundle:
        """Write a bundle; the folder appears whole or not at all, and replaces one of the same name.

        Args:
            folder: where to write it; what lies there must be a bundle or empty.
            state: the network's ``state_dict`` (weights and buffers, written as contiguous float32 or int64).
            name: the model's name.
            architecture: what builds the network.
            preprocessing: what makes its input.
            threshold: probability, 0..1, at and above which a pixel is polyp.
            details: further JSON-able entries of ``metadata.json``: threshold_split, metrics, data, split,
                encoder_weights, licence, …

        Raises:
            PolypsegError: the disk is full, the folder cannot be written, or something else lies there.
        """
        from safetensors.torch import save

        folder = Path(folder)
        if folder.exists() and not (folder / METADATA_FILE).is_file() and not _is_empty(folder):
            raise PolypsegError(f"{folder}: holds something that is no bundle, which is left alone; name another")
        payload = save({key: value.detach().cpu().contiguous() for key, value in state.items()})
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
                fresh = Path(temporary) / "new"
                fresh.mkdir()
                (fresh / WEIGHTS_FILE).write_bytes(payload)
                metadata = {
                    "schema_version": SCHEMA_VERSION,
                    "name": name,
                    "intended_use": INTENDED_USE,
                    "architecture": asdict(architecture),
                    "preprocessing": asdict(preprocessing),
                    "threshold": threshold,
                    "weights_sha256": sha256_file(fresh / WEIGHTS_FILE),
                    **details,
                    "versions": versions(),
                }
                write_json(fresh / METADATA_FILE, metadata)
                old = Path(temporary) / "old"
                if folder.exists():
                    folder.rename(old)
                try:
                    fresh.rename(folder)
                except OSError:
                    if old.exists():
                        old.rename(folder)
                    raise
        except OSError as error:
            raise disk_error(folder, error) from error
        return cls.load(folder)

    def update(self, **details: Any) -> ModelBundle:
        """Write further entries into ``metadata.json`` and return the bundle as it is now."""
        write_json(self.folder / METADATA_FILE, {**self.metadata, **details})
        return ModelBundle.load(self.folder)

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
    def threshold(self) -> float:
        """Probability, 0..1, at and above which a pixel is polyp."""
        value = float(self.metadata["threshold"])
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"threshold {value} is not in 0..1")
        return value

    @property
    def temperature(self) -> float:
        """What divides the logits before they become probabilities, > 0; 1 where none was fitted."""
        value = float(self.metadata.get("temperature", 1.0))
        if not 0.0 < value < float("inf"):
            raise ValueError(f"temperature {value} is not above 0")
        return value

    @property
    def postprocessing(self) -> Postprocessing:
        """What is done to the mask; nothing where none was chosen."""
        return Postprocessing(**self.metadata.get("postprocessing", {}))

    @property
    def exports(self) -> list[Export]:
        """Its exports, as ``metadata.json`` names them; those of other weights are left out."""
        return [
            Export(str(record["runtime"]), str(record["precision"]), self.folder / next(iter(record["files"])), record)
            for record in self.metadata.get("exports", [])
            if record["weights_sha256"] == self.metadata["weights_sha256"]
        ]

    @property
    def hash(self) -> str:
        """SHA-256 over all that decides an answer: weights, architecture, preprocessing, threshold, …"""
        parts = [part for part in _DECIDING if part in self.metadata]
        return sha256_lines(f"{part}={self.metadata[part]}" for part in parts)

    def weights(self) -> dict[str, torch.Tensor]:
        """The network's ``state_dict``, on the CPU.

        Raises:
            PolypsegError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.folder / WEIGHTS_FILE)
        except (SafetensorError, OSError) as error:
            raise PolypsegError(f"{self.folder / WEIGHTS_FILE}: is damaged ({error}); copy the bundle again") from error


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
