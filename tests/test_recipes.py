"""Every recipe: it parses, it is what the issue says, and one batch of it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from polypseg.training.recipe import load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))


def test_there_are_these() -> None:
    assert {path.stem for path in RECIPES} == {
        "baseline",
        "realtime",
        "realtime-second",
        "realtime-presence",
        "two-cores",
        "two-cores-second",
        "smoke",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_named_like_its_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_the_baseline_recipe_to_the_letter() -> None:
    recipe = load_recipe(RECIPES[0].with_name("baseline.yaml"))
    assert (recipe.model.name, recipe.model.encoder) == ("UnetPlusPlus", "efficientnet-b3")
    assert (recipe.model.encoder_weights, recipe.model.decoder_dropout) == ("imagenet", 0.4)
    assert (recipe.frames.size, recipe.frames.batch_size, recipe.frames.augmentation) == (256, 16, "baseline")
    assert (recipe.optimizer.name, recipe.optimizer.schedule, recipe.trainer.epochs) == ("adam", "cosine", 25)
    assert (recipe.loss.bce, recipe.loss.dice, recipe.split, recipe.threshold) == (1, 1, "random", 0.5)
    assert recipe.optimizer.ema_decay is None


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_one_epoch_of_each_recipe_runs(path: Path, phantom_folder: Path, tmp_path: Path) -> None:
    """Network, loss, optimiser and schedule as in the recipe; small frames, and no weights from the hub."""
    from polypseg.training.run import train

    recipe = load_recipe(path)
    model = recipe.model if recipe.model.encoder.startswith("tu-") else replace(recipe.model, encoder_weights="none")
    if model.weights is not None:  # of a run that is not here
        model = replace(model, weights="polypseg-realtime")
    recipe = replace(
        recipe,
        model=model,
        distillation=replace(recipe.distillation, teacher=recipe.distillation.teacher and "polypseg-realtime"),
        frames=replace(
            recipe.frames, size=64, first_size=recipe.frames.first_size and 32, last_size=None, batch_size=14, workers=0
        ),
        trainer=replace(recipe.trainer, epochs=1, loggers=()),
        split="random",
    )
    out = train(recipe, [phantom_folder], tmp_path / "run")
    metadata = yaml.safe_load((out / "bundle" / "metadata.json").read_text())
    assert metadata["metrics"]["test"]["n"] == 6
    said = (out / "log.txt").read_text()
    assert ("no place for decoder dropout" in said) == (recipe.model.decoder_dropout > 0)
