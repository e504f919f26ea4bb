"""The LightningModule: one training step, one validation step, the optimiser and its schedule."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.nn.functional import interpolate

from polypseg.data.dataset import Sample
from polypseg.errors import PolypsegError
from polypseg.models.depthwise import FasterDepthwise
from polypseg.models.losses import distillation_loss, segmentation_loss
from polypseg.models.network import finer_layers
from polypseg.training.recipe import Recipe
from polypseg.training.teacher import Teacher


class SegmentationModule(L.LightningModule):
    """Trains a network by a Recipe.

    Logs, each epoch: ``train_loss`` and ``train_dice`` (mean over images, weights as they were at each step),
    ``val_loss``, ``val_dice`` (mean over images of Dice at probability 0.5 and the network's size; the
    checkpoint's criterion) and ``val_dice_batch`` (the baseline recipe's: pooled over each batch, mean over batches).
    Polyp-free images have no Dice, and polyp-free batches none of their own.
    With several processes the numbers are those of one.

    Args:
        network: N×3×H×W float32 to N×1×H×W logits.
        recipe: loss, optimiser, layout and seed.
        teacher: what predicts each batch too, in knowledge distillation.
    """

    def __init__(self, network: torch.nn.Module, recipe: Recipe, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.network = network
        self.recipe = recipe
        if recipe.model.frozen:
            for name, value in network.named_parameters():
                value.requires_grad_(name.startswith("presence."))
        self._kept = [] if recipe.model.frozen_stride is None else finer_layers(network, recipe.model.frozen_stride)
        for layer in self._kept:
            layer.requires_grad_(False)
        self.memory_format = torch.channels_last if recipe.trainer.channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)
        self._sums: dict[str, torch.Tensor] = {}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """N×3×H×W float32, normalised, to N×1×H×W logits."""
        logits: torch.Tensor = self.network(image.to(memory_format=self.memory_format))
        return logits

    def on_train_epoch_start(self) -> None:
        # Dropout, too, depends on seed, epoch and process alone, so that a resumed run continues exactly.
        mixed = np.random.SeedSequence((self.recipe.trainer.seed, self.current_epoch, self.global_rank))
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))
        self._sums.pop("train", None)
        if self.recipe.model.frozen:  # the statistics of its batch normalisation stay too
            self.network.eval()
            self.network.get_submodule("presence").train()
        for layer in self._kept:
            layer.eval()

    def training_step(self, batch: Sample, batch_index: int) -> torch.Tensor:
        predictions = None if self.teacher is None else self.teacher(batch["image"])
        batch = self._resized(batch)
        with FasterDepthwise() if self.device.type == "cpu" else contextlib.nullcontext():
            logits, parts = self._forward(batch["image"])
        loss = segmentation_loss(logits, batch["mask"], self.recipe.loss, parts)
        if predictions is not None:
            taught = distillation_loss(logits, predictions, self.recipe.loss)
            loss = torch.lerp(loss, taught, self.recipe.distillation.weight)
        self._add("train", loss.detach(), logits.detach(), batch)
        return loss

    def _forward(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """The network's logits, and what they are joined from, where it judges where a polyp is plausible."""
        if not self.recipe.model.presence:
            return self(image), None
        parts = self.network.parts(image.to(memory_format=self.memory_format))  # type: ignore[operator]
        return self.network.whole(*parts), parts  # type: ignore[operator]

    def _resized(self, batch: Sample) -> Sample:
        size = self.recipe.training_size(self.current_epoch)
        if size == batch["image"].shape[-1]:
            return batch
        image, mask = (
            interpolate(batch[name], (size, size), mode="bilinear", antialias=True) for name in ("image", "mask")
        )
        return {**batch, "image": image, "mask": mask}

    def on_train_epoch_end(self) -> None:
        self._log("train")

    def on_validation_epoch_start(self) -> None:
        self._sums.pop("val", None)
        if self.trainer.world_size > 1:
            # Each process has its own statistics of batch normalisation. A checkpoint contains the first one's, so
            # these are validated.
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Sample, batch_index: int) -> None:
        logits, parts = self._forward(batch["image"])
        self._add("val", segmentation_loss(logits, batch["mask"], self.recipe.loss, parts), logits, batch)

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def _add(self, stage: str, loss: torch.Tensor, logits: torch.Tensor, batch: Sample) -> None:
        prediction = logits > 0  # probability above 0.5
        truth = batch["mask"] > 0.5
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        intersection = (prediction & truth).sum((1, 2, 3)).to(exact)
        total = (prediction.sum((1, 2, 3)) + truth.sum((1, 2, 3))).to(exact)
        shown = truth.flatten(1).any(1).to(exact)
        any_shown = shown.amax()
        one = torch.ones((), dtype=exact, device=total.device)
        per_image = shown * 2.0 * intersection / total.clamp_min(1)
        pooled = any_shown * 2.0 * intersection.sum() / total.sum().clamp_min(1)
        row = torch.stack(
            [loss.to(exact) * len(truth), len(truth) * one, per_image.sum(), shown.sum(), pooled, any_shown]
        )
        # The weight is 0 for a batch that only keeps the processes in step.
        row = row * batch["weight"][0].to(exact)
        self._sums[stage] = self._sums[stage] + row if stage in self._sums else row

    def _log(self, stage: str) -> None:
        sums = self.trainer.strategy.reduce(self._sums[stage], reduce_op="sum")
        loss, images, dice, shown, pooled, batches = sums.tolist()
        if not math.isfinite(loss):
            raise PolypsegError(
                f"{self.recipe.name}: the {stage} loss is not finite in epoch {self.current_epoch + 1}; lower "
                "optimizer.learning_rate, set optimizer.gradient_clip, or train with trainer.precision 32-true"
            )
        values = {f"{stage}_loss": loss / images, f"{stage}_dice": dice / shown if shown else math.nan}
        if stage == "val":
            values["val_dice_batch"] = pooled / batches if batches else math.nan
        self.log_dict({key: torch.tensor(value, dtype=torch.float32) for key, value in values.items()}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        settings = self.recipe.optimizer
        rates = {"encoder.": settings.encoder_learning_rate, "presence.": settings.presence_learning_rate}
        rates = {prefix: rate for prefix, rate in rates.items() if rate is not None}
        parts: dict[str, list[torch.nn.Parameter]] = {"encoder.": [], **{prefix: [] for prefix in rates}, "": []}
        for name, value in self.network.named_parameters():
            if value.requires_grad:
                parts[next(prefix for prefix in parts if name.startswith(prefix))].append(value)
        groups: list[dict[str, Any]] = [
            {"params": values, "lr": rates.get(prefix, settings.learning_rate)} for prefix, values in parts.items()
        ]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
        optimizer = kind(groups, weight_decay=settings.weight_decay)
        if settings.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.recipe.trainer.epochs)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
        if settings.schedule == "one_cycle":
            steps = self._steps_of_the_cycle()
            # Of few steps the first one alone warms up: PyTorch divides by the length of the warm-up.
            cycle = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=[group["lr"] for group in groups], total_steps=steps, pct_start=max(0.1, 1.1 / steps),
                cycle_momentum=False,
            )  # fmt: skip
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        return optimizer

    def _steps_of_the_cycle(self) -> int:
        return max(2, self._steps_an_epoch() * self.recipe.trainer.epochs)  # a single step is no cycle

    def _steps_an_epoch(self) -> int:
        # Not the Trainer's estimated_stepping_batches: it starts an iteration of the training batches before
        # a checkpoint has said which epoch to continue from.
        batches = len(self.trainer.datamodule.batches("train"))  # type: ignore[attr-defined]
        return math.ceil(batches / self.recipe.optimizer.accumulate)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Another number of processes takes another number of steps an epoch: the cycle continues from the same epoch.
        for schedule in checkpoint["lr_schedulers"] if self.recipe.optimizer.schedule == "one_cycle" else ():
            if schedule["total_steps"] != self._steps_of_the_cycle():
                done = self._steps_an_epoch() * (checkpoint["epoch"] + 1)
                schedule.update(last_epoch=done, _step_count=done + 1)
                for name in ("total_steps", "_schedule_phases"):  # those of the new cycle stand
                    schedule.pop(name, None)
