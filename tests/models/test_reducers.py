import copy
import functools
import json

import numpy as np
import pytest
import torch
from sklearn import decomposition, random_projection
from torch import Tensor

from redi.models.reducers import reducers
from redi.models.reducers.conv_bottleneck import ConvBottleneck
from redi.models.reducers.conv_compressor import ConvCompressor
from redi.models.reducers.identity import Identity
from redi.models.reducers.learned_projection import LearnedProjection
from redi.models.reducers.linear import LinearReducer
from redi.models.reducers.pca import PCA
from redi.models.reducers.random_projection import GaussianRandomProjection, SparseRandomProjection
from redi.models.reducers.sem_vae import SemVAE

REDUCERS = list(reducers.values())
RANDOM = {
    GaussianRandomProjection: random_projection.GaussianRandomProjection,
    SparseRandomProjection: random_projection.SparseRandomProjection,
}
WIDTH = 16
# Enough for the contract; what is particular to a component is tested for itself.
TRAINED = {"hidden": 8, "num_steps": 5, "batch_size": 8}
LONGER = {"num_steps": 20, "learning_rate": 2e-2}  # these do not start as PCA
SETTINGS = {
    ConvBottleneck: TRAINED, ConvCompressor: TRAINED | LONGER,
    SemVAE: TRAINED | LONGER | {"depth": 1, "num_heads": 2}, Identity: {"rank": WIDTH},
}  # fmt: skip

every_reducer = pytest.mark.parametrize("reducer_class", REDUCERS)
SCALED = [r for r in REDUCERS if issubclass(r, LinearReducer) and r is not LearnedProjection]  # which always whitens
every_linear = pytest.mark.parametrize("reducer_class", SCALED)
every_random = pytest.mark.parametrize("reducer_class", RANDOM)


