"""The page docs/reference/recipe.md: every field with its default, the values it takes, and its docstring."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from polypseg.cli import help
from polypseg.cli.verb import SECTIONS, Option, about, recipe_options
from polypseg.training.ranges import RANGES, Range
from polypseg.training.recipe import MAY_DIFFER, Recipe, field_types

HEAD = """\
# Recipe

<!-- Made by `python -m polypseg.cli.reference docs/reference`, of the docstrings and src/polypseg/cli/reference. -->

A recipe is a YAML file; a field that it leaves out takes its default. Every field is also an option of
[`polypseg train`](command-line.md#polypseg-train), as `--frames.size 352`, and an option wins over the file. An
unknown field, a value of the wrong type or one out of its range is an error, which names the field. What ships in
`recipes/`: [Choose a recipe](../how-to/train-on-your-data.md#choose-a-recipe).

```bash
polypseg train --config baseline --print_config
```

prints a recipe complete, with comments. In Python:
[`load_recipe`](../how-to/python.md#recipes-folds-search-averages)."""
NOTES = {
    "": """\
The split `random` is always drawn with 42, the others with `trainer.seed`. `kfold` is fold 0 of 5 here; for another
one write a CSV first ([Splits](../explanation/splits.md)). `threshold: null` chooses among 0.05, 0.10 … 0.95, and the
rest of the [operating point](bundle.md#metadatajson) with it.""",
    "frames": """\
- `augmentation`: `baseline` is flips, rotation to 35°, elastic, covered patches, brightness and contrast; `strong` is
  wider, with flips and right angles, scale, shift, shear, grid distortion, colour, gamma, blur, noise, compression
  and covered patches; `stronger` has wider hues, glare, endoscope borders and insets besides
- `made_polyp_free`: as many of the other frames get a patch of mucosa blended in, so that its traces give nothing
  away
- `workers`: -1 takes one on a CPU, and with a GPU all cores but one, 8 at most""",
    "model": """\
`UnetPlusPlus` and `Unet` have no place for `decoder_dropout` in segmentation-models-pytorch; the log says so. More:
[Encoder weights](../how-to/encoder-weights.md),
[fine-tuning](../how-to/train-on-your-data.md#start-from-a-trained-model).""",
    "loss": """\
`dice_per_image: false` is what the [baseline recipe](../explanation/results.md#the-baseline-recipe) does.""",
    "distillation": "How it is done, and what it is worth: [Knowledge distillation](../how-to/distil.md).",
    "optimizer": """\
A moving average of the weights (`ema_decay`) is validated and kept in place of the weights themselves.""",
    "trainer": """\
`torchrun` and SLURM decide `devices` and `num_nodes` themselves ([Several machines](../how-to/several-machines.md)).
Loggers: [Watch it](../how-to/train-on-your-data.md#watch-it). `keep: last` is for the
[mean of several trainings](../how-to/average.md).""",
}
FOOT = """\
## Further limits

- `frames.first_size` up to `frames.last_size`, and that up to `frames.size`
- `loss.bce` and `loss.dice` are not both 0
- `model.frozen` needs `model.presence` and `model.weights`; `trainer.start_share` needs `model.weights`
- `frames.workers` and `trainer.threads`: at most 4 for each core of the machine; `trainer.devices` on a CPU: at most
  its cores
- `name`: what a folder can be called, 200 bytes at most

Whether the network can compute what the recipe asks for is tried before anything is written: batches of each size and
the last, smaller batch go through it, forward and backward, and a frame of each view of `tta`.

## What may change when a run is resumed

{may_differ}. `split` is among them because the run's own `split.csv` is used. Everything else must be as it was.
"""
TABLE = "| field | default | values | meaning |\n|---|---|---|---|"


def page() -> str:
    """The whole page, Markdown."""
    parts = [HEAD]
    kinds = get_type_hints(Recipe)
    for section in ("", *SECTIONS):
        if section:
            parts += [f"## {section}", *(paragraph.replace("``", "`") for paragraph in about(kinds[section]))]
        options = [one for one in recipe_options() if one.name.rpartition(".")[0] == section]
        parts.append("\n".join([TABLE, *map(_row, options)]))
        parts += [NOTES[section]] if section in NOTES else []
    foot = FOOT.format(may_differ=", ".join(f"`{name}`" for name in sorted(MAY_DIFFER)))
    return "\n\n".join([*parts, foot])


def _row(option: Option) -> str:
    can_be_null = NoneType in get_args(field_types()[option.name])
    values = _values(option, RANGES.get(option.name)) + ("; `null`" if can_be_null else "")
    meaning = option.meaning.replace("``", "`").replace("|", "\\|")
    return f"| `{option.name}` | `{help.default(option)}` | {values} | {meaning} |"


def _values(option: Option, within: Range | None) -> str:
    several = "list of " if option.is_list else ""
    element: Any = option.element
    if get_origin(element) is Literal:
        return several + ", ".join(f"`{choice}`" for choice in option.choices)
    if element is bool:
        return "`true`, `false`"
    if within is None:
        return f"{several}text"
    number = "number" if element is float else "whole number" if within.step == 1 else f"multiple of {within.step}"
    return f"{several}{number}{'s' if several else ''} {within}"
