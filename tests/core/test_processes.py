import inspect
import math

import pytest
import torch

from redi.core.channels import Channels
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.shifted import Shifted
from redi.core.processes.vp import VP
from redi.core.registry import registries

CHANNELS = Channels(image=1, z=1)
INTERPOLANTS = {
    f"{path.__name__} {prediction}{' reversed' if turned else ''}": path(prediction=prediction, reversed=turned)
    for path in (FlowMatching, GVP, VP)
    for prediction in ("velocity", "noise", "score", "data")
    for turned in ((False, True) if prediction == "velocity" else (False,))
}
SHIFTED = {
    f"Shifted {path.__name__}": Shifted(process=path(), shift={"z": 0.4}).for_channels(CHANNELS)
    for path in (FlowMatching, GVP, VP)
}
CONTINUOUS = INTERPOLANTS | SHIFTED
PROCESSES = CONTINUOUS | {"DDPM": DDPM(learned_variance=()).for_channels(CHANNELS)}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
every_continuous = pytest.mark.parametrize("process", CONTINUOUS.values(), ids=CONTINUOUS)
every_share = pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])  # of the way through the interval


def test_every_registered_process_is_tested_here():
    assert {type(process) for process in PROCESSES.values()} == set(registries["processes"].values())


def time_at(process, share):
    first, last = process.t_range()
    if process.num_timesteps is not None:
        return process.time(round(1000 - 998 * share))
    return exactly(process, first + share * (last - first))


def exactly(process, t):
    """t with the type for which the process computes in float64. Shifted computes in float32 for a float."""
    return torch.full((1, 1, 1, 1), t, dtype=torch.float64) if isinstance(process, Shifted) else t


def data_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))


@every_process
@every_share
def test_the_perfect_prediction_gives_back_data_and_noise(process, share):
    (x, noise), t = data_and_noise(), time_at(process, share)
    x_t, target = process.corrupt(x, noise, t)
    # Solving for the part with a weight of 0.001 to 0.007 loses that much of float64's accuracy.
    torch.testing.assert_close(process.clean(target, x_t, t), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.noise(target, x_t, t), noise, rtol=1e-9, atol=1e-9)


@every_continuous
@every_share
def test_the_perfect_prediction_gives_the_velocity_of_the_path(process, share):
    (x, noise), t = data_and_noise(), time_at(process, share)
    x_t, target = process.corrupt(x, noise, t)
    expected = process.d_alpha(t) * x + process.d_sigma(t) * noise
    torch.testing.assert_close(process.velocity(target, x_t, t), expected, rtol=1e-9, atol=1e-9)


@every_continuous
@pytest.mark.parametrize("t", [0.01, 0.25, 0.5, 0.99])
def test_velocity_is_the_time_derivative_of_the_path(process, t):
    (x, noise), t = data_and_noise(), exactly(process, t)
    x_t, target = process.corrupt(x, noise, t)
    h = 1e-5
    slope = (process.corrupt(x, noise, t + h)[0] - process.corrupt(x, noise, t - h)[0]) / (2 * h)
    torch.testing.assert_close(process.velocity(target, x_t, t), slope, rtol=1e-5, atol=1e-5)


@every_process
@every_share
def test_the_path_is_its_clean_part_plus_sigma_noise(process, share):
    (x, noise), t = data_and_noise(), time_at(process, share)
    only_data, _ = process.corrupt(x, torch.zeros_like(x), t)
    x_t, _ = process.corrupt(x, noise, t)
    torch.testing.assert_close(x_t, only_data + process.sigma(t) * noise, rtol=1e-12, atol=1e-12)


@every_process
def test_the_path_ends_in_the_data_exactly(process):
    x, noise = data_and_noise()
    assert torch.equal(process.alpha(1.0) * x + process.sigma(1.0) * noise, x)


def with_times(process) -> dict:
    """{name: parameters} of the public methods with a time argument."""
    found = {}
    for name, method in inspect.getmembers(process, inspect.ismethod):
        parameters = list(inspect.signature(method).parameters)
        if not name.startswith("_") and {"t", "s"} & set(parameters) and name not in ("group_times", "between"):
            found[name] = parameters
    return found


def flat(result) -> list:
    """The tensors (or numbers) in the result of a method."""
    if isinstance(result, dict):
        return list(result.values())
    return list(result) if isinstance(result, tuple) else [result]


