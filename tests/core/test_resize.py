"""Resizing feature maps and its inverse."""

import pytest
import torch

from redi.core.resize import resized, restored


@pytest.mark.parametrize(("small", "large"), [(4, 8), (14, 32), (16, 32), (15, 16), (16, 17), (1, 8), (3, 3)])
def test_what_was_enlarged_comes_back(small, large):
    features = torch.randn(2, 3, small, small, generator=torch.Generator().manual_seed(0))
    back = restored(resized(features, (large, large)), (small, small))
    torch.testing.assert_close(back, features, rtol=0, atol=2e-5)


def test_rows_and_columns_are_told_apart():
    features = torch.randn(1, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(restored(resized(features, (6, 15)), (3, 5)), features, rtol=0, atol=2e-5)


def test_what_is_on_the_grid_already_is_not_touched():
    features = torch.randn(2, 3, 4, 4)
    assert restored(features, (4, 4)) is features


def test_of_a_map_that_is_no_enlargement_it_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(1, 1, 8, 8, generator=generator)
    nearest = restored(given, (4, 4))
    error = (resized(nearest, (8, 8)) - given).norm()
    for _ in range(20):
        other = nearest + 0.01 * torch.randn(nearest.shape, generator=generator)
        assert (resized(other, (8, 8)) - given).norm() > error


def test_what_was_shrunk_comes_back_as_the_least_map_that_shrinks_to_the_same():
    features = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    small = resized(features, (8, 8))
    back = restored(small, (16, 16))
    torch.testing.assert_close(resized(back, (8, 8)), small, rtol=0, atol=2e-5)
    assert back.norm() < features.norm()
