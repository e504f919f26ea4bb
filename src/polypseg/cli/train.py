"""The verb ``train``."""

from __future__ import annotations

from polypseg.cli.checks import check_data, check_models, check_split, one_of_several
from polypseg.cli.verb import Verb
from polypseg.extras import naming_extras
from polypseg.training.recipe import Recipe


@naming_extras("train")
def train(
    recipe: Recipe,
    data: list[str],
    out: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    folds: int | None = None,
    masks: str = "binary",
) -> None:
    """Train a network by a recipe, test it once, and write a run folder with its bundle.

    ``--config`` names a recipe that ships with polypseg, or a file. Without it the recipe is two-cores with the split
    grouped, for which nothing is downloaded: about two hours on two cores for 1500 frames. Every field of the recipe is
    an option; one without its section, as --epochs, is enough where only one is called so. Prints the run folder.

    Args:
        recipe: what to do.
        data: folders of data sets, with images/ and masks/.
        out: the run folder; runs/NAME by default.
        resume: continue from the last complete epoch of the run in --out.
        overwrite: replace an earlier run in --out, once the new one is known to work.
        folds: train as many networks, each on all folds of the frames but one, and make one ensemble of them.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    if not one_of_several():  # several agree on what stops one of them: training.processes
        check_data(data)
        check_models((recipe.model.weights, recipe.distillation.teacher))
        check_split(recipe.split if recipe.split.endswith(".csv") else None)
    from polypseg.data import with_masks
    from polypseg.training.processes import is_first

    data = with_masks(data, masks)
    if folds is None:
        from polypseg.training.run import train as run

        folder = run(recipe, data, out, resume=resume, overwrite=overwrite)
    else:
        from polypseg.training.folds import train_folds

        folder = train_folds(recipe, data, folds, out, resume=resume, overwrite=overwrite)
    if is_first():  # of several processes, one speaks
        print(folder)


VERB = Verb(
    train,
    examples=(
        "polypseg train data/Kvasir-SEG",
        "polypseg train --config realtime --data data/Kvasir-SEG data/CVC-ClinicDB",
        "polypseg train data/Kvasir-SEG --config realtime --split grouped --out runs/five --folds 5 --epochs 40",
    ),
    see=(
        ("Train on your data", "../how-to/train-on-your-data.md"),
        ("Recipe", "recipe.md"),
        ("Run folder", "run-folder.md"),
    ),
)
