"""The diffusion transformer: DiT's adaLN-zero blocks between the embedding and the heads of a fusion."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redi.core.channels import Channels
from redi.core.registry import configurable
from redi.fusion import Fusion, fusions
from redi.fusion.merged import Merged
from redi.models.attention import choose_attention
from redi.models.blocks import Block, blocks, in_float32, modulate, modulations
from redi.models.blocks.adaln import AdaLN
from redi.models.projector import build_projector
from redi.models.rotary import rotation_table

# width, depth, heads (Peebles & Xie, arXiv 2212.09748, table 1)
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


@configurable(
    runtime=("channels", "grid", "num_classes", "variance_groups", "alignment_dim", "inner_layer"),
    harmless=("attention", "checkpointing"),
)
class DiffusionTransformer(nn.Module):
    """The DiT or SiT network on the joint state: x_t (N, C, H, W), t (N,), y (N,) -> prediction (N, C, H, W).

    Args:
        channels, grid: groups and (H, W) of the joint state. `train` supplies these and the next four arguments.
        num_classes: K; row K of the label table is the null label.
        variance_groups: groups with a learned variance. Their variances follow the C channels of the prediction.
        alignment_dim: E of the encoder that REPA aligns hidden tokens with, {name: E} of several; None: no projector.
        inner_layer: number of the block whose output an inner head reads (`JointObjective.inner_layer`); None: no head.
        size: S, B, L or XL, a slash and a patch size, such as 'B/2'.
        width, depth, num_heads, patch_size: override the corresponding part of `size`.
        mlp_ratio: hidden width of the MLPs, relative to `width`.
        block: class of the blocks between them, of kind `blocks`; its options are bindings such as Modern.qk_norm.
        fusion: class that embeds the channel groups as tokens and reads the prediction from tokens.
        attention: a backend, or 'auto'; see `choose_attention`.
        checkpointing: recompute the blocks in the backward pass: less memory, about a third more compute.
        timestep_scale: factor of t before its sinusoidal embedding (1 in the published models).
        group_timesteps: embed the time of every representation. `train` supplies True if `JointObjective.clock` gives
            the groups different times.
        alignment_layer: number of the block whose output REPA's projector reads; the first block is 1.
        alignment_projector: 'mlp', or 'conv': iREPA's convolution on the grid of the tokens.
        alignment_width: hidden width of the MLP.

    Examples:
        >>> channels = Channels(image=4, dinov2=8)
        >>> model = DiffusionTransformer(
        ...     channels=channels, grid=(8, 8), num_classes=10, size="S/2", width=32, depth=2, num_heads=2)
        >>> prediction = model(torch.randn(2, 12, 8, 8), torch.rand(2), torch.tensor([3, model.null_label]))
        >>> prediction.shape, bool((prediction == 0).all())  # the heads are initialised to zero
        (torch.Size([2, 12, 8, 8]), True)
    """

    fusion: Fusion
    blocks: Any  # nn.ModuleList of Block
    group_embeddings: Any  # nn.ModuleDict {group: TimestepEmbedding}
    inner_head: Any  # nn.ModuleDict {"modulation", "fusion"}
    rotation: Tensor | None  # (2, T, D / heads), of rotary positions

    def __init__(
        self, *, channels: Channels, grid: tuple[int, int], num_classes: int, variance_groups: Sequence[str] = (),
        alignment_dim: int | Mapping[str, int] | None = None, inner_layer: int | None = None,
        size: str = "B/2", width: int | None = None, depth: int | None = None, num_heads: int | None = None,
        patch_size: int | None = None, mlp_ratio: float = 4.0, fusion: type = Merged, attention: str = "auto",
        checkpointing: bool = False, timestep_scale: float = 1.0, group_timesteps: bool = False,
        alignment_layer: int = 8, alignment_width: int = 2048, alignment_projector: Literal["mlp", "conv"] = "mlp",
        block: Callable[..., Block] = AdaLN,
    ):  # fmt: skip
        super().__init__()
        fusions.check_class(fusion, "DiffusionTransformer.fusion")
        blocks.check_class(block, "DiffusionTransformer.block")
        for name, value in {"width": width, "depth": depth, "num_heads": num_heads, "patch_size": patch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"DiffusionTransformer.{name} = {value}: must be at least 1")
        base_width, base_depth, base_heads, base_patch = parse_size(size)
        width, depth = width or base_width, depth or base_depth
        num_heads, patch_size = num_heads or base_heads, patch_size or base_patch
        if width % num_heads:
            raise ValueError(f"DiffusionTransformer.num_heads = {num_heads}: must divide the width {width}")
        self.channels, self.grid, self.num_classes = channels, (grid[0], grid[1]), num_classes
        self.null_label = num_classes
        self.attention, self.checkpointing = attention, checkpointing
        self.attention_for: tuple | None = None  # device and dtype that the backend was chosen for
        self.trained_with: tuple[float, ...] | None = None  # `JointObjective.trained_with`, if known
        runtime = {"variance_groups": tuple(variance_groups)} if variance_groups else {}
        self.fusion = fusion(channels=channels, grid=grid, patch_size=patch_size, width=width, **runtime)
        self.timestep_embedding = TimestepEmbedding(width, scale=timestep_scale)
        self.label_embedding = nn.Embedding(num_classes + 1, width)
        settings = {"width": width, "num_heads": num_heads, "mlp_ratio": mlp_ratio}
        self.blocks = nn.ModuleList(block(**settings) for _ in range(depth))
        self.final_norm = self.blocks[-1].make_norm()
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        names = channels.representations if group_timesteps else ()
        self.group_embeddings = nn.ModuleDict({n: TimestepEmbedding(width, scale=timestep_scale) for n in names})
        self._initialise()
        rotary = self.blocks[0].rotary
        table = rotation_table(self.fusion.coordinates, width // num_heads) if rotary else None
        self.register_buffer("rotation", table, persistent=False)
        self.alignment_layer = alignment_layer
        self.projector: nn.Module | None = None
        if alignment_dim is not None:
            if not 1 <= alignment_layer <= depth:
                raise ValueError(f"DiffusionTransformer.alignment_layer = {alignment_layer}: must be in 1 ... {depth}")
            grid = self.fusion.patch_grid
            self.projector = build_projector(alignment_projector, width, alignment_width, alignment_dim, grid)
        self.inner_layer = inner_layer
        if inner_layer is not None:
            if not 1 <= inner_layer <= depth:
                raise ValueError(f"JointObjective.inner_layer = {inner_layer}: must be in 1 ... {depth}, the depth")
            self.inner_head = copy.deepcopy(nn.ModuleDict({"modulation": self.final_modulation, "fusion": self.fusion}))
            self.inner_head["fusion"].embeddings = nn.ModuleDict()  # only heads, which are zero, as the modulation is

    def _initialise(self) -> None:
        for block in self.blocks:
            _xavier(*(layers for name, layers in block.named_children() if name != "modulation"))
        nn.init.normal_(self.label_embedding.weight, std=0.02)
        for embedding in (self.timestep_embedding, *self.group_embeddings.values()):
            for layer in _linear_layers(embedding.mlp):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        for layer in _linear_layers(*(block.modulation for block in self.blocks), self.final_modulation):
            nn.init.zeros_(layer.weight)  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, align: bool = False, inner: bool = False
    ) -> Tensor | tuple[Any, ...]:
        """Return the prediction (N, C, H, W), followed by the channels of learned variances.

        Args:
            x: joint state at time t, (N, C, H, W).
            t: `model_time` of the process, () or (N,); or (N, groups), of which a model without `group_timesteps` uses
                that of the image.
            y: labels (N,) in 0 ... K.
            inner: also return the inner prediction, of the same shape.
            align: also return, last, the projected hidden image tokens for REPA: (N, P, E), or {name: (N, P, E)}.
        """
        t = torch.as_tensor(t, device=x.device)
        tokens = self.fusion.embed(x)  # (N, T, D)
        times = self._embed_times(t)
        condition = times + self.label_embedding(y)  # (N, D)
        further: list[Any] = []
        if inner and self.inner_layer is None:
            raise ValueError("JointObjective.inner_layer = None: must be a block in training for inner=True")
        for number, block in enumerate(self.blocks, start=1):
            inputs = tokens, condition, self.rotation
            if self.checkpointing and self.training and torch.is_grad_enabled():
                # preserve_rng_state: blocks draw no random numbers
                tokens = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(*inputs)
            if inner and number == self.inner_layer:
                # RAEv2: modulated token by token, by SiLU(token + embedded time)
                shift, scale = self.inner_head["modulation"](times[:, None] + tokens).chunk(2, dim=-1)  # (N, T, D)
                further.insert(0, self.inner_head["fusion"].unembed(self.final_norm(tokens) * (1 + scale) + shift))
            if align and number == self.alignment_layer:
                if self.projector is None:
                    raise ValueError("DiffusionTransformer.alignment_dim = None: must be set to return tokens for REPA")
                further.append(self.projector(self.fusion.tokens_of(tokens)["image"]))
        shift, scale = modulations(self.final_modulation, condition, 2)
        prediction = self.fusion.unembed(modulate(self.final_norm(tokens), shift, scale))
        return (prediction, *further) if further else prediction

    @property
    def has_group_times(self) -> bool:
        """Whether the model reads one time per group, t (N, groups)."""
        return len(self.group_embeddings) > 0

    def _embed_times(self, t: Tensor) -> Tensor:
        """Embed times (), (N,) or (N, groups) as (N, D)."""
        image_t = t[:, 0] if t.ndim == 2 else t.reshape(-1)
        embedded = self.timestep_embedding(image_t)
        for index, embedding in enumerate(self.group_embeddings.values(), start=1):
            embedded = embedded + embedding(t[:, index] if t.ndim == 2 else image_t)
        return embedded

    def choose_attention(self, device: torch.device | str, dtype: torch.dtype) -> str:
        """Set the attention backend for this device and dtype. Return one line for the log, with name and reason."""
        head_dim = self.blocks[0].width // self.blocks[0].num_heads
        shape = {"head_dim": head_dim, "num_tokens": self.fusion.num_tokens}
        attend, reason = choose_attention(self.attention, device=device, dtype=dtype, **shape)
        for block in self.blocks:
            block.attend = attend
        self.attention_for = (device, dtype)
        return reason


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of t followed by an MLP: (N,) -> (N, D).

    Examples:
        >>> TimestepEmbedding(width=32)(torch.rand(4)).shape
        torch.Size([4, 32])
    """

    def __init__(self, width: int, *, num_frequencies: int = 128, scale: float = 1.0):
        super().__init__()
        self.num_frequencies, self.scale = num_frequencies, scale
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(self.num_frequencies, device=t.device) / self.num_frequencies
        angles = self.scale * t.float()[:, None] * torch.exp(-math.log(10000) * exponents)  # (N, 128)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)  # in float32, for t up to 999
        return in_float32(self.mlp, sinusoids.to(next(self.mlp.parameters()).dtype))


def parse_size(size: str) -> tuple[int, int, int, int]:
    """Return width, depth, number of heads and patch size of a size such as 'B/2'."""
    letter, _, patch = size.partition("/")
    if letter not in SIZES or not patch.isdigit() or int(patch) < 1:
        allowed = f"one of {', '.join(SIZES)}, a slash and a patch size, such as 'B/2'"
        raise ValueError(f"DiffusionTransformer.size = {size!r}: must be {allowed}")
    return *SIZES[letter], int(patch)


def _linear_layers(*modules: nn.Module) -> Iterator[nn.Linear]:
    return (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear))


def _xavier(*modules: nn.Module) -> None:
    for layer in _linear_layers(*modules):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
