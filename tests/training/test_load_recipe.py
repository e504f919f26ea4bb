"""Recipe files read in Python: what the command line reads, and one line for what is wrong."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from polypseg.errors import PolypsegError, UsageError
from polypseg.training.ranges import RANGES
from polypseg.training.recipe import Recipe, field_types, load_recipe, with_values

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_it_holds_what_the_file_says_and_defaults_for_the_rest(path: Path) -> None:
    recipe = load_recipe(path)
    written = yaml.safe_load(path.read_text())
    expected = Recipe(name=recipe.name).to_dict()
    for key, value in written.items():
        expected[key] = {**expected[key], **value} if isinstance(value, dict) else value
    assert recipe.to_dict() == expected


def test_a_runs_config_gives_its_recipe_back(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(tmp_path / "config.yaml") == recipe


# Each line ten times the one above it: 100 million values, in 500 bytes.
BOMB = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("frames:\n  sise: 64\n", "sise"),
        ("framez: 3\n", "framez"),
        ("frames:\n  size: big\n", "frames.size"),
        ("frames:\n  size: 100\n", "multiple of 32"),
        ("trainer:\n  loggers: [comet]\n", "comet"),
        ("- 1\n", "Unexpected"),
        ("", "Unexpected"),
        ("a: [\n", "parsing"),
        ("trainer: {epochs: 1}\ntrainer: {epochs: 2}\n", "trainer: stands twice"),
        ("trainer:\n  epochs: 1\n  epochs: 2\n", "epochs: stands twice"),
        ("a: &a [*a]\n", "contains itself"),
        ("frames: " + "[" * 3000 + "]" * 3000 + "\n", "nested too deeply"),
        (BOMB, "more than 10000 values"),
        (f"name: {'a' * 2_000_000}\n", "more than 10000 values"),
        ("trainer: {epochs: .nan}\n", "trainer.epochs"),
        ("optimizer: {learning_rate: .inf}\n", "learning_rate inf: must be a number of 0 or more"),
        ('trainer: !!python/object/apply:os.system ["true"]\n', "parsing"),
    ],
    ids=range(17),
)
def test_a_wrong_file_is_told_in_one_line(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=reason) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(PolypsegError, match="cannot be read") as caught:
            load_recipe(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_every_number_has_its_range() -> None:
    numbers = {name for name, kind in field_types().items() if re.search(r"\b(int|float)\b", str(kind))}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_number_out_of_its_range_is_told_by_its_name(name: str) -> None:
    """In a file, by ``with_values`` (and so in a search), and in Python."""
    within = RANGES[name]
    outside = [within.low - within.step, math.nan, math.inf, -math.inf, True]
    outside += [within.high] if within.below else [within.high + within.step] if within.high < math.inf else []
    outside += [within.low + 1] if within.step > 1 else []
    section, _, field = name.rpartition(".")
    for value in outside:
        given = (value,) * 5 if name == "model.decoder_channels" else value
        inner = {section: replace(getattr(Recipe(), section), **{field: given})} if section else {field: given}
        with pytest.raises(UsageError, match=rf"^{re.escape(name)} .*: must be a (number|whole|multiple)"):
            Recipe(**inner)
        with pytest.raises(UsageError, match=re.escape(name)):
            with_values(Recipe(), {name: given})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("optimizer", {"schedule": "cos"}, r"optimizer\.schedule 'cos': is unknown; choose cosine, one_cycle or const"),
        ("trainer", {"loggers": ("comet",)}, r"trainer\.loggers \['comet'\]: .* choose tensorboard, mlflow or wandb"),
        ("trainer", {"channels_last": "no"}, r"trainer\.channels_last 'no': must be true or false"),
        ("frames", {"size": "64"}, r"frames\.size '64': must be a multiple of 32"),
        ("frames", {"last_size": 512}, r"frames\.last_size 512: must not be larger than frames\.size, 256"),
        ("frames", {"first_size": 224, "last_size": 192}, r"frames\.first_size 224: .* than frames\.last_size, 192"),
        ("model", {"decoder_channels": (32, 0)}, r"model\.decoder_channels \[32, 0\]: must be a whole number from 1"),
        ("model", {"weights": ""}, r"model\.weights '': must not be empty"),
        ("loss", {"bce": 0.0, "dice": 0.0}, r"loss\.bce and loss\.dice: are both 0"),
    ],
)
def test_other_values_that_cannot_be(section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**{section: replace(getattr(Recipe(), section), **values)})


@pytest.mark.parametrize("name", [".", "..", "a/b", "", "a\nb", "é" * 101])
def test_a_name_that_cannot_name_a_folder(name: str) -> None:
    with pytest.raises(UsageError, match=r"^name .*(cannot name a folder|must not be empty)"):
        Recipe(name=name)
