"""Read checkpoints of other programs: models, encoders and autoencoders."""

import argparse
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from redi.models.published.layout import Layout
from redi.runtime.paths import local_path
from redi.runtime.weights_files import bare_name, check_tensors, find_weights_file, number, read_weights

log = logging.getLogger(__name__)

# Keys under which training programs store weights, and the pattern of those with averaged weights.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema",
    "teacher", "state_dict", "model_state_dict", "model", "module", "network", "net", "params", "weights", "student",
)  # fmt: skip
AVERAGED = re.compile(r"(?<![a-z])(ema|teacher)(?![a-z])(?!.*(online|student))")
STEPS = (
    "step", "steps", "train_step", "train_steps", "global_step", "iteration", "iterations", "iter", "n_iter",
    "num_updates",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedFile:
    """The content of a checkpoint.

    Examples:
        >>> import tempfile, torch
        >>> with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        ...     torch.save({"ema": {"weight": torch.ones(2)}, "step": 400}, file.name)
        ...     published = read_published(file.name, names=["weight"])
        >>> published.state("ema"), published.step
        ({'weight': tensor([1., 1.])}, 400)
    """

    path: Path  # for several files: their index
    weights: dict[str, dict[str, Tensor]]  # {"ema" or "model": {name without prefixes: tensor}}, in the file's order
    args: dict  # settings of the training program as JSON; empty if the file has none
    files: tuple[Path, ...]
    steps: dict = field(default_factory=dict)  # {name in `STEPS`: stored value}

    def state(self, which: str = "ema") -> dict[str, Tensor]:
        """Return the averaged weights ('ema') or the raw ones ('model'), or the others if these are missing."""
        return self.weights.get(which) or next(iter(self.weights.values()))

    @property
    def step(self) -> int | None:
        """Training step of the checkpoint; None if not stored. Raises ValueError if it is not a step number."""
        steps = []
        for name, stored in self.steps.items():
            value = number(stored)
            if value is None or value < 0 or not float(value).is_integer():
                shown = type(stored).__name__ if value is None else value
                raise ValueError(f"{self.path} holds {name} = {shown}, which is not a step number: pass --step")
            steps.append(int(value))
        return max(steps, default=None)


def read_published(
    path: str | Path, *, names: Collection[str] = tuple(Layout.anchors()), binding: str = ""
) -> PublishedFile:
    """Read a state dict, alone or in a training program's checkpoint, without executing code from it.

    docs/published-weights.md lists the formats.

    Args:
        path: .safetensors, .pt, .pth, .ckpt or .bin file; a folder with one such file, or with shards and their index.
        names: names of the model's tensors, for `fit_names`; default: those of DiT and related models.
        binding: binding that set the path, for messages.

    Raises ValueError if the file is missing or truncated, holds no named tensors, or holds classes that could run code.
    """
    path = local_path(path)
    try:
        path = find_weights_file(path)
        files, content = read_weights(path)
        if not isinstance(content, Mapping):
            raise ValueError(f"holds a {type(content).__name__}, not a state dict")
        weights = _weights(path, content, names)
        num_bytes = sum(file.stat().st_size for file in files)
        check_tensors((tensor for state in weights.values() for tensor in state.values()), num_bytes)
        steps = {name: content[name] for name in STEPS if name in content}
        return PublishedFile(path, weights, _settings(content.get("args", content.get("config"))), files, steps)
    except ValueError as error:
        raise ValueError(f"{binding}{': ' if binding else ''}{path} {error}") from None


def fit_names(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors without the prefix before these names, such as 'backbone.'.

    A prefix counts if at least half of the names follow it. Without such a prefix, all tensors are returned unchanged.
    The prefix of averaged weights ('ema_model.') is preferred to that of raw ones ('model.').
    """
    parts = _by_prefix(tensors, names)
    prefix = next(filter(AVERAGED.search, parts), next(iter(parts)))
    if prefix:
        log.info("using the weights of %s*", prefix)
    return parts[prefix]


def _weights(path: Path, content: Mapping, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    parts = {
        f"{place}{prefix}": part
        for place, state in _states(content).items()
        for prefix, part in _by_prefix(_named_tensors(state), names).items()
    }
    if not parts:
        entries = [f"{key[:100]}: {type(value).__name__}" for key, value in content.items() if isinstance(key, str)]
        advice = f"save a state dict, alone or as one of {', '.join(CONTAINERS)}"
        raise ValueError(f"holds no named tensors ({', '.join(entries[:5]) or 'it is empty'}): {advice}")
    most = max(map(len, parts.values()))
    places: dict[str, str] = {}
    for place in [place for place, part in parts.items() if 2 * len(part) >= most]:  # others are not whole models
        places.setdefault("ema" if AVERAGED.search(place) else "model", place)
    places = dict(sorted(places.items()))
    if any(places.values()):
        log.info("%s: %s", path, ", ".join(f"{which} weights in {place}*" for which, place in places.items()))
    return {which: parts[place] for which, place in places.items()}


def _states(content: Mapping, depth: int = 3) -> dict[str, Mapping]:
    """Return {'ema.' or another place: state dict} of all containers, nested ones too; without any, {'': content}."""
    inner = {name: content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)} if depth else {}
    states = {f"{name}.{place}": s for name, value in inner.items() for place, s in _states(value, depth - 1).items()}
    return states or ({"": content} if any(isinstance(value, Tensor) for value in content.values()) else {})


def _named_tensors(state: Mapping) -> dict[str, Tensor]:
    """Return {name: tensor}, without the prefixes of wrappers such as DistributedDataParallel."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if isinstance(key, str) and isinstance(tensor, Tensor) and key != "n_averaged":  # of torch's AveragedModel
            if (name := bare_name(key)) in tensors:
                raise ValueError(f"holds {name} twice, with different prefixes: remove one of them")
            tensors[name] = tensor
    return tensors


def _by_prefix(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """Return {prefix: tensors without it} for the prefixes of at least half of the names, else {'': tensors}."""
    names = set(names)
    counts: Counter[str] = Counter()
    for name in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in names)
    prefixes = [prefix for prefix, count in counts.most_common() if prefix and 2 * count >= len(names)]
    if not prefixes or 2 * counts[""] >= len(names):
        return {"": dict(tensors)}
    return {p: {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in prefixes}


def _settings(args: object) -> dict:
    """Return the settings of the training program as JSON. Raises ValueError if they cannot be written as JSON."""
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    try:
        return json.loads(json.dumps({str(key): value for key, value in args.items()}, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"holds args that cannot be written as JSON ({error}): save the weights alone") from None
