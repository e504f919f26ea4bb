from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from polypseg.catalog import Catalog
from polypseg.data import read, read_all
from polypseg.data.duplicates import SIDE, Fingerprints, fingerprints, groups
from polypseg.data.splits import AREA_BINS, hash_split, make_folds, make_split, read_split, write_split
from polypseg.errors import PolypsegError, UsageError


def catalog_of(
    names: list[str],
    dataset: str = "kvasir-seg",
    group: list[str] | None = None,
    folder: Path = Path("/none"),
) -> Catalog:
    """Frames that lie nowhere; enough for a split whose fingerprints are given."""
    group = [f"{dataset}/{name}" for name in names] if group is None else group
    return Catalog.from_rows(
        {
            "frame_id": name,
            "image_path": str(folder / "images" / f"{name}.png"),
            "width": 64,
            "height": 48,
            "dataset": dataset,
            "group": of,
        }
        for name, of in zip(names, group, strict=True)
    )


def prints_of(catalog: Catalog, area: np.ndarray | None = None) -> Fingerprints:
    """Fingerprints in which no two frames are alike."""
    n = len(catalog)
    hashes = np.array([f"{k}" for k in range(n)])
    zeros = np.zeros(n, np.int64)
    return Fingerprints(
        readable=np.ones(n, bool),
        file_hash=hashes,
        pixel_hash=hashes,
        signature=np.zeros((n, SIDE * SIDE), np.float32),
        tissue=np.zeros((n, SIDE * SIDE), bool),
        shape=np.full((n, 2), 48),
        lit=np.tile([0, 48, 0, 48], (n, 1)),
        has_mask=np.ones(n, bool),
        polyp_pixels=zeros,
        area=np.full(n, 0.1) if area is None else area,
        nonzero_pixels=zeros,
        grey=np.zeros(n),
        mask_max=zeros,
        low=np.zeros(n),
        corners=zeros,
        components=[np.zeros((0, 5), np.int64)] * n,
    )


def alike(prints: Fingerprints, *pairs: tuple[int, int]) -> Fingerprints:
    hashes = prints.pixel_hash.copy()
    for i, j in pairs:
        hashes[j] = hashes[i]
    return dataclasses.replace(prints, pixel_hash=hashes)


def names(table: pd.DataFrame, split: str) -> list[str]:
    return table.loc[table["split"] == split, "frame_id"].tolist()


def test_a_name_that_would_be_a_formula_comes_back_from_the_file(tmp_path: Path) -> None:
    catalog = catalog_of(["=1", "-2", "'=3", "4"])
    table = make_split("random", catalog)
    write_split(table, tmp_path / "split.csv")
    assert all(",=" not in line and ",-" not in line for line in (tmp_path / "split.csv").read_text().splitlines())
    pd.testing.assert_frame_equal(read_split(tmp_path / "split.csv"), table)


def write_list(path: Path, frames: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(frames) + "\n")


FRAMES = [f"f{k:03d}" for k in range(200)]


def test_random_is_the_classical_recipe_per_data_set() -> None:
    one, two = catalog_of(FRAMES), catalog_of([str(k) for k in range(30, 0, -1)], "cvc-clinicdb")
    table = make_split("random", Catalog.concatenate([one, two]))
    assert table.columns.tolist() == ["dataset", "frame_id", "split"]
    assert table["frame_id"].tolist() == FRAMES + [str(k) for k in range(30, 0, -1)]
    for dataset, listed in (("kvasir-seg", FRAMES), ("cvc-clinicdb", [str(k) for k in range(30, 0, -1)])):
        train, rest = train_test_split(listed, test_size=0.3, random_state=42)
        test, val = train_test_split(rest, test_size=0.5, random_state=42)
        part = table[table["dataset"] == dataset]
        assert set(names(part, "train")) == set(train)
        assert set(names(part, "test")) == set(test)
        assert set(names(part, "val")) == set(val)


