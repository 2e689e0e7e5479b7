"""Check the other networks of guidance rules before training: what is missing or unfit, and what will be deleted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redi.core import config
from redi.guidance import networks_of
from redi.models.codec import JointCodec
from redi.models.interface import state_of
from redi.runs.checks import setting
from redi.runtime.checkpoint import Retention, checkpoint_dir, list_checkpoints, step_of
from redi.runtime.paths import local_path
from redi.sampling.generate import generate
from redi.sampling.networks import Opened, OpenNetwork, open_networks
from redi.training.trainer import train


def check_networks(net: nn.Module, codec: JointCodec, run_dir: Path, open_network: OpenNetwork) -> None:
    """Raise ValueError if `generate.guidance` names a network that does not fit `net`, or will not exist.

    `open_network` opens those of other runs. Call this again after `prepare`: parts not yet fitted are not compared.
    """

    def checked(settings: Mapping[str, Any], device: torch.device) -> Opened | None:
        if settings["weak"] is not None and local_path(settings["weak"]).resolve() != run_dir.resolve():
            return open_network(settings, torch.device("cpu"))
        if settings["step"] is None:
            raise ValueError("this is the run itself, and its newest step is the model: bind step to an earlier one")
        _check_kept(settings["step"], run_dir)
        return net, {}

    with config.explained(types=True):
        if not networks_of(rules := setting(generate, "guidance")):
            return
        channels, _, num_classes, _ = state_of(net)
        objective = setting(train, "objective")(channels=channels, num_classes=num_classes)
        net.open_network = checked  # type: ignore[assignment]  # not a module
        open_networks(rules, net, codec, objective.process)


def _check_kept(step: int, run_dir: Path) -> None:
    """Raise ValueError unless the checkpoint of this step exists when training ends. `keep_best` is not relied on."""
    every, last = setting(train, "checkpoint_every"), setting(train, "num_steps")
    spacings = [every] if setting(train, "keep_best") is None else [every, setting(train, "monitor_every")]
    stored = {step_of(folder) for folder in list_checkpoints(run_dir)}
    due = {last, *(each for spacing in spacings for each in range(spacing, last, spacing))}
    written = stored | {each for each in due if each > max(stored, default=0)}
    if step not in written:
        allowed = f"must be a multiple of train.checkpoint_every = {every} up to train.num_steps = {last}"
        raise ValueError(f"{run_dir} has no checkpoint of this step, and training will write none: {allowed}")
    keep = Retention(setting(train, "keep_checkpoints"), setting(train, "keep_every"))
    kept = keep.keeps([checkpoint_dir(run_dir, each) for each in sorted(written)])
    if written != stored and checkpoint_dir(run_dir, step) not in kept:
        what = f"training deletes this checkpoint before it ends, at step {last}"
        raise ValueError(f"{what}: keep it with train.keep_every = {step}, or a divisor of it")
