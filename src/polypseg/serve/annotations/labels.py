"""The file of labels: which classes a polyp may have, and which attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypseg.errors import PolypsegError, UsageError
from polypseg.files import check_yaml, read_json

MOST = 200  # classes, attributes, values of one
LONGEST = 64  # characters of a name
LONGEST_TEXT = 1000  # characters of free text
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class LabelClass:
    """A class that a polyp may have, and how the page draws it: ``#rrggbb``, or None."""

    name: str
    colour: str | None = None


@dataclass(frozen=True)
class Attribute:
    """An attribute that a polyp may have: one of ``values``, or any text where there are none."""

    name: str
    title: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """Classes and attributes of polyps; the first class is that of a polyp without any.

    Raises:
        UsageError: there is no class, or a name stands twice.
    """

    classes: tuple[LabelClass, ...] = (LabelClass("polyp"),)
    attributes: tuple[Attribute, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            raise UsageError("names no classes; list one at least")
        for kind, names in (
            ("class", [one.name for one in self.classes]), ("attribute", [one.name for one in self.attributes]),
            *((f"value of {one.name}", list(one.values)) for one in self.attributes),
        ):  # fmt: skip
            lower = [name.casefold() for name in names]
            twice = next((name for name in names if lower.count(name.casefold()) > 1), None)
            if twice is not None:
                raise UsageError(f"names the {kind} {twice} twice; remove one")
            if len(names) > MOST:
                raise UsageError(f"has more than {MOST} names of one kind ({kind})")

    @property
    def default(self) -> str:
        """The class of a polyp that has none."""
        return self.classes[0].name

    def problem(self, label: str, attributes: Mapping[str, str]) -> str | None:
        """What is wrong with a polyp's class and attributes, in one line; None where nothing is."""
        names = [one.name for one in self.classes]
        if label not in names:
            return f"{_shown(label)} is no class; choose one of {', '.join(names)}"
        known = {one.name: one for one in self.attributes}
        for name, value in attributes.items():
            if name not in known:
                listed = f"choose one of {', '.join(known)}" if known else "there are none"
                return f"{_shown(name)} is no attribute; {listed}"
            values = known[name].values
            if values and value not in values:
                return f"{name}: {_shown(value)} is no value; choose one of {', '.join(values)}"
            if len(value) > LONGEST_TEXT:
                return f"{name}: is longer than {LONGEST_TEXT} characters"
        return None


def read_labels(path: Path) -> Labels:
    """Read a file of labels, YAML or JSON: ``classes``, a list, and ``attributes``, by name.

    Raises:
        UsageError: it cannot be read, or says something that has no meaning there.
    """
    try:
        if path.suffix.lower() == ".json":
            content = read_json(path)
        else:
            import yaml

            text = path.read_text(encoding="utf-8")
            check_yaml(text)
            content = yaml.safe_load(text)
        return _labels(content)
    except OSError as error:
        raise UsageError(f"--labels {path}: cannot be read ({error.strerror})") from error
    except PolypsegError as error:
        raise UsageError(f"--labels {path}: {str(error).removeprefix(f'{path}: ')}") from error
    except ValueError as error:  # of the text's encoding, and what YAML raises
        raise UsageError(f"--labels {path}: is no text that can be read ({type(error).__name__})") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            line = " ".join(str(error).split())
            raise UsageError(f"--labels {path}: is no YAML ({line})") from error
        raise


def _labels(content: Any) -> Labels:
    _only(content, ("classes", "attributes"), "the file")
    classes, attributes = content.get("classes", []), content.get("attributes") or {}
    if not isinstance(classes, list) or not isinstance(attributes, Mapping):
        raise UsageError("classes must be a list, and attributes names with their values")
    return Labels(tuple(map(_class, classes)), tuple(_attribute(name, one) for name, one in attributes.items()))


def _class(given: Any) -> LabelClass:
    if not isinstance(given, Mapping):
        return LabelClass(_name(given, "class"))
    _only(given, ("name", "colour"), "a class")
    colour = given.get("colour")
    if colour is not None and not re.fullmatch("#[0-9a-fA-F]{6}", str(colour)):
        raise UsageError(f"colour {_shown(colour)}: must be like '#e4572e', in quotes")
    return LabelClass(_name(given.get("name"), "class"), colour)


def _attribute(name: Any, given: Any) -> Attribute:
    if not isinstance(name, str) or not _ATTRIBUTE.fullmatch(name) or len(name) > LONGEST:
        raise UsageError(f"attribute {_shown(name)}: its name must be letters, digits, - and _")
    if not isinstance(given, Mapping):
        given = {"values": given}
    _only(given, ("title", "values"), f"attribute {name}")
    values = given.get("values") or []
    if not isinstance(values, list):
        raise UsageError(f"attribute {name}: its values must be a list; an empty one for free text")
    return Attribute(name, _name(given.get("title", name), "title"), tuple(_name(one, "value") for one in values))


def _only(given: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: must contain {' and '.join(known)}")
    if unknown := [key for key in given if key not in known]:
        raise UsageError(f"{where}: has {_shown(unknown[0])}, which has no meaning there; known: {', '.join(known)}")


def _name(given: Any, kind: str) -> str:
    """A name as text: a number is one, as the NICE classes are; true is none."""
    name = str(given).strip() if isinstance(given, str | int | float) and not isinstance(given, bool) else ""
    if not name or len(name) > LONGEST or not name.isprintable() or (kind == "class" and ":" in name):
        raise UsageError(
            f"{kind} {_shown(given)}: must be text of 1 to {LONGEST} characters, without a colon; put yes, no, on and "
            "off in quotes"
        )
    return name


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
