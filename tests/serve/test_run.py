"""Starting, stopping and dying."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polypseg.cli import main
from polypseg.io.video import VideoReader
from polypseg.pipeline.video import predict_video
from polypseg.serve import run
from polypseg.serve.state import open_state

TOKEN = "0123456789abcdef"
FRAMES = 400


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str]:
    """Status and line of a service that does not start."""
    try:
        status = main(["serve", *(str(option) for option in options)])
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("polypseg"), error
    return status, error


def test_a_port_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, line = refused(capsys, "--port", port, "--state", tmp_path / "state")
    assert status == 1 and f"port {port}: is in use" in line
    assert not (tmp_path / "state").exists()


def test_a_missing_extra(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "uvicorn" else name)
    status, line = refused(capsys, "--state", tmp_path)
    assert status == 1 and "needs uvicorn; install the extra: pip install 'polypseg[serve]'" in line


def test_a_second_server_is_refused_before_it_deletes_anything(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    table = open_state(state)
    (state / "temporary" / "upload-1").write_bytes(b"a frame on its way in")
    (state / "corrections" / "masks").mkdir(parents=True)
    (state / "corrections" / "masks" / "a.png").write_bytes(b"half a pair")
    status, line = refused(capsys, "--port", 0, "--state", state)
    assert status == 1 and "another polypseg serve works in this folder" in line
    assert (state / "temporary" / "upload-1").exists() and (state / "corrections" / "masks" / "a.png").exists()
    table.close()
    open_state(state).close()
    assert not (state / "temporary" / "upload-1").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_a_state_folder_is_for_its_user_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    open_state(state).close()
    assert state.stat().st_mode & 0o777 == 0o700
    state.chmod(0o755)  # one of an earlier version, with jobs
    open_state(state).close()
    assert state.stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "thesis.txt").write_text("x")
    status, line = refused(capsys, "--port", 0, "--state", shared)
    assert status == 1 and "other users may read it" in line and "chmod 700" in line
    assert shared.stat().st_mode & 0o777 == 0o755 and [path.name for path in shared.iterdir()] == ["thesis.txt"]


def test_a_state_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    status, line = refused(capsys, "--port", 0, "--state", tmp_path / "file")
    assert status == 1 and f"{tmp_path / 'file'}: cannot be written" in line


@pytest.mark.parametrize(
    "options",
    [
        ["--host", "0.0.0.0"],
        ["--host", "::"],
        ["--token", "short"],
        ["--token", "with spaces and 16 characters"],
        ["--host", "no.such.host.invalid"],
        ["--queue", "0"],
        ["--keep_days", "0"],
        ["--keep_video_mib", "-1"],
        ["--timeout", "-1"],
        ["--max_pixels", "100000000"],
        ["--port", "70000"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.delenv("POLYPSEG_TOKEN", raising=False)
    if options == ["--host", "::"] and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    status, _ = refused(capsys, *(["--port", "0"] if "--port" not in options else []), "--state", tmp_path, *options)
    assert status == 2


@pytest.mark.slow
def test_others_can_reach_it_with_the_token_only(
    start: Callable[..., Any], tmp_path: Path, frames: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPSEG_TOKEN", TOKEN)
    service = start(tmp_path / "state")
    files = {"file": ("a.jpg", frames[0].read_bytes())}
    assert service.web.post("/v1/segment", files=files).status_code == 401
    assert service.web.get("/openapi.json").status_code == 401
    assert service.web.get("/health/ready").status_code == 200
    bearer = {"authorization": f"Bearer {TOKEN}", "host": "polyps.hospital.example"}
    assert service.web.post("/v1/segment", files=files, headers=bearer).status_code == 200
    assert service.end(signal.SIGINT) == 0
    assert TOKEN not in service.log.read_text()


def test_silent_connections_shut_nobody_out(server: Any) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(run.MOST_CONNECTIONS + 8)]
    try:
        for path in ("/health/live", "/v1/model"):
            assert server.web.get(path).status_code == 200
        assert silent[0].recv(1) == b""  # the one that was silent for longest made room
        silent[-1].sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert silent[-1].recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for connection in silent:
            connection.close()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_what_was_accepted_is_answered_before_it_stops(
    start: Callable[..., Any], tmp_path: Path, frames: list[Path]
) -> None:
    service = start(tmp_path / "state")
    content = frames[0].read_bytes()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + content + b"\r\n--x--\r\n"
    head = f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(head.encode() + body[:500])
        service.web.get("/health/live")  # by now the request has been taken in
        service.process.send_signal(signal.SIGTERM)
        while listens(service.port):
            time.sleep(0.01)
        connection.sendall(body[500:])
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["source"] == "a.jpg"
    assert service.process.wait(30) == 0
    state = tmp_path / "state"
    assert {path.name for path in state.iterdir()} == {"annotations.sqlite", "jobs", "jobs.sqlite", "temporary"}
    assert not list((state / "temporary").iterdir())
    assert os.stat(state).st_mode & 0o077 == 0


@pytest.mark.slow
def test_killed_in_the_midst_of_a_video_it_goes_on_after_a_restart(
    start: Callable[..., Any], segmenter: Any, make_clip: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    """kill -9; nothing half written is listed, and what comes out is what an undisturbed run gives."""
    clip = make_clip(tmp_path / "exam.mp4", FRAMES)
    state = tmp_path / "state"
    service = start(state)
    with clip.open("rb") as content:
        job = service.web.post("/v1/jobs", files={"file": ("exam.mp4", content)}).json()["id"]
        content.seek(0)
        waiting = service.web.post("/v1/jobs", files={"file": ("next.mp4", content)}).json()["id"]
    before = service.wait_for(job, lambda job: job["done"] >= FRAMES // 10)
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    assert before["state"] == "running" and before["files"] == []

    service = start(state)
    found = service.web.get(f"/v1/jobs/{job}").json()
    assert found["state"] in ("queued", "running") and found["files"] == [] and found["done"] >= before["done"]
    done = service.wait_for(job, lambda job: job["state"] == "done", 120)
    assert done["done"] == FRAMES
    predict_video(segmenter, clip, tmp_path / "alone")
    for name in ("exam.jsonl", "exam.timeline.json"):
        answer = service.web.get(f"/v1/jobs/{job}/files/{name}").content
        assert answer == (tmp_path / "alone" / name).read_bytes()
    (tmp_path / "film.mp4").write_bytes(service.web.get(f"/v1/jobs/{job}/files/exam.mp4").content)
    with VideoReader(tmp_path / "film.mp4") as film:
        assert len(list(film)) == FRAMES and film.problem is None
    assert service.web.delete(f"/v1/jobs/{job}").status_code == 204
    assert service.wait_for(waiting, lambda job: job["state"] == "done", 120)["done"] == FRAMES
    assert service.end() == 0
    assert "crash" not in service.log.read_text()
