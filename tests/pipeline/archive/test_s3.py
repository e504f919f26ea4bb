"""An archive in an object store that refuses, is empty, or is busy for a while: moto's, on this machine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("s3fs")
pytest.importorskip("pyarrow")
moto_server = pytest.importorskip("moto.server")
serving = pytest.importorskip("werkzeug.serving")

Run = Callable[..., tuple[int, str, list[str]]]
Check = Callable[..., list[dict[str, Any]]]
KEY = "AKIDGOOD"


class Shop:
    """moto's S3 behind a door: ``busy`` answers 503 to each object's first requests, ``closed`` to all."""

    def __init__(self) -> None:
        self.application = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        self.busy, self.closed = 0, False
        self.requests: Counter[tuple[str, str]] = Counter()  # that were let in, by method and path
        self.refused = 0
        self._first: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        key = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        if KEY not in environment.get("HTTP_AUTHORIZATION", ""):
            return self._no(start, "403 Forbidden", "InvalidAccessKeyId", "There is no such key.")
        with self._lock:
            self._first[key] += 1
            if self.closed or (key[1].count("/") > 1 and self._first[key] <= self.busy):
                self.refused += 1
                return self._no(start, "503 Service Unavailable", "ServiceUnavailable", "Please try again later.")
            self.requests[key] += 1
        answer: Iterable[bytes] = self.application(environment, start)
        return answer

    @staticmethod
    def _no(start: Callable[..., Any], status: str, code: str, message: str) -> Iterable[bytes]:
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Shop, str]]:
    """The store, and its address."""
    shop = Shop()
    silent = type("Silent", (serving.WSGIRequestHandler,), {"log": lambda *_: None})
    listening = serving.make_server("127.0.0.1", 0, shop, threaded=True, request_handler=silent)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield shop, f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join()


@pytest.fixture
def shop(server: tuple[Shop, str], frames: list[Path], monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The store, its buckets ``archive`` (frames below ``exams/``) and ``empty``, and the keys to it."""
    import fsspec
    import s3fs

    shop, address = server
    shop.busy, shop.closed = 0, False
    for name, value in {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    if not store.exists("archive"):
        for bucket in ("archive", "empty", "results"):
            store.mkdir(bucket)
        for path in frames:
            store.pipe_file(f"archive/exams/{path.name}", path.read_bytes())
    if store.exists("results"):
        store.rm("results", recursive=True)
    store.mkdir("results")
    shop._first.clear()
    shop.requests.clear()
    shop.refused = 0
    shop.store = store  # type: ignore[attr-defined]
    return shop


@pytest.fixture
def run(run: Run, light: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same for ``light`` and one thread, by a new connection; keyword arguments set the environment."""
    import s3fs

    def call(*arguments: object, **environment: str) -> tuple[int, str, list[str]]:
        s3fs.S3FileSystem.clear_instance_cache()
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            return run(*arguments, "--model", light.folder, "--threads", 1)

    return call


def names(frames: list[Path]) -> list[str]:
    return [f"s3://archive/exams/{path.name}" for path in frames]


def test_from_store_to_store(shop: Any, frames: list[Path], tmp_path: Path, run: Run, check: Check) -> None:
    options = ("s3://archive/exams", "--out", "s3://results/one", "--partition", "16")
    status, printed, _ = run(*options)
    assert status == 0 and printed.startswith("s3://results/one: 40 frames, ")
    shop.store.get("results/one", str(tmp_path), recursive=True)
    check(tmp_path / "one", names(frames))
    assert {count for (method, path), count in shop.requests.items() if method == "GET" and "/exams/" in path} == {1}
    written = {key: count for key, count in shop.requests.items() if key[0] == "PUT" and "/one/" in key[1]}
    assert len(written) == 40 + 3 + 3 and all(count == 1 for key, count in written.items() if "done.csv" not in key[1])
    shop.requests.clear()
    status, printed, _ = run(*options, "--resume")
    assert status == 0 and "40 frames (40 kept from before)" in printed
    assert not any("/exams/" in path for _, path in shop.requests)


def test_a_store_that_is_busy_for_a_while_is_waited_for(
    shop: Any, frames: list[Path], tmp_path: Path, run: Run, check: Check
) -> None:
    shop.busy = 1
    out = tmp_path / "out"
    status, _, errors = run("s3://archive", "--out", out, "--partition", "16")
    assert status == 0, errors
    assert shop.refused >= 40
    check(out, names(frames))


def test_a_store_that_stays_busy_stops_the_run_and_spoils_no_row(
    shop: Any, frames: list[Path], tmp_path: Path, run: Run, check: Check
) -> None:
    out = tmp_path / "out"
    lines = "".join(f"{name}\n" for name in names(frames))
    (tmp_path / "m.csv").write_text(f"path\n{lines}")
    shop.closed = True
    options = (tmp_path / "m.csv", "--out", out, "--partition", "16")
    status, _, errors = run(*options, AWS_MAX_ATTEMPTS="1")
    told = [line for line in errors if line.startswith("polypseg: ")]
    assert status == 1 and len(told) == 1
    assert told[0].startswith("polypseg: s3://archive/exams/phantom-00") and "cannot be reached" in told[0]
    assert not (out / "partitions").exists()
    shop.closed = False
    assert run(*options, "--resume")[0] == 0
    check(out, names(frames))


def test_an_object_that_is_missing_is_a_row(
    shop: Any, frames: list[Path], tmp_path: Path, run: Run, check: Check
) -> None:
    named = [*names(frames[:3]), "s3://archive/exams/gone.png", "s3://nobucket/1.png"]
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"{name}\n" for name in named))
    status, _, errors = run(tmp_path / "m.csv", "--out", tmp_path / "out")
    assert status == 1 and errors[-1] == "2 of 5 frames could not be read; their rows say why"
    rows = check(tmp_path / "out", named, [3, 4])
    assert "gone.png: is missing" in rows[3]["error"]


@pytest.mark.parametrize(
    ("source", "environment", "message"),
    [
        ("s3://archive", {"AWS_ACCESS_KEY_ID": "AKIDWRONG"}, "s3://archive: access is refused"),
        ("s3://archive/m.csv", {"AWS_ACCESS_KEY_ID": "AKIDWRONG"}, "s3://archive/m.csv: access is refused"),
        ("s3://empty", {}, "s3://empty: contains no image"),
        ("s3://nobucket", {}, "s3://nobucket: is missing"),
        ("s3://archive/nothing", {}, "s3://archive/nothing: is missing"),
        ("s3://archive", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "cannot be reached"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    shop: Any, tmp_path: Path, run: Run, source: str, environment: dict[str, str], message: str
) -> None:
    status, printed, errors = run(source, "--out", tmp_path / "out", **environment)
    assert (status, printed) == (1, "") and len(errors) == 1
    assert errors[0].startswith("polypseg: ") and message in errors[0]
    assert not (tmp_path / "out" / "run.json").exists()


def test_keys_that_expire_on_the_way_spoil_no_row(shop: Any, frames: list[Path], tmp_path: Path, run: Run) -> None:
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"{name}\n" for name in names(frames)))
    status, _, errors = run(tmp_path / "m.csv", "--out", tmp_path / "out", AWS_ACCESS_KEY_ID="AKIDWRONG")
    assert status == 1 and "access is refused" in errors[-1] and errors[-1].startswith("polypseg: ")
    assert not (tmp_path / "out" / "partitions").exists()
