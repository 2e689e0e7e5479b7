"""REGLUE's compressor: published files against its convolutions written out in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from redi.models.reducers.conv_compressor import ConvCompressor

WIDTH, HIDDEN, RANK = 10, 6, 3


def random_half(inputs: int, outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of an encoder or decoder under the published names."""

    def conv(name: str, out: int, into: int) -> dict[str, Tensor]:
        weight = torch.randn(out, into, 3, 3, generator=generator) / (3 * into**0.5)
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(out, generator=generator)}

    state = conv("0", HIDDEN, inputs) | conv("2", outputs, HIDDEN)
    for i in (1, 2):
        state |= conv(f"1.conv{i}", HIDDEN, HIDDEN)
        values = {"weight": 1 + 0.2 * torch.randn(HIDDEN, generator=generator)}
        values |= {name: torch.randn(HIDDEN, generator=generator) for name in ("bias", "running_mean")}
        values |= {"running_var": 0.5 + torch.rand(HIDDEN, generator=generator), "num_batches_tracked": torch.tensor(7)}
        state |= {f"1.bn{i}.{name}": value for name, value in values.items()}
    return state


def random_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    halves = {"encoder": random_half(WIDTH, RANK, generator), "decoder": random_half(RANK, WIDTH, generator)}
    return {f"module.{half}.model.{name}": t for half, state in halves.items() for name, t in state.items()}


def convolved(x: Tensor, state: dict[str, Tensor], half: str) -> Tensor:
    def get(name: str) -> Tensor:
        return state[f"module.{half}.model.{name}"].double()

    def conv(x: Tensor, name: str) -> Tensor:
        return functional.conv2d(x, get(f"{name}.weight"), get(f"{name}.bias"), padding=1)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, std = get(f"{name}.running_mean"), (get(f"{name}.running_var") + 1e-5).sqrt()
        x = (x - mean[:, None, None]) / std[:, None, None]
        return x * get(f"{name}.weight")[:, None, None] + get(f"{name}.bias")[:, None, None]

    x = conv(x.double(), "0")
    hidden = norm(conv(x, "1.conv1"), "1.bn1").clamp(min=0)
    return conv((x + norm(conv(hidden, "1.conv2"), "1.bn2")).clamp(min=0), "2")


def features(n: int = 2) -> Tensor:
    return 3 + 2 * torch.randn(n, WIDTH, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def files(tmp_path):
    """Write a weights file and a statistics file as published; return the arguments that name them."""

    def write(state: dict[str, Tensor], width: int = WIDTH) -> dict[str, str]:
        torch.save(state, tmp_path / "compressor.pth")
        statistics = {"mean": torch.linspace(2, 4, width), "std": torch.linspace(1, 3, width)}
        torch.save(statistics, tmp_path / "statistics.pt")
        return {"weights": str(tmp_path / "compressor.pth"), "statistics": str(tmp_path / "statistics.pt")}

    return write


def test_a_published_file_gives_the_written_out_convolutions_of_standardised_features(files):
    state = random_state()
    reducer = ConvCompressor(RANK, hidden=HIDDEN, scale="raw", **files(state))
    mean, std = (torch.linspace(*ends, WIDTH).double()[:, None, None] for ends in ((2, 4), (1, 3)))
    code = convolved((features().double() - mean) / std, state, "encoder")
    torch.testing.assert_close(reducer(features()).double(), code, rtol=1e-4, atol=1e-5)
    restored = convolved(code, state, "decoder") * std + mean
    torch.testing.assert_close(reducer.inverse(code.float()).double(), restored, rtol=1e-4, atol=1e-5)


def test_it_stays_in_evaluation_mode_in_a_model_in_training(files):
    reducer = ConvCompressor(RANK, hidden=HIDDEN, scale="raw", **files(random_state()))
    before = reducer(features())
    torch.nn.ModuleList([reducer]).train()
    assert torch.equal(reducer(features()), before) and torch.equal(reducer(features()), before)


def test_convolutions_before_a_batch_norm_may_lack_their_bias(files):
    state = random_state()
    for name in list(state):
        if name.endswith(("conv1.bias", "conv2.bias")):
            state[name].zero_()
    arguments = files({name: t for name, t in state.items() if not name.endswith(("conv1.bias", "conv2.bias"))})
    lacking = ConvCompressor(RANK, hidden=HIDDEN, scale="raw", **arguments)(features())
    assert torch.equal(lacking, ConvCompressor(RANK, hidden=HIDDEN, scale="raw", **files(state))(features()))


def test_weights_without_the_statistics_of_their_features_are_refused(files):
    with pytest.raises(ValueError, match="ConvCompressor.statistics = None: must be the published file with mean"):
        ConvCompressor(RANK, hidden=HIDDEN, weights=files(random_state())["weights"])


def test_statistics_of_another_width_are_refused(files):
    with pytest.raises(ValueError, match="ConvCompressor.statistics: .*must be mean and std of 10 channels"):
        ConvCompressor(RANK, hidden=HIDDEN, **files(random_state(), width=9))


def test_a_missing_file_is_named(files):
    with pytest.raises(ValueError, match="ConvCompressor.weights: .*nowhere.pth"):
        ConvCompressor(RANK, hidden=HIDDEN, **files(random_state()) | {"weights": "nowhere.pth"})


def test_the_state_of_published_weights_loads_into_a_reducer_without_the_files(files):
    reducer = ConvCompressor(RANK, hidden=HIDDEN, scale="raw", **files(random_state()))
    other = ConvCompressor(RANK, hidden=HIDDEN, scale="raw")
    other.load_state_dict(reducer.state_dict())
    assert torch.equal(other(features()), reducer(features()))
