"""What tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polypseg.training.callbacks import MetricsTable


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a training that Ctrl-C ends as an epoch, counted from 0, begins; of several runs, in the folder ``of``."""

    def run(epoch: int, training: Callable[[], Any], of: str | None = None) -> None:
        start = MetricsTable.on_train_epoch_start

        def interrupt(self: MetricsTable, trainer: Any, module: Any) -> None:
            start(self, trainer, module)
            if trainer.current_epoch == epoch and of in (None, self.path.parent.name):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MetricsTable, "on_train_epoch_start", interrupt)
            with pytest.raises(KeyboardInterrupt):
                training()

    return run
