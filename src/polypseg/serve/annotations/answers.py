"""What the routes of annotating answer, in the shapes that the OpenAPI description names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from polypseg.names import FrameState
from polypseg.serve.responses import Error


class Me(BaseModel):
    """Who asks."""

    name: str = Field(description="As --tokens calls the token; local without one, shared for the one of all")


class LabelClass(BaseModel):
    """A class of polyps."""

    name: str
    colour: str | None = Field(description="#rrggbb")


class Attribute(BaseModel):
    """An attribute of a polyp."""

    name: str
    title: str
    values: list[str] = Field(description="One of these; any text where there are none")


class Labels(BaseModel):
    """What polyps and frames may be called."""

    classes: list[LabelClass] = Field(description="The first is that of a polyp without any")
    attributes: list[Attribute]
    states: list[FrameState] = Field(description="Of a frame")


class Import(BaseModel):
    """A data set on its way into a project."""

    id: str
    state: Literal["waiting", "running", "done", "failed"]
    done: int = Field(description="Frames")
    total: int | None = Field(description="Frames; null before they are counted")
    added: int = Field(description="Frames that are new")
    known: int = Field(description="Frames whose content was there; they keep what was made of them")
    problems: list[str] = Field(description="One line each, the first hundred")
    problem_count: int = Field(description="All of them")
    error: str | None = Field(description="One line: why nothing was taken in")
    author: str
    created: str
    ended: str | None


class Project(BaseModel):
    """A set of frames."""

    id: str
    name: str
    created: str
    deleted: str | None = Field(description="Since when it is hidden")
    revision: int = Field(description="Another one whenever something changed")
    total: int = Field(description="Frames")
    counts: dict[FrameState, int] = Field(description="Frames by their state")
    waiting: int = Field(description="Frames that are still to be predicted")
    newest_import: Import | None = Field(alias="import")


class Polyp(BaseModel):
    """A region of a mask."""

    at: list[int] = Field(description="x, y of a pixel within it")
    box: list[int] = Field(description="xmin, ymin, xmax, ymax in pixels; the maxima are exclusive")
    area: int = Field(description="Pixels")
    label: str = Field(alias="class")
    attributes: dict[str, str]


class AnnotatedFrame(BaseModel):
    """A frame and what its newest version says."""

    hash: str = Field(description="SHA-256 of its size and decoded pixels")
    name: str
    width: int
    height: int
    state: FrameState
    version: int = Field(description="0 is the model's prediction")
    author: str | None = Field(description="Of the newest version")
    time: str | None
    area: float | None = Field(description="Share of the frame that is polyp, 0 to 1; null where that is not known yet")
    polyps: list[Polyp] = Field(description="The largest first, 200 at most")
    confidence: float | None = Field(description="The model's highest, 0 where it found nothing; null before")
    uncertainty: float | None = Field(description="Mean entropy of the probability, bits; null before")
    deleted: str | None
    created: str
    open_by: list[str] = Field(description="Who has it open")


class FrameList(BaseModel):
    """A page of a project's frames."""

    total: int = Field(description="Frames of the project")
    matching: int = Field(description="Frames that were asked for, on all pages")
    counts: dict[FrameState, int]
    revision: int
    frames: list[AnnotatedFrame]


class Version(BaseModel):
    """What somebody made of a frame."""

    version: int
    based_on: int
    state: FrameState
    author: str
    time: str
    kind: Literal["save", "import", "restore", "folder"]
    restored: int | None = Field(description="The version that was taken back")
    area: float | None
    polyps: list[Polyp]


class Superseded(Error):
    """Somebody else saved since; or what is asked for is not possible now (then error alone)."""

    version: int | None = None
    author: str | None = None
    time: str | None = None


class Other(BaseModel):
    """Somebody who has a frame open."""

    name: str
    since: str


class Here(BaseModel):
    """The newest version of a frame, and who else has it open."""

    version: int
    author: str | None
    time: str | None
    others: list[Other]


class Epoch(BaseModel):
    """A point of the curve."""

    epoch: int = Field(description="From 1")
    loss: float | None = Field(description="Of the training frames")
    val_loss: float | None = Field(description="Of the validation frames")
    dice: float | None = Field(description="Mean over the validation frames")


class FineTuning(BaseModel):
    """The newest fine-tuning."""

    state: Literal["none", "running", "done", "failed", "cancelled"]
    project: str | None
    frames: int | None
    epoch: int | None = Field(description="Epochs that are complete")
    epochs: int | None
    curve: list[Epoch]
    error: str | None
    author: str | None
    created: str | None
    ended: str | None
    bundle: str | None = Field(description="The new model, below the state folder")


def import_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """An ``Import`` of its row."""
    return {**{key: row[key] for key in Import.model_fields}, "problems": json.loads(row["problems"])}


def project_of(row: Mapping[str, Any], newest: Mapping[str, Any] | None) -> dict[str, Any]:
    """A ``Project`` of what ``Store.project`` gives, and the row of its newest import."""
    kept = ("id", "name", "created", "deleted", "revision", "total", "counts", "waiting")
    return {**{key: row[key] for key in kept}, "import": None if newest is None else import_of(newest)}


def frame_of(row: Mapping[str, Any], open_by: list[str]) -> dict[str, Any]:
    """An ``AnnotatedFrame`` of its row, and of who has it open."""
    kept = [key for key in AnnotatedFrame.model_fields if key not in ("polyps", "open_by")]
    return {**{key: row[key] for key in kept}, "polyps": json.loads(row["polyps"]), "open_by": open_by}


def version_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A ``Version`` of what ``Store.versions`` gives."""
    kept = [key for key in Version.model_fields if key != "version"]
    return {"version": row["number"], **{key: row[key] for key in kept}}
