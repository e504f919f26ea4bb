"""``polypseg.client``: typed results of a real service, and patience with one that is busy."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypseg.errors import PolypsegError
from polypseg.io.pictures import read_frame

client = pytest.importorskip("polypseg.client")


@pytest.fixture
def service(server: Any) -> Iterator[Any]:
    with client.Client(server.url) as one:
        yield one


def test_a_frame(service: Any, segmenter: Any, frames: list[Path]) -> None:
    expected = segmenter.segment(read_frame(frames[1]))
    for picture in (frames[1], str(frames[1]), frames[1].read_bytes()):
        found = service.segment(picture)
        assert (found.height, found.width) == expected.mask.shape and found.model == segmenter.hash
        assert [polyp.box for polyp in found.polyps] == [polyp.box for polyp in expected.polyps] != []
        assert [polyp.area for polyp in found.polyps] == [polyp.area for polyp in expected.polyps]
        assert all(
            np.array_equal(one.contour, other.contour) for one, other in zip(found.polyps, expected.polyps, strict=True)
        )
        assert set(found.milliseconds) == {"decode", "wait", "inference", "render"}
    assert service.segment(frames[1]).record["source"] == frames[1].name
    assert service.segment(frames[1], min_confidence=1, threshold=0.99, min_area=0.5, model="exported").polyps == ()
    assert service.segment(frames[1], probability=True).record["probability"]
    assert service.model()["models"] == ["exported"]


def test_what_is_wrong_is_the_services_line(service: Any, server: Any, frames: list[Path], tmp_path: Path) -> None:
    with pytest.raises(client.ServiceError, match=r"^frame: is no image") as refused:
        service.segment(b"hello")
    assert refused.value.status == 415 and not refused.value.passing
    with pytest.raises(client.ServiceError, match="model: there is none of that name"):
        service.segment(frames[0], model="none")
    with pytest.raises(PolypsegError, match=r"none\.png: cannot be read"):
        service.segment(tmp_path / "none.png")
    with pytest.raises(PolypsegError, match=r"none\.mp4: there is no such file"):
        service.submit(tmp_path / "none.mp4")
    with pytest.raises(client.ServiceError, match="no such job") as refused:
        service.job("0" * 32)
    assert refused.value.status == 404


def test_a_job_from_its_upload_to_its_removal(service: Any, server: Any, clip: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    job = service.wait(service.submit(clip), 120, seen.append)
    assert (job.state, job.done, job.total, job.error) == ("done", 30, 30, None) and seen[-1] == job
    written = service.download(job, tmp_path / "found")
    assert sorted(path.name for path in written) == sorted(job.files) and len(written) == 3
    for path in written:
        assert path.read_bytes() == server.web.get(f"/v1/jobs/{job.id}/files/{path.name}").content
    with pytest.raises(client.ServiceError, match="the job's video is not kept") as refused:
        service.again(job, threshold=0.9)
    assert refused.value.status == 409
    new = service.wait(service.again(job, clip, replace=True, threshold=0.9, min_area=0.01), 120)
    point = service.model()["operating_point"]
    assert new.record["operating_point"] == {**point, "threshold": 0.9, "min_area": 0.01} and new.state == "done"
    with pytest.raises(client.ServiceError, match="no such job"):
        service.download(job.id, tmp_path / "more")
    service.remove(new)
    assert not list((tmp_path / "more").glob("*")) if (tmp_path / "more").exists() else True


def test_the_same_by_asyncio(server: Any, frames: list[Path], clip: Path, tmp_path: Path) -> None:
    content = frames[1].read_bytes()
    import cv2

    jpeg = bytes(cv2.imencode(".jpg", read_frame(frames[1])[..., ::-1])[1])

    async def all_of_it() -> None:
        async with client.AsyncClient(server.url) as service:
            one, other = await asyncio.gather(service.segment(content), service.segment(frames[1]))
            assert one.polyps == other.polyps != ()
            job = await service.wait(await service.submit(frames[0], frames[1], min_confidence=0.0), 120)
            assert job.record["operating_point"]["min_confidence"] == 0.0
            written = await service.download(job, tmp_path)
            assert {path.name for path in written} == set(job.files) >= {"coco.json", "predictions.csv"}
            await service.remove(job)
            assert (await service.model())["served_as"] == "exported"

            async def camera() -> Any:
                for _ in range(6):
                    answered.clear()
                    yield jpeg
                    await answered.wait()

            answered = asyncio.Event()
            heard = []
            async for found in service.stream(camera(), min_confidence=0.0):
                heard.append(found)
                answered.set()
            assert [found.frame for found in heard] == list(range(6)) and heard[-1].dropped == 0
            assert all(found.polyps and found.problem is None and found.milliseconds > 0 for found in heard)
            found = [found async for found in service.stream([jpeg] * 20)]  # faster than it computes
            assert found[-1].frame == 19 and found[-1].dropped == 20 - len(found)
            assert [one async for one in service.stream([])] == []
            bad = [found async for found in service.stream([b"x"])]
            assert bad[0].problem == "frame: is no JPEG that can be read" and bad[0].polyps == ()
            with pytest.raises(client.ServiceError, match="treshold: is unknown"):
                async for _ in service.stream([jpeg], treshold=0.5):
                    pass

    asyncio.run(all_of_it())


# ---- patience -------------------------------------------------------------------------------------------


@pytest.fixture
def busy() -> Iterator[Callable[..., Any]]:
    """A service that refuses so often before it answers."""
    started: list[ThreadingHTTPServer] = []

    def begin(*refusals: tuple[int, str | None]) -> Any:
        waiting, asked = list(refusals), []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(time.monotonic())
                status, after = waiting.pop(0) if waiting else (200, None)
                body = json.dumps({"error": "too much waits"} if status != 200 else {"name": "small"}).encode()
                self.send_response(status)
                if after is not None:
                    self.send_header("Retry-After", after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}", asked

    yield begin
    for one in started:
        one.shutdown()
        one.server_close()


def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is slept, without sleeping."""
    pauses: list[float] = []
    monkeypatch.setattr(client.time, "sleep", pauses.append)
    return pauses


