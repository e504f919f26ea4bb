"""The verb ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

from polypseg.cli.checks import check_data, check_models, check_split
from polypseg.cli.verb import Positional, Verb
from polypseg.inference.augmentation import Augmented
from polypseg.names import Part, Precision, Runtime


def evaluate(  # noqa: PLR0913  (an option each)
    bundle: str | None,
    data: list[str],
    out: str = "evaluation",
    split: Part | None = None,
    split_file: str | None = None,
    predictions: str | None = None,
    threshold: float | None = None,
    allow_train_frames: bool = False,
    corruptions: bool = False,
    runtime: Runtime = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    tta: Augmented | None = None,
    masks: str = "binary",
) -> None:
    """Score a model, or predictions of another program, under every definition, with intervals and a report.

    Writes report.html, report.json and per_image.csv into --out, and prints what was found and every definition with
    its value. Frames that the bundle was trained or chosen on are refused.

    Args:
        bundle: a bundle's or a run's folder; left out with --predictions.
        data: folders of data sets, with images/ and masks/.
        out: folder for report.json, per_image.csv and report.html.
        split: part of the split to score on; all takes every frame; null is test, but all for data that the bundle
            has not seen and for predictions without --split_file.
        split_file: a CSV of `polypseg data split`; else the split that the bundle was trained with.
        predictions: folder of masks or probability maps, one a frame, named by its stem.
        threshold: predictions only, probability at and above which a pixel is polyp, 0..1; null is 0.5.
        allow_train_frames: also score frames that the bundle was trained or chosen on; the report says so first.
        corruptions: also score corrupted frames (blur, darkness, highlights, ...); 40 times the work.
        runtime: what computes the network; auto takes the fastest that is there.
        device: auto, cpu, cuda or mps.
        precision: of the computation; auto takes the fastest that is there.
        tta: views that are averaged (test-time augmentation), for up to four times the work; the bundle's own by
            default.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data)
    check_models((bundle,))
    check_split(split_file)
    from polypseg.data import with_masks
    from polypseg.evaluation.report import lines
    from polypseg.evaluation.run import run

    page = run(
        bundle, with_masks(data, masks), out, split=split, split_file=split_file, predictions=predictions,
        threshold=threshold, allow_train_frames=allow_train_frames, corruptions=corruptions, runtime=runtime,
        device=device, precision=precision, tta=tta,
    )  # fmt: skip
    numbers = json.loads((Path(out) / "report.json").read_text(encoding="utf-8"))
    print(*lines(numbers), page, sep="\n")


VERB = Verb(
    evaluate,
    positional=Positional(
        "bundle", "?", "a bundle's or a run's folder, or a shipped model; left out with --predictions"
    ),
    examples=(
        "polypseg evaluate runs/two-cores --data data/Kvasir-SEG --out evaluation",
        "polypseg evaluate polypseg-realtime --data data/Kvasir-SEG data/CVC-ClinicDB",
        "polypseg evaluate --predictions other-model --data data/Kvasir-SEG --split_file split.csv",
    ),
    see=(("Evaluate", "../how-to/evaluate.md"), ("Report", "report.md")),
)
