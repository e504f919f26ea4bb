"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Threads that wait asleep: spinning ones make every test many times slower beside another busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets; skips where it is absent. ``POLYPSEG_DATA`` overrides the place."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYPSEG_DATA", default))
    if not (folder / "Kvasir-SEG").is_dir():
        pytest.skip(f"no real data in {folder}; set POLYPSEG_DATA to the folder that holds Kvasir-SEG")
    return folder


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 small phantom frames; not to be changed."""
    from polypseg.data import phantom

    return phantom.write(tmp_path_factory.mktemp("data") / "phantom", 40, seed=3, height=72, width=88)


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., Any]:
    """Makes a Recipe that trains in seconds; keyword arguments as ``trainer={"epochs": 3}`` change it."""
    from polypseg.training.recipe import FramesConfig, ModelConfig, OptimizerConfig, Recipe, TrainerConfig

    def make(**changes: Any) -> Recipe:
        sections = {
            "frames": (FramesConfig, {"size": 64, "batch_size": 8, "workers": 0}),
            "model": (
                ModelConfig,
                {
                    "name": "Unet",
                    "encoder": "mobilenet_v2",
                    "decoder_channels": (32, 16, 16, 8, 8),
                    "encoder_weights": "none",
                },
            ),
            "optimizer": (OptimizerConfig, {"name": "adamw", "learning_rate": 1e-3}),
            "trainer": (TrainerConfig, {"epochs": 2, "loggers": ()}),
        }
        built = {name: kind(**{**values, **changes.pop(name, {})}) for name, (kind, values) in sections.items()}
        return Recipe(**{"name": "small", **built, **changes})

    return make
