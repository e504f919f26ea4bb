from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polypseg.data import read
from polypseg.data.audit import CHECKS, Audit, Finding, audit, pictures
from polypseg.data.splits import make_split
from polypseg.errors import PolypsegError

HEIGHT, WIDTH = 120, 160


def frame(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(80, 220, (8, 10)).astype(np.float32)
    grey = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).clip(80, 230)
    return np.stack([grey, 0.6 * grey, 0.5 * grey], 2).astype(np.uint8)


def mask(*boxes: tuple[int, int, int, int], value: int = 255) -> np.ndarray:
    """Filled boxes, each (left, top, width, height)."""
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    for left, top, width, height in boxes:
        result[top : top + height, left : left + width] = value
    return result


def save(folder: Path, frames: dict[str, np.ndarray], masks: dict[str, np.ndarray] | None = None) -> Path:
    masks = {} if masks is None else masks
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem, pixels in frames.items():
        Image.fromarray(pixels).save(folder / "images" / f"{stem}.png")
        Image.fromarray(masks.get(stem, mask((30, 20, 60, 50)))).save(folder / "masks" / f"{stem}.png")
    return folder


def kinds(result: Audit) -> dict[str, int]:
    return {kind: len(result.of_kind(kind)) for kind, _, _ in CHECKS if result.of_kind(kind)}


def split_of(dataset: str, **parts: str) -> pd.DataFrame:
    return pd.DataFrame({"dataset": dataset, "frame_id": list(parts), "split": list(parts.values())})


def test_clean_data_give_nothing(tmp_path: Path) -> None:
    result = audit(save(tmp_path / "set", {"a": frame(1), "b": frame(2)}))
    assert result.ok
    assert result.findings == []
    assert result.summary["frames"] == 2
    assert result.summary["datasets"] == {"set": 2}
    assert result.summary["resolution"] == {"smallest": [160, 120], "largest": [160, 120], "different": 1}
    assert result.summary["polyp_area_percent"]["median"] == pytest.approx(100 * 3000 / 19200)
    assert "0 errors, 0 warnings, 0 notes" in result.table()


def test_files_that_do_not_pair_or_open_are_errors(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {name: frame(k) for k, name in enumerate("abcdefg")})
    (folder / "masks" / "a.png").unlink()
    (folder / "images" / "b.png").unlink()
    (folder / "images" / "note.txt").write_text("hello")
    (folder / "images" / "c.png").write_bytes(b"")
    (folder / "images" / "d.png").unlink()
    damaged = folder / "images" / "d.jpg"
    Image.fromarray(frame(3)).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:1500])  # its header is whole
    Image.fromarray(mask()[:50]).save(folder / "masks" / "e.png")
    Image.fromarray(frame(1)).save(folder / "images" / "f.bmp")
    result = audit(folder)
    assert not result.ok
    assert kinds(result) == {
        "missing-mask": 1,
        "missing-frame": 1,
        "not-an-image": 1,
        "same-stem": 1,
        "unreadable": 1,
        "undecodable": 1,
        "size": 1,
    }
    assert result.of_kind("undecodable")[0].frames == (str(damaged.resolve()),)
    assert all("\n" not in finding.message for finding in result.findings)


def test_mask_values(tmp_path: Path) -> None:
    grey = mask((30, 20, 60, 50))
    grey[19, 30:90] = 100  # 60 pixels that > 0 would add to 3000
    masks = {
        "empty": mask(),
        "label": mask((30, 20, 60, 50), value=1),
        "dim": mask((30, 20, 60, 50), value=127),
        "tiny": mask((30, 20, 7, 9)),
        "small": mask((30, 20, 8, 8)),  # 64 pixels of 19200: no finding
        "grey": grey,
        "two": mask((10, 10, 20, 20), (100, 60, 20, 20), (80, 100, 3, 3)),  # and a crumb
    }
    result = audit(save(tmp_path / "set", {name: frame(k) for k, name in enumerate(masks)}, masks))
    assert result.summary["frames"] == len(masks)
    found = {finding.kind: finding for finding in result.findings}
    assert kinds(result) == {
        "label-values": 2, "empty-mask": 1, "tiny-mask": 1, "grey-masks": 1, "several-polyps": 1
    }  # fmt: skip
    assert {Path(*finding.frames).stem for finding in result.of_kind("label-values")} == {"dim", "label"}
    assert "contains the values 0 and 127, no white (255)" in result.of_kind("label-values")[0].message
    assert found["empty-mask"].frames == ("set/empty",)
    assert found["tiny-mask"].frames == ("set/tiny",)
    assert found["tiny-mask"].numbers["pixels"] == 63
    assert found["grey-masks"].frames == ("set/grey",)
    assert found["grey-masks"].numbers["inflation"] == pytest.approx(60 / 3000)
    assert found["grey-masks"].numbers["fraction"] == pytest.approx(60 / 19200)
    assert found["several-polyps"].frames == ("set/two",)
    assert found["several-polyps"].numbers["polyps"] == 2
    assert not result.ok


