"""The noise of sampling: Philox against its published test vectors, and the samples against the normal distribution."""

import math

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from redi.core.samplers.noise import ImageNoise, philox, standard_normal
from redi.runtime.randomness import mix_seeds

SHAPE = (4, 16, 16)


def packed(upper: int, lower: int) -> torch.Tensor:
    value = upper << 32 | lower
    return torch.tensor([value - 2**64 if value >> 63 else value])


# Random123, kat_vectors: philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    words = philox(packed(*counter[:2]), packed(*counter[2:]), packed(key[1], key[0]))
    assert [int(word) % 2**32 for pair in words for word in (pair >> 32, pair)] == list(answer)


def test_the_noise_is_the_transform_of_box_and_muller_of_those_words():
    """The words 0, 2 of each quad give angles, the words 1, 3 radii; against Python's float64."""
    key, (quads, draw) = mix_seeds(7, 5), (3, 2)
    noise = ImageNoise(7, [5], (1, 1, 4 * quads))
    for _ in range(draw):
        noise()
    words = philox(torch.arange(quads) << 32 | draw, torch.zeros(quads, dtype=torch.int64), torch.tensor(key))
    expected = [[], [], [], []]
    for i, pair in enumerate(words):
        for word in pair.tolist():
            radius, angle = math.sqrt(-2 * math.log((word % 2**32 + 0.5) / 2**32)), 2 * math.pi * (word >> 32) / 2**32
            expected[2 * i].append(radius * math.cos(angle))
            expected[2 * i + 1].append(radius * math.sin(angle))
    torch.testing.assert_close(noise().flatten(), torch.tensor(expected).T.flatten(), rtol=1e-5, atol=1e-6)


def test_further_channels_leave_the_noise_of_the_first_ones_as_it_was():
    """Models with different channels can be compared from the same noise of the image, at every draw."""
    plain, joint = ImageNoise(7, [5, 6], (3, 4, 4)), ImageNoise(7, [5, 6], (11, 4, 4))
    for _ in range(2):
        assert torch.equal(plain(), joint()[:, :3])


def test_the_radius_reaches_6_7_deviations_and_is_never_infinite(monkeypatch):
    extremes = torch.tensor([[0, 1, 2**31, 2**32 - 2, 2**32 - 1]])  # words 1 and 3; words 0 and 2 are 0: angle 0
    monkeypatch.setattr("redi.core.samplers.noise.philox", lambda first, second, keys: (extremes, extremes))
    values = standard_normal(torch.tensor([0]), torch.tensor(0), 20).view(5, 4).T
    assert values[0, 0] == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)  # u = 2^-33
    assert values[0, 2] == pytest.approx(math.sqrt(2 * math.log(2)), rel=1e-6)
    assert (values[0].diff() <= 0).all() and (values[0, -2:] < 1e-3).all() and not values[1].any()


# The distribution


@pytest.fixture(scope="module")
def million() -> torch.Tensor:
    """(8 draws, 128 images, 1024 numbers)"""
    noise = ImageNoise(0, range(128), SHAPE)
    return torch.stack([noise().flatten(1) for _ in range(8)]).double()


def test_the_moments_are_those_of_the_normal_law(million):
    # 4 standard errors of each, for n numbers: 1, 2, 15 and 96 are Var of x, x^2, x^3 and x^4.
    for power, (expected, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        error = 4 * math.sqrt(variance / million.numel())
        assert million.pow(power).mean().item() == pytest.approx(expected, abs=error)


def test_the_numbers_pass_the_test_of_kolmogorov_and_smirnov(million):
    assert stats.kstest(million.flatten().numpy(), "norm").pvalue > 0.01
    tail = million.flatten()[million.flatten() > 3]  # where a float32 uniform would be coarse
    assert stats.kstest(tail.numpy(), stats.truncnorm(3, math.inf).cdf).pvalue > 0.01


def test_each_place_in_a_quad_is_normal_by_itself(million):
    for part in million.unflatten(2, (4, -1)).unbind(2):
        assert stats.kstest(part.flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("moved", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2), (0, 0, 256), (0, 0, 512), (1, 1, 1)])
def test_draws_images_and_neighbours_are_uncorrelated(million, moved):
    """Also their squares: the two numbers of a pair share a radius, but must be independent."""
    other = million.roll(moved, dims=(0, 1, 2))
    error = 4 / math.sqrt(million.numel())
    assert abs((million * other).mean()) < error
    assert abs(((million**2 - 1) * (other**2 - 1)).mean()) < 2 * error  # Var (x^2 - 1) = 2


def test_no_two_of_a_thousand_streams_are_correlated(million):
    streams = million.flatten(0, 1)  # (1024, 1024)
    gram = streams @ streams.T / streams.shape[1]
    gram.fill_diagonal_(0)
    # The largest of half a million correlations of standard error 1/32: 4.9 of them on average.
    assert gram.abs().max() < 6.5 / math.sqrt(streams.shape[1])


# What the noise depends on


@pytest.mark.parametrize("shape", [SHAPE, (1, 8, 8), (3, 5, 7), (1, 1, 1)])
def test_any_division_into_batches_gives_the_same_bits(shape):
    indices = [0, 1, 5, 2**40, 3, 17, 12]
    whole, parts = ImageNoise(1, indices, shape), [ImageNoise(1, indices[i : i + 3], shape) for i in (0, 3, 6)]
    for _ in range(3):
        drawn = whole()
        assert drawn.shape == (7, *shape) and drawn.dtype == torch.float32 and drawn.is_contiguous()
        assert torch.equal(drawn, torch.cat([part() for part in parts]))


def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            drawn.append(ImageNoise(0, range(70), (4, 32, 32))())  # above the size that torch divides over threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_every_seed_has_noise_of_its_own():
    first, second = (ImageNoise(seed, range(50), SHAPE)() for seed in (0, 1))
    assert abs((first * second).mean()) < 4 / math.sqrt(first.numel())
    assert not torch.equal(ImageNoise(0, [1], SHAPE)(), ImageNoise(1, [0], SHAPE)())


def test_what_was_drawn_is_not_overwritten_by_the_next_draw():
    noise = ImageNoise(0, [0], SHAPE)
    first = noise()
    kept = first.clone()
    noise()
    assert torch.equal(first, kept)


# Compilation and devices


def test_a_compiled_draw_is_the_eager_one_and_is_compiled_once():
    eager, traced = ImageNoise(3, range(5), SHAPE), ImageNoise(3, range(5), SHAPE)
    graphs = []

    def backend(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(traced, backend=backend, fullgraph=True)
    for _ in range(3):
        assert torch.equal(compiled(), eager())
    assert len(graphs) == 1


def test_a_draw_on_a_gpu_asks_nothing_of_the_host():
    """Fake tensors have no values, so an operation that reads one on the host raises."""
    with FakeTensorMode():
        noise = ImageNoise(0, range(5), SHAPE, "cuda")
        drawn = noise()
    assert (drawn.shape, drawn.device.type, drawn.dtype) == ((5, *SHAPE), "cuda", torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_the_cpu_draws():
    here, there = ImageNoise(0, range(9), SHAPE), ImageNoise(0, range(9), SHAPE, "cuda")
    for _ in range(2):
        torch.testing.assert_close(there().cpu(), here(), rtol=1e-5, atol=1e-6)
