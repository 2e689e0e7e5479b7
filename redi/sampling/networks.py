"""The other networks that guidance rules name: opened once, checked for fit, and recorded with a hash."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redi.core.processes import Process
from redi.guidance import Guidance, networks_of
from redi.models.codec import JointCodec
from redi.models.interface import state_of
from redi.runtime.artefact import read_record
from redi.runtime.checkpoint import list_checkpoints, step_of
from redi.runtime.checksums import json_sha256, tensors_sha256, without_versions

log = logging.getLogger(__name__)

Opened = tuple[nn.Module, dict[str, Any]]  # a network and its record
# (settings of a network, device) -> the network; None while the model is trained. `model.open_network` of a run.
OpenNetwork = Callable[[Mapping[str, Any], torch.device], Opened | None]


@dataclass(frozen=True, eq=False)
class Origin:
    """The run that a model comes from: `model.origin` of an opened run.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> Origin(Path("runs/small"), 400, FlowMatching(), JointCodec()).step
        400
    """

    folder: Path
    step: int
    process: Process
    codec: JointCodec

    def __deepcopy__(self, memo: dict) -> "Origin":
        return self  # shared by copies of the model


def network_record(settings: Mapping[str, Any], run_dir: str | Path = "") -> dict[str, Any]:
    """Return {"weak": run folder, "step": step or None for the newest} with the steps and SHA-256 of the weights file.

    Without a folder in `settings`, it is `run_dir`. Raises ValueError: there is no such checkpoint.
    """
    weak, step = str(settings["weak"] or run_dir), settings["step"]
    checkpoints = {step_of(path): path for path in list_checkpoints(weak)}
    if not checkpoints:
        raise ValueError(f"{weak} holds no checkpoints: name the folder of a run that has saved one")
    trained = max(checkpoints) if step is None else step
    if trained not in checkpoints:
        what = f"{weak} has no checkpoint of step {step}, only of {', '.join(map(str, checkpoints))}"
        raise ValueError(f"{what}. Training deletes old checkpoints: keep this one with train.keep_every = {step}")
    digest = read_record(checkpoints[trained])["files"]["ema.safetensors"]["sha256"]
    return {"weak": weak, "step": step, "trained_steps": trained, "file_sha256": digest}


def are_current(records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether the networks in the record of samples still have the same weights."""
    try:
        return all(network_record(one) == one for one in records.values() if "file_sha256" in one)
    except (ValueError, LookupError, TypeError, AttributeError):  # not found, damaged, or not such a record
        return False


def open_networks(
    rules: Sequence[Guidance], model: nn.Module, codec: JointCodec, process: Process
) -> tuple[list[Guidance], dict[str, Opened]]:
    """Return the rules to apply, and {name: (network, record)} of their networks.

    A network that a rule names by settings is opened by `model.open_network`. While the model is trained, that gives
    None, and the rule is left out. Raises ValueError if a network cannot be opened or does not fit the model.
    """
    applied: list[Guidance] = []
    networks: dict[str, Any] = {}
    networks_of(rules)  # refuses two networks of one name
    for rule in rules:
        opened = {name: _opened(rule, given, model, codec, process) for name, given in rule.networks().items()}
        if None in opened.values():
            log.info("during training: sampling without %s, whose network is opened afterwards", type(rule).__name__)
            continue
        applied.append(rule)
        networks |= opened
    return applied, networks


def _opened(rule: Guidance, given: Any, model: nn.Module, codec: JointCodec, process: Process) -> Opened | None:
    settings = given
    try:
        if isinstance(given, nn.Module):
            settings = {name: type(given).__name__ for name, value in vars(rule).items() if value is given}
            opened = given, {"weights_sha256": tensors_sha256(dict(given.named_parameters()))}
        elif all(value is None for value in given.values()):
            raise ValueError("no network is named: bind weak to a run folder, or step to an earlier step of this run")
        elif open_network := getattr(model, "open_network", None):
            opened = open_network(given, next(model.parameters()).device)
        else:
            what = "this model does not come from a run folder, so it cannot open another network"
            raise ValueError(f"{what}: pass the network itself, or open the run with redi.load")
        if opened is not None:
            check_fit(opened[0], model, codec, process)
        return opened
    except ValueError as error:
        bindings = [f"{type(rule).__name__}.{key} = {value!r}" for key, value in settings.items() if value is not None]
        raise ValueError(f"{', '.join(bindings) or type(rule).__name__}: {error}") from None


def check_fit(network: nn.Module, model: nn.Module, codec: JointCodec, process: Process) -> None:
    """Raise ValueError if a network cannot guide a model: another joint state, process or codec, where it is known."""
    theirs, ours = state_of(network), state_of(model)
    for name in ("channels", "grid", "num_classes"):
        other, own = getattr(theirs, name), getattr(ours, name)
        if other != own or (name == "channels" and other.vectors != own.vectors):
            what = f"the network has {name} = {other}, but the model has {own}"
            raise ValueError(f"{what}: choose a network with the {name} of the model")
    origin: Origin | None = getattr(network, "origin", None)
    if origin is None:
        return
    other, own = _settings(origin.process), _settings(process)
    if differing := [name for name in other | own if json_sha256(other.get(name)) != json_sha256(own.get(name))]:
        has, needs = (", ".join(f"{n} = {one[n]}" for n in differing if n in one) for one in (other, own))
        what = f"the network was trained with {has or 'other settings'}, but the model with {needs or 'others'}"
        raise ValueError(f"{what}: bind the same JointObjective.process and clock in both runs")
    if groups := differing_groups(codec, origin.codec):
        what = f"the codec of the network computes {' and '.join(groups)} differently"
        raise ValueError(f"{what}: train both on the same autoencoder, encoders and fitted reducers")


def _settings(process: Process) -> dict[str, Any]:
    """Return {"process.name": ..., "clock.name": ..., ...} of a process, which may have a clock."""
    record = process.provenance()
    parts = {"process": record.get("process", record), "clock": record.get("clock", {"name": "Shared"})}
    return {f"{part}.{name}": value for part, settings in parts.items() for name, value in settings.items()}


def differing_groups(codec: JointCodec, other: JointCodec) -> list[str]:
    """Return the channel groups that two codecs compute differently. Groups not fitted are not compared."""
    ours, theirs = (_group_provenance(one) for one in (codec, other))
    return [name for name in ours if name in theirs and json_sha256(ours[name]) != json_sha256(theirs[name])]


def _group_provenance(codec: JointCodec) -> dict[str, dict]:
    parts = {"image": codec.autoencoder.provenance()} if codec.statistics is None or codec.statistics.fitted else {}
    for name, r in codec.representations.items():
        if r.encoder.fitted and r.reducer.fitted:
            learned = {k: t for k, t in codec.learned_state().items() if k.startswith(f"{name}.")}
            learned.pop(f"{name}.reducer.origin", None)  # the images of the fit may have moved
            # The encoder as the fit records it: its weights may be missing where only sampling is needed.
            fit = r.reducer.provenance() | {"fitted_on": (r.reducer.fitted_on or {}).get("encoder")}
            fit |= {"vector": r.vector} if r.vector else {}
            parts[name] = {"encoder": type(r.encoder).__name__, **fit, "learned": tensors_sha256(learned)}
    return {name: without_versions(part) for name, part in parts.items()}
