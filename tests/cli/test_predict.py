"""How the words after ``polypseg predict`` become arguments; tests/pipeline/test_predict.py tests what they do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from PIL import Image

from polypseg.benchmark.speed import RUNTIMES
from polypseg.cli import main
from polypseg.cli.benchmark import Timed
from polypseg.cli.predict import Saved
from polypseg.inference.augmentation import VIEWS, Augmented
from polypseg.io.outputs import OUTPUTS
from polypseg.pipeline import predict as module
from polypseg.pipeline.options import PredictOptions


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``predict`` is called with, instead of doing it; it then answers 1."""
    calls: list[dict[str, Any]] = []

    def stand_in(sources: list[str], out: str, options: PredictOptions, *, model: Any) -> int:
        calls.append({"sources": sources, "out": out, "model": model, **vars(options)})
        return 1

    monkeypatch.setattr(module, "predict", stand_in)
    monkeypatch.setattr("polypseg.cli.predict.check_models", list)  # the names of models mean nothing here
    return calls


def status_of(*arguments: object) -> int:
    try:
        return main(["predict", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_sources_alone(called: list[dict[str, Any]]) -> None:
    assert status_of("a.png", "some folder", "*.mp4", "0") == 1  # the status is passed on
    assert called == [
        {
            "sources": ["a.png", "some folder", "*.mp4", "0"], "model": (), "out": "predictions", "save": None,
            "runtime": "auto", "device": "auto", "precision": "auto", "threads": 0, "tta": None,
            "threshold": None, "min_confidence": None, "min_area": None, "fill_holes": None, "batch_size": None,
            "smoothing": 0.0, "resume": False, "overwrite": False, "live": False, "engine": None, "address": None,
            "workers": 0, "partition": 128, "memory": 512, "progress": True,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--min_confidence 2", "--min_confidence 2: must lie in 0..1"),
        ("--threshold -0.1", "--threshold -0.1: must lie in 0..1"),
        ("--min_area 1", "--min_area 1: must lie below 1, or no region is large enough"),
    ],
)
def test_an_operating_point_out_of_range_is_told_in_one_line(
    words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status_of("nothing-there.png", *words.split(), "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == f"polypseg: {says}\n" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a.png --threshold 0.4 --min_confidence 0.9 --min_area 0.001 --fill_holes true", {
            "threshold": 0.4, "min_confidence": 0.9, "min_area": 0.001, "fill_holes": True,
        }),
        ("a.png --save mask json csv", {"sources": ["a.png"], "save": ["mask", "json", "csv"]}),
        ("--save mask json a.png", {"sources": ["a.png"], "save": ["mask", "json"]}),
        ("--save coco --save csv a.png", {"sources": ["a.png"], "save": ["coco", "csv"]}),
        ("--save=overlay a.png", {"sources": ["a.png"], "save": ["overlay"]}),
        ("--model one a.png --model=two b.png", {"sources": ["a.png", "b.png"], "model": ["one", "two"]}),
        ("--overwrite a.png", {"sources": ["a.png"], "overwrite": True}),
        ("a.png --resume", {"sources": ["a.png"], "resume": True}),
        ("--resume false a.png", {"sources": ["a.png"], "resume": False}),
        ("--live", {"sources": [], "live": True}),
        ("camera:0 --live --out x", {"sources": ["camera:0"], "live": True, "out": "x"}),
        ("a.png --batch_size 3 --smoothing 0.5 --threads 2", {"batch_size": 3, "smoothing": 0.5, "threads": 2}),
        ("a.png --runtime torch --precision int8", {"runtime": "torch", "precision": "int8"}),
        ("a.png --device cuda --tta flips", {"device": "cuda", "tta": "flips"}),
        ("s3://a --engine ray --workers 3 --address h:1", {"engine": "ray", "workers": 3, "address": "h:1"}),
    ],
)  # fmt: skip
def test_options(words: str, expected: dict[str, Any], called: list[dict[str, Any]]) -> None:
    status_of(*words.split())
    assert {key: called[0][key] for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "sources", "save"),
    [
        ("--save json mask", ["mask"], ["json"]),
        ("--save json mask csv", ["mask", "csv"], ["json"]),
        ("--save mask", [], ["mask"]),
        ("--save mask json", [], ["mask", "json"]),
        ("mask --save json", ["mask"], ["json"]),
        ("--save json ./mask", ["./mask"], ["json"]),
        ("mask --save=json --save=mask", ["mask"], ["json", "mask"]),
    ],
)
def test_a_folder_called_like_an_output_is_a_source(
    words: str, sources: list[str], save: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    called: list[dict[str, Any]],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask").mkdir()
    (tmp_path / "csv").mkdir()
    status_of(*words.split())
    assert (called[0]["sources"], called[0]["save"]) == (sources, save)


def test_a_word_that_may_be_either_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask").mkdir()
    assert status_of("a.png", "--save", "json", "mask") == 2 and not called
    assert "--save mask: mask is also a file or folder here; write ./mask for that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("a.png --over", "--overwrite"), ("a.png --batch 3", "--batch_size"), ("a.png --devcie cpu", "--device"),
        ("a.png --save maks", "mask"), ("a.png --runtime openvin", "openvino"),
    ],
)  # fmt: skip
def test_no_abbreviations_and_the_nearest_is_named(
    words: str, near: str, called: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*words.split()) == 2 and not called
    error = capsys.readouterr().err
    assert f"did you mean {near}?" in error and "Literal" not in error and len(error.splitlines()) == 1


