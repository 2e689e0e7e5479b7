"""Checkpoints that other programs wrote: one reader for models, encoders and autoencoders."""

import argparse
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from redi.models.published.layout import ANCHORS
from redi.runtime.paths import local_path
from redi.runtime.weights_files import bare_name, check_tensors, find_weights_file, number, read_weights

log = logging.getLogger(__name__)

# Where training programs keep the weights in their checkpoints, and how averaged ones are known among them.
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
    """What a checkpoint holds."""

    path: Path  # of several files, their index
    # "ema" and "model", as far as they are there: {published name without wrappers' prefixes: tensor} in file order
    weights: dict[str, dict[str, Tensor]]
    args: dict  # the settings of the training program where the file has them, as JSON
    files: tuple[Path, ...]
    steps: dict = field(default_factory=dict)  # what is stored under the names of `STEPS`

    def state(self, which: str = "ema") -> dict[str, Tensor]:
        """The averaged weights ('ema') or the raw ones ('model'); the others where the file has only those."""
        return self.weights.get(which) or next(iter(self.weights.values()))

    @property
    def step(self) -> int | None:
        """After how many steps it was written; None where the file does not say. Raises ValueError for no count."""
        values = {name: number(value) for name, value in self.steps.items()}
        for name, value in values.items():
            if value is None or value < 0 or not float(value).is_integer():
                shown = type(self.steps[name]).__name__ if value is None else value
                raise ValueError(f"{self.path} holds {name} = {shown}, which is no number of steps: state it (--step)")
        return max(map(int, values.values()), default=None)


def read_published(
    path: str | Path, *, names: Collection[str] = tuple(ANCHORS), binding: str = ""
) -> PublishedFile:  # fmt: skip
    """Read a state dict, alone or in a training program's checkpoint (docs/published-weights.md). Nothing is executed.

    Args:
        path: .safetensors, .pt, .pth, .ckpt or .bin; or a folder with one of them, or with shards and their index.
        names: the model's tensors, for `fit_names`; default: those of DiT and its relatives.
        binding: what named the path, for messages.

    Raises ValueError: missing, truncated, not named tensors, or classes that would run code.
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
        return PublishedFile(path, weights, _settings(content.get("args")), files, steps)
    except ValueError as error:
        raise ValueError(f"{binding}{': ' if binding else ''}{path} {error}") from None


def fit_names(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors without the prefix that stands before these names ('backbone.'), averaged ones before raw ones
    ('ema_model.', 'model.'); as they are where no prefix makes at least half of the names fit.
    """
    parts = _by_prefix(tensors, names)
    prefix = next(filter(AVERAGED.search, parts), next(iter(parts)))
    if prefix:
        log.info("weights are taken from %s*", prefix)
    return parts[prefix]


def _weights(path: Path, content: Mapping, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    parts = {
        f"{place}{prefix}": part
        for place, state in _states(content).items()
        for prefix, part in _by_prefix(_named_tensors(state), names).items()
    }
    if not parts:
        named = [f"{key[:100]}: {type(value).__name__}" for key, value in content.items() if isinstance(key, str)]
        advice = f"save a state dict, alone or as one of {', '.join(CONTAINERS)}"
        raise ValueError(f"holds no tensors by name, but {', '.join(named[:5]) or 'nothing'}: {advice}")
    most, places = max(map(len, parts.values())), {}
    for place in [place for place, part in parts.items() if 2 * len(part) >= most]:  # less is an average's settings
        places.setdefault("ema" if AVERAGED.search(place) else "model", place)
    places = dict(sorted(places.items()))
    if any(places.values()):
        log.info("%s: %s", path, ", else ".join(f"{which} weights of {place}*" for which, place in places.items()))
    return {which: parts[place] for which, place in places.items()}


def _states(content: Mapping, depth: int = 3) -> dict[str, Mapping]:
    """{place, as 'ema.': state dict}: of the containers, those inside containers too; else ''."""
    inner = {name: content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)} if depth else {}
    states = {f"{name}.{place}": s for name, value in inner.items() for place, s in _states(value, depth - 1).items()}
    return states or ({"": content} if any(isinstance(value, Tensor) for value in content.values()) else {})


def _named_tensors(state: Mapping) -> dict[str, Tensor]:
    """{name: tensor} without the prefixes of wrappers."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if isinstance(key, str) and isinstance(tensor, Tensor) and key != "n_averaged":  # torch's AveragedModel counts
            if (name := bare_name(key)) in tensors:
                raise ValueError(f"holds {name} twice, with different prefixes")
            tensors[name] = tensor
    return tensors


def _by_prefix(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """{prefix: its tensors without it}, of prefixes before at least half of the names; without any, all under ''."""
    names, counts = set(names), Counter()
    for name in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in names)
    prefixes = [prefix for prefix, count in counts.most_common() if prefix and 2 * count >= len(names)]
    if not prefixes or 2 * counts[""] >= len(names):
        return {"": dict(tensors)}
    return {p: {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in prefixes}


def _settings(args: object) -> dict:
    """As JSON. Raises ValueError where they are not plain."""
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    try:
        return json.loads(json.dumps({str(key): value for key, value in args.items()}, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"holds args that are not plain settings ({error})") from None
