"""From the words of a command line to a verb's arguments; what is wrong with them, in one plain line.

The words are read here (options that stand several times or alone, words without an option); jsonargparse turns them
and ``--config`` files into typed values and prints ``--print_config``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polypseg import renamed
from polypseg.cli.checks import holds_model
from polypseg.cli.verb import REQUIRED, SECTIONS, Option, Verb, recipe_options
from polypseg.errors import UsageError
from polypseg.files import check_yaml
from polypseg.training.recipe import Recipe, recipe_file, spelt_now

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

OFFLINE = ("two-cores", "grouped")  # recipe and split without --config: they need no download and suit any frames
# What other programs call a verb.
CALLED = {
    "check": "data check", "detect": "predict", "download": "data download", "finetune": "train", "fit": "train",
    "infer": "predict", "inference": "predict", "list": "models", "segment": "predict", "server": "serve",
    "split": "data split", "test": "evaluate", "val": "evaluate", "validate": "evaluate", "zoo": "models",
}  # fmt: skip
# What they call an option.
OPTIONS_CALLED = {
    "batch": ("batch_size", "frames.batch_size"), "conf": ("min_confidence",), "confidence": ("min_confidence",),
    "encoder_name": ("model.encoder",), "img_size": ("frames.size",), "imgsz": ("frames.size",),
    "lr": ("optimizer.learning_rate",), "lr0": ("optimizer.learning_rate",), "output": ("out",), "project": ("out",),
    "save_dir": ("out",), "weights": ("model", "model.weights"),
}  # fmt: skip


def find(words: Sequence[str], verbs: Collection[str]) -> tuple[str, list[str]]:
    """The verb that a command line begins with, of one word or two, and the words after it.

    Raises:
        UsageError: there is none of that name.
    """
    if not words:
        raise UsageError("names no verb; `polypseg --help` lists them")
    first = {name.partition(" ")[0] for name in verbs}
    if words[0] not in first:
        raise UsageError(f"{words[0]}: is no verb{_nearest(words[0], first)}; `polypseg --help` lists them")
    if words[0] in verbs:
        return words[0], list(words[1:])
    steps = [name.partition(" ")[2] for name in verbs if name.startswith(f"{words[0]} ")]
    if len(words) < 2 or words[1] not in steps:
        given = " ".join(words[:2])
        near = _nearest(words[1], steps) if len(words) > 1 else ""
        raise UsageError(f"{given}: needs one of {_listed(steps)} after {words[0]}{near}")
    return " ".join(words[:2]), list(words[2:])


def parse(verb: Verb, words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a verb's function.

    Args:
        verb: whose options are meant.
        words: the command line behind the verb.

    Raises:
        UsageError: an option is unknown, missing or of the wrong kind.
        SystemExit: ``--print_config`` has printed.
    """
    from jsonargparse import ArgumentError

    try:
        return _typed(verb, _read(verb, words))
    except ArgumentError as error:
        raise _usage(verb, _plain(str(error), verb)) from error
    except UsageError as error:
        raise _usage(verb, str(error)) from error


