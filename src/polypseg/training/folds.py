"""From a Recipe and a number of folds to as many runs, and one ensemble of their networks.

The frames outside the test split are dealt out to folds. Each fold is the validation split of one run, whose network
learns from the others; so every frame is predicted by one network that has not learnt from it, and what the ensemble
needs is chosen on those predictions.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polypseg.bundle import ModelBundle
from polypseg.catalog import Catalog
from polypseg.data.splits import COLUMNS, make_folds
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.choosing import Maps
from polypseg.evaluation.scoring import DEFINITIONS, score, score_masks
from polypseg.files import atomic_write, csv_cells, plain_cell
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.statistics import Interval, bootstrap_interval, compare
from polypseg.operating_point import OperatingPoint
from polypseg.training.folder import CONFIG, LOG, SPLIT, holds_epoch, logging_to, replacing, taken, write_yaml
from polypseg.training.pictures import EXAMPLES, draw_examples
from polypseg.training.prepare import Frames, prepare, split_frames
from polypseg.training.processes import check_restartable, is_first
from polypseg.training.recipe import Recipe
from polypseg.training.result import provenance
from polypseg.training.run import train
from polypseg.training.scores import log_scores, operating_point, write_scores

log = logging.getLogger("polypseg")
TABLE = "folds.csv"  # written last
_COLUMNS = (
    "name", "val_n", "val_dice", "val_low", "val_high", "test_n", "test_dice", "test_low", "test_high", "p_value",
)  # fmt: skip


def train_folds(
    recipe: Recipe,
    data: Sequence[str | Path],
    folds: int,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path:
    """Train one network a fold, and make one bundle of them all.

    ``recipe.split`` decides the test frames; all others are dealt out to the folds, groups of near duplicates and
    sequences together. The operating point of the ensemble is chosen on the out-of-fold predictions, where the recipe
    leaves the threshold open; then the test frames are scored once.

    Args:
        recipe: what to do in each fold; the seed of fold 1 is ``trainer.seed``, of the next one more.
        data: folders of data sets.
        folds: their number, at least 2.
        out: the folder for all; ``runs/<recipe.name>`` by default.
        resume: keep the folds that are complete, and continue with the others.
        overwrite: replace an earlier run in ``out``, which stands until the new one is known to work.
        progress: show progress bars; by default where standard error is a terminal.

    Returns:
        The folder: ``config.yaml``, ``split.csv``, ``fold-1/`` … (run folders), ``bundle/`` (the ensemble),
        ``test.json``, ``per_image.csv``, ``folds.csv``, ``predictions.png``, ``log.txt``.

    Raises:
        UsageError: there are fewer folds than 2.
        PolypsegError: as ``train``; or there are fewer groups of frames than folds.
        KeyboardInterrupt: it was interrupted; ``resume`` continues.
    """
    if folds < 2:
        raise UsageError(f"--folds {folds}: must be 2 or more")
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    show = sys.stderr.isatty() if progress is None else progress
    settings = {**recipe.to_dict(), "folds": folds}
    check_restartable(overwrite)
    ours = taken(folder, settings, (*recipe.inputs, *data), resume, overwrite)
    with ours if is_first() else contextlib.nullcontext():
        _train_folds(recipe, data, folds, folder, resume and holds_epoch(folder), settings, show)
    return folder


def _train_folds(
    recipe: Recipe,
    data: Sequence[str | Path],
    folds: int,
    folder: Path,
    resume: bool,
    settings: dict[str, Any],
    show: bool,
) -> None:
    """What ``train_folds`` does in a folder that is its own."""
    started = time.monotonic()
    first_process = is_first()
    frames, fold = _deal(recipe, data, folds, folder, resume)
    catalog = frames.catalog
    if first_process and not resume:
        # As the first fold will: what would end that must not cost an earlier run.
        tried = replace(recipe, frames=replace(recipe.frames, cache="none"))
        prepare(tried, Frames(Catalog(_of_fold(catalog, fold, 1)), frames.split), folder, progress=show)
    if first_process:
        with contextlib.nullcontext() if resume else replacing(folder):
            write_yaml(folder / CONFIG, settings)
            _write_folds(catalog, fold, folder / SPLIT)
    names = [f"fold-{number}" for number in range(1, folds + 1)]
    with logging_to(folder / LOG if first_process else None):
        complete = [name for name in names if (folder / name / EXAMPLES).is_file()]
        if first_process and complete != names:
            (folder / TABLE).unlink(missing_ok=True)  # of an ensemble that will be made again
        for number, name in enumerate(names, 1):
            if name in complete:
                log.info("fold %d of %d is complete", number, folds)
                continue
            log.info("fold %d of %d", number, folds)
            table = _of_fold(catalog, fold, number)[COLUMNS]
            train(
                replace(
                    recipe, name=f"{recipe.name}-{name}", split=str(folder / name / "split.csv"),
                    trainer=replace(recipe.trainer, seed=recipe.trainer.seed + number - 1),
                ),
                data, folder / name, resume=True, progress=show, split=(f"{frames.split}-{name}", table),
            )  # fmt: skip
        if not first_process or (complete == names and (folder / TABLE).is_file()):
            return
        _join(recipe, frames, fold, {name: ModelBundle.load(folder / name) for name in names}, folder, show)
        log.info("done in %.0f s: %s", time.monotonic() - started, folder)


def _of_fold(catalog: Catalog, fold: NDArray[np.int64], number: int) -> pd.DataFrame:
    """The frames with the splits of one fold's run."""
    return catalog.frames.assign(split=catalog.frames["split"].where(fold != number, "val"))


