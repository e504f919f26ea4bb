"""What training minimises, against segmentation-models-pytorch and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from scipy.ndimage import uniform_filter
from scipy.special import expit, log_expit

from polypseg.models.losses import (
    LossConfig,
    background_loss,
    boundary_weight,
    distillation_loss,
    presence_loss,
    segmentation_loss,
    soft_dice_loss,
)


def test_losses_equal_smps() -> None:
    """BCE and pooled Dice are those of segmentation-models-pytorch, the baseline recipe's library."""
    torch.manual_seed(0)
    logits, target = torch.randn(4, 1, 16, 16), (torch.rand(4, 1, 16, 16) > 0.7).float()
    bce = segmentation_loss(logits, target, LossConfig(bce=1, dice=0))
    assert bce == pytest.approx(float(torch.nn.BCEWithLogitsLoss()(logits, target)), abs=1e-6)
    pooled = segmentation_loss(logits, target, LossConfig(bce=0, dice=1))
    assert pooled == pytest.approx(float(smp.losses.DiceLoss("binary")(logits, target)), abs=1e-6)
    each = torch.stack([smp.losses.DiceLoss("binary")(logits[i : i + 1], target[i : i + 1]) for i in range(4)])
    per_image = segmentation_loss(logits, target, LossConfig(bce=0, dice=1, dice_per_image=True))
    assert per_image == pytest.approx(float(each.mean()), abs=1e-6)
    both = segmentation_loss(logits, target, LossConfig(bce=2, dice=3))
    assert both == pytest.approx(2 * float(bce) + 3 * float(pooled), abs=1e-5)


def test_soft_dice_at_its_ends() -> None:
    target = torch.zeros(2, 1, 8, 8)
    target[0, :, :4] = 1
    assert soft_dice_loss(torch.where(target > 0, 50.0, -50.0), target, per_image=True) == pytest.approx(0, abs=1e-6)
    wrong = soft_dice_loss(torch.where(target > 0, -50.0, 50.0), target, per_image=True)
    assert wrong == pytest.approx(0.5, abs=1e-6)  # 1 for the image with a polyp, 0 for the one without
    assert soft_dice_loss(torch.full((1, 1, 8, 8), 3.0), torch.zeros(1, 1, 8, 8), per_image=False) == 0


def test_loss_is_computed_in_float32() -> None:
    logits = torch.full((1, 1, 64, 64), 2.0, dtype=torch.bfloat16, requires_grad=True)
    loss = segmentation_loss(logits, torch.ones(1, 1, 64, 64), LossConfig())
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_the_boundary_weighs_as_pranets_does() -> None:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(2, 1, 352, 352, generator=generator) > 0.5).float()
    target[1] = 0
    target[1, :, 100:200, 60:180] = 1
    found = boundary_weight(target, 5.0).numpy()
    within = slice(15, -15)  # SciPy means the frame's edge otherwise
    for weight, truth in zip(found[:, 0], target[:, 0].numpy(), strict=True):
        expected = 1 + 5 * np.abs(uniform_filter(truth.astype(np.float64), 31) - truth)
        np.testing.assert_allclose(weight[within, within], expected[within, within], atol=1e-5)
    assert found[1].min() == found[1, 0, 0, 0] == found[1, 0, 150, 120] == 1  # far from the outline
    assert found[1, 0, 150, 60] == pytest.approx(1 + 5 * 15 / 31)  # just within a straight outline
    half = boundary_weight(target[..., ::2, ::2].contiguous(), 5.0)
    assert half[1, 0, 75, 30] == pytest.approx(1 + 5 * 8 / 17)  # as wide in a frame half the size
    edge = np.pad(target[0, 0].double().numpy(), 15)  # at the frame's edge the mean is of what lies within
    sums, counts = uniform_filter(edge, 31), uniform_filter(np.pad(np.ones((352, 352)), 15), 31)
    expected = 1 + 5 * np.abs((sums / counts)[15:-15, 15:-15] - target[0, 0].numpy())
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)
    assert (boundary_weight(torch.ones(1, 1, 32, 64), 5.0) == 1).all()  # beyond the frame's edge there is nothing


