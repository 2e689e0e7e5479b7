"""The layout of DiT-DH, the network of RAE (arXiv 2510.11690)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from redi.core.channels import Channels
from redi.core.clocks.shift import shifted
from redi.models.published.layout import size_of
from redi.models.published.lightningdit import LightningDiT
from redi.models.transformer import DiffusionTransformer


@dataclass(frozen=True)
class DiTDH(LightningDiT):
    """LightningDiT with Gaussian features of the time, and a wide head, whose blocks are the last ones.

    Examples:
        >>> layout = DiTDH(
        ...     width=1152, depth=28, patch_size=1, in_channels=768, out_channels=768, patch_grid=(16, 16),
        ...     num_classes=1000, mlp_hidden=3072, num_heads=16, head_width=2048, head_depth=2, head_num_heads=16)
        >>> layout.num_blocks, layout.model_settings()["head_width"]
        (30, 2048)
    """

    head_width: int = 2048
    head_depth: int = 2
    head_num_heads: int | None = None

    title: ClassVar[str] = "DiT-DH"
    frameworks: ClassVar[tuple[str, ...]] = ("dit-dh",)
    marks: ClassVar[tuple[str, ...]] = ("s_embedder.proj.weight",)
    patches: ClassVar[str] = "s_embedder.proj"
    rotary: ClassVar[Mapping[str, str]] = {"enc_feat_rope": "", "dec_feat_rope": "head_"}

    @classmethod
    def anchors(cls) -> dict[str, int]:
        return super().anchors() | {"t_embedder.W": 1}

    @classmethod
    def options(cls, state: Mapping[str, Tensor], fields: dict) -> dict[str, Any]:
        head_width, blocks = size_of(state, "x_embedder.proj.weight"), fields["depth"]
        wide = [i for i in range(blocks) if size_of(state, f"blocks.{i}.attn.qkv.weight", dim=1) == head_width]
        depth = blocks - (len(wide) if head_width != fields["width"] else cls.head_depth)
        head = {"depth": depth, "head_width": head_width, "head_depth": blocks - depth}
        return super().options(state, fields | head) | head

    def bindings(self) -> list[str]:
        # RAE's 50 times: equal steps from noise-time 1 to 0.001, shifted. It decodes the last state; we add a step.
        shift = (self.in_channels * self.grid[0] * self.grid[1] / 4096) ** 0.5
        times = [*(shifted(0.999 * step / 49, shift) for step in range(50)), 1.0]
        return [*super().bindings(), "Euler.shift = 1.0", f"Euler.times = {times}"]

    def model_settings(self, num_heads: int | None = None) -> dict:
        head = {"head_width": self.head_width, "head_depth": self.head_depth, "timestep_features": "gaussian"}
        heads = {"head_num_heads": self.head_num_heads} if self.head_num_heads else {}
        return super().model_settings(num_heads) | head | heads

    @classmethod
    def stems(cls, channels: Channels) -> dict[str, str]:
        return super().stems(channels) | {
            "s_embedder.proj": "fusion.embeddings", "x_embedder.proj": "wide_head.fusion.embeddings",
            "s_projector": "wide_head.to_condition", "t_embedder.W": "timestep_embedding.frequencies",
            "final_layer.linear": "wide_head.fusion.heads",
        }  # fmt: skip

    @classmethod
    def of_times(cls, model: DiffusionTransformer) -> bool:
        return model.wide_head is not None and model.timestep_embedding.frequencies is not None
