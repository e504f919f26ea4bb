"""From several trained networks to one bundle, by the mean of their weights or of their predictions.

Networks that were fine-tuned from one another lie close enough for a mean of weights: it predicts as fast as one of
them and generalises as an average over training does (stochastic weight averaging: Izmailov et al., UAI 2018; of whole
runs: Wortsman et al., Model soups, ICML 2022). Networks with different beginnings do not; their predictions can be
averaged, by an ensemble, which takes the time of all.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from polypseg import renamed, zoo
from polypseg.bundle import ModelBundle, merge_frames
from polypseg.data import read_all
from polypseg.data.splits import write_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.choosing import check_shows_polyp
from polypseg.evaluation.run import loss_of
from polypseg.evaluation.scoring import score_masks
from polypseg.evaluation.selection import split_of
from polypseg.files import commit
from polypseg.inference.runtimes.torch import check_weights
from polypseg.inference.segmenter import Segmenter
from polypseg.training.folder import CONFIG, LOG, SPLIT, logging_to, replacing, taken, write_yaml
from polypseg.training.pictures import draw_examples
from polypseg.training.result import device_name
from polypseg.training.scores import choose, test

log = logging.getLogger("polypseg")
# Of the first one's metadata.json, in an ensemble and, further, in one of weights.
KEPT = ("tta", "data", "split", "licence")
KEPT_OF_WEIGHTS = ("encoder_weights", "recipe")
State = Mapping[str, torch.Tensor]


def average(
    models: Sequence[str | Path],
    data: Sequence[str | Path],
    out: str | Path,
    split_file: str | Path | None = None,
    of: Literal["weights", "predictions"] = "weights",
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path:
    """Average trained networks, choose the operating point anew on validation, and test once.

    Args:
        models: two or more bundles or run folders, all by one split; for a mean of weights, each fine-tuned from
            another of them. The first gives the new one its preprocessing and ``output_stride``; it is named after
            ``out``.
        data: folders of the data sets they were trained on.
        out: the folder for the result.
        split_file: their split, where neither the first one's run folder nor its name gives it.
        of: ``weights`` makes one network of them, ``predictions`` an ensemble, whose members may be of any kind.
        overwrite: replace an earlier result in ``out``, which stands until the new one is whole.
        progress: show progress bars; by default where standard error is a terminal.

    Returns:
        The folder: ``config.yaml``, ``split.csv``, ``bundle/``, ``test.json``, ``per_image.csv``, ``predictions.png``,
        ``log.txt``.

    Raises:
        UsageError: there are fewer than two models.
        PolypsegError: one is an ensemble, was trained by another split or, for a mean of weights, has another network
            or preprocessing; or as ``train``.
    """
    of = renamed.value("of", of)
    folder = Path(out)
    show = sys.stderr.isatty() if progress is None else progress
    if len(models) < 2:
        raise UsageError("--model: name two or more models to average")
    bundles = [zoo.open(model) for model in models]
    first = bundles[0]
    for path, bundle in zip(models, bundles, strict=True):
        bundle.check_single()
        check_weights(bundle)
        if of == "weights":
            _check_alike(str(path), bundle, first)
    settings = {"models": [str(model) for model in models], "data": [str(one) for one in data], "of": of}
    with taken(folder, settings, (*models, *data, split_file), overwrite=overwrite):
        _average(bundles, settings, folder, split_file, show)
    return folder


def _average(
    bundles: Sequence[ModelBundle], settings: dict[str, Any], folder: Path, split_file: str | Path | None, show: bool
) -> None:
    """What ``average`` does in a folder that is its own. An earlier result in it stands until this one is whole."""
    started = time.monotonic()
    models, data, of, first = settings["models"], settings["data"], settings["of"], bundles[0]
    catalog, split_name, split_hash = split_of(read_all(data), split_file, first)
    for path, bundle in zip(models, bundles, strict=True):
        theirs = (bundle.metadata.get("split") or {}).get("hash")
        if theirs != split_hash:
            raise PolypsegError(
                f"{path}: was trained by another split than {split_name}, and may have learnt from its validation "
                "frames; average models of one split"
            )
    validation = catalog.of_split("val")
    check_shows_polyp(validation)
    with replacing(folder):
        write_yaml(folder / CONFIG, settings)
        write_split(catalog.frames, folder / SPLIT)
        with logging_to(folder / LOG):
            fresh = Segmenter(_made(folder, bundles, of))
            for path, bundle in zip(models, bundles, strict=True):
                # Not by a member's own int8, which the mean has not got yet: like is compared with like.
                alike = fresh.precision if of == "weights" else "auto"
                scores, _ = score_masks(Segmenter(bundle, precision=alike), validation, show)
                log.info("%s, on validation: dice %.4f", path, scores["dice"].mean())
            chosen = choose(fresh, catalog, show)
            test(chosen, loss_of(chosen.segmenter.bundle), catalog, folder, show)
            draw_examples(chosen.segmenter, catalog, folder)
            log.info("done in %.0f s: %s", time.monotonic() - started, folder)


def _made(folder: Path, bundles: Sequence[ModelBundle], of: str) -> ModelBundle:
    first = bundles[0]
    kept = (*KEPT, *KEPT_OF_WEIGHTS) if of == "weights" else KEPT
    details: dict[str, Any] = {key: first.metadata[key] for key in kept if key in first.metadata}
    details |= {"threshold_split": "validation", "commit": commit(), "device": device_name()}
    if of == "weights":
        made = ModelBundle.save(
            folder / "bundle", mean_of([bundle.weights() for bundle in bundles]), name=folder.name,
            architecture=first.architecture, preprocessing=first.preprocessing, operating_point=first.operating_point,
            averaged_from=[one.lineage() for one in bundles], **details,
        )  # fmt: skip
        known = [records for records in (one.frames() for one in bundles) if records is not None]
        return made.record_frames(merge_frames(*known)) if len(known) == len(bundles) else made
    members = {f"member-{number}": bundle for number, bundle in enumerate(bundles, 1)}
    return ModelBundle.join(
        folder / "bundle", members, name=folder.name, operating_point=first.operating_point, **details
    )


def mean_of(states: Sequence[State]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, computed in float64, in the first one's type; counters are the first one's.

    The running statistics of batch normalisation are averaged like the weights.

    Args:
        states: of networks of one architecture.
    """
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def _check_alike(path: str, bundle: ModelBundle, first: ModelBundle) -> None:
    frames = asdict(bundle.preprocessing), asdict(first.preprocessing)
    for what, name in (
        ("architecture", bundle.architecture.weights_differ_by(first.architecture)),
        ("preprocessing", next((key for key in frames[0] if frames[0][key] != frames[1][key]), None)),
    ):
        if name is not None:
            ours, theirs = (getattr(getattr(one, what), name) for one in (bundle, first))
            raise PolypsegError(
                f"{path}: its {what} has {name} {ours}, the first one's {theirs}; average models that "
                "were fine-tuned from one another, or make an ensemble (--of predictions)"
            )
