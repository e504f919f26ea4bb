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
        dice_per_image: Dice of each image, then their mean; else pooled over the batch, as the baseline recipe does.
        boundary: PraNet's boundary weighting, in both parts: what is added to a pixel's weight where all around it is
            of the other kind; along a straight outline half of it. 0 for none; PraNet takes 5.
        background: weight of the cross-entropy of each image's hardest hundredth of the pixels away from any polyp,
            what makes a false positive; small polyps are not drowned, for their surroundings do not count.
        presence: weight of the cross-entropy of the judgement where a polyp is plausible (model.presence).
    """

    bce: float = 1.0
    dice: float = 1.0
    dice_per_image: bool = False
    boundary: float = 0.0
    background: float = 0.0
    presence: float = 0.0


def segmentation_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    config: LossConfig,
    parts: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The training loss, a float32 scalar.

    Args:
        logits: N×1×H×W, any float type; computed in float32.
        target: N×1×H×W, 0 or 1.
        config: the parts' weights.
        parts: of a network that judges where a polyp is plausible, the map and the judgement that ``logits`` are joined
            from, N×1×(cell·h)×(cell·w) and N×1×h×w, where h is H/16.
    """
    around = _around(target.float()) if config.boundary or config.background else None
    loss = _sum_of_parts(logits, target, config, soft_dice_loss, around)
    if config.background:
        loss = loss + config.background * background_loss(logits.float(), target.float(), around)
    if config.presence and parts is not None:
        alone, presence = parts
        loss = loss + config.presence * presence_loss(presence.float(), alone.detach().float(), target.float())
    return loss


