"""The layouts of REG (arXiv 2507.01467) and REGLUE (arXiv 2512.16636): SiT with an encoder's class token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from redi.core.channels import Channels, Vector
from redi.models.published.layout import Layout


@dataclass(frozen=True)
class REGLayout(Layout):
    """SiT whose first token is a class token: a vector of 768 numbers with its own embedding, norm and head.

    REG's maps are 4 latents, REGLUE's 4 latents and 16 channels of compressed features.

    Examples:
        >>> layout = REGLayout(
        ...     width=768, depth=12, patch_size=2, in_channels=4, out_channels=4, patch_grid=(16, 16), num_classes=1000,
        ...     mlp_hidden=3072)
        >>> layout.channels().vectors
        {'dinov2_class': 768}
    """

    length: int = 768  # of the class token

    title: ClassVar[str] = "REG or REGLUE"
    marks: ClassVar[tuple[str, ...]] = ("wg_norm.weight", "cls_projectors2.weight", "final_layer.linear_cls.weight")
    num_vectors: ClassVar[int] = 1
    projector: ClassVar[str] = "projectors.0."

    @classmethod
    def anchors(cls) -> dict[str, int]:
        return super().anchors() | {"wg_norm.weight": 1, "cls_projectors2.weight": 2}

    @classmethod
    def options(cls, state: Mapping[str, Tensor], fields: dict) -> dict[str, Any]:
        return {"length": state["cls_projectors2.weight"].shape[1]}

    @property
    def frameworks(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("reg",) if self.in_channels == 4 else ("reglue",)

    def channels(self) -> Channels:
        return self._with_class(super().channels())

    def bindings(self) -> list[str]:
        compressor = [f"ConvCompressor.rank = {self.in_channels - 4}"] if self.in_channels > 4 else []
        return [*super().bindings()[:2], f"Identity.rank = {self.length}", *compressor]

    def example_channels(self) -> Channels:
        return self._with_class(super().example_channels())

    def _with_class(self, maps: Channels) -> Channels:
        return Channels(**maps, dinov2_class=Vector.on_grid(self.length, self.grid))

    def model_settings(self, num_heads: int | None = None) -> dict:
        settings = super().model_settings(num_heads)
        if self.depth <= 12 and "alignment_layer" in settings:  # B
            settings["alignment_layer"] = min(4, self.depth)
        return settings

    @classmethod
    def stems(cls, channels: Channels) -> dict[str, str]:
        (vector,) = channels.vectors
        embedding, head = f"fusion.embeddings.{vector}", f"fusion.heads.{vector}"
        further = {"cls_projectors2": f"{embedding}.0", "wg_norm": f"{embedding}.1", "final_layer.linear_cls": head}
        return super().stems(channels) | further

    def tables(self) -> dict[str, Tensor]:
        positions = super().tables()["pos_embed"]
        return {"pos_embed": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}  # (1, 1 + P, D)
