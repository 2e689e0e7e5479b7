"""The terms of the training loss, against the formulas in float64."""

import math

import pytest
import torch

from redi.core.channels import Channels
from redi.core.clocks import Independent, Lead
from redi.core.losses import min_snr
from redi.core.objective import JointObjective
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.vp import VP

CHANNELS = Channels(image=2, z=3)
N = 12
KEPT = torch.zeros(N, dtype=torch.bool)
SOME = torch.arange(N) % 3 == 0


def tensors():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(N, 5, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))


def losses(prediction, x, noise, t, dropped=KEPT, by_time=False, **settings):
    """The losses of a prediction that does not depend on the state."""
    objective = JointObjective(channels=CHANNELS, num_classes=4, **settings)
    labels = torch.zeros(N, dtype=torch.int64)
    return objective.losses(lambda x_t, *_: prediction, x, labels, t, noise, dropped, by_time=by_time)


def times(last=0.95):
    return torch.linspace(0.05, last, N, dtype=torch.float64)


def cosine(one, other):
    """(N, H, W) over the channels, by its definition."""
    return (one * other).sum(1) / (one.square().sum(1).sqrt() * other.square().sum(1).sqrt())


def test_the_cosine_is_that_of_all_channels_jointly():
    x, noise, prediction = tensors()
    plain = losses(prediction, x, noise, times(), representation_weight=0.5)
    found = losses(prediction, x, noise, times(), representation_weight=0.5, cosine_weight=2.0)
    expected = (1 - cosine(prediction, x - noise)).mean()
    torch.testing.assert_close(found["cosine"].double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found["loss"], plain["loss"] + 2 * found["cosine"])
    assert "cosine" not in plain


def test_dropped_representations_are_no_part_of_the_cosine():
    x, noise, prediction = tensors()
    found = losses(prediction, x, noise, times(), SOME, cosine_weight=1.0)
    image = 1 - cosine(prediction[:, :2], (x - noise)[:, :2])
    state = 1 - cosine(prediction, x - noise)
    expected = torch.where(SOME[:, None, None], image, state).mean()
    torch.testing.assert_close(found["cosine"].double(), expected, rtol=1e-5, atol=0)


def test_a_cosine_of_each_group_is_weighted_like_its_error():
    x, noise, prediction = tensors()
    settings = {"cosine_weight": 1.0, "cosine_over": "groups", "representation_weight": 0.5}
    found = losses(prediction, x, noise, times(), SOME, **settings)
    image, z = (1 - cosine(prediction[:, part], (x - noise)[:, part]) for part in (slice(2), slice(2, 5)))
    expected = image.mean() + 0.5 * (z * ~SOME[:, None, None]).mean()
    torch.testing.assert_close(found["cosine"].double(), expected, rtol=1e-5, atol=0)


OTHER_PREDICTIONS = [
    *({"prediction": prediction} for prediction in ("noise", "data", "score")),
    {"prediction": "data", "loss_on": "velocity"},
    {"reversed": True},
]


@pytest.mark.parametrize("path", [FlowMatching, GVP, VP])
@pytest.mark.parametrize("settings", OTHER_PREDICTIONS, ids=str)
def test_the_cosine_is_that_of_velocities_whatever_is_predicted(path, settings):
    """The prediction that a velocity implies has the cosine of that velocity."""
    x, noise, velocity = tensors()
    objective = JointObjective(channels=CHANNELS, num_classes=4, process=path(**settings), cosine_weight=1.0)
    plain, t = path(), times()

    def model(x_t, model_time, y):
        values = {"velocity": -velocity, "noise": plain.noise(velocity, x_t, t), "data": plain.clean(velocity, x_t, t)}
        values["score"] = -values["noise"] / plain.sigma(t)
        return values[objective.process.prediction]

    found = objective.losses(model, x, torch.zeros(N), t, noise, KEPT)["cosine"]
    expected = (1 - cosine(velocity, plain.target(x, noise, t))).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_velocities_of_a_clock_are_those_per_own_time():
    """Also where a group does not move: SFD keeps the target x - noise there."""
    x, noise, prediction = tensors()
    found = losses(prediction, x, noise, times(), clock=Lead(offset=0.3), cosine_weight=1.0)
    expected = (1 - cosine(prediction, x - noise)).mean()
    torch.testing.assert_close(found["cosine"].double(), expected, rtol=1e-5, atol=0)


def test_a_network_that_predicts_zero_has_a_bounded_gradient():
    x, noise, _ = tensors()
    prediction = torch.zeros_like(x, requires_grad=True)
    losses(prediction, x, noise, times(), cosine_weight=1.0, representation_weight=0.0)["loss"].backward()
    assert prediction.grad.isfinite().all() and prediction.grad[:, 2:].abs().sum() > 0
    assert prediction.grad.abs().max() < 1e3 / N


