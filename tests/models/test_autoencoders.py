import json

import numpy as np
import pytest
import torch
from PIL import Image

from redi.core.registry import registries
from redi.models.autoencoders import Autoencoder
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec

AUTOENCODERS = registries["autoencoders"]


def images(n: int = 2, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)


# Contract: those with pretrained weights get tiny random ones.


def build(name: str, vae_folders) -> Autoencoder:
    return AUTOENCODERS[name](**{"weights": str(vae_folders[name])} if name in vae_folders else {})


@pytest.fixture(params=list(AUTOENCODERS))
def autoencoder(request, vae_folders) -> Autoencoder:
    if request.param == "RAE" and "RAE" not in vae_folders:  # transformers takes seconds to import
        vae_folders["RAE"] = request.getfixturevalue("rae_folder")
    return build(request.param, vae_folders)


def test_latents_are_float32_on_the_downsampled_grid(autoencoder):
    latents = autoencoder.latents(autoencoder.moments(images()))
    side = 32 // autoencoder.downsample
    assert latents.shape == (2, autoencoder.channels, side, side)
    assert latents.dtype == torch.float32


def test_decoding_gives_uint8_images_of_the_original_size(autoencoder):
    decoded = autoencoder.decode(autoencoder.latents(autoencoder.moments(images())))
    assert decoded.shape == (2, 3, 32, 32)
    assert decoded.dtype == torch.uint8


def test_moments_and_decoding_are_deterministic(autoencoder):
    assert torch.equal(autoencoder.moments(images()), autoencoder.moments(images()))
    latents = autoencoder.latents(autoencoder.moments(images()))
    assert torch.equal(autoencoder.decode(latents), autoencoder.decode(latents))


def test_latents_repeat_with_the_seed(autoencoder):
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(autoencoder.latents(autoencoder.moments(images())))
    assert torch.equal(*drawn)


def test_state_dict_round_trip_gives_the_same_latents(autoencoder, vae_folders):
    other = build(type(autoencoder).__name__, vae_folders)
    other.load_state_dict(autoencoder.state_dict(), strict=True)
    assert torch.equal(other.moments(images()), autoencoder.moments(images()))


def test_provenance_is_json(autoencoder):
    assert json.loads(json.dumps(autoencoder.provenance())) == autoencoder.provenance()
    assert json.loads(json.dumps(autoencoder.stored_provenance())) == autoencoder.stored_provenance()


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_autoencoder_can_be_built_with_its_defaults_and_without_files(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    autoencoder = AUTOENCODERS[name]()
    assert autoencoder.channels >= 1 and autoencoder.downsample >= 1


def test_nothing_in_an_autoencoder_learns(autoencoder):
    autoencoder.load()
    codec = JointCodec(autoencoder=autoencoder).train()
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert codec.learned_state() == {}


def test_reading_and_using_weights_draws_no_random_numbers_but_for_latents(autoencoder):
    before = torch.get_rng_state()
    autoencoder.load()
    autoencoder.decode(torch.zeros(1, autoencoder.channels, 4, 4))
    autoencoder.moments(images())
    assert torch.equal(torch.get_rng_state(), before)


def every_grey() -> torch.Tensor:
    """One image (1, 3, 16, 16) that holds every byte in every channel."""
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_exactly(channels):
    pixels = Pixels(channels=channels)
    assert torch.equal(pixels.decode(pixels.latents(pixels.moments(every_grey()))), every_grey())


def test_colours_come_back_exactly():
    pixels = Pixels()
    assert torch.equal(pixels.decode(pixels.latents(pixels.moments(images()))), images())


@pytest.mark.parametrize("offset", [-0.4, 0.4])
def test_decoding_rounds_to_the_nearest_byte(offset):
    latents = Pixels().latents(every_grey()) + offset / 127.5
    assert torch.equal(Pixels().decode(latents), every_grey())


def test_pixels_run_from_minus_one_to_one():
    latents = Pixels().latents(every_grey())
    assert (latents.min(), latents.max()) == (-1, 1)
    torch.testing.assert_close(latents[0, 0].flatten().double(), torch.linspace(-1, 1, 256).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_outside_the_range_are_clamped(channels):
    latents = torch.tensor([-1e9, -1.1, 1.1, 1e9]).view(1, 1, 2, 2).repeat(1, channels, 1, 1)
    assert Pixels(channels=channels).decode(latents)[0, 0].flatten().tolist() == [0, 0, 255, 255]


def test_grey_is_the_luma_of_pillow():
    grey = Pixels(channels=1).moments(images(4))
    for image, got in zip(images(4), grey, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        # Pillow computes in 16-bit fixed point.
        assert np.abs(got[0].numpy().astype(int) - expected).max() <= 1
    assert grey.dtype == torch.uint8


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_pixels_have_one_or_three_channels(channels):
    with pytest.raises(ValueError, match=rf"Pixels.channels = {channels}: must be 1 \(grey\) or 3 \(colour\)"):
        Pixels(channels=channels)
