"""The page docs/reference/command-line.md, made of the verbs."""

from __future__ import annotations

from polypseg.cli import help
from polypseg.cli.parser import OFFLINE
from polypseg.cli.verb import SECTIONS, Option, Verb, recipe_options
from polypseg.cli.verbs import VERBS
from polypseg.training.recipe import shipped_recipes

HEAD = """\
# Command line

<!-- Made by `python -m polypseg.cli.reference docs/reference`; the text is in src/polypseg/cli. -->

`polypseg VERB [options]`. `polypseg --help` lists the verbs, `polypseg VERB --help` the options of one with examples.
`polypseg --version` prints the version.

**In every verb**

- `--help`: the options of the verb, with examples.
- `--config FILE`: options from a YAML file; those on the command line win. In `train` and `tune` also the name of a
  recipe that ships with polypseg: {recipes}.
- `--print_config`: print all options with their values and comments, as YAML, and do nothing else. The output is a file
  for `--config`.
- `--data DIR`: a data set's folder; several as `--data A B`, or the option repeated. Where a verb takes nothing else
  without an option, the folders may stand alone: `polypseg train A B`.
- `--masks KIND`: how masks are read; see [Masks](../how-to/train-on-your-data.md#masks). For one data set of several,
  write it before the folder: `--data data/Kvasir-SEG colour:data/other`. In the same way `clinicdb:DIR` is a part
  of CVC-ClinicDB.
- `--out PATH`: where results go.
- Options and verbs are written out: `--overwrite`, not `--over`; `--min-confidence` is `--min_confidence`. What is
  misspelt is refused, and the nearest is named.
- A folder that one `polypseg` is writing into (`train`, `average`, `predict`) is refused to another, until the first
  one has ended in whatever way.
- A switch is given alone (`--resume`) or with a value (`--resume false`). A list of words is written `--save mask
  json`, one of numbers `"[32, 16, 8]"`, nothing `null`.

**Exit status**

| status | meaning |
|---|---|
| 0 | done |
| 1 | the work failed; one line on standard error says which file, what and what to do |
| 2 | the arguments are wrong; one line says which, and the nearest that could be meant |
| 130 | Ctrl-C; what was complete is kept |

**Environment**

| variable | meaning |
|---|---|
| `HF_HOME`, `HF_ENDPOINT` | cache and mirror of the hub ([Encoder weights](../how-to/encoder-weights.md)) |
| `MLFLOW_TRACKING_URI` | where the logger `mlflow` writes; else `mlflow.db` in the run folder |
| `https_proxy`, `http_proxy` | for `data download` |
| `POLYPSEG_TOKEN` | the token of `serve` |
| `POLYPSEG_DICOMWEB_AUTHORIZATION` | what `dicom` sends a DICOMweb server as `Authorization` |
"""
RECIPE = """\
Besides these, every field of the recipe is an option: those of [`train`](#polypseg-train)."""
FIELDS = """\
The fields of the recipe, with the defaults of a recipe that leaves them out; without `--config` it is `{recipe}` with
`--split {split}`. A whole section may come from a file of its own: {sections}."""
TABLE = "| option | default | meaning |\n|---|---|---|"


def page() -> str:
    """The whole page, Markdown."""
    head = HEAD.format(recipes=", ".join(f"`{name}`" for name in shipped_recipes()))
    return "\n".join([head, *(_section(verb) for verb in VERBS.values())])


def _section(verb: Verb) -> str:
    about = "\n\n".join(paragraph.replace("``", "`") for paragraph in verb.about)
    more = f" More: {', '.join(f'[{title}]({target})' for title, target in verb.see)}." if verb.see else ""
    parts = [f"## polypseg {verb.name}", about + more, "\n".join(["```bash", *verb.examples, "```"])]
    rows = [] if verb.positional is None else [_positional(verb)]
    rows += map(_row, verb.own_options)
    if rows:
        parts.append("\n".join([TABLE, *rows]))
    if verb.name == "train":
        sections = ", ".join(f"`--{name} FILE`" for name in SECTIONS)
        about_fields = FIELDS.format(recipe=OFFLINE[0], split=OFFLINE[1], sections=sections)
        parts += [about_fields, "\n".join([TABLE, *map(_row, recipe_options())])]
    elif verb.takes_recipe:
        parts.append(RECIPE)
    return "\n\n".join(parts) + "\n"


def _positional(verb: Verb) -> str:
    assert verb.positional is not None
    default = "required" if verb.positional.count in (None, "+") else "–"
    return f"| `{verb.positional.name.upper()}` | {default} | {verb.positional.meaning} |"


def _row(option: Option) -> str:
    default = help.default(option)
    meaning = option.meaning
    if any(choice not in meaning for choice in option.choices):
        meaning += f": {', '.join(f'`{choice}`' for choice in option.choices)}"
    return f"| `--{option.name}` | {'required' if default is None else f'`{default}`'} | {meaning.replace('``', '`')} |"
