"""The evaluate stage: compare samples with reference images in the features of one or more networks."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from redi.core.registry import configurable
from redi.data.cache.fits import fit_encoder
from redi.data.datasets import Dataset
from redi.evaluation.checking import check_evaluation, check_size
from redi.evaluation.measures import FLOORED, METRICS, Comparison, first_rows, measure
from redi.evaluation.metrics.self_test import check_direction
from redi.evaluation.reconstruction import check_reconstruction, reconstruction_metrics
from redi.evaluation.records import conditions, network_record, reference_record
from redi.evaluation.references import reference_features, reference_positions
from redi.evaluation.representation.agreement import representation_metrics
from redi.evaluation.representation.picture import components_picture, representation_picture
from redi.evaluation.samples.feature_store import sample_features
from redi.evaluation.samples.stored import Samples, load_samples
from redi.evaluation.stored_statistics import StoredStatistics, images_of
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder
from redi.runtime.artefact import write_json
from redi.runtime.checkpoint import list_checkpoints, step_of
from redi.runtime.checksums import sealed
from redi.runtime.device import choose_device
from redi.runtime.distributed import process_rank
from redi.runtime.paths import cache_folder, local_path

log = logging.getLogger(__name__)

ALL = tuple(METRICS)


@configurable(runtime=("run_dir", "dataset", "trained", "device", "rank", "world_size"), entry=True)
def evaluate(
    run_dir: str | Path,
    *,
    dataset: Dataset | None,
    trained=None,
    reference: Dataset | StoredStatistics | None = None,
    networks: Sequence[Encoder] | None = None,
    metrics: Sequence[str] = ALL,
    representation: Callable[..., list[dict]] | None = representation_metrics,
    reconstruction: bool = False,
    max_images: int | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> list[dict]:
    """Write `run_dir/metrics.json` and return its entries, each with every setting that affects it (see `records`).

    Every metric is computed in every network that supports it. With several sampling seeds, a value is the mean over
    seeds. Ranks above 0 share the work and return no entries.

    Args:
        dataset: the training images. Networks that learn from data are trained on them. The floor is the distance of
            as many training images as there are samples. None: no floor, and `reference` must be bound.
        trained: an opened run (`redi.load`), for the metrics of the generated representation and of the autoencoder.
        reference: held-out images of the same classes, or stored statistics. Default: the training images, without a
            floor.
        networks: encoders to measure in, which must not be used by the generator. Default: a DomainEncoder, trained on
            the training images. Its distance is not FID; compare it only with distances in the same network.
        reconstruction: also measure the autoencoder alone (`reconstruction_metrics`). In the programs, it is measured
            before the first training step too.
        max_images: maximum number of images of each seed, and of the reference; default: all.
        device: default: the GPU if there is one.
        rank, world_size: default: those of torchrun or Slurm, else one process.

    Raises ValueError: there are no samples; sizes, classes, networks or stored statistics do not match; weights cannot
    be found; or features are not finite.
    """
    networks = [DomainEncoder(width=48, depth=3, seed=1)] if networks is None else list(networks)
    check_evaluation(dataset, reference, networks, metrics, max_images)
    if reconstruction:
        check_reconstruction(reference, networks)
        if trained is None:
            raise ValueError("evaluate.reconstruction = True needs the autoencoder: pass trained=redi.load(run_dir)")
    check_direction()
    device = choose_device("auto") if device is None else device
    run_dir = local_path(run_dir)
    samples = load_samples(run_dir)
    check_size(samples.record["image_size"], reference)
    rank, world_size = process_rank(rank, world_size)
    warnings = _outdated(run_dir, samples, trained)
    prepare_networks(networks, dataset, cache_dir, device)
    settings = {"cache_dir": cache_dir, "rank": rank, "world_size": world_size}
    entries: list[dict] = []
    floors = bool({*FLOORED} & {*metrics})
    for network in networks:
        comparison = _compare(network, samples, dataset, reference, max_images, settings, floors)
        comparison.warnings, comparison.device = warnings, device
        if rank == 0:
            entries += measure(comparison, [name for name in METRICS if name in metrics])
    if reconstruction:
        entries += reconstruction_metrics(
            trained.codec, reference, networks, dataset=dataset, samples=samples.record, max_images=max_images,
            cache_dir=cache_dir, rank=rank, world_size=world_size,
        )  # fmt: skip
    if rank > 0:
        return []
    if representation is not None and trained is not None:
        entries += _of_representation(representation, trained, samples, dataset, reference, warnings)
    entries = [sealed(entry) for entry in entries]
    write_json(run_dir / "metrics.json", entries)
    return entries


def prepare_networks(
    networks: Sequence[Encoder], dataset: Dataset | None, cache_dir: str | Path | None = None,
    device: torch.device | None = None,
) -> None:  # fmt: skip
    """Move networks to the device; fit or restore those that learn from data, and load the weights of the others.

    Raises ValueError if weights cannot be found; the message says where to get them.
    """
    for network in networks:
        network.to(choose_device("auto") if device is None else device)
        if network.learns_from_data:
            assert dataset is not None  # see check_evaluation
            fit_encoder(cache_folder(cache_dir) / "encoders", network, dataset)
        else:
            network.load()


def _compare(network, samples: Samples, dataset, reference, max_images, settings: dict, floors: bool) -> Comparison:
    """Compute the features of samples and reference in one network. `settings`: cache_dir, rank and world_size."""
    ranks = settings["rank"], settings["world_size"]
    sets = [first_rows(one, max_images) for one in sample_features(samples.folder.parent, samples, network, *ranks)]
    labels = [samples.labels[part["start"] : part["stop"]][: len(sets[0])] for part in samples.sets]
    images = dataset if reference is None else images_of(reference)
    fits = isinstance(reference, StoredStatistics) and reference.fits(network)
    source = reference_record(reference if fits or images is None else images)
    comparison = Comparison(
        network, sets, labels, statistics=reference.gaussians if fits else {},
        reference=reference_features(images, network, max_images=max_images, **settings) if images else None,
        conditions=conditions(samples.record, network_record(network, dataset), source),
        images_record=reference_record(images) if fits and images is not None else None,
    )  # fmt: skip
    if reference is not None and images is not None and dataset is not None:
        if floors and not fits:
            # Distances of finite sets depend on their size: use N training images for N samples. Stored statistics have
            # no floor, because most are those of the training images themselves.
            comparison.training = reference_features(dataset, network, max_images=len(sets[0]), **settings)
        if images.class_names == dataset.class_names:
            comparison.reference_labels = torch.from_numpy(images.labels)[reference_positions(images, max_images)]
    return comparison


def _of_representation(representation, trained, samples: Samples, dataset, reference, warnings) -> list[dict]:
    """Return the entries about the generated representation, with the same fields as the others."""
    images, codec = images_of(reference), trained.codec
    if dataset is None:
        log.warning("the generated representation is not measured, because this needs the training images")
        return []
    if not (entries := representation(trained, samples, dataset, images)):
        return []
    representation_picture(trained, samples, dataset).save(samples.folder.parent / "representation.png")
    if (learned := components_picture(codec, dataset)) is not None:
        learned.save(samples.folder.parent / "components.png")
    network = codec.provenance() | {"sha256": codec.fingerprint()}
    common = conditions(samples.record, network, reference_record(images or dataset))
    common |= {"warnings": list(warnings)} if warnings else {}
    return [{**entry, "num_reference": entry.get("num_held_out"), **common} for entry in entries]


def _outdated(run_dir, samples: Samples, trained) -> list[str]:
    newest = trained.step if trained is not None else None
    if newest is None and (checkpoints := list_checkpoints(run_dir)):
        newest = step_of(checkpoints[-1])
    sampled = samples.record.get("checkpoint_step")
    if newest is None or sampled is None or sampled >= newest:
        return []
    warning = f"the samples are of step {sampled}, but the newest checkpoint is of step {newest}: sample again"
    log.warning("%s", warning)
    return [warning]
