"""The pretrained encoders: against timm called by hand, and against transformers written out below."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

from redi.models.codec import JointCodec, Representation
from redi.models.encoders import CLIP, DINOv2, DINOv3, SigLIP2, Timm
from redi.models.encoders.architecture import timm_architecture
from redi.models.reducers import PCA

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = ["DINOv2", "DINOv3", "CLIP", "SigLIP2", "Timm"]
REG4 = "vit_tiny_patch14_reg4_dinov2.lvd142m"
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]


def noise_images(n: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# Against timm called by hand


@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_timm_built_for_this_input_size(family, side, tiny_encoder):
    encoder = tiny_encoder(family)
    images = noise_images(1, side)
    inputs = encoder.inputs(images)
    overlay = {"file": encoder.weights}
    name = encoder.architecture.name
    options = {} if family == "DINOv3" else {"img_size": inputs.shape[-1]}
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
    with torch.no_grad():
        tokens = network.forward_features(inputs)[:, network.num_prefix_tokens :]  # (1, P, E)
    features = encoder(images)
    assert features.shape[-2:] == (side // 16, side // 16)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_layers_are_concatenated_in_the_order_given(family, tiny_encoder):
    images = noise_images(1, 64)
    both = tiny_encoder(family, layers=(1, 0))
    assert both.dim == 2 * tiny_encoder(family).dim
    assert both(images).shape[1] == both.dim
    separate = [tiny_encoder(family, layers=layer)(images) for layer in (1, 0)]
    assert torch.equal(both(images), torch.cat(separate, dim=1))


def test_an_inner_layer_passes_the_final_norm(tiny_encoder):
    encoder = tiny_encoder("DINOv2", layers=1)
    images = noise_images(1, 64)
    overlay = {"file": encoder.weights}
    network = timm.create_model(REG4, pretrained=True, pretrained_cfg_overlay=overlay, img_size=56).eval()
    with torch.no_grad():
        tokens = network._pos_embed(network.patch_embed(encoder.inputs(images)))
        tokens = network.norm(network.blocks[:2](tokens))
    torch.testing.assert_close(encoder(images).flatten(2).mT, tokens[:, 5:], rtol=1e-5, atol=1e-5)


def test_the_last_layer_is_the_default_by_any_name(tiny_encoder):
    images = noise_images(1, 32)
    for layers in (-1, 2, [2]):
        encoder = tiny_encoder("DINOv2", layers=layers)
        assert torch.equal(encoder(images), tiny_encoder("DINOv2")(images))
        assert encoder.provenance() == tiny_encoder("DINOv2").provenance()


def test_networks_of_stages_give_the_feature_maps_of_timm(tmp_path, tiny_timm):
    path = tiny_timm.save(tiny_timm.random_state("test_convnext"), tmp_path / "weights.pth")
    images = noise_images(1, 64)
    last = Timm(model="test_convnext", weights=str(path))
    inner = Timm(model="test_convnext", weights=str(path), layers=1)
    network = timm.create_model("test_convnext", pretrained=True, pretrained_cfg_overlay={"file": str(path)}).eval()
    with torch.no_grad():
        x = network.stem(last.inputs(images))
        assert last.inputs(images).shape[-1] == 128  # 32 pixels for every 16, so that the grid is the same
        torch.testing.assert_close(last(images), network.forward_features(last.inputs(images)), rtol=1e-5, atol=1e-5)
        x = network.stages[1](network.stages[0](network.stem(inner.inputs(images))))
        torch.testing.assert_close(inner(images), x, rtol=1e-5, atol=1e-5)
    assert last(images).shape[-2:] == inner(images).shape[-2:] == (4, 4)


@pytest.mark.parametrize("family", ["DINOv2", "DINOv3", "CLIP"])
def test_pooled_is_the_normalised_class_token_of_timm(family, tiny_encoder):
    encoder, images = tiny_encoder(family), noise_images(2, 64)
    inputs = encoder.inputs(images)
    options = {} if family == "DINOv3" else {"img_size": inputs.shape[-1]}
    overlay = {"file": encoder.weights}
    name = encoder.architecture.name
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
    with torch.no_grad():
        expected = network.forward_features(inputs)[:, 0]
    torch.testing.assert_close(encoder.pooled(images), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(encoder.pooled(images), encoder(images).mean(dim=(2, 3)), atol=0.1)


@pytest.mark.parametrize("family", ["SigLIP2", "Timm"])
def test_pooled_is_the_mean_over_the_grid_where_there_is_no_class_token(family, tiny_encoder, tiny_timm, tmp_path):
    if family == "Timm":
        path = tiny_timm.save(tiny_timm.random_state("test_convnext"), tmp_path / "weights.pth")
        encoder = Timm(model="test_convnext", weights=str(path))
    else:
        encoder = tiny_encoder(family)
    images = noise_images(2, 64)
    expected = encoder(images).flatten(2).mean(dim=2)
    torch.testing.assert_close(encoder.pooled(images), expected, rtol=1e-5, atol=1e-6)


def test_pooled_of_several_layers_is_their_class_tokens_in_the_order_given(tiny_encoder):
    images = noise_images(1, 64)
    separate = [tiny_encoder("DINOv2", layers=layer).pooled(images) for layer in (1, 0)]
    assert torch.equal(tiny_encoder("DINOv2", layers=(1, 0)).pooled(images), torch.cat(separate, dim=1))


@pytest.mark.parametrize("final_norm", [True, False, "plain"])
@pytest.mark.parametrize("combine", ["concatenate", "sum", "mean"])
def test_layers_are_combined_after_the_norm_that_is_asked_for(combine, final_norm, tiny_encoder):
    encoder = tiny_encoder("DINOv2", layers=(2, 0), combine=combine, final_norm=final_norm)
    images = noise_images(2, 64)
    overlay = {"file": encoder.weights}
    network = timm.create_model(REG4, pretrained=True, pretrained_cfg_overlay=overlay, img_size=56).eval()
    norm = torch.nn.LayerNorm(32, eps=network.norm.eps, elementwise_affine=False)
    norm = {True: network.norm, False: torch.nn.Identity(), "plain": norm}[final_norm]
    with torch.no_grad():
        first = network.blocks[:1](network._pos_embed(network.patch_embed(encoder.inputs(images))))
        layers = [norm(network.blocks[1:](first)), norm(first)]  # in the order (2, 0)
    tokens = torch.cat(layers, dim=-1) if combine == "concatenate" else sum(layers) / (2 if combine == "mean" else 1)
    torch.testing.assert_close(encoder(images).flatten(2).mT, tokens[:, 5:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.class_token(images), tokens[:, 0], rtol=1e-5, atol=1e-5)
    assert encoder.dim == tokens.shape[-1]


def test_only_settings_that_differ_from_the_default_enter_the_provenance(tiny_encoder):
    """So that caches and runs of earlier versions stay valid."""
    before = tiny_encoder("CLIP").provenance()
    assert not {"combine", "final_norm"} & set(before)
    changed = tiny_encoder("CLIP", combine="sum", final_norm=False).provenance()
    assert changed == before | {"combine": "sum", "final_norm": False}


# Against transformers written out, from the authors' own file formats


def norm(x: Tensor, state: dict[str, Tensor], name: str, eps: float) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True)
    scaled = x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attend(qkv: Tensor, num_heads: int = 2) -> Tensor:
    """(1, T, 3D) -> (1, T, D)."""
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def patches(images: Tensor, weight: Tensor) -> Tensor:
    """(1, 3, S, S) times (D, 3, p, p) -> (1, P, D), row by row."""
    size = weight.shape[-1]
    cut = functional.unfold(images, size, stride=size).mT  # (1, P, 3pp)
    return cut @ weight.flatten(1).T


def dinov2_by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Normalised patch tokens (1, P, D): positions for class and patches, then the registers between them."""
    x = patches(images, state["patch_embed.proj.weight"]) + state["patch_embed.proj.bias"]
    side = int(x.shape[1] ** 0.5)
    positions = state["pos_embed"][:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    positions = functional.interpolate(positions, (side, side), mode="bicubic", antialias=True)
    x = x + positions.flatten(2).mT
    x = torch.cat([state["cls_token"] + state["pos_embed"][:, :1], state["register_tokens"], x], dim=1)
    for i in range(3):
        block = f"blocks.{i}"
        hidden = attend(linear(norm(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv"))
        x = x + linear(hidden, state, f"{block}.attn.proj") * state[f"{block}.ls1.gamma"]
        hidden = linear(norm(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1")
        x = x + linear(functional.gelu(hidden), state, f"{block}.mlp.fc2") * state[f"{block}.ls2.gamma"]
    return norm(x, state, "norm", 1e-6)[:, 5:]


def as_dinov2_is_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names -> those of dinov2_vit*_reg4_pretrain.pth, with a position for the class token."""
    state = dict(state)
    generator = torch.Generator().manual_seed(1)
    width = state["cls_token"].shape[-1]
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.randn(1, 1, width, generator=generator) * 0.2, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.randn(1, width, generator=generator)
    return state


@pytest.mark.parametrize("side", [256, 512])
def test_the_file_of_dinov2s_authors_gives_its_normalised_patch_tokens(side, tmp_path, tiny_timm, tiny_encoder):
    state = as_dinov2_is_published(tiny_timm.random_state(REG4))
    path = tiny_timm.save(state, tmp_path / "dinov2_reg4_pretrain.pth")
    encoder = tiny_encoder("DINOv2", weights=str(path))
    images = noise_images(1, side)
    exact = {name: tensor.double() for name, tensor in state.items()}
    expected = dinov2_by_hand(exact, encoder.inputs(images).double())
    torch.testing.assert_close(encoder(images).flatten(2).mT.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_weights_of_openais_authors_give_its_normalised_patch_tokens(tmp_path, tiny_timm, tiny_encoder):
    names = {
        "cls_token": "class_embedding", "pos_embed": "positional_embedding", "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre", "blocks": "transformer.resblocks", "attn.qkv.": "attn.in_proj_", "norm1": "ln_1",
        "attn.proj": "attn.out_proj", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "norm.": "ln_post.",
    }  # fmt: skip
    state, published = tiny_timm.random_state("vit_tiny_patch16_clip_quickgelu_224"), {}
    del state["head.bias"]
    for name, tensor in state.items():
        if name in ("cls_token", "pos_embed"):
            tensor = tensor.squeeze()
        if name == "head.weight":
            name, tensor = "proj", tensor.T.contiguous()
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        published[f"visual.{name}"] = tensor
    published["token_embedding.weight"] = torch.zeros(2, 2)  # of the text transformer
    encoder = tiny_encoder("CLIP", weights=str(tiny_timm.save(published, tmp_path / "clip.pth")))
    images = noise_images(1, 224)

    state = {name: tensor.double() for name, tensor in state.items()}
    tokens = patches(encoder.inputs(images).double(), state["patch_embed.proj.weight"])
    x = torch.cat([state["cls_token"], tokens], dim=1)
    x = norm(x + state["pos_embed"], state, "norm_pre", 1e-5)
    for i in range(3):
        block = f"blocks.{i}"
        hidden = attend(linear(norm(x, state, f"{block}.norm1", 1e-5), state, f"{block}.attn.qkv"))
        x = x + linear(hidden, state, f"{block}.attn.proj")
        hidden = linear(norm(x, state, f"{block}.norm2", 1e-5), state, f"{block}.mlp.fc1")
        x = x + linear(hidden * (1.702 * hidden).sigmoid(), state, f"{block}.mlp.fc2")
    expected = norm(x, state, "norm", 1e-5)[:, 1:]
    torch.testing.assert_close(encoder(images).flatten(2).mT.double(), expected, rtol=1e-4, atol=1e-4)


# Images to inputs


def test_the_released_rule_normalises_and_then_resizes_without_antialiasing(tiny_encoder):
    images = noise_images(2, 256)
    expected = (images / 255 - IMAGENET[0]) / IMAGENET[1]
    expected = functional.interpolate(expected, 224 * (256 // 256), mode="bicubic")
    torch.testing.assert_close(tiny_encoder("DINOv2", resize="released").inputs(images), expected, rtol=0, atol=0)


def test_the_antialiased_rule_is_that_of_pillow(tiny_encoder):
    import numpy as np
    from PIL import Image

    images = noise_images(1, 512) // 2 + 64  # Pillow clamps to bytes after either direction
    seen = tiny_encoder("DINOv2", image_size=224).inputs(images) * IMAGENET[1] + IMAGENET[0]
    pillow = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(seen, expected, rtol=0, atol=1.5 / 255)  # it also rounds there


@pytest.mark.parametrize("resize", ["antialiased", "released"])
def test_images_of_the_right_size_are_not_resampled(resize, tiny_encoder):
    images = noise_images(1, 256)
    expected = images / 127.5 - 1  # SigLIP's normalisation
    seen = tiny_encoder("SigLIP2", resize=resize).inputs(images)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("side", "grid"), [(256, 16), (512, 32)])
def test_one_configuration_serves_both_image_sizes_with_a_grid_of_16_pixels(side, grid, tiny_encoder):
    encoder = tiny_encoder("DINOv2")
    assert encoder(noise_images(1, side)).shape == (1, encoder.dim, grid, grid)
    assert encoder.inputs(noise_images(1, side)).shape[-1] == 14 * grid
    assert tiny_encoder("CLIP").side(side) == 16 * grid


def test_an_encoder_that_saw_large_images_gives_the_same_of_small_ones(tiny_encoder):
    encoder, images = tiny_encoder("DINOv2"), noise_images(1, 256)
    before = encoder(images)
    encoder(noise_images(1, 512))
    assert torch.equal(encoder(images), before)


def test_mirrored_constant_images_give_the_same_features_at_the_same_place(tiny_encoder):
    encoder = tiny_encoder("DINOv2")
    image = noise_images(1, 1).expand(1, 3, 64, 64)
    assert torch.equal(encoder(image.flip(-1)), encoder(image))


def test_the_grid_is_laid_out_as_the_image(tiny_encoder):
    encoder = tiny_encoder("SigLIP2", layers=0)
    image = noise_images(1, 128)
    changed = image.clone()
    changed[:, :, 16:32, 80:96] = 255 - changed[:, :, 16:32, 80:96]  # row 1, column 5 of 16-pixel patches
    difference = (encoder(changed) - encoder(image)).square().sum(dim=1)[0]
    assert difference.flatten().argmax() == 1 * 8 + 5


@pytest.mark.parametrize("side", [8, 100])
def test_images_without_a_whole_grid_are_refused_with_the_binding(side, tiny_encoder):
    with pytest.raises(ValueError, match=rf"images of {side} pixels .*set DINOv2.image_size to a multiple of 14"):
        tiny_encoder("DINOv2")(noise_images(1, side))
    assert tiny_encoder("DINOv2", image_size=56)(noise_images(1, side)).shape[-2:] == (4, 4)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32), noise_images(1, 32)[:, :, :16], noise_images(1, 32)[0]])
def test_other_than_square_byte_images_are_refused(images, tiny_encoder):
    with pytest.raises((TypeError, ValueError), match="images must be uint8"):
        tiny_encoder("CLIP")(images)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "XL"}, "DINOv2.size = 'XL': must be one of S, B, L, g"),
        ({"image_size": 256}, "DINOv2.image_size = 256: must be a multiple of 14"),
        ({"image_size": 0}, "DINOv2.image_size = 0: must be a multiple of 14"),
        ({"resize": "bilinear"}, "DINOv2.resize = 'bilinear': must be 'antialiased' or 'released'"),
        ({"precision": "float16"}, "DINOv2.precision = 'float16': must be 'float32' or 'bfloat16'"),
        ({"layers": 3}, "DINOv2.layers = 3: must be in -3 ... 2"),
        ({"layers": (0, -3)}, "DINOv2.layers = .* names a layer twice"),
        ({"layers": ()}, "DINOv2.layers = .*: must be in -3 ... 2"),
        ({"combine": "max"}, "DINOv2.combine = 'max': must be 'concatenate', 'sum' or 'mean'"),
        ({"final_norm": "raw"}, "DINOv2.final_norm = 'raw': must be True, False or 'plain'"),
    ],
)
def test_impossible_settings_are_refused_with_their_binding(settings, message, tiny_encoder):
    with pytest.raises(ValueError, match=message):
        tiny_encoder("DINOv2", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vit_base_pach16_224"}, "Timm.model = 'vit_base_pach16_224' is not a model of timm .*did you mean"),
        ({"model": "test_vit.nobody"}, "Timm.model = 'test_vit.nobody' is not a model of timm .*tag"),
        ({"model": "hiera_tiny_224"}, "Timm.model = 'hiera_tiny_224' has no normalised feature maps"),
        (
            {"model": "mixer_s16_224", "image_size": 256},
            "Timm.image_size = 256: must be 224, the only size of mixer",
        ),
        ({"model": "test_convnext", "layers": (0, 3)}, "the layers have different strides"),
        (
            {"model": "test_convnext", "final_norm": "plain"},
            "Timm.final_norm = 'plain': must be True or False",
        ),
    ],
)
def test_models_that_timm_has_not_or_cannot_run_so_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Timm(**settings)


@pytest.mark.parametrize(
    ("family", "settings", "width"),
    [(DINOv2, {}, 768), (DINOv2, {"size": "S"}, 384), (DINOv3, {"size": "S+"}, 384), (CLIP, {"size": "L/14"}, 1024),
     (SigLIP2, {"size": "So400m/14"}, 1152), (Timm, {"model": "resnet18"}, 512), (DINOv2, {"layers": (5, 11)}, 1536)],
)  # fmt: skip
def test_the_width_is_known_without_weights(family, settings, width):
    encoder = family(**settings)
    assert encoder.dim == width
    assert not list(encoder.parameters()) and encoder.state_dict() == {}


def test_every_size_of_every_family_has_published_weights_in_timm():
    names = [name for family in (DINOv2, DINOv3, CLIP, SigLIP2) for name in family.models.values()]
    names += [DINOv2(size=size, registers=False).architecture.name for size in "SBLg"]
    assert [name for name in names if "tiny" not in name and not timm.is_model_pretrained(name)] == []


def test_the_default_models_are_the_ones_that_the_docstrings_name():
    assert DINOv2().architecture.name == "vit_base_patch14_reg4_dinov2.lvd142m"
    assert DINOv2(registers=False).architecture.name == "vit_base_patch14_dinov2.lvd142m"
    assert DINOv3().architecture.name == "vit_base_patch16_dinov3.lvd1689m"
    assert CLIP().architecture.name == "vit_base_patch16_clip_quickgelu_224.openai"
    assert SigLIP2().architecture.name == "vit_base_patch16_siglip_256.v2_webli"


def test_what_is_built_without_weights_is_what_is_built_with_them(tiny_encoder):
    encoder = tiny_encoder("DINOv3")
    assert encoder.architecture == timm_architecture("vit_tiny_patch16_dinov3", "Timm.model")
    assert encoder.dim == encoder.network.embed_dim and encoder.stride == encoder.network.patch_embed.patch_size[0]


# The network


def test_bfloat16_gives_nearly_the_same_features_as_float32(tiny_encoder):
    images = noise_images(2, 64)
    for family in FAMILIES:
        exact, rough = tiny_encoder(family)(images), tiny_encoder(family, precision="bfloat16")(images)
        assert rough.dtype == torch.float32
        assert not torch.equal(exact, rough)
        assert (exact - rough).norm() < 0.05 * exact.norm()  # 8 bits of mantissa through a few blocks


def test_float32_stays_float32_under_autocast(tiny_encoder):
    encoder, images = tiny_encoder("DINOv2"), noise_images(1, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(images), tiny_encoder("DINOv2")(images))
    assert torch.equal(encoder(images), tiny_encoder("DINOv2")(images))


def test_the_network_is_frozen_in_a_codec_in_training(tiny_encoder):
    encoder = tiny_encoder("DINOv2")
    encoder.load()
    codec = JointCodec(representations=[Representation(encoder=encoder, reducer=PCA(rank=2))]).train()
    codec.requires_grad_(True)
    assert not any(module.training for module in encoder.network.modules())
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert not encoder(noise_images(1, 32)).requires_grad


def test_the_network_is_no_part_of_the_learned_state(tiny_encoder):
    encoder = tiny_encoder("DINOv2")
    encoder.load()
    codec = JointCodec(representations=[Representation(encoder=encoder, reducer=PCA(rank=2))])
    assert all(".reducer." in name for name in codec.learned_state())


@pytest.mark.parametrize("loaded", [False, True])
def test_the_network_goes_where_the_codec_goes(loaded, tiny_encoder):
    encoder = tiny_encoder("DINOv2")
    if loaded:
        encoder.load()
    codec = JointCodec(representations=[Representation(encoder=encoder, reducer=PCA(rank=2))]).to("meta")
    assert codec.device == torch.device("meta")
    assert {parameter.device for parameter in encoder.network.parameters()} == {torch.device("meta")}


def test_constructing_and_loading_draw_no_random_numbers(tiny_encoder):
    before = torch.get_rng_state()
    tiny_encoder("CLIP")(noise_images(1, 32))
    assert torch.equal(torch.get_rng_state(), before)


# Imports


def test_neither_importing_nor_constructing_encoders_imports_transformers_or_diffusers():
    code = (
        "import sys, redi.models.encoders as e; assert 'timm' not in sys.modules; e.CLIP(); "
        "print(*sorted({'transformers', 'diffusers', 'xformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_dinov2_without_registers_has_its_positions_resampled_as_by_its_authors(tmp_path, tiny_timm, tiny_encoder):
    name = "vit_tiny_patch14_dinov2.lvd142m"
    state = tiny_timm.random_state(name, img_size=518)
    path = tiny_timm.save(state, tmp_path / "weights.pth")
    encoder = tiny_encoder("DINOv2", registers=False, image_size=224, weights=str(path))
    images = noise_images(2, 224)
    positions = state["pos_embed"][:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    resampled = functional.interpolate(positions, scale_factor=16.1 / 37, mode="bicubic").flatten(2).mT  # (1, 256, D)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], resampled], dim=1)
    network = timm.create_model(name, img_size=224).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        tokens = network.forward_features(encoder.inputs(images))
    torch.testing.assert_close(encoder.pooled(images), tokens[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(images).flatten(2).mT, tokens[:, 1:], rtol=1e-4, atol=1e-4)
    assert encoder.provenance()["position_embedding"] == "released"
    assert "position_embedding" not in tiny_encoder("DINOv2").provenance()


def test_only_the_features_of_fd_dinov2_give_its_name():
    standard = DINOv2(size="L", registers=False, image_size=224)
    assert standard.metric_name("frechet_distance") == "frechet_distance_dinov2"
    assert DINOv2().metric_name("frechet_distance") == "frechet_distance_dinov2_b_registers"
    for changed in ({"image_size": 448}, {"layers": 3}, {"resize": "released"}, {"final_norm": "plain"}):
        other = DINOv2(**{"size": "L", "registers": False, "image_size": 224} | changed)
        assert other.metric_name("recall") == "recall_dinov2_l"