def presence_loss(presence: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the judgement where a polyp is plausible; a float32 scalar.

    A place counts as much as the map marks it, for what the map leaves alone needs no judgement; places with a polyp
    and places without count alike in each image, and places on an outline do not count.

    Args:
        presence: N×1×h×w float32 logits.
        logits: N×1×(cell·h)×(cell·w) float32, the map; cell is 1 to 16.
        target: N×1×16h×16w float32, 0..1.
    """
    from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, max_pool2d

    covered = max_pool2d(avg_pool2d(target, 4), 4)
    polyp = (covered > 0.5).float()
    weight = max_pool2d(logits, logits.shape[2] // presence.shape[2]).sigmoid() + 0.02
    entropy = binary_cross_entropy_with_logits(presence, polyp, reduction="none")

    def mean(places: torch.Tensor) -> torch.Tensor:
        counted = weight * places
        return ((entropy * counted).sum((1, 2, 3)) / (counted.sum((1, 2, 3)) + 1)).mean()

    return mean(polyp) + mean((covered < 0.02).float())


def background_loss(logits: torch.Tensor, target: torch.Tensor, around: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of the hardest hundredth of the pixels that have no polyp within reach, the mean over images.

    Within reach is what ``boundary_weight`` takes in, so that outlines are left alone. Mining of the hardest pixels:
    Shrivastava et al., Training region-based object detectors with online hard example mining, CVPR 2016.

    Args:
        logits: N×1×H×W float32.
        target: the same shape, 0..1.
        around: the target's mean around each pixel, where it is known already.
    """
    from torch.nn.functional import softplus

    away = ((_around(target) if around is None else around) < 1e-4).float()
    hardest = (softplus(logits) * away).flatten(1).topk(max(1, logits[0].numel() // 100)).values
    return hardest.mean()


def soft_dice_loss(
    logits: torch.Tensor, target: torch.Tensor, per_image: bool, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """``1 - 2 Σ w p t / (Σ w p + Σ w t)`` with ``p = sigmoid(logits)`` (Milletari et al., V-Net, 3DV 2016; linear).

    The sums run over each image (then the mean is taken) or over the whole batch. An image, or batch, without
    polyp counts as 0: its Dice has no gradient that helps, and the cross-entropy covers it.

    Args:
        logits: N×1×H×W.
        target: the same shape, 0..1.
        per_image: where the sums run.
        weight: of each pixel, N×1×H×W; None for 1.
    """
    dimensions = (1, 2, 3) if per_image else (0, 1, 2, 3)
    probability, truth = _weighted(logits.sigmoid(), weight), _weighted(target, weight)
    intersection = (probability * target).sum(dimensions)
    total = probability.sum(dimensions) + truth.sum(dimensions)
    dice = 2.0 * intersection / total.clamp_min(1e-7)
    present = (target.sum(dimensions) > 0).float()
    return ((1.0 - dice) * present).mean()


def boundary_weight(target: torch.Tensor, boundary: float, around: torch.Tensor | None = None) -> torch.Tensor:
    """``1 + boundary · |mean of the target around the pixel - target|``, around as wide as 31 pixels are in 352.

    As in the loss of PraNet (Fan et al., MICCAI 2020), which has it from F3Net (Wei et al., AAAI 2020). At the frame's
    edge the mean is of the pixels within.

    Args:
        target: N×1×H×W float32, 0..1.
        boundary: the factor.
        around: as ``background_loss`` takes it.

    Returns:
        N×1×H×W float32, 1 or more.
    """
    return 1.0 + boundary * ((_around(target) if around is None else around) - target).abs()


def _around(target: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import avg_pool2d

    reach = max(1, round(max(target.shape[2:]) * 15 / 352))
    # Rows, then columns: the same mean, of which a CPU sums 62 values a pixel in place of 961.
    rows = avg_pool2d(target, (2 * reach + 1, 1), 1, (reach, 0), count_include_pad=False)
    return avg_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach), count_include_pad=False)


def distillation_loss(logits: torch.Tensor, predictions: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """The loss against a teacher's predictions, of the same parts and weights; least where both predict alike.

    Dice takes the form with squares, ``1 - 2 Σ w p t / (Σ w p² + Σ w t²)`` (Milletari et al., V-Net, 3DV 2016): the
    linear form is least at a hard mask, whatever the teacher says.

    Args:
        logits: N×1×H×W, any float type; computed in float32.
        predictions: N×1×h×w probabilities, 0..1; resized to H×W, bilinear with antialiasing.
        config: the parts' weights.

    Returns:
        A float32 scalar.
    """
    from torch.nn.functional import interpolate

    if predictions.shape != logits.shape:
        predictions = interpolate(predictions.float(), logits.shape[2:], mode="bilinear", antialias=True)
    return _sum_of_parts(logits, predictions, config, _squared_dice_loss)


def _squared_dice_loss(
    logits: torch.Tensor, target: torch.Tensor, per_image: bool, weight: torch.Tensor | None
) -> torch.Tensor:
    dimensions = (1, 2, 3) if per_image else (0, 1, 2, 3)
    probability = logits.sigmoid()
    both = _weighted(probability.square() + target.square(), weight).sum(dimensions)
    dice = 2.0 * _weighted(probability * target, weight).sum(dimensions) / both.clamp_min(1e-7)
    return (1.0 - dice).mean()


def _weighted(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    return values if weight is None else weight * values


def _sum_of_parts(
    logits: torch.Tensor,
    target: torch.Tensor,
    config: LossConfig,
    dice_loss: Callable[[torch.Tensor, torch.Tensor, bool, torch.Tensor | None], torch.Tensor],
    around: torch.Tensor | None = None,
) -> torch.Tensor:
    from torch.nn.functional import binary_cross_entropy_with_logits

    logits, target = logits.float(), target.float()
    weight = boundary_weight(target, config.boundary, around) if config.boundary else None
    loss = logits.new_zeros(())
    if config.bce:
        # A mean over each image's own weight: one with much outline counts no more than others.
        share = None if weight is None else weight / weight.mean((1, 2, 3), keepdim=True)
        loss = loss + config.bce * binary_cross_entropy_with_logits(logits, target, share)
    if config.dice:
        loss = loss + config.dice * dice_loss(logits, target, config.dice_per_image, weight)
    return loss
