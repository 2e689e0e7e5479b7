"""The first samples of every point of a sweep side by side. Equal seeds start from equal noise."""

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
MAX_POINTS = 40  # every picture is embedded in the page


def sample_strip(results: SweepResults) -> dict | None:
    """Return a row for every point and a column for every sample: an image above its features, if they have colours."""
    rows: list[dict] = []
    points = [point for point in results.points if (results.folder.path / "points" / point.name / "samples").is_dir()]
    for point in points[:MAX_POINTS]:
        try:
            if (row := _row(results.folder.path, point)) is not None:
                rows.append(row)
        except (ValueError, OSError) as error:
            results.folder.notes.append(f"The samples of {point.name} cannot be shown: {error}")
    if not rows:
        return None
    rows.sort(key=lambda row: row["seed"])  # groups rows with equal noise
    longest: list = max((row["labels"] for row in rows), key=len)
    return {
        "rows": rows,
        "labels": longest,
        "same_labels": all(row["labels"] == longest[: len(row["labels"])] for row in rows),
        "same_noise": len({row["seed"] for row in rows}) == 1,
        "has_features": any(row["has_features"] for row in rows),
        "limit": f"The first {MAX_POINTS} of {len(points)} points." if len(points) > MAX_POINTS else "",
    }


def _row(sweep_dir: Path, point: Point) -> dict | None:
    """Return a picture of each sample, its image above its features; None if images were not kept."""
    samples = load_samples(sweep_dir / "points" / point.name)
    if not samples.has_images:
        return None
    first = samples.sets[0]
    generated = samples.take(range(min(NUM_SAMPLES, first["stop"] - first["start"])))
    model = sweep_dir / "models" / point.model if point.model else None
    layers = [generated.images, *(_features(model, generated.x) if model else [])]
    stacks = zip(*[thumbnails(layer, like=generated.images) for layer in layers], strict=True)
    pictures = [_stacked(stack, f"sample {i} of {point.name}") for i, stack in enumerate(stacks)]
    labels = captions(generated.labels, class_names(model) if model else None)
    row = {"name": point.name, "seed": phrase(first["seed"]), "labels": labels, "pictures": pictures}
    return row | {"has_features": len(layers) > 1}


def _features(model_dir: Path, x) -> list:
    """Return each representation as colours (N, 3, H, W) uint8, if the newest checkpoint has a colour basis."""
    try:
        if (good := newest_good(model_dir, ("colours",), set_aside=False)) is None:
            return []
        _, tensors, record = good
        channels, colours = Channels(**record["model_arguments"]["channels"]), ColourBasis(tensors["colours"])
        return [colours(name, channels.split(x)[name]) for name in channels.maps[1:]]
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        return []  # the images are shown without features


def _stacked(layers: tuple[Image.Image, ...], alt: str) -> Picture:
    buffer = io.BytesIO()
    stack(layers).save(buffer, format="PNG", optimize=True)
    return Picture.of(buffer.getvalue(), alt)
