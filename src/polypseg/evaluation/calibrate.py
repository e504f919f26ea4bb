"""Temperature, threshold, post-processing and a guarantee, chosen on validation and written into the bundle."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from polypseg.bundle import ModelBundle
from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.data.cache import FrameCache
from polypseg.errors import UsageError
from polypseg.evaluation.scoring import choose_cleaning, choose_threshold
from polypseg.evaluation.selection import select
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.calibration import (
    CONFORMAL_THRESHOLDS,
    LogitHistogram,
    conformal_threshold,
    fit_temperature,
    miss_rates,
)
from polypseg.operating_point import OperatingPoint


def calibrate(
    bundle: str | Path,
    data: Sequence[str | Path],
    *,
    split: str = "val",
    split_file: str | Path | None = None,
    alpha: float | None = None,
    tta: str | None = None,
    progress: bool | None = None,
) -> ModelBundle:
    """Choose a bundle's temperature, threshold and post-processing on validation frames, and write them into it.

    The temperature comes first (it is applied to the logits, at the network's size, where it was fitted), then the
    threshold with the best mean Dice at original size, then what the smallest region is and whether holes are filled,
    where that gains more than chance. With ``alpha``, a second threshold is written beside it, at
    which at most that share of a polyp's pixels is missed in expectation (``metrics.calibration``): frames of the
    training or of the checkpoint's choice weaken that promise, so give frames of neither where there are some.

    Args:
        bundle: a bundle's or a run's folder; its ``metadata.json`` is rewritten.
        data: folders of data sets.
        split: ``val``, or another part of the split.
        split_file: a CSV; by default the split that the bundle was trained with.
        alpha: 0..1, exclusive; None for no such threshold.
        tta: the test-time augmentation that the bundle is to be run with from now on, as ``Segmenter`` takes it; None
            leaves the bundle's own.
        progress: show progress bars; by default where standard error is a terminal.

    Returns:
        The bundle as it is now.

    Raises:
        UsageError: ``alpha`` is not between 0 and 1, or there is no such ``tta``.
        PolypsegError: the bundle or the data stand in the way, or ``alpha`` cannot be kept on so few frames.
    """
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(f"--alpha {alpha:g}: must lie between 0 and 1")
    show = sys.stderr.isatty() if progress is None else progress
    opened = ModelBundle.load(bundle)
    opened.check_own()
    opened.check_single("its threshold was chosen on frames that its members had not seen; calibrate a single network")
    frames, provenance = select(read_all(data), split, split_file, opened)
    temperature = _temperature(Segmenter(opened, temperature=1.0, tta="none"), frames, show)
    segmenter = Segmenter(opened, temperature=temperature, tta=tta)
    conformal = None if alpha is None else _conformal(segmenter, frames, alpha, show)
    threshold, tried = choose_threshold(segmenter, frames, show)
    point, processed = choose_cleaning(segmenter, frames, OperatingPoint(threshold), show)
    return opened.update(
        temperature=temperature,
        operating_point=point,
        threshold_split=f"{provenance['split']['name']}, {split}",
        threshold_choice=tried,
        postprocessing_choice=processed,
        conformal=conformal,
        tta=segmenter.tta,
        metrics=None,  # training's were of another threshold; its test.json keeps them
    )


def _temperature(segmenter: Segmenter, frames: Catalog, progress: bool) -> float:
    histogram = LogitHistogram()
    cache = FrameCache(frames, segmenter.preprocessing, "none")
    for index in tqdm(range(len(frames)), "temperature", unit="frame", disable=not progress, leave=False):
        frame, mask = cache[index]
        histogram.add(segmenter.probability(frame), mask > 0)
    return round(fit_temperature(histogram), 4)


def _conformal(segmenter: Segmenter, frames: Catalog, alpha: float, progress: bool) -> dict[str, Any]:
    rates = []
    answers = segmenter.stream(frames.frame(index) for index in range(len(frames)))
    areas = np.zeros(len(CONFORMAL_THRESHOLDS))
    for index, answer in enumerate(tqdm(answers, "guarantee", len(frames), disable=not progress, leave=False)):
        truth = frames.mask(index)
        if not truth.any():
            continue  # nothing can be missed there; the promise is about frames with a polyp
        rates.append(miss_rates(answer.probability, truth, CONFORMAL_THRESHOLDS))
        ranks = np.searchsorted(CONFORMAL_THRESHOLDS, answer.probability.ravel(), side="right")
        areas += np.bincount(ranks, minlength=len(areas) + 1)[::-1].cumsum()[::-1][1:] / ranks.size
    found = conformal_threshold(np.array(rates), CONFORMAL_THRESHOLDS, alpha)
    position = int(np.flatnonzero(np.float32(found.threshold) == CONFORMAL_THRESHOLDS)[0])
    return {
        "alpha": found.alpha,
        "threshold": found.threshold,
        "missed_share": found.risk,
        "predicted_area": float(areas[position] / found.n),  # beside it: a threshold of 0 marks every pixel
        "n": found.n,
        "meaning": "on a new frame of the same kind, at most alpha of the polyp is missed in expectation",
    }
