"""What a verb of the command line is: a function whose arguments are the options, and how it is shown."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from polypseg.training.recipe import Recipe

REQUIRED = inspect.Parameter.empty
RECIPE_FIELDS = tuple(field.name for field in fields(Recipe))
SECTIONS = tuple(field.name for field in fields(Recipe) if is_dataclass(get_type_hints(Recipe)[field.name]))


@dataclass(frozen=True)
class Option:
    """One option, ``--name``.

    Attributes:
        name: as ``out`` or, of a recipe's section, ``frames.size``.
        kind: its type, without None.
        default: ``REQUIRED`` where there is none.
        meaning: what it is, in a line.
    """

    name: str
    kind: Any
    default: Any
    meaning: str

    @property
    def is_flag(self) -> bool:
        """Whether it is true when it stands alone."""
        return self.kind is bool

    @property
    def is_list(self) -> bool:
        """Whether it contains several values."""
        return get_origin(self.kind) in (list, tuple)

    @property
    def element(self) -> Any:
        """The type of a list's values; of what is no list, its own."""
        return get_args(self.kind)[0] if self.is_list else self.kind

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it, or a value of its list, must be one of; none where it may be anything."""
        return tuple(map(str, get_args(self.element))) if get_origin(self.element) is Literal else ()

    @property
    def repeats(self) -> bool:
        """Whether it may be given several times."""
        return self.is_list and (self.element is str or bool(self.choices))

    @property
    def placeholder(self) -> str:
        """What stands for its value in a help text; empty for a flag."""
        if self.is_flag:
            return ""
        if self.choices:
            one = "|".join(self.choices)
        else:
            one = {int: "N", float: "X"}.get(self.element) or self.name.rpartition(".")[2].upper()
        if self.is_list:
            return f"{one} ..." if self.repeats else f"[{one}, ...]"
        return one


@dataclass(frozen=True)
class Positional:
    """An argument that has no name on the command line.

    Attributes:
        name: of the function's argument.
        count: how often it stands there, as argparse has it: None (once), ``?``, ``*`` or ``+``.
        meaning: what it is, in a line.
    """

    name: str
    count: str | None
    meaning: str


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        run: what it does. Its arguments are the options, its docstring is their help; what it returns is the exit
            status, None for 0.
        examples: command lines, for the help and the reference page.
        positional: the argument without a name. Where there is none, words without an option are folders of ``--data``.
        see: pages that say more, as (title, path from the reference page).
    """

    run: Callable[..., int | None]
    examples: tuple[str, ...] = ()
    positional: Positional | None = None
    see: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """As it is typed: ``train``, ``data list``."""
        return self.run.__name__.replace("_", " ")

    @property
    def about(self) -> list[str]:
        """The paragraphs of its docstring before ``Args:``; the first one is its summary."""
        return about(self.run)

    @functools.cached_property
    def takes_recipe(self) -> bool:
        """Whether the fields of a recipe are options too."""
        return "recipe" in inspect.signature(self.run).parameters

    @functools.cached_property
    def own_options(self) -> tuple[Option, ...]:
        """The options without those of a recipe."""
        meanings, kinds = _meanings(self.run), get_type_hints(self.run)
        skipped = {"recipe", self.positional and self.positional.name}
        return tuple(
            Option(name, _without_none(kinds[name]), one.default, meanings[name])
            for name, one in inspect.signature(self.run).parameters.items()
            if name not in skipped
        )

    @property
    def options(self) -> tuple[Option, ...]:
        """All options, those of a recipe last."""
        return self.own_options + (recipe_options() if self.takes_recipe else ())

    @property
    def takes_data(self) -> bool:
        """Whether words without an option are folders of ``--data``."""
        return self.positional is None and any(one.name == "data" for one in self.own_options)


@functools.cache
def recipe_options() -> tuple[Option, ...]:
    """Every field of a recipe, by its whole name."""
    found: list[Option] = []
    sections = get_type_hints(Recipe)
    meanings, defaults = _meanings(Recipe), Recipe()
    for name in RECIPE_FIELDS:
        value = getattr(defaults, name)
        if name not in SECTIONS:
            found.append(Option(name, _without_none(sections[name]), value, meanings[name]))
            continue
        inner, kinds = _meanings(sections[name]), get_type_hints(sections[name])
        found += [
            Option(f"{name}.{one.name}", _without_none(kinds[one.name]), getattr(value, one.name), inner[one.name])
            for one in fields(value)
        ]
    return tuple(found)


def about(documented: Any) -> list[str]:
    """The paragraphs of a docstring before ``Args:``, each in a line."""
    text = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:")[0]
    return [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        return next(one for one in get_args(kind) if one is not NoneType)
    return kind


def _meanings(documented: Any) -> dict[str, str]:
    """The ``Args:`` of a docstring: each one's text in a line, without a full stop."""
    text = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"(?m)^    (\w+): (.*(?:\n {8}.*)*)", text)
    return {name: " ".join(meaning.split()).rstrip(".") for name, meaning in found}
