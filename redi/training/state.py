"""The state of a run: how it is saved to a checkpoint and restored from one."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import redi
from redi.core.ema import AveragedWeights
from redi.core.objective import JointObjective
from redi.core.plug_ins import plug_ins, warn_of_edits
from redi.core.snr_table import snr_curves, snr_table, spreads
from redi.data.cache.cache import EncodedRows
from redi.data.storage.contents import same_images
from redi.fusion.merged import with_one_bias
from redi.models.codec import JointCodec
from redi.models.reducers import trained_state
from redi.runtime.artefact import optimizer_tensors, restore_optimizer
from redi.runtime.atomic import write_json
from redi.runtime.checkpoint import Retention, checkpoint_dir, newest_good, save_checkpoint
from redi.runtime.distributed import Processes
from redi.sampling.pictures import ColourBasis
from redi.training.history import History
from redi.training.parallel import Parallel
from redi.training.snapshots import save_snapshot

log = logging.getLogger(__name__)

RESUMED = ("model", "ema", "averages", "optimizer", "colours")  # runs.prepare has already restored the codec


@dataclass
class TrainingState:
    """The objects whose tensors a checkpoint holds, and the record beside them.

    A checkpoint holds whole tensors, so any number of processes can resume from it.

    Args:
        keep: `train.keep_checkpoints`, `keep_every` and `keep_best`.

    Attributes:
        colours: colours of the features in previews, constant over the run.
        objective: of the training, passed to `begin`.
        description: the part of a checkpoint's record that is constant over the run.
        history: the content of `training.json`.
    """

    run_dir: Path
    codec: JointCodec
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedWeights
    processes: Processes
    parallel: Parallel
    keep: tuple[int, int | None, str | None] = (2, None, None)
    colours: ColourBasis | None = None
    description: dict = field(default_factory=dict)
    objective: JointObjective | None = None
    history: History | None = None

    def __post_init__(self):
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.names = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        self.device = next(self.model.parameters()).device
        self.retention = Retention(*self.keep)

    def folder(self, step: int) -> Path:
        """Return the folder of the checkpoint of this step."""
        return checkpoint_dir(self.run_dir, step)

    def begin(
        self, model_arguments: Mapping, loss_of: JointObjective, dataset, *, seed: int, monitor=None, schedule=None
    ) -> dict:
        """Resume from the newest intact checkpoint, or begin at step 0; return {"step", "window", "spread", ...}.

        Raises ValueError if all checkpoints are damaged, or the newest one does not match these objects.
        """
        channels = self.codec.channels
        if (record := self.resume(seed=seed, dataset=dataset)) is None:
            sample = self.codec.encode_sample(dataset)  # (n, C, H, W)
            self.colours, spread = ColourBasis.fit(channels, sample), spreads(channels, sample)
            record = {"step": 0, "window": None, "spread": spread}
        components: tuple[object, ...] = (self.model, self.codec, self.optimizer, self.ema, schedule, loss_of)
        components += *vars(loss_of).values(), *vars(loss_of.process).values()
        components += monitor, *getattr(monitor, "networks", ())
        components += (dataset.source if isinstance(dataset, EncodedRows) else dataset,)
        names = dataset.num_classes > 1 and dataset.class_names and list(dataset.class_names[: dataset.num_classes])
        if self.processes.is_first:
            warn_of_edits(record, self.folder(record["step"]), *components)
            table = snr_table(channels, loss_of.process, loss_of.weights, record["spread"])
            log.info("noise schedule of each group\n%s", table)
        self.history = History(self.run_dir, record["step"], self.model, self.processes, self.codec, dataset.image_size)
        fixed = {} if loss_of.parts else loss_of.artefacts()
        if (stored := record.get("artefacts", fixed)) != fixed:
            what = f"{self.folder(record['step'])} was trained with another {' and '.join(stored)}"
            raise ValueError(f"{what}: restore the file from its copy in {self.run_dir}, or start a new run")
        self.objective = loss_of
        self.description = {
            "model_arguments": {**model_arguments, "channels": channels.record()},
            "image_size": dataset.image_size, "seed": seed, "dataset": dataset.fingerprint(),
            "dataset_contents": dataset.content_fingerprint(),
            "spread": record["spread"], "codec": self.codec.provenance(),
            "codec_fingerprint": self.codec.fingerprint(), "plug_ins": plug_ins(*components),
        } | ({"artefacts": fixed} if fixed else {}) | ({"class_names": names} if names else {})  # fmt: skip
        return record

    def resume(self, *, seed: int, dataset) -> dict | None:
        """Load the newest intact checkpoint into the objects; return its record, or None without a checkpoint.

        Only rank 0 reads, and sets damaged checkpoints aside. The other processes receive one tensor at a time.
        """
        groups: dict[str, dict[str, Tensor]] = {}

        def newest() -> tuple | None:
            if (good := newest_good(self.run_dir)) is None:
                return None
            folder, tensors, record = good
            tensors = with_one_bias(tensors, dict(self.model.named_parameters()))
            groups.update({name: tensors[name] for name in RESUMED if name in tensors})
            layout = {name: {key: t.to("meta") for key, t in group.items()} for name, group in groups.items()}
            return folder, record, layout

        if (checkpoint := self.processes.on_first(newest)) is None:
            return None
        folder, record, layout = checkpoint
        self._restore(folder, groups or layout, record)
        if record["seed"] != seed:
            raise ValueError(f"{folder} was trained with train.seed = {record['seed']}, not {seed}: set the same seed")
        if not (same := same_images(dataset, record["dataset"], record.get("dataset_contents"))):
            if same is not None:
                raise ValueError(
                    f"{folder} was trained on other data. Train on the same data, or start a new run with "
                    f"train.initial_weights = {str(self.run_dir)!r}"
                )
            log.warning("the data, or the modification times of their files, differ from those of %s", folder)
        log.info("resuming from %s", folder)
        if (before := record.get("processes", 1)) != self.processes.size:
            log.info("the checkpoint was written by %d processes; resuming with %d", before, self.processes.size)
        return record

    def _restore(self, folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping) -> None:
        if "optimizer" not in tensors:
            what = f"{folder} holds no optimizer state, because it was imported or averaged"
            advice = f"start a new run with train.initial_weights = {str(folder.parent.parent)!r}"
            raise ValueError(f"{what}: to continue training, {advice}")
        channels = self.codec.channels.record()
        if (stored := record["model_arguments"]["channels"]) != channels:
            advice = "set the same representations, or start a new run in another folder"
            raise ValueError(f"{folder} was trained with channels {stored}, but this run has {channels}: {advice}")
        if self.codec.fingerprint() != record["codec_fingerprint"]:
            raise ValueError(
                f"{folder} was trained with another autoencoder, encoder, reducer or statistics: before prepare, call "
                "codec.load_learned_state(load_checkpoint(folder)[0]['codec']), as the programs do, or start a new run"
            )
        if len(record["optimizer"]["param_groups"]) != len(self.optimizer.param_groups):
            name, advice = type(self.optimizer).__name__, "bind the same one, or start a new run in another folder"
            raise ValueError(f"{folder} was trained with another train.optimizer than {name}: {advice}")
        parts = {name: self._received(group) for name, group in tensors.items()}
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError as error:
            advice = "Bind the same model, or start a new run in another folder"
            raise ValueError(f"{folder} holds another model. {advice}: {error}") from None
        self.ema.load(parts["ema"], parts.get("averages", {}))
        restore_optimizer(self.optimizer, self.names, parts["optimizer"], record["optimizer"])
        self.colours = ColourBasis(parts["colours"])

    def _received(self, group: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Receive the tensors that rank 0 read, each sharded like the parameter that its name contains."""
        parameters = dict(self.model.named_parameters())
        parts: dict[str, Tensor] = {}
        for name, tensor in self.processes.from_first(group):
            owner = next((parameters[part] for part in (name, *name.split("/")) if part in parameters), None)
            parts |= self.parallel.scattered({name: tensor}, {} if owner is None else {name: owner})
        return parts

    def save(self, step: int, **record) -> None:
        """Write a checkpoint. All processes call it, and all raise OSError if it cannot be written."""
        optimizer_state, optimizer_record = optimizer_tensors(self.optimizer, self.names)
        groups = {"model": self.model.state_dict(), "ema": self.ema.parameters, "optimizer": optimizer_state}
        assert self.colours and self.history and self.objective  # `begin` was called
        self.update_codec()
        groups |= {"codec": self.codec.learned_state(), "colours": self.colours.tensors}
        if further := self.ema.extra_state():
            groups["averages"] = further
        record = self.description | {"optimizer": optimizer_record, "processes": self.processes.size} | record
        scratch = checkpoint_dir(self.run_dir, step).with_name(f".step_{step:08d}.sharded")
        history, process = self.history, self.objective.process
        history.record["noise_schedule"] = snr_curves(self.codec.channels, process, self.description["spread"])

        def clear() -> None:
            for leftover in scratch.parent.glob(".step_*.sharded"):  # from a process that was killed
                shutil.rmtree(leftover)

        self.processes.on_first(clear)
        ready = self.parallel.write(groups, scratch, self.processes) if self.processes.size > 1 else {}

        def write() -> None:
            try:
                whole = {name: group for name, group in groups.items() if name not in ready}
                save_checkpoint(self.run_dir, step, whole, record, self.retention, ready=ready)
                self._write_artefacts(step)
                history.write(step)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

        self.processes.on_first(write)

    def update_codec(self) -> None:
        """Give the codec the averaged weights and the statistics of reducers that train with the network."""
        if trained := trained_state(self.model.state_dict() | dict(self.ema.parameters)):
            self.codec.load_learned_state(self.codec.learned_state() | trained)
            self.description |= {"codec": self.codec.provenance(), "codec_fingerprint": self.codec.fingerprint()}

    def _write_artefacts(self, step: int) -> None:
        """Write to the run folder what the objective has learned up to this step, or was given."""
        assert self.objective is not None
        keys = ("seed", "image_size", "dataset", "codec_fingerprint")
        origin = {"redi": redi.__version__, "step": step} | {key: self.description[key] for key in keys}
        for name, content in self.objective.artefacts().items():
            write_json(self.run_dir / name, content | {"origin": origin})

    def save_snapshot(self, step: int) -> None:
        """Write a snapshot of the weight averages if one is due after this step. All processes call it."""
        if (groups := self.ema.snapshot(step)) is not None:
            whole = {name: self.parallel.gathered(tensors) for name, tensors in groups.items()}
            self.processes.on_first(lambda: save_snapshot(self.run_dir, step, whole, self.description) and None)
