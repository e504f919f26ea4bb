"""How often a real still is called unjudgeable, and how often one that is spoilt is.

Every frame that is given was kept by those who made its data set, so each that is called unjudgeable is a false alarm.
Then each is spoilt in five ways, of which the share that is found is counted: black (a fiftieth of its light), washed
out (three times its light), out of focus (a Gaussian blur of 1/100 and of 1/50 of its longer side) and without colour
(as a room is). Intervals are exact or a bootstrap over the catalogue's groups.

    python benchmarks/still_quality.py --data ../shared/data/Kvasir-SEG ../shared/data/PolypGen
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from results import add_rows

from polypseg import zoo
from polypseg.data import read
from polypseg.files import commit
from polypseg.inference.quality import judge
from polypseg.io.pictures import read_frame
from polypseg.metrics.statistics import bootstrap_interval

Spoil = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def blur(share: float) -> Spoil:
    """A Gaussian blur whose sigma is this share of the longer side."""
    return lambda frame: np.asarray(cv2.GaussianBlur(frame, (0, 0), share * max(frame.shape)), np.uint8)


def light(factor: float) -> Spoil:
    """So many times the light, cut off where the camera does."""
    return lambda frame: np.asarray((frame.astype(np.float32) * factor).clip(0, 255), np.uint8)


def grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Without its colour."""
    return np.repeat(frame.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)


WAYS: dict[str, Spoil] = {
    "as it is": lambda frame: frame,
    "black": light(0.02),
    "washed out": light(3),
    "out of focus, 1/100": blur(0.01),
    "out of focus, 1/50": blur(0.02),
    "without colour": grey,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default=None, help="whose validation frames are taken; the shipped model by default")
    parser.add_argument("--part", default="val", help="of the model's split")
    parser.add_argument("--out", type=Path, default=Path("results/still-quality.csv"))
    options = parser.parse_args()
    bundle = zoo.open(options.model)
    part = {(one.dataset, one.frame_id) for one in bundle.frames() or [] if one.split == options.part}
    rows: list[dict[str, Any]] = []
    for folder in options.data:
        chosen = [row for row in read(folder).frames.itertuples() if (row.dataset, row.frame_id) in part]
        frames = [read_frame(row.image_path) for row in chosen]
        groups = [row.group for row in chosen]
        for way, spoil in WAYS.items():
            verdicts = [judge(spoil(frame)).reason for frame in frames]
            share = bootstrap_interval([verdict is not None for verdict in verdicts], groups=groups)
            rows.append(
                {
                    "date": datetime.date.today().isoformat(), "data": folder.name, "part": options.part, "spoilt": way,
                    "n": share.n, "metric": "called unjudgeable", "value": round(share.value, 4),
                    "low": round(share.low, 4), "high": round(share.high, 4), "commit": commit(),
                }
            )  # fmt: skip
            counted = {verdict: verdicts.count(verdict) for verdict in set(verdicts)}
            print(folder.name, way, len(frames), round(share.value, 4), counted)
    add_rows(options.out, rows)
    print(f"{options.out}: {len(rows)} rows added")


if __name__ == "__main__":
    main()
