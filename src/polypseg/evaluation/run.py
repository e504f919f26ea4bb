"""What ``polypseg evaluate`` and ``polypseg compare`` do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polypseg import zoo
from polypseg.bundle import ModelBundle
from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.evaluate import Report, evaluate
from polypseg.evaluation.predictions import BundlePredictor, FolderPredictor, Predictor
from polypseg.evaluation.report import PAGE, write_report
from polypseg.evaluation.robustness import robustness
from polypseg.evaluation.scoring import NO_POLYP, NetworkSize
from polypseg.evaluation.seen import seen, trained_on
from polypseg.evaluation.selection import select
from polypseg.files import commit, disk_error, plain_cell, write_json
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.statistics import Comparison, Interval, Ranking, rank
from polypseg.models.losses import LossConfig

ALPHA = 0.05  # of ``compare``


def report_on(  # noqa: PLR0913  (the options of the verb)
    bundle: ModelBundle | str | os.PathLike[str] | None,
    data: Sequence[str | Path],
    out: str | Path,
    *,
    split: str | None = None,
    split_file: str | Path | None = None,
    predictions: str | Path | None = None,
    threshold: float | None = None,
    allow_train_frames: bool = False,
    corruptions: bool = False,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    tta: str | None = None,
    progress: bool | None = None,
) -> Report:
    """Evaluate a bundle, or predictions that another program wrote, and write the report.

    Args:
        bundle: a bundle, or what ``polypseg.zoo.open`` takes; None with ``predictions``.
        data: folders of data sets.
        out: folder for ``report.json``, ``per_image.csv`` and ``report.html``.
        split: ``train``, ``val``, ``test`` or ``all``; by default ``test``, but ``all`` of data that the bundle has
            never seen, and of predictions without a split file.
        split_file: a CSV; by default the split that the bundle was trained with.
        predictions: a folder of masks or probability maps, one a frame.
        threshold: for predictions, 0..1; 0.5 by default. A bundle has its own.
        allow_train_frames: score frames that the bundle was trained or chosen on, too; the report says so first.
        corruptions: also test robustness; 40 times the work.
        runtime: as of ``Segmenter``; for a bundle.
        device: as of ``Segmenter``; for a bundle.
        precision: as of ``Segmenter``; for a bundle.
        tta: as of ``Segmenter``; for a bundle.
        progress: show progress bars; by default where standard error is a terminal.

    Returns:
        The Report, whose files lie in ``out``.

    Raises:
        UsageError: neither or both of bundle and predictions are given, or an option fits only one of them or is out
            of its range.
        PolypsegError: the bundle, the data, a prediction or the folder stands in the way, or a frame is one that the
            bundle was trained or chosen on.
    """
    if (bundle is None) == (predictions is None):
        raise UsageError("evaluate: give either a bundle or --predictions")
    if bundle is not None and threshold is not None:
        raise UsageError("--threshold: a bundle has its own threshold; the option is for --predictions")
    if predictions is not None and corruptions:
        raise UsageError("--corruptions: needs a bundle, predictions cannot be made anew")
    show = sys.stderr.isatty() if progress is None else progress
    opened = None if bundle is None else zoo.open(bundle)
    whole = read_all(data)
    part = split or _usual_part(whole, split_file, opened)
    frames, provenance = select(whole, part, split_file, opened)
    warnings: list[str] = []
    if opened is not None:
        known = seen(opened, frames, whole, split_file)
        parts = ("train",) if part == "val" else ("train", "val")  # who asks for val knows what it is
        if not allow_train_frames:
            known.refuse(parts, "scored", "leave them out, as by --split test")
        warnings = known.warnings(("train", "val"))
        provenance["training_frames"] = {**known.parts} if known.recorded else None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)  # now, not after the work
    except OSError as error:
        raise disk_error(Path(out), error) from error
    network_size: NetworkSize | None = None
    predictor: Predictor
    if opened is not None:
        segmenter = Segmenter(opened, runtime, device, precision, tta=tta)
        predictor = BundlePredictor(segmenter)
        network_size = NetworkSize(segmenter, loss_of(opened))
    else:
        assert predictions is not None
        predictor = FolderPredictor(predictions, frames, 0.5 if threshold is None else threshold)
    report = evaluate(
        predictor, frames, network_size=network_size, provenance={**provenance, "commit": commit()}, progress=show
    )
    report.numbers["warnings"] = warnings + report.numbers["warnings"]
    if corruptions:
        report.numbers["robustness"] = robustness(segmenter, frames, show)
    write_report(report, frames, predictor, out)
    return replace(report, folder=Path(out))


def run(
    bundle: ModelBundle | str | os.PathLike[str] | None, data: Sequence[str | Path], out: str | Path, **options: Any
) -> Path:
    """``report_on``, and the path of ``report.html``."""
    report_on(bundle, data, out, **options)
    return Path(out) / PAGE


def _usual_part(whole: Catalog, split_file: str | Path | None, bundle: ModelBundle | None) -> str:
    """The part that is scored where none is named: the test frames, or all where the model has seen none."""
    if split_file is not None:
        return "test"
    datasets = set() if bundle is None else trained_on(bundle)
    return "test" if datasets is None or datasets & set(whole.frames["dataset"]) else "all"


def compare(reports: Sequence[str | Path], out: str | Path | None = None) -> Ranking:
    """Rank models by the Dice of the same frames with a polyp, and say which cannot be told apart.

    Args:
        reports: folders that ``evaluate`` wrote, two or more.
        out: a JSON file for the ranking.

    Raises:
        UsageError: there is one report or none.
        PolypsegError: a folder contains no report, two have the same name, their frames differ, or none shows a polyp.
    """
    if len(reports) < 2:
        raise UsageError("compare: give two reports or more")
    tables: dict[str, pd.DataFrame] = {}
    for folder in [Path(report) for report in reports]:
        file = folder / "per_image.csv"
        if not file.is_file():
            raise PolypsegError(f"{file}: is missing; write it with `polypseg evaluate --out {folder}`")
        name = folder.resolve().name
        if name in tables:
            raise PolypsegError(f"{folder}: another report is called {name} too; rename one")
        tables[name] = _read_per_image(file)
    first = next(iter(tables.values()))
    for report, table in zip(reports, tables.values(), strict=True):
        if not table[["dataset", "frame_id"]].equals(first[["dataset", "frame_id"]]):
            raise PolypsegError(f"{report}: is of other frames than {reports[0]}; evaluate both on the same")
    ranking = rank({name: table["dice"].to_numpy() for name, table in tables.items()}, first["group"].tolist(), ALPHA)
    if out is not None:
        write_json(out, ranking_values(ranking))
    return ranking


def ranking_values(ranking: Ranking) -> dict[str, Any]:
    """A Ranking in plain types, for JSON."""
    enough = ranking.groups >= ranking.groups_needed
    return {
        "n": ranking.places[0].mean.n,
        "groups": ranking.groups,
        "groups_needed": ranking.groups_needed,
        "ranking": [
            {
                "name": place.name,
                "dice": place.mean.value,
                "low": _known(place.mean.low),
                "high": _known(place.mean.high),
                "n": place.mean.n,
                "letters": list(place.letters) if enough else [],
            }
            for place in ranking.places
        ],
        "comparisons": [
            {
                "better": better,
                "worse": worse,
                "difference": found.difference.value,
                "low": _known(found.difference.low) if enough else None,
                "high": _known(found.difference.high) if enough else None,
                "p_value": found.p_value,
                "adjusted_p_value": found.adjusted,
                "verdict": _verdict(ranking, found),
            }
            for (better, worse), found in ranking.comparisons.items()
        ],
        "rule": f"paired sign-flip test, Holm-adjusted; models that share a letter cannot be told apart at {ALPHA:g}; "
        "with fewer groups than are needed there is no verdict",
    }


def ranking_table(ranking: Ranking) -> str:
    """A Ranking as lines of text."""
    enough = ranking.groups >= ranking.groups_needed
    width = max(5, *(len(place.name) for place in ranking.places))
    lines = [f"{_count(ranking.places[0].mean.n, 'frame')} with a polyp, in {_count(ranking.groups, 'group')}"]
    if not enough:
        lines.append(
            f"too few groups for a verdict: with fewer than {ranking.groups_needed} the test cannot reach p = {ALPHA:g}"
        )
    told = "     cannot be told apart from those that share a letter" if enough else ""
    lines.append(f"{'model':{width}}  Dice    95 % interval{told}")
    for place in ranking.places:
        interval = _interval(place.mean, "")
        letters = " ".join(place.letters) if enough else ""
        lines.append(f"{place.name:{width}}  {place.mean.value:.4f}  {interval:16}  {letters}".rstrip())
    for (better, worse), found in ranking.comparisons.items():
        tested = f" ({_interval(found.difference, '+')}), p = {found.adjusted:.4f} adjusted" if enough else ""
        lines.append(f"{better} - {worse}: {found.difference.value:+.4f}{tested}: {_verdict(ranking, found)}")
    return "\n".join(lines)


def _verdict(ranking: Ranking, found: Comparison) -> str:
    """In words; where interval and test disagree, that too."""
    if ranking.groups < ranking.groups_needed:
        return "too few groups"
    apart = found.adjusted <= ALPHA
    without = found.difference.low > 0 or found.difference.high < 0
    if apart:
        return "told apart" if without else "told apart by the test, though the interval contains 0"
    if not without:
        return "not told apart"
    return "not told apart by the test, though the interval leaves out 0; the interval is of this pair alone"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _interval(found: Interval, sign: str) -> str:
    return "no interval" if np.isnan(found.low) else f"{found.low:{sign}.4f} to {found.high:{sign}.4f}"


def _known(bound: float) -> float | None:
    """An interval's bound for JSON: of one group of frames there is none."""
    return None if np.isnan(bound) else bound


