"""Imports point one way, and what is heavy is loaded only by what needs it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import polypseg

PACKAGE = Path(polypseg.__file__).parent
# A module may import from its own package and from those of earlier layers; members of one layer do not know
# each other.
LAYERS = (
    ("errors", "names", "renamed", "version"),
    ("files", "extras"),
    ("metadata",),
    ("operating_point", "drawing"),
    ("segmentation",),
    ("bundle",),
    ("hub",),
    ("io",),
    ("catalog",),
    ("data", "models", "metrics", "visualization", "zoo"),
    ("inference",),
    ("pipeline",),
    ("evaluation",),
    ("benchmark", "export"),
    ("training",),
    ("api", "client"),
    ("serve",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def part_of(module: str) -> str:
    """``data`` of ``polypseg.data.folder``; an empty string for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imports(source: str, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """(line, imported module of polypseg) of every import, also inside functions and ``if TYPE_CHECKING``."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            if base == "polypseg":  # ``from polypseg import data`` names a module, ``load`` is the package's own
                names = [f"{base}.{alias.name}" if alias.name in LAYER else base for alias in node.names]
                found += [(node.lineno, name) for name in names]
            else:
                found.append((node.lineno, base))
    return [(line, name) for line, name in found if name.partition(".")[0] == "polypseg"]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of a later layer, of another member of the same, or of the package root, which offers what lies below."""
    own = part_of(module)
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports(source, module, is_package)
        if part_of(name) != own and LAYER.get(part_of(name), len(LAYERS)) >= LAYER[own]
    ]


def modules() -> list[tuple[str, Path]]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), file))
    return found


def test_every_module_has_its_layer() -> None:
    parts = {part_of(name) for name, _ in modules()} - {""}
    assert parts == set(LAYER)


@pytest.mark.parametrize(("module", "file"), [item for item in modules() if item[0] != "polypseg"])
def test_imports_point_down(module: str, file: Path) -> None:
    assert violations(file.read_text(encoding="utf-8"), module, file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("polypseg.catalog", "import polypseg.data"),
        ("polypseg.catalog", "from polypseg.zoo import SHIPPED"),
        ("polypseg.bundle", "def load():\n    from polypseg import hub"),
        ("polypseg.data.folder", "def f():\n    from polypseg.visualization.gallery import Panel"),
        ("polypseg.data.folder", "from ..models import build"),
        ("polypseg.models.losses", "from polypseg import metrics"),
        ("polypseg.evaluation.scoring", "if TYPE_CHECKING:\n    from polypseg.training.recipe import Recipe"),
        ("polypseg.inference.segmenter", "import numpy, polypseg.cli"),
        ("polypseg.serve.run", "import polypseg"),
        ("polypseg.cli.serve", "from polypseg import load"),
    ],
)
def test_a_wrong_import_would_be_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "polypseg.data.folder",
            "from polypseg.catalog import Catalog\nfrom . import kvasir\nimport data.models",
        ),
        ("polypseg.training.run", "from ..evaluation import scoring\nfrom .recipe import Recipe"),
        ("polypseg.cli", "from polypseg.version import __version__\nfrom polypseg.training import run"),
    ],
)
def test_a_right_import_would_not(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize(
    "module", ["polypseg", "polypseg.catalog", "polypseg.bundle", "polypseg.segmentation", "polypseg.cli.verbs"]
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "print(*sorted({'torch', 'torchvision', 'matplotlib', 'lightning', 'sklearn', 'albumentations',"
        " 'segmentation_models_pytorch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
