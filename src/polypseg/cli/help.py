"""What ``--help`` prints: verbs, options in words, examples."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from polypseg.cli.verb import REQUIRED, Option, Verb, recipe_options

WIDTH = 100
INDENT = 26
CONFIG = "a YAML file with options; those given here override it"
CONFIG_RECIPE = (
    "a recipe that ships with polypseg ({}), or a YAML file with options; those given here override it (default: {})"
)
PRINT_CONFIG = "print all options with their values and comments, a file for --config, and do nothing else"


def overview(verbs: Mapping[str, Verb], group: str = "") -> str:
    """The verbs, or the steps of one, each with its summary."""
    head = [f"usage: polypseg {group or 'VERB'}{' STEP' * bool(group)} [options]", ""]
    if not group:
        head += ["Polyp segmentation in colonoscopy frames. Research use only.", ""]
    rows = [_row(f"  {name}", verb.about[0], 22) for name, verb in verbs.items()]
    foot = ["", f"`polypseg {group or 'VERB'}{' STEP' * bool(group)} --help` shows options and examples."]
    examples = [] if group else [verb.examples[0] for verb in verbs.values() if verb.name in ("predict", "train")]
    return "\n".join([*head, *rows, *foot, *_examples(examples)])


def of_verb(verb: Verb) -> str:
    """One verb: what it does, its options with defaults, examples."""
    from polypseg.cli.parser import OFFLINE
    from polypseg.training.recipe import shipped_recipes

    lines = [usage(verb), ""]
    for paragraph in verb.about:
        lines += [*textwrap.wrap(paragraph.replace("``", "`"), WIDTH), ""]
    if verb.positional is not None:
        lines += [_row(f"  {verb.positional.name.upper()}", verb.positional.meaning), ""]
    lines += ["options:", *map(_option, verb.own_options)]
    config = CONFIG_RECIPE.format(", ".join(shipped_recipes()), OFFLINE[0]) if verb.takes_recipe else CONFIG
    lines += [_row("  --config NAME|FILE" if verb.takes_recipe else "  --config FILE", config)]
    lines += [_row("  --print_config", PRINT_CONFIG), _row("  --help", "show this")]
    if verb.takes_recipe:
        lines += ["", "the recipe's fields, with the defaults of a recipe that leaves them out:"]
        lines += map(_option, recipe_options())
    return "\n".join([*lines, *_examples(verb.examples)])


def usage(verb: Verb) -> str:
    """How a verb is called, in a line."""
    words = [f"usage: polypseg {verb.name}"]
    if verb.positional is not None:
        name, count = verb.positional.name.upper(), verb.positional.count
        words.append({None: name, "?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}[count])
    elif verb.takes_data:
        words.append("[DATA ...]")
    for one in verb.own_options:
        if one.default is REQUIRED and not (verb.takes_data and one.name == "data"):
            words.append(f"--{one.name} {one.placeholder}")
    return " ".join([*words, "[options]"])


def default(option: Option) -> str | None:
    """An option's default as it would be written in a YAML file; None where it is required."""
    return None if option.default is REQUIRED else _yaml(option.default)


def _yaml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(option: Option) -> str:
    plain = option.default is None or option.default is False or option.default == ()
    shown = "" if plain else " (required)" if option.default is REQUIRED else f" (default: {default(option)})"
    return _row(f"  --{option.name} {option.placeholder}".rstrip(), f"{option.meaning}{shown}")


def _row(head: str, text: str, indent: int = INDENT) -> str:
    lines = textwrap.wrap(text.replace("``", "`"), WIDTH - indent) or [""]
    if len(head) > indent - 2:  # no room beside it
        return "\n".join([head, *(f"{'':{indent}}{line}" for line in lines)])
    return "\n".join([f"{head:{indent}}{lines[0]}", *(f"{'':{indent}}{line}" for line in lines[1:])])


def _examples(lines: Iterable[str]) -> list[str]:
    shown = [f"  {line}" for line in lines]
    return ["", "examples:", *shown] if shown else []
