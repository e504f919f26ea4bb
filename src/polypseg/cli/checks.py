"""Files and folders that are not there are reported before anything slow is imported.

Each check only asks whether something is there; where it is not, the module that would read it is asked, which says
why, in one line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


def one_of_several() -> bool:
    """Whether torchrun or SLURM's srun started this process; if it ended by itself, the others would wait for it."""
    return bool({"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys())


def check_data(sources: Iterable[str]) -> None:
    """Raise ``PolypsegError`` where a data set's folder is missing; before it may stand how its masks are read."""
    for source in sources:
        if not os.path.isdir(source.rpartition(":")[2]):
            from polypseg.data import read

            read(source)


def check_models(names: Iterable[str | None]) -> None:
    """Raise ``PolypsegError`` where a folder or a shipped name contains no model; None and ``hf://`` are left alone."""
    for name in names:
        if name is not None and not name.startswith("hf://") and not holds_model(name):
            from polypseg import zoo

            zoo.open(name)


def check_split(file: str | None) -> None:
    """Raise ``PolypsegError`` where the CSV of a split is missing; None is no file."""
    if file is not None and not os.path.isfile(file):
        from polypseg.data.splits import read_split

        read_split(file)


def holds_model(name: str) -> bool:
    """Whether a word names a bundle's or a run's folder, a shipped model or one of the hub."""
    from polypseg.metadata import METADATA_FILE
    from polypseg.zoo import shipped_names

    places = (os.path.join(name, METADATA_FILE), os.path.join(name, "bundle", METADATA_FILE))
    return name.startswith("hf://") or any(map(os.path.isfile, places)) or name in shipped_names()
