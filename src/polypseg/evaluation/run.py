"""What ``polypseg evaluate`` and ``polypseg compare`` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polypseg.bundle import ModelBundle
from polypseg.data import read_all
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.evaluate import evaluate
from polypseg.evaluation.predictions import BundlePredictor, FolderPredictor, Predictor
from polypseg.evaluation.report import write_report
from polypseg.evaluation.robustness import robustness
from polypseg.evaluation.scoring import at_network_size
from polypseg.evaluation.selection import select
from polypseg.files import commit, disk_error, plain_cell, write_json
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.statistics import Interval, Ranking, rank
from polypseg.models.losses import LossConfig


def run(
    bundle: str | Path | None,
    data: Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "test",
    split_file: str | Path | None = None,
    predictions: str | Path | None = None,
    threshold: float | None = None,
    corruptions: bool = False,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    tta: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Evaluate a bundle, or predictions that another program wrote, and write the report.

    Args:
        bundle: a bundle's or a run's folder; None with ``predictions``.
        data: folders of data sets.
        out: folder for ``report.json``, ``per_image.csv`` and ``report.html``.
        split: ``train``, ``val``, ``test`` or ``all``.
        split_file: a CSV; by default the split that the bundle was trained with.
        predictions: a folder of masks or probability maps, one a frame.
        threshold: for predictions, 0..1; 0.5 by default. A bundle has its own.
        corruptions: also test robustness; 40 times the work.
        runtime, device, precision, tta: as of ``Segmenter``; for a bundle.
        progress: show progress bars; by default where standard error is a terminal.

    Returns:
        The path of ``report.html``.

    Raises:
        UsageError: neither or both of bundle and predictions are given, or an option fits only one of them or is out
            of its range.
        PolypsegError: the bundle, the data, a prediction or the folder stands in the way.
    """
    if (bundle is None) == (predictions is None):
        raise UsageError("evaluate: give either a bundle or --predictions")
    if bundle is not None and threshold is not None:
        raise UsageError("--threshold: a bundle has its own threshold; the option is for --predictions")
    if predictions is not None and corruptions:
        raise UsageError("--corruptions: needs a bundle, predictions cannot be made anew")
    show = sys.stderr.isatty() if progress is None else progress
    opened = None if bundle is None else ModelBundle.load(bundle)
    frames, provenance = select(read_all(data), split, split_file, opened)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)  # now, not after the work
    except OSError as error:
        raise disk_error(Path(out), error) from error
    network_size = None
    predictor: Predictor
    if opened is not None:
        segmenter = Segmenter(opened, runtime, device, precision, tta=tta)
        predictor = BundlePredictor(segmenter)
        network_size = at_network_size(segmenter, frames, loss_of(opened))
    else:
        assert predictions is not None
        predictor = FolderPredictor(predictions, frames, 0.5 if threshold is None else threshold)
    report = evaluate(
        predictor, frames, network_size=network_size, provenance={**provenance, "commit": commit()}, progress=show
    )
    if corruptions:
        report.numbers["robustness"] = robustness(segmenter, frames, show)
    return write_report(report, frames, predictor, out)


def compare(reports: Sequence[str | Path], out: str | Path | None = None) -> Ranking:
    """Rank models by the Dice of the same frames, and say which cannot be told apart.

    Args:
        reports: folders that ``evaluate`` wrote, two or more.
        out: a JSON file for the ranking.

    Raises:
        UsageError: there is one report or none.
        PolypsegError: a folder holds no report, two have the same name, or their frames differ.
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
    ranking = rank({name: table["dice"].to_numpy() for name, table in tables.items()}, first["group"].tolist())
    if out is not None:
        write_json(out, ranking_values(ranking))
    return ranking


def ranking_values(ranking: Ranking) -> dict[str, Any]:
    """A Ranking in plain types, for JSON."""
    return {
        "ranking": [
            {
                "name": place.name,
                "dice": place.mean.value,
                "low": _known(place.mean.low),
                "high": _known(place.mean.high),
                "n": place.mean.n,
                "letters": list(place.letters),
            }
            for place in ranking.places
        ],
        "comparisons": [
            {
                "better": better,
                "worse": worse,
                "difference": found.difference.value,
                "low": _known(found.difference.low),
                "high": _known(found.difference.high),
                "p_value": found.p_value,
                "adjusted_p_value": found.adjusted,
            }
            for (better, worse), found in ranking.comparisons.items()
        ],
        "rule": "paired sign-flip test, Holm-adjusted; models that share a letter cannot be told apart at 0.05",
    }


def ranking_table(ranking: Ranking) -> str:
    """A Ranking as lines of text."""
    width = max(len(place.name) for place in ranking.places)
    lines = [f"{'model':{width}}  Dice    95 % interval     cannot be told apart from those that share a letter"]
    for place in ranking.places:
        interval = _interval(place.mean, "")
        lines.append(f"{place.name:{width}}  {place.mean.value:.4f}  {interval:16}  {' '.join(place.letters)}")
    for (better, worse), found in ranking.comparisons.items():
        interval = _interval(found.difference, "+")
        lines.append(
            f"{better} - {worse}: {found.difference.value:+.4f} ({interval}), p = {found.adjusted:.4f} adjusted"
        )
    return "\n".join(lines)


def _interval(found: Interval, sign: str) -> str:
    return "no interval" if np.isnan(found.low) else f"{found.low:{sign}.4f} to {found.high:{sign}.4f}"


def _known(bound: float) -> float | None:
    """An interval's bound for JSON: of one group of frames there is none."""
    return None if np.isnan(bound) else bound


def _read_per_image(file: Path) -> pd.DataFrame:
    """The columns that a comparison needs, in an order that does not depend on the evaluation's."""
    columns = ["dataset", "frame_id", "group", "dice"]
    try:
        # Every name stays the string that it is: a frame may be called NA.
        table = pd.read_csv(file, dtype=str, keep_default_na=False)[columns].map(plain_cell).astype({"dice": float})
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise PolypsegError(f"{file}: is not what `polypseg evaluate` wrote ({reason}); evaluate again") from error
    if table.empty or not np.isfinite(table["dice"]).all():
        raise PolypsegError(f"{file}: has no rows, or one without a Dice; evaluate again")
    return table.sort_values(["dataset", "frame_id"]).reset_index(drop=True)


def loss_of(bundle: ModelBundle) -> LossConfig:
    """The loss that the bundle was trained with."""
    return LossConfig(**bundle.metadata.get("recipe", {}).get("loss", {}))
