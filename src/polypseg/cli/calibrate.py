"""The verb ``calibrate``."""

from __future__ import annotations

from polypseg.cli.checks import check_data, check_models, check_split
from polypseg.cli.verb import Positional, Verb
from polypseg.inference.augmentation import Augmented
from polypseg.names import Objective, Part


def calibrate(
    bundle: str,
    data: list[str],
    split: Part = "val",
    split_file: str | None = None,
    objective: Objective = "lesion_f1",
    max_false_per_frame: float | None = None,
    alpha: float | None = None,
    tta: Augmented | None = None,
    allow_train_frames: bool = False,
    masks: str = "binary",
) -> None:
    """Choose a bundle's temperature and operating point on validation frames, and write them into it.

    Changes the bundle's hash, and drops what was measured with the former one.

    Args:
        bundle: a bundle's or a run's folder.
        data: folders of data sets, with images/ and masks/.
        split: part of the split to choose on.
        split_file: a CSV of `polypseg data split`; else the split that the bundle was trained with.
        objective: what min_confidence, from which on a region is a polyp, is best for: lesion_f1 (lesions found and
            regions right at IoU 0.3, polyp-free frames counted) or dice (of frames with a polyp).
        max_false_per_frame: in place of the objective, false regions a frame that are put up with to find most lesions.
        alpha: also find the threshold at which this share of a polyp's pixels is missed at most, 0..1.
        tta: views that are averaged (test-time augmentation) from now on; by default as before.
        allow_train_frames: also choose on frames that the bundle was trained or tested on; it is written down.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data)
    check_models((bundle,))
    check_split(split_file)
    from polypseg.data import with_masks
    from polypseg.evaluation.calibrate import calibrate as run
    from polypseg.evaluation.calibrate import describe

    found = run(
        bundle, with_masks(data, masks), split=split, split_file=split_file, objective=objective,
        max_false_per_frame=max_false_per_frame, alpha=alpha, tta=tta, allow_train_frames=allow_train_frames,
    )  # fmt: skip
    print(describe(found))


VERB = Verb(
    calibrate,
    positional=Positional("bundle", None, "a bundle's or a run's folder"),
    examples=(
        "polypseg calibrate runs/two-cores --data data/Kvasir-SEG --max_false_per_frame 0.1",
        "polypseg calibrate runs/two-cores --data data/Kvasir-SEG --alpha 0.1",
    ),
    see=(("Evaluate", "../how-to/evaluate.md#calibrate"), ("Bundle", "bundle.md")),
)
