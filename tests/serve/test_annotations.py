"""Annotating through the service: frames, versions, projects, imports and exports; what is wrong, in one line."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.data import read
from polypseg.data.audit import audit
from polypseg.inference.field_of_view import outside_of
from polypseg.inference.segmenter import Segmenter
from polypseg.io.pictures import read_frame, read_mask
from polypseg.serve.annotations.store import content_hash

LABELS = """
classes: [adenoma, {name: serrated, colour: "#e4572e"}]
attributes:
  paris: {title: Paris class, values: [Ip, Is, IIa]}
  nice: [1, 2, 3]
  remark: []
"""
TOKENS = {"anna": "anna-0123456789abcdef", "bob": "bob-0123456789abcdef"}


@pytest.fixture(scope="module")
def service(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with labels and two people; ``web`` is anna's."""
    folder = tmp_path_factory.mktemp("annotate")
    (folder / "labels.yaml").write_text(LABELS)
    (folder / "tokens").write_text("# who works here\n" + "".join(f"{name} {one}\n" for name, one in TOKENS.items()))
    options = ("--labels", str(folder / "labels.yaml"), "--tokens", str(folder / "tokens"), "--max_mib", "1")
    service = start(folder / "state", *options)
    service.web.headers["authorization"] = f"Bearer {TOKENS['anna']}"
    return service


@pytest.fixture(scope="module")
def bob(service: Any) -> Iterator[Any]:
    """Another person's client."""
    with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {TOKENS['bob']}"}, timeout=60) as web:
        yield web


@pytest.fixture
def project(service: Any, request: pytest.FixtureRequest) -> str:
    """A new project's address."""
    name = request.node.name[:60]
    return f"/v1/projects/{service.web.post('/v1/projects', data={'name': name}).json()['id']}"


