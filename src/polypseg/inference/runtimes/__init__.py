"""What computes a bundle's network: PyTorch, OpenVINO or ONNX Runtime, one file each, behind one protocol."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from polypseg.bundle import Preprocessing
from polypseg.errors import UsageError

NAMES = ("openvino", "onnx", "torch")
PRECISIONS = ("fp32", "bf16", "int8")


class Runtime(Protocol):
    """A bundle's network, ready to compute. Every method may be called from several threads at once.

    Attributes:
        name: one of ``NAMES``.
        device: as ``cpu`` or ``cuda``.
        precision: one of ``PRECISIONS``.
        threads: threads that one call computes with on a CPU.
        side_by_side: whether frames of several streams are computed at the same time, each by itself; else it gains
            from batches.
    """

    name: str
    device: str
    precision: str
    threads: int
    side_by_side: bool

    def at(self, preprocessing: Preprocessing) -> Runtime:
        """The same network for frames of another size, on the same weights.

        Raises:
            UsageError: it can compute frames of its own size alone.
        """
        ...

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """N×h×w×3 uint8 RGB of the network's size to N×h×w float32 logits, as soon as it can."""
        ...

    def stream(self, images: Iterable[NDArray[np.uint8]], in_flight: int) -> Iterator[NDArray[np.float32]]:
        """h×w×3 uint8 images to h×w float32 logits, in order, ``in_flight`` of them at once, for the most in all."""
        ...


def batched(runtime: Runtime, images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.float32]]:
    """``Runtime.stream`` by way of ``Runtime.logits`` on batches, for runtimes that gain from those."""
    batch: list[NDArray[np.uint8]] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield from runtime.logits(np.stack(batch))
            batch = []
    if batch:
        yield from runtime.logits(np.stack(batch))


def of_another_size(model: Path, size: tuple[int, int], own: tuple[int, int]) -> UsageError:
    """What to raise where an export cannot compute frames of rows × columns other than its own."""
    return UsageError(
        f"{model}: cannot compute frames of {size[0]}×{size[1]}, only those of its own size, {own[0]}×{own[1]} "
        "(height × width); take --tta none, or --runtime torch"
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux: fewer in a container or under taskset
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
