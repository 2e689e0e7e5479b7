"""The same samples of every point of a sweep side by side: equal seeds begin with equal noise."""

import io
from pathlib import Path

from PIL import Image

from redi.core.channels import Channels
from redi.data.audit import class_names
from redi.evaluation.samples.stored import load_samples
from redi.pages.files import Picture
from redi.pages.sweep_results import Point, SweepResults
from redi.pages.wording import phrase
from redi.runtime.checkpoint import newest_good
from redi.sampling.labels import captions
from redi.sampling.pictures import ColourBasis, stack, thumbnails

NUM_SAMPLES = 10
MAX_POINTS = 40  # shown; every picture is part of the page


def sample_strip(results: SweepResults) -> dict | None:
    """A row for every point, a column for every sample; below each image its features, where the colours are known."""
    rows = []
    shown = [point for point in results.points if (results.folder.path / "points" / point.name / "samples").is_dir()]
    for point in shown[:MAX_POINTS]:
        try:
            rows.append(_row(results.folder.path, point))
        except (ValueError, OSError) as error:
            results.folder.notes.append(f"The samples of {point.name} cannot be shown: {error}")
    rows = sorted((row for row in rows if row), key=lambda row: row["seed"])  # those of equal noise together
    longest = max((row["labels"] for row in rows), key=len, default=[])
    return rows and {
        "rows": rows,
        "labels": longest,
        "same_labels": all(row["labels"] == longest[: len(row["labels"])] for row in rows),
        "same_noise": len({row["seed"] for row in rows}) == 1,
        "has_features": any(row["has_features"] for row in rows),
        "limit": f"The first {MAX_POINTS} of {len(shown)} points." if len(shown) > MAX_POINTS else "",
    }


def _row(sweep_dir: Path, point: Point) -> dict | None:
    """Per sample a picture of the image above its features; None where images were not kept."""
    samples = load_samples(sweep_dir / "points" / point.name)
    if not samples.has_images:
        return None
    first = samples.sets[0]
    drawn = samples.take(range(min(NUM_SAMPLES, first["stop"] - first["start"])))
    model = sweep_dir / "models" / point.model if point.model else None
    layers = [drawn.images, *(_features(model, drawn.x) if model else [])]
    stacks = zip(*[thumbnails(layer, like=drawn.images) for layer in layers], strict=True)
    pictures = [_stacked(stack, f"sample {i} of {point.name}") for i, stack in enumerate(stacks)]
    labels = captions(drawn.labels, class_names(model) if model else None)
    row = {"name": point.name, "seed": phrase(first["seed"]), "labels": labels, "pictures": pictures}
    return row | {"has_features": len(layers) > 1}


def _features(model_dir: Path, x) -> list:
    """Each representation as colours (N, 3, H, W) uint8, by the last checkpoint's colour basis, if it has one."""
    try:
        _, tensors, record = newest_good(model_dir, ("colours",), set_aside=False)
        channels, colours = Channels(**record["model_arguments"]["channels"]), ColourBasis(tensors["colours"])
        return [colours(name, channels.split(x)[name]) for name in channels.representations]
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        return []  # images are shown without them


def _stacked(layers: tuple[Image.Image, ...], alt: str) -> Picture:
    buffer = io.BytesIO()
    stack(layers).save(buffer, format="PNG", optimize=True)
    return Picture.of(buffer.getvalue(), alt)
