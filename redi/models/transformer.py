"""The diffusion transformer: DiT's adaLN-zero blocks between the embedding and the heads of a fusion."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from redi.core.channels import Channels
from redi.core.registry import configurable
from redi.fusion import Fusion, fusions
from redi.fusion.merged import Merged
from redi.models.attention import choose_attention
from redi.models.blocks import Block, blocks, initialise, modulate, modulations
from redi.models.blocks.adaln import AdaLN
from redi.models.projector import build_projector
from redi.models.rotary import rotation_table
from redi.models.sizes import parse_size
from redi.models.timesteps import TimestepEmbedding, group_width
from redi.models.wide_head import WideHead, check_head


@configurable(
    runtime=("channels", "grid", "num_classes", "variance_groups", "alignment_dim", "inner_layer", "takes_features"),
    harmless=("attention", "checkpointing"),
)
class DiffusionTransformer(nn.Module):
    """The DiT or SiT network on the joint state: x_t (N, C, H, W), t (N,), y (N,) -> prediction (N, C, H, W).

    Args:
        channels, grid: groups and (H, W) of the joint state. `train` supplies these and the next five arguments.
        num_classes: K; row K of the label table is the null label.
        variance_groups: groups with a learned variance. Their variances follow the C channels of the prediction.
        alignment_dim: E of the encoder that REPA aligns hidden tokens with, {name: E} of several; None: no projector.
        inner_layer: number of the block whose output an inner head reads (`JointObjective.inner_layer`); None: no head.
        takes_features: take predicted features of width `alignment_dim` as a condition (`PredictedFeatures`).
        size: one of `redi.models.sizes.SIZES`, a slash and a patch size, such as 'B/2'.
        width, depth, num_heads, patch_size: override the corresponding part of `size`.
        mlp_ratio: hidden width of the MLPs, relative to `width`.
        block: class of the blocks between them, of kind `blocks`; its options are bindings such as Modern.qk_norm.
        fusion: class that embeds the channel groups as tokens and reads the prediction from tokens.
        attention: a backend, or 'auto'; see `choose_attention`.
        checkpointing: recompute the blocks in the backward pass: less memory, about a third more compute.
        timestep_scale, timestep_features: factor of t (1 in the published models) and 'sinusoidal' or 'gaussian', see
            `redi.models.timesteps.TimestepEmbedding`.
        group_timesteps: embed the time of every representation. `train` supplies True if `JointObjective.clock` gives
            the groups different times.
        group_times_by: 'sum' of embeddings of full width; or 'concatenation' of narrow ones, the representations first
            and the image last, as in SFD.
        alignment_layer: number of the block whose output REPA's projector reads: 1 is the first block, -1 the last.
        alignment_projector: 'mlp', or 'conv': iREPA's convolution on the grid of the tokens.
        alignment_width: hidden width of the MLP.
        head_width: put a wide, shallow head on the transformer, see `redi.models.wide_head`; None: no such head. In
            DiT-DH 2048. Its blocks are the last ones of `blocks`.
        head_depth, head_num_heads: number of its blocks, and their attention heads (default: `num_heads`).

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
    inner_head: Any  # nn.ModuleDict {"norm", "modulation", "fusion"}
    rotation: Tensor | None  # (2, T, D / heads), of rotary positions

    def __init__(
        self, *, channels: Channels, grid: tuple[int, int], num_classes: int, variance_groups: Sequence[str] = (),
        alignment_dim: int | Mapping[str, int] | None = None, inner_layer: int | None = None,
        takes_features: bool = False, size: str = "B/2", width: int | None = None, depth: int | None = None,
        num_heads: int | None = None, patch_size: int | None = None, mlp_ratio: float = 4.0, fusion: type = Merged,
        attention: str = "auto", checkpointing: bool = False, timestep_scale: float = 1.0,
        group_timesteps: bool = False, alignment_layer: int = 8, alignment_width: int = 2048,
        alignment_projector: Literal["mlp", "conv"] = "mlp",
        block: Callable[..., Block] = AdaLN, timestep_features: Literal["sinusoidal", "gaussian"] = "sinusoidal",
        group_times_by: Literal["sum", "concatenation"] = "sum", head_width: int | None = None, head_depth: int = 2,
        head_num_heads: int | None = None,
    ):  # fmt: skip
        super().__init__()
        fusions.check_class(fusion, "DiffusionTransformer.fusion")
        blocks.check_class(block, "DiffusionTransformer.block")
        check_head(head_width, head_depth, head_num_heads)
        sizes = {"width": width, "depth": depth, "num_heads": num_heads, "patch_size": patch_size}
        width, depth, num_heads, patch_size = parse_size(size, **sizes)
        self.channels, self.grid, self.num_classes = channels, (grid[0], grid[1]), num_classes
        self.null_label = num_classes
        self.attention, self.checkpointing = attention, checkpointing
        self.attention_for: tuple | None = None  # device and dtype that the backend was chosen for
        self.trained_with: tuple[float, ...] | None = None  # `JointObjective.trained_with`, if known
        runtime = {"variance_groups": tuple(variance_groups)} if variance_groups else {}
        embed = partial(fusion, channels=channels, grid=grid, patch_size=patch_size, **runtime)
        self.feature_dim: Any = alignment_dim if takes_features else None
        self.fusion = embed(width=width, **({"condition_dim": alignment_dim} if takes_features else {}))
        names = channels.representations if group_timesteps else ()
        self.group_times_by, time_width = group_times_by, group_width(width, 1 + len(names), group_times_by)
        embed_time = partial(TimestepEmbedding, time_width, features=timestep_features, scale=timestep_scale)
        self.timestep_embedding = embed_time()
        self.label_embedding = nn.Embedding(num_classes + 1, width)
        self.depth, mlp = depth, {"mlp_ratio": mlp_ratio}
        self.blocks = nn.ModuleList(block(width=width, num_heads=num_heads, **mlp) for _ in range(depth))
        self.final_norm, self.final_modulation = self.blocks[-1].make_norm(), _final_modulation(width)
        self.group_embeddings = nn.ModuleDict({name: embed_time() for name in names})
        self._initialise()
        self.register_buffer("rotation", rotation_of(self.blocks[0], self.fusion), persistent=False)
        self.alignment_layer = alignment_layer = depth if alignment_layer == -1 else alignment_layer
        self.projector: nn.Module | None = None
        self.aligns_vectors = alignment_projector == "mlp"  # with align='all'
        if alignment_dim is not None:
            _check_layer("DiffusionTransformer.alignment_layer", alignment_layer, depth)
            grid = self.fusion.patch_grid
            self.projector = build_projector(alignment_projector, width, alignment_width, alignment_dim, grid)
        self.inner_layer = inner_layer
        if inner_layer is not None:
            _check_layer("JointObjective.inner_layer", inner_layer, depth)
            parts = {"norm": self.final_norm, "modulation": self.final_modulation, "fusion": self.fusion}
            self.inner_head = copy.deepcopy(nn.ModuleDict(parts))
            self.inner_head["fusion"].embeddings = nn.ModuleDict()  # only heads, which are zero, as the modulation is
        self.wide_head: WideHead | None = None
        if head_width is not None:
            make = partial(block, width=head_width, num_heads=head_num_heads or num_heads, **mlp)
            self._add_wide_head(embed(width=head_width), [make() for _ in range(head_depth)])

    def _initialise(self) -> None:
        for block in self.blocks:
            initialise(block)
        nn.init.normal_(self.label_embedding.weight, std=0.02)
        for embedding in (self.timestep_embedding, *self.group_embeddings.values()):
            embedding.initialise()

    def _add_wide_head(self, fusion: Fusion, head_blocks: Sequence[Block]) -> None:
        """Replace the final layer and the heads by those of a wide head."""
        for block in head_blocks:
            initialise(block)
        self.wide_head = WideHead(fusion, self.blocks[0].width, rotation_of(head_blocks[0], fusion))
        self.blocks.extend(head_blocks)
        self.fusion.heads, self.fusion.variance_heads = nn.ModuleDict(), nn.ModuleDict()
        self.final_norm = head_blocks[-1].make_norm()
        self.final_modulation = _final_modulation(head_blocks[-1].width)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, align: bool | Literal["all"] = False, inner: bool = False,
        features: Tensor | None = None,
    ) -> Tensor | tuple[Any, ...]:  # fmt: skip
        """Return the prediction (N, C, H, W), followed by the channels of learned variances.

        Args:
            x: joint state at time t, (N, C, H, W).
            t: `model_time` of the process, () or (N,); or (N, groups), of which a model without `group_timesteps` uses
                that of the image.
            y: labels (N,) in 0 ... K.
            inner: also return the inner prediction, of the same shape.
            align: also return, last, the projected hidden image tokens for REPA: (N, P, E), or {name: (N, P, E)}. With
                'all', those of the V vectors precede them: (N, V + P, E).
            features: predicted features, the condition of a model with `takes_features`, (N, P, E); 0 where absent.
        """
        t = torch.as_tensor(t, device=x.device)
        tokens, fusion, rotation = self.fusion.embed(x), self.fusion, self.rotation  # (N, T, D)
        if features is not None:
            tokens = fusion.add_condition(tokens, features)
        times = self._embed_times(t)
        condition = times + self.label_embedding(y)  # (N, D)
        if self.wide_head is not None:
            condition = functional.silu(condition)  # as in DiT-DH; the modulations of the blocks apply another
        further: list[Any] = []
        if inner and self.inner_layer is None:
            raise ValueError("JointObjective.inner_layer = None: must be a block in training for inner=True")
        for number, block in enumerate(self.blocks, start=1):
            if self.wide_head is not None and number == self.depth + 1:
                tokens, condition = self.wide_head(x, tokens, times)  # both (N, T, head width)
                fusion, rotation = self.wide_head.fusion, self.wide_head.rotation
            inputs = tokens, condition, rotation
            if self.checkpointing and self.training and torch.is_grad_enabled():
                # preserve_rng_state: blocks draw no random numbers
                tokens = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(*inputs)
            if inner and number == self.inner_layer:
                further.insert(0, self._inner_prediction(tokens, times))
            if align and number == self.alignment_layer:
                if self.projector is None:
                    raise ValueError("DiffusionTransformer.alignment_dim = None: must be set to return tokens for REPA")
                groups = self.fusion.tokens_of(tokens)
                names = [*self.channels.vectors, "image"] if align == "all" else ["image"]
                further.append(self.projector(torch.cat([groups[name] for name in names], dim=1)))
        shift, scale = modulations(self.final_modulation, condition, 2)
        prediction = fusion.unembed(modulate(self.final_norm(tokens), shift, scale))
        return (prediction, *further) if further else prediction

    def _inner_prediction(self, tokens: Tensor, times: Tensor) -> Tensor:
        """Return RAEv2's prediction from tokens of a block, modulated one by one by SiLU(token + embedded time)."""
        norm, modulation, fusion = (self.inner_head[name] for name in ("norm", "modulation", "fusion"))
        shift, scale = modulation(times[:, None] + tokens).chunk(2, dim=-1)  # (N, T, D)
        return fusion.unembed(modulate(norm(tokens), shift, scale))

    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """(P, E) of the features that the model predicts and takes; None if it takes none."""
        return None if self.feature_dim is None else (len(self.fusion.positions), self.feature_dim)

    @property
    def has_group_times(self) -> bool:
        """Whether the model reads one time per group, t (N, groups)."""
        return len(self.group_embeddings) > 0

    def _embed_times(self, t: Tensor) -> Tensor:
        """Embed times (), (N,) or (N, groups) as (N, D)."""
        image_t = t[:, 0] if t.ndim == 2 else t.reshape(-1)
        times = t[:, 1:].unbind(dim=1) if t.ndim == 2 else [image_t] * len(self.group_embeddings)
        others = [embedding(own_t) for embedding, own_t in zip(self.group_embeddings.values(), times, strict=False)]
        image = self.timestep_embedding(image_t)
        return torch.cat([*others, image], dim=-1) if self.group_times_by == "concatenation" else sum(others, image)

    def choose_attention(self, device: torch.device | str, dtype: torch.dtype) -> str:
        """Set the attention backend for this device and dtype. Return one line for the log, with name and reason."""
        reasons = []
        for block in self.blocks:
            shape = {"head_dim": block.width // block.num_heads, "num_tokens": self.fusion.num_tokens}
            block.attend, reason = choose_attention(self.attention, device=device, dtype=dtype, **shape)
            reasons.append(reason)
        self.attention_for = (device, dtype)
        return "; ".join(dict.fromkeys(reasons))  # one, or another for the wide head


def rotation_of(block: Block, fusion: Fusion) -> Tensor | None:
    """Return the rotation table of a block for the tokens of a fusion; None for a block without rotary positions."""
    return rotation_table(fusion.coordinates, block.width // block.num_heads) if block.rotary else None


def _final_modulation(width: int) -> nn.Sequential:
    layer = nn.Linear(width, 2 * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


def _check_layer(setting: str, layer: int, depth: int) -> None:
    if not 1 <= layer <= depth:
        raise ValueError(f"{setting} = {layer}: must be in 1 ... {depth}, the depth")
