"""A bundle's network in another runtime's format: ONNX and OpenVINO, in full precision or quantised to int8."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from polypseg.bundle import ModelBundle
from polypseg.errors import PolypsegError
from polypseg.inference.runtimes.openvino import import_openvino
from polypseg.inference.runtimes.torch import open_network

T = TypeVar("T")
_made: dict[Hashable, tuple[Any, Any]] = {}
INPUT = "frame"  # N×3×h×w float32, normalised
OUTPUT = "logits"  # N×1×h×w float32
SAME = 1e-2  # of a logit: the same arithmetic in another order of sums; of a graph with a size in it 0.1 and more


def write_onnx(bundle: ModelBundle, file: Path, any_size: bool = True) -> None:
    """Write the network as ONNX, with a dynamic batch, height and width, by PyTorch's dynamo exporter.

    A network that cannot have another size gets a file for its own size alone.

    Args:
        bundle: what to export.
        file: the ``.onnx``.
        any_size: of frames; else those of the bundle's own size.

    Raises:
        PolypsegError: the exporter's packages are not installed, or it cannot export this network.
    """

    def make() -> bytes:
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made.onnx"
            torch.onnx.export(
                _program(bundle, any_size), (), made, dynamo=True, external_data=False, input_names=[INPUT],
                output_names=[OUTPUT], verbose=False,
            )  # fmt: skip
            return made.read_bytes()

    try:
        file.write_bytes(_once(("onnx", any_size), bundle, make))
    except OSError:
        raise
    except ImportError as error:
        raise _not_installed(error) from error
    except Exception as error:  # of many classes, as the network meets the exporter's limits
        raise _refused(bundle, "ONNX", error) from error


def write_openvino(bundle: ModelBundle, file: Path, half: bool) -> None:
    """Write the network as OpenVINO IR, with a dynamic batch, height and width, as ``write_onnx``.

    Args:
        bundle: what to export.
        file: the ``.xml``; the weights lie beside it as ``.bin``.
        half: keep the weights as 16-bit floats, half the size; they lose less than a computation in bf16 does.

    Raises:
        PolypsegError: OpenVINO is not installed, or it cannot convert this network.
    """
    openvino = import_openvino()

    def make() -> Any:
        with _quiet():
            model = openvino.convert_model(_program(bundle))
        model.inputs[0].get_tensor().set_names({INPUT})
        model.outputs[0].get_tensor().set_names({OUTPUT})
        return model

    try:
        openvino.save_model(_once("openvino", bundle, make), file, compress_to_fp16=half)
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
                model,
                nncf.Dataset(batches),
                preset=nncf.QuantizationPreset(preset),
                subset_size=len(batches),
                ignored_scope=nncf.IgnoredScope(names=_after_convolutions(model)),
            )
    except Exception as error:  # as above
        raise PolypsegError(f"{file.name}: NNCF cannot quantise this network ({_one_line(error)})") from error
    if onnx_format:
        onnx.save(quantised, file)
    else:
        openvino.save_model(quantised, file, compress_to_fp16=False)


def _after_convolutions(model: Any) -> list[str]:
    """The names of the operations between the last convolutions and the output: they cost little and stay floats.

    In int8 the map would come in steps, and which region is shown would hang on one of them.

    Args:
        model: an ``openvino.Model`` or an ``onnx.ModelProto``.
    """
    if hasattr(model, "get_results"):
        kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ops()}
        sources = {
            node.get_friendly_name(): [value.get_node().get_friendly_name() for value in node.input_values()]
            for node in model.get_ops()
        }
        waiting = [name for result in model.get_results() for name in sources[result.get_friendly_name()]]
    else:
        made_by = {value: node.name for node in model.graph.node for value in node.output}
        kinds = {node.name: node.op_type for node in model.graph.node}
        sources = {node.name: [made_by[value] for value in node.input if value in made_by] for node in model.graph.node}
        waiting = [made_by[value.name] for value in model.graph.output]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found and kinds[name] not in ("Convolution", "Conv", "Constant", "Parameter"):
            found.add(name)
            waiting += sources[name]
    return sorted(found)


def open_size(bundle: ModelBundle, floats: Path, file: Path) -> None:
    """Leave height and width of an int8 ONNX export open, where its network has any size.

    NNCF needs shapes, so that it gets the network at its own size. Sizes that maps are enlarged to are replaced by
    factors, and shapes noted beside the graph are removed. Where that is the network at every size, so is what was
    quantised of it.

    Args:
        bundle: what was exported.
        floats: of ``write_onnx`` with ``any_size=False``, what ``file`` was quantised from.
        file: the quantised ``.onnx``, which is written anew.
    """
    import onnx

    own = onnx.load(floats)
    factors = _factors(own)
    if _has_any_size(bundle, _without_size(own, factors)):
        onnx.save(_without_size(onnx.load(file), factors), file)


def _factors(model: Any) -> dict[str, list[float]]:
    """By how much each node of an ONNX model that names a size to resize to enlarges: N, channels, height and width."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {value.name: [one.dim_value for one in value.type.tensor_type.shape.dim] for value in values}
    found = {}
    for node in model.graph.node:
        before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        if node.op_type == "Resize" and len(node.input) == 4 and len(before) == len(after) == 4 and all(before[2:]):
            found[node.name] = [1.0, 1.0, after[2] / before[2], after[3] / before[3]]
    return found


