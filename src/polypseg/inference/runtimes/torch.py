"""PyTorch on CUDA, MPS or the CPU. It needs no export."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from polypseg.bundle import ModelBundle, Preprocessing
from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.runtimes import batched
from polypseg.models.device import choose_device, gains_from_bf16
from polypseg.models.network import build, weight_shapes


class TorchRuntime:
    """A bundle's weights in its own network.

    Args:
        bundle: an opened bundle.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16`` (autocast); auto takes bf16 where the device gains from it.
        threads: of the whole process, on a CPU; 0 leaves them as they are.
        compile: compile the network by ``torch.compile``: the first frames take minutes, the others less.
        channels_last: memory layout that is faster for convolutions on most devices.

    Raises:
        PolypsegError: the weights do not fit the architecture.
        UsageError: the device is not there, or PyTorch does not compute in that precision.
    """

    name = "torch"
    side_by_side = False

    def __init__(
        self,
        bundle: ModelBundle,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        if precision not in ("auto", "fp32", "bf16"):
            raise UsageError(f"--precision {precision}: PyTorch computes in fp32 or bf16; int8 needs an export")
        self._device = choose_device(device)
        self.device = str(self._device)
        if threads:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        bf16 = precision == "bf16" or (precision == "auto" and gains_from_bf16(self._device.type))
        self.precision = "bf16" if bf16 else "fp32"
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._preprocessing = bundle.preprocessing
        network = open_network(bundle).to(self._device).to(memory_format=self._layout).eval()
        self._network = torch.compile(network) if compile else network

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(self._preprocessing.normalise(images)).to(self._device)
            logits: NDArray[np.float32] = self.compute(batch)[:, 0].cpu().numpy()
        return logits

    def at(self, preprocessing: Preprocessing) -> TorchRuntime:
        other = copy.copy(self)
        other._preprocessing = preprocessing
        return other

    def compute(self, batch: torch.Tensor) -> torch.Tensor:
        """N×3×h×w float32, normalised, to N×1×h×w float32 logits, both on the runtime's device."""
        autocast = (
            torch.autocast(self._device.type, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        )
        with autocast:
            logits: torch.Tensor = self._network(batch.to(memory_format=self._layout)).float()
        return logits

    def stream(self, images: Iterable[NDArray[np.uint8]], in_flight: int) -> Iterator[NDArray[np.float32]]:
        return batched(self, images, in_flight)


def open_network(bundle: ModelBundle) -> torch.nn.Module:
    """A bundle's network with its weights, on the CPU.

    Raises:
        PolypsegError: it cannot be built, or a weight's name or shape does not fit.
    """
    check_weights(bundle)
    network = build(bundle.architecture)
    load_weights(network, bundle)
    return network


def check_weights(bundle: ModelBundle) -> None:
    """Compare the weights' names and shapes with the architecture, before memory is taken for either.

    Raises:
        PolypsegError: they do not fit, or the architecture cannot be built.
    """
    needed, found = weight_shapes(bundle.architecture), bundle.weight_shapes()
    unfit = [name for name in sorted({**needed, **found}) if needed.get(name) != found.get(name)]
    if unfit:
        first = unfit[0]
        raise PolypsegError(
            f"{bundle.folder}: its weights do not fit its architecture ({len(unfit)} of {len(needed)}; {first} is "
            f"{found.get(first, 'missing')} where {needed.get(first, 'nothing')} is needed)"
        )


def load_weights(network: torch.nn.Module, bundle: ModelBundle) -> None:
    """Fill a network with a bundle's weights.

    Raises:
        PolypsegError: a name or a shape does not fit.
    """
    try:
        network.load_state_dict(bundle.weights())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise PolypsegError(f"{bundle.folder}: its weights do not fit its architecture ({reason})") from error