def test_grouped_keeps_groups_whole_and_the_fractions() -> None:
    rng = np.random.default_rng(0)
    group = [f"s{k}" for k in rng.integers(0, 40, 200)]
    catalog = catalog_of(FRAMES, group=group)
    area = rng.choice([0.01, 0.03, 0.1, 0.3], 200)
    prints = alike(prints_of(catalog, area), (0, 1), (2, 3), (3, 4))
    table = make_split("grouped", catalog, prints=prints)
    split = table["split"].to_numpy()
    joined = groups(catalog, prints)
    assert all(len({split[k] for k in range(200) if joined[k] == name}) == 1 for name in set(joined))
    assert split[0] == split[1]
    assert split[2] == split[3] == split[4]
    share = table["split"].value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.70, abs=0.03)
    assert share["val"] == pytest.approx(0.15, abs=0.03)
    assert share["test"] == pytest.approx(0.15, abs=0.03)


def test_grouped_is_stratified_by_area_and_repeatable() -> None:
    catalog = catalog_of(FRAMES)
    area = np.repeat([0.01, 0.03, 0.1, 0.3], [20, 40, 60, 80])
    prints = prints_of(catalog, area)
    table = make_split("grouped", catalog, prints=prints)
    counts = pd.crosstab(np.digitize(area, AREA_BINS), table["split"])
    assert counts["test"].tolist() == [3, 6, 9, 12]
    assert counts["val"].tolist() == [3, 6, 9, 12]
    pd.testing.assert_frame_equal(table, make_split("grouped", catalog, prints=prints))
    assert hash_split(table) != hash_split(make_split("grouped", catalog, prints=prints, seed=1))


def test_grouped_is_stratified_by_centre_and_by_whether_there_is_a_polyp() -> None:
    catalog = catalog_of(FRAMES)
    centre = np.repeat(["C1", "C2"], [140, 60])
    catalog = Catalog(catalog.frames.assign(centre=centre))
    empty = np.arange(200) % 5 == 0  # 40 of them; their neighbours in area are the smallest polyps
    prints = prints_of(catalog, np.where(empty, 0.0, 0.01))
    table = make_split("grouped", catalog, prints=prints)
    assert Counter(zip(centre[empty], table["split"][empty], strict=True)) == {
        ("C1", "train"): 20, ("C1", "val"): 4, ("C1", "test"): 4,
        ("C2", "train"): 8, ("C2", "val"): 2, ("C2", "test"): 2,
    }  # fmt: skip


def test_folds_part_no_group_and_are_stratified_by_area() -> None:
    names = [f"{k:03}" for k in range(200)]
    group = [f"g{k // 3}" if k < 60 else f"own{k}" for k in range(200)]
    catalog = catalog_of(names, group=group)
    area = np.where(np.arange(200) % 4 == 0, 0.01, 0.1)
    fold = make_folds(catalog, 4, prints=prints_of(catalog, area))
    table = pd.DataFrame({"group": group, "fold": fold, "small": area < 0.02})
    assert table.groupby("group")["fold"].nunique().max() == 1
    assert (table["fold"].value_counts() - 50).abs().max() <= 2 and table["fold"].nunique() == 4
    assert (table.groupby("fold")["small"].sum() - 12.5).abs().max() <= 1.5
    few = catalog_of(names[:6], group=["a", "a", "b", "b", "c", "c"], folder=Path("/x/data"))
    assert set(make_folds(few, 3, prints=prints_of(few))) == {0, 1, 2}
    with pytest.raises(PolypsegError, match=r"/x/data: contains 3 groups .* too few for --folds 4; lower it"):
        make_folds(few, 4, prints=prints_of(few))
    with pytest.raises(UsageError, match="--folds 1: must be 2 or more"):
        make_folds(few, 1, prints=prints_of(few))


def test_grouped_of_few_large_groups_leaves_no_part_empty() -> None:
    catalog = catalog_of(FRAMES[:12], group=["a"] * 10 + ["b", "c"])
    table = make_split("grouped", catalog, prints=prints_of(catalog))
    assert Counter(table["split"]) == {"train": 10, "val": 1, "test": 1}
    catalog = catalog_of(FRAMES[:3])
    table = make_split("grouped", catalog, prints=prints_of(catalog))
    assert sorted(table["split"]) == ["test", "train", "val"]


