"""Metrics of the generated representation: does it match the generated image, and how well can it be classified?

The paper leaves this question open. The definitions are in docs/representations.md.
"""

import itertools
import logging
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redi.core.registry import configurable
from redi.data.cache.fits import sample_positions
from redi.data.datasets import Dataset
from redi.evaluation.records import over_seeds
from redi.evaluation.representation.encoder_space import Agreement, EncoderSpace, agreement
from redi.evaluation.representation.probes import PROBES, Labelled, chance, num_neighbours, probe_both_ways

log = logging.getLogger(__name__)


@configurable(runtime=("trained", "samples", "dataset", "reference"))
def representation_metrics(
    trained,
    samples,
    dataset: Dataset,
    reference=None,
    *,
    max_images: int = 1000,
    batch_size: int = 64,
    seed: int = 0,
) -> list[dict]:
    """Return the entries of `metrics.json` about the generated representations.

    For each representation: `representation_agreement`, and with two or more classes also `<probe>_generated`,
    `<probe>_generated_images` and `<probe>_from_generated` of a linear probe and of nearest neighbours (see NOTES).
    There are no entries for a model without representations, or if images or x were not kept.

    Args:
        trained: an opened run (`redi.load`).
        samples: `redi.evaluation.samples.stored.Samples`.
        dataset: the training images.
        reference: held-out images of the same classes, to test the probes. Default, or for other references: training
            images that the probes have not seen.
        max_images: maximum number of samples per seed, and of real images to train and to test the probes.
        seed: seed of the choice of images and of the shuffles.

    Raises ValueError: a seed has fewer than two samples, or values are NaN or infinite.
    """
    if not (names := trained.codec.channels.representations):
        return []
    real = RealFeatures(dataset, reference, seed=seed, batch_size=batch_size)
    spaces: dict[str, EncoderSpace] = {}
    # For each seed: Agreement, the share off the grid, accuracies of the probes.
    results: dict[str, list[tuple[Agreement, float, dict | None]]] = {name: [] for name in names}
    for group in samples.sets:
        count = group["stop"] - group["start"]
        if count < 2 or max_images < 2:
            raise ValueError(
                f"seed {group['seed']} has {count} samples and representation_metrics.max_images = {max_images}: both "
                "must be at least 2, because features are compared with those of another image. Raise "
                "sample.num_images or representation_metrics.max_images"
            )
        generated = samples.take(group["start"] + sample_positions(count, max_images, seed))
        if generated.images is None or generated.x is None:
            log.warning("the generated representation is not measured, because sample.keep lacks 'images' or 'x'")
            return []
        if not generated.x.isfinite().all():
            raise ValueError("x of the samples holds NaN or infinite values: sample again before evaluating")
        # The null label is not a class.
        labels = torch.where(generated.labels < dataset.num_classes, generated.labels, -1)
        labels = labels if dataset.num_classes > 1 else torch.full_like(labels, -1)
        for name in names:
            space = spaces[name] = EncoderSpace(trained.codec, name, generated.images[:1])
            z = trained.codec.channels.split(generated.x)[name]
            match = agreement(space, generated.images, z, labels, seed=seed, batch_size=batch_size)
            results[name].append((match, float(space.off_grid(z).mean()), _accuracies(match, labels, real, space)))
    entries = []
    for name, sets in results.items():
        agreements, off_grid, accuracies = zip(*sets, strict=True)
        entries += [_agreement_entry(spaces[name], agreements, off_grid), *_probe_entries(name, accuracies)]
    return entries


class RealFeatures:
    """Features of real images after a round trip through the reducer, averaged over tokens. Sets are encoded once."""

    def __init__(self, dataset: Dataset, reference, *, seed: int, batch_size: int):
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        comparable = isinstance(reference, Dataset) and reference.class_names == dataset.class_names
        self.reference = reference if comparable else None
        self.encoded: dict[tuple, tuple[Labelled, Labelled, str]] = {}

    def of(self, space: EncoderSpace, classes: Tensor, count: int) -> tuple[Labelled, Labelled, str]:
        """Return a training and a test set of at most `count` images of these classes, and the name of the test set."""
        key = space.name, tuple(classes.tolist()), count
        if key not in self.encoded:
            source, what = self.reference, "held-out images"
            if source is not None and len(test := self._chosen(source, classes, count)):
                train = self._chosen(self.dataset, classes, count)
            else:
                source, what = self.dataset, "training images that the probe has not seen"
                both = np.random.default_rng(self.seed).permutation(self._chosen(source, classes, 2 * count))
                train, test = np.array_split(both, 2)
            self.encoded[key] = self._pooled(space, self.dataset, train), self._pooled(space, source, test), what
        return self.encoded[key]

    def _chosen(self, source: Dataset, classes: Tensor, most: int) -> np.ndarray:
        members = np.flatnonzero(np.isin(source.labels, classes.numpy()))
        return members[sample_positions(len(members), most, self.seed)]

    def _pooled(self, space: EncoderSpace, source: Dataset, positions: np.ndarray) -> Labelled:
        features = [torch.empty(0, len(space.mean))]
        for start in range(0, len(positions), self.batch_size):
            images = source.batch(positions[start : start + self.batch_size].tolist())["images"]
            features.append(space.features_of(space.encode(images)[1]).mean(dim=(2, 3)).cpu())
        return Labelled(torch.cat(features), torch.as_tensor(source.labels[positions], dtype=torch.int64))


