"""The command line: one function a verb, its typed options as the function's arguments, no logic.

What a verb needs is imported inside it, so that ``polypseg --help`` answers at once.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from jsonargparse import ArgumentParser

from polypseg.errors import PolypsegError, UsageError
from polypseg.training.recipe import Recipe
from polypseg.version import __version__

log = logging.getLogger("polypseg")
# Options that may be given several times; --data in other verbs.
REPEATABLE = {"predict": ("--model", "--save"), "benchmark": ("--data", "--runtimes")}
INTERRUPTED = 130  # the status of a program that Ctrl-C ended, as shells have it
FLAGS = ("--resume", "--overwrite", "--corruptions", "--live")  # true when they stand alone
Saved = Literal["mask", "probability", "overlay", "contours", "json", "coco", "csv"]  # as inference.outputs.Output
Augmented = Literal["none", "flip", "flips", "small"]  # as inference.augmentation.Augmented
Timed = Literal["torch", "compile", "openvino", "onnx"]  # as evaluation.speed.RUNTIMES
SEVERAL = {"--save": get_args(Saved), "--runtimes": get_args(Timed)}  # options that take several words at once


class _Parser(ArgumentParser):
    """Takes no abbreviations; says what is wrong with the arguments in one line, without the whole usage: status 2."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = _with_nearest(" ".join(message.split()), self._option_string_actions)
        self.exit(2, f"{self.prog.replace(' [options]', '')}: {line} (see --help)\n")


def _with_nearest(line: str, options: Collection[str]) -> str:
    """An error of the parser, with the nearest of what could have been meant, and without Python's types."""
    if unknown := re.match(r"[Uu]nrecognized arguments:.*?(--[^\s=]+)", line):
        return line + _nearest(unknown[1], options)
    if choice := re.search(r"(.*)invalid choice: '(.*)' \(choose from (.*)\)$", line):
        return _choose(choice[1], choice[2], choice[3])
    if choice := re.search(
        r"(Parser key \S+:? ).*?Expected an? (?:typing\.)?Literal\[(.*?)\]\. Got value: (\S+)", line
    ):
        return _choose(choice[1], choice[3], choice[2])
    return line


def _choose(where: str, given: str, listed: str) -> str:
    names = [name.strip("' ") for name in listed.split(",")]
    return f"{where}{given!r} is unknown; choose one of {', '.join(names)}{_nearest(given, names)}"


