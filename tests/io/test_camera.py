"""A stream of a network that is cut is opened again: an MJPEG server over HTTP stands for a camera."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
