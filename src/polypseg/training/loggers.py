"""Where else a training is followed: TensorBoard, MLflow and Weights & Biases, as the recipe names them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from polypseg.errors import PolypsegError
from polypseg.training.recipe import Recipe


def make_loggers(recipe: Recipe, folder: Path) -> list[Logger]:
    """The loggers of ``trainer.loggers``. Each writes into the run folder, or where its own environment variables say.

    Raises:
        PolypsegError: one is not installed, or cannot start.
    """
    makers = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    return [makers[name](recipe, folder) for name in recipe.trainer.loggers]


def _tensorboard(_: Recipe, folder: Path) -> Logger:
    return TensorBoardLogger(folder, name="tensorboard", version="")


def _mlflow(recipe: Recipe, folder: Path) -> Logger:
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    try:
        return _MlflowRun("polypseg", run_name=recipe.name, tracking_uri=uri)
    except ModuleNotFoundError as error:
        raise _missing("mlflow", error) from error


def _wandb(recipe: Recipe, folder: Path) -> Logger:
    project = os.environ.get("WANDB_PROJECT", "polypseg")
    try:
        logger = _WandbRun(recipe.name, save_dir=folder, project=project, config=recipe.to_dict())
    except ModuleNotFoundError as error:
        raise _missing("wandb", error) from error
    try:
        _ = logger.experiment  # starts it: a missing key or server comes out now, not after the first epoch
    except Exception as error:  # of many classes, as wandb has them
        reason = " ".join(str(error).split())[:200]
        raise PolypsegError(
            f"wandb: cannot start ({reason}); log in with: wandb login; or set WANDB_MODE=offline"
        ) from error
    return logger


class _MlflowRun(MLFlowLogger):
    """MLflow for one training. MLflow notes its place in the environment: that is undone for the process's next run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._before = os.environ.get("MLFLOW_TRACKING_URI")

    def finalize(self, status: str = "success") -> None:
        import mlflow

        super().finalize(status)
        mlflow.set_tracking_uri(self._before)  # type: ignore[arg-type]  # None: as if never set


class _WandbRun(WandbLogger):
    """One run of Weights & Biases for each training, also where a process trains several."""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None


def _missing(name: str, error: ModuleNotFoundError) -> PolypsegError:
    return PolypsegError(f"{name}: {error}; install it with: pip install 'polypseg[{name}]'")
