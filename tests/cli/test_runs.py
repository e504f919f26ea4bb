"""``polypseg runs``: what was trained, as a table and as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from polypseg.cli import main
from polypseg.training.runs import find_runs


def finished(folder: Path, stamp: str, test: float | None = 0.81, **metadata: Any) -> Path:
    """A run folder as training leaves it, as far as it is read."""
    begun(folder, stamp)
    (folder / "bundle").mkdir()
    values = {
        "name": folder.name, "data": {"datasets": ["kvasir-seg"]}, "split": {"name": "grouped"},
        "operating_point": {"threshold": 0.5, "min_confidence": 0.63},
        "operating_point_choice": {"chosen": {"found": 0.9, "right": 0.8}}, **metadata,
    }  # fmt: skip
    (folder / "bundle" / "metadata.json").write_text(json.dumps(values))
    (folder / "bundle" / "model.safetensors").write_bytes(bytes(2_000_000))
    metrics = {"val": {"n": 3, "dice": 0.8}, "test": {"n": 3, "dice": test}}
    (folder / "test.json").write_text(json.dumps({"metrics": metrics, "provenance": {}}))
    return folder


def begun(folder: Path, stamp: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "split": "grouped"}))
    (folder / "split.csv").write_text("dataset,frame_id,split\npolypgen,1,train\ncvc-clinicdb,2,val\n")
    (folder / "metrics.csv").write_text("epoch,val_dice\n0,0.5\n1,0.7\n2,0.6\n")
    (folder / "log.txt").write_text(f"2020-01-01 00:00:00 training\n{stamp} done\nand a line without a time\n")
    return folder


def test_a_table_of_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Path("runs/late"), "2026-03-02 10:00:00")
    finished(Path("runs/inner/early"), "2026-03-01 10:00:00", None)
    begun(Path("runs/half"), "2026-03-01 12:00:00")
    begun(Path("runs/late/fold-1"), "2026-03-01 12:00:00")  # belongs to its run
    begun(Path("runs/search/trials/1"), "2026-03-01 12:00:00")  # to its search
    Path("runs/notes").mkdir()
    assert main(["runs"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "date", "data", "split"]
    assert [row.split()[0] for row in rows] == ["inner/early", "half", "late"]
    assert rows[0].split()[-6:] == ["0.8000", "–", "0.900", "0.800", "0.50/0.63", "2.0"]
    assert "0.7000" in rows[1] and "3 epochs so far" in rows[1] and "cvc-clinicdb polypgen" in rows[1]
    assert rows[2].split() == [
        "late", "2026-03-02", "10:00", "kvasir-seg", "grouped", "0.8000", "0.8100", "0.900", "0.800",
        "0.50/0.63", "2.0",
    ]  # fmt: skip
    assert main(["runs", "runs/late", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["name"], one["test_dice"], one["epochs"], one["problem"]) == ("late", 0.81, 3, None)
    assert one["bytes"] == sum(file.stat().st_size for file in Path("runs/late/bundle").iterdir())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", "a: ["), ("config.yaml", "text"), ("test.json", "{"), ("test.json", "[]"), ("test.json", "{}"),
        ("bundle/metadata.json", "{"), ("bundle/metadata.json", "{}"), ("metrics.csv", "epoch,val_dice\n0,high\n"),
        ("bundle/metadata.json", '{"name": "x", "data": [], "split": 3}'), ("test.json", '{"metrics": {"val": 3}}'),
        ("bundle/metadata.json", ""), ("config.yaml", None),
    ],
)  # fmt: skip
def test_a_broken_run_is_one_line(
    file: str, text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "good", "2026-03-01 10:00:00")
    broken = finished(tmp_path / "broken", "2026-03-02 10:00:00") / file
    broken.unlink() if text is None else broken.write_text(text)
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].startswith("good ") and str(tmp_path / "broken") in lines[2]
    runs = find_runs(tmp_path)
    assert runs[0].problem is None and runs[1].problem is not None and len(runs[1].problem.splitlines()) == 1


def test_no_runs_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0 and "contains no runs yet" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith(f"polypseg: {tmp_path / 'nowhere'}: is no folder")


def test_an_ensemble_and_an_older_bundle(tmp_path: Path) -> None:
    folder = finished(tmp_path / "five", "2026-03-02 10:00:00", operating_point=None, threshold=0.4)
    (folder / "metrics.csv").unlink()
    (folder / "test.json").write_text(json.dumps({"metrics": {"out_of_fold": {"dice": 0.7}}}))
    (run,) = find_runs(tmp_path)
    assert (run.val_dice, run.test_dice, run.threshold, run.min_confidence, run.epochs) == (0.7, None, 0.4, None, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    folder = finished(tmp_path / "locked", "2026-03-02 10:00:00")
    (folder / "config.yaml").chmod(0)
    assert "cannot be read" in str(find_runs(tmp_path)[0].problem)
