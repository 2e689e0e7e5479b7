"""The diffusion transformer: DiT's adaLN-zero blocks around a fusion of channel groups."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redi.core.channels import Channels
from redi.core.registry import configurable
from redi.fusion import fusions
from redi.fusion.merged import Merged
from redi.models.attention import attend_sdpa, choose_attention

# width, depth, heads (Peebles & Xie, arXiv 2212.09748, table 1)
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


@configurable(
    runtime=("channels", "grid", "num_classes", "variance_groups", "alignment_dim"),
    harmless=("attention", "checkpointing"),
)
class DiffusionTransformer(nn.Module):
    """x_t (N, C, H, W), t (N,), y (N,) -> prediction (N, C, H, W), for DiT and SiT alike.

    Args:
        channels, grid: groups and (H, W) of the joint state (supplied by `train`, as the next three).
        num_classes: K; row K of the label table is the null label.
        variance_groups: groups with a learned variance, for which the prediction has further channels after the C.
        alignment_dim: E of the encoder that REPA aligns hidden tokens with; None: no projector.
        size: S, B, L or XL with a patch size, as in 'B/2'; the four arguments after it override its parts.
        attention: a backend, or 'auto'; see `choose_attention`.
        checkpointing: recompute the blocks in the backward pass: less memory, about a third more compute.
        timestep_scale: multiplies the time before its sinusoidal embedding (1 in the published models).
        group_timesteps: an embedding of every representation's own time, for `JointObjective.independent_timesteps`.
        alignment_layer, alignment_width: block (counted from 1) that the projector reads; its hidden layers' width.
    """

    def __init__(
        self,
        *,
        channels: Channels,
        grid: tuple[int, int],
        num_classes: int,
        variance_groups: Sequence[str] = (),
        alignment_dim: int | None = None,
        size: str = "B/2",
        width: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        patch_size: int | None = None,
        mlp_ratio: float = 4.0,
        fusion: type = Merged,
        attention: str = "auto",
        checkpointing: bool = False,
        timestep_scale: float = 1.0,
        group_timesteps: bool = False,
        alignment_layer: int = 8,
        alignment_width: int = 2048,
    ):
        super().__init__()
        fusions.check_class(fusion, "DiffusionTransformer.fusion")
        for name, value in {"width": width, "depth": depth, "num_heads": num_heads, "patch_size": patch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"DiffusionTransformer.{name} = {value}: at least 1 is needed")
        base_width, base_depth, base_heads, base_patch = parse_size(size)
        width, depth = width or base_width, depth or base_depth
        num_heads, patch_size = num_heads or base_heads, patch_size or base_patch
        if width % num_heads:
            raise ValueError(f"DiffusionTransformer.num_heads = {num_heads} does not divide the width {width}")
        self.channels, self.grid, self.num_classes = channels, tuple(grid), num_classes
        self.null_label = num_classes
        self.attention, self.checkpointing = attention, checkpointing
        self.attention_for: tuple | None = None  # the device and dtype that the backend was chosen for
        self.trained_with: tuple[float, float] | None = None  # label and representation dropout, where that is known
        runtime = {"variance_groups": tuple(variance_groups)} if variance_groups else {}
        self.fusion = fusion(channels=channels, grid=grid, patch_size=patch_size, width=width, **runtime)
        self.timestep_embedding = TimestepEmbedding(width, scale=timestep_scale)
        self.label_embedding = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        names = channels.representations if group_timesteps else ()
        self.group_embeddings = nn.ModuleDict({n: TimestepEmbedding(width, scale=timestep_scale) for n in names})
        self._initialise()
        self.alignment_layer = alignment_layer
        self.projector: nn.Module | None = None
        if alignment_dim is not None:
            if not 1 <= alignment_layer <= depth:
                setting = f"DiffusionTransformer.alignment_layer = {alignment_layer}"
                raise ValueError(f"{setting}: the model has blocks 1 ... {depth}")
            self.projector = nn.Sequential(  # REPA (Yu et al., arXiv 2410.06940): three layers, SiLU between them
                nn.Linear(width, alignment_width), nn.SiLU(),
                nn.Linear(alignment_width, alignment_width), nn.SiLU(),
                nn.Linear(alignment_width, alignment_dim),
            )  # fmt: skip
            for layer in self.projector[::2]:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def _initialise(self) -> None:
        for block in self.blocks:
            for layer in (block.qkv, block.projection, block.mlp[0], block.mlp[2]):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.label_embedding.weight, std=0.02)
        for embedding in (self.timestep_embedding, *self.group_embeddings.values()):
            for layer in (embedding.mlp[0], embedding.mlp[2]):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        for modulation in [block.modulation for block in self.blocks] + [self.final_modulation]:
            nn.init.zeros_(modulation[1].weight)  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(modulation[1].bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, align: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the prediction (N, C, H, W), with further channels for learned variances.

        Args:
            x: the joint state at t, (N, C, H, W).
            t: the process's `model_time`: one for all, (N,), or (N, groups) where every group has a time of its own,
                of which a model without `group_timesteps` reads the image's.
            y: labels (N,) in 0 ... K.
            align: return also the projection (N, P, E) of the hidden image tokens, for REPA.
        """
        t = torch.as_tensor(t, device=x.device)
        tokens = self.fusion.embed(x)  # (N, T, D)
        condition = self._embed_times(t) + self.label_embedding(y)  # (N, D)
        for number, block in enumerate(self.blocks, start=1):
            if self.checkpointing and self.training and torch.is_grad_enabled():
                # Nothing in a block is random, so no generator has to be restored for the second time.
                tokens = checkpoint(block, tokens, condition, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, condition)
            if align and number == self.alignment_layer:
                aligned = self.projector(self.fusion.tokens_of(tokens)["image"])
        shift, scale = in_full(self.final_modulation, condition).chunk(2, dim=-1)
        prediction = self.fusion.unembed(modulate(self.final_norm(tokens), shift, scale))
        return (prediction, aligned) if align else prediction

    @property
    def has_group_times(self) -> bool:
        """Whether the model reads every group's t; else the image's alone."""
        return len(self.group_embeddings) > 0

    def _embed_times(self, t: Tensor) -> Tensor:
        """(N,) or (N, groups) -> (N, D)."""
        of_image = t[:, 0] if t.ndim == 2 else t.reshape(-1)
        embedded = self.timestep_embedding(of_image)
        for index, embedding in enumerate(self.group_embeddings.values(), start=1):
            embedded = embedded + embedding(t[:, index] if t.ndim == 2 else of_image)
        return embedded

    def choose_attention(self, device: torch.device | str, dtype: torch.dtype) -> str:
        """Set the attention backend for this device and dtype; return one line that says which and why."""
        head_dim = self.blocks[0].qkv.in_features // self.blocks[0].num_heads
        attend, reason = choose_attention(
            self.attention, device=device, dtype=dtype, head_dim=head_dim, num_tokens=self.fusion.num_tokens
        )
        for block in self.blocks:
            block.attend = attend
        self.attention_for = (device, dtype)
        return reason


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads, self.attend = num_heads, attend_sdpa
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        modulation = in_full(self.modulation, condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # each (N, D)
        qkv = self.qkv(modulate(self.norm1(tokens), shift1, scale1))  # (N, T, 3 D)
        # Three views; taken as one view with a leading 3, the gradients would be copied once more.
        q, k, v = (rearrange(part, "n t (h d) -> n t h d", h=self.num_heads) for part in qkv.chunk(3, dim=-1))
        attended = rearrange(self.attend(q, k, v), "n t h d -> n t (h d)")
        tokens = tokens + gate1[:, None] * self.projection(attended)
        return tokens + gate2[:, None] * self.mlp(modulate(self.norm2(tokens), shift2, scale2))


class TimestepEmbedding(nn.Module):
    """Sinusoids of t through an MLP: (N,) -> (N, D)."""

    def __init__(self, width: int, *, num_frequencies: int = 128, scale: float = 1.0):
        super().__init__()
        self.num_frequencies, self.scale = num_frequencies, scale
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(self.num_frequencies, device=t.device) / self.num_frequencies
        angles = self.scale * t.float()[:, None] * torch.exp(-math.log(10000) * exponents)  # (N, 128)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)  # in float32, for t up to 999
        return in_full(self.mlp, sinusoids.to(self.mlp[0].weight.dtype))


def in_full(layers: nn.Module, x: Tensor) -> Tensor:
    """layers(x) in the precision of the weights, also under autocast: for the condition (N, D), where bfloat16 would
    round 1 + scale in every block and save nothing. The residual stream stays in float32 with it.
    """
    if x.is_meta:  # knows no autocast
        return layers(x)
    with torch.autocast(x.device.type, enabled=False):
        return layers(x)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(N, T, D) scaled and shifted by (N, D)."""
    return tokens * (1 + scale[:, None]) + shift[:, None]


def parse_size(size: str) -> tuple[int, int, int, int]:
    """'B/2' -> width, depth, heads, patch size."""
    letter, _, patch = size.partition("/")
    if letter not in SIZES or not patch.isdigit() or int(patch) < 1:
        allowed = f"one of {', '.join(SIZES)}, then / and patch size: 'B/2'"
        raise ValueError(f"DiffusionTransformer.size = {size!r}: it is {allowed}")
    return *SIZES[letter], int(patch)
