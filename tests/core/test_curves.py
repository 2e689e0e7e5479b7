import json

import pytest
import torch

from redi.core.channels import Channels
from redi.core.clocks import Learned
from redi.core.curves import Curve, LearnedCurve, read_curves, record_of
from redi.core.objective import JointObjective
from redi.core.processes import DDPM

CHANNELS = Channels(image=4, dinov2=8)
GRID = torch.linspace(0, 1, 401, dtype=torch.float64)


def curve(seed: int, concave: bool = False, spread: float = 3.0) -> LearnedCurve:
    """A curve with random parameters."""
    generator = torch.Generator().manual_seed(seed)
    curve = LearnedCurve(concave=concave, num_knots=2 + seed % 20, speed=1.0 + seed % 3)
    curve.raw.data = spread * torch.randn(curve.raw.shape, generator=generator)
    return curve


@pytest.mark.parametrize("concave", [False, True], ids=["convex", "concave"])
@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_a_curve_is_monotone_and_convex_for_random_parameters_and_its_ends_are_exact(concave, spread):
    for seed in range(40):
        one = curve(seed, concave, spread)
        t = one.time(GRID).detach()
        assert t[0] == 0 and t[-1] == 1 and one.time(0.0) == 0 and one.time(1.0) == 1
        assert one.time(torch.ones(2)).tolist() == [1, 1]  # also in float32
        assert (t.diff() >= -1e-12).all()
        bend = t.diff().diff() * (-1 if concave else 1)
        assert (bend >= -1e-12).all()


@pytest.mark.parametrize("concave", [False, True], ids=["convex", "concave"])
def test_the_slope_is_the_derivative_and_has_no_jump(concave):
    one, h = curve(7, concave), 1e-6
    for s in GRID[1:-1:7].tolist():
        assert one.slope(s) == pytest.approx((one.time(s + h) - one.time(s - h)) / (2 * h), abs=1e-4)
        assert one.slope(s + h) == pytest.approx(one.slope(s - h), abs=1e-3)


def test_the_slopes_at_the_knots_are_cumulative_softplus():
    one = curve(5)
    steps = [torch.log1p(torch.exp(one.speed * theta)).item() for theta in one.raw.double()]
    slopes = torch.tensor(steps).cumsum(0).double()
    mean = torch.trapezoid(slopes, dx=1 / (len(slopes) - 1))
    for k, slope in enumerate(slopes):
        assert one.slope(k / (len(slopes) - 1)) == pytest.approx(float(slope / mean), rel=1e-5)


def test_floats_tensors_and_the_gradient_agree():
    one, s = curve(3), torch.tensor([0.0, 0.13, 0.5, 0.97, 1.0], dtype=torch.float64)
    for method in (one.time, one.slope):
        assert method(s).tolist() == pytest.approx([method(value) for value in s.tolist()], abs=1e-12)
    one.double()
    for method in (one.time, one.slope):
        (gradient,) = torch.autograd.grad(method(s)[1:4].sum(), one.raw)
        for k in range(one.num_knots):
            with torch.no_grad():
                one.raw[k] += 1e-6
                above = float(method(s)[1:4].sum())
                one.raw[k] -= 2e-6
                below = float(method(s)[1:4].sum())
                one.raw[k] += 1e-6
            assert float(gradient[k]) == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_a_curve_that_begins_as_the_identity_nearly_is_it_and_can_move():
    one = LearnedCurve()
    assert float((one.time(GRID).detach() - GRID).abs().max()) < 0.02
    (gradient,) = torch.autograd.grad(one.time(0.5 * torch.ones(1)).sum(), one.raw)
    assert (gradient != 0).all()


# ---- the file


def test_a_found_clock_is_that_of_the_probe(tmp_path):
    probe = Learned(shapes={"image": "convex", "dinov2": "concave"}, start=2.0).for_channels(CHANNELS)
    for name, part in probe.module.items():
        part.raw.data += 0.1 * torch.arange(16) * (1 if name == "image" else -1)
    (name, content), *others = probe.artefacts().items()
    assert name == "clock.json" and not others
    (tmp_path / name).write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / name, str(tmp_path)):
        found = Learned(path=path).for_channels(CHANNELS)
        assert found.module is None
        for group in CHANNELS:
            for s in GRID.tolist():
                assert found.time(group, s) == pytest.approx(probe.time(group, s), abs=1e-12)
    ahead = [found.time("dinov2", s) - found.time("image", s) for s in GRID[1:-1].tolist()]
    assert min(ahead) > 0
    assert content["groups"].keys() == set(CHANNELS) == found.provenance()["groups"].keys()
    assert "path" not in found.provenance()  # the same curves are the same clock, wherever their file is


