"""Metrics of the generated representation: is it that of the generated image, and what can be told from it?

The question that the paper leaves open; docs/representations.md has the definitions.
"""

import itertools
import logging
import statistics
from collections.abc import Sequence

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
    """Entries of `metrics.json` about the generated representations; none for a model of images alone, or where
    images or x were not kept.

    For each representation: `representation_agreement`, and where there are two classes or more, for a linear probe
    and nearest neighbours `<probe>_generated`, `<probe>_generated_images` and `<probe>_from_generated` (see NOTES).

    Args:
        trained: an opened run (`redi.load`).
        samples: `redi.evaluation.samples.stored.Samples`.
        dataset: the training images.
        reference: held-out images of the same classes. Where it is no such data set, training images that the probes
            have not seen stand in for it.
        max_images: of each seed's samples, and at most as many real ones to learn from and to be asked about.
        seed: of which images these are, and of the shuffles.

    Raises ValueError for fewer than two samples of a seed, and for NaN or infinite values.
    """
    if not (names := trained.codec.channels.representations):
        return []
    real = RealFeatures(dataset, reference, seed=seed, batch_size=batch_size)
    spaces: dict[str, EncoderSpace] = {}
    measured = {name: [] for name in names}  # of each seed: Agreement, the share off the grid, accuracies
    for group in samples.sets:
        count = group["stop"] - group["start"]
        if count < 2 or max_images < 2:
            raise ValueError(
                f"the generated representation is compared with that of another image, and seed {group['seed']} has "
                f"{count} samples, of which at most {max_images} are looked at: raise sample.num_images or "
                "representation_metrics.max_images"
            )
        drawn = samples.take(group["start"] + sample_positions(count, max_images, seed))
        if drawn.images is None or drawn.x is None:
            log.warning("the generated representation is not measured: sample.keep left out images or x")
            return []
        if not drawn.x.isfinite().all():
            raise ValueError("the samples' x holds NaN or infinite values: the representation cannot be measured")
        labels = torch.where(drawn.labels < dataset.num_classes, drawn.labels, -1)  # the null label is no class
        labels = labels if dataset.num_classes > 1 else torch.full_like(labels, -1)
        for name in names:
            space = spaces[name] = EncoderSpace(trained.codec, name, drawn.images[:1])
            z = trained.codec.channels.split(drawn.x)[name]
            agreed = agreement(space, drawn.images, z, labels, seed=seed, batch_size=batch_size)
            measured[name].append((agreed, float(space.off_grid(z).mean()), _probed(agreed, labels, real, space)))
    entries = []
    for name, sets in measured.items():
        agreements, off_grid, probed = zip(*sets, strict=True)
        entries += [_agreement_entry(spaces[name], agreements, off_grid), *_probe_entries(name, probed)]
    return entries


class RealFeatures:
    """Features of real images, through the reducer and back, averaged over tokens: for each question encoded once."""

    def __init__(self, dataset: Dataset, reference, *, seed: int, batch_size: int):
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        comparable = isinstance(reference, Dataset) and reference.class_names == dataset.class_names
        self.reference = reference if comparable else None
        self.encoded: dict[tuple, tuple[Labelled, Labelled, str]] = {}

    def of(self, space: EncoderSpace, classes: Tensor, count: int) -> tuple[Labelled, Labelled, str]:
        """-> at most so many images of these classes to learn from, others to be asked about, what the others are."""
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
    where = "encoder space" if space.inverts else "the reduced space, because this reducer has no inverse"
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
        "note": f"cosine of centred features per token in {where}, between what was drawn and the encoder's features "
        "of the generated image; floor: what was drawn with another image; same_class: with another of its class; "
        "ceiling: the encoder's features through the joint state and back; raw: not centred; "
        "off_grid: the share of what was drawn that no resized map holds, and that is left out",
    }  # fmt: skip


NOTES = {
    "generated": "trained on real images' features, asked for the label that generated features were drawn with",
    "generated_images": "trained on real images' features, asked for the label by the encoder's features of the "
    "generated images",
    "from_generated": "trained on generated features, asked about held-out real images",
}


def _probe_entries(name: str, sets: Sequence[dict | None]) -> list[dict]:
    if None in sets:
        return []
    conditions, entries = sets[0], []
    for probe, (question, note) in itertools.product(PROBES, NOTES.items()):
        means, floor = _averaged([accuracies[probe] for accuracies in sets]), conditions["floors"][question]
        entries.append({
            "metric": f"{probe}_{question}_{name}",
            **over_seeds([accuracies[probe][question] for accuracies in sets], "higher"),
            "floor": floor,
            "ceiling": means["held_out"],
            "fraction": _fraction(means[question], floor, means["held_out"]),
            **conditions["counts"],
            **({"k": conditions["k"]} if probe == "knn" else {}),
            "note": f"{note}; features averaged over tokens, all through the reducer and back; ceiling: "
            f"trained on real images, asked about {conditions['held_out']}; floor: the most frequent label",
        })  # fmt: skip
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
    counts = {
        "num_train": len(train), "num_held_out": len(held_out), "num_classes": len(classes),
        "num_samples": len(generated),
    }  # fmt: skip
    floors = {question: chance(generated.labels) for question in NOTES} | {"from_generated": chance(held_out.labels)}
    conditions = {"counts": counts, "k": num_neighbours(train.labels), "floors": floors, "held_out": which}
    return probe_both_ways(train, generated, tests) | conditions


def _means(maps: dict[str, Tensor]) -> dict[str, float | None]:
    return {kind: None if tensor.isnan().all() else float(tensor.nanmean()) for kind, tensor in maps.items()}


def _averaged(sets: list[dict]) -> dict:
    """The mean of each entry over seeds; None where some seed has none."""
    columns = {key: [one[key] for one in sets] for key in sets[0]}
    return {key: None if None in values else statistics.fmean(values) for key, values in columns.items()}


def _fraction(value: float, floor: float | None, ceiling: float) -> float | None:
    """Where between floor and ceiling; None where these are the same, or there is no floor."""
    return None if floor is None or ceiling - floor <= 1e-6 else (value - floor) / (ceiling - floor)
