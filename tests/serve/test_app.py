"""The service as programs see it: right answers, and a line for whatever is wrong."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from polypseg.data import read
from polypseg.drawing import overlay
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.quality import judge
from polypseg.io.outputs import frame_record
from polypseg.io.pictures import read_frame, read_mask
from polypseg.serve.app import preferred


def post(server: Any, path: Path | bytes, name: str = "frame.jpg", **options: Any) -> Any:
    content = path if isinstance(path, bytes) else path.read_bytes()
    return server.web.post("/v1/segment", files={"file": (name, content)}, **options)


def decoded(content: bytes, how: int = cv2.IMREAD_UNCHANGED) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), how), np.uint8)


def refused(answer: Any, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text
    line = answer.json()["error"]
    assert list(answer.json()) == ["error"] and re.search(says, line), line
    assert "\n" not in line and "/tmp" not in line and "temporary" not in line and "site-packages" not in line


# ---- one frame ------------------------------------------------------------------------------------------


def test_the_answer_is_the_segmenters(server: Any, segmenter: Any, frames: list[Path]) -> None:
    found = 0
    for path in frames[:6]:
        answer = post(server, path, path.name)
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        expected = frame_record(segmenter.segment(read_frame(path)), source=path.name, model=segmenter.hash)
        expected["operating_point"] = asdict(segmenter.operating_point)
        expected["quality"] = judge(read_frame(path)).to_dict()
        assert answer.json() == json.loads(json.dumps(expected))
        found += len(expected["polyps"])
    assert found


def test_the_operating_point_of_a_request(server: Any, segmenter: Any, frames: list[Path]) -> None:
    frame = read_frame(frames[1])
    own = segmenter.operating_point
    for asked, where in (
        ({"threshold": own.threshold - 0.02}, "params"), ({"min_confidence": 1}, "params"),
        ({"threshold": own.threshold - 0.02, "min_confidence": 0.999}, "data"),
    ):  # fmt: skip
        point = replace(own, **asked)
        expected = segmenter.segmentation(
            segmenter.probability(frame), *frame.shape[:2], outside=outside_of(frame), point=point
        )
        answer = post(server, frames[1], **{where: asked}).json()
        assert answer["operating_point"] == asdict(point) and answer["threshold"] == point.threshold
        assert answer["polyps"] == json.loads(json.dumps([polyp.to_dict() for polyp in expected.polyps]))
    both = post(server, frames[1], params={"threshold": 0.9}, data={"threshold": 0.1}).json()
    assert both["threshold"] == 0.1  # the form goes before
    for name in ("threshold", "min_confidence"):
        for value in ("2", "-0.1", "nan", "high"):
            for where in ("params", "data"):
                refused(post(server, frames[1], **{where: {name: value}}), 422, name)


def test_where_a_frame_shows_nothing_of_the_patient_is_told(
    server: Any, segmenter: Any, frames: list[Path], tmp_path: Path
) -> None:
    frame = read_frame(frames[1])
    frame[:, : frame.shape[1] // 3] = 0
    path = tmp_path / "bordered.png"
    Image.fromarray(frame).save(path)
    answer = post(server, path, params={"probability": "true"}).json()
    beyond = decoded(base64.b64decode(answer["outside"])) > 0
    assert beyond[:, : beyond.shape[1] // 4].all() and not beyond[:, beyond.shape[1] // 2 :].all()
    expected = segmenter.segment(frame)
    assert answer["polyps"] == json.loads(json.dumps([polyp.to_dict() for polyp in expected.polyps]))


def test_the_mask_the_overlay_and_the_probability(server: Any, segmenter: Any, frames: list[Path]) -> None:
    frame = read_frame(frames[1])
    alone = segmenter.segment(frame)
    answer = post(server, frames[1], headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert (decoded(answer.content) == alone.mask * 255).all()
    answer = post(server, frames[1], headers={"accept": "image/jpeg;q=0.9, text/html"})
    drawn = overlay(frame, alone.mask, boxes=[polyp.box for polyp in alone.polyps])
    assert np.abs(decoded(answer.content)[..., ::-1].astype(int) - drawn).mean() < 4
    answer = post(server, frames[1], params={"probability": "true"})
    levels = decoded(base64.b64decode(answer.json()["probability"]))
    assert np.abs(levels / 255 - segmenter.probability(frame)).max() < 0.003


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"), ("", None), ("text/html", None), ("image/*", "image/png"),
        ("image/jpeg", "image/jpeg"), ("application/json;q=0.5,image/jpeg;q=0.8", "image/jpeg"),
        ("IMAGE/PNG", "image/png"), ("image/png;q=0,*/*;q=0.1", "application/json"), ("image/png;q=x", "image/png"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"), (";;,,q=", None),
    ],
)  # fmt: skip
def test_accept_is_understood(accept: str, kind: str | None) -> None:
    assert preferred(accept) == kind


def test_many_at_once_get_each_its_own_answer(server: Any, segmenter: Any, frames: list[Path]) -> None:
    expected = {path: segmenter.segment(read_frame(path)).mask * 255 for path in frames}

    def check(path: Path) -> bool:
        answer = post(server, path, headers={"accept": "image/png"})
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            return False
        return bool((decoded(answer.content) == expected[path]).all())

    with ThreadPoolExecutor(16) as pool:  # fewer than the queue contains
        assert all(pool.map(check, frames * 3))


def test_a_full_queue_says_when_to_come_again(start: Any, frames: list[Path], tmp_path: Path) -> None:
    narrow = start(tmp_path / "state", "--queue", "2", "--timeout", "20")
    large = io.BytesIO()
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)).save(large, "PNG")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: post(narrow, large.getvalue()), range(24)))
    assert {answer.status_code for answer in answers} == {200, 429}
    late = next(answer for answer in answers if answer.status_code == 429)
    refused(late, 429, "come again in [0-9]+ s")
    assert int(late.headers["retry-after"]) >= 1
    assert post(narrow, frames[0]).status_code == 200
    assert narrow.end() == 0


# ---- what is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disposition", "kept"),
    [
        (b"filename*=UTF-8''caf%C3%A9%20%E2%82%AC.jpg", "caf\u00e9 \u20ac.jpg"),
        (b"filename=\"x.jpg\"; filename*=utf-8'en'y.jpg", "y.jpg"),
        (b"filename*0*=UTF-8''a%20; filename*1=b.jpg", "a b.jpg"),
        (b'filename="=?UTF-8?B?w7xuw68uanBn?="', "\u00fcn\u00ef.jpg"),
        (b'filename="=?utf-8?q?caf=C3=A9?=.jpg"', "caf\u00e9.jpg"),
        (b'filename="=?nonsense?B?w7xu?=.jpg"', "=_nonsense_B_w7xu_=.jpg"),
        (b"filename*=UTF-8''..%2F..%2Fpasswd", "passwd"),
        ('filename="\u00e9.jpg"'.encode(), "\u00e9.jpg"),
    ],
)
def test_a_name_is_understood_in_every_spelling(server: Any, frames: list[Path], disposition: bytes, kept: str) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; ' + disposition + b"\r\n\r\n"
    body = head + frames[0].read_bytes() + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = server.web.post("/v1/segment", content=body, headers=headers)
    assert answer.status_code == 200 and answer.json()["source"] == kept, answer.text


def test_what_is_not_declared_is_refused_by_name(server: Any, frames: list[Path]) -> None:
    good = frames[0].read_bytes()
    refused(
        post(server, good, params={"treshold": "0.8"}), 422, "^treshold: is no parameter of this route; known: .*prob"
    )
    refused(post(server, good, data={"colour": "red"}), 422, "^colour: is no field of this route; known: .*file")
    refused(
        post(server, good, params=[("probability", "1"), ("probability", "0")]), 422, "^probability: is given 2 times"
    )
    two = [("file", ("a.jpg", good)), ("file", ("b.jpg", good))]
    refused(server.web.post("/v1/segment", files=two), 422, "^file: is given 2 times; give it once")
    refused(
        server.web.get("/v1/jobs", params={"page": "2"}),
        422,
        "^page: is no parameter of this route; known: after, limit",
    )
    refused(server.web.get("/v1/corrections?x"), 422, "^x: is no parameter of this route; there are none here")
    known = "file, min_area, min_confidence, smoothing, threshold"
    refused(server.web.post("/v1/jobs", files=two, data={"smooth": "0.5"}), 422, f"^smooth: .*known: {known}")
    refused(server.web.post("/v1/jobs", data={"file": "x", "a\nb": "1"}), 422, "^a_b: is no field")


def test_many_or_large_fields_are_cut_off(server: Any) -> None:
    before = server.memory()
    large = {f"field-{number}": "x" * (1 << 20) for number in range(7)}
    message = "^field-0: is larger than 16 KiB, the most of a field"
    refused(server.web.post("/v1/jobs", files=[("file", ("a.jpg", b"x"))], data=large), 400, message)
    refused(server.web.post("/v1/jobs", data=large), 400, message)  # urlencoded
    many = {f"field-{number}": "x" for number in range(60)}
    refused(server.web.post("/v1/jobs", files=[("file", ("a.jpg", b"x"))], data=many), 400, "Too many fields")
    refused(server.web.post("/v1/segment", data=large), 413, "larger than")
    assert server.memory() - before < 30_000_000


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/v1/model", "/v1/jobs", "/v1/corrections"])
def test_head_is_answered_as_get_without_the_body(server: Any, path: str) -> None:
    answer = server.web.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == server.web.get(path).headers["content-type"]


def test_jobs_come_in_pages(server: Any, frames: list[Path]) -> None:
    known = [
        server.web.post("/v1/jobs", files={"file": ("a.jpg", frame.read_bytes())}).json()["id"] for frame in frames[:3]
    ]
    for identity in known:  # then nothing changes between two requests
        server.wait_for(identity, lambda job: job["state"] == "done")
    listed, address, pages = [], "/v1/jobs?limit=2", 0
    while address:
        answer = server.web.get(address)
        listed += [job["id"] for job in answer.json()]
        assert len(answer.json()) <= 2
        address, pages = answer.links.get("next", {}).get("url", ""), pages + 1
    assert listed[-3:] == known and pages == -(-len(listed) // 2)
    assert server.web.get("/v1/jobs", params={"after": known[0]}).json() == [
        server.web.get(f"/v1/jobs/{identity}").json() for identity in known[1:]
    ]
    refused(server.web.get("/v1/jobs?limit=0"), 422, "^limit: ")


def test_what_cannot_be_segmented_is_told_in_one_line(server: Any, frames: list[Path], clip: Path) -> None:
    good = frames[0].read_bytes()
    refused(post(server, b"hello", "notes.txt"), 415, r"^notes.txt: is no image")
    refused(post(server, good[:300], "cut.jpg"), 422, r"^cut.jpg: is damaged")
    refused(post(server, clip, "clip.mp4"), 415, "send it to /v1/jobs")
    refused(post(server, good + bytes(2 << 20)), 413, "larger than 1.25 MiB")
    refused(post(server, good, headers={"accept": "text/html"}), 406, "application/json")
    refused(server.web.post("/v1/segment"), 422, "file: Field required")
    refused(server.web.post("/v1/segment", data={"file": "text"}), 422, "file: must be a file")
    refused(server.web.post("/v1/segment", content=b"\0" * 100), 422, "file")
    broken = {"content-type": "multipart/form-data; boundary=x"}
    refused(server.web.post("/v1/segment", content=b"\0" * 100, headers=broken), 400, "")
    refused(server.web.post("/v1/segment", content=b"", headers={"content-type": "multipart/form-data"}), 400, "")
    refused(server.web.get("/v1/segment"), 405, "")
    refused(server.web.get("/nowhere"), 404, "")
    refused(server.web.get("/v1/jobs/none"), 404, "no such job")
    refused(server.web.delete("/v1/jobs/none"), 404, "no such job")


def test_a_body_without_a_length_is_cut_off_too(server: Any) -> None:
    def endless() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            yield bytes(1 << 16)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(server.web.post("/v1/segment", content=endless(), headers=headers), 413, "larger than")


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..\\..\\x.png", "a\0b.png", "x" * 3000 + ".png", "", "<script>.png", "%2e%2e/x"]
)
def test_a_name_never_leads_out_of_the_state_folder(server: Any, frames: list[Path], name: str) -> None:
    before = set(server.log.parent.iterdir())
    answer = server.web.post("/v1/jobs", files={"file": (name, frames[0].read_bytes())})
    if name == "":  # a field without a file name is no file
        assert answer.status_code in (202, 422)
    else:
        assert answer.status_code == 202, answer.text
    if answer.status_code == 202:
        found = server.wait_for(answer.json()["id"], lambda job: job["state"] == "done")
        for file in [*found["files"], *found["names"]]:
            assert not set("/\\\0<>%") & set(file) and len(file.encode()) < 150
        for file in found["files"]:
            assert server.web.get(f"/v1/jobs/{found['id']}/files/{file}").status_code == 200
    assert set(server.log.parent.iterdir()) == before


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd",
        "/v1/jobs/../../jobs.sqlite", "/v1/jobs/x/files/../../jobs.sqlite", "/v1/jobs/x/files/..%2f..%2fjobs.sqlite",
        "/v1/jobs/%2e%2e/files/jobs.sqlite", "/v1/jobs/%00/files/%00", "/\0", "/v1/jobs/'%20OR%201=1%20--",
    ],
)  # fmt: skip
def test_no_path_leads_to_other_files(server: Any, path: str) -> None:
    status, body = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status in (400, 404), body
    assert b"sqlite" not in body.lower() and b"import" not in body


def raw(server: Any, request: bytes, parts: tuple[bytes, ...] = ()) -> tuple[int, bytes]:
    """Status and answer to bytes sent as they are."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        try:
            for part in (request, *parts):
                connection.sendall(part)
        except (ConnectionResetError, BrokenPipeError):
            pass
        answer = b""
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionResetError:
            pass
    return (int(answer.split()[1]) if answer else 0), answer


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
    ids=["header", "headers", "address", "TLS", "text", "version", "negative", "two lengths", "chunks", "two hosts"],
)
def test_what_is_no_http_is_refused(server: Any, request_: bytes) -> None:
    status, answer = raw(server, request_)
    assert status in (400, 421, 431)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head and list(json.loads(body)) == ["error"]
    assert server.web.get("/health/ready").status_code == 200


