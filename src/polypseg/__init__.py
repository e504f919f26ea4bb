"""polypseg: polyp segmentation in colonoscopy frames. Research use only, not a medical device.

The names below are imported when they are first used, so that ``import polypseg`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from polypseg.version import __version__ as __version__

if TYPE_CHECKING:
    from polypseg import zoo as zoo
    from polypseg.api import Predictions as Predictions
    from polypseg.api import Run as Run
    from polypseg.api import evaluate as evaluate
    from polypseg.api import load as load
    from polypseg.api import predict as predict
    from polypseg.api import train as train
    from polypseg.bundle import ModelBundle as ModelBundle
    from polypseg.catalog import Catalog as Catalog
    from polypseg.errors import PolypsegError as PolypsegError
    from polypseg.errors import UsageError as UsageError
    from polypseg.evaluation.evaluate import Report as Report
    from polypseg.export.publish import push_to_hub as push_to_hub
    from polypseg.export.run import export as export
    from polypseg.inference.segmenter import Segmenter as Segmenter
    from polypseg.operating_point import OperatingPoint as OperatingPoint
    from polypseg.segmentation import Polyp as Polyp
    from polypseg.segmentation import Segmentation as Segmentation
    from polypseg.training.recipe import Recipe as Recipe

_HOMES = {
    "Catalog": "polypseg.catalog",
    "ModelBundle": "polypseg.bundle",
    "OperatingPoint": "polypseg.operating_point",
    "Polyp": "polypseg.segmentation",
    "PolypsegError": "polypseg.errors",
    "Predictions": "polypseg.api",
    "Recipe": "polypseg.training.recipe",
    "Report": "polypseg.evaluation.evaluate",
    "Run": "polypseg.api",
    "Segmentation": "polypseg.segmentation",
    "Segmenter": "polypseg.inference.segmenter",
    "UsageError": "polypseg.errors",
    "evaluate": "polypseg.api",
    "load": "polypseg.api",
    "predict": "polypseg.api",
    "push_to_hub": "polypseg.export.publish",
    "train": "polypseg.api",
}
_PACKAGES = ("export", "zoo")  # `polypseg.export(…)`: the package can be called
__all__ = [
    "Catalog", "ModelBundle", "OperatingPoint", "Polyp", "PolypsegError", "Predictions", "Recipe", "Report", "Run",
    "Segmentation", "Segmenter", "UsageError", "evaluate", "export", "load", "predict", "push_to_hub", "train", "zoo",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"polypseg.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'polypseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__name__", "__version__"])
