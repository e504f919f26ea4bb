"""What the Trainer does beside training: ``metrics.csv``, a line for each epoch."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import Checkpoint

from polypseg.files import atomic_write

log = logging.getLogger("polypseg")


class MetricsTable(Checkpoint):
    """One row for each epoch in ``metrics.csv``, rewritten whole each time.

    The rows travel in the checkpoint, so that a resumed run's table has each epoch once. It derives from
    Lightning's Checkpoint because only those are called after the module has logged its epoch.

    Args:
        path: the CSV.

    Attributes:
        rows: one an epoch, by column.
        begun: whether an epoch has begun: all that a checkpoint holds was taken up then.
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
