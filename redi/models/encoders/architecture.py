"""The architecture of a timm model, inspected on the meta device: without weights or computation."""

import inspect
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from redi.runtime.spelling import did_you_mean


@dataclass(frozen=True)
class Architecture:
    """Shapes and origin of a timm model.

    Examples:
        >>> vit = timm_architecture("vit_base_patch16_224.mae", "Timm.model")
        >>> len(vit.widths), vit.widths[-1], vit.strides[-1]  # 12 blocks of width 768, patch size 16
        (12, 768, 16)
    """

    name: str  # with the tag of the weights, such as 'vit_base_patch14_reg4_dinov2.lvd142m'
    widths: tuple[int, ...]  # channels of every layer (block or stage)
    strides: tuple[int, ...]  # input pixels per feature, for every layer
    fixed_size: int | None  # the only input size in pixels that the network takes; None: any multiple of a stride
    has_class_token: bool  # whether `forward_intermediates` returns a class token
    names: frozenset[str] = field(repr=False)  # names of the weights
    options: dict = field(repr=False)  # arguments of `timm.create_model` with which the network takes any size
    config: dict = field(repr=False)  # timm's `pretrained_cfg`: normalisation, hub id, name of the classifier


@cache
def timm_architecture(model: str, binding: str) -> Architecture:
    """Return the architecture of a timm model. `binding` is the argument that names it, for messages.

    Raises ValueError if timm does not have the model, or the model has no feature maps.
    """
    import timm

    version = f"timm {timm.__version__}"
    if not timm.is_model(model):
        raise ValueError(f"{binding} = {model!r} is not a model of {version}{did_you_mean(model, timm.list_models())}")
    options: dict[str, Any] = {"dynamic_img_size": True}
    network: Any
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        try:
            try:
                network = timm.create_model(model, **options)
            except TypeError:  # a network of fixed size, or a convolutional one, which does not need the option
                network, options = timm.create_model(model), {}
        except RuntimeError as error:  # the name has an unknown tag
            raise ValueError(f"{binding} = {model!r} is not a model of {version}: {error}") from None
        config = network.pretrained_cfg
        size = config["input_size"][-1]
        if not options and not config.get("fixed_input_size"):
            size += -size % 64  # a grid of whole strides: EfficientNet-Lite2 was trained on 260 pixels
        try:
            maps = network.eval().forward_intermediates(torch.empty(1, 3, size, size), **FEATURES)
        except (AttributeError, AssertionError):
            what = f"{binding} = {model!r} has no normalised feature maps in {version}"
            raise ValueError(f"{what}: choose a vision transformer, ConvNeXt or ResNet, for example") from None
    return Architecture(
        name=f"{config['architecture']}.{config['tag']}" if config.get("tag") else config["architecture"],
        widths=tuple(features.shape[1] for features in maps),
        strides=tuple(size // features.shape[-1] for features in maps),
        fixed_size=size if config.get("fixed_input_size") and not options else None,
        # Some models (CaiT, XCiT) add the class token only after the patch layers, and timm does not return it.
        has_class_token=getattr(network, "cls_token", None) is not None
        and "return_prefix_tokens" in inspect.signature(network.forward_intermediates).parameters,
        names=frozenset(network.state_dict()),
        options=options,
        config=config,
    )


# Arguments of timm's `forward_intermediates`: final norm after every layer, without prefix tokens (class, registers).
FEATURES = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