@pytest.mark.slow
def test_a_thousand_bad_requests_do_no_harm(server: Any, frames: list[Path]) -> None:
    good = frames[0].read_bytes()
    rng = np.random.default_rng(5)
    bad = [
        b"",
        b"x",
        good[:400],
        good[:-200],
        rng.bytes(5000),
        b"\x89PNG\r\n\x1a\n" + rng.bytes(100),
        bytes(200) + good,
    ]

    def send(number: int) -> int:
        content = bytearray(bad[number % len(bad)])
        if content and number > 500:
            content[number % len(content)] ^= 0xFF
        kind = number % 4
        if kind == 0:
            return int(server.web.post("/v1/segment", content=bytes(content)).status_code)
        if kind == 1:
            return int(server.web.post("/v1/corrections", files={"frame": ("f", bytes(content))}).status_code)
        return int(post(server, bytes(content), f"bad-{number}.jpg").status_code)

    before = server.memory()
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(send, range(1000)))
    assert set(statuses) <= {200, 400, 415, 422, 429}  # a cut JPEG may still be whole enough to be read
    assert sum(status == 200 for status in statuses) < 100
    assert server.web.get("/health/ready").status_code == 200
    assert post(server, good).status_code == 200
    assert server.memory() - before < 60_000_000
    assert [line for line in server.log.read_text().splitlines() if "crash" in line] == []
    left = (server.log.parent / "state" / "temporary").iterdir()
    assert [path for path in left if not path.name.startswith("pymp-")] == []  # which contains the decoders' socket


