"""Splits into train, val and test: the field's published ones, and ones that keep every group in one subset.

Every split is a table ``dataset, frame_id, split`` of strings in the Catalog's order.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polypseg import renamed
from polypseg.catalog import SPLITS, Catalog
from polypseg.data import clinicdb, kvasir
from polypseg.data.duplicates import Fingerprints, fingerprints, groups, near_pairs
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import atomic_write, csv_cells, plain_cell, sha256_lines

NAMES = ("random", "grouped", "pranet", "medico", "kfold")
COLUMNS = ["dataset", "frame_id", "split"]
CONTENT = "content"  # a further column of a run's own split file
AREA_BINS = (0.02, 0.05, 0.15)  # of the frame; the strata of polyp area, beside one of frames without a polyp

_PRANET = {kvasir.NAME: ("pranet-kvasir-test.txt", 100), clinicdb.NAME: ("pranet-clinicdb-test.txt", 62)}
# Our own names first, then the ones under which Kvasir-SEG publishes the same lists.
_MEDICO = {
    "train": (("medico-880-train.txt", "train.txt"), 880),
    "test": (("medico-120-val.txt", "val.txt"), 120),
}


def make_split(
    name: str,
    catalog: Catalog,
    *,
    seed: int = 42,
    folds: int = 5,
    fold: int = 0,
    val_fraction: float = 0.1,
    lists: Path | None = None,
    prints: Fingerprints | None = None,
) -> pd.DataFrame:
    """Split a Catalog by one of the named protocols.

    - ``random``: 70/15/15 by scikit-learn's ``train_test_split`` over the names in catalog order, data set by
      data set; the rest is halved into test and val. Near duplicates may come into different subsets.
    - ``grouped``: 70/15/15; near duplicates and sequences stay together; stratified by data set, centre and
      polyp area, frames without a polyp apart.
    - ``pranet``: the published test lists of PraNet (Fan et al., MICCAI 2020; 100 frames of Kvasir-SEG, 62 of
      CVC-ClinicDB); a part of the published training set becomes val, by group. Further data sets add to the
      training set alone.
    - ``medico``: Kvasir-SEG's official lists of 880 and 120 (Medico 2020); the 120 are test, val as above.
    - ``kfold``: grouped and stratified folds; fold ``fold`` is test, the next one val.

    Args:
        name: one of ``NAMES``.
        catalog: the frames; all but ``random`` decode them once, for groups and polyp area.
        seed: of the random choices.
        folds: number of folds, at least 3; ``kfold`` only.
        fold: which of them is test, 0..folds-1; ``kfold`` only.
        val_fraction: 0..1 (exclusive), the part of the published training set that becomes val; ``pranet``
            and ``medico`` only. 0 keeps the training set whole.
        lists: folder of the published lists; by default ``splits`` in the data set's folder or beside it.
        prints: the Catalog's fingerprints where the caller has them, to spare the decoding.

    Returns:
        A table with the columns ``dataset``, ``frame_id`` and ``split``, all str, one row a frame.

    Raises:
        UsageError: an option is out of its range.
        PolypsegError: a published list is missing or does not fit the data, there are too few frames or
            groups, or a frame cannot be decoded.
    """
    name = renamed.value("split", name)
    if name not in NAMES:
        raise UsageError(f"--name {name} is no split; choose one of {', '.join(NAMES)}")
    if name == "kfold" and not (folds >= 3 and 0 <= fold < folds):
        raise UsageError(f"--folds {folds} --fold {fold}: needs 3 folds or more, and a fold of 0..folds-1")
    if not 0 <= val_fraction < 1:
        raise UsageError(f"--val_fraction {val_fraction}: must be 0 or more and less than 1")
    if not len(catalog):
        raise PolypsegError("the data contain no frames to split; check --data")
    if name == "random":
        return _table(catalog, _random(catalog, seed))
    # Published lists are checked before the frames are decoded, which takes seconds.
    published = _published(name, catalog, lists) if name in ("pranet", "medico") else None
    if published is not None and val_fraction == 0:
        return _table(catalog, published)
    prints = fingerprints(catalog) if prints is None else prints
    if published is not None:
        _carve_validation(published, catalog, prints, val_fraction, seed)
        return _table(catalog, published)
    names, where = np.array(groups(catalog, prints)), _folder(catalog)
    strata = _strata(catalog, prints)
    if name == "grouped":
        parts = _partition(names, strata, (0.70, 0.15, 0.15), seed, where)
        return _table(catalog, np.array(["train", "val", "test"], dtype=object)[parts])
    parts = _partition(names, strata, (1 / folds,) * folds, seed, where)
    val = (fold + 1) % folds
    return _table(catalog, np.where(parts == fold, "test", np.where(parts == val, "val", "train")))


def make_folds(
    catalog: Catalog, folds: int, *, seed: int = 42, prints: Fingerprints | None = None
) -> NDArray[np.int64]:
    """Deal a Catalog's frames out to folds, stratified as ``kfold``'s; a group stays in one fold.

    Args:
        catalog: the frames, decoded once for their groups and polyp area.
        folds: their number, at least 2.
        seed: of the order of equally large groups.
        prints: the Catalog's fingerprints where the caller has them, to spare the decoding.

    Returns:
        The fold of each frame, 0..folds-1, in the Catalog's order.

    Raises:
        UsageError: there are fewer folds than 2.
        PolypsegError: there are fewer groups than folds, or a frame cannot be decoded.
    """
    if folds < 2:
        raise UsageError(f"--folds {folds}: must be 2 or more")
    prints = fingerprints(catalog) if prints is None else prints
    names = np.array(groups(catalog, prints))
    if (count := len(set(names))) < folds:
        raise PolypsegError(
            f"{_folder(catalog)}: contains {count} groups of frames to learn from, too few for --folds {folds}; "
            "lower it"
        )
    return _partition(names, _strata(catalog, prints), (1 / folds,) * folds, seed, _folder(catalog))


def describe(table: pd.DataFrame) -> str:
    """A split in a line: the frames of each part, and its hash."""
    counts = table["split"].value_counts()
    shares = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test") if split in counts)
    return f"{shares}; hash {hash_split(table)}"


def hash_split(table: pd.DataFrame) -> str:
    """SHA-256 of a split, independent of the order of its rows: a header line, then the sorted rows."""
    rows = sorted(",".join(row) for row in table[COLUMNS].astype(str).itertuples(index=False))
    return sha256_lines([",".join(COLUMNS), *rows])


def write_split(table: pd.DataFrame, path: str | Path) -> None:
    """Write a split as CSV, atomically, with its column ``content`` (``Catalog.content_hashes``) where it has one.

    Raises:
        PolypsegError: the disk refuses.
    """
    columns = [*COLUMNS, CONTENT] if CONTENT in table else COLUMNS
    with atomic_write(path, "w") as file:
        csv_cells(table[columns].astype(str)).to_csv(file, index=False, lineterminator="\n")


def changed_frames(catalog: Catalog, path: str | Path) -> list[str]:
    """The files of frames whose content, or whose mask's, is not what a split file recorded; none where it did not."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        recorded = {(plain_cell(row["dataset"]), plain_cell(row["frame_id"])): row.get(CONTENT) for row in rows}
    if not any(recorded.values()):
        return []
    return [
        row.image_path
        for row, content in zip(catalog, catalog.content_hashes(), strict=True)
        if recorded.get((row.dataset, row.frame_id), content) != content
    ]


