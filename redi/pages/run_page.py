"""The page of a run: pictures, metrics, training curves, and details in folded sections."""

import json
import logging
from pathlib import Path

from redi.data import audit
from redi.evaluation.records import read_metrics
from redi.evaluation.samples.stored import load_samples
from redi.pages.curves import run_panels, schedule_panels
from redi.pages.files import Folder, Picture
from redi.pages.reference import ReferenceCurve, reference_panels
from redi.pages.render import render
from redi.pages.wording import with_spread
from redi.runtime.checkpoint import newest_record
from redi.runtime.log import read_log
from redi.training import history

log = logging.getLogger(__name__)

PICTURES = {
    "Samples": ("samples.png", "generated images above their features, and real held-out images"),
    "Generated representation": ("representation.png", "generated features and the encoder's features of the generated "
                                 "images; nearest training images of generated vectors"),
    "Predicted features": ("predicted_features.png", "features predicted at several noise levels, below the encoder's"),
    "Learned components": ("components.png", "learned channels below the principal components they began as"),
    "Queries": ("queries.png", "features given images, and images given features"),
}  # fmt: skip
LISTINGS = {"config.gin": "all bindings", "operative.gin": "all parameters in effect, including defaults"}


def run_page(run_dir: Path, trained_dir: Path, title: str, curve: ReferenceCurve | None = None) -> str:
    """Return the HTML document; `trained_dir` holds the log, previews and audit of the training."""
    run = Folder(run_dir)
    trained = Folder(trained_dir, run.notes)
    listings = {f"{name}: {what}": run.text(name) for name, what in LISTINGS.items()}
    if trained_dir != run_dir:
        listings |= {f"{name} of the training run": trained.text(name) for name in LISTINGS}
    metrics, entries = _metrics(run), read_log(trained_dir)
    images = newest_record(trained_dir).get("dataset_contents")
    against = reference_panels(curve, entries, images) if curve else []
    if curve and not against:
        run.notes.append(f"This run is not drawn against the reference curve of {curve.preset}: no losses in common.")
    pictures = {heading: run.picture(name, alt) for heading, (name, alt) in PICTURES.items()}
    training = trained.json("training.json", _training) or {}
    data = trained.json("audit.json", lambda r: {"brief": audit.summary(r), "all": audit.format_audit(r)})
    sections = {
        "pictures": {heading: picture for heading, picture in pictures.items() if picture},
        "metrics": metrics,
        "panels": against + run_panels(entries) + training.pop("panels", []),
        "training": training,
        "previews": _previews(trained),
        "audit": data and data["all"],
        "listings": {summary: text for summary, text in listings.items() if text is not None},
    }
    if not any(sections.values()):
        run.notes.append("This folder holds no results yet.")
    lead = [training.get("model"), data and data["brief"]]
    lead += [f"{metric['metric']} {with_spread(metric.get('value'), metric.get('spread'))}" for metric in metrics[:1]]
    lead += [f"trained in {trained_dir.name}"] * (trained_dir != run_dir)
    return render(
        "run.html", title=title, lead=" · ".join(filter(None, lead)) or "A run of redi.", notes=run.notes,
        record=json.dumps(metrics, indent=2), **sections,
        class_names={str(label): name for label, name in enumerate(audit.class_names(trained_dir) or ())},
    )  # fmt: skip


def _training(record: dict) -> dict:
    panels = schedule_panels(record["noise_schedule"]) if "noise_schedule" in record else []
    return history.in_brief(record) | {"record": record, "panels": panels}


def _metrics(folder: Folder) -> list[dict]:
    """Read metrics.json; return [] with a note if it is damaged, outdated or of an older version."""
    path = folder.path / "metrics.json"
    try:
        metrics = read_metrics(path) if path.exists() else []
        if not all(isinstance(metric.get("samples"), dict) for metric in metrics):
            raise ValueError(f"{path.name} was written by an older version of redi: sample and evaluate again")
        if metrics and (folder.path / "samples").exists():
            digest = load_samples(folder.path).sha256
            if any(metric["samples"].get("samples_sha256") != digest for metric in metrics):
                remedy = f"run redi.evaluate --run_dir={folder.path}"
                raise ValueError(f"{path.name} holds metrics of earlier samples: {remedy}")
        return metrics
    except (ValueError, OSError, RecursionError) as error:
        folder.notes.append(f"The metrics are not shown: {error}")
        log.warning(folder.notes[-1])
        return []


def _previews(folder: Folder) -> list[Picture]:
    """Return the first preview, the last one, and two in between."""
    paths = sorted((folder.path / "previews").glob("*.png"))
    paths = paths if len(paths) <= 4 else [paths[round(i * (len(paths) - 1) / 3)] for i in range(4)]
    steps = [path.stem.removeprefix("step_").lstrip("0") or path.stem for path in paths]
    pictures = (folder.picture(f"previews/{p.name}", f"step {step}") for p, step in zip(paths, steps, strict=True))
    return [picture for picture in pictures if picture]
