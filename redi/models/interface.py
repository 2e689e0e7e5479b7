"""The interface of models: `train.model` can be any `nn.Module` with this forward pass."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from redi.core.channels import Channels


class Model(Protocol):
    """An `nn.Module` that predicts from x_t, t and labels, such as `DiffusionTransformer`.

    The training loop passes these arguments to the constructor if it accepts them: `channels` (the groups of the joint
    state), `grid` (H, W) and `num_classes` K. If the run needs `variance_groups`, `alignment_dim`, `inner_layer`,
    `takes_features` (see `DiffusionTransformer`), or `group_timesteps` (True if the groups have different times), the
    constructor must accept them. These attributes are optional:

    - `choose_attention(device, dtype) -> str` sets the attention backend and returns a line for the log;
    - `blocks`: submodules that FSDP shards one by one;
    - `projector`: the submodule that only `align=True` uses, for `JointObjective.alignment_end_step`;
    - `aligns_vectors`: True if align='all' returns the tokens of vectors too, for `JointObjective.alignment_vectors`;
    - `inner_layer`: the number of a block if forward accepts inner=True, and then returns a second prediction too;
    - `feature_shape`: (P, E) if forward accepts align=True and features (N, P, E), see `PredictedFeatures`;
    - `has_group_times`: True for a model that reads one time per group, t (N, groups).

    Examples:
        >>> class Convolution(nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.layer = nn.Conv2d(channels.total, channels.total, 3, padding=1)
        ...     def forward(self, x, t, y): return self.layer(x)
        >>> arguments = {"channels": Channels(image=4, dinov2=8), "grid": (8, 8), "num_classes": 10}
        >>> model = build_model(Convolution, arguments)
        >>> model(torch.zeros(2, 12, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long)).shape
        torch.Size([2, 12, 8, 8])
    """

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the prediction (N, C, H, W) for x (N, C, H, W), t (N,) and labels y (N,) in 0 ... K (K: null)."""


class JointState(NamedTuple):
    """Shape of the joint state and number of classes that a model was built for.

    Examples:
        >>> state = JointState(Channels(image=4, dinov2=8), grid=(32, 32), num_classes=1000)
        >>> state.channels.total
        12
    """

    channels: Channels
    grid: tuple[int, int]
    num_classes: int
    class_names: Sequence[str] | None = None  # set when a run is opened; labels may then be names


def build_model(model: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Call `model` with those of the loop's `arguments` that it accepts. Raises ValueError if it is not a `Model`."""
    name = f"train.model = {getattr(model, '__name__', model)!s:.80}"
    # A class that gin wraps has a metaclass, which hides its signature.
    constructor: Callable = model.__init__ if inspect.isclass(model) else model
    parameters = inspect.signature(constructor).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    keywords = {key: value for key, value in arguments.items() if takes_any or key in parameters}
    if missing := sorted(arguments.keys() - keywords.keys() - {"channels", "grid", "num_classes"}):
        causes = "JointObjective.process, clock, inner_layer or predicted_features, or JointCodec.alignment, needs"
        needs = f"does not accept {', '.join(missing)}, which {causes}"
        raise ValueError(f"{name} {needs}: add it to the constructor, or change the process, clock or alignment")
    net = model(**keywords)
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name} returns {net!r:.80}: must return an nn.Module")
    try:
        inspect.signature(net.forward).bind("x", "t", "y")
    except TypeError as error:
        raise ValueError(f"{name}: its forward must accept (x, t, y): {error}") from None
    state: Any = JointState(arguments["channels"], tuple(arguments["grid"]), arguments["num_classes"])
    net.joint_state = state
    return net


def state_of(model: Any) -> JointState:
    """Return the joint state that a model was built for. Raises ValueError if the model does not define it."""
    try:
        return getattr(model, "joint_state", None) or JointState(model.channels, model.grid, model.num_classes)
    except AttributeError as error:
        raise ValueError(f"{error}: use a model from redi.load, or build it with redi.build_model") from None


def choose_attention_of(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> str:
    """Set the attention backend if the model has `choose_attention`. Return a line for the log."""
    choose = getattr(model, "choose_attention", None)
    return choose(device, dtype) if choose else f"as implemented by {type(model).__name__}"