def test_what_a_mask_can_hardly_mean_is_a_warning(tmp_path: Path) -> None:
    polyp = mask((30, 20, 60, 50))
    masks = {
        "inverted": 255 - polyp,
        "white": mask((0, 0, WIDTH, HEIGHT)),
        "large": mask((0, 0, 150, 110)),
        "corner": mask((0, 0, WIDTH, 50)),  # two corners, and no finding
        "void": np.where(polyp > 0, 255, 2).astype(np.uint8),
        "bordered": cv2.copyMakeBorder(polyp[8:-8, 8:-8], 8, 8, 8, 8, cv2.BORDER_CONSTANT, value=255),
    }
    result = audit(save(tmp_path / "set", {name: frame(k) for k, name in enumerate(masks)}, masks))
    assert result.ok
    found = {kind: {finding.frames[0] for finding in result.of_kind(kind)} for kind in kinds(result)}
    assert found["large-mask"] == {"set/white", "set/large", "set/inverted"}
    assert found["white-corners"] == {"set/inverted", "set/white", "set/bordered"}
    assert found["low-values"] == {"set/void"}
    assert "covers 84.4% of the frame" in result.of_kind("low-values")[0].message


def test_a_frame_that_exif_turns_and_its_mask_that_it_does_not_is_a_warning(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"a": frame(1), "b": frame(2)})
    exif = Image.Exif()
    exif[0x0112] = 3
    for kind in ("images", "masks"):  # both turned: right
        pixels = np.asarray(Image.open(folder / kind / "a.png"))
        Image.fromarray(pixels).save(folder / kind / "a.png", exif=exif)
    Image.fromarray(frame(2)).save(folder / "images" / "b.png", exif=exif)
    result = audit(folder)
    assert kinds(result) == {"turned-frame": 1}
    assert result.of_kind("turned-frame")[0].frames == ("set/b",)


def test_a_frame_of_12_bits_in_16_is_a_warning(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"a": frame(1), "b": frame(2)})
    Image.fromarray(frame(1)[..., 0].astype(np.uint16) * 16).save(folder / "images" / "a.png")
    (finding,) = audit(folder).findings
    assert (finding.kind, finding.frames) == ("fewer-bits", ("set/a",))
    assert finding.message.endswith("and is read as 12 bits")


def test_an_addition_to_the_masks_names_is_told(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"a": frame(1), "b": frame(2)})
    for file in (folder / "masks").iterdir():
        file.rename(file.with_stem(f"{file.stem}_mask"))
    result = audit(folder)
    assert kinds(result) == {"mask-suffix": 1}
    assert result.findings[0].message == "set: masks are named <stem>_mask and are read so"


def test_masks_are_read_as_their_source_says(tmp_path: Path) -> None:
    masks = {"a": mask((30, 20, 60, 50), value=1), "b": mask((30, 20, 30, 50), value=2)}
    folder = save(tmp_path / "set", {name: frame(k) for k, name in enumerate(masks)}, masks)
    assert len(audit(folder).of_kind("label-values")) == 2
    assert audit(f"nonzero:{folder}").findings == []
    assert kinds(audit(f"class:1:{folder}")) == {"empty-mask": 1}


def kvasir(folder: Path, boxes: dict[str, list[list[int]]], masks: dict[str, np.ndarray]) -> Path:
    save(folder, {name: frame(k) for k, name in enumerate(boxes)}, masks)
    sides = ("xmin", "ymin", "xmax", "ymax")
    entries = {
        name: {
            "height": HEIGHT,
            "width": WIDTH,
            "bbox": [{"label": "polyp", **dict(zip(sides, box, strict=True))} for box in found],
        }
        for name, found in boxes.items()
    }
    (folder / "kavsir_bboxes.json").write_text(json.dumps(entries))
    return folder


