"""What the ways of predicting ask of their options alike: files, a video, an archive."""

from __future__ import annotations

from polypseg.errors import UsageError


def check_batch_size(batch_size: int | None) -> None:
    """Raise ``UsageError`` where so many frames cannot be computed at once; None leaves the choice."""
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: must be 1 or more")


def check_ray_only(engine: str | None, address: str | None, workers: int) -> None:
    """Raise ``UsageError`` where an option is given that another engine than ``ray`` has no use for."""
    if engine != "ray" and (address is not None or workers):
        raise UsageError(f"--{'address' if address is not None else 'workers'}: is for --engine ray")


def check_one_of(resume: bool, overwrite: bool) -> None:
    """Raise ``UsageError`` where outputs that are there are to be kept and replaced."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite: one keeps what is there, the other replaces it; choose one")
