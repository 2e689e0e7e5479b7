"""RAE against diffusers' AutoencoderRAE. Here and in the contract of autoencoders alone, transformers is imported."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from redi.models.autoencoders import RAE
from redi.models.autoencoders.statistics import LatentStatistics

HALF = 2**-11  # the relative rounding error of float16
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def diffusers_rae(rae_folder):
    from diffusers import AutoencoderRAE

    return AutoencoderRAE.from_pretrained(rae_folder, low_cpu_mem_usage=False).eval().requires_grad_(False)


def images(n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.float(), b.float(), rtol=2 * HALF, atol=1e-3)


def test_latents_and_images_are_those_of_diffusers(rae_folder, diffusers_rae):
    rae = RAE(weights=str(rae_folder))
    assert (rae.channels, rae.downsample, rae.image_size) == (64, 8, 32)
    moments, expected = rae.moments(images()), diffusers_rae.encode(images().float() / 255).latent
    assert moments.dtype == torch.float16 and expected.std() > 1  # normalised
    close(rae.latents(moments), expected)
    decoded, x = rae.decode(expected), diffusers_rae.decode(expected).sample
    assert ((decoded.float() - (255 * x).clamp(0, 255).floor()).abs() <= 1).all() and decoded.float().std() > 1
    difference = decoded.float() - (255 * x).clamp(0, 255)
    assert -1.01 < difference.min() and difference.max() < 0.01  # truncated, as in RAE
    assert (
        RAE(weights=str(rae_folder), uint8_rule="round").decode(expected) - 0.0 - 255 * x.clamp(0, 1)
    ).abs().max() < 0.51


def test_another_encoder_loads(tmp_path):
    from diffusers import AutoencoderRAE

    small = {"encoder_hidden_size": 64, "encoder_num_hidden_layers": 1, "encoder_patch_size": 16}
    small |= {"encoder_input_size": 32, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
    network = AutoencoderRAE(encoder_type="mae", **small, decoder_num_attention_heads=2, decoder_intermediate_size=32)
    network.eval().save_pretrained(tmp_path)
    rae = RAE(weights=str(tmp_path))
    with torch.no_grad():
        z = network.encode(images().float() / 255).latent
        x = 255 * network.decode(z).sample.clamp(0, 1)
    close(rae.moments(images()), z)
    assert (rae.decode(z).float() - x).abs().max() < 1.01


def test_an_encoder_that_the_installed_packages_cannot_build_is_named(rae_folder, tmp_path):
    folder = shutil.copytree(rae_folder, tmp_path / "copied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_type": "siglip2"}))
    with pytest.raises(ValueError, match="RAE.weights: .*(encoder_type = 'siglip2' cannot be built|does not match)"):
        RAE(weights=str(folder)).load()  # they can: the tensors are of DINOv2


def test_statistics_replace_the_normalisation_of_the_file(rae_folder, diffusers_rae, tmp_path):
    variance = torch.rand(64, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.005
    torch.save({"mean": None, "var": variance}, tmp_path / "stat.pt")
    statistics = LatentStatistics(str(tmp_path / "stat.pt"), rule="variance", eps=1e-5)
    plain, rae = RAE(weights=str(rae_folder)), RAE(weights=str(rae_folder), statistics=statistics)
    tensors = load_file(rae_folder / FILE)
    std = tensors["_latents_std"] + 1e-5
    raw = diffusers_rae.encode(images().float() / 255).latent * std + tensors["_latents_mean"]
    latents = rae.latents(rae.moments(images()))
    close(latents, raw / (variance + 1e-5).sqrt())
    again = plain.decode((raw - tensors["_latents_mean"]) / std).float()
    assert (rae.decode(raw / (variance + 1e-5).sqrt()).float() - again).abs().max() <= 1
    assert rae.stored_provenance() != plain.stored_provenance()  # a cache with other moments


def test_only_one_size_of_images_fits(rae_folder):
    with pytest.raises(ValueError, match="RAE cannot encode images of 64 pixels, because its decoder makes 32"):
        RAE(weights=str(rae_folder)).check_size(64)


def test_a_file_that_lacks_a_tensor_is_refused(rae_folder, tmp_path):
    folder = shutil.copytree(rae_folder, tmp_path / "copied")
    tensors = load_file(folder / FILE)
    del tensors["decoder.decoder_norm.weight"]
    save_file(tensors, folder / FILE)
    with pytest.raises(ValueError, match="RAE.weights: .*decoder.decoder_norm.weight"):
        RAE(weights=str(folder)).load()


def test_without_transformers_or_weights_the_message_says_what_to_install(rae_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="RAE.weights: no local folder 'nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08'"):
        RAE().load()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"RAE needs transformers: pip install 'redi-diffusion\[rae\]'"):
        RAE(weights=str(rae_folder)).load()
