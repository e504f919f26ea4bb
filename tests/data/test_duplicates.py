from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from polypseg.catalog import Catalog
from polypseg.data import duplicates, read
from polypseg.data.duplicates import exact_pairs, fingerprints, groups, lit_part, near_pairs, signature
from polypseg.errors import PolypsegError


def tissue(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """A reddish frame with smooth random structure of its own."""
    noise = np.random.default_rng(seed).uniform(60, 220, (8, 10)).astype(np.float32)
    grey = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(80, 230)
    return np.stack([grey, 0.6 * grey, 0.5 * grey], 2).astype(np.uint8)


def save(folder: Path, frames: dict[str, np.ndarray]) -> Catalog:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem, frame in frames.items():
        mask = np.zeros(frame.shape[:2], np.uint8)
        mask[10:30, 20:60] = 255
        Image.fromarray(frame).save(folder / "images" / f"{stem}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
    return read(folder)


def bordered(frame: np.ndarray) -> np.ndarray:
    """The frame as another export shows it: smaller, inside a black border, with the green position image."""
    small = cv2.resize(frame, (200, 150), interpolation=cv2.INTER_AREA)
    canvas = np.zeros((180, 260, 3), np.uint8)
    canvas[20:170, 40:240] = small
    canvas[130:170, 40:90] = (20, 165, 130)
    return canvas


def test_facts_of_a_mask(tmp_path: Path) -> None:
    catalog = save(tmp_path, {"a": tissue(0, 50, 80)})
    mask = np.zeros((50, 80), np.uint8)
    mask[5:15, 10:30] = 255  # 200 pixels
    mask[30:33, 60:64] = 200  # 12 pixels, grey but polyp
    mask[40, :20] = 90  # 20 pixels, grey and no polyp
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    prints = fingerprints(catalog)
    assert prints.polyp_pixels.tolist() == [212]
    assert prints.nonzero_pixels.tolist() == [232]
    assert prints.area[0] == pytest.approx(212 / 4000)
    assert prints.grey[0] == pytest.approx(32 / 4000)
    assert prints.mask_max.tolist() == [255]
    assert prints.components[0].tolist() == [[10, 5, 29, 14, 200], [60, 30, 63, 32, 12]]
    assert prints.shape.tolist() == [[50, 80]]


def test_lit_part_is_what_lies_inside_the_border(tmp_path: Path) -> None:
    assert lit_part(bordered(tissue(4, 300, 400))) == (20, 170, 40, 240)
    assert lit_part(np.full((50, 60, 3), 20, np.uint8)) == (0, 0, 0, 0)
    catalog = save(tmp_path, {"a": bordered(tissue(4, 300, 400))})
    assert fingerprints(catalog).lit.tolist() == [[20, 170, 40, 240]]


def test_a_frame_without_mask_is_fingerprinted(tmp_path: Path) -> None:
    catalog = save(tmp_path, {"a": tissue(0)})
    alone = Catalog(catalog.frames.assign(mask_path=None))
    prints = fingerprints(alone, progress=True)
    assert prints.readable.all()
    assert not prints.has_mask.any()


def test_signature_is_unit_norm_and_ignores_brightness() -> None:
    dark = (tissue(1) * 0.8).astype(np.uint8)
    first, where = signature(tissue(1), lit_part(tissue(1)))
    darker, _ = signature(dark, lit_part(dark))
    assert first.shape == where.shape == (48, 48)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert float((first * darker).sum()) > 0.99


@pytest.mark.parametrize("grey", [0, 120, 255])
def test_flat_frames_are_not_near_each_other(tmp_path: Path, grey: int) -> None:
    rng = np.random.default_rng(0)
    flat = [np.clip(grey + rng.integers(-1, 2, (60, 80, 3)), 0, 255).astype(np.uint8) for _ in range(3)]
    assert near_pairs(fingerprints(save(tmp_path, dict(zip("abc", flat, strict=True))))) == []


def test_exact_pairs_tell_how(tmp_path: Path) -> None:
    frame = tissue(2)
    clock = frame.copy()
    clock[110:112, 5:9] = 255  # another time burnt in
    catalog = save(tmp_path, {"a": frame, "b": frame, "c": tissue(3), "d": clock, "e": frame})
    # The same pixels in another file.
    Image.fromarray(frame).save(tmp_path / "images" / "e.png", compress_level=0)
    prints = fingerprints(catalog)
    found = exact_pairs(prints)
    assert found == [
        (0, 1, "file"),
        (0, 3, "picture"),
        (0, 4, "pixels"),
        (1, 3, "picture"),
        (3, 4, "picture"),
    ]
    assert exact_pairs(prints, near_pairs(prints)) == found


def test_identical_flat_frames_are_exact(tmp_path: Path) -> None:
    black = np.zeros((60, 80, 3), np.uint8)
    prints = fingerprints(save(tmp_path, {"a": black, "b": black, "c": black}))
    assert exact_pairs(prints) == [(0, 1, "file"), (0, 2, "file")]


def test_a_reframed_copy_is_near_and_not_exact(tmp_path: Path) -> None:
    frame = tissue(4, 300, 400)
    prints = fingerprints(save(tmp_path, {"a": frame, "b": tissue(5, 300, 400), "c": bordered(frame)}))
    pairs = near_pairs(prints)
    assert [(i, j) for i, j, _ in pairs] == [(0, 2)]
    assert pairs[0][2] > 0.9
    assert exact_pairs(prints) == []


def test_frames_of_one_endoscope_are_not_near(tmp_path: Path) -> None:
    # A shared octagon, cut-out and label: what makes a plain correlation of whole frames exceed 0.9.
    frames = {}
    for seed in range(6, 12):
        frame = (150 + (tissue(seed, 300, 300).astype(int) - 140) // 4).clip(0, 255).astype(np.uint8)
        corner = np.add.outer(np.arange(300), np.arange(300))
        for turned in (frame, frame[::-1], frame[:, ::-1], frame[::-1, ::-1]):
            turned[corner < 90] = 0
        frame[200:, :100] = 0
        frame[100:102, 10:60] = 255
        frames[str(seed)] = frame
    catalog = save(tmp_path, frames)
    plain = [cv2.resize(catalog.frame(k), (48, 48)).mean(2).ravel() for k in range(len(catalog))]
    assert np.corrcoef(plain).min() > 0.9
    assert near_pairs(fingerprints(catalog)) == []


def test_blocks_do_not_change_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = {f"{k:02d}": tissue(k % 5, 100 + k, 140) for k in range(13)}
    prints = fingerprints(save(tmp_path, frames))
    whole = near_pairs(prints)
    assert {(i % 5, j % 5) for i, j, _ in whole} == {(k, k) for k in range(5)}
    assert len(whole) == sum(1 for i in range(13) for j in range(i + 1, 13) if i % 5 == j % 5)
    monkeypatch.setattr(duplicates, "_BLOCK", 4)
    blocks = near_pairs(prints)
    assert [pair[:2] for pair in blocks] == [pair[:2] for pair in whole]
    assert np.allclose([pair[2] for pair in blocks], [pair[2] for pair in whole], atol=1e-5)


def test_no_correlation_is_lost_to_the_bound(tmp_path: Path) -> None:
    """The plain product that selects candidates never hides a pair: against every pair computed in full."""
    frames = {str(k): tissue(k % 3, 300, 400) for k in range(6)}
    frames["6"], frames["7"] = bordered(tissue(0, 300, 400)), bordered(tissue(1, 300, 400))
    prints = fingerprints(save(tmp_path, frames))
    expected = []
    for i in range(8):
        for j in range(i + 1, 8):
            a, b = prints.signature[i].astype(float), prints.signature[j].astype(float)
            power_a, power_b = (a[prints.tissue[j]] ** 2).sum(), (b[prints.tissue[i]] ** 2).sum()
            value = (a * b).sum() / np.sqrt(power_a * power_b)
            if value >= 0.6 and min(power_a, power_b) >= 0.5:
                expected.append((i, j))
    assert expected
    assert [(i, j) for i, j, _ in near_pairs(prints, 0.6)] == expected


def test_groups_join_duplicates_with_the_catalogs_groups(tmp_path: Path) -> None:
    catalog = save(tmp_path, {"a": tissue(1), "b": tissue(2), "c": tissue(1), "d": tissue(3), "e": tissue(4)})
    catalog = Catalog(catalog.frames.assign(group=["z", "s", "s", "t", "u"]))
    # a = c by picture, b and c by their sequence.
    assert groups(catalog, fingerprints(catalog)) == ["s", "s", "s", "t", "u"]


def test_undecodable_frames_are_raised_or_recorded(tmp_path: Path) -> None:
    catalog = save(tmp_path, {"a": tissue(1), "b": tissue(2), "c": tissue(2)})
    file = tmp_path / "images" / "b.png"
    file.write_bytes(file.read_bytes()[:2000])
    mask = tmp_path / "masks" / "c.png"
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(PolypsegError, match=r"b\.png"):
        fingerprints(catalog)
    problems: list = []
    prints = fingerprints(catalog, problems=problems)
    assert prints.readable.tolist() == [True, False, False]
    assert [(problem.kind, Path(problem.path)) for problem in problems] == [
        ("undecodable", file.resolve()),
        ("undecodable", mask.resolve()),
    ]
    assert near_pairs(prints) == []
    assert exact_pairs(prints) == []


@pytest.mark.real
def test_kvasirs_reexported_frames_are_found(real_data: Path) -> None:
    """Looked at by eye: frames of the set that occur again with a wider border, and their originals."""
    again = {
        "cjyzkmjy8evns070165gf9dmq": "cju45jpvfn6c809873pv1i34s",
        "cjyztzaqtrv430848l8xgcerw": "cju77g99iyxc00817zqi2ppor",
        "cjz14qsk2wci60794un9ozwmw": "cju2i6acqvo6l0799u20fift8",
    }
    frames = read(real_data / "Kvasir-SEG").frames
    names = {*again, *again.values(), *frames["frame_id"][:60]}
    catalog = Catalog(frames[frames["frame_id"].isin(names)].reset_index(drop=True))
    found = {
        frozenset((catalog.row(i).frame_id, catalog.row(j).frame_id)) for i, j, _ in near_pairs(fingerprints(catalog))
    }
    assert found == {frozenset(pair) for pair in again.items()}
