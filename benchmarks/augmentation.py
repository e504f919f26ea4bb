"""Augmentation by Albumentations, by torchvision's transforms v2 and by Kornia: how long a frame takes, and how alike
single steps are.

    python benchmarks/augmentation.py --data data/Kvasir-SEG [--frames 200] [--rounds 3]

Each way does what the recipe ``baseline`` asks for, at 256×256, a frame with its mask at a time on one thread, as a
worker that loads frames does. They take turns, so that whatever else the machine does meets all. Of the steps that can
be given the same numbers, the mean difference of pixels (0..255) and the Dice of masks say how alike they are. Kornia
is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from polypseg.bundle import Preprocessing
from polypseg.data import read
from polypseg.data.transforms import training_pipeline

SIZE, ANGLE, FACTOR = 256, 20.0, 1.15
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Pair = tuple[np.ndarray, np.ndarray]  # a frame H×W×3 uint8 and its mask H×W uint8, 0/1


def albumentations_way() -> Callable[[Pair], Any]:
    pipeline = training_pipeline(Preprocessing(SIZE, SIZE, MEAN, STD, "linear"), "baseline")
    return lambda pair: pipeline(image=pair[0], mask=pair[1])


def torchvision_way() -> Callable[[Pair], Any]:
    steps = v2.Compose(
        [
            v2.Resize((SIZE, SIZE), antialias=False),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.5),
            v2.RandomApply([v2.RandomRotation(35, InterpolationMode.BILINEAR)], 0.5),
            v2.RandomApply([v2.ElasticTransform(alpha=0.4 * SIZE, sigma=0.05 * SIZE)], 0.3),
            v2.RandomApply([v2.RandomErasing(1.0, (0.002, 0.015)) for _ in range(4)], 0.3),
            v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2)], 0.5),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def run(pair: Pair) -> Any:
        image = tv_tensors.Image(torch.from_numpy(pair[0]).permute(2, 0, 1))
        return steps(image, tv_tensors.Mask(torch.from_numpy(pair[1])[None]))

    return run


def kornia_way() -> Callable[[Pair], Any] | None:
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    steps = K.AugmentationSequential(
        K.Resize((SIZE, SIZE)),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomRotation(35.0, p=0.5),
        K.RandomElasticTransform(kernel_size=(63, 63), sigma=(12.8, 12.8), alpha=(0.8, 0.8), p=0.3),
        *(K.RandomErasing(scale=(0.002, 0.015), p=0.3) for _ in range(4)),
        K.ColorJitter(brightness=0.2, contrast=0.2, p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input", "mask"],
    )

    def run(pair: Pair) -> Any:
        return steps(
            torch.from_numpy(pair[0]).permute(2, 0, 1)[None] / 255, torch.from_numpy(pair[1])[None, None].float()
        )

    return run


def alike(pairs: list[Pair]) -> dict[str, tuple[float, float]]:
    """Of each step with given numbers: mean difference of pixels, and mean Dice of the masks."""
    turn = A.Affine(rotate=(ANGLE, ANGLE), p=1.0)
    steps: dict[str, tuple[Callable[[Pair], Pair], Callable[[Any, Any], tuple[Any, Any]]]] = {
        "resize": (
            lambda pair: (cv2.resize(pair[0], (SIZE, SIZE)), cv2.resize(pair[1], (SIZE, SIZE), interpolation=6)),
            lambda image, mask: (
                v2.functional.resize(image, [SIZE, SIZE], antialias=False),
                v2.functional.resize(mask, [SIZE, SIZE], InterpolationMode.NEAREST_EXACT),
            ),
        ),
        f"rotation by {ANGLE:g} degrees": (
            lambda pair: (made := turn(image=pair[0], mask=pair[1])) and (made["image"], made["mask"]),
            lambda image, mask: (
                v2.functional.rotate(image, ANGLE, InterpolationMode.BILINEAR),
                v2.functional.rotate(mask, ANGLE),
            ),
        ),
        f"brightness times {FACTOR:g}": (
            lambda pair: (np.clip(np.rint(pair[0] * FACTOR), 0, 255).astype(np.uint8), pair[1]),
            lambda image, mask: (v2.functional.adjust_brightness(image, FACTOR), mask),
        ),
    }
    found = {}
    for name, (ours, theirs) in steps.items():
        differences, dices = [], []
        for frame, mask in pairs:
            one = ours((frame, mask))
            image, other = theirs(torch.from_numpy(frame).permute(2, 0, 1), torch.from_numpy(mask)[None])
            differences.append(np.abs(one[0].astype(float) - image.permute(1, 2, 0).numpy()).mean())
            both = other[0].numpy() > 0
            dices.append(2 * (both & (one[1] > 0)).sum() / max(1, both.sum() + (one[1] > 0).sum()))
        found[name] = float(np.mean(differences)), float(np.mean(dices))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    catalog = read(options.data)
    count = min(options.frames, len(catalog))
    pairs = [(catalog.frame(index), catalog.mask(index).astype(np.uint8)) for index in range(count)]
    ways = {"Albumentations": albumentations_way(), "torchvision v2": torchvision_way(), "Kornia": kornia_way()}
    times: dict[str, list[float]] = {name: [] for name, way in ways.items() if way}
    for way in ways.values():
        if way:
            way(pairs[0])  # what is made once
    for _ in range(options.rounds):
        for name in times:
            begun = time.process_time()
            for pair in pairs:
                ways[name](pair)  # type: ignore[misc]
            times[name].append((time.process_time() - begun) / count * 1000)
    first = statistics.median(times["Albumentations"])
    for name, taken in times.items():
        took = statistics.median(taken)
        print(f"{name:16} {took:6.1f} ms of CPU a frame, {took / first:5.2f} times as much")
    for name, (difference, dice) in alike(pairs[:50]).items():
        print(f"{name:24} pixels differ by {difference:.2f} of 255, masks agree at Dice {dice:.4f}")


if __name__ == "__main__":
    main()
