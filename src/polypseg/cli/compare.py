"""The verb ``compare``."""

from __future__ import annotations

from polypseg.cli.verb import Positional, Verb


def compare(reports: list[str], out: str | None = None) -> None:
    """Rank models that were evaluated on the same frames, and say which cannot be told apart.

    A model is called by the name of its report's folder.

    Args:
        reports: folders that `polypseg evaluate` wrote, two or more.
        out: a JSON file for the ranking.
    """
    from polypseg.evaluation import run

    print(run.ranking_table(run.compare(reports, out)))


VERB = Verb(
    compare,
    positional=Positional("reports", "+", "folders that `polypseg evaluate` wrote, two or more"),
    examples=("polypseg compare evaluation evaluation-other --out ranking.json",),
    see=(("Evaluate", "../how-to/evaluate.md"),),
)
