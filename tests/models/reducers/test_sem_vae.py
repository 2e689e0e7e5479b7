"""SemVAE: published files against the transformer written out in float64, and its loss."""

import pytest
import torch
from torch import Tensor

from redi.models.reducers.sem_vae import SemVAE

WIDTH, HIDDEN, DEPTH, HEADS, RANK = 12, 16, 2, 4, 3
SIZES = {"rank": RANK, "hidden": HIDDEN, "depth": DEPTH, "num_heads": HEADS}


def random_half(inputs: int, outputs: int, seed: int) -> dict[str, Tensor]:
    """Weights of an encoder or decoder under the published names."""
    shapes = {"0.weight": (HIDDEN, inputs), "0.bias": (HIDDEN,)}
    for i in range(1, DEPTH + 1):
        shapes |= {f"{i}.{norm}.{part}": (HIDDEN,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"{i}.attn.in_proj_weight": (3 * HIDDEN, HIDDEN), f"{i}.attn.in_proj_bias": (3 * HIDDEN,)}
        shapes |= {f"{i}.attn.out_proj.weight": (HIDDEN, HIDDEN), f"{i}.attn.out_proj.bias": (HIDDEN,)}
        shapes |= {f"{i}.mlp.0.weight": (4 * HIDDEN, HIDDEN), f"{i}.mlp.0.bias": (4 * HIDDEN,)}
        shapes |= {f"{i}.mlp.2.weight": (HIDDEN, 4 * HIDDEN), f"{i}.mlp.2.bias": (HIDDEN,)}
    shapes |= {f"{DEPTH + 1}.weight": (HIDDEN,), f"{DEPTH + 1}.bias": (HIDDEN,)}
    shapes |= {f"{DEPTH + 2}.weight": (outputs, HIDDEN), f"{DEPTH + 2}.bias": (outputs,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def random_state() -> dict[str, Tensor]:
    encoder, decoder = random_half(WIDTH, 2 * RANK, seed=1), random_half(RANK, WIDTH, seed=2)
    return {f"encoder.{k}": t for k, t in encoder.items()} | {f"decoder.{k}": t for k, t in decoder.items()}


def transformed(x: Tensor, state: dict[str, Tensor], half: str) -> Tensor:
    """The transformer of one half in float64: maps (N, C, h, w) to maps."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{half}.{name}.weight"].double().T + state[f"{half}.{name}.bias"].double()

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{half}.{name}.weight"].double() + state[f"{half}.{name}.bias"].double()

    tokens = linear(x.double().flatten(2).mT, "0")
    for i in range(1, DEPTH + 1):
        weight, bias = (state[f"{half}.{i}.attn.in_proj_{part}"].double() for part in ("weight", "bias"))
        parts = (norm(tokens, f"{i}.norm1") @ weight.T + bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = (q @ k.mT / (HIDDEN / HEADS) ** 0.5).softmax(dim=-1) @ v
        tokens = tokens + linear(mixed.transpose(1, 2).flatten(2), f"{i}.attn.out_proj")
        hidden = linear(norm(tokens, f"{i}.norm2"), f"{i}.mlp.0")
        tokens = tokens + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, f"{i}.mlp.2")
    tokens = linear(norm(tokens, f"{DEPTH + 1}"), f"{DEPTH + 2}")
    return tokens.mT.unflatten(2, x.shape[2:])


@pytest.fixture
def published(tmp_path):
    """Write a file as the authors' training program does; return its path."""

    def write(state: dict[str, Tensor]) -> str:
        content = {"model_state_dict": state, "config": "hidden_dim: 16\n", "input_dim": WIDTH, "bottleneck_dim": RANK}
        content["optimizer_state_dict"] = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 5e-5}]}
        torch.save(content, tmp_path / "semvae.pt")
        return str(tmp_path / "semvae.pt")

    return write


def features(n: int = 3, width: int = WIDTH) -> Tensor:
    return torch.randn(n, width, 3, 5, generator=torch.Generator().manual_seed(5))


def test_a_published_file_gives_the_mean_of_the_written_out_transformer(published):
    state = random_state()
    reducer = SemVAE(**SIZES, weights=published(state), scale="raw")
    code = transformed(features(), state, "encoder")[:, :RANK]
    torch.testing.assert_close(reducer(features()).double(), code, rtol=1e-4, atol=1e-5)
    restored = reducer.inverse(code.float())
    torch.testing.assert_close(restored.double(), transformed(code, state, "decoder"), rtol=1e-4, atol=1e-5)
    assert reducer.fitted and "explained_variance" not in reducer.provenance()


