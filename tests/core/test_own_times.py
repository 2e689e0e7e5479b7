"""The weights over own times against quadrature, and a clock that is learned on a Gaussian with a known best order."""

import pytest
import torch
from scipy import integrate

from redi.core.channels import Channels
from redi.core.clocks import Independent, Lead, Learned, Shared
from redi.core.objective import JointObjective
from redi.core.own_times import kinetic_energies
from redi.core.processes import DDPM, GVP, FlowMatching
from redi.core.time_distributions import LogitNormal, TimeDistribution, Uniform

CHANNELS = Channels(image=1, z=1)
PAIR = ("image", "z")


def bent(seed: int = 0, **settings) -> Learned:
    clock = Learned(shapes={"image": "convex", "z": "concave"}, **settings)
    for part in clock.module.values():
        part.raw.data = 0.3 * torch.randn(part.raw.shape, generator=torch.Generator().manual_seed(seed))
    return clock


def error(name: str, t):
    """The squared error of a network that knows the group's own time alone."""
    return (1 + t) ** 2 if name == "image" else 1 + (1 - t) ** 3


CLOCKS = {"shared": Shared, "a lead": lambda: Lead(0.4), "independent": Independent, "curves": bent,
          "other curves": lambda: bent(1)}  # fmt: skip
TIMES = {
    "kept, uniform": ("kept", Uniform(), lambda t: 1.0),
    "kept, logit-normal": ("kept", LogitNormal(), lambda t: LogitNormal().density(None, torch.tensor(t), ())),
    "uniform for shifted times": (Uniform(), Uniform(shift=2.0), lambda t: 1.0),
    "shifted for uniform": (Uniform(shift=3.0), Uniform(), lambda t: 3 / (1 - t + 3 * t) ** 2),
}


