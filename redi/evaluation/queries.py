"""Conditional queries of a trained joint model: features given images, and images given features."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from redi.core.registry import configurable
from redi.core.samplers import Sampler
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.data.datasets import Dataset
from redi.evaluation.samples.label_schemes import choose_labels
from redi.runtime.artefact import write_json
from redi.runtime.paths import local_path
from redi.sampling.generate import Generated, generate
from redi.sampling.labels import captions, label_numbers
from redi.sampling.pictures import thumbnails, tile

log = logging.getLogger(__name__)

TITLE = "image; per representation: encoder's features, features drawn given the image; images drawn given the features"


@configurable(runtime=("run_dir", "trained", "dataset"), entry=True)
def query(
    run_dir: str | Path,
    *,
    trained,
    dataset: Dataset,
    num_images: int = 12,
    num_variations: int = 3,
    labels: str | Sequence[int | str] = "null",
    sampler: Sampler | None = None,
    seed: int = 0,
) -> dict:
    """Ask a joint model both ways about some images, and measure whether the answers fit; write `queries.json` and
    `queries.png` (rows: image, its encoder's features, features generated given the image, images generated given the
    features).

    -> {"features_given_image", "image_given_features": each {representation: {"agreement", "floor"}}, and the record}.
    Agreement is the cosine between reduced features, averaged over positions; its floor: with another image's features.

    Args:
        trained: an opened run (`redi.load`) with at least one representation.
        dataset: images to ask about, spread evenly over it; best ones that were not trained on.
        num_variations: images drawn for each representation.
        labels: 'null' asks without a label, so that what is given is all that is known; 'own' gives the image's label;
            a list of labels or names of classes is repeated, whatever the images show.
        sampler: see `redi.sampling.conditional`; default: EulerMaruyama(diffusion_norm=10), or Ancestral for a DDPM.
    """
    run_dir, codec, channels = local_path(run_dir), trained.codec, trained.codec.channels
    if not channels.representations:
        raise ValueError(f"{run_dir} holds a model of images alone: there is no representation to ask about")
    if isinstance(labels, str) and labels not in ("null", "own") or not len(labels):
        raise ValueError(f"query.labels = {labels!r}: it is 'null', 'own', or a list of labels or names of classes")
    if num_images < 2 or num_images > len(dataset):
        raise ValueError(f"query.num_images = {num_images}: between 2 and the {len(dataset)} images at hand")
    if sampler is None:
        sampler = Ancestral() if trained.process.num_timesteps else EulerMaruyama(diffusion_norm=10.0)
    if labels == "null" and trained.objective is not None and not trained.objective.label_dropout:
        log.warning(
            "query.labels = 'null' asks for the null label, which JointObjective.label_dropout = 0 never trains: "
            "set query.labels = 'own'"
        )
    own_time = trained.objective is not None and trained.objective.independent_timesteps
    positions = torch.linspace(0, len(dataset) - 1, num_images).long()
    batch = dataset.batch(positions.tolist())
    groups = channels.split(codec.encode(batch["images"].to(codec.device)).cpu())
    features = {name: groups[name] for name in channels.representations}
    asked = batch["labels"]
    if labels != "own":
        scheme = labels if labels == "null" else label_numbers(labels, trained.class_names, "query.labels")
        asked = choose_labels(scheme, num_images, trained.num_classes)

    def ask(given: dict[str, Tensor], times: int) -> Generated:
        known = {name: group.repeat(times, 1, 1, 1) for name, group in given.items()}
        return generate(
            trained.model, codec, trained.process, labels=asked.repeat(times), given=known, own_time=own_time,
            sampler=sampler, seed=seed, weights=trained.weights["ema"],
        )  # fmt: skip

    answered = ask({"image": groups["image"]}, times=1)
    pictured = ask(features, times=num_variations)
    seen_again = channels.split(codec.encode(pictured.images.to(codec.device)).cpu())
    result = {
        "features_given_image": _agreement(channels.split(answered.x), features, times=1),
        "image_given_features": _agreement(seen_again, features, times=num_variations),
        "num_images": num_images,
        "num_variations": num_variations,
        "labels": labels if isinstance(labels, str) else list(labels),
        "checkpoint_step": trained.step,
        **answered.record,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "queries.json", result)
    rows, drawn = [batch["images"]], channels.split(answered.x)
    for name in features:
        rows += [trained.colours(name, features[name]), trained.colours(name, drawn[name])]
    rows += pictured.images.split(num_images)
    cells = [thumbnails(row, like=batch["images"]) for row in rows]
    tile(cells, captions(batch["labels"], trained.class_names), TITLE, num_images).save(run_dir / "queries.png")
    return result


def _agreement(drawn: dict[str, Tensor], features: dict[str, Tensor], times: int) -> dict:
    """{representation: {"agreement": cosine, "floor": cosine with another image's features}}."""

    def cosine(name: str, others: Tensor) -> float:
        return float(functional.cosine_similarity(drawn[name], others.repeat(times, 1, 1, 1), dim=1).mean())

    return {
        name: {"agreement": cosine(name, own), "floor": cosine(name, own.roll(1, dims=0))}
        for name, own in features.items()
    }