LEARNED = {"DDPM learned": DDPM().for_channels(CHANNELS), "DDPM z": DDPM(learned_variance="z").for_channels(CHANNELS)}


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (5, 2, 4, 5)], ids=["N != W", "N = W"])
@pytest.mark.parametrize("process", (PROCESSES | LEARNED).values(), ids=PROCESSES | LEARNED)
def test_times_of_a_batch_give_each_sample_what_its_own_time_gives(process, shape):
    n, generator = shape[0], torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name in ("x", "noise", "prediction", "x_t", "data")
    }
    more = sum(CHANNELS[name] for name in process.variance_groups)
    tensors["prediction"] = torch.cat([tensors["prediction"], tensors["noise"][:, :more]], dim=1)
    times = {"t": torch.linspace(0.2, 0.6, n, dtype=torch.float64)}
    times["s"] = times["t"] + 0.2 * torch.linspace(0.5, 1, n, dtype=torch.float64)
    methods = with_times(process)
    assert {"alpha", "sigma", "mix", "target", "corrupt", "error", "velocity", "clean", "noise"} <= set(methods)
    if process.num_timesteps is not None:
        assert {"posterior", "reverse_step", "variational_bound", "alpha_cumprod"} <= set(methods)
        del methods["velocity"]  # refused at every t
    for name, parameters in methods.items():
        method, arguments = getattr(process, name), {k: v for k, v in (tensors | times).items() if k in parameters}
        together = flat(method(**arguments))
        for i in range(n):
            one = {k: float(v[i]) if k in times else v[i : i + 1] for k, v in arguments.items()}
            if name in ("model_time", "network_time"):  # accepts only (N,)
                one = {"t": times["t"][i : i + 1]}
            for batch, alone in zip(together, flat(method(**one)), strict=True):
                row = batch[i : i + 1] if isinstance(batch, torch.Tensor) else torch.tensor(batch)
                alone = torch.as_tensor(alone, dtype=row.dtype)
                # For a float, Shifted computes in float32.
                torch.testing.assert_close(*torch.broadcast_tensors(row, alone), rtol=1e-5, atol=1e-5, msg=name)


@every_process
def test_given_uniforms_give_the_times_in_their_order(process):
    uniforms = torch.tensor([[0.0, 0.25], [0.5, 0.999999]])
    times = process.draw_times((2, 2), "cpu", uniforms)
    first, last = process.t_range() if process.num_timesteps is None else (0.0, 1 - 1 / process.num_timesteps)
    torch.testing.assert_close(times, first + (last - first) * uniforms, rtol=0, atol=2e-3)  # DDPM: to a timestep
    assert times[0, 0] == first and times[1, 1] <= last


@every_process
def test_uniforms_of_another_shape_or_range_are_refused(process):
    for uniforms in (torch.rand(3), torch.tensor([0.5, 1.0]), torch.tensor([-0.1, 0.5]), torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match=r"uniforms must have shape \(2,\) and values in \[0, 1\)"):
            process.draw_times((2,), "cpu", uniforms)


def test_a_process_written_for_the_names_of_version_0_1_is_still_asked_by_them():
    class Older(FlowMatching):
        def interval(self):
            first, last = super().interval()
            return first + 0.1, last

        def network_time(self, t):
            return 1000 * t

    assert Older().t_range() == Older().interval() == (0.1, 1.0)
    assert Older().model_time(torch.ones(1)).item() == 1000
    assert FlowMatching().interval() == FlowMatching().t_range()


@every_continuous
def test_conversions_pass_the_gradient_to_the_prediction(process):
    x_t, prediction = data_and_noise()
    for convert in (process.velocity, process.clean, process.noise):
        prediction = prediction.detach().requires_grad_()
        converted = convert(prediction, x_t, 0.4)
        if converted.requires_grad:
            converted.sum().backward()
            assert (prediction.grad != 0).all()


@every_process
def test_training_times_lie_within_the_interval(process):
    torch.manual_seed(0)
    times = process.draw_times((10_000,), "cpu")
    first, last = process.t_range() if process.num_timesteps is None else (0.0, 1 - 1 / process.num_timesteps)
    assert first <= times.min() and times.max() <= last
    # Uniform: the mean's standard error is 0.29 / 100.
    assert abs(times.mean() - (first + last) / 2) < 4 * 0.0029


@every_process
def test_values_beyond_the_channels_are_left_alone(process):
    x_t, prediction = data_and_noise()
    longer = torch.cat([prediction, torch.full_like(prediction, torch.nan)], dim=1)
    convert = [process.clean, process.noise] + ([process.velocity] if process.num_timesteps is None else [])
    for conversion in convert:
        assert torch.equal(conversion(longer, x_t, 0.4), conversion(prediction, x_t, 0.4))


