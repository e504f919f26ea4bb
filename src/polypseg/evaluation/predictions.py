"""Where the predictions that are evaluated come from: a bundle, or a folder that any other program wrote."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from polypseg.catalog import Catalog
from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.segmenter import Segmenter
from polypseg.io.depth import deep_samples, is_deep
from polypseg.io.pictures import MAX_PIXELS, open_image
from polypseg.segmentation import Segmentation

SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


SMALL = 1 / 16  # of the greatest possible value; whole sets of maps do not stay below it


class Predictor(Protocol):
    """Predictions for the frames of a Catalog, in its order."""

    name: str
    threshold: float

    def predictions(self, catalog: Catalog) -> Iterator[Segmentation]:
        """One Segmentation a frame, at the frame's size."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What made the predictions, for the report."""
        ...


class BundlePredictor:
    """Runs a Segmenter on every frame.

    Args:
        segmenter: with its bundle.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.name = segmenter.bundle.name
        self.threshold = segmenter.threshold

    def predictions(self, catalog: Catalog) -> Iterator[Segmentation]:
        """Of each frame of a catalog, in its order."""
        return self.segmenter.stream(catalog.frame(index) for index in range(len(catalog)))

    def provenance(self) -> dict[str, Any]:
        """The model, and how it is computed, for the report."""
        return {
            "model": self.name,
            "bundle_hash": self.segmenter.bundle.hash,
            "operating_point": self.segmenter.settings["operating_point"],
            "runtime": self.segmenter.settings["runtime"],
            "precision": self.segmenter.precision,
            "device": self.segmenter.device,
            "threads": self.segmenter.runtime.threads,
            "tta": self.segmenter.tta,
        }


class FolderPredictor:
    """Reads masks or probability maps, one file a frame, named by its stem.

    With several data sets, the files of each lie in a sub-folder of its name. An 8-bit or 16-bit image is divided
    by its greatest possible value; a ``.npy`` file or a float32 TIFF contains probabilities as they are.

    A map of 8 bits that does not span 0..255 gives PraNet's family a little other values than ``main.m``, which
    stretches its levels without rounding them to 8 bits again (``metrics.pranet``): meanDic differed by 0.0003 on
    average and by 0.0032 at most over 200 random maps. PraNet's ``MyTest.py`` writes maps that span it, where both are
    the same.

    Args:
        folder: the files.
        catalog: the frames that will be asked for.
        threshold: probability, 0..1, at and above which a pixel is polyp.

    Raises:
        UsageError: the threshold is not in 0..1.
        PolypsegError: a frame has no file, or a file no frame. Nothing is scored as if it were absent.
    """

    def __init__(self, folder: str | Path, catalog: Catalog, threshold: float = 0.5) -> None:
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.threshold = threshold
        if not 0 <= threshold <= 1:
            raise UsageError(f"--threshold {threshold:g}: must lie in 0..1")
        if not self.folder.is_dir():
            raise PolypsegError(f"{self.folder}: is no folder; --predictions names the folder of masks or maps")
        datasets = sorted(set(catalog.frames["dataset"]))
        self._files: dict[tuple[str, str], Path] = {}
        for dataset in datasets:
            below = self.folder / dataset if len(datasets) > 1 else self.folder
            if not below.is_dir():
                raise PolypsegError(f"{below}: is missing; put the predictions for {dataset} there")
            for file in _predictions_in(below):
                key = dataset, unicodedata.normalize("NFC", file.stem)  # as the stems of frames
                if key in self._files:
                    raise PolypsegError(f"{file}: has the same stem as {self._files[key].name}; remove one")
                self._files[key] = file
        wanted = set(zip(catalog.frames["dataset"], catalog.frames["frame_id"], strict=True))
        missing = sorted(wanted - self._files.keys())
        if missing:
            raise PolypsegError(
                f"{self.folder}: contains no prediction for frame {missing[0][1]} of {missing[0][0]} "
                f"({len(missing)} of {len(wanted)} missing); a missing one is never scored, predict it too"
            )
        extra = [self._files[key] for key in sorted(self._files.keys() - wanted)]
        if len(datasets) > 1:
            extra += _predictions_in(self.folder)
        if extra:
            raise PolypsegError(
                f"{extra[0]}: is for no frame that is evaluated ({len(extra)} such); remove it, or "
                "evaluate the frames that it is for"
            )

    def predictions(self, catalog: Catalog) -> Iterator[Segmentation]:
        """Of each frame of a catalog, in its order."""
        greatest = 0.0  # of all pictures
        for row in catalog:
            file = self._files[row.dataset, row.frame_id]
            probability = read_probability(file)
            if probability.shape != (row.height, row.width):
                height, width = probability.shape
                raise PolypsegError(
                    f"{file}: is {width}×{height} but its frame is {row.width}×{row.height}; write predictions at the "
                    "frame's own size"
                )
            greatest = max(greatest, 1.0 if file.suffix.lower() == ".npy" else float(probability.max()))
            yield Segmentation.from_probability(probability, self.threshold)
        if len(catalog) == len(self._files) and 0 < greatest <= SMALL:
            raise PolypsegError(
                f"{self.folder}: no picture contains more than {greatest:.2g} of its greatest possible value, as "
                "masks of 0 and 1, of classes, or of 8 or 12 bits in 16 do; write masks of 8 bits as 0 and 255"
            )

    def provenance(self) -> dict[str, Any]:
        """Where the predictions lie, for the report."""
        return {"predictions": self.name}


def read_probability(path: Path) -> NDArray[np.float32]:
    """Read one prediction, H×W float32 0..1.

    Raises:
        PolypsegError: it cannot be read, is not two-dimensional, contains NaN or values outside 0..1, or is a picture
            in colour or one to be turned.
    """
    values = _read_array(path) if path.suffix.lower() == ".npy" else _read_picture(path)
    if values.ndim != 2:
        raise PolypsegError(f"{path}: has the shape {values.shape}; a prediction is height × width")
    probability = np.asarray(values, np.float32)
    if not np.isfinite(probability).all():
        raise PolypsegError(f"{path}: contains NaN or infinity; a prediction lies in 0..1")
    if probability.size and (probability.min() < 0 or probability.max() > 1):
        raise PolypsegError(
            f"{path}: contains values from {probability.min():g} to {probability.max():g}; a prediction lies in 0..1"
        )
    return probability


def _predictions_in(folder: Path) -> list[Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise PolypsegError(f"{folder}: cannot be read ({error.strerror}); check --predictions") from error
    return [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]


def _read_array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:  # not np.load, which also opens archives
            values: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever it leads to
        raise PolypsegError(f"{path}: cannot be read as an array of numbers ({_reason(error)})") from error
    if values.dtype.kind not in "bf":
        raise PolypsegError(f"{path}: contains {values.dtype}; write bool, or probabilities as float32")
    return values


def _read_picture(path: Path) -> NDArray[Any]:
    with _open_picture(path) as image:
        try:
            deep = is_deep(image)
            image.load()
            layered = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
            transparent = layered and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if image.mode == "F":
                values, greatest = np.asarray(image), 1
            elif deep:
                samples = deep_samples(image, path)
                values, greatest = samples[..., :3] if samples.ndim == 3 else samples, 65535
            else:
                values, greatest = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), 255
        except Exception as error:  # as in polypseg.catalog
            raise PolypsegError(
                f"{path}: is damaged and cannot be decoded ({_reason(error)}); write it again"
            ) from error
    if transparent:
        raise PolypsegError(f"{path}: has an alpha channel that is not opaque; write masks and maps without one")
    if turned:
        raise PolypsegError(f"{path}: has an EXIF orientation; write the picture upright, without one")
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise PolypsegError(f"{path}: is in colour; write masks and maps in grey")
        values = values[..., 0]
    return values.astype(np.float32) / greatest


def _open_picture(path: Path) -> Image.Image:
    """As ``open_image``, but a floating-point TIFF is welcome."""
    with contextlib.suppress(Exception):  # open_image says what is wrong
        image = Image.open(path)
        single = getattr(image, "n_frames", 1) == 1 and image.width * image.height <= MAX_PIXELS
        if image.format == "TIFF" and image.mode == "F" and single:
            return image
        image.close()
    return open_image(path)


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
