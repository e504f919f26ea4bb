"""The verbs ``annotations …``: fill and empty a project of the service's state folder, without its page."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from polypseg.cli.verb import Positional, Verb
from polypseg.errors import PolypsegError
from polypseg.names import DataFormat, FrameState


def annotations_import(
    source: str,
    project: str,
    state: str = "polypseg-state",
    labels: str | None = None,
    frame_state: FrameState = "accepted",
) -> None:
    """Import a data set into a project of `polypseg serve`, while that does not run; needs the extra polypseg[serve].

    Images and masks, COCO, YOLO, or pictures alone, as the page imports them. What does not fit is printed, a line
    each; the other frames are taken in. The model looks at them when the service is started.

    Args:
        source: folder with images/, or a ZIP file of one.
        project: its id or name; made where there is none.
        state: folder of the service.
        labels: file of the classes and attributes that a polyp may have, as the service has it.
        frame_state: what frames with a mask or labels are; with accepted, frames.json of an export comes first.
    """
    from polypseg.serve.annotations.labels import Labels, read_labels
    from polypseg.serve.annotations.offline import take_in

    logging.getLogger("polypseg.serve").addHandler(logging.NullHandler())  # each problem is a line below
    known = Labels() if labels is None else read_labels(Path(labels))
    identity, row = take_in(Path(state), known, project, Path(source), frame_state)
    for line in row["problems"]:
        print(f"polypseg: {line}", file=sys.stderr)
    if row["problem_count"] > len(row["problems"]):
        print(f"polypseg: and {row['problem_count'] - len(row['problems'])} more like these", file=sys.stderr)
    if row["error"]:
        raise PolypsegError(f"{source}: nothing is imported: {row['error']}")
    print(f"{identity}: frames added {row['added']}, known already {row['known']}; problems {row['problem_count']}")


def annotations_export(
    project: str,
    out: str,
    format: DataFormat = "folder",
    state: str = "polypseg-state",
    labels: str | None = None,
    frame_state: list[FrameState] | None = None,
) -> None:
    """Export a project of `polypseg serve`, while that does not run; needs the extra polypseg[serve].

    Writes what the page exports: a data set that every verb's --data reads, with frames.json.

    Args:
        project: its id or name.
        out: new folder, or a ZIP file where its name ends in .zip.
        format: folder (images and masks), coco or yolo.
        state: folder of the service.
        labels: file of the classes and attributes that a polyp may have, as the service has it.
        frame_state: of the frames; by default accepted, corrected and no_polyp.
    """
    from polypseg.serve.annotations.labels import Labels, read_labels
    from polypseg.serve.annotations.offline import give_out
    from polypseg.serve.annotations.store import REVIEWED

    known = Labels() if labels is None else read_labels(Path(labels))
    count = give_out(Path(state), known, project, format, frame_state or REVIEWED, Path(out))
    print(f"{out}: frames {count}")


_PAGE = ("Annotate", "../how-to/annotate.md")
VERBS = (
    Verb(
        annotations_import,
        positional=Positional("source", None, "folder with images/, or a ZIP file of one"),
        examples=("polypseg annotations import my-clinic --project Ward-3 --labels labels.yaml",),
        see=(_PAGE,),
    ),
    Verb(
        annotations_export,
        examples=("polypseg annotations export --project ward-3 --format coco --out exported",),
        see=(_PAGE,),
    ),
)
