"""Tiny networks of the architectures of the pretrained encoders and autoencoders, with random weights in files of the
real formats."""

import runpy
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import LayerNorm
from timm.models import generate_default_cfgs, register_model
from timm.models.eva import _create_eva
from timm.models.vision_transformer import _cfg, _create_vision_transformer
from torch import Tensor

from redi.models.encoders import Encoder, encoders

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

# Depth, width and heads apart, what timm's entries of the real sizes say.
default_cfgs = generate_default_cfgs(
    {
        "vit_tiny_patch14_reg4_dinov2.lvd142m": _cfg(num_classes=0, input_size=(3, 518, 518), **IMAGENET),
        "vit_tiny_patch14_dinov2.lvd142m": _cfg(num_classes=0, input_size=(3, 518, 518), **IMAGENET),
        "vit_tiny_patch16_dinov3.lvd1689m": _cfg(num_classes=0, input_size=(3, 256, 256), **IMAGENET),
        "vit_tiny_patch16_clip_quickgelu_224.openai": _cfg(num_classes=16, **OPENAI),
        "vit_tiny_patch16_siglip_256.v2_webli": _cfg(num_classes=0, input_size=(3, 256, 256)),
        "vit_tiny_patch16_siglip_gap_256.v2_webli": _cfg(num_classes=0, input_size=(3, 256, 256)),
    }
)


