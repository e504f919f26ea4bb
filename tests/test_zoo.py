"""The models that ship: found by name, listed, whole, small, described. A stand-in takes their place in most tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polypseg
from polypseg import bundle as bundle_module
from polypseg import zoo
from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.cli import main
from polypseg.errors import PolypsegError
from polypseg.models.network import build
from polypseg.zoo import DEFAULT_MODEL, shipped_names

MOST_BYTES = 20e6


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of two small models, ``polypseg-realtime`` and ``polypseg-accurate``."""
    folder = tmp_path / "zoo"
    architecture = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
    state = build(architecture).state_dict()
    interval = {"n": 100, "mean": 0.91234, "low": 0.9, "high": 0.92}
    details: dict[str, dict[str, Any]] = {
        DEFAULT_MODEL: {"evaluations": [{"title": "Kvasir-SEG, test", "headline": {"dice": interval}}]},
        "polypseg-accurate": {"metrics": {"test": {"n": 7, "dice": 0.5}}},
    }
    for name, further in details.items():
        ModelBundle.save(
            folder / name, state, name=name, architecture=architecture, preprocessing=Preprocessing(64, 96),
            threshold=0.5, **further,
        )  # fmt: skip
    (folder / "__pycache__").mkdir()
    monkeypatch.setattr(bundle_module, "ZOO", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_shipped_model_is_found_by_name_and_the_default_without_one(stand_in: Path) -> None:
    assert shipped_names() == ["polypseg-accurate", DEFAULT_MODEL]
    assert zoo.open("polypseg-accurate").folder == stand_in / "polypseg-accurate"
    assert zoo.open(None).folder == stand_in / DEFAULT_MODEL
    prediction = polypseg.load(runtime="torch", device="cpu").segment(np.zeros((48, 64, 3), np.uint8))
    assert prediction.mask.shape == (48, 64)


def test_an_own_folder_of_that_name_is_taken_first_but_not_as_the_default(stand_in: Path, tmp_path: Path) -> None:
    own = zoo.open("polypseg-accurate").compact(tmp_path / DEFAULT_MODEL)
    assert zoo.open(DEFAULT_MODEL).folder == Path(DEFAULT_MODEL)
    assert zoo.open(DEFAULT_MODEL).hash == own.hash
    assert zoo.open().folder == stand_in / DEFAULT_MODEL


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("polypseg-realtim", "did you mean polypseg-realtime? `polypseg models` lists them"),
        ("PolypSeg-Realtime", "did you mean polypseg-realtime?"),
        ("realtime", "did you mean polypseg-realtime?"),
        ("accurate", "did you mean polypseg-accurate?"),
        ("resnet", "nor the name of a shipped one; `polypseg models` lists them"),
    ],
)
def test_an_unknown_name_brings_the_nearest(
    stand_in: Path, name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", name]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"polypseg: {name}: is no model bundle") and hint in message
    assert len(message.splitlines()) == 1


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def tamper(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def of_a_newer(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.safetensors", cut, "is not the file that metadata.json describes; reinstall it: pip install"),
        ("model.safetensors", tamper, "is not the file that metadata.json describes; reinstall it: pip install"),
        ("model.safetensors", Path.unlink, "is missing; reinstall it: pip install"),
        ("metadata.json", Path.unlink, "is no model bundle (no metadata.json); reinstall it: pip install"),
        ("metadata.json", of_a_newer, "was written by a newer polypseg (schema 99); upgrade polypseg"),
    ],
)
def test_a_damaged_shipped_model_is_one_line(
    stand_in: Path, file: str, damage: Callable[[Path], None], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(stand_in / DEFAULT_MODEL / file)
    for verb in ("models", "benchmark"):
        assert main([verb]) == 1
        message = capsys.readouterr().err
        assert says in message and len(message.splitlines()) == 1


def test_what_ships_is_not_changed_in_place(stand_in: Path, tmp_path: Path) -> None:
    shipped = zoo.open()
    with pytest.raises(PolypsegError, match="is a published model, which stays as it is; copy the folder"):
        shipped.update(threshold=0.9)
    assert zoo.open().hash == shipped.hash
    own = shipped.compact(tmp_path / "own", "mine")
    assert own.update(threshold=0.9).threshold == 0.9


def test_the_verb_lists_what_ships(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    first, dice, where, second, other_dice, other_where = capsys.readouterr().out.splitlines()
    bytes_ = sum(file.stat().st_size for file in (stand_in / DEFAULT_MODEL).iterdir())
    assert first == f"polypseg-realtime (default): {bytes_ / 1e6:.1f} MB, Unet mobilenet_v2 at 96×64; torch"
    assert dice == "    Dice 0.9123 (0.9000 to 0.9200), n = 100: Kvasir-SEG, test"
    assert second.startswith("polypseg-accurate: ")
    assert other_dice == "    Dice 0.5000, n = 7: test frames"
    assert [where.strip(), other_where.strip()] == [
        str(stand_in / DEFAULT_MODEL), str(stand_in / "polypseg-accurate"),
    ]  # fmt: skip


def test_without_models_the_list_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle_module, "ZOO", tmp_path / "none")
    assert main(["models"]) == 0
    assert capsys.readouterr().out == "no model ships with this polypseg\n"
    with pytest.raises(PolypsegError, match="this polypseg ships with none"):
        zoo.open()


@pytest.mark.skipif(not shipped_names(), reason="no model ships with this tree")
def test_what_really_ships_is_whole_small_and_described() -> None:
    models = zoo.shipped()
    assert models[0].bundle.name == DEFAULT_MODEL and models[0].is_default
    for model in models:
        bundle = model.bundle
        assert bundle.folder.name == bundle.name
        assert model.bytes <= MOST_BYTES
        named = {name for export in bundle.exports for name in export.record["files"]}
        found = {file.relative_to(bundle.folder).as_posix() for file in bundle.folder.rglob("*") if file.is_file()}
        assert found == {"metadata.json", "model.safetensors", "frames.csv", "README.md", *named}
        assert {one["measure"] for one in model.scores} == {"Dice", "polyp-free frames marked"}
        assert all(one["low"] is not None for one in model.scores), "a headline without its interval"
        for key in ("recipe", "data", "split", "commit", "licence", "failures", "speed", "evaluations"):
            assert bundle.metadata[key], key
        card = (bundle.folder / "README.md").read_text(encoding="utf-8")
        assert bundle.hash in card and bundle.metadata["weights_sha256"] in card, "a card of another bundle"
