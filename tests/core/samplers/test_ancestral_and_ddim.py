"""Ancestral and DDIM against diffusers' schedulers and, for Gaussian data, against exact moments."""

import numpy as np
import pytest
import torch
from torch import nn

from redi.core.channels import Channels
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.shifted import Shifted
from redi.core.processes.vp import VP
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.ddim import DDIM
from redi.core.samplers.euler import Euler
from tests.core.samplers.gaussian import MEAN, STD, exact_field, moments

CHANNELS = Channels(image=2, z=1)
T = 100


def network(out_channels, seed=0):
    """A small random network of x and timestep, float64."""
    torch.manual_seed(seed)
    mix = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, out_channels, 3, padding=1)).double()
    mix.requires_grad_(False)
    return lambda x, step: torch.tanh(mix(torch.cat([x, torch.full_like(x[:, :1], step / T)], dim=1)))


def recorded(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, 3, 5, 5, generator=generator, dtype=torch.float64)


def ours(sampler, process, net, drawn):
    replay = iter(drawn)

    def denoise(x, t):
        step = process.model_time(torch.tensor([t], dtype=torch.float64)).item()
        return net(x, step)

    return sampler(denoise, process, lambda: next(replay))


def replayed(monkeypatch, module, drawn):
    """Replace the function by which diffusers draws noise."""
    replay = iter(drawn)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(replay))


def theirs(scheduler, net, x, **step):
    for timestep in scheduler.timesteps:
        x = scheduler.step(net(x, int(timestep)), timestep, x, **step).prev_sample
    return x


def float64_schedule(scheduler):
    """diffusers builds its betas in float32; ours are float64."""
    betas = np.linspace(1e-4, 0.02, T)
    scheduler.alphas = torch.from_numpy(1 - betas)
    scheduler.betas = torch.from_numpy(betas)
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("num_evaluations", [T, 10, 7])
@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small", "fixed_large"])
def test_ancestral_sampling_is_that_of_diffusers(monkeypatch, variance_type, num_evaluations):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    learned = variance_type == "learned_range"
    scheduler = float64_schedule(
        DDPMScheduler(
            num_train_timesteps=T,
            beta_start=1e-4,
            beta_end=0.02,
            variance_type=variance_type,
            timestep_spacing="linspace",
            clip_sample=False,
        )
    )
    scheduler.set_timesteps(num_evaluations)
    net, drawn = network(6 if learned else 3), recorded(num_evaluations)
    replayed(monkeypatch, scheduling_ddpm, drawn[1:])
    process = DDPM(
        num_timesteps=T,
        learned_variance=None if learned else (),
        variance="large" if variance_type == "fixed_large" else "small",
    ).for_channels(CHANNELS)
    x = ours(Ancestral(num_evaluations=num_evaluations), process, net, drawn)
    torch.testing.assert_close(x, theirs(scheduler, net, drawn[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_evaluations", [100, 25, 10])
def test_ddim_is_that_of_diffusers(monkeypatch, eta, num_evaluations):
    from diffusers import DDIMScheduler
    from diffusers.schedulers import scheduling_ddim

    # diffusers' stride of 'leading' is that of "ddimN"; after the last step comes the data itself.
    scheduler = float64_schedule(
        DDIMScheduler(
            num_train_timesteps=T,
            beta_start=1e-4,
            beta_end=0.02,
            timestep_spacing="leading",
            clip_sample=False,
            set_alpha_to_one=True,
        )
    )
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(num_evaluations)
    net, drawn = network(3), recorded(num_evaluations + 1)
    replayed(monkeypatch, scheduling_ddim, drawn[1:])
    process = DDPM(num_timesteps=T, learned_variance=()).for_channels(CHANNELS)
    x = ours(DDIM(eta=eta, respacing=f"ddim{num_evaluations}"), process, net, drawn)
    torch.testing.assert_close(x, theirs(scheduler, net, drawn[0], eta=eta), rtol=1e-9, atol=1e-9)


def test_ddim_leaves_the_learned_variance_alone():
    net, drawn = network(6), recorded(5)
    process = DDPM(num_timesteps=T).for_channels(CHANNELS)
    x = ours(DDIM(num_evaluations=5), process, net, drawn)
    other = ours(DDIM(num_evaluations=5), process, lambda x, step: net(x, step)[:, :3], drawn)
    assert torch.equal(x, other)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_samples_have_the_moments_of_the_data(variance):
    process = DDPM(learned_variance=(), variance=variance, num_timesteps=500, beta_max=0.04)
    mean, of_samples = moments(Ancestral(num_evaluations=500), process.for_channels(Channels(image=2)), spare=1)
    assert (mean - MEAN).abs().max() < 0.005
    # 'small' is exact for a point and 'large' for N(0, 1): in between both are first order in a step of 1/500.
    assert (of_samples / STD**2 - 1).abs().max() < 0.04


PROCESSES = {
    "ddpm": DDPM(learned_variance=(), num_timesteps=500, beta_max=0.04).for_channels(Channels(image=2)),
    "shifted": Shifted(process=GVP(), shift={"z": 0.5}).for_channels(Channels(image=1, z=1)),
} | {
    f"{path.__name__} {prediction}": path(prediction=prediction)
    for path in (FlowMatching, GVP, VP)
    for prediction in ("velocity", "noise", "score", "data")
}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_ddim_samples_have_the_moments_of_the_data_along_every_process(process, eta):
    mean, variance = moments(DDIM(num_evaluations=250, eta=eta), process, spare=1)
    assert (mean - MEAN).abs().max() < 0.01
    assert (variance / STD**2 - 1).abs().max() < 0.06  # first order in a step of 1/250


def test_ddim_on_the_linear_path_is_eulers_method():
    # alpha_s x + sigma_s noise = x_t + (s - t)(x - noise).
    drawn, net = recorded(1), network(3)
    x = [
        sampler(lambda x, t: net(x, t * T), FlowMatching(), lambda: drawn[0])
        for sampler in (DDIM(num_evaluations=8), Euler(num_evaluations=8))
    ]
    torch.testing.assert_close(*x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_evaluations", [1, 2, 2000])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_asks_within_the_interval_and_as_often_as_told(num_evaluations, eta):
    process, times = VP(prediction="score"), []

    def denoise(x, t):
        times.append(t)
        return torch.zeros_like(x)

    x = DDIM(num_evaluations=num_evaluations, eta=eta)(denoise, process, lambda: torch.ones(1, 1, 1, 1))
    first, last = process.t_range()
    assert len(times) == num_evaluations
    assert first <= min(times) and max(times) <= last
    assert x.isfinite().all()


def test_ddim_on_a_continuous_process_refuses_a_respacing():
    with pytest.raises(ValueError, match="DDIM.respacing = 'ddim25' .* set DDIM.num_evaluations"):
        DDIM(respacing="ddim25").check(FlowMatching())


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_outside_the_unit_interval_is_refused(eta):
    with pytest.raises(ValueError, match="DDIM.eta"):
        DDIM(eta=eta)


def test_the_last_ancestral_step_is_free_of_noise():
    draws = []
    process = DDPM(num_timesteps=10, learned_variance=()).for_channels(Channels(image=1))
    Ancestral(num_evaluations=4)(exact_field(process), process, lambda: draws.append(1) or torch.zeros(1, 1, 1, 1))
    assert len(draws) == 1 + 3
