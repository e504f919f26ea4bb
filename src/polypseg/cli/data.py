"""The verbs ``data …``: read, check, split and show data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from polypseg.cli.checks import check_data, check_split
from polypseg.cli.verb import Positional, Verb


def data_list() -> None:
    """List the data sets that polypseg knows: name, frames, how to get it, terms of use, page."""
    from polypseg.data import download

    print(download.table())


def data_download(name: str, out: str = "data", url: str | None = None, count: int = 200, seed: int = 0) -> None:
    """Download a data set, verify its checksum and unpack it; or draw phantom frames.

    cvc-clinicdb must be fetched by hand. Prints the data set's folder.

    Args:
        name: kvasir-seg or phantom; `polypseg data list` shows all.
        out: folder to put the data set's folder into.
        url: a mirror to download from; the checksum stays the same.
        count: phantom only, frames to draw.
        seed: phantom only, decides every frame.
    """
    from polypseg.data import download, phantom

    if name == phantom.NAME:
        folder = phantom.write(Path(out) / phantom.NAME, count, seed)
    else:
        folder = download.download(name, Path(out), url=url)
    print(folder)


def data_check(
    data: list[str], split: str | None = None, out: str = "data-check", seed: int = 42, masks: str = "binary"
) -> int:
    """Audit data sets: pairs, damage, sizes, grey masks, boxes, duplicates, leakage across a split.

    Prints a table and writes audit.json into --out, and contact-sheet.png if there is something to see. The exit status
    is 1 if there are errors; warnings are allowed. For lists of published splits in another place, write the split with
    ``data split --lists`` first and give the CSV.

    Args:
        data: folders of data sets, with images/ and masks/.
        split: a CSV of `polypseg data split`, or a split's name, to check for leakage.
        out: folder for audit.json and contact-sheet.png.
        seed: decides a split that is given by name.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data)
    check_split(split if split is not None and split.endswith(".csv") else None)
    from polypseg.data import read_all, with_masks
    from polypseg.data.audit import audit, pictures
    from polypseg.data.splits import make_split, read_split
    from polypseg.files import write_json
    from polypseg.visualization.gallery import draw_contact_sheet, load_panel

    sources = with_masks(data, masks)
    table = None
    if split is not None:
        table = read_split(Path(split)) if split.endswith(".csv") else make_split(split, read_all(sources), seed=seed)
    result = audit(sources, table)
    print(result.table())
    write_json(Path(out) / "audit.json", result.to_dict())
    print(Path(out) / "audit.json")
    panels = [load_panel(*picture) for picture in pictures(result)]
    if panels:
        draw_contact_sheet(panels, Path(out) / "contact-sheet.png", "what `data check` found")
        print(Path(out) / "contact-sheet.png")
    return 0 if result.ok else 1


def data_split(
    data: list[str],
    name: Literal["random", "grouped", "pranet", "medico", "kfold"],
    out: str = "split.csv",
    seed: int = 42,
    folds: int = 5,
    fold: int = 0,
    val_fraction: float = 0.1,
    lists: str | None = None,
    masks: str = "binary",
) -> None:
    """Split data sets into train, val and test, and write the split as CSV.

    Prints the counts and the split's hash.

    Args:
        data: folders of data sets, with images/ and masks/.
        name: random (70/15/15), grouped (near duplicates and sequences stay together), pranet, medico, kfold.
        out: the CSV, with columns dataset, frame_id and split.
        seed: decides every random choice.
        folds: kfold only, number of folds.
        fold: kfold only, the test fold, 0-based.
        val_fraction: pranet and medico only, share of the published training frames that becomes val; 0..1.
        lists: pranet and medico only, folder of the published lists; else splits/ in or beside the data.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data)
    from polypseg.data import read_all, with_masks
    from polypseg.data.splits import describe, make_split, write_split

    catalog = read_all(with_masks(data, masks))
    catalog.check_masks()
    table = make_split(
        name, catalog, seed=seed, folds=folds, fold=fold, val_fraction=val_fraction,
        lists=None if lists is None else Path(lists),
    )  # fmt: skip
    write_split(table, Path(out))
    print(f"{out}: {describe(table)}")


def data_show(data: list[str], out: str = "frames.png", count: int = 12, seed: int = 0, masks: str = "binary") -> None:
    """Draw frames beside their masks and boxes.

    Args:
        data: folders of data sets, with images/ and masks/.
        out: the PNG.
        count: frames to draw.
        seed: decides which.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
    """
    check_data(data)
    from polypseg.data import read_all, with_masks
    from polypseg.visualization.gallery import draw_some

    print(draw_some(read_all(with_masks(data, masks)), out, count, seed, title=", ".join(data)))


_PAGE = ("Get the data", "../how-to/get-the-data.md")
_SPLITS = ("Splits", "../explanation/splits.md")
VERBS = (
    Verb(data_list, examples=("polypseg data list",), see=(_PAGE,)),
    Verb(
        data_download,
        positional=Positional("name", None, "data set; `polypseg data list` shows all"),
        examples=(
            "polypseg data download kvasir-seg --out data",
            "polypseg data download phantom --out data --count 500 --seed 7",
        ),
        see=(_PAGE,),
    ),
    Verb(
        data_check,
        examples=("polypseg data check data/Kvasir-SEG --split grouped --out check",),
        see=(("Train on your data", "../how-to/train-on-your-data.md"),),
    ),
    Verb(
        data_split,
        examples=(
            "polypseg data split --data data/Kvasir-SEG --name grouped --out split.csv",
            "polypseg data split --data data/Kvasir-SEG --name kfold --folds 5 --fold 2 --out fold-2.csv",
        ),
        see=(_SPLITS,),
    ),
    Verb(data_show, examples=("polypseg data show data/Kvasir-SEG --count 20 --out frames.png",)),
)