def read_split(path: str | Path) -> pd.DataFrame:
    """Read a split file; every value stays the string it is, further columns are passed over.

    Returns:
        A table with the columns ``dataset``, ``frame_id`` and ``split``, in the file's order.

    Raises:
        PolypsegError: the file is missing, empty or no CSV, is missing a column or a value, names another split
            than train, val or test, or names a frame twice.
    """
    path = Path(path)
    rows: list[tuple[str, ...]] = []
    lines: dict[tuple[str, ...], int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames is None:
                raise PolypsegError(f"{path}: is empty; write it with `polypseg data split`")
            names = list(reader.fieldnames)
            twice = next((name for name in COLUMNS if names.count(name) > 1), None)
            if twice is not None:
                raise PolypsegError(f"{path}: has two columns {twice}; remove one")
            if len(names) == 1 and re.search(r"[;\t]", names[0]):
                raise PolypsegError(f"{path}: its columns are not separated by commas; save it as CSV with commas")
            missing = [column for column in COLUMNS if column not in names]
            if missing:
                raise PolypsegError(f"{path}: is missing the column {missing[0]}; a split has {','.join(COLUMNS)}")
            for line in reader:
                row = tuple(plain_cell(line[column] or "") for column in COLUMNS)
                if None in line:
                    raise PolypsegError(f"{path}: line {reader.line_num} has more values than columns; correct it")
                if not all(row):
                    raise PolypsegError(f"{path}: line {reader.line_num} is missing a value; complete or remove it")
                if row[2] not in SPLITS:
                    raise PolypsegError(
                        f"{path}: line {reader.line_num} has the split {row[2]!r}; use train, val or test"
                    )
                if row[:2] in lines:
                    raise PolypsegError(
                        f"{path}: line {reader.line_num} names frame {row[1]} of {row[0]} again (first on "
                        f"line {lines[row[:2]]}); remove one"
                    )
                lines[row[:2]] = reader.line_num
                rows.append(row)
    except OSError as error:
        raise PolypsegError(f"{path}: cannot be read ({error.strerror}); check --split") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise PolypsegError(f"{path}: is not a CSV file ({error}); write it with `polypseg data split`") from error
    if not rows:
        raise PolypsegError(f"{path}: names no frames; write it with `polypseg data split`")
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _table(catalog: Catalog, split: NDArray[np.object_]) -> pd.DataFrame:
    table = catalog.frames[["dataset", "frame_id"]].reset_index(drop=True)
    return table.assign(split=split).astype(str).astype(object)


def _random(catalog: Catalog, seed: int) -> NDArray[np.object_]:
    from sklearn.model_selection import train_test_split  # slow to import, and needed here only

    split = np.full(len(catalog), "train", dtype=object)
    for positions in catalog.frames.reset_index(drop=True).groupby("dataset").groups.values():
        if len(positions) < 4:
            where = _folder(catalog, int(positions[0]))
            raise PolypsegError(f"{where}: {len(positions)} frames are too few for train, val and test; add some")
        _, rest = train_test_split(list(positions), test_size=0.3, random_state=seed)
        test, val = train_test_split(rest, test_size=0.5, random_state=seed)
        split[test], split[val] = "test", "val"
    return split


def _folder(catalog: Catalog, position: int = 0) -> Path:
    """The data set's folder of a frame, for messages."""
    return Path(catalog.row(position).image_path).parent.parent


def _strata(catalog: Catalog, prints: Fingerprints) -> NDArray[np.int64]:
    """A number a frame: its data set and centre, and the bin of its polyp area."""
    origins = pd.factorize(catalog.frames["dataset"] + "/" + catalog.frames["centre"])[0]
    bins = np.where(prints.area > 0, 1 + np.digitize(prints.area, AREA_BINS), 0)
    return origins * (len(AREA_BINS) + 2) + bins


def _partition(
    names: NDArray[np.str_], strata: NDArray[np.int64], fractions: Sequence[float], seed: int, where: Path
) -> NDArray[np.int64]:
    """The part 0..len(fractions)-1 of every frame; a group stays in one part.

    Greedy, the largest group first (equal ones in random order): each group goes where the sum over strata of
    (frames - wanted)² / wanted grows least. scikit-learn's StratifiedGroupKFold makes equal folds only; 20
    of them joined 14/3/3 split ClinicDB's 29 sequences 62/17/21 instead of 70/15/15.
    """
    codes, unique = pd.factorize(names)
    if len(unique) < len(fractions):
        raise PolypsegError(
            f"{where}: contains {len(unique)} groups of frames, too few for {len(fractions)} parts; add frames"
        )
    strata = pd.factorize(strata)[0]
    counts = np.zeros((len(unique), strata.max() + 1))
    np.add.at(counts, (codes, strata), 1)
    wanted = np.outer(fractions, counts.sum(0))
    held = np.zeros_like(wanted)
    shuffled = np.random.default_rng(seed).permutation(len(unique))
    order = shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]
    part = np.zeros(len(unique), dtype=np.int64)
    for done, group in enumerate(order):
        frames = counts[group]
        growth = (frames * (2 * (held - wanted) + frames) / wanted).sum(1)
        empty = held.sum(1) == 0
        if empty.sum() == len(order) - done:  # the last groups fill the parts that would stay empty
            growth[~empty] = np.inf
        part[group] = growth.argmin()
        held[part[group]] += frames
    return part[codes]