SNR = {
    "data": (FlowMatching(prediction="data"), lambda snr, t: snr.clamp(max=5)),
    "noise": (FlowMatching(prediction="noise"), lambda snr, t: snr.clamp(max=5) / snr),
    "score": (GVP(prediction="score"), lambda snr, t: snr.clamp(max=5) / snr),
    "DDPM": (DDPM(learned_variance=("image",)), lambda snr, t: snr.clamp(max=5) / snr),
    "velocity": (FlowMatching(), lambda snr, t: snr.clamp(max=5) * (1 - t) ** 2),
    "reversed": (FlowMatching(reversed=True), lambda snr, t: snr.clamp(max=5) * (1 - t) ** 2),
    "velocity of an angle": (GVP(), lambda snr, t: snr.clamp(max=5) / (snr + 1) / (math.pi / 2) ** 2),
    "on the velocity": (
        FlowMatching(prediction="data", loss_on="velocity", velocity_clamp=0.2),
        lambda snr, t: snr.clamp(max=5) * (1 - t).clamp(min=0.2) ** 2,
    ),
}


@pytest.mark.parametrize(("process", "expected"), SNR.values(), ids=SNR)
def test_min_snr_has_the_published_weight_of_every_prediction(process, expected):
    """Hang et al., arXiv 2303.09556, section 3.4; for a velocity of VP with t an angle, min(SNR, 5) / (SNR + 1)."""
    process = process.for_channels(CHANNELS)
    t = (torch.arange(1, 20, dtype=torch.float64) / 20)[:, None, None, None]
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    torch.testing.assert_close(min_snr(process, t), expected(snr, t), rtol=1e-9, atol=1e-12)


def test_min_snr_is_finite_at_the_ends_of_every_path():
    for path in (FlowMatching, GVP, VP):
        for prediction in ("velocity", "noise", "score", "data"):
            process = path(prediction=prediction)
            ends = torch.tensor(process.t_range())[:, None, None, None]
            assert min_snr(process, ends).isfinite().all(), (path, prediction)


@pytest.mark.parametrize("clock", [None, Lead(offset=0.3), Independent()], ids=["one t", "lead", "independent"])
def test_a_weight_over_t_is_that_of_each_groups_own_time(clock):
    x, noise, prediction = tensors()
    t = times() if clock is None or not clock.independent else torch.stack([times(), times().flip(0)], dim=1)
    weight = lambda process, t: 1 + process.own_time(t) ** 2  # noqa: E731
    found = losses(prediction, x, noise, t, SOME, clock=clock, time_weight=weight)
    squared = (prediction - (x - noise)).square()
    for index, (name, part) in enumerate((("image", slice(2)), ("z", slice(2, 5)))):
        own = t[:, index] if t.ndim == 2 else t
        if isinstance(clock, Lead):
            own = torch.tensor([clock.for_channels(CHANNELS).time(name, float(s)) for s in t], dtype=torch.float64)
        each = squared[:, part].mean(dim=(1, 2, 3)) * (1 + own**2)
        expected = each.mean() if name == "image" else each[~SOME].mean()
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=0)
    whole = losses(prediction, x, noise, t, SOME, clock=clock, time_weight=lambda process, t: 1.0)
    plain = losses(prediction, x, noise, t, SOME, clock=clock)
    assert all(torch.equal(whole[name], plain[name]) for name in plain)


@pytest.mark.parametrize("clock", [None, Lead(offset=0.3), Independent()], ids=["one t", "lead", "independent"])
def test_errors_are_summed_in_bins_of_each_groups_own_time(clock):
    x, noise, prediction = tensors()
    t = times(1.0) if clock is None or not clock.independent else torch.stack([times(1.0), times(1.0).flip(0)], dim=1)
    settings = {"clock": clock, "representation_weight": 0.5, "time_weight": min_snr}
    found = losses(prediction, x, noise, t, SOME, by_time=True, **settings)
    squared = (prediction - (x - noise)).square()
    for index, (name, part) in enumerate((("image", slice(2)), ("z", slice(2, 5)))):
        sums, counts = torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
        for i in range(N):
            own = float(t[i, index] if t.ndim == 2 else t[i])
            own = clock.for_channels(CHANNELS).time(name, own) if isinstance(clock, Lead) else own
            if name == "image" or not SOME[i]:
                sums[min(int(own * 10), 9)] += squared[i, part].mean()
                counts[min(int(own * 10), 9)] += 1
        torch.testing.assert_close(found[f"loss_by_t/{name}"].double(), torch.stack([sums, counts]), rtol=1e-5, atol=0)
    plain = losses(prediction, x, noise, t, SOME, **settings)
    assert set(found) - set(plain) == {"loss_by_t/image", "loss_by_t/z"}
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cosine_weight": -1.0}, "JointObjective.cosine_weight = -1.0: must be finite and at least 0"),
        ({"cosine_weight": math.inf}, "JointObjective.cosine_weight = inf: must be"),
        ({"cosine_over": "image"}, "JointObjective.cosine_over = 'image': must be 'state' or 'groups'"),
        (
            {"cosine_weight": 1.0, "process": DDPM()},
            "cosine_weight = 1.0 with DDPM, which has no velocity: set it to 0",
        ),
        (
            {"time_weight": "min_snr"},
            "JointObjective.time_weight = 'min_snr': must be a function of .* @min_snr",
        ),
        ({"time_weight": FlowMatching}, "JointObjective.time_weight = <class .*: must be a function"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        JointObjective(channels=CHANNELS, num_classes=4, **settings)
