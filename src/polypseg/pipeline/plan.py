"""What a run over files reads, and which files that becomes: known, and free of clashes, before a frame is decoded."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polypseg.errors import PolypsegError
from polypseg.files import disk_error, part_prefix
from polypseg.io.outputs import FRAME_SUFFIXES, RUN_FILES, Output, frame_files
from polypseg.pipeline.flow import Unreadable
from polypseg.pipeline.sources import Source
from polypseg.pipeline.stills import Still, stills_of

if TYPE_CHECKING:
    from polypseg.io.dicom import DicomFrames

VIDEO_SUFFIXES = (".mp4", ".jsonl", ".timeline.json")  # of a video's outputs, after its stem
VIDEO_PARTS = (".part.new.npz", ".mp4..12345678.part")  # the longest of those that are there for a while
SEG_SUFFIX = ".seg.dcm"


class Plan:
    """What is read of sources, and written into a folder.

    Args:
        sources: files.
        out: the folder.
        save: the outputs.

    Attributes:
        stills: all frames of images and DICOM files, in order.
        images: those of images.
        dicoms: the frames of each DICOM file.
        videos: their paths.
        unreadable: the lines about sources of which nothing can become.
        files: what will be written.

    Raises:
        PolypsegError: two sources would be written to the same file.
    """

    def __init__(self, sources: Iterable[Source], out: Path, save: Sequence[Output]) -> None:
        self.out, self._save = out, save
        self.stills: list[Still] = []
        self.images: list[Still] = []
        self.dicoms: list[tuple[DicomFrames, list[Still]]] = []
        self.videos: list[Path] = []
        self.unreadable: list[Unreadable] = []
        self.files: list[Path] = []
        self._owners: dict[str, str] = {}
        self._reserve([out / RUN_FILES[output] for output in save if output in RUN_FILES], "what the whole run writes")
        self._longest = _longest_name(out)
        for source in sources:
            try:
                self._add(source)
            except Unreadable as error:
                self.unreadable.append(error)

    def refuse_existing(self) -> None:
        """Raise ``PolypsegError`` where an output is there already."""
        there = [file for file in self.files if file.exists()]
        if there:
            more = f" ({len(there) - 1} more outputs too)" if len(there) > 1 else ""
            raise PolypsegError(f"{there[0]}: is there already{more}; use --resume, --overwrite or another --out")

    def make_folder(self) -> None:
        """Make ``out``, and remove what a killed writer of one of these outputs left in it."""
        beginnings = {part_prefix(file.name) for file in self.files}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for remnant in self.out.glob(".*.part"):
                if remnant.name.removesuffix(".part").rpartition(".")[0] + "." in beginnings:
                    remnant.unlink()
        except OSError as error:
            raise disk_error(self.out, error) from error

    def _add(self, source: Source) -> None:
        """Plan for one source. Raises ``Unreadable`` where nothing can become of it."""
        if source.problem:
            raise Unreadable(source.problem)
        path, suffixes = source.path, [FRAME_SUFFIXES[one] for one in self._save if one in FRAME_SUFFIXES]
        if source.kind == "video":
            self._check_length(path, [*VIDEO_SUFFIXES, *VIDEO_PARTS])
            self.videos.append(path)
            self._reserve([self.out / f"{path.stem}{suffix}" for suffix in VIDEO_SUFFIXES], source.location)
            return
        if source.kind == "image":
            self._check_length(path, suffixes)
            stills = [Still(path, path.stem)]
            self.images += stills
        else:
            self._check_length(path, [SEG_SUFFIX, *(f"-0000000{suffix}" for suffix in suffixes)])
            stills = self._stills_of_dicom(path)
        for still in stills:
            self._reserve(frame_files(self.out, still.stem, self._save), source.location)
        self.stills += stills

    def _stills_of_dicom(self, path: Path) -> list[Still]:
        from polypseg.io.dicom import read_dicom

        try:
            frames = read_dicom(path)
        except PolypsegError as error:
            raise Unreadable(error) from error
        stills = stills_of(path, len(frames), frames.times)
        self.dicoms.append((frames, stills))
        self._reserve([self.out / f"{path.stem}{SEG_SUFFIX}"], str(path))
        return stills

    def _check_length(self, path: Path, suffixes: Sequence[str]) -> None:
        """Refuse a file whose outputs would have longer names than the folder can take."""
        room = self._longest - max(len(suffix) for suffix in [*suffixes, ""])
        if len(os.fsencode(path.stem)) > room:
            raise Unreadable(f"{path}: its outputs' names would be too long; rename it to {room} bytes or less")

    def _reserve(self, files: Iterable[Path], owner: str) -> None:
        for file in files:
            # As file systems see it that know neither case nor the two ways to write an accent.
            other = self._owners.setdefault(unicodedata.normalize("NFC", file.name).casefold(), owner)
            if other != owner:
                advice = "rename one, or give it a run and an --out of its own"
                raise PolypsegError(f"{owner}: would be written to {file}, as {other} would; {advice}")
            self.files.append(file)


def _longest_name(folder: Path) -> int:
    """Bytes that a file's name may have in a folder, which may be missing yet."""
    there = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), Path("/"))
    try:
        return os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # as on Windows
        return 255
