"""DINOv2, the representation that the paper uses."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from redi.models.encoders import register
from redi.models.encoders.timm_model import Family, Timm
from redi.models.pretrained_network import with_keywords_of


@register
class DINOv2(Family):
    """Patch features of DINOv2 (Oquab et al., arXiv 2304.07193): `x_norm_patchtokens` of the authors' code.

    The paper uses size B with registers (Darcet et al., arXiv 2309.16588). The published ReDi weights need
    `DINOv2.resize = 'released'`. E is 384, 768, 1024 or 1536; the patch size is 14.

    Args:
        size: 'S', 'B', 'L' or 'g'.
        registers: use the models with four register tokens.
        image_size, resize, layers, combine, final_norm, weights, weights_sha256, precision: see `Timm`.

    Examples:
        >>> dino = DINOv2("B")  # weights are read at first use
        >>> dino.dim, dino.side(256)  # 256-pixel images are resized to 224: 16 x 16 patches of 14 pixels
        (768, 224)
    """

    models = {
        "S": "vit_small_patch14_reg4_dinov2.lvd142m",
        "B": "vit_base_patch14_reg4_dinov2.lvd142m",
        "L": "vit_large_patch14_reg4_dinov2.lvd142m",
        "g": "vit_giant_patch14_reg4_dinov2.lvd142m",
    }

    @with_keywords_of(Timm.__init__)
    def __init__(self, size: Literal["S", "B", "L", "g"] = "B", *, registers: bool = True, **settings: Any):
        model = self.model_of(size)
        Timm.__init__(self, model=model if registers else model.replace("reg4_", ""), **settings)
        self.size, self.registers = size, registers

    def metric_name(self, metric: str) -> str:
        """Return '<metric>_dinov2' for the features of FD-DINOv2 (see `pooled`), else '<metric>_dinov2_<size>'."""
        last, standard = len(self.architecture.widths) - 1, (self.size, self.registers) == ("L", False)
        features = (self.image_size, self.resize, self.layers, self.final_norm)
        if standard and features == (224, "antialiased", (last,), True):
            return f"{metric}_dinov2"
        return f"{metric}_dinov2_{self.size}{'_registers' if self.registers else ''}".lower()

    def provenance(self) -> dict:
        return super().provenance() | ({} if self.registers else {"position_embedding": "released"})

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> Any:
        network = super()._build(path, tensors)
        if not self.registers:
            network._pos_embed = partial(positioned, network)
        return network


def positioned(network: Any, patches: Tensor) -> Tensor:
    """Return class and patch tokens (N, 1 + h w, D) with position embeddings, from patches (N, h, w, D).

    The embeddings are resampled as in the authors' code for models without registers: bicubic, not antialiased as in
    timm, with scale factors for a grid that is a tenth of a patch larger.
    """
    _, h, w, _ = patches.shape
    class_position, positions = network.pos_embed[:, :1], network.pos_embed[:, 1:]
    side = math.isqrt(positions.shape[1])
    if (h, w) != (side, side):
        grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
        scale = (h + 0.1) / side, (w + 0.1) / side
        positions = functional.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).mT
    tokens = torch.cat([network.cls_token.expand(len(patches), -1, -1), patches.flatten(1, 2)], dim=1)
    return tokens + torch.cat([class_position, positions], dim=1)
