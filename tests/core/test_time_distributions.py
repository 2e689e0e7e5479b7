import math

import pytest
import torch
from scipy import stats

from redi.core.channels import Channels
from redi.core.clocks import Independent, Lead
from redi.core.objective import JointObjective
from redi.core.processes import DDPM, VP, FlowMatching
from redi.core.time_distributions import LogitNormal, Uniform

CHANNELS = Channels(image=4, z=8)
LATENTS = (4, 32, 32)


def drawn(distribution, shape=(20_000,), state=LATENTS, process=None):
    torch.manual_seed(0)
    return distribution.draw(process or FlowMatching(), shape, "cpu", state)


def logit_normal(mean, std, shift=1.0):
    """SciPy's cumulative distribution: logit(t / (t + s (1 - t))) = logit(t) - log(s)."""
    normal = stats.norm(mean - math.log(shift), std)
    return lambda t: normal.cdf(torch.logit(torch.as_tensor(t).double()).numpy())


@pytest.mark.parametrize(
    ("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.8, 0.8, 1.0), (0.0, 1.0, 6.928), (-1.532, 1.0, 0.5)]
)
def test_logit_normal_times_have_the_distribution_of_scipy(mean, std, shift):
    times = drawn(LogitNormal(mean=mean, std=std, shift=shift)).numpy()
    assert stats.kstest(times, logit_normal(mean, std, shift)).pvalue > 0.01
    assert stats.kstest(times, logit_normal(mean + 0.1, std, shift)).pvalue < 1e-6
    assert stats.kstest(times, logit_normal(mean, 1.1 * std, shift)).pvalue < 1e-6


@pytest.mark.parametrize("shift", [0.4, 3.0])
def test_shifted_uniform_times_have_the_distribution_of_the_transformed_variable(shift):
    times = drawn(Uniform(shift=shift)).numpy()
    # P(u / (u + s (1 - u)) < t) = P(u < s t / (1 - t + s t))
    assert stats.kstest(times, lambda t: shift * t / (1 - t + shift * t)).pvalue > 0.01
    assert stats.kstest(times, "uniform").pvalue < 1e-6


def test_uniform_times_are_those_of_the_process_bit_for_bit():
    for process in (FlowMatching(), VP(), DDPM().for_channels(CHANNELS)):
        times = drawn(Uniform(), process=process)
        torch.manual_seed(0)
        assert torch.equal(times, process.draw_times((20_000,), "cpu"))


@pytest.mark.parametrize(
    ("state", "shift"),
    [((768, 16, 16), 6.928), ((1024, 16, 16), 8), ((768, 32, 32), 13.86), ((384, 16, 16), 4.90), ((32, 16, 16), 1.414),
     ((4, 32, 32), 1.0)],
)  # fmt: skip
def test_the_dimension_shift_is_that_of_the_published_latents(state, shift):
    for distribution in (LogitNormal(shift="dimension"), Uniform(shift="dimension")):
        assert distribution.shift_for(state) == pytest.approx(shift, abs=0.005)
        assert drawn(distribution, state=state).median() == pytest.approx(1 / (1 + shift), abs=0.01)


def test_the_resolution_shift_is_the_square_root_of_the_number_of_positions():
    assert LogitNormal(shift="resolution").shift_for((16, 64, 64)) == 2.0
    assert LogitNormal(shift="resolution").shift_for((4, 32, 32)) == 1.0


def test_times_stay_within_the_range_of_the_process():
    process = FlowMatching(prediction="score", margin=0.1)
    times = drawn(LogitNormal(std=2.0), process=process)
    assert times.min() == pytest.approx(0.1) and times.max() == pytest.approx(0.9)


@pytest.mark.parametrize("distribution", [LogitNormal(mean=-0.4, std=0.8), Uniform(shift=2.0)])
def test_the_groups_of_an_independent_clock_have_times_of_their_own(distribution):
    objective = JointObjective(channels=CHANNELS, num_classes=1, clock=Independent(), time_distribution=distribution)
    torch.manual_seed(0)
    _, times, *_ = objective.draw(torch.zeros(5000, 12, 2, 2), torch.zeros(5000, dtype=torch.long))
    assert times.shape == (5000, 2)
    assert abs(torch.corrcoef(times.T)[0, 1]) < 0.05
    assert stats.ks_2samp(times[:, 0].numpy(), times[:, 1].numpy()).pvalue > 0.01


def test_with_a_lead_a_ninth_of_the_samples_has_clean_features_and_a_ninth_a_noise_image():
    """SFD, arXiv 2512.04926: offset 0.3 and logit-normal times. P(N > log(0.7692 / 0.2308) = 1.204) = 11.4 %."""
    objective = JointObjective(channels=CHANNELS, num_classes=1, clock=Lead(0.3), time_distribution=LogitNormal())
    torch.manual_seed(0)
    _, times, *_ = objective.draw(torch.zeros(50_000, 12, 1, 1), torch.zeros(50_000, dtype=torch.long))
    own = objective.process.model_time(times)
    expected = stats.norm.sf(math.log(1 / 0.3))
    assert expected == pytest.approx(0.114, abs=5e-4)
    assert (own[:, 0] == 0).float().mean() == pytest.approx(expected, abs=0.006)  # four standard errors
    assert (own[:, 1] == 1).float().mean() == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_a_standard_deviation_that_is_not_positive_is_refused(value):
    with pytest.raises(ValueError, match=r"LogitNormal\.std = \S+: must be finite and greater than 0"):
        LogitNormal(std=value)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "dimensions"])
def test_a_shift_that_is_not_positive_or_unknown_is_refused(value):
    for component in (LogitNormal, Uniform):
        with pytest.raises(
            ValueError, match=rf"{component.__name__}\.shift = .*: must be a finite number greater than"
        ):
            component(shift=value)


def test_a_mean_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"LogitNormal\.mean = nan: must be finite"):
        LogitNormal(mean=math.nan)


@pytest.mark.parametrize("distribution", [LogitNormal(), Uniform(shift=2.0), Uniform(shift="dimension")])
def test_a_discrete_process_is_refused_with_what_is_allowed(distribution):
    with pytest.raises(ValueError, match=r"DDPM, which has discrete timesteps: must be .* bind a continuous process"):
        JointObjective(channels=CHANNELS, num_classes=1, process=DDPM(), time_distribution=distribution)
