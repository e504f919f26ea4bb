"""Where else a training is followed. TensorBoard and MLflow are met in ``test_run.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from lightning.pytorch.loggers import wandb as lightnings

from polypseg.errors import PolypsegError
from polypseg.training.loggers import make_loggers
from polypseg.training.run import train


def test_a_logger_that_is_not_installed_is_one_line(
    tmp_path: Path, small_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightnings, "_WANDB_AVAILABLE", "")
    with pytest.raises(PolypsegError, match=r"^wandb: .*pip install 'polypseg\[wandb\]'$"):
        make_loggers(small_recipe(trainer={"loggers": ("wandb",)}), tmp_path)


class Run:
    """What ``wandb.init`` gives."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A ``wandb`` that starts nothing; what its ``init`` was given."""
    given: list[dict[str, Any]] = []

    def init(**settings: Any) -> Run:
        given.append(settings)
        return Run()

    fake: Any = ModuleType("wandb")
    fake.init, fake.run = init, None
    monkeypatch.setattr(lightnings, "_WANDB_AVAILABLE", "yes")
    for name, module in (
        ("wandb", fake),
        ("wandb.sdk", ModuleType("wandb.sdk")),
        ("wandb.sdk.lib", SimpleNamespace(RunDisabled=type("RunDisabled", (), {}))),
        ("wandb.wandb_run", SimpleNamespace(Run=type("Other", (), {}))),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return given


def test_each_training_is_a_run_of_wandb(
    tmp_path: Path, small_recipe: Callable[..., Any], started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    recipe = small_recipe(trainer={"loggers": ("wandb",)})
    for status in ("success", "failed"):
        (logger,) = make_loggers(recipe, tmp_path)
        run: Any = logger.experiment
        logger.finalize(status)
        assert run.ended == [int(status == "failed")]
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    make_loggers(recipe, tmp_path)
    assert [one["project"] for one in started] == ["polypseg", "polypseg", "ours"]
    for one in started:
        assert (one["name"], one["dir"], one["config"]) == ("small", str(tmp_path), recipe.to_dict())


def test_wandb_that_cannot_start_is_one_line(
    tmp_path: Path, small_recipe: Callable[..., Any], started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> Run:
        raise RuntimeError("api_key not configured (no-tty).\ncall wandb.login")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(PolypsegError, match=r"^wandb: cannot start \(api_key .* call .*\); .* WANDB_MODE=offline$"):
        make_loggers(small_recipe(trainer={"loggers": ("wandb",)}), tmp_path)


@pytest.mark.slow
def test_wandb_offline(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra: pip install 'polypseg[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = train(small_recipe(trainer={"epochs": 1, "loggers": ("wandb",)}), [phantom_folder], tmp_path / "run")
    assert wandb.run is None, "the run has ended with its training"
    (file,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0 and len(pd.read_csv(out / "metrics.csv")) == 1