@register_model
def vit_tiny_patch14_reg4_dinov2(pretrained: bool = False, **kwargs):
    settings = TINY | {"patch_size": 14, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
    return _create_vision_transformer("vit_tiny_patch14_reg4_dinov2", pretrained=pretrained, **settings | kwargs)


@register_model
def vit_tiny_patch14_dinov2(pretrained: bool = False, **kwargs):
    settings = TINY | {"patch_size": 14, "init_values": 1e-5}
    return _create_vision_transformer("vit_tiny_patch14_dinov2", pretrained=pretrained, **settings | kwargs)


@register_model
def vit_tiny_patch16_dinov3(pretrained: bool = False, **kwargs):
    settings = TINY | {
        "patch_size": 16, "dynamic_img_size": True, "qkv_bias": False, "init_values": 1e-5, "rope_type": "dinov3",
        "rope_temperature": 100, "rope_rotate_half": True, "use_rot_pos_emb": True, "use_abs_pos_emb": False,
        "num_reg_tokens": 4, "use_fc_norm": False, "norm_layer": partial(LayerNorm, eps=1e-5),
    }  # fmt: skip
    return _create_eva("vit_tiny_patch16_dinov3", pretrained=pretrained, **settings | kwargs)


@register_model
def vit_tiny_patch16_clip_quickgelu_224(pretrained: bool = False, **kwargs):
    settings = TINY | {"patch_size": 16, "pre_norm": True, "act_layer": "quick_gelu"}
    settings["norm_layer"] = partial(LayerNorm, eps=1e-5)
    return _create_vision_transformer("vit_tiny_patch16_clip_quickgelu_224", pretrained=pretrained, **settings | kwargs)


@register_model
def vit_tiny_patch16_siglip_256(pretrained: bool = False, **kwargs):
    settings = TINY | {"patch_size": 16, "class_token": False, "global_pool": "map"}
    return _create_vision_transformer("vit_tiny_patch16_siglip_256", pretrained=pretrained, **settings | kwargs)


@register_model
def vit_tiny_patch16_siglip_gap_256(pretrained: bool = False, **kwargs):
    settings = TINY | {"patch_size": 16, "class_token": False, "global_pool": "avg", "fc_norm": False}
    return _create_vision_transformer("vit_tiny_patch16_siglip_gap_256", pretrained=pretrained, **settings | kwargs)


def random_state(model: str, **options) -> dict[str, Tensor]:
    """All weights of a timm model at random: as it initialises them, its blocks (layer scale) would do nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = timm.create_model(model, **options).state_dict()
        noise = {name: 0.2 * torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in state.items()}
        return {name: 1 + tensor.abs() if name.endswith("running_var") else tensor for name, tensor in noise.items()}


FAMILIES = {
    "DINOv2": ({"size": "tiny"}, "vit_tiny_patch14_reg4_dinov2.lvd142m", ".pth"),
    "DINOv3": ({"size": "tiny"}, "vit_tiny_patch16_dinov3.lvd1689m", ".safetensors"),
    "CLIP": ({"size": "tiny"}, "vit_tiny_patch16_clip_quickgelu_224.openai", ".bin"),
    "SigLIP2": ({"size": "tiny"}, "vit_tiny_patch16_siglip_256.v2_webli", ".safetensors"),
    "Timm": ({"model": "test_vit.r160_in1k"}, "test_vit.r160_in1k", ".pth"),
    "EfficientNetLite": ({}, "tf_efficientnet_lite0.in1k", ".pth"),
    "Inception": ({}, "", ".pth"),
}


def random_inception() -> dict[str, Tensor]:
    """Weights of FID's Inception at random, scaled so that its features vary from image to image."""
    from cleanfid.inception_pytorch import fid_inception_v3

    shapes = {}

    def note(network, *_):
        shapes.update({name: tensor.shape for name, tensor in network.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        patch.setattr("cleanfid.inception_pytorch.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr("torchvision.models.Inception3.load_state_dict", note)
        fid_inception_v3()
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            state[name] = noise * (2 / noise[0].numel()) ** 0.5
        elif not shape:
            state[name] = torch.tensor(0)
        else:
            positive = name.endswith(("running_var", "bn.weight"))
            state[name] = 1 + 0.3 * noise.clamp(-2, 2) if positive else 0.1 * noise
    return state


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Callable[..., Encoder]:
    """(family, settings) -> an encoder of this family, as small as its architecture can be, with a weights file."""
    folder, files = tmp_path_factory.mktemp("weights"), {}

    def make(family: str, **settings) -> Encoder:
        defaults, model, suffix = FAMILIES[family]
        if family not in files:
            state = random_inception() if family == "Inception" else random_state(model)
            files[family] = save(state, folder / f"{family}{suffix}")
        return encoders[family](**{"weights": str(files[family])} | defaults | settings)

    with pytest.MonkeyPatch.context() as patch:
        for family, (settings, model, _) in FAMILIES.items():
            if "size" in settings:
                patch.setitem(encoders[family].models, settings["size"], model)
        yield make


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


# Test files reach what is above by fixtures: with importlib they cannot import each other.
@pytest.fixture(scope="session")
def tiny_timm():
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def compvis() -> dict:
    """The names of compvis_autoencoder.py."""
    return runpy.run_path(str(Path(__file__).with_name("compvis_autoencoder.py")))


@pytest.fixture(scope="session")
def rae_folder(tmp_path_factory) -> Path:
    """A folder as diffusers saves it, of a tiny RAE with normalisation: 64 channels at 1/8 of 32 pixels."""
    from diffusers import AutoencoderRAE

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoencoderRAE(
            encoder_hidden_size=64, encoder_num_hidden_layers=1, encoder_input_size=56, patch_size=8,
            decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
            decoder_intermediate_size=64, latents_mean=torch.randn(64, 4, 4), latents_std=torch.rand(64, 4, 4) + 0.1,
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("autoencoders") / "RAE"
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae_folders(tmp_path_factory, compvis) -> dict[str, Path]:
    """Folders as diffusers saves them, of tiny random networks: StableVAE (4 channels at 1/4 of the size), TinyVAE
    (the same), wide (an AutoencoderKL of 16 channels at 1/2, with the scale and shift of another family) and Flux2VAE
    (5 channels at 1/2, packed to 20 at 1/4); and VAVAE, a file (8 channels at 1/4)."""
    from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny

    def kl(levels: int, **config) -> AutoencoderKL:
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
        network = AutoencoderKL(block_out_channels=(8,) * levels, norm_num_groups=4, **kinds, **config)
        with torch.no_grad():  # posteriors as narrow as trained ones: log-variances around these
            bias = network.quant_conv.bias
            bias[len(bias) // 2 :] = torch.linspace(-35, -4, len(bias) // 2)
        return network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "StableVAE": kl(3),
            "wide": kl(2, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
            "TinyVAE": AutoencoderTiny(
                encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3,
                num_encoder_blocks=(1,) * 3, num_decoder_blocks=(1,) * 3,
            ),
        }  # fmt: skip
        flux2 = AutoencoderKLFlux2(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=5,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, layers_per_block=1,
        )  # fmt: skip
        flux2.bn.running_mean.normal_()
        flux2.bn.running_var.uniform_(0.1, 4)
    networks["Flux2VAE"] = flux2
    folders = {name: tmp_path_factory.mktemp("autoencoders") / name for name in networks}
    for name, folder in folders.items():
        networks[name].save_pretrained(folder)
    folders["VAVAE"] = tmp_path_factory.mktemp("autoencoders") / "vae.pt"
    torch.save(compvis["state_of"](compvis["random_network"]()), folders["VAVAE"])
    return folders
