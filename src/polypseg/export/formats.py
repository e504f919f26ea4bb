"""A bundle's network in another runtime's format: ONNX and OpenVINO, in full precision or quantised to int8."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polypseg.bundle import ModelBundle
from polypseg.errors import PolypsegError
from polypseg.inference.runtimes.openvino import import_openvino
from polypseg.inference.runtimes.torch import open_network

INPUT = "frame"  # N×3×h×w float32, normalised
OUTPUT = "logits"  # N×1×h×w float32


def write_onnx(bundle: ModelBundle, file: Path) -> None:
    """Write the network as ONNX, with a dynamic batch, by PyTorch's dynamo exporter.

    Raises:
        PolypsegError: the exporter's packages are not installed, or it cannot export this network.
    """
    network, example = _network(bundle)
    try:
        with _quiet():
            torch.onnx.export(
                network, (example,), file, dynamo=True, external_data=False, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False,
            )  # fmt: skip
    except ImportError as error:
        raise _not_installed(error) from error
    except Exception as error:  # of many classes, as the network meets the exporter's limits
        raise _refused(bundle, "ONNX", error) from error


def write_openvino(bundle: ModelBundle, file: Path, half: bool) -> None:
    """Write the network as OpenVINO IR, with a dynamic batch.

    Args:
        bundle: what to export.
        file: the ``.xml``; the weights lie beside it as ``.bin``.
        half: keep the weights as 16-bit floats, half the size; they lose less than a computation in bf16 does.

    Raises:
        PolypsegError: OpenVINO is not installed, or it cannot convert this network.
    """
    openvino = import_openvino()
    network, example = _network(bundle)
    try:
        with _quiet():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
            model = openvino.convert_model(program)
        model.inputs[0].get_tensor().set_names({INPUT})
        model.outputs[0].get_tensor().set_names({OUTPUT})
        openvino.save_model(model, file, compress_to_fp16=half)
    except Exception as error:  # as above
        raise _refused(bundle, "OpenVINO", error) from error


def quantise(source: Path, file: Path, images: Sequence[NDArray[np.float32]], preset: str = "mixed") -> None:
    """Quantise a float export to int8 by NNCF's post-training quantisation.

    Args:
        source: an export of ``write_openvino`` (``.xml``) or ``write_onnx`` (``.onnx``).
        file: the export to write, of the same format.
        images: what to calibrate on, 3×h×w float32 each, normalised.
        preset: NNCF's: ``mixed`` (activations in an asymmetric range) or ``performance`` (in a symmetric one); which of
            them loses less depends on the network.

    Raises:
        PolypsegError: NNCF is not installed, or it cannot quantise this network.
    """
    openvino = import_openvino()
    onnx_format = source.suffix == ".onnx"
    try:
        import nncf

        # Not nncf.set_log_level: it changes whatever handlers others have put there, too.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        if onnx_format:
            import onnx

            model: Any = onnx.load(source)
        else:
            model = openvino.Core().read_model(source)
    except ImportError as error:
        raise _not_installed(error) from error
    batches = [{INPUT: image[None]} if onnx_format else image[None] for image in images]
    try:
        with _quiet():
            quantised = nncf.quantize(
                model, nncf.Dataset(batches), preset=nncf.QuantizationPreset(preset), subset_size=len(batches)
            )
    except Exception as error:  # as above
        raise PolypsegError(f"{file.name}: NNCF cannot quantise this network ({_one_line(error)})") from error
    if onnx_format:
        onnx.save(quantised, file)
    else:
        openvino.save_model(quantised, file, compress_to_fp16=False)


def _network(bundle: ModelBundle) -> tuple[torch.nn.Module, torch.Tensor]:
    network = open_network(bundle)
    preprocessing = bundle.preprocessing
    # Two images: an exporter takes a batch of one for a constant.
    return network.eval(), torch.zeros(2, 3, preprocessing.height, preprocessing.width)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and advice out; what goes wrong is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _not_installed(error: ImportError) -> PolypsegError:
    return PolypsegError(f"export: {_one_line(error)}; install what it needs with: pip install 'polypseg[export]'")


def _refused(bundle: ModelBundle, what: str, error: Exception) -> PolypsegError:
    return PolypsegError(f"{bundle.folder}: its network cannot be exported to {what} ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