def test_weighted_losses_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 1, 48, 40, generator=generator)
    target = torch.zeros(3, 1, 48, 40)
    target[0, :, 10:30, 5:25], target[1, :, :7, :9] = 1, 1
    weight = boundary_weight(target, 3.0).double().numpy()
    x, t = logits.double().numpy(), target.double().numpy()
    entropy = -(t * log_expit(x) + (1 - t) * log_expit(-x))
    axes = (1, 2, 3)
    bce = np.mean((weight * entropy).sum(axes) / weight.sum(axes))
    config = LossConfig(bce=1, dice=0, boundary=3.0)
    assert segmentation_loss(logits, target, config).item() == pytest.approx(bce, rel=1e-5)
    both, total = (weight * expit(x) * t).sum(axes), (weight * (expit(x) + t)).sum(axes)
    dice = np.mean((1 - 2 * both / total) * [1, 1, 0])  # the third image has no polyp
    config = LossConfig(bce=0, dice=1, dice_per_image=True, boundary=3.0)
    assert segmentation_loss(logits, target, config).item() == pytest.approx(dice, rel=1e-5)
    config = LossConfig(bce=2, dice=3, dice_per_image=True, boundary=3.0)
    assert segmentation_loss(logits, target, config).item() == pytest.approx(2 * bce + 3 * dice, rel=1e-5)
    # The squared form against a teacher's soft predictions.
    predictions = torch.rand(3, 1, 48, 40, generator=generator)
    weight, t = boundary_weight(predictions, 3.0).double().numpy(), predictions.double().numpy()
    squared = 1 - 2 * (weight * expit(x) * t).sum(axes) / (weight * (expit(x) ** 2 + t**2)).sum(axes)
    config = LossConfig(bce=0, dice=1, dice_per_image=True, boundary=3.0)
    assert distillation_loss(logits, predictions, config).item() == pytest.approx(squared.mean(), rel=1e-5)


def test_a_mistake_at_the_outline_costs_more_with_the_boundarys_weight() -> None:
    target = torch.zeros(1, 1, 96, 96)
    target[..., 20:70, 20:70] = 1
    right = torch.where(target > 0, 4.0, -4.0)
    outline, elsewhere = right.clone(), right.clone()
    outline[..., 20:70, 66:70] *= -1
    elsewhere[..., 20:70, 90:94] *= -1
    plain, weighted = LossConfig(dice=0), LossConfig(dice=0, boundary=5.0)
    assert segmentation_loss(outline, target, plain) == pytest.approx(
        segmentation_loss(elsewhere, target, plain).item()
    )
    assert segmentation_loss(outline, target, weighted) > 1.5 * segmentation_loss(elsewhere, target, weighted)


def test_the_background_loss_is_that_of_the_hardest_pixels_away_from_polyps() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 1, 40, 40)).astype(np.float32)
    target = np.zeros((2, 1, 40, 40), np.float32)
    target[0, :, 10:20, 10:20] = 1
    logits[0, :, 9:21, 9:21] = 30.0  # the polyp and its outline, however sure, are no false positive
    expected = []
    for one, truth in zip(logits[:, 0], target[:, 0], strict=True):
        near = uniform_filter(truth, 2 * max(1, round(40 * 15 / 352)) + 1, mode="constant") > 1e-4
        hardest = np.sort((-log_expit(-one.astype(np.float64)))[~near])[-16:]  # a hundredth of 1600
        expected.append(hardest.mean())
    found = background_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_presence_loss_pulls_marks_up_on_polyps_and_down_elsewhere_and_leaves_the_rest() -> None:
    target = torch.zeros(1, 1, 64, 64)
    target[..., :32, :32] = 1
    logits = torch.full((1, 1, 64, 64), -40.0)
    logits[..., :16, :16] = logits[..., 48:, 48:] = 8.0  # marked: a place with a polyp, and one without
    presence = torch.zeros(1, 1, 4, 4, requires_grad=True)
    presence_loss(presence, logits, target).backward()
    assert presence.grad is not None
    pull = -presence.grad[0, 0]
    assert pull[0, 0] > 0 > pull[3, 3]
    assert pull.abs()[1, 1] < 0.1 * pull[0, 0]  # a polyp that the map does not mark
