"""What training minimises: a weighted sum of binary cross-entropy and Dice loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # recipes are read without torch
    import torch


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss's parts; the ``loss`` section of a recipe.

    Args:
        bce: weight of binary cross-entropy with logits, averaged over all pixels.
        dice: weight of the soft Dice loss.
        dice_per_image: Dice of each image, then their mean; else pooled over the batch, as the known recipe does.
    """

    bce: float = 1.0
    dice: float = 1.0
    dice_per_image: bool = False


def segmentation_loss(logits: torch.Tensor, target: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """The training loss, a float32 scalar.

    Args:
        logits: N×1×H×W, any float type; computed in float32.
        target: N×1×H×W, 0 or 1.
        config: the parts' weights.
    """
    return _weighted(logits, target, config, soft_dice_loss)


def soft_dice_loss(logits: torch.Tensor, target: torch.Tensor, per_image: bool) -> torch.Tensor:
    """``1 - 2 Σ p t / (Σ p + Σ t)`` with ``p = sigmoid(logits)`` (Milletari et al., V-Net, 3DV 2016; linear form).

    The sums run over each image (then the mean is taken) or over the whole batch. An image, or batch, without
    polyp counts as 0: its Dice has no gradient that helps, and the cross-entropy covers it.
    """
    dimensions = (1, 2, 3) if per_image else (0, 1, 2, 3)
    probability = logits.sigmoid()
    intersection = (probability * target).sum(dimensions)
    total = probability.sum(dimensions) + target.sum(dimensions)
    dice = 2.0 * intersection / total.clamp_min(1e-7)
    present = (target.sum(dimensions) > 0).float()
    return ((1.0 - dice) * present).mean()


def distillation_loss(logits: torch.Tensor, answers: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """The loss against a teacher's answers, of the same parts and weights; least where the network answers alike.

    Dice takes the form with squares, ``1 - 2 Σ p t / (Σ p² + Σ t²)`` (Milletari et al., V-Net, 3DV 2016): the linear
    form is least at a hard mask, whatever the teacher says.

    Args:
        logits: N×1×H×W, any float type; computed in float32.
        answers: N×1×h×w probabilities, 0..1; resized to H×W, bilinear with antialiasing.
        config: the parts' weights.

    Returns:
        A float32 scalar.
    """
    from torch.nn.functional import interpolate

    if answers.shape != logits.shape:
        answers = interpolate(answers.float(), logits.shape[2:], mode="bilinear", antialias=True)
    return _weighted(logits, answers, config, _squared_dice_loss)


def _squared_dice_loss(logits: torch.Tensor, target: torch.Tensor, per_image: bool) -> torch.Tensor:
    dimensions = (1, 2, 3) if per_image else (0, 1, 2, 3)
    probability = logits.sigmoid()
    both = (probability.square() + target.square()).sum(dimensions)
    dice = 2.0 * (probability * target).sum(dimensions) / both.clamp_min(1e-7)
    return (1.0 - dice).mean()


def _weighted(
    logits: torch.Tensor,
    target: torch.Tensor,
    config: LossConfig,
    dice_loss: Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor],
) -> torch.Tensor:
    from torch.nn.functional import binary_cross_entropy_with_logits

    logits, target = logits.float(), target.float()
    loss = logits.new_zeros(())
    if config.bce:
        loss = loss + config.bce * binary_cross_entropy_with_logits(logits, target)
    if config.dice:
        loss = loss + config.dice * dice_loss(logits, target, config.dice_per_image)
    return loss
