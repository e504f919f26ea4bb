"""Time of the metrics of a frame, polypseg against the field's packages computing the same; both in one run, in turns.

polypseg's side is what ``polypseg evaluate`` does for each frame between inference and the table. The other side calls
the public functions of the packages: PySODMetrics (PraNet's family), MONAI (confusion, Dice, IoU, surface distances,
surface Dice, matched lesions), scikit-image (regions), torchmetrics (calibration), and for boundary IoU, which none of
them has, OpenCV as its authors did. Each of those functions prepares the masks anew; that no work is shared is a good
part of the difference. In their favour, the 8-bit maps that PySODMetrics wants are made beforehand; polypseg makes them
within its time.

The predictions are made from the truths: moved, shrunk or grown, smoothed, with noise of a network's grain. Frames
without a polyp are left out, for there the packages do not agree on what to answer. All numbers are compared before
anything is timed: distances as shares of the frame's diagonal, so that everything lies in 0..1, but counts.

    pip install --no-deps pysodmetrics monai && pip install scikit-image
    python benchmarks/evaluation.py --data ../shared/data/Kvasir-SEG
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import datetime
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from results import add_rows, processor
from scipy.special import expit
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.classification import binary_calibration_error

from polypseg.catalog import Catalog
from polypseg.data import phantom, read
from polypseg.evaluation.evaluate import _measure, _Sums
from polypseg.files import commit
from polypseg.metrics.boundary import BOUNDARY_WIDTH, TOLERANCES
from polypseg.metrics.lesions import IOU_THRESHOLDS, MIN_AREA
from polypseg.metrics.pranet import quantise
from polypseg.segmentation import Segmentation

try:
    import py_sod_metrics as sod
    from monai import metrics as monai
    from monai.metrics.panoptic_quality import compute_panoptic_quality
    from skimage.measure import label, regionprops
except ImportError as error:
    sys.exit(f"{error}: pip install --no-deps pysodmetrics monai && pip install scikit-image")

warnings.filterwarnings("ignore", category=FutureWarning)  # MONAI warns of its own calls
LARGEST_DIFFERENCE = 1e-6
PACKAGES = ("numpy", "opencv-python-headless", "torch", "torchmetrics", "pysodmetrics", "monai", "scikit-image")
PIXELS = {"precision": "precision", "recall": "sensitivity", "specificity": "specificity", "accuracy": "accuracy",
          "f1": "f1 score"}  # fmt: skip

PAIRED = [f"{threshold:g}" for threshold in IOU_THRESHOLDS]

Scores = dict[str, Any]  # numbers or vectors, by name


@dataclass(frozen=True)
class Frame:
    row: Any  # of the Catalog
    truth: NDArray[np.bool_]
    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]
    levels: NDArray[np.uint8]

    @classmethod
    def of(cls, catalog: Catalog, index: int) -> Frame:
        truth = catalog.mask(index)
        probability = predict(truth, np.random.default_rng(index))
        return cls(catalog.row(index), truth, probability, probability >= 0.5, quantise(probability))


def predict(truth: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """A probability map such as a network's: about right, sure of itself, uncertain and wavy at the edge."""
    height, width = truth.shape
    diagonal = math.hypot(height, width)
    size = 2 * round(rng.uniform(0, 0.01) * diagonal) + 1
    resized = (cv2.erode, cv2.dilate)[rng.integers(2)](truth.astype(np.float32), np.ones((size, size), np.uint8))
    right, down = rng.normal(0, 0.01 * diagonal, 2)
    shift = np.array([[1, 0, right], [0, 1, down]], np.float32)
    moved = cv2.warpAffine(resized, shift, (width, height))
    smooth = cv2.GaussianBlur(moved, (0, 0), 0.008 * diagonal)
    noise = cv2.resize(rng.normal(0, 1, (height // 8, width // 8)).astype(np.float32), (width, height))
    return expit(16 * (smooth - 0.5) + noise).astype(np.float32)


def ours(frame: Frame) -> tuple[Scores, _Sums]:
    sums = _Sums()
    return _measure(frame.row, Segmentation.from_probability(frame.probability, 0.5), frame.truth, sums), sums


def theirs(frame: Frame) -> Scores:
    prediction, truth = (torch.from_numpy(mask)[None, None] for mask in (frame.mask, frame.truth))
    return {
        "area": float(frame.truth.mean()),
        **_their_pranet_family(frame),
        **_their_pixels(prediction, truth),
        **_their_boundary(frame, prediction, truth),
        **_their_lesions(frame),
        **_their_calibration(frame),
    }


def _their_pranet_family(frame: Frame) -> Scores:
    handlers = {
        "dice": sod.DICEHandler(True, False),
        "iou": sod.IOUHandler(True, False),
        "precision": sod.PrecisionHandler(True, False),
        "recall": sod.RecallHandler(True, False),
        "adaptive_f": sod.FmeasureHandler(False, True, beta=0.3),
    }
    scorers = sod.FmeasureV2(handlers), sod.Smeasure(), sod.WeightedFmeasure(), sod.Emeasure(), sod.MAE()
    for scorer in scorers:
        scorer.step(frame.levels, frame.truth.view(np.uint8) * 255)
    overlap, s, w, e, mae = (scorer.get_results() for scorer in scorers)
    return {
        **{f"pranet_{name}": overlap[name]["dynamic"][::-1] for name in ("dice", "iou", "precision", "recall")},
        "pranet_e_measure": e["em"]["curve"][::-1],
        "pranet_s_measure": s["sm"],
        "pranet_weighted_f": w["wfm"],
        "pranet_adaptive_e": e["em"]["adp"],
        "pranet_adaptive_f": overlap["adaptive_f"]["adaptive"],
        "mae": mae["mae"],
        "mean_dice_256": overlap["dice"]["dynamic"].mean(),
    }


def _their_pixels(prediction: torch.Tensor, truth: torch.Tensor) -> Scores:
    counts = monai.get_confusion_matrix(prediction.view(torch.uint8), truth.view(torch.uint8))  # it adds them up
    tp, fp, _, fn = counts.flatten().tolist()
    return {
        **{name: float(monai.compute_confusion_matrix_metric(known, counts)) for name, known in PIXELS.items()},
        "f2": 5 * tp / (5 * tp + 4 * fn + fp),
        "dice": float(monai.compute_dice(prediction, truth)),
        "iou": float(monai.compute_iou(prediction, truth)),
    }


def _their_boundary(frame: Frame, prediction: torch.Tensor, truth: torch.Tensor) -> Scores:
    found: Scores = {}
    distances = {
        "hd": monai.compute_hausdorff_distance(prediction, truth, include_background=True),
        "hd95": monai.compute_hausdorff_distance(prediction, truth, include_background=True, percentile=95),
        "assd": monai.compute_average_surface_distance(prediction, truth, include_background=True, symmetric=True),
    }
    for name, value in distances.items():
        found[f"{name}_px"] = float(value)
        found[f"{name}_percent"] = 100 * float(value) / math.hypot(*frame.truth.shape)
    for tolerance in TOLERANCES:
        value = monai.compute_surface_dice(prediction, truth, [tolerance], include_background=True)
        found[f"nsd_{tolerance:g}px"] = float(value)
    width = max(1, round(BOUNDARY_WIDTH * math.hypot(*frame.truth.shape)))
    bands = []
    for mask in (frame.mask, frame.truth):
        padded = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        bands.append(mask & (cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1] == 0))
    found["boundary_iou"] = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    return found


def _their_lesions(frame: Frame) -> Scores:
    labels = []
    confidences: list[float] = []
    for mask in (frame.mask, frame.truth):
        regions = label(mask, connectivity=2)
        for region in regionprops(regions, intensity_image=frame.probability):
            if region.area < MIN_AREA:
                regions[region.slice][region.image] = 0
            elif mask is frame.mask:
                confidences.append(float(region.intensity_max))
        labels.append(torch.from_numpy(regions))
    predicted, true = labels
    counts = [
        compute_panoptic_quality(predicted, true, match_iou_threshold=threshold, output_confusion_matrix=True)[
            :3
        ].tolist()
        for threshold in IOU_THRESHOLDS
    ]
    return {
        "lesions_found": [tp for tp, _, _ in counts],
        "lesions_invented": [fp for _, fp, _ in counts],
        "lesion_confidences": sorted(confidences, reverse=True),
        "polyps": counts[-1][0] + counts[-1][2],
        "missed": counts[-1][2],
        "false_positives": counts[-1][1],
    }


def _their_calibration(frame: Frame) -> Scores:
    probability, truth = torch.from_numpy(frame.probability).flatten(), torch.from_numpy(frame.truth).flatten()
    return {
        # in float64: its float32 sums over a frame's pixels are off by 1e-4
        "ece": float(binary_calibration_error(probability.double(), truth.int(), n_bins=15)),
        "brier": float(mean_squared_error(probability, truth.float())),
    }


def differences(frame: Frame) -> dict[str, float]:
    """The largest difference of the two sides, by the metric's name."""
    row, sums = ours(frame)
    family, lesions = sums.pranet.mean(), sums.detections.scores(["frame"])
    pranet = ("dice", "iou", "precision", "recall", "e_measure", "s_measure", "weighted_f", "adaptive_e", "adaptive_f")
    known = {
        **row,
        **{f"pranet_{name}": getattr(family, name) for name in pranet},
        "lesions_found": [round(lesions.found[name].value * lesions.lesions) for name in PAIRED],
        "lesions_invented": [lesions.false_regions_per_frame[name].value for name in PAIRED],
        "lesion_confidences": sums.detections.froc(PAIRED[0]).confidence,
        "ece": sums.reliability.ece(),
        "brier": sums.reliability.brier(),
    }
    found = {}
    for name, value in theirs(frame).items():
        one, other = np.asarray(known[name], np.float64), np.asarray(value, np.float64)
        if one.shape != other.shape:
            found[name] = math.inf
            continue
        unit = {"px": math.hypot(*frame.truth.shape), "percent": 100}.get(name.rpartition("_")[2], 1)
        found[name] = float(np.abs(one - other).max(initial=0)) / unit
    return found


def seconds(measure: Callable[[Frame], Any], frame: Frame) -> float:
    start = time.perf_counter()
    measure(frame)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of a data set; phantom frames without one")
    parser.add_argument("--frames", type=int, default=100, help="frames of it, spread evenly")
    parser.add_argument("--rounds", type=int, default=5, help="times that each frame is measured by each side")
    parser.add_argument("--out", default="results/evaluation-speed.csv", help="CSV to which a row is added")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        data = Path(options.data) if options.data else Path(temporary) / "phantom"
        if not options.data:
            phantom.write(data, options.frames, height=530, width=620, empty_fraction=0)
        catalog = read(data)
        chosen = np.linspace(0, len(catalog) - 1, min(options.frames, len(catalog))).round().astype(int)
        every = [Frame.of(catalog, int(index)) for index in chosen]
        frames = [frame for frame in every if frame.truth.any() and frame.mask.any()]
    print(f"{len(frames)} frames, {len(every) - len(frames)} without a polyp or a prediction left out")

    largest: dict[str, float] = {}
    for frame in frames:
        for name, value in differences(frame).items():
            # a NaN is no difference of 0
            largest[name] = max(largest.get(name, 0.0), math.inf if math.isnan(value) else value)
    print("largest difference:")
    for name, value in largest.items():
        print(f"  {name:20} {value:.1e}{'' if value <= LARGEST_DIFFERENCE else '  TOO LARGE'}")
    if max(largest.values()) > LARGEST_DIFFERENCE:
        return 1

    rounds = []
    for number in range(options.rounds):
        spent = {ours: 0.0, theirs: 0.0}
        for position, frame in enumerate(frames):
            for side in (ours, theirs) if (number + position) % 2 else (theirs, ours):
                spent[side] += seconds(side, frame)
        rounds.append((1000 * spent[ours] / len(frames), 1000 * spent[theirs] / len(frames)))
        print(f"round {number + 1}: packages {rounds[-1][1]:.2f} ms a frame, polypseg {rounds[-1][0]:.2f} ms, "
              f"ratio {rounds[-1][1] / rounds[-1][0]:.2f}", flush=True)  # fmt: skip
    ratios = [other / own for own, other in rounds]
    row = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "data": data.name,
        "frames": len(frames),
        "megapixels": round(statistics.mean(frame.truth.size for frame in frames) / 1e6, 3),
        "rounds": len(rounds),
        "threads": torch.get_num_threads(),
        "packages_ms_per_frame": round(statistics.median(other for _, other in rounds), 2),
        "polypseg_ms_per_frame": round(statistics.median(own for own, _ in rounds), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "largest_difference": f"{max(largest.values()):.1e}",
        "load_average": round(os.getloadavg()[0], 2),
        "packages": " ".join(f"{package}-{version(package)}" for package in PACKAGES),
        "processor": processor(),
    }
    for key, entry in row.items():
        print(f"{key:22} {entry}")
    add_rows(options.out, [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
