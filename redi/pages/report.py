"""The report: one self-contained HTML page about a run or a sweep."""

from pathlib import Path

from redi.core.registry import configurable
from redi.pages.files import Folder
from redi.pages.reference import read_curve
from redi.pages.run_page import run_page
from redi.pages.sweep_page import sweep_page
from redi.pages.sweep_results import read_plan
from redi.runtime.atomic import write_text
from redi.runtime.paths import local_path


@configurable(runtime=("run_dir", "trained_dir"), harmless=("curve",), entry=True)
def report(
    run_dir: str | Path, *, trained_dir: str | Path | None = None, title: str | None = None,
    curve: str | Path | None = None,
) -> Path:  # fmt: skip
    """Write `run_dir/report.html` from the files in the folder and return its path. The page loads nothing else.

    Args:
        run_dir: the folder of a run, of a sweep, or of a point of a sweep.
        trained_dir: the folder of the training; default: `run_dir`, or the model of a point of a sweep.
        title: default: the name of the folder.
        curve: the reference curve of a preset, such as 'digits_pretrained.jsonl': the losses of several seeds, to draw
            those of a run against (`read_curve`).
    """
    run_dir, reference = local_path(run_dir), read_curve(curve)
    title = title or run_dir.resolve().name
    if is_sweep(run_dir):
        if reference:
            raise ValueError(f"report.curve = {str(curve)!r}: must be None for a sweep; report one of its points")
        content = sweep_page(run_dir, title)
    else:
        content = run_page(run_dir, local_path(trained_dir or _model_of_point(run_dir) or run_dir), title, reference)
    path = run_dir / "report.html"
    write_text(path, content.encode("utf-8", errors="backslashreplace").decode())  # file names may not be valid text
    return path


def is_sweep(folder: str | Path) -> bool:
    """Return whether the folder is that of a sweep."""
    return (Path(folder) / "sweep.json").is_file()


def is_point(folder: str | Path) -> bool:
    """Return whether the folder is that of a point of a sweep."""
    points = Path(folder).resolve().parent
    return points.name == "points" and is_sweep(points.parent)


def _model_of_point(folder: Path) -> Path | None:
    folder = folder.resolve()
    points = read_plan(Folder(folder.parents[1]))[1] if is_point(folder) else []
    model = next((point.model for point in points if point.name == folder.name), "")
    return folder.parents[1] / "models" / model if model else None
