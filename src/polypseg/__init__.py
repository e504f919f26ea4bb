"""polypseg: polyp segmentation in colonoscopy frames. Research use only, not a medical device.

The names below are imported when they are first used, so that ``import polypseg`` is quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polypseg.version import __version__ as __version__

if TYPE_CHECKING:
    from polypseg.bundle import ModelBundle as ModelBundle
    from polypseg.catalog import Catalog as Catalog
    from polypseg.errors import PolypsegError as PolypsegError
    from polypseg.export.publish import push_to_hub as push_to_hub
    from polypseg.inference.segmenter import Segmenter as Segmenter
    from polypseg.segmentation import Polyp as Polyp
    from polypseg.segmentation import Segmentation as Segmentation

_HOMES = {
    "Catalog": "polypseg.catalog",
    "ModelBundle": "polypseg.bundle",
    "Polyp": "polypseg.segmentation",
    "PolypsegError": "polypseg.errors",
    "Segmentation": "polypseg.segmentation",
    "Segmenter": "polypseg.inference.segmenter",
    "push_to_hub": "polypseg.export.publish",
}
__all__ = ["Catalog", "ModelBundle", "Polyp", "PolypsegError", "Segmentation", "Segmenter", "load", "push_to_hub"]


def load(
    bundle: str | Path | Sequence[str | Path] | None = None,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    tta: str | None = None,
    threshold: float | None = None,
    min_confidence: float | None = None,
    min_area: float | None = None,
    fill_holes: bool | None = None,
) -> Segmenter:
    """A ``Segmenter`` for a bundle.

    Args:
        bundle: the path of a bundle or of a run folder, the name of a shipped model, or ``hf://owner/name[@revision]``
            on the Hugging Face hub; several make an ensemble, none is the shipped default.
        runtime: ``auto``, ``openvino``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: test-time augmentation, ``none``, ``flip``, ``flips`` or ``small``; by default the bundle's own.
        threshold: probability, 0..1, at and above which a pixel belongs to a region; this and the next three by default
            the bundle's own, its operating point.
        min_confidence: a region's least confidence, 0..1, to be a polyp.
        min_area: a region's least size, share of the frame.
        fill_holes: whether holes in a region are filled.

    Raises:
        PolypsegError: there is no whole bundle there, or what it needs is not installed.
        UsageError: the options do not go together.
    """
    from polypseg.inference.segmenter import Segmenter

    return Segmenter(
        bundle, runtime, device, precision, threads, tta, threshold=threshold, min_confidence=min_confidence,
        min_area=min_area, fill_holes=fill_holes,
    )  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polypseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
