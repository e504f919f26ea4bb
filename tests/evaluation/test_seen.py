"""Frames that a model has seen are recognised, by name and by content, before anything is scored on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polypseg.bundle import Architecture, FrameRecord, ModelBundle, Preprocessing, merge_frames
from polypseg.catalog import Catalog
from polypseg.cli import main
from polypseg.data import phantom, read
from polypseg.data.splits import hash_split, make_split, write_split
from polypseg.errors import PolypsegError
from polypseg.evaluation.calibrate import calibrate
from polypseg.evaluation.run import run
from polypseg.evaluation.seen import frame_records, seen
from polypseg.models.network import build

pytestmark = pytest.mark.slow

ARCHITECTURE = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write(tmp_path_factory.mktemp("seen") / "ours", 8, seed=5, height=48, width=56, empty_fraction=0)


@pytest.fixture(scope="module")
def catalog(data: Path) -> Catalog:
    frames = read(data)
    return frames.with_split(make_split("random", frames))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    bundle = ModelBundle.save(
        tmp_path_factory.mktemp("models") / "run" / "bundle", build(ARCHITECTURE).state_dict(), name="model",
        architecture=ARCHITECTURE, preprocessing=Preprocessing(32, 32), threshold=0.5,
        split={"name": "random", "hash": hash_split(catalog.frames)},
        data={"datasets": sorted(set(catalog.frames["dataset"])), "hash": catalog.hash()},
    )  # fmt: skip
    return bundle.folder


@pytest.fixture
def recorded(saved: Path, catalog: Catalog, tmp_path: Path) -> ModelBundle:
    """A bundle that knows the frames of its split; nothing lies beside it."""
    return ModelBundle.load(shutil.copytree(saved, tmp_path / "recorded")).record_frames(frame_records(catalog))


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(PolypsegError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of_part(catalog: Catalog, part: str) -> Any:
    return next(row for row in catalog if row.split == part)


def other_data(folder: Path, catalog: Catalog, **renamed: str) -> Path:
    """A data set of frames never seen, and copies of ours by other names."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(2):
        frame, mask = phantom.draw(70 + number, 48, 56)[:2]
        Image.fromarray(frame).save(folder / "images" / f"new-{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"new-{number}.png")
    for name, part in renamed.items():
        row = of_part(catalog, part)
        for kind, path in (("images", row.image_path), ("masks", row.mask_path)):
            shutil.copy(path, folder / kind / f"{name}{Path(path).suffix}")
    return folder


def report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


def test_training_frames_are_refused_and_allowed_with_a_first_line(
    recorded: ModelBundle, data: Path, catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = partial(run, recorded.folder, [data], tmp_path / "out", progress=False)
    line = complaint(partial(evaluate, split="all"))
    train = catalog.frames["split"].value_counts()["train"]
    assert f"one of {train} of 8 frames to be scored that the model was trained on" in line
    assert line.startswith(of_part(catalog, "train").image_path) and line.endswith("--allow_train_frames")
    assert not (tmp_path / "out" / "report.json").exists()

    arguments = ["evaluate", recorded.folder, "--data", data, "--split", "all", "--out", tmp_path / "out"]
    assert main([str(one) for one in (*arguments, "--allow_train_frames", "true")]) == 0
    first = f"{train} of these 8 frames the model was trained on"
    numbers = report(tmp_path / "out")
    assert numbers["warnings"][0] == first == capsys.readouterr().out.splitlines()[0]
    assert numbers["provenance"]["training_frames"] == catalog.frames["split"].value_counts().to_dict()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.index(first) < page.index("<h1>")

    run(recorded.folder, [data], tmp_path / "test", progress=False)  # its own test frames need no leave
    assert report(tmp_path / "test")["warnings"] == [] and report(tmp_path / "test")["n"] == 1


def test_a_split_file_that_calls_training_frames_test(
    recorded: ModelBundle, data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    turned = catalog.frames[["dataset", "frame_id"]].assign(split="test")
    write_split(turned, tmp_path / "turned.csv")
    evaluate = partial(run, recorded.folder, [data], tmp_path / "out", split_file=tmp_path / "turned.csv")
    assert "the model was trained on" in complaint(evaluate)


def test_validation_frames_only_by_their_name(
    recorded: ModelBundle, data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    run(recorded.folder, [data], tmp_path / "val", split="val", progress=False)
    assert report(tmp_path / "val")["warnings"] == ["2 of these 2 frames chose its checkpoint and operating point"]
    other = other_data(tmp_path / "other", catalog, copied="val")
    line = complaint(partial(run, recorded.folder, [other], tmp_path / "out"))
    assert "images/copied" in line and "chose its checkpoint" in line


def test_a_renamed_copy_is_known_by_its_content(recorded: ModelBundle, catalog: Catalog, tmp_path: Path) -> None:
    other = other_data(tmp_path / "their-clinic", catalog, innocent="train")
    for named in ({}, {"split": "all"}):
        line = complaint(partial(run, recorded.folder, [other], tmp_path / "out", **named))
        assert "images/innocent" in line and "by its content" in line and "one of 1 of 3 frames" in line


def test_data_that_the_model_has_never_seen_are_scored_whole(
    recorded: ModelBundle, catalog: Catalog, tmp_path: Path
) -> None:
    assert seen(recorded, read(other_data(tmp_path / "their-clinic", catalog))).parts == {}
    run(recorded.folder, [tmp_path / "their-clinic"], tmp_path / "out", progress=False)
    numbers = report(tmp_path / "out")
    assert numbers["n"] == 2 and numbers["provenance"]["split"]["part"] == "all" and numbers["warnings"] == []
    masks = tmp_path / "masks"
    shutil.copytree(tmp_path / "their-clinic" / "masks", masks)
    run(None, [tmp_path / "their-clinic"], tmp_path / "theirs", predictions=masks, progress=False)
    assert report(tmp_path / "theirs")["n"] == 2 and report(tmp_path / "theirs")["headline"]["dice"]["mean"] == 1


def test_a_bundle_without_a_record_goes_by_its_split(saved: Path, data: Path, catalog: Catalog, tmp_path: Path) -> None:
    assert ModelBundle.load(saved).frames() is None
    assert "the model was trained on" in complaint(partial(run, saved, [data], tmp_path / "out", split="all"))
    # of which only a part is there: nobody can tell which of them it has seen
    fewer = Catalog(catalog.frames.iloc[:4].reset_index(drop=True))
    found = seen(ModelBundle.load(saved), fewer)
    assert found.unknown == (catalog.row(0).dataset,)
    assert "does not record which" in complaint(lambda: found.refuse(("train",), "scored", "leave them out"))
    assert "does not record which" in found.warnings(("train",))[0]
    # its own split, given as a file, tells
    write_split(catalog.frames, tmp_path / "split.csv")
    assert seen(ModelBundle.load(saved), fewer, fewer, tmp_path / "split.csv").parts


def test_calibration_is_for_validation_frames(recorded: ModelBundle, data: Path, catalog: Catalog) -> None:
    before = (recorded.folder / "metadata.json").read_bytes()
    for split, said in (("all", "trained on"), ("train", "trained on"), ("test", "are its test")):
        line = complaint(partial(calibrate, recorded.folder, [data], split=split, progress=False))
        assert said in line and "--split val" in line
    assert (recorded.folder / "metadata.json").read_bytes() == before
    split = calibrate(recorded.folder, [data], progress=False).metadata["threshold_split"]
    assert split == "random, val"
    after = calibrate(recorded.folder, [data], split="test", allow_train_frames=True, progress=False)
    assert after.metadata["threshold_split"] == "random, test; 1 of these 1 frames are its test"
    assert after.frames() == recorded.frames()  # what it has seen stays known


def test_what_one_was_trained_on_stays_so() -> None:
    one = [FrameRecord("a", "1", "train", "x"), FrameRecord("a", "2", "test", "y")]
    other = [FrameRecord("a", "1", "test", "x"), FrameRecord("a", "2", "val", "y"), FrameRecord("b", "1", "test", "z")]
    merged = [("a", "1", "train", "x"), ("a", "2", "val", "y"), ("b", "1", "test", "z")]
    assert merge_frames(one, other) == merge_frames(other, one) == merged


def test_the_record_goes_with_the_bundle(recorded: ModelBundle, tmp_path: Path, catalog: Catalog) -> None:
    frames = recorded.frames()
    assert frames is not None and len(frames) == 8 and "frames.csv" in recorded.files
    assert recorded.compact(tmp_path / "small").frames() == frames
    ensemble = ModelBundle.join(tmp_path / "both", {"one": recorded, "two": recorded}, name="both", threshold=0.5)
    assert ensemble.frames() == frames and "one/frames.csv" in ensemble.files
    file = recorded.folder / "frames.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("train", "test"), encoding="utf-8")
    assert complaint(recorded.frames).startswith(str(file))
    file.unlink()
    assert complaint(recorded.frames).startswith(str(file))
