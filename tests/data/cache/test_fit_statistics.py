"""The statistics that normalise latents, fitted when a data set is prepared."""

import pytest
import torch

from redi.data.cache.prepare import prepare
from redi.data.datasets.digits import Digits
from redi.models.autoencoders import Folded, LatentStatistics, Pixels
from redi.models.codec import JointCodec


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(50, 1438))


def codec(statistics=None) -> JointCodec:
    statistics = LatentStatistics() if statistics is None else statistics
    return JointCodec(Folded(Pixels(channels=1), factor=2, statistics=statistics))


@pytest.mark.parametrize("cache", [True, False])
def test_prepare_fits_them_to_the_data(tmp_path, images, cache):
    fitted = codec()
    assert not fitted.fitted
    data = prepare(codec=fitted, dataset=images, cache_dir=tmp_path, cache=cache)
    assert fitted.fitted
    x = fitted.encode_sample(data, len(images)).double()
    assert x.shape[1:] == (4, 4, 4)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(4).double(), rtol=1e-5, atol=0)


def test_a_fit_is_stored_and_reused(tmp_path, images, caplog):
    first, second = codec(), codec()
    with caplog.at_level("INFO"):
        prepare(codec=first, dataset=images, cache_dir=tmp_path)
        prepare(codec=second, dataset=images, cache_dir=tmp_path)
    assert caplog.text.count("fitting LatentStatistics") == 1
    assert first.fingerprint() == second.fingerprint()
    assert torch.equal(first.statistics.std, second.statistics.std)


def test_a_streamed_cache_can_be_fitted_to(tmp_path, images):
    first, second = codec(), codec()
    cache = prepare(codec=first, dataset=images, cache_dir=tmp_path / "a")
    prepare(codec=second, dataset=None, cache_dir=tmp_path / "b", cache_url=f"file://{cache.folder}")
    assert torch.equal(second.statistics.std, first.statistics.std)


def test_checkpoints_carry_a_fit(tmp_path, images):
    first, second = codec(), codec()
    prepare(codec=first, dataset=images, cache_dir=tmp_path)
    second.load_learned_state(first.learned_state())
    assert second.fitted and second.fingerprint() == first.fingerprint()


class Noisy(Pixels):
    def latents(self, moments, randn=torch.randn):
        x = super().latents(moments)
        return x + 3 * randn(x.shape, dtype=x.dtype, device=x.device)


def test_a_fit_includes_the_noise_of_the_posterior_from_the_same_numbers_every_time(tmp_path, images):
    fits = [JointCodec(Folded(Noisy(channels=1), statistics=LatentStatistics())) for _ in "ab"]
    before = torch.get_rng_state()
    for number, one in enumerate(fits):
        prepare(codec=one, dataset=images, cache_dir=tmp_path / str(number), cache=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert fits[0].fingerprint() == fits[1].fingerprint()
    assert (fits[0].statistics.std > 2.5).all()


def test_one_cache_serves_other_statistics_and_the_codec_tells_them_apart(tmp_path, images):
    first, second = codec(), codec(LatentStatistics.of(0.0, 2.0))
    caches = [prepare(codec=one, dataset=images, cache_dir=tmp_path) for one in (first, second)]
    assert caches[0].folder == caches[1].folder and len(list((tmp_path / "encoded").glob("[!.]*"))) == 1
    caches[0].check(second)
    assert first.fingerprint() != second.fingerprint()


class Normalised(Folded):
    """Stores normalised latents, so its cache depends on the statistics."""

    def moments(self, images):
        return super().latents(super().moments(images))

    def latents(self, moments, randn=torch.randn):
        return moments

    def stored_provenance(self):
        return self.provenance()


def test_a_cache_of_normalised_latents_is_refused_with_other_statistics(tmp_path, images):
    one, other = (
        JointCodec(Normalised(Pixels(channels=1), statistics=LatentStatistics.of(0.0, std))) for std in (1.0, 2.0)
    )
    cache = prepare(codec=one, dataset=images, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="was computed with another codec.*\n.*statistics.sha256"):
        cache.check(other)


def test_stored_statistics_are_compared_with_the_data_on_request(tmp_path, images, caplog):
    right = codec()
    prepare(codec=right, dataset=images, cache_dir=tmp_path)
    statistics = right.statistics
    wrong = LatentStatistics.of(statistics.mean - 2 * statistics.std, statistics.std / 4)
    with caplog.at_level("INFO"):
        prepare(codec=codec(wrong), dataset=images, cache_dir=tmp_path, check_statistics=True)
    assert "the mean is off by up to 8 std; the std is 4 to 4 times the stored one" in caplog.text
    with pytest.raises(ValueError, match="prepare.check_statistics = True: Pixels has no statistics"):
        prepare(codec=JointCodec(Pixels()), dataset=images, cache_dir=tmp_path, cache=False, check_statistics=True)


def test_constant_latents_are_refused_without_an_eps(tmp_path, images):
    settings = {"dataset": images, "cache_dir": tmp_path}  # the corners of all digits are black
    with pytest.raises(ValueError, match="std positive: .* bind LatentStatistics.eps if some latents are constant"):
        prepare(codec=codec(LatentStatistics(per="position")), **settings)
    fitted = codec(LatentStatistics(per="position", eps=0.1))
    x = fitted.encode_sample(prepare(codec=fitted, **settings), len(images))
    assert fitted.statistics.std.shape == (4, 4, 4) and x.isfinite().all()
    torch.testing.assert_close(x.mean(0), torch.zeros(4, 4, 4), rtol=0, atol=1e-5)


def test_statistics_of_another_shape_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"has the shape \(3, 1, 1\), but the latents are \(4, 4, 4\)"):
        prepare(codec=codec(LatentStatistics.of(0.0, torch.ones(3))), dataset=images, cache_dir=tmp_path)
