"""How long prompts, a step of propagation and the judgement of a still take; rows go to ``results/prompt-speed.csv``.

Medians over ``--times`` runs on a phantom frame. Run it while nothing else runs.

    python benchmarks/prompt_speed.py --threads 2
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from results import add_rows, processor

import polypseg
from polypseg.data import phantom
from polypseg.export import medsam
from polypseg.files import commit
from polypseg.inference.medsam import MedSam
from polypseg.inference.prompting import Click, grow, grow_in_box
from polypseg.inference.propagation import Propagation
from polypseg.inference.quality import judge

SIZES = ((1080, 1920), (2160, 3840))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("results/prompt-speed.csv"))
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)
    segmenter = polypseg.load(threads=options.threads)
    network = MedSam(medsam.make(), options.threads) if medsam.why_not() is None else None
    rows = []
    for height, width in SIZES:
        for name, work in works(segmenter, network, height, width).items():
            work()
            seconds = []
            for _ in range(options.times):
                began = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - began)
            rows.append(
                {
                    "date": datetime.date.today().isoformat(), "what": name, "width": width, "height": height,
                    "threads": options.threads, "n": options.times,
                    "median_ms": round(1000 * statistics.median(seconds), 1), "processor": processor(),
                    "commit": commit(),
                }
            )  # fmt: skip
            print(name, width, rows[-1]["median_ms"], "ms")
    add_rows(options.out, rows)


def works(
    segmenter: polypseg.Segmenter, network: MedSam | None, height: int, width: int
) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    pixels = cv2.resize(phantom.draw(3, 576, 720)[0], (width, height), interpolation=cv2.INTER_CUBIC)
    probability = segmenter.probability(pixels)
    y, x = np.unravel_index(int(probability.argmax()), probability.shape)
    click = Click((x + 0.5) * width / probability.shape[1], (y + 0.5) * height / probability.shape[0])
    mask = grow(probability, height, width, [click]).mask
    left, top, across, down = cv2.boundingRect(mask.astype(np.uint8))
    box = (left, top, left + across, top + down)
    moving = Propagation(pixels, probability, mask)
    found: dict[str, Callable[[], object]] = {
        "click, model": lambda: grow(probability, height, width, [click]),
        "box, model": lambda: grow_in_box(probability, height, width, box),
        "propagation, a step": lambda: moving.step(pixels, probability),
        "a still judged": lambda: judge(pixels),
    }
    if network is not None:
        encoded = network.encode(pixels)
        found["LiteMedSAM, a frame encoded"] = lambda: network.encode(pixels)
        found["LiteMedSAM, a box"] = lambda: network.segment(encoded, box)
    return found


if __name__ == "__main__":
    main()
