"""The readers: which one recognises a folder, order, boxes, groups; on the real data, their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polypseg.catalog import COLUMNS, Catalog
from polypseg.data import READERS, clinicdb, folder, kvasir, phantom, polypgen, read, read_all
from polypseg.data.folder import Problem, dataset_name
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import natural_order

# Frame numbers 1..612 of CVC-ClinicDB's 29 sequences, as its publishers list them.
SEQUENCES = [
    (1, 25), (26, 50), (51, 67), (68, 78), (79, 103), (104, 126), (127, 151), (152, 177), (178, 199), (200, 205),
    (206, 227), (228, 252), (253, 277), (278, 297), (298, 317), (318, 342), (343, 363), (364, 383), (384, 408),
    (409, 428), (429, 447), (448, 466), (467, 478), (479, 503), (504, 528), (529, 546), (547, 571), (572, 591),
    (592, 612),
]  # fmt: skip


def write(
    path: Path,
    stems: Iterable[object],
    images: str = "images",
    masks: str = "masks",
    size: tuple[int, int] = (12, 8),
) -> Path:
    """A data set whose frames are all the same small picture."""
    for name in (images, masks):
        (path / name).mkdir(parents=True)
    Image.new("L", size, 255).save(path / "one.png")
    content = (path / "one.png").read_bytes()
    (path / "one.png").unlink()
    for stem in stems:
        (path / images / f"{stem}.png").write_bytes(content)
        (path / masks / f"{stem}.png").write_bytes(content)
    return path


def boxes_of(*boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    names = ("xmin", "ymin", "xmax", "ymax")
    return {
        "height": 8,
        "width": 12,
        "bbox": [{"label": "polyp", **dict(zip(names, box, strict=True))} for box in boxes],
    }


def write_boxes(path: Path, content: dict[str, Any]) -> Path:
    (path / "kavsir_bboxes.json").write_text(json.dumps(content))
    return path


def ids(catalog: Catalog) -> list[str]:
    return [row.frame_id for row in catalog]


# ---- any folder -----------------------------------------------------------------------------------------


def test_a_plain_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "My Clinic (2024)", ["10", "9", "007", "1", "a2", "a10", "A"])
    catalog = read(path)
    assert ids(catalog) == ["A", "a2", "a10", "1", "007", "9", "10"]
    assert list(catalog.frames.columns) == COLUMNS
    row = catalog.row(4)
    assert (row.frame_id, row.dataset, row.group) == ("007", "my-clinic-2024", "my-clinic-2024/007")
    assert (row.width, row.height, row.boxes, row.split) == (12, 8, [], "")
    assert row.image_path == str((path / "images" / "007.png").resolve())
    assert row.mask_path == str((path / "masks" / "007.png").resolve())
    assert Path(row.image_path).is_absolute()


def test_paths_are_absolute_whatever_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set", ["a"])
    monkeypatch.chdir(tmp_path / "set")
    catalog = read(".")
    assert catalog.row(0).dataset == "set"
    monkeypatch.chdir(tmp_path)
    assert catalog.mask(0).shape == (8, 12)


@pytest.mark.parametrize(
    ("name", "expected"), [("Kvasir_2", "kvasir_2"), ("a  b", "a-b"), ("Ünï.v1", "ünï.v1"), ("()", "folder")]
)
def test_the_data_set_is_named_after_its_folder(tmp_path: Path, name: str, expected: str) -> None:
    assert dataset_name(tmp_path / name) == expected


def test_natural_order_takes_any_mixture() -> None:
    names = ["10", "9", "a", "1b", "1a", "a1", "", "²", "١", "0x10", "0x9"]
    backwards = names[::-1]
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order)
    assert sorted(["x10", "x9", "x1"], key=natural_order) == ["x1", "x9", "x10"]


def test_several_data_sets_keep_their_order(tmp_path: Path) -> None:
    one, two = write(tmp_path / "b", ["1"]), write(tmp_path / "a", ["1"])
    assert [row.dataset for row in read_all([one, two])] == ["b", "a"]
    with pytest.raises(UsageError, match="--data"):
        read_all([])


def test_the_first_problem_is_told_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "set", ["a", "b", "c"])
    (path / "masks" / "a.png").unlink()
    (path / "masks" / "b.png").unlink()
    with pytest.raises(PolypsegError, match=r"\(1 more; see `polypseg data check`\)"):
        read(path)
    problems: list[Problem] = []
    assert ids(read(path, problems)) == ["c"]
    assert [(problem.kind, Path(problem.path).name) for problem in problems] == [
        ("missing-mask", "a.png"),
        ("missing-mask", "b.png"),
    ]


def test_the_unreadable_file_itself_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set", ["a", "b"])
    (path / "masks" / "a.png").write_bytes(b"")
    (path / "images" / "b.png").write_bytes(b"")
    problems: list[Problem] = []
    read(path, problems)
    assert [problem.path for problem in problems] == [
        str(path / "masks" / "a.png"),
        str(path / "images" / "b.png"),
    ]
    assert all(problem.message.startswith(problem.path) for problem in problems)


# ---- Kvasir-SEG -----------------------------------------------------------------------------------------


def test_kvasir_keeps_the_json_s_order_and_its_boxes(tmp_path: Path) -> None:
    path = write(tmp_path / "any name", ["a", "b", "c", "d", "e"])
    write_boxes(path, {"d": boxes_of((1, 2, 3, 4)), "b": boxes_of((0, 0, 11, 7), (5, 5, 6, 6)), "c": boxes_of()})
    catalog = read(path)
    assert ids(catalog) == ["d", "b", "c", "a", "e"]  # those that the JSON does not name follow, in order
    assert catalog.frames["boxes"].tolist() == [[[1, 2, 3, 4]], [[0, 0, 11, 7], [5, 5, 6, 6]], [], [], []]
    assert set(catalog.frames["dataset"]) == {"kvasir-seg"}
    assert catalog.row(1).group == "kvasir-seg/b"


def test_kvasir_read_boxes(tmp_path: Path) -> None:
    write_boxes(tmp_path, {"x": boxes_of((1, 2, 3, 4)), "007": boxes_of()})
    table = kvasir.read_boxes(tmp_path / "kavsir_bboxes.json")
    assert table.to_dict("list") == {
        "frame_id": ["x", "007"],
        "height": [8, 8],
        "width": [12, 12],
        "boxes": [[[1, 2, 3, 4]], []],
    }


def test_kvasir_tells_each_missing_frame_once(tmp_path: Path) -> None:
    path = write_boxes(write(tmp_path / "k", ["a", "b"]), {name: boxes_of() for name in ("a", "b", "c", "d")})
    (path / "images" / "b.png").unlink()  # leaves a mask without a frame, too
    problems: list[Problem] = []
    assert ids(read(path, problems)) == ["a"]
    assert sorted(Path(problem.path).name for problem in problems) == ["b.jpg", "b.png", "c.jpg", "d.jpg"]


def test_kvasir_without_masks_is_one_problem_not_one_a_frame(tmp_path: Path) -> None:
    path = write_boxes(write(tmp_path / "k", ["a", "b"]), {name: boxes_of() for name in ("a", "b")})
    for file in (path / "masks").iterdir():
        file.unlink()
    (path / "masks").rmdir()
    problems: list[Problem] = []
    read(path, problems)
    assert [problem.path for problem in problems] == [str(path / "masks")]


def test_kvasir_without_images(tmp_path: Path) -> None:
    with pytest.raises(PolypsegError, match="images: is missing"):
        read(write_boxes(tmp_path, {"a": boxes_of()}))


# ---- CVC-ClinicDB ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "bounds"), list(enumerate(SEQUENCES, start=1)))
def test_clinicdb_s_sequences_begin_and_end_where_published(number: int, bounds: tuple[int, int]) -> None:
    assert [clinicdb.sequence(str(frame)) for frame in range(bounds[0], bounds[1] + 1)] == [number] * (
        bounds[1] - bounds[0] + 1
    )


def test_clinicdb_s_sequences_cover_every_frame_once() -> None:
    assert [frame for first, last in SEQUENCES for frame in range(first, last + 1)] == list(range(1, 613))
    assert len(clinicdb.SEQUENCE_STARTS) == 29


@pytest.fixture(scope="module")
def whole_clinicdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the data set is copied: 612 numbered frames of 384×288."""
    return write(tmp_path_factory.mktemp("clinicdb") / "any name", range(1, 613), size=clinicdb.SIZE)


