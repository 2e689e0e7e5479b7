"""Evaluation during training: the EMA weights, from the same noise every time, by few samples."""

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
from redi.evaluation.measures import answers, recognises
from redi.evaluation.metrics.frechet import Gaussian, frechet_distance
from redi.evaluation.references import reference_features
from redi.evaluation.samples.label_schemes import choose_labels
from redi.evaluation.stored_statistics import StoredStatistics, images_of
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder
from redi.models.interface import state_of
from redi.runtime.ranges import check_number
from redi.sampling.generate import Generated, generate

log = logging.getLogger(__name__)


@configurable
class Monitor:
    """Measures a model while it is trained: `train.monitor = @Monitor()`, every `train.monitor_every` steps.

    Every time the same labels and the same noise are drawn, so that the curve shows the model's changes and little
    else. The samples are few: every name ends in their number ('frechet_distance_domain_network_of_500'), because the
    distance of a finite set depends on its size and these numbers compare with each other alone.

    Args:
        networks: encoders to measure in, as in `evaluate`; those that learn from data learn from the training images.
        reference: images or stored statistics; default: what `prepare` is given (programs: evaluate.reference).
        labels: 'equal': as many of each class as of any other; 'random'; 'null': without a label.
        max_reference: at most so many reference images.
        generate: draws them; a short sampler serves.
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
        if labels not in ("equal", "random", "null"):
            raise ValueError(f"Monitor.labels = {labels!r}: it is 'equal', 'random' or 'null'")
        if reference is not None and not isinstance(reference, StoredStatistics):
            datasets.check(reference, "Monitor.reference")
        self.networks, self.reference, self.num_images, self.labels = list(networks), reference, num_images, labels
        self.max_reference, self.cache_dir, self.generate = max_reference, cache_dir, generate
        self.against: list[Gaussian] = []  # the reference's, in every network

    @property
    def names(self) -> list[str]:
        """What it measures: the keys of what it gives, for `train.keep_best`."""
        names = []
        for network in self.networks:
            names.append(network.metric_name("frechet_distance"))
            may_be = isinstance(network, DomainEncoder) and not network.fitted  # before `prepare`: what it may measure
            if self.labels != "null" and (may_be or recognises(network)):
                names.append("recognised_as_label")
        return [f"{name}_of_{self.num_images}" for name in names]

    def prepare(self, dataset: Dataset, reference: Dataset | StoredStatistics | None = None) -> None:
        """Before training: fits and loads the networks, looks at the reference; `dataset` holds the training images.
        Raises ValueError for a reference of another resolution, and for weights that are nowhere.
        """
        binding = "evaluate.reference" if self.reference is None else "Monitor.reference"
        reference = self.reference or reference
        check_size(dataset.image_size, reference, binding)
        prepare_networks(self.networks, dataset, self.cache_dir)
        self.against = []
        for network in self.networks:
            if isinstance(reference, StoredStatistics) and reference.fits(network):
                self.against.append(reference.gaussians["pooled"])
                continue
            settings = {"max_images": self.max_reference, "cache_dir": self.cache_dir}
            features = reference_features(images_of(reference) or dataset, network, **settings)
            self.against.append(Gaussian.of(features.tensors["pooled"]))

    def __call__(
        self, model: nn.Module, codec: JointCodec, process: Process,
        *, weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """-> {"<metric>_of_<num_images>": value} of the model with these weights."""
        if not self.against:
            raise ValueError("Monitor.prepare(dataset) has not been called: it looks at the reference images")
        labels = choose_labels(self.labels, self.num_images, state_of(model).num_classes)
        drawn = self.generate(model, codec, process, labels=labels, weights=weights)
        values = {}
        for network, against in zip(self.networks, self.against, strict=True):
            pooled = torch.cat([network.metric_features(part)["pooled"].cpu() for part in drawn.images.split(256)])
            values[network.metric_name("frechet_distance")] = frechet_distance(Gaussian.of(pooled), against)
            if self.labels != "null" and recognises(network):
                values["recognised_as_label"] = float((answers(network, pooled) == labels).float().mean())
        return {f"{name}_of_{self.num_images}": value for name, value in values.items()}
