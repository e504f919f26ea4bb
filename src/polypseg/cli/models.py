"""The verb ``models``."""

from __future__ import annotations

from polypseg.cli.verb import Verb


def models() -> None:
    """List the models that ship with polypseg: size, network, scores with intervals, place.

    The default is marked. Every file is verified.
    """
    from polypseg import zoo

    print(zoo.table(zoo.shipped()))


VERB = Verb(models, examples=("polypseg models",), see=(("Share a model", "../how-to/share-a-model.md"),))
