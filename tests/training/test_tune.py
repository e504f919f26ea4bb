"""`polypseg tune`: a study as its user meets it, and what may go wrong. Most trials here do not train."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from polypseg.cli import main
from polypseg.data import read_all
from polypseg.data.splits import make_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.training import tune as module
from polypseg.training.recipe import Recipe, load_recipe, with_values
from polypseg.training.space import DEFAULT_SPACE, read_space
from polypseg.training.tune import tune

pytestmark = pytest.mark.slow

optuna = pytest.importorskip("optuna", reason="needs the extra: pip install 'polypseg[tune]'")
SPACE = {
    "optimizer.learning_rate": {"low": "1e-3", "high": 1e-2, "log": True},
    "optimizer.ema_decay": {"choices": [None, 0.5]},
    "frames.batch_size": {"low": 7, "high": 9},
}


@pytest.fixture
def recipe(small_recipe: Callable[..., Any]) -> Recipe:
    return small_recipe(trainer={"epochs": 2, "threads": 1, "precision": "32-true"})


@pytest.fixture
def space(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return tmp_path / "space.yaml"


def dice_of(recipe: Recipe) -> float:
    """What the trials that do not train score; best at a learning rate of 1e-3."""
    return 1 - 10 * recipe.optimizer.learning_rate


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Trials that do not train; the recipes that they were given."""
    seen: list[Recipe] = []

    def fit(recipe: Recipe, frames: Any, folder: Path, callbacks: Sequence[Any]) -> float:
        seen.append(recipe)
        return dice_of(recipe)

    monkeypatch.setattr(module, "train_alone", fit)
    return seen


def trials(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "trials.csv", keep_default_na=False)


# ---- a search that trains --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_best_trial_is_a_recipe_and_no_test_frame_was_opened(
    phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / "phantom"))
    catalog = read_all([data])
    catalog = catalog.with_split(make_split("random", catalog))
    for row in catalog.of_split("test"):
        for file in (Path(row.image_path), Path(row.mask_path)):
            file.write_bytes(file.read_bytes()[:-200])  # whole enough to be listed, not to be decoded
    with pytest.raises(PolypsegError):
        catalog.of_split("test").frame(0)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    arguments = ["--config", str(tmp_path / "recipe.yaml"), "--data", str(data), "--space", str(space)]
    out = tmp_path / "out"
    assert main(["tune", *arguments, "--trials", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "best.yaml")

    table = trials(out)
    assert list(table["state"]) == ["complete", "complete"] and list(table["epochs"]) == [2, 2]
    curves = [pd.read_csv(out / "trials" / f"{number:04}" / "metrics.csv")["val_dice"] for number in (0, 1)]
    assert table["val_dice"].to_numpy() == pytest.approx([one.max() for one in curves], abs=1e-5)
    best = load_recipe(out / "best.yaml")
    row = table.loc[table["val_dice"].idxmax()]
    assert best.optimizer.learning_rate == pytest.approx(float(row["optimizer.learning_rate"]))
    assert best.frames.batch_size == row["frames.batch_size"] in (7, 8, 9)
    assert str(best.optimizer.ema_decay or "") == row["optimizer.ema_decay"]
    searched = {"optimizer": recipe.optimizer, "frames": recipe.frames}  # all else is as it was
    assert replace(best, **searched) == recipe
    assert f"validation Dice {row['val_dice']:.4f}" in (out / "best.yaml").read_text().splitlines()[0]
    assert load_recipe(out / "trials" / f"{row['trial']:04}" / "config.yaml") == best
    assert not list(out.rglob("*.ckpt"))
    # `train --config` takes it
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(out / "best.yaml"), "--data", "x", "--print_config"])
    assert ended.value.code == 0


@pytest.mark.slow
def test_a_trial_that_cannot_train_is_recorded(phantom_folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("optimizer.learning_rate: {choices: [1.0e+30]}")
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, name="adam", schedule="constant"))
    with pytest.raises(PolypsegError, match=r"trials\.csv: no trial is complete; see there, and raise --trials"):
        tune(recipe, [phantom_folder], 1, space=file, out=tmp_path / "out")
    (row,) = trials(tmp_path / "out").to_dict("records")
    assert row["state"] == "fail" and "loss is not finite in epoch 1" in row["error"]


