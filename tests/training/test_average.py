"""`polypseg average`: the mean of weights, chosen anew on validation, never across splits or architectures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polypseg import ModelBundle
from polypseg.cli import main
from polypseg.data import read_all
from polypseg.data.splits import read_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.choosing import THRESHOLDS
from polypseg.export.card import render
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.overlap import dice
from polypseg.training.average import average, mean_of
from polypseg.training.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> list[Path]:
    """Two runs, the second fine-tuned from the first at another output_stride; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    first = train(small_recipe(trainer={"epochs": 1}), [phantom_folder], folder / "first")
    model = {"weights": str(first), "output_stride": 2}
    second = small_recipe(model=model, trainer={"epochs": 1}, optimizer={"learning_rate": 1e-2})
    return [first, train(second, [phantom_folder], folder / "second")]


def test_weights_are_averaged_and_counters_kept() -> None:
    one = {"weight": torch.tensor([1.0, 3.0]), "half": torch.tensor([1.0], dtype=torch.float16), "n": torch.tensor(7)}
    other = {
        "weight": torch.tensor([2.0, -3.0]),
        "half": torch.tensor([2.0], dtype=torch.float16),
        "n": torch.tensor(9),
    }
    mean = mean_of([one, other])
    assert mean["weight"].tolist() == [1.5, 0.0]
    assert mean["half"].tolist() == [1.5] and mean["half"].dtype == torch.float16
    assert mean["n"].item() == 7
    assert mean_of([one, one, other])["weight"].tolist() == pytest.approx([4 / 3, 1.0])


def test_the_average_is_a_bundle_chosen_on_validation(
    runs: list[Path], tmp_path: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mean"
    words = ["average", *map(str, runs), "--data", str(phantom_folder), "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(out)
    made, first, second = (ModelBundle.load(one) for one in (out, *runs))
    for name, value in made.weights().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (first.weights()[name] + second.weights()[name]) / 2)
    assert made.architecture == first.architecture != second.architecture
    assert made.name == "mean" and made.threshold in THRESHOLDS
    before, after = (
        {"name": "small", "hash": one.hash, "epoch": 1, "recipe": one.metadata["recipe"]} for one in (first, second)
    )
    assert made.metadata["averaged_from"] == [before, {**after, "started_from": before}]
    assert made.metadata["encoder_weights"] == first.metadata["encoder_weights"]
    assert "the mean of those of" in render(made)
    validation = read_all([phantom_folder]).with_split(read_split(out / "split.csv")).of_split("val")
    segmenter = Segmenter(made)
    shown = [i for i in range(len(validation)) if validation.mask(i).any()]
    scores = [dice(segmenter.segment(validation.frame(i)).mask, validation.mask(i)) for i in shown]
    assert made.frames() == first.frames() is not None
    written = json.loads((out / "test.json").read_text())
    assert written["metrics"]["val"]["dice"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert set(written["metrics"]) == {"val", "test"} and (out / "predictions.png").is_file()
    assert f"{runs[1]}, on validation: dice" in (out / "log.txt").read_text()
    assert main(words) == 1
    assert "contains a run already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_a_mean_of_a_mean_tells_all_its_training(
    runs: list[Path], tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    mean = average(runs, [phantom_folder], tmp_path / "mean")
    recipe = small_recipe(name="third", model={"weights": str(mean)}, trainer={"epochs": 1, "keep": "last"})
    third = train(recipe, [phantom_folder], tmp_path / "third")
    assert "| epoch taken | 1, the last |" in render(ModelBundle.load(third))
    assert "| epoch taken | 1, the best on validation |" in render(ModelBundle.load(runs[0]))
    made = ModelBundle.load(average([mean, third], [phantom_folder], tmp_path / "both"))
    nested, last = made.metadata["averaged_from"]
    assert nested == {
        "name": "mean",
        "hash": ModelBundle.load(mean).hash,
        "averaged_from": ModelBundle.load(mean).metadata["averaged_from"],
    }
    assert last["epoch"] == 1 and last["recipe"]["model"]["weights"] == str(mean)
    assert last["started_from"] == nested  # the mean, whose own training is listed once below
    commands = [line.split(" --data")[0] for line in render(made).splitlines() if line.startswith("polypseg ")]
    assert commands[-5:] == [
        "polypseg train --config small.yaml",
        "polypseg train --config small.yaml",
        "polypseg average runs/small runs/small",
        "polypseg train --config third.yaml",
        "polypseg average runs/mean runs/third",
    ]


def test_predictions_of_networks_of_any_kind_are_averaged(
    runs: list[Path], tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    larger = train(
        small_recipe(name="larger", frames={"size": 96}, trainer={"epochs": 1}), [phantom_folder], tmp_path / "larger"
    )
    out = tmp_path / "both"
    words = ["average", str(runs[0]), str(larger), "--data", str(phantom_folder), "--out", str(out)]
    assert main(words) == 1
    assert "or make an ensemble (--of predictions)" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--of", "predictions"]) == 0
    made, members = ModelBundle.load(out), [ModelBundle.load(one) for one in (runs[0], larger)]
    assert [one.hash for one in made.members] == [one.hash for one in members]
    assert made.name == "both" and made.threshold in THRESHOLDS
    assert made.metadata["split"] == members[0].metadata["split"] and "recipe" not in made.metadata
    catalog = read_all([phantom_folder]).with_split(read_split(out / "split.csv")).of_split("test")
    frame = catalog.frame(0)
    several = Segmenter(members).segment(frame).probability
    assert abs(Segmenter(made).segment(frame).probability - several).max() < 1e-6
    written = json.loads((out / "test.json").read_text())
    assert set(written["metrics"]) == {"val", "test"} and written["metrics"] == made.metadata["metrics"]

    assert made.lineage() == {
        "name": "both", "hash": made.hash, "ensemble_of": [one.lineage() for one in members]
    }  # fmt: skip
    card = render(made)
    assert (
        f"| ensemble | the mean of the predictions of small ({members[0].hash[:12]}), larger ({members[1].hash[:12]}) |"
        in card
    )
    assert [line.split(" --data")[0] for line in card.splitlines() if line.startswith("polypseg ")][-3:] == [
        "polypseg train --config small.yaml",
        "polypseg train --config larger.yaml",
        "polypseg average runs/small runs/larger",
    ]
    assert '" --of predictions --out runs/again' in card


def test_what_cannot_be_averaged_is_refused_before_anything_is_written(
    runs: list[Path], tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.ERROR, "polypseg")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="two or more models"):
        average([runs[0]], [phantom_folder], out)
    other = train(
        small_recipe(split="grouped", model={"weights": str(runs[0])}, trainer={"epochs": 1}),
        [phantom_folder], tmp_path / "other",
    )  # fmt: skip
    with pytest.raises(PolypsegError, match="other: was trained by another split than random"):
        average([runs[0], other], [phantom_folder], out)
    larger = train(small_recipe(frames={"size": 96}, trainer={"epochs": 1}), [phantom_folder], tmp_path / "larger")
    with pytest.raises(PolypsegError, match="larger: its preprocessing has height 96, the first one's 64"):
        average([runs[0], larger], [phantom_folder], out)
    members = {"one": ModelBundle.load(runs[0]), "two": ModelBundle.load(runs[1])}
    joined = ModelBundle.join(tmp_path / "joined", members, name="joined", threshold=0.5)
    with pytest.raises(PolypsegError, match="is an ensemble"):
        average([runs[0], joined.folder], [phantom_folder], out)
    assert not out.exists()