def test_kfold_tests_every_frame_once() -> None:
    rng = np.random.default_rng(1)
    catalog = catalog_of(FRAMES, group=[f"s{k}" for k in rng.integers(0, 30, 200)])
    prints = prints_of(catalog, rng.uniform(0, 0.4, 200))
    tables = [make_split("kfold", catalog, folds=4, fold=k, prints=prints) for k in range(4)]
    tested = [frame for table in tables for frame in names(table, "test")]
    assert sorted(tested) == FRAMES
    for k, table in enumerate(tables):
        assert names(table, "val") == names(tables[(k + 1) % 4], "test")
        assert 40 <= len(names(table, "test")) <= 60
        assert table.assign(group=catalog.frames["group"]).groupby("group")["split"].nunique().max() == 1


@pytest.mark.parametrize("where", ["set/splits", "splits", "given"])
def test_pranet_keeps_the_published_test_set(tmp_path: Path, where: str) -> None:
    catalog = catalog_of(FRAMES, folder=tmp_path / "set")
    prints = alike(prints_of(catalog), (100, 101), (150, 151))
    write_list(tmp_path / where / "pranet-kvasir-test.txt", FRAMES[:20])
    lists = tmp_path / "given" if where == "given" else None
    table = make_split("pranet", catalog, lists=lists, prints=prints)
    assert names(table, "test") == FRAMES[:20]
    assert len(names(table, "val")) == 18
    split = table.set_index("frame_id")["split"]
    assert split["f100"] == split["f101"]
    assert split["f150"] == split["f151"]
    whole = make_split("pranet", catalog, lists=lists, val_fraction=0)  # decodes nothing: the frames lie nowhere
    assert names(whole, "train") == FRAMES[20:]
    assert names(whole, "val") == []


def test_pranet_of_both_data_sets(tmp_path: Path) -> None:
    clinic = [str(k) for k in range(1, 41)]
    both = Catalog.concatenate([catalog_of(FRAMES), catalog_of(clinic, "cvc-clinicdb")])
    write_list(tmp_path / "pranet-kvasir-test.txt", FRAMES[:20])
    write_list(tmp_path / "pranet-clinicdb-test.txt", clinic[:5])
    table = make_split("pranet", both, lists=tmp_path, prints=prints_of(both))
    assert names(table, "test") == FRAMES[:20] + clinic[:5]
    assert Counter(table[table["split"] == "val"]["dataset"]) == {"kvasir-seg": 18, "cvc-clinicdb": 3}


def test_pranet_with_a_data_set_that_its_lists_do_not_name(tmp_path: Path) -> None:
    more = [f"m{k}" for k in range(50)]
    both = Catalog.concatenate([catalog_of(FRAMES), catalog_of(more, "my-clinic")])
    write_list(tmp_path / "pranet-kvasir-test.txt", FRAMES[:20])
    table = make_split("pranet", both, lists=tmp_path, prints=prints_of(both))
    assert names(table, "test") == FRAMES[:20]
    assert Counter(table[table["dataset"] == "my-clinic"]["split"]) == {"train": 45, "val": 5}


def test_further_data_sets_leave_the_published_ones_as_they_are_split_without_them(tmp_path: Path) -> None:
    """So that a model of these can be fine-tuned on more and chosen on frames that it never learnt from."""
    known = catalog_of(FRAMES)
    write_list(tmp_path / "pranet-kvasir-test.txt", FRAMES[:20])
    alone = make_split("pranet", known, lists=tmp_path, prints=prints_of(known))
    # Frames of the further set stand before the known ones, and join some of those into groups across the sets.
    more = catalog_of([f"m{k}" for k in range(60)], "a-clinic", [f"kvasir-seg/{name}" for name in FRAMES[20:80]])
    both = Catalog.concatenate([more, known])
    table = make_split("pranet", both, lists=tmp_path, prints=prints_of(both))
    again = table[table["dataset"] == "kvasir-seg"]
    assert again.to_dict("list") == alone.to_dict("list")
    split = dict(zip(alone["frame_id"], alone["split"], strict=True))
    of_more = table[table["dataset"] == "a-clinic"]["split"].tolist()
    assert of_more == [split[name] for name in FRAMES[20:80]]  # what is akin goes where its kin is
    assert set(of_more) == {"train", "val"}


