"""What the library needs of a model: `train.model` builds any `nn.Module` with such a forward pass."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from redi.core.channels import Channels


class Model(Protocol):
    """An `nn.Module` that predicts; `DiffusionTransformer` is one, and docs/add-a-component.md has a small other one.

    Its constructor is called with what only the loop knows, as far as it takes it: `channels` (the groups of the joint
    state), `grid` (H, W) and `num_classes` K; where they are asked for, `variance_groups` and `alignment_dim` (see
    `DiffusionTransformer`), without which a model is refused then. No attribute is needed. Used where they are there:

    - `choose_attention(device, dtype) -> str` sets a backend before training or sampling, and says which;
    - `blocks`, submodules that FSDP shards one by one;
    - `has_group_times`: True for a model that reads every group's time, t (N, groups).
    """

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (N, C, H, W) at t (N,), labels y (N,) in 0 ... K, K the null label -> the prediction (N, C, H, W)."""


class JointState(NamedTuple):
    """What a model was built for."""

    channels: Channels
    grid: tuple[int, int]
    num_classes: int
    class_names: Sequence[str] | None = None  # for labels given by name; a run that is opened knows them


def build_model(model: Callable[..., nn.Module], arguments: Mapping) -> nn.Module:
    """`model` called with those of the loop's `arguments` that it takes. Raises ValueError where it is no `Model`."""
    name = f"train.model = {getattr(model, '__name__', model)!s:.80}"
    # gin's class has a metaclass, whose signature says nothing.
    parameters = inspect.signature(model.__init__ if inspect.isclass(model) else model).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {key: value for key, value in arguments.items() if takes_any or key in parameters}
    if refused := sorted(arguments.keys() - taken.keys() - {"channels", "grid", "num_classes"}):
        raise ValueError(f"{name} does not take {', '.join(refused)}, which this process or JointCodec.alignment needs")
    net = model(**taken)
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name} gives {net!r:.80}, not an nn.Module")
    try:
        inspect.signature(net.forward).bind("x", "t", "y")
    except TypeError as error:
        raise ValueError(f"{name}: its forward is called with (x, t, y): {error}") from None
    net.joint_state = JointState(arguments["channels"], tuple(arguments["grid"]), arguments["num_classes"])
    return net


def state_of(model: nn.Module) -> JointState:
    """What a model was built for. Raises ValueError for one that neither `build_model` nor its own attributes tell."""
    try:
        return getattr(model, "joint_state", None) or JointState(model.channels, model.grid, model.num_classes)
    except AttributeError as error:
        raise ValueError(f"{error}: use the model of redi.load, or build it with redi.build_model") from None


def choose_attention_of(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> str:
    """Lets a model that has backends of attention choose one -> a line that says which."""
    choose = getattr(model, "choose_attention", None)
    return choose(device, dtype) if choose else f"that of {type(model).__name__}"
