"""Metrics of the generated representation: is it that of the generated image, and what can be told from it?

The question that the paper leaves open; docs/representations.md has the definitions.
"""

import logging
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redi.core.registry import configurable
from redi.data.cache.fits import sample_positions
from redi.data.datasets import Dataset
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
    """Entries of `metrics.json` about the generated representations; none for a model of images alone, or where
    images or x were not kept.

    For each representation: `representation_agreement`, and where there are two classes or more, for a linear probe
    and nearest neighbours: `<probe>_generated` (trained on real images' features, asked about generated features),
    `<probe>_generated_images` (asked about the encoder's features of the generated images) and
    `<probe>_from_generated` (trained on generated features, asked about held-out real ones).

    Args:
        trained: an opened run (`redi.load`).
        samples: `redi.evaluation.samples.stored.Samples`.
        dataset: the training images.
        reference: held-out images of the same classes. Where it is no such data set, training images that the probes
            have not seen stand in for it.
        max_images: of each seed's samples, and at most as many real ones to learn from and to be asked about.
        seed: of which images these are, and of the shuffles.

    Raises:
        ValueError: fewer than two samples of a seed, or samples that hold NaN or infinite values.
    """
    if not (names := trained.codec.channels.representations):
        return []
    real = RealFeatures(dataset, reference, seed=seed, batch_size=batch_size)
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for group in samples.sets:
        drawn = samples.take(_positions(group, max_images, seed))
        if drawn.images is None or drawn.x is None:
            log.warning("the generated representation is not measured: sample.keep left out images or x")
            return []
        if not drawn.x.isfinite().all():
            raise ValueError("the samples' x holds NaN or infinite values: the representation cannot be measured")
        labels = torch.where(drawn.labels < dataset.num_classes, drawn.labels, -1)  # the null label is no class
        labels = labels if dataset.num_classes > 1 else torch.full_like(labels, -1)
        for name in names:
            space = EncoderSpace(trained.codec, name, drawn.images[:1])
            z = trained.codec.channels.split(drawn.x)[name]
            agreed = agreement(space, drawn.images, z, labels, seed=seed, batch_size=batch_size)
            off_grid = float(space.off_grid(z).mean())
            found[name].append(Measured(space, agreed, off_grid, _probed(agreed, labels, real, space)))
    return [
        entry for name, sets in found.items() for entry in (_agreement_entry(name, sets), *_probe_entries(name, sets))
    ]


@dataclass
class Measured:
    """Of one representation of one seed's samples."""

    space: EncoderSpace
    agreed: Agreement
    off_grid: float  # see EncoderSpace.off_grid
    probed: dict | None  # {probe: {question: accuracy}, "conditions": ...}; None without two classes


class RealFeatures:
    """Features of real images, through the reducer and back, averaged over tokens: for each question encoded once."""

    def __init__(self, dataset: Dataset, reference, *, seed: int, batch_size: int):
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        comparable = isinstance(reference, Dataset) and reference.class_names == dataset.class_names
        self.reference = reference if comparable else None
        self.known: dict[tuple, tuple[Labelled, Labelled, str]] = {}

    def of(self, space: EncoderSpace, classes: Tensor, count: int) -> tuple[Labelled, Labelled, str]:
        """-> at most so many images of these classes to learn from, others to be asked about, what the others are."""
        key = space.name, tuple(classes.tolist()), count
        if key not in self.known:
            self.known[key] = self._encoded(space, classes, count)
        return self.known[key]

    def _encoded(self, space: EncoderSpace, classes: Tensor, count: int) -> tuple[Labelled, Labelled, str]:
        if self.reference is not None and len(held_out := self._chosen(self.reference, classes, count)):
            train = self._chosen(self.dataset, classes, count)
            return (
                self._pooled(space, self.dataset, train),
                self._pooled(space, self.reference, held_out),
                "held-out images",
            )
        both = np.random.default_rng(self.seed).permutation(self._chosen(self.dataset, classes, 2 * count))
        halves = (self._pooled(space, self.dataset, half) for half in np.array_split(both, 2))
        return *halves, "training images that the probe has not seen"

    def _chosen(self, source: Dataset, classes: Tensor, most: int) -> np.ndarray:
        members = np.flatnonzero(np.isin(source.labels, classes.numpy()))
        return members[sample_positions(len(members), most, self.seed)]

    def _pooled(self, space: EncoderSpace, source: Dataset, positions: np.ndarray) -> Labelled:
        features, labels = [torch.empty(0, len(space.mean))], [torch.empty(0, dtype=torch.int64)]
        for start in range(0, len(positions), self.batch_size):
            batch = source.batch(positions[start : start + self.batch_size].tolist())
            features.append(space.features_of(space.encode(batch["images"])[1]).mean(dim=(2, 3)).cpu())
            labels.append(batch["labels"])
        return Labelled(torch.cat(features), torch.cat(labels))


def _positions(group: dict, max_images: int, seed: int) -> list[int]:
    count = group["stop"] - group["start"]
    if count < 2 or max_images < 2:
        raise ValueError(
            f"the generated representation is compared with that of another image, and seed {group['seed']} has "
            f"{count} samples, of which at most {max_images} are looked at: raise sample.num_images or "
            "representation_metrics.max_images"
        )
    return (group["start"] + sample_positions(count, max_images, seed)).tolist()


