"""Which values each field of a recipe can take, and in which words another one is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """The values of a field of numbers, or of each number of a list.

    Attributes:
        low, high: bounds, both possible; no bound at infinity, which itself is no value.
        below: ``high`` itself is not possible.
        step: the values are multiples of it.
    """

    low: float
    high: float = math.inf
    below: bool = False
    step: int = 1

    def __contains__(self, value: float) -> bool:
        inside = self.low <= value < self.high if self.below else self.low <= value <= self.high
        return inside and math.isfinite(value) and not (self.step > 1 and value % self.step)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"of {self.low:g} or more"
        return f"from {self.low:g} to {'below ' * self.below}{self.high:.10g}"


_SHARE, _WEIGHT, _SIZE = Range(0, 1), Range(0), Range(32, 8192, step=32)
# Every field of numbers, those of a list too; a test checks that none is missing.
RANGES: dict[str, Range] = {
    "threshold": _SHARE,
    "frames.size": _SIZE,
    "frames.first_size": _SIZE,
    "frames.last_size": _SIZE,
    "frames.batch_size": Range(1, 65536),
    "frames.polyp_free_share": Range(0, 1, below=True),
    "frames.made_polyp_free": _SHARE,
    "frames.workers": Range(-1, 1024),
    "frames.cache_gb": _WEIGHT,
    "model.decoder_channels": Range(1, 4096),
    "model.decoder_dropout": Range(0, 1, below=True),
    "model.frozen_stride": Range(1, 32),
    "loss.bce": _WEIGHT,
    "loss.dice": _WEIGHT,
    "loss.boundary": _WEIGHT,
    "loss.background": _WEIGHT,
    "loss.presence": _WEIGHT,
    "distillation.weight": _SHARE,
    "optimizer.learning_rate": _WEIGHT,
    "optimizer.encoder_learning_rate": _WEIGHT,
    "optimizer.presence_learning_rate": _WEIGHT,
    "optimizer.weight_decay": _WEIGHT,
    "optimizer.ema_decay": Range(0, 1, below=True),
    "optimizer.gradient_clip": _WEIGHT,
    "optimizer.accumulate": Range(1, 65536),
    "trainer.epochs": Range(1, 1_000_000),
    "trainer.patience": Range(0, 1_000_000),
    "trainer.start_share": Range(0, 1, below=True),
    "trainer.devices": Range(0, 4096),
    "trainer.num_nodes": Range(1, 4096),
    "trainer.threads": Range(0, 1024),
    "trainer.seed": Range(0, 2**32 - 1),
}
_MAY_BE_EMPTY = ("model.encoder_weights",)  # which takes it for none
_LONGEST_NAME = 200  # bytes; the file system's own limit is 255, of which temporary names need some


def trouble(name: str, kind: Any, value: Any) -> str | None:
    """What is wrong with a field's value, for people; None where nothing is.

    Args:
        name: the field's whole name, as ``frames.size``.
        kind: its type, as ``typing.get_type_hints`` has it.
        value: any.
    """
    if value == "" and name not in _MAY_BE_EMPTY:
        return "must not be empty; leave it out instead"
    if name == "name" and isinstance(value, str) and not _is_folder_name(value):
        return "cannot name a folder"
    return _mismatch(kind, value, RANGES.get(name))


def _mismatch(kind: Any, value: Any, within: Range | None) -> str | None:
    """What keeps a value from being of a type, and in a range."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return None if value in inner else f"is unknown; choose {_listed(inner)}"
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return _mismatch(next(one for one in inner if one is not NoneType), value, within)
    if origin is tuple:
        if not isinstance(value, tuple):
            return "must be a list; in Python, a tuple"
        return next(filter(None, (_mismatch(inner[0], one, within) for one in value)), None)
    if kind in (int, float) and within is not None:
        number = isinstance(value, int | kind) and not isinstance(value, bool)
        what = "number" if kind is float else "whole number" if within.step == 1 else f"multiple of {within.step}"
        return None if number and value in within else f"must be a {what} {within}"
    return None if isinstance(value, kind) else f"must be {'true or false' if kind is bool else 'a text'}"


def _is_folder_name(value: str) -> bool:
    plain = Path(value).name == value and value not in (".", "..") and value.isprintable()
    return plain and len(value.encode("utf-8", "replace")) <= _LONGEST_NAME


def _listed(values: Sequence[Any]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


def shown(value: Any) -> str:
    """A value as its recipe file has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)
