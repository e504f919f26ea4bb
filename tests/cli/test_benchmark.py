"""The verb ``benchmark``: what it prints and writes, and its exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polypseg.cli import main


@pytest.fixture
def bundle(light: Any) -> Path:
    folder: Path = light.folder
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main(["benchmark", *(str(argument) for argument in arguments)])
    except SystemExit as stop:  # argument errors and --help
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.slow
def test_it_prints_a_table_and_writes_two_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = run(
        capsys, bundle, "--out", tmp_path / "out", "--repeats", 1, "--frame_size", "80x60", "--threads", 1,
        "--runtimes", "openvino", "onnx",
    )  # fmt: skip
    assert (status, error) == (0, "")
    head, openvino, onnx, *files = out.splitlines()
    assert head.startswith("how") and openvino.startswith("openvino cpu fp32")
    assert onnx.startswith("onnx cpu fp32") and "polypseg export" in onnx  # it contains none, and that stops nothing
    assert files == [str(tmp_path / "out" / name) for name in ("benchmark.csv", "benchmark.json")]
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert report["provenance"]["frame_size"] == "80x60"
    assert [row["calls"] for row in report["rows"]] == [5, 0]


@pytest.mark.parametrize(
    "options",
    [
        ["--repeats", "0"], ["--repeats", "few"], ["--frame_size", "720p"], ["--threads", "-1"],
        ["--runtimes", "tensorrt"], ["--split", "holdout"], ["--data"], ["--runtimes"], ["--no_such_option", "1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_options_exit_with_2_and_one_line(
    options: list[str], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = run(capsys, bundle, "--out", tmp_path / "out", *options)
    assert (status, out) == (2, "")
    assert error.startswith("polypseg") and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_way_exits_with_1_and_one_line(
    bundle: Path, tmp_path: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for says, *arguments in (
        ("nowhere", tmp_path / "nowhere"),
        ("nowhere", bundle, "--data", tmp_path / "nowhere"),
        ("--split_file", bundle, "--data", phantom_folder),  # this bundle names no split
        ("file", bundle, "--out", tmp_path / "file"),
        ("polypseg export", bundle, "--out", tmp_path / "out", "--frame_size", "80x60", "--runtimes", "onnx"),
    ):
        status, out, error = run(capsys, *arguments)
        assert (status, out) == (1, "")
        assert error.startswith("polypseg: ") and says in error and len(error.strip().splitlines()) == 1


def test_an_interrupt_exits_with_130(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polypseg.benchmark.speed.take_turns", interrupted)
    status, _, error = run(capsys, bundle, "--out", tmp_path / "out", "--frame_size", "80x60", "--runtimes", "openvino")
    assert status == 130 and "interrupted" in error
    assert list((tmp_path / "out").iterdir()) == []
