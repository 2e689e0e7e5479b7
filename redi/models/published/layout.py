"""Infer the architecture of a published state dict from names and shapes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from redi.core.channels import Channels
from redi.models.sizes import SIZES

# Names that identify other architectures. They cannot be read; the error message names the architecture.
OTHERS = {
    r"^fusion\.embeddings\.": "this library's own model: open its run folder with redi.load",
    r"^transformer_blocks\.|^proj_out_1\.|^pos_embed\.proj\.": "a transformer of diffusers (DiTTransformer2DModel, "
    "PixArt, SD3) with separate to_q, to_k, to_v: convert it to the authors' layout first",
    r"^decoder_|^mask_token$|^sideblocks\.": "a masked variant with its own decoder (MaskDiT, SD-DiT, MDT)",
    r"\.mlp\.w12\.|\.mlp\.w[123]\.|^feat_rope\.|^blocks\.\d+\.norm[12]\.weight$|\.attn\.[qk]_norm\.": "LightningDiT "
    "or a related model (SwiGLU, RMSNorm, rotary positions), which is not the architecture of DiT and SiT",
    r"^joint_blocks\.": "an MMDiT (SD3), which is not the architecture of DiT and SiT",
    r"^(in_blocks|input_blocks|down_blocks|enc)\.": "a U-shaped network (U-ViT, ADM, EDM2), not a DiT or SiT",
    r"^(patch_embed|cls_token|head)\b": "a vision transformer for recognition, not a diffusion model",
    r"^(encoder|decoder|quant_conv|post_quant_conv)\.": "an autoencoder, not a diffusion model",
}
SPECIFICATION = "docs/published-weights.md specifies the layout"
ANCHORS = {  # {name in every published state dict: number of dimensions}
    "x_embedder.proj.weight": 4, "t_embedder.mlp.0.weight": 2, "y_embedder.embedding_table.weight": 2,
    "blocks.0.attn.qkv.weight": 2, "blocks.0.mlp.fc1.weight": 2, "final_layer.linear.weight": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The architecture of a published model, as its shapes define it.

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
    projectors: tuple[str, ...] = ()  # prefixes: "projector." (ReDi), or "projectors.0." ... (REPA)
    projector_width: int = 0

    @property
    def learn_sigma(self) -> bool:
        """Whether the head has a second output per channel."""
        return self.out_channels == 2 * self.in_channels

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

    def model_settings(self, num_heads: int | None = None) -> dict:
        """Return settings of `DiffusionTransformer`: `size` if the shapes match a published size, else its parts.

        The shapes do not determine `num_heads`. Default: that of the published size of this width, else width / 64.
        Raises ValueError if this is not an integer.
        """
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
        if self.mlp_hidden != 4 * self.width:
            settings["mlp_ratio"] = self.mlp_hidden / self.width
        if self.projectors:
            settings |= {"alignment_width": self.projector_width, "alignment_layer": min(8, self.depth)}
        return settings


def parse_layout(state: Mapping[str, Tensor], grid: tuple[int, int] | None = None) -> Layout:
    """Infer the layout from {published name: tensor}. For another architecture, a ValueError suggests what it is.

    `grid`, the (H, W) of the joint state, is required for a file without `pos_embed`.
    """
    if missing := [name for name in ANCHORS if name not in state]:
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}: {_recognise(state)}")
    for name, dims in [*ANCHORS.items(), *([("pos_embed", 3)] if "pos_embed" in state else [])]:
        if state[name].ndim != dims:
            shape = tuple(state[name].shape)
            raise ValueError(f"the checkpoint has {name} of shape {shape}: must have {dims} dimensions")
    width, channels, p, _ = state["x_embedder.proj.weight"].shape
    rows = len(state["final_layer.linear.weight"])
    if rows % (p * p) or rows // (p * p) not in (channels, 2 * channels):
        allowed = f"must have {p * p * channels}, or {2 * p * p * channels} with learn_sigma"
        patches = f"{p}x{p} patches of {channels} channels"
        raise ValueError(f"the checkpoint's head has {rows} rows for {patches}: {allowed}")
    layout = Layout(
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name)),
        patch_size=p,
        in_channels=channels,
        out_channels=rows // (p * p),
        patch_grid=_patch_grid(state, p, grid),
        num_classes=len(state["y_embedder.embedding_table.weight"]) - 1,
        mlp_hidden=len(state["blocks.0.mlp.fc1.weight"]),
        projectors=projector_prefixes(state),
        projector_width=next((_rows(state, f"{prefix}0.weight") for prefix in projector_prefixes(state)), 0),
    )
    expected = published_shapes(layout)
    for prefix in layout.projectors:  # three linear layers: width -> hidden -> hidden -> encoder width
        hidden, outputs = _rows(state, f"{prefix}0.weight"), _rows(state, f"{prefix}4.weight")
        for i, (rows, columns) in {0: (hidden, width), 2: (hidden, hidden), 4: (outputs, hidden)}.items():
            expected |= {f"{prefix}{i}.weight": (rows, columns), f"{prefix}{i}.bias": (rows,)}
    _compare(state, expected)
    return layout


def _rows(state: Mapping[str, Tensor], name: str) -> int:
    return state[name].shape[0] if name in state and state[name].ndim else 0


def _patch_grid(state: Mapping[str, Tensor], patch_size: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    if "pos_embed" in state:
        tokens = state["pos_embed"].shape[1]
        if isqrt(tokens) ** 2 != tokens:
            raise ValueError(f"the checkpoint has {tokens} positions: must be a square number; {SPECIFICATION}")
        return isqrt(tokens), isqrt(tokens)
    if grid is None:
        advice = "pass grid=(32, 32) for 256 pixels, (64, 64) for 512"
        raise ValueError(f"the checkpoint has no pos_embed, so its image size is unknown: {advice}")
    return grid[0] // patch_size, grid[1] // patch_size


def published_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of all tensors but projectors, in the order of the published code."""
    d, p, hidden = layout.width, layout.patch_size, layout.mlp_hidden
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, layout.patch_grid[0] * layout.patch_grid[1], d)}

    def linear(name: str, rows: int, *columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, *columns), (rows,)

    linear("x_embedder.proj", d, layout.in_channels, p, p)
    linear("t_embedder.mlp.0", d, 256)
    linear("t_embedder.mlp.2", d, d)
    shapes["y_embedder.embedding_table.weight"] = (layout.num_classes + 1, d)
    for block in (f"blocks.{i}" for i in range(layout.depth)):
        linear(f"{block}.attn.qkv", 3 * d, d)
        linear(f"{block}.attn.proj", d, d)
        linear(f"{block}.mlp.fc1", hidden, d)
        linear(f"{block}.mlp.fc2", d, hidden)
        linear(f"{block}.adaLN_modulation.1", 6 * d, d)
    linear("final_layer.linear", p * p * layout.out_channels, d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    return shapes


def projector_prefixes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of the REPA projectors in these names."""
    if any(name.startswith("projector.") for name in names):
        return ("projector.",)
    numbers = {int(match[1]) for name in names if (match := re.match(r"projectors\.(\d+)\.", name))}
    return tuple(f"projectors.{number}." for number in sorted(numbers))


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, tuple]) -> None:
    if missing := [name for name in expected if name not in state and name != "pos_embed"]:
        raise ValueError(f"the checkpoint lacks {_some(missing)}: {_recognise(state)}")
    if surplus := [name for name in state if name not in expected]:
        raise ValueError(f"the checkpoint holds {_some(surplus)}, which no DiT or SiT has: {_recognise(state)}")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := [f"{name} {s} instead of {expected[name]}" for name, s in shapes.items() if s != expected[name]]:
        raise ValueError(f"the checkpoint's shapes are inconsistent: {_some(wrong)}; {SPECIFICATION}")


def _recognise(state: Mapping[str, Tensor]) -> str:
    for pattern, architecture in OTHERS.items():
        if any(re.search(pattern, name) for name in state):
            return f"this looks like {architecture}"
    return f"this is not the layout of DiT, SiT, REPA or ReDi ({SPECIFICATION})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
