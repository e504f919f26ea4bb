"""Bundles from anyone: names that lead out, sizes that cannot be, and what a hash covers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.errors import PolypsegError, UsageError
from polypseg.metadata import MOST_BYTES, canonical

DIGEST = "0" * 64


def save(folder: Path, seed: int = 0, **details: Any) -> ModelBundle:
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "architecture": Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8)),
        "threshold": 0.4,
    }
    return ModelBundle.save(
        folder, torch.nn.Linear(5, 3).state_dict(), name="tiny", preprocessing=Preprocessing(64, 96),
        **{**values, **details},
    )  # fmt: skip


def change(folder: Path, values: dict[str, Any], **nested: Any) -> None:
    """Edit metadata.json by hand; ``nested`` changes a value inside an object, as ``preprocessing={"height": 0}``."""
    file = folder / "metadata.json"
    metadata = {**json.loads(file.read_text()), **values}
    for key, inner in nested.items():
        metadata[key] = {**metadata[key], **inner}
    file.write_text(json.dumps(metadata))


def with_export(bundle: ModelBundle, **record: Any) -> ModelBundle:
    """The bundle with an OpenVINO export of a few bytes."""
    (bundle.folder / "openvino").mkdir()
    files = {"openvino/int8.xml": b"<net/>", "openvino/int8.bin": b"123"}
    for name, content in files.items():
        (bundle.folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return bundle.update(exports=[{**export(digests, bundle.metadata["weights_sha256"]), **record}])


def export(files: dict[str, str], weights: str, runtime: str = "openvino") -> dict[str, Any]:
    return {"runtime": runtime, "precision": "int8", "files": files, "weights_sha256": weights}


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(PolypsegError) as caught:
        ModelBundle.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message.splitlines()) == 1 and len(message) < 1000
    for part in parts:
        assert part in message, message


# ---- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", [False, True], ids=["of these weights", "of others"])
@pytest.mark.parametrize(
    "name",
    [
        "../../evil.xml", "/etc/passwd", "openvino/../../x.xml", "openvino/model.pkl", "x.xml", "openvino\\x.xml",
        "openvino//x.xml", "./openvino/x.xml", "openvino/x.xml\n", "openvino/x.xml\x00", "openvino/é.xml", "C:/x.xml",
        "openvino/.x.xml", "metadata.json", "file:///etc/x.xml", "OPENVINO/x.xml",
    ],
)  # fmt: skip
def test_an_exports_file_lies_in_its_folder(tmp_path: Path, name: str, stale: bool) -> None:
    bundle = save(tmp_path / "b")
    weights = DIGEST if stale else bundle.metadata["weights_sha256"]
    change(bundle.folder, {"exports": [export({name: DIGEST, "openvino/x.bin": DIGEST}, weights)]})
    refused(bundle.folder, "metadata.json: contains an unusable value", "which no export is")


@pytest.mark.parametrize(
    "record",
    [
        {"files": {}}, {"files": {"openvino/x.xml": DIGEST}}, {"files": {"onnx/x.onnx": DIGEST}}, {"files": 3},
        {"files": {"openvino/x.xml": DIGEST, "openvino/y.bin": DIGEST}}, {"runtime": "tensorrt"}, {"runtime": ["onnx"]},
        {"files": {"openvino/x.xml": DIGEST, "openvino/x.bin": "1"}}, {"precision": "../x"}, {"precision": None},
        {"files": {"openvino/x.xml": DIGEST, "openvino/x.bin": None}}, {"runtime": "onnx"},
        {"files": {"onnx/x.xml": DIGEST, "onnx/x.bin": DIGEST}},
    ],
    ids=str,
)  # fmt: skip
def test_an_exports_record_is_one_that_polypseg_writes(tmp_path: Path, record: dict[str, Any]) -> None:
    bundle = save(tmp_path / "b")
    files = {"openvino/x.xml": DIGEST, "openvino/x.bin": DIGEST}
    change(bundle.folder, {"exports": [{**export(files, bundle.metadata["weights_sha256"]), **record}]})
    refused(bundle.folder, "metadata.json: contains an unusable value")


@pytest.mark.parametrize(
    "name",
    [
        "..", ".", "../other", "/etc", "a/b", "a\\b", ".git", "", "metadata.json", "Model.safetensors", "openvino",
        "a.", "x" * 200, "é",
    ],
)  # fmt: skip
def test_a_member_lies_in_a_folder_of_its_name(tmp_path: Path, name: str) -> None:
    one = save(tmp_path / "other")
    bundle = ModelBundle.join(tmp_path / "b", {"a": one}, name="all", threshold=0.5)
    change(bundle.folder, {"members": {name: one.network_hash}})
    refused(bundle.folder, "metadata.json: contains an unusable value")
    with pytest.raises(ValueError, match="member"):
        ModelBundle.join(tmp_path / "c", {name: one}, name="all", threshold=0.5)
    assert not (tmp_path / "c").exists()


def test_members_are_not_without_number(tmp_path: Path) -> None:
    bundle = ModelBundle.join(tmp_path / "b", {"a": save(tmp_path / "a")}, name="all", threshold=0.5)
    change(bundle.folder, {"members": {f"m{number}": DIGEST for number in range(65)}})
    refused(bundle.folder, "names 65 members, more than 64")
    # one that contains itself, by way of a link
    (bundle.folder / "m0").symlink_to(bundle.folder)
    change(bundle.folder, {"members": {"m0": DIGEST}})
    refused(bundle.folder, "m0: leads out of the bundle")


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "model.safetensors": lambda file, _: None,
    "metadata.json": lambda file, _: None,
    "README.md": lambda file, secret: secret.write_text("# private"),
    "openvino/int8.bin": lambda file, _: None,
    "openvino": lambda file, _: None,
    "onnx": lambda file, secret: secret.mkdir(),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    folder = with_export(save(tmp_path / "b")).folder
    file, outside = folder / name, tmp_path / "outside"
    if file.exists():
        shutil.move(file, outside)
    LINKS[name](file, outside)
    file.symlink_to(outside)
    refused(folder, f"{name}", f"leads out of the bundle, to {outside}")
    file.unlink()
    file.symlink_to(os.path.relpath(outside, file.parent))
    refused(folder, "leads out of the bundle")


def test_links_inside_a_bundle_and_to_a_bundle_are_followed(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    (bundle.folder / "model.safetensors").rename(bundle.folder / "weights")
    (bundle.folder / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(bundle.folder)
    assert ModelBundle.load(tmp_path / "link").hash == bundle.hash
    (bundle.folder / "model.safetensors").unlink()
    (bundle.folder / "model.safetensors").symlink_to("model.safetensors")
    refused(bundle.folder, "model.safetensors")


def test_a_member_that_is_a_link_is_refused(tmp_path: Path) -> None:
    one = save(tmp_path / "one")
    bundle = ModelBundle.join(tmp_path / "b", {"a": one}, name="all", threshold=0.5)
    shutil.rmtree(bundle.folder / "a")
    (bundle.folder / "a").symlink_to(one.folder)
    refused(bundle.folder, "a: leads out of the bundle")


def test_a_folder_that_looks_like_the_hubs_cache_leads_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "snapshots" / ("0" * 40)
    bundle = save(folder)
    shutil.move(folder / "model.safetensors", tmp_path / "secret")
    (tmp_path / "x" / "blobs").symlink_to(tmp_path)
    (folder / "model.safetensors").symlink_to(Path("../../blobs/secret"))
    refused(folder, "leads out of the bundle")
    (tmp_path / "x" / "blobs").unlink()
    (tmp_path / "x" / "blobs").mkdir()
    shutil.move(tmp_path / "secret", tmp_path / "x" / "blobs" / "secret")
    assert ModelBundle.load(folder).hash == bundle.hash


@pytest.mark.skipif(os.name == "nt", reason="no FIFO")
def test_what_never_ends_is_no_file(tmp_path: Path) -> None:
    bundle = with_export(save(tmp_path / "b"))
    (bundle.folder / "openvino" / "int8.bin").unlink()
    os.mkfifo(bundle.folder / "openvino" / "int8.bin")
    with pytest.raises(PolypsegError, match=r"int8\.bin: is missing"):
        bundle.exports[0].verify()
    (bundle.folder / "model.safetensors").unlink()
    os.mkfifo(bundle.folder / "model.safetensors")
    refused(bundle.folder, "model.safetensors: is missing")


ENCODERS = [
    "tu-hf-hub:timm/resnet18", "tu-hf_hub:timm/resnet18", "tu-local-dir:/etc", "tu-local_dir:x", "hf-hub:a/b", "tu-a/b",
    "https://host/x", "tu-https://host/x", "../x", "/etc/passwd", "tu-..\\x", "", " ", "a b", "a" * 200, "é", "tu-x?y",
    "x\n", 3, None, ["resnet18"],
]  # fmt: skip


@pytest.mark.parametrize("encoder", ENCODERS, ids=repr)
def test_an_encoders_name_opens_nothing(tmp_path: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = save(tmp_path / "b")
    change(bundle.folder, {}, architecture={"encoder": encoder})
    refused(bundle.folder, "metadata.json: contains an unusable value", "is no name of an encoder")
    from polypseg.training.recipe import ModelConfig, Recipe

    with pytest.raises(UsageError, match="encoder"):
        Recipe(model=ModelConfig(encoder=encoder))


@pytest.mark.parametrize("name", ["unet", "Unet.x", "../Unet", "os", "Unet()", "", 3, None, "__class__"], ids=repr)
def test_an_architectures_name_is_one_of_smps(tmp_path: Path, name: Any) -> None:
    from polypseg.models.network import build

    bundle = save(tmp_path / "b")
    change(bundle.folder, {}, architecture={"name": name})
    with pytest.raises(PolypsegError) as caught:
        build(ModelBundle.load(bundle.folder).architecture)
    assert len(str(caught.value).splitlines()) == 1


def test_loading_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for names that timm has weights for."""
    from polypseg.inference.runtimes.torch import TorchRuntime
    from polypseg.models.network import build

    def no(*arguments: Any, **named: Any) -> Any:
        raise AssertionError(f"opens a socket: {arguments}")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, no)
    monkeypatch.setattr(socket, "getaddrinfo", no)
    for encoder in ("tu-mobilenetv3_small_050.lamb_in1k", "mobilenet_v2"):
        architecture = Architecture("Unet", encoder, (32, 16, 16, 8, 8))
        state = build(architecture).state_dict()
        bundle = ModelBundle.save(
            tmp_path / encoder, state, name="x", architecture=architecture, preprocessing=Preprocessing(64, 64),
            threshold=0.5,
        )  # fmt: skip
        TorchRuntime(ModelBundle.load(bundle.folder), "cpu")
    for encoder in ("tu-hf-hub", "tu-hf_hub.x", "tu-nosuch.tag", "tu-resnet18.nosuch_tag", "nosuch"):
        with pytest.raises(PolypsegError):
            build(Architecture("Unet", encoder))