@pytest.mark.parametrize(("own_times", "drawn", "density"), TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_the_expected_loss_does_not_change_when_the_curve_moves(clock, own_times, drawn, density):
    """Monte Carlo over 40,000 drawn times against quadrature over the own time, within four standard errors."""
    objective = JointObjective(
        channels=CHANNELS, num_classes=1, clock=clock(), time_distribution=drawn, own_times=own_times,
    )  # fmt: skip
    x = torch.zeros(40_000, 2, 1, 1)
    torch.manual_seed(0)
    y, times, noise, *others = objective.draw(x, torch.zeros(len(x)))

    def network(x_t, t, y):
        t = t if t.ndim == 2 else t[:, None].expand(-1, 2)
        roots = torch.stack([error(name, t[:, k]).sqrt() for k, name in enumerate(PAIR)], dim=1)
        return roots[:, :, None, None] - noise  # the target is x - noise = -noise

    losses = objective.losses(network, x, y, times, noise, *others, per_sample=True)
    for name in PAIR:
        expected, _ = integrate.quad(lambda t: density(t) * error(name, t), 0, 1)  # noqa: B023
        drawn_losses = losses[name].detach()
        assert abs(float(drawn_losses.mean()) - expected) < 4 * float(drawn_losses.std()) / 200
    plain = JointObjective(channels=CHANNELS, num_classes=1, clock=clock(), time_distribution=drawn)
    if isinstance(plain.clock, Lead):  # without the weights, the expectation does depend on the clock
        losses = plain.losses(network, x, y, times, noise, *others)
        assert abs(float(losses["image"]) - integrate.quad(lambda t: density(t) * error("image", t), 0, 1)[0]) > 0.1


def test_the_weights_are_1_where_every_group_has_the_drawn_time():
    objective = JointObjective(
        channels=CHANNELS, num_classes=1, time_distribution=LogitNormal(shift=2.0), own_times="kept"
    )
    t = torch.rand(9)[:, None, None, None]
    torch.testing.assert_close(objective.own_times.weight(objective.process, t, (2, 8, 8)), torch.ones_like(t))


# ---- the kinetic energy


@pytest.mark.parametrize("path", [FlowMatching(), GVP()], ids=["linear", "an angle"])
def test_the_kinetic_energy_is_the_mean_squared_velocity_of_the_path(path):
    objective = JointObjective(channels=CHANNELS, num_classes=1, clock=bent(), process=path)
    torch.manual_seed(1)
    x = 2 * torch.randn(3, 2, 8, 8)
    energies = kinetic_energies(objective.process, CHANNELS, x)
    h, total = 1e-3, dict.fromkeys(PAIR, 0.0)
    times = [(k + 0.5) / 100 for k in range(100)]
    for s in times:  # differences of alpha and sigma over a short step; the noise has variance 1
        for k, name in enumerate(PAIR):
            a, b = (objective.process.own_time(s + d).flatten()[k].double() for d in (-h, h))
            alpha, sigma = ((float(f(b) - f(a)) / (2 * h)) ** 2 for f in (path.alpha, path.sigma))
            total[name] += (alpha * x[:, k].square().mean(dim=(1, 2)).double() + sigma) / 100
    for name in PAIR:
        torch.testing.assert_close(energies[name].detach().double(), total[name], rtol=0.02, atol=0)


def test_constant_speed_has_the_least_energy():
    x = torch.randn(4, 2, 4, 4)

    def energy(clock):
        objective = JointObjective(channels=CHANNELS, num_classes=1, clock=clock)
        return float(kinetic_energies(objective.process, CHANNELS, x)["image"].detach().mean())

    constant = float(1 + x[:, 0].square().mean())
    assert energy(Learned(start=1e-6)) == pytest.approx(constant, rel=1e-4)
    assert constant < energy(Learned(start=1.0)) < energy(Learned(start=8.0))


# ---- a Gaussian: image and z have unit variance and the correlation RHO, and the best prediction is linear

RHO, ONE = 0.9, torch.eye(2, dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)


def regression(t):
    """For times (N, 2): the matrices (N, 2, 2) of E[v | x_t] = M x_t, and the covariance of v - M x_t."""
    a = torch.diag_embed(t.double())
    of_state = a @ COVARIANCE @ a + (ONE - a) ** 2
    both = COVARIANCE @ a - (ONE - a)  # of v = x - noise and x_t
    matrix = torch.linalg.solve(of_state, both.mT).mT
    return matrix, COVARIANCE + ONE - matrix @ both.mT


def expected_loss(clock, weight: float, kinetic_weight: float) -> float:
    """The corrected loss of the best network and the kinetic term, by quadrature over s."""
    s = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    t = torch.stack([clock.time(name, s) for name in PAIR], dim=1)
    slopes = torch.stack([torch.as_tensor(clock.slope(name, s), dtype=s.dtype).expand_as(s) for name in PAIR], dim=1)
    errors = regression(t)[1].diagonal(dim1=1, dim2=2) * slopes + kinetic_weight * 2 * slopes**2
    return float(errors.detach().mean(dim=0) @ torch.tensor([1, weight], dtype=s.dtype))


@pytest.mark.parametrize(("weight", "lags"), [(0.02, True), (4.0, False)], ids=["image", "z"])
def test_on_a_gaussian_the_curve_moves_to_the_best_order(weight, lags):
    """Where the image's error counts, z should be clean first, and the image lags more; else less."""
    kinetic_weight, settings = 0.02, {"channels": CHANNELS, "num_classes": 1, "representation_weight": weight}
    objective = JointObjective(clock=Learned(start=1.5), kinetic_weight=kinetic_weight, **settings)
    clock = objective.clock
    less, more = (expected_loss(Learned(start=start), weight, kinetic_weight) for start in (0.5, 4.0))
    assert (more < less) is lags  # the best order, without the training

    def network(x_t, t, y):
        return (regression(t)[0] @ x_t[:, :, 0].double()).float()[..., None]

    before, lag = expected_loss(clock, weight, kinetic_weight), 0.5 - clock.time("image", 0.5)
    optimizer = torch.optim.Adam(clock.module.parameters(), lr=0.01)
    torch.manual_seed(0)
    for _ in range(40):
        x = (torch.linalg.cholesky(COVARIANCE) @ torch.randn(512, 2, 1, dtype=torch.float64)).float()[..., None]
        objective(network, x, torch.zeros(512))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert expected_loss(clock, weight, kinetic_weight) < before - 0.01
    assert (0.5 - clock.time("image", 0.5) > lag + 0.03) is lags
    assert (0.5 - clock.time("image", 0.5) < lag - 0.03) is not lags


# ---- refusals


class Ramp(TimeDistribution):
    def draw(self, process, shape, device, state):
        return torch.rand(shape, device=device).sqrt()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own_times": "drawn"}, r"JointObjective\.own_times must be one of time_distributions"),
        ({"own_times": "kept", "process": DDPM()}, r"own_times with JointObjective\.process = DDPM, which is"),
        ({"kinetic_weight": -1.0, "clock": Learned()}, r"kinetic_weight = -1\.0 must be a finite number"),
        ({"kinetic_weight": 0.1}, r"kinetic_weight = 0\.1 with clocks\.Shared: must be 0, because only a clock"),
        ({"cosine_weight": 1.0, "clock": Learned()}, r"cosine_weight while clocks\.Learned\(\) finds its curves: "),
        ({"own_times": "kept", "time_distribution": Ramp()}, r"needs the density of time_distributions\.Ramp"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        JointObjective(channels=CHANNELS, num_classes=1, **settings)
