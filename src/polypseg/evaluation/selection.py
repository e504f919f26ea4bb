"""Which frames are evaluated: a part of a split, as the model's own run left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polypseg import renamed
from polypseg.bundle import ModelBundle
from polypseg.catalog import Catalog
from polypseg.data.splits import NAMES, hash_split, make_split, read_split
from polypseg.errors import PolypsegError, UsageError

PARTS = ("train", "val", "test", "all")


def select(
    catalog: Catalog, part: str, split_file: str | Path | None = None, bundle: ModelBundle | None = None
) -> tuple[Catalog, dict[str, Any]]:
    """The frames of one part of a split, and the split's name and hash for the report.

    The split is ``split_file``; else the ``split.csv`` of the run folder that the bundle lies in; else the split
    that the bundle names, made anew. One of the latter two must have the hash that the bundle contains.

    Args:
        catalog: all frames.
        part: ``train``, ``val``, ``test``, or ``all`` for every frame whatever its split.
        split_file: a CSV of ``polypseg data split``.
        bundle: the model that is evaluated.

    Raises:
        UsageError: there is no split to go by.
        PolypsegError: it does not fit the data or the bundle, it leaves out a whole data set, or the part is empty.
    """
    if part == "all":
        return catalog, {"split": {"name": "all frames", "part": "all", "hash": None}}
    whole, name, digest = split_of(catalog, split_file, bundle)
    return whole.of_split(part), {"split": {"name": name, "part": part, "hash": digest}}


def split_of(
    catalog: Catalog, split_file: str | Path | None = None, bundle: ModelBundle | None = None
) -> tuple[Catalog, str, str]:
    """The frames with their splits, and the split's name and hash; found and refused as ``select`` does."""
    if split_file is not None:
        table = read_split(split_file)
        name = Path(split_file).stem
    elif bundle is not None:
        table, name = of_bundle(catalog, bundle)
    else:
        raise UsageError("--split: predictions come with no split; give --split_file, or --split all")
    unnamed = sorted(set(catalog.frames["dataset"]) - set(table["dataset"]))
    if unnamed:
        raise PolypsegError(
            f"{unnamed[0]}: the split {name} names none of its frames; leave it out, or give --split all"
        )
    return catalog.with_split(table), name, hash_split(table)


def of_bundle(catalog: Catalog, bundle: ModelBundle) -> tuple[Any, str]:
    """The split that a bundle was trained by, as a table, and its name.

    Raises:
        PolypsegError: it is not of these data.
    """
    recorded = bundle.metadata.get("split") or {}
    name, expected = str(recorded.get("name")), recorded.get("hash")
    beside = bundle.folder.parent / "split.csv"
    if beside.is_file():
        table = read_split(beside)
        if hash_split(table) != expected:
            raise PolypsegError(f"{beside}: is not the split that the bundle was trained with; give --split_file")
        return table, name
    reason = ""
    known = renamed.value("split", name, quiet=True)
    if known in NAMES:
        try:
            table = make_split(known, catalog)
            if bundle.members:  # the folds were made of all but the test frames
                table["split"] = table["split"].replace("val", "train")
            if hash_split(table) == expected:
                return table, name
        except PolypsegError as error:  # as a published list that is not there, or is of another data set
            reason = f" ({error})"
    raise PolypsegError(
        f"{bundle.folder}: its split {name!r} is not one of these data{reason}; give --split_file, or --split all"
    )
