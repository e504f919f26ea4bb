"""From the words of a command line to the arguments of a verb: what may stand where, and what is said otherwise."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from polypseg.cli import main, parser
from polypseg.cli.verbs import VERBS
from polypseg.errors import UsageError
from polypseg.training.recipe import load_recipe, shipped_recipe, shipped_recipes


def parsed(line: str) -> dict[str, Any]:
    name, rest = parser.find(line.split(), VERBS)
    return parser.parse(VERBS[name], rest)


def complaint(line: str) -> str:
    with pytest.raises(UsageError) as error:
        parsed(line)
    text = str(error.value)
    assert len(text.splitlines()) == 1 and not any(
        word in text for word in ("Literal", "class '", "Parser key", "None")
    )
    return text


@pytest.mark.parametrize(
    "line",
    [
        "train a b", "train --data a b", "train --data a --data b", "train --data=a --data b", "train a --data b",
        "train a --out there b", "data check a b", "data show --data a b", "data split --name grouped a b",
        "evaluate runs/x --data a b", "evaluate --data a b --predictions there", "calibrate runs/x --data a --data=b",
        "average one two --data a b --out x", "export runs/x --data a b", "benchmark --data a b", "demo a b",
        "tune a b",
    ],
)  # fmt: skip
def test_every_verb_takes_several_data_sets(line: str) -> None:
    assert parsed(line)["data"] == ["a", "b"]


def test_a_model_behind_the_data_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name / "bundle").mkdir(parents=True)
        (tmp_path / name / "bundle" / "metadata.json").write_text("{}")
    for line, models in (
        ("evaluate --data a one", "one"), ("export --data a b polypseg-realtime", "polypseg-realtime"),
        ("average --data a one two --out x", ["one", "two"]),
    ):  # fmt: skip
        values = parsed(line)
        assert values.get("bundle", values.get("models")) == models and values["data"][0] == "a"
    assert parsed("evaluate two --data a one")["data"] == ["a", "one"]


def test_recipes_by_name_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no recipes/ here
    for name, file in shipped_recipes().items():
        assert parsed(f"train x --config {name}")["recipe"] == load_recipe(file)
    (tmp_path / "mine.yaml").write_text("name: mine\ntrainer: {epochs: 3}\n")
    assert parsed("tune x --config mine.yaml")["recipe"] == load_recipe("mine.yaml")
    # What stands on the command line wins, wherever it stands.
    recipe = parsed("train x --trainer.epochs 7 --config mine.yaml")["recipe"]
    assert (recipe.name, recipe.trainer.epochs) == ("mine", 7)
    assert "did you mean realtime?" in complaint("train x --config realtme")
    assert "choose" in complaint("train x --config mine.yml") and "mine.yml" in complaint("train x --config mine.yml")
    assert complaint("predict x --config no.yaml").startswith("--config no.yaml: is no file")


def test_a_wheel_has_the_recipes_where_they_are_looked_for() -> None:
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"recipes": "polypseg/recipes"}
    assert {file.stem for file in (root / "recipes").glob("*.yaml")} == set(shipped_recipes())


def test_without_a_recipe_it_is_the_one_that_works_offline() -> None:
    recipe, shipped = parsed("train x")["recipe"], load_recipe(shipped_recipe("two-cores"))
    assert (recipe.model, recipe.frames, recipe.trainer) == (shipped.model, shipped.frames, shipped.trainer)
    assert recipe.split == "grouped" and parsed("train x --split random.csv")["recipe"].split == "random.csv"
    assert parsed("train x --frames.size 64")["recipe"].frames.first_size is None  # would be larger


def test_fields_of_a_recipe_without_their_section() -> None:
    recipe = parsed("train x --epochs 3 --encoder resnet18 --patience=2 --dice-per-image")["recipe"]
    assert (recipe.trainer.epochs, recipe.model.encoder, recipe.trainer.patience) == (3, "resnet18", 2)
    assert recipe.loss.dice_per_image
    assert "--loss.presence or --model.presence" in complaint("train x --presence 1").replace(
        "--model.presence or --loss.presence", "--loss.presence or --model.presence"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train x --trainer.epoch 3", "did you mean --trainer.epochs?"),
        ("predict x --min_confidense 0.5", "did you mean --min_confidence?"),
        ("predict x --runtime openvin", "--runtime openvin: is unknown; choose auto, openvino, onnx or torch; did you"),
        ("train x --frames.cache dsk", "choose memory, disk or none; did you mean disk?"),
        ("train x --trainer.loggers wandbb", "is unknown; choose tensorboard"),
        ("evaluate x --data y --split holdout", "--split holdout: is unknown; choose train, val, test or all"),
        ("train x --frames.size many", "--frames.size many: must be a whole number"),
        ("predict x --threshold high", "--threshold high: must be a number"),
        ("predict x --fill_holes=maybe", "--fill_holes maybe: must be true or false"),
        ("train x --model.decoder_channels 32", "--model.decoder_channels 32: must be a list, as [32, 16]"),
        ("train x --frames.size 100", "frames.size 100: must be a multiple of 32"),
        ("train", "DATA or --data is missing"),
        ("export", "BUNDLE is missing"),
        ("evaluate x", "--data is missing"),
        ("data download one two", "two: is one word too many"),
        ("predict x --out", "--out: names nothing"),
        ("predict x --out --resume", "--out: names nothing"),
        ("predict x -r", "-r: is no option"),
        ("trian x", "did you mean train?"),
        ("segment x", "did you mean predict?"),
        ("val x", "did you mean evaluate?"),
        ("data shw x", "did you mean show?"),
        ("data", "needs one of list, download, check, split or show"),
        ("check x", "did you mean data check?"),
    ],
)
def test_what_is_wrong_is_told_in_plain_words(line: str, says: str) -> None:
    assert says in complaint(line)


def test_what_is_wrong_in_a_file_is_told_too(tmp_path: Path) -> None:
    for text, says in (
        ("tresholt: 0.5\n", "tresholt: is no option that a file of --config may contain; did you mean threshold?"),
        ("threads: many\n", "--threads many: must be a whole number"),
        ("a: [\n", "--config: is no YAML file with options"),
        ("just a text\n", "--config: is no YAML file with options"),
        ("threads: 1\nthreads: 2\n", "threads: stands twice in one place; remove one"),
    ):
        file = tmp_path / "options.yaml"
        file.write_text(text)
        assert says in complaint(f"predict x --config {file}")
    file.write_text("trainer:\n  epoch: 3\n")
    assert "trainer.epoch: is no option" in complaint(f"train x --config {file}")
    assert "did you mean trainer.epochs?" in complaint(f"train x --config {file}")
    file.write_bytes("name: café\n".encode("latin-1"))
    for verb in ("train", "predict"):
        assert "options.yaml: cannot be read (it is no UTF-8 text)" in complaint(f"{verb} x --config {file}")


def test_hyphens_are_underscores_and_a_dash_ends_the_options() -> None:
    assert parsed("predict x --min-confidence 0.5")["min_confidence"] == 0.5
    assert parsed("predict --resume -- --odd.png -x.png")["sources"] == ["--odd.png", "-x.png"]
    assert parsed("data check x --seed -1")["seed"] == -1


MISSING = [
    ["train", "nowhere"], ["train", ".", "--split", "no.csv"], ["train", ".", "--model.weights", "nowhere"],
    ["tune", "nowhere"], ["average", "nowhere", "x", "--data", ".", "--out", "y"],
    ["evaluate", "nowhere", "--data", "."], ["calibrate", "nowhere", "--data", "."], ["export", "nowhere"],
    ["benchmark", "nowhere"],
    ["predict", "x.png", "--model", "nowhere"], ["predict", "nowhere.png"], ["serve", "--model", "nowhere"],
    ["data", "check", "nowhere"], ["demo", "nowhere"], ["runs", "nowhere"], ["train", ".", "--config", "nowhere"],
]  # fmt: skip


def test_what_is_missing_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """In one process, for speed: nothing that is printed loads the libraries that take seconds."""
    code = (
        "import sys; from polypseg.cli import main\n"
        f"for words in {MISSING!r}:\n"
        "    assert main(words) in (1, 2), words\n"
        "    heavy = {'torch', 'lightning', 'matplotlib', 'openvino', 'sklearn'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(MISSING) and all(line.startswith("polypseg: ") for line in lines), done.stderr


@pytest.mark.parametrize("words", [["models"], ["train", "x"], ["data", "list"], ["runs"]])
def test_ctrl_c_is_130_in_every_verb(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parser, "parse", interrupted)
    assert main(words) == 130 and "polypseg: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "a.jpg", "--conf", "0.5"], "--conf: is no option; did you mean --min_confidence?"),
        (["predict", "a.jpg", "--weights", "x"], "--weights: is no option; did you mean --model?"),
        (["train", "--data", "x", "--imgsz", "640"], "--imgsz: is no option; did you mean --frames.size?"),
        (["predict", "source=a.jpg"], "source=a.jpg: options are written --name value, files without a name"),
        (["train", "--data", "x", "--model", "Unet"], "--model Unet: is no file of the section model; its fields are"),
    ],
)
def test_what_users_of_other_programs_type_first(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"polypseg: {says}")
