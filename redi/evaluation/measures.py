"""Compute all metrics of a set of samples in the features of one network."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from redi.evaluation.metrics.features import Features, rows
from redi.evaluation.metrics.frechet import Gaussian, finite_sample_error, frechet_distance
from redi.evaluation.metrics.inception_score import inception_score
from redi.evaluation.metrics.kernel import kernel_distance
from redi.evaluation.metrics.precision_recall import precision_recall
from redi.evaluation.records import entry
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder

log = logging.getLogger(__name__)

K, MOST = 3, 50_000  # precision and recall: number of the neighbour, maximum images per side (arXiv 1904.06991)
SPLITS = 10  # Inception Score (ADM)
SUBSETS, SUBSET_SIZE = 100, 1000  # KID: number of subsets, maximum size (clean-fid)
NO_IMAGES = "needs reference images"
EQUAL_LABELS = (
    "every class has the same number of samples: on ImageNet this lowers FID by about 0.1 compared with labels drawn "
    "with the data set's frequencies (sample.labels = 'dataset')"
)


@dataclass
class Comparison:
    """The features that are compared in one network."""

    network: Encoder
    samples: Sequence[Features]  # one set per seed
    labels: Sequence[Tensor]  # (N,) of every set
    reference: Features | None  # if the reference has images
    conditions: Mapping  # see `records.conditions`
    reference_labels: Tensor | None = None  # if the reference has the classes of the samples
    statistics: Mapping[str, Gaussian] = field(default_factory=dict)  # stored ones take precedence over `reference`
    training: Features | None = None  # of N training images, for the floor of N samples
    images_record: Mapping | None = None  # of the reference images, if `conditions` records stored statistics
    warnings: Sequence[str] = ()
    device: torch.device | str = "cpu"  # for distances between images

    def gaussian(self, kind: str) -> Gaussian | None:
        """Return the reference's Gaussian, stored or computed from its features; None if it has neither."""
        if kind in self.statistics or self.reference is None:
            return self.statistics.get(kind)
        return Gaussian.of(rows(self.reference, "reference", kind))

    @cached_property
    def neighbours(self) -> list[dict]:
        """Precision and recall of every set."""
        assert self.reference is not None
        reference, device = random_rows(self.reference, MOST), self.device
        sets = [random_rows(samples, MOST) for samples in self.samples]
        return [precision_recall(samples=samples, reference=reference, k=K, device=device) for samples in sets]


def measure(comparison: Comparison, metrics: Sequence[str]) -> list[dict]:
    """Return the entries of the metrics that the network and the reference support; log the others as a warning."""
    entries: list[dict] = []
    skipped = []
    for metric in metrics:
        better, function = METRICS[metric]
        result = function(comparison)
        if isinstance(result, str):
            skipped.append(f"{metric} ({result})")
        elif result is not None:
            entries.append(_entry(metric, better, comparison, *result))
    if skipped:
        note = f"not measured in these features: {', '.join(skipped)}"
        log.warning("%s: %s", type(comparison.network).__name__, note)
        if entries:
            entries[0]["note"] = "; ".join(filter(None, (entries[0].get("note"), note)))
    return entries


def _entry(metric: str, better: str, comparison: Comparison, sets: list[dict], num_reference, warnings=()) -> dict:
    name = metric if metric == "recognised_as_label" else comparison.network.metric_name(metric)
    for warning in warnings:
        log.warning("%s: %s", name, warning)
    conditions, num_samples = dict(comparison.conditions), sets[0].get("num_samples", len(comparison.samples[0]))
    if num_reference is not None and comparison.images_record is not None:
        conditions["reference"] = comparison.images_record  # the metric compared images, not the stored statistics
    record = entry(
        name, sets, better=better, num_samples=num_samples, num_reference=num_reference, conditions=conditions,
        warnings=[*comparison.warnings, *warnings],
    )  # fmt: skip
    if name.startswith("fid_") and comparison.conditions["samples"].get("labels") == "equal":
        record["note"] = EQUAL_LABELS
    return record


def _frechet(comparison: Comparison, kind: str):
    """Return (entries of every set, number of reference images, warnings), the reason for not measuring, or None."""
    if kind not in comparison.samples[0].tensors:
        return None
    if (reference := comparison.gaussian(kind)) is None:
        return "the stored statistics are from another network" if kind == "pooled" else "no stored spatial statistics"
    sets, warnings = [], []
    floor: dict[str, float] = {}
    if (training := comparison.training) is not None:
        distance = frechet_distance(Gaussian.of(training.tensors[kind]), reference)
        floor = {"floor": distance, "num_floor": len(training)}
    for samples in comparison.samples:
        error = finite_sample_error(samples, reference, name=kind)
        warnings += [warning for warning in error.pop("warnings", ()) if warning not in warnings]
        sets.append({"value": frechet_distance(samples, reference, name=kind)} | error | floor)
    images = None if kind in comparison.statistics else comparison.reference
    return sets, None if images is None else len(images), warnings


