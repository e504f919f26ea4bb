"""Depthwise convolutions whose gradients are taken in float32: what is computed, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch.nn import Conv2d
from torch.nn.functional import conv2d

from polypseg.models import depthwise
from polypseg.models.depthwise import FasterDepthwise

CHANNELS = 8
KINDS: dict[str, Callable[[], Conv2d]] = {
    "plain padding": lambda: Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
    "no padding": lambda: Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS, bias=False),
    "stride": lambda: Conv2d(CHANNELS, CHANNELS, 5, stride=2, padding=2, groups=CHANNELS, bias=False),
    "oblong": lambda: Conv2d(
        CHANNELS, CHANNELS, (3, 5), stride=(1, 2), padding=(1, 2), dilation=(2, 1), groups=CHANNELS, bias=False
    ),
    "dilation": lambda: Conv2d(CHANNELS, CHANNELS, 3, padding=3, dilation=3, groups=CHANNELS, bias=False),
    "TensorFlow's padding": lambda: Conv2dSame(CHANNELS, CHANNELS, 3, stride=2, groups=CHANNELS, bias=False),
}
OTHERS: dict[str, Callable[[], Conv2d]] = {
    "one group": lambda: Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
    "few groups": lambda: Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2, bias=False),
    "several outputs a channel": lambda: Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
    "bias": lambda: Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "padding by name": lambda: Conv2d(CHANNELS, CHANNELS, 3, padding="same", groups=CHANNELS, bias=False),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The convolutions that are computed in the other way, as they come."""
    found: list[Any] = []
    own = depthwise._Depthwise.apply

    def apply(*args: Any) -> Any:
        found.append(args)
        return own(*args)

    monkeypatch.setattr(depthwise._Depthwise, "apply", apply)
    return found


def made(kind: Callable[[], Conv2d], channels_last: bool = True) -> tuple[Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = kind()
    image = torch.randn(4, CHANNELS, 17, 22)
    if channels_last:
        layer, image = layer.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
    return layer, image.requires_grad_()


def gradients(
    layer: Conv2d, image: torch.Tensor, dtype: torch.dtype | None = torch.bfloat16
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output, and the gradients of the image and of every parameter, under autocast to ``dtype``."""
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        output = layer(image)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = torch.autograd.grad(output, [image, *layer.parameters()], weights.to(output.dtype))
    return output.detach(), list(found)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_at_least_as_exact_as_those_of_bfloat16(name: str, channels_last: bool, taken: list[Any]) -> None:
    layer, image = made(KINDS[name], channels_last)
    usual, usual_gradients = gradients(layer, image)
    assert not taken
    with FasterDepthwise():
        output, found = gradients(layer, image)
    assert len(taken) == 1
    assert output.dtype is torch.bfloat16 and torch.equal(output, usual)
    exact_layer = made(KINDS[name])[0].double()
    _, exact = gradients(exact_layer, image.detach().double().requires_grad_(), None)
    for ours, theirs, truth in zip(found, usual_gradients, exact, strict=True):
        assert ours.dtype is torch.float32 and ours.shape == truth.shape
        scale = truth.norm()
        assert (ours - truth).norm() / scale < 0.005  # bfloat16 keeps 8 bits
        assert (ours - truth).norm() <= (theirs - truth).norm() * 1.001


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_left_alone(name: str, taken: list[Any]) -> None:
    layer, image = made(OTHERS[name])
    usual, usual_gradients = gradients(layer, image)
    with FasterDepthwise():
        output, found = gradients(layer, image)
    assert not taken and torch.equal(output, usual)
    assert all(torch.equal(one, other) for one, other in zip(found, usual_gradients, strict=True))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_without_bfloat16_nothing_is_changed(dtype: torch.dtype | None, taken: list[Any]) -> None:
    layer, image = made(KINDS["plain padding"])
    usual, usual_gradients = gradients(layer, image, dtype)
    with FasterDepthwise():
        output, found = gradients(layer, image, dtype)
    assert not taken and output.dtype is usual.dtype and torch.equal(output, usual)
    assert all(torch.equal(one, other) for one, other in zip(found, usual_gradients, strict=True))


def test_a_call_by_keywords_is_left_alone(taken: list[Any]) -> None:
    layer, image = made(KINDS["plain padding"])
    with FasterDepthwise(), torch.autocast("cpu", torch.bfloat16):
        output = conv2d(image, layer.weight, padding=1, groups=CHANNELS)
        assert not taken and torch.equal(output, layer(image))
    assert len(taken) == 1


def test_a_frozen_weight_gets_no_gradient(taken: list[Any]) -> None:
    layer, image = made(KINDS["stride"])
    layer.requires_grad_(False)
    with FasterDepthwise(), torch.autocast("cpu", torch.bfloat16):
        layer(image).float().sum().backward()
    assert taken and layer.weight.grad is None and image.grad is not None and image.grad.abs().sum() > 0
