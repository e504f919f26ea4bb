"""The verb ``runs``."""

from __future__ import annotations

from polypseg.cli.verb import Positional, Verb


def runs(folder: str = "runs", json: bool = False) -> None:
    """Show what was trained, the latest last: data, Dice, lesions found, operating point, size.

    One line a run folder: the day and time of its end, its data and split, Dice on validation and test, the share of
    the lesions found and of the regions that are right (IoU 0.3, on validation), threshold and least confidence, size
    of the bundle. A run that is not complete shows its epochs, one that cannot be read says why.

    Args:
        folder: the folder that contains run folders, runs by default.
        json: print a JSON list instead, with all digits.
    """
    from polypseg.training.runs import find_runs, table, to_json

    found = find_runs(folder)
    print(to_json(found) if json else table(found, folder))


VERB = Verb(
    runs,
    positional=Positional("folder", "?", "the folder that contains run folders; runs by default"),
    examples=("polypseg runs", "polypseg runs /data/experiments --json"),
    see=(("Run folder", "run-folder.md"),),
)
