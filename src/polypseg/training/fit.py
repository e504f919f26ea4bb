"""Fit: the Trainer, what it writes by the way, and what its errors mean."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from polypseg.errors import PolypsegError, UsageError
from polypseg.models.device import gains_from_bf16
from polypseg.training.callbacks import MetricsTable, Progress
from polypseg.training.checkpoints import SafeCheckpointIO
from polypseg.training.prepare import Prepared
from polypseg.training.processes import first_sentence, gone, launched, lost_another
from polypseg.training.recipe import Recipe


def make_trainer(recipe: Recipe, folder: Path, progress: bool, further: Sequence[Callback] = ()) -> L.Trainer:
    """Lightning's Trainer by a recipe.

    It writes ``metrics.csv`` and ``checkpoints/{best,last}.ckpt``; loggers come when the folder is known to be ours.

    Args:
        recipe: how long, and on what machine.
        folder: of the run.
        progress: show progress bars, in place of lines in the log.
        further: callbacks.

    Raises:
        UsageError: settings of the recipe contradict each other, or ask for more than this machine has.
        PolypsegError: Lightning refuses them.
    """
    settings = recipe.trainer
    if settings.threads:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # or Lightning would set what it thinks best
    on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    precision: Any = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if gains_from_bf16("cuda" if on_gpu else "cpu") else "32-true"
    if "fsdp" in settings.strategy and (recipe.optimizer.ema_decay is not None or recipe.optimizer.gradient_clip):
        raise UsageError("trainer.strategy fsdp goes neither with optimizer.ema_decay nor with optimizer.gradient_clip")
    _check_cores(recipe, on_gpu)
    devices, machines = launched() or (settings.devices or "auto", settings.num_nodes)
    plugins: list[Any] = [SafeCheckpointIO()]
    try:
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            # Lightning's own requeueing would continue from the middle of an epoch, which is not exact.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return L.Trainer(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=machines,
            strategy=settings.strategy,
            precision=precision,
            max_epochs=settings.epochs,
            gradient_clip_val=recipe.optimizer.gradient_clip or None,
            accumulate_grad_batches=recipe.optimizer.accumulate,
            use_distributed_sampler=False,  # EpochBatches deals out the batches itself
            num_sanity_val_steps=0,
            logger=False,
            log_every_n_steps=1,
            callbacks=[*_callbacks(recipe, folder, progress), *further],
            enable_progress_bar=False,  # Progress is ours
            enable_model_summary=False,
            plugins=plugins,
            default_root_dir=folder,
        )
    except Exception as error:  # of many classes, as Lightning has them
        raise PolypsegError(
            f"{recipe.name}: cannot be trained like this ({first_sentence(error)}); correct trainer.accelerator, "
            "devices, num_nodes or strategy"
        ) from error


def _callbacks(recipe: Recipe, folder: Path, progress: bool) -> list[Callback]:
    checkpoints = folder / "checkpoints"
    best = ModelCheckpoint(
        checkpoints, "best", monitor="val_dice", mode="max", save_on_train_epoch_end=True,
        enable_version_counter=False, auto_insert_metric_name=False,
    )  # fmt: skip
    # After the best one, so that what it knows of the best is in it.
    last = ModelCheckpoint(checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks: list[Callback] = [MetricsTable(folder / "metrics.csv"), best, last, Progress(progress)]
    if recipe.optimizer.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=recipe.optimizer.ema_decay))
    if recipe.trainer.patience is not None:
        callbacks.append(EarlyStopping("val_dice", mode="max", patience=recipe.trainer.patience))
    return callbacks


def _check_cores(recipe: Recipe, on_gpu: bool) -> None:
    """Refuse so many processes or threads that this machine could do nothing but switch between them."""
    settings, cores = recipe.trainer, os.cpu_count() or 1
    on_cpu = not on_gpu and settings.accelerator in ("auto", "cpu") and launched() is None
    for name, value, most in (
        ("trainer.devices", settings.devices if on_cpu else 0, max(2, cores)),
        ("trainer.threads", settings.threads, 4 * cores),
        ("frames.workers", recipe.frames.workers, 4 * cores),
    ):
        if value > most:
            raise UsageError(f"{name} {value}: is too many for the {cores} cores of this machine; give {most} at most")


def fit(trainer: L.Trainer, prepared: Prepared) -> float:
    """Train until the last epoch.

    Args:
        trainer: of ``make_trainer``.
        prepared: what it trains; its module changes.

    Returns:
        The best validation Dice of an epoch, 0..1.

    Raises:
        PolypsegError: the checkpoint fits the network no more, memory is full, another process has gone, or the loss
            is not finite.
        KeyboardInterrupt: Ctrl-C.
    """
    checkpoint, name = prepared.checkpoint, prepared.recipe.name
    table = next(one for one in trainer.callbacks if isinstance(one, MetricsTable))  # type: ignore[attr-defined]
    try:
        trainer.fit(prepared.module, prepared.batches, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt from error
    except PolypsegError:
        raise
    except Exception as error:
        if trainer.world_size > 1 and lost_another(error):
            raise gone(error) from error
        if checkpoint is not None and not table.begun:
            reason = " ".join(str(error).split())[:200]
            raise PolypsegError(f"{checkpoint}: cannot be resumed from ({reason}); use --overwrite") from error
        if "out of memory" in str(error).lower():
            raise PolypsegError(
                f"{name}: the device is out of memory; lower frames.batch_size or frames.size"
            ) from error
        raise
    return max(row["val_dice"] for row in table.rows)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within it, Lightning is silent on what is chosen on purpose: few workers on a CPU, logging each epoch only."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        for one in loggers:
            one.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
