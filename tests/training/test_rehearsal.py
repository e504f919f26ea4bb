"""What a network cannot do is reported before the training, whatever its library raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polypseg.errors import PolypsegError
from polypseg.models.network import build
from polypseg.training import rehearsal
from polypseg.training.rehearsal import rehearse


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_passed", set())


@pytest.mark.parametrize(
    ("model", "frames", "batches", "message"),
    [
        ({}, {"size": 32}, {4, 1}, "cannot train on batches of 1 frames of 32×32 .*more than 1 value per channel"),
        ({"name": "PAN"}, {"size": 64}, {2}, "PAN with encoder tu-test_efficientnet cannot train on .* 64×64"),
        ({"encoder": "tu-swin_tiny_patch4_window7_224"}, {"size": 64}, {2}, r"64×64 \(Input height"),
    ],
)
def test_it_is_told_in_one_line(
    model: dict[str, Any], frames: dict[str, Any], batches: set[int], message: str, small_recipe: Callable[..., Any]
) -> None:
    recipe = small_recipe(model={"decoder_channels": None, **model}, frames=frames)
    with pytest.raises(PolypsegError, match=message) as caught:
        rehearse(build(recipe.model.architecture), recipe, batches)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("small: ")


def test_a_network_that_can_stays_as_it_is(small_recipe: Callable[..., Any]) -> None:
    recipe = small_recipe(frames={"size": 64, "first_size": 32}, tta="multiscale")
    network = build(recipe.model.architecture)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rehearse(network, recipe, {8, 3})
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(one.grad is None for one in network.parameters())
    rehearse(torch.nn.Identity(), recipe, {8, 3})  # it is known


class _Picky(torch.nn.Module):
    """Computes what ``meta`` cannot; and, at a smaller size, nothing."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.one = least, torch.nn.Conv2d(3, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] < self.least:
            raise AssertionError("too small")
        return self.one(images) * (1.0 + images.sum().item())


def test_an_operation_that_meta_does_not_know_is_no_fault(small_recipe: Callable[..., Any]) -> None:
    rehearse(_Picky(64), small_recipe(), {2})


def test_a_view_of_another_size_is_tried_too(small_recipe: Callable[..., Any]) -> None:
    rehearse(_Picky(96), small_recipe(frames={"size": 96}), {2})
    with pytest.raises(PolypsegError, match=r"cannot compute frames of 64×64 \(too small\)"):
        rehearse(_Picky(96), small_recipe(frames={"size": 96}, tta="multiscale"), {2})


@pytest.mark.parametrize(
    ("encoder", "message"), [("resnet19", "no encoder 'resnet19'; did you mean resnet1"), ("tu-nosuch", "nosuch")]
)
def test_an_unknown_encoder_is_told(encoder: str, message: str, small_recipe: Callable[..., Any]) -> None:
    with pytest.raises(PolypsegError, match=message):
        build(small_recipe(model={"encoder": encoder}).model.architecture)
