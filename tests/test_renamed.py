"""Old spellings: taken for one release, with one warning that names the new one; none in what was written before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import polypseg
from polypseg import renamed
from polypseg.api import _recipe
from polypseg.bundle import ModelBundle
from polypseg.cli import parser
from polypseg.cli.verbs import VERBS
from polypseg.data import read
from polypseg.data.splits import make_split
from polypseg.errors import UsageError
from polypseg.export.card import render
from polypseg.pipeline.options import PredictOptions
from polypseg.training.recipe import FramesConfig, Recipe, first_difference, load_recipe, shipped_recipe

ROOT = Path(__file__).resolve().parents[1]
OLD = """\
name: mine
tta: small
split: seed
frames: {augmentation: seed}
teacher: {bundle: polypseg-realtime, weight: 1e-1, tta: flip}
"""
NEW = """\
name: mine
tta: multiscale
split: random
frames: {augmentation: baseline}
distillation: {teacher: polypseg-realtime, weight: 1e-1, tta: hflip}
"""


@pytest.fixture(autouse=True)
def _a_process_of_its_own() -> Iterator[None]:
    renamed._warn.cache_clear()
    yield
    renamed._warn.cache_clear()


def parsed(line: str) -> dict[str, Any]:
    name, rest = parser.find(line.split(), VERBS)
    return parser.parse(VERBS[name], rest)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("predict a.png --tta flip", "predict a.png --tta hflip", "tta flip: is an old spelling, .*; write hflip"),
        ("serve --tta small", "serve --tta multiscale", "tta small: .*; write multiscale"),
        ("data split a --name seed --out o", "data split a --name random --out o", "split seed: .*; write random"),
        ("data check a --split seed", "data check a --split random", "split seed: .*; write random"),
        ("train a --config seed", "train a --config baseline", "recipe seed: .*; write baseline"),
        ("tune a --split seed", "tune a --split random", "split seed: .*; write random"),
        ("train a --augmentation seed", "train a --augmentation baseline", "augmentation seed: .*; write baseline"),
        ("train a --teacher.bundle m", "train a --distillation.teacher m", r".*; write distillation\.teacher"),
        ("train a --teacher.tta none", "train a --distillation.tta none", r".*; write distillation\.tta"),
        ("average a b --data d --out o --of answers", "average a b --data d --out o --of predictions", ".*predictions"),
    ],
)
def test_the_command_line(old: str, new: str, warning: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = parsed(new)
    assert not warned(caplog)
    assert parsed(old) == expected
    (line,) = warned(caplog)
    assert re.fullmatch(warning, line)
    parsed(old)
    assert len(warned(caplog)) == 1  # once a process


def test_an_old_word_means_nothing_elsewhere() -> None:
    assert parsed("train a --name seed")["recipe"].name == "seed"
    with pytest.raises(UsageError, match="--split seed: is unknown; choose train, val, test or all"):
        parsed("evaluate --data a --split seed")


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("old", OLD), ("new", NEW), ("options", "tta: flip\n"), ("split", "name: seed\nout: o.csv\n")):
        Path(f"{name}.yaml").write_text(text)
    Path("section.yaml").write_text("bundle: polypseg-realtime\nweight: 1e-1\ntta: flip\n")
    expected = load_recipe("new.yaml")
    assert expected.distillation.weight == 0.1 and not warned(caplog)
    assert load_recipe("old.yaml") == parsed("train a --config old.yaml")["recipe"] == expected
    assert len(warned(caplog)) == 5  # each once: two views, split, augmentation, section
    by_section = parsed("train a --config new.yaml --teacher section.yaml")["recipe"]
    assert by_section.distillation == expected.distillation
    assert parsed("predict x.png --config options.yaml")["tta"] == "hflip"
    assert parsed("data split a --config split.yaml")["name"] == "random"


def test_what_is_wrong_under_an_old_name_is_still_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {weight: 2}\n")
    with pytest.raises(UsageError, match=r"distillation\.weight 2.*: must be a number from 0 to 1"):
        load_recipe(file)
    file.write_text("teacher: {wait: 1}\n")
    with pytest.raises(UsageError, match="'distillation' does not accept option 'wait'"):
        load_recipe(file)


def test_python(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, untrained: ModelBundle, phantom_folder: Path
) -> None:
    monkeypatch.chdir(ROOT)  # where the recipes lie
    expected = Recipe(tta="hflip", split="random", frames=FramesConfig(augmentation="baseline"))
    assert Recipe(tta="flip", split="seed", frames=FramesConfig(augmentation="seed")) == expected  # type: ignore[arg-type]
    settings = {"teacher": {"bundle": "polypseg-realtime", "weight": 1.0}, "tta": "flip"}
    assert _recipe("baseline", settings) == _recipe(
        "baseline", {"distillation": {"teacher": "polypseg-realtime", "weight": 1.0}, "tta": "hflip"}
    )
    assert _recipe("baseline", {"teacher.weight": 0.25}).distillation.weight == 0.25
    assert _recipe("baseline", {"teacher": "a-model"}).distillation.teacher == "a-model"  # the field that is called so
    assert _recipe("seed", {}) == load_recipe(shipped_recipe("baseline"))
    assert load_recipe("recipes/seed.yaml") == load_recipe("recipes/baseline.yaml")
    assert PredictOptions(tta="small").tta == "multiscale"
    assert polypseg.load(untrained, "torch", "cpu", tta="flip").settings["tta"] == "hflip"
    frames = read(phantom_folder)
    pd.testing.assert_frame_equal(make_split("seed", frames), make_split("random", frames))
    assert len(warned(caplog)) == len(set(warned(caplog))) > 5


def test_what_was_written_before_is_read_silently(
    tmp_path: Path, untrained: ModelBundle, caplog: pytest.LogCaptureFixture
) -> None:
    """A bundle's own views, the recipe in its card, a run to resume: not the reader's fault."""
    old = Recipe(name="mine").to_dict()
    del old["distillation"]
    old |= {"tta": "small", "split": "seed", "teacher": {"bundle": "m", "weight": 1.0, "tta": "flip"}}
    old["frames"]["augmentation"] = "seed"
    now = {"distillation": {"teacher": "m", "weight": 1.0, "tta": "hflip"}, "tta": "multiscale"}
    assert first_difference(old, _recipe(Recipe(name="mine"), now).to_dict()) is None
    metadata = json.loads((untrained.folder / "metadata.json").read_text())
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in untrained.folder.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "metadata.json").write_text(json.dumps({**metadata, "tta": "small", "recipe": old}))
    bundle = ModelBundle.load(folder)
    assert bundle.tta == polypseg.load(bundle, "torch", "cpu").tta == "multiscale"
    card = render(bundle)
    assert "teacher: m" in card and "augmentation: baseline" in card and "tta: multiscale" in card
    assert "calibrate runs/again --tta" not in card  # it has the views of its recipe
    assert not warned(caplog)


def test_the_shipped_model_is_read_silently(caplog: pytest.LogCaptureFixture) -> None:
    bundle = polypseg.zoo.open("polypseg-realtime")
    assert bundle.tta in ("none", "hflip", "flips", "multiscale") and "distillation:" in render(bundle)
    assert not warned(caplog)


def test_they_stand_in_the_changelog_and_go_with_the_next_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    pairs = [pair for names in renamed.VALUES.values() for pair in names.items()] + list(renamed.FIELDS.items())
    assert [pair for pair in pairs if f"`{pair[0]}` | `{pair[1]}`" not in text] == []
    assert tuple(map(int, polypseg.__version__.split(".")[:2])) <= tuple(map(int, renamed.LAST.split(".")))
