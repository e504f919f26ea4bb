"""The folder of corrected masks: what somebody put there is never lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from polypseg.data import read
from polypseg.serve.corrections import Corrections


def test_a_data_set_that_was_put_there_stays_and_grows(phantom_folder: Path, tmp_path: Path) -> None:
    """Its frames are JPEG, those of the page PNG."""
    folder = tmp_path / "corrections"
    for kind in ("images", "masks"):
        shutil.copytree(phantom_folder / kind, folder / kind)
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    corrections = Corrections(folder)
    stems = sorted(path.stem for path in (phantom_folder / "images").iterdir())
    assert corrections.names() == stems
    frame = np.full((20, 30, 3), 90, np.uint8)
    name = corrections.add(f"{stems[0]}.png", frame, np.eye(20, 30, dtype=bool))
    assert name not in stems
    assert {path: path.read_bytes() for path in before} == before
    assert len(read(folder)) == len(stems) + 1


def test_a_mask_without_a_frame_is_put_aside(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path)
    kept = corrections.add("a", np.zeros((9, 9, 3), np.uint8), np.eye(9, dtype=bool))
    (tmp_path / "masks" / "b.png").write_bytes(b"half a pair, or somebody's own")
    assert Corrections(tmp_path).names() == [kept]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]
    assert (tmp_path / "without-frame" / "b.png").read_bytes() == b"half a pair, or somebody's own"


def test_names_that_differ_in_case_or_accents_alone_are_told_apart(tmp_path: Path) -> None:
    """Else one would replace the other where the file system tells no case."""
    corrections, mask = Corrections(tmp_path), np.eye(9, dtype=bool)
    frames = [np.full((9, 9, 3), level, np.uint8) for level in (10, 20, 30)]
    assert [corrections.add(name, frame, mask) for name, frame in zip(("a", "A", "a"), frames, strict=True)] == [
        "a", "A-2", "a-3",
    ]  # fmt: skip
    assert corrections.add("A", frames[0], ~mask) == "a" and corrections.names() == ["A-2", "a", "a-3"]


def test_a_mask_whose_accents_are_written_otherwise_is_not_put_aside(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path)
    corrections.add("é", np.zeros((9, 9, 3), np.uint8), np.eye(9, dtype=bool))
    (tmp_path / "masks" / "\u00e9.png").rename(tmp_path / "masks" / "e\u0301.png")
    Corrections(tmp_path)
    assert not (tmp_path / "without-frame").exists() and len(read(tmp_path)) == 1