def refused(answer: Any, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text
    line = answer.json()["error"]
    assert re.search(says, line), line
    assert "\n" not in line and "/tmp" not in line and "incoming" not in line


def picture(pixels: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].tobytes()


def mask_file(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {"mask": ("m.png", picture(mask.astype(np.uint8) * 255))}


def add(web: Any, project: str, path: Path) -> dict[str, Any]:
    answer = web.post(f"{project}/frames", files={"frame": (path.name, path.read_bytes())}, data={"name": path.name})
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


def save(web: Any, frame: str, based_on: int, state: str, mask: Any = None, **data: Any) -> Any:
    files = {"files": mask_file(mask)} if mask is not None else {}
    return web.post(f"{frame}/versions", data={"based_on": based_on, "state": state, **data}, **files)


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in files.items():
            archive.writestr(name, part)
    return content.getvalue()


def taken_in(web: Any, project: str, files: Any, **data: Any) -> dict[str, Any]:
    """The import of files, when it has ended."""
    answer = web.post(f"{project}/imports", files=files, data=data)
    assert answer.status_code == 202, answer.text
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = web.get(f"{project}/imports/{answer.json()['id']}").json()
        if found["ended"]:
            return dict(found)
        time.sleep(0.02)
    raise AssertionError(found)


def predicted(web: Any, project: str) -> dict[str, Any]:
    """The list of a project's frames when the model has looked at all of them."""
    end = time.monotonic() + 60
    while web.get(project).json()["waiting"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    return dict(web.get(f"{project}/frames", params={"limit": 1000}).json())


def exported(web: Any, project: str, folder: Path, **params: Any) -> Path:
    answer = web.get(f"{project}/export", params=params)
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    (root,) = folder.iterdir()
    return root


def two_polyps(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A ring with a hole, and a bar."""
    mask = np.zeros(shape[:2], np.uint8)
    cv2.circle(mask, (20, 20), 12, 1, 5)
    mask[50:60, 40:80] = 1
    return mask.astype(bool)


# ---- frames and versions --------------------------------------------------------------------------------


def test_a_frame_is_known_by_its_content(service: Any, project: str, frames: list[Path], segmenter: Segmenter) -> None:
    pixels = read_frame(frames[0])
    told = service.web.post(
        "/v1/segment", params={"probability": "true"}, files={"file": (frames[0].name, frames[0].read_bytes())}
    ).json()
    assert told["hash"] == content_hash(pixels)
    frame = f"{project}/frames/{told['hash']}"
    refused(service.web.get(frame), 404, "no such frame")
    added = add(service.web, project, frames[0])
    assert (added["hash"], added["state"], added["version"]) == (told["hash"], "predicted", 0)
    again = service.web.post(f"{project}/frames", files={"frame": ("b.png", picture(pixels))}, data={"name": "b.png"})
    assert again.status_code == 200 and again.json()["name"] == frames[0].name  # the same pixels in another file
    assert service.web.get(f"{frame}/image").content == frames[0].read_bytes()

    found = predicted(service.web, project)["frames"][0]
    expected = segmenter.segment(pixels)
    assert found["confidence"] == pytest.approx(max((polyp.confidence for polyp in expected.polyps), default=0))
    probability = segmenter.probability(pixels).astype(float)
    entropy = -(probability * np.log2(probability) + (1 - probability) * np.log2(1 - probability))
    border = outside_of(pixels)
    inside = (
        np.ones(entropy.shape, bool)
        if border is None
        else ~cv2.resize(border.astype(np.uint8), entropy.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    )
    assert found["uncertainty"] == pytest.approx(np.nanmean(entropy[inside]), abs=0.01)
    drawn = cv2.imdecode(np.frombuffer(service.web.get(f"{frame}/mask").content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert (drawn == expected.mask * 255).all() and found["area"] == pytest.approx(expected.mask.mean())
    assert service.web.get(f"{project}/frames", params={"hash": [told["hash"], "0" * 64]}).json()["matching"] == 1


def test_every_save_is_a_version_and_an_older_one_can_be_taken_back(
    service: Any, bob: Any, project: str, frames: list[Path]
) -> None:
    added = add(service.web, project, frames[1])
    frame, mask = f"{project}/frames/{added['hash']}", two_polyps((added["height"], added["width"]))
    said = [{"at": [60, 55], "class": "serrated", "attributes": {"paris": "Is", "remark": "flat"}}]
    first = save(service.web, frame, 0, "corrected", mask, polyps=json.dumps(said))
    assert first.status_code == 201
    bar = next(one for one in first.json()["polyps"] if one["class"] == "serrated")
    assert bar["box"] == [40, 50, 80, 60] and bar["area"] == 400 and bar["attributes"] == said[0]["attributes"]
    assert (first.json()["author"], first.json()["version"]) == ("anna", 1)

    smaller = mask.copy()
    smaller[:40] = False
    second = save(bob, frame, 1, "corrected", smaller).json()
    assert (second["author"], second["version"]) == ("bob", 2)
    assert [one["class"] for one in second["polyps"]] == ["serrated"]  # carried over, where the regions overlap
    assert save(bob, frame, 2, "no_polyp").json()["area"] == 0
    back = service.web.post(f"{frame}/versions/1/restore", data={"based_on": 3})
    assert back.status_code == 201 and back.json()["version"] == 4 and back.json()["polyps"] == first.json()["polyps"]
    content = service.web.get(f"{frame}/mask").content
    assert content == service.web.get(f"{frame}/mask", params={"version": 1}).content
    assert (cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) == mask * 255).all()
    told = service.web.get(f"{frame}/versions").json()
    assert [(one["version"], one["author"], one["state"], one["kind"], one["restored"]) for one in told] == [
        (4, "anna", "corrected", "restore", 1), (3, "bob", "no_polyp", "save", None),
        (2, "bob", "corrected", "save", None), (1, "anna", "corrected", "save", None),
    ]  # fmt: skip


def test_who_saves_on_an_older_version_is_told_who_was_first(
    service: Any, bob: Any, project: str, frames: list[Path]
) -> None:
    added = add(service.web, project, frames[2])
    frame, mask = f"{project}/frames/{added['hash']}", two_polyps((added["height"], added["width"]))
    listed = service.web.get(f"{project}/frames")
    seen = {"if-none-match": listed.headers["etag"]}
    assert service.web.get(f"{project}/frames", headers=seen).status_code in (200, 304)  # its prediction may come
    assert save(bob, frame, 0, "corrected", mask).status_code == 201
    assert service.web.get(f"{project}/frames", headers=seen).status_code == 200
    late = save(service.web, frame, 0, "no_polyp")
    refused(late, 409, "^bob saved version 1 of this frame at 20")
    assert (late.json()["version"], late.json()["author"]) == (1, "bob")
    assert service.web.get(frame).json()["state"] == "corrected"
    again = save(bob, frame, 0, "corrected", mask)  # as after a response that was lost
    assert again.status_code == 200 and again.json()["version"] == 1


def test_who_has_a_frame_open_is_seen(service: Any, bob: Any, project: str, frames: list[Path]) -> None:
    frame = f"{project}/frames/{add(service.web, project, frames[3])['hash']}"
    predicted(service.web, project)
    assert bob.post(f"{frame}/presence", data={"client": "tab-1"}).json()["others"] == []
    told = service.web.post(f"{frame}/presence", data={"client": "tab-2"}).json()
    assert [one["name"] for one in told["others"]] == ["bob"] and told["version"] == 0
    listed = service.web.get(f"{project}/frames")
    assert sorted(listed.json()["frames"][0]["open_by"]) == ["anna", "bob"]
    seen = {"if-none-match": listed.headers["etag"]}
    assert service.web.get(f"{project}/frames", headers=seen).status_code == 304
    bob.post(f"{frame}/presence", data={"client": "tab-1", "leave": "true"})
    assert service.web.get(f"{project}/frames", headers=seen).json()["frames"][0]["open_by"] == ["anna"]


def test_what_is_deleted_comes_back_or_goes_for_good(service: Any, project: str, frames: list[Path]) -> None:
    frame = f"{project}/frames/{add(service.web, project, frames[4])['hash']}"
    assert save(service.web, frame, 0, "no_polyp").status_code == 201
    refused(service.web.delete(frame, params={"for_good": True}), 409, "delete it first")
    assert service.web.delete(frame).json()["deleted"]
    assert service.web.get(f"{project}/frames").json()["matching"] == 0
    assert service.web.get(f"{project}/frames", params={"deleted": True}).json()["matching"] == 1
    refused(save(service.web, frame, 1, "unsure"), 409, "restore it first")
    assert service.web.post(f"{frame}/restore").json()["state"] == "no_polyp"
    service.web.delete(frame)
    assert service.web.delete(frame, params={"for_good": True}).status_code == 204
    refused(service.web.get(frame), 404, "no such frame")
    left = list(service.state.rglob(f"*{frame.rpartition('/')[2]}*"))
    assert left == []
    assert service.web.delete(project).json()["deleted"]
    assert project.rpartition("/")[2] not in [one["id"] for one in service.web.get("/v1/projects").json()]
    assert service.web.post(f"{project}/restore").json()["deleted"] is None
    refused(service.web.delete("/v1/projects/corrections"), 409, "cannot be deleted")


def test_what_does_not_fit_is_refused_and_changes_nothing(service: Any, project: str, frames: list[Path]) -> None:
    added = add(service.web, project, frames[5])
    frame, mask = f"{project}/frames/{added['hash']}", two_polyps((added["height"], added["width"]))
    predicted(service.web, project)
    before = service.web.get(frame).json()
    for polyps, says in (
        ([{"at": [60, 55], "class": "lipoma"}], "lipoma is no class; choose one of adenoma, serrated"),
        ([{"at": [60, 55], "attributes": {"paris": "IV"}}], "paris: IV is no value; choose one of Ip, Is, IIa"),
        ([{"at": [60, 55], "attributes": {"kudo": "V"}}], "kudo is no attribute"),
        ([{"at": [0, 0]}], "0, 0 lies in no region"), ([{"at": [-1, 5000]}], "lies in no region"),
        ([{"at": [60, 55]}, {"at": [70, 55]}], "named twice"),
        ("nonsense", "polyps: must be JSON"), ([{"at": [1.5, 2]}], "polyps: must be JSON"),
    ):  # fmt: skip
        refused(save(service.web, frame, 0, "corrected", mask, polyps=json.dumps(polyps)), 422, says)
    refused(save(service.web, frame, 0, "corrected", mask[:-1]), 422, "mask: is 88×71 but its frame 88×72")
    refused(save(service.web, frame, 0, "no_polyp", mask), 422, "shows a polyp")
    refused(save(service.web, frame, 0, "done", mask), 422, "^state: ")
    grey = {"mask": ("m.png", picture(np.full(mask.shape, 128, np.uint8)))}
    refused(service.web.post(f"{frame}/versions", data={"based_on": 0, "state": "corrected"}, files=grey), 422, "white")
    refused(service.web.post(f"{frame}/versions/7/restore", data={"based_on": 0}), 404, "no such version")
    assert service.web.get(frame).json() == before and service.web.get(f"{frame}/versions").json() == []


# ---- projects, lists ------------------------------------------------------------------------------------


def test_frames_are_filtered_ordered_and_counted(service: Any, project: str, frames: list[Path]) -> None:
    for path in frames[:6]:
        add(service.web, project, path)
    listed = predicted(service.web, project)["frames"]

    def asked(**params: Any) -> list[str]:
        return [one["name"] for one in service.web.get(f"{project}/frames", params=params).json()["frames"]]

    assert asked() == [path.name for path in frames[:6]] and asked(limit=2, offset=4) == asked()[4:]
    unsure = sorted(listed, key=lambda one: -one["uncertainty"])
    assert asked(order="uncertainty") == [one["name"] for one in unsure]
    assert asked(order="confidence") == [one["name"] for one in sorted(listed, key=lambda one: one["confidence"])]
    first, second = (f"{project}/frames/{one['hash']}" for one in listed[:2])
    mask = two_polyps((listed[0]["height"], listed[0]["width"]))
    said = [{"at": [60, 55], "class": "serrated", "attributes": {"paris": "Is"}}]
    save(service.web, first, 0, "corrected", mask, polyps=json.dumps(said))
    save(service.web, second, 0, "poor_view")
    assert asked(order="time")[:2] == [listed[1]["name"], listed[0]["name"]]
    assert asked(state=["poor_view", "corrected"]) == asked()[:2]
    assert asked(label=["serrated", "paris:Is"]) == asked()[:1] and asked(label=["serrated", "paris:Ip"]) == []
    assert asked(name=listed[3]["name"][:-4].upper()) == [listed[3]["name"]]
    share = float(mask.mean())
    assert asked(min_area=share - 1e-6, max_area=share + 1e-6, state="corrected") == asked()[:1]
    sure = [one["name"] for one in listed if one["confidence"] >= 0.5]
    assert asked(min_confidence=0.5) == sure
    page = service.web.get(f"{project}/frames", params={"limit": 1}).json()
    assert (page["total"], page["matching"], len(page["frames"])) == (6, 6, 1)
    assert page["counts"] == {
        "predicted": 4, "accepted": 0, "corrected": 1, "no_polyp": 0, "poor_view": 1, "unsure": 0,
    }  # fmt: skip
    assert service.web.get(f"{first}/thumbnail").headers["content-type"] == "image/jpeg"


# ---- in and out -----------------------------------------------------------------------------------------


def test_a_data_set_comes_in_and_goes_out_in_every_format(
    service: Any, project: str, phantom_folder: Path, frames: list[Path], tmp_path: Path
) -> None:
    files = {f"set/images/{path.name}": path.read_bytes() for path in frames[:8]}
    files |= {
        f"set/masks/{path.name}": path.read_bytes()
        for path in sorted((phantom_folder / "masks").iterdir())[:7]  # one frame comes without
    }
    found = taken_in(service.web, project, {"file": ("set.zip", zipped(files))})
    assert (found["state"], found["total"], found["added"], found["problems"]) == ("done", 8, 8, [])
    listed = predicted(service.web, project)
    assert listed["counts"]["predicted"] == 1 and listed["counts"]["accepted"] + listed["counts"]["no_polyp"] == 7
    one = listed["frames"][0]
    frame, mask = f"{project}/frames/{one['hash']}", two_polyps((one["height"], one["width"]))
    mask |= read_mask(phantom_folder / "masks" / f"{Path(one['name']).stem}.png")
    at = next(place["at"] for place in save(service.web, frame, 1, "corrected", mask).json()["polyps"])
    said = [{"at": at, "class": "serrated", "attributes": {"nice": "2"}}]
    assert save(service.web, frame, 2, "corrected", polyps=json.dumps(said)).status_code == 201
    truths = {
        Path(row["name"]).stem: (
            service.web.get(f"{project}/frames/{row['hash']}/mask").content, row["polyps"], row["state"]
        ) for row in service.web.get(f"{project}/frames").json()["frames"] if row["state"] != "predicted"
    }  # fmt: skip
    for kind in ("folder", "coco", "yolo"):
        root = exported(service.web, project, tmp_path / kind, format=kind)
        catalog = read(root)
        assert {row.frame_id for row in catalog} == set(truths)
        for index, row in enumerate(catalog):
            expected = cv2.imdecode(np.frombuffer(truths[row.frame_id][0], np.uint8), cv2.IMREAD_GRAYSCALE)
            assert (catalog.mask(index) == expected / 255).all(), (kind, row.frame_id)
            assert (catalog.frame(index) == read_frame(phantom_folder / "images" / Path(row.image_path).name)).all()
        assert audit(root, progress=False).ok
        again = f"/v1/projects/{service.web.post('/v1/projects', data={'name': f'back {kind}'}).json()['id']}"
        files = {
            "file": [
                (str(path.relative_to(root.parent)), path.read_bytes())
                for path in sorted(root.rglob("*")) if path.is_file()
            ]
        }  # fmt: skip
        found = taken_in(service.web, again, [("file", one) for one in files["file"]])
        assert (found["state"], found["added"], found["problems"]) == ("done", 7, [])
        back = {Path(row["name"]).stem: row for row in predicted(service.web, again)["frames"]}
        for stem, (_, polyps, state) in truths.items():
            assert (back[stem]["polyps"], back[stem]["state"]) == (polyps, state), (kind, stem)
        check_told(root, kind, truths)


def check_told(root: Path, kind: str, truths: dict[str, tuple[bytes, list[dict[str, Any]], str]]) -> None:
    """What anybody reads in the files of an export, without polypseg."""
    told = {Path(one["image"]).stem: one for one in json.loads((root / "frames.json").read_text())}
    assert {stem: (one["polyps"], one["state"]) for stem, one in told.items()} == {
        stem: (polyps, state) for stem, (_, polyps, state) in truths.items()
    }
    if kind != "coco":
        return
    coco = json.loads((root / "annotations.json").read_text())
    stems = {one["id"]: Path(one["file_name"]).stem for one in coco["images"]}
    classes = {one["id"]: one["name"] for one in coco["categories"]}
    found = sorted(
        (stems[one["image_id"]], one["area"], classes[one["category_id"]], one["attributes"])
        for one in coco["annotations"]
    )
    assert found == sorted(
        (stem, one["area"], one["class"], one["attributes"])
        for stem, (_, polyps, _) in truths.items() for one in polyps
    )  # fmt: skip


def labelled_set(frames: list[Path], records: Any) -> dict[str, bytes]:
    """Two frames, the same mask of two polyps for each, and ``frames.json``."""
    shape = read_frame(frames[0]).shape
    mask = picture(two_polyps(shape).astype(np.uint8) * 255)
    files = {f"images/{path.name}": path.read_bytes() for path in frames[:2]}
    files |= {f"masks/{path.stem}.png": mask for path in frames[:2]}
    return {**files, "frames.json": records if isinstance(records, bytes) else json.dumps(records).encode()}


def record(path: Path, *polyps: dict[str, Any], state: str = "unsure", **more: Any) -> dict[str, Any]:
    return {"image": path.name, "hash": content_hash(read_frame(path)), "state": state, "polyps": polyps, **more}


def test_what_a_mask_cannot_say_is_read_from_frames_json(service: Any, project: str, frames: list[Path]) -> None:
    bar = {"at": [60, 55], "class": "serrated", "attributes": {"paris": "Is"}}
    away = {"at": [0, 0], "class": "serrated", "attributes": {}}
    records = [record(frames[0], bar, away), record(frames[1], bar, hash="0" * 64), record(frames[2], state="accepted")]
    found = taken_in(service.web, project, {"file": ("s.zip", zipped(labelled_set(frames, records)))})
    assert (found["state"], found["added"]) == ("done", 2)
    for says in (
        f"frames.json: names {frames[2].name}, which is not in images/",
        f"{frames[0].stem}.png: has no polyp at 0, 0", f"{frames[1].name}: is another picture than in frames.json",
    ):  # fmt: skip
        assert sum(says in line for line in found["problems"]) == 1, found["problems"]
    assert len(found["problems"]) == 3
    first, second = service.web.get(f"{project}/frames").json()["frames"]
    labels = {one["area"]: (one["class"], one["attributes"]) for one in first["polyps"]}
    assert labels.pop(400) == ("serrated", {"paris": "Is"}) and list(labels.values()) == [("adenoma", {})]
    assert {one["class"] for one in second["polyps"]} == {"adenoma"}
    assert (first["state"], second["state"]) == ("unsure", "accepted")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (b"{", "frames.json: is not valid JSON"),
        (b'{"a": 1}', "frames.json: is no list of frames"),
        ({"state": "done"}, "done is no state"),
        ({"polyps": [{"at": [1.5, 2], "class": "adenoma", "attributes": {}}]}, "is no pixel"),
        ({"polyps": [{"at": [1, 2]}]}, "frames.json: is no list of frames"),
        ({"polyps": [{"at": [60, 55], "class": "lipoma", "attributes": {}}]}, "frames.json: lipoma is no class"),
        ({"polyps": [{"at": [60, 55], "class": "adenoma", "attributes": {"kudo": "V"}}]}, "kudo is no attribute"),
    ],
)
def test_a_frames_json_that_does_not_fit_is_told_and_nothing_is_taken(
    service: Any, project: str, frames: list[Path], change: Any, says: str
) -> None:
    records = change if isinstance(change, bytes) else [{**record(frames[0]), **change}]
    found = taken_in(service.web, project, {"file": ("s.zip", zipped(labelled_set(frames, records)))})
    assert found["state"] == "failed" and says in found["error"] and "incoming" not in found["error"], found
    assert service.web.get(project).json()["total"] == 0


def test_what_is_wrong_with_an_import_is_told_and_the_rest_is_taken(
    service: Any, project: str, phantom_folder: Path, frames: list[Path]
) -> None:
    masks = sorted((phantom_folder / "masks").iterdir())
    files = {f"images/{path.name}": path.read_bytes() for path in frames[:4]}
    files |= {f"masks/{masks[0].name}": masks[0].read_bytes()}
    files |= {f"masks/{masks[1].name}": picture(np.zeros((5, 5), np.uint8))}
    files |= {
        f"masks/{masks[2].name}": picture(np.full((72, 88), 90, np.uint8)),
        "masks/other.png": masks[3].read_bytes(),
    }
    files["images/broken.jpg"] = files[f"images/{frames[0].name}"][:200]
    found = taken_in(service.web, project, {"file": ("set.zip", zipped(files))})
    assert (found["state"], found["added"], found["problem_count"]) == ("done", 4, len(found["problems"]))
    for says in (
        "mask is 5×5 but its frame is 88×72",
        "no white",
        "other.png: mask without a frame",
        "broken.jpg: is damaged",
    ):
        assert sum(says in line for line in found["problems"]) == 1, found["problems"]
    assert not [line for line in found["problems"] if "/tmp" in line or "incoming" in line]
    again = taken_in(service.web, project, {"file": ("set.zip", zipped(files))})
    assert (again["added"], again["known"]) == (0, 4)


def coco_file(frames: list[Path], category: str = "adenoma", **more: Any) -> dict[str, Any]:
    """A COCO file in which each frame has a triangle."""
    images = [{"id": n, "file_name": path.name, "width": 88, "height": 72} for n, path in enumerate(frames)]
    shape = {"category_id": 4, "segmentation": [[10, 10, 40, 10, 10.0, 40]], "iscrowd": 0, **more}
    return {
        "images": images,
        "annotations": [{"id": n, "image_id": n, **shape} for n in range(len(frames))],
        "categories": [{"id": 4, "name": category, "supercategory": "polyp"}],
    }


def test_a_coco_file_that_does_not_fit_is_told_in_a_line(service: Any, project: str, frames: list[Path]) -> None:
    def sent(content: Any, count: int = 2) -> dict[str, Any]:
        files = {f"images/{path.name}": path.read_bytes() for path in frames[:count]}
        return taken_in(service.web, project, {"file": ("s.zip", zipped({**files, "annotations.json": content}))})

    def text(**changes: Any) -> bytes:
        return json.dumps({**coco_file(frames[:2]), **changes}).encode()

    for content, says in (
        (b"{", "annotations.json: is not valid JSON"), (b"[]", "is no COCO file"),
        (json.dumps(coco_file(frames[:2], "lipoma")).encode(), "json: lipoma is no class; choose one of adenoma"),
        (json.dumps(coco_file(frames[:2], attributes={"kudo": "V"})).encode(), "kudo is no attribute"),
        (text(annotations=[{"id": 1, "image_id": 77, "category_id": 4}]), "names the absent image 77"),
        (text(annotations=[{"id": 1, "image_id": 0, "category_id": 5}]), "names the absent category 5"),
        (text(images=[*coco_file(frames[:2])["images"]] * 2), "two images of the id 0"),
    ):  # fmt: skip
        found = sent(content)
        assert found["state"] == "failed" and says in found["error"], found
        assert service.web.get(project).json()["total"] == 0
    found = sent(json.dumps(coco_file(frames[:3])).encode())
    assert found["added"] == 2 and len(found["problems"]) == 1
    assert f"annotations.json: {frames[2].name}: names a frame that is not in images/" in found["problems"][0]
    row = service.web.get(f"{project}/frames").json()["frames"][0]
    assert row["state"] == "accepted" and row["polyps"][0]["class"] == "adenoma"
    assert row["polyps"][0]["area"] == pytest.approx(450, abs=30)
    boxes = coco_file(frames[3:4])
    boxes["annotations"][0]["segmentation"] = []
    files = {f"images/{frames[3].name}": frames[3].read_bytes(), "annotations.json": json.dumps(boxes).encode()}
    found = taken_in(service.web, project, {"file": ("s.zip", zipped(files))})
    assert found["added"] == 1 and "has no outline; a box does not say" in found["problems"][0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04" + bytes(200), "cannot be unpacked"),
        (zipped({"notes.txt": b"x"}), "notes.txt: is no image"),
        (zipped({}), ""),
        (zipped({"../../../evil.png": b"x"}), "evil.png: is no image"),
    ],
)
def test_what_is_no_data_set_is_told(service: Any, project: str, content: bytes, says: str) -> None:
    before = set(service.state.parent.iterdir())
    found = taken_in(service.web, project, {"file": ("s.zip", content)})
    assert says in f"{found['error']} {found['problems']}" and found["added"] == 0
    assert set(service.state.parent.iterdir()) == before
    end = time.monotonic() + 60
    while list(service.state.glob("projects/*/incoming/*")):  # is removed when the import has ended
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_export_of_nothing_is_refused(service: Any, project: str, frames: list[Path]) -> None:
    add(service.web, project, frames[0])
    refused(service.web.get(f"{project}/export"), 409, "no frame is accepted or corrected or no_polyp")
    refused(service.web.get(f"{project}/export", params={"format": "voc"}), 422, "^format: ")


# ---- people, labels -------------------------------------------------------------------------------------


def test_each_person_has_a_token_of_his_own(service: Any, bob: Any) -> None:
    assert service.web.get("/v1/me").json() == {"name": "anna"} and bob.get("/v1/me").json() == {"name": "bob"}
    assert httpx.get(f"{service.url}/v1/me").status_code == 401
    told = service.web.get("/v1/labels").json()
    assert [one["name"] for one in told["classes"]] == ["adenoma", "serrated"]
    assert told["classes"][1]["colour"] == "#e4572e"
    assert told["attributes"][0] == {"name": "paris", "title": "Paris class", "values": ["Ip", "Is", "IIa"]}
    assert told["attributes"][1]["values"] == ["1", "2", "3"]


def test_nothing_of_all_this_crashed(service: Any) -> None:
    assert [line for line in service.log.read_text().splitlines() if '"crash"' in line] == []


@pytest.mark.slow
def test_whatever_is_sent_about_a_frame_that_is_there_is_never_answered_500(
    service: Any, project: str, frames: list[Path], tmp_path: Path
) -> None:
    """Schemathesis, with a project and a frame that exist."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    frame = add(service.web, project, frames[0])
    predicted(service.web, project)
    save(service.web, f"{project}/frames/{frame['hash']}", 0, "unsure")
    known = {"project": project.rpartition("/")[2], "hash": frame["hash"], "version": 1}
    lines = [f'"path.{name}" = {json.dumps(value)}' for name, value in known.items()]
    (tmp_path / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [
        str(program), "--config-file", str(tmp_path / "schemathesis.toml"), "run", f"{service.url}/openapi.json",
        "--include-path-regex", "^/v1/projects/", "--exclude-method", "DELETE", "--phases", "examples,coverage,fuzzing",
        "--header", f"Authorization: Bearer {TOKENS['anna']}", "--checks", checks, "--seed", "1", "--no-color",
        "--max-examples", "15",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:]
    assert [line for line in service.log.read_text().splitlines() if '"crash"' in line] == []