def test_clinicdb_groups_by_sequence(tmp_path: Path) -> None:
    catalog = read(f"clinicdb:{write(tmp_path / 'part', [612, 592, 591, 51, 26, 25, 1])}")
    assert [(row.frame_id, row.group) for row in catalog] == [
        ("1", "cvc-clinicdb/sequence-01"),
        ("25", "cvc-clinicdb/sequence-01"),
        ("26", "cvc-clinicdb/sequence-02"),
        ("51", "cvc-clinicdb/sequence-03"),
        ("591", "cvc-clinicdb/sequence-28"),
        ("592", "cvc-clinicdb/sequence-29"),
        ("612", "cvc-clinicdb/sequence-29"),
    ]
    assert set(catalog.frames["dataset"]) == {"cvc-clinicdb"}


def test_clinicdb_as_it_is_published(tmp_path: Path) -> None:
    catalog = read(f"clinicdb:{write(tmp_path / 'clinic', [1, 2], images='Original', masks='Ground Truth')}")
    assert ids(catalog) == ["1", "2"]
    assert Path(catalog.row(0).mask_path).parent.name == "Ground Truth"


def test_the_whole_clinicdb_is_recognised_under_any_name(whole_clinicdb: Path) -> None:
    assert set(read(whole_clinicdb).frames["dataset"]) == {"cvc-clinicdb"}


