"""polypseg.hub and push_to_hub, against a stand-in for the Hugging Face hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import polypseg
from polypseg import hub as module
from polypseg import zoo
from polypseg.bundle import SCHEMA_VERSION, Architecture, ModelBundle, Preprocessing
from polypseg.cli import main
from polypseg.errors import PolypsegError, UsageError

NAME = "someone/polyps-1.0"
TOKEN = "hf_SecretSecretSecretSecret"


@dataclass
class Hub:
    """Repositories by name, each a list of commits, oldest first; ``main`` is the last one."""

    url: str = ""
    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)  # uploaded aside, by SHA-256
    refuses: tuple[int, str] | None = None  # status and X-Error-Code of every answer

    @staticmethod
    def commit(files: dict[str, bytes]) -> str:
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def find(self, repository: str, revision: str) -> dict[str, bytes] | None:
        commits = self.repositories[repository]
        if revision == "main":
            return commits[-1]
        return next((one for one in commits if self.commit(one) == revision), None)


class Handler(http.server.BaseHTTPRequestHandler):
    state: Hub

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def note(self) -> bytes:
        self.state.requests.append(f"{self.command} {self.path}")
        self.state.tokens.append(self.headers.get("Authorization"))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self) -> None:
        self.note()
        if self.state.refuses:
            return self.reply(self.state.refuses[0], X_Error_Code=self.state.refuses[1])
        repository, _, rest = self.path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository not in self.state.repositories:
            return self.reply(404, X_Error_Code="RepoNotFound")
        files = self.state.find(repository, revision)
        if files is None:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        commit = self.state.commit(files)
        if name not in files:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        return self.reply(200, files[name], ETag=etag, X_Repo_Commit=commit)

    do_GET = do_HEAD

    def do_PUT(self) -> None:
        self.state.large[self.path.rpartition("/")[2]] = self.note()
        self.reply(200)

    def do_POST(self) -> None:
        body = self.note()
        if self.state.refuses:
            return self.reply(self.state.refuses[0], X_Error_Code=self.state.refuses[1])
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if repository in self.state.repositories:
                url = f"{self.state.url}/{repository}"
                return self.reply(409, json.dumps({"url": url}).encode(), Content_Type="application/json")
            self.state.repositories[repository] = [{}]
            self.state.private[repository] = asked.get("private", asked.get("visibility") == "private")
            return self.json({"url": f"{self.state.url}/{repository}", "name": repository, "id": repository})
        if self.path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [
                {
                    "path": name,
                    "uploadMode": "lfs" if name.endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for name in (one["path"] for one in json.loads(body)["files"])
            ]
            return self.json({"files": files})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.state.url}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.json({"transfer": "basic", "objects": objects})
        assert self.path.endswith("/commit/main"), self.path
        repository = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
        files = dict(self.state.repositories[repository][-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
        self.state.repositories[repository].append(files)
        commit = self.state.commit(files)
        return self.json({"commitOid": commit, "commitUrl": f"{self.state.url}/{repository}/commit/{commit}"})

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    state = Hub()
    handler = type("Own", (Handler,), {"state": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{listener.server_port}"
        point_to(state.url, tmp_path / "cache", monkeypatch)
        yield state
        listener.shutdown()
        thread.join()


def point_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HOME would do, which huggingface_hub reads only when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def no_network(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", cache, monkeypatch)


def save(folder: Path, seed: int = 0, **details: Any) -> ModelBundle:
    torch.manual_seed(seed)
    return ModelBundle.save(
        folder, torch.nn.Linear(5, 3).state_dict(), name="tiny", architecture=Architecture("Unet", "mobilenet_v2"),
        preprocessing=Preprocessing(64, 96), threshold=0.4, **details,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def with_exports(bundle: ModelBundle, **files: bytes) -> ModelBundle:
    """The bundle with files that an export wrote, as ``openvino__int8_xml=b"…"``."""
    named = {name.replace("__", "/").replace("_", "."): content for name, content in files.items()}
    for name, content in named.items():
        (bundle.folder / name).parent.mkdir(exist_ok=True)
        (bundle.folder / name).write_bytes(content)
    record = {
        "runtime": "openvino", "precision": "int8", "bytes": sum(map(len, named.values())), "verified": None,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in named.items()},
        "weights_sha256": bundle.metadata["weights_sha256"],
    }  # fmt: skip
    return bundle.update(exports=[record])


def refused(reference: str, *parts: str, kind: type[PolypsegError] = PolypsegError) -> str:
    with pytest.raises(PolypsegError) as caught:
        zoo.open(reference)
    message = str(caught.value)
    assert type(caught.value) is kind and len(message.splitlines()) == 1
    assert message.startswith(reference) and TOKEN not in message
    for part in parts:
        assert part in message, message
    return message


# ---- load ------------------------------------------------------------------------------------------------


def test_a_bundle_of_the_hub_is_whole_and_nothing_else_is_fetched(hub: Hub, tmp_path: Path) -> None:
    bundle = with_exports(save(tmp_path / "own"), openvino__int8_xml=b"<net/>", openvino__int8_bin=b"123")
    published = contents(bundle.folder)
    hub.repositories[NAME] = [{**published, "pytorch_model.bin": b"pickle", "model.py": b"code", "x.pkl": b"pickle"}]
    loaded = zoo.open(f"hf://{NAME}")
    assert loaded.hash == bundle.hash
    assert contents(loaded.folder) == published
    loaded.exports[0].verify()
    assert all("/resolve/" in request for request in hub.requests), "something phones home"


def test_a_commit_is_told_and_pins_the_model(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = save(tmp_path / "first", 1), save(tmp_path / "second", 2)
    hub.repositories[NAME] = [contents(first.folder)]
    assert zoo.open(f"hf://{NAME}").hash == first.hash
    commit = hub.commit(contents(first.folder))
    assert caplog.messages == [f"hf://{NAME}: main is commit {commit} now; hf://{NAME}@{commit} stays this one"]
    caplog.clear()

    hub.repositories[NAME].append(contents(second.folder))
    assert zoo.open(f"hf://{NAME}@main").hash == second.hash
    asked = len(hub.requests)
    caplog.clear()
    assert zoo.open(f"hf://{NAME}@{commit}").hash == first.hash
    assert len(hub.requests) == asked, "a commit that is here needs no network"
    assert caplog.messages == []

    shutil.rmtree(tmp_path / "cache")
    assert zoo.open(f"hf://{NAME}@{commit}").hash == first.hash
    assert len(hub.requests) > asked


@pytest.mark.parametrize(
    "reference",
    [
        "hf://", "hf://polyps", "hf://a/b/c", "hf://a/b@", "hf://a/b@-x", "hf://a/../b", "hf://a/b@x/../y",
        "hf://a b/c", "hf://a/b?x=1",
    ],
)  # fmt: skip
def test_what_is_no_name_of_the_hub_is_a_wrong_argument(hub: Hub, reference: str) -> None:
    refused(reference, "is no hf://owner/name", kind=UsageError)
    assert hub.requests == []


def test_the_hubs_refusals_are_told_apart(hub: Hub, tmp_path: Path) -> None:
    refused(f"hf://{NAME}", "not on the hub, or not open to you", "hf auth login")
    hub.repositories[NAME] = [{"README.md": b"# a model of another kind"}]
    refused(f"hf://{NAME}", "contains no metadata.json")
    refused(f"hf://{NAME}@v2", "has no revision 'v2'")
    hub.refuses = (403, "GatedRepo")
    refused(f"hf://{NAME}", "its owner grants access")
    hub.refuses = (500, "")
    refused(f"hf://{NAME}", "cannot be reached", "500")


def test_without_a_network_it_is_told_at_once_with_a_way_out(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch, tmp_path / "cache")
    start = time.monotonic()
    message = refused(f"hf://{NAME}", "refused", "connect, or set HF_ENDPOINT", "HF_HOME")
    assert time.monotonic() - start < 5
    assert "the commit that is here" not in message

    bundle = save(tmp_path / "own")
    hub.repositories[NAME] = [contents(bundle.folder)]
    point_to(hub.url, tmp_path / "cache", monkeypatch)
    zoo.open(f"hf://{NAME}")
    no_network(monkeypatch, tmp_path / "cache")
    message = refused(f"hf://{NAME}", "name the commit that is here")
    assert zoo.open(message.rpartition(", ")[2]).hash == bundle.hash


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, never answers
        point_to(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path, monkeypatch)
        start = time.monotonic()
        refused(f"hf://{NAME}", "timed out", "HF_ENDPOINT")
        assert time.monotonic() - start < 5


def joined(folder: Path) -> ModelBundle:
    """An ensemble of two, the second with an export."""
    second = with_exports(save(folder / "second", 2), openvino__int8_xml=b"<net/>", openvino__int8_bin=b"123")
    members = {"fold-1": save(folder / "first", 1), "fold-2": second}
    return ModelBundle.join(folder / "own", members, name="both", threshold=0.45)


def test_an_ensemble_goes_to_the_hub_and_comes_back_whole(hub: Hub, tmp_path: Path) -> None:
    bundle = joined(tmp_path)
    reference = polypseg.push_to_hub(bundle, NAME)
    card = {"README.md": hub.repositories[NAME][-1]["README.md"]}
    assert hub.repositories[NAME][-1] == {**contents(bundle.folder), **card}
    hub.repositories[NAME][-1]["fold-1/model.pkl"] = b"pickle"
    loaded = zoo.open(f"hf://{NAME}")
    assert loaded.hash == bundle.hash
    assert contents(loaded.folder) == contents(bundle.folder)
    loaded.members[1].exports[0].verify()
    asked = len(hub.requests)
    commit = loaded.folder.name
    assert zoo.open(f"hf://{NAME}@{commit}").hash == bundle.hash
    assert len(hub.requests) == asked, "a commit that is here needs no network"
    assert reference.startswith(f"hf://{NAME}@")
    for one in (loaded, *loaded.members):
        with pytest.raises(PolypsegError, match="is a published model"):
            one.update(threshold=0.1)


@pytest.mark.parametrize("name", ["..", "../../x", "/etc", ".git", "a/b"])
def test_a_member_that_is_none_is_not_fetched(hub: Hub, tmp_path: Path, name: str) -> None:
    metadata = {**joined(tmp_path).metadata, "members": {name: "0"}}
    hub.repositories[NAME] = [{"metadata.json": json.dumps(metadata).encode()}]
    refused(f"hf://{NAME}", repr(name), "do not use it")
    assert all(request.endswith("main/metadata.json") for request in hub.requests)


@pytest.mark.parametrize(
    "name",
    ["../../evil.xml", "/etc/passwd", "openvino/../x.xml", "openvino/model.pkl", "pytorch_model.bin", "onnx\\x.onnx"],
)
def test_an_export_that_is_none_is_not_fetched(hub: Hub, tmp_path: Path, name: str) -> None:
    bundle = save(tmp_path / "own")
    record = {"runtime": "openvino", "precision": "fp32", "files": {name: "0"}, "weights_sha256": "0"}
    metadata = {**bundle.metadata, "exports": [record]}
    hub.repositories[NAME] = [{**contents(bundle.folder), "metadata.json": json.dumps(metadata).encode(), name: b"x"}]
    refused(f"hf://{NAME}", repr(name), "do not use it")
    assert not [request for request in hub.requests if not request.endswith("/metadata.json")]


@pytest.mark.parametrize(("name", "most"), [("metadata.json", "MOST_BYTES"), ("model.safetensors", "MOST_FILE_BYTES")])
def test_what_is_larger_than_any_bundle_is_not_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: str
) -> None:
    files = contents(save(tmp_path / "own").folder)
    hub.repositories[NAME] = [files]
    monkeypatch.setattr(module, most, len(files[name]) - 1)
    refused(f"hf://{NAME}", f"its {name} is of {len(files[name]):,} bytes, more than any bundle's; do not use it")
    assert not [request for request in hub.requests if request.startswith("GET") and request.endswith(name)]
    monkeypatch.setattr(module, most, len(files[name]))
    zoo.open(f"hf://{NAME}")


def test_an_encoder_of_elsewhere_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    files = contents(save(tmp_path / "own").folder)
    files["metadata.json"] = files["metadata.json"].replace(b'"mobilenet_v2"', b'"tu-hf-hub:someone/else"')
    hub.repositories[NAME] = [files]
    with pytest.raises(PolypsegError, match="is no name of an encoder"):
        zoo.open(f"hf://{NAME}")
    assert all(NAME in request for request in hub.requests)


def test_a_card_that_is_a_link_is_not_uploaded(hub: Hub, tmp_path: Path) -> None:
    bundle = save(tmp_path / "own")
    (tmp_path / "private").write_text("a key")
    (bundle.folder / "README.md").symlink_to(tmp_path / "private")
    with pytest.raises(PolypsegError, match=r"README\.md: leads out of the bundle"):
        polypseg.push_to_hub(bundle.folder, NAME)
    with pytest.raises(PolypsegError, match=r"README\.md: leads out of the bundle"):
        polypseg.push_to_hub(bundle, NAME)
    assert hub.requests == []


def test_a_published_bundle_that_is_not_whole_is_refused(hub: Hub, tmp_path: Path) -> None:
    published = contents(save(tmp_path / "own").folder)
    damage: dict[str, dict[str, Any]] = {
        "model.safetensors: is not the file": {"model.safetensors": published["model.safetensors"][:-4]},
        "model.safetensors: is missing": {"model.safetensors": None},
        "newer polypseg": {
            "metadata.json": json.dumps({"schema_version": SCHEMA_VERSION + 1, "exports": 3}).encode()
        },
        "is not valid JSON": {"metadata.json": b"{"},
    }  # fmt: skip
    for says, changed in damage.items():
        files = {name: content for name, content in {**published, **changed}.items() if content is not None}
        hub.repositories[NAME] = [files]
        with pytest.raises(PolypsegError, match=says) as caught:
            zoo.open(f"hf://{NAME}")
        assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_cache_says_what_to_remove(hub: Hub, tmp_path: Path) -> None:
    bundle = save(tmp_path / "own")
    hub.repositories[NAME] = [contents(bundle.folder)]
    weights = zoo.open(f"hf://{NAME}").folder / "model.safetensors"
    weights.resolve().write_bytes(b"cut")
    with pytest.raises(PolypsegError, match="to have it fetched again") as caught:
        zoo.open(f"hf://{NAME}")
    removed = Path(str(caught.value).partition("; remove ")[2].partition(" to have")[0])
    assert tmp_path / "cache" in removed.parents
    shutil.rmtree(removed)
    assert zoo.open(f"hf://{NAME}").hash == bundle.hash


def test_a_fetched_bundle_stays_as_it_is(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[NAME] = [contents(save(tmp_path / "own").folder)]
    loaded = zoo.open(f"hf://{NAME}")
    with pytest.raises(PolypsegError, match="stays as it is; copy the folder"):
        loaded.update(threshold=0.9)
    shutil.copytree(loaded.folder, tmp_path / "copy")
    assert ModelBundle.load(tmp_path / "copy").update(threshold=0.9).threshold == 0.9
    assert zoo.open(f"hf://{NAME}").threshold == 0.4


def test_the_environment_names_the_hub(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME, as the message tells people to set them, in a process of its own."""
    bundle = save(tmp_path / "own")
    hub.repositories[NAME] = [contents(bundle.folder)]
    program = f"from polypseg import zoo; print(zoo.open('hf://{NAME}').hash)"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == bundle.hash, done.stderr
    assert f"hf://{NAME}: main is commit" in done.stderr and TOKEN not in done.stderr
    assert any((tmp_path / "home").rglob("model.safetensors"))
    assert all("/resolve/" in request for request in hub.requests), "something phones home"


