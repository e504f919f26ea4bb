"""What the Trainer does beside training: ``metrics.csv``, a line for each epoch, and how far the present one is."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import Callback, Checkpoint
from tqdm import tqdm

from polypseg.files import atomic_write

log = logging.getLogger("polypseg")
EVERY_S = 60.0  # seconds between two lines of a log that stands for a progress bar


class MetricsTable(Checkpoint):
    """One row for each epoch in ``metrics.csv``, rewritten whole each time.

    The rows travel in the checkpoint, so that a resumed run's table has each epoch once. It derives from
    Lightning's Checkpoint because only those are called after the module has logged its epoch.

    Args:
        path: the CSV.

    Attributes:
        rows: one an epoch, by column.
        begun: whether an epoch has begun: all that a checkpoint contains was taken up then.
    """

    COLUMNS = (
        "epoch", "step", "learning_rate", "train_loss", "train_dice", "val_loss", "val_dice", "val_dice_batch",
        "seconds",
    )  # fmt: skip

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.begun = False
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = True
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "learning_rate": float(trainer.optimizers[0].param_groups[-1]["lr"]),
            **{key: values[key] for key in self.COLUMNS[3:-1] if key in values},
            "seconds": time.monotonic() - self._start,
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            with atomic_write(self.path, "w") as file:
                pd.DataFrame(self.rows, columns=list(self.COLUMNS)).to_csv(file, index=False, float_format="%.6g")
            log.info(
                "epoch %d/%d  loss %.4f  dice %.4f  val loss %.4f  val dice %.4f  (%.0f s)",
                row["epoch"] + 1, trainer.max_epochs, *(row.get(key, float("nan")) for key in self.COLUMNS[3:7]),
                row["seconds"],
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class Progress(Callback):
    """How far an epoch is, and the time left: a bar on standard error, or a line in the log from minute to minute.

    Not Lightning's bar, which writes to standard output, where the run folder's name alone belongs.

    Args:
        bar: whether there is a bar.
    """

    def __init__(self, bar: bool) -> None:
        self.bar = bar
        self._now: tqdm[Any] | _Lines | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, "training", int(trainer.num_training_batches))

    def on_train_batch_end(self, *_: Any) -> None:
        self._step()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, "validating", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(self, *_: Any) -> None:
        self._step()

    def on_validation_end(self, *_: Any) -> None:
        self._end()

    def on_train_epoch_end(self, *_: Any) -> None:
        self._end()

    def on_exception(self, *_: Any) -> None:
        self._end()

    def _begin(self, trainer: L.Trainer, what: str, batches: int) -> None:
        self._end()
        name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, {what}"
        if not self.bar:
            self._now = _Lines(name, batches)
        elif trainer.is_global_zero:
            self._now = tqdm(desc=name, total=batches, unit="batch", leave=False, dynamic_ncols=True)

    def _step(self) -> None:
        if self._now is not None:
            self._now.update()

    def _end(self) -> None:
        if self._now is not None:
            self._now.close()
        self._now = None


class _Lines:
    """What a bar would show, as lines of the log."""

    def __init__(self, name: str, batches: int) -> None:
        self.name, self.batches, self.done = name, batches, 0
        self._start = self._last = time.monotonic()

    def update(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self._last < EVERY_S or self.done >= self.batches:
            return
        self._last = now
        left = (now - self._start) / self.done * (self.batches - self.done)
        log.info("%s: %.0f %%, %s left", self.name, 100 * self.done / self.batches, tqdm.format_interval(left))

    def close(self) -> None:
        """There is nothing to remove."""
