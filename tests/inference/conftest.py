"""What tests of inference share."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from polypseg.bundle import Architecture, ModelBundle, Preprocessing
from polypseg.cli import main
from polypseg.models.network import build


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """An untrained network that finds something of every shape in most frames."""
    torch.manual_seed(0)
    architecture = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
    network = build(architecture)
    with torch.no_grad():
        for _ in range(5):
            network.train()(torch.randn(4, 3, 64, 64))
    preprocessing = Preprocessing(64, 96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ModelBundle.save(
        tmp_path_factory.mktemp("model") / "bundle", network.state_dict(), name="untrained",
        architecture=architecture, preprocessing=preprocessing, threshold=0.565,
    )  # fmt: skip


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs ``polypseg predict`` here; gives its status, what it printed, and the lines that it told of trouble."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        caplog.clear()
        status = main(["predict", *map(str, arguments), "--runtime", "torch", "--device", "cpu", "--precision", "fp32"])
        captured = capsys.readouterr()
        told = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
        return (
            status,
            captured.out,
            told + [line for line in captured.err.splitlines() if line.startswith("polypseg: ")],
        )

    return call
