"""Learning another model's predictions: what the teacher is shown, what counts in the loss, what the bundle records."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import polypseg
from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.data import phantom
from polypseg.data.transforms import evaluation_pipeline
from polypseg.errors import PolypsegError, UsageError
from polypseg.export.card import render
from polypseg.models.losses import LossConfig, distillation_loss
from polypseg.training.average import average
from polypseg.training.recipe import DistillationConfig
from polypseg.training.run import train
from polypseg.training.teacher import Teacher, by_networks

SHORT = {"epochs": 1, "keep": "last"}


@pytest.mark.parametrize(
    "config", [LossConfig(), LossConfig(bce=0.0), LossConfig(dice=0.0, bce=2.0), LossConfig(boundary=5.0)]
)
@pytest.mark.parametrize("per_image", [True, False])
def test_the_loss_is_least_where_both_answer_alike(config: LossConfig, per_image: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    config = replace(config, dice_per_image=per_image)
    predictions = torch.rand(2, 1, 8, 8, generator=generator) * 0.9 + 0.05
    logits = predictions.logit().requires_grad_()
    least = distillation_loss(logits, predictions, config)
    least.backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6
    for shift in (-0.5, 0.5):
        assert distillation_loss(logits.detach() + shift, predictions, config) > least
    if not config.bce:
        assert least.item() == pytest.approx(0.0, abs=1e-6)


def test_predictions_of_another_size_are_resized() -> None:
    predictions = torch.zeros(1, 1, 16, 16)
    predictions[..., :8] = 1.0
    halves = torch.full((1, 1, 8, 8), -3.0)
    halves[..., :4] = 3.0
    fitting = distillation_loss(halves, predictions, LossConfig())
    assert fitting < 0.3 < 1.0 < distillation_loss(-halves, predictions, LossConfig())


@pytest.mark.parametrize("runtime_size", [(64, 64), (96, 128)])
def test_the_teacher_predicts_the_very_frames(exported: ModelBundle, runtime_size: tuple[int, int]) -> None:
    ours = Preprocessing(*runtime_size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.5))
    frames = [phantom.draw(seed, 80, 100)[0] for seed in range(3)]
    pipeline = evaluation_pipeline(ours)
    images = [pipeline(image=frame)["image"].transpose(2, 0, 1) for frame in frames]
    teacher = Teacher(exported, ours, "hflip")
    found = teacher(torch.from_numpy(np.stack(images)))
    assert teacher.bundle.hash == exported.hash
    segmenter = polypseg.load(exported.folder, device="cpu", tta="hflip")
    size = segmenter.preprocessing.height, segmenter.preprocessing.width
    assert found.shape == (3, 1, *size) and found.dtype == torch.float32
    for frame, prediction in zip(frames, found, strict=True):
        np.testing.assert_allclose(prediction[0], segmenter.probability(ours.resize_frame(frame)), atol=1e-5)


@pytest.mark.parametrize("tta", ["none", "flips", "multiscale"])
def test_a_gpu_is_given_the_same_predictions(exported: ModelBundle, tmp_path: Path, tta: str) -> None:
    # What is computed where the frames lie, here on the CPU, against the Segmenter's way over 8-bit frames.
    size = exported.preprocessing.height, exported.preprocessing.width
    larger = replace(exported.preprocessing, height=size[0] + 32, width=size[1] + 64)
    other = ModelBundle.save(
        tmp_path / "other", exported.weights(), name="other", architecture=exported.architecture,
        preprocessing=larger, threshold=0.5, temperature=1.7,
    )  # fmt: skip
    both = ModelBundle.join(tmp_path / "both", {"one": exported, "two": other}, name="both", threshold=0.5)
    frames = np.stack([phantom.draw(seed, *size)[0] for seed in range(3)])
    segmenter = polypseg.load(both.folder, runtime="torch", device="cpu", tta=tta)
    expected = np.stack(list(segmenter.probabilities(frames, 3)))
    found = by_networks(both, tta, "cpu")(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    assert found.shape == (3, 1, *size) and found.dtype == torch.float32 and not found.is_inference()
    # bf16, and the enlarged frame's 8 bits on the Segmenter's way, make the difference.
    difference = np.abs(found[:, 0].numpy() - expected)
    assert difference.mean() < 0.003 and difference.max() < 0.08 < np.ptp(expected)


@pytest.mark.slow
def test_what_is_learnt_from_a_teacher_alone_does_not_depend_on_the_masks(
    tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = train(small_recipe(trainer=SHORT), [phantom_folder], tmp_path / "first")
    wrongly = tmp_path / "wrongly" / phantom_folder.name
    shutil.copytree(phantom_folder, wrongly)
    masks = sorted((wrongly / "masks").iterdir())
    for mask in masks:  # of something else than the polyps
        wrong = np.zeros_like(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE))
        wrong[:20, :20] = 255
        cv2.imwrite(str(mask), wrong)
    assert masks

    def taught(data: Path, weight: float, name: str, teacher: Path | None = first) -> ModelBundle:
        config = {"teacher": None if teacher is None else str(teacher), "weight": weight}
        recipe = small_recipe(name="student", distillation=DistillationConfig(**config), trainer=SHORT)
        return ModelBundle.load(train(recipe, [data], tmp_path / name))

    with caplog.at_level(logging.WARNING, "polypseg"):
        alone = taught(phantom_folder, 1.0, "alone")
    assert "another split" not in caplog.text
    same, other = taught(wrongly, 1.0, "wrong masks"), taught(wrongly, 0.5, "half")
    assert _equal(alone, same) and not _equal(alone, other)
    ignored, untaught = taught(phantom_folder, 0.0, "ignored"), taught(phantom_folder, 0.0, "untaught", None)
    assert _equal(ignored, untaught) and not _equal(alone, untaught)

    teacher = ModelBundle.load(first)
    assert alone.metadata["taught_by"] == alone.lineage()["taught_by"] == teacher.lineage()
    assert "taught_by" not in untaught.metadata
    card = render(alone)
    assert f"the predictions of small ({teacher.hash[:12]}) on the training frames, in place of their masks" in card
    assert [line.split(" --data")[0] for line in card.splitlines() if line.startswith("polypseg train")][-2:] == [
        "polypseg train --config small.yaml",
        "polypseg train --config again.yaml",
    ]
    runs = [tmp_path / name for name in ("untaught", "alone", "ignored")]
    mean = average(runs, [phantom_folder], tmp_path / "mean")
    assert (
        render(ModelBundle.load(mean)).count("| distilled from | the predictions of small") == 1
    )  # one teacher, one row
    compacted = teacher.compact(tmp_path / "compact", name="shipped")
    assert compacted.hash != teacher.hash and compacted.lineage()["hash"] == teacher.hash


def _equal(one: ModelBundle, other: ModelBundle) -> bool:
    weights = other.weights()
    return all(torch.equal(value, weights[name]) for name, value in one.weights().items())


def test_a_teacher_that_cannot_be_asked(tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]) -> None:
    recipe = small_recipe(distillation=DistillationConfig(str(tmp_path / "nobody")))
    with pytest.raises(PolypsegError, match="nobody: is no model bundle"):
        train(recipe, [phantom_folder], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=r"distillation\.weight 1\.5: must be a number from 0 to 1"):
        small_recipe(distillation=DistillationConfig("polypseg-realtime", weight=1.5))
