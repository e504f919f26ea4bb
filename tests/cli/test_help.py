"""Help texts and the reference pages: examples, no Python types, and what the code gives."""

from __future__ import annotations

import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import polypseg
from polypseg.cli import help, main, parser, reference
from polypseg.cli.verb import REQUIRED, Verb, recipe_options
from polypseg.cli.verbs import VERBS
from polypseg.export.run import export

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
TYPES = re.compile(r"Literal|Optional|Union|NoneType|type:|\| None|\| null|\blist\[|\btuple\[|\bstr\b|<class")


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_the_help_of_a_verb(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert not TYPES.search(text), TYPES.search(text)
    assert max(map(len, text.splitlines())) <= 120
    words = text.split()
    assert all(f"--{option.name}" in words for option in verb.options)
    example = text.partition("examples:\n")[2].splitlines()
    assert example and all(line.startswith(f"  polypseg {verb.name}") for line in example)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_examples_parse_and_everything_has_a_meaning(verb: Verb) -> None:
    for line in verb.examples:
        name, rest = parser.find(shlex.split(line, comments=True)[1:], VERBS)
        assert name == verb.name
        parser.parse(verb, rest)
    assert all(option.meaning and not option.meaning.endswith(".") for option in verb.options)
    arguments = {name for name in inspect.signature(verb.run).parameters if name != "recipe"}
    assert arguments == {option.name for option in verb.own_options} | {
        name for name in (verb.positional and verb.positional.name,) if name
    }


def test_the_defaults_shown_are_those_of_the_parser() -> None:
    for verb in VERBS.values():
        values = parser.build(verb).get_defaults()
        for option in verb.options:
            assert values[option.name] == (None if option.default is REQUIRED else option.default), option


def test_the_overview_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in VERBS)
    assert main(["data", "--help"]) == 0
    assert "data split" in capsys.readouterr().out


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_pages_are_what_the_code_gives(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == reference.PAGES[name](), (
        "write it anew: python -m polypseg.cli.reference docs/reference"
    )


def test_the_python_page_names_every_public_name_where_it_is() -> None:
    text = (REFERENCE / "python.md").read_text(encoding="utf-8")
    named = {pkgutil.resolve_name(name) for name in re.findall(r"(?m)^::: (\S+)$", text)}
    listed = re.search(r"members: \[(.+)\]", text)
    assert listed
    named |= {getattr(polypseg.api, name) for name in listed[1].split(", ")}
    offered = {name: export if name == "export" else getattr(polypseg, name) for name in polypseg.__all__}
    assert not [name for name, one in offered.items() if one not in named and one.__module__ != "polypseg.errors"]


@pytest.mark.parametrize(
    "documented",
    [
        *(polypseg.load, polypseg.train, polypseg.evaluate, polypseg.predict, export),
        *(polypseg.Segmenter, polypseg.Segmenter.segment, polypseg.ModelBundle.save),
    ],
    ids=lambda one: one.__qualname__,
)
def test_docstrings_describe_every_argument(documented: Callable[..., Any]) -> None:
    (arguments,) = re.findall(r"(?ms)^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(documented) or "")
    listed = set(re.findall(r"\w+", " ".join(re.findall(r"(?m)^    (\w+(?:, \w+)*): ", arguments))))
    assert set(inspect.signature(documented).parameters) - {"self"} <= listed


def test_the_reference_page_has_every_option() -> None:
    text = reference.PAGES["command-line.md"]()
    sections = dict(re.findall(r"(?ms)^## polypseg ([^\n]+)\n(.*?)(?=^## |\Z)", text))
    assert list(sections) == list(VERBS)
    for name, verb in VERBS.items():
        listed = re.findall(r"(?m)^\| `--([^`]+)` \|", sections[name])
        expected = verb.options if name == "train" else verb.own_options
        assert listed == [option.name for option in expected]
    assert all(help.default(option) for option in recipe_options())


def test_start_up_is_quick() -> None:
    """Nothing heavy for help, version and a slip; in processes of their own."""
    for words in (["--help"], ["--version"], ["train", "--help"], ["trian"], ["train", "x", "--print_config"]):
        code = (
            "import sys; from polypseg.cli import main\n"
            f"try: main({words!r})\nexcept SystemExit: pass\n"
            "print({'torch', 'lightning', 'pandas', 'openvino', 'av'} & set(sys.modules), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "set()", words
