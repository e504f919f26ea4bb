"""The page's own unit tests (``*.test.mjs``), run by Node's test runner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.stem)
def test_the_arithmetic_of_the_page(file: Path, node: str) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([node, "--test", str(file)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