# ---- studies ---------------------------------------------------------------------------------------------


def test_a_study_goes_on_where_it_was_and_repeats(
    phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path, quick: list[Recipe]
) -> None:
    out = tmp_path / "out"
    tune(recipe, [phantom_folder], 3, space=space, out=out)
    tune(recipe, [phantom_folder], 12, space=space, out=out)
    assert len(quick) == 12
    tune(recipe, [phantom_folder], 12, space=space, out=out)
    assert len(quick) == 12, "the study had all its trials"
    best = max(quick, key=dice_of)
    assert load_recipe(out / "best.yaml") == best
    # a search is repeated by its seed, however often it was stopped; another seed is another search
    assert len({one.optimizer.learning_rate for one in quick}) == 12
    tune(recipe, [phantom_folder], 12, space=space, out=tmp_path / "again")
    assert quick[12:] == quick[:12]
    other = replace(recipe, trainer=replace(recipe.trainer, seed=7))
    tune(other, [phantom_folder], 1, space=space, out=tmp_path / "other")
    assert quick[-1].optimizer != quick[0].optimizer


def test_an_interrupted_trial_is_begun_anew(
    phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Recipe] = []

    def fit(recipe: Recipe, frames: Any, folder: Path, callbacks: Any) -> float:
        seen.append(recipe)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return dice_of(recipe)

    monkeypatch.setattr(module, "train_alone", fit)
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, [phantom_folder], 3, space=space, out=tmp_path / "out")
    tune(recipe, [phantom_folder], 3, space=space, out=tmp_path / "out")
    assert len(seen) == 4 and seen[2] == seen[1]
    assert list(trials(tmp_path / "out")["state"]).count("complete") == 3