def _without_size(model: Any, factors: Mapping[str, list[float]]) -> Any:
    """An ONNX model with height and width of its input and output left open, and no shapes noted in between.

    Args:
        model: is changed.
        factors: as ``_factors`` finds them, by the node's name, in place of the size that the node names.
    """
    import onnx

    for node in model.graph.node:
        if node.name in factors:
            name = f"{node.name}.factors"
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factors[node.name], np.float32), name))
            node.input[:] = [node.input[0], "", name]
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in ((2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    return model


def _has_any_size(bundle: ModelBundle, model: Any) -> bool:
    """Whether an ONNX model computes what the bundle's network does, at a smaller size and at one of another shape."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a graph with a size in it fails here, as it may
    network = open_network(bundle).eval()
    height, width = bundle.preprocessing.height, bundle.preprocessing.width
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        for rows, columns in ((max(32, height - 32), max(32, width - 32)), (height + 64, width + 32)):
            images = torch.randn(1, 3, rows, columns, generator=torch.Generator().manual_seed(rows))
            with torch.inference_mode():
                expected = network(images).numpy()
            (found,) = session.run(None, {INPUT: images.numpy()})
            if found.shape != expected.shape or not np.abs(found - expected).max() < SAME:
                return False
    except Exception:  # noqa: BLE001  (of many classes: sizes in the graph, or in the network, do not go together)
        return False
    return True


def _once(kind: Hashable, bundle: ModelBundle, make: Callable[[], T]) -> T:
    """What ``make`` makes of a network: the last one of a kind is kept, as several precisions begin with the same."""
    frames = bundle.preprocessing.height, bundle.preprocessing.width
    key = bundle.metadata["weights_sha256"], bundle.architecture, frames
    if kind not in _made or _made[kind][0] != key:
        _made[kind] = key, make()
    made: T = _made[kind][1]
    return made


def _program(bundle: ModelBundle, any_size: bool = True) -> torch.export.ExportedProgram:
    """The network as PyTorch's exporter has it, of any batch and, where it can, any size: a multiple of 32."""
    return _once(("program", any_size), bundle, lambda: _trace(bundle, any_size))


def _trace(bundle: ModelBundle, any_size: bool) -> torch.export.ExportedProgram:
    network = open_network(bundle)
    preprocessing = bundle.preprocessing
    # Two images: an exporter takes a batch of one for a constant.
    example = (torch.zeros(2, 3, preprocessing.height, preprocessing.width),)
    batch = {0: torch.export.Dim("batch", min=1)}
    # The views of test-time augmentation differ in size.
    size = {axis: 32 * torch.export.Dim(name, min=1, max=256) for axis, name in ((2, "height"), (3, "width"))}
    # That the judgement of presence and the map have sizes that fit at any size takes the exporter hours to prove.
    any_size = any_size and not bundle.architecture.presence
    try:
        return torch.export.export(network.eval(), example, dynamic_shapes=({**batch, **(size if any_size else {})},))
    except Exception:  # noqa: BLE001  (of many classes: the network computes with its own size)
        return torch.export.export(network, example, dynamic_shapes=(batch,))


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
