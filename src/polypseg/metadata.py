"""What a bundle's ``metadata.json`` may contain and name; it may come from anyone.

Everything is checked before anything is built, opened or fetched by it: its size, the names of files in it, of encoders
and of members. Numbers are checked where they are used, by ``bundle`` and ``operating_point``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polypseg.errors import PolypsegError

METADATA_FILE = "metadata.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
FRAMES_FILE = "frames.csv"
FORMATS = {"openvino": "xml", "onnx": "onnx"}  # of exports, and the suffix of the file that is opened
PRECISIONS = ("fp32", "bf16", "int8")
MOST_BYTES = 32 * 2**20  # of metadata.json
MOST_DEPTH = 64  # of what lies in one another: a dozen lineages
MOST_MEMBERS = 64
MOST_FILE_BYTES = 4 * 2**30  # of weights and of an export's file
MOST_FRAMES_BYTES = 256 * 2**20  # of frames.csv: two million frames

_MEMBER = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # each member lies in a folder of its name
_EXPORT = re.compile(r"(openvino|onnx)/\w[\w-]{0,99}\.(xml|bin|onnx)", re.ASCII)  # a .bin elsewhere may be a pickle
_SHA256 = re.compile(r"[0-9a-f]{64}")
# No slash and no colon: timm takes hf-hub:… and local-dir:… for places to read a network from.
_ENCODER = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_ARCHITECTURE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,49}")
_LONGEST_NAME = 200
_OBJECT, _LIST, _TEXT = (dict, type(None)), (list, type(None)), (str, type(None))
_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "tta": (str,), "architecture": (dict,), "preprocessing": (dict,), "operating_point": (dict,),
    "postprocessing": (dict,), "members": (dict,), "exports": (list,), "recipe": _OBJECT, "data": _OBJECT,
    "frames": _OBJECT,
    "split": _OBJECT, "encoder_weights": _OBJECT, "metrics": _OBJECT, "metric_definitions": _OBJECT,
    "taught_by": _OBJECT, "speed": _OBJECT, "conformal": _OBJECT, "versions": _OBJECT, "evaluations": _LIST,
    "failures": _LIST, "averaged_from": _LIST, "licence": _TEXT, "commit": _TEXT, "device": _TEXT,
    "compacted_from": _TEXT,
}  # fmt: skip
_INNER: dict[tuple[str, str], tuple[type, ...]] = {
    ("data", "datasets"): _LIST, ("split", "name"): _TEXT, ("split", "hash"): _TEXT, ("recipe", "loss"): _OBJECT,
    ("encoder_weights", "bundle"): _OBJECT, ("metrics", "test"): _OBJECT,
}  # fmt: skip


def read_metadata(file: Path) -> dict[str, Any]:
    """Read ``metadata.json``.

    Raises:
        PolypsegError: it cannot be read, is no JSON object, is larger or deeper than any bundle's, or has a key twice.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise PolypsegError(f"{file}: cannot be read ({error.strerror})") from error
    if len(content) > MOST_BYTES:
        raise PolypsegError(f"{file}: is larger than {MOST_BYTES // 2**20} MiB, which no bundle's is; do not use it")
    try:
        metadata = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
        _check_depth(metadata)
    except (ValueError, RecursionError) as error:
        raise PolypsegError(f"{file}: is not valid JSON ({error}); copy the bundle again") from error
    if not isinstance(metadata, dict):
        raise PolypsegError(f"{file}: is not a JSON object; copy the bundle again")
    return metadata


def check_kinds(metadata: Mapping[str, Any]) -> None:
    """Whether entries are of the types that they are used as.

    Raises:
        ValueError: one is not, or the name is none to print.
    """
    for key, kinds in _KINDS.items():
        if key in metadata and not isinstance(metadata[key], kinds):
            raise ValueError(f"{key} is of type {type(metadata[key]).__name__}")
    for (key, inner), kinds in _INNER.items():
        value = (metadata.get(key) or {}).get(inner)
        if not isinstance(value, (*kinds, type(None))):
            raise ValueError(f"{key}.{inner} is of type {type(value).__name__}")
    if not all(isinstance(one, str) for one in (metadata.get("data") or {}).get("datasets") or ()):
        raise ValueError("data.datasets contains other things than names")
    name = metadata["name"]
    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise ValueError(f"name {name[:_LONGEST_NAME]!r}")


