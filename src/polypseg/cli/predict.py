"""The verb ``predict``."""

from __future__ import annotations

from typing import Literal

from polypseg.cli.checks import check_models
from polypseg.cli.verb import Positional, Verb
from polypseg.inference.augmentation import Augmented
from polypseg.names import Precision, Runtime

Saved = Literal["mask", "probability", "overlay", "contours", "json", "coco", "csv"]  # as io.outputs.Output


def predict(  # noqa: PLR0913  (an option each)
    sources: list[str],
    model: list[str] | None = None,
    out: str = "predictions",
    save: list[Saved] | None = None,
    runtime: Runtime = "auto",
    device: str = "auto",
    precision: Precision = "auto",
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

    Writes the chosen outputs into --out; originals are never touched. Prints what was found. A source that cannot be
    read is reported in one line and skipped; the exit status is then 1.

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
        tta: views that are averaged (test-time augmentation), for up to four times the work; the bundle's own by
            default.
        threshold: probability at and above which a pixel belongs to a region, 0..1; the bundle's own by default.
        min_confidence: a region's least confidence to be a polyp, 0..1; the bundle's own by default.
        min_area: a region's least size, share of the frame; the bundle's own by default.
        fill_holes: whether holes in a region are filled; the bundle's own by default.
        batch_size: frames computed at once; by default 1 for pictures and 4 for a video.
        smoothing: videos only, weight of the earlier frames in each frame's prediction, 0 (none) to below 1.
        resume: keep outputs that are complete and were made by the same model from the same files; make the others.
        overwrite: replace outputs that are there already.
        live: drop late frames rather than lag, and print latency, as for a camera anyway; a video is played like one;
            the first camera is meant where SOURCES names none.
        engine: of an archive: local (this process) or ray (many, here or on a cluster; needs polypseg[ray]); given, or
            with a manifest or a URL among SOURCES, the outputs are Parquet partitions and masks; local by default.
        address: of a Ray cluster, host:6379 or auto; by default RAY_ADDRESS, or else Ray is started here for the run.
        workers: with --engine ray, processes with a model each; 0 is one a GPU, or as many as the CPUs allow.
        partition: archives only, frames of a partition: what is done again, for the most, after a crash.
        memory: archives only, what the frames in flight in one worker may take, MiB.
    """
    check_models(model or ())
    from polypseg.pipeline.options import PredictOptions
    from polypseg.pipeline.predict import predict as run

    options = PredictOptions(
        save=save, runtime=runtime, device=device, precision=precision, threads=threads, tta=tta, threshold=threshold,
        min_confidence=min_confidence, min_area=min_area, fill_holes=fill_holes, batch_size=batch_size,
        smoothing=smoothing, resume=resume, overwrite=overwrite, live=live, engine=engine, address=address,
        workers=workers, partition=partition, memory=memory,
    )  # fmt: skip
    return run(sources, out, options, model=model or ())


VERB = Verb(
    predict,
    positional=Positional(
        "sources",
        "*",
        "images, videos, DICOM files, folders (their own files, or those of their images/), globs ('**' too), a "
        "camera (camera:0, 0 or a URL), or archives (s3://bucket/prefix or any URL of fsspec; manifest.csv)",
    ),
    examples=(
        "polypseg predict frame.jpg --save overlay json",
        "polypseg predict data/Kvasir-SEG 'more/**/*.png' --model runs/two-cores --out predictions",
        "polypseg predict exam.mp4 --smoothing 0.5 --resume",
        "polypseg predict camera:0 --live",
        "polypseg predict study/ --min_confidence 0.8 --min_area 0.001",
        "polypseg predict s3://bucket/prefix --engine ray --workers 8",
    ),
    see=(
        ("Segment images", "../how-to/predict.md"),
        ("videos and cameras", "../how-to/video.md"),
        ("DICOM", "../how-to/dicom.md"),
        ("archives", "../how-to/archives.md"),
    ),
)
