"""A wide, shallow head on the transformer: the decoder of DDT (arXiv 2504.05741) and DiT-DH (arXiv 2510.11690)."""

from torch import Tensor, nn
from torch.nn import functional

from redi.fusion import Fusion
from redi.models.blocks import in_float32


class WideHead(nn.Module):
    """What the blocks of the head receive: x_t embedded a second time, and one condition for every token.

    The embedding has the width of the head and no positions. The condition is a linear map of SiLU(embedded time +
    token), where the tokens are the outputs of the blocks before the head.

    Args:
        fusion: of the width of the head; its heads read the prediction.
        width: D, of the blocks before the head.
        rotation: the table of the head's blocks (see `rotation_table`), if they need one.

    Examples:
        >>> import torch
        >>> from redi.core.channels import Channels
        >>> from redi.fusion import Merged
        >>> head = WideHead(Merged(channels=Channels(image=4), grid=(8, 8), patch_size=2, width=64), width=32)
        >>> tokens, condition = head(torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32), torch.randn(2, 32))
        >>> tokens.shape, condition.shape
        (torch.Size([2, 16, 64]), torch.Size([2, 16, 64]))
    """

    rotation: Tensor | None

    def __init__(self, fusion: Fusion, width: int, rotation: Tensor | None = None):
        super().__init__()
        self.fusion = fusion
        self.fusion.positions.zero_()
        self.to_condition = nn.Linear(width, fusion.positions.shape[1])
        nn.init.xavier_uniform_(self.to_condition.weight)
        nn.init.zeros_(self.to_condition.bias)
        self.register_buffer("rotation", rotation, persistent=False)

    def forward(self, x: Tensor, tokens: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and conditions of the head for x (N, C, H, W), tokens (N, T, D) and embedded times (N, D)."""
        condition = in_float32(self.to_condition, functional.silu(times[:, None] + tokens))
        return self.fusion.embed(x), condition


def check_head(width: int | None, depth: int, num_heads: int | None) -> None:
    """Raise ValueError for settings of a wide head without a width, or that cannot work."""
    for name, value, default in ("width", width, None), ("depth", depth, 2), ("num_heads", num_heads, None):
        setting = f"DiffusionTransformer.head_{name} = {value}"
        if value is not None and value < 1:
            raise ValueError(f"{setting}: must be at least 1")
        if width is None and value != default:
            raise ValueError(f"{setting}: there is no wide head; set head_width, or drop this setting")
    if width is not None and width % 4:
        raise ValueError(f"DiffusionTransformer.head_width = {width}: must be a multiple of 4")
