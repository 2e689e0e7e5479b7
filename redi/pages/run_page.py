"""The page of a run: what came out, how it was measured, and how it came about."""

from pathlib import Path

from redi.pages.curves import run_panels
from redi.pages.files import Folder
from redi.pages.frame import page
from redi.pages.markup import Html, element, join, section
from redi.pages.metrics import metrics_of_samples, metrics_section

PICTURES = {
    "samples.png": "generated images above their features, and real held-out images",
    "representation.png": "the generated representation beside the encoder's features of the generated image",
    "queries.png": "features given images, and images given features",
}


def run_page(run_dir: Path, trained_dir: Path, title: str) -> str:
    """The document.

    Args:
        trained_dir: the folder with training log, previews and audit; `run_dir`, except for a point of a sweep.
    """
    run = Folder(run_dir)
    trained = Folder(trained_dir, run.notes)
    sections = [
        metrics_section(metrics_of_samples(run)),
        *[section(_title(name), _figure(run, name, alt)) for name, alt in PICTURES.items()],
        section("Training", run_panels(trained.log())),
        section("Progress", _previews(trained)),
        _audit(trained),
        section("Configuration", *_configuration(run, trained)),
    ]
    lead = "A run of redi: joint image-feature diffusion."
    if trained_dir != run_dir:
        lead += f" Its model was trained in {trained_dir.name}."
    if not any(sections):
        run.notes.append("This folder holds nothing to show yet.")
    return page(title, lead, run.notes, sections)


def _title(name: str) -> str:
    return {"samples.png": "Samples", "representation.png": "Generated representation"}.get(name, "Queries")


def _figure(folder: Folder, name: str, alt: str) -> Html:
    picture = folder.picture(name, alt)
    return element("figure", picture, element("figcaption", alt)) if picture else Html()


def _previews(folder: Folder) -> Html:
    """The first, the last and two between."""
    paths = sorted((folder.path / "previews").glob("*.png"))
    shown = paths if len(paths) <= 4 else [paths[round(i * (len(paths) - 1) / 3)] for i in range(4)]
    parts = []
    for path in shown:
        step = path.stem.removeprefix("step_").lstrip("0") or path.stem
        if picture := folder.picture(f"previews/{path.name}", f"samples at step {step}"):
            parts += [element("h3", f"step {step}"), picture]
    return join(parts)


def _audit(folder: Folder) -> Html:
    record = folder.json("audit.json")
    if not record:
        return Html()
    from redi.data.audit import describe  # imports torch

    try:
        shown = describe(record)
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or edited
        folder.notes.append("audit.json cannot be shown: it is not what this version of redi writes.")
        return Html()
    return section("Data", element("pre", shown, tabindex="0"))


def _configuration(run: Folder, trained: Folder) -> list[Html]:
    parts = [run.listing("config.gin", "config.gin: all that was bound")]
    parts.append(run.listing("operative.gin", "operative.gin: all that took effect, defaults included"))
    if trained.path != run.path:
        parts.append(trained.listing("config.gin", "config.gin of the training"))
        parts.append(trained.listing("operative.gin", "operative.gin of the training"))
    return parts
