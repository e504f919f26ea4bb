"""Which frames a model has seen: those it was trained on, and those that chose its checkpoint or were its test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from polypseg.bundle import FrameRecord, ModelBundle
from polypseg.catalog import Catalog
from polypseg.data.splits import hash_split, read_split
from polypseg.errors import PolypsegError
from polypseg.evaluation.selection import of_bundle
from polypseg.files import sha256_of_file

_WHAT = {
    "train": "the model was trained on",
    "val": "chose its checkpoint and operating point",
    "test": "are its test",
}


@dataclass(frozen=True)
class Seen:
    """What of some frames a model has seen.

    Attributes:
        frames: how many frames there are.
        parts: how many of them lie in its ``train``, ``val`` or ``test``; those that lie in none are not counted.
        first: by part, the first frame and how it is known, in words.
        unknown: data sets among them that it was trained on without a record of which frames.
        recorded: whether anything is known of its frames.
    """

    frames: int
    parts: Mapping[str, int]
    first: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    recorded: bool = True

    def refuse(self, parts: Collection[str], verb: str, advice: str) -> None:
        """Refuse frames of some parts, or of which it is not known.

        Args:
            parts: of ``train``, ``val`` and ``test``.
            verb: what would be done with the frames, as ``scored``.
            advice: what to do instead of it.

        Raises:
            PolypsegError: there are such frames.
        """
        for part in (part for part in _WHAT if part in parts and self.parts.get(part)):
            raise PolypsegError(
                f"{self.first[part]}, one of {self.parts[part]} of {self.frames} frames to be {verb} that "
                f"{_WHAT[part]}; {advice}, or allow it with --allow_train_frames"
            )
        if self.unknown:
            raise PolypsegError(
                f"{', '.join(self.unknown)}: the model was trained on frames of it and does not record which; give all "
                "the data of its split, or other data, or allow it with --allow_train_frames"
            )

    def warnings(self, parts: Collection[str]) -> list[str]:
        """A sentence for each of some parts of which there are frames; empty where there are none."""
        found = [
            f"{self.parts[part]} of these {self.frames} frames {_WHAT[part]}"
            for part in _WHAT
            if part in parts and self.parts.get(part)
        ]
        if self.unknown:
            found.append(
                f"the model was trained on frames of {', '.join(self.unknown)} and does not record which: these may be "
                "among them"
            )
        return found


def frame_records(catalog: Catalog) -> list[FrameRecord]:
    """Name, part of the split and SHA-256 of every frame's file, as a bundle keeps them.

    A copy under another name has the same hash; a picture that was encoded anew has another.

    Raises:
        PolypsegError: a file cannot be read.
    """
    return [FrameRecord(row.dataset, row.frame_id, row.split, sha256_of_file(row.image_path)) for row in catalog]


def seen(
    bundle: ModelBundle, frames: Catalog, whole: Catalog | None = None, split_file: str | Path | None = None
) -> Seen:
    """What a bundle has seen of frames: by content and by name, as it records them; else by name, by its split.

    Args:
        bundle: the model.
        frames: what is to be scored.
        whole: all frames of the same data, of which an older bundle's split is made anew; ``frames`` by default.
        split_file: that was given for them; it is the bundle's own where the hash is the same.

    Raises:
        PolypsegError: a frame's file or the bundle's record of frames cannot be read.
    """
    records = bundle.frames()
    if records is None:
        return _by_split(bundle, frames, frames if whole is None else whole, split_file)
    by_content = {one.sha256: one.split for one in reversed(records)}
    by_name = {(one.dataset, one.frame_id): one.split for one in reversed(records)}
    found = []
    for row in frames:
        # A frame saved anew keeps its name, and a copy its content: either is enough.
        known = {
            by_name.get((row.dataset, row.frame_id)): "name",
            by_content.get(sha256_of_file(row.image_path)): "content",
        }
        found.append(next(((part, known[part]) for part in _WHAT if part in known), ("", "")))
    return _counted(frames, found)


def trained_on(bundle: ModelBundle) -> set[str] | None:
    """The data sets that a bundle has seen; None where it does not record them."""
    records = bundle.frames()
    if records is not None:
        return {one.dataset for one in records}
    known = [(one.metadata.get("data") or {}).get("datasets") for one in (bundle, *bundle.members)]
    return {name for names in known if names for name in names} if any(known) else None


def _by_split(bundle: ModelBundle, frames: Catalog, whole: Catalog, split_file: str | Path | None) -> Seen:
    names = _own_split(bundle, whole, split_file)
    if names is not None:
        return _counted(frames, [(names.get((row.dataset, row.frame_id), ""), "name") for row in frames])
    datasets = trained_on(bundle)
    shared = (datasets or set()) & set(frames.frames["dataset"])
    return Seen(len(frames), {}, {}, tuple(sorted(shared)), recorded=datasets is not None)


def _own_split(bundle: ModelBundle, whole: Catalog, split_file: str | Path | None) -> dict[tuple[str, str], str] | None:
    """The bundle's own split by name, where it can be had."""
    recorded = (bundle.metadata.get("split") or {}).get("hash")
    if recorded is None:
        return None
    table = None if split_file is None else read_split(split_file)
    if table is None or hash_split(table) != recorded:
        try:
            table = of_bundle(whole, bundle)[0]
        except PolypsegError:
            return None
    return dict(zip(zip(table["dataset"], table["frame_id"], strict=True), table["split"], strict=True))


def _counted(frames: Catalog, found: list[tuple[str, str]]) -> Seen:
    """From each frame's part, empty where it is in none, and what it is known by."""
    first: dict[str, str] = {}
    for row, (part, by) in zip(frames, found, strict=True):
        first.setdefault(part, f"{row.image_path}: is, by its {by}")
    counts = Counter(part for part, _ in found if part)
    return Seen(len(frames), dict(counts), first)
