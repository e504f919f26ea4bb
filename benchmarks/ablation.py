"""What each part of ``recipes/two-cores.yaml`` is worth, judged where it counts: on a data set that was not trained on.

Every variant changes one thing of the recipe at a small budget (160×160, eight epochs, without the finest stage, as the
network that ships), is trained on each data set alone (split ``grouped``, which chooses epoch and threshold), and
scored on every frame of the other. A row tells the mean Dice with its interval, and the paired difference from the
recipe itself on the same frames. One run a variant: another seed moves the mean too, by what the row ``another seed``
shows.

Runs are kept in ``--runs``; what is interrupted goes on, what is done is not done again.

    python benchmarks/ablation.py --data ../shared/data/Kvasir-SEG --data ../shared/data/CVC-ClinicDB
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from polypseg.bundle import ModelBundle
from polypseg.data import read_all
from polypseg.evaluation.scoring import score_masks
from polypseg.files import atomic_write, commit
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.statistics import bootstrap_interval, compare
from polypseg.visualization import charts

RECIPE = Path(__file__).parents[1] / "recipes" / "two-cores.yaml"
BUDGET = {
    "split": "grouped",
    "frames.size": 160,
    "frames.first_size": 96,
    "trainer.epochs": 8,
    "optimizer.ema_decay": 0.99,
    "model.output_stride": 4,
}
OURS = "the recipe"
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "another seed": {"trainer.seed": 43},
    "augmentation of the baseline recipe": {"frames.augmentation": "baseline"},
    "no augmentation": {"frames.augmentation": "none"},
    "no ImageNet weights": {"model.encoder_weights": "none"},
    "no average of weights": {"optimizer.ema_decay": None},
    "Dice pooled over the batch": {"loss.dice_per_image": False},
    "cross-entropy alone": {"loss.dice": 0.0},
    "weights along the boundary": {"loss.boundary": 5.0},
    "twice the epochs": {"trainer.epochs": 16},
    "224x224": {"frames.size": 224, "frames.first_size": 160},
    "with the finest stage": {"model.output_stride": 1},
    "last stage at half the size": {"model.output_stride": 2},
    "twice the decoder's channels": {"model.decoder_channels": [128, 96, 64, 32, 16]},
    "U-Net in place of U-Net++": {"model.name": "Unet"},
    "FPN in place of U-Net++": {"model.name": "FPN", "model.decoder_channels": None, "model.output_stride": 1},
    "DeepLabV3+ in place of U-Net++": {
        "model.name": "DeepLabV3Plus",
        "model.decoder_channels": None,
        "model.output_stride": 1,
    },
    "EfficientNet-Lite0": {"model.encoder": "tu-tf_efficientnet_lite0"},
    "full size from the first epoch": {"frames.first_size": None},
    "trained below the network's size": {"frames.last_size": 128},
}
VIEWS = {"test-time flips": "flips", "test-time second view": "multiscale"}  # of the recipe itself, not trained anew


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, help="folder of a data set; name two or more")
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS, *VIEWS], help="these variants, beside the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder that keeps the runs")
    parser.add_argument("--out", type=Path, default=Path("results/ablation.csv"), help="CSV, written anew")
    parser.add_argument("--chart", type=Path, default=Path("docs/images/ablation.png"), help="PNG, drawn anew")
    options = parser.parse_args()
    if len(options.data) < 2:
        parser.error("--data: name two data sets, one to train on and one to judge on")

    directions = list(itertools.permutations([Path(folder) for folder in options.data], 2))
    rows: list[dict[str, Any]] = []
    for variant in [*VARIANTS, *VIEWS]:
        if options.only and variant not in (OURS, *options.only):
            continue
        for trained, judged in directions:
            scores = judge(variant, trained, judged, options.runs)
            rows.append(row(variant, trained, judged, scores, judge(OURS, trained, judged, options.runs)))
            print(f"{variant}, {trained.name} to {judged.name}: {rows[-1]['dice']}", flush=True)
        with atomic_write(options.out, "w") as file:
            pd.DataFrame(rows).to_csv(file, index=False, lineterminator="\n")
    with atomic_write(options.chart) as file:
        file.write(charts.differences(differences(rows), "mean Dice less the recipe's, on the data set not trained on"))
    print(f"{options.out}: {len(rows)} rows")
    return 0


def judge(variant: str, trained: Path, judged: Path, runs: Path) -> pd.DataFrame:
    """Train a variant on one data set and score it on another, but for what is already there; one row a frame."""
    runs = runs / trained.name
    run = runs / _slug(OURS if variant in VIEWS else variant)
    if not (run / "bundle").exists():
        settings = {**BUDGET, **VARIANTS[variant], "name": run.name}
        words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
        _polypseg(
            "train", "--config", str(RECIPE), "--data", str(trained), "--out", str(run),
            *words, *(["--resume"] if run.exists() else []),
        )  # fmt: skip
    file = runs / f"{_slug(variant)}-on-{judged.name}.csv"
    if not file.exists():
        segmenter = Segmenter(ModelBundle.load(run), tta=VIEWS.get(variant, "none"))
        frames = read_all([judged])
        scores, _ = score_masks(segmenter, frames, progress=sys.stderr.isatty())
        scores["group"] = [frame.group for frame in frames]
        origin = {
            "date": datetime.date.today().isoformat(),
            "bundle_hash": segmenter.hash,
            "commit": commit(),
            "device": segmenter.device,
            "precision": segmenter.precision,
        }
        with atomic_write(file, "w") as out:
            scores.assign(**origin).to_csv(out, index=False, lineterminator="\n")
    return pd.read_csv(file, dtype={"frame_id": str})


def row(variant: str, trained: Path, judged: Path, scores: pd.DataFrame, ours: pd.DataFrame) -> dict[str, Any]:
    """The mean Dice of a variant, and how it differs from the recipe's on the same frames."""
    if not (scores["frame_id"] == ours["frame_id"]).all():
        raise SystemExit(f"{variant} on {judged}: scored on other frames than the recipe; delete both and run again")
    groups = scores["group"].tolist()
    dice = bootstrap_interval(scores["dice"], "mean", groups)
    change = compare(scores["dice"], ours["dice"], groups=groups)
    changed = {"tta": VIEWS[variant]} if variant in VIEWS else VARIANTS[variant]
    return {
        "date": scores["date"][0],
        "variant": variant,
        "settings": " ".join(f"{key}={value}" for key, value in changed.items()),
        "trained_on": trained.name,
        "judged_on": judged.name,
        "n": dice.n,
        "dice": round(dice.value, 4),
        "low": round(dice.low, 4),
        "high": round(dice.high, 4),
        "difference": round(change.difference.value, 4),
        "difference_low": round(change.difference.low, 4),
        "difference_high": round(change.difference.high, 4),
        "p_value": float(f"{change.p_value:.2g}"),
        **{name: scores[name][0] for name in ("bundle_hash", "commit", "device", "precision")},
    }


def differences(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """The rows of all variants but the recipe itself, as the chart takes them."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for one in rows:
        if one["variant"] != OURS:
            direction = f"{one['trained_on']} to {one['judged_on']}"
            values = one["difference"], one["difference_low"], one["difference_high"]
            found.setdefault(one["variant"], {})[direction] = values
    return found


def _polypseg(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "polypseg", *arguments])
    if done.returncode:
        raise SystemExit(done.returncode)


def _slug(variant: str) -> str:
    return variant.lower().replace(" ", "-").replace("'", "").replace("+", "p")


if __name__ == "__main__":
    sys.exit(main())
