"""What one job builds from the parsed configuration, each object at most once, for all of its stages."""

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
from redi.runs.audit import audited
from redi.runs.checks import warn_of_drawing
from redi.runs.load import SAMPLING, Run, open_run
from redi.runtime import trusted_imports
from redi.runtime.atomic import only_process
from redi.runtime.checkpoint import list_checkpoints, newest_good
from redi.runtime.device import choose_device, own_gpu
from redi.runtime.distributed import process_rank
from redi.runtime.interrupt import DryRunEnd
from redi.runtime.paths import local_path


class Experiment:
    """The parsed configuration, `run_dir` for the results and `trained_dir` (default: `run_dir`) with the checkpoints.

    Attributes are built when they are first read. A `dry_run` writes to neither folder, and ends where `checked` is
    called.
    """

    def __init__(self, run_dir: str | Path, trained_dir: str | Path | None = None, *, dry_run: bool = False):
        self.dry_run = dry_run
        self.run_dir = local_path(run_dir)
        self.trained_dir = local_path(trained_dir or run_dir)

    def claim(self, *, trains: bool) -> None:
        """Check the folders; a caller that `trains` may start a run, and makes them and writes `config.gin`.

        Raises ValueError: the folder holds a run with another configuration, or no run where one is needed.
        """
        saved, checkpoints = self.trained_dir / "config.gin", list_checkpoints(self.trained_dir)
        if saved.exists() and checkpoints:  # before the first, another configuration spoils nothing
            if differences := config.conflicts(saved.read_text(), training_entry_points):
                where = "--run_dir" if self.trained_dir == self.run_dir else "--trained_dir"
                lines = "\n  ".join(["", *differences])
                raise ValueError(
                    f"{self.trained_dir} holds a run with another configuration:{lines}\n"
                    f"Choose another {where}, or give the bindings that the run was started with"
                )
        elif not trains:
            missing = f"train one with redi.train --run_dir={self.trained_dir}"
            raise ValueError(f"{self.trained_dir} holds no trained model: {missing}")
        first = process_rank()[0] == 0  # writes and warns for all
        if first:
            warn_of_drawing()
        if not trains or self.dry_run:
            return
        self.trained_dir.mkdir(parents=True, exist_ok=True)
        if first and (self.trained_dir == self.run_dir or not checkpoints):
            with only_process(self.trained_dir):  # not while another process trains there
                trusted_imports.write(saved, config.full_text())  # other ranks may be reading it
        self.keep_config()

    def keep_config(self) -> None:
        """Write `config.gin` beside results that lie elsewhere than the checkpoints."""
        if self.trained_dir != self.run_dir and process_rank()[0] == 0:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            trusted_imports.write(self.run_dir / "config.gin", config.full_text())

    def checked(self, forecast: Callable[[], str]) -> None:
        """Called once all checks of a stage have passed. Raises DryRunEnd after printing the forecast, in a dry run."""
        if self.dry_run:
            print(forecast(), flush=True)
            raise DryRunEnd

    @cached_property
    def device(self) -> torch.device:
        return own_gpu(choose_device(config.bound("train.device", "auto")))

    @cached_property
    def codec(self) -> JointCodec:
        """As bound; unfitted before `prepare` or `run` has filled it. Raises ValueError: no codec is bound."""
        codec = config.bound("train.codec")
        if not isinstance(codec, JointCodec):
            raise ValueError(f"train.codec is {codec!r}: bind train.codec = @JointCodec(), as gin/base.gin does")
        return codec

    @cached_property
    def train_data(self) -> Dataset:
        """The training images without unreadable ones; audited once per folder and data set."""
        return audited(self.trained_dir, keep=not self.dry_run)

    @cached_property
    def reference(self) -> Dataset | StoredStatistics | None:
        """What samples are compared with: `evaluate.reference`."""
        return config.bound("evaluate.reference")

    @property
    def held_out(self) -> Dataset | None:
        return images_of(self.reference)

    @cached_property
    def metric_networks(self) -> list | None:
        return config.bound("evaluate.networks")

    @cached_property
    def run(self) -> Run:
        """The newest good checkpoint of `trained_dir`, with this experiment's codec."""
        return open_run(
            self.trained_dir, *newest_good(self.trained_dir, SAMPLING, set_aside=False), device=self.device,
            codec=self.codec, model=config.bound("train.model", DiffusionTransformer),
            objective=config.bound("train.objective", JointObjective),
        )  # fmt: skip