# ---- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("preprocessing", {"height": 2**40}), ("preprocessing", {"width": 10**400}),
        ("preprocessing", {"height": True}),
        ("preprocessing", {"height": 64.0}), ("preprocessing", {"height": -64}), ("preprocessing", {"width": "64"}),
        ("preprocessing", {"mean": [1e300, 0, 0]}), ("preprocessing", {"mean": [float("nan"), 0, 0]}),
        ("preprocessing", {"mean": [[0.5]] * 3}), ("preprocessing", {"mean": "abc"}), ("preprocessing", {"mean": None}),
        ("preprocessing", {"std": [1e-300, 1, 1]}), ("preprocessing", {"std": [float("inf"), 1, 1]}),
        ("preprocessing", {"std": [1] * 100}), ("preprocessing", {"std": [True] * 3}),
        ("preprocessing", {"interpolation": {}}),
        ("architecture", {"decoder_channels": [10**9] * 5}), ("architecture", {"decoder_channels": [16] * 100}),
        ("architecture", {"decoder_channels": [0]}), ("architecture", {"decoder_channels": [16.5]}),
        ("architecture", {"decoder_channels": "16"}), ("architecture", {"decoder_channels": 5}),
        ("architecture", {"decoder_channels": [True]}), ("architecture", {"decoder_dropout": 2}),
        ("architecture", {"decoder_dropout": float("nan")}), ("architecture", {"output_stride": 10**9}),
        ("architecture", {"depth": 10**9}),
        ("operating_point", {"threshold": float("nan")}), ("operating_point", {"min_area": 2}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_number_is_one_that_can_be(tmp_path: Path, part: str, values: dict[str, Any]) -> None:
    bundle = save(tmp_path / "b")
    change(bundle.folder, {}, **{part: values})
    refused(bundle.folder, "metadata.json: contains an unusable value")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 1e-320), ("temperature", 0), ("temperature", float("inf")), ("temperature", "1"),
        ("temperature", True), ("temperature", None), ("name", ""), ("name", "a\x1b[2Jb"), ("name", "x" * 10**6),
        ("name", "a\nb"), ("name", 3), ("tta", {}), ("encoder_weights", "x"), ("recipe", []), ("split", "pranet"),
        ("data", 3), ("data", {"datasets": [3]}), ("data", {"datasets": "x"}), ("split", {"hash": []}),
        ("recipe", {"loss": 3}), ("encoder_weights", {"bundle": "x"}), ("metrics", {"test": 1}),
        ("evaluations", {}), ("exports", {}), ("exports", None), ("metrics", 0.9), ("failures", "none"),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_an_entry_is_of_its_type(tmp_path: Path, key: str, value: Any) -> None:
    bundle = save(tmp_path / "b")
    change(bundle.folder, {key: value})
    refused(bundle.folder, "metadata.json: contains an unusable value")