@pytest.mark.parametrize("files", [("medico-880-train.txt", "medico-120-val.txt"), ("train.txt", "val.txt")])
def test_medico(tmp_path: Path, files: tuple[str, str]) -> None:
    catalog = catalog_of(FRAMES)
    write_list(tmp_path / files[0], FRAMES[30:])
    write_list(tmp_path / files[1], FRAMES[:30])
    table = make_split("medico", catalog, lists=tmp_path, prints=prints_of(catalog), val_fraction=0.2)
    assert names(table, "test") == FRAMES[:30]
    assert len(names(table, "val")) == 34


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (FRAMES[29:], FRAMES[:30], "f029 is in both"),
        (FRAMES[31:], FRAMES[:30], "f030 is in neither"),
        (FRAMES[30:], [*FRAMES[:30], "other"], "names frame other, which is not in"),
        (FRAMES[30:], [], "names no frames"),
        (FRAMES[30:], None, "medico-120-val.txt: is missing"),
    ],
)
def test_medicos_lists_must_fit(tmp_path: Path, train: list, test: list | None, message: str) -> None:
    catalog = catalog_of(FRAMES)
    write_list(tmp_path / "medico-880-train.txt", train)
    if test is not None:
        write_list(tmp_path / "medico-120-val.txt", test)
    with pytest.raises(PolypsegError, match=message) as error:
        make_split("medico", catalog, lists=tmp_path, prints=prints_of(catalog))
    assert "\n" not in str(error.value)


def test_a_missing_list_says_what_it_is_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(PolypsegError) as error:
        make_split("pranet", catalog_of(FRAMES, folder=tmp_path / "set"))
    message = str(error.value)
    assert str(tmp_path / "set" / "splits" / "pranet-kvasir-test.txt") in message
    assert str(tmp_path / "splits") in message
    assert "the 100 test names of kvasir-seg" in message


@pytest.mark.parametrize(
    ("name", "catalog", "options", "message"),
    [
        ("nonsense", catalog_of(FRAMES), {}, "choose one of random, grouped"),
        ("kfold", catalog_of(FRAMES), {"folds": 5, "fold": 5}, "fold of 0..folds-1"),
        ("kfold", catalog_of(FRAMES), {"folds": 2}, "3 folds or more"),
        ("kfold", catalog_of(FRAMES[:4]), {"folds": 5}, "4 groups of frames, too few for 5"),
        ("grouped", catalog_of(FRAMES, group=["one"] * 200), {}, "1 groups of frames, too few for 3"),
        ("grouped", catalog_of(FRAMES[:1]), {}, "too few"),
        ("random", catalog_of(FRAMES[:3]), {}, "3 frames are too few"),
        ("random", catalog_of([]), {}, "no frames to split"),
        ("medico", catalog_of(["1"], "cvc-clinicdb"), {}, "medico is for kvasir-seg only"),
        ("pranet", catalog_of(["1"], "my-clinic"), {}, "pranet is for kvasir-seg and cvc-clinicdb only"),
        ("pranet", catalog_of(FRAMES), {"val_fraction": 1.0}, "less than 1"),
    ],
)
def test_impossible_requests_are_one_line(name: str, catalog: Catalog, options: dict, message: str) -> None:
    with pytest.raises(PolypsegError, match=message) as error:
        make_split(name, catalog, prints=prints_of(catalog), **options)
    assert "\n" not in str(error.value)


def test_wrong_options_are_usage_errors() -> None:
    with pytest.raises(UsageError):
        make_split("nonsense", catalog_of(FRAMES))
    with pytest.raises(UsageError):
        make_split("pranet", catalog_of(FRAMES), val_fraction=-0.1)


