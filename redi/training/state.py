"""What a training is resumed from: out of a checkpoint, and into one."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from redi.core.ema import AveragedWeights
from redi.fusion.merged import with_one_bias
from redi.models.codec import JointCodec
from redi.runtime.artefact import optimizer_tensors, restore_optimizer
from redi.runtime.checkpoint import Retention, checkpoint_dir, load_checkpoint, newest_good, save_checkpoint, step_of
from redi.runtime.distributed import Processes
from redi.training.parallel import Parallel
from redi.training.snapshots import save_snapshot

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """The objects of a training whose tensors a checkpoint holds, and what is recorded beside them.

    A checkpoint holds whole tensors, however they lie on the processes: so it resumes on any number of them.

    Args:
        description: what a checkpoint's record says of this run, of every step.
        extra: further groups of tensors, of every step.
    """

    run_dir: Path
    codec: JointCodec
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedWeights
    processes: Processes
    parallel: Parallel
    retention: Retention
    description: dict = field(default_factory=dict)
    extra: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self):
        self.names = [name for name, _ in self.model.named_parameters()]  # in the optimizer's order

    def resume(self, *, seed: int, dataset) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
        """Puts the newest good checkpoint into the objects -> what it holds; None where there is none.

        Raises:
            ValueError: none of them is good; or it does not fit these objects.
        """
        found: list = []

        def newest() -> int | None:
            found[:] = newest_good(self.run_dir) or ()
            return step_of(found[0]) if found else None

        if (step := self.processes.on_first(newest)) is None:  # one looks, and sets broken ones aside
            return None
        folder = checkpoint_dir(self.run_dir, step)
        tensors, record = found[1:] or load_checkpoint(folder)
        tensors = with_one_bias(tensors, self.names)
        self._restore(folder, tensors, record)
        if record["seed"] != seed:
            raise ValueError(f"{folder} was trained with train.seed = {record['seed']}, not {seed}")
        if record["dataset"] != dataset.fingerprint():
            log.warning("the data are not those that %s was trained on", folder)
        before = record.get("processes", 1)
        log.info("resuming from %s", folder)
        if before != self.processes.size:
            log.info("it was written by %d processes, and goes on with %d", before, self.processes.size)
        return tensors, record

    def _restore(self, folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping) -> None:
        if "optimizer" not in tensors:
            raise ValueError(
                f"{folder} was imported, not trained here, or averaged, and holds no optimizer: to train on, begin "
                f"another run with train.initial_weights = {str(folder.parent.parent)!r}"
            )
        channels = dict(self.codec.channels)
        if (stored := record["model_arguments"]["channels"]) != channels:
            raise ValueError(f"{folder} was trained with channels {stored}, this run has {channels}")
        if self.codec.fingerprint() != record["codec_fingerprint"]:
            raise ValueError(
                f"{folder} was trained with other encoders or reducers than the ones at hand: before prepare, call "
                "codec.load_learned_state(load_checkpoint(folder)[0]['codec']), as the programs do, or begin a new run"
            )
        own = dict(self.model.named_parameters())
        try:
            self.model.load_state_dict(self.parallel.scattered(tensors["model"], own))
        except RuntimeError as error:
            raise ValueError(f"{folder} holds another model: {error}") from None
        averages = {
            key: self.parallel.scattered(tensors.get(key, {}), _by_parameter(tensors.get(key, {}), own))
            for key in ("ema", "averages")
        }
        self.ema.load(averages["ema"], averages["averages"])
        moments = tensors["optimizer"]
        restore_optimizer(
            self.optimizer, self.names, self.parallel.scattered(moments, _by_parameter(moments, own)),
            record["optimizer"],
        )  # fmt: skip

    def save(self, step: int, **record) -> None:
        """Writes a checkpoint; all processes call it. Raises OSError everywhere where it could not be written."""
        optimizer_state, optimizer_record = optimizer_tensors(self.optimizer, self.names)
        groups = {"model": self.model.state_dict(), "ema": self.ema.parameters, "optimizer": optimizer_state}
        groups |= {"codec": self.codec.learned_state(), **self.extra}
        if further := self.ema.extra_state():
            groups["averages"] = further
        record = self.description | {"optimizer": optimizer_record, "processes": self.processes.size} | record
        scratch = checkpoint_dir(self.run_dir, step).with_name(f".step_{step:08d}.sharded")
        self.processes.on_first(lambda: _remove(scratch.parent.glob(".step_*.sharded")))  # of one that was killed
        ready = self.parallel.write(groups, scratch, self.processes) if self.processes.size > 1 else {}

        def write() -> None:
            try:
                whole = {name: group for name, group in groups.items() if name not in ready}
                save_checkpoint(self.run_dir, step, whole, record, self.retention, ready=ready)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

        self.processes.on_first(write)

    def save_snapshot(self, step: int) -> None:
        """Writes what the averages want to be kept for good after this step, if anything; all processes call it."""
        if (groups := self.ema.snapshot(step)) is not None:
            whole = {name: self.parallel.gathered(tensors) for name, tensors in groups.items()}
            self.processes.on_first(lambda: save_snapshot(self.run_dir, step, whole, self.description) and None)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def _by_parameter(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameter that each of these tensors belongs to: by its name, or by a part of it between slashes."""
    found = {}
    for key in tensors:
        owner = next((part for part in (key, *key.split("/")) if part in parameters), None)
        if owner is not None:
            found[key] = parameters[owner]
    return found
