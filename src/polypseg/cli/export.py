"""The verb ``export``."""

from __future__ import annotations

from typing import Literal

from polypseg.cli.checks import check_data, check_models, check_split
from polypseg.cli.verb import Positional, Verb
from polypseg.extras import naming_extras


@naming_extras("export")
def export(
    bundle: str,
    format: Literal["openvino", "onnx"] = "openvino",
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    data: list[str] | None = None,
    split_file: str | None = None,
    max_drop: float = 0.005,
    calibration_frames: int = 300,
    overwrite: bool = False,
    masks: str = "binary",
) -> None:
    """Export a bundle's network for another runtime, verify it against PyTorch, and keep it in the bundle.

    It is kept only if it passes. Prints what the comparison found, and the file.

    Args:
        bundle: a bundle's or a run's folder.
        format: runtime to export for; onnx has no bf16.
        precision: of the export; bf16 also halves the file, int8 needs --data.
        data: folders of data sets; verifies on their validation frames, and calibrates int8 on their training frames;
            phantom frames verify without it.
        split_file: a CSV of `polypseg data split`; else the split that the bundle was trained with.
        max_drop: mean Dice on validation that the export may lose; more is refused.
        calibration_frames: int8 only, most training frames to calibrate on.
        overwrite: replace an export of the same format and precision.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data or ())
    check_models((bundle,))
    check_split(split_file)
    from polypseg.data import with_masks
    from polypseg.export.run import describe
    from polypseg.export.run import export as run

    made = run(
        bundle, format, precision, data=with_masks(data or (), masks), split_file=split_file, max_drop=max_drop,
        calibration_frames=calibration_frames, overwrite=overwrite,
    )  # fmt: skip
    print(f"{describe(made.record)}\n{made.model}")


VERB = Verb(
    export,
    positional=Positional("bundle", None, "a bundle's or a run's folder"),
    examples=(
        "polypseg export runs/two-cores",
        "polypseg export runs/two-cores --format openvino --precision int8 --data data/Kvasir-SEG",
    ),
    see=(("Export and run fast", "../how-to/export.md"),),
)
