"""How much of what a model got wrong is found by looking at its least sure frames first.

The frames are those of validation, which the shipped model has not learnt from, but was chosen on. What is wrong with
a frame is 1 − Dice of the prediction (of a frame without polyp: whether it marks something). A row contains what share
of all that is wrong lies in the first part of an order, with a 95 % interval by 2,000 bootstrap samples of the frames;
in a random order it is the part itself.

    D=../shared/data
    python benchmarks/review_order.py --data $D/Kvasir-SEG $D/CVC-ClinicDB $D/PolypGen $D/PolypFree

A minute on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from results import add_rows

from polypseg.data import read_all
from polypseg.evaluation.selection import select
from polypseg.files import commit
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.overlap import dice
from polypseg.serve.annotations.work import predicted

PARTS = (0.1, 0.25, 0.5)  # of the frames, looked at first
SAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--model", default=None, help="the shipped one by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/review-order.csv"))
    options = parser.parse_args()
    catalog = read_all(options.data)
    segmenter = Segmenter(options.model, threads=options.threads)
    frames, facts = select(catalog, "val", bundle=segmenter.bundle)
    wrong, orders = np.zeros(len(frames)), {name: np.zeros(len(frames)) for name in ("uncertainty", "least confidence")}
    for index in range(len(frames)):
        found, truth = predicted(segmenter, frames.frame(index)), frames.mask(index)
        wrong[index] = 1 - dice(found.mask, truth)
        orders["uncertainty"][index] = found.uncertainty
        orders["least confidence"][index] = -found.confidence
    rows = []
    for name, values in orders.items():
        for part in PARTS:
            share, low, high = interval(wrong, values, part)
            rows.append(
                {
                    "date": time.strftime("%Y-%m-%d"), "order": name, "part": part, "n": len(frames), "found": share,
                    "low": low, "high": high, "mean_wrong": round(float(wrong.mean()), 4),
                    "data": " ".join(sorted(set(frames.frames["dataset"]))), "split": "pranet, val",
                    "split_hash": facts["split"]["hash"], "bundle_hash": segmenter.hash, "commit": commit(),
                    "device": segmenter.device, "precision": segmenter.precision, "threads": options.threads,
                }
            )  # fmt: skip
            print(
                f"{name:18} first {part:.0%} of {len(frames)}: {share:.1%} of what is wrong ({low:.1%} to {high:.1%})"
            )
    add_rows(options.out, rows)


def share_found(wrong: NDArray[np.float64], values: NDArray[np.float64], part: float) -> float:
    """What share of what is wrong lies in the first part of the frames, the highest values first.

    Frames of one value come in any order: those within the part contain their share of what is wrong with all of them.
    """
    left, found = round(part * len(values)), 0.0
    for value in np.unique(values)[::-1]:
        alike = wrong[values == value]
        taken = min(left, len(alike))
        found += alike.sum() * taken / len(alike)
        left -= taken
    return float(found / wrong.sum())


def interval(wrong: NDArray[np.float64], values: NDArray[np.float64], part: float) -> tuple[float, float, float]:
    """The share, and its 95 % interval."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, len(wrong), len(wrong)) for _ in range(SAMPLES)]
    shares = [share_found(wrong[sample], values[sample], part) for sample in samples]
    low, high = np.percentile(shares, (2.5, 97.5))
    return round(share_found(wrong, values, part), 4), round(float(low), 4), round(float(high), 4)


if __name__ == "__main__":
    main()
