"""The page docs/reference/python.md: every public name with its signature and docstring."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, get_args

HEAD = """\
# Python

<!-- Made by `python -m polypseg.cli.reference docs/reference`, of the docstrings and src/polypseg/cli/reference. -->

All that `import polypseg` offers. For tasks, with examples: [Use it from Python](../how-to/python.md). Importing is
quick: each name is imported when it is first used, torch when it is needed. `help(polypseg.load)` shows the same.

In the signatures, `Place` is a path, as text or `os.PathLike`; `Model` is an opened `ModelBundle` or a place; `Picture`
is a path, a PIL image, an array or a tensor; `Source` is what `stream` names."""


def page() -> str:
    """The whole page, Markdown."""
    package = importlib.import_module("polypseg")  # nothing inside imports it; this page is of it
    offered = {name: _function(getattr(package, name)) for name in package.__all__}
    kinds: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("Functions", inspect.isfunction),
        ("Classes", lambda one: inspect.isclass(one) and not issubclass(one, Exception)),
        ("Errors", lambda one: inspect.isclass(one) and issubclass(one, Exception)),
        ("Modules", inspect.ismodule),
    )
    listed, entries = ["| name | what |\n|---|---|"], []
    for title, is_of in kinds:
        entries.append(f"## {title}")
        for name, one in offered.items():
            if is_of(one):
                listed.append(f"| [`{name}`](#{name.lower()}) | {_summary(one)} |")
                entries += _entry(name, one)
    return "\n\n".join([HEAD, "\n".join(listed), *entries]) + "\n"


def _function(offered: Any) -> Any:
    """What is offered; of a package that can be called, as ``export``, the function that it calls."""
    if isinstance(offered, ModuleType) and callable(offered):
        return getattr(importlib.import_module(f"{offered.__name__}.run"), offered.__name__.rpartition(".")[2])
    return offered


def _summary(documented: Any) -> str:
    first = (inspect.getdoc(documented) or "").partition("\n\n")[0]
    return " ".join(first.split()).replace("``", "`").replace("|", "\\|")


def _entry(name: str, one: Any) -> Iterator[str]:
    """A heading, the signature, the docstring; of a class and a module also of what is in it."""
    yield f"### {name}"
    if inspect.ismodule(one):
        yield from _documentation(one)
        for inner, function in inspect.getmembers(one, inspect.isfunction):
            if function.__module__ == one.__name__ and not inner.startswith("_"):
                yield from _entry(f"{name}.{inner}", function)
        return
    if not (inspect.isclass(one) and issubclass(one, Exception)):
        yield _signature(name, one)
    yield from _documentation(one)
    if inspect.isclass(one):
        properties = dict(_properties(one))
        if properties:
            yield "**Properties**"
            yield "\n".join(f"- `{inner}`: {_summary(of)}" for inner, of in properties.items())
        for inner, member in vars(one).items():
            if _is_method(member) and not inner.startswith("_"):
                yield from _entry(f"{name}.{inner}", getattr(one, inner))


def _properties(kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(kind).items():
        if isinstance(member, property | functools.cached_property) and not name.startswith("_"):
            yield name, member.fget if isinstance(member, property) else member.func


def _is_method(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod | staticmethod)


def _signature(name: str, one: Any) -> str:
    signature = inspect.signature(one)
    shown, kinds = [], [parameter.kind for parameter in signature.parameters.values()]
    for number, (parameter, of) in enumerate(signature.parameters.items()):
        if parameter == "self":
            continue
        if of.kind is of.KEYWORD_ONLY and not {of.KEYWORD_ONLY, of.VAR_POSITIONAL} & set(kinds[:number]):
            shown.append("*")
        star = "*" if of.kind is of.VAR_POSITIONAL else "**" if of.kind is of.VAR_KEYWORD else ""
        text = f"{star}{parameter}" + ("" if of.annotation is of.empty else f": {_type(of.annotation)}")
        if of.default is not of.empty:
            text += f" = {'…' if repr(of.default).startswith('<') else repr(of.default)}"
        shown.append(text)
    gives = signature.return_annotation
    returned = "" if inspect.isclass(one) or gives in (signature.empty, None, "None") else f" -> {_type(gives)}"
    line = f"{name}({', '.join(shown)}){returned}"
    if len(line) > 100:
        line = "\n".join([f"{name}(", *(f"    {parameter}," for parameter in shown), f"){returned}"])
    return f"```text\n{line}\n```"


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _documentation(documented: Any) -> Iterator[str]:
    """The docstring in Markdown: its paragraphs as they are, its sections (a heading, then entries) as lists."""
    text = (inspect.getdoc(documented) or "").replace("``", "`") + "\n"
    parts = re.split(r"(?m)^(\S.*):\n((?: {4}.*\n|\n)+)", text)
    for number, part in enumerate(parts):
        if number % 3 == 0 and part.strip():
            yield part.strip()
        elif number % 3 == 1:
            yield f"**{part}**"
        elif number % 3 == 2:
            yield "\n".join(_items(textwrap.dedent(part).strip()))


def _items(section: str) -> Iterator[str]:
    """The entries of a section, ``name: text`` each, as a list; what is none as a paragraph."""
    for entry in re.split(r"\n(?! )", section):
        name, colon, text = entry.partition(": ")
        line = " ".join(text.split())
        if colon and re.fullmatch(r"[\w*]+(, [\w*]+)*", name):
            yield f"- {', '.join(f'`{one}`' for one in name.split(', '))}: {line}"
        else:
            yield " ".join(entry.split())