def test_a_word_that_is_no_utf8_is_told(called: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((os.fsdecode(b"caf\xe9.png"),), ("a.png", "--engine", "local", "--out", os.fsdecode(b"caf\xe9"))):
        assert status_of(*words) == 2 and not called
        assert r"caf\xe9" in capsys.readouterr().err


def test_ctrl_c_has_its_own_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "predict", interrupted)
    assert status_of("a.png") == 130 and "polypseg: interrupted" in capsys.readouterr().err


def test_options_from_a_file(tmp_path: Path, called: list[dict[str, Any]]) -> None:
    file = tmp_path / "predict.yaml"
    file.write_text("model: [one, two]\nsave: [mask, coco]\nout: there\n")
    status_of("a.png", "--config", file, "--out", "elsewhere")
    assert (called[0]["model"], called[0]["save"], called[0]["out"]) == (["one", "two"], ["mask", "coco"], "elsewhere")


def test_the_printed_options_can_be_read_back(
    tmp_path: Path, called: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--save", "mask", "csv", "--print_config") == 0
    printed = capsys.readouterr().out
    assert "# folder for the outputs" in printed and yaml.safe_load(printed)["save"] == ["mask", "csv"]
    (tmp_path / "predict.yaml").write_text(printed)
    status_of("--config", tmp_path / "predict.yaml", "a.png")
    assert called[0]["save"] == ["mask", "csv"] and called[0]["sources"] == ["a.png"]


@pytest.mark.parametrize(
    "words",
    [
        "", "a.png --save", "a.png --save masks", "a.png --model", "a.png --runtime tensorrt", "a.png --batch_size few",
        "a.png --tta twice", "a.png --no_such_option", "a.png --resume --overwrite", "a.png --live",
    ],
)  # fmt: skip
def test_wrong_arguments_exit_with_2_and_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    assert status_of(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("polypseg") and len(error.strip().splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("words", ["nowhere.png", "nowhere/*.png", "empty", "a.png --model nowhere"])
def test_failures_exit_with_1_and_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    (tmp_path / "empty").mkdir()
    assert status_of(*words.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"polypseg: {words.split()[-1]}: ") and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "predictions").exists()


def test_the_choices_of_the_command_line_are_those_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_args(Saved) == OUTPUTS
    assert get_args(Timed) == tuple(RUNTIMES)
    assert get_args(Augmented) == tuple(VIEWS)
    assert status_of("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"--{option}" in shown for option in ("model", "out", "save", "resume", "overwrite", "smoothing"))


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from polypseg.cli import main\n"
        "try: main(['predict', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'openvino', 'av', 'pydicom', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