def _deal(
    recipe: Recipe, data: Sequence[str | Path], folds: int, folder: Path, resume: bool
) -> tuple[Frames, NDArray[np.int64]]:
    """The frames, ``train`` or ``test``; and each frame's fold from 1, 0 for test frames."""
    whole = split_frames(recipe, data, folder, resume)
    table = whole.catalog.frames.reset_index(drop=True)
    test = (table["split"] == "test").to_numpy()
    catalog = Catalog(table.assign(split=np.where(test, "test", "train")))
    fold = np.zeros(len(table), np.int64)
    if resume and (folder / SPLIT).is_file():
        fold = _read_folds(folder / SPLIT, catalog, folds)
    elif test.all():
        raise PolypsegError(f"split {whole.split}: leaves no frames to learn from; give another --split")
    else:
        fold[~test] = 1 + make_folds(Catalog(table[~test].reset_index(drop=True)), folds)
    return Frames(catalog, whole.split), fold


def _write_folds(catalog: Catalog, fold: NDArray[np.int64], path: Path) -> None:
    """A split's CSV with one column more."""
    table = catalog.frames[COLUMNS].assign(fold=[str(one) if one else "" for one in fold])
    with atomic_write(path, "w") as file:
        csv_cells(table).to_csv(file, index=False, lineterminator="\n")


def _read_folds(path: Path, catalog: Catalog, folds: int) -> NDArray[np.int64]:
    wanted = {"", *(str(number) for number in range(1, folds + 1))}
    with path.open(encoding="utf-8", newline="") as file:
        of_frame = {(row["dataset"], row["frame_id"]): row.get("fold") or "" for row in csv.DictReader(file)}
    found = [of_frame[row.dataset, row.frame_id] for row in catalog]
    for row, one in zip(catalog, found, strict=True):
        if one not in wanted or (one == "") != (row.split == "test"):
            raise PolypsegError(f"{path}: frame {row.frame_id} has the fold {one!r}; restore it, or use --overwrite")
    return np.array([int(one or 0) for one in found])


class _OutOfFold:
    """Predicts the frames of fold after fold, each fold's by the network that has not learnt from them."""

    def __init__(self, segmenters: Sequence[Segmenter], counts: Sequence[int]) -> None:
        self.segmenters = segmenters
        self.counts = counts

    def probabilities(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        coming = iter(frames)
        for segmenter, count in zip(self.segmenters, self.counts, strict=True):
            yield from segmenter.probabilities(itertools.islice(coming, count))


def _join(
    recipe: Recipe,
    frames: Frames,
    fold: NDArray[np.int64],
    bundles: dict[str, ModelBundle],
    folder: Path,
    progress: bool,
) -> None:
    """Make the ensemble, choose on the out-of-fold predictions, test it, and write what was found."""
    catalog = frames.catalog
    order = np.argsort(fold, kind="stable")[np.count_nonzero(fold == 0) :]
    pooled = Catalog(catalog.frames.iloc[order].reset_index(drop=True))
    counts = [int(np.count_nonzero(fold == number)) for number in range(1, len(bundles) + 1)]
    maps = Maps.of(_OutOfFold([Segmenter(bundle) for bundle in bundles.values()], counts), pooled, progress)
    chosen = _choose(recipe, maps, progress)
    scored, _ = score_masks(maps.predictions(chosen["operating_point"]), pooled, progress)
    first = next(iter(bundles.values())).metadata
    ensemble = ModelBundle.join(
        folder / "bundle", bundles, name=recipe.name, **chosen,
        encoder_weights=first["encoder_weights"], **provenance(recipe, frames),
    )  # fmt: skip
    tables = [scored.assign(split="out-of-fold", fold=fold[order])]
    metrics: dict[str, Any] = {
        "out_of_fold": {"n": len(scored), "dice": scored["dice"].mean(), "iou": scored["iou"].mean()}
    }
    log.info("out of fold (n = %d): dice %.4f  iou %.4f", *metrics["out_of_fold"].values())
    segmenter = Segmenter(ensemble)
    if "test" in set(catalog.frames["split"]):
        test = catalog.of_split("test")
        scores = score(segmenter, test, recipe.loss, progress)
        metrics["test"] = scores.summary
        tables.append(scores.per_image.assign(split="test", fold=""))
        log_scores("ensemble, test", scores)
        draw_examples(segmenter, catalog, folder)
    definitions = {name: text for name, text in DEFINITIONS.items() if any(name in one for one in metrics.values())}
    write_scores(folder, segmenter, metrics, definitions, tables)
    rows = _rows(catalog, {name: _per_image(folder / name / "per_image.csv") for name in bundles}, tables)
    with atomic_write(folder / TABLE, "w") as file:
        table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"val_n": "Int64", "test_n": "Int64"})
        table.to_csv(file, index=False, float_format="%.6f")
    for row in rows:
        log.info("%s", _line(row))


