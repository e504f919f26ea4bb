"""Depthwise convolutions that train faster in bfloat16 on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode


class FasterDepthwise(TorchFunctionMode):
    """Within it, depthwise convolutions under bfloat16 autocast take their gradients in float32.

    PyTorch computes a depthwise convolution quickly forwards in bfloat16, but its gradient of the weights three to
    five times slower than in float32 (oneDNN has no kernel of its own for it with channels last). The gradients are
    the more exact for it. Everything else is left as it is.

    It helps only where the CPU computes in bfloat16 (AMX, AVX-512 BF16); under float32 it does nothing. It may go when
    the backward pass of a depthwise ``conv2d`` under bfloat16 autocast, channels last, takes no longer on such a CPU
    than this one: at each new PyTorch, time a step of ``recipes/realtime.yaml`` with it and without.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is conv2d and not kwargs and len(args) == 7:
            image, weight, bias, stride, padding, dilation, groups = args
            depthwise = groups > 1 and groups == image.shape[1] == weight.shape[0]
            if depthwise and bias is None and not isinstance(padding, str) and _in_bfloat16(image):
                return _Depthwise.apply(image, weight, stride, padding, dilation)
        return func(*args, **(kwargs or {}))


def _in_bfloat16(image: torch.Tensor) -> bool:
    on_cpu = image.device.type == "cpu"
    return on_cpu and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any, dilation: Any
    ) -> torch.Tensor:
        image = image.to(torch.bfloat16)
        ctx.save_for_backward(image, weight)
        ctx.settings = [_pair(value) for value in (stride, padding, dilation)]
        return conv2d(image, weight.to(torch.bfloat16), None, stride, padding, dilation, image.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        image, weight = ctx.saved_tensors
        of_image, of_weight, _ = torch.ops.aten.convolution_backward(
            gradients[0].float(), image.float(), weight.float(), None, *ctx.settings, False, [0, 0], image.shape[1],
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )  # fmt: skip
        return None if of_image is None else of_image.to(image.dtype), of_weight, None, None, None


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
