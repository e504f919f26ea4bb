"""Masks out of label files: COCO's JSON and YOLO's text, each polyp with its class and attributes.

A mask of a Catalog may lie in such a file. Its kind says how it is read: ``coco:12`` is the image of that id in the
JSON, ``yolo:640x480`` the text of a frame of that size. Only outlines are read: a box does not say which pixels are
polyp.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.files import read_json
from polypseg.io.masks import MaskError
from polypseg.io.polygons import filled, runs_filled, runs_of_text

KIND = re.compile(r"(coco):(-?\d{1,18})|(yolo):(\d{1,6})x(\d{1,6})")
YOLO_NAMES = "data.yaml"
_MOST_PIXELS = 80_000_000  # of a frame, as of a picture


@dataclass(frozen=True)
class Outlined:
    """One polyp of a label file.

    Attributes:
        label: its class's name.
        attributes: name → value, as text.
        region: H×W bool.
    """

    label: str
    attributes: Mapping[str, str]
    region: NDArray[np.bool_]


@dataclass(frozen=True)
class CocoImage:
    """One image of a COCO file: its ``file_name``, size in pixels, and its annotations as they stand there."""

    file_name: str
    width: int
    height: int
    annotations: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Coco:
    """A COCO file.

    Attributes:
        images: by id, in the file's order.
        classes: the name of each category by its id.
        polyps: ids of the categories that are polyps.
    """

    images: dict[int, CocoImage]
    classes: dict[int, str]
    polyps: frozenset[int]


def is_label_kind(kind: str) -> bool:
    """Whether a mask of this kind lies in a label file."""
    return KIND.fullmatch(kind) is not None


def label_mask(path: str | Path, kind: str) -> NDArray[np.bool_]:
    """The mask of a frame, H×W bool: all its polyps together. Raises as ``outlined``."""
    width, height = _size(path, kind)
    mask = np.zeros((height, width), bool)
    for polyp in outlined(path, kind):
        mask |= polyp.region
    return mask


def outlined(path: str | Path, kind: str) -> list[Outlined]:
    """The polyps of a frame.

    Raises:
        MaskError: an annotation has no outline, or one that cannot be filled.
        PolypsegError: the file cannot be read.
    """
    width, height = _size(path, kind)
    if kind.startswith("coco:"):
        coco = read_coco(path)
        image = coco.images[int(kind[5:])]
        return [
            Outlined(coco.classes[int(one["category_id"])], _attributes(one), _coco_region(path, one, image))
            for one in image.annotations
            if int(one["category_id"]) in coco.polyps
        ]
    names, polyps = yolo_classes(Path(path).parent.parent / YOLO_NAMES)
    found = []
    for number, line in enumerate(_lines(path), 1):
        label, points = _yolo_line(path, number, line)
        if names and label not in names:
            raise MaskError(
                f"{path}: line {number} has the class {label}, which {YOLO_NAMES} does not name; correct it"
            )
        if not names or label in polyps:
            ring = points * (width, height)
            found.append(Outlined(names.get(label, "polyp"), {}, filled([ring], width, height)))
    return found


def labels_of(path: str | Path, kind: str) -> list[tuple[str, Mapping[str, str]]]:
    """The class and the attributes of each polyp of a frame, without a look at its outline. Raises as ``outlined``."""
    if kind.startswith("coco:"):
        coco = read_coco(path)
        found = coco.images[int(kind[5:])].annotations
        polyps = [one for one in found if int(one["category_id"]) in coco.polyps]
        return [(coco.classes[int(one["category_id"])], _attributes(one)) for one in polyps]
    names, polyp_classes = yolo_classes(Path(path).parent.parent / YOLO_NAMES)
    numbers = [_yolo_line(path, number, line)[0] for number, line in enumerate(_lines(path), 1)]
    return [(names.get(number, "polyp"), {}) for number in numbers if not names or number in polyp_classes]


def _size(path: str | Path, kind: str) -> tuple[int, int]:
    match = KIND.fullmatch(kind)
    if match is None:
        raise PolypsegError(f"{path}: {kind} is no way to read a label file")
    if match[1]:
        image = read_coco(path).images.get(int(match[2]))
        if image is None:
            raise PolypsegError(f"{path}: has no image of the id {match[2]}; restore it")
        return image.width, image.height
    return int(match[4]), int(match[5])


# ---- COCO -----------------------------------------------------------------------------------------------


def read_coco(path: str | Path) -> Coco:
    """Read a COCO file; one that has kept its size and time of change is read once in a process.

    Raises:
        PolypsegError: it is no COCO file, names an id twice, or does not say which categories are polyps.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise PolypsegError(f"{path}: cannot be read ({error.strerror})") from error
    return _read_coco(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read_coco(path: str, *_state: int) -> Coco:
    content = read_json(path)
    try:
        classes = {_whole(one["id"]): str(one["name"]) for one in content["categories"]}
        above = {_whole(one["id"]): str(one.get("supercategory", "")) for one in content["categories"]}
        images: dict[int, CocoImage] = {}
        for one in content["images"]:
            image = CocoImage(str(one["file_name"]), _whole(one["width"]), _whole(one["height"]))
            if _whole(one["id"]) in images:
                raise PolypsegError(f"{path}: has two images of the id {one['id']}; correct it")
            if image.width < 1 or image.height < 1 or image.width * image.height > _MOST_PIXELS:
                raise PolypsegError(f"{path}: {image.file_name} is {image.width}×{image.height}; correct it")
            images[_whole(one["id"])] = image
        for one in content["annotations"]:
            if _whole(one["image_id"]) not in images:
                raise PolypsegError(
                    f"{path}: annotation {one.get('id')} names the absent image {one['image_id']}; remove it"
                )
            if _whole(one["category_id"]) not in classes:
                raise PolypsegError(
                    f"{path}: annotation {one.get('id')} names the absent category {one['category_id']}; add it"
                )
            images[_whole(one["image_id"])].annotations.append(one)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PolypsegError(f"{path}: is no COCO file ({type(error).__name__}: {error}); export it again") from error
    used = {_whole(one["category_id"]) for image in images.values() for one in image.annotations}
    polyps = _polyps({key: f"{above[key]} {name}" for key, name in classes.items()})
    if polyps is None and len(used) <= 1:
        polyps = frozenset(classes)
    if polyps is None:
        raise PolypsegError(
            f"{path}: does not say which of its categories are polyps ({', '.join(classes.values())}); give those "
            'the supercategory "polyp"'
        )
    return Coco(images, classes, polyps)


def _polyps(names: Mapping[int, str]) -> frozenset[int] | None:
    """Which classes say that they are polyps; None where there are several and none does."""
    if len(names) <= 1:
        return frozenset(names)
    found = frozenset(key for key, name in names.items() if "polyp" in name.casefold())
    return found or None


def _whole(value: Any) -> int:
    """A whole number of a file. Raises ``ValueError`` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != math.floor(value):
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def _attributes(annotation: Mapping[str, Any]) -> dict[str, str]:
    """Those of an annotation as text: what CVAT writes, less its own."""
    given = annotation.get("attributes")
    if not isinstance(given, Mapping):
        return {}
    own = ("occluded", "rotation", "track_id", "keyframe")
    return {str(key): str(value) for key, value in given.items() if key not in own and value not in ("", None)}


def _coco_region(path: str | Path, annotation: Mapping[str, Any], image: CocoImage) -> NDArray[np.bool_]:
    shape, named = annotation.get("segmentation"), f"{path}: annotation {annotation.get('id')} of {image.file_name}"
    try:
        if isinstance(shape, Mapping):
            counts = shape["counts"]
            if list(shape.get("size", ())) != [image.height, image.width]:
                raise MaskError(f"{named} is {shape.get('size')} pixels, but its frame {image.width}×{image.height}")
            runs = runs_of_text(counts) if isinstance(counts, str) else [_whole(one) for one in counts]
            return runs_filled(runs, image.width, image.height)
        if not isinstance(shape, list) or not shape:
            raise MaskError(f"{named} has no outline; a box does not say which pixels are polyp")
        region = np.zeros((image.height, image.width), bool)
        for ring in shape:  # parts of one object: their union
            region |= filled([_corners(ring)], image.width, image.height)
    except MaskError:
        raise
    except (PolypsegError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskError(f"{named} has an outline that cannot be read ({error}); draw it again") from error
    return region


def _corners(values: Iterable[Any]) -> NDArray[np.float64]:
    """N×2 of x, y, x, y, … Raises ``ValueError`` where that is no outline."""
    numbers = np.asarray(list(values), np.float64)
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2 or not (np.abs(numbers) < 1e7).all():
        raise ValueError("three points x, y or more are needed")
    return numbers.reshape(-1, 2)


# ---- YOLO -----------------------------------------------------------------------------------------------


def yolo_classes(path: Path) -> tuple[dict[int, str], frozenset[int]]:
    """The names in ``data.yaml``, and which of them are polyps; nothing where there is no such file.

    Raises:
        PolypsegError: it cannot be read, or does not say which classes are polyps.
    """
    from polypseg.errors import UsageError
    from polypseg.files import check_yaml

    if not path.is_file():
        return {}, frozenset()
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
        given = content["names"]
        pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
        names = {_whole(key): str(name) for key, name in pairs}
        marked = frozenset(_whole(one) for one in content.get("polyps", ()))
    except UsageError as error:
        raise PolypsegError(f"{path}: {error}") from error
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise PolypsegError(
            f"{path}: has no list of names that can be read ({type(error).__name__}); restore it"
        ) from error
    polyps = marked or _polyps(names)
    if polyps is None:
        raise PolypsegError(
            f"{path}: does not say which of its classes are polyps ({', '.join(names.values())}); add their numbers, "
            "as polyps: [0, 1]"
        )
    return names, polyps


def _lines(path: str | Path) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolypsegError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from error
    return [line for line in text.splitlines() if line.strip()]


def _yolo_line(path: str | Path, number: int, line: str) -> tuple[int, NDArray[np.float64]]:
    """The class and the corners, 0..1, of a line."""
    words = line.split()
    try:
        label, values = int(words[0]), [float(word) for word in words[1:]]
        if label >= 0 and len(values) == 4:
            raise MaskError(f"{path}: line {number} is a box, no outline; a box does not say which pixels are polyp")
        corners = _corners(values)
        if label < 0 or not ((corners >= -0.01) & (corners <= 1.01)).all():
            raise ValueError("its values must be 0 to 1")
    except ValueError as error:
        raise MaskError(f"{path}: line {number} is no class with an outline ({error}); correct it") from error
    return label, corners
