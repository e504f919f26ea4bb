"""Old spellings that still work: each is read as the new one, with one warning. They go with the next version.

What an earlier version wrote itself (bundles, runs, records) is read without a warning.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

_log = logging.getLogger("polypseg")
T = TypeVar("T")
LAST = "0.2"  # the version that takes them; CHANGELOG.md lists them

# What is named, by the option or field that names it: old spelling to new.
VALUES: dict[str, dict[str, str]] = {
    "tta": {"flip": "hflip", "small": "multiscale"},
    "split": {"seed": "random"},
    "augmentation": {"seed": "baseline"},
    "recipe": {"seed": "baseline"},
    "of": {"answers": "predictions"},
}
# Fields of a recipe by their whole names.
FIELDS = {
    "teacher.bundle": "distillation.teacher",
    "teacher.weight": "distillation.weight",
    "teacher.tta": "distillation.tta",
}


def value(name: str, given: T, quiet: bool = False) -> T:
    """A value as it is spelt now.

    Args:
        name: of the option or field, as ``tta`` or ``frames.augmentation``.
        given: its value, of any type.
        quiet: give no warning.
    """
    kind = name.rpartition(".")[2]
    names: Mapping[Any, Any] = VALUES.get(kind, {})
    return _now(kind, given, names, quiet) if isinstance(given, str) else given


def field(name: str, quiet: bool = False) -> str:
    """The whole name of a recipe's field as it is spelt now."""
    now: str = _now("recipe", name, FIELDS, quiet)
    return now


def values(given: Mapping[str, Any], quiet: bool = False) -> dict[str, Any]:
    """The values of a recipe, or of options, as they are spelt now; others stay as they are.

    Args:
        given: by field: nested by sections, by whole names, or of one section.
        quiet: give no warning.
    """
    found: dict[str, Any] = {}
    for name, one in given.items():
        if name == "teacher" and isinstance(one, Mapping):
            inner = {f"teacher.{key}": of for key, of in one.items()}
            now = values({field(key, quiet=True).partition(".")[2]: of for key, of in inner.items()}, quiet)
            found["distillation"] = now
            if not quiet:
                _warn("recipe", "teacher", f"distillation ({', '.join(now)})")
        elif isinstance(one, Mapping):
            found[name] = values(one, quiet)
        elif isinstance(one, list):
            found[name] = [values(part, quiet) if isinstance(part, Mapping) else part for part in one]
        else:
            found[field(name, quiet) if isinstance(name, str) else name] = value(str(name), one, quiet)
    return found


def _now(name: str, given: Any, names: Mapping[Any, Any], quiet: bool) -> Any:
    if given not in names:
        return given
    if not quiet:
        _warn(name, given, names[given])
    return names[given]


@functools.cache  # once a process
def _warn(name: str, old: str, new: str) -> None:
    _log.warning("%s %s: is an old spelling, which %s is the last version to take; write %s", name, old, LAST, new)