def test_what_only_a_report_or_a_card_uses_is_one_line_too(tmp_path: Path) -> None:
    from polypseg.evaluation.run import loss_of
    from polypseg.export.card import render

    for number, details in enumerate(({"recipe": {"loss": {"x": 1}}}, {"recipe": {"loss": {"bce": "1"}}})):
        with pytest.raises(PolypsegError, match="a loss that polypseg does not know"):
            loss_of(save(tmp_path / str(number), **details))
    for number, details in enumerate(
        ({"evaluations": [3]}, {"speed": {"rows": [1]}}, {"metrics": {"test": {"x": 1}}}), 2
    ):
        bundle = save(tmp_path / str(number), **details)
        with pytest.raises(PolypsegError, match=r"metadata\.json: no model card can be made of it") as caught:
            render(bundle)
        assert len(str(caught.value).splitlines()) == 1
    assert "# tiny" in render(save(tmp_path / "plain"))


TEXTS = {
    "deep": '{"a": ' * 100 + "1" + "}" * 100,
    "deeper": "[" * 10**6,
    "twice": '{"threshold": 0.5, "threshold": 0.4}',
    "a number of a million digits": '{"a": ' + "1" * 10**6 + "}",
    "half a character": '{"name": "\\ud800"}',
    "half a character as a key": '{"\\udfff": 1}',
    "a list": "[]",
    "bytes": "\x00\x01",
}


