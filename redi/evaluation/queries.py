"""Conditional queries of a trained joint model: features given images, and images given features."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from redi.core.processes import Process
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

TITLE = "image; per representation: encoder features, features given the image; images given the features"


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
    """Generate features given images and images given features, and measure how well they agree.

    Writes `queries.json` and `queries.png`, with the rows image, its encoder's features, features generated given the
    image, and images generated given the features. The picture leaves out vectors. Agreement is the cosine similarity
    of reduced features, averaged over positions. The floor is the agreement with another image's features.

    Args:
        trained: an opened run (`redi.load`) with at least one representation.
        dataset: preferably held-out images; `num_images` evenly spaced ones are used.
        num_variations: number of images generated from the features of each image.
        labels: 'null' queries without a label, so that the condition is the only information. 'own' uses the label of
            the image. A list of labels or class names is repeated over the images.
        sampler: see `redi.sampling.conditional`; default: EulerMaruyama(diffusion_norm=10), or Ancestral for a DDPM.

    Returns:
        {"features_given_image", "image_given_features"}, each {representation: {"agreement", "floor"}}, and the record.
    """
    run_dir, codec, channels = local_path(run_dir), trained.codec, trained.codec.channels
    if not channels.representations:
        raise ValueError(f"the model of {run_dir} has no representation to query: choose a joint model")
    if isinstance(labels, str) and labels not in ("null", "own") or not len(labels):
        raise ValueError(f"query.labels = {labels!r}: must be 'null', 'own', or a list of labels or class names")
    if num_images < 2 or num_images > len(dataset):
        raise ValueError(f"query.num_images = {num_images}: must be between 2 and {len(dataset)}, the number of images")
    sampler = sampler or query_sampler(trained.process)
    if labels == "null" and trained.objective is not None and not trained.objective.label_dropout:
        log.warning(
            "query.labels = 'null' uses the null label, which is not trained with JointObjective.label_dropout = 0: "
            "set query.labels = 'own'"
        )
    positions = torch.linspace(0, len(dataset) - 1, num_images).long()
    batch = dataset.batch(positions.tolist())
    groups = channels.unpadded(codec.encode(batch["images"].to(codec.device)).cpu())
    features = {name: groups[name] for name in channels.representations}
    classes = batch["labels"]
    if labels != "own":
        scheme = labels if labels == "null" else label_numbers(labels, trained.class_names, "query.labels")
        classes = choose_labels(scheme, num_images, trained.num_classes)

    def ask(condition: dict[str, Tensor], times: int) -> Generated:
        repeated = {name: group.repeat(times, 1, 1, 1) for name, group in condition.items()}
        return conditional(trained, repeated, classes.repeat(times), sampler=sampler, seed=seed)

    given_image = ask({"image": groups["image"]}, times=1)
    given_features = ask(features, times=num_variations)
    encoded = channels.unpadded(codec.encode(given_features.images.to(codec.device)).cpu())
    result = {
        "features_given_image": _agreement(channels.unpadded(given_image.x), features, times=1),
        "image_given_features": _agreement(encoded, features, times=num_variations),
        "num_images": num_images,
        "num_variations": num_variations,
        "labels": labels if isinstance(labels, str) else list(labels),
        "checkpoint_step": trained.step,
        **given_image.record,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "queries.json", result)
    rows, generated = [batch["images"]], channels.split(given_image.x)
    for name in channels.maps[1:]:
        rows += [trained.colours(name, features[name]), trained.colours(name, generated[name])]
    rows += given_features.images.split(num_images)
    cells = [thumbnails(row, like=batch["images"]) for row in rows]
    tile(cells, captions(batch["labels"], trained.class_names), TITLE, num_images).save(run_dir / "queries.png")
    return result


def query_sampler(process: Process, num_evaluations: int = 250) -> Sampler:
    """Return the default sampler of queries, whose noise keeps samples close to the true conditional."""
    if process.num_timesteps:
        return Ancestral(num_evaluations)
    return EulerMaruyama(num_evaluations, diffusion_norm=10.0)


def conditional(
    trained, given: Mapping[str, Tensor], labels: Tensor, *, sampler: Sampler | None = None, seed: int = 0
) -> Generated:  # fmt: skip
    """Sample the groups that are not `given`, at the times that a model trained with independent clocks can use.

    Args:
        trained: an opened run (`redi.load`).
        given: {group: (N, C_m, H, W)}, clean values; see `redi.generate`.
        labels: (N,) class numbers; `trained.num_classes` is the null label.
        sampler: default: `query_sampler`.
    """
    own_time = trained.objective is not None and trained.objective.clock.independent
    return generate(
        trained.model, trained.codec, trained.process, labels=labels, given=given, own_time=own_time,
        sampler=sampler or query_sampler(trained.process), seed=seed, weights=trained.weights["ema"],
    )  # fmt: skip


def _agreement(generated: dict[str, Tensor], features: dict[str, Tensor], times: int) -> dict:
    """Return {representation: {"agreement": cosine, "floor": cosine with another image's features}}."""

    def cosine(name: str, others: Tensor) -> float:
        return float(functional.cosine_similarity(generated[name], others.repeat(times, 1, 1, 1), dim=1).mean())

    return {
        name: {"agreement": cosine(name, group), "floor": cosine(name, group.roll(1, dims=0))}
        for name, group in features.items()
    }
