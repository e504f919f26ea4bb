"""Temperature, operating point and a guarantee, chosen on validation and written into the bundle."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg import zoo
from polypseg.bundle import ModelBundle
from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.errors import UsageError
from polypseg.evaluation.choosing import Maps, check_objective, check_shows_polyp, choose_point
from polypseg.evaluation.seen import seen
from polypseg.evaluation.selection import select
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.calibration import (
    CONFORMAL_THRESHOLDS,
    TEMPERATURES,
    conformal_threshold,
    fit_temperature,
    miss_rates,
)

log = logging.getLogger("polypseg")
ENOUGH = 300  # frames, evenly spread, for the one number that a temperature is


def calibrate(
    bundle: str | Path,
    data: Sequence[str | Path],
    *,
    split: str = "val",
    split_file: str | Path | None = None,
    objective: str = "lesion_f1",
    max_false_per_frame: float | None = None,
    alpha: float | None = None,
    tta: str | None = None,
    allow_train_frames: bool = False,
    progress: bool | None = None,
) -> ModelBundle:
    """Choose a bundle's temperature and operating point on validation frames, and write them into it.

    The network sees every frame once. The temperature comes first: it divides the logits of every view, and is fitted
    to what that does to their mean, at the network's size. Then the operating point (``evaluation.choosing``): outlines
    by the Dice of the frames with a polyp, ``min_confidence`` by the objective on all frames. With ``alpha``, a second
    threshold is written beside it, at which at most that share of a polyp's pixels is missed in expectation
    (``metrics.calibration``): frames of the training or of the checkpoint's choice weaken that promise, so give frames
    of neither where there are some. What came out useless is warned of.

    Args:
        bundle: a bundle's or a run's folder; its ``metadata.json`` is rewritten.
        data: folders of data sets.
        split: ``val``, or another part of the split.
        split_file: a CSV; by default the split that the bundle was trained with.
        objective: what ``min_confidence`` is best for: ``lesion_f1`` or ``dice``.
        max_false_per_frame: in its place, the false regions a frame that are put up with, to find most lesions.
        alpha: 0..1, exclusive; None for no such threshold.
        tta: the test-time augmentation that the bundle is to be run with from now on, as ``Segmenter`` takes it; None
            leaves the bundle's own.
        allow_train_frames: choose on frames that the bundle was trained or tested on, too; ``threshold_split`` says so.
        progress: show progress bars; by default where standard error is a terminal.

    Returns:
        The bundle as it is now.

    Raises:
        UsageError: ``alpha`` is not between 0 and 1, or there is no such ``objective`` or ``tta``.
        PolypsegError: the bundle or the data stand in the way, a frame is one that the bundle was trained or tested
            on, no frame shows a polyp, or ``alpha`` or ``max_false_per_frame`` cannot be kept.
    """
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(f"--alpha {alpha:g}: must lie between 0 and 1")
    check_objective(objective, max_false_per_frame)
    show = sys.stderr.isatty() if progress is None else progress
    opened = zoo.open(bundle)
    opened.check_own()
    opened.check_single("its threshold was chosen on frames that its members had not seen; calibrate a single network")
    whole = read_all(data)
    frames, provenance = select(whole, split, split_file, opened)
    known = seen(opened, frames, whole, split_file)
    if not allow_train_frames:
        known.refuse(("train", "test"), "calibrated on", "choose on others, as by --split val")
    chosen_on = "; ".join([f"{provenance['split']['name']}, {split}", *known.warnings(("train", "test"))])
    check_shows_polyp(frames)  # before the work
    segmenter = Segmenter(opened, tta=tta)
    temperature, maps = _tempered(segmenter, frames, show)
    conformal = None if alpha is None else _conformal(maps, alpha, show)
    chosen = choose_point(maps, objective, max_false_per_frame, show)
    for warning in _warnings(temperature, chosen["operating_point_choice"], conformal):
        log.warning("%s: %s", opened.folder, warning)
    return opened.update(
        **chosen,
        temperature=temperature,
        threshold_split=chosen_on,
        conformal=conformal,
        tta=segmenter.tta,
        metrics=None,  # training's were of another operating point; its test.json keeps them
    )


def _tempered(segmenter: Segmenter, frames: Catalog, progress: bool) -> tuple[float, Maps]:
    """The temperature, and the maps with it."""
    maps, kept = Maps(), []
    coming = tqdm(
        segmenter.views(maps.frames(frames)), "predicting", len(frames), unit="frame", disable=not progress,
        leave=False,
    )  # fmt: skip
    for views in coming:
        kept.append(tuple([one.astype(np.float16) for one in of_size] for of_size in views))
    some = range(0, len(kept), 1 + len(kept) // ENOUGH)
    truths = {index: segmenter.preprocessing.resize_mask(maps.truth(index)) > 0 for index in some}

    def predict(temperature: float) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        return ((segmenter.mean(kept[index], temperature), truth) for index, truth in truths.items())

    temperature = round(fit_temperature(predict), 4)
    for views in kept:
        maps.add(segmenter.mean(views, temperature))
    return temperature, maps


def _conformal(maps: Maps, alpha: float, progress: bool) -> dict[str, Any]:
    rates = []
    areas = np.zeros(len(CONFORMAL_THRESHOLDS))
    # Nothing can be missed where there is nothing; the promise is about frames with a polyp.
    for index in tqdm(maps.shown, "guarantee", disable=not progress, leave=False):
        probability = maps.enlarged(index).whole
        rates.append(miss_rates(probability, maps.truth(index), CONFORMAL_THRESHOLDS))
        ranks = np.searchsorted(CONFORMAL_THRESHOLDS, probability.ravel(), side="right")
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


def _warnings(temperature: float, choice: dict[str, Any], conformal: dict[str, Any] | None) -> list[str]:
    """What came out of a model, or of frames, that nobody should rely on."""
    said = []
    if not 2 * TEMPERATURES[0] < temperature < 0.95 * TEMPERATURES[1]:
        said.append(
            f"the temperature {temperature:g} is at the limit of what is searched ({TEMPERATURES[0]:g} to "
            f"{TEMPERATURES[1]:g}): the probabilities say nothing of these frames, or the frames are too few"
        )
    if choice["marked"] > 0.5:
        said.append(f"the threshold marks {choice['marked']:.1%} of the pixels of a frame: the model is of no use here")
    if conformal is not None and conformal["predicted_area"] > 0.5:
        said.append(
            f"the guarantee's threshold marks {conformal['predicted_area']:.1%} of a frame with a polyp: it promises "
            "nothing of use"
        )
    if choice["chosen"]["found"] < 0.5:
        said.append(f"at the operating point only {choice['chosen']['found']:.1%} of the lesions are found")
    if not choice["polyp_free"]:
        said.append("none of these frames is without a polyp: what becomes of such frames was not measured")
    return said


def describe(bundle: ModelBundle) -> str:
    """What ``calibrate`` chose and what it found by it, as lines of text."""
    point, choice = bundle.operating_point, bundle.metadata["operating_point_choice"]
    lines = [
        f"chosen on {bundle.metadata['threshold_split']}",
        f"{bundle.folder}: temperature {bundle.temperature:g}, threshold {point.threshold:g}, smallest region "
        f"{point.min_area:g} of the frame, holes {'filled' if point.fill_holes else 'kept'}, least {point.confidence} "
        f"of a polyp {point.min_confidence:.4g}",
    ]
    free = f"{choice['polyp_free']} of them polyp-free" if choice["polyp_free"] else "none of them polyp-free"
    for name, one in (
        (f"on these {choice['n']} frames, {free}", choice["chosen"]),
        ("without a least confidence", choice["before"]),
    ):
        marked = f", {one['polyp_free_marked']:.3f} of the polyp-free frames marked" if choice["polyp_free"] else ""
        lines.append(
            f"{name}: {one['found']:.3f} of {choice['lesions']} lesions found, {one['right']:.3f} of the regions right "
            f"(IoU 0.3), {one['false_per_frame']:.3f} false regions a frame{marked}, Dice {one['dice']:.4f}"
        )
    promise = bundle.metadata["conformal"]
    if promise:
        lines.append(
            f"guarantee: at threshold {promise['threshold']:.4f} at most {promise['alpha']:g} of a polyp is missed in "
            f"expectation; there {promise['missed_share']:.4f} of it is missed and {promise['predicted_area']:.1%} of "
            f"the frame is marked (n = {promise['n']})"
        )
    return "\n".join(lines)