def test_splits_decode_the_frames_themselves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for k in range(12):
        # Every frame exists twice.
        frame = np.kron(np.random.default_rng(k // 2).uniform(80, 230, (8, 8, 1)), np.ones((8, 8, 3)))
        Image.fromarray(frame.astype(np.uint8)).save(tmp_path / "images" / f"{k}.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[: rng.integers(5, 40), :30] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{k}.png")
    table = make_split("grouped", read(tmp_path))
    assert set(table["split"]) == {"train", "val", "test"}
    split = table.set_index("frame_id")["split"]
    assert all(split[str(k)] == split[str(k + 1)] for k in range(0, 12, 2))


def test_a_split_file_survives_writing_and_reading(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "dataset": "a",
            "frame_id": ["1", "007", "NA", "x,y", "1.0"],
            "split": ["train"] * 3 + ["val", "test"],
        }
    ).astype(object)
    write_split(table, tmp_path / "new" / "split.csv")
    again = read_split(tmp_path / "new" / "split.csv")
    assert again.to_numpy().tolist() == table.to_numpy().tolist()
    assert hash_split(again) == hash_split(table.iloc[::-1])


def test_the_hash_is_the_documented_one() -> None:
    import hashlib

    table = pd.DataFrame({"split": ["test", "train"], "dataset": "d", "frame_id": ["b", "a"]})
    expected = hashlib.sha256(b"dataset,frame_id,split\nd,a,train\nd,b,test\n").hexdigest()
    assert hash_split(table) == expected
    assert hash_split(table.assign(split=["val", "train"])) != expected


def test_further_columns_and_a_byte_order_mark_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "split.csv"
    file.write_text("note,split,frame_id,dataset\r\nhello,val,01,d\r\n", encoding="utf-8-sig")
    assert read_split(file).to_dict("records") == [{"dataset": "d", "frame_id": "01", "split": "val"}]


HEADER = b"dataset,frame_id,split\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (HEADER, "names no frames"),
        (b"dataset,frame\nd,1\n", "is missing the column frame_id"),
        (HEADER + b"d,1,train\nd,2,valid\n", "line 3 has the split 'valid'"),
        (HEADER + b"d,1,train\n\nd,1,val\n", "line 4 names frame 1 of d again .first on line 2"),
        (b"dataset,frame_id,split,split\nd,1,train,val\n", "has two columns split"),
        (b"dataset;frame_id;split\nd;1;train\n", "not separated by commas"),
        (HEADER + b"d,1,train,val\n", "line 2 has more values than columns"),
        (HEADER + b"d,1\n", "line 2 is missing a value"),
        (HEADER + b"d,,train\n", "line 2 is missing a value"),
        (HEADER + b'd,"1,train\n', "is not a CSV file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xd8", "is not a CSV file"),
    ],
)
def test_bad_split_files_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "split.csv"
    file.write_bytes(content)
    with pytest.raises(PolypsegError, match=message) as error:
        read_split(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(PolypsegError, match="cannot be read"):
        read_split(tmp_path / "none.csv")


@pytest.fixture(scope="module")
def both(real_data: Path) -> tuple[Catalog, Fingerprints]:
    catalog = read_all([real_data / "Kvasir-SEG", real_data / "CVC-ClinicDB"])
    return catalog, fingerprints(catalog)


@pytest.mark.real
@pytest.mark.parametrize(("dataset", "ratio"), [("kvasir-seg", 1.1), ("cvc-clinicdb", 1.5), ("both", 1.2)])
def test_grouped_on_the_real_data(both: tuple[Catalog, Fingerprints], dataset: str, ratio: float) -> None:
    catalog, prints = both
    if dataset != "both":
        chosen = np.flatnonzero(catalog.frames["dataset"] == dataset)
        part = slice(chosen[0], chosen[-1] + 1)
        catalog = Catalog(catalog.frames[part].reset_index(drop=True))
        values = {field.name: getattr(prints, field.name)[part] for field in dataclasses.fields(prints)}
        prints = Fingerprints(**values)
    table = make_split("grouped", catalog, prints=prints)
    share = table["split"].value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.70, abs=0.02)
    assert share["val"] == pytest.approx(0.15, abs=0.02)
    separated = table.assign(group=groups(catalog, prints)).groupby("group")["split"].nunique()
    assert separated.max() == 1
    area = pd.Series(prints.area).groupby(table["split"]).median()
    assert area.max() < ratio * area.min()  # 29 sequences cannot be stratified as evenly as 1000 frames


@pytest.mark.real
def test_published_lists_fit_the_real_data(both: tuple[Catalog, Fingerprints], real_data: Path) -> None:
    catalog, prints = both
    table = make_split("pranet", catalog, prints=prints)  # the lists lie in splits/ beside the data sets
    assert Counter(table[table["split"] == "test"]["dataset"]) == {"kvasir-seg": 100, "cvc-clinicdb": 62}
    assert 0.07 < (table["split"] == "val").mean() < 0.11
    medico = make_split("medico", read(real_data / "Kvasir-SEG"), val_fraction=0)
    assert Counter(medico["split"]) == {"train": 880, "test": 120}
