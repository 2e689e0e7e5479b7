"""What a timm model is, told without its weights: built on the meta device, where nothing is computed."""

from dataclasses import dataclass, field
from functools import cache

import torch

from redi.runtime.spelling import did_you_mean


@dataclass(frozen=True)
class Architecture:
    """Shapes and origin of a timm model."""

    name: str  # with the tag of the weights, such as 'vit_base_patch14_reg4_dinov2.lvd142m'
    widths: tuple[int, ...]  # channels of every layer (block or stage)
    strides: tuple[int, ...]  # pixels of the input per feature
    fixed_size: int | None  # the only side in pixels that its input can have; None: any multiple of a stride
    names: frozenset[str] = field(repr=False)  # of its weights
    options: dict = field(repr=False)  # what `timm.create_model` needs to make it take any size
    config: dict = field(repr=False)  # timm's `pretrained_cfg`: normalisation, hub id, name of the classifier


@cache
def describe(model: str, binding: str) -> Architecture:
    """The architecture of a timm model, which the argument `binding` named. Raises ValueError where timm does not know
    it, or has no feature maps of it.
    """
    import timm

    version = f"timm {timm.__version__}"
    if not timm.is_model(model):
        raise ValueError(f"{binding} = {model!r} is no model of {version}{did_you_mean(model, timm.list_models())}")
    options = {"dynamic_img_size": True}
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        try:
            try:
                network = timm.create_model(model, **options)
            except TypeError:  # it has one size, or, as a convolutional network, no need of the option
                network, options = timm.create_model(model), {}
        except RuntimeError as error:  # the name has an unknown tag
            raise ValueError(f"{binding} = {model!r} is no model of {version}: {error}") from None
        config = network.pretrained_cfg
        size = config["input_size"][-1]
        try:
            maps = network.eval().forward_intermediates(torch.empty(1, 3, size, size), **FEATURES)
        except (AttributeError, AssertionError):
            raise ValueError(f"{binding} = {model!r}: {version} gives no normalised feature maps of it") from None
    return Architecture(
        name=f"{config['architecture']}.{config['tag']}" if config.get("tag") else config["architecture"],
        widths=tuple(features.shape[1] for features in maps),
        strides=tuple(size // features.shape[-1] for features in maps),
        fixed_size=size if config.get("fixed_input_size") and not options else None,
        names=frozenset(network.state_dict()),
        options=options,
        config=config,
    )


# Arguments of timm's `forward_intermediates`: the final norm on every layer, prefix tokens (class, registers) removed.
FEATURES = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