def test_a_group_without_a_curve_is_the_identity_in_the_file():
    assert Learned().for_channels(CHANNELS).artefacts()["clock.json"]["groups"]["dinov2"] == [1.0, 1.0]


def test_a_clock_written_by_hand_need_not_be_convex(tmp_path):
    groups = {"image": [0, 3, 0], "dinov2": [2, 2]}
    (tmp_path / "mine.json").write_text(json.dumps({"format": "redi clock 1", "groups": groups}))
    curves = read_curves(tmp_path / "mine.json")
    assert curves["image"].time(0.25) == pytest.approx(0.125) and curves["image"].slope(0.5) == 2
    assert curves["dinov2"].time(0.25) == 0.25
    assert record_of({"image": Curve([0, 3, 0])})["groups"]["image"] == [0, 2, 0]


def refusal(path, content: object = None, channels=CHANNELS) -> str:
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as error:
        JointObjective(channels=channels, num_classes=1, clock=Learned(path=path))
    return str(error.value)


def test_a_path_without_a_clock_is_refused_by_name(tmp_path):
    path = tmp_path / "clock.json"
    for place in (path, tmp_path):
        text = refusal(place)
        assert text.startswith(f"clocks.Learned.path = '{place}': there is no {path}; ") and "probe" in text
    assert "is not readable JSON" in refusal(path, '{"format": "redi')
    sound = {"image": [1, 1], "dinov2": [1, 1]}
    bad = [[], {"format": "redi clock 2", "groups": sound}, {"format": "redi clock 1"}]
    slopes = ([1], [0, 0], [1, -1], ["1", 1], [1, float("nan")], [1, True], 1)
    bad += [{"format": "redi clock 1", "groups": sound | {"image": one}} for one in slopes]
    for content in bad:
        assert "must have the format 'redi clock 1'" in refusal(path, content), content


def test_a_clock_of_other_groups_is_refused_by_name(tmp_path):
    content = {"format": "redi clock 1", "groups": {"image": [1, 1], "clip": [1, 2]}}
    text = refusal(tmp_path / "clock.json", content)
    assert "is a clock of image, clip: must have the groups of this run (image, dinov2)" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shapes": {"depth": "convex"}}, r"Learned\.shapes names \['depth'\]: must be among image, dinov2"),
        ({"shapes": {"image": "round"}}, r"Learned\.shapes\['image'\] = 'round': must be 'convex', 'concave' or 'iden"),
        ({"shapes": {"image": "identity"}}, r"Learned\.shapes = .*: at least one group must be 'convex' or 'concave'"),
        ({"num_knots": 1}, r"Learned\.num_knots = 1 must be an integer of at least 2"),
        ({"every": 1}, r"Learned\.every = 1 must be an integer of at least 2"),
        ({"start": 0.0}, r"Learned\.start = 0\.0: must be finite and greater than 0"),
        ({"speed": float("nan")}, r"Learned\.speed = nan: must be finite and greater than 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        JointObjective(channels=CHANNELS, num_classes=1, clock=Learned(**settings))


def test_a_path_beside_settings_of_a_probe_is_refused(tmp_path):
    (tmp_path / "clock.json").write_text(json.dumps({"format": "redi clock 1", "groups": {"image": [1, 1]}}))
    with pytest.raises(ValueError, match=r"path = .*: must be the only argument: its other"):
        Learned(path=tmp_path, speed=3.0)


def test_a_discrete_process_and_a_model_without_a_representation_are_refused():
    with pytest.raises(ValueError, match=r"clock = Learned with JointObjective\.process = DDPM, which has"):
        JointObjective(channels=CHANNELS, num_classes=1, process=DDPM(), clock=Learned())
    with pytest.raises(ValueError, match=r"clocks\.Learned needs a representation"):
        JointObjective(channels=Channels(image=4), num_classes=1, clock=Learned())