def test_a_busy_service_is_asked_again_when_it_says(busy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = slept(monkeypatch)
    address, asked = busy((429, "3"), (503, None), (503, None), (503, "Wed, 21 Oct 2015 07:28:00 GMT"))
    with client.Client(address) as service:
        assert service.model() == {"name": "small"}
    assert len(asked) == 5 and pauses[0] == 3 and pauses[3] == 0
    assert 0.18 <= pauses[1] <= 0.63 and 0.37 <= pauses[2] <= 1.25  # later and later, not all at once


def test_patience_ends(busy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = slept(monkeypatch)
    address, asked = busy(*[(429, "50")] * 9)
    with client.Client(address, patience=49) as service, pytest.raises(client.ServiceError) as refused:
        service.model()
    assert len(asked) == 1 and pauses == []  # 50 s would be too late
    assert (refused.value.status, refused.value.retry_after, str(refused.value)) == (429, 50, "too much waits")
    address, asked = busy((500, None))
    with client.Client(address) as service, pytest.raises(client.ServiceError):
        service.model()  # which would fail again
    assert len(asked) == 1


def test_no_service_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    slept(monkeypatch)
    with client.Client("http://127.0.0.1:9", patience=0) as service, pytest.raises(client.ServiceError) as refused:
        service.segment(b"\xff\xd8")
    assert refused.value.status == 0 and "cannot be reached" in str(refused.value)

    async def stream() -> None:
        async with client.AsyncClient("http://127.0.0.1:9", patience=0) as service:
            async for _ in service.stream([b"x"]):
                pass

    with pytest.raises(client.ServiceError, match="cannot be reached"):
        asyncio.run(stream())
