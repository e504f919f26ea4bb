"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets; skips where it is absent. ``POLYPSEG_DATA`` overrides the place."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYPSEG_DATA", default))
    if not (folder / "Kvasir-SEG").is_dir():
        pytest.skip(f"no real data in {folder}; set POLYPSEG_DATA to the folder that holds Kvasir-SEG")
    return folder
