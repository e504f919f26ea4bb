"""The verb ``benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from polypseg.cli.checks import check_data, check_models, check_split
from polypseg.cli.verb import Positional, Verb
from polypseg.names import Part

Timed = Literal["torch", "compile", "openvino", "onnx"]  # as benchmark.speed.RUNTIMES


def benchmark(
    bundle: str | None = None,
    data: list[str] | None = None,
    split: Part = "val",
    split_file: str | None = None,
    out: str = "benchmark",
    threads: int = 0,
    frame_size: str = "1280x720",
    repeats: int = 10,
    runtimes: list[Timed] | None = None,
    masks: str = "binary",
) -> None:
    """Time a model by every runtime and precision that this machine can run it with.

    They take turns. Prints the table, and writes benchmark.csv and benchmark.json into --out: milliseconds of one frame
    at a time, and frames a second with four in flight (``net fps`` of the network, ``whole fps`` from frame to polyps).

    Args:
        bundle: a bundle's or a run's folder; the model that ships by default.
        data: folders of data sets, to time on their frames and show the mean Dice.
        split: part of the split to take.
        split_file: a CSV of `polypseg data split`; else the split that the bundle was trained with.
        out: folder for benchmark.csv and benchmark.json.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        frame_size: width x height of the frames that are timed, pixels.
        repeats: timed calls of each kind in each of 5 rounds.
        runtimes: what is timed, as --runtimes torch onnx; torch, openvino and onnx by default, compile (torch.compile,
            slow to start) only on request.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data or ())
    check_models((bundle,))
    check_split(split_file)
    from polypseg.benchmark import speed
    from polypseg.data import with_masks

    report = speed.benchmark(
        bundle, data=with_masks(data or (), masks), split=split, split_file=split_file, out=out, threads=threads,
        frame_size=frame_size,
        repeats=repeats, runtimes=runtimes or speed.USUAL,
    )  # fmt: skip
    print(speed.table(report["rows"]))
    print(f"{Path(out) / 'benchmark.csv'}\n{Path(out) / 'benchmark.json'}")


VERB = Verb(
    benchmark,
    positional=Positional("bundle", "?", "a bundle's or a run's folder; the model that ships by default"),
    examples=(
        "polypseg benchmark",
        "polypseg benchmark runs/two-cores --data data/Kvasir-SEG --runtimes torch openvino",
    ),
    see=(("Speed", "../explanation/speed.md"),),
)
