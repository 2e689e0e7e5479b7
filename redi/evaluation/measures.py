"""All metrics of some samples in the features of one network."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from redi.evaluation.metrics.features import Features, rows
from redi.evaluation.metrics.frechet import Gaussian, finite_sample_error, frechet_distance
from redi.evaluation.metrics.inception_score import inception_score
from redi.evaluation.metrics.kernel import kernel_distance
from redi.evaluation.metrics.precision_recall import precision_recall
from redi.evaluation.records import entry
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder

log = logging.getLogger(__name__)

K, MOST = 3, 50_000  # of precision and recall: the neighbour, and images on each side at most (arXiv 1904.06991)
SPLITS = 10  # of the Inception Score (ADM)
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, at most (clean-fid)
NO_IMAGES = "it needs the reference's images"
EQUAL_LABELS = (
    "every class has the same number of samples: on ImageNet this lowers FID by about 0.1 against labels drawn "
    "with the data set's frequencies (sample.labels = 'dataset')"
)


@dataclass
class Comparison:
    """What is measured in one network.

    Attributes:
        samples, labels: of every set of samples (one per seed) the features, and (N,) what each is of.
        reference: of the reference's images, where there are images.
        reference_labels: where they mean what the samples' labels mean.
        statistics: {"pooled": ..., "spatial": ...} that were stored; they go before the reference's features.
        training: of as many training images as there are samples in a set, for the floor.
        images_record: of the reference's images, where the reference in `conditions` is the statistics.
        device: where distances between images are computed.
    """

    network: Encoder
    samples: Sequence[Features]
    labels: Sequence[Tensor]
    reference: Features | None
    conditions: Mapping
    reference_labels: Tensor | None = None
    statistics: Mapping[str, Gaussian] = field(default_factory=dict)
    training: Features | None = None
    images_record: Mapping | None = None
    warnings: Sequence[str] = ()
    device: torch.device | str = "cpu"

    def gaussian(self, kind: str) -> Gaussian | None:
        """Of the reference: stored, or of its features."""
        if kind in self.statistics or self.reference is None:
            return self.statistics.get(kind)
        return Gaussian.of(rows(self.reference, "reference", kind))

    @cached_property
    def neighbours(self) -> list[dict]:
        """Precision and recall of every set."""
        reference, device = some(self.reference, MOST), self.device
        sets = [some(samples, MOST) for samples in self.samples]
        return [precision_recall(samples=samples, reference=reference, k=K, device=device) for samples in sets]


def measure(comparison: Comparison, metrics: Sequence[str]) -> list[dict]:
    """The entries of metrics.json for all of `metrics` that this network and reference allow; warns of the rest."""
    entries, left_out = [], []
    for metric in metrics:
        better, function = METRICS[metric]
        result = function(comparison)
        if isinstance(result, str):
            left_out.append(f"{metric} ({result})")
        elif result is not None:
            entries.append(_entry(metric, better, comparison, *result))
    if left_out:
        note = f"left out in these features: {', '.join(left_out)}"
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
        conditions["reference"] = comparison.images_record  # images were looked at, not the statistics beside them
    record = entry(
        name, sets, better=better, num_samples=num_samples, num_reference=num_reference, conditions=conditions,
        warnings=[*comparison.warnings, *warnings],
    )  # fmt: skip
    if name.startswith("fid_") and comparison.conditions["samples"].get("labels") == "equal":
        record["note"] = EQUAL_LABELS
    return record


def _frechet(comparison: Comparison, kind: str):
    """-> per set: value, finite-sample error, floor; the reference's size; warnings."""
    if kind not in comparison.samples[0].tensors:
        return None
    if (reference := comparison.gaussian(kind)) is None:
        return "the stored statistics are of another network" if kind == "pooled" else "no stored spatial statistics"
    sets, warnings, floor = [], [], {}
    if (training := comparison.training) is not None:
        distance = frechet_distance(Gaussian.of(training.tensors[kind]), reference)
        floor = {"floor": distance, "num_floor": len(training)}
    for samples in comparison.samples:
        error = finite_sample_error(samples, reference, name=kind)
        warnings += [warning for warning in error.pop("warnings", ()) if warning not in warnings]
        sets.append({"value": frechet_distance(samples, reference, name=kind)} | error | floor)
    return sets, None if kind in comparison.statistics else len(comparison.reference), warnings