def member_names(metadata: Any) -> list[str]:
    """The members that an ensemble's ``metadata.json`` names, each a folder's name; none of a single network.

    Raises:
        ValueError: a name may lead elsewhere, or there are too many.
        TypeError, AttributeError: it is not as it should be.
    """
    names = list(metadata.get("members", {}).keys())
    if len(names) > MOST_MEMBERS:
        raise ValueError(f"names {len(names)} members, more than {MOST_MEMBERS}")
    for name in names:
        if not is_member(name):
            raise ValueError(f"names {name!r}, which no member is")
    return names


def is_member(name: str) -> bool:
    """Whether a name can be a member's."""
    ours = {one.lower() for one in (METADATA_FILE, WEIGHTS_FILE, CARD_FILE, FRAMES_FILE, *FORMATS)}
    return _MEMBER.fullmatch(name) is not None and name.lower() not in ours and not name.endswith(".")


def export_files(metadata: Any) -> list[str]:
    """The exports' files that ``metadata.json`` names, in the folder of their format.

    Raises:
        ValueError: a name is none of an export's, and may lead elsewhere.
        TypeError, KeyError, AttributeError: it is not as it should be.
    """
    names = [str(name) for export in metadata.get("exports", []) for name in export["files"]]
    for name in names:
        if not _EXPORT.fullmatch(name):
            raise ValueError(f"names {name!r}, which no export is")
    return names


def model_file(record: Mapping[str, Any]) -> str:
    """Of an export's record the file that its runtime opens.

    Raises:
        ValueError: the record is none of an export that polypseg writes.
    """
    runtime, files = record["runtime"], record["files"]
    if runtime not in FORMATS or record["precision"] not in PRECISIONS:
        raise ValueError(f"names an export {runtime!r} {record['precision']!r}, which there is none of")
    if not all(isinstance(one, str) and _SHA256.fullmatch(one) for one in files.values()):
        raise ValueError(f"names an export {runtime} {record['precision']} without the SHA-256 of its files")
    suffixes = {"xml", "bin"} if runtime == "openvino" else {"onnx"}
    if {name.rpartition(".")[2] for name in files} != suffixes or len({name.rpartition(".")[0] for name in files}) > 1:
        raise ValueError(f"names {', '.join(map(repr, files)) or 'no files'}, which no export to {runtime} has")
    model = next(name for name in files if name.endswith(FORMATS[runtime]))
    if not model.startswith(f"{runtime}/"):
        raise ValueError(f"names {model!r}, which no export to {runtime} is")
    return str(model)


def check_network(name: Any, encoder: Any) -> None:
    """Whether names can be those of a class and of an encoder that a library has; nothing is looked up.

    Raises:
        ValueError: one may be a path, a URL, or name another place to load from.
    """
    if not isinstance(name, str) or not _ARCHITECTURE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an architecture, as UnetPlusPlus")
    if not isinstance(encoder, str) or not _ENCODER.fullmatch(encoder):
        raise ValueError(f"{encoder!r} is no name of an encoder, as efficientnet-b3 or tu-tf_efficientnet_lite2")


def canonical(value: Any) -> str:
    """JSON of a value that does not depend on the order of keys, nor on how a number was written.

    Raises:
        ValueError: it contains a number that is none.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it contains {key[:_LONGEST_NAME]!r} twice")
        found[key] = value
    return found


def _check_depth(value: Any) -> None:
    """Raise ``ValueError`` where it is too deep to be written again, or contains text that cannot be."""
    left = [(value, 1)]
    while left:
        one, depth = left.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"it is more than {MOST_DEPTH} deep")
        if isinstance(one, str):
            one.encode()  # a lone surrogate
        elif isinstance(one, dict):
            left += [(key, depth) for key in one] + [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            left += [(inner, depth + 1) for inner in one]
