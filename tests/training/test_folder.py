"""The folder of a run: the earlier run stands until the new one does, whatever ends the process in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from polypseg.errors import PolypsegError
from polypseg.training.folder import (
    check_folder,
    holds_epoch,
    is_only_started,
    refuse_inputs_within,
    replacing,
    restore,
)

OLD = {"config.yaml": "old", "split.csv": "old", "checkpoints/last.ckpt": "old", "bundle/metadata.json": "old"}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def content(folder: Path) -> dict[str, str]:
    return {str(one.relative_to(folder)): one.read_text() for one in folder.rglob("*") if one.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fill(tmp_path / "run", OLD)
    return tmp_path / "run"


def test_the_new_run_takes_the_place_when_it_stands(run: Path) -> None:
    fill(run, {"cache/frames.bin": "kept"})
    with replacing(run):
        assert not (run / "config.yaml").exists()
        fill(run, {"config.yaml": "new"})
    assert content(run) == {"config.yaml": "new", "cache/frames.bin": "kept"}


@pytest.mark.parametrize("failure", [PolypsegError("mine"), KeyboardInterrupt(), RuntimeError("mine")])
def test_a_start_that_fails_puts_the_earlier_run_back(run: Path, failure: BaseException) -> None:
    def start() -> None:
        with replacing(run):
            fill(run, {"config.yaml": "new", "fold-1/config.yaml": "new"})
            raise failure

    with pytest.raises(type(failure)):
        start()
    assert content(run) == OLD


@pytest.mark.parametrize("killed_at", range(12))
def test_killed_at_any_step_one_run_stands_afterwards(
    run: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Each renaming may be the last thing that a process does, those of the restoring too."""
    rename, done = Path.rename, []

    class Killed(BaseException):
        pass

    def until(self: Path, target: Path) -> Path:
        if len(done) >= killed_at:
            raise Killed
        done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", until)
        try:
            with replacing(run):
                fill(run, {"config.yaml": "new"})
                if killed_at < 7:  # else it comes to stand
                    raise Killed
        except Killed:
            pass
    restore(run)
    assert content(run) in ([OLD] if killed_at < 5 else [OLD, {"config.yaml": "new"}])


def test_a_run_without_an_epoch_stands_in_nobodys_way(tmp_path: Path) -> None:
    fill(tmp_path, {"config.yaml": "a: 1", "split.csv": "", "log.txt": "", "tensorboard/events": "", "fold-1/x": ""})
    assert is_only_started(tmp_path) and not holds_epoch(tmp_path)
    for resume in (False, True):
        check_folder(tmp_path, {"a": 2}, resume, overwrite=False)
    fill(tmp_path, {"notes.txt": "mine"})
    with pytest.raises(PolypsegError, match="contains a run already"):
        check_folder(tmp_path, {"a": 1}, resume=False, overwrite=False)


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    fill(tmp_path, {"config.yaml": "of: another program", "notes.txt": "mine"})
    with pytest.raises(PolypsegError, match="is not empty and contains no run"):
        check_folder(tmp_path, {}, resume=False, overwrite=True)
    assert content(tmp_path)["notes.txt"] == "mine"


def test_what_a_run_is_made_of_cannot_be_replaced_by_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    for inner in (run, run / "bundle", run / "split.csv", tmp_path / "link" / "bundle"):
        with pytest.raises(PolypsegError, match="the run that would be replaced; choose another --out"):
            refuse_inputs_within(run, [None, "random", inner])
    refuse_inputs_within(run, [tmp_path, None, "random", run / "nothing"])
