"""A camera, live: the newest frame is predicted, what came too fast is dropped, and nothing is lost at the end.

There is no camera here: frames come from generators, from a file played at its own pace, and from a stand-in for
OpenCV's capture.
"""

from __future__ import annotations

import _thread
import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.errors import PolypsegError
from polypseg.io.video import VideoInfo, VideoReader, VideoWriter
from polypseg.operating_point import OperatingPoint
from polypseg.pipeline import live
from polypseg.pipeline.live import run_live
from polypseg.pipeline.options import PredictOptions
from polypseg.segmentation import Segmentation

Picture = NDArray[np.uint8]


class StandIn:
    """Takes what is bright for polyp, and takes its time."""

    threshold = 0.5
    operating_point = OperatingPoint(0.5, 0.6)
    settings: ClassVar[dict[str, Any]] = {
        "model": "0" * 64,
        "threshold": 0.5,
        "runtime": "torch",
        "device": "cpu",
        "precision": "fp32",
        "tta": "none",
    }

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.seen: list[int] = []

    def probabilities(self, frames: Iterable[Picture], batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
        for frame in frames:
            time.sleep(self.delay)
            self.seen.append(int(frame[0, 0, 0]))
            yield (frame[..., 1] / 255).astype(np.float32)

    def segmentation(
        self, probability: NDArray[np.float32], height: int, width: int, outside: NDArray[np.bool_] | None = None
    ) -> Segmentation:
        return Segmentation.from_probability(probability, self.threshold)


def numbered(index: int) -> Picture:
    """A bright square on a dark ground; the corner contains the frame's number."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[16:32, 16:40] = 200  # 240 would be glare
    picture[0, 0, 0] = index
    return picture


def camera(count: int, pause: float) -> Iterator[Picture]:
    for index in range(count):
        yield numbered(index)
        time.sleep(pause)


def live_files(folder: Path) -> dict[str, Path]:
    found = {"".join(file.suffixes): file for file in folder.iterdir()}
    assert set(found) == {".mp4", ".jsonl", ".timeline.json"}
    return found


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in live_files(folder)[".jsonl"].read_text().splitlines()]


def check_no_thread_is_left() -> None:
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("polypseg")] == []


def test_frames_are_dropped_rather_than_predicted_late() -> None:
    segmenter: Any = StandIn(delay=0.06)
    summary = run_live(segmenter, camera(50, 0.02))
    assert 5 <= summary.frames <= 25 and summary.frames + summary.dropped == 50
    assert segmenter.seen == sorted(set(segmenter.seen)) and segmenter.seen[-1] == 49  # the newest is always predicted
    # A frame waits for the one before it at most; had all been predicted, the last would have waited for 2 s.
    assert 60 <= summary.latency_p50 <= summary.latency_p95 < 1000
    check_no_thread_is_left()


def test_a_network_that_keeps_up_drops_nothing() -> None:
    segmenter: Any = StandIn()

    def slow() -> Iterator[Picture]:
        for index in range(20):
            yield numbered(index)
            while segmenter.seen != list(range(index + 1)):
                time.sleep(0.001)

    summary = run_live(segmenter, slow())
    assert (summary.frames, summary.dropped, summary.files) == (20, 0, [])


def test_latency_is_printed_once_a_second_and_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    run_live(StandIn(), camera(50, 0.05))  # type: ignore[arg-type]
    *seconds, summary = capsys.readouterr().out.splitlines()
    assert len(seconds) in (1, 2)
    for line in seconds:
        found = re.fullmatch(
            r" *([\d.]+) frames/s   latency p50 +(\d+) ms, p95 +(\d+) ms   \d+ dropped   1 polyps in view", line
        )
        assert found and 5 < float(found[1]) < 21
    assert re.fullmatch(
        r"camera: \d+ frames predicted in 2\.\d s, \d+ dropped, latency p50 \d+ ms, p95 \d+ ms", summary
    )


def test_the_outputs_are_those_of_the_predicted_frames(tmp_path: Path) -> None:
    segmenter: Any = StandIn(delay=0.03)
    summary = run_live(segmenter, camera(40, 0.01), tmp_path)
    files = live_files(tmp_path)
    assert sorted(summary.files) == sorted(files.values())
    records = records_of(tmp_path)
    assert [record["frame"] for record in records] == list(range(summary.frames))
    times = [record["time"] for record in records]
    assert times[0] == 0 and times == sorted(set(times)) and 0.3 < times[-1] < 3
    ids = [record["polyps"][0]["id"] for record in records]
    assert ids[:2] == [None, None] and ids[-1] == 1
    assert ids == [1 if index >= 2 and time >= 0.15 else None for index, time in enumerate(times)]
    assert all(record["polyps"][0]["box"] == [16, 16, 40, 32] for record in records)
    with VideoReader(files[".mp4"]) as reader:
        assert [frame.time for frame in reader] == times
    timeline = json.loads(files[".timeline.json"].read_text())
    assert timeline["frames"] == summary.frames and timeline["problem"] is None
    assert timeline["tracks"][0]["frames_seen"] == summary.frames


def test_without_an_overlay_only_the_lines_are_written(tmp_path: Path) -> None:
    run_live(StandIn(), camera(5, 0.01), tmp_path, PredictOptions(save=()))  # type: ignore[arg-type]
    assert sorted("".join(file.suffixes) for file in tmp_path.iterdir()) == [".jsonl", ".timeline.json"]


def test_what_a_session_keeps_does_not_grow() -> None:
    """Percentiles of a long session are those of all its latencies, to a hundredth, and take no more memory."""
    meter = live._Meter()
    latencies = np.random.default_rng(0).lognormal(3, 0.6, 5000)  # milliseconds
    predictions = [
        live._Predicted(numbered(0), index / 25, None, None, ms / 1000) for index, ms in enumerate(latencies)
    ]  # type: ignore[arg-type]
    meter._reported -= 2 * live._REPORT_EVERY
    meter.add(predictions[0], 0, 0)
    sizes = meter._counts.nbytes, len(meter._recent)
    for prediction in predictions[1:]:
        meter._reported -= live._REPORT_EVERY  # a second passed
        meter.add(prediction, 0, 0)
    assert (meter._counts.nbytes, len(meter._recent)) == sizes == (meter._counts.nbytes, 0)
    summary = meter.summary(0, [])
    assert summary.latency_p50 == pytest.approx(np.percentile(latencies, 50), rel=0.011)
    assert summary.latency_p95 == pytest.approx(np.percentile(latencies, 95), rel=0.011)


def test_a_file_that_names_a_socket_is_no_camera(tmp_path: Path) -> None:
    """OpenCV's FFmpeg would listen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        path = tmp_path / "exam.mp4"
        session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        path.write_text(session + f"m=video {taken.getsockname()[1]} RTP/AVP 96\na=rtpmap:96 H264/90000\n")
        with pytest.raises(PolypsegError, match=r"exam\.mp4: is (no video|in no format)"):
            run_live(StandIn(), str(path), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_file_is_played_at_its_own_pace(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "exam.mp4", VideoInfo(64, 48, 25.0, Fraction(1, 1000)))
    for index in range(20):
        writer.write(numbered(0), 50 * index)
    writer.close()
    start = time.perf_counter()
    summary = run_live(StandIn(), str(tmp_path / "exam.mp4"), tmp_path / "out")  # type: ignore[arg-type]
    assert 0.9 < time.perf_counter() - start < 3
    assert summary.frames + summary.dropped == 20 and summary.seconds == pytest.approx(0.95, abs=0.15)
    assert records_of(tmp_path / "out")[0]["source"] == "exam.mp4"


def test_ctrl_c_ends_the_session_and_completes_its_outputs(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Picture]:
        yield from camera(15, 0.02)
        _thread.interrupt_main()
        yield from camera(200, 0.02)

    summary = run_live(StandIn(), interrupted(), tmp_path)  # type: ignore[arg-type]
    assert 10 <= summary.frames <= 40 and len(records_of(tmp_path)) == summary.frames
    with VideoReader(live_files(tmp_path)[".mp4"]) as reader:
        assert len(list(reader)) == summary.frames
    check_no_thread_is_left()


class Capture:
    """OpenCV's capture of a camera that is pulled out after ten frames."""

    def __init__(self, *_: Any) -> None:
        self.left = 10

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.01)
        self.left -= 1
        return (True, numbered(0)[..., ::-1]) if self.left >= 0 else (False, None)

    def release(self) -> None: ...


def test_a_camera_that_disappears_is_told_and_its_outputs_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    with pytest.raises(PolypsegError, match="camera 0: stopped sending frames") as caught:
        run_live(StandIn(), "0", tmp_path)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    records = records_of(tmp_path)
    assert 1 <= len(records) <= 10 and records[0]["polyps"][0]["box"] == [16, 16, 40, 32]
    timeline = json.loads(live_files(tmp_path)[".timeline.json"].read_text())
    assert timeline["problem"] == str(caught.value) and timeline["source"] == "camera 0"
    check_no_thread_is_left()


def test_a_camera_that_falls_silent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_SILENCE", 0.3)
    monkeypatch.setattr(live, "_JOIN", 0.1)
    woken = threading.Event()

    def silent() -> Iterator[Picture]:
        yield from camera(3, 0.02)
        woken.wait(30)

    with pytest.raises(PolypsegError, match="sent no frame for"):
        run_live(StandIn(), silent(), tmp_path)  # type: ignore[arg-type]
    assert len(records_of(tmp_path)) == 3
    woken.set()


def test_no_camera_is_one_line_and_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PolypsegError, match="camera 97: cannot be opened"):
        run_live(StandIn(), 97, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(PolypsegError, match=r"rtsp://127\.0\.0\.1:9/x: cannot be opened") as caught:
        run_live(StandIn(), "rtsp://user:secret@127.0.0.1:9/x", tmp_path / "out")  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)
    with pytest.raises(PolypsegError, match="camera: sends no frame"):
        run_live(StandIn(), iter(()), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    assert "can't open camera" not in capfd.readouterr().err


def test_an_error_of_the_network_ends_everything(tmp_path: Path) -> None:
    class Broken(StandIn):
        def segmentation(
            self, probability: NDArray[np.float32], height: int, width: int, outside: NDArray[np.bool_] | None = None
        ) -> Segmentation:
            if self.seen[-1] >= 5:
                raise RuntimeError("the network broke")
            return super().segmentation(probability, height, width)

    with pytest.raises(RuntimeError, match="the network broke"):
        run_live(Broken(), camera(1000, 0.01), tmp_path)  # type: ignore[arg-type]
    check_no_thread_is_left()
    (part,) = tmp_path.glob("*.part.jsonl")
    assert part.read_bytes().endswith(b"\n")
