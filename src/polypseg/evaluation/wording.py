"""Numbers as the report, the command line and the model card write them; what is not there is a dash."""

from __future__ import annotations

from typing import Any


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many digits behind the point."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share, 0..1, in %."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(one: dict[str, Any]) -> str:
    """The bounds of a number with ``low`` and ``high``."""
    return "–" if one.get("low") is None else f"{one['low']:.4f} to {one['high']:.4f}"


def share(one: dict[str, Any] | None) -> str:
    """A share with ``mean``, ``low`` and ``high``, 0..1, with its interval, in %."""
    if one is None:
        return "–"
    bounds = "" if one.get("low") is None else f" ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
    return f"{percent(one['mean'])}{bounds}"
