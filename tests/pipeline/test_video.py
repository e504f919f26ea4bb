"""A whole video: what is written, and that no interruption loses or doubles a frame.

Run as a program, this file segments a video with a stand-in model, so that the tests can interrupt a real process.
"""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tqdm import tqdm

import polypseg
from polypseg.errors import PolypsegError, UsageError
from polypseg.io.video import VideoInfo, VideoReader, VideoWriter, finish_mp4
from polypseg.io.video_overlay import MARK, draw_polyps, place_labels
from polypseg.operating_point import OperatingPoint
from polypseg.pipeline.threads import Stages
from polypseg.pipeline.video import predict_video
from polypseg.segmentation import Segmentation

COUNT = 30
TIMES = [40 * index + (index % 3) for index in range(COUNT)]  # milliseconds; not quite even


@dataclass
class StandIn:
    """Takes what is red for polyp; has what ``predict_video`` uses of a Segmenter."""

    delay: float = 0.0
    fail_at: int | None = None
    seen: int = 0
    threshold: float = 0.5
    precision: str = "fp32"
    tta: str = "none"

    @property
    def operating_point(self) -> OperatingPoint:
        return OperatingPoint(self.threshold)

    @property
    def settings(self) -> dict[str, Any]:
        made_with = {"runtime": "torch", "device": "cpu", "precision": self.precision, "tta": self.tta}
        return {"model": "0" * 64, "threshold": self.threshold, **made_with}

    def probabilities(self, frames: Iterable[NDArray[np.uint8]], batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
        for frame in frames:
            if self.seen == self.fail_at:
                raise RuntimeError("the network broke")
            self.seen += 1
            time.sleep(self.delay)
            small = cv2.resize(frame, (48, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
            yield np.clip((small[..., 0] - small[..., 1]) / 200 + 0.2, 0, 1).astype(np.float32)

    def segmentation(
        self, probability: NDArray[np.float32], height: int, width: int, outside: NDArray[np.bool_] | None = None
    ) -> Segmentation:
        return Segmentation.from_probability(cv2.resize(probability, (width, height)), self.threshold)  # type: ignore[arg-type]


def predict(path: Path, out: Path, segmenter: Any = None, **options: Any) -> Any:
    return predict_video(segmenter or StandIn(), path, out, **options)


def picture(index: int) -> NDArray[np.uint8]:
    """A red disc that moves and flickers, on green."""
    drawn = np.full((72, 96, 3), (40, 110, 50), np.uint8)
    radius = 9 + 3 * (index % 2)
    cv2.circle(drawn, (16 + 2 * index, 36), radius, (230, 30, 30), -1)
    return drawn


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    writer = VideoWriter(folder / "part.mp4", VideoInfo(96, 72, 25.0, Fraction(1, 1000)))
    for index, milliseconds in enumerate(TIMES):
        writer.write(picture(index), milliseconds)
    writer.close()
    finish_mp4(folder / "part.mp4", folder / "exam.mp4")
    return folder / "exam.mp4"


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def check_overlay(file: Path) -> None:
    """Every frame once, at its own time, with the polyp outlined."""
    with VideoReader(file) as reader:
        frames = list(reader)
    assert [round(frame.time * 1000) for frame in frames] == TIMES and reader.problem is None
    for frame in frames:
        ring = np.abs(frame.pixels.astype(int) - picture(frame.index)).sum(2) > 60
        centre = 16 + 2 * frame.index
        assert ring[36 - 16 : 36 + 16, max(0, centre - 16) : centre + 16].mean() > 0.03


def check_no_thread_is_left() -> None:
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("polypseg")] == []


# ---- what is written ------------------------------------------------------------------------------------


def test_a_line_a_frame_an_overlay_and_a_timeline(clip: Path, tmp_path: Path) -> None:
    summary = predict(clip, tmp_path / "out")
    assert names(tmp_path / "out") == {"exam.mp4", "exam.jsonl", "exam.timeline.json"}
    records = lines_of(tmp_path / "out" / "exam.jsonl")
    assert [record["frame"] for record in records] == list(range(COUNT))
    assert [round(record["time"] * 1000) for record in records] == TIMES
    with VideoReader(clip) as reader:
        for frame, record in zip(reader, records, strict=True):
            prediction = StandIn().segmentation(next(StandIn().probabilities([frame.pixels])), 72, 96)
            confirmed = frame.time >= 0.15 and frame.index >= 2
            expected = [{"id": 1 if confirmed else None, **polyp.to_dict()} for polyp in prediction.polyps]
            assert record["polyps"] == expected and len(expected) == 1
            assert record["candidates"] == record["carried"] == []
            assert set(record["quality"]) == {"sharpness", "glare", "likeness", "poor"}
            assert (record["source"], record["width"], record["height"]) == ("exam.mp4", 96, 72)
    check_overlay(tmp_path / "out" / "exam.mp4")
    timeline = json.loads((tmp_path / "out" / "exam.timeline.json").read_text())
    assert timeline == summary.timeline and summary.frames == COUNT and summary.computed == COUNT
    assert timeline["source"] == "exam.mp4" and timeline["model"] == "0" * 64 and timeline["problem"] is None
    assert "Research use only" in timeline["intended_use"]
    (track,) = timeline["tracks"]
    assert (track["id"], track["start"], track["end"]) == (1, 0.0, TIMES[-1] / 1000)
    assert track["frames_seen"] == COUNT
    largest = max(records, key=lambda record: record["polyps"][0]["area"])
    assert track["largest_view"]["frame"] == largest["frame"]
    assert track["largest_view"]["box"] == largest["polyps"][0]["box"]
    check_no_thread_is_left()


def test_without_the_overlay_the_rest_is_the_same(clip: Path, tmp_path: Path) -> None:
    predict(clip, tmp_path / "with")
    predict(clip, tmp_path / "without", save=())
    assert names(tmp_path / "without") == {"exam.jsonl", "exam.timeline.json"}
    for name in names(tmp_path / "without"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_records_are_a_segmenters_predictions(clip: Path, exported: Any, tmp_path: Path, runtime: str) -> None:
    segmenter = polypseg.load(exported.folder, runtime=runtime, device="cpu", precision="fp32")
    predict(clip, tmp_path / "out", segmenter)
    records = lines_of(tmp_path / "out" / "exam.jsonl")
    assert any(record["polyps"] for record in records)
    streamed = segmenter.stream(str(clip))
    with VideoReader(clip) as reader:
        for frame, record, other in zip(reader, records, streamed, strict=True):
            alone = segmenter.segment(frame.pixels)
            assert abs(other.probability - alone.probability).max() < 1e-4
            assert len(record["polyps"]) == len(alone.polyps)
            for polyp, expected in zip(record["polyps"], alone.polyps, strict=True):
                assert polyp["confidence"] == pytest.approx(expected.confidence, abs=1e-3)
                assert polyp["area"] == pytest.approx(expected.area, abs=3)
    assert records[0]["model"] == exported.hash


def test_smoothing_is_an_exponential_average(clip: Path, tmp_path: Path) -> None:
    predict(clip, tmp_path, smoothing=0.6, save=())
    average: Any = None
    with VideoReader(clip) as reader:
        for frame, record in zip(reader, lines_of(tmp_path / "exam.jsonl"), strict=True):
            fresh = next(StandIn().probabilities([frame.pixels])).astype(np.float64)
            average = fresh if average is None else 0.6 * average + 0.4 * fresh
            mask = cv2.resize(average, (96, 72)) >= 0.5
            area = sum(polyp["area"] for polyp in record["polyps"])
            assert abs(int(mask.sum()) - area) <= 2


def test_smoothing_begins_anew_after_a_gap(tmp_path: Path) -> None:
    """A second without frames: what was red before leaves no trace."""
    writer = VideoWriter(tmp_path / "cut.mp4", VideoInfo(96, 72, 25.0, Fraction(1, 1000)))
    for index in range(10):
        writer.write(picture(0) if index < 5 else np.full((72, 96, 3), (40, 110, 50), np.uint8), 40 * index)
    for index in range(5):
        writer.write(np.full((72, 96, 3), (40, 110, 50), np.uint8), 5000 + 40 * index)
    writer.close()
    for gap, trace in ((4, True), (10, False)):  # frames after the polyp, before which there is no gap, or one
        predict(tmp_path / "cut.mp4", tmp_path / "out", smoothing=0.97, save=(), overwrite=True)
        records = lines_of(tmp_path / "out" / "cut.jsonl")
        assert bool(records[gap]["polyps"]) == trace


def test_only_what_is_near_the_polyps_is_touched() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (300, 400, 3), np.uint8)
    drawn = frame.copy()
    mask = np.zeros((300, 400), bool)
    mask[100:150, 200:260] = True
    polyp = Segmentation.from_probability(mask.astype(np.float32) * np.float32(0.87), 0.5).polyps[0].to_dict()
    draw_polyps(drawn, {"polyps": [{"id": 3, **polyp}]})
    changed = (drawn != frame).any(2)
    assert changed[102:148, 202:258].mean() > 0.95  # filled
    away = changed.copy()
    away[80:155, 150:310] = False  # the polyp and its label
    away[280:, :200] = False  # the mark
    assert not away.any() and changed[280:, :200].any()
    assert np.abs(drawn[100, 205:255].astype(int) - (255, 230, 0)).max(1).mean() < 40  # the outline


def region(number: int | None, left: int, top: int, size: int = 40, **more: Any) -> dict[str, Any]:
    corners = [[left, top], [left, top + size - 1], [left + size - 1, top + size - 1], [left + size - 1, top]]
    box = [left, top, left + size, top + size]
    return {"id": number, "box": box, "area": size * size, "confidence": 0.9, "contour": corners, **more}


def test_what_has_no_number_is_not_drawn_and_what_is_carried_is_dashed() -> None:
    frame = np.zeros((300, 400, 3), np.uint8)
    draw_polyps(frame, {"polyps": [region(None, 50, 50)], "carried": [region(1, 200, 100, from_frame=3)]})
    assert not frame[40:100, 40:100].any()
    edge = (frame[100, 200:240] > 100).any(1)
    assert 0.3 < edge.mean() < 0.95 and not frame[110:130, 210:230].any()  # gaps in the outline, and no fill
    whole = np.zeros((300, 400, 3), np.uint8)
    draw_polyps(whole, {"polyps": [region(1, 200, 100)], "carried": []})
    assert (whole[100, 201:239] > 100).any(1).all() and whole[110:130, 210:230].any(2).all()


def test_parts_of_one_polyp_have_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    put = cv2.putText

    def noted(*given: Any) -> Any:
        texts.append(given[1])
        return put(*given)

    monkeypatch.setattr(cv2, "putText", noted)
    parts = [region(4, 50, 50), region(4, 95, 50, 20), region(5, 200, 200)]
    draw_polyps(np.zeros((300, 400, 3), np.uint8), {"polyps": parts, "carried": [region(7, 300, 50, from_frame=1)]})
    assert set(texts) == {"polyp 4  90%", "polyp 5  90%", "polyp 7", MARK}


@pytest.mark.parametrize("seed", range(6))
def test_labels_never_overlap_and_stay_by_their_outline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height, size = 640, 480, (110, 20)
    boxes = []
    for left, top in rng.integers(0, (560, 420), (3 + 2 * seed, 2)).tolist():
        boxes.append((left, top, left + int(rng.integers(5, 80)), top + int(rng.integers(5, 60))))
    ends = [((left + right) // 2,) * 2 for left, _, right, _ in boxes]
    taken = (10, 450, 200, 470)
    places = place_labels(boxes, ends, [size] * len(boxes), width, height, 4, [taken])
    labels = [place for place in places if place is not None]
    assert len(labels) == len(boxes)
    for one, other in itertools.combinations([*labels, taken], 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for (left, top, right, bottom), box in zip(labels, boxes, strict=True):
        assert min(left, top) >= 0 and right <= width and bottom <= height
        apart = max(box[0] - right, left - box[2], box[1] - bottom, top - box[3])
        assert apart <= (4 if len(boxes) < 6 else 120)


def test_a_label_without_room_is_left_out() -> None:
    assert place_labels([(0, 0, 20, 20)], [(10, 10)], [(30, 10)], 20, 20, 2) == [None]
    frame = np.zeros((16, 20, 3), np.uint8)
    draw_polyps(frame, {"polyps": [region(1, 2, 2, 10)], "carried": []})
    assert frame.any()


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (370, 280, 400, 300), (0, 0, 400, 300), (199, 0, 201, 300)])
def test_polyps_at_the_border_are_drawn(box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    mask = np.zeros((300, 400), bool)
    mask[top:bottom, left:right] = True
    frame = np.zeros((300, 400, 3), np.uint8)
    (polyp,) = Segmentation.from_probability(mask.astype(np.float32), 0.5).polyps
    draw_polyps(frame, {"polyps": [{"id": 1, **polyp.to_dict()}]})
    assert frame[top:bottom, left:right].any(2).mean() > 0.9


# ---- what is refused ------------------------------------------------------------------------------------


def test_outputs_that_are_there_are_left_alone(clip: Path, tmp_path: Path) -> None:
    predict(clip, tmp_path)
    before = (tmp_path / "exam.jsonl").stat().st_mtime_ns
    with pytest.raises(PolypsegError, match="is there already; use --overwrite") as caught:
        predict(clip, tmp_path)
    assert "\n" not in str(caught.value) and (tmp_path / "exam.jsonl").stat().st_mtime_ns == before
    predict(clip, tmp_path, overwrite=True)
    assert (tmp_path / "exam.jsonl").stat().st_mtime_ns != before


def test_the_video_itself_is_never_replaced(clip: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(clip, tmp_path / "exam.mp4"))
    content = own.read_bytes()
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(PolypsegError, match="another --out"):
            predict(own, tmp_path, **options)
    predict(own, tmp_path, save=())
    assert own.read_bytes() == content and names(tmp_path) == {"exam.mp4", "exam.jsonl", "exam.timeline.json"}


@pytest.mark.parametrize(
    "options", [{"smoothing": 1.0}, {"smoothing": -0.1}, {"batch_size": 0}, {"resume": True, "overwrite": True}]
)
def test_options_out_of_range(clip: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        predict(clip, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(PolypsegError, match="is no video"):
        predict(tmp_path / "text.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_video_is_predicted_up_to_the_cut_and_then_reported(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "exam.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    for options in ({}, {"resume": True}):  # nothing is left to be done, and it is reported again
        with pytest.raises(PolypsegError, match=r"exam\.mp4: is cut off after \d+ frames") as caught:
            predict(cut, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
    predict(clip, tmp_path / "whole")
    lines = (tmp_path / "out" / "exam.jsonl").read_text().splitlines()
    assert 10 < len(lines) < COUNT
    # The frame at the cut itself may be spoilt.
    assert lines[:-1] == (tmp_path / "whole" / "exam.jsonl").read_text().splitlines()[: len(lines) - 1]
    assert names(tmp_path / "out") == {"exam.mp4", "exam.jsonl", "exam.timeline.json"}
    with VideoReader(tmp_path / "out" / "exam.mp4") as reader:
        assert len(list(reader)) == len(lines)
    assert "cut off" in json.loads((tmp_path / "out" / "exam.timeline.json").read_text())["problem"]


# ---- interruptions --------------------------------------------------------------------------------------


def run_and_interrupt(
    clip: Path, out: Path, interrupt: Callable[[subprocess.Popen[str]], object], *, frames: int = 9, **options: Any
) -> tuple[int, str]:
    """Predict in a process of its own, and interrupt it when so many lines are there; its status and what it said."""
    command = [sys.executable, __file__, str(clip), str(out), json.dumps(options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    part = out / "exam.part.jsonl"
    deadline = time.monotonic() + 60
    while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") >= frames):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    interrupt(process)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def check_partial(reference: Path, out: Path, overlay: bool = True) -> int:
    """Whole up to the last frame; how many frames there are."""
    lines = (out / "exam.part.jsonl").read_bytes()
    assert lines.endswith(b"\n") and reference.read_bytes().startswith(lines)
    count = lines.count(b"\n")
    assert 9 <= count < COUNT
    if overlay:
        with VideoReader(out / "exam.part.mp4") as reader:
            assert count - 2 <= len(list(reader)) <= count
    return count


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.6])
@pytest.mark.parametrize("ending", ["killed", "Ctrl-C"])
def test_an_interrupted_run_goes_on_where_it_was(clip: Path, tmp_path: Path, ending: str, smoothing: float) -> None:
    predict(clip, tmp_path / "reference", smoothing=smoothing)
    reference, out = tmp_path / "reference" / "exam.jsonl", tmp_path / "out"
    number = signal.SIGKILL if ending == "killed" else signal.SIGINT
    status, said = run_and_interrupt(clip, out, lambda process: process.send_signal(number), smoothing=smoothing)
    if ending == "killed":
        assert status == -signal.SIGKILL
    else:
        assert (status, said) == (1, "interrupted\n")
    count = check_partial(reference, out)

    with pytest.raises(PolypsegError, match="left of an interrupted run; use --resume"):
        predict(clip, out, smoothing=smoothing)
    segmenter = StandIn()
    summary = predict(clip, out, segmenter, smoothing=smoothing, resume=True)
    # Done again are at most the frames of one batch; with smoothing those since the average was stored.
    begin = 0 if smoothing and count < 28 else count // 4 * 4
    assert summary.computed == segmenter.seen == COUNT - begin
    assert (out / "exam.jsonl").read_bytes() == reference.read_bytes()
    assert (out / "exam.timeline.json").read_bytes() == (reference.parent / "exam.timeline.json").read_bytes()
    assert names(out) == {"exam.mp4", "exam.jsonl", "exam.timeline.json"}
    check_overlay(out / "exam.mp4")
    check_no_thread_is_left()


def test_resuming_draws_and_counts_only_what_is_new(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was drawn before is kept as it is; frames before it are decoded, but not even converted."""
    with pytest.raises(RuntimeError):
        predict(clip, tmp_path, StandIn(fail_at=22))
    with VideoReader(tmp_path / "exam.part.mp4") as reader:
        before = [frame.pixels for frame in reader]
    drawn: list[int] = []
    begun: list[int] = []

    def drawing(pixels: NDArray[np.uint8], record: Any) -> None:
        drawn.append(record["frame"])
        draw_polyps(pixels, record)

    def bar(**options: Any) -> Any:
        begun.append(options["initial"])
        return tqdm(**options)

    converted: list[int] = []
    upright = VideoReader._upright

    def convert(*given: Any) -> NDArray[np.uint8]:
        converted.append(1)
        return upright(*given)

    monkeypatch.setattr("polypseg.io.video_outputs.draw_polyps", drawing)
    monkeypatch.setattr("polypseg.pipeline.video.tqdm", bar)
    monkeypatch.setattr(VideoReader, "_upright", convert)
    assert predict(clip, tmp_path, resume=True, progress=True).computed == COUNT - 20
    assert drawn == list(range(len(before), COUNT)) and len(before) >= 20
    assert len(converted) <= COUNT - 20 + 2  # and the first, which tells the size
    assert begun == [len(before)]
    check_overlay(tmp_path / "exam.mp4")
    monkeypatch.undo()
    with VideoReader(tmp_path / "exam.mp4") as reader:
        for frame, kept in zip(reader, before, strict=False):
            assert (frame.pixels == kept).all()


def test_an_overlay_of_another_encoder_is_drawn_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A player that has begun with one set of parameters cannot continue with another."""
    with pytest.raises(RuntimeError):
        predict(clip, tmp_path, StandIn(fail_at=22))
    other = {"libx264": {"preset": "ultrafast", "tune": "zerolatency", "crf": "23", "level": "50", "refs": "4"}}
    monkeypatch.setattr("polypseg.io.video._ENCODER_OPTIONS", other)
    predict(clip, tmp_path, resume=True)
    check_overlay(tmp_path / "exam.mp4")
    assert names(tmp_path) == {"exam.mp4", "exam.jsonl", "exam.timeline.json"}


@pytest.mark.parametrize("complete", [False, True])
def test_another_video_of_the_same_name_and_size_is_not_gone_on_with(
    clip: Path, tmp_path: Path, complete: bool
) -> None:
    own, out = Path(shutil.copy(clip, tmp_path / "exam.mp4")), tmp_path / "out"
    if complete:
        predict(own, out)
    else:
        with pytest.raises(RuntimeError):
            predict(own, out, StandIn(fail_at=10))
    content = bytearray(own.read_bytes())
    content[len(content) // 2] ^= 1
    own.write_bytes(content)
    with pytest.raises(PolypsegError, match="is of another video, or of this one before it changed; use --overwrite"):
        predict(own, out, resume=True)


@pytest.mark.slow
def test_interrupted_twice(clip: Path, tmp_path: Path) -> None:
    predict(clip, tmp_path / "reference")
    out = tmp_path / "out"
    run_and_interrupt(clip, out, lambda process: process.kill())
    run_and_interrupt(clip, out, lambda process: process.kill(), frames=20, resume=True)
    assert check_partial(tmp_path / "reference" / "exam.jsonl", out, overlay=False) >= 20
    predict(clip, out, resume=True)
    assert (out / "exam.jsonl").read_bytes() == (tmp_path / "reference" / "exam.jsonl").read_bytes()
    check_overlay(out / "exam.mp4")


def test_smoothing_goes_on_from_the_stored_average(clip: Path, tmp_path: Path) -> None:
    """Stored after every 25th frame or so: of 30 frames only those after it are done again."""
    predict(clip, tmp_path / "reference", smoothing=0.6, save=())
    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        predict(clip, out, StandIn(fail_at=29), smoothing=0.6, save=())
    assert predict(clip, out, smoothing=0.6, save=(), resume=True).computed == COUNT - 28
    assert (out / "exam.jsonl").read_bytes() == (tmp_path / "reference" / "exam.jsonl").read_bytes()


def test_a_line_that_is_half_written_is_written_again(clip: Path, tmp_path: Path) -> None:
    """As after a power failure, when the last block of the file was not written."""
    predict(clip, tmp_path / "reference")
    out = tmp_path / "out"
    run_and_interrupt(clip, out, lambda process: process.kill())
    part = out / "exam.part.jsonl"
    part.write_bytes(part.read_bytes()[:-30] + bytes(10))
    predict(clip, out, resume=True)
    assert (out / "exam.jsonl").read_bytes() == (tmp_path / "reference" / "exam.jsonl").read_bytes()


def test_a_complete_run_is_not_done_again(clip: Path, tmp_path: Path) -> None:
    first = predict(clip, tmp_path)
    segmenter = StandIn()
    again = predict(clip, tmp_path, segmenter, resume=True)
    assert segmenter.seen == again.computed == 0 and again.timeline == first.timeline


def test_a_missing_overlay_is_drawn_from_the_lines(clip: Path, tmp_path: Path) -> None:
    predict(clip, tmp_path, save=())
    lines = (tmp_path / "exam.jsonl").read_bytes()
    assert predict(clip, tmp_path, resume=True).computed <= 3
    assert (tmp_path / "exam.jsonl").read_bytes() == lines
    check_overlay(tmp_path / "exam.mp4")


@pytest.mark.parametrize("change", [{"threshold": 0.4}, {"precision": "int8"}, {"tta": "hflip"}])
def test_a_run_with_other_settings_is_not_gone_on_with(clip: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError):
        predict(clip, tmp_path, StandIn(fail_at=10))
    with pytest.raises(PolypsegError, match=f"other settings \\({next(iter(change))} was") as caught:
        predict(clip, tmp_path, StandIn(**change), resume=True)
    assert "\n" not in str(caught.value)
    predict(clip, tmp_path, StandIn(**change), overwrite=True)
    assert names(tmp_path) == {"exam.mp4", "exam.jsonl", "exam.timeline.json"}


def test_an_error_ends_every_thread_and_keeps_what_was_done(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the network broke"):
        predict(clip, tmp_path, StandIn(fail_at=10))
    check_no_thread_is_left()
    assert [record["frame"] for record in lines_of(tmp_path / "exam.part.jsonl")] == list(range(10))


def test_a_disk_that_takes_no_more_is_told_and_can_be_gone_on_with(clip: Path, tmp_path: Path) -> None:
    """The kernel's limit on the size of a file stands for the end of the disk."""
    predict(clip, tmp_path / "reference")
    out = tmp_path / "out"
    limit = 4000
    status, said = run_and_interrupt(clip, out, lambda process: process.wait(60), frames=999, limit=limit)
    assert status == 1 and said.count("\n") == 1 and "cannot be written" in said and "exam.part" in said
    lines = (out / "exam.part.jsonl").read_bytes()
    assert lines.endswith(b"\n") and 0 < len(lines) <= limit
    assert (tmp_path / "reference" / "exam.jsonl").read_bytes().startswith(lines)
    predict(clip, out, resume=True)
    assert (out / "exam.jsonl").read_bytes() == (tmp_path / "reference" / "exam.jsonl").read_bytes()
    check_overlay(out / "exam.mp4")


# ---- the threads ----------------------------------------------------------------------------------------


def test_stages_keep_order_and_run_at_most_so_far_ahead() -> None:
    made: list[int] = []

    def numbers() -> Any:
        for number in range(20):
            made.append(number)
            yield number

    with Stages() as stages:
        for read, number in enumerate(stages.ahead(numbers(), 3)):
            assert number == read
            time.sleep(0.002)
            assert len(made) <= read + 6
    check_no_thread_is_left()


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def failing() -> Any:
        yield from range(5)
        raise ValueError("five")

    def doubled(numbers: Iterator[int]) -> Any:
        for number in numbers:
            yield 2 * number

    read: list[int] = []
    with pytest.raises(ValueError, match="five"), Stages() as stages:
        read.extend(stages.ahead(doubled(stages.ahead(failing(), 2)), 2))
    assert read == [0, 2, 4, 6, 8]
    check_no_thread_is_left()


def test_a_reader_that_leaves_early_ends_all_threads() -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield number
            number += 1

    def doubled(numbers: Iterator[int]) -> Any:
        for number in numbers:
            yield 2 * number

    with Stages() as stages:
        assert next(stages.ahead(doubled(stages.ahead(endless(), 2)), 2)) == 0
    check_no_thread_is_left()


def main() -> int:
    """What a user's process does, at a pace at which it can be interrupted."""
    options = json.loads(sys.argv[3])
    if limit := options.pop("limit", None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        predict(Path(sys.argv[1]), Path(sys.argv[2]), StandIn(delay=0.02), **options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except PolypsegError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
