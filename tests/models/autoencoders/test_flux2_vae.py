import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import load_file, save_file

from redi.models.autoencoders import Flux2VAE, LatentStatistics, StableVAE
from redi.models.codec import JointCodec

PAGE = Path(__file__).parents[3] / "docs" / "autoencoders.md"
FILE = "diffusion_pytorch_model.safetensors"


def images(n: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def folder(vae_folders) -> str:
    return str(vae_folders["Flux2VAE"])


@pytest.fixture(scope="module")
def reference(folder) -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2.from_pretrained(folder, low_cpu_mem_usage=False).requires_grad_(False)


def test_latents_are_the_packed_and_normalised_mode_of_diffusers(folder, reference):
    vae = Flux2VAE(folder)
    mode = reference.encode(images().float() / 127.5 - 1).latent_dist.mode()
    n, c, h, w = mode.shape
    packed = torch.empty(n, 4 * c, h // 2, w // 2, dtype=torch.float64)
    for row in range(2):
        for column in range(2):
            packed[:, 2 * row + column :: 4] = mode[:, :, row::2, column::2].double()
    mean, variance = (t.double().view(-1, 1, 1) for t in (reference.bn.running_mean, reference.bn.running_var))
    expected = (packed - mean) / (variance + 1e-4).sqrt()
    latents = vae.latents(vae.moments(images()))
    assert latents.shape == (2, vae.channels, 32 // vae.downsample, 32 // vae.downsample)
    torch.testing.assert_close(latents.double(), expected, rtol=2**-10, atol=1e-3)  # stored in float16


def test_decoded_images_are_those_of_diffusers(folder, reference):
    vae = Flux2VAE(folder)
    latents = torch.randn(2, vae.channels, 4, 4, generator=torch.Generator().manual_seed(1))
    std = (reference.bn.running_var.view(1, -1, 1, 1) + reference.bn.eps).sqrt()
    raw = torch.nn.functional.pixel_shuffle(latents * std + reference.bn.running_mean.view(1, -1, 1, 1), 2)
    expected = (127.5 * reference.decode(raw).sample + 127.5).round().clamp(0, 255)
    decoded = vae.decode(latents).float()
    assert (decoded - expected).abs().max() <= 1 and decoded.std() > 1


def test_other_statistics_can_replace_those_of_the_file(folder):
    own, plain = Flux2VAE(folder, statistics=LatentStatistics.of(0.5, 2.0)), Flux2VAE(folder)
    stored = plain.moments(images())
    assert torch.equal(own.latents(stored), (torch.nn.functional.pixel_unshuffle(stored.float(), 2) - 0.5) / 2)
    assert own.stored_provenance() == plain.stored_provenance() and own.provenance() != plain.provenance()


def test_the_provenance_is_the_same_before_and_after_loading(folder):
    vae = Flux2VAE(folder)
    codec = JointCodec(vae)
    before, state = codec.fingerprint(), codec.learned_state()
    codec.load()
    assert codec.fitted and codec.fingerprint() == before and codec.learned_state() == state == {}


def test_a_file_without_the_batch_norm_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / FILE)
    del tensors["bn.running_var"]
    save_file(tensors, copy / FILE)
    vae = Flux2VAE(str(copy))
    with pytest.raises(ValueError, match=r"Flux2VAE.weights: bn in .* lacks bn.running_var: download"):
        vae.statistics.load()


def test_another_class_names_the_component_to_use(folder):
    with pytest.raises(
        ValueError, match=r"describes AutoencoderKLFlux2, not .*autoencoder = @autoencoders.Flux2VAE\(\)"
    ):
        StableVAE(folder)


def test_missing_weights_are_named_with_the_folder_of_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"vae/diffusion_pytorch_model.safetensors of black-forest-labs/FLUX.2-dev is"):
        Flux2VAE().load()


# SD3 and FLUX.1: AutoencoderKL with 16 channels, and a scale and shift in its configuration.

BINDINGS = {"SD3": (1.5305, 0.0609), "FLUX.1": (0.3611, 0.1159)}


@pytest.mark.parametrize("name", BINDINGS)
def test_the_bindings_of_sd3_and_flux_1_are_the_factors_of_diffusers_configurations(
    vae_folders, tmp_path, caplog, name
):
    scale, shift = BINDINGS[name]
    assert f"StableVAE.scale = {scale}\nStableVAE.shift = {shift}" in PAGE.read_text()
    copy = shutil.copytree(vae_folders["wide"], tmp_path / name)
    config = json.loads((copy / "config.json").read_text()) | {"scaling_factor": scale, "shift_factor": shift}
    (copy / "config.json").write_text(json.dumps(config))
    vae = StableVAE(str(copy), scale=scale, shift=shift, posterior="mean")
    assert not caplog.records  # no warning that the configuration publishes other values
    stored = vae.moments(images())
    assert vae.channels == 16 and stored.shape[1] == 32
    expected = (stored[:, :16].double() - config["shift_factor"]) * config["scaling_factor"]
    torch.testing.assert_close(vae.latents(stored).double(), expected, rtol=1e-6, atol=1e-6)
    StableVAE(str(copy))
    assert f"StableVAE.scale = 0.18215, but {copy} publishes scaling_factor = {scale}" in caplog.text
