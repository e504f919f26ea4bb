"""How many strokes, clicks and boxes it takes to reach a Dice of 0.95, by a simulated annotator, on real frames.

The frames are of the model's validation split, evenly chosen over the data sets, and shrunk to ``SIDE`` pixels. The
annotator knows the true mask. A **stroke** is one straight drag of a round brush through the deepest place of the
largest connected error; it adds or erases. The brush is the largest of ``BRUSHES`` that fits there, and changing it
costs nothing. The drag goes on, both ways, as long as the brush lies within the error; of ``DIRECTIONS`` the one that
mends most is taken. The hand is off by up to ``HAND`` pixels. Each stroke, click and box counts one.

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
MOST = 60  # strokes, clicks and boxes of a frame
BRUSHES = (4, 8, 16, 32)  # pixels, radii
DIRECTIONS = 16
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
    deepest = float(depth.max())
    radius = max([one for one in BRUSHES if one <= deepest], default=BRUSHES[0])
    drags = []
    for angle in np.pi * np.arange(DIRECTIONS) / DIRECTIONS:
        along = np.array([np.cos(angle), np.sin(angle)])
        ends = [reach(depth, (column, row), sign * along, min(radius, deepest)) for sign in (1, -1)]
        drags.append(painted(error.shape, ends, radius))
    best = max(drags, key=lambda one: 2 * np.count_nonzero(one & error) - np.count_nonzero(one))
    dx, dy = hand.uniform(-HAND, HAND, 2)
    moved = cv2.warpAffine(best.astype(np.uint8), np.array([[1, 0, dx], [0, 1, dy]]), best.shape[::-1])
    return moved > 0, bool(adds)


def reach(
    depth: NDArray[np.float32], start: tuple[int, int], along: NDArray[np.float64], least: float
) -> tuple[int, int]:
    """How far the brush goes from a start in a direction while it lies within the error: column and row."""
    end = start
    for step in range(1, max(depth.shape)):
        column, row = (np.array(start) + step * along).round().astype(int)
        if not (0 <= row < depth.shape[0] and 0 <= column < depth.shape[1]) or depth[row, column] < least:
            break
        end = int(column), int(row)
    return end


def painted(shape: tuple[int, ...], ends: list[tuple[int, int]], radius: int) -> Mask:
    """What a round brush covers on a straight way."""
    canvas = np.zeros(shape, np.uint8)
    cv2.line(canvas, *ends, 1, 2 * radius)
    for end in ends:
        cv2.circle(canvas, end, radius, 1, -1)
    return canvas > 0


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
