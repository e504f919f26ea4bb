"""The command line as other programs rely on it: verbs, options, exit statuses, what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from polypseg.cli import demo, main
from polypseg.errors import PolypsegError
from polypseg.training.recipe import load_recipe, shipped_recipe, with_values


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argument errors and --help
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_names_every_verb_and_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(verb in out for verb in ("data", "train", "demo"))
    code = (
        "import sys; from polypseg.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'lightning', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["trian"], ["data"], ["data", "shw"], ["train"], ["data", "split", "--data", "x", "--name", "nonsense"],
        ["data", "show", "--count", "many", "--data", "x"], ["data", "show", "--no_such_option"], ["train", "--data"],
        ["train", "--data", "x", "--frames.size", "100"], ["train", "--data", "x", "--config", "no-such.yaml"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_arguments_exit_with_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert len(error.strip().splitlines()) == 1 and error.startswith("polypseg")


def test_what_is_logged_stays_on_one_line() -> None:
    """Whatever a file is called."""
    code = (
        "import logging; from polypseg.cli.process import set_up; set_up(); logging.warning('%s: is gone', 'a\\nb\\r')"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert found.stderr == b"a\\nb\\r: is gone" + os.linesep.encode()


def test_an_error_is_of_sensible_length() -> None:
    line = str(PolypsegError(f"first: {'x' * 1_000_000}; last"))
    assert len(line) < 11_000 and line.startswith("first: x") and line.endswith("x; last")


def test_printed_config_is_commented_and_can_be_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "train", "--print_config")
    assert status == 0 and "# rows and columns of the network's input, pixels" in out
    values = yaml.safe_load(out)
    # Without --config it is the recipe for which nothing is downloaded, with the split that suits any frames.
    offline = with_values(load_recipe(shipped_recipe("two-cores")), {"split": "grouped"}).to_dict()
    assert {key: values[key] for key in offline} == offline
    (tmp_path / "config.yaml").write_text(out)
    status, again, _ = run(capsys, "train", "--config", tmp_path / "config.yaml", "--frames.size", 96, "--print_config")
    assert status == 0
    values["frames"]["size"] = 96
    assert yaml.safe_load(again) == values


def test_data_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "data", "list")
    assert status == 0 and all(name in out for name in ("kvasir-seg", "cvc-clinicdb", "phantom"))


@pytest.mark.slow
def test_phantom_to_split(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "data", "download", "phantom", "--out", tmp_path, "--count", 12, "--seed", 5)
    folder = tmp_path / "phantom"
    assert status == 0 and out.strip() == str(folder) and len(list((folder / "images").iterdir())) == 12
    split = tmp_path / "split.csv"
    status, out, _ = run(capsys, "data", "split", "--data", folder, "--name", "random", "--out", split)
    table = pd.read_csv(split, dtype=str)
    assert status == 0 and "8 train, 2 val, 2 test" in out
    assert list(table.columns) == ["dataset", "frame_id", "split"] and len(table) == 12
    status, out, _ = run(capsys, "data", "check", "--data", folder, "--split", split, "--out", tmp_path / "check")
    assert status == 0
    assert json.loads((tmp_path / "check" / "audit.json").read_text())
    status, out, _ = run(capsys, "data", "show", "--data", folder, "--out", tmp_path / "show.png", "--count", 3)
    assert status == 0 and Image.open(tmp_path / "show.png").width > 300


def test_data_may_be_given_several_times(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, phantom_folder: Path
) -> None:
    other = tmp_path / "other one"
    for kind in ("images", "masks"):
        (other / kind).mkdir(parents=True)
        for index in range(8):
            Image.new("L", (64, 48), 255 * (index % 2)).save(other / kind / f"{index:03d}.png")
    split = tmp_path / "split.csv"
    status, _, _ = run(
        capsys, "data", "split", "--data", phantom_folder, f"--data={other}", "--name", "random", "--out", split
    )
    table = pd.read_csv(split, dtype=str)
    assert status == 0
    assert table["dataset"].value_counts().to_dict() == {"phantom": 40, "other-one": 8}
    assert "007" in set(table["frame_id"])


def test_failures_exit_with_1_and_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (
        ["data", "show", "--data", tmp_path / "nowhere"],
        ["data", "split", "--data", tmp_path, "--name", "random"],
        [
            "train",
            "--data",
            tmp_path / "nowhere",
            "--out",
            tmp_path / "run",
            "--model.encoder_weights",
            "none",
        ],
    ):
        status, _, error = run(capsys, *arguments)
        assert status == 1
        lines = error.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("polypseg: ") and str(tmp_path) in lines[0]


def test_no_abbreviations_of_a_recipes_fields(capsys: pytest.CaptureFixture[str]) -> None:
    for words, near in (
        (("train", "--data", "x", "--trainer.epoch", "3"), "--trainer.epochs"), (("trian",), "train"),
        (("data", "chek"), "check"), (("train", "--data", "x", "--frames.cache", "dsk"), "disk"),
    ):  # fmt: skip
        status, _, error = run(capsys, *words)
        assert status == 2 and f"did you mean {near}?" in error and len(error.splitlines()) == 1


def test_the_demo_takes_every_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "_step", lambda *words: steps.append(words))
    data = [tmp_path / "a", tmp_path / "b"]
    for folder in data:
        folder.mkdir()
    with pytest.raises(FileNotFoundError):  # no step was done, so that there are no scores
        main(["demo", *map(str, data), "--out", str(tmp_path)])
    named = [words[words.index("--data") + 1 :][:2] for words in steps]
    assert named == [tuple(map(str, data))] * 4


def test_version() -> None:
    out = subprocess.run([sys.executable, "-m", "polypseg", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("polypseg 0.")


@pytest.mark.slow
def test_demo_walks_through_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The demo itself, on fewer and smaller steps: the recipe is cut to one epoch of 64 pixels."""
    recipe = tmp_path / "quick.yaml"
    text = (Path(__file__).resolve().parents[2] / "recipes" / "smoke.yaml").read_text()
    recipe.write_text(text.replace("epochs: 4", "epochs: 1").replace("size: 128", "size: 64"))
    from polypseg.data import phantom

    data = phantom.write(tmp_path / "frames", 30, seed=2, height=72, width=88)
    status, out, error = run(capsys, "demo", "--data", data, "--out", tmp_path / "demo", "--recipe_file", recipe)
    assert status == 0, error
    for name in ("frames.png", "split.csv", "check/audit.json", "run/curves.png", "run/predictions.png"):
        assert (tmp_path / "demo" / name).is_file(), name
        if name.startswith("run"):
            assert str(tmp_path / "demo" / name) in out
    assert out.count("$ polypseg ") == 4
