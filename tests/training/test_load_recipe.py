"""Recipe files read in Python: what the command line reads, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from polypseg.errors import PolypsegError, UsageError
from polypseg.training.recipe import Recipe, load_recipe

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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("frames:\n  sise: 64\n", "sise"),
        ("framez: 3\n", "framez"),
        ("frames:\n  size: big\n", "frames.size"),
        ("frames:\n  size: 100\n", "multiple of 32"),
        ("trainer:\n  loggers: [wandb]\n", "wandb"),
        ("- 1\n", "Unexpected"),
        ("", "Unexpected"),
        ("a: [\n", "parsing"),
    ],
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
