"""Probes: predictions of scikit-learn, and chance level without information in the features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from redi.evaluation.representation.probes import (
    Labelled,
    accuracy,
    chance,
    knn,
    linear_probe,
    num_neighbours,
    probe_both_ways,
)


def clouds(
    num: int, *, seed: int, apart: float = 1.5, offset: float = 0.0, classes: int = 4, width: int = 6
) -> Labelled:
    """Gaussian clouds around fixed centres."""
    centres = apart * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % classes
    return Labelled(centres[labels] + torch.randn(num, width, generator=generator) + offset, labels)


@pytest.fixture(scope="module")
def train() -> Labelled:
    return clouds(200, seed=0, offset=30.0)


@pytest.fixture(scope="module")
def test() -> Labelled:
    return clouds(100, seed=1, offset=30.0)


def test_the_linear_probe_is_scikit_learn_s_on_standardised_features(train, test):
    x, seen = train.features.double().numpy(), test.features.double().numpy()
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    direct = LogisticRegression(max_iter=1000).fit((x - mean) / deviation, train.labels.numpy())
    expected = direct.predict((seen - mean) / deviation)
    assert np.array_equal(linear_probe(train).predict(seen), expected)
    assert accuracy(linear_probe(train), test) == np.mean(expected == test.labels.numpy())
    assert 0.6 < accuracy(linear_probe(train), test) < 1  # neither trivial nor hopeless


def test_neighbours_are_scikit_learn_s_by_the_cosine_of_centred_features(train, test):
    mean = train.features.double().mean(dim=0)
    direct = KNeighborsClassifier(7, metric="cosine")
    direct.fit((train.features.double() - mean).numpy(), train.labels.numpy())
    expected = direct.score((test.features.double() - mean).numpy(), test.labels.numpy())
    assert accuracy(knn(train, k=7), test) == expected


def test_where_features_say_nothing_of_labels_answers_are_chance():
    train, large = clouds(400, seed=2, apart=0), clouds(2000, seed=4, apart=0)
    for probe in (linear_probe(train), knn(train)):
        assert accuracy(probe, large) == pytest.approx(0.25, abs=0.03)  # 3 standard errors of 2,000 answers


def test_both_ways_say_what_was_learned_from_what(train, test):
    generated = clouds(80, seed=5, offset=30.0)
    generated.labels = (generated.labels + 1) % 4  # a generator that gives every class the next one's features
    found = probe_both_ways(train, generated, {"held_out": test, "generated": generated})
    for name, fit in (("linear_probe", linear_probe), ("knn", knn)):
        assert found[name]["held_out"] == accuracy(fit(train), test) > 0.6
        assert found[name]["generated"] == accuracy(fit(train), generated) < 0.25
        assert found[name]["from_generated"] == accuracy(fit(generated), test) < 0.25


@pytest.mark.parametrize(("per_class", "expected"), [(1, 1), (7, 7), (20, 20), (500, 20)])
def test_there_are_no_more_neighbours_than_images_of_a_class(per_class, expected):
    assert num_neighbours(torch.arange(3).repeat(per_class)) == expected


def test_chance_is_the_most_frequent_label():
    assert chance(torch.tensor([0, 1, 1, 2])) == 0.5


def test_a_probe_that_had_too_few_iterations_says_so(train, caplog):
    linear_probe(train, max_iterations=1)
    assert "not converged after 1 iterations" in caplog.text


def test_one_class_is_nothing_to_learn():
    alone = Labelled(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    for fit in (linear_probe, knn):
        with pytest.raises(ValueError, match="two classes"):
            fit(alone)


@pytest.mark.parametrize(
    ("features", "message"),
    [(torch.randn(4, 3), "features \\(4, 3\\) and labels"), (torch.full((5, 3), torch.nan), "NaN or infinite")],
)
def test_features_that_cannot_be_used_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        Labelled(features, torch.arange(5))
