"""The objects that one job builds from the parsed configuration, each at most once and shared by all stages."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from redi.core import config
from redi.core.objective import JointObjective
from redi.core.registry import training_entry_points
from redi.data.datasets import Dataset
from redi.evaluation.stored_statistics import StoredStatistics, images_of
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer
from redi.runs.audit import audited_data
from redi.runs.checks import warn_of_unused_generate
from redi.runs.load import SAMPLING, Run, open_run
from redi.runtime import trusted_imports
from redi.runtime.atomic import only_process
from redi.runtime.checkpoint import list_checkpoints, newest_good
from redi.runtime.device import choose_device, local_device
from redi.runtime.distributed import process_rank
from redi.runtime.interrupt import DryRunEnd
from redi.runtime.paths import local_path


class Experiment:
    """The objects of one job. Attributes are built on first access.

    Args:
        run_dir: the folder for results.
        trained_dir: the folder with the checkpoints; default: `run_dir`.
        dry_run: write to neither folder, and stop at the call of `checked`.
    """

    def __init__(self, run_dir: str | Path, trained_dir: str | Path | None = None, *, dry_run: bool = False):
        self.dry_run = dry_run
        self.run_dir = local_path(run_dir)
        self.trained_dir = local_path(trained_dir or run_dir)

    def claim(self, *, trains: bool) -> None:
        """Check the folders. With `trains`, also create them and write `config.gin`.

        Raises ValueError: the folder holds a run with another configuration, or `trains` is False and it holds no run.
        """
        saved, checkpoints = self.trained_dir / "config.gin", list_checkpoints(self.trained_dir)
        if saved.exists() and checkpoints:  # without a checkpoint, the configuration may still change
            if differences := config.conflicts(saved.read_text(), training_entry_points):
                where = "--run_dir" if self.trained_dir == self.run_dir else "--trained_dir"
                lines = "\n  ".join(["", *differences])
                raise ValueError(
                    f"{self.trained_dir} holds a run with another configuration:{lines}\n"
                    f"Choose another {where}, or pass the bindings that the run was started with"
                )
        elif not trains:
            advice = f"train one with redi.train --run_dir={self.trained_dir}"
            raise ValueError(f"{self.trained_dir} holds no trained model: {advice}")
        first = process_rank()[0] == 0  # writes and warns for all processes
        if first:
            warn_of_unused_generate()
        if not trains or self.dry_run:
            return
        self.trained_dir.mkdir(parents=True, exist_ok=True)
        if first and (self.trained_dir == self.run_dir or not checkpoints):
            with only_process(self.trained_dir):  # not while another process trains in it
                trusted_imports.write(saved, config.full_text())  # other ranks may be reading it
        self.keep_config()

    def keep_config(self) -> None:
        """Write `config.gin` to `run_dir` if the checkpoints are in another folder."""
        if self.trained_dir != self.run_dir and process_rank()[0] == 0:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            trusted_imports.write(self.run_dir / "config.gin", config.full_text())

    def checked(self, forecast: Callable[[], str]) -> None:
        """In a dry run, print the forecast and raise DryRunEnd. Stages call this after their checks."""
        if self.dry_run:
            print(forecast(), flush=True)
            raise DryRunEnd

    @cached_property
    def device(self) -> torch.device:
        """The device of this process: `train.device`."""
        return local_device(choose_device(config.bound("train.device", "auto")))

    @cached_property
    def codec(self) -> JointCodec:
        """`train.codec`, which `prepare_run` fits and `run` restores. Raises ValueError: no codec is bound."""
        codec = config.bound("train.codec")
        if not isinstance(codec, JointCodec):
            raise ValueError(f"train.codec = {codec!r}: bind train.codec = @JointCodec(), as gin/base.gin does")
        return codec

    @cached_property
    def train_data(self) -> Dataset:
        """The audited training images, without unreadable ones."""
        return audited_data(self.trained_dir, keep=not self.dry_run)

    @cached_property
    def reference(self) -> Dataset | StoredStatistics | None:
        """`evaluate.reference`."""
        return config.bound("evaluate.reference")

    @property
    def held_out(self) -> Dataset | None:
        """The images of the reference, if it has any."""
        return images_of(self.reference)

    @cached_property
    def metric_networks(self) -> list | None:
        """`evaluate.networks`."""
        return config.bound("evaluate.networks")

    @cached_property
    def run(self) -> Run:
        """The newest undamaged checkpoint of `trained_dir`, opened with this experiment's codec."""
        newest = newest_good(self.trained_dir, SAMPLING, set_aside=False)
        assert newest is not None  # `claim` has checked it
        return open_run(
            self.trained_dir, *newest, device=self.device, codec=self.codec,
            model=config.bound("train.model", DiffusionTransformer),
            objective=config.bound("train.objective", JointObjective),
        )  # fmt: skip
