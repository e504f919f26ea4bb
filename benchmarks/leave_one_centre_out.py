"""What generalises to a hospital that was not trained on: PolypGen's centres, left out in turn.

Every variant changes one thing of ``recipes/realtime-second.yaml`` at a small budget. It is trained on all frames but
those of the centres left out, and but PraNet's test frames. Its operating point is chosen on validation frames of the
others. It is scored on the centres left out, which neither its training nor the model it starts from has met. A row
contains, with intervals, the Dice of the frames with a polyp, the lesions found, the regions right, the polyp-free
frames marked; and the share of these that is marked where just so many lesions are found as ``--found`` asks for. A row
is one run: another seed moves the figures too.

Centres joined by a comma are left out together, which is harder than one by one, and scored each by itself. Runs are
kept in ``--runs``; what is interrupted goes on, what is done is not done again.

    python benchmarks/leave_one_centre_out.py --data ../shared/data/Kvasir-SEG ../shared/data/CVC-ClinicDB \
        ../shared/data/PolypGen ../shared/data/PolypFree --centres C4 C2,C5 --seeds 42 43 --start runs/realtime
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polypseg import zoo
from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.data.splits import make_split, read_split, write_split
from polypseg.evaluation.calibrate import calibrate
from polypseg.evaluation.run import run as evaluate
from polypseg.files import atomic_write, commit, read_json
from polypseg.training.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "realtime-second.yaml"
OURS, START = "the recipe", "where it starts"
NO_OTHER_CENTRES = "no other centres"
NO_REAL = "no real polyp-free frames"
SHARE = "trainer.start_share"  # a variant that differs in it alone is mixed anew, not trained anew
# The share of one training; the recipe's own is for the mean of several, and rows of both would not compare.
BUDGET = {"frames.first_size": 192, "frames.last_size": 224, "trainer.epochs": 2, SHARE: 0.7}
VARIANTS: dict[str, dict[str, Any]] = {
    START: {},
    OURS: {},
    NO_OTHER_CENTRES: {},
    NO_REAL: {"frames.polyp_free_share": None},
    "no made polyp-free frames": {"frames.made_polyp_free": 0.0},
    "no judgement of presence": {
        "model.presence": False,
        "loss.presence": 0.0,
        "optimizer.presence_learning_rate": None,
    },
    "no hardest background": {"loss.background": 0.0},
    "augmentation strong": {"frames.augmentation": "strong"},
    "whole encoder trained": {"model.frozen_stride": None},
    "half of the start stays": {SHARE: 0.5},
    "nothing of the start stays": {SHARE: 0.0},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="folders of data sets, PolypGen's among them")
    parser.add_argument("--centres", nargs="+", default=["C2", "C4", "C5"], help="left out in turn; C2,C5 together")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="these variants")
    parser.add_argument(
        "--found", type=float, default=0.72, help="share of lesions found, at which silence is compared"
    )
    parser.add_argument("--start", default=load_recipe(RECIPE).model.weights, help="model to start from: version 1")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/leave-one-out"), help="folder that keeps the runs")
    parser.add_argument(
        "--out", type=Path, default=Path("results/leave-one-centre-out.csv"), help="CSV; rows are added"
    )
    options = parser.parse_args()

    catalog = read_all(options.data)
    for left_out in options.centres:
        split = split_without(catalog, left_out.split(","), options.runs)
        for variant in options.only:
            for seed in options.seeds[:1] if variant == START else options.seeds:
                bundle = trained(variant, seed, left_out, split, catalog, options)
                rows = [
                    row(bundle, variant, seed, left_out, centre, split, catalog, options)
                    for centre in left_out.split(",")
                ]
                add(rows, options.out)
    return 0


def split_without(catalog: Catalog, centres: Sequence[str], runs: Path) -> Path:
    """The split file of all frames whose centres are left out: those are its test frames."""
    path = runs / f"without-{'-'.join(centres)}.csv"
    if not path.exists():
        left_out = catalog.frames["centre"].isin(centres)
        if set(centres) - set(catalog.frames["centre"]):
            raise SystemExit(f"--centres {' '.join(centres)}: the data contain {sorted(set(catalog.frames['centre']))}")
        others = make_split("pranet", Catalog(catalog.frames[~left_out]))
        tested = catalog.frames[left_out][["dataset", "frame_id"]].assign(split="test")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_split(pd.concat([others[others["split"] != "test"], tested]), path)
    return path


def trained(variant: str, seed: int, left_out: str, split: Path, catalog: Catalog, options: argparse.Namespace) -> Path:
    """Train a variant, but for what is already there; its bundle."""
    run = options.runs / left_out / f"{variant.replace(' ', '-')}-{seed}"
    if variant == START and not (run / "bundle").exists():
        start = run.with_name(f"{run.name}-start")
        shutil.copytree(zoo.open(options.start).folder, start, dirs_exist_ok=True)
        zoo.open(start).update(exports=[])  # the network itself is compared
        # Its operating point is chosen on data sets that it has not met: which of the others' frames it saw is unknown.
        table, met = read_split(split), zoo.open(start).metadata["data"]["datasets"]
        unmet = run.with_name(f"{run.name}.csv")
        write_split(table[~table["dataset"].isin(met)], unmet)
        sets = [one for one in options.data if read_all([one]).frames["dataset"].iloc[0] not in met]
        calibrate(start, sets, split_file=unmet, tta="none")
        run.mkdir(parents=True, exist_ok=True)
        start.rename(run / "bundle")
    if (run / "bundle").exists():
        return run / "bundle"
    name = run.name
    if set(VARIANTS[variant]) == {SHARE}:
        name = f"{OURS.replace(' ', '-')}-{seed}"
        if run.with_name(name).exists():
            shutil.copytree(run.with_name(name), run)
    own = run.with_name(f"{name}.csv")
    own.parent.mkdir(parents=True, exist_ok=True)
    write_split(training_frames(variant, read_split(split), catalog), own)
    settings = {
        **BUDGET, **VARIANTS[variant], "model.weights": str(options.start), "name": name, "trainer.seed": seed,
        "split": str(own),
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    _polypseg(
        "train", "--config", str(RECIPE), *[word for one in options.data for word in ("--data", one)],
        "--out", str(run), "--trainer.threads", str(options.threads), *words,
        *(["--resume"] if run.exists() else []),
    )  # fmt: skip
    return run / "bundle"


def training_frames(variant: str, table: pd.DataFrame, catalog: Catalog) -> pd.DataFrame:
    """The split that a variant is trained by: all of ``table``, or what is left of it."""
    keys = list(zip(catalog.frames["dataset"], catalog.frames["frame_id"], strict=True))
    place = {key: index for index, key in enumerate(keys)}
    rows = [place[key] for key in zip(table["dataset"], table["frame_id"], strict=True)]
    tested = (table["split"] == "test").to_numpy()
    if variant == NO_OTHER_CENTRES:
        return table[tested | (catalog.frames["centre"].iloc[rows] == "").to_numpy()]
    if variant == NO_REAL:
        shown = np.array([catalog.mask(index).any() for index in rows])
        return table[shown | (table["split"] != "train").to_numpy()]
    return table


def row(
    bundle: Path,
    variant: str,
    seed: int,
    left_out: str,
    centre: str,
    split: Path,
    catalog: Catalog,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The scores of one centre's frames, none of which the bundle has seen."""
    table = read_split(split)
    of_centre = set(catalog.frames[catalog.frames["centre"] == centre]["frame_id"])
    part = options.runs / f"only-{centre}.csv"
    tested = table[(table["split"] == "test") & table["frame_id"].isin(of_centre)]
    write_split(tested, part)
    folder = options.runs / left_out / f"{variant.replace(' ', '-')}-{seed}-on-{centre}"
    if not (folder / "report.json").exists():
        data = [one for one in options.data if read_all([one]).frames["dataset"].iloc[0] in set(tested["dataset"])]
        evaluate(bundle, data, folder, split="test", split_file=part, runtime="torch", precision="fp32")
    report = read_json(folder / "report.json")
    found = report["detection"]["0.3"]
    values = {
        "dice": report["headline"]["dice"],
        "found": found["found"],
        "right": found["right"],
        "false_per_frame": found["false_regions_per_frame"],
        "polyp_free_marked": report["polyp_free"]["marked"],
    }
    silent = marked_where_found(report, options.found)
    return {
        "date": datetime.date.today().isoformat(),
        "variant": variant,
        "settings": " ".join(f"{key}={value}" for key, value in VARIANTS[variant].items()),
        "left_out": left_out,
        "scored_on": centre,
        "seed": seed,
        "frames": report["n"],
        "polyp_free": report["polyp_free"]["frames"],
        **{
            f"{name}{end}": None if one is None else round(one[kind], 4)
            for name, one in values.items()
            for end, kind in (("", "mean"), ("_low", "low"), ("_high", "high"))
        },
        "floor": report["provenance"]["operating_point"]["min_confidence"],
        f"marked_at_found_{options.found:g}": None if silent is None else round(silent, 4),
        "bundle_hash": report["provenance"]["bundle_hash"],
        "commit": commit(),
        "precision": report["provenance"]["precision"],
    }


def marked_where_found(report: dict[str, Any], least: float) -> float | None:
    """The share of the polyp-free frames that is marked at the highest ``min_confidence`` that finds so many lesions
    at IoU 0.3; None where none does, or where there is no polyp-free frame."""
    curve, roc = report["froc"]["curves"]["0.3"], report["frames_roc"]["curve"]
    enough = [at for at, found in zip(curve["confidence"], curve["sensitivity"], strict=True) if found >= least]
    if roc is None or not enough:
        return None
    floor = max(enough)
    return max(
        (marked for at, marked in zip(roc["score"], roc["false_alarms"], strict=True) if at >= floor), default=0.0
    )


def add(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows into the table, in place of earlier ones of the same runs."""
    table = pd.DataFrame(rows)
    if path.exists():
        table = pd.concat([pd.read_csv(path, dtype={"settings": str}), table])
    table = table.drop_duplicates(["variant", "left_out", "scored_on", "seed"], keep="last")
    with atomic_write(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    print(
        pd.DataFrame(rows)[["variant", "scored_on", "seed", "dice", "found", "right", "polyp_free_marked"]], flush=True
    )


def _polypseg(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "polypseg", *arguments])
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
