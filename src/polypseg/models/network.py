"""A network from its Architecture, by segmentation-models-pytorch."""

from __future__ import annotations

import difflib
import inspect
from functools import lru_cache
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch.nn.functional import avg_pool2d, interpolate, logsigmoid, max_pool2d
from torch.utils._device import DeviceContext

from polypseg.bundle import Architecture
from polypseg.errors import PolypsegError

# What SMP calls the dropout of a decoder, where an architecture has one.
_DROPOUT_NAMES = ("decoder_dropout", "decoder_aspp_dropout", "psp_dropout")


def build(architecture: Architecture) -> torch.nn.Module:
    """The network with random weights: N×3×H×W float32 (normalised) to N×1×H×W logits.

    H and W must be multiples of 32.

    Raises:
        PolypsegError: SMP knows no such architecture or encoder, or refuses their combination.
    """
    options: dict[str, object] = {}
    name = dropout_argument(architecture.name)
    if name is not None:
        options[name] = architecture.decoder_dropout
    if architecture.decoder_channels is not None:
        options["decoder_channels"] = architecture.decoder_channels
    kind = _architecture_class(architecture.name)
    try:
        network = (_with_presence(kind, architecture.output_stride) if architecture.presence else kind)(
            encoder_name=architecture.encoder, encoder_weights=None, in_channels=3, classes=1, **options
        )
    except Exception as error:  # of many classes, as the libraries have them
        reason = " ".join(str(error).split())[:200]
        raise PolypsegError(
            f"model: {architecture.name} with encoder {architecture.encoder} cannot be built "
            f"({_unknown(architecture.encoder) or reason})"
        ) from error
    if architecture.output_stride > 1:
        _coarsen(network, architecture.output_stride)
    return network


