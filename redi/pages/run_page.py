"""The page of a run: what came out, how it was measured, and how it came about."""

import json
import logging
from pathlib import Path

from redi.pages.curves import run_panels
from redi.pages.files import Folder, Picture
from redi.pages.render import render
from redi.runtime.log import read_log

log = logging.getLogger(__name__)

PICTURES = {
    "Samples": ("samples.png", "generated images above their features, and real held-out images"),
    "Generated representation": ("representation.png", "the generated representation beside the encoder's features of "
                                 "the generated image"),
    "Queries": ("queries.png", "features given images, and images given features"),
}  # fmt: skip
LISTINGS = {"config.gin": "all that was bound", "operative.gin": "all that took effect, defaults included"}


def run_page(run_dir: Path, trained_dir: Path, title: str) -> str:
    """The document; `trained_dir` has the log, previews and audit of the training."""
    run = Folder(run_dir)
    trained = Folder(trained_dir, run.notes)
    lead = "A run of redi: joint image-feature diffusion."
    listings = {f"{name}: {what}": run.text(name) for name, what in LISTINGS.items()}
    if trained_dir != run_dir:
        lead += f" Its model was trained in {trained_dir.name}."
        listings |= {f"{name} of the training run": trained.text(name) for name in LISTINGS}
    metrics = _metrics(run)
    pictures = {heading: run.picture(name, alt) for heading, (name, alt) in PICTURES.items()}
    sections = {
        "metrics": metrics,
        "pictures": {heading: picture for heading, picture in pictures.items() if picture},
        "panels": run_panels(read_log(trained_dir)),
        "previews": _previews(trained),
        "audit": _audit(trained),
        "listings": {summary: text for summary, text in listings.items() if text is not None},
    }
    if not any(sections.values()):
        run.notes.append("This folder holds nothing to show yet.")
    record = json.dumps(metrics, indent=2)
    return render("run.html", title=title, lead=lead, notes=run.notes, record=record, **sections)


def _metrics(folder: Folder) -> list[dict]:
    """metrics.json, unless it cannot be read, is of an older version, or the samples were drawn again since."""
    metrics = folder.json("metrics.json", list) or []
    again = f"redi.evaluate --run_dir={folder.path}"
    if not all(isinstance(metric, dict) and "metric" in metric for metric in metrics):
        folder.notes.append("metrics.json cannot be read: it is not a list of metrics.")
    elif not all(isinstance(metric.get("samples"), dict) for metric in metrics):
        older = "metrics.json was written by an older version of redi, whose records say less, and is left out"
        folder.notes.append(f"{older}: draw the samples again and run {again}")
    elif not metrics or not (folder.path / "samples").exists():
        return metrics
    else:
        from redi.evaluation.samples.stored import load_samples  # imports torch

        try:
            digest = load_samples(folder.path).sha256
            if all(metric["samples"].get("samples_sha256") == digest for metric in metrics):
                return metrics
            folder.notes.append(f"metrics.json is of earlier samples and left out: run {again}")
            log.warning(folder.notes[-1])
        except (ValueError, OSError) as error:
            folder.notes.append(f"metrics.json is left out because the samples cannot be read: {error}")
    return []


def _previews(folder: Folder) -> list[Picture]:
    """The first, the last and two between."""
    paths = sorted((folder.path / "previews").glob("*.png"))
    shown = paths if len(paths) <= 4 else [paths[round(i * (len(paths) - 1) / 3)] for i in range(4)]
    steps = [path.stem.removeprefix("step_").lstrip("0") or path.stem for path in shown]
    named = zip(shown, steps, strict=True)
    pictures = (folder.picture(f"previews/{path.name}", f"step {step}") for path, step in named)
    return [picture for picture in pictures if picture]


def _audit(folder: Folder) -> str:
    from redi.data.audit import describe  # imports torch

    try:
        return describe(record) if (record := folder.json("audit.json")) else ""
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or edited
        folder.notes.append("audit.json cannot be shown: it is not what this version of redi writes.")
        return ""