def _nearest(word: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(word, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


def data_list() -> None:
    """List the data sets that polypseg knows."""
    from polypseg.data.download import DATASETS

    for entry in DATASETS.values():
        way = "download" if entry.url else ("drawn by polypseg" if entry.name == "phantom" else "by hand")
        frames = "any number" if entry.frames == 0 else f"{entry.frames} frames"
        print(f"{entry.name:14} {frames:12} {way:18} {entry.title}\n{'':14} {entry.terms}\n{'':14} {entry.homepage}")


def data_download(name: str, out: str = "data", url: str | None = None, count: int = 200, seed: int = 0) -> None:
    """Download a data set, verify its checksum and unpack it; or draw phantom frames.

    Args:
        name: kvasir-seg or phantom; `polypseg data list` shows all.
        out: folder that will hold the data set's folder.
        url: a mirror to download from; the checksum stays the same.
        count: phantom only, frames to draw.
        seed: phantom only, decides every frame.
    """
    from polypseg.data import download, phantom

    if name == phantom.NAME:
        folder = phantom.write(Path(out) / phantom.NAME, count, seed)
    else:
        folder = download.download(name, Path(out), url=url)
    print(folder)


def data_check(
    data: list[str], split: str | None = None, out: str = "data-check", seed: int = 42, masks: str = "binary"
) -> int:
    """Audit data sets: pairs, damage, sizes, grey masks, boxes, duplicates, leakage across a split.

    Args:
        data: folder of a data set, with images/ and masks/; may be given several times.
        split: a CSV of `polypseg data split`, or a split's name, to check for leakage.
        out: folder for audit.json and contact-sheet.png.
        seed: decides a split that is given by name.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    from polypseg.data import read_all, with_masks
    from polypseg.data.audit import audit, pictures
    from polypseg.data.splits import make_split, read_split
    from polypseg.files import write_json
    from polypseg.visualization.gallery import draw_contact_sheet, load_panel

    sources = with_masks(data, masks)
    table = None
    if split is not None:
        table = read_split(Path(split)) if split.endswith(".csv") else make_split(split, read_all(sources), seed=seed)
    result = audit(sources, table)
    print(result.table())
    write_json(Path(out) / "audit.json", result.to_dict())
    print(Path(out) / "audit.json")
    panels = [load_panel(*picture) for picture in pictures(result)]
    if panels:
        draw_contact_sheet(panels, Path(out) / "contact-sheet.png", "what `data check` found")
        print(Path(out) / "contact-sheet.png")
    return 0 if result.ok else 1


def data_split(
    data: list[str],
    name: Literal["seed", "grouped", "pranet", "medico", "kfold"],
    out: str = "split.csv",
    seed: int = 42,
    folds: int = 5,
    fold: int = 0,
    val_fraction: float = 0.1,
    lists: str | None = None,
    masks: str = "binary",
) -> None:
    """Split data sets into train, val and test, and write the split as CSV.

    Args:
        data: folder of a data set, with images/ and masks/; may be given several times.
        name: seed (70/15/15, random), grouped (near duplicates and sequences never parted), pranet, medico, kfold.
        out: the CSV, with columns dataset, frame_id and split.
        seed: decides every random choice.
        folds: kfold only, number of folds.
        fold: kfold only, the test fold, 0-based.
        val_fraction: pranet and medico only, share of the published training frames that becomes val; 0..1.
        lists: pranet and medico only, folder of the published lists; else splits/ in or beside the data.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    from polypseg.data import read_all, with_masks
    from polypseg.data.splits import hash_split, make_split, write_split

    catalog = read_all(with_masks(data, masks))
    catalog.check_masks()
    table = make_split(
        name, catalog, seed=seed, folds=folds, fold=fold, val_fraction=val_fraction,
        lists=None if lists is None else Path(lists),
    )  # fmt: skip
    write_split(table, Path(out))
    counts = table["split"].value_counts()
    shares = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test") if split in counts)
    print(f"{out}: {shares}; hash {hash_split(table)}")


def data_show(data: list[str], out: str = "frames.png", count: int = 12, seed: int = 0, masks: str = "binary") -> None:
    """Draw frames beside their masks and boxes.

    Args:
        data: folder of a data set, with images/ and masks/; may be given several times.
        out: the PNG.
        count: frames to draw.
        seed: decides which.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    import numpy as np

    from polypseg.data import read_all, with_masks
    from polypseg.visualization.gallery import Panel, draw_frames

    catalog = read_all(with_masks(data, masks))
    chosen = np.random.default_rng(seed).permutation(len(catalog))[:count]
    panels = [
        Panel(
            f"{row.frame_id} ({row.width}×{row.height})",
            catalog.frame(index),
            catalog.mask(index),
            boxes=row.boxes,
        )
        for index, row in ((int(index), catalog.row(int(index))) for index in sorted(chosen))
    ]
    draw_frames(panels, out, title=f"{', '.join(data)}: {len(panels)} of {len(catalog)} frames")
    print(out)


def train(
    recipe: Recipe,
    data: list[str],
    out: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    folds: int | None = None,
    masks: str = "binary",
) -> None:
    """Train a network by a recipe, test it once, and write a run folder with its bundle.

    Args:
        recipe: what to do.
        data: folder of a data set, with images/ and masks/; may be given several times.
        out: the run folder; runs/NAME by default.
        resume: go on from the last complete epoch of the run in --out.
        overwrite: replace an earlier run in --out, once the new one is known to work.
        folds: train as many networks, each on all folds of the frames but one, and make one ensemble of them.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    from polypseg.data import with_masks
    from polypseg.training.processes import is_first

    data = with_masks(data, masks)

    if folds is None:
        from polypseg.training.run import train as run

        folder = run(recipe, data, out, resume=resume, overwrite=overwrite)
    else:
        from polypseg.training.folds import train_folds

        folder = train_folds(recipe, data, folds, out, resume=resume, overwrite=overwrite)
    if is_first():  # of several processes, one speaks
        print(folder)


def average(
    models: list[str],
    data: list[str],
    out: str,
    split_file: str | None = None,
    of: Literal["weights", "answers"] = "weights",
    overwrite: bool = False,
    masks: str = "binary",
) -> None:
    """Average networks' weights or their answers, choose anew on validation, and test once.

    Args:
        models: bundles' or runs' folders, two or more, all trained by one split.
        data: folder of a data set that they were trained on; may be given several times.
        out: folder for the new bundle and its scores; names the model too.
        split_file: a CSV of `polypseg data split`; else the split that the first one was trained with.
        of: weights, of networks that trained on from one another, to one network; or answers, of any, to an ensemble.
        overwrite: replace an earlier result in --out, once the new one is whole.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    from polypseg.data import with_masks
    from polypseg.training.average import average as run

    print(run(models, with_masks(data, masks), out, split_file, of, overwrite=overwrite))


def tune(
    recipe: Recipe,
    data: list[str],
    trials: int = 30,
    space: str | None = None,
    storage: str | None = None,
    study: str | None = None,
    out: str | None = None,
    masks: str = "binary",
) -> None:
    """Search a recipe's fields for the best validation Dice, and write the best as a recipe; needs polypseg[tune].

    Args:
        recipe: what is not searched.
        data: folder of a data set, with images/ and masks/; may be given several times.
        trials: trials of the study in all, those of earlier calls and of other processes among them.
        space: a YAML file of fields and their values; null searches learning rates, weight decay, averaging, loss,
            augmentation and batch size.
        storage: URL of the study's database, as SQLAlchemy takes it; a file in --out by default.
        study: the study's name in the database; the recipe's by default.
        out: folder for best.yaml, trials.csv and the trials; runs/STUDY-tune by default.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    from polypseg.data import with_masks
    from polypseg.training.tune import tune as run

    print(run(recipe, with_masks(data, masks), trials, space=space, storage=storage, study=study, out=out))


def evaluate(
    bundle: str | None,
    data: list[str],
    out: str = "evaluation",
    split: Literal["train", "val", "test", "all"] | None = None,
    split_file: str | None = None,
    predictions: str | None = None,
    threshold: float | None = None,
    allow_train_frames: bool = False,
    corruptions: bool = False,
    runtime: Literal["auto", "openvino", "onnx", "torch"] = "auto",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    tta: Augmented | None = None,
    masks: str = "binary",
) -> None:
    """Score a model, or predictions of another program, under every definition, with intervals and a report.

    Args:
        bundle: a bundle's or a run's folder; left out with --predictions.
        data: folder of a data set, with images/ and masks/; may be given several times.
        out: folder for report.json, per_image.csv and report.html.
        split: part of the split to score on; all takes every frame; null is test, but all for data that the bundle
            has not seen and for predictions without --split_file.
        split_file: a CSV of `polypseg data split`; else the split that the bundle was trained with.
        predictions: folder of masks or probability maps, one a frame, named by its stem.
        threshold: predictions only, probability at and above which a pixel is polyp, 0..1; null is 0.5.
        allow_train_frames: also score frames that the bundle was trained or chosen on; the report says so first.
        corruptions: also score spoilt frames (blur, darkness, highlights, ...); 40 times the work.
        runtime: what computes the network; auto takes the fastest that is there.
        device: auto, cpu, cuda or mps.
        precision: of the computation; auto takes the fastest that is there.
        tta: test-time augmentation: none, flip (left-right, twice the work), flips (also top-bottom, four times) or
            small (turned, at two thirds of the size, two fifths more work); null is the bundle's own.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
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


def compare(reports: list[str], out: str | None = None) -> None:
    """Rank models that were evaluated on the same frames, and say which cannot be told apart.

    Args:
        reports: folders that `polypseg evaluate` wrote, two or more.
        out: a JSON file for the ranking.
    """
    from polypseg.evaluation import run

    print(run.ranking_table(run.compare(reports, out)))


def calibrate(
    bundle: str,
    data: list[str],
    split: Literal["train", "val", "test", "all"] = "val",
    split_file: str | None = None,
    objective: Literal["lesion_f1", "dice"] = "lesion_f1",
    max_false_per_frame: float | None = None,
    alpha: float | None = None,
    tta: Augmented | None = None,
    allow_train_frames: bool = False,
    masks: str = "binary",
) -> None:
    """Choose a bundle's temperature and operating point on validation frames, and write them into it.

    Args:
        bundle: a bundle's or a run's folder.
        data: folder of a data set, with images/ and masks/; may be given several times.
        split: part of the split to choose on.
        split_file: a CSV of `polypseg data split`; else the split that the bundle was trained with.
        objective: what min_confidence, from which on a region is a polyp, is best for: lesion_f1 (lesions found and
            regions right at IoU 0.3, polyp-free frames counted) or dice (of frames with a polyp).
        max_false_per_frame: in place of the objective, false regions a frame that are put up with to find most lesions.
        alpha: also find the threshold at which this share of a polyp's pixels is missed at most, 0..1.
        tta: test-time augmentation to run the bundle with from now on: none, flip, flips or small; null keeps its own.
        allow_train_frames: also choose on frames that the bundle was trained or tested on; it is written down.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    from polypseg.data import with_masks
    from polypseg.evaluation.calibrate import calibrate as run

    found = run(
        bundle, with_masks(data, masks), split=split, split_file=split_file, objective=objective,
        max_false_per_frame=max_false_per_frame, alpha=alpha, tta=tta, allow_train_frames=allow_train_frames,
    )  # fmt: skip
    point, choice = found.operating_point, found.metadata["operating_point_choice"]
    print(f"chosen on {found.metadata['threshold_split']}")
    print(
        f"{found.folder}: temperature {found.temperature:g}, threshold {point.threshold:g}, smallest region "
        f"{point.min_area:g} of the frame, holes {'filled' if point.fill_holes else 'kept'}, least {point.confidence} "
        f"of a polyp {point.min_confidence:.4g}"
    )
    free = f"{choice['polyp_free']} of them polyp-free" if choice["polyp_free"] else "none of them polyp-free"
    for name, one in (
        (f"on these {choice['n']} frames, {free}", choice["chosen"]),
        ("without a least confidence", choice["before"]),
    ):
        marked = f", {one['polyp_free_marked']:.3f} of the polyp-free frames marked" if choice["polyp_free"] else ""
        print(
            f"{name}: {one['found']:.3f} of {choice['lesions']} lesions found, {one['right']:.3f} of the regions right "
            f"(IoU 0.3), {one['false_per_frame']:.3f} false regions a frame{marked}, Dice {one['dice']:.4f}"
        )
    promise = found.metadata["conformal"]
    if promise:
        print(
            f"guarantee: at threshold {promise['threshold']:.4f} at most {promise['alpha']:g} of a polyp is missed in "
            f"expectation; there {promise['missed_share']:.4f} of it is missed and {promise['predicted_area']:.1%} of "
            f"the frame is marked (n = {promise['n']})"
        )


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

    Args:
        bundle: a bundle's or a run's folder.
        format: runtime to export for; onnx has no bf16.
        precision: of the export; bf16 also halves the file, int8 needs --data.
        data: folder of a data set; verifies on its validation frames, and calibrates int8 on its training frames;
            phantom frames verify without it.
        split_file: a CSV of `polypseg data split`; else the split that the bundle was trained with.
        max_drop: mean Dice on validation that the export may lose; more is refused.
        calibration_frames: int8 only, most training frames to calibrate on.
        overwrite: replace an export of the same format and precision.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    from polypseg.data import with_masks
    from polypseg.export.run import describe
    from polypseg.export.run import export as run

    made = run(
        bundle, format, precision, data=with_masks(data or (), masks), split_file=split_file, max_drop=max_drop,
        calibration_frames=calibration_frames, overwrite=overwrite,
    )  # fmt: skip
    print(f"{describe(made.record)}\n{made.model}")


def predict(
    sources: list[str],
    model: list[str] | None = None,
    out: str = "predictions",
    save: list[Saved] | None = None,
    runtime: Literal["auto", "openvino", "onnx", "torch"] = "auto",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    threads: int = 0,
    tta: Augmented | None = None,
    threshold: float | None = None,
    min_confidence: float | None = None,
    min_area: float | None = None,
    fill_holes: bool | None = None,
    batch_size: int | None = None,
    smoothing: float = 0.0,
    resume: bool = False,
    overwrite: bool = False,
    live: bool = False,
    engine: Literal["local", "ray"] | None = None,
    address: str | None = None,
    workers: int = 0,
    partition: int = 128,
    memory: int = 512,
) -> int:
    """Segment images, folders, globs, videos, DICOM files, what a camera sees, or whole archives.

    Args:
        sources: what is segmented.
        model: a bundle's or a run's folder; given several times, an ensemble; the model that ships by default.
        out: folder for the outputs, named by the sources' stems: STEM.png (the mask) and STEM.json of an image,
            STEM.mp4, STEM.jsonl and STEM.timeline.json of a video, STEM.seg.dcm besides of a DICOM file.
        save: outputs of images, as --save mask json csv (mask and json by default): mask (STEM.png, 0 and 255),
            probability (STEM.probability.png, 16 bits, 65535 is 1), overlay (STEM.overlay.jpg; of a video STEM.mp4),
            contours (STEM.geojson, pixels), json (STEM.json), coco (coco.json) and csv (predictions.csv) of the run.
        runtime: what computes the network; auto takes the fastest that is there, and says why.
        device: auto, cpu, cuda or mps.
        precision: of the computation; auto takes the fastest that is there.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: test-time augmentation: none, flip (left-right, twice the work), flips (also top-bottom, four times) or
            small (turned, at two thirds of the size, two fifths more work); null is the bundle's own.
        threshold: probability at and above which a pixel belongs to a region, 0..1; null is the bundle's own.
        min_confidence: a region's least confidence to be a polyp, 0..1; null is the bundle's own.
        min_area: a region's least size, share of the frame; null is the bundle's own.
        fill_holes: whether holes in a region are filled; null is as the bundle has it.
        batch_size: frames computed at once; null is 1 for pictures and 4 for a video.
        smoothing: videos only, weight of the earlier frames in each frame's answer, 0 (none) to below 1.
        resume: keep outputs that are complete and were made by the same model from the same files; make the others.
        overwrite: replace outputs that are there already.
        live: drop late frames rather than lag, and print latency, as for a camera anyway; a video is played like one;
            the first camera is meant where SOURCES names none.
        engine: of an archive: local (this process) or ray (many, here or on a cluster; needs polypseg[ray]); given, or
            with a manifest or a URL among SOURCES, the outputs are Parquet partitions and masks; null is local.
        address: of a Ray cluster, host:6379 or auto; null is RAY_ADDRESS, or else Ray is started here for the run.
        workers: with --engine ray, processes with a model each; 0 is one a GPU, or as many as the CPUs allow.
        partition: archives only, frames of a partition: what is done again, for the most, after a crash.
        memory: archives only, what the frames in flight in one worker may take, MiB.
    """
    from polypseg.pipeline.options import PredictOptions
    from polypseg.pipeline.predict import predict as run

    options = PredictOptions(
        save=save, runtime=runtime, device=device, precision=precision, threads=threads, tta=tta, threshold=threshold,
        min_confidence=min_confidence, min_area=min_area, fill_holes=fill_holes, batch_size=batch_size,
        smoothing=smoothing, resume=resume, overwrite=overwrite, live=live, engine=engine, address=address,
        workers=workers, partition=partition, memory=memory,
    )  # fmt: skip
    return run(sources, out, options, model=model or ())


def benchmark(
    bundle: str | None = None,
    data: list[str] | None = None,
    split: Literal["train", "val", "test", "all"] = "val",
    split_file: str | None = None,
    out: str = "benchmark",
    threads: int = 0,
    frame_size: str = "1280x720",
    repeats: int = 10,
    runtimes: list[Timed] | None = None,
    masks: str = "binary",
) -> None:
    """Time a model by every runtime and precision that this machine can run it with.

    Args:
        bundle: a bundle's or a run's folder; the model that ships by default.
        data: folder of a data set, to time on its frames and tell the mean Dice; may be given several times.
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
    from polypseg.benchmark import speed
    from polypseg.data import with_masks

    report = speed.benchmark(
        bundle, data=with_masks(data or (), masks), split=split, split_file=split_file, out=out, threads=threads,
        frame_size=frame_size,
        repeats=repeats, runtimes=runtimes or speed.USUAL,
    )  # fmt: skip
    print(speed.table(report["rows"]))
    print(f"{Path(out) / 'benchmark.csv'}\n{Path(out) / 'benchmark.json'}")


def serve(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    state: str = "polypseg-state",
    token: str | None = None,
    runtime: Literal["auto", "openvino", "onnx", "torch"] = "auto",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    threads: int = 0,
    tta: Augmented | None = None,
    queue: int = 32,
    batch_size: int = 4,
    timeout: float = 30.0,
    max_mib: int = 32,
    max_pixels: int = 20_000_000,
    max_job_mib: int = 4096,
    max_video_seconds: float = 14400.0,
    keep_days: float | None = None,
) -> None:
    """Serve a model to programs and, as a page, to people, on this computer; needs the extra polypseg[serve].

    Args:
        model: a bundle's or a run's folder; the model that ships by default.
        host: address to listen on; any other than this computer's own needs a token.
        port: TCP port; 0 takes a free one.
        state: folder for jobs, their files, and corrections.
        token: what requests must carry (Authorization: Bearer TOKEN), 16 characters or more; better given as
            POLYPSEG_TOKEN, as other users of this computer see command lines.
        runtime: what computes the network; auto takes the fastest that is there, and says why.
        device: auto, cpu, cuda or mps.
        precision: of the computation; auto takes the fastest that is there.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: test-time augmentation: none, flip (left-right, twice the work), flips (also top-bottom, four times) or
            small (turned, at two thirds of the size, two fifths more work); null is the bundle's own.
        queue: frames that may be waited for at once; more requests are answered 429.
        batch_size: frames computed at once, if so many wait; none waits for others.
        timeout: seconds from a frame's arrival to its answer; longer is answered 504.
        max_mib: largest file of a frame, MiB.
        max_pixels: most pixels of a frame, whether alone, in a DICOM file or in a video.
        max_job_mib: most that the files of one job may hold, MiB.
        max_video_seconds: longest video, seconds.
        keep_days: days after which a job that has ended is removed, with its results; null keeps them.
    """
    from polypseg.serve.run import serve as run
    from polypseg.serve.settings import MIB, Settings

    settings = Settings(
        Path(state), token or os.environ.get("POLYPSEG_TOKEN") or None, queue, batch_size, timeout, max_mib * MIB,
        max_pixels, max_job_mib * MIB, max_video_seconds, keep_days,
    )  # fmt: skip
    run(settings, host, port, model, runtime, device, precision, threads, tta)


def models() -> None:
    """List the models that ship with polypseg: size, network, scores with intervals, place."""
    from polypseg import zoo

    print(zoo.table(zoo.shipped()))


def demo(data: list[str] | None = None, out: str = "demo", recipe_file: str | None = None) -> None:
    """Walk through everything: phantom frames (or your data), audit, split, training, test, pictures.

    Args:
        data: folder of a data set, with images/ and masks/; may be given several times; phantom frames are drawn
            without one.
        out: folder for everything that is made; an earlier run in it is replaced.
        recipe_file: the recipe to train by, a YAML file; null takes recipes/smoke.yaml.
    """
    from polypseg.training.recipe import shipped_recipe

    recipe_file = recipe_file or os.path.relpath(shipped_recipe("smoke"))
    folder = Path(out)
    split, run = str(folder / "split.csv"), str(folder / "run")
    if data is None:
        _step("data", "download", "phantom", "--out", out)
    named = [word for one in data or [str(folder / "phantom")] for word in ("--data", one)]
    _step("data", "show", *named, "--out", str(folder / "frames.png"))
    _step("data", "split", *named, "--name", "grouped", "--out", split)
    _step("data", "check", *named, "--split", split, "--out", str(folder / "check"))
    _step("train", "--config", recipe_file, *named, "--split", split, "--out", run, "--overwrite")
    scores = json.loads((folder / "run" / "test.json").read_text())["metrics"]["test"]
    print(f"\nDice on {scores['n']} frames that training never saw: {scores['dice']:.3f}")
    print(f"curves:      {folder / 'run' / 'curves.png'}\npredictions: {folder / 'run' / 'predictions.png'}")


def _step(*arguments: str) -> None:
    """Run one verb as a user would type it, and show it."""
    print(f"\n$ polypseg {shlex.join(arguments)}", flush=True)
    status = _run(list(arguments))
    if status:
        raise PolypsegError(f"polypseg {arguments[0]} {arguments[1]}: ended with status {status}; see above")


DATA_STEPS = {
    "list": data_list,
    "download": data_download,
    "check": data_check,
    "split": data_split,
    "show": data_show,
}
VERBS = {
    "train": train,
    "tune": tune,
    "average": average,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "compare": compare,
    "export": export,
    "predict": predict,
    "benchmark": benchmark,
    "serve": serve,
    "models": models,
    "demo": demo,
}
# Arguments without a name: the option of the function, how often it stands there, and its help.
POSITIONAL = {
    data_download: ("name", None, "data set; `polypseg data list` shows all"),
    evaluate: ("bundle", "?", "a bundle's or a run's folder; left out with --predictions"),
    calibrate: ("bundle", None, "a bundle's or a run's folder"),
    export: ("bundle", None, "a bundle's or a run's folder"),
    average: ("models", "+", "bundles' or runs' folders, two or more, all trained by one split"),
    compare: ("reports", "+", "folders that `polypseg evaluate` wrote, two or more"),
    benchmark: ("bundle", "?", "a bundle's or a run's folder; the model that ships by default"),
    predict: (
        "sources",
        "*",
        "images, videos, DICOM files, folders (their own files, or those of their images/), globs ('**' too), a "
        "camera (camera:0, 0 or a URL), or archives (s3://bucket/prefix or any URL of fsspec; manifest.csv)",
    ),
}


def build_parser(arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser of all verbs; the options of only those that occur in ``arguments`` are built, as that is slow."""
    about = "Read, check, split and show data sets."
    parser = _Parser(prog="polypseg", description="Polyp segmentation in colonoscopy frames. Research use only.")
    parser.add_argument("--version", action="version", version=f"polypseg {__version__}")
    verbs = parser.add_subcommands(required=True, dest="verb")
    steps = _Parser(description=about)
    verbs.add_subcommand("data", steps, help=about)
    data_verbs = steps.add_subcommands(required=True, dest="step")
    for names, group in ((DATA_STEPS, data_verbs), (VERBS, verbs)):
        for name, function in names.items():
            verb = _verb(function) if name in arguments else _Parser()
            group.add_subcommand(name, verb, help=_summary(function))
    return parser


def _verb(function: Any) -> ArgumentParser:
    parser = _Parser(description=_summary(function))
    parser.add_argument("--config", action="config", help="a YAML file with options; those given here override it")
    skip: set[str | int] = {"recipe"}
    if function in POSITIONAL:
        name, count, meaning = POSITIONAL[function]
        parser.add_argument(name, nargs=count, help=meaning)
        skip.add(name)
    parser.add_function_arguments(function, skip=skip)
    if function in (train, tune):
        parser.usage = f"polypseg {function.__name__} --config RECIPE --data DIR [--out DIR] [options]"
        parser.add_class_arguments(Recipe, None)
    return parser


def _summary(function: Any) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _run(arguments: list[str]) -> int:
    parser = build_parser(arguments)
    prepared, either = _prepare(arguments)
    options = parser.instantiate(parser.parse_args(prepared))
    if options.verb == "data":
        chosen = options.data[options.data.step]
        function: Any = DATA_STEPS[options.data.step]
    else:
        chosen, function = options[options.verb], VERBS[options.verb]
    values = {key: value for key, value in vars(chosen).items() if key not in ("config", "step")}
    if either:
        _settle(values, POSITIONAL[function][0], either)
    if function in (train, tune):
        recipe = {key: values.pop(key) for key in list(values) if key in Recipe.__dataclass_fields__}
        values["recipe"] = Recipe(**recipe)
    status = function(**values)
    return int(status or 0)


def _check_utf8(word: str) -> None:
    """Refuse a name that could neither be printed nor be written into a JSON file."""
    shown = os.fsencode(word).decode("utf-8", "backslashreplace")
    if shown != word:
        raise UsageError(f"{shown}: is not UTF-8; rename it")


def _prepare(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Gather repeated options into one list, let flags stand alone, and ``--print_config`` print its comments.

    Returns:
        The arguments for the parser; and the words among an option's values that name a file or folder too, each with
        its option.
    """
    rest: list[str] = []
    gathered: dict[str, list[str]] = {}
    either: dict[str, str] = {}
    repeatable = REPEATABLE.get(arguments[0] if arguments else "", ("--data",))
    coming = list(reversed(arguments))
    while coming:
        word = coming.pop()
        option, equals, value = word.partition("=")
        if option in repeatable:
            if not equals and (not coming or coming[-1].startswith("--")):
                raise UsageError(f"{option}: names nothing; see --help")
            if option not in gathered:
                rest.append(option)
            values = gathered.setdefault(option, [])
            values.append(value if equals else coming.pop())
            while coming and coming[-1] in SEVERAL.get(option, ()):
                values.append(coming.pop())
                if os.path.exists(values[-1]):
                    either[values[-1]] = option
        elif word in FLAGS and not (coming and coming[-1].lower() in ("true", "false")):
            rest.append(f"{word}=true")
        else:
            rest.append("--print_config=comments" if word == "--print_config" else word)
    for option, values in gathered.items():
        rest[rest.index(option)] = f"{option}={json.dumps(values)}"
    return rest, either


def _settle(values: dict[str, Any], name: str, either: dict[str, str]) -> None:
    """Take words that name a file besides an option's value for what is otherwise missing; refuse what is not certain.

    Args:
        values: the verb's arguments, which are changed.
        name: of the argument without a name.
        either: the words, each with its option.

    Raises:
        UsageError: both are possible.
    """
    word, option = next(iter(either.items()))
    given = values[name]
    if given or not (isinstance(given, list) or len(either) == 1):
        raise UsageError(
            f"{option} {word}: {word} is also a file or folder here; write ./{word} for that, or {option}={word}"
        )
    values[name] = list(either) if isinstance(given, list) else word
    for one, of in either.items():
        values[of.lstrip("-")].remove(one)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``polypseg`` with these arguments, or the process's own; return the exit status.

    0: done. 1: the work failed, with one line that says which file and why. 2: the arguments are wrong. 130: Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        for word in given:
            _check_utf8(word)
        return _run(given)
    except UsageError as error:
        print(f"polypseg: {error}", file=sys.stderr)
        return 2
    except PolypsegError as error:
        print(f"polypseg: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            "polypseg: interrupted; what was complete is kept, train and predict go on with --resume, tune as it is",
            file=sys.stderr,
        )
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
