"""The architecture of a published state dict, and the layout of DiT and SiT."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

from torch import Tensor

from redi.core.channels import Channels
from redi.fusion import sincos_positions
from redi.models.blocks import Block
from redi.models.blocks.adaln import AdaLN
from redi.models.sizes import SIZES
from redi.models.transformer import DiffusionTransformer

SPECIFICATION = "docs/published-weights.md specifies the layout"


@dataclass(frozen=True)
class Layout:
    """The architecture of a published model, as its shapes define it. A subclass is another layout.

    Examples:
        >>> layout = Layout(
        ...     width=384, depth=12, patch_size=2, in_channels=12, out_channels=24, patch_grid=(16, 16),
        ...     num_classes=1000, mlp_hidden=1536)
        >>> layout.grid, layout.channels()["dinov2"], layout.model_settings()
        ((32, 32), 8, {'size': 'S/2'})
    """

    width: int
    depth: int
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O: C, or 2 C with learn_sigma
    patch_grid: tuple[int, int]
    num_classes: int  # K, without the null label
    mlp_hidden: int
    projectors: tuple[str, ...] = ()  # prefixes, see `projector_prefixes`
    projector_width: int = 0
    num_heads: int | None = None  # if the shapes determine it
    head_depth: int = 0  # blocks of a wide head

    title: ClassVar[str] = "DiT or SiT"
    frameworks: ClassVar[tuple[str, ...]] = ("sit", "dit", "repa")  # values of --framework for this layout
    block: ClassVar[type[Block]] = AdaLN
    marks: ClassVar[tuple[str, ...]] = ("blocks.0.mlp.fc1.weight",)  # tensors that identify the layout, one by one
    patches: ClassVar[str] = "x_embedder.proj"  # the patch embedding of the model's width
    mlp: ClassVar[str] = "mlp.fc1"
    num_vectors: ClassVar[int] = 0  # tokens without a position, the first ones
    times: ClassVar[tuple[str, ...]] = ("t_embedder.mlp.0.weight",)
    alignment_layer: ClassVar[int] = 8  # the block that REPA aligned, if the file does not say
    projector: ClassVar[str] = "projector."  # prefix of the projector of a model that was trained here
    # {published stem: this library's stem} inside of blocks, in the order of the published code
    in_block: ClassVar[Mapping[str, str]] = {
        "attn.qkv": "qkv", "attn.proj": "projection", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
        "adaLN_modulation.1": "modulation.1",
    }  # fmt: skip

    @classmethod
    def anchors(cls) -> dict[str, int]:
        """Return {name in every state dict of this layout: number of its dimensions}."""
        matrices = "y_embedder.embedding_table", "blocks.0.attn.qkv", f"blocks.0.{cls.mlp}", "final_layer.linear"
        return {f"{cls.patches}.weight": 4, **dict.fromkeys((*cls.times, *(f"{name}.weight" for name in matrices)), 2)}

    @classmethod
    def parse(cls, state: Mapping[str, Tensor], grid: tuple[int, int] | None) -> "Layout":
        """Infer the layout of a state dict that has the `anchors`; `grid` is that of `parse_layout`."""
        width, channels, p, _ = state[f"{cls.patches}.weight"].shape
        rows = len(state["final_layer.linear.weight"])
        if rows % (p * p) or rows // (p * p) not in (channels, 2 * channels):
            allowed = f"must have {p * p * channels}, or {2 * p * p * channels} with learn_sigma"
            patches = f"{p}x{p} patches of {channels} channels"
            raise ValueError(f"the checkpoint's head has {rows} rows for {patches}: {allowed}")
        projectors = projector_prefixes(state)
        fields: dict[str, Any] = {
            "width": width,
            "depth": 1 + max(int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name)),
            "patch_size": p,
            "in_channels": channels,
            "out_channels": rows // (p * p),
            "patch_grid": _patch_grid(state, p, grid, cls.num_vectors),
            "num_classes": len(state["y_embedder.embedding_table.weight"]) - 1,
            "mlp_hidden": len(state[f"blocks.0.{cls.mlp}.weight"]),
            "projectors": projectors,
            "projector_width": next((size_of(state, f"{prefix}0.weight") for prefix in projectors), 0),
        }
        return cls(**fields | cls.options(state, fields))

    @classmethod
    def options(cls, state: Mapping[str, Tensor], fields: dict) -> dict[str, Any]:
        """Return further fields, or other values of these `fields`, which the shapes of a subclass's layout define."""
        return {}

    @property
    def learn_sigma(self) -> bool:
        """Whether the head has a second output per channel."""
        return self.out_channels == 2 * self.in_channels

    @property
    def num_blocks(self) -> int:
        """Number of blocks, including those of a wide head."""
        return self.depth + self.head_depth

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the joint state."""
        return self.patch_grid[0] * self.patch_size, self.patch_grid[1] * self.patch_size

    def channels(self) -> Channels:
        """Return the groups of published models: 4 latents, then DINOv2 components. Raises ValueError for other C."""
        if self.in_channels == 4:
            return Channels(image=4)
        if 4 < self.in_channels <= 68:  # ReDi: up to 64 components
            return Channels(image=4, dinov2=self.in_channels - 4)
        raise ValueError(
            f"the checkpoint has {self.in_channels} input channels, not 4 latents and up to 64 DINOv2 components: name "
            "the groups with channels=, or in a gin file whose codec has these groups"
        )

    def bindings(self) -> list[str]:
        """Return the bindings of data and features that the shapes determine, in addition to configuration files."""
        rank = self.channels().get("dinov2")
        features = [f"PCA.rank = {rank}"] if rank else []
        size = 8 * self.grid[0]  # the Stable Diffusion VAE downsamples by 8
        return [f"Preprocessing.image_size = {size}", "StableVAE.uint8_rule = 'truncate'", *features]

    def example_channels(self) -> Channels:
        """Return groups that a model of these shapes may have, for any number of channels."""
        return Channels(image=self.in_channels)

    def model_settings(self, num_heads: int | None = None) -> dict:
        """Return settings of `DiffusionTransformer`: `size` if the shapes match a published size, else its parts.

        If the shapes do not determine `num_heads`, the default is that of the published size of this width, else width
        / 64. Raises ValueError if this is not an integer.
        """
        num_heads = self.num_heads or num_heads
        settings: dict = {"size": f"B/{self.patch_size}", "width": self.width, "depth": self.depth}
        for letter, (width, depth, heads) in SIZES.items():
            if width == self.width:
                num_heads = num_heads or heads
                if (depth, heads) == (self.depth, num_heads):
                    settings = {"size": f"{letter}/{self.patch_size}"}
        if num_heads is None and self.width % 64:
            raise ValueError(
                f"the number of heads is unknown: checkpoints do not store it, and the width {self.width} is neither "
                "that of a published size nor a multiple of 64: set num_heads=, or "
                "--gin_bindings='DiffusionTransformer.num_heads = ...'"
            )
        if "width" in settings:
            settings["num_heads"] = num_heads or self.width // 64
        if (ratio := self.mlp_ratio()) != 4:
            settings["mlp_ratio"] = ratio
        if self.projectors:
            settings |= {
                "alignment_width": self.projector_width,
                "alignment_layer": min(self.alignment_layer, self.depth),
            }
        return settings

    def mlp_ratio(self) -> float:
        """Return `DiffusionTransformer.mlp_ratio`."""
        return self.mlp_hidden / self.width

    def block_settings(self) -> dict[str, Any]:
        """Return the arguments of `block`, in addition to those that every block has."""
        return {}

    @classmethod
    def of_model(cls, model: DiffusionTransformer) -> bool:
        """Whether this layout can hold a model."""
        fits = isinstance(model.blocks[0], cls.block) and len(model.channels.vectors) == cls.num_vectors
        return fits and cls.of_times(model)

    @classmethod
    def of_times(cls, model: DiffusionTransformer) -> bool:
        """Whether this layout can hold the time embeddings and the wide head of a model."""
        return not model.group_embeddings and model.timestep_embedding.frequencies is None and model.wide_head is None

    @classmethod
    def heads_of(cls, model: DiffusionTransformer) -> dict[str, Any]:
        """Return the fields with numbers of attention heads, which only the model knows."""
        return {"num_heads": model.blocks[0].num_heads}

    @classmethod
    def names(cls, channels: Channels, depth: int) -> dict[str, str]:
        """Return {published stem: this library's stem} of all tensors but projectors and `tables`.

        Patch embeddings, whose stem here ends in 'embeddings', and heads, 'heads', hold all channels.
        """
        stems = cls.stems(channels)
        pairs = [(f"blocks.{i}", pair) for i in range(depth) for pair in cls.in_block.items()]
        blocks = {f"{block}.{name}": f"{block}.{ours}" for block, (name, ours) in pairs}
        final = {name: stems.pop(name) for name in [*stems] if name.startswith("final_layer.")}
        return stems | blocks | final

    @classmethod
    def stems(cls, channels: Channels) -> dict[str, str]:
        """Return the entries of `names` outside of blocks. The blocks come before the final layer."""
        return {
            "x_embedder.proj": "fusion.embeddings",
            "t_embedder.mlp.0": "timestep_embedding.mlp.0", "t_embedder.mlp.2": "timestep_embedding.mlp.2",
            "y_embedder.embedding_table": "label_embedding",
            "final_layer.linear": "fusion.heads", "final_layer.adaLN_modulation.1": "final_modulation.1",
        }  # fmt: skip

    def tables(self) -> dict[str, Tensor]:
        """Return {published name: fixed table}, which this library computes."""
        return {"pos_embed": sincos_positions(self.patch_grid, self.width)[None]}  # (1, T, D)


def size_of(state: Mapping[str, Tensor], name: str, dim: int = 0) -> int:
    """Return the size of a tensor along a dimension; 0 if there is no such tensor or dimension."""
    return state[name].shape[dim] if name in state and state[name].ndim > dim else 0


def projector_prefixes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of the REPA projectors in these names: ReDi's, SFD's, or the numbered ones of REPA."""
    for prefix in ("projector.", "repa_projector."):
        if any(name.startswith(prefix) for name in names):
            return (prefix,)
    numbers = {int(match[1]) for name in names if (match := re.match(r"projectors\.(\d+)\.", name))}
    return tuple(f"projectors.{number}." for number in sorted(numbers))


def _patch_grid(
    state: Mapping[str, Tensor], patch_size: int, grid: tuple[int, int] | None, num_vectors: int
) -> tuple[int, int]:
    if "pos_embed" in state:
        tokens = state["pos_embed"].shape[1] - num_vectors
        if isqrt(tokens) ** 2 != tokens:
            raise ValueError(f"the checkpoint has {tokens} positions: must be a square number; {SPECIFICATION}")
        return isqrt(tokens), isqrt(tokens)
    if grid is None:
        advice = "pass grid=(32, 32) for 256 pixels and an autoencoder of 1/8"
        raise ValueError(f"the checkpoint has no pos_embed, so its image size is unknown: {advice}")
    return grid[0] // patch_size, grid[1] // patch_size