def test_boxes_against_masks(tmp_path: Path) -> None:
    regions = mask((30, 20, 60, 50), (110, 90, 20, 20))
    boxes = {
        "fits": [[29, 19, 90, 70], [109, 89, 130, 110]],
        "whole": [[30, 20, 129, 109]],
        "elsewhere": [[29, 19, 90, 70], [0, 0, 20, 20]],
        "outside": [[29, 19, 90, 70], [109, 89, 161, 110]],
        "turned": [[90, 70, 30, 20]],
        "none": [],
        "nothing": [[29, 19, 90, 70]],
    }
    masks = {name: mask() if name == "nothing" else regions for name in boxes}
    result = audit(kvasir(tmp_path / "set", boxes, masks))
    disagreeing = {finding.frames[0].split("/")[1] for finding in result.of_kind("box-disagrees")}
    assert disagreeing == {"elsewhere", "outside", "turned", "nothing"}
    outside = {finding.frames[0].split("/")[1] for finding in result.of_kind("box-outside")}
    assert outside == {"outside", "turned"}
    messages = {finding.frames[0].split("/")[1]: finding.message for finding in result.of_kind("box-disagrees")}
    assert "1 of 2 boxes fit no region of the mask; [0, 0, 20, 20] reaches IoU 0.00" in messages["elsewhere"]
    assert result.ok


def test_duplicates_and_what_a_split_leaks(tmp_path: Path) -> None:
    small = Image.fromarray(frame(2)).resize((120, 90))
    wider = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    wider[15:105, 20:140] = np.asarray(small)
    frames = {"a": frame(1), "b": frame(1), "c": frame(2), "d": wider, "e": frame(3), "f": frame(3)}
    masks = {"a": mask((30, 20, 60, 50)), "b": mask((30, 20, 60, 40))}
    folder = save(tmp_path / "set", frames, masks)
    split = split_of("set", a="train", b="test", c="val", d="train", e="train", f="train")
    result = audit(folder, split)
    exact, near = result.of_kind("exact-duplicate"), result.of_kind("near-duplicate")
    assert [finding.frames for finding in exact] == [("set/a", "set/b"), ("set/e", "set/f")]
    assert exact[0].numbers["dice"] == pytest.approx(2 * 2400 / 5400)
    assert "are the same file" in exact[0].message
    assert [finding.frames for finding in near] == [("set/c", "set/d")]
    leak = result.of_kind("leak-exact")
    assert [finding.frames for finding in leak] == [("set/a", "set/b")]
    assert leak[0].message == "set/a is in train, set/b in test: the same picture"
    assert [finding.frames for finding in result.of_kind("leak-near")] == [("set/c", "set/d")]
    assert result.summary["split"] == {"train": 4, "test": 1, "val": 1}
    assert result.ok
    # The grouped split of the same frames leaks nothing.
    grouped = audit(folder, make_split("grouped", read(folder)))
    assert not any(finding.kind.startswith("leak") for finding in grouped.findings)


def test_parted_sequences_are_named(tmp_path: Path) -> None:
    # ClinicDB's frames 1..25 are one sequence, 26.. the next.
    folder = save(tmp_path / "CVC-ClinicDB", {name: frame(int(name)) for name in ("24", "25", "26", "27")})
    split = split_of("cvc-clinicdb", **{"24": "train", "25": "test", "26": "val", "27": "val"})
    leaks = audit(f"clinicdb:{folder}", split).of_kind("leak-group")
    assert [finding.frames for finding in leaks] == [("cvc-clinicdb/24", "cvc-clinicdb/25")]
    assert leaks[0].message == "cvc-clinicdb/sequence-01: 1 in train, 1 in test"


def test_a_split_of_other_frames(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"a": frame(1), "b": frame(2)})
    result = audit(folder, split_of("set", a="train", z="test"))
    assert kinds(result) == {"split-unknown-frame": 1, "split-missing-frame": 1}
    assert result.of_kind("split-unknown-frame")[0].frames == ("set/z",)
    assert result.of_kind("split-missing-frame")[0].frames == ("set/b",)
    assert not result.ok


def test_several_sources_are_compared_with_each_other(tmp_path: Path) -> None:
    one = save(tmp_path / "one", {"a": frame(1)})
    two = save(tmp_path / "two", {"a": frame(1)})
    result = audit([one, two])
    assert result.summary["datasets"] == {"one": 1, "two": 1}
    assert [finding.frames for finding in result.of_kind("exact-duplicate")] == [("one/a", "two/a")]


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    result = audit(tmp_path)
    assert kinds(result) == {"no-frames": 1}
    assert not result.ok
    assert "no usable frames" in result.table()
    json.dumps(result.to_dict())
    assert pictures(result) == []
    with pytest.raises(PolypsegError, match="is no folder"):
        audit(tmp_path / "absent")


