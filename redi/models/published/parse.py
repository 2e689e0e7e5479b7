"""Recognise the layout of a published state dict, and compare its names and shapes with those of the layout."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from redi.models.published.dit_dh import DiTDH
from redi.models.published.layout import SPECIFICATION, Layout, size_of
from redi.models.published.lightningdit import SFD, LightningDiT
from redi.models.published.reg import REGLayout
from redi.models.published.tensors import to_theirs
from redi.models.transformer import DiffusionTransformer

# The layouts that can be read. The first with one of its `marks` in a state dict is its layout; without any, the last.
LAYOUTS: tuple[type[Layout], ...] = (DiTDH, SFD, LightningDiT, REGLayout, Layout)
# Names that identify other architectures. They cannot be read; the error message names the architecture.
OTHERS = {
    r"^fusion\.embeddings\.": "this library's own model: open its run folder with redi.load",
    r"^transformer_blocks\.|^proj_out_1\.|^pos_embed\.proj\.": "a transformer of diffusers (DiTTransformer2DModel, "
    "PixArt, SD3) with separate to_q, to_k, to_v: convert it to the authors' layout first",
    r"^decoder_|^mask_token$|^sideblocks\.": "a masked variant with its own decoder (MaskDiT, SD-DiT, MDT)",
    r"(^|\.|_)(clock|schedule|tau)(\.|_)": "LWD, whose learned clock has no published definition",
    r"^(in_context_posemb|cls_projectors\.|x_embedder\.proj1\.)": "JiT or RiT, with class tokens in the sequence",
    r"^(sit_blocks|self_cond_block)\.": "DINO Forcing, which predicts the features with its own head",
    r"\.mlp\.w1\.|\.attn\.(q|k|v|to_q|q_proj)\.": "RAEv2 or a related model, with separate queries, keys and values, "
    "and class and time tokens in the sequence",
    r"^t_embedder\.W$": "RAE's plain DiT, with Gaussian features of the time but without DiT-DH's wide head",
    r"\.attn\.[qk]_norm\.bias$": "LightningDiT with LayerNorm for queries and keys: only RMSNorm is supported",
    r"\.mlp\.w12\.|^feat_rope\.|^without (blocks|final_layer)\S+norm": "LightningDiT with other norms or another "
    "MLP: RMSNorm, SwiGLU and rotary positions are supported",
    r"^blocks\.\d+\.norm[12]\.weight$|\.attn\.[qk]_norm\.": "a transformer with learned norms, which is not the "
    "architecture of DiT and SiT",
    r"^joint_blocks\.": "an MMDiT (SD3), which is not the architecture of DiT and SiT",
    r"^(in_blocks|input_blocks|down_blocks|enc)\.": "a U-shaped network (U-ViT, ADM, EDM2), not a DiT or SiT",
    r"^(patch_embed|cls_token|head)\b": "a vision transformer for recognition, not a diffusion model",
    r"^(encoder|decoder|quant_conv|post_quant_conv)\.": "an autoencoder, not a diffusion model",
}


def parse_layout(state: Mapping[str, Tensor], grid: tuple[int, int] | None = None) -> Layout:
    """Infer the layout from {published name: tensor}. For another architecture, a ValueError suggests what it is.

    `grid`, the (H, W) of the joint state, is required for a file without `pos_embed`.
    """
    kind = next((kind for kind in LAYOUTS if state.keys() & {*kind.marks}), LAYOUTS[-1])
    anchors = kind.anchors()
    if missing := [name for name in anchors if name not in state]:
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}: {_recognise(state, kind, missing)}")
    for name, dims in [*anchors.items(), *([("pos_embed", 3)] if "pos_embed" in state else [])]:
        if state[name].ndim != dims:
            shape = tuple(state[name].shape)
            raise ValueError(f"the checkpoint has {name} of shape {shape}: must have {dims} dimensions")
    layout = kind.parse(state, grid)
    expected = published_shapes(layout)
    for prefix in layout.projectors:  # three linear layers: width -> hidden -> hidden -> encoder width
        hidden, outputs = size_of(state, f"{prefix}0.weight"), size_of(state, f"{prefix}4.weight")
        for i, (rows, columns) in {0: (hidden, layout.width), 2: (hidden, hidden), 4: (outputs, hidden)}.items():
            expected |= {f"{prefix}{i}.weight": (rows, columns), f"{prefix}{i}.bias": (rows,)}
    _compare(state, expected, layout)
    return layout


def published_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of all tensors but projectors."""
    groups = layout.example_channels()
    with torch.device("meta"):
        model = DiffusionTransformer(
            channels=groups, grid=layout.grid, num_classes=layout.num_classes,
            variance_groups=tuple(groups) if layout.learn_sigma else (), **layout.model_settings(layout.num_heads or 1),
        )  # fmt: skip
        tensors = layout.tables() | to_theirs(model.state_dict(), layout.names(groups, layout.num_blocks), groups)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, tuple], layout: Layout) -> None:
    kind = type(layout)
    if missing := [name for name in expected if name not in state and name not in layout.tables()]:
        raise ValueError(f"the checkpoint lacks {_some(missing)}: {_recognise(state, kind, missing)}")
    if surplus := [name for name in state if name not in expected]:
        what = f"the checkpoint holds {_some(surplus)}, which no {layout.title} has"
        raise ValueError(f"{what}: {_recognise(state, kind)}")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := [f"{name} {s} instead of {expected[name]}" for name, s in shapes.items() if s != expected[name]]:
        raise ValueError(f"the checkpoint's shapes are inconsistent: {_some(wrong)}; {SPECIFICATION}")


def _recognise(state: Mapping[str, Tensor], kind: type[Layout], missing: Iterable[str] = ()) -> str:
    """Return what the tensors that are not those of this layout show."""
    own = [kind.marks[0], *kind.anchors(), *(f"blocks.0.{stem}.weight" for stem in kind.in_block)]
    own = own if state.keys() & {*kind.marks} else []
    for pattern, architecture in OTHERS.items():
        names = [] if any(re.search(pattern, name) for name in own) else [*state]
        if any(re.search(pattern, name) for name in [*names, *(f"without {name}" for name in missing)]):
            return f"this looks like {architecture}"
    others = f"the other tensors are those of {kind.title}, so import all of its file and nothing else"
    return f"{others}; {SPECIFICATION}" if own else f"this is not a layout that can be read ({SPECIFICATION})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
