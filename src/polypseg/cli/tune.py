"""The verb ``tune``."""

from __future__ import annotations

from polypseg.cli.checks import check_data, check_models, check_split
from polypseg.cli.verb import Verb
from polypseg.extras import naming_extras
from polypseg.training.recipe import Recipe


@naming_extras("tune")
def tune(
    recipe: Recipe,
    data: list[str],
    trials: int = 30,
    space: str | None = None,
    storage: str | None = None,
    study: str | None = None,
    out: str | None = None,
    masks: str = "binary",
) -> None:
    """Search a recipe's fields for the best validation Dice, and write the best as a recipe; needs polypseg[tune].

    Every field of the recipe is an option too, as of ``train``.

    Args:
        recipe: what is not searched.
        data: folders of data sets, with images/ and masks/.
        trials: trials of the study in all, those of earlier calls and of other processes among them.
        space: a YAML file of fields and their values; by default learning rates, weight decay, averaging,
            loss, augmentation and batch size are searched.
        storage: URL of the study's database, as SQLAlchemy takes it; a file in --out by default.
        study: the study's name in the database; the recipe's by default.
        out: folder for best.yaml, trials.csv and the trials; runs/STUDY-tune by default.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data)
    check_models((recipe.model.weights, recipe.distillation.teacher))
    check_split(recipe.split if recipe.split.endswith(".csv") else None)
    from polypseg.data import with_masks
    from polypseg.training.tune import tune as run

    print(run(recipe, with_masks(data, masks), trials, space=space, storage=storage, study=study, out=out))


VERB = Verb(
    tune,
    examples=("polypseg tune --config realtime --data data/Kvasir-SEG --split grouped --trials 30 --out runs/search",),
    see=(("Tune", "../how-to/tune.md"),),
)