@pytest.mark.parametrize(
    ("name", "stems"),
    [
        ("my-clinic", ["0001", "0002"]),  # the how-to's own example
        ("ClinicDB-part", [1, 2]),
        ("CVC-ClinicDB", range(1, 612)),  # but one
        ("clinic", [f"{number:03}" for number in range(1, 613)]),  # all, under other names
        ("clinicdb", range(1, 613)),  # all, of another size
    ],
)
def test_others_numbered_frames_are_not_taken_for_clinicdb(tmp_path: Path, name: str, stems: Iterable[object]) -> None:
    assert set(read(write(tmp_path / name, stems)).frames["dataset"]) == {dataset_name(tmp_path / name)}


def test_what_is_named_clinicdb_must_be_its_frames(tmp_path: Path) -> None:
    with pytest.raises(PolypsegError, match=r"0a\.png: is no frame of CVC-ClinicDB"):
        read(f"clinicdb:{write(tmp_path / 'set', ['0a'])}")
    with pytest.raises(PolypsegError, match="images: is missing"):
        read(f"clinicdb:{tmp_path}")


# ---- PolypGen -------------------------------------------------------------------------------------------

POLYPGEN = [
    "C1_100H0050", "C1_106OLCV1_100H0012", "C1_106OLCV1_100S0014", "C2_EndoCV2021_001024", "C2_EndoCV2021_001025",
    "C3_EndoCV2021_00489", "C4_10_endocv2021_positive_1006", "C4_10_endocv2021_positive_499",
    "C4_35_endocv2021_negative_1005", "C5_EndoCV2021_C5_50000003", "C6_EndoCV2021_C6_0100001",
]  # fmt: skip


def test_polypgen_in_one_folder(tmp_path: Path) -> None:
    catalog = read(write(tmp_path / "any name", POLYPGEN))
    assert set(catalog.frames["dataset"]) == {"polypgen"}
    assert catalog.frames["centre"].tolist() == [stem[:2] for stem in ids(catalog)]
    group = dict(zip(ids(catalog), catalog.frames["group"], strict=True))
    together = [[POLYPGEN[1], POLYPGEN[2]], [POLYPGEN[6], POLYPGEN[7]]]
    assert all(group[a] == group[b] for a, b in together)
    assert len(set(group.values())) == len(POLYPGEN) - len(together)
    assert group["C2_EndoCV2021_001024"] == "polypgen/C2_EndoCV2021_/1000-1024"


def test_polypgen_as_it_is_published_has_the_same_frames(tmp_path: Path) -> None:
    """Folders a centre, masks named <stem>_mask, some stems without their centre, and C3's one odd name."""
    for stem in POLYPGEN:
        centre = stem[:2]
        folders = [tmp_path / f"data_{centre}" / f"{kind}_{centre}" for kind in ("images", "masks")]
        for directory, ending in zip(folders, ("", "_mask"), strict=True):
            directory.mkdir(parents=True, exist_ok=True)
            published = stem if centre == "C3" else stem.removeprefix(f"{centre}_")
            odd = "_" if (centre, ending) == ("C3", "") else ""
            Image.new("L", (12, 8)).save(directory / f"{published}{odd}{ending}.jpg")
    catalog = read(tmp_path)
    assert set(catalog.frames["dataset"]) == {"polypgen"} and set(ids(catalog)) == set(POLYPGEN)
    assert catalog.frames["group"].tolist() == read(write(tmp_path / "flat", ids(catalog))).frames["group"].tolist()


@pytest.mark.parametrize(
    "stems",
    [
        ["C1_001", "C1_002"],  # someone's own camera
        ["C1_EndoCV2021_001", "EndoCV2021_002"],  # a frame without its centre
        ["C7_EndoCV2021_001"],
    ],
)
def test_other_frames_are_not_taken_for_polypgen(tmp_path: Path, stems: list[str]) -> None:
    assert set(read(write(tmp_path / "PolypGen-like", stems)).frames["dataset"]) == {"polypgen-like"}


