"""Frames that grow over the epochs of training (``frames.first_size``, ``frames.last_size``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from polypseg.errors import UsageError
from polypseg.training.module import SegmentationModule
from polypseg.training.run import train

GROWING = {
    "frames": {"size": 128, "first_size": 32, "last_size": 96},
    "trainer": {"epochs": 4, "precision": "32-true", "threads": 1},
}


def sizes(recipe: Any) -> list[int]:
    return [recipe.training_size(epoch) for epoch in range(recipe.trainer.epochs)]


def test_sizes_grow_by_32_and_end_at_the_last_quarter(small_recipe: Callable[..., Any]) -> None:
    expected = {
        1: [128],
        2: [64, 128],
        3: [64, 64, 128],
        8: [64, 64, 64, 96, 96, 96, 128, 128],
    }
    for epochs, grown in expected.items():
        assert sizes(small_recipe(frames={"size": 128, "first_size": 64}, trainer={"epochs": epochs})) == grown
    for epochs in (4, 7, 10, 23, 100):
        for first, last in ((32, 64), (64, 256), (224, 352)):
            found = sizes(small_recipe(frames={"size": last, "first_size": first}, trainer={"epochs": epochs}))
            assert found == sorted(found) and found[0] == first and all(size % 32 == 0 for size in found)
            assert all(size == last for size in found[-(epochs // 4) :])
            assert found[: epochs * 3 // 4].count(last) == 0
            if epochs == 100:
                counts = [found.count(size) for size in range(first, last, 32)]
                assert max(counts) - min(counts) <= 1


def test_sizes_end_at_a_last_size_below_the_networks(small_recipe: Callable[..., Any]) -> None:
    made = small_recipe(frames={"size": 352, "first_size": 64, "last_size": 128}, trainer={"epochs": 8})
    assert sizes(made) == [64, 64, 64, 96, 96, 96, 128, 128]
    assert set(sizes(small_recipe(frames={"size": 352, "last_size": 128}, trainer={"epochs": 8}))) == {128}


@pytest.mark.parametrize(
    ("frames", "wrong"),
    [
        ({"size": 96, "last_size": 128}, r"frames\.last_size 128: must not be larger than frames\.size, 96"),
        ({"size": 96, "last_size": 50}, r"frames\.last_size 50: must be a multiple of 32"),
        ({"size": 96, "last_size": 0}, r"frames\.last_size 0: must be a multiple of 32 from 32"),
        (
            {"size": 96, "first_size": 96, "last_size": 64},
            r"first_size 96: must not be larger than frames\.last_size, 64",
        ),
    ],
)
def test_a_last_size_that_cannot_be(frames: dict[str, int], wrong: str, small_recipe: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=wrong):
        small_recipe(frames=frames)


def test_without_a_first_size_all_epochs_are_alike(small_recipe: Callable[..., Any]) -> None:
    for frames in ({"size": 96}, {"size": 96, "first_size": 96}):
        assert set(sizes(small_recipe(frames=frames, trainer={"epochs": 9}))) == {96}


@pytest.mark.parametrize("first_size", [48, 33, 128, 0, -32])
def test_a_first_size_that_cannot_be(first_size: int, small_recipe: Callable[..., Any]) -> None:
    trouble = r"not be larger than frames\.last_size, 96" if first_size == 128 else "be a multiple of 32 from 32"
    with pytest.raises(UsageError, match=rf"frames\.first_size {first_size}: must {trouble}"):
        small_recipe(frames={"size": 96, "first_size": first_size})


@pytest.mark.slow
def test_a_run_sees_these_sizes_and_goes_on_with_them(
    tmp_path: Path,
    phantom_folder: Path,
    small_recipe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    interrupted: Callable[..., None],
) -> None:
    recipe = small_recipe(**GROWING)
    seen: list[tuple[bool, int, int]] = []
    forward = SegmentationModule.forward

    def watch(self: SegmentationModule, image: torch.Tensor) -> torch.Tensor:
        seen.append((self.training, self.current_epoch, image.shape[-1]))
        logits = forward(self, image)
        assert logits.shape[-2:] == image.shape[-2:] == (image.shape[-1],) * 2
        return logits

    monkeypatch.setattr(SegmentationModule, "forward", watch)
    whole = train(recipe, [phantom_folder], tmp_path / "whole")
    expected = {(True, epoch, recipe.training_size(epoch)) for epoch in range(4)}
    assert {size for _, _, size in expected} == {32, 64, 96}
    assert set(seen) == expected | {(False, epoch, 128) for epoch in range(4)}

    interrupted(3, lambda: train(recipe, [phantom_folder], tmp_path / "parts"))
    seen.clear()
    parts = train(recipe, [phantom_folder], tmp_path / "parts", resume=True)
    assert set(seen) == {(True, 3, 96), (False, 3, 128)}
    one, other = (
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for out in (whole, parts)
    )
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    tables = [pd.read_csv(out / "metrics.csv").drop(columns="seconds") for out in (whole, parts)]
    pd.testing.assert_frame_equal(*tables)
