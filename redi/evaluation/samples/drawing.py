"""How samples are drawn part by part: the work that `redi.evaluation.samples.sample.sample` divides over processes."""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import redi
from redi.evaluation.samples.feature_store import feature_folder, feature_record, features_of, is_stored
from redi.evaluation.samples.parts import Parts
from redi.evaluation.samples.stored import Samples
from redi.models.encoders import Encoder
from redi.runtime.artefact import read_record
from redi.runtime.atomic import stamp
from redi.runtime.checksums import BrokenArtefact, json_sha256, tensors_sha256
from redi.runtime.progress import part_of
from redi.sampling.generate import Generated

log = logging.getLogger(__name__)

COUNTED = ("function_evaluations", "network_evaluations_per_image")  # an adaptive solver's differ between parts


@dataclass(frozen=True)
class Plan:
    """What is to be drawn."""

    labels: Tensor  # (N,) int64, of every set
    scheme: str | list[int]  # as `sample.labels`
    weights: str
    seeds: tuple[int, ...] | None
    keep: tuple[str, ...]
    images_per_part: int
    key: str

    def __len__(self) -> int:
        return len(self.labels) * len(self.seeds or (None,))

    def parts(self) -> dict[str, tuple[int | None, int, int]]:
        """Name -> seed, and the first image and the one after the last in the seed's set."""
        size, each = self.images_per_part, len(self.labels)
        cuts = [(s, i, min(i + size, each)) for s in self.seeds or (None,) for i in range(0, each, size)]
        return {f"part-{number:05d}": cut for number, cut in enumerate(cuts)}