@pytest.mark.parametrize("name", TEXTS)
def test_json_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    bundle = save(tmp_path / "b")
    (bundle.folder / "metadata.json").write_text(TEXTS[name])
    refused(bundle.folder, "metadata.json: is not ")


def test_an_enormous_metadata_json_is_not_read(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    os.truncate(bundle.folder / "metadata.json", MOST_BYTES + 1)
    refused(bundle.folder, "metadata.json: is larger than 32 MiB")
    os.truncate(bundle.folder / "metadata.json", 2**40)
    refused(bundle.folder, "metadata.json: is larger than 32 MiB")


def test_enormous_weights_are_not_read(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    os.truncate(bundle.folder / "model.safetensors", 2**40)
    refused(bundle.folder, "model.safetensors: is larger than 4096 MiB")


def test_the_frames_of_anyone_are_one_line(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    file = bundle.folder / "frames.csv"
    for content, says in (
        (b"dataset,frame_id,split,sha256\na,b\n", "cannot be read"), (b"x\n" + b"y" * 200_000, "cannot be read"),
        (b"x\n\xff\xfe\n", "cannot be read"), (b"x\n" + b"a,b,c,d,e\n", "cannot be read"),
    ):  # fmt: skip
        file.write_bytes(content)
        change(bundle.folder, {"frames": {"sha256": hashlib.sha256(content).hexdigest()}})
        with pytest.raises(PolypsegError, match=says) as caught:
            ModelBundle.load(bundle.folder).frames()
        assert str(caught.value).startswith(f"{file}: ") and len(str(caught.value).splitlines()) == 1
    os.truncate(file, 2**40)
    with pytest.raises(PolypsegError, match="is larger than 256 MiB"):
        ModelBundle.load(bundle.folder).frames()
    file.unlink()
    file.symlink_to("/etc/hostname")
    refused(bundle.folder, "frames.csv: leads out of the bundle")
    change(bundle.folder, {"frames": "x"})
    refused(bundle.folder, "frames is of type str")


def tensors(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


WEIGHTS = {
    "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "no header": b"",
    "an empty header": (0).to_bytes(8, "little") + b"{}",
    "a header of 5 MiB": (5 * 2**20).to_bytes(8, "little") + b" " * (5 * 2**20),
    "no JSON": tensors(b"{{{{"),
    "129 GB": tensors({"w": {"dtype": "F32", "shape": [2**35], "data_offsets": [0, 2**37]}}),
    "a shape of its own": tensors({"w": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}, b"1234"),
    "one byte of two tensors": tensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"1234"
    ),
    "deep": tensors(b'{"a":' + b"[" * 10**5),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_claim_more_than_there_is_are_one_line(tmp_path: Path, name: str) -> None:
    bundle = save(tmp_path / "b")
    (bundle.folder / "model.safetensors").write_bytes(WEIGHTS[name])
    change(bundle.folder, {"weights_sha256": hashlib.sha256(WEIGHTS[name]).hexdigest()})
    for call in (ModelBundle.weights, ModelBundle.weight_shapes):
        with pytest.raises(PolypsegError, match=r"model\.safetensors: is damaged") as caught:
            call(ModelBundle.load(bundle.folder))
        assert len(str(caught.value).splitlines()) == 1


def test_shapes_are_compared_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polypseg.export.formats import write_openvino
    from polypseg.inference.runtimes import torch as runtime

    def build(architecture: Architecture) -> Any:
        raise AssertionError("takes memory")

    huge = save(tmp_path / "b", architecture=Architecture("UnetPlusPlus", "mobilenet_v2", (4096,) * 5))
    monkeypatch.setattr(runtime, "build", build)
    for call in (lambda: runtime.TorchRuntime(huge, "cpu"), lambda: write_openvino(huge, tmp_path / "x.xml", False)):
        with pytest.raises(PolypsegError, match="its weights do not fit its architecture") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1


def test_every_kind_of_network_is_compared_without_memory() -> None:
    """Encoders that compute with numbers while they are built among them."""
    from polypseg.models.network import build, weight_shapes

    for architecture in (
        Architecture("FPN", "mit_b0"),
        Architecture("UnetPlusPlus", "tu-tf_efficientnet_lite0", (64, 48, 32, 16, 8), 0, 4),
    ):  # fmt: skip
        expected = {name: tuple(value.shape) for name, value in build(architecture).state_dict().items()}
        assert weight_shapes(architecture) == expected


# ---- the hash --------------------------------------------------------------------------------------------


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return [reordered(one) for one in value] if isinstance(value, list) else value


def test_the_hash_does_not_depend_on_how_the_json_is_written(tmp_path: Path) -> None:
    bundle = with_export(save(tmp_path / "b", temperature=2.0))
    file = bundle.folder / "metadata.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(reordered(before), separators=(",", ":")))
    again = ModelBundle.load(bundle.folder)
    assert (again.hash, again.network_hash) == (bundle.hash, bundle.network_hash)
    assert again.exports[0].model.name == "int8.xml"
    text = json.dumps(before)
    file.write_text(text.replace('"temperature": 2.0', '"temperature": 2').replace("0.4,", "4.00e-1,"))
    assert "4.00e-1" in file.read_text() and ModelBundle.load(bundle.folder).hash == bundle.hash
    file.write_text(text.replace('"temperature": 2.0', '"temperature": 2.0000001'))
    assert ModelBundle.load(bundle.folder).hash != bundle.hash


def test_canonical_json() -> None:
    assert (
        canonical({"b": 1.0, "a": [0.5, -0.0, True, None, "é", (1, 2)]})
        == '{"a":[0.5,0,true,null,"\\u00e9",[1,2]],"b":1}'
    )
    assert canonical(1e22) == canonical(10**22) and canonical(0.1) != canonical(0.1 + 1e-17 * 2)
    with pytest.raises(ValueError):
        canonical([float("nan")])


def test_the_hash_covers_the_exports_files(tmp_path: Path) -> None:
    plain = save(tmp_path / "b")
    bundle = with_export(plain)
    assert bundle.hash != plain.hash and bundle.network_hash == plain.network_hash == plain.hash
    graph = bundle.folder / "openvino" / "int8.xml"
    graph.write_bytes(b"<met/>")
    tampered = ModelBundle.load(bundle.folder)
    with pytest.raises(PolypsegError, match=r"int8\.xml: is not the file that metadata\.json describes"):
        tampered.exports[0].verify()
    with pytest.raises(PolypsegError, match=r"int8\.xml: is not the file"):
        ModelBundle.join(tmp_path / "c", {"a": tampered}, name="x", threshold=0.5)
    record = json.loads(json.dumps(bundle.metadata["exports"]))
    record[0]["files"]["openvino/int8.xml"] = hashlib.sha256(b"<met/>").hexdigest()
    change(bundle.folder, {"exports": record})
    again = ModelBundle.load(bundle.folder)
    again.exports[0].verify()
    assert again.hash not in (bundle.hash, plain.hash)
    change(bundle.folder, {"exports": [{**record[0], "weights_sha256": DIGEST}]})  # which is never used
    assert ModelBundle.load(bundle.folder).hash == plain.hash


def test_an_export_of_a_member_changes_the_ensembles_hash_and_nothing_else(tmp_path: Path) -> None:
    members = {name: save(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))}
    bundle = ModelBundle.join(tmp_path / "all", members, name="all", threshold=0.5)
    with_export(bundle.members[1])
    again = ModelBundle.load(bundle.folder)
    assert again.hash != bundle.hash and again.network_hash == bundle.network_hash
    change(bundle.folder, {"members": dict(reversed(bundle.metadata["members"].items()))})
    assert ModelBundle.load(bundle.folder).hash == again.hash
    assert [one.folder.name for one in ModelBundle.load(bundle.folder).members] == ["a", "b"]


def test_an_ensemble_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    one = save(tmp_path / "a")
    bundle = ModelBundle.join(tmp_path / "all", {"a": one}, name="all", threshold=0.5)
    deciding = ("weights_sha256", "architecture", "preprocessing", "operating_point")
    lines = "".join(f"{part}={bundle.members[0].metadata[part]}\n" for part in deciding)
    change(bundle.folder, {"members": {"a": hashlib.sha256(lines.encode()).hexdigest()}})
    assert ModelBundle.load(bundle.folder).hash == bundle.hash


def test_what_was_measured_with_another_hash_is_dropped(tmp_path: Path) -> None:
    measured: dict[str, Any] = {
        "metrics": {"test": {"n": 3, "dice": 0.9}}, "metric_definitions": {"dice": "x"}, "evaluations": [],
        "speed": {"rows": []}, "failures": ["x"],
    }  # fmt: skip
    bundle = save(tmp_path / "b", licence="x", **measured)
    same = bundle.update(licence="y", device="z")
    assert all(same.metadata[key] == value for key, value in measured.items())
    for number, details in enumerate(({"threshold": 0.7}, {"temperature": 3.0}, {"tta": "hflip"})):
        changed = save(tmp_path / str(number), licence="x", **measured).update(**details)
        assert not measured.keys() & changed.metadata.keys() and changed.metadata["licence"] == "x"
    kept = bundle.update(threshold=0.8, metrics={"test": {"n": 4, "dice": 0.8}})
    assert kept.metadata["metrics"] == {"test": {"n": 4, "dice": 0.8}} and "evaluations" not in kept.metadata
    exported = with_export(save(tmp_path / "e", **measured))
    assert not measured.keys() & exported.metadata.keys() and exported.exports


def test_settings_tell_a_temperature_given_by_hand(tmp_path: Path) -> None:
    from polypseg.inference.segmenter import Segmenter
    from polypseg.models.network import build

    architecture = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
    bundle = ModelBundle.save(
        tmp_path / "b", build(architecture).state_dict(), name="x", architecture=architecture,
        preprocessing=Preprocessing(32, 32), threshold=0.5, temperature=2.0,
    )  # fmt: skip
    own, given = (Segmenter(bundle, "torch", "cpu", "fp32", temperature=one) for one in (None, 3.0))
    assert own.settings != given.settings and given.settings["temperature"] == 3.0
    assert json.loads(json.dumps(own.settings)) == own.settings


# ---- formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["../secret.bin", "secret.bin", "{folder}/secret.bin"])
def test_an_onnx_export_reads_no_other_file(tmp_path: Path, place: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from polypseg.inference.runtimes.onnx import ONNXRuntime

    bundle = save(tmp_path / "b")
    (bundle.folder / "onnx").mkdir()
    for folder in (bundle.folder, bundle.folder / "onnx"):
        (folder / "secret.bin").write_bytes(np.zeros(1, np.float32).tobytes())
    weight = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=place.format(folder=bundle.folder))
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 64, 96]) for name in ("frame", "logits")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["frame", "w"], ["logits"])], "g", *[[e] for e in ends]
    )
    graph.initializer.append(weight)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    content = model.SerializeToString()
    (bundle.folder / "onnx" / "fp32.onnx").write_bytes(content)
    files = {"onnx/fp32.onnx": hashlib.sha256(content).hexdigest()}
    made = bundle.update(exports=[{**export(files, bundle.metadata["weights_sha256"], "onnx"), "precision": "fp32"}])
    with pytest.raises(PolypsegError, match=r"fp32\.onnx: cannot be opened by ONNX Runtime") as caught:
        ONNXRuntime(made.exports[0], made.preprocessing)
    assert len(str(caught.value).splitlines()) == 1