def test_the_table_and_the_json(tmp_path: Path) -> None:
    masks = {str(k): mask() for k in range(5)}
    result = audit(save(tmp_path / "set", {name: frame(int(name)) for name in masks}, masks))
    table = result.table(examples=2)
    row = next(line for line in table.splitlines() if line.startswith("empty masks"))
    assert row.split()[-2:] == ["warning", "5"]
    assert table.count("is empty; right only if") == 2
    assert "… and 3 more" in table
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["ok"] is True
    assert plain["counts"]["empty-mask"] == 5
    assert plain["counts"]["size"] == 0
    assert plain["findings"][0]["frames"] == ["set/0"]


def test_a_kind_that_only_a_reader_knows_is_an_error_and_shown() -> None:
    finding = Finding("odd-header", "error", (), "x.mha: has an odd header")
    result = Audit(read_nothing(), {"frames": 0, "datasets": {}}, [finding])
    assert "odd-header" in result.table()
    assert "x.mha" in result.table()
    assert result.to_dict()["counts"]["odd-header"] == 1


def read_nothing() -> object:
    from polypseg.catalog import Catalog

    return Catalog.from_rows([])


def test_pictures_put_pairs_first_and_side_by_side(tmp_path: Path) -> None:
    frames = {"a": frame(1), "b": frame(2), "z": frame(1)}
    frames |= {f"m{k}": frame(10 + k) for k in range(30)}
    masks = {name: mask() for name in frames if name.startswith("m")}
    chosen = pictures(audit(save(tmp_path / "set", frames, masks)))
    assert len(chosen) == 24
    assert [caption for caption, *_ in chosen[:3]] == [
        "set/a: the same picture twice",
        "set/z: the same picture twice",
        "set/m0: empty masks",
    ]
    assert all(Path(image).is_file() and Path(str(truth)).is_file() for _, image, truth, _ in chosen)


@pytest.fixture(scope="module")
def real(real_data: Path) -> Audit:
    folder = real_data / "Kvasir-SEG"
    return audit(folder, make_split("random", read(folder)))


IDENTICAL = {
    frozenset({"cju76lsehyia10987u54vn8rb", "cju772304yw5t0818vbw8kkjf"}),
    frozenset({"cju30bmab08bi0835mvlr6e0r", "cju77k828z46w0871r0avuoo9"}),
    frozenset({"cju886ryxnsl50801r93jai7q", "cju8amfdtqi4x09871tygrgqe"}),
}


def pairs(findings: list[Finding]) -> set[frozenset[str]]:
    return {frozenset(name.split("/")[1] for name in finding.frames) for finding in findings}


@pytest.mark.real
def test_kvasirs_identical_pairs(real: Audit) -> None:
    assert pairs(real.of_kind("exact-duplicate")) == IDENTICAL
    dice = sorted(finding.numbers["dice"] for finding in real.of_kind("exact-duplicate"))
    assert [round(value, 3) for value in dice] == [0.962, 0.971, 0.978]


@pytest.mark.real
def test_kvasirs_reexported_frames_are_near_duplicates(real: Audit) -> None:
    """14 frames of the set are others in a wider border, as seen by eye; two more pairs are seconds apart."""
    near = real.of_kind("near-duplicate")
    later = [name for finding in near for name in finding.frames if name.split("/")[1].startswith("cjyz")]
    assert len(set(later)) >= 12
    assert 14 <= len(near) <= 18


@pytest.mark.real
def test_which_identical_pair_the_random_split_separates(real: Audit, real_data: Path) -> None:
    split = make_split("random", read(real_data / "Kvasir-SEG")).set_index("frame_id")["split"]
    separated = {pair for pair in IDENTICAL if split[list(pair)].nunique() == 2}
    assert separated == {frozenset({"cju886ryxnsl50801r93jai7q", "cju8amfdtqi4x09871tygrgqe"})}
    assert pairs(real.of_kind("leak-exact")) == separated
    assert real.of_kind("leak-exact")[0].message.count("in val") == 1


@pytest.mark.real
def test_what_is_normal_in_kvasir_is_not_noise(real: Audit) -> None:
    assert real.ok
    assert len(real.of_kind("several-polyps")) == 48
    assert real.of_kind("grey-masks")[0].numbers["masks"] == 1000
    assert real.of_kind("grey-masks")[0].numbers["inflation"] == pytest.approx(0.037, abs=0.001)
    assert len(real.of_kind("box-disagrees")) == 8
    for kind in ("box-outside", "tiny-mask", "empty-mask", "label-values"):
        assert real.of_kind(kind) == []
    assert real.summary["resolution"]["smallest"] == [332, 487]
    assert real.summary["polyp_area_percent"]["median"] == pytest.approx(11.4, abs=0.1)
    assert len(pictures(real)) == 24