def _choose(recipe: Recipe, maps: Maps, progress: bool) -> dict[str, Any]:
    """The ensemble's operating point and how it was found, as ``ModelBundle.join`` takes them."""
    if recipe.threshold is not None:
        return {"operating_point": OperatingPoint(recipe.threshold), "threshold_split": None}
    return {"threshold_split": "out-of-fold frames", **operating_point(maps, "out of fold", progress)}


def _per_image(path: Path) -> pd.DataFrame:
    """A run's ``per_image.csv``, every name the string that it is."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table[table["dice"] != ""]  # of frames without a polyp there is none
        return table[["dataset", "frame_id", "split", "dice"]].map(plain_cell).astype({"dice": float})
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise PolypsegError(f"{path}: is not what a training wrote ({reason}); remove its folder and resume") from error


def _rows(catalog: Catalog, of_fold: dict[str, pd.DataFrame], ours: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    """The rows of ``folds.csv``: every fold, their mean, the ensemble, and what it gains over the mean.

    Whole groups are drawn for the intervals. The folds' own test scores are those of their runs, at their own
    thresholds; they are paired with the ensemble's frame by frame.
    """
    key = ["dataset", "frame_id"]
    groups = catalog.frames[[*key, "group"]]
    rows: list[dict[str, Any]] = []
    on_test = []
    for name, table in of_fold.items():
        row: dict[str, Any] = {"name": name}
        for split in ("val", "test"):
            scores = groups.merge(table[table["split"] == split], on=key)  # in the Catalog's order
            if len(scores):
                row |= _cells(split, bootstrap_interval(scores["dice"], groups=scores["group"].tolist()))
                if split == "test":
                    on_test.append(scores["dice"].to_numpy())
        rows.append(row)
    pooled = groups.merge(ours[0], on=key).dropna(subset="dice")
    interval = bootstrap_interval(pooled["dice"], groups=pooled["group"].tolist())
    rows.append({"name": "out of fold", **_cells("val", interval)})
    ensemble = groups.merge(ours[1], on=key).dropna(subset="dice") if len(ours) > 1 else None
    if ensemble is not None and len(ensemble):
        labels, mean = ensemble["group"].tolist(), np.mean(on_test, axis=0)
        found = compare(ensemble["dice"], mean, labels)
        rows += [
            {"name": "mean of folds", **_cells("test", bootstrap_interval(mean, groups=labels))},
            {"name": "ensemble", **_cells("test", bootstrap_interval(ensemble["dice"], groups=labels))},
            {"name": "ensemble - mean of folds", **_cells("test", found.difference), "p_value": found.p_value},
        ]
    return rows


def _cells(split: str, found: Interval) -> dict[str, float]:
    return {f"{split}_n": found.n, f"{split}_dice": found.value, f"{split}_low": found.low, f"{split}_high": found.high}


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['name']:24}"]
    for split in ("val", "test"):
        if f"{split}_n" in row:
            parts.append(
                f"{split} {row[f'{split}_dice']:.4f} ({row[f'{split}_low']:.4f} to {row[f'{split}_high']:.4f}), "
                f"n = {row[f'{split}_n']}"
            )
    return "  ".join(parts)
