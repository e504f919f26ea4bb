"""Hyper-parameter search with Optuna: trials that train by one recipe with other values, and the best as a recipe.

A study lies in a database. Any number of processes, on any machines that reach it, take trials of it at once; one that
was ended is resumed by the same command.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback, Checkpoint

from polypseg.catalog import Catalog
from polypseg.data.splits import hash_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import atomic_write, csv_cell, disk_error
from polypseg.training.fit import fit, make_trainer, quiet_lightning
from polypseg.training.folder import CONFIG, LOG, logging_to, write_yaml
from polypseg.training.prepare import Frames, prepare, split_frames
from polypseg.training.recipe import Recipe, first_difference, with_values
from polypseg.training.space import Range, read_space

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("polypseg")
BEST = "best.yaml"
TABLE = "trials.csv"
FEWEST = 5  # complete trials before one is pruned
SILENT_S = 180  # seconds without a heartbeat after which a trial's process is taken for dead
MOST_FAILURES = 5  # one after another, before this process gives up


def tune(
    recipe: Recipe,
    data: Sequence[str | Path],
    trials: int,
    *,
    space: str | Path | None = None,
    storage: str | None = None,
    study: str | None = None,
    out: str | Path | None = None,
) -> Path:
    """Search the recipe's fields for the best validation Dice, and write the best as a recipe.

    Values come from Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011); a trial whose best
    validation Dice so far lies below the median of the others' at that epoch is pruned. The frames of the test split
    are left out before anything else. A trial that cannot train is recorded as failed.

    Args:
        recipe: what is not searched; its epochs are each trial's.
        data: folders of data sets.
        trials: how many the study is to have in all, those of earlier calls and of other processes among them.
        space: a YAML file of fields and their values, as ``space.DEFAULT_SPACE``, which is taken without one.
        storage: the URL of a database that SQLAlchemy opens; by default an SQLite file in ``out``.
        study: its name in the database; by default the recipe's.
        out: folder for ``best.yaml``, ``trials.csv``, ``trials/`` and ``log.txt``; ``runs/<study>-tune`` by default.

    Returns:
        The path of ``best.yaml``.

    Raises:
        UsageError: an option or the space is wrong.
        PolypsegError: Optuna is not installed, the database cannot be reached or contains another study of that name,
            the data or the disk stand in the way, or no trial could be completed.
        KeyboardInterrupt: it was interrupted; the same call continues.
    """
    if find_spec("optuna") is None:
        raise PolypsegError("tune: needs optuna; install the extra: pip install 'polypseg[tune]'")
    if trials < 1:
        raise UsageError(f"--trials {trials}: must be 1 or more")
    if recipe.trainer.devices != 1 or recipe.trainer.num_nodes != 1:
        raise UsageError(
            "tune: a trial trains in one process, with trainer.devices 1 and trainer.num_nodes 1; start the command "
            "several times instead"
        )
    ranges = read_space(space, recipe)
    study = study or recipe.name
    folder = Path(out) if out is not None else Path("runs") / f"{study}-tune"
    # No folder of a run of theirs is ever read, so that nothing is resumed.
    whole = split_frames(recipe, data, folder, resume=False)
    table = whole.catalog.frames
    hashes = {"split": hash_split(table), "data": whole.catalog.hash()}
    frames = Frames(Catalog(table[table["split"] != "test"].reset_index(drop=True)), whole.split)
    for part in ("train", "val"):
        frames.catalog.of_split(part)  # raises where it is empty
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    with logging_to(folder / LOG):
        url = storage or f"sqlite:///{(folder / 'tune.db').resolve()}"
        log.info("study %s, split %s: %d frames without the test's", study, frames.split, len(frames.catalog))
        identity = {
            "recipe": recipe.to_dict(),
            "space": {name: asdict(one) for name, one in ranges.items()},
            **hashes,
        }
        return _Search(recipe, frames, ranges, trials, folder, url, study, identity).run()


def train_alone(recipe: Recipe, frames: Frames, folder: Path, callbacks: Sequence[Callback] = ()) -> float:
    """Prepare and fit: ``metrics.csv`` and checkpoints, but no bundle and no test.

    Args:
        recipe: what to do.
        frames: those of training and validation.
        folder: where the files go.
        callbacks: further ones for Lightning's Trainer.

    Returns:
        The best validation Dice of an epoch, 0..1.

    Raises:
        PolypsegError: as ``train``.
    """
    with quiet_lightning():
        prepared = prepare(recipe, frames, folder)
        write_yaml(folder / CONFIG, recipe.to_dict())
        return fit(make_trainer(recipe, folder, False, callbacks), prepared)


class _Search:
    """This process's part of a study."""

    def __init__(
        self,
        recipe: Recipe,
        frames: Frames,
        ranges: Mapping[str, Range],
        wanted: int,
        folder: Path,
        url: str,
        name: str,
        identity: dict[str, Any],
    ) -> None:
        self.recipe = recipe
        self.frames = frames
        self.ranges = ranges
        self.wanted = wanted
        self.folder = folder
        self.name = name
        self.identity = json.loads(json.dumps(identity))  # as the database gives it back
        self.url = url
        self.failures = 0

    def run(self) -> Path:
        import optuna
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Heartbeats and what begins a trial anew are called experimental since years.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        try:
            study = self._open()
            while self._begun(study) < self.wanted:
                try:
                    study.optimize(self._trial, n_trials=1, catch=(PolypsegError,))
                finally:
                    self._write(study)
            found = self._write(study)
            running = sum(one.state.name == "RUNNING" for one in study.get_trials(deepcopy=False))
        except _HopelessError as error:
            raise PolypsegError(str(error)) from error
        except (StorageInternalError, SQLAlchemyError) as error:
            reason = _one_line(error.__cause__ or error)
            raise PolypsegError(
                f"{self._shown()}: the study's database fails ({reason}); mend it and give the same command"
            ) from error
        if running:
            log.info(
                "%d trials are running in other processes; if one was killed, the same command begins it anew after "
                "%d s", running, SILENT_S,
            )  # fmt: skip
        if not found:
            raise PolypsegError(f"{self.folder / TABLE}: no trial is complete; see there, and raise --trials")
        return self.folder / BEST

    def _shown(self) -> str:
        """The database's URL without its password."""
        from sqlalchemy.engine import make_url

        return make_url(self.url).render_as_string(hide_password=True)

    def _open(self) -> optuna.Study:
        import optuna
        from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError

        try:
            shown = self._shown()
        except ArgumentError as error:
            raise UsageError("--storage: is no URL of a database, as sqlite:///tune.db") from error
        # Another process that writes at this moment is waited for.
        arguments = {"connect_args": {"timeout": 100}} if self.url.startswith("sqlite") else {"pool_pre_ping": True}
        try:
            for left in reversed(range(4)):
                try:
                    storage = RDBStorage(
                        self.url, arguments, heartbeat_interval=max(1, SILENT_S // 6), grace_period=SILENT_S,
                        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                    )  # fmt: skip
                    break
                except SQLAlchemyError:  # of two processes that make the tables at once, one fails
                    if not left:
                        raise
                    time.sleep(1)
            study = optuna.create_study(
                storage=storage, study_name=self.name, direction="maximize", load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(FEWEST, max(1, self.recipe.trainer.epochs // 5)),
            )  # fmt: skip
            before = study.user_attrs.get("polypseg")
            if before is None and not study.trials:
                study.set_user_attr("polypseg", self.identity)
                before = self.identity
        except (ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise PolypsegError(
                f"{shown}: cannot be used as the study's database ({_one_line(error)}); correct --storage, or leave "
                "it out for a file in --out"
            ) from error
        if before is None:
            raise PolypsegError(f"{shown}: its study {self.name} is none of polypseg tune; give another --study")
        parts = [{part: value for part, value in one.items() if part != "recipe"} for one in (before, self.identity)]
        difference = first_difference(before["recipe"], self.identity["recipe"])
        difference = difference or first_difference(parts[0], parts[1], may_differ=())
        if difference:
            raise PolypsegError(
                f"{shown}: its study {self.name} differs in {difference}; give what it was begun with, or another "
                "--study"
            )
        return study

    def _begun(self, study: optuna.Study) -> int:
        """The trials that are running or have ended, without those that wait for being begun anew."""
        from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials

        fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        again = {number for one in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(one)}
        return sum(
            one.state.name != "WAITING" and one.number not in again and "again" not in one.user_attrs for one in trials
        )

    def _trial(self, trial: optuna.Trial) -> float:
        import optuna

        # Decided by seed and number: processes that begin at once try different values, and a search repeats.
        seed = self.recipe.trainer.seed + trial.number
        trial.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        values = {name: one.suggest(trial, name) for name, one in self.ranges.items()}
        place = self.folder / "trials" / f"{trial.number:04}"
        shutil.rmtree(place, ignore_errors=True)
        log.info("trial %d: %s", trial.number, "  ".join(f"{name} {_short(one)}" for name, one in values.items()))
        try:
            found = train_alone(with_values(self.recipe, values), self.frames, place, [_Report(trial)])
        except PolypsegError as error:
            log.info("trial %d failed: %s", trial.number, error)
            trial.set_user_attr("error", str(error))
            self.failures += 1
            if self.failures == MOST_FAILURES:
                raise _HopelessError(
                    f"{MOST_FAILURES} trials failed one after another, the last one: {error}"
                ) from error
            raise
        except KeyboardInterrupt:
            trial.set_user_attr("again", True)
            trial.study.enqueue_trial(trial.params)
            raise
        except optuna.TrialPruned:
            log.info("trial %d pruned", trial.number)
            raise
        finally:
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
            shutil.rmtree(place / "cache", ignore_errors=True)
        self.failures = 0
        log.info("trial %d: validation Dice %.4f", trial.number, found)
        return found

    def _write(self, study: optuna.Study) -> bool:
        """Write ``trials.csv``, and the best trial so far as ``best.yaml``; False where none is complete."""
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        with atomic_write(self.folder / TABLE, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["trial", "state", "val_dice", "epochs", *self.ranges, "error"])
            for one in trials:
                best = max(one.intermediate_values.values(), default=None)
                writer.writerow(
                    [
                        one.number, one.state.name.lower(), "" if best is None else f"{best:.6f}",
                        len(one.intermediate_values), *(one.params.get(name, "") for name in self.ranges),
                        csv_cell(one.user_attrs.get("error", "")),
                    ]
                )  # fmt: skip
        if not any(one.state == TrialState.COMPLETE for one in trials):
            return False
        best_trial = study.best_trial
        recipe = with_values(self.recipe, best_trial.params)
        with atomic_write(self.folder / BEST, "w") as file:
            file.write(f"# Trial {best_trial.number} of study {self.name}: validation Dice {best_trial.value:.4f}.\n")
            yaml.safe_dump(recipe.to_dict(), file, sort_keys=False)
        return True


class _HopelessError(Exception):
    """Too many trials failed; not caught by Optuna."""


class _Report(Checkpoint):
    """Reports each epoch's validation Dice, and ends a trial that is to be pruned.

    It derives from Lightning's Checkpoint because only those are called after the module has logged its epoch.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        import optuna

        self.trial.report(float(trainer.callback_metrics["val_dice"]), trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
