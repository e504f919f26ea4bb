"""How far an epoch is: a bar on standard error, or lines of the log."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest

from polypseg.training import callbacks
from polypseg.training.callbacks import Progress

TRAINER: Any = SimpleNamespace(
    current_epoch=2, max_epochs=25, num_training_batches=8, num_val_batches=[4], is_global_zero=True
)


def an_epoch(progress: Progress, clock: list[float]) -> None:
    """Eight batches of training and four of validation, at ten seconds each."""
    module: Any = None
    progress.on_train_epoch_start(TRAINER, module)
    for _ in range(8):
        clock[0] += 10
        progress.on_train_batch_end(TRAINER, module, None, None, 0)
    progress.on_validation_start(TRAINER, module)
    for _ in range(4):
        clock[0] += 10
        progress.on_validation_batch_end(TRAINER, module, None, None, 0)
    progress.on_validation_end(TRAINER, module)
    progress.on_train_epoch_end(TRAINER, module)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("every", "lines"),
    [
        (60.0, ["epoch 3/25, training: 75 %, 00:20 left"]),
        (30.0, [
            "epoch 3/25, training: 38 %, 00:50 left", "epoch 3/25, training: 75 %, 00:20 left",
            "epoch 3/25, validating: 75 %, 00:10 left",
        ]),
        (1000.0, []),
    ],
)  # fmt: skip
def test_without_a_terminal_the_log_says_how_far_an_epoch_is(
    every: float, lines: list[str], clock: list[float], caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert callbacks.EVERY_S == 60
    monkeypatch.setattr(callbacks, "EVERY_S", every)
    with caplog.at_level(logging.INFO, "polypseg"):
        an_epoch(Progress(bar=False), clock)
    assert [one.getMessage() for one in caplog.records] == lines
    assert not any(capsys.readouterr())


def test_on_a_terminal_a_bar_names_epoch_and_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(callbacks.tqdm, "monitor_interval", 0)  # no thread that outlives the clock
    with caplog.at_level(logging.INFO, "polypseg"):
        an_epoch(Progress(bar=True), clock)
    out, err = capsys.readouterr()
    assert out == "" and not caplog.records  # standard output is for the run folder's name
    assert re.search(r"epoch 3/25, training: +\d+%\|.*\| \d/8 \[\d\d:\d\d<", err)
    assert re.search(r"epoch 3/25, validating: +\d+%\|.*\| \d/4 \[", err)
    assert err.endswith("\r")  # the bar is gone before the epoch's own line comes


def test_a_bar_is_removed_when_training_ends_early(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(bar=True)
    module: Any = None
    progress.on_train_epoch_start(TRAINER, module)
    progress.on_exception(TRAINER, module, KeyboardInterrupt())
    assert capsys.readouterr().err.endswith("\r")
