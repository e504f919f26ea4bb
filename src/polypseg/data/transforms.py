"""The Albumentations pipelines: augmentation for training, resize and normalisation alone for evaluation.

A pipeline is called as ``pipeline(image=H×W×3 uint8, mask=H×W uint8 0/1)`` and returns the same keys at the
network's size: ``image`` float32 H×W×3, normalised, and ``mask`` uint8 0/1.
"""

from __future__ import annotations

import os
import random

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask PyPI for its version at import

import albumentations as A
import cv2
import numpy as np

from polypseg import renamed
from polypseg.bundle import Preprocessing
from polypseg.data.appearance import Glare, Screen
from polypseg.errors import UsageError

AUGMENTATIONS = ("none", "baseline", "strong", "stronger")


def evaluation_pipeline(preprocessing: Preprocessing) -> A.Compose:
    """Resize and normalise, nothing else; equals ``Preprocessing.apply``, which a test checks."""
    return A.Compose([_resize(preprocessing), _normalise(preprocessing)])


def training_pipeline(preprocessing: Preprocessing, augmentation: str) -> A.Compose:
    """The evaluation pipeline with an augmentation in its middle.

    Args:
        preprocessing: size and normalisation.
        augmentation: ``none``; ``baseline``, the baseline recipe's (flips, rotation to 35°, elastic, coarse dropout,
            brightness/contrast); ``strong``, ours, which also varies scale, right angles, colour, sharpness
            and compression, as cameras and processors of other hospitals do; ``stronger``, with wider hues, glare,
            borders and insets.

    Raises:
        UsageError: there is no augmentation of that name.
    """
    augmentation = renamed.value("augmentation", augmentation)
    if augmentation not in AUGMENTATIONS:
        raise UsageError(f"augmentation {augmentation!r} is unknown; choose one of {', '.join(AUGMENTATIONS)}")
    steps = {"none": _none, "baseline": _baseline, "strong": _strong, "stronger": _stronger}[augmentation](
        preprocessing
    )
    return A.Compose([_resize(preprocessing), *steps, _normalise(preprocessing)])


def seed_pipeline(pipeline: A.Compose, *numbers: int) -> None:
    """Let the pipeline's next call depend on these non-negative numbers alone.

    The transforms draw in turn from one generator. Albumentations' own ``set_random_seed`` gives each transform a
    generator of the same seed: they would all flip, rotate and brighten together, or none of them would.
    """
    sequence = np.random.SeedSequence(numbers)
    python = random.Random(int(sequence.generate_state(1, np.uint64)[0]))  # noqa: S311  (augmentation)
    pipeline.set_random_state(np.random.default_rng(sequence), python)


def _resize(preprocessing: Preprocessing) -> A.BasicTransform:
    return A.Resize(
        preprocessing.height,
        preprocessing.width,
        interpolation=preprocessing.cv2_interpolation,
        mask_interpolation=cv2.INTER_NEAREST_EXACT,
    )


def _normalise(preprocessing: Preprocessing) -> A.BasicTransform:
    return A.Normalize(mean=preprocessing.mean, std=preprocessing.std, max_pixel_value=255.0)


def _none(_: Preprocessing) -> list[A.BasicTransform]:
    return []


def _baseline(preprocessing: Preprocessing) -> list[A.BasicTransform]:
    side = min(preprocessing.height, preprocessing.width)
    return [
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
        A.Rotate(limit=35, p=0.5),
        A.ElasticTransform(alpha=0.4 * side, sigma=0.05 * side, p=0.3),
        A.CoarseDropout(num_holes_range=(1, 8), hole_height_range=(0.03, 0.125), hole_width_range=(0.03, 0.125), p=0.3),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
    ]


def _stronger(preprocessing: Preprocessing) -> list[A.BasicTransform]:
    hues = A.ColorJitter(brightness=(1.0, 1.0), contrast=(1.0, 1.0), saturation=(0.8, 1.2), hue=(-0.06, 0.06), p=0.4)
    return [*_strong(preprocessing), hues, Glare(p=0.3), Screen(p=0.4)]


def _strong(preprocessing: Preprocessing) -> list[A.BasicTransform]:
    side = min(preprocessing.height, preprocessing.width)
    return [
        A.SquareSymmetry(p=1.0) if preprocessing.height == preprocessing.width else A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.6, 1.5), translate_percent=(-0.12, 0.12), rotate=(-45, 45), shear=(-8, 8), p=0.8),
        # Distorts as an elastic transform does, without the Gaussian blur of a full field, its costly part.
        A.GridDistortion(num_steps=5, distort_limit=0.25, p=0.3),
        A.ColorJitter(brightness=(0.6, 1.5), contrast=(0.7, 1.4), saturation=(0.6, 1.4), hue=(-0.03, 0.03), p=0.8),
        A.RandomGamma(gamma_limit=(75, 135), p=0.2),
        A.OneOf(
            [
                A.GaussianBlur(sigma_limit=(0.3, 1.6), p=1.0),
                A.MotionBlur(blur_limit=(3, max(3, side // 36) | 1), p=1.0),
                A.ImageCompression(quality_range=(45, 90), p=1.0),
                A.GaussNoise(std_range=(0.01, 0.05), p=1.0),
            ],
            p=0.3,
        ),
        A.CoarseDropout(num_holes_range=(1, 6), hole_height_range=(0.05, 0.15), hole_width_range=(0.05, 0.15), p=0.2),
    ]
