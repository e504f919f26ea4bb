"""A bundle for others: its measured results inside it, its model card, and its place on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polypseg import hub, zoo
from polypseg.bundle import ModelBundle
from polypseg.errors import PolypsegError
from polypseg.export.card import CARD_FILE, render, write_card
from polypseg.files import read_json

# Of report.json. Left out are the groups, whose names may identify patients, and what only a chart needs.
_KEPT = (
    "n", "warnings", "threshold", "headline", "polyp_free", "detection", "definitions", "pixels", "boundary", "lesions",
    "robustness",
)  # fmt: skip
_PROVENANCE = (
    "bundle_hash", "split", "datasets", "data_hash", "groups", "intervals", "runtime", "precision", "device", "threads",
    "tta", "commit", "date",
)  # fmt: skip
_SPEED = (
    "runtime", "device", "precision", "variant", "threads", "network_p50_ms", "end_to_end_p50_ms", "stream_fps",
)  # fmt: skip


def record_results(
    bundle: ModelBundle,
    evaluations: Mapping[str, str | Path],
    speed: str | Path | None = None,
    failures: Sequence[str] = (),
) -> ModelBundle:
    """Write what was measured of a bundle into its ``metadata.json``, and its model card beside it.

    Args:
        bundle: what was measured.
        evaluations: folders that ``polypseg evaluate`` wrote for it, by the title to give each; the first is the
            headline.
        speed: folder that ``polypseg benchmark`` wrote for it.
        failures: sentences, each on a kind of frame that the model gets wrong; they are published.

    Returns:
        The bundle as it is now.

    Raises:
        PolypsegError: a report is missing, or is of another model; or the bundle cannot be written.
    """
    bundle.check_own()
    found = [_evaluation(title, Path(folder) / "report.json", bundle) for title, folder in evaluations.items()]
    timed = None if speed is None else _speed(Path(speed) / "benchmark.json", bundle)
    updated = bundle.update(evaluations=found, speed=timed, failures=list(failures))
    write_card(updated)
    return updated


def push_to_hub(bundle: ModelBundle | str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a bundle with its members, its exports and its model card to the Hugging Face hub.

    The card is the bundle's ``README.md``, which may have been edited; it is written anew where there is none. The rest
    of the folder stays here. ``metadata.json`` is uploaded as it is, with the recipe and the paths in it, and so is
    ``frames.csv`` with the names of the frames it was trained by.

    Args:
        bundle: a bundle, or what ``polypseg.zoo.open`` takes.
        repository: ``owner/name``; made where there is none.
        private: whether a repository that is made is closed to others.

    Returns:
        What names this very upload for ``polypseg.load``: ``hf://owner/name@commit``.

    Raises:
        UsageError: ``repository`` is no ``owner/name``.
        PolypsegError: the bundle is not whole, or the hub cannot be reached or refuses.
    """
    opened = zoo.open(bundle.folder if isinstance(bundle, ModelBundle) else bundle)  # as it is now
    for export in (export for network in opened.networks for export in network.exports):
        export.verify()
    files: dict[str, Path | bytes] = {name: opened.folder / name for name in opened.files}
    card = opened.folder / CARD_FILE
    files[CARD_FILE] = card if card.is_file() else render(opened).encode()
    return hub.upload(files, repository, private=private, message=f"{opened.name}, bundle {opened.hash[:12]}")


def _evaluation(title: str, file: Path, bundle: ModelBundle) -> dict[str, Any]:
    report = _of_this(file, "evaluate", bundle)
    curves = {
        section: {key: value for key, value in report[section].items() if key not in ("curve", "curves")}
        for section in ("froc", "frames_roc")
    }
    calibration = {key: value for key, value in report["calibration"].items() if key != "bins"}
    return {
        "title": title,
        **{key: report[key] for key in _KEPT if key in report},
        **curves,
        "strata": [one for one in report["strata"] if one["by"] != "group"],
        "calibration": calibration,
        "provenance": {key: report["provenance"][key] for key in _PROVENANCE if key in report["provenance"]},
    }


def _speed(file: Path, bundle: ModelBundle) -> dict[str, Any]:
    report = _of_this(file, "benchmark", bundle)
    facts = ("processor", "cores", "frame_size", "date", "commit", "bundle_hash")
    rows = [{key: row[key] for key in _SPEED} for row in report["rows"] if row["calls"]]
    return {"rows": rows, "provenance": {key: report["provenance"][key] for key in facts}}


def _of_this(file: Path, verb: str, bundle: ModelBundle) -> dict[str, Any]:
    """A report, when it is of this very bundle."""
    report = read_json(file)
    try:
        measured = report["provenance"]["bundle_hash"]
    except (TypeError, KeyError) as error:
        raise PolypsegError(f"{file}: is no report of `polypseg {verb}` on a bundle; write it again") from error
    if measured != bundle.hash:
        raise PolypsegError(f"{file}: was measured with another bundle than {bundle.folder}; polypseg {verb} it again")
    return dict(report)