def _agreement_entry(space: EncoderSpace, sets: Sequence[Agreement], off_grid: Sequence[float]) -> dict:
    centred = [_means(one.centred) for one in sets]
    means, raw = _averaged(centred), _averaged([_means(one.raw) for one in sets])
    per_token = torch.stack([one.centred["generated"] for one in sets])  # (seeds, N, h, w)
    per_image = per_token.mean(dim=(2, 3))
    where = "encoder space" if space.inverts else "reduced space, because this reducer has no inverse"
    return {
        "metric": f"representation_agreement_{space.name}",
        **over_seeds([m["generated"] for m in centred], "higher"),
        "standard_error": float(per_image.std() / per_image.numel() ** 0.5),
        "floor": means["floor"],
        "ceiling": means["ceiling"],
        "fraction": _fraction(means["generated"], means["floor"], means["ceiling"]),
        "same_class": means["same_class"],
        "fraction_within_class": _fraction(means["generated"], means["same_class"], means["ceiling"]),
        "raw": {"value": raw.pop("generated"), **raw},
        "per_token": [[round(value, 4) for value in row] for row in per_token.flatten(0, 1).mean(dim=0).tolist()],
        "off_grid": statistics.fmean(off_grid),
        "space": "encoder" if space.inverts else "reduced",
        "num_samples": per_image.shape[1],
        "note": f"cosine of centred features per token in {where}, between generated features and the encoder's "
        "features of the generated image; floor: generated features of another image; same_class: those of another "
        "image of the class; ceiling: the encoder's features after a round trip through the joint state; "
        "raw: not centred; off_grid: the share of the generated features outside the range of resizing, not compared",
    }  # fmt: skip


NOTES = {
    "generated": "trained on features of real images, tested on generated features and their labels",
    "generated_images": "trained on features of real images, tested on the encoder's features of generated images",
    "from_generated": "trained on generated features, tested on held-out real images",
}


def _probe_entries(name: str, sets: Sequence[dict | None]) -> list[dict]:
    seeds = [accuracies for accuracies in sets if accuracies is not None]
    if len(seeds) < len(sets):
        return []
    conditions, entries = seeds[0], []
    for probe, (question, note) in itertools.product(PROBES, NOTES.items()):
        means, floor = _averaged([accuracies[probe] for accuracies in seeds]), conditions["floors"][question]
        entries.append({
            "metric": f"{probe}_{question}_{name}",
            **over_seeds([accuracies[probe][question] for accuracies in seeds], "higher"),
            "floor": floor,
            "ceiling": means["held_out"],
            "fraction": _fraction(means[question], floor, means["held_out"]),
            **conditions["counts"],
            **({"k": conditions["k"]} if probe == "knn" else {}),
            "note": f"{note}; features averaged over tokens, all projected by the reducer and back; ceiling: "
            f"trained on real images, tested on {conditions['held_out']}; floor: the most frequent label",
        })  # fmt: skip
    return entries


def _accuracies(match: Agreement, labels: Tensor, real: RealFeatures, space: EncoderSpace) -> dict | None:
    """Return the accuracies of both probes and their conditions; None if there are fewer than two classes."""
    labelled = labels >= 0
    if len(classes := labels[labelled].unique()) < 2:
        return None
    train, held_out, which = real.of(space, classes, int(labelled.sum()))
    if not len(held_out) or len(train.labels.unique()) < 2:
        log.warning("%s: no probes, because train.dataset has too few images of the samples' classes", space.name)
        return None
    generated, images = (Labelled(match.pooled[kind][labelled], labels[labelled]) for kind in ("generated", "ceiling"))
    tests = {"held_out": held_out, "generated": generated, "generated_images": images}
    counts = {
        "num_train": len(train), "num_held_out": len(held_out), "num_classes": len(classes),
        "num_samples": len(generated),
    }  # fmt: skip
    floors = {question: chance(generated.labels) for question in NOTES} | {"from_generated": chance(held_out.labels)}
    conditions = {"counts": counts, "k": num_neighbours(train.labels), "floors": floors, "held_out": which}
    return probe_both_ways(train, generated, tests) | conditions


def _means(maps: dict[str, Tensor]) -> dict[str, Any]:
    return {kind: None if tensor.isnan().all() else float(tensor.nanmean()) for kind, tensor in maps.items()}


def _averaged(sets: list[dict]) -> dict:
    """Return the mean of each entry over seeds, None if a seed lacks it."""
    columns = {key: [one[key] for one in sets] for key in sets[0]}
    return {key: None if None in values else statistics.fmean(values) for key, values in columns.items()}


def _fraction(value: float, floor: float | None, ceiling: float) -> float | None:
    """Return (value - floor) / (ceiling - floor); None if it is undefined."""
    return None if floor is None or ceiling - floor <= 1e-6 else (value - floor) / (ceiling - floor)