def test_a_wrong_name_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "hf://polyps"]) == 2
    assert capsys.readouterr().err == "polypseg: hf://polyps: is no hf://owner/name or hf://owner/name@revision\n"


# ---- push ------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_what_is_loaded(hub: Hub, tmp_path: Path) -> None:
    bundle = with_exports(save(tmp_path / "own"), openvino__int8_xml=b"<net/>", openvino__int8_bin=b"123")
    (bundle.folder / "patients.csv").write_text("private")
    reference = polypseg.push_to_hub(bundle, NAME)
    assert reference == f"hf://{NAME}@{hub.commit(hub.repositories[NAME][-1])}"
    assert hub.private[NAME] is True
    assert hub.repositories[NAME][-1].keys() == {
        "metadata.json", "model.safetensors", "openvino/int8.xml", "openvino/int8.bin", "README.md",
    }  # fmt: skip
    assert hub.repositories[NAME][-1]["README.md"].decode().count("# tiny") == 1
    loaded = zoo.open(reference)
    assert loaded.hash == bundle.hash and loaded.exports[0].record == bundle.exports[0].record

    again = bundle.update(threshold=0.6)
    (bundle.folder / "README.md").write_text("# Our own words")
    second = polypseg.push_to_hub(bundle.folder, NAME, private=False)
    assert zoo.open(second).hash == again.hash
    assert zoo.open(reference).hash == bundle.hash, "the first upload stays"
    assert hub.repositories[NAME][-1]["README.md"] == b"# Our own words"


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    reference = polypseg.push_to_hub(save(tmp_path / "own"), NAME)
    zoo.open(reference)
    assert f"Bearer {TOKEN}" in hub.tokens
    output = capfd.readouterr()
    assert TOKEN not in caplog.text + output.out + output.err
    assert TOKEN.encode() not in b"".join(hub.repositories[NAME][-1].values())


def test_pushing_is_refused_in_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = with_exports(save(tmp_path / "own"), openvino__int8_xml=b"<net/>", openvino__int8_bin=b"123")
    with pytest.raises(UsageError, match="polyps: is no hf://owner/name"):
        polypseg.push_to_hub(bundle, "polyps")
    hub.refuses = (401, "")
    with pytest.raises(PolypsegError, match=r"not open to you; check the name, or log in") as caught:
        polypseg.push_to_hub(bundle, NAME)
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    hub.refuses = None
    (bundle.folder / "openvino" / "int8.bin").write_bytes(b"12")
    with pytest.raises(PolypsegError, match=r"int8\.bin: is not the file"):
        polypseg.push_to_hub(bundle, NAME)
    assert NAME not in hub.repositories
    (bundle.folder / "openvino" / "int8.bin").write_bytes(b"123")
    no_network(monkeypatch, tmp_path / "cache")
    with pytest.raises(PolypsegError, match=r"cannot be reached.*connect, or set"):
        polypseg.push_to_hub(bundle, NAME)