def build(verb: Verb) -> ArgumentParser:
    """jsonargparse's parser of a verb."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    skip: set[str | int] = {"recipe"}
    if verb.positional is not None:
        name, default = verb.positional.name, signature(verb.run).parameters[verb.positional.name].default
        given = {} if default is REQUIRED else {"default": default}
        parser.add_argument(name, nargs=verb.positional.count, help=verb.positional.meaning, **given)
        skip.add(name)
    parser.add_function_arguments(verb.run, skip=skip)
    if verb.takes_recipe:
        parser.add_class_arguments(Recipe, None)
    return parser


def _typed(verb: Verb, words: list[str]) -> dict[str, Any]:
    parser = build(verb)
    values = dict(vars(parser.instantiate(parser.parse_args(words))))
    values.pop("config")
    if verb.takes_recipe:
        recipe = {key: values.pop(key) for key in list(values) if key in Recipe.__dataclass_fields__}
        values["recipe"] = Recipe(**recipe)
    return values


def _read(verb: Verb, words: Sequence[str]) -> list[str]:  # noqa: C901  (one pass over the words, a case each)
    """The words as jsonargparse takes them: ``--option=value`` once each, then what stands without an option."""
    options = {f"--{option.name}": option for option in verb.options}
    configs: list[str] = []
    single: list[str] = []
    lists: dict[str, list[str]] = {}
    plain: list[str] = []
    further: list[tuple[str, str]] = []  # words behind an option's first value that may be no values of it
    coming = list(reversed(words))
    while coming:
        word = coming.pop()
        if word == "--":
            plain += reversed(coming)
            break
        if not word.startswith("-") or word == "-":
            if re.match(r"[a-z_.]+=", word) and not os.path.exists(word):
                raise UsageError(f"{word}: options are written --name value, files without a name")
            plain.append(word)
            continue
        name, equals, value = word.partition("=")
        name = _option_name(name, options, verb)
        option = options.get(name)
        if name == "--print_config":
            single.append("--print_config=comments")
            continue
        if option is not None and option.is_flag and not equals:
            value = coming.pop() if coming and coming[-1].lower() in ("true", "false", "null") else "true"
        elif not equals:
            if not coming or coming[-1].startswith("--"):
                raise UsageError(f"{name}: names nothing")
            value = coming.pop()
        if name == "--config":
            configs.append(f"--config={_config(verb, value)}")
            continue
        name, value = _spelt_now(verb, name, value)
        option = options.get(name)
        if option is None or not option.repeats or (option.choices and value.startswith(("[", "null"))):
            single.append(f"{name}={value}")
        else:
            values = lists.setdefault(name, [])
            values.append(value)
            while coming and (coming[-1] in option.choices or (name == "--data" and not coming[-1].startswith("-"))):
                values.append(coming.pop())
                further.append((name, values[-1]))
    if verb.takes_recipe and not configs:
        configs = [f"--config={_config(verb, OFFLINE[0])}", f"--split={OFFLINE[1]}"]
        if any(word.startswith("--frames.size=") for word in single):
            configs.append("--frames.first_size=null")  # that of the recipe is of its own size
    if verb.takes_data and plain:
        lists["--data"], plain = plain + lists.get("--data", []), []
    _settle(verb, lists, further, plain)
    most = 0 if verb.positional is None else len(plain) if verb.positional.count in ("+", "*") else 1
    if len(plain) > most:
        raise UsageError(f"{plain[-1]}: is one word too many; an option begins with --")
    return [
        *configs, *single, *(f"{name}={json.dumps(values)}" for name, values in lists.items()),
        *(["--", *plain] if plain else []),
    ]  # fmt: skip


def _option_name(given: str, options: dict[str, Option], verb: Verb) -> str:
    """The option that a word means: written out, or a field of a recipe without its section where that is certain."""
    name = given.replace("-", "_").replace("__", "--", 1) if given.startswith("--") else given
    if name in options or name in ("--config", "--print_config"):
        return name
    if verb.takes_recipe:
        if name.removeprefix("--") in SECTIONS:
            return name
        if f"--{renamed.field(name[2:], quiet=True)}" in options:
            return f"--{renamed.field(name[2:])}"
        last = [one.name for one in recipe_options() if f"--{one.name.rpartition('.')[2]}" == name]
        if len(last) == 1:
            return f"--{last[0]}"
        if last:
            raise UsageError(f"{given}: is one of {_listed([f'--{one}' for one in last])}; write it out")
    raise UsageError(f"{given}: is no option{_nearest(name, options)}")


def _spelt_now(verb: Verb, name: str, value: str) -> tuple[str, str]:
    """An option and its value in place of old spellings of them."""
    if verb.takes_recipe and name == "--distillation.teacher" and value.lower().endswith((".yaml", ".yml")):
        return "--distillation", _current(Path(value), "teacher")  # the file of the section, as a model is none
    if verb.takes_recipe and (section := name.removeprefix("--")) in SECTIONS:
        if not Path(value).is_file():
            fields = [one.name for one in recipe_options() if one.name.startswith(f"{section}.")]
            raise UsageError(
                f"{name} {value}: is no file of the section {section}; its fields are --{', --'.join(fields)}"
            )
        return name, _current(Path(value))
    kind = "split" if (verb.name, name) == ("data split", "--name") else name.removeprefix("--")
    choices = next((one.choices for one in verb.options if f"--{one.name}" == name), ())
    now = renamed.value(kind, value, quiet=True)
    return name, renamed.value(kind, value) if not choices or now in choices else value


def _settle(verb: Verb, lists: dict[str, list[str]], further: list[tuple[str, str]], plain: list[str]) -> None:
    """Take words that may be none of an option's values for what is otherwise missing; refuse what is not certain.

    ``--save json mask`` may mean a folder called mask, ``--data A runs/baseline`` a model.

    Args:
        verb: whose words they are.
        lists: the values of options that take several, which are changed.
        further: words behind an option's first value, each with its option.
        plain: the words without an option, to which is added.

    Raises:
        UsageError: both are possible.
    """
    if verb.positional is None:
        return
    several = verb.positional.count in ("+", "*")
    of_models = verb.positional.name in ("bundle", "models")
    if plain and of_models:
        return
    either = [
        (option, word)
        for option, word in further
        if (of_models and holds_model(word) if option == "--data" else os.path.exists(word))
    ]
    if either and (plain or not (several or len(either) == 1)):
        option, word = either[0]
        raise UsageError(
            f"{option} {word}: {word} is also a file or folder here; write ./{word} for that, or {option}={word}"
        )
    for option, word in either:
        plain.append(word)
        lists[option].remove(word)


def _config(verb: Verb, given: str) -> str:
    """The file that ``--config`` means: of that path, or, where a verb takes a recipe, one that ships, by its name.

    Of a file with old spellings what it contains, in place of its path.
    """
    file = recipe_file(given) if verb.takes_recipe else Path(given)
    if not file.is_file():
        raise UsageError(f"--config {given}: is no file; it names a YAML file with options")
    return _current(file, names_split=verb.name == "data split")


def _current(file: Path, section: str = "", names_split: bool = False) -> str:
    """The path of a YAML file or, where that has old spellings, what it contains, as it is spelt now."""
    try:
        text = file.read_text(encoding="utf-8")
        check_yaml(text)
    except OSError:
        return str(file)  # for jsonargparse to refuse
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: cannot be read (it is no UTF-8 text)") from error
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    now = spelt_now(text, section, names_split)
    return str(file) if now == text else now


def _plain(message: str, verb: Verb) -> str:
    """An error of jsonargparse without Python's types and words."""
    options = {option.name: option for option in verb.options}
    line = " ".join(message.split())
    if missing := re.search(r"arguments? (?:are|is) required: (.*)", line):
        name = missing[1].split(", ")[0]
        if verb.positional is not None and name == verb.positional.name:
            return f"{name.upper()} is missing: {verb.positional.meaning}"
        also = "DATA or --data" if verb.takes_data and name == "data" else f"--{name}"
        return f"{also} is missing: {options[name].meaning}" if name in options else line
    if unknown := re.search(r"Option '([^']+)' is not accepted", line):
        return f"{unknown[1]}: is no option that a file of --config may contain{_nearest(unknown[1], options)}"
    if unknown := re.search(r"Group '([^']+)' does not accept option '([^']+)'", line):
        name = ".".join(unknown.groups())
        return f"{name}: is no option that a file of --config may contain{_nearest(name, options)}"
    key = re.search(r'Parser key "([^"]+)"', line)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if key and value and key[1] in options:
        option = options[key[1]]
        wants_list = re.search(r"Expected an? <class '(tuple|list)'>", line)
        return f"--{key[1]} {value[1]}: {'must be a list, as [32, 16]' if wants_list else _must_be(option, value[1])}"
    if re.match(r"Unexpected config|Problems parsing config", line):
        return f"--config: is no YAML file with options ({line})"
    return line


def _must_be(option: Option, value: str) -> str:
    if option.choices:
        return f"is unknown; choose {_listed(option.choices)}{_nearest(value, option.choices)}"
    return (
        f"must be { ({int: 'a whole number', float: 'a number', bool: 'true or false'}.get(option.element, 'a text')) }"
    )


def _nearest(word: str, names: Collection[str]) -> str:
    called = (CALLED.get(word, ""), *(f"--{one}" for one in OPTIONS_CALLED.get(word.removeprefix("--"), ())))
    near = [one for one in called if one.partition(" ")[0] in names] or difflib.get_close_matches(word, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def _usage(verb: Verb, line: str) -> UsageError:
    return UsageError(f"{line} (see polypseg {verb.name} --help)")
