"""Formatting of records and gin values."""

import math

import pytest

from redi.pages.wording import gin_number, gin_words, is_number, number, phrase


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("4", 4, "4"),
        ("-0.5", -0.5, "-0.5"),
        ("1e999", None, "1e999"),
        ("True", None, "True"),
        ("'raw'", None, "raw"),
        ("@reducers.PCA()", None, "PCA"),
        ("[@evaluator/encoders.DINOv2(), @fusion.Merged]", None, "[evaluator/DINOv2, Merged]"),
        ("__import__('os')", None, "__import__('os')"),
        (None, None, ""),
    ],
)
def test_gin_texts_are_read_as_numbers_and_words(text, number, words):
    assert gin_number(text) == number and gin_words(text) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1500, "1,500"), (12.3456, "12.35"), (2.0, "2"), (math.inf, "inf"), (True, "True"), ("a", "a"),
     (10**400, str(10**400))],
)  # fmt: skip
def test_numbers_are_written_for_people_and_anything_else_as_it_is(value, text):
    assert number(value) == text


def test_a_number_is_finite_and_not_a_truth_value():
    assert is_number(0) and is_number(-1.5)
    assert not any(map(is_number, (True, None, "1", math.nan, -math.inf, 10**400)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"name": "Euler", "num_evaluations": 50}, "Euler (num_evaluations 50)"),
        ({"name": "Euler"}, "Euler"),
        ({"a_b": 1.23456789, "c": []}, "a_b 1.23457, c none"),
        ({}, "none"),
        ([[1], [2]], "2 rows, see the full record"),
        ([{"name": "A"}, 2], "A, 2"),
    ],
)
def test_a_part_of_a_record_is_one_line(value, text):
    assert phrase(value) == text