def _agreement_entry(name: str, sets: list[Measured]) -> dict:
    space = sets[0].space
    centred = [_means(one.agreed.centred) for one in sets]
    raw = _averaged([_means(one.agreed.raw) for one in sets])
    per_image = torch.stack([one.agreed.centred["generated"].mean(dim=(1, 2)) for one in sets])
    means = _averaged(centred)
    per_token = torch.cat([one.agreed.centred["generated"] for one in sets]).mean(dim=0)
    where = "encoder space" if space.inverts else "the reduced space, for this reducer has no inverse"
    return {
        "metric": f"representation_agreement_{name}",
        **_over_seeds([m["generated"] for m in centred]),
        "standard_error": float(per_image.std() / per_image.numel() ** 0.5),
        "floor": means["floor"],
        "ceiling": means["ceiling"],
        "fraction": _fraction(means["generated"], means["floor"], means["ceiling"]),
        "same_class": means["same_class"],
        "fraction_within_class": _fraction(means["generated"], means["same_class"], means["ceiling"]),
        "raw": {"value": raw.pop("generated"), **raw},
        "per_token": [[round(value, 4) for value in row] for row in per_token.tolist()],
        "off_grid": statistics.fmean(one.off_grid for one in sets),
        "space": "encoder" if space.inverts else "reduced",
        "num_samples": per_image.shape[1],
        "note": f"cosine of centred features per token in {where}, between what was drawn and the encoder's features "
        "of the generated image; floor: what was drawn with another image; same_class: with another of its class; "
        "ceiling: the encoder's features through the joint state and back; raw: not centred; "
        "off_grid: the share of what was drawn that no resized map holds, and that is left out",
    }  # fmt: skip


def _probe_entries(name: str, sets: list[Measured]) -> list[dict]:
    probed = [one.probed for one in sets if one.probed is not None]
    if len(probed) < len(sets):
        return []
    conditions = probed[0]["conditions"]
    notes = {
        "generated": "trained on real images' features, asked for the label that generated features were drawn with",
        "generated_images": "trained on real images' features, asked for the label by the encoder's features of the "
        "generated images",
        "from_generated": "trained on generated features, asked about held-out real images",
    }
    entries = []
    for probe in PROBES:
        for question, note in notes.items():
            means = _averaged([answers[probe] for answers in probed])
            floor = conditions["chance_held_out" if question == "from_generated" else "chance"]
            entries.append(
                {
                    "metric": f"{probe}_{question}_{name}",
                    **_over_seeds([answers[probe][question] for answers in probed]),
                    "floor": floor,
                    "ceiling": means["held_out"],
                    "fraction": _fraction(means[question], floor, means["held_out"]),
                    **{key: conditions[key] for key in ("num_train", "num_held_out", "num_classes")},
                    **({"k": conditions["k"]} if probe == "knn" else {}),
                    "num_samples": conditions["num_samples"],
                    "note": f"{note}; features averaged over tokens, all through the reducer and back; ceiling: "
                    f"trained on real images, asked about {conditions['held_out']}; floor: the most frequent label",
                }
            )
    return entries


def _probed(agreed: Agreement, labels: Tensor, real: RealFeatures, space: EncoderSpace) -> dict | None:
    """Accuracies of both probes, and what they were trained on; None where there are no two classes."""
    known = labels >= 0
    if len(classes := labels[known].unique()) < 2:
        return None
    train, held_out, which = real.of(space, classes, int(known.sum()))
    if not len(held_out) or len(train.labels.unique()) < 2:
        log.warning("%s: too few real images of the samples' classes for probes", space.name)
        return None
    generated, images = (Labelled(agreed.pooled[kind][known], labels[known]) for kind in ("generated", "ceiling"))
    tests = {"held_out": held_out, "generated": generated, "generated_images": images}
    conditions = {
        "num_train": len(train),
        "num_held_out": len(held_out),
        "num_samples": len(generated),
        "num_classes": len(classes),
        "k": num_neighbours(train.labels),
        "chance": chance(generated.labels),
        "chance_held_out": chance(held_out.labels),
        "held_out": which,
    }
    return probe_both_ways(train, generated, tests) | {"conditions": conditions}


def _means(maps: dict[str, Tensor]) -> dict[str, float | None]:
    means = {kind: float(tensor.nanmean()) for kind, tensor in maps.items()}
    return {kind: mean if np.isfinite(mean) else None for kind, mean in means.items()}


def _averaged(found: list[dict]) -> dict:
    """The mean of each entry over seeds; None where some seed has none."""
    columns = {key: [one[key] for one in found] for key in found[0]}
    return {key: None if None in values else statistics.fmean(values) for key, values in columns.items()}


def _over_seeds(values: list[float]) -> dict:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "better": "higher", "per_seed": values, "spread": spread}


def _fraction(value: float, floor: float | None, ceiling: float) -> float | None:
    """Where between floor and ceiling; None where these are the same, or there is no floor."""
    if floor is None:
        return None
    return (value - floor) / (ceiling - floor) if ceiling - floor > 1e-6 else None
