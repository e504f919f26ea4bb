"""The walk-through notebook: it runs as a student runs it, and is committed without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "walkthrough.ipynb"


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs_and_without_absolute_paths() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    text = "\n".join(cell.source for cell in notebook.cells)
    absolute = re.findall(r"""(?:^|["'`\s=])(/[\w.-]+/|~/|[A-Z]:[\\/]|file://)""", text)
    assert not absolute


def test_its_code_compiles_and_uses_the_python_api_alone() -> None:
    source = "\n".join(cell.source for cell in read_notebook().cells if cell.cell_type == "code")
    compile(re.sub(r"(?m)^%.*$", "", source), str(NOTEBOOK), "exec")
    assert "polypseg.cli" not in source and "subprocess" not in source and "\n!" not in source


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook with its outputs, and the folder it ran in."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    notebook = read_notebook()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("POLYPSEG_NOTEBOOK_DATA", raising=False)
        patch.delenv("POLYPSEG_NOTEBOOK_RECIPE", raising=False)
        patch.delenv("MPLBACKEND", raising=False)  # else the pictures would not be shown
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()  # raises at the first cell that fails
    return notebook, folder


def printed(notebook: Any, marker: str) -> str:
    """What the one code cell whose source contains ``marker`` printed."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and marker in cell.source]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.mark.slow
def test_every_cell_runs(executed: tuple[Any, Path]) -> None:
    notebook, folder = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    shown = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 6  # areas, frames, batch, curves, predictions, segmented
    assert {path.name for path in folder.iterdir()} == {"runs"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["areas.png", "frames.png", "batch.png", "run/curves.png", "run/predictions.png", "segmented.png"],
)
def test_its_pictures_have_content(name: str, executed: tuple[Any, Path]) -> None:
    picture = np.asarray(Image.open(executed[1] / "runs" / "walkthrough" / name).convert("RGB"))
    assert min(picture.shape[:2]) > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50 and picture.std() > 10


@pytest.mark.slow
def test_its_printed_scores_are_those_of_the_run(executed: tuple[Any, Path]) -> None:
    notebook, folder = executed
    run = folder / "runs" / "walkthrough" / "run"
    report = json.loads((run / "test.json").read_text())
    text = printed(notebook, "test.json")
    found = {name: float(value) for name, value in re.findall(r"(?m)^(\w+) +(\d+\.\d{4})   ", text)}
    expected = {name: value for name, value in report["metrics"]["test"].items() if name != "n"}
    assert found == pytest.approx(expected, abs=5.1e-5)
    assert found.keys() == report["definitions"].keys()
    assert text.startswith(f"{report['metrics']['test']['n']} test frames, threshold 0.5")
    # the last cell segments the first test frame: its Dice is the one that the run noted for it
    per_image = pd.read_csv(run / "per_image.csv").query("split == 'test'")
    segmented = re.search(r"Dice (\d\.\d{3})", printed(notebook, "polypseg.load(run)"))
    assert segmented is not None
    assert float(segmented[1]) == pytest.approx(per_image["dice"].iloc[0], abs=5.1e-4)


@pytest.mark.slow
def test_the_reference_pages_name_what_its_run_wrote(executed: tuple[Any, Path]) -> None:
    """Every field of the bundle's metadata, every file of the run folder, every column of its tables."""
    run = executed[1] / "runs" / "walkthrough" / "run"
    reference = ROOT / "docs" / "reference"
    page = (reference / "bundle.md").read_text(encoding="utf-8")
    metadata = json.loads((run / "bundle" / "metadata.json").read_text())
    nested = [f"{key}.{inner}" for key in ("architecture", "preprocessing", "encoder_weights", "data", "split")
              for inner in metadata[key]]  # fmt: skip
    assert not [name for name in (*metadata, *nested) if f"`{name}`" not in page]

    page = (reference / "run-folder.md").read_text(encoding="utf-8")
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    files = {name if not name.startswith("bundle/") else "bundle/" for name in files}
    assert not [name for name in files if f"`{name}`" not in page]
    columns = [*pd.read_csv(run / "metrics.csv"), *pd.read_csv(run / "per_image.csv")]
    columns += json.loads((run / "test.json").read_text())["provenance"]
    assert not [name for name in columns if f"`{name}`" not in page]

    page = (ROOT / "docs" / "explanation" / "dice.md").read_text(encoding="utf-8")
    definitions = json.loads((run / "test.json").read_text())["definitions"]
    assert not [name for name in definitions if f"`{name}`" not in page]
