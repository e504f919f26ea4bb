"""How many strokes, clicks and boxes it takes to reach a Dice of 0.95, by a simulated annotator, on real frames.

The frames are of the model's validation split, evenly chosen over the data sets, and shrunk to ``SIDE`` pixels. The
annotator knows the true mask. A **stroke** of the brush sets out from the middle of the largest connected error, adds
or erases, and covers what a round brush of half the error's inner radius reaches from there without leaving the error,
up to ``LENGTH`` radii away; the hand is off by up to ``HAND`` pixels. Each stroke, click and box counts one.

- ``brush``: strokes, from an empty mask;
- ``prediction, brush``: strokes, from the model's prediction;
- ``click, brush``: one click into the middle of each lesion, then strokes;
- ``box, brush``: one box around each lesion, by the model's own probability, then strokes;
- ``LiteMedSAM box, brush``: the same by LiteMedSAM, which needs the extra ``sam``. What it was trained on is not known
  frame by frame: it may have met these.

A box is off by up to ``LOOSE`` of its sides. What has not reached it after ``MOST`` counts as ``MOST``.

    python benchmarks/annotation_effort.py --data ../shared/data/Kvasir-SEG ../shared/data/CVC-ClinicDB \
        ../shared/data/PolypGen
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from results import add_rows

import polypseg
from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.export import medsam
from polypseg.files import commit
from polypseg.inference.medsam import MedSam
from polypseg.inference.prompting import Box, Click, grow, grow_in_box
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.overlap import dice
from polypseg.metrics.statistics import bootstrap_interval

SIDE = 480  # pixels, of the longer side of the frames
WANTED = 0.95
MOST = 40  # strokes, clicks and boxes of a frame
LENGTH = 8  # radii of the brush that a stroke is long, from its beginning
THINNEST = 1.5  # pixels, of the brush's radius
HAND = 1.5  # pixels
LOOSE = 0.04
Mask = NDArray[np.bool_]


class Frame(NamedTuple):
    """A frame to be annotated."""

    group: str
    pixels: NDArray[np.uint8]
    truth: Mask
    probability: NDArray[np.float32]
    predicted: Mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default=None, help="bundle or run; the shipped model by default")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/annotation-effort.csv"))
    options = parser.parse_args()
    segmenter = polypseg.load(options.model, threads=options.threads)
    frames = list(chosen(segmenter, read_all(options.data), options.frames))
    rows = []
    for name, begin in methods(options.threads).items():
        efforts = [effort(frame, begin, np.random.default_rng(number)) for number, frame in enumerate(frames)]
        groups = [frame.group for frame in frames]
        reached = [one < MOST for one in efforts]
        for metric, values, statistic in (
            ("mean actions", efforts, "mean"), ("median actions", efforts, "median"),
            ("share reached", reached, "mean"),
        ):  # fmt: skip
            found = bootstrap_interval(values, statistic=statistic, groups=groups)
            rows.append(
                {
                    "date": datetime.date.today().isoformat(), "data": " ".join(one.name for one in options.data),
                    "part": "val", "method": name, "wanted_dice": WANTED, "most": MOST, "n": found.n, "metric": metric,
                    "value": round(found.value, 3), "low": round(found.low, 3), "high": round(found.high, 3),
                    "model": segmenter.bundle.name, "bundle_hash": segmenter.hash, "precision": segmenter.precision,
                    "commit": commit(),
                }
            )  # fmt: skip
            print(name, metric, *(rows[-1][key] for key in ("value", "low", "high")))
    add_rows(options.out, rows)
    print(f"{options.out}: {len(rows)} rows added")


def chosen(segmenter: Segmenter, catalog: Catalog, count: int) -> Iterator[Frame]:
    """So many validation frames with a polyp, as many of each data set, evenly over its names."""
    known = {(one.dataset, one.frame_id) for one in segmenter.bundle.frames() or [] if one.split == "val"}
    rows = [number for number, row in enumerate(catalog.frames.itertuples()) if (row.dataset, row.frame_id) in known]
    rows = [number for number in rows if catalog.mask(number).any()]
    names = catalog.frames["dataset"]
    sets = sorted({names.iloc[number] for number in rows})
    for place, dataset in enumerate(sets):
        own = [number for number in rows if names.iloc[number] == dataset]
        share = count // len(sets) + (place < count % len(sets))
        for number in np.linspace(0, len(own) - 1, share).round().astype(int):
            yield prepared(segmenter, catalog, own[number])


def prepared(segmenter: Segmenter, catalog: Catalog, number: int) -> Frame:
    """A frame at ``SIDE`` pixels."""
    pixels, truth = catalog.frame(number), catalog.mask(number)
    scale = SIDE / max(truth.shape)
    size = round(truth.shape[1] * scale), round(truth.shape[0] * scale)
    probability = segmenter.probability(pixels)
    shrunk = cv2.resize(truth.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    predicted = segmenter.segmentation(probability, size[1], size[0]).mask
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return Frame(str(catalog.frames["group"].iloc[number]), small, shrunk, probability, predicted)


Begin = Callable[[Frame, np.random.Generator], tuple[Mask, int]]


def methods(threads: int) -> dict[str, Begin]:
    """Of each method the mask that the brush begins with, and what that has cost."""

    def empty(frame: Frame, _: np.random.Generator) -> tuple[Mask, int]:
        return np.zeros_like(frame.truth), 0

    def prediction(frame: Frame, _: np.random.Generator) -> tuple[Mask, int]:
        return frame.predicted.copy(), 0

    def click(frame: Frame, hand: np.random.Generator) -> tuple[Mask, int]:
        places = [middle(lesion) for lesion in lesions(frame.truth)]
        clicks = [Click(*np.clip(np.add(place, hand.uniform(-HAND, HAND, 2)), 0, None)) for place in places]
        return grow(frame.probability, *frame.truth.shape, clicks).mask, len(clicks)

    def box(frame: Frame, hand: np.random.Generator) -> tuple[Mask, int]:
        boxes = [drawn(lesion, hand) for lesion in lesions(frame.truth)]
        grown = [grow_in_box(frame.probability, *frame.truth.shape, one).mask for one in boxes]
        return np.logical_or.reduce(grown), len(boxes)

    found: dict[str, Begin] = {
        "brush": empty, "prediction, brush": prediction, "click, brush": click, "box, brush": box,
    }  # fmt: skip
    if medsam.why_not() is None:
        network = MedSam(medsam.make(), threads)

        def sam(frame: Frame, hand: np.random.Generator) -> tuple[Mask, int]:
            boxes = [drawn(lesion, hand) for lesion in lesions(frame.truth)]
            encoded = network.encode(frame.pixels)
            return np.logical_or.reduce([network.segment(encoded, one) for one in boxes]), len(boxes)

        found["LiteMedSAM box, brush"] = sam
    return found


def effort(frame: Frame, begin: Begin, hand: np.random.Generator) -> int:
    """Strokes, clicks and boxes until the mask is right enough, ``MOST`` for the most."""
    mask, count = begin(frame, hand)
    while count < MOST and dice(mask, frame.truth) < WANTED:
        painted, adds = stroke(mask, frame.truth, hand)
        mask = mask | painted if adds else mask & ~painted
        count += 1
    return count


def stroke(mask: Mask, truth: Mask, hand: np.random.Generator) -> tuple[Mask, bool]:
    """What one stroke covers, and whether it adds."""
    missing, beyond = (largest(one) for one in (truth & ~mask, mask & ~truth))
    adds = np.count_nonzero(missing) >= np.count_nonzero(beyond)
    error = missing if adds else beyond
    depth = cv2.distanceTransform(np.pad(error, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    radius = max(THINNEST, float(depth.max()) / 2)
    rows, columns = np.ogrid[: error.shape[0], : error.shape[1]]
    near = (rows - row) ** 2 + (columns - column) ** 2 <= (LENGTH * radius) ** 2
    ways = (depth >= min(radius, float(depth.max()))) & near
    _, labels = cv2.connectedComponents(ways.astype(np.uint8), connectivity=8)
    ways = labels == labels[row, column]
    away = cv2.distanceTransform((~ways).astype(np.uint8), cv2.DIST_L2, 5)
    dx, dy = hand.uniform(-HAND, HAND, 2)
    moved = cv2.warpAffine(away, np.array([[1, 0, dx], [0, 1, dy]]), away.shape[::-1], borderValue=1e6)
    return np.asarray(moved < radius, np.bool_), bool(adds)


def lesions(truth: Mask) -> list[Mask]:
    """Each connected region of a mask."""
    count, labels = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
    return [labels == number for number in range(1, count)]


def largest(mask: Mask) -> Mask:
    """The largest connected region."""
    return max(lesions(mask), key=np.count_nonzero, default=mask)


def middle(lesion: Mask) -> tuple[int, int]:
    """The column and row of the point that lies deepest in a region."""
    depth = cv2.distanceTransform(np.pad(lesion, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(column), int(row)


def drawn(lesion: Mask, hand: np.random.Generator) -> Box:
    """A box around a lesion, as a hand draws it."""
    x, y, across, down = cv2.boundingRect(lesion.astype(np.uint8))
    off = hand.uniform(-LOOSE, LOOSE, 4) * (across, down, across, down)
    left, top = max(0.0, x + off[0]), max(0.0, y + off[1])
    right, bottom = min(lesion.shape[1], x + across + off[2]), min(lesion.shape[0], y + down + off[3])
    return left, top, max(right, left + 2), max(bottom, top + 2)


if __name__ == "__main__":
    main()
