import itertools

import pytest
import torch
from einops import rearrange
from torch import nn

from redi.core.channels import Channels
from redi.models.autoencoders import Folded, LatentStatistics, Pixels, StableVAE
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer


def images(n: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def vae(vae_folders) -> StableVAE:
    return StableVAE(str(vae_folders["StableVAE"]))


@pytest.mark.parametrize("factor", [2, 4])
def test_the_latents_are_those_of_pixel_unshuffle_from_the_same_random_numbers(vae, factor):
    folded = Folded(vae, factor=factor)
    stored = folded.moments(images())
    assert torch.equal(stored, vae.moments(images()))
    torch.manual_seed(1)
    latents = folded.latents(stored)
    torch.manual_seed(1)
    plain = vae.latents(stored)
    assert torch.equal(latents, nn.functional.pixel_unshuffle(plain, factor))
    assert torch.equal(folded.decode(latents), vae.decode(plain))
    codec = JointCodec(folded)
    assert codec.grid(32) == latents.shape[-2:] and codec.channels.total == latents.shape[1]


def test_every_channel_is_where_the_formula_says():
    folded = Folded(Pixels(), factor=2)
    pixels, latents = Pixels().latents(images()), folded.latents(images())
    for c, row, column in itertools.product(range(3), range(2), range(2)):
        assert torch.equal(latents[:, 4 * c + 2 * row + column], pixels[:, c, row::2, column::2])


def test_folds_nest():
    twice, once = Folded(Folded(Pixels())), Folded(Pixels(), factor=4)
    assert (twice.channels, twice.downsample) == (once.channels, once.downsample) == (48, 4)
    for folded in (twice, once):
        assert torch.equal(folded.decode(folded.latents(folded.moments(images()))), images())
    # The same values; two folds put the coarse offset behind the fine one.
    a = rearrange(once.latents(images()), "n (c p i q j) h w -> n c i j p q h w", p=2, i=2, q=2, j=2)
    b = rearrange(twice.latents(images()), "n (c i j p q) h w -> n c i j p q h w", i=2, j=2, p=2, q=2)
    assert torch.equal(a, b)


def test_a_cache_serves_the_autoencoder_and_its_fold(vae):
    plain, folded = JointCodec(vae), JointCodec(Folded(vae))
    assert plain.cache_fingerprint() == folded.cache_fingerprint()
    assert plain.fingerprint() != folded.fingerprint() != JointCodec(Folded(vae, factor=4)).fingerprint()


def test_statistics_inside_and_outside_the_fold_give_the_same_latents(vae_folders):
    mean, std, folder = torch.arange(4.0), torch.arange(1.0, 5.0), str(vae_folders["StableVAE"])
    inside = Folded(StableVAE(folder, statistics=LatentStatistics.of(mean, std), posterior="mean"))
    outer = LatentStatistics.of(mean.repeat_interleave(4), std.repeat_interleave(4))
    outside = Folded(StableVAE(folder, scale=1.0, posterior="mean"), statistics=outer)
    latents = inside.latents(inside.moments(images()))
    torch.testing.assert_close(outside.latents(outside.moments(images())), latents)
    assert (outside.decode(latents).float() - inside.decode(latents).float()).abs().max() <= 1
    assert JointCodec(inside).statistics is inside.autoencoder.statistics
    with pytest.raises(ValueError, match="Folded.statistics: StableVAE has statistics, too: remove one"):
        Folded(inside.autoencoder, statistics=outer)


@pytest.mark.parametrize("size", [36, 33])
def test_a_grid_that_the_fold_does_not_divide_is_refused(vae, size):
    with pytest.raises(ValueError, match=f"cannot encode images of {size} pixels: set Preprocessing.image_size to a"):
        JointCodec(Folded(vae)).grid(size)


@pytest.mark.parametrize("size", [36, 33])
def test_images_that_the_fold_does_not_divide_are_refused_before_they_are_encoded(vae, size):
    with pytest.raises(ValueError, match=f"cannot encode images of {size} pixels: set Preprocessing.image_size to a"):
        Folded(vae).moments(images(side=size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"factor": 1}, "Folded.factor = 1 must be an integer of at least 2"), ({"autoencoder": 2}, "Folded.autoencoder")],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Folded(**settings)


def test_patch_1_on_folded_latents_is_patch_2_on_plain_ones():
    """The same weights in another order give the same tokens, and the same velocity."""
    sizes = {"depth": 1, "width": 32, "num_heads": 2, "num_classes": 3}
    plain = DiffusionTransformer(channels=Channels(image=4), grid=(32, 32), size="S/2", **sizes).double()
    folded = DiffusionTransformer(channels=Channels(image=16), grid=(16, 16), size="S/1", **sizes).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    state = plain.state_dict()
    embedding, head = state["fusion.embeddings.image.weight"], state["fusion.heads.image.weight"]
    state["fusion.embeddings.image.weight"] = rearrange(embedding, "d c p q -> d (c p q) 1 1")
    for name in ("weight", "bias"):
        part = state[f"fusion.heads.image.{name}"]
        state[f"fusion.heads.image.{name}"] = rearrange(part, "(p q c) ... -> (c p q) ...", p=2, q=2)
    assert head.shape == (16, 32)
    folded.load_state_dict(state)

    x = torch.randn(2, 4, 32, 32, generator=generator, dtype=torch.float64)
    t, y = torch.tensor([0.2, 0.7], dtype=torch.float64), torch.tensor([0, 2])
    tokens = plain.fusion.embed(x), folded.fusion.embed(nn.functional.pixel_unshuffle(x, 2))
    torch.testing.assert_close(*tokens, rtol=1e-13, atol=1e-13)
    velocity = nn.functional.pixel_shuffle(folded(nn.functional.pixel_unshuffle(x, 2), t, y), 2)
    torch.testing.assert_close(velocity, plain(x, t, y), rtol=1e-12, atol=1e-12)
    assert velocity.std() > 0.1
