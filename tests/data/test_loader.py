"""The order of batches, and the thread that reads them ahead."""

import numpy as np
import pytest
import torch

from redi.data.loader import batch_mirror, batch_positions, batches


class Numbers:
    """A data set whose only entry is the position; `fails_at` raises as a broken file would."""

    def __init__(self, count, fails_at=None):
        self.count, self.fails_at, self.reads = count, fails_at, 0

    def __len__(self):
        return self.count

    def batch(self, positions):
        self.reads += 1
        if self.fails_at in positions:
            raise OSError("cannot read it")
        return {"position": torch.as_tensor(positions)}


def stream(num_images, batch_size, seed, start, stop):
    return np.concatenate([batch_positions(num_images, batch_size, seed, step) for step in range(start, stop)])


@pytest.mark.parametrize(("num_images", "batch_size"), [(12, 4), (10, 4), (7, 1), (5, 12), (3, 3), (1, 2)])
def test_every_image_comes_once_per_epoch(num_images, batch_size):
    order = stream(num_images, batch_size, seed=3, start=0, stop=4 * num_images)
    for epoch in order[: len(order) // num_images * num_images].reshape(-1, num_images):
        assert sorted(epoch) == list(range(num_images))


def test_epochs_have_orders_of_their_own():
    epochs = stream(50, 50, seed=0, start=0, stop=3)
    assert not np.array_equal(epochs[:50], epochs[50:100])
    assert not np.array_equal(epochs[50:100], epochs[100:])


def test_seeds_have_orders_of_their_own():
    assert not np.array_equal(batch_positions(50, 50, 0, 0), batch_positions(50, 50, 1, 0))


def test_the_next_seed_does_not_begin_with_the_next_epoch():
    assert not np.array_equal(batch_positions(50, 50, 0, 1), batch_positions(50, 50, 1, 0))


def test_the_batch_size_cuts_the_same_stream():
    assert np.array_equal(stream(10, 3, seed=0, start=0, stop=20), stream(10, 12, seed=0, start=0, stop=5))


@pytest.mark.parametrize("prefetch", [1, 4, 100])
def test_reading_ahead_gives_what_a_plain_loop_gives(prefetch):
    source = Numbers(10)
    found = batches(source, batch_size=4, seed=1, start=0, stop=9, prefetch=prefetch)
    expected = [source.batch(batch_positions(10, 4, 1, step)) for step in range(9)]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["position"], b["position"])


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_any_step_continues_the_same_order(start):
    found = [b["position"] for b in batches(Numbers(10), batch_size=4, seed=1, start=start, stop=9)]
    assert np.array_equal(torch.cat(found).numpy(), stream(10, 4, seed=1, start=start, stop=9))


def test_every_batch_is_read_once():
    source = Numbers(10)
    list(batches(source, batch_size=4, seed=0, start=2, stop=9))
    assert source.reads == 7


def test_no_steps_are_no_batches():
    assert list(batches(Numbers(10), batch_size=4, seed=0, start=5, stop=5)) == []


def test_an_error_while_reading_reaches_the_loop():
    with pytest.raises(OSError, match="cannot read it"):
        list(batches(Numbers(10, fails_at=3), batch_size=5, seed=0, start=0, stop=2))


def test_leaving_early_reads_no_further_than_it_was_ahead():
    source = Numbers(1000)
    reader = batches(source, batch_size=1, seed=0, start=0, stop=1000, prefetch=4)
    next(reader)
    reader.close()
    assert source.reads <= 5


class Mirrored(Numbers):
    """Also says which of its entries were asked for mirrored."""

    mirrored = True

    def batch(self, positions, mirror):
        return super().batch(positions) | {"mirror": torch.as_tensor(mirror)}


def coins(num_images, batch_size, seed, start, stop):
    return np.concatenate([batch_mirror(num_images, batch_size, seed, step) for step in range(start, stop)])


def test_half_of_the_samples_are_mirrored():
    flags = coins(1000, 100, seed=0, start=0, stop=1000)  # 100,000 coins: a standard deviation of 0.16 %
    assert abs(flags.mean() - 0.5) < 0.01


def test_an_image_is_mirrored_in_some_epochs_and_not_in_others():
    order, flags = stream(20, 20, 0, 0, 12).reshape(12, 20), coins(20, 20, 0, 0, 12).reshape(12, 20)
    times = [flags[order == image].sum() for image in range(20)]
    assert all(0 < count < 12 for count in times)


def test_the_batch_size_cuts_the_same_coins():
    assert np.array_equal(coins(10, 3, seed=0, start=0, stop=20), coins(10, 12, seed=0, start=0, stop=5))


def test_seeds_have_coins_of_their_own():
    assert not np.array_equal(batch_mirror(50, 50, 0, 0), batch_mirror(50, 50, 1, 0))


@pytest.mark.parametrize("start", [0, 3, 8])
def test_a_resumed_run_mirrors_the_same_samples(start):
    found = [b["mirror"] for b in batches(Mirrored(10), batch_size=4, seed=1, start=start, stop=9)]
    assert np.array_equal(torch.cat(found).numpy(), coins(10, 4, seed=1, start=start, stop=9))


def test_mirroring_leaves_the_order_as_it_is():
    plain = [b["position"] for b in batches(Numbers(10), batch_size=4, seed=1, start=0, stop=9)]
    mirrored = [b["position"] for b in batches(Mirrored(10), batch_size=4, seed=1, start=0, stop=9)]
    assert torch.equal(torch.cat(plain), torch.cat(mirrored))


def test_the_order_is_that_of_earlier_versions():
    """So that a run begun with one goes on with this one; printed by the loader that knew no mirrors."""
    assert batch_positions(10, 12, 3, 1).tolist() == [9, 6, 0, 8, 5, 1, 7, 2, 3, 2, 5, 4]
