"""How steadily videos are marked: on clips with polyps, and on clips made of frames without any.

python benchmarks/video.py --videos ../shared/data/video --free ../shared/data/PolypGen --prefix C4

A clip is a file; where ``<stem>-boxes.json`` lies beside it, its lesions are scored too. Of each polyp-free frame a
clip is made in which the view moves and turns slowly and comes a little nearer, or recedes; none of them is kept. What
is counted is what the overlay shows: the definitions stand in ``polypseg.evaluation.video``. Rows are added to
``results/video.csv``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from results import add_rows

import polypseg
from polypseg.data import read
from polypseg.evaluation.video import VideoScores, score_video, steadiness
from polypseg.files import commit, read_json
from polypseg.io.video import VideoInfo, VideoWriter
from polypseg.pipeline.video import predict_video

FPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="bundle or run; the shipped model by default")
    parser.add_argument("--videos", type=Path, help="folder of clips")
    parser.add_argument("--free", type=Path, nargs="*", default=[], help="data sets, whose polyp-free frames are taken")
    parser.add_argument("--prefix", default="", help="only frames whose names begin so")
    parser.add_argument("--most", type=int, default=40, help="polyp-free frames of a data set, evenly chosen")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a clip made of one")
    parser.add_argument("--min_confidence", type=float, default=None, help="in place of the model's own")
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/video.csv"))
    options = parser.parse_args()
    segmenter = polypseg.load(options.model, threads=options.threads, min_confidence=options.min_confidence)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in sorted(options.videos.glob("*.mp4")) if options.videos else []:
            records, tracker = predicted(segmenter, clip, Path(folder), options.smoothing)
            boxes = clip.with_name(f"{clip.stem}-boxes.json")
            scores = score_video(records, read_json(boxes)["frames"]) if boxes.is_file() else None
            rows.append({"clip": clip.stem, "clips": 1, **steady([records]), **lesions(scores), **tracker})
        for data in options.free:
            several = []
            for number, frame in enumerate(polyp_free(data, options.prefix, options.most)):
                clip = Path(folder) / "free.mp4"
                write(clip, moving(frame, round(options.seconds * FPS), number))
                records, tracker = predicted(segmenter, clip, Path(folder), options.smoothing)
                several.append(records)
            name = f"polyp-free frames of {data.name} {options.prefix}".strip()
            rows.append({"clip": name, "clips": len(several), **steady(several), **lesions(None), **tracker})
    origin = {
        "date": date.today().isoformat(), "commit": commit(), "model": segmenter.bundle.name,
        "bundle_hash": segmenter.hash, "runtime": segmenter.runtime.name, "precision": segmenter.precision,
        "tta": segmenter.tta, "smoothing": options.smoothing,
    }  # fmt: skip
    for row in rows:
        print(json.dumps(row))
    add_rows(options.out, [{**origin, **row} for row in rows])


def predicted(
    segmenter: Any, clip: Path, folder: Path, smoothing: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of a clip, and the tracker's thresholds."""
    out = folder / "out"
    made = predict_video(segmenter, clip, out, save=(), overwrite=True, smoothing=smoothing)
    lines = (out / f"{clip.stem}.jsonl").read_text(encoding="utf-8").splitlines()
    point = segmenter.operating_point
    thresholds = {"confidence": point.confidence, "min_confidence": point.min_confidence}
    return [json.loads(line) for line in lines], thresholds | {
        name: made.timeline["tracker"][name] for name in ("start", "keep")
    }


def steady(clips: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """``Steadiness`` of several clips together, and on how many of them anything is shown."""
    each = [steadiness(records) for records in clips]
    seconds = sum(one.seconds for one in each)
    numbers = sum(one.numbers for one in each)
    return {
        "frames": sum(one.frames for one in each), "seconds": round(seconds, 3), "numbers": numbers,
        "numbers_per_minute": round(60 * numbers / seconds, 3),
        "clips_marked": sum(one.frames_shown > 0 for one in each),
        "frames_shown": sum(one.frames_shown for one in each),
        "count_changes": sum(one.count_changes for one in each),
        "changes_per_second": round(sum(one.changes_per_second * one.seconds for one in each) / seconds, 4),
    }  # fmt: skip


def lesions(scores: VideoScores | None) -> dict[str, Any]:
    """What is written of a clip with boxes, at any overlap; empty without them."""
    names = ("lesions", "found", "recall", "false_per_frame", "identity_switches", "first_detection", "confirmation")
    if scores is None:
        return dict.fromkeys(names)
    first, confirmed = (
        " ".join(str(getattr(one, name)["any"]) for one in scores.lesions)
        for name in ("first_detection", "confirmation")
    )
    values = (
        len(scores.lesions), scores.lesions_found["any"], round(scores.recall["any"] or 0, 4),
        round(scores.false_positives_per_frame["any"], 4), scores.identity_switches["any"], first, confirmed,
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


def polyp_free(data: Path, prefix: str, most: int) -> Iterator[NDArray[np.uint8]]:
    """The frames of a data set whose masks are empty, H×W×3 uint8 RGB, at most so many."""
    catalog = read(data)
    named = [index for index in range(len(catalog)) if catalog.row(index).frame_id.startswith(prefix)]
    free = [index for index in named if not catalog.mask(index).any()]
    for place in np.unique(np.linspace(0, len(free) - 1, min(most, len(free))).round().astype(int)):
        yield catalog.frame(free[place])


def moving(frame: NDArray[np.uint8], count: int, number: int) -> Iterator[NDArray[np.uint8]]:
    """``count`` frames of a view that moves slowly; ``number`` decides which way."""
    height, width = frame.shape[:2]
    direction = 2.4 * number
    for index in range(count):
        along = index / max(count - 1, 1) - 0.5
        nearer = 1.06 + 0.08 * along * (1 if number % 2 else -1)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 3 * along, nearer)
        matrix[:, 2] = matrix[:, 2] + 0.08 * along * np.array(
            [width * math.cos(direction), height * math.sin(direction)]
        )
        yield np.asarray(cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_LINEAR), np.uint8)


def write(path: Path, frames: Iterator[NDArray[np.uint8]]) -> None:
    """Write frames as a video."""
    writer = None
    for number, frame in enumerate(frames):
        if writer is None:
            writer = VideoWriter(path, VideoInfo(frame.shape[1], frame.shape[0], FPS, Fraction(1, FPS)))
        writer.write(frame, number)
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main()
