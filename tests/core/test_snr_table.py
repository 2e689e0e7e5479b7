import math

import pytest
import torch

from redi.core.channels import Channels, Vector
from redi.core.clocks import Lead
from redi.core.processes.clocked import Clocked
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.shifted import Shifted
from redi.core.snr_table import TIMES, snr_curves, snr_table, spreads

CHANNELS = Channels(image=4, dinov2=8)


def row(table: str, name: str) -> list[float]:
    line = next(line for line in table.splitlines() if line.startswith(f"{name} ") and " has " not in line)
    return [float(value) for value in line.split()[1:]]


def table(process=None, spread=None, weights=None):
    return snr_table(
        CHANNELS, process or FlowMatching(), weights or {"dinov2": 1.0}, spread or {"image": 0.9, "dinov2": 4.4}
    )


def test_a_spread_is_the_root_mean_square_of_the_channels_deviations():
    x = torch.randn(500, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, :4] = 0.9 * x[:, :4] + 7  # the mean does not matter
    x[:, 4:8] *= 3
    found = spreads(CHANNELS, x)
    assert found["image"] == pytest.approx(0.9, rel=0.02)
    assert found["dinov2"] == pytest.approx(math.sqrt((9 + 1) / 2), rel=0.02)


def test_the_ratio_is_that_of_the_path():
    expected = [20 * math.log10(t * 4.4 / (1 - t)) for t in TIMES]
    assert row(table(), "dinov2")[2:] == pytest.approx(expected, abs=0.06)


def test_it_shows_spread_and_lambda():
    assert row(table(weights={"dinov2": 0.25}), "dinov2")[:2] == [4.4, 0.25]
    assert row(table(), "image")[:2] == [0.9, 1]


def test_a_representation_of_another_spread_is_pointed_out():
    assert "dinov2 has 4.9 times the standard deviation of the image and is denoised earlier" in table()
    assert "later" in table(spread={"image": 1.0, "dinov2": 0.1})
    assert " has " not in table(spread={"image": 0.9, "dinov2": 1.0})


def test_a_shift_moves_one_group_alone():
    equal = {"image": 1.0, "dinov2": 1.0}
    shifted = table(Shifted(shift={"dinov2": 0.5}), equal)
    assert row(shifted, "image") == row(table(spread=equal), "image")
    lifted = [value + 20 * math.log10(2) for value in row(table(spread=equal), "dinov2")[2:]]
    assert row(shifted, "dinov2")[2:] == pytest.approx(lifted, abs=0.11)


def test_with_a_clock_every_group_has_the_ratio_at_its_own_time():
    lines = table(Clocked(FlowMatching(), Lead(0.3)), {"image": 1.0, "dinov2": 1.0}).splitlines()
    assert lines[1].split() == [f"s={s}" for s in TIMES]
    for ratios, own, time in ((lines[2], lines[3], lambda s: 1.3 * s - 0.3), (lines[4], lines[5], lambda s: 1.3 * s)):
        times = [min(max(time(s), 0), 1) for s in TIMES]
        assert own.split() == [f"t={round(t, 3):g}" for t in times]
        for shown, t in zip(ratios.split()[3:], times, strict=True):
            expected = {0: "noise", 1: "clean"}.get(t) or f"{20 * math.log10(t / (1 - t)):.1f}"
            assert shown == expected


def test_the_curves_are_those_of_the_table_and_end_at_the_kinks():
    process = Clocked(FlowMatching(), Lead(0.3))
    curves = snr_curves(CHANNELS, process, {"image": 1.0, "dinov2": 2.0})
    image, dinov2 = ({s: dB for s, dB in zip(curves["s"], curves["snr"][name], strict=True)} for name in CHANNELS)
    assert {0.2308, 0.7692} <= image.keys() and list(image) == sorted(image)
    assert [s for s, dB in image.items() if dB is None] == [s for s in image if s <= 0.2308]
    assert [s for s, dB in dinov2.items() if dB is None] == [s for s in dinov2 if s >= 0.7692]
    assert image[0.5] == pytest.approx(20 * math.log10(0.35 / 0.65), abs=0.01)
    assert dinov2[0.5] == pytest.approx(20 * math.log10(2 * 0.65 / 0.35), abs=0.01)


def test_a_discrete_process_has_a_table_too():
    assert row(table(DDPM()), "image")[2] == pytest.approx(
        10 * math.log10(0.81 * cumulated(900) / (1 - cumulated(900))), abs=0.06
    )


def cumulated(steps: int) -> float:
    return math.prod(1 - (1e-4 + (0.02 - 1e-4) * k / 999) for k in range(steps))


def test_the_spread_of_a_vector_is_that_of_its_numbers_without_padding():
    channels = Channels(image=1, token=Vector(5, channels=2))
    numbers = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6.0) + 7
    x = channels.join({"image": torch.randn(200, 1, 2, 2), "token": channels.stored("token", numbers, (2, 2))})
    expected = numbers.double().numpy().var(axis=0, ddof=1).mean() ** 0.5
    assert spreads(channels, x)["token"] == pytest.approx(expected)
