"""The same samples of every point of a sweep side by side: equal seeds begin with equal noise."""

import json
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError

from redi.pages.files import encoded, inline_picture
from redi.pages.markup import Html, element, phrase, scrolling, section
from redi.pages.sweep_results import Point, SweepResults

NUM_SAMPLES = 10
MOST_POINTS = 40  # shown; every picture is part of the page


def samples_section(results: SweepResults) -> Html:
    """A row for every point, a column for every sample; below each image its features, where the colours are known."""
    rows, seeds, labels, most_layers = [], set(), [], 0
    shown = [point for point in results.points if (results.folder.path / "points" / point.name / "samples").is_dir()]
    for point in shown[:MOST_POINTS]:
        try:
            pictures, own_labels, own_seeds = _pictures(results.folder.path, point)
        except (ValueError, OSError) as error:
            results.folder.notes.append(f"The samples of {point.name} cannot be shown: {error}")
            continue
        if not pictures:
            continue
        seeds.add(own_seeds)
        labels.append(own_labels)
        most_layers = max(most_layers, len(pictures[0]))
        cells = [element("td", _cell(layers, f"sample {i} of {point.name}")) for i, layers in enumerate(pictures)]
        head = element("th", point.name, element("br"), f"seed {own_seeds}", scope="row")
        rows.append((own_seeds, element("tr", head, *cells)))
    if not rows:
        return Html()
    longest = max(labels, key=len)
    agree = all(own == longest[: len(own)] for own in labels)
    names = [f"{i}" + (f", label {label}" if agree else "") for i, label in enumerate(longest)]
    together = [row for _, row in sorted(rows, key=lambda row: row[0])]  # those of equal noise one under the other
    head = element("tr", element("td"), *[element("th", name, scope="col") for name in names])
    table = element("table", element("thead", head), element("tbody", *together), class_="strip")
    return section("Samples", element("p", _explanation(seeds, agree, most_layers > 1, len(shown)), class_="soft"),
                   scrolling(table, label="samples of every point"))  # fmt: skip


def _explanation(seeds: set[str], agree: bool, has_features: bool, count: int) -> str:
    if len(seeds) == 1 and agree:
        shared = "The images of a column began with the same noise and have the same label."
    elif agree:
        shared = "The images of a column have the same label; they began with the same noise where the seeds are equal."
    else:
        shared = "The images of a column began with the same noise where the seeds are equal; their labels differ."
    features = " Below an image: its features, in the colours of its own model." if has_features else ""
    return shared + features + (f" The first {MOST_POINTS} of {count} points." if count > MOST_POINTS else "")


def _pictures(sweep_dir: Path, point: Point) -> tuple[list[list[Image.Image]], list[int], str]:
    """Per sample the image and its features as pictures of one size; the labels; the seed of the noise."""
    from redi.evaluation.samples.stored import load_samples
    from redi.sampling.pictures import thumbnails  # imports torch

    samples = load_samples(sweep_dir / "points" / point.name)
    if not samples.has_images:
        return [], [], ""
    first = samples.sets[0]
    drawn = samples.take(range(min(NUM_SAMPLES, first["stop"] - first["start"])))
    layers = [thumbnails(drawn.images, like=drawn.images)]
    if point.model:
        found = _features(sweep_dir / "models" / point.model, drawn.x)
        layers += [thumbnails(part, like=drawn.images) for part in found]
    return [list(stack) for stack in zip(*layers, strict=True)], drawn.labels.tolist(), phrase(first["seed"])


def _features(model_dir: Path, x) -> list:
    """Each representation as colours (N, 3, H, W) uint8, by the last checkpoint's colour basis, if it has one."""
    from safetensors.torch import load_file

    from redi.core.channels import Channels
    from redi.runtime.checkpoint import list_checkpoints
    from redi.sampling.pictures import ColourBasis

    checkpoints = list_checkpoints(model_dir)
    if x is None or not checkpoints:
        return []
    try:
        record = json.loads((checkpoints[-1] / "record.json").read_text())
        channels = Channels(**record["model_arguments"]["channels"])
        colours = ColourBasis(load_file(checkpoints[-1] / "colours.safetensors"))
        groups = channels.split(x)
        return [colours(name, groups[name]) for name in channels.representations]
    except (KeyError, TypeError, ValueError, OSError, SafetensorError):  # images are shown without them
        return []


def _cell(layers: list[Image.Image], alt: str) -> Html:
    sheet = Image.new("RGB", (layers[0].width, sum(layer.height + 1 for layer in layers) - 1), (128, 128, 128))
    top = 0
    for layer in layers:
        sheet.paste(layer.convert("RGB"), (0, top))
        top += layer.height + 1
    return inline_picture(encoded(sheet), alt, *sheet.size)
