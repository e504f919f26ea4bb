"""Prompts and propagation as programs ask for them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polypseg.inference.prompting import Click, grow, grow_in_box
from polypseg.inference.propagation import Propagation
from polypseg.inference.quality import judge
from polypseg.io.pictures import read_frame, read_mask
from polypseg.metrics.overlap import dice
from polypseg.serve import prompts
from polypseg.serve.prompts import Sam


def ask(server: Any, path: Path | None, **fields: Any) -> Any:
    files = {} if path is None else {"file": (path.name, path.read_bytes())}
    return server.web.post("/v1/prompt", files={**files, **{name: (None, str(one)) for name, one in fields.items()}})


def mask_of(text: str) -> NDArray[np.bool_]:
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None and pixels.ndim == 2 and set(np.unique(pixels)) <= {0, 255}
    return np.asarray(pixels == 255)


@pytest.fixture(scope="module")
def seen(segmenter: Any, frames: list[Path]) -> tuple[Path, Any]:
    """A frame with a polyp, and what the model says of it."""
    for path in frames:
        found = segmenter.segment(read_frame(path))
        if found.polyps:
            return path, found
    raise AssertionError("the model sees nothing at all")


def test_clicks_give_the_region_that_the_reference_grows(server: Any, segmenter: Any, seen: tuple[Path, Any]) -> None:
    path, found = seen
    left, top, right, bottom = found.polyps[0].box
    x, y = (left + right) / 2, (top + bottom) / 2
    answer = ask(server, path, points=json.dumps([[x, y, 1], [left, top, 0]]))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    pixels = read_frame(path)
    expected = grow(segmenter.probability(pixels), *pixels.shape[:2], [Click(x, y), Click(left, top, adds=False)])
    mask = mask_of(told["mask"])
    assert dice(mask, expected.mask) > 0.999 and told["threshold"] == pytest.approx(expected.threshold, abs=1e-3)
    assert (told["width"], told["height"], told["method"]) == (pixels.shape[1], pixels.shape[0], "model")
    assert sum(one["area"] for one in told["polyps"]) == mask.sum()


def test_a_frame_that_was_sent_is_named_from_then_on(server: Any, segmenter: Any, seen: tuple[Path, Any]) -> None:
    path, found = seen
    box = list(found.polyps[0].box)
    first = ask(server, path, box=json.dumps(box)).json()
    again = ask(server, None, frame=first["frame"], box=json.dumps(box))
    assert again.json() == first
    pixels = read_frame(path)
    expected = grow_in_box(segmenter.probability(pixels), *pixels.shape[:2], tuple(box)).mask
    assert dice(mask_of(first["mask"]), expected) > 0.999
    refused = ask(server, None, frame="0" * 64, box=json.dumps(box))
    assert refused.status_code == 404 and "send the file" in refused.json()["error"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "box: send it or points"),
        ({"box": "[1, 2, 3, 4]", "points": "[[1, 2, 1]]"}, "box: send it or points"),
        ({"box": "[1, 2, 3]"}, "box: must be"),
        ({"box": "[1, 2, 3, NaN]"}, "box: must be"),
        ({"box": "[" * 3000}, "box: must be"),
        ({"box": "[5, 5, 5, 9]"}, "empty or leads out of the frame"),
        ({"box": "[0, 0, 1e300, 9]"}, "empty or leads out of the frame"),
        ({"points": "[]"}, "points: must be"),
        ({"points": "[[1, 2, 2]]"}, "points: must be"),
        ({"points": '[[1, 2, "x"]]'}, "points: must be"),
        ({"points": "[[1, 2], [1, 2, 1]]"}, "points: must be"),
        ({"points": "[[9999, 2, 1]]"}, "outside of the frame"),
        ({"points": json.dumps([[1, 1, 1]] * 65)}, "64 at most"),
        ({"points": "[[1, 2, 1]]", "threshold": "2"}, "threshold"),
        ({"points": "[[1, 2, 1]]", "method": "magic"}, "method"),
        ({"points": "[[1, 2, 1]]", "frame": "0" * 64}, "not both"),
        ({"points": "[[1, 2, 1]]", "colour": "red"}, "colour: is no field"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said(
    server: Any, seen: tuple[Path, Any], fields: dict[str, str], says: str
) -> None:
    answer = ask(server, seen[0], **fields)
    assert answer.status_code == 422 and says in answer.json()["error"], answer.text


def test_the_methods_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts.medsam, "is_made", lambda: False)
    monkeypatch.setattr(prompts.medsam.importlib.util, "find_spec", lambda name: None)
    sam = Sam()
    assert sam.state.state == "missing" and "polypseg[sam]" in str(sam.state.reason)
    with pytest.raises(prompts.HTTPException) as refusal:
        sam.opened()
    assert refusal.value.status_code == 501 and "polypseg[sam]" in refusal.value.detail


def test_litemedsam_is_prepared_once_and_then_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Path] = []
    monkeypatch.setattr(prompts.medsam, "is_made", lambda: bool(made))
    monkeypatch.setattr(prompts.medsam, "why_not", lambda: None)
    monkeypatch.setattr(prompts.medsam, "make", lambda: made.append(tmp_path))
    monkeypatch.setattr(prompts, "MedSam", lambda folder: "the network")
    sam = Sam()
    assert sam.state.state == "unprepared"
    with pytest.raises(prompts.HTTPException) as refusal:
        sam.opened()
    assert refusal.value.status_code == 503 and (refusal.value.headers or {})["retry-after"]
    assert sam._maker is not None
    sam._maker.join(30)
    assert sam.opened() == "the network" and sam.state.state == "ready" and len(made) == 1


def test_methods_are_listed(server: Any) -> None:
    methods = {one["name"]: one for one in server.web.get("/v1/prompt").json()["methods"]}
    assert methods["model"]["state"] == "ready" and set(methods) == {"model", "sam"}


# ---- propagation ------------------------------------------------------------------------------------------


def send(server: Any, pictures: list[bytes], mask: bytes, **fields: Any) -> Any:
    files = [("file", (f"{number}.png", one)) for number, one in enumerate(pictures)]
    return server.web.post(
        "/v1/propagate", files=[*files, ("mask", ("mask.png", mask))], data={"at": 1, "min_sureness": 0.3, **fields}
    )


def png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels))[1].tobytes()


@pytest.fixture(scope="module")
def drift(seen: tuple[Path, Any]) -> tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]:
    """Four frames, of one that drifts, and then another scene; and the mask of the second."""
    path = seen[0]
    frame, mask = read_frame(path), read_mask(path.parent.parent / "masks" / f"{path.stem}.png")
    moved = [np.roll(frame, 2 * step, axis=1) for step in range(4)]
    noise = np.random.default_rng(1).integers(0, 256, frame.shape, np.uint8)
    return [*moved, noise, noise], np.roll(mask, 2, axis=1)


def test_a_mask_is_carried_as_the_reference_does_until_it_is_not_sure(
    server: Any, segmenter: Any, drift: tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]
) -> None:
    frames, mask = drift
    answer = send(server, [png(one) for one in frames], png(mask.astype(np.uint8) * 255))
    assert answer.status_code == 200, answer.text
    told = answer.json()["frames"]
    assert [one["index"] for one in told] == list(range(6))
    assert told[1]["sureness"] == 1 and np.array_equal(mask_of(told[1]["mask"]), mask)
    moving = Propagation(frames[1], segmenter.probability(frames[1]), mask)
    for place in (2, 3):
        expected = moving.step(frames[place], segmenter.probability(frames[place]))
        assert told[place]["sureness"] == pytest.approx(expected.sureness, abs=1e-3) and told[place]["sure"]
        assert dice(mask_of(told[place]["mask"]), expected.mask) > 0.999
        assert sum(one["area"] for one in told[place]["polyps"]) == mask_of(told[place]["mask"]).sum()
    assert told[0]["sure"]
    assert told[4]["sureness"] < 0.3 and told[4]["mask"] is None and not told[4]["sure"]
    assert told[5] == {"index": 5, "sureness": None, "sure": False, "mask": None, "polyps": []}


def test_what_is_wrong_with_a_propagation_is_said(
    server: Any, drift: tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]
) -> None:
    frames, mask = drift
    pictures, drawn = [png(one) for one in frames[:3]], png(mask.astype(np.uint8) * 255)
    for answer, says in (
        (send(server, pictures[:1], drawn, at=0), "send 2 to 33"),
        (send(server, pictures, drawn, at=3), "at: is 3"),
        (send(server, pictures, drawn, at=-1), "at"),
        (send(server, pictures, png(mask[1:].astype(np.uint8) * 255)), "mask: is "),
        (send(server, pictures, png(np.zeros(mask.shape, np.uint8))), "nothing to carry"),
        (send(server, [*pictures, png(frames[0][1:])], drawn), "file 3: is "),
        (send(server, pictures, drawn, min_sureness=2), "min_sureness"),
        (send(server, [*pictures[:2], pictures[2][:200]], drawn), "2.png: is damaged"),
    ):
        assert answer.status_code == 422 and says in answer.json()["error"], answer.text


# ---- quality ----------------------------------------------------------------------------------------------


def test_a_frame_says_whether_it_can_be_judged(server: Any, frames: list[Path]) -> None:
    pixels = read_frame(frames[0])
    for sent, reason in ((pixels, judge(pixels).reason), (pixels // 50, "dark"), (np.full_like(pixels, 255), "glare")):
        told = server.web.post("/v1/segment", files={"file": ("a.png", png(sent))}).json()["quality"]
        assert told == judge(sent).to_dict() and told["reason"] == reason
        assert told["judgeable"] is (reason is None)
