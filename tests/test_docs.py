"""The documentation says what the program does: options, commands, code, links, the recipe's fields."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import polypseg
from polypseg.cli import parser
from polypseg.cli.verbs import VERBS
from polypseg.errors import UsageError
from polypseg.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BESIDE = [ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")]
SOURCES = [file for file in sorted((ROOT / "src").rglob("*")) if file.suffix in (".py", ".j2")]
# Words of our own in place of the field's: prediction, student, baseline recipe, resume, FROC, polyp-free, view.
NOT_THE_FIELDS = (
    r"pupil|known recipe|(goes|go|gone|went) on (with|from)|trained on from|free response|clean frame|\bparted\b"
    r"|\b(one|two|second) looks?\b|\b(its|of|their|whole) answers\b|answers like|learns? .* answers"
    r"|\bis told (?!apart)|are told of"
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a language, indented ones too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"(?m)^{indent}", "", block) for indent, block in found]


def shown(default: Any) -> str:
    """A default as the pages write it."""
    if isinstance(default, tuple):
        return f"`[{', '.join(default)}]`"
    plain = {None: "null", True: "true", False: "false"} if default is None or isinstance(default, bool) else {}
    return f"`{plain.get(default, default)}`"


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a page's tables by their first cell, which is code."""
    found = re.findall(r"(?m)^\| `([^`]+)` \| (.*) \|$", text)
    return {first: [cell.strip() for cell in rest.split(" | ")] for first, rest in found}


def test_every_field_is_on_the_recipes_page_with_its_default() -> None:
    written = rows((DOCS / "reference" / "recipe.md").read_text(encoding="utf-8"))
    expected = {}
    for field in fields(Recipe):
        value = getattr(Recipe(), field.name)
        if is_dataclass(value):
            for inner in fields(value):
                expected[f"{field.name}.{inner.name}"] = shown(getattr(value, inner.name))
        else:
            expected[field.name] = shown(value)
    assert {name: cells[0] for name, cells in written.items()} == expected


def test_what_may_change_when_resumed_is_what_the_code_allows() -> None:
    from polypseg.training.recipe import MAY_DIFFER

    text = (DOCS / "reference" / "recipe.md").read_text(encoding="utf-8")
    section = text.partition("## What may change")[2]
    assert set(re.findall(r"`([a-z_.]+)`", section)) - {"split.csv"} == MAY_DIFFER


def commands(page: Path) -> list[str]:
    """Every ``polypseg …`` line of the bash blocks, continued lines joined."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.search(r"(^|\s|/)polypseg\s", line) and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the recipes lie
    for line in commands(page):
        words = shlex.split(line, comments=True)
        start = next(place for place, word in enumerate(words) if word == "polypseg" or word.endswith("/polypseg"))
        arguments = words[start + 1 :]
        if ">" in arguments:
            arguments = arguments[: arguments.index(">")]
        if arguments[0] in ("--help", "--version"):
            continue
        try:
            name, rest = parser.find(arguments, VERBS)
            if "--help" not in rest:
                parser.parse(VERBS[name], rest)
        except UsageError as error:
            pytest.fail(f"does not parse: {line}: {error}")
        except SystemExit as stop:  # --print_config ends with 0
            if stop.code:
                pytest.fail(f"does not parse: {line}")


def test_the_pages_have_commands_and_code() -> None:
    """Guards the tests above and below: their patterns still find something."""
    assert sum(len(commands(page)) for page in PAGES) > 30
    assert sum(len(blocks(page, "python")) for page in PAGES) > 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles_and_its_imports_resolve(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for item in node.names:
                    importlib.import_module(item.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for item in node.names:
                    if not hasattr(module, item.name):
                        importlib.import_module(f"{node.module}.{item.name}")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=name_of)
def test_every_relative_link_resolves(page: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_reached_from_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    missing = [name_of(page) for page in PAGES[2:] if f"({page.relative_to(DOCS).as_posix()})" not in index]
    assert PAGES[1] == DOCS / "README.md" and not missing


def test_the_readme_is_short_and_begins_with_what_it_says() -> None:
    """One screen to the first result: the first command shows polyps outlined, the second runs the tests."""
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert [line.split("#")[0].strip() for line in blocks(PAGES[0], "bash")[0].splitlines()] == [
        "make demo",
        "make test",
    ]
    assert "not a medical device" in text.partition("## ")[0].lower()


@pytest.mark.parametrize("page", [*PAGES, *BESIDE, *SOURCES], ids=name_of)
def test_the_words_are_the_fields(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
    found = re.finditer(NOT_THE_FIELDS, text, re.IGNORECASE)
    assert [text[max(0, one.start() - 30) : one.end() + 30] for one in found] == []


def test_versions_of_the_changelog_and_the_citation() -> None:
    """The version that is installed has a section; what is cited is one that was released."""
    sections = dict(re.findall(r"(?m)^## \[(.+?)\] - (.+)$", BESIDE[0].read_text(encoding="utf-8")))
    assert polypseg.__version__ in sections
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert sections[cited["version"]] == str(cited["date-released"]) and cited["license"] == "Apache-2.0"


def test_the_tests_that_hold_wrong_input_exist() -> None:
    text = (DOCS / "explanation" / "wrong-input.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 80
    for file, test in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"
