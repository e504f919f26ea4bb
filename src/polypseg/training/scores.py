"""Choose the operating point on validation, then test: each step takes a bundle opened, and gives one.

The test frames are scored once, when nothing is left to be chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from polypseg.catalog import Catalog
from polypseg.evaluation.choosing import Maps, choose_point
from polypseg.evaluation.scoring import DEFINITIONS, NO_POLYP, Scores, score
from polypseg.files import atomic_write, commit, csv_cells, write_json
from polypseg.inference.segmenter import Segmenter
from polypseg.models.losses import LossConfig
from polypseg.training.result import device_name

log = logging.getLogger("polypseg")


@dataclass(frozen=True)
class Chosen:
    """A model at its operating point.

    Attributes:
        segmenter: of the bundle as it is now.
        validation: what the network said of the validation frames, so that it is not asked again; None where nothing
            had to be chosen on them.
    """

    segmenter: Segmenter
    validation: Maps | None = None


def choose(segmenter: Segmenter, catalog: Catalog, progress: bool) -> Chosen:
    """Choose the operating point on the validation frames, and put it into the bundle.

    Args:
        segmenter: of a bundle that may be changed.
        catalog: all frames, with their splits.
        progress: show progress bars.

    Raises:
        PolypsegError: a frame cannot be read, or the disk refuses.
    """
    maps = Maps.of(segmenter, catalog.of_split("val"), progress)
    chosen = segmenter.bundle.update(**operating_point(maps, "on validation", progress))
    return Chosen(Segmenter(chosen), maps)


def operating_point(maps: Maps, where: str, progress: bool) -> dict[str, Any]:
    """Choose the operating point on frames, and log it.

    Args:
        maps: what the network said of them.
        where: what frames they are, for people, as "on validation".
        progress: show progress bars.

    Returns:
        What was chosen and how, as ``ModelBundle.update`` takes it.
    """
    entries = choose_point(maps, progress=progress)
    point, choice = entries["operating_point"], entries["operating_point_choice"]
    found = choice["chosen"]
    log.info(
        "threshold %.2f, smallest region %g of the frame, holes %s, chosen %s (Dice %.4f there)",
        point.threshold, point.min_area, "filled" if point.fill_holes else "kept", where, found["dice"],
    )  # fmt: skip
    log.info(
        "polyps are regions with a %s of %.4g or more, chosen there: lesions found %.3f, regions right %.3f, false "
        "regions a frame %.3f%s",
        point.confidence, point.min_confidence, found["found"], found["right"], found["false_per_frame"],
        f", polyp-free frames marked {found['polyp_free_marked']:.3f}" if choice["polyp_free"] else
        "; there is no polyp-free frame among them",
    )  # fmt: skip
    return entries


def test(chosen: Chosen, loss: LossConfig, catalog: Catalog, folder: Path, progress: bool) -> None:
    """Score validation and test, as far as there are, and write what ``write_scores`` does.

    Args:
        chosen: the model.
        loss: to report.
        catalog: all frames, with their splits.
        folder: of the run.
        progress: show progress bars.

    Raises:
        PolypsegError: a frame cannot be read, or the disk refuses.
    """
    segmenter, maps = chosen.segmenter, chosen.validation
    results: dict[str, Scores] = {}
    for split in ("val", "test"):
        if split not in set(catalog.frames["split"]):
            continue
        kept = maps.predictions(segmenter.operating_point) if maps is not None and split == "val" else None
        results[split] = score(segmenter, catalog.of_split(split), loss, progress, kept)
        log_scores(split, results[split])
    metrics = {split: result.summary for split, result in results.items()}
    tables = [result.per_image.assign(split=split) for split, result in results.items()]
    write_scores(folder, segmenter, metrics, DEFINITIONS, tables)


def log_scores(what: str, scores: Scores) -> None:
    """Log the summary of some frames' scores."""
    known = {name: value for name, value in scores.summary.items() if value is not None and name != "n"}
    values = "  ".join(f"{name} {value:.4f}" for name, value in known.items())
    log.info("%s (n = %d): %s", what, len(scores.per_image), values)
    if scores.summary["dice"] is None:
        log.info("%s: %s, so that there is no Dice", what, NO_POLYP)


def write_scores(
    folder: Path,
    segmenter: Segmenter,
    metrics: dict[str, Any],
    definitions: dict[str, str],
    tables: Sequence[pd.DataFrame],
) -> None:
    """Write ``test.json`` and ``per_image.csv``, and the metrics into the bundle.

    Args:
        folder: of the run.
        segmenter: what was scored.
        metrics: by the part of the frames, each by its name.
        definitions: of the metrics, by name.
        tables: a row a frame, of each part.
    """
    bundle = segmenter.bundle
    provenance = {
        "bundle_hash": bundle.hash, "split": bundle.metadata["split"], "data": bundle.metadata["data"],
        "threshold": bundle.threshold, "operating_point": asdict(bundle.operating_point), "commit": commit(),
        "device": device_name(), "precision": segmenter.precision,
    }  # fmt: skip
    write_json(folder / "test.json", {"metrics": metrics, "definitions": definitions, "provenance": provenance})
    with atomic_write(folder / "per_image.csv", "w") as file:
        csv_cells(pd.concat(tables)).to_csv(file, index=False, float_format="%.6f")
    bundle.update(metrics=metrics, metric_definitions=definitions)