def _read_per_image(file: Path) -> pd.DataFrame:
    """The columns that a comparison needs of the frames with a polyp, in an order that no evaluation decides."""
    columns = ["dataset", "frame_id", "group", "dice"]
    try:
        # Every name stays the string that it is: a frame may be called NA.
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        if "polyps" in table.columns:
            table = table[table["polyps"] != "0"]
        table = table[columns].map(plain_cell).astype({"dice": float})
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise PolypsegError(f"{file}: is not what `polypseg evaluate` wrote ({reason}); evaluate again") from error
    if table.empty:
        raise PolypsegError(f"{file}: {NO_POLYP}, so there is no Dice to compare")
    if not np.isfinite(table["dice"]).all():
        raise PolypsegError(f"{file}: has a frame with a polyp and without a Dice; evaluate again")
    return table.sort_values(["dataset", "frame_id"]).reset_index(drop=True)


def loss_of(bundle: ModelBundle) -> LossConfig:
    """The loss that the bundle was trained with.

    Raises:
        PolypsegError: what its recipe says is none.
    """
    values = (bundle.metadata.get("recipe") or {}).get("loss") or {}
    known = {one.name for one in fields(LossConfig)}
    if values.keys() - known or not all(isinstance(value, bool | int | float) for value in values.values()):
        raise PolypsegError(f"{bundle.folder}: its recipe has a loss that polypseg does not know; it cannot be scored")
    return LossConfig(**values)
