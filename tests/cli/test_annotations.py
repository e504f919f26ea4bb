"""A project filled and emptied by the command line, while no service runs and while one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra polypseg[serve] is not installed")

from polypseg.cli import main
from polypseg.data import read
from polypseg.serve.state import open_state

LABELS = "classes: [polyp, adenoma]\nattributes:\n  paris: [Ip, Is]\n"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line with a state folder and labels; its exit status and what it printed."""
    (tmp_path / "labels.yaml").write_text(LABELS)
    places = ["--state", str(tmp_path / "state"), "--labels", str(tmp_path / "labels.yaml")]

    def ran(*words: str | Path) -> tuple[int, str, str]:
        status = main(["annotations", *map(str, words), *places])
        return status, *capsys.readouterr()

    return ran


@pytest.fixture
def small(phantom_folder: Path, tmp_path: Path) -> Path:
    """Three frames, the first with masks of two labelled polyps."""
    folder = tmp_path / "clinic"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        for path in sorted((phantom_folder / kind).iterdir())[:3]:
            shutil.copy(path, folder / kind)
    return folder


def test_what_goes_in_comes_out_in_every_format_with_its_labels(run: Run, small: Path, tmp_path: Path) -> None:
    status, out, wrong = run("import", small, "--project", "Ward 3")
    assert (status, out, wrong) == (0, "ward-3: frames added 3, known already 0; problems 0\n", "")
    assert run("export", "--project", "ward 3", "--out", tmp_path / "first")[:2] == (
        0, f"{tmp_path / 'first'}: frames 3\n",
    )  # fmt: skip
    records = json.loads((tmp_path / "first" / "frames.json").read_text())
    named = next(one for one in records if one["polyps"])
    named["state"] = "corrected"
    named["polyps"][0] |= {"class": "adenoma", "attributes": {"paris": "Is"}}
    (tmp_path / "first" / "frames.json").write_text(json.dumps(records))
    assert run("import", tmp_path / "first", "--project", "named")[0] == 0
    masks = {path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (small / "masks").iterdir()}
    for kind, name in (("folder", "a"), ("coco", "b.zip"), ("yolo", "c")):
        given = tmp_path / name
        assert run("export", "--project", "named", "--out", given, "--format", kind)[0] == 0
        if given.suffix:
            shutil.unpack_archive(given, tmp_path / "b")
            given = tmp_path / "b" / "named"
        catalog = read(given)
        for index, row in enumerate(catalog):
            assert np.array_equal(catalog.mask(index), masks[row.frame_id] > 127)
        assert run("import", given, "--project", kind)[1] == f"{kind}: frames added 3, known already 0; problems 0\n"
        assert run("export", "--project", kind, "--out", tmp_path / f"again-{kind}")[0] == 0
        again = json.loads((tmp_path / f"again-{kind}" / "frames.json").read_text())
        kept = ("image", "hash", "state", "polyps")
        assert [[one[key] for key in kept] for one in again] == [[one[key] for key in kept] for one in records]


def test_what_is_wrong_is_one_line_and_changes_nothing(run: Run, small: Path, tmp_path: Path) -> None:
    for words, status, says in (
        (("import", tmp_path / "absent", "--project", "a"), 1, "absent: is missing"),
        (("export", "--project", "a", "--out", tmp_path / "x"), 1, "state: contains no annotations"),
    ):
        assert run(*words)[0] == status and not (tmp_path / "state").exists()
        assert says in run(*words)[2]
    (small / "images" / "broken.png").write_bytes(b"\x89PNG\r\n")
    status, out, wrong = run("import", small, "--project", "a")
    assert (status, out) == (0, f"a: frames added 3, known already 0; problems {len(wrong.splitlines())}\n")
    assert all(line.startswith("polypseg: ") and "broken.png" in line for line in wrong.splitlines())
    (small / "frames.json").write_text("{}{")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").touch()
    for words, status, says in (
        (("import", small, "--project", "b"), 1, "nothing is imported: clinic/frames.json: is not valid JSON"),
        (("export", "--project", "b", "--out", tmp_path / "x"), 2, "--project b: is no project; choose one of correct"),
        (("export", "--project", "a", "--out", tmp_path / "there"), 1, "there: is there already"),
        (("export", "--project", "a", "--out", tmp_path / "x", "--frame_state", "unsure"), 1, "no frame is unsure"),
        (("export", "--project", "a", "--out", tmp_path / "x", "--format", "voc"), 2, "choose folder, coco or yolo"),
    ):
        told = run(*words)
        assert told[0] == status and says in told[2] and len(told[2].splitlines()) == 1, told
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".x*"))
    table = open_state(tmp_path / "state")  # as a service has it
    told = run("import", small, "--project", "a")
    table.close()
    assert told[0] == 1 and "another polypseg serve works in this folder" in told[2]