def _kernel(comparison: Comparison):
    if comparison.reference is None:
        return NO_IMAGES
    reference, size = comparison.reference, min(len(comparison.samples[0]), len(comparison.reference), SUBSET_SIZE)
    settings = {"reference": reference, "num_subsets": SUBSETS, "max_subset_size": size}
    values = [kernel_distance(samples=one, **settings)["kernel_distance"] for one in comparison.samples]
    return [{"value": one, "num_subsets": SUBSETS, "subset_size": size} for one in values], len(reference)


def _inception_score(comparison: Comparison):
    if "logits" not in comparison.samples[0].tensors:
        return None
    if len(comparison.samples[0]) < SPLITS:
        return f"it takes {SPLITS} samples"
    sets = [inception_score(samples, SPLITS) for samples in comparison.samples]
    return [{"value": one.mean, "std_over_splits": one.std, "num_splits": SPLITS} for one in sets], None


def _neighbours(comparison: Comparison, which: str):
    if comparison.reference is None:
        return NO_IMAGES
    if min(len(comparison.samples[0]), len(comparison.reference)) <= K:
        return f"it takes more than {K} images on each side"
    settings = {"k": K, "num_samples": min(len(comparison.samples[0]), MOST)}
    return [{"value": one[which]} | settings for one in comparison.neighbours], min(len(comparison.reference), MOST)


def _recognised(comparison: Comparison):
    """How many samples a classifier takes for what they were drawn as."""
    network = comparison.network
    if not recognises(network):
        return None
    if all(bool((labels >= network.head.out_features).all()) for labels in comparison.labels):
        return "samples of the null label have none"
    sets, accuracy, num_reference = [], {}, None
    for samples, labels in zip(comparison.samples, comparison.labels, strict=True):
        right = answers(network, samples.tensors["pooled"]) == labels
        per_class = {int(label): float(right[labels == label].float().mean()) for label in labels.unique()}
        sets.append({"value": float(right.float().mean()), "per_class": per_class})
    if comparison.reference_labels is not None:
        right = answers(network, comparison.reference.tensors["pooled"]) == comparison.reference_labels
        accuracy, num_reference = {"held_out_accuracy": float(right.float().mean())}, len(right)
    return [one | accuracy for one in sets], num_reference


def recognises(network: Encoder) -> bool:
    """Whether it can tell the class of an image."""
    return isinstance(network, DomainEncoder) and network.is_classifier


@torch.no_grad()
def answers(network: DomainEncoder, pooled: Tensor) -> Tensor:
    """Which class a classifier takes each image for, by its features: (N, P) -> (N,)."""
    return network.head(pooled.to(network.trained.device)).argmax(dim=1).cpu()


def first(features: Features, count: int | None) -> Features:
    """The first so many rows, or all."""
    return Features(features.role, {name: tensor[:count] for name, tensor in features.tensors.items()})


def some(features: Features, count: int) -> Features:
    """So many rows, drawn from a fixed seed, in their order: the first of a folder's images are of few classes."""
    if count >= len(features):
        return features
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return Features(features.role, {"pooled": features.tensors["pooled"][chosen]})


# What can be asked for, which way is better, and what computes it: -> None where the network lacks what it needs, the
# reason where the reference does, else what every set gave, the number of reference images, and warnings.
METRICS: dict[str, tuple[str, Callable]] = {
    "frechet_distance": ("lower", partial(_frechet, kind="pooled")),
    "spatial_frechet_distance": ("lower", partial(_frechet, kind="spatial")),
    "kernel_distance": ("lower", _kernel),
    "inception_score": ("higher", _inception_score),
    "precision": ("higher", partial(_neighbours, which="precision")),
    "recall": ("higher", partial(_neighbours, which="recall")),
    "recognised_as_label": ("higher", _recognised),
}
FLOORED = ("frechet_distance", "spatial_frechet_distance")  # which look at training images too
