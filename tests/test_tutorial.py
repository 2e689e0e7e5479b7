"""The tutorial: its code runs, and its stored outputs belong to its code.

After a change of the notebook, `python tests/test_tutorial.py` runs it at full size and stores the outputs.
"""

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"
TINY = {"NUM_STEPS": 2, "ENCODER_STEPS": 2, "NUM_EVALUATIONS": 2, "NUM_SAMPLES": 20}


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_sha256(notebook) -> str:
    return hashlib.sha256("\0".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def execute(notebook, folder: Path) -> None:
    """Run all cells in `folder`, in a process of their own."""
    from nbclient import NotebookClient

    path = os.pathsep.join([str(NOTEBOOK.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}}).execute()


def is_progress(output) -> bool:
    """Whether an output is nothing but a progress bar."""
    return output.get("name") == "stderr" and ("%|" in output.text or not output.text.strip())


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_every_cell_runs_at_the_smallest_size(notebook, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in TINY.items():
        parameters.source, count = re.subn(rf"(?m)^{name} = \d+", f"{name} = {value}", parameters.source)
        assert count == 1
    execute(notebook, tmp_path)
    assert (tmp_path / "tutorial/run/classifier_free/report.html").exists()


def test_the_stored_outputs_belong_to_the_stored_code():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert notebook.metadata.source_sha256 == source_sha256(notebook), "run python tests/test_tutorial.py"
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert NOTEBOOK.stat().st_size < 1_000_000


if __name__ == "__main__":
    content = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as work:
        execute(content, Path(work))
    for cell in code_cells(content):
        cell.metadata.pop("execution", None)  # times
        cell.outputs = [output for output in cell.outputs if not is_progress(output)]
        for output in cell.outputs:
            output.get("data", {}).pop("image/jpeg", None)  # the same picture again
    content.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "source_sha256": source_sha256(content),
    }
    nbformat.write(content, sys.argv[1] if sys.argv[1:] else NOTEBOOK)
