"""A network from its Architecture, by segmentation-models-pytorch."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder

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
    try:
        network = _architecture_class(architecture.name)(
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


def _drop_finest(decoder: torch.nn.Module, given: tuple[list[torch.Tensor]]) -> tuple[list[torch.Tensor]]:
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
    return getattr(smp, name)
