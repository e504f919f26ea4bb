"""Videos of real colonoscopies; skipped where they are absent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.evaluation.video import score_video_files
from polypseg.io.video import VideoReader
from polypseg.operating_point import OperatingPoint
from polypseg.pipeline.video import predict_video
from polypseg.segmentation import Segmentation

pytestmark = pytest.mark.real

CLIPS = {"ldpolyp-clip": (53, 560, 480, 25), "polypgen-sequence-04": (48, 1380, 1080, 5)}


class Oracle:
    """Predicts each frame with filled ellipses in its annotated boxes, shrunk to ``share`` of their sides."""

    threshold = 0.5
    operating_point = OperatingPoint(0.5, 0.6)
    settings: ClassVar[dict[str, Any]] = {
        "model": "0" * 64,
        "threshold": 0.5,
        "runtime": "torch",
        "device": "cpu",
        "precision": "fp32",
    }

    def __init__(self, boxes: list[list[list[int]]], share: float = 1.0) -> None:
        self.boxes, self.share = boxes, share

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
        for frame, boxes in zip(frames, self.boxes, strict=True):
            drawn = np.zeros(frame.shape[:2], np.float32)
            for left, top, right, bottom in boxes:
                middle = (left + right) // 2, (top + bottom) // 2
                axes = round(self.share * (right - left) / 2), round(self.share * (bottom - top) / 2)
                cv2.ellipse(drawn, middle, axes, 0, 0, 360, (0.9,), -1)
            yield drawn

    def segmentation(
        self, probability: NDArray[np.float32], height: int, width: int, outside: NDArray[np.bool_] | None = None
    ) -> Segmentation:
        return Segmentation.from_probability(probability, self.threshold)


@pytest.mark.parametrize("name", CLIPS)
def test_clips_are_read_whole_as_opencv_reads_them(real_data: Path, name: str) -> None:
    count, width, height, rate = CLIPS[name]
    path = real_data / "video" / f"{name}.mp4"
    capture = cv2.VideoCapture(str(path))
    with VideoReader(path) as reader:
        assert (reader.info.width, reader.info.height, reader.info.fps, reader.info.frames) == (
            width,
            height,
            rate,
            count,
        )
        for frame in reader:
            assert frame.time == pytest.approx(frame.index / rate, abs=1e-6)
            expected = capture.read()[1][..., ::-1]
            assert np.abs(frame.pixels.astype(int) - expected).mean() < 2
        assert frame.index == count - 1 and reader.problem is None
    assert not capture.read()[0]


def test_lesions_of_the_annotated_clip_are_followed_and_scored(real_data: Path, tmp_path: Path) -> None:
    clip, boxes = (real_data / "video" / name for name in ("ldpolyp-clip.mp4", "ldpolyp-clip-boxes.json"))
    truth = [[box["bbox"] for box in frame] for frame in json.loads(boxes.read_text())["frames"]]
    late = [[] if index < 5 else frame for index, frame in enumerate(truth)]
    oracle: Any = Oracle(late)
    summary = predict_video(oracle, clip, tmp_path)
    scores = score_video_files(tmp_path / "ldpolyp-clip.jsonl", boxes)
    assert (scores.frames, scores.boxes) == (53, 61)
    assert scores.recall == dict.fromkeys(scores.recall, 44 / 61)  # without the four frames before it has a number
    assert set(scores.false_positives_per_frame.values()) == {0}
    assert sorted(lesion.frames for lesion in scores.lesions) == [8, 53]
    assert all(set(lesion.first_detection.values()) == {0.2} for lesion in scores.lesions)
    # The second lesion is in view for three more frames, too short a time for a number.
    confirmed = [lesion.confirmation["iou_0.5"] for lesion in scores.lesions]
    assert sorted(confirmed, key=str) == [0.36, None]
    assert [track["frames_seen"] for track in summary.tracks] == [48]
    assert scores.identity_switches == dict.fromkeys(scores.recall, 0) and scores.steadiness.count_changes == 1

    shrunk: Any = Oracle(truth, share=0.6)  # boxes of 0.36 of the area: found at 0.3, not at 0.5
    predict_video(shrunk, clip, tmp_path, save=(), overwrite=True)
    scores = score_video_files(tmp_path / "ldpolyp-clip.jsonl", boxes)
    assert {lesion.first_detection["iou_0.3"] for lesion in scores.lesions} == {0}
    assert scores.recall["any"] == scores.recall["iou_0.3"] == scores.recall["centre"] > 0.8
    assert scores.recall["iou_0.5"] == 0


def test_the_overlay_is_the_clip_with_the_polyp_drawn(real_data: Path, tmp_path: Path) -> None:
    clip = real_data / "video" / "polypgen-sequence-04.mp4"
    oracle: Any = Oracle([[[500, 400, 800, 700]]] * 48)
    predict_video(oracle, clip, tmp_path)
    with VideoReader(clip) as source, VideoReader(tmp_path / clip.name) as drawn:
        for before, after in zip(source, drawn, strict=True):
            assert before.pts == after.pts
            assert cv2.PSNR(before.pixels[750:1000], after.pixels[750:1000]) > 36
            if after.index < 2:  # it has no number yet
                continue
            yellow = after.pixels[545:555, 490:510].astype(int)
            assert np.abs(yellow - (255, 230, 0)).sum(2).min() < 90  # the outline's left end
