"""The pages of docs/reference that are made of the code: ``python -m polypseg.cli.reference FOLDER`` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polypseg.cli.reference import command_line, recipe

PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line.page,
    "recipe.md": recipe.page,
}


def write(folder: str | Path) -> None:
    """Write all of them into a folder."""
    for name, page in PAGES.items():
        Path(folder, name).write_text(page(), encoding="utf-8")