def _kernel(comparison: Comparison):
    if comparison.reference is None:
        return NO_IMAGES
    reference, size = comparison.reference, min(len(comparison.samples[0]), len(comparison.reference), SUBSET_SIZE)
    distance = partial(kernel_distance, reference=reference, num_subsets=SUBSETS, max_subset_size=size)
    values = [distance(samples=one)["kernel_distance"] for one in comparison.samples]
    return [{"value": one, "num_subsets": SUBSETS, "subset_size": size} for one in values], len(reference)


def _inception_score(comparison: Comparison):
    if "logits" not in comparison.samples[0].tensors:
        return None
    if len(comparison.samples[0]) < SPLITS:
        return f"needs at least {SPLITS} samples"
    sets = [inception_score(samples, SPLITS) for samples in comparison.samples]
    return [{"value": one.mean, "std_over_splits": one.std, "num_splits": SPLITS} for one in sets], None


def _neighbours(comparison: Comparison, which: str):
    if comparison.reference is None:
        return NO_IMAGES
    if min(len(comparison.samples[0]), len(comparison.reference)) <= K:
        return f"needs more than {K} samples and reference images"
    settings = {"k": K, "num_samples": min(len(comparison.samples[0]), MOST)}
    return [{"value": one[which]} | settings for one in comparison.neighbours], min(len(comparison.reference), MOST)


def _recognised(comparison: Comparison):
    """Measure the share of samples that a classifier assigns to the label they were drawn with."""
    network = comparison.network
    if not recognises(network):
        return None
    assert isinstance(network.head, nn.Linear)
    if all(bool((labels >= network.head.out_features).all()) for labels in comparison.labels):
        return "the samples have the null label"
    sets: list[dict] = []
    accuracy: dict[str, float] = {}
    num_reference = None
    for samples, labels in zip(comparison.samples, comparison.labels, strict=True):
        right = predicted_classes(network, samples.tensors["pooled"]) == labels
        per_class = {int(label): float(right[labels == label].float().mean()) for label in labels.unique()}
        sets.append({"value": float(right.float().mean()), "per_class": per_class})
    if comparison.reference_labels is not None:
        assert comparison.reference is not None
        right = predicted_classes(network, comparison.reference.tensors["pooled"]) == comparison.reference_labels
        accuracy, num_reference = {"held_out_accuracy": float(right.float().mean())}, len(right)
    return [one | accuracy for one in sets], num_reference


def recognises(network: Encoder) -> TypeGuard[DomainEncoder]:
    """Return whether the network is a classifier."""
    return isinstance(network, DomainEncoder) and network.is_classifier


@torch.no_grad()
def predicted_classes(network: DomainEncoder, pooled: Tensor) -> Tensor:
    """Return the class that the classifier predicts from each image's features: (N, P) -> (N,)."""
    return network.head(pooled.to(network.trained.device)).argmax(dim=1).cpu()


def first_rows(features: Features, count: int | None) -> Features:
    """Return the first `count` rows, or all if it is None."""
    return Features(features.role, {name: tensor[:count] for name, tensor in features.tensors.items()})


def random_rows(features: Features, count: int) -> Features:
    """Return `count` random rows in their order, from a fixed seed; the first images of a folder cover few classes."""
    if count >= len(features):
        return features
    positions = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return Features(features.role, {"pooled": features.tensors["pooled"][positions]})


# {metric: (better direction, function)}. The function returns a record of every set, the number of reference images and
# warnings; the reason as a text if samples or reference do not allow the metric; None if the network does not.
METRICS: dict[str, tuple[str, Callable]] = {
    "frechet_distance": ("lower", partial(_frechet, kind="pooled")),
    "spatial_frechet_distance": ("lower", partial(_frechet, kind="spatial")),
    "kernel_distance": ("lower", _kernel),
    "inception_score": ("higher", _inception_score),
    "precision": ("higher", partial(_neighbours, which="precision")),
    "recall": ("higher", partial(_neighbours, which="recall")),
    "recognised_as_label": ("higher", _recognised),
}
FLOORED = ("frechet_distance", "spatial_frechet_distance")  # their floor is measured with training images
