"""Which model a published state dict is, told from its names and shapes alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from redi.core.channels import Channels
from redi.models.transformer import SIZES

# Names by which other architectures are known. None of them can be read; the message says what was recognised.
OTHERS = {
    r"^fusion\.embeddings\.": "this library's own model: open its run folder with redi.load",
    r"^transformer_blocks\.|^proj_out_1\.|^pos_embed\.proj\.": "a transformer of diffusers (DiTTransformer2DModel, "
    "PixArt, SD3), whose attention is cut into to_q, to_k, to_v: convert it to the authors' layout first",
    r"^decoder_|^mask_token$|^sideblocks\.": "a masked variant with a decoder of its own (MaskDiT, SD-DiT, MDT)",
    r"\.mlp\.w12\.|\.mlp\.w[123]\.|^feat_rope\.|^blocks\.\d+\.norm[12]\.weight$|\.attn\.[qk]_norm\.": "LightningDiT "
    "or a relative (SwiGLU, RMSNorm, rotary positions), another architecture than DiT's and SiT's",
    r"^joint_blocks\.": "an MMDiT (SD3), another architecture",
    r"^(in_blocks|input_blocks|down_blocks|enc)\.": "a U-shaped network (U-ViT, ADM, EDM2), another architecture",
    r"^(patch_embed|cls_token|head)\b": "a vision transformer for recognition, no diffusion model",
    r"^(encoder|decoder|quant_conv|post_quant_conv)\.": "an autoencoder, no diffusion model",
}
SPECIFICATION = "the layout that is read is in docs/published-weights.md"
ANCHORS = {  # and their dimensions
    "x_embedder.proj.weight": 4, "t_embedder.mlp.0.weight": 2, "y_embedder.embedding_table.weight": 2,
    "blocks.0.attn.qkv.weight": 2, "blocks.0.mlp.fc1.weight": 2, "final_layer.linear.weight": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What the shapes say. O is C, or 2 C with a second output per channel (learn_sigma)."""

    width: int
    depth: int
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O
    patch_grid: tuple[int, int]
    num_classes: int  # K, without the null label
    mlp_hidden: int
    projectors: tuple[str, ...] = ()  # prefixes: "projector." (ReDi), or "projectors.0." ... (REPA)
    projector_width: int = 0

    @property
    def learn_sigma(self) -> bool:
        return self.out_channels == 2 * self.in_channels

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the joint state."""
        return self.patch_grid[0] * self.patch_size, self.patch_grid[1] * self.patch_size

    def channels(self) -> Channels:
        """The groups of the published models: 4 latents, then DINOv2's components. Raises ValueError for other C."""
        if self.in_channels == 4:
            return Channels(image=4)
        if 4 < self.in_channels <= 68:  # ReDi: up to 64 components
            return Channels(image=4, dinov2=self.in_channels - 4)
        raise ValueError(
            f"the checkpoint has {self.in_channels} input channels: neither 4 latents alone nor with up to 64 "
            "components after them. Say which channels are which: channels= (or a gin file whose codec has so many)"
        )

    def model_settings(self, num_heads: int | None = None) -> dict:
        """Settings of `DiffusionTransformer`: `size` where the shapes are those of a published one, else its parts.

        The number of heads is in no shape. Default: that of the published size of this width; else heads of 64. Raises
        ValueError where 64 does not divide the width.
        """
        settings: dict = {"size": f"B/{self.patch_size}", "width": self.width, "depth": self.depth}
        for letter, (width, depth, heads) in SIZES.items():
            if width == self.width:
                num_heads = num_heads or heads
                if (depth, heads) == (self.depth, num_heads):
                    settings = {"size": f"{letter}/{self.patch_size}"}
        if num_heads is None and self.width % 64:
            advice = "say it (num_heads=, or --gin_bindings='DiffusionTransformer.num_heads = ...')"
            width = f"the width {self.width} is that of no published size and no multiple of 64"
            raise ValueError(f"the number of heads is in no checkpoint, and {width}: {advice}")
        if "width" in settings:
            settings["num_heads"] = num_heads or self.width // 64
        if self.mlp_hidden != 4 * self.width:
            settings["mlp_ratio"] = self.mlp_hidden / self.width
        if self.projectors:
            settings |= {"alignment_width": self.projector_width, "alignment_layer": min(8, self.depth)}
        return settings


def parse_layout(state: Mapping[str, Tensor], grid: tuple[int, int] | None = None) -> Layout:
    """Infer the layout from names and shapes; `grid` is (H, W) of the joint state, for a file without `pos_embed`.
    Raises ValueError for another layout, naming what is wrong and what it may be.
    """
    if missing := [name for name in ANCHORS if name not in state]:
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}: {_recognise(state)}")
    for name, dims in [*ANCHORS.items(), *([("pos_embed", 3)] if "pos_embed" in state else [])]:
        if state[name].ndim != dims:
            shape = tuple(state[name].shape)
            raise ValueError(f"the checkpoint has {name} {shape}, which should have {dims} dimensions")
    width, channels, p, _ = state["x_embedder.proj.weight"].shape
    rows = len(state["final_layer.linear.weight"])
    if rows % (p * p) or rows // (p * p) not in (channels, 2 * channels):
        raise ValueError(
            f"the checkpoint's head has {rows} rows, but patches of {p}x{p} with {channels} channels need "
            f"{p * p * channels}, or {2 * p * p * channels} with a learned or dead sigma: another head layout"
        )
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
    for prefix in layout.projectors:  # three linear layers from the width, over hidden, to the encoder's
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
            raise ValueError(f"the checkpoint has {tokens} positions, which make no square grid: {SPECIFICATION}")
        return isqrt(tokens), isqrt(tokens)
    if grid is None:
        advice = "pass grid=, (32, 32) for 256 pixels and (64, 64) for 512"
        raise ValueError(f"the checkpoint stores no pos_embed, which alone tells the size of its images: {advice}")
    return grid[0] // patch_size, grid[1] // patch_size


def published_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """{name: shape} in the order of the published code, without projectors: 8 + 10 N + 4 tensors."""
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


def projector_prefixes(names) -> tuple[str, ...]:
    """The prefixes of the REPA projectors among these names."""
    if any(name.startswith("projector.") for name in names):
        return ("projector.",)
    numbers = {int(match[1]) for name in names if (match := re.match(r"projectors\.(\d+)\.", name))}
    return tuple(f"projectors.{number}." for number in sorted(numbers))


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, tuple]) -> None:
    if missing := [name for name in expected if name not in state and name != "pos_embed"]:
        raise ValueError(f"the checkpoint lacks {_some(missing)}: {_recognise(state)}")
    if surplus := [name for name in state if name not in expected]:
        raise ValueError(f"the checkpoint holds {_some(surplus)} too much: {_recognise(state)}")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := [f"{name} {s} instead of {expected[name]}" for name, s in shapes.items() if s != expected[name]]:
        raise ValueError(f"the checkpoint's shapes do not belong together: {_some(wrong)}; {SPECIFICATION}")


def _recognise(state: Mapping[str, Tensor]) -> str:
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in state):
            return f"this looks like {what}"
    return f"not the layout of DiT, SiT, REPA or ReDi ({SPECIFICATION})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
