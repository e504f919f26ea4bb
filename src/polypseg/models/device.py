"""Which device to compute on, and whether bf16 pays there."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from polypseg.errors import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """The device for a name: ``auto`` takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        UsageError: the named device is not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not available on this machine; use auto or cpu") from error
    return device


@lru_cache
def gains_from_bf16(device_type: str) -> bool:
    """Whether bf16 autocast is faster than float32: GPUs since Ampere, CPUs with avx512_bf16 or AMX.

    Without these instructions bf16 is emulated, up to twice slower than float32.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if device_type != "cpu":
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:  # not Linux: no way to ask that is worth a dependency
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})
