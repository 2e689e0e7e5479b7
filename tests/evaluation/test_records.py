"""Records of metrics: every setting that affects a value is stored, and several seeds give mean and spread."""

import re

import numpy as np
import pytest

import redi
from redi.data.datasets.digits import Digits
from redi.evaluation.records import (
    REQUIRED,
    conditions,
    entry,
    format_metrics,
    network_record,
    reference_record,
    software,
)
from redi.models.encoders.domain import DomainEncoder

CONDITIONS = conditions(
    {"seeds": [0, 1], "sampler": {"name": "Euler"}, "files": {"a": {}}, "parts": [{}]}, {"sha256": "1"}, {"sha256": "2"}
)


def made(*values: float, **more) -> dict:
    found = [{"value": value, **more} for value in values]
    return entry("fid_clean", found, better="lower", num_samples=50, num_reference=40, conditions=CONDITIONS)


def test_an_entry_has_all_that_is_required_and_no_list_of_files():
    found = made(1.5)
    assert set(REQUIRED) <= set(found)
    assert found["samples"] == {"seeds": [0, 1], "sampler": {"name": "Euler"}}
    assert (found["metric"], found["better"], found["num_samples"], found["num_reference"]) == (
        "fid_clean",
        "lower",
        50,
        40,
    )
    assert "warnings" not in found


def test_one_seed_has_no_spread():
    assert made(1.5)["spread"] is None and made(1.5)["value"] == 1.5 and made(1.5)["per_seed"] == [1.5]


def test_several_seeds_give_mean_and_sample_standard_deviation():
    values = [3.0, 4.5, 3.3]
    found = made(*values)
    assert found["value"] == pytest.approx(np.mean(values), rel=1e-15)
    assert found["spread"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert found["per_seed"] == values


def test_errors_are_averaged_and_the_floor_is_not():
    found = [{"value": 1.0, "standard_error": 0.1, "floor": 2.0}, {"value": 2.0, "standard_error": 0.3, "floor": 2.0}]
    result = entry("fid_clean", found, better="lower", num_samples=5, num_reference=4, conditions=CONDITIONS)
    assert result["standard_error"] == pytest.approx(0.2) and result["floor"] == 2.0


def test_warnings_stay_with_the_number():
    found = entry(
        "x", [{"value": 1}], better="lower", num_samples=5, num_reference=4, conditions=CONDITIONS, warnings=["few"]
    )
    assert found["warnings"] == ["few"]


def test_a_network_is_known_by_a_hash_and_by_what_it_was_trained_on():
    digits = Digits(split="held_out", held_out_fraction=0.05)
    network = DomainEncoder(width=8, depth=1, num_steps=1, image_size=8)
    network.fit(digits)
    found = network_record(network, digits)
    assert found["sha256"] == network.provenance()["weights_sha256"] and re.fullmatch("[0-9a-f]{64}", found["sha256"])
    assert found["trained_on"] == reference_record(digits) and found["width"] == 8


def test_a_reference_is_known_by_its_fingerprint_and_its_split():
    digits = Digits(split="held_out", held_out_fraction=0.05)
    part = {"split": "held_out", "num_images": len(digits), "sha256": digits.fingerprint()}
    assert reference_record(digits) == digits.provenance() | part


def test_the_software_is_named():
    assert software()["redi"] == redi.__version__
    assert {"torch", "numpy", "scipy", "cleanfid", "timm", "pillow"} <= set(software())


def test_the_printed_lines_are_aligned_and_say_what_to_read_a_value_by():
    seeds = made(3.0, 4.0, floor=2.0, times_floor=1.75, standard_error=0.25)
    single = made(0.5) | {"metric": "recognised_as_label", "held_out_accuracy": 0.99, "warnings": ["few"]}
    first, second = format_metrics([seeds, single]).splitlines()
    assert first.startswith(
        "fid_clean            3.5 ± 0.71  2 seeds of 50, floor 2 (1.75 times the floor), standard error 0.25"
    )
    assert second == "recognised_as_label  0.5         held out accuracy 0.99  [1 warning]"
    assert format_metrics([]) == ""