def _carve_validation(
    split: NDArray[np.object_], catalog: Catalog, prints: Fingerprints, fraction: float, seed: int
) -> None:
    """Make a part of the training frames ``val``, by group: first of the published data sets, then of further ones.

    So further data sets leave the published ones split as they are without them, and a model that was trained on those
    alone can be fine-tuned and chosen on frames that it never learnt from.
    """
    known = catalog.frames["dataset"].isin([*_PRANET, kvasir.NAME]).to_numpy()
    near = near_pairs(prints)
    for whose in (np.flatnonzero(known), np.flatnonzero(~known)):
        if not (split[whose] == "train").any():
            continue
        frames, those = Catalog(catalog.frames.iloc[whose]), prints.take(whose)
        of_training = split[whose] == "train"
        place = {int(position): index for index, position in enumerate(whose)}
        among = [(place[i], place[j], value) for i, j, value in near if i in place and j in place]
        names, strata = np.array(groups(frames, those, among))[of_training], _strata(frames, those)[of_training]
        parts = _partition(names, strata, (1 - fraction, fraction), seed, _folder(frames))
        split[whose[of_training][parts == 1]] = "val"
    if known.all() or not known.any():
        return
    # What is akin to a published frame goes where that is; of frames akin to several, validation comes first.
    names = np.array(groups(catalog, prints, near))
    for part in ("train", "val"):
        akin = np.isin(names, names[known & (split == part)])
        split[akin & ~known] = part


