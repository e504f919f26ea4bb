"""Fingerprints of frames and masks, and the frames that show the same picture.

Endoscopy frames share a black border, a cut-out for the position image and burnt-in text, so a plain
correlation of whole frames finds frames of the same *endoscope*. Measured on Kvasir-SEG at 48 px: most of the
136 pairs above 0.90 show different polyps, while the 14 frames that were exported a second time with a wider
border stay below. Here a frame is therefore cropped to its lit part, slow shading is taken out, and
two frames are compared only where both show tissue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from polypseg.catalog import Catalog
from polypseg.data.folder import Problem
from polypseg.errors import PolypsegError
from polypseg.files import sha256_of_file
from polypseg.io.masks import BLACK, THRESHOLD, MaskError
from polypseg.io.pictures import read_frame, read_mask_values

SIDE = 48  # pixels; a signature is SIDE × SIDE
# Chosen by eye on Kvasir-SEG: its 19 pairs above 0.75 all show the same scene, the weakest at 0.758; from
# 0.739 down pairs of different polyps appear. Between ClinicDB's sequences the greatest correlation is 0.749,
# and one pair of a Kvasir-SEG and a ClinicDB frame reaches 0.771 by chance.
NEAR = 0.75
IDENTICAL = 0.99  # re-encoded, or a frozen picture saved twice with another clock burnt in
_MARGIN = 0.02  # of the longer side; how far the borders of the same picture may differ
_SHADING = 8.0  # pixels of the signature; the Gaussian sigma of what is taken out as shading
_CLIP = 2.5  # standard deviations; a highlight or a burnt-in label must not outweigh the tissue
_DARK = 35  # grey values; a darker pixel is border or lumen, not tissue
_LIT = 0.15  # a row or column belongs to the picture where this fraction of it is not dark
_GREEN = 20  # grey values; the position image is greener than red by more than this
_BLOCK = 2048  # frames; bounds the memory of a comparison to a few tens of MB


@dataclass(frozen=True)
class Fingerprints:
    """What one decode of every frame and mask gives; arrays in the Catalog's order, one entry a frame.

    Attributes:
        readable: bool; False where the frame or its mask could not be decoded (all else is then zero).
        file_hash: SHA-256 of the image file, str.
        pixel_hash: SHA-256 of the decoded RGB pixels and their shape, str.
        signature: N×2304 float32; the lit part of the frame as 48×48 grey (area interpolation), less its
            shading, outliers clipped, zero where there is no tissue, unit norm (or all zero for a frame
            without structure).
        tissue: N×2304 bool; where the signature is defined.
        shape: N×2 int, (height, width) of the frame in pixels.
        lit: N×4 int, (top, bottom, left, right) of the lit part in pixels, bottom and right exclusive.
        has_mask: bool.
        polyp_pixels: int, mask pixels above 127.
        area: float64, polyp_pixels as a fraction 0..1 of the mask.
        nonzero_pixels: int, mask pixels above 0.
        grey: float64, fraction 0..1 of mask pixels with a value of 1..254.
        mask_max: int, the mask's greatest value 0..255.
        low: float64, fraction 0..1 of mask pixels that have the most frequent value of 1..31.
        corners: int, how many of the mask's four corners are polyp.
        components: one K×5 int array a frame: ``xmin, ymin, xmax, ymax`` (pixels, the last ones included)
            and area of each 8-connected region of the thresholded mask.
    """

    readable: NDArray[np.bool_]
    file_hash: NDArray[np.str_]
    pixel_hash: NDArray[np.str_]
    signature: NDArray[np.float32]
    tissue: NDArray[np.bool_]
    shape: NDArray[np.int64]
    lit: NDArray[np.int64]
    has_mask: NDArray[np.bool_]
    polyp_pixels: NDArray[np.int64]
    area: NDArray[np.float64]
    nonzero_pixels: NDArray[np.int64]
    grey: NDArray[np.float64]
    mask_max: NDArray[np.int64]
    low: NDArray[np.float64]
    corners: NDArray[np.int64]
    components: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.readable)

    def take(self, indices: NDArray[np.int64]) -> Fingerprints:
        """Those of some frames, in the order of their positions."""
        taken: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            taken[item.name] = [value[index] for index in indices] if isinstance(value, list) else value[indices]
        return Fingerprints(**taken)


def fingerprints(catalog: Catalog, progress: bool = False, problems: list[Problem] | None = None) -> Fingerprints:
    """Decode every frame and mask once and keep what duplicates, splits and the audit need.

    Args:
        catalog: the frames; a frame may have no mask.
        progress: show a progress bar on standard error.
        problems: where given, a ``Problem`` is appended for each file that cannot be decoded (``undecodable``) and
            each mask that is not black and white (``label-values``), and its frame gets ``readable`` False;
            otherwise the first one is raised.

    Raises:
        PolypsegError: a file cannot be decoded and ``problems`` was not given.
    """

    def attempt(row: Any) -> tuple[dict[str, Any], Problem | None]:
        path = row.image_path
        try:
            found = _frame_facts(path)
            path = row.mask_path
            return {**_NOTHING, **found, **(_mask_facts(path, row.mask_kind) if path else {}), "readable": True}, None
        except PolypsegError as error:
            if problems is None:
                raise
            kind = "label-values" if isinstance(error, MaskError) else "undecodable"
            return _NOTHING, Problem(kind, path, str(error))

    with ThreadPoolExecutor(2) as pool:  # Pillow and OpenCV release the interpreter lock
        results = pool.map(attempt, catalog)
        if progress:
            from tqdm import tqdm

            results = tqdm(results, total=len(catalog), unit="frame", desc="reading")
        rows, failures = [], []
        for facts, failure in results:
            rows.append(facts)
            if failure is not None:
                failures.append(failure)
    if problems is not None:
        problems.extend(failures)

    def column(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return np.array([row[name] for row in rows], dtype=dtype).reshape(len(rows), *shape)

    return Fingerprints(
        readable=column("readable", bool),
        file_hash=column("file_hash", str),
        pixel_hash=column("pixel_hash", str),
        signature=column("signature", np.float32, SIDE * SIDE),
        tissue=column("tissue", bool, SIDE * SIDE),
        shape=column("shape", np.int64, 2),
        lit=column("lit", np.int64, 4),
        has_mask=column("has_mask", bool),
        polyp_pixels=column("polyp_pixels", np.int64),
        area=column("area", np.float64),
        nonzero_pixels=column("nonzero_pixels", np.int64),
        grey=column("grey", np.float64),
        mask_max=column("mask_max", np.int64),
        low=column("low", np.float64),
        corners=column("corners", np.int64),
        components=[row["components"] for row in rows],
    )


def lit_part(frame: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the part inside the black border, bottom and right exclusive.

    Args:
        frame: H×W×3 uint8 RGB. A frame that is dark throughout gives four zeros.
    """
    lit = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) > _DARK
    rows, columns = np.flatnonzero(lit.mean(1) > _LIT), np.flatnonzero(lit.mean(0) > _LIT)
    if not len(rows) or not len(columns):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def signature(
    frame: NDArray[np.uint8], lit: tuple[int, int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The signature of one frame and where it is defined.

    Args:
        frame: H×W×3 uint8 RGB.
        lit: what ``lit_part`` returned.

    Returns:
        Two 48×48 arrays: float32, unit norm or all zero; and bool.
    """
    top, bottom, left, right = lit
    picture = frame[top:bottom, left:right]
    if not picture.size:
        return np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), bool)
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    tissue = grey > _DARK
    green = tissue & (small[..., 1].astype(int) > small[..., 0].astype(int) + _GREEN)
    if green.mean() < 0.3:  # more than that is no position image but light of another colour
        tissue &= ~green
    weight = cv2.erode(tissue.astype(np.float32), np.ones((3, 3), np.uint8))  # half-covered pixels
    shading = cv2.GaussianBlur(grey * weight, (0, 0), _SHADING)
    shading = shading / np.maximum(cv2.GaussianBlur(weight, (0, 0), _SHADING), 1e-3)
    structure = (grey - shading) * weight
    limit = _CLIP * float(np.sqrt((structure**2).sum() / max(weight.sum(), 1)))
    structure = structure.clip(-limit, limit)
    norm = float(np.linalg.norm(structure))
    # A norm below one grey value a pixel is noise of a flat frame, which would match any other.
    structure = structure / norm if norm > SIDE else np.zeros_like(structure)
    return structure.astype(np.float32), weight > 0


def exact_pairs(
    prints: Fingerprints, near: Sequence[tuple[int, int, float]] | None = None
) -> list[tuple[int, int, str]]:
    """Frames that are the same picture at the same size.

    Args:
        prints: of the Catalog's frames.
        near: what ``near_pairs`` returned, to spare the comparison.

    Returns:
        Sorted ``(first, second, how)``, positions in the Catalog, ``first < second``. ``how`` is ``file``
        (identical files), ``pixels`` (identical decoded pixels) or ``picture`` (same size, same border, and
        signatures that correlate at 0.99 or more: encoded again, or saved twice with another clock). Of more
        than two files or frames of the same pixels each is paired with the first.
    """
    found: dict[tuple[int, int], str] = {}
    for how, hashes in (("file", prints.file_hash), ("pixels", prints.pixel_hash)):
        first: dict[Hashable, int] = {}
        for index in np.flatnonzero(prints.readable):
            original = first.setdefault(hashes[index], int(index))
            if original != index:
                found.setdefault((original, int(index)), how)
    for i, j, correlation in near_pairs(prints, IDENTICAL) if near is None else near:
        same = prints.pixel_hash[i] == prints.pixel_hash[j]
        placed = (prints.shape[i] == prints.shape[j]).all()
        placed &= np.abs(prints.lit[i] - prints.lit[j]).max() <= _MARGIN * prints.shape[i].max()
        if correlation >= IDENTICAL and placed and not same:
            found[i, j] = "picture"
    return [(i, j, how) for (i, j), how in sorted(found.items())]


def near_pairs(prints: Fingerprints, threshold: float = NEAR) -> list[tuple[int, int, float]]:
    """Pairs of frames whose tissue looks the same, identical ones included.

    The correlation of two signatures over the tissue that both show, sum(a·b) / sqrt(sum(a²)·sum(b²)). A pair
    counts only where the shared tissue contains at least half of each frame's structure. Mirrored or rotated
    copies, and the same polyp seen from another side, are not found.

    Args:
        prints: of the Catalog's frames.
        threshold: least correlation, above 0 and up to 1.

    Returns:
        Sorted ``(first, second, correlation)``, positions in the Catalog, ``first < second``.
    """
    found: list[tuple[int, int, float]] = []
    starts = range(0, len(prints), _BLOCK)
    for low in starts:
        for high in starts[low // _BLOCK :]:
            bound = prints.signature[low : low + _BLOCK] @ prints.signature[high : high + _BLOCK].T
            # With half of each unit norm shared, the plain product is at least half of the correlation.
            i, j = np.nonzero(bound >= threshold / 2)
            i, j = i + low, j + high
            i, j = i[i < j], j[i < j]
            for part in range(0, len(i), _BLOCK):
                a, b = i[part : part + _BLOCK], j[part : part + _BLOCK]
                value = _correlation(prints, a, b)
                keep = value >= threshold
                found += zip(a[keep].tolist(), b[keep].tolist(), value[keep].tolist(), strict=True)
    return sorted(found)


def groups(catalog: Catalog, prints: Fingerprints, near: Sequence[tuple[int, int, float]] | None = None) -> list[str]:
    """One group name a frame: frames that share one must stay in one subset of a split.

    Joins near and exact duplicates with the Catalog's own groups (as ClinicDB's sequences), transitively.

    Args:
        catalog: the frames.
        prints: their fingerprints.
        near: what ``near_pairs`` returned, to spare the comparison.

    Returns:
        The alphabetically first of the Catalog's group names that were joined, for each frame in order.
    """
    codes, names = pd.factorize(catalog.frames["group"], sort=True)
    near = near_pairs(prints) if near is None else near
    pairs = np.array([(i, j) for i, j, _ in (*near, *exact_pairs(prints, near))], dtype=int).reshape(-1, 2)
    left, right = codes[pairs.T]
    links = coo_matrix((np.ones(len(left)), (left, right)), shape=(len(names), len(names)))
    component = connected_components(links, directed=False)[1]
    first = pd.Series(names).groupby(component).transform("first")  # names are sorted
    return [str(first[code]) for code in codes]


def _correlation(prints: Fingerprints, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    a, b = prints.signature[i], prints.signature[j]
    product = np.einsum("nk,nk->n", a, b).astype(np.float64)  # each is zero outside its own tissue
    shared_a = np.einsum("nk,nk,nk->n", a, a, prints.tissue[j]).astype(np.float64)
    shared_b = np.einsum("nk,nk,nk->n", b, b, prints.tissue[i]).astype(np.float64)
    enough = (shared_a >= 0.5) & (shared_b >= 0.5)
    value = product / np.sqrt(np.maximum(shared_a * shared_b, 1e-12))
    return np.where(enough, np.minimum(value, 1.0), 0.0)


_NOTHING: dict[str, Any] = {
    "readable": False,
    "file_hash": "",
    "pixel_hash": "",
    "signature": np.zeros((SIDE, SIDE), np.float32),
    "tissue": np.zeros((SIDE, SIDE), bool),
    "shape": (0, 0),
    "lit": (0, 0, 0, 0),
    "has_mask": False,
    "polyp_pixels": 0,
    "area": 0.0,
    "nonzero_pixels": 0,
    "grey": 0.0,
    "mask_max": 0,
    "low": 0.0,
    "corners": 0,
    "components": np.zeros((0, 5), np.int64),
}


def _frame_facts(path: str) -> dict[str, Any]:
    frame = read_frame(path)
    lit = lit_part(frame)
    structure, tissue = signature(frame, lit)
    return {
        "file_hash": sha256_of_file(path),
        "pixel_hash": hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest(),
        "signature": structure,
        "tissue": tissue,
        "shape": frame.shape[:2],
        "lit": lit,
    }


def _mask_facts(path: str, kind: str) -> dict[str, Any]:
    values = read_mask_values(path, kind)
    polyp = (values > THRESHOLD).astype(np.uint8)
    low = values[(values > 0) & (values <= BLACK)]
    _, _, stats, _ = cv2.connectedComponentsWithStats(polyp, connectivity=8)
    boxes = stats[1:].astype(np.int64)  # without the background: left, top, width, height, area
    boxes[:, 2:4] += boxes[:, 0:2] - 1
    pixels = int(polyp.sum())
    return {
        "has_mask": True,
        "polyp_pixels": pixels,
        "area": pixels / values.size,
        "nonzero_pixels": int(np.count_nonzero(values)),
        "grey": float(np.count_nonzero((values > 0) & (values < 255)) / values.size),
        "mask_max": int(values.max()),
        "low": float(np.bincount(low).max() / values.size) if len(low) else 0.0,
        "corners": int(polyp[[0, 0, -1, -1], [0, -1, 0, -1]].sum()),
        "components": boxes,
    }
