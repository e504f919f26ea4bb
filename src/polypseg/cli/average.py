"""The verb ``average``."""

from __future__ import annotations

from typing import Literal

from polypseg.cli.checks import check_data, check_models, check_split
from polypseg.cli.verb import Positional, Verb
from polypseg.extras import naming_extras


@naming_extras("train")
def average(
    models: list[str],
    data: list[str],
    out: str,
    split_file: str | None = None,
    of: Literal["weights", "predictions"] = "weights",
    overwrite: bool = False,
    masks: str = "binary",
) -> None:
    """Average networks' weights, or make an ensemble; choose the operating point anew on validation, and test once.

    Prints the folder.

    Args:
        models: bundles' or runs' folders, two or more, all trained by one split.
        data: folders of data sets that they were trained on.
        out: folder for the new bundle and its scores; names the model too.
        split_file: a CSV of `polypseg data split`; else the split that the first one was trained with.
        of: weights, of networks that were fine-tuned from one another, to one network; or predictions, of any, to an
            ensemble.
        overwrite: replace an earlier result in --out, once the new one is whole.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data)
    check_models(models)
    check_split(split_file)
    from polypseg.data import with_masks
    from polypseg.training.average import average as run

    print(run(models, with_masks(data, masks), out, split_file, of, overwrite=overwrite))


VERB = Verb(
    average,
    positional=Positional("models", "+", "bundles' or runs' folders, two or more, all trained by one split"),
    examples=("polypseg average runs/first runs/second --data data/Kvasir-SEG --out runs/mean",),
    see=(("Average models", "../how-to/average.md"),),
)