@every_process
def test_the_error_of_the_perfect_prediction_is_zero(process):
    (x, noise), t = data_and_noise(), time_at(process, 0.5)
    _, target = process.corrupt(x, noise, t)
    assert process.error(target, x, noise, t).abs().max() < 1e-12


@pytest.mark.parametrize("t", [0.0, 1e-3, 0.25, 0.5, 0.999, 1.0])
def test_flow_matching_starts_in_noise_and_mixes_linearly(t):
    x, noise = data_and_noise()
    x_t, target = FlowMatching().corrupt(x, noise, t)
    torch.testing.assert_close(x_t, noise + t * (x - noise), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target, x - noise, rtol=0, atol=0)


def test_clean_and_noise_of_any_prediction_lie_on_the_path_through_x_t():
    x_t, prediction = data_and_noise()
    process, t = FlowMatching(), 0.3
    x, noise = process.clean(prediction, x_t, t), process.noise(prediction, x_t, t)
    again, target = process.corrupt(x, noise, t)
    torch.testing.assert_close(again, x_t, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target, prediction, rtol=1e-12, atol=1e-12)


def test_flow_matching_is_that_of_diffusers_with_time_reversed():
    """diffusers: sigma = 1 - t, x = (1 - sigma) data + sigma noise, and velocity = noise - data = minus ours."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(10)
    x, noise = (a.float() for a in data_and_noise())
    process = FlowMatching()
    current, _ = process.corrupt(x, noise, 1 - scheduler.sigmas[0])
    for k, timestep in enumerate(scheduler.timesteps):
        t = 1 - scheduler.sigmas[k]
        x_t, target = process.corrupt(x, noise, t)
        theirs = scheduler.scale_noise(x, timestep[None], noise)
        torch.testing.assert_close(x_t, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(current, x_t, rtol=1e-5, atol=1e-5)
        current = scheduler.step(-process.velocity(target, x_t, t), timestep, current).prev_sample
    torch.testing.assert_close(current, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.9, 0.999])
def test_vp_is_the_forward_sde_s_solution(t):
    """dx = -beta/2 x ds + sqrt(beta) dW: alpha = exp(-1/2 integral of beta), by quadrature."""
    from scipy.integrate import quad

    process = VP(beta_min=0.3, beta_max=12.0)
    integral = quad(lambda s: 0.3 + s * (12.0 - 0.3), 0, 1 - t)[0]
    assert process.alpha(t) == pytest.approx(math.exp(-integral / 2), rel=1e-10)
    assert process.sigma(t) == pytest.approx(math.sqrt(1 - math.exp(-integral)), rel=1e-10)


@pytest.mark.parametrize("path", [GVP, VP])
def test_variance_preserving_paths_keep_unit_variance(path):
    for t in (0.0, 0.3, 0.7, 0.999):
        assert path().alpha(t) ** 2 + path().sigma(t) ** 2 == pytest.approx(1, abs=1e-12)


def test_a_reversed_network_is_asked_at_the_other_time_and_its_velocity_is_turned():
    (x, noise), t = data_and_noise(), torch.tensor([0.2])
    assert FlowMatching(reversed=True).model_time(t).item() == pytest.approx(0.8)
    torch.testing.assert_close(FlowMatching(reversed=True).target(x, noise, 0.2), noise - x)


def test_the_error_of_a_score_is_weighted_by_sigma():
    (x, noise), t = data_and_noise(), 0.3
    process = GVP(prediction="score")
    score = torch.full_like(x, 0.7)
    torch.testing.assert_close(process.error(score, x, noise, t), process.sigma(t) * 0.7 + noise)


def test_a_shift_of_the_linear_path_divides_the_signal_to_noise_ratio():
    process = Shifted(shift={"z": 3.0}).for_channels(CHANNELS)
    ratio = (process.alpha(0.4) / process.sigma(0.4)).flatten().tolist()
    assert ratio == pytest.approx([0.4 / 0.6, 0.4 / 0.6 / 3], rel=1e-5)


def test_every_group_of_a_shifted_path_keeps_its_distance_from_the_poles():
    process = Shifted(process=FlowMatching(prediction="score", margin=0.01), shift={"z": 4.0, "image": 0.5})
    process = process.for_channels(CHANNELS)
    first, last = process.t_range()
    assert process.own_time(first).min() == pytest.approx(0.01, rel=1e-4)
    assert process.own_time(last).max() == pytest.approx(0.99, rel=1e-4)
