import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from redi.core.channels import Channels
from redi.core.clocks import Clock, Independent, Lead, Learned, Shared, Shift, clocks
from redi.core.objective import JointObjective
from redi.core.processes import DDPM, VP, FlowMatching, Shifted
from redi.core.processes.clocked import Clocked
from redi.models.transformer import DiffusionTransformer

CHANNELS = Channels(image=4, dinov2=8, clip=2)
CLOCKS = {
    name: clock.for_channels(CHANNELS)
    for name, clock in {
        "Shared": Shared(), "Independent": Independent(), "Lead": Lead(), "Lead 0": Lead(0.0), "Lead 1": Lead(1.0),
        "Lead -0.3": Lead(-0.3), "Lead one group": Lead(0.3, groups=["clip"]),
        "Lead per group": Lead({"dinov2": 0.4, "clip": -0.15}), "Shift": Shift(shift={"dinov2": 0.5, "image": 3.0}),
        "Learned": Learned(start=5.0), "Learned both": Learned(shapes={"image": "convex", "clip": "concave"}, start=2),
    }.items()
}  # fmt: skip
every_clock = pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
GRID = [k / 997 for k in range(998)]


def test_every_registered_clock_is_tested_here():
    assert {type(clock) for clock in CLOCKS.values()} == set(clocks.values())


@every_clock
@pytest.mark.parametrize("group", CHANNELS)
def test_a_time_goes_from_0_to_1_and_never_back(clock, group):
    times = [clock.time(group, s) for s in GRID]
    assert times[0] == 0 and times[-1] == 1
    assert all(t <= ahead for t, ahead in pairwise(times))


@every_clock
@pytest.mark.parametrize("group", CHANNELS)
def test_the_slope_is_the_derivative_of_the_time(clock, group):
    h = 1e-6
    for s in GRID[1:-1]:
        if all(abs(s - kink) > h for kink in clock.kinks()):
            derivative = (clock.time(group, s + h) - clock.time(group, s - h)) / (2 * h)
            assert clock.slope(group, s) == pytest.approx(derivative, abs=1e-4)


@every_clock
def test_the_kinks_are_where_a_slope_jumps(clock):
    def jump(s, h):
        return max(abs(clock.slope(group, s + h) - clock.slope(group, s - h)) for group in CHANNELS)

    assert all(jump(kink, 1e-9) > 0.5 for kink in clock.kinks())
    jumps = [s for s, ahead in pairwise(GRID) if jump((s + ahead) / 2, (ahead - s) / 2) > 0.1]
    assert len(jumps) == len(clock.kinks())
    assert list(clock.kinks()) == sorted(clock.kinks())


