"""The page of a run: what came out, how it was measured, and how it came about."""

import json
from pathlib import Path

from redi.pages.curves import run_panels
from redi.pages.files import Folder, Picture
from redi.pages.metrics import beside, metrics_of_samples, record_rows
from redi.pages.plots import figures
from redi.pages.render import render
from redi.runtime.log import read_log

PICTURES = {
    "Samples": ("samples.png", "generated images above their features, and real held-out images"),
    "Generated representation": ("representation.png", "the generated representation beside the encoder's features of "
                                 "the generated image"),
    "Queries": ("queries.png", "features given images, and images given features"),
}  # fmt: skip
LISTINGS = {"config.gin": "all that was bound", "operative.gin": "all that took effect, defaults included"}


def run_page(run_dir: Path, trained_dir: Path, title: str) -> str:
    """The document.

    Args:
        trained_dir: the folder with training log, previews and audit; `run_dir`, except for a point of a sweep.
    """
    run = Folder(run_dir)
    trained = Folder(trained_dir, run.notes)
    lead = "A run of redi: joint image-feature diffusion."
    listings = {f"{name}: {what}": run.text(name) for name, what in LISTINGS.items()}
    if trained_dir != run_dir:
        lead += f" Its model was trained in {trained_dir.name}."
        listings |= {f"{name} of the training run": trained.text(name) for name in LISTINGS}
    metrics = metrics_of_samples(run)
    pictures = {heading: run.picture(name, alt) for heading, (name, alt) in PICTURES.items()}
    sections = {
        "metrics": [(metric, beside(metric), record_rows(metric)) for metric in metrics],
        "pictures": {heading: picture for heading, picture in pictures.items() if picture},
        "panels": figures(run_panels(read_log(trained_dir))),
        "previews": _previews(trained),
        "audit": _audit(trained),
        "listings": {summary: text for summary, text in listings.items() if text is not None},
    }
    if not any(sections.values()):
        run.notes.append("This folder holds nothing to show yet.")
    full_record = json.dumps(metrics, indent=2)
    return render("run.html", title=title, lead=lead, notes=run.notes, full_record=full_record, **sections)


def _previews(folder: Folder) -> list[Picture]:
    """The first, the last and two between."""
    paths = sorted((folder.path / "previews").glob("*.png"))
    shown = paths if len(paths) <= 4 else [paths[round(i * (len(paths) - 1) / 3)] for i in range(4)]
    steps = [path.stem.removeprefix("step_").lstrip("0") or path.stem for path in shown]
    pictures = [
        folder.picture(f"previews/{path.name}", f"step {step}") for path, step in zip(shown, steps, strict=True)
    ]
    return [picture for picture in pictures if picture]


def _audit(folder: Folder) -> str:
    from redi.data.audit import describe  # imports torch

    try:
        return describe(record) if (record := folder.json("audit.json")) else ""
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or edited
        folder.notes.append("audit.json cannot be shown: it is not what this version of redi writes.")
        return ""