def _published(name: str, catalog: Catalog, lists: Path | None) -> NDArray[np.object_]:
    """``train`` or ``test`` for every frame, from the published lists."""
    frames = catalog.frames.reset_index(drop=True)
    split = np.full(len(frames), "train", dtype=object)
    known = _PRANET if name == "pranet" else {kvasir.NAME: None}
    present = set(frames["dataset"])
    for dataset, rows in frames.groupby("dataset"):
        if dataset not in known and name == "pranet" and present & set(known):
            continue  # no published list names its frames: all of it is for training
        if dataset not in known:
            raise PolypsegError(f"{dataset}: the split {name} is for {' and '.join(known)} only; use grouped or seed")
        folder = Path(rows["image_path"].iloc[0]).parent.parent
        if name == "pranet":
            file, number = _PRANET[str(dataset)]
            chosen = _read_list((file,), f"the {number} test names of {dataset}", folder, lists, rows)
        else:
            files, number = _MEDICO["test"]
            chosen = _read_list(files, f"the {number} validation names of {dataset}", folder, lists, rows)
            files, number = _MEDICO["train"]
            train = _read_list(files, f"the {number} training names of {dataset}", folder, lists, rows)
            both = sorted(chosen & train)
            if both:
                raise PolypsegError(f"{both[0]} is in both of medico's lists; restore {' and '.join(files)}")
            unnamed = sorted(set(rows["frame_id"]) - chosen - train)
            if unnamed:
                raise PolypsegError(f"{unnamed[0]} is in neither of medico's lists; restore {' or '.join(files)}")
        split[rows.index[rows["frame_id"].isin(chosen)]] = "test"
        if rows["frame_id"].isin(chosen).all():
            raise PolypsegError(f"{dataset}: all its frames are in {name}'s test list; give the whole data set")
    return split


def _read_list(files: Sequence[str], contents: str, folder: Path, lists: Path | None, rows: pd.DataFrame) -> set[str]:
    """The names of a published list, each of which must be among the frames ``rows``."""
    places = [Path(lists)] if lists is not None else [folder / "splits", folder.parent / "splits"]
    found = next((place / file for place in places for file in files if (place / file).is_file()), None)
    if found is None:
        raise PolypsegError(
            f"{places[0] / files[0]}: is missing; put it there: {contents}, one a line without ending"
            + (f" (or into {places[1]})" if len(places) > 1 else "")
        )
    try:
        names = [line.strip() for line in found.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PolypsegError(f"{found}: cannot be read as text ({error}); restore it") from error
    if not names:
        raise PolypsegError(f"{found}: names no frames; it contains {contents}, one a line")
    absent = sorted(set(names) - set(rows["frame_id"]))
    if absent:
        raise PolypsegError(
            f"{found}: names frame {absent[0]}, which is not in {folder}"
            + (f" ({len(absent) - 1} more)" if len(absent) > 1 else "")
            + "; give the whole data set"
        )
    return set(names)