@every_clock
@pytest.mark.parametrize("group", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_give_what_floats_give_in_their_dtype(clock, group, dtype):
    s = torch.tensor([0.1, 0.35, 0.55, 0.9], dtype=dtype)[:, None]
    for method in (clock.time, clock.slope):
        expected = torch.tensor([method(group, float(value)) for value in s], dtype=dtype)[:, None]
        result = torch.as_tensor(method(group, s), dtype=dtype)
        torch.testing.assert_close(result.expand_as(s), expected)
        assert not isinstance(method(group, s), torch.Tensor) or method(group, s).dtype == dtype


@every_clock
@pytest.mark.parametrize("group", CHANNELS)
def test_the_shared_time_is_the_inverse_of_the_time(clock, group):
    for t in (0.0, 0.01, 0.5, 0.99, 1.0):
        assert clock.time(group, clock.shared_time(group, t)) == pytest.approx(t, abs=1e-12)
    assert clock.shared_time(group, 0.0) == 0


def test_a_lead_of_0_3_is_the_clock_of_sfd():
    """SFD, arXiv 2512.04926: with t the shared time, texture max(1.3 t - 0.3, 0), semantics min(1.3 t, 1)."""
    clock = Lead(0.3).for_channels(Channels(image=32, semantic=16))
    for s in GRID:
        assert clock.time("image", s) == pytest.approx(max(1.3 * s - 0.3, 0), abs=1e-12)
        assert clock.time("semantic", s) == pytest.approx(min(1.3 * s, 1), abs=1e-12)
    assert clock.kinks() == pytest.approx((0.3 / 1.3, 1 / 1.3))
    start, end = clock.kinks()  # both ends count as active
    assert clock.slope("image", start) == pytest.approx(1.3) == clock.slope("semantic", end)
    assert clock.slope("image", start - 1e-9) == clock.slope("semantic", end + 1e-9) == 0
    assert clock.time("image", start) == 0 and clock.time("semantic", end) == 1


def test_with_a_negative_lead_the_image_runs_ahead():
    channels = Channels(image=32, semantic=16)
    late, early = Lead(-0.3).for_channels(channels), Lead(0.3).for_channels(channels)
    for s in GRID:
        assert late.time("image", s) == pytest.approx(early.time("semantic", s), abs=1e-12)
        assert late.time("semantic", s) == pytest.approx(early.time("image", s), abs=1e-12)


def test_every_group_may_have_an_offset_of_its_own():
    clock = CLOCKS["Lead per group"]
    s = 0.5  # all three groups move: they differ by their offsets
    assert clock.time("dinov2", s) - clock.time("image", s) == pytest.approx(0.4)
    assert clock.time("clip", s) - clock.time("image", s) == pytest.approx(-0.15)
    assert len(clock.kinks()) == 4
    alone = CLOCKS["Lead one group"]
    assert alone.time("dinov2", s) == alone.time("image", s) == pytest.approx(alone.time("clip", s) - 0.3)


def test_groups_that_start_and_end_together_share_their_kinks():
    clock = Lead({"dinov2": 0.7, "clip": -0.3}).for_channels(CHANNELS)  # dinov2 ends where clip starts
    assert len(clock.kinks()) == 3


def test_a_lead_of_1_denoises_one_group_after_the_other():
    clock = Lead(1.0).for_channels(Channels(image=4, dinov2=8))
    assert clock.kinks() == (0.5,)
    assert clock.time("dinov2", 0.5) == 1 and clock.time("image", 0.5) == 0


@pytest.mark.parametrize("offset", [2, -1.01, math.nan, "0.3", True, {"dinov2": 1.5}, [0.3]])
def test_an_offset_outside_the_range_is_refused(offset):
    with pytest.raises(ValueError, match=r"Lead\.offset = .*: every offset must be a number in \[-1, 1\]"):
        Lead(offset)


@pytest.mark.parametrize(
    ("clock", "message"),
    [
        (
            Lead(groups=["depth"]),
            r"Lead\.groups = \('depth',\): must name representations of the codec \(dinov2, clip\)",
        ),
        (Lead(groups="image"), r"Lead\.groups = \('image',\): must name representations"),
        (Lead(groups=()), r"Lead\.groups = \(\): must name representations"),
        (Lead({"depth": 0.3}), r"Lead\.offset = \{'depth': 0\.3\}: must name representations"),
        (Shift(shift={"depth": 0.5}), r"Shift\.shift names \['depth'\]: must be among image, dinov2, clip"),
    ],
)
def test_a_group_that_does_not_exist_is_refused(clock, message):
    with pytest.raises(ValueError, match=message):
        JointObjective(channels=CHANNELS, num_classes=1, clock=clock)


def test_groups_beside_an_offset_per_group_are_refused():
    with pytest.raises(ValueError, match=r"Lead\.groups = .*: must be None, because Lead\.offset names its groups"):
        Lead({"dinov2": 0.3}, groups=["dinov2"])


@pytest.mark.parametrize("clock", [Lead(), Independent()])
def test_a_clock_without_a_representation_is_refused(clock):
    with pytest.raises(ValueError, match=r"needs a representation, .*: bind clocks\.Shared"):
        JointObjective(channels=Channels(image=4), num_classes=1, clock=clock)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_a_shift_that_is_not_positive_is_refused(value):
    with pytest.raises(ValueError, match=r"Shift\.shift = \{'dinov2': \S+\}: every shift must be finite and greater"):
        Shift(shift={"dinov2": value})


def test_a_discrete_process_is_refused():
    message = r"JointObjective\.clock = Lead with JointObjective\.process = DDPM, which has discrete timesteps: must be"
    with pytest.raises(ValueError, match=message):
        JointObjective(channels=CHANNELS, num_classes=1, process=DDPM(), clock=Lead())


def test_two_clocks_are_refused():
    with pytest.raises(ValueError, match=r"process = Shifted, which has a clock of its own: bind its path"):
        JointObjective(channels=CHANNELS, num_classes=1, process=Shifted(shift={"clip": 0.5}), clock=Lead())


@pytest.mark.parametrize("value", [FlowMatching(), Lead, 0.3])
def test_what_is_not_a_clock_is_refused(value):
    with pytest.raises(ValueError, match=r"JointObjective\.clock must be one of clocks \(Independent, Lead, Learned"):
        JointObjective(channels=CHANNELS, num_classes=1, clock=value)


def test_a_shared_clock_leaves_the_path_as_it_is():
    path = FlowMatching()
    assert JointObjective(channels=CHANNELS, num_classes=1, process=path, clock=Shared()).process is path


@pytest.mark.parametrize("path", [FlowMatching(), VP(), FlowMatching(prediction="score")])
@pytest.mark.parametrize("name", ["Lead", "Lead per group", "Shift"])
def test_every_group_is_noised_at_its_own_time(path, name):
    process, generator = Clocked(path, CLOCKS[name]).for_channels(CHANNELS), torch.Generator().manual_seed(0)
    x, noise = (torch.randn(6, 14, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    first, last = path.t_range()
    s = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    parts = CHANNELS.split(process.mix(x, noise, s))
    for i, value in enumerate(s.tolist()):
        for group, t in process.group_times(CHANNELS, value).items():
            own = min(max(CLOCKS[name].time(group, value), first), last)
            assert t == pytest.approx(own, abs=1e-12)
            alone = path.mix(*(CHANNELS.split(part)[group][i : i + 1] for part in (x, noise)), own)
            torch.testing.assert_close(parts[group][i : i + 1], alone)


def test_the_network_receives_the_own_times_and_not_the_shared_one():
    process = JointObjective(channels=CHANNELS, num_classes=1, clock=Lead(0.3, groups=["dinov2"])).process
    times = process.model_time(torch.tensor([0.1, 0.5, 0.9]))
    expected = torch.tensor([[0.0, 0.13, 0.0], [0.35, 0.65, 0.35], [0.87, 1.0, 0.87]])
    torch.testing.assert_close(times, expected)


def test_a_clock_of_few_lines_can_be_composed_with_a_path():
    class Late(Clock):
        def time(self, group, s):
            return s if group == "image" else s**2

        def slope(self, group, s):
            return 1.0 if group == "image" else 2 * s

    process = Clocked(FlowMatching(), Late()).for_channels(CHANNELS)
    assert process.group_times(CHANNELS, 0.5) == {"image": 0.5, "dinov2": 0.25, "clip": 0.25}
    assert process.slope(0.75).flatten().tolist() == [1.0] * 4 + [1.5] * 10
    assert process.slope(torch.tensor([0.75]))[0, :, 0, 0].tolist() == [1.0] * 4 + [1.5] * 10


def losses(**settings):
    objective = JointObjective(channels=CHANNELS, num_classes=10, **settings)
    torch.manual_seed(0)
    x, y = torch.randn(8, 14, 4, 4), torch.zeros(8, dtype=torch.long)
    return objective(lambda x_t, t, y: 0.3 * x_t, x, y)


def test_the_former_name_of_the_independent_clock_draws_the_same():
    assert losses(independent_timesteps=True) == losses(clock=Independent()) != losses()


def test_the_former_name_of_the_shift_trains_the_same():
    shift = {"dinov2": 0.5, "image": 2.0}
    assert losses(process=Shifted(shift=shift)) == losses(clock=Shift(shift=shift)) != losses()


def test_the_former_name_beside_another_clock_is_refused():
    with pytest.raises(
        ValueError, match=r"independent_timesteps = True with JointObjective\.clock = Lead: bind the clock"
    ):
        JointObjective(channels=CHANNELS, num_classes=1, independent_timesteps=True, clock=Lead())


class Data:
    image_size, num_classes = 8, 10


@pytest.mark.parametrize(
    ("clock", "representations", "expected"),
    [(Shared(), {"z": 2}, None), (Lead(), {"z": 2}, True), (Shift(shift={"image": 2.0}), {"z": 2}, True),
     (Independent(), {"z": 2}, True), (Shift(shift={"image": 2.0}), {}, None)],
)  # fmt: skip
def test_the_model_embeds_a_time_per_group_where_the_clock_needs_it(clock, representations, expected):
    channels = Channels(image=4, **representations)
    objective = JointObjective(channels=channels, num_classes=10, clock=clock)
    codec = SimpleNamespace(channels=channels, grid=lambda size: (size, size), alignments={})
    arguments = objective.model_arguments(codec, Data())
    assert arguments.get("group_timesteps") is expected
    model = DiffusionTransformer(**arguments, width=16, depth=1, num_heads=2)
    objective.check_model(model)
    assert model.has_group_times is bool(expected)
    if expected:
        with pytest.raises(
            ValueError, match=rf"clock = {type(clock).__name__} needs a model with a t per channel group"
        ):
            objective.check_model(DiffusionTransformer(**arguments | {"group_timesteps": False}, width=16, num_heads=2))