def test_published_statistics_of_the_code_standardise_its_channels(published, tmp_path):
    state, mean, std = random_state(), torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 2.0, 3.0])
    torch.save({"mean": mean.view(1, 3, 1, 1), "std": std.view(1, 3, 1, 1)}, tmp_path / "stats.pt")
    raw = SemVAE(**SIZES, weights=published(state), scale="raw")
    reducer = SemVAE(**SIZES, weights=published(state), code_statistics=str(tmp_path / "stats.pt"))
    expected = (raw(features()) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(reducer(features()), expected)
    torch.testing.assert_close(reducer.inverse(reducer(features())), raw.inverse(raw(features())), rtol=1e-4, atol=1e-5)
    assert reducer.fit_settings() != raw.fit_settings()


def test_without_statistics_a_fit_scales_the_published_code_and_trains_nothing(published):
    reducer = SemVAE(**SIZES, weights=published(random_state()))
    before = {name: tensor.clone() for name, tensor in reducer.encode.state_dict().items()}
    assert not reducer.fitted
    reducer.fit([features(20)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in reducer.encode.state_dict().items())
    code = reducer(features(20))
    assert code.square().mean().item() == pytest.approx(1, abs=0.1)
    assert reducer.provenance()["explained_variance"] == pytest.approx(reducer.explained_variance)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "SemVAE.rank = 4: must be 3, as in .*semvae.pt"),
        ({"hidden": 32}, "SemVAE.hidden = 32: must be 16, as in .*semvae.pt"),
        ({"depth": 3}, r"SemVAE.weights: .*semvae.pt must hold .*of these settings: Missing key.*encoder\.3\.attn"),
    ],
)
def test_a_published_file_of_another_size_is_refused(settings, message, published):
    with pytest.raises(ValueError, match=message):
        SemVAE(**SIZES | settings, weights=published(random_state()))


def test_features_of_another_width_than_the_file_are_refused_before_encoding(published):
    reducer = SemVAE(**SIZES, weights=published(random_state()), scale="raw")
    with pytest.raises(ValueError, match="this SemVAE was fitted to features of width 12, not the encoder width 7"):
        reducer.check_width(7)


@pytest.mark.parametrize("change", ["missing", "surplus", "other"])
def test_a_file_with_missing_or_surplus_keys_is_refused(change, published):
    state = random_state()
    if change == "missing":
        del state["decoder.1.norm1.weight"]
    elif change == "surplus":
        state["decoder.9.weight"] = torch.zeros(2)
    else:
        state = {"conv.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="SemVAE.weights: .*semvae.pt must hold the tensors of a SemVAE"):
        SemVAE(**SIZES, weights=published(state))


def test_statistics_of_another_size_or_without_weights_are_refused(published, tmp_path):
    torch.save({"mean": torch.zeros(4), "std": torch.ones(4)}, tmp_path / "stats.pt")
    path = str(tmp_path / "stats.pt")
    with pytest.raises(ValueError, match="SemVAE.code_statistics: .*must be mean and std of 3 channels"):
        SemVAE(**SIZES, weights=published(random_state()), code_statistics=path)
    with pytest.raises(ValueError, match="SemVAE.weights = None: must be a file, to which the statistics belong"):
        SemVAE(**SIZES, statistics=path)


@pytest.mark.parametrize("cosine_over", ["features", "tokens"])
def test_the_training_loss_is_that_of_its_definition(cosine_over, published):
    state = random_state()
    reducer = SemVAE(**SIZES, weights=published(state), scale="raw", cosine_over=cosine_over, kl_weight=0.01)
    x = features()
    torch.manual_seed(3)
    loss = reducer._loss(x)
    torch.manual_seed(3)
    noise = torch.randn(len(x), RANK, 3, 5).double()
    mean, log_variance = transformed(x, state, "encoder").chunk(2, dim=1)
    restored = transformed(mean + (log_variance / 2).exp() * noise, state, "decoder")
    over = 1 if cosine_over == "features" else (2, 3)
    norms = [(y * z).sum(over) for y, z in ((restored, restored), (x.double(), x.double()), (restored, x.double()))]
    cosine = (norms[2] / (norms[0] * norms[1]).sqrt()).mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()
    expected = (restored - x).square().mean() + (1 - cosine) + 0.01 * kl
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "SemVAE.num_heads = 5: must divide SemVAE.hidden = 768"),
        ({"depth": 0}, "SemVAE.depth = 0: must be at least 1"),
        ({"cosine_over": "grid"}, "SemVAE.cosine_over = 'grid': must be 'features' or 'tokens'"),
        ({"scale": "whiten"}, "SemVAE.scale = 'whiten': must be 'unit_rms' or 'raw'"),
        ({"patience": 0}, "SemVAE.patience = 0: must be at least 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SemVAE(**settings)