def features(n: int = 40, width: int = WIDTH, *, seed: int = 0, dtype=torch.float32) -> Tensor:
    """Correlated features (N, E, 3, 5) with falling variances and a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scales = 0.8 ** torch.arange(width, dtype=torch.float64)
    rows = torch.randn(n * 15, width, generator=generator, dtype=torch.float64) * scales @ mixing + 3 * mixing[0]
    return rows.to(dtype).view(n, 3, 5, width).permute(0, 3, 1, 2).contiguous()


def as_rows(x: Tensor) -> np.ndarray:
    return x.movedim(1, -1).flatten(0, -2).double().numpy()


def make(reducer_class, **settings):
    return reducer_class(**{"rank": 4} | settings | SETTINGS.get(reducer_class, {}))


def fitted(reducer_class, data: Tensor | None = None, **settings):
    if data is None and not settings:
        return copy.deepcopy(fitted_once(reducer_class))
    reducer = make(reducer_class, **settings)
    reducer.fit([features() if data is None else data])
    return reducer


@functools.cache
def fitted_once(reducer_class):
    reducer = make(reducer_class)
    reducer.fit([features()])
    return reducer


# Contract


@every_reducer
def test_output_is_float32_with_rank_channels_on_the_same_grid(reducer_class):
    reducer = fitted(reducer_class, rank=3)
    reduced = reducer(features(2).double())
    assert reduced.shape == (2, reducer.rank, 3, 5)
    assert reduced.dtype == torch.float32


@every_reducer
def test_inverse_has_the_shape_of_the_features(reducer_class):
    reducer = fitted(reducer_class)
    restored = reducer.inverse(reducer(features(2)))
    assert restored.shape == (2, WIDTH, 3, 5)
    assert restored.dtype == torch.float32


@every_reducer
def test_two_fits_of_the_same_features_are_equal(reducer_class):
    first, second = fitted(reducer_class), fitted(reducer_class)
    assert torch.equal(first(features(3)), second(features(3)))


@every_reducer
def test_fitting_leaves_the_global_random_generators_alone(reducer_class):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fitted(reducer_class)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@every_reducer
def test_gradient_passes_through_to_the_features(reducer_class):
    x = features(2).requires_grad_()
    fitted(reducer_class)(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().amax(dim=(0, 2, 3)).max() > 0


@every_reducer
def test_state_dict_round_trip_into_a_new_object(reducer_class):
    reducer, other = fitted(reducer_class), make(reducer_class)
    other.load_state_dict(reducer.state_dict(), strict=True)
    assert other.fitted
    assert torch.equal(other(features(2)), reducer(features(2)))
    assert torch.equal(other.inverse(other(features(2))), reducer.inverse(reducer(features(2))))


@every_reducer
def test_state_of_an_unfitted_reducer_loads_as_unfitted(reducer_class):
    reducer = fitted(reducer_class)
    reducer.load_state_dict(make(reducer_class).state_dict())
    assert not reducer.fitted


@every_reducer
def test_state_travels_inside_another_module(reducer_class):
    reducer = fitted(reducer_class)
    outer = torch.nn.ModuleDict({"own": make(reducer_class)})
    outer.load_state_dict({f"own.{name}": tensor for name, tensor in reducer.state_dict().items()})
    assert torch.equal(outer["own"](features(2)), reducer(features(2)))


@every_reducer
def test_a_deep_copy_reduces_alike(reducer_class):
    reducer = fitted(reducer_class)
    assert torch.equal(copy.deepcopy(reducer)(features(2)), reducer(features(2)))


@every_reducer
def test_nothing_in_a_fitted_reducer_trains(reducer_class):
    assert not any(parameter.requires_grad for parameter in fitted(reducer_class).parameters())


@every_reducer
def test_provenance_and_fit_settings_are_json_before_and_after_the_fit(reducer_class):
    for reducer in (reducer_class(), fitted(reducer_class)):
        for record in (reducer.provenance(), reducer.fit_settings()):
            assert json.loads(json.dumps(record)) == record


@every_reducer
def test_provenance_holds_the_explained_variance(reducer_class):
    assert 0 < fitted(reducer_class).provenance()["explained_variance"] <= 1 + 1e-6


@every_reducer
def test_use_before_the_fit_is_refused(reducer_class):
    for method in ("forward", "inverse"):
        with pytest.raises(ValueError, match=f"this {reducer_class.__name__} has not been fitted"):
            getattr(reducer_class(), method)(features(1))


@every_reducer
def test_a_rank_above_the_width_is_refused(reducer_class):
    with pytest.raises(ValueError, match=f"{reducer_class.__name__}.rank = 17 exceeds the encoder width 16"):
        reducer_class(rank=17).fit([features()])


@every_reducer
def test_a_rank_below_one_is_refused(reducer_class):
    with pytest.raises(ValueError, match=f"{reducer_class.__name__}.rank = 0: must be at least 1"):
        reducer_class(rank=0)


@every_reducer
@pytest.mark.parametrize("batches", [[], [features(1)[:, :, :1, :4]]], ids=["none", "four"])
def test_too_few_vectors_are_refused(reducer_class, batches):
    needed = rf"{reducer_class.__name__}.rank = (4|16) needs more than (4|16) feature vectors.*, but got [04]\b"
    with pytest.raises(ValueError, match=needed):
        make(reducer_class).fit(batches)


@every_reducer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_refused(reducer_class, bad):
    broken = features(4)
    broken[2, 3, 1, 1] = bad
    with pytest.raises(ValueError, match="the features contain NaN or infinite values"):
        make(reducer_class).fit([features(4), broken])


@every_reducer
def test_features_that_never_vary_are_refused(reducer_class):
    with pytest.raises(ValueError, match="all features are constant"):
        fitted(reducer_class, torch.full((4, WIDTH, 3, 5), 0.1))


@every_linear
def test_an_unknown_scale_is_refused(reducer_class):
    with pytest.raises(
        ValueError, match=f"{reducer_class.__name__}.scale = 'unit': must be 'raw', 'unit_rms' or 'whiten'"
    ):
        reducer_class(scale="unit")


@every_reducer
def test_state_does_not_grow_with_the_number_of_images(reducer_class):
    few, many = (fitted(reducer_class, features(n)).state_dict() for n in (10, 200))
    assert {name: tensor.shape for name, tensor in few.items()} == {name: tensor.shape for name, tensor in many.items()}


@every_reducer
def test_fitting_in_many_batches_equals_fitting_in_one(reducer_class):
    data = features()
    streamed, whole = make(reducer_class), fitted(reducer_class, data)
    streamed.fit(iter(data.split([1, 7, 20, 12])))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(streamed.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


# The two halves, between which a cache stands


@every_reducer
def test_finish_of_project_is_forward(reducer_class):
    reducer = fitted(reducer_class)
    stored = reducer.project(features(2))
    assert stored.dtype == torch.float32 and stored.shape[2:] == (3, 5)
    assert torch.equal(reducer.finish(stored), reducer(features(2)))


@every_reducer
def test_float16_between_the_halves_costs_half_a_unit_in_its_last_place(reducer_class):
    reducer = fitted(reducer_class)
    exact = reducer(features(9, seed=3))
    rounded = reducer.finish(reducer.project(features(9, seed=3)).half())
    # 2^-11 of a value, and 2^-25 of what the channel is measured in where a value is subnormal.
    torch.testing.assert_close(rounded, exact, rtol=2**-11, atol=2**-24 * exact.abs().max().item())


@every_linear
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_float16_holds_features_of_any_magnitude(reducer_class, factor):
    reducer = fitted(reducer_class, features() * factor, scale="raw")
    exact = reducer(features() * factor)
    rounded = reducer.finish(reducer.project(features() * factor).half())
    torch.testing.assert_close(rounded, exact, rtol=2**-11, atol=2**-24 * exact.abs().max().item())


def falling(decades: float) -> Tensor:
    """Features (60, 16, 3, 5) whose principal deviations fall evenly over so many decades."""
    rows = torch.randn(900, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scales = 10 ** torch.linspace(0, -decades, WIDTH, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(4)).double()).Q
    return ((rows * scales) @ mixing).float().view(60, 3, 5, WIDTH).movedim(3, 1)


def test_float16_keeps_the_digits_of_weak_channels():
    data = falling(decades=5)
    reducer = fitted(PCA, data, rank=WIDTH, scale="whiten")
    exact, rounded = reducer(data), reducer.finish(reducer.project(data).half())
    error = (rounded - exact).square().mean(dim=(0, 2, 3)).sqrt()
    assert error.max() < 2**-11  # of channels with deviation 1, down to 1e-5 of the strongest


def test_what_was_weak_in_the_fit_does_not_overflow_float16_later():
    reducer = fitted(PCA, falling(decades=6), rank=WIDTH, scale="raw")
    strongest = 50 * reducer.deviations.max() * reducer.components[-1]  # along the weakest component
    stored = reducer.project((reducer.mean + strongest)[None, :, None, None]).half()
    assert stored.isfinite().all()


def with_state(reducer: PCA, **settings) -> PCA:
    other = PCA(**settings)
    other.load_state_dict(reducer.state_dict())
    return other


@pytest.mark.parametrize("scale", ["raw", "unit_rms", "whiten"])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_cache_of_twelve_channels_serves_every_smaller_rank_bit_for_bit(scale, standardize):
    whole = fitted(PCA, rank=12, scale=scale, standardize=standardize)
    stored = whole.project(features(4, seed=8)).half()
    for rank in (1, 8, 12):
        reducer = with_state(whole, rank=rank, scale=scale, standardize=standardize, store_rank=12)
        assert torch.equal(reducer.project(features(4, seed=8)).half(), stored)
        reduced = reducer.finish(stored)
        assert reduced.shape == (4, rank, 3, 5)
        if scale != "unit_rms":  # which divides by one number that depends on the rank
            assert torch.equal(reduced, whole.finish(stored)[:, :rank])
        own = with_state(whole, rank=rank, scale=scale, standardize=standardize)
        torch.testing.assert_close(reduced, own.finish(own.project(features(4, seed=8)).half()), rtol=1e-3, atol=1e-5)


def test_scaling_is_exact_whatever_is_stored():
    """Stored channels are measured in powers of two."""
    reducer = fitted(PCA, scale="raw")
    rows = reducer.components[:4]
    expected = torch.einsum("re,nehw->nrhw", rows, features(3) - reducer.mean[:, None, None])
    assert torch.equal(reducer(features(3)), expected)


def test_the_stored_provenance_is_that_of_every_rank_and_scale():
    state = fitted(PCA, rank=12)
    first, second = (with_state(state, rank=r, scale=s, store_rank=12) for r, s in ((2, "raw"), (8, "whiten")))
    assert first.stored_provenance() == second.stored_provenance()
    assert first.provenance() != second.provenance()
    assert first.stored_provenance() != with_state(state, rank=2, store_rank=4).stored_provenance()


def test_a_store_rank_below_the_rank_is_refused():
    with pytest.raises(ValueError, match="PCA.store_rank = 7: must be at least PCA.rank = 8"):
        PCA(rank=8, store_rank=7)


def test_a_store_rank_above_the_width_is_refused():
    with pytest.raises(ValueError, match="PCA.store_rank = 17 exceeds the encoder width 16"):
        fitted(PCA, store_rank=17)


def test_a_store_rank_above_the_rows_of_a_stored_fit_is_refused():
    with pytest.raises(ValueError, match="PCA.store_rank = 17 exceeds the 16 fitted components"):
        with_state(fitted(PCA), rank=4, store_rank=17)


@every_linear
def test_a_state_without_an_origin_loads(reducer_class):
    """As checkpoints hold that were written before it was part of the state."""
    reducer, other = fitted(reducer_class), make(reducer_class)
    state = {name: reducer.state_dict()[name] for name in ("mean", "std", "components", "deviations", "explained")}
    other.load_state_dict(state)
    assert torch.equal(other(features(2)), reducer(features(2)))
    assert other.fitted_on is None


@every_linear
def test_a_state_of_tensors_that_do_not_belong_together_is_refused(reducer_class):
    state = fitted(reducer_class).state_dict()
    state["std"] = state["std"][:-1]
    with pytest.raises(ValueError, match="has tensors of inconsistent shapes"):
        make(reducer_class).load_state_dict(state)


@every_reducer
def test_features_of_another_width_are_refused(reducer_class):
    reducer = fitted(reducer_class)
    with pytest.raises(ValueError, match=r"fitted to features of width 16, not the encoder width 8"):
        reducer(features(2)[:, :8])
    with pytest.raises(ValueError, match="of width 16, not the encoder width 32|must be the encoder width 32"):
        reducer.check_width(32)


@every_reducer
def test_a_second_fit_may_see_features_of_another_width(reducer_class):
    reducer = fitted(reducer_class)
    if reducer_class is Identity:
        pytest.skip("its rank is its width")
    reducer.fit([features(width=12)])
    again = make(reducer_class)
    again.fit([features(width=12)])
    assert torch.equal(reducer(features(2, width=12)), again(features(2, width=12)))


# Identity


def test_identity_keeps_the_centred_features():
    expected = features() - features().mean(dim=(0, 2, 3), keepdim=True)
    torch.testing.assert_close(fitted(Identity, scale="raw")(features()), expected, rtol=1e-5, atol=1e-5)


def test_identity_of_another_rank_than_the_width_is_refused():
    with pytest.raises(ValueError, match="Identity.rank = 8: must be the encoder width 16"):
        Identity(rank=8).fit([features()])


def test_identity_without_centring_needs_no_fit_and_changes_nothing():
    identity = Identity(rank=WIDTH, scale="raw", centred=False)
    assert identity.fitted and torch.equal(identity(features()), features())
    torch.testing.assert_close(identity.inverse(identity(features())), features(), rtol=0, atol=0)
    identity.fit([features()])  # nothing to fit
    assert torch.equal(identity(features()), features())
    assert identity.provenance()["centred"] is False and "centred" not in fitted(Identity).provenance()
    with pytest.raises(ValueError, match="Identity.rank = 8: must be the encoder width 16"):
        Identity(rank=8, scale="raw", centred=False)(features())


@pytest.mark.parametrize("settings", [{"scale": "unit_rms"}, {"standardize": True}, {"path": "fit"}])
def test_identity_without_centring_has_no_statistics(settings):
    with pytest.raises(ValueError, match="Identity.scale = .* with Identity.centred = False: must be 'raw', False and"):
        Identity(**{"rank": WIDTH, "scale": "raw", "centred": False} | settings)


def test_identity_explains_everything():
    assert fitted(Identity).explained_variance == pytest.approx(1, abs=1e-6)


# PCA


@pytest.fixture(scope="module")
def sklearn_pca() -> decomposition.PCA:
    return decomposition.PCA(svd_solver="full").fit(as_rows(features()))


def test_pca_has_the_mean_components_and_deviations_of_sklearn(sklearn_pca):
    reducer = fitted(PCA)
    # Ours are stored as float32: relative error 6e-8 of the largest entry.
    np.testing.assert_allclose(reducer.mean, sklearn_pca.mean_, rtol=1e-6)
    signs = np.sign((reducer.components.double().numpy() * sklearn_pca.components_).sum(1))[:, None]
    np.testing.assert_allclose(reducer.components, signs * sklearn_pca.components_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(reducer.deviations.double() ** 2, sklearn_pca.explained_variance_, rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 4, WIDTH])
def test_pca_explains_the_variance_that_sklearn_says(sklearn_pca, rank):
    expected = sklearn_pca.explained_variance_ratio_[:rank].sum()
    assert fitted(PCA, rank=rank).explained_variance == pytest.approx(expected, rel=1e-6)


def test_pca_transforms_as_sklearn_does(sklearn_pca):
    reduced = as_rows(fitted(PCA, scale="raw")(features(3, seed=5)))
    expected = sklearn_pca.transform(as_rows(features(3, seed=5)))[:, :4]
    signs = np.sign((reduced * expected).sum(0))
    np.testing.assert_allclose(reduced, signs * expected, rtol=1e-5, atol=1e-5)


def test_largest_entry_of_every_component_is_positive():
    components = fitted(PCA).components
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


def test_every_rank_is_a_slice_of_one_fit():
    state = fitted(PCA, rank=4, scale="raw").state_dict()
    full = PCA(rank=WIDTH, scale="raw")
    full.load_state_dict(state)
    for rank in (1, 7, WIDTH):
        reducer = PCA(rank=rank, scale="raw")
        reducer.load_state_dict(state)
        # The matrix product may sum in another order for another number of rows.
        torch.testing.assert_close(reducer(features(2)), full(features(2))[:, :rank], rtol=1e-5, atol=1e-5)
        assert torch.equal(reducer(features(2)), fitted(PCA, rank=rank, scale="raw")(features(2)))


def test_fit_settings_of_pca_are_shared_by_all_ranks_and_scales():
    assert PCA(rank=2, scale="raw").fit_settings() == PCA(rank=9, scale="whiten").fit_settings()
    assert PCA(standardize=True).fit_settings() != PCA(standardize=False).fit_settings()


@pytest.mark.parametrize("scale", ["raw", "unit_rms", "whiten"])
@pytest.mark.parametrize("standardize", [False, True])
def test_pca_at_full_rank_inverts_exactly(scale, standardize):
    reducer = fitted(PCA, rank=WIDTH, scale=scale, standardize=standardize)
    x = features(3, seed=7)
    # float32 through a basis whose deviations span a factor of 100
    torch.testing.assert_close(reducer.inverse(reducer(x)), x, rtol=1e-4, atol=1e-4)


def test_inverse_of_pca_leaves_the_variance_it_does_not_explain():
    reducer, x = fitted(PCA, rank=5), features()
    residual = (reducer.inverse(reducer(x)) - x).double().square().sum()
    total = (x - x.mean(dim=(0, 2, 3), keepdim=True)).double().square().sum()
    assert float(residual / total) == pytest.approx(1 - reducer.explained_variance, rel=1e-4)


def test_a_large_mean_does_not_spoil_the_components():
    """float32 features at 1e4 are known to 5e-4; their float64 values are exact and sklearn sees the same."""
    data = features() + 1e4
    expected = decomposition.PCA(svd_solver="full").fit(as_rows(data))
    np.testing.assert_allclose(fitted(PCA, data).deviations.double() ** 2, expected.explained_variance_, rtol=1e-6)


# Scales, measured on the output


def channel_moments(reduced: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(as_rows(reduced))
    return rows.mean(0), rows.var(0)


@every_linear
@pytest.mark.parametrize("scale", ["raw", "unit_rms", "whiten"])
@pytest.mark.parametrize("standardize", [False, True])
def test_reduced_features_have_mean_zero(reducer_class, scale, standardize):
    mean, variance = channel_moments(fitted(reducer_class, scale=scale, standardize=standardize)(features()))
    assert (mean.abs() < 1e-5 * variance.sqrt() + 1e-5).all()


@every_linear
@pytest.mark.parametrize("standardize", [False, True])
def test_unit_rms_gives_mean_square_one_over_all_channels_and_keeps_their_ratios(reducer_class, standardize):
    _, variance = channel_moments(fitted(reducer_class, scale="unit_rms", standardize=standardize)(features()))
    _, raw = channel_moments(fitted(reducer_class, scale="raw", standardize=standardize)(features()))
    assert variance.mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(variance / raw, (1 / raw.mean()).expand_as(raw), rtol=1e-5, atol=0)


@every_linear
@pytest.mark.parametrize("standardize", [False, True])
def test_whiten_gives_every_channel_variance_one(reducer_class, standardize):
    _, variance = channel_moments(fitted(reducer_class, scale="whiten", standardize=standardize)(features()))
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-5, atol=0)


def test_whitened_pca_channels_are_uncorrelated():
    reduced = fitted(PCA, scale="whiten")(features())
    np.testing.assert_allclose(np.cov(as_rows(reduced).T), np.eye(4), rtol=0, atol=1e-5)


@every_linear
def test_standardize_equals_reducing_standardised_features(reducer_class):
    data = features()
    mean, std = (x[:, None, None] for x in channel_moments(data))
    std = std.sqrt()
    plain = fitted(reducer_class, ((data - mean) / std).float(), scale="raw")
    standardised = fitted(reducer_class, data, scale="raw", standardize=True)
    expected = plain(((data - mean) / std).float())
    torch.testing.assert_close(standardised(data), expected, rtol=1e-4, atol=1e-4)


@every_linear
def test_standardize_leaves_a_feature_that_never_varies_alone(reducer_class):
    data = features()
    data[:, 3] = 0.1
    reduced = fitted(reducer_class, data, standardize=True)(data)
    assert reduced.isfinite().all()
    assert reduced.square().mean().item() == pytest.approx(1, rel=1e-2)


def two_dimensional() -> Tensor:
    """Features (40, 16, 3, 5) that vary in two directions only."""
    return (features(width=2)[:, :, None] * torch.ones(1, 1, 8, 1, 1)).flatten(1, 2)


def test_whiten_with_dead_components_is_refused():
    with pytest.raises(ValueError, match=r"PCA.scale = 'whiten' would divide by zero: only 2 of 4 components vary"):
        fitted(PCA, two_dimensional(), scale="whiten")


def test_whiten_with_dead_components_is_refused_when_another_scale_made_the_fit():
    state = fitted(PCA, two_dimensional(), rank=2, scale="raw").state_dict()
    PCA(rank=2, scale="whiten").load_state_dict(state)
    with pytest.raises(ValueError, match="only 2 of 4 components vary"):
        PCA(rank=4, scale="whiten").load_state_dict(state)


# Random projections


@every_random
@pytest.mark.parametrize("seed", [0, 3])
def test_raw_random_projection_is_sklearns_of_the_centred_features(reducer_class, seed):
    rows = as_rows(features())
    expected = RANDOM[reducer_class](4, random_state=seed).fit_transform(rows - rows.mean(0))
    reduced = fitted(reducer_class, scale="raw", seed=seed)(features())
    np.testing.assert_allclose(as_rows(reduced), expected, rtol=1e-4, atol=1e-4)


@every_random
def test_the_seed_decides_the_rows(reducer_class):
    first, again, other = (fitted(reducer_class, seed=seed).components for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@every_random
def test_fit_settings_of_a_random_projection_tell_rank_and_seed_apart(reducer_class):
    settings = [reducer_class(**s).fit_settings() for s in ({}, {"seed": 1}, {"rank": 4})]
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


@every_random
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_explained_variance_of_a_random_projection_is_that_of_the_projected_features(reducer_class, rank):
    reducer = fitted(reducer_class, rank=rank)
    rows = as_rows(features())
    centred = rows - rows.mean(0)
    components = reducer.components.double().numpy()
    projected = centred @ np.linalg.pinv(components) @ components
    assert reducer.explained_variance == pytest.approx((projected**2).sum() / (centred**2).sum(), rel=1e-5)


@every_random
def test_a_random_projection_explains_no_more_than_pca(reducer_class):
    assert fitted(reducer_class).explained_variance < fitted(PCA).explained_variance


def test_a_draw_of_dependent_rows_is_refused():
    """At width 4 half the entries are zero, so some seeds give an empty row, which would be a dead channel."""
    data = features(width=4)
    refused = []
    for seed in range(20):
        drawn = random_projection.SparseRandomProjection(3, random_state=seed).fit(np.zeros((1, 4))).components_
        if np.linalg.matrix_rank(drawn.toarray()) < 3:
            refused.append(seed)
            with pytest.raises(ValueError, match=f"seed = {seed} draws linearly dependent components at rank 3 of 4"):
                fitted(SparseRandomProjection, data, rank=3, seed=seed)
        else:
            fitted(SparseRandomProjection, data, rank=3, seed=seed)
    assert refused


# Inverse


@every_linear
@pytest.mark.parametrize("scale", ["raw", "unit_rms", "whiten"])
def test_inverse_is_a_pre_image(reducer_class, scale):
    reducer = fitted(reducer_class, scale=scale)
    reduced = torch.randn(2, reducer.rank, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reducer(reducer.inverse(reduced)), reduced, rtol=1e-3, atol=1e-4)


@every_linear
@pytest.mark.parametrize("scale", ["raw", "unit_rms", "whiten"])
def test_inverse_is_the_pre_image_nearest_to_the_mean(reducer_class, scale):
    """lstsq of the affine map, in float64, gives the solution of least norm."""
    reducer = fitted(reducer_class, scale=scale)
    reduced = torch.randn(2, reducer.rank, 3, 5, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(WIDTH)[:, :, None, None] + reducer.mean[:, None, None]
    matrix = as_rows(reducer(identity)).T  # (R, E)
    expected = np.linalg.lstsq(matrix, as_rows(reduced).T, rcond=None)[0].T + reducer.mean.numpy()
    np.testing.assert_allclose(as_rows(reducer.inverse(reduced)), expected, rtol=1e-3, atol=1e-3)


@every_linear
def test_reducing_and_inverting_twice_is_the_same_as_once(reducer_class):
    reducer = fitted(reducer_class)
    once = reducer.inverse(reducer(features(3)))
    torch.testing.assert_close(reducer.inverse(reducer(once)), once, rtol=1e-3, atol=1e-3)