@pytest.mark.slow
def test_whatever_the_description_allows_is_never_answered_500(server: Any) -> None:
    """Schemathesis: examples of every route, broken ones too; each answer as the description says."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [str(program), "run", f"{server.url}/openapi.json", "--checks", checks, "--seed", "1"]
    done = subprocess.run(
        [*command, "--max-examples", "15", "--no-color"], capture_output=True, text=True, cwd=server.log.parent
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert [line for line in server.log.read_text().splitlines() if "crash" in line] == []


# ---- jobs -----------------------------------------------------------------------------------------------


def test_a_video_from_its_upload_to_its_removal(server: Any, clip: Path) -> None:
    files = {"file": ("exam.mp4", clip.read_bytes())}
    answer = server.web.post("/v1/jobs", files=files, data={"smoothing": "0.3"})
    assert answer.status_code == 202
    job = answer.json()
    assert (job["kind"], job["total"], job["names"]) == ("video", 30, ["exam.mp4"])
    found = server.wait_for(job["id"], lambda job: job["state"] == "done")
    assert found["done"] == 30 and set(found["files"]) == {"exam.mp4", "exam.jsonl", "exam.timeline.json"}
    assert found in server.web.get("/v1/jobs").json()
    address = f"/v1/jobs/{job['id']}/files"
    whole = server.web.get(f"{address}/exam.mp4")
    assert whole.headers["content-type"] == "video/mp4" and whole.content[4:8] == b"ftyp"
    part = server.web.get(f"{address}/exam.mp4", headers={"range": "bytes=100-299"})
    assert part.status_code == 206 and part.content == whole.content[100:300]
    assert part.headers["content-range"] == f"bytes 100-299/{len(whole.content)}"
    assert server.web.get(f"{address}/exam.mp4", headers={"range": f"bytes={10**12}-"}).status_code == 416
    lines = server.web.get(f"{address}/exam.jsonl").text.splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(30))
    refused(server.web.get(f"{address}/exam.part.mp4"), 404, "no such file")
    assert server.web.delete(f"/v1/jobs/{job['id']}").status_code == 204
    refused(server.web.get(f"/v1/jobs/{job['id']}"), 404, "no such job")
    refused(server.web.get(f"{address}/exam.mp4"), 404, "no such job")


@pytest.mark.parametrize("smoothing", ["1", "-0.1", "nan", "inf", "much"])
def test_a_wrong_field_is_told(server: Any, clip: Path, smoothing: str) -> None:
    answer = server.web.post("/v1/jobs", files={"file": ("a.mp4", clip.read_bytes())}, data={"smoothing": smoothing})
    refused(answer, 422, "^smoothing: ")


def test_a_video_is_followed_anew_at_another_operating_point(
    server: Any, clip: Path, frames: list[Path], make_clip: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    point = server.web.get("/v1/model").json()["operating_point"]
    files = {"file": ("exam.mp4", clip.read_bytes())}
    former = server.web.post("/v1/jobs", files=files, data={"smoothing": "0.3", "min_area": "0.01"}).json()
    assert former["operating_point"] == {**point, "min_area": 0.01} and former["replaces"] is None
    server.wait_for(former["id"], lambda job: job["state"] == "done")
    address = f"/v1/jobs/{former['id']}/again"
    refused(server.web.post(address, data={"threshold": "0.9"}), 409, "not kept; send its file")
    other = make_clip(tmp_path / "other.mp4", 3).read_bytes()
    refused(server.web.post(address, files={"file": ("exam.mp4", other)}), 409, "^exam.mp4: is another file")
    for wrong in ({"threshold": "1.5"}, {"min_confidence": "nan"}, {"min_area": "1"}, {"replace": "perhaps"}):
        refused(server.web.post(address, data=wrong), 422, f"^{next(iter(wrong))}: ")
    refused(server.web.post(f"/v1/jobs/{'0' * 32}/again", data={"threshold": "0.9"}), 404, "no such job")
    still = server.web.post("/v1/jobs", files={"file": ("a.png", frames[0].read_bytes())}, params={"threshold": 0.9})
    refused(server.web.post(f"/v1/jobs/{still.json()['id']}/again"), 409, "only a video")

    new = server.web.post(address, files=files, data={"threshold": "0.125", "min_confidence": "0.25"}).json()
    assert (new["names"], new["replaces"]) == (["exam.mp4"], None)
    assert new["operating_point"] == {**point, "threshold": 0.125, "min_confidence": 0.25}
    done = server.wait_for(new["id"], lambda job: job["state"] == "done")
    timeline = server.web.get(f"/v1/jobs/{new['id']}/files/exam.timeline.json").json()
    assert timeline["operating_point"] == done["operating_point"] == new["operating_point"]
    assert (timeline["tracker"]["start"], timeline["tracker"]["keep"]) == (0.25, 0.1875)  # half way to the threshold
    assert timeline["smoothing"] == 0.3
    for job in (former, new, still.json()):  # none takes another's place unless it is asked to
        found = server.wait_for(job["id"], lambda job: job["state"] == "done")
        assert found["operating_point"] == job["operating_point"]
        assert server.web.delete(f"/v1/jobs/{job['id']}").status_code == 204


# ---- corrections ----------------------------------------------------------------------------------------


def test_corrections_become_a_data_set(server: Any, phantom_folder: Path, frames: list[Path], tmp_path: Path) -> None:
    def send(number: int, name: str, mask: Path) -> Any:
        files = {"frame": ("f.jpg", frames[number].read_bytes()), "mask": ("m.png", mask.read_bytes())}
        return server.web.post("/v1/corrections", files=files, data={"name": name})

    masks = sorted((phantom_folder / "masks").iterdir())
    already = server.web.get("/v1/corrections").json()["names"]
    assert send(0, "exam-1.jpg", masks[0]).json() == {"name": "exam-1"}
    assert send(1, "exam-1.png", masks[1]).json() == {"name": "exam-1-2"}  # another frame of that name
    assert send(0, "exam-1.jpg", masks[2]).json() == {"name": "exam-1"}  # the same one, corrected again
    assert send(2, "../../x", masks[3]).json() == {"name": "x"}
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.zeros((5, 5), np.uint8))
    refused(send(0, "exam-1", small), 422, "mask: is 5×5 but its frame 88×72")
    cv2.imwrite(str(small), np.eye(72, 88, dtype=np.uint8))
    refused(send(0, "exam-1", small), 422, r"contains the values 0 and 1, no white \(255\); save polyps as 255$")
    assert set(server.web.get("/v1/corrections").json()["names"]) == {*already, "exam-1", "exam-1-2", "x"}

    catalog = read(server.log.parent / "state" / "corrections")
    names = [row.frame_id for row in catalog]
    assert (catalog.frame(names.index("exam-1")) == read_frame(frames[0])).all()
    assert (catalog.mask(names.index("exam-1")) == read_mask(masks[2])).all()
    assert (catalog.mask(names.index("exam-1-2")) == read_mask(masks[1])).all()
    archive = server.web.get("/v1/corrections.zip")
    assert archive.headers["content-type"] == "application/zip"
    (tmp_path / "c.zip").write_bytes(archive.content)
    shutil.unpack_archive(tmp_path / "c.zip", tmp_path / "unpacked")
    assert len(read(tmp_path / "unpacked" / "corrections")) == len(catalog)


# ---- the service itself ---------------------------------------------------------------------------------


def test_the_model_and_its_limits(server: Any, segmenter: Any) -> None:
    found = server.web.get("/v1/model").json()
    assert found["hash"] == segmenter.hash and found["threshold"] == segmenter.threshold
    assert found["operating_point"] == asdict(segmenter.operating_point)
    assert (found["height"], found["width"]) == (64, 96)
    assert found["limits"] == {
        "max_bytes": 1 << 20, "max_pixels": 1_000_000, "max_job_bytes": 8 << 20, "max_video_seconds": 20.0,
    }  # fmt: skip
    assert "Research use only" in found["intended_use"]


def test_every_file_that_the_page_names_is_there(server: Any) -> None:
    named = re.findall(r'(?:href|src)="(static/[^"]+)"', server.web.get("/").text)
    assert {"static/theme.css", "static/style.css", "static/main.js"} <= set(named)
    for path in named:
        assert server.web.get(f"/{path}").status_code == 200, path


def test_every_answer_has_the_headers_that_keep_a_page_to_itself(server: Any) -> None:
    for path in ("/", "/v1/model", "/nowhere", "/static/nowhere"):
        headers = server.web.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "server" not in headers and "access-control-allow-origin" not in headers
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert server.web.options("/v1/segment", headers=asked).status_code == 403


def test_numbers_and_logs_tell_of_requests_but_of_no_file(server: Any, frames: list[Path]) -> None:
    post(server, frames[0], "Jane Doe 1970.jpg")
    post(server, b"hello", "Jane Doe 1970.jpg")
    numbers = server.web.get("/metrics").text
    assert re.search(r'polypseg_requests_total\{method="POST",route="/v1/segment",status="200"\} [1-9]', numbers)
    assert "process_resident_memory_bytes" in numbers and 'polypseg_jobs{state="queued"} 0.0' in numbers
    log = server.log.read_text()
    entries = [json.loads(line) for line in log.splitlines()]
    found = [entry for entry in entries if entry.get("route") == "/v1/segment"]
    assert found and {"time", "level", "event", "id", "method", "status", "ms"} <= set(found[-1])
    for text in (numbers, log):
        assert "Jane" not in text and frames[0].name not in text


def test_the_description_is_complete(server: Any) -> None:
    found = server.web.get("/openapi.json").json()
    expected = {
        "/health/live": {"get"}, "/health/ready": {"get"}, "/metrics": {"get"}, "/v1/model": {"get"},
        "/v1/segment": {"post"}, "/v1/jobs": {"get", "post"}, "/v1/jobs/{id}": {"get", "delete"},
        "/v1/jobs/{id}/files/{name}": {"get"}, "/v1/jobs/{id}/upload": {"get"}, "/v1/jobs/{id}/again": {"post"},
        "/v1/corrections": {"get", "post"}, "/v1/corrections.zip": {"get"},
        "/v1/me": {"get"}, "/v1/labels": {"get"}, "/v1/training": {"get", "delete"}, "/v1/projects": {"get", "post"},
        "/v1/projects/{project}": {"get", "delete"}, "/v1/projects/{project}/restore": {"post"},
        "/v1/projects/{project}/imports": {"post"}, "/v1/projects/{project}/imports/{id}": {"get"},
        "/v1/projects/{project}/export": {"get"}, "/v1/projects/{project}/training": {"post"},
        "/v1/projects/{project}/frames": {"get", "post"}, "/v1/projects/{project}/frames/{hash}": {"get", "delete"},
        **{f"/v1/projects/{{project}}/frames/{{hash}}/{kind}": {"get"} for kind in ("image", "thumbnail", "mask")},
        **{f"/v1/projects/{{project}}/frames/{{hash}}/{kind}": {"post"} for kind in ("restore", "presence")},
        "/v1/projects/{project}/frames/{hash}/versions": {"get", "post"},
        "/v1/projects/{project}/frames/{hash}/versions/{version}/restore": {"post"},
        "/v1/prompt": {"get", "post"}, "/v1/propagate": {"post"},
    }  # fmt: skip
    assert {path: set(methods) for path, methods in found["paths"].items()} == expected
    assert set(found["paths"]["/v1/segment"]["post"]["responses"]["200"]["content"]) == {
        "application/json", "image/png", "image/jpeg",
    }  # fmt: skip
    for methods in found["paths"].values():
        for route in methods.values():
            assert route["summary"] and route["description"]
    bodies = found["paths"]["/v1/segment"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "image/jpeg", "image/png", "application/dicom"}
    assert server.web.get("/redoc").status_code == 404
