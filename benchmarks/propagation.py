"""How far a corrected mask can be carried: on sequences with masks, of which all but one are dropped.

From every ``--every``-th frame of a sequence its true mask is carried on, forwards and backwards, for ``--most``
frames; what arrives is compared with the true mask there, by distance in frames, beside the model alone and the mask
left unchanged. Rows ``offered`` are of the frames whose sureness reaches ``--min_sureness``, rows ``all`` of all;
``share`` is how many those are. Rows ``wrong`` are of what begins at frames where the model's Dice is below 0.8, which
is where people correct. Only frames of the model's validation split are begun from and scored; others of a sequence
are passed through. The interval is a bootstrap over sequences (``sequences`` says how many: of few it is too narrow).

    python benchmarks/propagation.py --data ../shared/data/CVC-ClinicDB
"""

from __future__ import annotations

import argparse
import datetime
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from results import add_rows

import polypseg
from polypseg.catalog import Catalog
from polypseg.data import read
from polypseg.files import commit
from polypseg.inference.propagation import MIN_SURENESS, Propagation
from polypseg.inference.segmenter import Segmenter
from polypseg.io.pictures import read_frame, read_mask
from polypseg.metrics.overlap import dice
from polypseg.metrics.statistics import bootstrap_interval

WRONG = 0.8  # Dice of the model at the frame that is corrected


class Frame(NamedTuple):
    """A frame of a sequence, and whether it is scored."""

    pixels: NDArray[np.uint8]
    probability: NDArray[np.float32]
    predicted: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    scored: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data set whose groups are sequences, as CVC-ClinicDB")
    parser.add_argument("--model", default=None, help="bundle or run; the shipped model by default")
    parser.add_argument("--every", type=int, default=1, help="frames between two that are begun from")
    parser.add_argument("--most", type=int, default=8, help="frames that a mask is carried")
    parser.add_argument("--min_sureness", type=float, default=MIN_SURENESS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/propagation.csv"))
    options = parser.parse_args()
    segmenter = polypseg.load(options.model, threads=options.threads)
    scores = [score for one in sequences(segmenter, read(options.data)) for score in carried(one, options)]
    common = {
        "date": datetime.date.today().isoformat(), "data": options.data.name, "model": segmenter.bundle.name,
        "bundle_hash": segmenter.hash, "commit": commit(), "precision": segmenter.precision,
        "min_sureness": options.min_sureness,
    }  # fmt: skip
    rows = [{**common, **row} for row in summed(scores, options.min_sureness)]
    add_rows(options.out, rows)
    for row in rows:
        print(*(row[name] for name in ("frames", "distance", "method", "share", "n", "dice", "low", "high")))
    print(f"{options.out}: {len(rows)} rows added")


def sequences(segmenter: Segmenter, catalog: Catalog) -> Iterator[tuple[str, list[Frame]]]:
    """Each sequence that contains frames of the validation split, with its frames in order."""
    known = segmenter.bundle.frames() or []
    split = {(one.dataset, one.frame_id): one.split for one in known}
    for group, table in catalog.frames.groupby("group"):
        names = [split.get((row.dataset, row.frame_id), "") for row in table.itertuples()]
        if "val" not in names or "train" in names:
            continue
        order = sorted(zip(table.itertuples(), names, strict=True), key=lambda one: int(one[0].frame_id))
        frames = []
        for row, name in order:
            pixels, mask = read_frame(row.image_path), read_mask(row.mask_path)
            probability = segmenter.probability(pixels)
            predicted = segmenter.segmentation(probability, *mask.shape).mask
            frames.append(Frame(pixels, probability, predicted, mask, name == "val" and bool(mask.any())))
        yield str(group), frames


def carried(sequence: tuple[str, Sequence[Frame]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What becomes of each frame's true mask, at every distance."""
    group, frames = sequence
    for start in range(0, len(frames), options.every):
        first = frames[start]
        if not first.scored:
            continue
        wrong = dice(first.predicted, first.mask) < WRONG
        for direction in (1, -1):
            moving = Propagation(first.pixels, first.probability, first.mask)
            for distance in range(1, options.most + 1):
                place = start + direction * distance
                if not 0 <= place < len(frames):
                    break
                frame = frames[place]
                found = moving.step(frame.pixels, frame.probability)
                if frame.scored:
                    yield {
                        "group": group, "distance": distance, "wrong": wrong, "sureness": found.sureness,
                        "propagated": dice(found.mask, frame.mask), "model alone": dice(frame.predicted, frame.mask),
                        "unchanged mask": dice(first.mask, frame.mask),
                    }  # fmt: skip


def summed(scores: Sequence[dict[str, Any]], least: float) -> Iterator[dict[str, Any]]:
    """Means with intervals, by distance, by which frames and by method."""
    kept: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for score in scores:
        offered = score["sureness"] >= least
        for name, counts in (
            ("all", True), ("offered", offered), ("wrong", score["wrong"]),
            ("wrong, offered", score["wrong"] and offered),
        ):  # fmt: skip
            if counts:
                kept[name, score["distance"]].append(score)
    for (name, distance), some in sorted(kept.items()):
        whole = len(kept[name.replace("offered", "").strip(", ") or "all", distance])
        groups = [one["group"] for one in some]
        for method in ("propagated", "model alone", "unchanged mask"):
            mean = bootstrap_interval([one[method] for one in some], groups=groups)
            yield {
                "frames": name, "distance": distance, "method": method, "n": mean.n, "sequences": len(set(groups)),
                "share": round(mean.n / whole, 3), "metric": "dice", "dice": round(mean.value, 4),
                "low": round(mean.low, 4), "high": round(mean.high, 4),
            }  # fmt: skip


if __name__ == "__main__":
    main()
