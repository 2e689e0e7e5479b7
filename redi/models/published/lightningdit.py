"""The layouts of LightningDiT (arXiv 2501.01423) and of SFD (arXiv 2512.04926)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.models.blocks.modern import Modern, SwiGLU
from redi.models.published.layout import Layout, size_of
from redi.models.rotary import rotation_table
from redi.models.transformer import DiffusionTransformer


@dataclass(frozen=True)
class LightningDiT(Layout):
    """RMSNorm, SwiGLU and rotary positions, whose tables are stored and define the number of heads.

    Examples:
        >>> layout = LightningDiT(
        ...     width=1152, depth=28, patch_size=1, in_channels=32, out_channels=32, patch_grid=(16, 16),
        ...     num_classes=1000, mlp_hidden=3072, num_heads=16)
        >>> layout.channels(), layout.model_settings()["size"], layout.block_settings()["qk_norm"]
        (Channels(image=32), 'XL/1', False)
    """

    qk_norm: bool = False
    shift: bool = True  # False: LightningDiT's option wo_shift

    title: ClassVar[str] = "LightningDiT"
    frameworks: ClassVar[tuple[str, ...]] = ("lightningdit",)
    block: ClassVar[type[Modern]] = Modern
    marks: ClassVar[tuple[str, ...]] = ("blocks.0.mlp.w12.weight",)
    mlp: ClassVar[str] = "mlp.w12"
    projector: ClassVar[str] = "repa_projector."
    # {module of rotary tables: what precedes "width" and "num_heads" in the fields that define it}
    rotary: ClassVar[Mapping[str, str]] = {"feat_rope": ""}
    in_block: ClassVar[Mapping[str, str]] = {
        "norm1": "norm1", "attn.qkv": "qkv", "attn.q_norm": "q_norm", "attn.k_norm": "k_norm",
        "attn.proj": "projection", "norm2": "norm2", "mlp.w12": "mlp.w12", "mlp.w3": "mlp.w3",
        "adaLN_modulation.1": "modulation.1",
    }  # fmt: skip

    @classmethod
    def options(cls, state: Mapping[str, Tensor], fields: dict) -> dict[str, Any]:
        norm, heads = "blocks.0.attn.q_norm.weight", {}
        for module, which in cls.rotary.items():
            width = fields[f"{which}width"]
            head_dim = size_of(state, f"{module}.freqs_cos", dim=1) or (0 if which else size_of(state, norm))
            if head_dim and width % head_dim:
                raise ValueError(f"the checkpoint has heads of width {head_dim}: must divide the model's width {width}")
            heads[f"{which}num_heads"] = width // head_dim if head_dim else None
        return heads | {
            "mlp_hidden": fields["mlp_hidden"] // 2,
            "qk_norm": norm in state,
            "shift": size_of(state, "blocks.0.adaLN_modulation.1.weight") != 4 * fields["width"],
        }

    def channels(self) -> Channels:
        return Channels(image=self.in_channels)

    def bindings(self) -> list[str]:
        return [f"Preprocessing.image_size = {16 * self.grid[0]}"]  # its autoencoder downsamples by 16

    def mlp_ratio(self) -> float:
        # A hidden width of int(2 / 3 int(ratio width)).
        default = int(2 / 3 * 4 * self.width) == self.mlp_hidden
        return 4.0 if default else (3 * self.mlp_hidden // 2 + 1.5) / self.width

    def block_settings(self) -> dict[str, Any]:
        return {"norm": "rms", "mlp": "swiglu", "rotary": True, "qk_norm": self.qk_norm, "shift": self.shift}

    def model_settings(self, num_heads: int | None = None) -> dict:
        return super().model_settings(num_heads) | {"block": partial(self.block, **self.block_settings())}

    @classmethod
    def of_model(cls, model: DiffusionTransformer) -> bool:
        block = model.blocks[0]
        return super().of_model(model) and block.norm == "rms" and block.rotary and isinstance(block.mlp, SwiGLU)

    @classmethod
    def stems(cls, channels: Channels) -> dict[str, str]:
        return {"final_layer.norm_final": "final_norm"} | super().stems(channels)

    @classmethod
    def heads_of(cls, model: DiffusionTransformer) -> dict[str, Any]:
        blocks = zip(cls.rotary.values(), (model.blocks[0], model.blocks[-1]), strict=False)
        return {f"{which}num_heads": block.num_heads for which, block in blocks}

    def tables(self) -> dict[str, Tensor]:
        tables, coordinates = super().tables(), torch.cartesian_prod(*(torch.arange(side) for side in self.patch_grid))
        for module, which in self.rotary.items():
            if heads := getattr(self, f"{which}num_heads"):
                both = rotation_table(coordinates, getattr(self, f"{which}width") // heads)
                tables[f"{module}.freqs_cos"], tables[f"{module}.freqs_sin"] = both
        return tables


@dataclass(frozen=True)
class SFD(LightningDiT):
    """LightningDiT on 32 texture channels and a semantic latent, with a time embedding of half the width for each.

    Examples:
        >>> layout = SFD(
        ...     width=1152, depth=28, patch_size=1, in_channels=48, out_channels=48, patch_grid=(16, 16),
        ...     num_classes=1000, mlp_hidden=3072, num_heads=16, qk_norm=True)
        >>> layout.channels()
        Channels(image=32, dinov2=16)
    """

    title: ClassVar[str] = "SFD"
    frameworks: ClassVar[tuple[str, ...]] = ("sfd",)
    marks: ClassVar[tuple[str, ...]] = ("t_embedder_sem.mlp.0.weight",)
    times: ClassVar[tuple[str, ...]] = ("t_embedder_sem.mlp.0.weight", "t_embedder_tex.mlp.0.weight")
    alignment_layer: ClassVar[int] = 2

    def channels(self) -> Channels:
        if self.in_channels <= 32:
            what = f"the checkpoint has {self.in_channels} input channels, not 32 of the texture and some of semantics"
            raise ValueError(f"{what}: name the groups with channels=, or in a gin file whose codec has these groups")
        return Channels(image=32, dinov2=self.in_channels - 32)

    def bindings(self) -> list[str]:
        return [*super().bindings(), f"SemVAE.rank = {self.in_channels - 32}"]

    def example_channels(self) -> Channels:
        return Channels(image=self.in_channels - 1, dinov2=1)

    def model_settings(self, num_heads: int | None = None) -> dict:
        return super().model_settings(num_heads) | {"group_timesteps": True, "group_times_by": "concatenation"}

    @classmethod
    def of_times(cls, model: DiffusionTransformer) -> bool:
        return len(model.group_embeddings) == 1 and model.group_times_by == "concatenation"

    @classmethod
    def stems(cls, channels: Channels) -> dict[str, str]:
        if len(channels.representations) != 1:
            raise ValueError(f"the checkpoint is of SFD, which has one representation, but the channels are {channels}")
        embeddings = {"sem": f"group_embeddings.{channels.representations[0]}", "tex": "timestep_embedding"}
        times = {f"t_embedder_{n}.mlp.{i}": f"{ours}.mlp.{i}" for n, ours in embeddings.items() for i in (0, 2)}
        stems = super().stems(channels)
        return {name: ours for name, ours in stems.items() if not name.startswith("t_embedder.")} | times
