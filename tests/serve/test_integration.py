"""What integrators expect: several models and their reload, raw bodies, timings, headers, gzip, a page of routes."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from polypseg.bundle import ModelBundle
from polypseg.errors import UsageError
from polypseg.serve.settings import named


@pytest.fixture(scope="module")
def two(start: Callable[..., Any], exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service of two models: ``one`` is ``exported``, ``other`` is a copy of it that may be changed."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(exported.folder, folder / "copy")
    service = start(folder / "state", "--model", str(exported.folder), "--model", f"other={folder / 'copy'}")
    service.copy = folder / "copy"
    return service


def refused(answer: Any, status: int, says: str) -> None:
    assert answer.status_code == status and re.search(says, answer.json()["error"]), answer.text


# ---- one frame ------------------------------------------------------------------------------------------


def test_a_picture_alone_is_a_body(server: Any, frames: list[Path]) -> None:
    content = frames[1].read_bytes()
    form = server.web.post("/v1/segment", files={"file": ("a.png", content)}).json()
    for kind in ("image/jpeg", "image/png", "IMAGE/PNG; x=1", "application/dicom"):  # its content says what it is
        answer = server.web.post("/v1/segment", content=content, headers={"content-type": kind})
        assert answer.json() == form | {"source": "frame"}
    headers = {"content-type": "image/png", "content-disposition": "attachment; filename*=UTF-8''../%C3%A4.png"}
    answer = server.web.post("/v1/segment?threshold=0.9", content=content, headers=headers).json()
    assert (answer["source"], answer["threshold"]) == ("ä.png", 0.9)
    raw = {"content-type": "image/jpeg"}
    refused(server.web.post("/v1/segment", content=b"", headers=raw), 422, "^frame: is empty")
    refused(server.web.post("/v1/segment", content=b"hello", headers=raw), 415, "^frame: is no image")
    refused(server.web.post("/v1/segment", content=bytes(2 << 20), headers=raw), 413, "larger than 1.25 MiB")
    refused(server.web.post("/v1/corrections", content=content, headers=raw), 422, "^file: is no field of this route")
    video = {"content-type": "video/mp4"}
    refused(server.web.post("/v1/jobs", content=b"hello", headers=video), 415, "^frame: ")


def test_min_area_is_of_the_operating_point(server: Any, segmenter: Any, frames: list[Path]) -> None:
    files = {"file": ("a.png", frames[1].read_bytes())}
    own = server.web.post("/v1/segment", files=files, params={"min_area": 0}).json()
    assert own["polyps"] and own["operating_point"]["min_area"] == 0
    share = max(one["area"] for one in own["polyps"]) / (own["width"] * own["height"])
    for where in ("params", "data"):
        answer = server.web.post("/v1/segment", files=files, **{where: {"min_area": min(0.99, 1.01 * share)}}).json()
        assert answer["polyps"] == []
        refused(server.web.post("/v1/segment", files=files, **{where: {"min_area": 1}}), 422, "min_area")


def test_the_headers_say_what_computed_it_and_how_long_it_took(server: Any, segmenter: Any, frames: list[Path]) -> None:
    answer = server.web.post("/v1/segment", files={"file": ("a.png", frames[1].read_bytes())})
    assert answer.headers["polypseg-model"] == f"exported {segmenter.hash}"
    assert answer.headers["polypseg-version"]
    steps = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(steps) == ["decode", "wait", "inference", "render"]
    assert 0 < sum(map(float, steps.values())) <= 1000 * answer.elapsed.total_seconds() + 0.3
    numbers = server.web.get("/metrics").text
    assert re.search(r'polypseg_inference_seconds_count\{model="exported"\} [1-9]', numbers)


# ---- models ---------------------------------------------------------------------------------------------


def test_models_are_called_by_their_names(two: Any, frames: list[Path]) -> None:
    files = {"file": ("a.png", frames[1].read_bytes())}
    assert two.web.get("/v1/model").json()["models"] == ["exported", "other"]
    assert two.web.get("/v1/model", params={"model": "other"}).json()["served_as"] == "other"
    for name, where in ((None, "params"), ("exported", "params"), ("other", "params"), ("other", "data")):
        answer = two.web.post("/v1/segment", files=files, **({where: {"model": name}} if name else {}))
        assert answer.status_code == 200 and answer.headers["polypseg-model"].split()[0] == (name or "exported")
    for way in ("params", "data"):
        answer = two.web.post("/v1/segment", files=files, **{way: {"model": "third"}})
        refused(answer, 422, "^model: there is none of that name; there are exported, other$")
    refused(two.web.get("/v1/model?model=third"), 422, "there are exported, other")


@pytest.mark.parametrize(
    ("models", "found"),
    [
        (["runs/a"], {"a": "runs/a"}),
        (["runs/a/", "b=runs/a/bundle"], {"a": "runs/a/", "b": "runs/a/bundle"}),
        (["runs/a/bundle"], {"a": "runs/a/bundle"}),
        (["hf://owner/name@main"], {"name": "hf://owner/name@main"}),
        (["x=hf://owner/name"], {"x": "hf://owner/name"}),
        (["a/b=c"], None),  # no name stands before =, and none can be made of it
        (["a", "b/a"], None),
        (["a=1", "a=2"], None),
        (["größe"], None),
    ],
)
def test_names_of_models(models: list[str], found: dict[str, str] | None) -> None:
    if found is not None:
        assert named(models) == found
        return
    with pytest.raises(UsageError, match="say what to call it, as --model NAME="):
        named(models)


def reloaded(service: Any, count: int) -> list[dict[str, Any]]:
    """What the log says of reloads, when it says so much; asks the service meanwhile."""
    for _ in range(2000):
        lines = [json.loads(line) for line in service.log.read_text().splitlines()]
        found = [line for line in lines if line["event"] in ("reload", "reload failed")]
        if len(found) >= count:
            return found
        service.web.get("/health/live")
    raise AssertionError(service.log.read_text()[-2000:])


def test_a_model_is_replaced_without_dropping_a_request(two: Any, frames: list[Path]) -> None:
    content, statuses, stop = frames[1].read_bytes(), [], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=two.url, timeout=60) as web:
            while not stop.is_set():
                answer = web.post("/v1/segment?model=other", files={"file": ("a.png", content)})
                statuses.append((answer.status_code, answer.json().get("threshold")))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        ModelBundle.load(two.copy).update(threshold=0.123)
        two.process.send_signal(signal.SIGHUP)
        told = reloaded(two, 2)
        assert [(line["model"], line["changed"]) for line in told] == [("exported", False), ("other", True)]
        seen = len(statuses)
        while (seen >= len(statuses) or statuses[-1][1] != 0.123) and all(thread.is_alive() for thread in threads):
            pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in statuses} == {200} and statuses[-1][1] == 0.123
    weights = two.copy / "metadata.json"
    text = weights.read_text()
    weights.write_text("{")  # half a copy: the one that is there continues
    two.process.send_signal(signal.SIGHUP)
    assert [line["event"] for line in reloaded(two, 4)[2:]] == ["reload", "reload failed"]
    assert two.web.get("/v1/model?model=other").json()["threshold"] == 0.123
    weights.write_text(text)


# ---- around it ------------------------------------------------------------------------------------------


def test_text_is_compressed_and_parts_of_files_are_not(server: Any, frames: list[Path]) -> None:
    with httpx.Client(base_url=server.url, headers={"accept-encoding": "gzip"}) as web:
        assert web.get("/openapi.json").headers["content-encoding"] == "gzip"
        assert web.get("/static/main.js").headers["content-encoding"] == "gzip"
        assert "content-encoding" not in web.get("/health/live").headers  # short
        files = {"file": ("a.png", frames[1].read_bytes())}
        answer = web.post("/v1/segment?probability=true", files=files)
        assert answer.headers["content-encoding"] == "gzip"
        plain = server.web.post("/v1/segment?probability=true", files=files, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers and plain.json() == answer.json()
        mask = web.post("/v1/segment", files=files, headers={"accept": "image/png"})
        assert "content-encoding" not in mask.headers
        part = web.get("/static/main.js", headers={"range": "bytes=0-9999"})
        assert "content-encoding" not in part.headers
    assert len(gzip.compress(plain.content, 1)) < len(plain.content)


def test_the_page_of_routes_needs_nothing_from_elsewhere(server: Any) -> None:
    page = server.web.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    named_files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert named_files and not [one for one in named_files if "//" in one]
    for one in named_files:
        assert server.web.get(f"/{one.removeprefix('.')}").status_code == 200
    assert "<script>" not in page.text and "style=" not in page.text  # as the policy asks
