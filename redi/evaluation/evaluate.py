"""The evaluate stage: samples against held-out images, in the feature space of an independent network."""

from pathlib import Path

import torch
from torch import Tensor

from redi.core.artefact import write_json
from redi.core.device import choose_device
from redi.core.generation import Generated
from redi.core.registry import configurable
from redi.data.datasets import Dataset, datasets
from redi.data.preparation import cache_folder, fit_or_restore
from redi.evaluation.frechet import Gaussian, frechet_distance
from redi.evaluation.sampling import load_samples
from redi.models.encoders import encoders
from redi.models.encoders.domain import DomainEncoder


@configurable(runtime=("run_dir", "dataset"))
def evaluate(
    run_dir: str | Path,
    *,
    dataset: Dataset,
    reference: Dataset | None = None,
    network: DomainEncoder | None = None,
    cache_dir: str | Path | None = None,
    max_images: int = 10_000,
) -> list[dict]:
    """Writes `run_dir/metrics.json`: a list of metrics, each with the record of how its samples were drawn.

    Args:
        dataset: the training images; the network is trained on them and the floor is measured with them.
        reference: held-out images of the same classes; default: the training images, and then there is no floor.
        network: independent of the generator: never seen by it, with a seed (and better a shape) of its own.
            Its distance is comparable only to distances in the same network; it is not an FID.
        max_images: at most so many images on each side of a distance.
    """
    network = DomainEncoder(width=48, depth=3, seed=1) if network is None else network
    check_evaluation(dataset, reference, network)
    samples = load_samples(run_dir)
    network.to(choose_device("auto"))
    key = {"fit": network.fit_settings(), "dataset": dataset.fingerprint()}
    fit_or_restore(cache_folder(cache_dir) / "encoders", network, key, lambda: network.fit(dataset))

    conditions = samples.record | {
        "network": network.provenance() | {"trained_on": dataset.provenance()},
        "reference": (reference or dataset).provenance(),
        "versions": {"torch": torch.__version__},
    }
    metrics = [_distance(samples, dataset, reference, network, max_images) | conditions]
    if network.is_classifier:
        metrics.append(_recognised(samples, reference, network) | conditions)
    write_json(Path(run_dir) / "metrics.json", metrics)
    return metrics


def check_evaluation(dataset: Dataset, reference: Dataset | None, network: DomainEncoder | None) -> None:
    """Raises ValueError for objects of the wrong kind, or a reference whose classes are not those of the data."""
    if network is not None:
        encoders.check(network, "evaluate.network")
        if not isinstance(network, DomainEncoder):
            raise ValueError(f"evaluate.network takes a DomainEncoder, got {type(network).__name__}")
    if reference is not None:
        datasets.check(reference, "evaluate.reference")
        if len(reference) < 2:
            raise ValueError(
                f"evaluate.reference holds {len(reference)} images, and a distance needs two: raise "
                f"{type(reference).__name__}.held_out_fraction in both scopes, or bind other images"
            )
        if reference.provenance() == dataset.provenance() and (both := set(reference.names) & set(dataset.names)):
            raise ValueError(
                f"evaluate.reference shares {len(both)} images with the training data ({sorted(both)[0]}, ...): give "
                "both the same held_out_fraction and split_seed, and the splits 'train' and 'held_out'"
            )
        if reference.class_names != dataset.class_names:
            raise ValueError(
                f"evaluate.reference has the classes {', '.join(reference.class_names[:10])}; "
                f"the training data have {', '.join(dataset.class_names[:10])}: the labels would not mean the same"
            )


def describe(metrics: list[dict]) -> str:
    """The lines that programs print."""
    lines = []
    for metric in metrics:
        beside = [key for key in ("floor", "times_floor", "held_out_accuracy") if key in metric]
        extra = ", ".join(f"{key} {metric[key]:.3g}" for key in beside)
        lines.append(f"{metric['metric']}: {metric['value']:.4g}" + (f"  ({extra})" if extra else ""))
    return "\n".join(lines)


def _distance(samples: Generated, dataset: Dataset, reference: Dataset | None, network, max_images: int) -> dict:
    count = min(len(samples.images), max_images)
    size = min(len(reference or dataset), max_images)
    against = Gaussian.of(_features(network, reference or dataset, size))
    distance = frechet_distance(Gaussian.of(_pooled(network, samples.images[:count])), against)
    metric = {"metric": "frechet_distance_domain_network", "value": distance, "num_samples": count}
    metric["num_reference"] = size
    if reference is not None:
        # As many training images as samples: the distance of finite sets depends on their size.
        floor = frechet_distance(Gaussian.of(_features(network, dataset, count)), against)
        metric |= {"floor": floor, "times_floor": distance / floor, "num_floor": min(count, len(dataset))}
    return metric


def _recognised(samples: Generated, reference: Dataset | None, network) -> dict:
    labels = samples.labels.clone()
    answers = torch.cat([network.logits(part).argmax(dim=1).cpu() for part in samples.images.split(256)])
    metric = {"metric": "recognised_as_label", "value": float((answers == labels).float().mean())}
    metric["num_samples"] = len(labels)
    metric["per_class"] = {int(c): float((answers == c)[labels == c].float().mean()) for c in labels.unique()}
    if reference is not None:
        right = 0
        for start in range(0, len(reference), 256):
            batch = reference.batch(range(start, min(start + 256, len(reference))))
            right += int((network.logits(batch["images"]).argmax(dim=1).cpu() == batch["labels"]).sum())
        metric["held_out_accuracy"] = right / len(reference)
    return metric


def _features(network: DomainEncoder, dataset: Dataset, count: int) -> Tensor:
    positions = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count].tolist()
    parts = [positions[start : start + 256] for start in range(0, len(positions), 256)]
    return torch.cat([network.pooled(dataset.batch(part)["images"]).cpu() for part in parts])


def _pooled(network: DomainEncoder, images: Tensor) -> Tensor:
    return torch.cat([network.pooled(part).cpu() for part in images.split(256)])
