"""A stream of a network that is cut is opened again: MJPEG over HTTP, a real RTSP server, a GStreamer pipeline."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import cv2
import numpy as np
import pytest

from polypseg.io import camera
from polypseg.io.camera import CameraGone, camera_frames

FRAMES = 5  # of a connection, before it is cut


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Starts a camera of which each connection shows frames of one grey level and (height, width) until it is cut."""
    monkeypatch.setattr(camera, "SHORTEST", 0.01)
    started: list[ThreadingHTTPServer] = []

    def begin(*connections: tuple[int, tuple[int, int]]) -> str:
        waiting = list(connections)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not waiting:
                    self.send_error(503)
                    return
                level, (height, width) = waiting.pop(0)
                content = cv2.imencode(".jpg", np.full((height, width, 3), level, np.uint8))[1].tobytes()
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for _ in range(FRAMES):
                    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(content)
                    self.wfile.write(head + content + b"\r\n")

            def log_message(self, *_: object) -> None:
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://user:secret@127.0.0.1:{started[-1].server_port}/live.mjpg"

    yield begin
    for one in started:
        one.shutdown()
        one.server_close()


def levels(url: str, patience: float) -> tuple[list[int], str]:
    """The grey levels of all frames, and how it ended."""
    seen: list[int] = []
    shown = (int(pixels.mean().round()) for pixels in camera_frames(url, patience))
    with pytest.raises(CameraGone) as gone:
        seen.extend(shown)
    return seen, str(gone.value)


def test_a_cut_is_bridged_until_patience_ends(network: Any, caplog: pytest.LogCaptureFixture) -> None:
    url = network((40, (48, 64)), (120, (48, 64)), (200, (48, 64)))
    seen, line = levels(url, 0.3)
    assert seen == [40] * FRAMES + [120] * FRAMES + [200] * FRAMES
    assert "stopped sending frames" in line and "secret" not in line + caplog.text
    assert caplog.text.count("opened again for") == 3


def test_without_patience_the_first_cut_is_the_end(network: Any) -> None:
    seen, line = levels(network((40, (48, 64)), (120, (48, 64))), 0)
    assert seen == [40] * FRAMES and "stopped sending frames" in line


def test_frames_of_another_size_are_not_mixed_in(network: Any) -> None:
    seen, line = levels(network((40, (48, 64)), (120, (24, 32))), 5)
    assert seen == [40] * FRAMES and "now sends frames of another size" in line


def test_what_was_never_there_is_not_waited_for(network: Any) -> None:
    seen, line = levels(network(), 60)
    assert seen == [] and "cannot be opened" in line


# ---- real servers ------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(*words: object, port: int | None = None) -> Iterator[None]:
    """A server in a process of its own, from when something listens on its port until it is killed."""
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while port is not None:
            assert process.poll() is None and time.monotonic() < end, f"{words[0]} does not listen"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield
    finally:
        process.kill()
        process.wait()


class Publisher:
    """A camera of one grey level that sends H.264 to an RTSP server until it is stopped."""

    def __init__(self, url: str, level: int) -> None:
        self._stopped = threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._run, args=(url, level), daemon=True)
        self._thread.start()

    def _run(self, url: str, level: int) -> None:
        pixels = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), "rgb24").reformat(format="yuv420p")
        with av.open(url, "w", format="rtsp") as out:
            options = {"preset": "ultrafast", "tune": "zerolatency", "g": "1"}
            stream: Any = out.add_stream("libx264", rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            while not self._stopped.wait(0.04):  # the rate of its frames
                pixels.pts = self.sent
                out.mux(stream.encode(pixels))
                self.sent += 1

    def wait_until_known(self) -> None:
        """Returns when the server has a frame of it."""
        while not self.sent:
            assert self._thread.is_alive(), "the RTSP server takes no camera"
            time.sleep(0.01)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def first_of_each(url: str, switch: Callable[[int], None], levels: tuple[int, int]) -> list[int]:
    """The grey levels that come one after another; after some frames of each, ``switch`` is called with its number."""
    seen: list[int] = []
    count = 0
    for pixels in camera_frames(url, 60):
        level = min(levels, key=lambda one: abs(one - pixels.mean()))
        if not seen or seen[-1] != level:
            seen.append(level)
            count = 0
        count += 1
        if count == FRAMES:
            if len(seen) == 2:
                break
            switch(len(seen))
    return seen


@pytest.mark.skipif(shutil.which("rtsp-server-perl") is None, reason="there is no RTSP server: rtsp-server-perl")
def test_a_camera_by_rtsp_is_opened_again_after_a_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(camera, "SHORTEST", 0.05)
    monkeypatch.setattr(camera, "SILENCE", 1.0)
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;udp")  # that server has no other
    source, client, rtp = free_port(), free_port(), 20_000 + free_port() % 20_000 // 2 * 2
    words = ("--serverport", source, "--clientport", client, "--rtp_start_port", rtp)
    addresses = ("--source_listen_address", "127.0.0.1", "--client_listen_address", "127.0.0.1")
    cameras: list[Publisher] = []

    def switch(number: int) -> None:
        cameras[-1].stop()
        cameras.append(Publisher(f"rtsp://127.0.0.1:{source}/tower", (60, 180)[number]))

    with running("rtsp-server-perl", *words, *addresses, port=client):
        cameras.append(Publisher(f"rtsp://127.0.0.1:{source}/tower", 60))
        cameras[0].wait_until_known()
        assert first_of_each(f"rtsp://127.0.0.1:{client}/tower", switch, (60, 180)) == [60, 180]
        cameras[-1].stop()
    assert caplog.text.count("opened again for") == 1


@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="there is no GStreamer: gstreamer1.0-tools")
def test_a_gstreamer_pipeline_that_is_killed_and_begun_again_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "SHORTEST", 0.05)
    monkeypatch.setenv(
        "OPENCV_FFMPEG_CAPTURE_OPTIONS", "analyzeduration;1"
    )  # frames of so few bytes are studied for long
    port = free_port()
    caps = "video/x-raw,width=64,height=48,framerate=25/1"
    pipelines = contextlib.ExitStack()

    def begin(pattern: str) -> None:
        words = f"videotestsrc is-live=true pattern={pattern} ! {caps} ! jpegenc ! matroskamux streamable=true"
        sink = f"! tcpserversink host=127.0.0.1 port={port}"
        pipelines.enter_context(running("gst-launch-1.0", *f"{words} {sink}".split(), port=port))

    def switch(_: int) -> None:
        pipelines.close()
        begin("white")

    with pipelines:
        begin("black")
        assert first_of_each(f"tcp://127.0.0.1:{port}", switch, (0, 255)) == [0, 255]


def test_the_newest_frame_is_not_kept_back_by_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """With threads it would wait for the next ones; a camera that pauses shows whether it does."""
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "analyzeduration;1")
    count, content = 60, io.BytesIO()
    with av.open(content, "w", format="matroska", options={"live": "1"}) as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), np.uint8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(stream.encode())
    came, in_time = threading.Event(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content.getvalue())
            self.wfile.flush()
            in_time.append(came.wait(4))  # else it is the end of the stream that brings the last frame out

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        frames = camera_frames(f"http://127.0.0.1:{server.server_port}/live", 0)
        for _ in range(count):
            next(frames)
        came.set()
        frames.close()
        server.shutdown()
    assert in_time == [True]
