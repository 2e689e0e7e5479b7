"""The sampling job of a run: divided into parts, shared by any number of processes, resumable."""

import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import redi
from redi.core.plug_ins import plug_ins
from redi.evaluation.samples.feature_store import feature_folder, feature_record, features_of, is_stored
from redi.evaluation.samples.stored import Samples
from redi.models.encoders import Encoder
from redi.runtime.artefact import read_record
from redi.runtime.atomic import stamp
from redi.runtime.checksums import BrokenArtefact, json_sha256, tensors_sha256
from redi.runtime.progress import part_of
from redi.runtime.shared_work import SharedJob
from redi.sampling.generate import Generated
from redi.sampling.networks import are_current

log = logging.getLogger(__name__)

# They vary over parts with adaptive solvers.
COUNTED = ("function_evaluations", "network_evaluations_per_image", "evaluations_by_network")


class SamplingJob:
    """Draws samples and writes them to `folder`; see `redi.evaluation.samples.sample.sample`.

    Args:
        labels: (N,) int64, the labels of every set.
        scheme: the setting from which the labels were computed.
        networks: networks whose features are computed during sampling, because the images are not kept.
    """

    def __init__(
        self, folder: Path, trained, generate: Callable[..., Generated], networks: Sequence[Encoder], *, labels: Tensor,
        scheme: str | list[int], weights: str, seeds: tuple[int, ...] | None, keep: tuple[str, ...],
        images_per_part: int, key: str,
    ):  # fmt: skip
        self.folder, self.trained, self.generate = folder, trained, generate
        self.labels, self.seeds, self.keep, self.weights = labels, seeds, keep, trained.weights[weights]
        self.networks = {feature_folder(folder.parent, network): network for network in networks}
        self.settings: dict[str, Any] = {
            "labels": tensors_sha256({"labels": labels}),
            "scheme": scheme,
            "weights": weights,
            "seeds": seeds,
            "keep": keep,
            "images_per_part": images_per_part,
            "key": key,
            "weights_sha256": tensors_sha256(self.weights),
            "decoder": trained.codec.autoencoder.provenance(),
            "networks": sorted(path.name for path in self.networks),
            "noise": "philox4x32-10",
            "redi": redi.__version__,
        }
        draws = [generate.func, *tree_leaves(generate.keywords)] if isinstance(generate, partial) else [generate]
        if code := plug_ins(trained.model, trained.codec.autoencoder, trained.process, *draws):
            self.settings["plug_ins"] = code
        self.settings_sha256 = json_sha256(self.settings)
        size, total = images_per_part, len(labels)
        # (seed, start, stop) of each part; positions in the set of this seed
        self.parts = [(s, i, min(i + size, total)) for s in seeds or (None,) for i in range(0, total, size)]
        work = folder.with_name(f".{folder.name}.{self.settings_sha256[:16]}.work")
        self.job = SharedJob(work, [stop - start for _, start, stop in self.parts])
        self.refused: tuple | None = None  # the stamp of existing samples that must be drawn again

    def run(self, rank: int, world_size: int) -> None:
        """Draw the missing parts, together with all processes that call this."""
        self._check_existing(alone=world_size == 1)
        self.job.run(
            do=self._draw, finish=self._finish, finished=self._finished, desc="sampling",
            rank=rank, world_size=world_size,
        )  # fmt: skip

    def _check_existing(self, alone: bool) -> None:
        """Verify existing samples; mark them as refused if they are damaged or not known to be current."""
        if not self.settings["key"] and alone:
            self.refused = stamp(self.folder)
            shutil.rmtree(self.job.work, ignore_errors=True)
        if self.folder.exists():
            try:
                networks = read_record(self.folder).get("networks", {})
                if not are_current(networks):
                    log.info("drawing the samples again, because %s changed", ", ".join(networks))
                    self.refused = stamp(self.folder)
                elif self._finished():
                    Samples(self.folder).verify()
                    log.info("samples with these settings already exist: %s", self.folder)
            except BrokenArtefact as error:
                log.warning("the samples are damaged and will be drawn again: %s", error)
                self.refused = stamp(self.folder)
        for other in self.folder.parent.glob(f".{self.folder.name}.*.work"):
            if other != self.job.work:
                log.info("%s holds unfinished samples with other settings: delete it if no process needs it", other)

    def _finished(self) -> bool:
        try:
            record = read_record(self.folder)
        except BrokenArtefact:
            return False
        if record.get("settings_sha256") != self.settings_sha256 or stamp(self.folder) == self.refused:
            return False
        return all(is_stored(path, record["samples_sha256"]) for path in self.networks)

    def _draw(self, index: int) -> None:
        seed, start, stop = self.parts[index]
        options = {"labels": self.labels[start:stop], "first_index": start} | ({} if seed is None else {"seed": seed})
        model, codec, process = self.trained.model, self.trained.codec, self.trained.process
        with part_of(self.job.bar):
            generated = self.generate(model, codec, process, weights=self.weights, **options)
        check_states(generated, start)
        tensors = {"images": generated.images, "x": generated.x, "labels": generated.labels}
        groups = {path.name: features_of(network, generated.images, start) for path, network in self.networks.items()}
        groups[self.folder.name] = {name: tensors[name] for name in ("labels", *self.keep)}
        hashes = {
            "drawn_sha256": tensors_sha256(tensors),
            "labels_sha256": tensors_sha256({"labels": generated.labels}),
        }
        self.job.store(
            index, groups, hashes | {"image_size": generated.images.shape[-1], "generated": generated.record}
        )

    def _finish(self, records: list[dict]) -> None:
        record = self._record(records)
        # Features first, because samples without images are complete only with them.
        for path, network in self.networks.items():
            facts = feature_record(network, record["samples_sha256"], record["parts"])
            self.job.assemble_artefact(path.name, path, facts, records)
        self.job.assemble_artefact(self.folder.name, self.folder, record, records)

    def _record(self, records: list[dict]) -> dict:
        generated = [record["generated"] for record in records]
        common = self._common(generated)
        seeds, parts = self.seeds or (common["seed"],), []
        for index, ((seed, start, stop), record) in enumerate(zip(self.parts, records, strict=True)):
            part = {"file": f"{self.job.name(index)}.safetensors", "seed": seeds[0] if seed is None else seed}
            parts.append(part | {"start": start, "stop": stop, "labels_sha256": record["labels_sha256"]})

        def mean(*values: float) -> float:  # over images; an integer if all parts have the same value
            return values[0] if len(set(values)) == 1 else float(np.average(values, weights=self.job.sizes))

        for name in filter(generated[0].__contains__, COUNTED):
            common[name] = tree_map(mean, *(one[name] for one in generated))
        common.pop("seed")
        autoencoder = self.trained.codec.autoencoder
        return {
            "seeds": list(seeds),
            "num_images": len(self.labels),
            "labels": self.settings["scheme"],
            "weights": self.settings["weights"],
            "weights_sha256": self.settings["weights_sha256"],
            "checkpoint_step": self.trained.step,
            **common,
            "decoder": autoencoder.provenance(),
            "uint8_rule": getattr(autoencoder.stores, "uint8_rule", "round"),
            "image_size": records[0]["image_size"],
            "kept": list(self.keep),
            "settings_sha256": self.settings_sha256,
            "samples_sha256": json_sha256([record["drawn_sha256"] for record in records]),
            "versions": {"redi": redi.__version__, "torch": str(torch.__version__)},
            "parts": parts,
        }

    def _common(self, generated: list[dict]) -> dict:
        """Return the fields that all parts share. Raises ValueError: parts differ in a field other than COUNTED."""
        common = {name: value for name, value in generated[0].items() if name not in COUNTED}
        for index, record in enumerate(generated):
            seed = self.parts[index][0]
            expected = common if seed is None else common | {"seed": seed}
            for name in sorted((expected.keys() | record.keys()) - set(COUNTED)):
                if expected.get(name) != record.get(name):
                    raise ValueError(
                        f"{self.job.name(index)} was drawn with {name} = {record.get(name)!r}, but {self.job.name(0)} "
                        f"with {expected.get(name)!r}: delete {self.job.work} to draw all parts again"
                    )
        return common


def check_states(generated: Generated, first: int) -> None:
    """Raise ValueError for NaN or infinite values in x, naming the image; uint8 images would not show them."""
    if len(bad := (~generated.x.flatten(1).isfinite().all(dim=1)).nonzero().flatten()):
        index, record = int(bad[0]), generated.record
        name = f"image {first + index} (label {int(generated.labels[index])}, seed {record.get('seed')})"
        raise ValueError(
            f"{name} has NaN or infinite values, like {len(bad)} of the {len(generated.x)} images in its part: set "
            f"generate.precision = 'float32' (now {record.get('precision')}), lower the guidance scales, or check the "
            "training loss"
        )