def test_a_trial_below_the_median_is_pruned(
    phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the validation Dice of each epoch, once there are enough trials to compare with."""
    epochs: list[int] = []

    def fit(recipe: Recipe, frames: Any, folder: Path, callbacks: Any) -> float:
        level = 0.8 if len(epochs) < module.FEWEST else 0.2
        epochs.append(0)
        for epoch in range(recipe.trainer.epochs):
            epochs[-1] = epoch + 1
            trainer = SimpleNamespace(callback_metrics={"val_dice": level + 0.01 * epoch}, current_epoch=epoch)
            for callback in callbacks:
                callback.on_train_epoch_end(trainer, None)
        return level

    monkeypatch.setattr(module, "train_alone", fit)
    recipe = replace(recipe, trainer=replace(recipe.trainer, epochs=10))
    tune(recipe, [phantom_folder], module.FEWEST + 2, space=space, out=tmp_path / "out")
    assert epochs == [10] * module.FEWEST + [3, 3]  # the first two epochs of ten are left alone
    table = trials(tmp_path / "out")
    assert list(table["state"]) == ["complete"] * module.FEWEST + ["pruned"] * 2
    assert list(table["epochs"]) == epochs


def test_failed_trials_are_no_end_until_all_fail(
    phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Recipe] = []

    def fit(recipe: Recipe, frames: Any, folder: Path, callbacks: Any) -> float:
        seen.append(recipe)
        if len(seen) in (1, 3) or len(seen) > 5:
            raise PolypsegError(f"trial {len(seen)} broke")
        return dice_of(recipe)

    monkeypatch.setattr(module, "train_alone", fit)
    tune(recipe, [phantom_folder], 5, space=space, out=tmp_path / "out")
    table = trials(tmp_path / "out")
    assert list(table["state"]) == ["fail", "complete", "fail", "complete", "complete"]
    assert list(table["error"]) == ["trial 1 broke", "", "trial 3 broke", "", ""]
    with pytest.raises(PolypsegError, match="5 trials failed one after another, the last one: trial 10 broke"):
        tune(recipe, [phantom_folder], 50, space=space, out=tmp_path / "out")
    assert len(trials(tmp_path / "out")) == 10
    assert load_recipe(tmp_path / "out" / "best.yaml") in seen


SCRIPT = """
import sys, time
from polypseg.training import tune as module
from polypseg.training.recipe import load_recipe

seconds, out, recipe, data, space, count, storage = float(sys.argv[1]), *sys.argv[2:]
module.SILENT_S = 3

def fit(recipe, frames, folder, callbacks):
    print("trial", flush=True)
    time.sleep(seconds)
    return 1 - 10 * recipe.optimizer.learning_rate

module.train_alone = fit
module.tune(load_recipe(recipe), [data], int(count), space=space, out=out, storage=storage)
"""


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, recipe: Recipe, forked: Start) -> Start:
    """Starts a process that tunes; takes the arguments of ``SCRIPT`` but the recipe."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.to_dict()))
    return lambda seconds, out, *rest: forked(SCRIPT, seconds, out, file, *rest)


@pytest.mark.slow
def test_two_processes_share_a_study(phantom_folder: Path, space: Path, start: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    arguments = (phantom_folder, space, 16, url)
    both = [start(0.3, tmp_path / name, *arguments) for name in ("one", "other")]
    assert [process.wait() for process in both] == [0, 0], [process.error.read_text() for process in both]
    counts = [process.out.read_text().splitlines().count("trial") for process in both]
    (study,) = optuna.get_all_study_summaries(url)
    table = optuna.load_study(study_name=study.study_name, storage=url).trials
    assert 16 <= sum(counts) == len(table) <= 17  # both may begin the last one
    assert min(counts) >= 1
    assert all(one.state.name == "COMPLETE" for one in table)
    assert len({one.params["optimizer.learning_rate"] for one in table}) == len(table)
    best = max(table, key=lambda one: one.value).params
    later = max((tmp_path / name / "best.yaml" for name in ("one", "other")), key=lambda file: file.stat().st_mtime_ns)
    assert load_recipe(later).optimizer.learning_rate == pytest.approx(best["optimizer.learning_rate"])


@pytest.mark.slow
def test_the_trial_of_a_killed_process_is_begun_anew(
    phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path, quick: list[Recipe], start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    process = start(600, out, phantom_folder, space, 2, url)
    process.wait_until(lambda: process.out.exists() and process.out.read_text() == "trial\n")
    time.sleep(1.5)  # a heartbeat
    process.end()
    monkeypatch.setattr(module, "SILENT_S", 3)
    time.sleep(4.5)
    tune(recipe, [phantom_folder], 2, space=space, out=out, storage=url)
    table = trials(out)
    assert sorted(table["state"]) == ["complete", "complete", "fail"]
    dead = table[table["state"] == "fail"].iloc[0]
    alike = table[table["optimizer.learning_rate"] == dead["optimizer.learning_rate"]]
    assert list(alike["state"]) == ["fail", "complete"] and len(quick) == 2


# ---- what may be wrong -----------------------------------------------------------------------------------


def test_another_study_under_the_same_name_is_refused(
    phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path, quick: list[Recipe]
) -> None:
    out = tmp_path / "out"
    tune(recipe, [phantom_folder], 1, space=space, out=out)
    url = f"sqlite:///{out / 'tune.db'}"
    wider = tmp_path / "wider.yaml"
    wider.write_text(yaml.safe_dump({**SPACE, "frames.batch_size": {"low": 7, "high": 12}}))
    larger = replace(recipe, frames=replace(recipe.frames, size=96))
    same = replace(recipe, frames=replace(recipe.frames, workers=2))  # says only how fast
    for recipe_now, space_now, data, says in (
        (recipe, wider, phantom_folder, r"differs in space\.frames\.batch_size\.high: 9 then, 12 now"),
        (larger, space, phantom_folder, r"differs in frames\.size: 64 then, 96 now"),
        (replace(recipe, split="grouped"), space, phantom_folder, r"differs in split: "),
    ):
        with pytest.raises(PolypsegError, match=says) as error:
            tune(recipe_now, [data], 5, space=space_now, out=out)
        assert str(error.value).startswith(f"{url}: its study small ") and "another --study" in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert len(quick) == 1
    tune(same, [phantom_folder], 2, space=space, out=out)
    tune(larger, [phantom_folder], 1, space=space, out=out, study="larger")  # in the same database
    assert len(quick) == 3
    optuna.create_study(storage=url, study_name="theirs").enqueue_trial({})
    with pytest.raises(PolypsegError, match="its study theirs is none of polypseg tune; give another --study"):
        tune(recipe, [phantom_folder], 5, space=space, out=out, study="theirs")


@pytest.mark.parametrize(
    ("storage", "says", "status"),
    [
        ("sqlite:////no/such/folder/tune.db", "cannot be used as the study's database (", 1),
        ("postgresql+nodriver://me:Secret@nowhere/x", "cannot be used as the study's database (", 1),
        ("tune.db", "--storage: is no URL of a database", 2),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(
    storage: str, says: str, status: int, phantom_folder: Path, space: Path, recipe: Recipe, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    found = main(
        ["tune", "--config", str(tmp_path / "recipe.yaml"), "--data", str(phantom_folder), "--space", str(space),
         "--out", str(tmp_path / "out"), "--storage", storage]
    )  # fmt: skip
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("polypseg: ")]
    assert found == status and len(error) == 1 and says in error[0]
    assert "Secret" not in error[0] and ("***@nowhere" in error[0] or "nowhere" not in storage)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "contains no fields"),
        ("[1, 2]", "contains no fields"),
        ("a: {choices: [1]}", "a: cannot be searched (a: is no field of a recipe"),
        ("optimizer: {choices: [1]}", "is no field of a recipe"),
        ("optimizer.rate: {low: 1, high: 2}", "is no field of a recipe"),
        ("optimizer.name: {choices: [adam, sgd]}", "optimizer.name: cannot be searched ("),
        ("frames.batch_size: {low: 0, high: 4}", "frames.batch_size 0: must be a whole number from 1"),
        ("frames.batch_size: {low: 1.5, high: 4}", "frames.batch_size: cannot be searched ("),
        ("loss.bce: {low: 2, high: 1}", "A below B"),
        ("loss.bce: {low: 0, high: 1, log: true}", "A below B"),
        ("loss.bce: {low: 0.1, high: x}", "A below B"),
        ("loss.bce: {low: 0.1}", "A below B"),
        ("loss.bce: {choices: []}", "A below B"),
        ("loss.bce: {choices: [[1]]}", "A below B"),
        ("loss.bce: 3", "A below B"),
        ("split: {choices: [random, grouped]}", "could not be compared"),
    ],
)
def test_a_space_that_cannot_be_searched(text: str, says: str, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)) as error:
        read_space(tmp_path / "space.yaml", recipe)
    assert str(error.value).startswith(f"{tmp_path / 'space.yaml'}: ") and len(str(error.value).splitlines()) == 1


def test_the_default_space_suits_every_recipe_that_ships(recipe: Recipe) -> None:
    recipes = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
    for one in [recipe, *map(load_recipe, recipes)]:
        assert read_space(None, one).keys() == DEFAULT_SPACE.keys()


def test_other_wrong_arguments_are_told_before_any_work(
    phantom_folder: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="--trials 0: must be 1 or more"):
        tune(recipe, [phantom_folder], 0, out=out)
    two = with_values(recipe, {"trainer.devices": 2})
    with pytest.raises(UsageError, match=r"with trainer\.devices 1 .*start the command several times"):
        tune(two, [phantom_folder], 1, out=out)
    with pytest.raises(PolypsegError, match=r"no\.yaml: cannot be read"):
        tune(recipe, [phantom_folder], 1, space=tmp_path / "no.yaml", out=out)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(PolypsegError, match=r"^tune: needs optuna; install the extra: pip install 'polypseg\[tune\]'$"):
        tune(recipe, [phantom_folder], 1, out=out)
    assert not out.exists()
