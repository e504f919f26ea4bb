"""Every number of a report, recomputed from the masks and maps by other means."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.stats import bootstrap
from sklearn import metrics as sk

from polypseg.catalog import Catalog
from polypseg.data import read
from polypseg.errors import PolypsegError
from polypseg.evaluation import evaluate as evaluation
from polypseg.evaluation.evaluate import PIXEL_DEFINITIONS, Report, evaluate
from polypseg.evaluation.report import write_report
from polypseg.evaluation.scoring import DEFINITIONS
from polypseg.metrics import detection
from polypseg.metrics.statistics import Interval
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Segmentation

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]
SHAPE = (60, 80)
THRESHOLD = 0.5


class Maps:
    """Predicts with given maps, as a Predictor does; made anew at each asking, so that it contains none itself."""

    name = "maps"
    threshold = THRESHOLD

    def __init__(self, maps: Any, point: Any = THRESHOLD) -> None:
        self.maps, self.point = maps, point

    def predictions(self, catalog: Catalog) -> Iterator[Segmentation]:
        for row in catalog:
            yield Segmentation.from_probability(self.maps(row.frame_id), self.point)

    def provenance(self) -> dict[str, Any]:
        return {"predictions": self.name}


def ellipse(*ellipses: tuple[int, int, int, int], shape: tuple[int, int] = SHAPE) -> Mask:
    """A mask of ellipses (centre x, centre y, half width, half height)."""
    mask = np.zeros(shape, np.uint8)
    for x, y, width, height in ellipses:
        cv2.ellipse(mask, (x, y), (width, height), 0, 0, 360, 1, -1)
    return mask.astype(bool)


# frame: truth, and what the map is a blurred and noisy copy of
CASES = {
    "right": (ellipse((30, 30, 15, 10)), ellipse((31, 30, 15, 10))),
    "shifted": (ellipse((30, 30, 15, 10)), ellipse((40, 34, 15, 10))),
    "missed": (ellipse((60, 40, 8, 8)), ellipse()),
    "elsewhere": (ellipse((60, 40, 8, 8)), ellipse((15, 15, 8, 8))),
    "none": (ellipse(), ellipse()),
    "invented": (ellipse(), ellipse((40, 30, 10, 6), (10, 50, 6, 6))),
    "two": (ellipse((20, 20, 9, 9), (60, 40, 7, 9)), ellipse((20, 20, 9, 9), (60, 43, 7, 9))),
    "one of two": (ellipse((20, 20, 9, 9), (60, 40, 7, 9)), ellipse((21, 20, 9, 10))),
    "in pieces": (ellipse((40, 30, 20, 8)), ellipse((27, 30, 8, 8), (53, 30, 8, 8))),
    "at the border": (ellipse((0, 0, 30, 20)), ellipse((0, 3, 30, 22))),
    "large": (ellipse((40, 30, 38, 28)), ellipse((40, 30, 34, 28))),
    "small": (ellipse((40, 30, 4, 3)), ellipse((40, 31, 5, 4))),
}
GROUPS = ["s1", "s1", "s1", "s2", "s2", "s3", "s4", "s4", "s5", "s6", "s6", "s7"]


def soft(name: str, copied: Mask) -> Map:
    rng = np.random.default_rng(sorted(CASES).index(name))
    noise = cv2.GaussianBlur(rng.normal(0, 0.6, copied.shape), (0, 0), 2)
    return np.clip(cv2.GaussianBlur(copied * 0.9, (0, 0), 1.2) + 0.05 + noise * 0.3, 0, 1).astype(np.float32)


TRUTHS = {name: truth for name, (truth, _) in CASES.items()}
MAPS = {name: soft(name, copied) for name, (_, copied) in CASES.items()}
MAPS["none"][:] = np.clip(MAPS["none"], 0, 0.49)
PREDICTIONS = {name: probability >= np.float32(THRESHOLD) for name, probability in MAPS.items()}
SHOWN = [name for name, truth in TRUTHS.items() if truth.any()]  # frames with a polyp
FREE = [name for name in CASES if name not in SHOWN]


def write_data(folder: Path, masks: dict[str, Mask]) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for name, mask in masks.items():
        grey = (60 + 120 * mask).astype(np.uint8)
        Image.fromarray(np.dstack([grey] * 3)).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    table = read(write_data(tmp_path_factory.mktemp("data") / "clinic", TRUTHS)).frames
    order = [list(CASES).index(name) for name in table["frame_id"]]
    table = table.assign(group=[GROUPS[position] for position in order])
    table["dataset"] = ["clinic" if position % 3 else "ward" for position in order]
    table["centre"] = ["C1" if position % 2 else "" for position in order]
    return Catalog(table)


class AtNetworkSize:
    """Gathers nothing; counts the frames."""

    frames = 0

    def add(self, prediction: Segmentation, truth: Mask) -> None:
        self.frames += 1

    def summary(self) -> dict[str, float | None]:
        return dict.fromkeys(("dice_network_size", "dice_batch", "loss"), 0.5)


@pytest.fixture(scope="module")
def report(frames: Catalog) -> Report:
    network_size: Any = AtNetworkSize()
    return evaluate(
        Maps(MAPS.__getitem__), frames, network_size=network_size, provenance={"split": "x"}, progress=False
    )


def by_frame(report: Report, column: str) -> dict[str, Any]:
    return dict(zip(report.per_image["frame_id"], report.per_image[column], strict=True))


def strict(path: Path) -> Any:
    """A JSON file without NaN and infinity, which are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} contains {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# --- pixels ---


def scored(name: str) -> dict[str, float]:
    """scikit-learn's scores; 0 where nothing was predicted."""
    truth, prediction = TRUTHS[name].ravel(), PREDICTIONS[name].ravel()
    rule: Any = {"zero_division": 0.0}
    return {
        "dice": sk.f1_score(truth, prediction, **rule),
        "iou": sk.jaccard_score(truth, prediction, **rule),
        "precision": sk.precision_score(truth, prediction, **rule),
        "recall": sk.recall_score(truth, prediction, **rule),
        "specificity": sk.recall_score(truth, prediction, pos_label=False, **rule),
        "f1": sk.f1_score(truth, prediction, **rule),
        "f2": sk.fbeta_score(truth, prediction, beta=2, **rule),
        "accuracy": sk.accuracy_score(truth, prediction),
    }


def test_the_cases_are_what_they_are_called() -> None:
    assert not PREDICTIONS["none"].any() and not PREDICTIONS["missed"].any() and PREDICTIONS["invented"].any()
    assert 0 < scored("shifted")["dice"] < 0.8 and scored("elsewhere")["dice"] == 0 and scored("right")["dice"] > 0.9


def test_headline_and_pixels_through_scikit_learn(report: Report) -> None:
    expected = pd.DataFrame({name: scored(name) for name in SHOWN}).T
    for name in ("dice", "iou", *PIXEL_DEFINITIONS):
        found = by_frame(report, name)
        assert all(np.isnan(found.pop(free)) for free in FREE)  # of frames without a polyp there is no Dice
        assert found == pytest.approx(expected[name].to_dict(), abs=1e-12), name
    for name, section in (
        *((name, "headline") for name in ("dice", "iou")),
        *((n, "pixels") for n in PIXEL_DEFINITIONS),
    ):
        entry = report.numbers[section][name]
        assert entry["mean"] == pytest.approx(expected[name].mean(), abs=1e-12), name
        assert entry["median"] == pytest.approx(expected[name].median(), abs=1e-12), name
        assert entry["n"] == len(SHOWN) == 10 and report.numbers["n"] == len(CASES) == 12
    pooled = [np.concatenate([masks[name].ravel() for name in CASES]) for masks in (TRUTHS, PREDICTIONS)]
    definitions = report.numbers["definitions"]
    assert definitions["dice_global"]["mean"] == pytest.approx(sk.f1_score(*pooled), abs=1e-12)
    assert definitions["iou_global"]["mean"] == pytest.approx(sk.jaccard_score(*pooled), abs=1e-12)
    assert definitions["dice"] == report.numbers["headline"]["dice"]
    assert by_frame(report, "area") == {name: mask.mean() for name, mask in TRUTHS.items()}


def test_every_definition_has_its_words(report: Report) -> None:
    for name, entry in report.numbers["definitions"].items():
        assert len(entry["definition"]) > 10, name
        assert isinstance(entry["mean"], float), name
    for name in ("dice_network_size", "dice_batch", "loss"):
        assert report.numbers["definitions"][name] == {"mean": 0.5, "definition": DEFINITIONS[name]}
    texts = [entry["definition"] for entry in report.numbers["definitions"].values()]
    assert len(set(texts)) == len(texts)


# --- PraNet's family ---


def eight_bits(probability: Map) -> NDArray[np.uint8]:
    low, high = probability.min(), probability.max()
    return np.rint((probability - low) / (high - low) * 255).astype(np.uint8)


@pytest.mark.filterwarnings("ignore")
def test_pranets_family_through_pysodmetrics(report: Report) -> None:
    sod = pytest.importorskip("py_sod_metrics")
    overlap = sod.FmeasureV2(
        {
            "dice": sod.DICEHandler(True, False),
            "iou": sod.IOUHandler(True, False),
            "f": sod.FmeasureHandler(False, True, beta=0.3),
        }
    )
    s, w, e, mae = sod.Smeasure(), sod.WeightedFmeasure(), sod.Emeasure(), sod.MAE()
    for name in SHOWN:
        for scorer in (overlap, s, w, e, mae):
            scorer.step(eight_bits(MAPS[name]), TRUTHS[name].astype(np.uint8) * 255)
    curves, em = overlap.get_results(), e.get_results()["em"]
    expected = {
        "meanDic": curves["dice"]["dynamic"].mean(),
        "maxDic": curves["dice"]["dynamic"].max(),
        "meanIoU": curves["iou"]["dynamic"].mean(),
        "maxIoU": curves["iou"]["dynamic"].max(),
        "Sm": s.get_results()["sm"],
        "wFm": w.get_results()["wfm"],
        "meanEm": em["curve"].mean(),
        "maxEm": em["curve"].max(),
        "adpEm": em["adp"],
        "adpFm": curves["f"]["adaptive"],
        "MAE": mae.get_results()["mae"],
    }
    found = {name: report.numbers["definitions"][name]["mean"] for name in expected}
    assert found == pytest.approx(expected, abs=1e-6)
    assert report.per_image["mean_dice_256"].mean() == pytest.approx(expected["meanDic"], abs=1e-6)
    assert report.per_image["mae"].mean() == pytest.approx(expected["MAE"], abs=1e-6)


# --- boundary ---


@pytest.mark.slow
def test_boundary_through_monai(report: Report) -> None:
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    diagonal = float(np.hypot(*SHAPE))
    for name in SHOWN:
        truth, prediction = TRUTHS[name], PREDICTIONS[name]
        row = report.per_image.set_index("frame_id").loc[name]
        if truth.any() and prediction.any():
            pair = [torch.from_numpy(mask[None, None]) for mask in (prediction, truth)]
            hd95 = float(monai.compute_hausdorff_distance(*pair, percentile=95))
            assd = float(monai.compute_average_surface_distance(*pair, symmetric=True))
            nsd = [float(monai.compute_surface_dice(*pair, class_thresholds=[size])) for size in (2, 5, 10)]
        else:  # the rule of metrics.boundary; MONAI has no number
            agree = truth.any() == prediction.any()
            hd95 = assd = 0.0 if agree else diagonal
            nsd = [float(agree)] * 3
        assert row["hd95_px"] == pytest.approx(hd95, abs=1e-5), name
        assert row["assd_px"] == pytest.approx(assd, abs=1e-5), name
        assert list(row[["nsd_2px", "nsd_5px", "nsd_10px"]]) == pytest.approx(nsd, abs=1e-6), name
        assert row["hd95_percent"] == pytest.approx(100 * hd95 / diagonal, abs=1e-5), name
    boundary = report.numbers["boundary"]
    assert boundary.keys() == {
        "hd95_px", "hd95_percent", "assd_px", "assd_percent", "nsd_2px", "nsd_5px", "nsd_10px", "boundary_iou",
    }  # fmt: skip
    for name, entry in boundary.items():
        assert entry["mean"] == pytest.approx(report.per_image[name].mean(), abs=1e-12)


# --- lesions ---


def regions(mask: Mask) -> list[Mask]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return [labels == label for label in range(1, count + 1) if (labels == label).sum() >= 10]


def most_pairs(truths: list[Mask], predictions: list[Mask], threshold: float) -> int:
    """The number of pairs of the best one-to-one pairing, by trying all."""

    def fits(one: Mask, other: Mask | None) -> bool:
        return other is not None and (one & other).sum() / (one | other).sum() >= threshold

    padded = [*predictions, *[None] * len(truths)]
    return max(
        sum(fits(truth, chosen) for truth, chosen in zip(truths, order, strict=True))
        for order in itertools.permutations(padded, len(truths))
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_lesions_by_trying_all_pairings(report: Report, threshold: float) -> None:
    truths = {name: regions(mask) for name, mask in TRUTHS.items()}
    predictions = {name: regions(mask) for name, mask in PREDICTIONS.items()}
    found = {name: most_pairs(truths[name], predictions[name], threshold) for name in CASES}
    lesions, predicted = (sum(map(len, one.values())) for one in (truths, predictions))
    total = sum(found.values())
    numbers = report.numbers["lesions"]
    assert (numbers["lesions"], numbers["predicted"]) == (lesions, predicted) == (12, predicted)
    entry = numbers["at_iou"][f"{threshold:g}"]
    assert entry["recall"] == pytest.approx(total / lesions)
    assert entry["precision"] == pytest.approx(total / predicted)
    assert entry["false_positives_per_frame"] == pytest.approx((predicted - total) / len(CASES))
    assert 0 < total < min(lesions, predicted)
    assert numbers["frames_without_polyp"] == 2 and numbers["specificity_on_frames_without_polyp"] == 0.5
    assert by_frame(report, "polyps") == {name: len(one) for name, one in truths.items()}
    if threshold == 0.5:
        assert by_frame(report, "missed") == {name: len(truths[name]) - found[name] for name in CASES}
        assert by_frame(report, "false_positives") == {name: len(predictions[name]) - found[name] for name in CASES}
    detected = report.numbers["detection"]
    assert (detected["lesions"], detected["predicted"]) == (lesions, predicted)
    values = {key: one["mean"] for key, one in detected[f"{threshold:g}"].items()}
    assert values == pytest.approx(
        {
            "found": total / lesions, "right": total / predicted, "f1": 2 * total / (lesions + predicted),
            "false_regions_per_frame": (predicted - total) / len(CASES),
        }
    )  # fmt: skip

    # the FROC: the same of those predicted regions alone whose peak is at least so high
    confidences = {name: [MAPS[name][region].max() for region in predictions[name]] for name in CASES}
    curve = report.numbers["froc"]["curves"][f"{threshold:g}"]
    levels = sorted({value for one in confidences.values() for value in one}, reverse=True)
    assert curve["confidence"] == pytest.approx(levels)
    for position, level in enumerate(levels):
        kept = {
            name: [r for r, value in zip(predictions[name], confidences[name], strict=True) if value >= level]
            for name in CASES
        }
        pairs = sum(most_pairs(truths[name], kept[name], threshold) for name in CASES)
        alarms = sum(map(len, kept.values())) - pairs
        assert curve["sensitivity"][position] == pytest.approx(pairs / lesions)
        assert curve["false_regions_per_frame"][position] == pytest.approx(alarms / len(CASES))
    for rate, one in report.numbers["froc"]["sensitivity_at"][f"{threshold:g}"].items():
        points = zip(curve["false_regions_per_frame"], curve["sensitivity"], strict=True)
        assert one["mean"] == pytest.approx(max((s for f, s in points if f <= float(rate)), default=0))


def test_any_overlap_by_looking_at_every_pair_of_regions(report: Report) -> None:
    found = right = lesions = predicted = 0
    for name in CASES:
        truths, predictions = regions(TRUTHS[name]), regions(PREDICTIONS[name])
        lesions, predicted = lesions + len(truths), predicted + len(predictions)
        found += sum(any((one & other).any() for other in predictions) for one in truths)
        right += sum(any((one & other).any() for other in truths) for one in predictions)
    assert lesions > found and found < right + 1 < predicted + 1  # "in pieces" has two right regions on one lesion
    recall, precision = found / lesions, right / predicted
    values = {key: one["mean"] for key, one in report.numbers["detection"]["any"].items()}
    assert values == pytest.approx(
        {
            "found": recall, "right": precision, "f1": 2 * recall * precision / (recall + precision),
            "false_regions_per_frame": (predicted - right) / len(CASES),
        }
    )  # fmt: skip


def test_polyp_free_frames_are_told_apart(report: Report) -> None:
    free = report.numbers["polyp_free"]
    assert (free["frames"], free["marked_frames"]) == (2, 1)
    assert free["marked"] == {"mean": 0.5, "low": 0, "high": 1}  # two frames say next to nothing
    assert free["false_regions_per_frame"]["mean"] == len(regions(PREDICTIONS["invented"])) / 2
    table = report.per_image.set_index("frame_id")
    boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in map(np.nonzero, regions(PREDICTIONS["invented"]))]
    assert sorted(json.loads(table["false_boxes"]["invented"])) == sorted(boxes)
    assert json.loads(table["false_boxes"]["none"]) == json.loads(table["false_boxes"]["shifted"]) == []
    assert table["false_peak"]["invented"] == MAPS["invented"].max() == table["peak"]["invented"]
    assert len(json.loads(table["false_boxes"]["elsewhere"])) == 1


def test_the_frames_roc_is_scikit_learns(report: Report) -> None:
    peaks = by_frame(report, "peak")
    for name in CASES:
        highest = max((MAPS[name][region].max() for region in regions(PREDICTIONS[name])), default=MAPS[name].max())
        assert peaks[name] == min(highest, 1)
    scores, labels = [peaks[name] for name in CASES], [name in SHOWN for name in CASES]
    roc = report.numbers["frames_roc"]
    assert roc["auc"]["mean"] == pytest.approx(sk.roc_auc_score(labels, scores))
    alarms, sensitivity, score = sk.roc_curve(labels, scores, drop_intermediate=False)
    assert roc["curve"]["score"] == pytest.approx(score[1:])
    assert roc["curve"]["false_alarms"] == pytest.approx(alarms[1:])
    assert roc["curve"]["sensitivity"] == pytest.approx(sensitivity[1:])
    for specificity, one in roc["sensitivity_at_specificity"].items():
        assert one["mean"] == pytest.approx(max(sensitivity[1 - alarms >= float(specificity)]))


def test_the_curves_go_down_below_the_least_confidence(frames: Catalog, report: Report) -> None:
    """A floor that takes all regions out leaves FROC and ROC as they were, and nothing found."""
    silent = evaluate(Maps(lambda name: MAPS[name] * 0.999, OperatingPoint(0.4995, 1.0)), frames, progress=False)
    numbers = silent.numbers
    assert numbers["detection"]["predicted"] == 0 and numbers["detection"]["any"]["found"]["mean"] == 0
    assert numbers["detection"]["any"]["f1"]["mean"] == 0 and numbers["detection"]["any"]["right"] is None
    marked = numbers["polyp_free"]["marked"]
    assert marked["mean"] == marked["low"] == 0 < marked["high"] < 1  # two frames make nothing certain
    for name, curve in numbers["froc"]["curves"].items():
        for key in ("sensitivity", "false_regions_per_frame"):
            assert curve[key] == report.numbers["froc"]["curves"][name][key]
    assert numbers["frames_roc"]["auc"] == report.numbers["frames_roc"]["auc"]


def test_detection_by_data_set_centre_and_size(frames: Catalog, report: Report) -> None:
    strata = {(one["by"], one["stratum"]): one for one in report.numbers["detection"]["strata"]}
    assert {by for by, _ in strata} == {"data set", "centre", "lesion size"}
    table = report.per_image
    for by, column, name in (("data set", "dataset", "ward"), ("centre", "centre", "C1")):
        rows = (table[column] == name).to_numpy()
        alone = evaluate(Maps(MAPS.__getitem__), Catalog(frames.frames[rows].reset_index(drop=True)), progress=False)
        expected, found = alone.numbers, strata[by, name]
        for key in ("lesions", "predicted", "any", "0.3", "0.5"):
            assert found[key] == expected["detection"][key]
        assert found["polyp_free"].items() <= expected["polyp_free"].items()
        assert found["froc"] == expected["froc"]["sensitivity_at"]
        assert found["frames_roc"]["auc"] == expected["frames_roc"]["auc"]
    sized = {stratum: one for (by, stratum), one in strata.items() if by == "lesion size"}
    for key in ("lesions", "predicted"):
        assert sum(one[key] for one in sized.values()) == report.numbers["detection"][key]
    large = [r for name in CASES for r in regions(TRUTHS[name]) if r.mean() >= 0.15]
    assert sized["over 15 %"]["lesions"] == len(large) > 0
    found = sum(one["lesions"] * one["0.5"]["found"]["mean"] for one in sized.values() if one["lesions"])
    assert found == pytest.approx(report.numbers["detection"]["0.5"]["found"]["mean"] * 12)


def test_missed_boxes_hold_the_missed_polyps(report: Report) -> None:
    boxes = {name: json.loads(text) for name, text in by_frame(report, "missed_boxes").items()}
    assert boxes["missed"] == boxes["elsewhere"] == [[52, 32, 69, 49]]
    assert boxes["right"] == boxes["none"] == []
    left, top, right, bottom = boxes["one of two"][0]
    assert not TRUTHS["one of two"][top:bottom, right:].any() and TRUTHS["one of two"][top:bottom, left:right].any()


# --- calibration ---


def test_calibration_by_hand_and_scikit_learn(report: Report) -> None:
    probability = np.concatenate([MAPS[name].ravel() for name in CASES]).astype(np.float64)
    truth = np.concatenate([TRUTHS[name].ravel() for name in CASES])
    calibration = report.numbers["calibration"]
    assert calibration["brier"] == pytest.approx(sk.brier_score_loss(truth, probability), abs=1e-9)
    ece, filled = 0.0, []
    for number in range(15):
        low, high = np.float32(number / 15), np.float32((number + 1) / 15)
        inside = (probability >= low) & ((probability < high) | (number == 14))
        if inside.any():
            confidence, frequency = probability[inside].mean(), truth[inside].mean()
            ece += inside.mean() * abs(confidence - frequency)
            filled.append({"confidence": confidence, "frequency": frequency, "pixels": inside.sum()})
    assert calibration["ece"] == pytest.approx(ece, abs=1e-9)
    assert len(calibration["bins"]) == len(filled)
    for one, expected in zip(calibration["bins"], filled, strict=True):
        assert one == pytest.approx(expected, abs=1e-9)
    assert sum(one["pixels"] for one in calibration["bins"]) == len(truth)


# --- intervals and strata ---


def entries(numbers: Any) -> Iterator[dict[str, Any]]:
    """Every entry with an interval, wherever it stands."""
    if isinstance(numbers, dict):
        if "low" in numbers:
            yield numbers
        for value in numbers.values():
            yield from entries(value)
    elif isinstance(numbers, list):
        for value in numbers:
            yield from entries(value)


def test_intervals_contain_the_mean(report: Report) -> None:
    known = [entry for entry in entries(report.numbers) if entry["low"] is not None]
    assert len(known) > 20
    for entry in known:
        assert entry["low"] - 1e-12 <= entry["mean"] <= entry["high"] + 1e-12, entry
    assert any(entry["low"] < entry["mean"] < entry["high"] for entry in known)


def test_intervals_draw_whole_groups(report: Report) -> None:
    """Against SciPy's own bootstrap of the groups' sums, with other random numbers."""
    groups = report.per_image.dropna(subset="dice").groupby("group")["dice"].agg(["sum", "size"])

    def mean(sums: Any, sizes: Any, axis: int = -1) -> Any:
        return sums.sum(axis=axis) / sizes.sum(axis=axis)

    expected = bootstrap(
        (groups["sum"], groups["size"]), mean, paired=True, n_resamples=5000, vectorized=True, rng=99
    ).confidence_interval
    headline = report.numbers["headline"]["dice"]
    assert headline["low"] == pytest.approx(expected.low, abs=0.02)
    assert headline["high"] == pytest.approx(expected.high, abs=0.02)


def test_strata_are_parts_of_the_frames(report: Report) -> None:
    strata = pd.DataFrame(report.numbers["strata"])
    table = report.per_image.dropna(subset="dice")
    sums = strata.groupby("by")["n"].sum()
    for by in ("polyp area", "polyps in the frame", "resolution, megapixels", "data set", "group"):
        assert sums[by] == len(table) == len(SHOWN)
    members = {
        ("polyps in the frame", "several"): table["polyps"] > 1,
        ("centre", "C1"): table["centre"] == "C1",
        ("data set", "ward"): table["dataset"] == "ward",
        ("group", "s1"): table["group"] == "s1",
        ("polyp area", "over 15 %"): table["area"] > 0.15,
        ("polyp area", "2 to 5 %"): table["area"].between(0.02, 0.05),
    }
    indexed = strata.set_index(["by", "stratum"])
    for key, rows in members.items():
        entry: Any = indexed.loc[key]
        dice = table["dice"][rows]
        assert rows.any() and entry["n"] == rows.sum(), key
        assert (entry["mean"], entry["median"]) == pytest.approx((dice.mean(), dice.median())), key


def test_area_strata_at_their_borders(tmp_path: Path) -> None:
    pixels = {"0": 0, "1": 199, "2": 200, "3": 499, "4": 500, "5": 1499, "6": 1500, "7": 10_000}
    masks = {name: (np.arange(10_000) < count).reshape(100, 100) for name, count in pixels.items()}
    catalog = read(write_data(tmp_path / "data", masks))
    strata = evaluate(Maps(lambda name: masks[name].astype(np.float32)), catalog, progress=False).numbers["strata"]
    found = {one["stratum"]: one["n"] for one in strata if one["by"] == "polyp area"}
    assert found == {"under 2 %": 1, "2 to 5 %": 2, "5 to 15 %": 2, "over 15 %": 2}


def test_resolution_strata_at_their_borders(tmp_path: Path) -> None:
    shapes = {"a": (500, 499), "b": (500, 500), "c": (999, 1001), "d": (1000, 1000)}
    masks = {name: ellipse((50, 50, 20, 20), shape=shape) for name, shape in shapes.items()}
    catalog = read(write_data(tmp_path / "data", masks))
    strata = evaluate(Maps(lambda name: masks[name].astype(np.float32)), catalog, progress=False).numbers["strata"]
    found = {one["stratum"]: one["n"] for one in strata if one["by"].startswith("resolution")}
    assert found == {"under 0.25": 1, "0.25 to 1": 2, "over 1": 1}


def test_groups_of_single_frames_are_no_strata(frames: Catalog) -> None:
    alone = Catalog(frames.frames.assign(group=frames.frames["frame_id"]))
    strata = evaluate(Maps(MAPS.__getitem__), alone, progress=False).numbers["strata"]
    assert "group" not in {one["by"] for one in strata}


# --- unusual data sets ---


def only(frames: Catalog, *names: str) -> Catalog:
    return Catalog(frames.frames[frames.frames["frame_id"].isin(names)].reset_index(drop=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [["right"], ["none"], ["missed"], ["none", "invented"], ["right", "shifted"], list(CASES)],
    ids=["one frame", "one without polyp", "one missed", "none with a polyp", "one group", "all"],
)
def test_report_files_of_any_data_set(frames: Catalog, tmp_path: Path, names: list[str]) -> None:
    chosen = only(frames, *names)
    predictor = Maps(MAPS.__getitem__)
    report = evaluate(predictor, chosen, progress=False)
    page = write_report(report, chosen, predictor, tmp_path / "out")
    assert page.stat().st_size > 10_000
    numbers = strict(tmp_path / "out" / "report.json")
    assert numbers == report.numbers and numbers["n"] == len(names)
    table = pd.read_csv(tmp_path / "out" / "per_image.csv", dtype={"frame_id": str})
    assert list(table["frame_id"]) == list(chosen.frames["frame_id"])  # one row a frame, in order
    shown = [name for name in names if TRUTHS[name].any()]
    for name, entry in (*numbers["headline"].items(), *numbers["pixels"].items(), *numbers["boundary"].items()):
        assert entry["n"] == len(shown) == table[name].notna().sum()
        if shown:
            assert table[name].mean() == pytest.approx(entry["mean"], rel=1e-5, abs=1e-6)
        else:
            assert entry["mean"] is None and entry["low"] is None and entry["reason"] == "no frame shows a polyp"
    groups = set(chosen.frames["group"][chosen.frames["frame_id"].isin(shown)])
    assert (numbers["headline"]["dice"]["low"] is None) == (len(groups) < 2)  # nothing is known of the spread
    polyps = sum(len(regions(TRUTHS[name])) for name in names)
    assert numbers["lesions"]["lesions"] == polyps
    assert (numbers["lesions"]["at_iou"]["0.5"]["recall"] is None) == (polyps == 0)
    assert ("polyp area" in {one["by"] for one in numbers["strata"]}) == (polyps > 0)
    assert numbers["warnings"] == ([] if shown else ["no frame shows a polyp"])
    if not shown:
        assert numbers["strata"] == [] and {one["mean"] for one in numbers["definitions"].values()} == {None}
        assert numbers["froc"]["curves"] == {} and numbers["froc"]["reason"] == "no frame shows a polyp"
        assert all(numbers["detection"][name]["f1"] is None for name in ("any", "0.3", "0.5"))
        assert "no frame shows a polyp" in page.read_text(encoding="utf-8").partition("<h1>")[0]
    missing = {0: "no frame shows a polyp", len(names): "every frame shows a polyp"}.get(len(shown))
    assert numbers["frames_roc"].get("reason") == missing
    assert (numbers["frames_roc"]["auc"] is None) == (missing is not None) == (numbers["frames_roc"]["curve"] is None)


def test_every_frame_is_decoded_once(frames: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def counting(name: str) -> Any:
        original = getattr(Catalog, name)
        return lambda self, index: counted.append(name) or original(self, index)

    for name in ("frame", "mask"):
        monkeypatch.setattr(Catalog, name, counting(name))

    class Decoding(Maps):
        def predictions(self, catalog: Catalog) -> Iterator[Segmentation]:
            for index, prediction in enumerate(super().predictions(catalog)):
                catalog.frame(index)
                yield prediction

    network_size: Any = AtNetworkSize()
    evaluate(Decoding(MAPS.__getitem__), frames, network_size=network_size, progress=False)
    assert counted.count("frame") == counted.count("mask") == network_size.frames == len(frames)


def test_no_frames_at_all(frames: Catalog) -> None:
    with pytest.raises(PolypsegError, match="no frames to evaluate") as caught:
        evaluate(Maps(MAPS.__getitem__), only(frames), progress=False)
    assert "\n" not in str(caught.value)


def test_provenance(report: Report, frames: Catalog) -> None:
    provenance = report.numbers["provenance"]
    assert provenance["datasets"] == {"clinic": 8, "ward": 4} and provenance["groups"] == 7
    assert provenance["data_hash"] == frames.hash() and provenance["split"] == "x"
    assert provenance["predictions"] == "maps" and provenance["versions"]["numpy"] == np.__version__
    assert report.numbers["threshold"] == THRESHOLD and "Research use only" in report.numbers["intended_use"]


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 frames need no more than 10 do, but for their rows of the table."""
    shape = (240, 320)
    truth = ellipse((160, 120, 60, 40), shape=shape)
    masks = {f"{index:02d}": truth if index % 4 else np.zeros_like(truth) for index in range(40)}
    catalog = read(write_data(tmp_path / "data", masks))
    # The bootstrap works on the table alone, in memory of its own.
    monkeypatch.setattr(
        evaluation, "bootstrap_interval", lambda values, *_: Interval(float(np.mean(values)), 0.0, 1.0, len(values))
    )
    monkeypatch.setattr(
        detection, "group_bootstrap", lambda of, groups: (of(np.ones((1, len(groups)), np.float32))[0],) * 3
    )

    def prediction(name: str) -> Any:
        return cv2.GaussianBlur(masks[name].astype(np.float32), (0, 0), 5)

    def peak(count: int) -> int:
        chosen = Catalog(catalog.frames.iloc[:count])
        tracemalloc.start()
        evaluate(Maps(prediction), chosen, progress=False)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(4)  # what is loaded once
    mask_bytes = shape[0] * shape[1]
    assert peak(40) - peak(10) < 3 * mask_bytes  # of 30 frames more, as masks of a byte a pixel