def test_other_readers_name_no_centre(tmp_path: Path) -> None:
    catalog = read(write(tmp_path / "set", ["a"]))
    assert catalog.frames["centre"].tolist() == [""]
    assert Catalog(catalog.frames.drop(columns="centre")).frames["centre"].tolist() == [""]


# ---- names of masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("addition", ["_mask", "-mask", "_segmentation", " GT", ".label", "_mask_1"])
def test_masks_that_all_have_one_addition_are_paired_without_it(tmp_path: Path, addition: str) -> None:
    path = write(tmp_path / "set", ["1", "10", "100", "a"])
    for file in (path / "masks").iterdir():
        file.rename(file.with_stem(file.stem + addition))
    catalog = read(path)
    assert ids(catalog) == ["a", "1", "10", "100"]
    assert [Path(row.mask_path).stem for row in catalog] == [f"{row.frame_id}{addition}" for row in catalog]


def test_masks_named_in_two_ways_are_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "set", "abcd")
    for stem in "abc":
        (path / "masks" / f"{stem}.png").rename(path / "masks" / f"{stem}_mask.png")
    problems: list[Problem] = []
    read(path, problems)
    assert [problem.kind for problem in problems] == ["mask-names"]
    assert "named <stem>_mask, but not d.png" in problems[0].message


def test_a_single_stray_mask_is_told_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "set", "abc")
    (path / "masks" / "b.png").rename(path / "masks" / "x_b.png")
    problems: list[Problem] = []
    assert ids(read(path, problems)) == ["a", "c"]
    assert [problem.kind for problem in problems] == ["missing-frame", "missing-mask"]


# ---- which reader ---------------------------------------------------------------------------------------


def test_each_folder_has_its_reader(tmp_path: Path, whole_clinicdb: Path) -> None:
    plain = write(tmp_path / "plain", ["a"])
    clinic = whole_clinicdb
    boxes = write_boxes(write(tmp_path / "clinic k", ["1"]), {"1": boxes_of()})
    drawn = phantom.write(tmp_path / "phantom", 1, seed=0, height=64, width=64)
    centres = write(tmp_path / "centres", POLYPGEN)
    folders = (plain, clinic, boxes, drawn, centres)
    readers = [folder, clinicdb, kvasir, phantom, polypgen]
    assert [next(reader for reader in READERS if reader.recognise(path)) for path in folders] == readers
    assert not any(reader.recognise(tmp_path) for reader in READERS)


def test_problems_of_one_call_are_not_those_of_the_next(tmp_path: Path) -> None:
    path = write(tmp_path / "set", ["a"])
    (path / "images" / "note.txt").write_text("x")
    for _ in range(2):
        with pytest.raises(PolypsegError, match="not an image by its name") as error:
            read(path)
        assert "more" not in str(error.value)


# ---- the real data --------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_real_kvasir(real_data: Path) -> None:
    path = real_data / "Kvasir-SEG"
    catalog = read(path)
    published = json.loads((path / "kavsir_bboxes.json").read_text())
    assert ids(catalog) == list(published)
    assert len(catalog) == 1000
    assert sum(len(boxes) for boxes in catalog.frames["boxes"]) == sum(
        len(entry["bbox"]) for entry in published.values()
    )
    assert catalog.frames["group"].nunique() == 1000
    assert catalog.frames["width"].between(332, 1920).all()
    index = 17
    assert catalog.frame(index).shape == (catalog.row(index).height, catalog.row(index).width, 3)
    assert catalog.mask(index).any()


@pytest.mark.real
def test_the_real_clinicdb(real_data: Path) -> None:
    catalog = read(real_data / "CVC-ClinicDB")
    assert ids(catalog) == [str(number) for number in range(1, 613)]
    assert catalog.frames["group"].nunique() == 29
    assert set(zip(catalog.frames["width"], catalog.frames["height"], strict=True)) == {(384, 288)}
    sizes = catalog.frames.groupby("group").size()
    assert sizes.tolist() == [last - first + 1 for first, last in SEQUENCES]


@pytest.mark.real
def test_the_real_polypgen_and_polyp_free_frames(real_data: Path) -> None:
    catalog = read_all([real_data / "PolypGen", real_data / "PolypFree"])
    assert catalog.frames["dataset"].value_counts().to_dict() == {"polypgen": 1449, "polypfree": 544}
    counts = {"C1": 256, "C2": 301, "C3": 457, "C4": 227, "C5": 208, "": 544}
    assert catalog.frames["centre"].value_counts().to_dict() == counts