class Drawing:
    """What `redi.runtime.shared_work.complete` is given to do.

    Args:
        folder: where the samples will be.
        networks: whose features are computed while drawing, for the images are not kept.
    """

    def __init__(
        self, folder: Path, trained, plan: Plan, generate: Callable[..., Generated], networks: Sequence[Encoder],
        bar: tqdm,
    ):  # fmt: skip
        self.folder, self.trained, self.plan, self.generate, self.bar = folder, trained, plan, generate, bar
        self.parts = plan.parts()
        self.weights = trained.weights[plan.weights]
        self.weights_sha256 = tensors_sha256(self.weights)
        self.networks = {feature_folder(folder.parent, network): network for network in networks}
        self.settings_sha256 = json_sha256(self._settings())
        self.work = folder.with_name(f".{folder.name}.{self.settings_sha256[:16]}.work")
        self.samples = Parts(folder, self.work, list(self.parts))
        self.features = {path: Parts(path, self.work, list(self.parts)) for path in self.networks}
        self.refused: tuple | None = None  # the stamp of finished samples that do not count
        self.drawn: dict[str, int] = {}  # images per part, by whomever, for the bar
        self.told = _Once()

    def _settings(self) -> dict:
        """All that is known to decide the result before it is drawn."""
        return vars(self.plan) | {
            "labels": tensors_sha256({"labels": self.plan.labels}),
            "weights_sha256": self.weights_sha256,
            "decoder": self.trained.codec.autoencoder.provenance(),
            "networks": sorted(path.name for path in self.networks),
            "noise": "philox4x32-10",  # unfinished samples of the generators before it cannot be gone on with
            "redi": redi.__version__,
        }

    def resume(self, alone: bool) -> None:
        """Looks what of these samples is there already and counts. `alone`: no other process is at work."""
        if not self.plan.key and alone:
            self.refused = stamp(self.folder)
            shutil.rmtree(self.work, ignore_errors=True)
        if self.folder.exists():
            try:
                read_record(self.folder)
                if self.finished():
                    Samples(self.folder).verify()
                    log.info("samples of these settings are there already: %s", self.folder)
            except BrokenArtefact as error:
                log.warning("drawn anew, for it was damaged: %s", error)
                self.refused = stamp(self.folder)
        for other in self.folder.parent.glob(f".{self.folder.name}.*.work"):
            if other != self.work:
                log.info("%s holds unfinished samples of other settings; delete it if nobody draws them", other)
        if done := sum(self.is_done(part) for part in self.parts):
            log.info("%d of %d parts were drawn before", done, len(self.parts))
        self.bar.initial = self.bar.n  # what was there is no part of the bar's speed

    def finished(self) -> bool:
        try:
            record = read_record(self.folder)
        except BrokenArtefact:
            return False
        if record.get("settings_sha256") != self.settings_sha256 or stamp(self.folder) == self.refused:
            return False
        return all(is_stored(path, record["samples_sha256"]) for path in self.features)

    def is_done(self, part: str) -> bool:
        if done := all(part in parts for parts in (self.samples, *self.features.values())):
            self._show(part)
        return done

    def _show(self, part: str) -> None:
        _, start, stop = self.parts[part]
        self.drawn[part] = stop - start
        self.bar.update(sum(self.drawn.values()) - self.bar.n)

    def draw(self, part: str) -> None:
        seed, start, stop = self.parts[part]
        trained, labels = self.trained, self.plan.labels[start:stop]
        given = {} if seed is None else {"seed": seed}
        with part_of(self.bar), _filtered(self.told):
            drawn = self.generate(
                trained.model, trained.codec, trained.process, labels=labels, weights=self.weights, first_index=start,
                **given,
            )  # fmt: skip
        check_states(drawn, start)
        for path, network in self.networks.items():
            self.features[path].write(part, features_of(network, drawn.images, start), {})
        everything = {"images": drawn.images, "x": drawn.x, "labels": drawn.labels}
        record = {
            "drawn_sha256": tensors_sha256(everything),
            "labels_sha256": tensors_sha256({"labels": drawn.labels}),
            "image_size": drawn.images.shape[-1],
            "generated": drawn.record,
        }
        kept = {name: tensor for name, tensor in everything.items() if name in ("labels", *self.plan.keep)}
        self.samples.write(part, kept, record)
        self._show(part)

    def finish(self) -> None:
        """Compares every part that another process drew, now or before, with its checksum; then the records."""
        records = self.samples.checked()
        features = {path: parts.checked() for path, parts in self.features.items()}
        if records is None or None in features.values():
            return  # `complete` has the damaged parts drawn again
        record = self._record(records)
        # The features first: samples without images are finished only with them.
        for path, parts in self.features.items():
            found = feature_record(self.networks[path], record["samples_sha256"], record["parts"])
            parts.assemble(found, features[path])
        self.samples.assemble(record, records)

    def _record(self, records: dict[str, dict]) -> dict:
        generated = {part: record["generated"] for part, record in records.items()}
        common = self._agreed(generated)
        codec, seeds, parts = self.trained.codec, self.plan.seeds or (common["seed"],), []
        for (name, (seed, start, stop)), record in zip(self.parts.items(), records.values(), strict=True):
            place = {"seed": seeds[0] if seed is None else seed, "start": start, "stop": stop}
            parts.append({"file": f"{name}.safetensors", **place, "labels_sha256": record["labels_sha256"]})
        lengths = [part["stop"] - part["start"] for part in parts]
        counted = {name: [found[name] for found in generated.values()] for name in COUNTED}
        # The mean over images, but a whole number where all parts have the same.
        means = {
            name: v[0] if len(set(v)) == 1 else float(np.average(v, weights=lengths)) for name, v in counted.items()
        }
        common.pop("seed")
        return {
            "seeds": list(seeds),
            "num_images": len(self.plan.labels),
            "labels": self.plan.scheme,
            "weights": self.plan.weights,
            "weights_sha256": self.weights_sha256,
            "checkpoint_step": self.trained.step,
            **common,
            **means,
            "decoder": codec.autoencoder.provenance(),
            "uint8_rule": getattr(codec.autoencoder, "uint8_rule", "round"),
            "image_size": next(iter(records.values()))["image_size"],
            "kept": list(self.plan.keep),
            "settings_sha256": self.settings_sha256,
            "samples_sha256": json_sha256([record["drawn_sha256"] for record in records.values()]),
            "versions": {"redi": redi.__version__, "torch": str(torch.__version__)},
            "parts": parts,
        }

    def _agreed(self, generated: dict[str, dict]) -> dict:
        """What the records of all parts have in common. Raises ValueError naming what differs."""
        first, *_ = generated
        common = {name: value for name, value in generated[first].items() if name not in COUNTED}
        for part, record in generated.items():
            expected = common if self.parts[part][0] is None else common | {"seed": self.parts[part][0]}
            for name in sorted((expected.keys() | record.keys()) - set(COUNTED)):
                if expected.get(name) != record.get(name):
                    what = f"{name} = {record.get(name)!r}, and {first} with {expected.get(name)!r}"
                    raise ValueError(f"{part} was drawn with {what}: delete {self.work} to draw all anew, in one way")
        return common


def check_states(drawn: Generated, first: int) -> None:
    """Raises ValueError for NaN or infinite values in x, naming the image: as uint8 they could not be told."""
    finite = drawn.x.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        index, record = int(bad[0]), drawn.record
        raise ValueError(
            f"image {first + index} (label {int(drawn.labels[index])}, seed {record.get('seed')}) came out with NaN or "
            f"infinite values, and {len(bad)} of the {len(finite)} images of its part: try generate.precision = "
            f"'float32' (now {record.get('precision')}) or smaller guidance scales, and look at the training's losses"
        )


class _Once(logging.Filter):
    """Lets each message through once."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.getMessage() not in self.seen
        self.seen.add(record.getMessage())
        return new


@contextmanager
def _filtered(told: _Once):
    """Context in which `generate`, called for every part, repeats no advice."""
    logger = logging.getLogger("redi.sampling.generate")
    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)