def _with_presence(kind: Any, stride: int) -> Any:
    """The class of an SMP model, whose networks also judge where a polyp is plausible; see ``Presence``.

    Map and judgement are joined at the size that the decoder computes, 1 / ``stride`` of the frame's: the enlargement
    stays the network's last step, which a runtime may do in its own way.
    """

    class WithPresence(kind):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.presence = Presence(*self.encoder.out_channels[-2:], cell=16 // stride)

        def parts(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """N×3×H×W to the map's N×1×H/stride×W/stride logits, and N×1×H/16×W/16 that a polyp is plausible there."""
            features = self.encoder(image)
            coarse = self.segmentation_head[0](self.decoder(features))
            return coarse, self.presence(features[-2], features[-1], coarse)

        def whole(self, coarse: torch.Tensor, presence: torch.Tensor) -> torch.Tensor:
            """What ``parts`` returns, joined and enlarged to N×1×H×W logits."""
            _, enlarge, activation = self.segmentation_head
            logits: torch.Tensor = activation(enlarge(joined(coarse, presence, self.presence.cell)))
            return logits

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.whole(*self.parts(image))

    WithPresence.__name__ = kind.__name__
    return WithPresence


class Presence(torch.nn.Module):
    """Where a polyp is plausible: a small head on the two deepest features of the encoder and the map itself.

    It sees what surrounds a place, down to the whole frame, by the mean and the maximum of the deepest features.

    Args:
        fine: channels of the features at 1/16 of the frame's size.
        deep: channels of those at 1/32.
        cell: rows of the map to a row of the features at 1/16.
        hidden: channels within.
    """

    def __init__(self, fine: int, deep: int, *, cell: int, hidden: int = 48) -> None:
        super().__init__()
        self.cell = cell
        self.norm_fine, self.norm_deep = torch.nn.BatchNorm2d(fine), torch.nn.BatchNorm2d(deep)
        self.fine, self.deep = torch.nn.Conv2d(fine, hidden, 1), torch.nn.Conv2d(deep, hidden, 1)
        self.map, self.whole = torch.nn.Conv2d(2, hidden, 1), torch.nn.Linear(2 * deep + 1, hidden)
        self.judge = torch.nn.Sequential(
            torch.nn.ReLU(),
            torch.nn.Conv2d(hidden, hidden, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Dropout2d(0.1),
        )
        self.last = torch.nn.Conv2d(hidden, 1, 1)
        # It starts sure that a polyp is plausible everywhere, so that a trained network continues as it was.
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.constant_(self.last.bias, 4.0)  # type: ignore[arg-type]

    def forward(self, fine: torch.Tensor, deep: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """N×fine×h×w, N×deep×h/2×w/2 and a map of N×1×(cell·h)×(cell·w) logits to N×1×h×w logits."""
        fine, deep, seen = self.norm_fine(fine), self.norm_deep(deep), logits.detach() / 10  # logits to about -1..1
        pooled = torch.cat([max_pool2d(seen, self.cell), avg_pool2d(seen, self.cell)], 1)
        frame = torch.cat([deep.mean((2, 3)), deep.amax((2, 3)), seen.amax((2, 3))], 1)
        context = interpolate(self.deep(deep), scale_factor=2, mode="bilinear")
        summed = self.fine(fine) + context + self.map(pooled) + self.whole(frame)[:, :, None, None]
        judged: torch.Tensor = self.last(self.judge(summed))
        return judged


def joined(logits: torch.Tensor, presence: torch.Tensor, cell: int) -> torch.Tensor:
    """The map, whose confidence is lowered where a polyp is not plausible.

    Logits above 0 lose the logarithm of that probability, never their sign.

    Args:
        logits: N×1×(cell·h)×(cell·w).
        presence: N×1×h×w logits.
        cell: rows of the map to a row of the judgement; 1 to 16.
    """
    loss = interpolate(logsigmoid(presence), scale_factor=cell, mode="bilinear")
    return torch.where(logits > 0, torch.maximum(logits + loss, 0.02 * logits), logits)


def finer_layers(network: torch.nn.Module, stride: int) -> list[torch.nn.Module]:
    """The layers of the encoder, in order, that come before the first whose output has a coarser stride.

    Args:
        network: of ``build``.
        stride: rows of the frame to a row of a layer's output.

    Returns:
        Layers with weights of their own. A layer that pools to one value, as of squeeze and excitation, belongs to
        those around it.
    """
    encoder: Any = network.get_submodule("encoder")
    found: list[torch.nn.Module] = []
    side, over = 256, False

    def see(layer: torch.nn.Module, _: Any, output: Any) -> None:
        nonlocal over
        rows = output.shape[2] if isinstance(output, torch.Tensor) and output.ndim == 4 else 1
        over = over or (rows > 1 and rows * stride < side)
        if not over:
            found.append(layer)

    leaves = [one for one in encoder.modules() if next(one.parameters(recurse=False), None) is not None]
    handles = [one.register_forward_hook(see) for one in leaves]
    was_training = network.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 3, side, side))
    finally:
        for handle in handles:
            handle.remove()
        network.train(was_training)
    return found


@lru_cache
def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the network's weights. No memory is taken for them, however large it would be.

    Raises:
        PolypsegError: as ``build``.
    """
    with _OnMeta(torch.device("meta")):
        network = build(architecture)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


class _OnMeta(DeviceContext):
    """Makes tensors without content, but for the few numbers that some encoders compute while they are built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.linspace, torch.arange):
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def dropout_argument(name: str) -> str | None:
    """SMP's argument for the decoder dropout of an architecture, or None where it has no place for one.

    ``UnetPlusPlus`` and ``Unet`` have none: SMP offers dropout there only in the classification head.
    """
    parameters = inspect.signature(_architecture_class(name).__init__).parameters
    return next((argument for argument in _DROPOUT_NAMES if argument in parameters), None)


def _coarsen(network: torch.nn.Module, stride: int) -> None:
    """Let the decoder end at 1 / ``stride`` of the frame's size; its map is enlarged after it.

    2 computes the last stage, which no encoder feature joins, before its enlargement instead of after it: the names and
    shapes of the weights stay. 4 also leaves out the stage before it with the encoder's finest features; what remains
    keeps its names and shapes but for the last stage.

    Raises:
        PolypsegError: the network's decoder has no such stages.
    """
    if not isinstance(network, smp.Unet | smp.UnetPlusPlus):
        raise PolypsegError(f"model: {type(network).__name__} has no output_stride of {stride}; set it to 1")
    if stride == 4:
        _leave_out_finest(network)
    name, block = list(network.decoder.blocks.named_children())[-1]
    network.decoder.blocks.add_module(name, _Refine(block))
    network.segmentation_head[1] = torch.nn.Upsample(scale_factor=stride, mode="bilinear")


def _leave_out_finest(network: Any) -> None:
    whole, skips = network.decoder, network.encoder.out_channels
    channels = [block.conv1[0].out_channels for block in _main_stages(whole)]
    network.decoder = type(whole)((skips[0], *skips[2:]), (*channels[:-2], channels[-1]), len(channels) - 1)
    network.decoder.center = whole.center
    initialize_decoder(network.decoder)
    network.decoder.register_forward_pre_hook(_drop_finest)


def _main_stages(decoder: Any) -> list[Any]:
    """The stages that give U-Net its shape, deepest first; those of U-Net++ between them left out."""
    if isinstance(decoder.blocks, torch.nn.ModuleDict):
        return [block for name, block in decoder.blocks.items() if name.startswith("x_0_")]
    return list(decoder.blocks)


def _drop_finest(_decoder: torch.nn.Module, given: tuple[list[torch.Tensor]]) -> tuple[list[torch.Tensor]]:
    frame, _, *coarser = given[0]
    return ([frame, *coarser],)


class _Refine(torch.nn.Module):
    """The convolutions of a decoder's stage, at the size of what comes in."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = block.conv1, block.conv2

    def forward(self, features: torch.Tensor, *size_and_skip: object, **named: object) -> torch.Tensor:
        refined: torch.Tensor = self.conv2(self.conv1(features))
        return refined


def _unknown(encoder: str) -> str:
    """That SMP has no encoder of this name, and which is the nearest; empty where it has one, or asks timm for it."""
    names = smp.encoders.get_encoder_names()
    if encoder in names or encoder.startswith("tu-"):
        return ""
    near = difflib.get_close_matches(encoder, names, 1, 0.3)
    return f"segmentation-models-pytorch has no encoder {encoder!r}" + (f"; did you mean {near[0]}?" if near else "")


def _architecture_class(name: str) -> type[torch.nn.Module]:
    names = [model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else f"; choose one of {', '.join(names)}"
        raise PolypsegError(f"model: segmentation-models-pytorch has no architecture {name!r}{hint}")
    found: type[torch.nn.Module] = getattr(smp, name)
    return found
