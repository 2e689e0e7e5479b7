import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redi.models.reducers import moments as moments_module
from redi.models.reducers.moments import Moments
from redi.models.reducers.pca import PCA

WIDTH = 16


def features(n: int = 40, *, seed: int = 0, dtype=torch.float32) -> Tensor:
    """Correlated features (N, E, 3, 5) with falling variances and a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scales = 0.8 ** torch.arange(WIDTH, dtype=torch.float64)
    rows = torch.randn(n * 15, WIDTH, generator=generator, dtype=torch.float64) * scales @ mixing + 3 * mixing[0]
    return rows.to(dtype).view(n, 3, 5, WIDTH).permute(0, 3, 1, 2).contiguous()


def as_rows(x: Tensor) -> np.ndarray:
    return x.movedim(1, -1).flatten(0, -2).double().numpy()


def of(*batches: Tensor) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    return moments


def test_moments_are_those_of_numpy():
    data = features(dtype=torch.float64)
    moments = Moments()
    for part in data.split(7):
        moments.add(part)
    assert moments.count == 40 * 15
    np.testing.assert_allclose(moments.mean, as_rows(data).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(as_rows(data).T), rtol=1e-10, atol=1e-12)


def merged(*parts: Tensor) -> Moments:
    total = Moments()
    for part in parts:
        moments = Moments()
        moments.add(part)
        total.merge(moments)
    return total


def assert_same(first: Moments, second: Moments) -> None:
    assert first.count == second.count
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.scatter, second.scatter, rtol=1e-11, atol=1e-11)


def test_merging_moments_is_commutative():
    a, b = features(3, seed=1, dtype=torch.float64), features(11, seed=2, dtype=torch.float64)
    assert_same(merged(a, b), merged(b, a))


def test_merging_moments_is_associative():
    a, b, c = (features(n, seed=n, dtype=torch.float64) for n in (2, 5, 9))
    left = merged(a, b)
    left.merge(merged(c))
    right = merged(a)
    right.merge(merged(b, c))
    assert_same(left, right)


def test_merging_empty_moments_changes_nothing():
    a = features(3, dtype=torch.float64)
    moments = merged(a)
    moments.merge(Moments())
    assert_same(moments, merged(a))


def test_a_mean_of_a_million_does_not_spoil_the_covariance():
    """E[x^2] - E[x]^2 would lose 12 of 16 digits here; float64 features at 1e6 are known to 1e-10."""
    data = features(dtype=torch.float64)
    moments = merged(*(data + 1e6).split(7))
    np.testing.assert_allclose(moments.covariance, np.cov(as_rows(data).T), rtol=1e-8, atol=1e-9)


def test_moments_hold_two_tensors_however_many_features_they_saw():
    moments = merged(*features(200).split(10))
    assert (moments.mean.shape, moments.scatter.shape) == ((WIDTH,), (WIDTH, WIDTH))


@pytest.mark.parametrize("chunk", [1, 4 * 60 * 80, 9 * 60 * 80])
def test_a_batch_of_more_values_than_one_chunk_has_the_moments_of_numpy(chunk, monkeypatch):
    monkeypatch.setattr(moments_module, "CHUNK", chunk)  # one image, one image, two and one
    data = torch.randn(3, 4, 60, 80, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(of(data).covariance, np.cov(as_rows(data).T), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1, 5, 8, 16, 100])
def test_products_in_blocks_are_all_products(block, monkeypatch):
    monkeypatch.setattr(moments_module, "BLOCK", block)
    moments = of(*features().split(7))
    np.testing.assert_allclose(moments.covariance, np.cov(as_rows(features()).T), rtol=1e-10, atol=1e-12)
    assert torch.equal(moments.scatter, moments.scatter.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_any_precision_and_layout_are_taken_as_they_are(dtype):
    data = features().to(dtype)
    layouts = data, data.contiguous(memory_format=torch.channels_last), data.mT.contiguous().mT, data.flip(0).flip(0)
    for laid_out in layouts:
        np.testing.assert_allclose(of(laid_out).covariance, np.cov(as_rows(data).T), rtol=1e-10, atol=1e-12)


# Shares of several processes


def stored(moments: Moments) -> Moments:
    """Through the bytes of a safetensors file."""
    return Moments.from_state(load(save(moments.state())))


def test_a_stored_share_comes_back_bit_for_bit():
    moments = of(features(7))
    again = stored(moments)
    assert again.count == moments.count == 105
    assert torch.equal(again.mean, moments.mean) and torch.equal(again.scatter, moments.scatter)


def test_an_empty_share_can_be_stored_and_merged():
    total = of(features(7))
    total.merge(stored(Moments()))
    first = stored(Moments())
    first.merge(of(features(7)))
    for moments in (total, first):
        assert torch.equal(moments.scatter, of(features(7)).scatter)


def joined(parts: list[Tensor]) -> Moments:
    total = Moments()
    for part in parts:
        total.merge(stored(of(part)))
    return total


def test_the_same_shares_in_the_same_order_give_the_same_bits():
    parts = list(features(40).split(9))
    assert torch.equal(joined(parts).scatter, joined(parts).scatter)


@pytest.mark.parametrize("size", [1, 3, 13, 40])
def test_any_division_into_shares_gives_the_moments_of_the_whole(size):
    assert_same(joined(list(features(40).split(size))), of(features(40)))


def test_a_pca_from_shares_is_that_of_the_whole_stream():
    whole, divided = PCA(rank=4), PCA(rank=4)
    whole.fit([features(40)])
    divided.solve(joined(list(features(40).split(9))))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(divided.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_shares_of_different_widths_are_refused():
    with pytest.raises(ValueError, match="width 8: must have the width 16"):
        of(features(2)).merge(of(features(2)[:, :8]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": torch.tensor(1.5, dtype=torch.float64)}, "an integer count"),
        ({"count": torch.tensor(-1.0, dtype=torch.float64)}, "an integer count"),
        ({"mean": torch.zeros(3, dtype=torch.float64)}, "a scatter"),
        ({"mean": torch.zeros(WIDTH)}, "in float64"),
        ({"scatter": torch.full((WIDTH, WIDTH), torch.nan, dtype=torch.float64)}, "NaN"),
        ({"more": torch.zeros((), dtype=torch.float64)}, "need count, mean and scatter"),
    ],
)
def test_what_is_no_state_of_moments_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Moments.from_state(of(features(2)).state() | change)


# Numerical care


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_named_with_its_place(bad):
    broken = features(4)
    broken[2, 3, 1, 4] = bad
    with pytest.raises(ValueError, match=rf"feature 3 is {bad} in batch 1, image 2, at \(1, 4\) of the grid"):
        of(features(4), broken)


def test_on_a_gpu_nothing_is_waited_for_until_the_moments_are_read():
    """A value that the host needed would raise, for a fake tensor has none."""
    with FakeTensorMode(), torch.device("cuda"):
        moments = of(torch.empty(5, 300, 4, 4), torch.empty(2, 300, 4, 4))
    assert (moments.count, moments.batches, moments.mean.device.type, moments.upper.dtype) == (
        112,
        2,
        "cuda",
        torch.float64,
    )


def test_what_a_gpu_let_pass_is_refused_when_the_moments_are_read():
    moments = of(features(4))
    moments.mean[3], moments.upper[3, :] = torch.nan, torch.nan
    for read in (lambda: moments.covariance, moments.state, lambda: PCA(rank=2).solve(moments)):
        with pytest.raises(ValueError, match="features contain NaN or infinite values"):
            read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_moments_that_the_cpu_finds():
    here, there = of(*features().split(7)), of(*features().cuda().split(7))
    assert there.mean.is_cuda
    assert_same(stored(there), here)
    here.merge(there)
    assert here.count == 2 * there.count and not here.mean.is_cuda


def test_float32_features_are_added_up_in_float64():
    """A million vectors near 1000 with deviation 0.01: float32 sums would lose the variance altogether."""
    data = 1000 + 0.01 * torch.randn(64, 2, 125, 125, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(of(*data.split(16)).covariance, np.cov(as_rows(data).T), rtol=1e-9, atol=1e-15)


def test_a_feature_that_is_constant_up_to_rounding_is_not_standardised():
    data = features()
    data[:, 5] = 1000 + 3e-5 * torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0))
    reducer = PCA(rank=4, standardize=True)
    reducer.fit([data])
    assert reducer.std[5] == 1
    assert (reducer.std[:5] != 1).all()
