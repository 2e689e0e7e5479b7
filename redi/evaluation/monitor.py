"""Evaluation during training: few samples of the EMA weights, drawn from the same noise every time."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from redi.core.processes import Process
from redi.core.registry import configurable
from redi.data.datasets import Dataset, datasets
from redi.evaluation.checking import check_size
from redi.evaluation.evaluate import prepare_networks
from redi.evaluation.measures import predicted_classes, recognises
from redi.evaluation.metrics.frechet import Gaussian, frechet_distance
from redi.evaluation.references import reference_features
from redi.evaluation.samples.label_schemes import choose_labels
from redi.evaluation.stored_statistics import StoredStatistics, images_of
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder
from redi.models.interface import state_of
from redi.runtime.ranges import check_choice, check_number
from redi.sampling.generate import Generated, generate

log = logging.getLogger(__name__)


@configurable
class Monitor:
    """Measures a model during training, every `train.monitor_every` steps: `train.monitor = @Monitor()`.

    Labels and noise are the same every time, so the curve shows changes of the model. The distance of a finite set
    depends on its size, so every name ends in the number of samples ('frechet_distance_domain_network_of_500'). Compare
    these values only with each other.

    Args:
        networks: encoders to measure in, as in `evaluate`. Those that learn from data learn from the training images.
        reference: images or stored statistics; default: the reference passed to `prepare` (in the programs,
            evaluate.reference).
        num_images: number of samples per measurement.
        labels: 'equal' (the same number of samples for every class), 'random' or 'null' (without a label).
        max_reference: maximum number of reference images.
        generate: draws the samples; a sampler with few steps is sufficient.
    """

    def __init__(
        self,
        *,
        networks: Sequence[Encoder] = (),
        reference: Dataset | StoredStatistics | None = None,
        num_images: int = 500,
        labels: Literal["equal", "random", "null"] = "equal",
        max_reference: int = 10_000,
        cache_dir: str | Path | None = None,
        generate: Callable[..., Generated] = generate,
    ):
        if not networks:
            raise ValueError("Monitor.networks is empty: set, for example, [encoders.DomainEncoder()]")
        check_number("Monitor.num_images", num_images, 2)
        check_number("Monitor.max_reference", max_reference, 2)
        check_choice("Monitor.labels", labels, ("equal", "random", "null"))
        if reference is not None and not isinstance(reference, StoredStatistics):
            datasets.check(reference, "Monitor.reference")
        self.networks, self.reference, self.num_images, self.labels = list(networks), reference, num_images, labels
        self.max_reference, self.cache_dir, self.generate = max_reference, cache_dir, generate
        self.reference_gaussians: list[Gaussian] = []  # one per network

    @property
    def names(self) -> list[str]:
        """The names of the measured values, for `train.keep_best`."""
        names = []
        for network in self.networks:
            names.append(network.metric_name("frechet_distance"))
            unknown = isinstance(network, DomainEncoder) and not network.fitted  # may become a classifier in `prepare`
            if self.labels != "null" and (unknown or recognises(network)):
                names.append("recognised_as_label")
        return [f"{name}_of_{self.num_images}" for name in names]

    def prepare(self, dataset: Dataset, reference: Dataset | StoredStatistics | None = None) -> None:
        """Fit or load the networks on the training images and compute the reference's statistics.

        Raises ValueError: the reference has another resolution, or weights cannot be found.
        """
        binding = "evaluate.reference" if self.reference is None else "Monitor.reference"
        reference = self.reference or reference
        check_size(dataset.image_size, reference, binding)
        prepare_networks(self.networks, dataset, self.cache_dir)
        self.reference_gaussians = []
        for network in self.networks:
            if isinstance(reference, StoredStatistics) and reference.fits(network):
                self.reference_gaussians.append(reference.gaussians["pooled"])
                continue
            images = images_of(reference) or dataset
            features = reference_features(images, network, max_images=self.max_reference, cache_dir=self.cache_dir)
            self.reference_gaussians.append(Gaussian.of(features.tensors["pooled"]))

    def __call__(
        self, model: nn.Module, codec: JointCodec, process: Process, *, weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Measure the model with these weights; return {"<metric>_of_<num_images>": value}."""
        if not self.reference_gaussians:
            raise ValueError("the Monitor has no reference yet: call Monitor.prepare(dataset) before training")
        labels = choose_labels(self.labels, self.num_images, state_of(model).num_classes)
        generated = self.generate(model, codec, process, labels=labels, weights=weights)
        values = {}
        for network, reference in zip(self.networks, self.reference_gaussians, strict=True):
            pooled = torch.cat([network.metric_features(part)["pooled"].cpu() for part in generated.images.split(256)])
            values[network.metric_name("frechet_distance")] = frechet_distance(Gaussian.of(pooled), reference)
            if self.labels != "null" and recognises(network):
                values["recognised_as_label"] = float((predicted_classes(network, pooled) == labels).float().mean())
        return {f"{name}_of_{self.num_images}": value for name, value in values.items()}
