"""`polypseg train --folds`: groups whole, choices out of fold, one ensemble, exactly what the single runs would say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import polypseg
from polypseg.bundle import ModelBundle
from polypseg.cli import main
from polypseg.data import read_all
from polypseg.data.duplicates import fingerprints, groups
from polypseg.data.splits import hash_split, make_split, read_split, write_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.choosing import CLEANINGS, THRESHOLDS
from polypseg.inference.field_of_view import outside_of
from polypseg.metrics.overlap import dice
from polypseg.metrics.statistics import compare
from polypseg.segmentation import Segmentation
from polypseg.training.folds import train_folds
from polypseg.training.run import train

pytestmark = pytest.mark.slow
FOLDS = 3
STRICT = {"precision": "32-true", "threads": 1, "epochs": 2}  # one thread: sums in one order


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Path:
    """The phantom frames, twelve of them twice under another name; not to be changed."""
    folder = Path(shutil.copytree(phantom_folder, tmp_path_factory.mktemp("data") / "phantom"))
    for kind in ("images", "masks"):
        for file in sorted((folder / kind).iterdir())[:12]:
            shutil.copy(file, file.with_stem(f"{file.stem}-again"))
    return folder


@pytest.fixture(scope="module")
def recipe(small_recipe: Callable[..., Any]) -> Any:
    return small_recipe(
        # It learns enough in these epochs for maps that are not flat: those would hinge on the last bit.
        model={"encoder": "mobilenet_v2"},
        threshold=None,
        split="grouped",
        trainer=STRICT,
        optimizer={"learning_rate": 5e-3},
        frames={"batch_size": 3},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, recipe: Any) -> Path:
    """A finished run of three folds, not to be changed."""
    return train_folds(recipe, [data], FOLDS, tmp_path_factory.mktemp("runs") / "finished")


def test_each_frame_is_validated_once_and_no_group_is_parted(finished: Path, data: Path, recipe: Any) -> None:
    catalog = read_all([data])
    whole = pd.read_csv(finished / "split.csv", dtype=str, keep_default_na=False)
    published = make_split("grouped", catalog)
    assert ((whole["split"] == "test") == (published["split"] == "test")).all()
    assert ((whole["fold"] == "") == (whole["split"] == "test")).all()
    assert set(whole["split"]) == {"train", "test"}
    part = np.where(whole["split"] == "test", "test", whole["fold"])
    group = groups(catalog, fingerprints(catalog))
    assert len(set(group)) <= 40  # the copies were recognised
    assert pd.DataFrame({"group": group, "part": part}).groupby("group")["part"].nunique().max() == 1
    for number in range(1, FOLDS + 1):
        of_fold = read_split(finished / f"fold-{number}" / "split.csv")
        assert (of_fold[["dataset", "frame_id"]] == whole[["dataset", "frame_id"]]).all(axis=None)
        expected = whole["split"].where(whole["fold"] != str(number), "val")
        assert list(of_fold["split"]) == list(expected)
        config = yaml.safe_load((finished / f"fold-{number}" / "config.yaml").read_text())
        assert config["trainer"]["seed"] == recipe.trainer.seed + number - 1
    counts = whole["fold"].value_counts().drop("")
    assert len(counts) == FOLDS and counts.min() >= 11


def test_the_ensemble_is_chosen_out_of_fold(finished: Path, data: Path) -> None:
    """By hand: every frame by the one network that had it in validation, pooled."""
    catalog = read_all([data]).with_split(read_split(finished / "split.csv"))
    fold = dict(pd.read_csv(finished / "split.csv", dtype=str)[["frame_id", "fold"]].dropna().itertuples(index=False))
    segmenters = {str(k): polypseg.load(finished / f"fold-{k}") for k in range(1, FOLDS + 1)}
    probabilities, outside, truths, names, shown = [], [], [], [], []
    for index, row in enumerate(catalog):
        if row.split != "test":
            shown.append(bool(catalog.mask(index).any()))
            probabilities.append(segmenters[fold[row.frame_id]].segment(catalog.frame(index)).probability)
            outside.append(outside_of(catalog.frame(index)))
            truths.append(catalog.mask(index))
            names.append(row.frame_id)
    predictions = list(zip(probabilities, outside, truths, strict=True))
    of_polyps = [prediction for prediction, polyp in zip(predictions, shown, strict=True) if polyp]
    means = [np.mean([dice(one >= threshold, truth) for one, _, truth in of_polyps]) for threshold in THRESHOLDS]
    ensemble = ModelBundle.load(finished)
    assert ensemble.threshold == pytest.approx(float(THRESHOLDS[int(np.argmax(means))]))
    assert ensemble.metadata["threshold_choice"][f"{ensemble.threshold:.2f}"] == pytest.approx(max(means), abs=1e-3)
    inside = [
        (Segmentation.from_probability(one, ensemble.threshold, border).mask, truth) for one, border, truth in of_polyps
    ]
    tried = ensemble.metadata["operating_point_choice"]["cleaning"]
    for one, record in zip(CLEANINGS, tried, strict=True):
        found = np.mean([dice(one.clean(mask), truth) for mask, truth in inside])
        assert record == {
            "min_area": one.min_area,
            "fill_holes": one.fill_holes,
            "dice": pytest.approx(found, abs=1e-3),
        }
    predicted = pd.read_csv(finished / "per_image.csv").query("split == 'out-of-fold'").set_index("frame_id")["dice"]
    by_hand = [
        dice(Segmentation.from_probability(one, ensemble.operating_point, border).mask, truth)
        if truth.any()
        else np.nan
        for one, border, truth in predictions
    ]
    assert predicted[names].to_numpy() == pytest.approx(by_hand, abs=2e-3, nan_ok=True)  # the kept maps are of 16 bits
    metrics = json.loads((finished / "test.json").read_text())["metrics"]
    assert metrics["out_of_fold"]["n"] == len(names)
    assert metrics["out_of_fold"]["dice"] == pytest.approx(np.nanmean(by_hand), abs=1e-3)


def test_the_ensemble_is_the_mean_of_the_folds_and_is_tested(finished: Path, data: Path) -> None:
    catalog = read_all([data]).with_split(read_split(finished / "split.csv")).of_split("test")
    ensemble = polypseg.load(finished)
    folds = [polypseg.load(finished / f"fold-{k}") for k in range(1, FOLDS + 1)]
    scores: dict[str, list[float]] = {}
    shown = [index for index in range(len(catalog)) if catalog.mask(index).any()]
    for index in shown:
        frame, truth = catalog.frame(index), catalog.mask(index)
        mean = np.mean([one.probability(frame) for one in folds], axis=0)
        prediction = ensemble.segmentation(mean, *frame.shape[:2])
        np.testing.assert_array_equal(ensemble.segment(frame).mask, prediction.mask)
        scores.setdefault("ensemble", []).append(dice(prediction.mask, truth))
        for number, one in enumerate(folds, 1):
            scores.setdefault(f"fold-{number}", []).append(dice(one.segment(frame).mask, truth))
    table = pd.read_csv(finished / "folds.csv").set_index("name")
    for name, values in scores.items():
        assert table.loc[name, "test_dice"] == pytest.approx(np.mean(values), abs=1e-5)
        assert table.loc[name, "test_n"] == len(shown)
        assert table.loc[name, "test_low"] <= table.loc[name, "test_dice"] <= table.loc[name, "test_high"]
    mean_of_folds = np.mean([scores[f"fold-{k}"] for k in range(1, FOLDS + 1)], axis=0)
    found = compare(scores["ensemble"], mean_of_folds, catalog.frames["group"].iloc[shown].tolist())
    row = table.loc["ensemble - mean of folds"]
    expected = [found.difference.value, found.difference.low, found.difference.high, found.p_value]
    assert row[["test_dice", "test_low", "test_high", "p_value"]].tolist() == pytest.approx(expected, abs=1e-4)
    for number in range(1, FOLDS + 1):
        own = json.loads((finished / f"fold-{number}" / "test.json").read_text())["metrics"]
        assert table.loc[f"fold-{number}", "val_dice"] == pytest.approx(own["val"]["dice"], abs=1e-5)
    bundle = ModelBundle.load(finished)
    assert bundle.metadata["metrics"]["test"]["dice"] == pytest.approx(np.mean(scores["ensemble"]), abs=1e-9)
    assert [one.hash for one in bundle.members] == [one.bundle.hash for one in folds]
    assert bundle.metadata["split"] == {"name": "grouped", "hash": hash_split(read_split(finished / "split.csv"))}


def test_an_ensemble_is_evaluated_carded_and_predicts_like_a_single_network(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from polypseg.export.card import render

    arguments = ["--runtime", "torch", "--data", str(data), "--out", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(finished), *arguments]) == 0
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    reported = json.loads((finished / "test.json").read_text())["metrics"]["test"]
    for name in ("dice", "iou", "dice_network_size", "dice_batch", "loss"):
        assert report["definitions"][name]["mean"] == pytest.approx(reported[name], abs=1e-6), name
    assert report["provenance"]["bundle_hash"] == ModelBundle.load(finished).hash
    # moved away from its split.csv, it makes its split anew by name
    moved = shutil.copytree(finished / "bundle", tmp_path / "moved")
    assert main(["evaluate", str(moved), *arguments]) == 0
    again = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert again["headline"] == report["headline"]
    frame = next((data / "images").iterdir())
    assert main(["predict", str(frame), "--model", str(finished), "--out", str(tmp_path / "masks")]) == 0
    record = json.loads((tmp_path / "masks" / f"{frame.stem}.json").read_text())
    assert record["model"] == ModelBundle.load(finished).hash
    page = render(ModelBundle.load(finished))
    assert f"An ensemble of {FOLDS} networks" in page and f"{reported['dice']:.4f}" in page
    assert f"--folds {FOLDS}" in page and "`fold-2/model.safetensors`" in page
    capsys.readouterr()


def test_interrupted_in_a_fold_it_goes_on_there_and_ends_alike(
    finished: Path, data: Path, recipe: Any, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    out = tmp_path / "run"
    interrupted(1, lambda: train_folds(recipe, [data], FOLDS, out), of="fold-2")
    assert not (out / "bundle").exists() and not (out / "fold-3").exists()
    first = (out / "fold-1" / "metrics.csv").stat().st_mtime_ns
    assert len(pd.read_csv(out / "fold-2" / "metrics.csv")) == 1
    with pytest.raises(PolypsegError, match="contains a run already; use --resume"):
        train_folds(recipe, [data], FOLDS, out)
    train_folds(recipe, [data], FOLDS, out, resume=True)
    assert (out / "fold-1" / "metrics.csv").stat().st_mtime_ns == first
    assert list(pd.read_csv(out / "fold-2" / "metrics.csv")["epoch"]) == [0, 1]
    assert ModelBundle.load(out).hash == ModelBundle.load(finished).hash
    assert (out / "folds.csv").read_text() == (finished / "folds.csv").read_text()
    # and what is finished is left as it is
    before = (out / "bundle" / "metadata.json").stat().st_mtime_ns
    train_folds(recipe, [data], FOLDS, out, resume=True)
    assert (out / "bundle" / "metadata.json").stat().st_mtime_ns == before


def test_without_test_frames_the_scores_are_those_out_of_fold(
    phantom_folder: Path, small_recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = read_all([phantom_folder])
    write_split(catalog.frames.assign(split="train"), tmp_path / "all.csv")
    recipe = small_recipe(threshold=0.3, split=str(tmp_path / "all.csv"), trainer={"epochs": 1, "threads": 1})
    out = train_folds(recipe, [phantom_folder], 2, tmp_path / "run")
    table = pd.read_csv(out / "folds.csv").set_index("name")
    assert list(table.index) == ["fold-1", "fold-2", "out of fold"]
    shown = sum(catalog.mask(index).any() for index in range(len(catalog)))
    assert table.loc["out of fold", "val_n"] == shown == table.loc[["fold-1", "fold-2"], "val_n"].sum()
    assert table[["test_n", "test_dice", "p_value"]].isna().all(axis=None)
    metrics = json.loads((out / "test.json").read_text())["metrics"]
    assert metrics.keys() == {"out_of_fold"}
    bundle = ModelBundle.load(out)
    assert (bundle.threshold, bundle.metadata["threshold_split"]) == (0.3, None)  # the recipe's
    # by one threshold for all, the folds' own scores pooled are the ensemble's out of fold
    pooled = (table.loc[["fold-1", "fold-2"], "val_dice"] * table.loc[["fold-1", "fold-2"], "val_n"]).sum() / shown
    assert table.loc["out of fold", "val_dice"] == pytest.approx(pooled, abs=1e-5)
    assert main(["evaluate", str(out), "--data", str(phantom_folder), "--out", str(tmp_path / "x")]) == 1
    assert "split 'test' contains no frames" in capsys.readouterr().err


def test_what_cannot_be_folded_is_told(finished: Path, data: Path, recipe: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match="--folds 1: must be 2 or more"):
        train_folds(recipe, [data], 1, tmp_path / "run")
    with pytest.raises(PolypsegError, match=r"groups of frames to learn from, too few for --folds 45; lower it"):
        train_folds(recipe, [data], 45, tmp_path / "run")
    write_split(read_all([data]).frames.assign(split="test"), tmp_path / "test.csv")
    with pytest.raises(PolypsegError, match="split test: leaves no frames to learn from"):
        train_folds(replace(recipe, split=str(tmp_path / "test.csv")), [data], 3, tmp_path / "run")
    assert not (tmp_path / "run").exists()

    with pytest.raises(PolypsegError, match=r"differs in folds: 3 then, 4 now; use its recipe or another --out"):
        train_folds(recipe, [data], 4, finished, resume=True)
    other = replace(recipe, frames=replace(recipe.frames, size=96))
    with pytest.raises(PolypsegError, match=r"differs in frames\.size: 64 then, 96 now"):
        train_folds(other, [data], FOLDS, finished, resume=True)
    with pytest.raises(PolypsegError, match=r"differs in folds: 3 then, None now"):
        train(recipe, [data], finished, resume=True)
    one = replace(recipe, name="small-fold-1", split="x", trainer=replace(recipe.trainer, seed=42))
    with pytest.raises(PolypsegError, match=r"differs in folds: None then, 3 now"):
        train_folds(one, [data], 3, finished / "fold-1", resume=True)


def test_a_fold_that_was_changed_by_hand_is_told(
    finished: Path, data: Path, recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    table = pd.read_csv(out / "split.csv", dtype=str, keep_default_na=False)
    for fold in ("9", ""):
        table.assign(fold=table["fold"].replace("1", fold)).to_csv(out / "split.csv", index=False)
        with pytest.raises(PolypsegError, match=rf"split\.csv: frame .* has the fold '{fold}'; restore it"):
            train_folds(recipe, [data], FOLDS, out, resume=True)
