"""Training as a user meets it: the run folder, resumption, interruption, several processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import polypseg
from polypseg.catalog import Catalog
from polypseg.data import read
from polypseg.data.splits import hash_split, read_split, write_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import locked
from polypseg.io.pictures import read_frame
from polypseg.metrics.overlap import dice
from polypseg.training import run as run_module
from polypseg.training.checkpoints import SafeCheckpointIO
from polypseg.training.folder import write_start
from polypseg.training.prepare import Frames, split_frames
from polypseg.training.recipe import first_difference, load_recipe, with_values
from polypseg.training.run import train
from polypseg.training.tune import train_alone

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PLAIN = Path(__file__).with_name("plain.yaml")  # a recipe of defaults alone
STRICT = {"precision": "32-true", "threads": 1, "epochs": 4}  # one thread: sums in one order


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path, small_recipe: Callable[..., Any]) -> Path:
    """A finished run of two epochs, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return train(small_recipe(threshold=None, trainer={"loggers": ("tensorboard",)}), [phantom_folder], out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state = {f"average {key}": value for key, value in checkpoint["state_dict"].items()}
    return state | {f"current {key}": value for key, value in checkpoint.get("current_model_state", {}).items()}


def assert_same_run(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different
    tables = [pd.read_csv(folder / "metrics.csv").drop(columns="seconds") for folder in (one, other)]
    pd.testing.assert_frame_equal(*tables)
    scores = [json.loads((folder / "test.json").read_text())["metrics"] for folder in (one, other)]
    assert scores[0] == scores[1]


def test_run_folder_holds_what_the_design_promises(finished: Path) -> None:
    for name in (
        "config.yaml", "split.csv", "metrics.csv", "curves.png", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "predictions.png", "bundle/model.safetensors", "bundle/metadata.json", "log.txt", "test.json", "per_image.csv",
    ):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert any((finished / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(finished.rglob("*.part"))
    metrics = pd.read_csv(finished / "metrics.csv")
    assert list(metrics["epoch"]) == [0, 1]
    assert metrics[["train_loss", "train_dice", "val_loss", "val_dice", "val_dice_batch"]].notna().all(axis=None)
    for name in ("curves.png", "predictions.png"):
        picture = np.asarray(Image.open(finished / name).convert("RGB"))
        assert picture.shape[0] > 200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_bundle_knows_where_it_comes_from(finished: Path) -> None:
    bundle = polypseg.ModelBundle.load(finished)
    metadata = bundle.metadata
    assert metadata["split"]["hash"] == hash_split(read_split(finished / "split.csv"))
    assert metadata["recipe"] == yaml.safe_load((finished / "config.yaml").read_text())
    assert metadata["threshold_split"] == "validation"
    tried = metadata["threshold_choice"]
    assert max(tried.values()) == tried[f"{bundle.threshold:.2f}"]
    assert metadata["metrics"] == json.loads((finished / "test.json").read_text())["metrics"]
    metrics = pd.read_csv(finished / "metrics.csv")
    assert metadata["epoch"] == metrics["epoch"][metrics["val_dice"].idxmax()] + 1
    assert metadata["encoder_weights"]["source"]
    frames = bundle.frames()
    assert frames is not None and {(one.dataset, one.frame_id): one.split for one in frames} == {
        (row.dataset, row.frame_id): row.split for row in read_split(finished / "split.csv").itertuples()
    }
    assert metadata["versions"]["torch"] == torch.__version__.split("+")[0] or metadata["versions"]["torch"]


def test_segmenting_frames_again_gives_the_reported_scores(finished: Path, phantom_folder: Path) -> None:
    segmenter = polypseg.load(finished)
    catalog = read(phantom_folder).with_split(read_split(finished / "split.csv")).of_split("test")
    again = [
        dice(segmenter.segment(read_frame(row.image_path)).mask, catalog.mask(index))
        for index, row in enumerate(catalog)
        if catalog.mask(index).any()  # a frame without a polyp has no Dice
    ]
    reported = json.loads((finished / "test.json").read_text())["metrics"]["test"]
    assert reported["n"] == len(catalog)
    assert np.mean(again) == pytest.approx(reported["dice"], abs=1e-9)
    per_image = pd.read_csv(finished / "per_image.csv").query("split == 'test'")
    assert per_image["dice"].dropna().to_numpy() == pytest.approx(again, abs=1e-6) and len(per_image) == len(catalog)


@pytest.mark.parametrize(("part", "use"), [("train", "learn from"), ("val", "choose by")])
def test_a_split_without_polyps_is_refused_before_anything_is_written(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any], part: str, use: str
) -> None:
    catalog = read(phantom_folder)
    free = [not catalog.mask(index).any() for index in range(len(catalog))]
    other = "val" if part == "train" else "train"
    write_split(catalog.frames.assign(split=np.where(free, part, other)), tmp_path / "split.csv")
    with pytest.raises(PolypsegError) as caught:
        train(small_recipe(split=str(tmp_path / "split.csv")), [phantom_folder], tmp_path / "run")
    line = str(caught.value)
    assert line.startswith(f"{phantom_folder}: none of the {sum(free)} {part} frames shows a polyp") and use in line
    assert "\n" not in line and not (tmp_path / "run" / "config.yaml").exists()


def test_best_checkpoint_is_the_best_on_validation(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    # A learning rate this high makes validation go up and down, so that the best epoch is not simply the last.
    recipe = small_recipe(
        trainer={"epochs": 4, "precision": "32-true"},
        optimizer={"learning_rate": 3e-2, "schedule": "constant"},
    )
    out = train(recipe, [phantom_folder], tmp_path / "run")
    metrics = pd.read_csv(out / "metrics.csv")
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == metrics["val_dice"].idxmax()
    # Validating the bundle itself gives the Dice that the table has for that epoch.
    scores = json.loads((out / "test.json").read_text())["metrics"]["val"]
    assert polypseg.ModelBundle.load(out).metadata["epoch"] == best["epoch"] + 1
    assert scores["dice_network_size"] == pytest.approx(metrics["val_dice"].max(), abs=0.01)  # bf16 against fp32


def test_the_last_epoch_is_kept_where_the_recipe_says_so(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    recipe = small_recipe(
        trainer={"epochs": 2, "keep": "last"}, optimizer={"learning_rate": 3e-2, "schedule": "constant"}
    )
    out = train(recipe, [phantom_folder], tmp_path / "run")
    bundle, last = polypseg.ModelBundle.load(out), torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert bundle.metadata["epoch"] == 2
    for name, value in bundle.weights().items():
        torch.testing.assert_close(value, last["state_dict"][f"network.{name}"])


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_resumed_run_equals_an_uninterrupted_one(
    schedule: str,
    tmp_path: Path,
    phantom_folder: Path,
    small_recipe: Callable[..., Any],
    interrupted: Callable[..., None],
) -> None:
    recipe = small_recipe(
        trainer=STRICT,
        optimizer={"schedule": schedule, "ema_decay": 0.9, "accumulate": 2, "gradient_clip": 1.0},
        model={"name": "FPN", "decoder_channels": None, "decoder_dropout": 0.4},
        frames={"workers": 1},
    )
    whole = train(recipe, [phantom_folder], tmp_path / "whole")
    interrupted(2, lambda: train(recipe, [phantom_folder], tmp_path / "parts"))
    assert len(pd.read_csv(tmp_path / "parts" / "metrics.csv")) == 2
    assert not (tmp_path / "parts" / "bundle").exists()
    assert_same_run(whole, train(recipe, [phantom_folder], tmp_path / "parts", resume=True))


def test_seeded_runs_repeat_whatever_the_workers_and_the_cache(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    settings = {"trainer": {**STRICT, "epochs": 2}}
    one = train(small_recipe(**settings), [phantom_folder], tmp_path / "one")
    other = train(
        small_recipe(**settings, frames={"workers": 2, "cache": "disk"}), [phantom_folder], tmp_path / "other"
    )
    assert_same_run(one, other)
    third = train(small_recipe(trainer={**STRICT, "epochs": 2, "seed": 7}), [phantom_folder], tmp_path / "third")
    assert any(not torch.equal(value, weights(third)[key]) for key, value in weights(one).items())


TRAINS = "import sys; from polypseg.cli import main; sys.exit(main())"


def training(out: Path, data: Path, *options: str) -> list[str]:
    """The command line's arguments for a training with a small network."""
    return [
        "train", "--config", str(PLAIN), "--data", str(data), "--out", str(out), "--model.name", "Unet",
        "--model.encoder", "tu-test_efficientnet", "--model.decoder_channels", "[32,16,16,8,8]",
        "--model.encoder_weights", "none", "--frames.size", "64", "--frames.batch_size", "8", "--frames.workers", "0",
        "--trainer.loggers", "[]", "--trainer.threads", "1", "--trainer.precision", "32-true", *options,
    ]  # fmt: skip


def has_epochs(out: Path, count: int) -> Callable[[], bool]:
    """Whether a run's table has more than so many rows."""
    file = out / "metrics.csv"
    return lambda: file.is_file() and len(file.read_text().splitlines()) > count


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_at_any_moment_it_goes_on(
    how: signal.Signals, tmp_path: Path, phantom_folder: Path, forked: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    process = forked(TRAINS, *training(out, phantom_folder, "--trainer.epochs", "60"))
    process.wait_until(has_epochs(out, 2))
    time.sleep(0.3)  # somewhere in a later epoch, perhaps while a checkpoint is written
    status, error = process.end(how), process.error.read_text()
    if how == signal.SIGINT:
        assert status == 130
        assert error.strip().splitlines()[-1].startswith("polypseg: interrupted") and "--resume" in error
        assert "Traceback" not in error
    before = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    rows = len(pd.read_csv(out / "metrics.csv"))
    assert rows - 1 <= before + 1 <= rows  # the table may be one epoch ahead of the checkpoint, never behind
    process = forked(TRAINS, *training(out, phantom_folder, "--trainer.epochs", "60", "--resume"))
    process.wait_until(has_epochs(out, rows + 1))
    process.end()
    table = pd.read_csv(out / "metrics.csv")
    assert list(table["epoch"]) == list(range(len(table)))


# The command line's, in a process that kills itself (SIGKILL) before a certain step of a certain epoch.
KILLS_ITSELF = """
import os, signal, sys
from polypseg.cli import main
from polypseg.training.callbacks import MetricsTable
epoch, step = int(sys.argv[1]), int(sys.argv[2])
def before_step(self, trainer, module, batch, index):
    if (trainer.current_epoch, index) == (epoch, step):
        os.kill(os.getpid(), signal.SIGKILL)
MetricsTable.on_train_batch_start = before_step
sys.exit(main(sys.argv[3:]))
"""


def test_killed_between_two_steps_it_ends_as_an_unbroken_run(
    tmp_path: Path, phantom_folder: Path, forked: Callable[..., Any]
) -> None:
    """28 frames in batches of 8 are 4 steps an epoch: in the first epoch, and in the midst of later ones."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert forked(TRAINS, *training(whole, phantom_folder, "--trainer.epochs", "4")).wait() == 0
    arguments = training(parts, phantom_folder, "--trainer.epochs", "4")
    for epoch, step in ((0, 2), (1, 1), (3, 3)):
        more = ["--resume"] if parts.exists() else []
        assert forked(KILLS_ITSELF, epoch, step, *arguments, *more).wait() == -signal.SIGKILL
    assert forked(TRAINS, *arguments, "--resume").wait() == 0
    assert_same_run(whole, parts)


def test_two_processes_validate_as_one(tmp_path: Path, phantom_folder: Path, forked: Callable[..., Any]) -> None:
    """DDP on the CPU (gloo): 5 frames in batches of 2 are uneven shards; the numbers are those of one process."""
    tables = {}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        arguments = training(
            out, phantom_folder, "--trainer.epochs", "1", "--trainer.devices", str(devices), "--trainer.strategy",
            "ddp" if devices > 1 else "auto", "--frames.batch_size", "2", "--optimizer.learning_rate", "0.0",
            "--trainer.accelerator", "cpu",
        )  # fmt: skip
        if devices == 1:
            process = forked(TRAINS, *arguments)
            status, told = process.wait(), process.error.read_text()
        else:  # not forked: it starts the second process by its own command line
            command = [sys.executable, "-m", "polypseg.cli", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
            status, told = done.returncode, done.stderr
        assert status == 0, told
        assert told.count("epoch 1/1") == 1  # one process speaks
        tables[devices] = pd.read_csv(out / "metrics.csv")
        # the test is of all frames, whatever the number of processes
        scores = json.loads((out / "test.json").read_text())["metrics"]["val"]
        assert scores["dice_network_size"] == pytest.approx(tables[devices]["val_dice"][0], abs=0.02)  # bf16
    assert len(read_split(tmp_path / "1" / "split.csv").query("split == 'val'")) % 4 != 0
    # With a learning rate of 0 the weights are equal; batch normalisation's statistics come from the training
    # batches and differ, so the comparison below validates one checkpoint in both ways instead of two runs.
    found = {}
    for devices in (1, 2):
        process = forked(_VALIDATE, tmp_path / "1", phantom_folder, devices)
        assert process.wait() == 0, process.error.read_text()
        found[devices] = json.loads(process.out.read_text().strip().splitlines()[-1])
    assert found[1].keys() == {"val_loss", "val_dice", "val_dice_batch"}
    assert found[2] == pytest.approx(found[1], abs=1e-6)
    # and the run of one process reported just these numbers when it validated that checkpoint
    assert found[1]["val_dice"] == pytest.approx(tables[1]["val_dice"][0], abs=1e-5)


_VALIDATE = """
import json, sys
import lightning as L, torch, yaml
from polypseg.bundle import ModelBundle
from polypseg.data import read
from polypseg.data.splits import read_split
from polypseg.inference.runtimes.torch import load_weights
from polypseg.models.network import build
from polypseg.training.datamodule import FramesDataModule
from polypseg.training.module import SegmentationModule
from polypseg.training.recipe import FramesConfig, Recipe, TrainerConfig
from pathlib import Path

run, data, devices = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
bundle = ModelBundle.load(run)
network = build(bundle.architecture)
load_weights(network, bundle)
recipe = Recipe(frames=FramesConfig(size=64, batch_size=2, workers=0), trainer=TrainerConfig())
catalog = read(data).with_split(read_split(run / "split.csv"))
frames = FramesDataModule(catalog, bundle.preprocessing, recipe, progress=False)
trainer = L.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
    use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False,
    enable_checkpointing=False, precision="32-true",
)
trainer.validate(SegmentationModule(network, recipe), frames, verbose=False)
if trainer.is_global_zero:
    print(json.dumps({key: float(value) for key, value in trainer.callback_metrics.items()}))
"""


def test_early_stopping(tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]) -> None:
    # With a learning rate of 0, validation stops changing once batch normalisation has settled.
    recipe = small_recipe(
        optimizer={"learning_rate": 1e-12, "schedule": "constant"}, trainer={"epochs": 30, "patience": 2}
    )
    out = train(recipe, [phantom_folder], tmp_path / "run")
    metrics = pd.read_csv(out / "metrics.csv")
    assert len(metrics) < 30
    assert len(metrics) == metrics["val_dice"].idxmax() + 1 + 2


def test_full_disk_is_told_and_keeps_the_last_checkpoint(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(trainer=STRICT)
    save, calls = SafeCheckpointIO.save_checkpoint, []

    def full(self: SafeCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        calls.append(path)
        if checkpoint["epoch"] == 1:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", _no_space)
                save(self, checkpoint, path, storage_options)
        else:
            save(self, checkpoint, path, storage_options)

    with monkeypatch.context() as patch:
        patch.setattr(SafeCheckpointIO, "save_checkpoint", full)
        with pytest.raises(PolypsegError, match=r"\.ckpt\.sha256: the disk is full") as caught:
            train(recipe, [phantom_folder], tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not list((tmp_path / "run").rglob("*.part"))
    whole = train(recipe, [phantom_folder], tmp_path / "whole")
    assert_same_run(whole, train(recipe, [phantom_folder], tmp_path / "run", resume=True))


def _no_space(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_an_earlier_run_is_not_overwritten(
    finished: Path, phantom_folder: Path, small_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(PolypsegError, match="contains a run already"):
        train(small_recipe(), [phantom_folder], finished)
    with pytest.raises(PolypsegError, match=r"differs in frames\.size: 64 then, 96 now"):
        train(small_recipe(threshold=None, frames={"size": 96}), [phantom_folder], finished, resume=True)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(PolypsegError, match="is not empty and contains no run"):
        train(small_recipe(), [phantom_folder], tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_checkpoint_that_is_not_ours_is_told(
    finished: Path, tmp_path: Path, phantom_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    recipe, file = load_recipe(out / "config.yaml"), out / "checkpoints" / "last.ckpt"
    whole = file.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    for damaged in (content, whole[:1000], b""):
        file.write_bytes(damaged)
        with pytest.raises(PolypsegError, match=r"last\.ckpt: is not the file that last\.ckpt\.sha256 describes"):
            train(recipe, [phantom_folder], out, resume=True)
    # of an earlier version, without a hash
    file.with_name("last.ckpt.sha256").unlink()
    ours = torch.load(io.BytesIO(whole), weights_only=True)
    for changed, says in (
        ({"x": _Code(str(tmp_path / "ran"))}, r"last\.ckpt: cannot be read as tensors and plain types \(it contains"),
        ({"state_dict": {"network.x": torch.zeros(1)}}, r"last\.ckpt: cannot be resumed from \(.*; use --overwrite"),
        ({"optimizer_states": [{"state": 3}]}, r"last\.ckpt: cannot be resumed from \(.*; use --overwrite"),
        ({"loops": []}, r"last\.ckpt: cannot be resumed from \(.*; use --overwrite"),
    ):
        torch.save({**ours, **changed}, file)
        with pytest.raises(PolypsegError, match=says) as caught:
            train(recipe, [phantom_folder], out, resume=True)
        assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    file.write_bytes(whole)
    caplog.clear()
    train(recipe, [phantom_folder], out, resume=True)
    assert [one.getMessage() for one in caplog.records if "cannot be verified" in one.getMessage()]
    assert polypseg.ModelBundle.load(out).hash == polypseg.ModelBundle.load(finished).hash


class _Code:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_the_epoch_that_is_kept_is_verified_too(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = run_module.fit

    def fit_and_flip(*arguments: Any) -> None:
        fit(*arguments)
        best = tmp_path / "run" / "checkpoints" / "best.ckpt"
        content = bytearray(best.read_bytes())
        content[len(content) // 2] ^= 1
        best.write_bytes(content)

    monkeypatch.setattr(run_module, "fit", fit_and_flip)
    with pytest.raises(PolypsegError, match=r"best\.ckpt: is not the file that best\.ckpt\.sha256 describes"):
        train(small_recipe(trainer={"epochs": 1}), [phantom_folder], tmp_path / "run")
    assert not (tmp_path / "run" / "bundle").exists()


def test_an_earlier_run_stands_until_the_new_one_is_known_to_work(
    phantom_folder: Path, small_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    recipe = small_recipe(trainer={"epochs": 1})
    train(recipe, [phantom_folder], out)
    before = {one: one.read_bytes() for one in out.rglob("*") if one.is_file()}
    data = Path(shutil.copytree(phantom_folder, tmp_path / "damaged"))
    frame = next((data / "images").iterdir())
    frame.write_bytes(frame.read_bytes()[:-200])
    within = small_recipe(model={"weights": str(out)})
    for message, tried, frames in (
        ("is no folder", recipe, tmp_path / "nowhere"),
        ("damaged", recipe, data),
        ("damaged", small_recipe(frames={"cache": "none"}), data),
        ("cannot train on batches of 1 frames of 32×32", small_recipe(frames={"size": 32, "batch_size": 1}), data),
        ("the run that would be replaced", within, phantom_folder),
    ):
        with pytest.raises(PolypsegError, match=message):
            train(tried, [frames], out, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr("polypseg.training.folder.write_split", lambda *_: _no_space(0))
        with pytest.raises(OSError):
            train(recipe, [phantom_folder], out, overwrite=True)
    with locked(out), pytest.raises(PolypsegError, match="another polypseg writes here"):
        train(recipe, [phantom_folder], out, resume=True)
    assert {one: one.read_bytes() for one in out.rglob("*") if one.is_file()} == before
    train(small_recipe(name="other", trainer={"epochs": 1}), [phantom_folder], out, overwrite=True)
    assert polypseg.ModelBundle.load(out).name == "other" and not [one for one in out.iterdir() if one.name[0] == "."]


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_one_cycle_of_any_number_of_steps(
    steps: int, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    catalog = read(phantom_folder)
    split = ["train"] * 14 + ["val"] * 2 + ["test"] * (len(catalog) - 16)
    catalog = Catalog(catalog.frames.assign(split=split))
    size = 14 if steps < 10 else 3  # batches of an epoch: 1 or 5
    recipe = small_recipe(
        frames={"size": 32, "batch_size": size if steps != 11 else 14}, optimizer={"schedule": "one_cycle"},
        trainer={"epochs": 2 if steps == 10 else steps},
    )  # fmt: skip
    train_alone(recipe, Frames(catalog, "own"), tmp_path)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["step"].iloc[-1] == steps and table["learning_rate"].between(0, 1e-3).all()


def test_more_processes_than_cores_are_refused(tmp_path: Path, small_recipe: Callable[..., Any]) -> None:
    for name, section in (("devices", "trainer"), ("threads", "trainer"), ("workers", "frames")):
        recipe = small_recipe(**{section: {name: 999}})
        with pytest.raises(UsageError, match=rf"{section}\.{name} 999: is too many for the \d+ cores"):
            train(recipe, [tmp_path / "nowhere"], tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_resuming_a_finished_run_makes_the_same_bundle(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    recipe = small_recipe(trainer={"epochs": 1})
    out = train(recipe, [phantom_folder], tmp_path / "run")
    before = polypseg.ModelBundle.load(out).hash
    train(recipe, [phantom_folder], out, resume=True)
    assert polypseg.ModelBundle.load(out).hash == before
    assert len(pd.read_csv(out / "metrics.csv")) == 1


def test_several_data_sets_and_a_split_file(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    from polypseg.data import phantom, read_all
    from polypseg.data.splits import make_split, write_split

    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    (other / "masks").mkdir()
    for index in range(6):
        frame, mask = phantom.draw(100 + index, 72, 88)
        Image.fromarray(frame).save(other / "images" / f"é {index}.png")
        Image.fromarray(mask).save(other / "masks" / f"é {index}.png")
    both = [phantom_folder, other]
    write_split(make_split("random", read_all(both)), tmp_path / "split.csv")
    out = train(small_recipe(split=str(tmp_path / "split.csv"), trainer={"epochs": 1}), both, tmp_path / "run")
    per_image = pd.read_csv(out / "per_image.csv")
    assert set(per_image["dataset"]) == {"phantom", "other"}
    with pytest.raises(PolypsegError, match="give its --data too"):
        train(small_recipe(split=str(tmp_path / "split.csv")), [phantom_folder], tmp_path / "third")


def test_a_loss_that_explodes_is_told(tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]) -> None:
    recipe = small_recipe(optimizer={"learning_rate": 1e30, "name": "adam", "schedule": "constant"})
    with pytest.raises(PolypsegError, match=r"loss is not finite in epoch 1; lower optimizer\.learning_rate"):
        train(recipe, [phantom_folder], tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": {"size": 100}}, "multiple of 32"),
        ({"trainer": {"epochs": 0}}, r"trainer\.epochs 0: must be a whole number from 1"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"name": "a/b"}, "cannot name a folder"),
    ],
)
def test_a_recipe_that_cannot_work(change: dict[str, Any], message: str, small_recipe: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=message):
        small_recipe(**change)


def test_a_run_is_not_resumed_on_changed_masks(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    catalog = split_frames(small_recipe(), [data], tmp_path, resume=False).catalog
    write_start(tmp_path, small_recipe().to_dict(), catalog)
    assert len(split_frames(small_recipe(), [data], tmp_path, resume=True).catalog) == len(catalog)
    mask = data / "masks" / "phantom-0003.png"
    Image.fromarray(~np.asarray(Image.open(mask))).save(mask)
    with pytest.raises(PolypsegError, match=r"phantom-0003\.jpg: this frame or its mask was changed .*\(1 such\)"):
        split_frames(small_recipe(), [data], tmp_path, resume=True)


def test_what_may_differ_when_a_run_is_resumed(small_recipe: Callable[..., Any]) -> None:
    before = small_recipe().to_dict()
    assert first_difference(before, small_recipe(frames={"workers": 3, "cache": "disk"}).to_dict()) is None
    assert first_difference(before, small_recipe(trainer={"epochs": 9}).to_dict()) == "trainer.epochs: 2 then, 9 now"
    del before["loss"]["boundary"], before["distillation"]  # as a version wrote it that had no such fields
    assert first_difference(before, small_recipe().to_dict()) is None
    later = with_values(small_recipe(), {"loss.boundary": 5.0}).to_dict()
    assert first_difference(before, later) == "loss.boundary: 0.0 then, 5.0 now"


def test_unknown_network_names_suggest_the_nearest(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    with pytest.raises(PolypsegError, match="did you mean UnetPlusPlus"):
        train(small_recipe(model={"name": "UnetPluPlus"}), [phantom_folder], tmp_path / "a")
    with pytest.raises(PolypsegError, match="mobilenet_v9"):
        train(small_recipe(model={"encoder": "mobilenet_v9"}), [phantom_folder], tmp_path / "b")


def test_mlflow_by_option(tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra: pip install 'polypseg[mlflow]'")
    recipe = small_recipe(trainer={"epochs": 1, "loggers": ("mlflow",)})
    for name in ("before", "run"):  # each in its own place, also in one process
        out = train(recipe, [phantom_folder], tmp_path / name)
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("polypseg").experiment_id])
    assert run.data.metrics["val_dice"] == pytest.approx(pd.read_csv(out / "metrics.csv")["val_dice"][0], abs=1e-5)
