"""The order of batches, and the thread that reads ahead."""

import numpy as np
import pytest
import torch

from redi.data.loader import batch_mirror, batch_positions, batches
from redi.data.order import Blocks


class Numbers:
    """A data set of positions; reading `fails_at` raises an error like a damaged file."""

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
    """Also returns which entries are mirrored."""

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
    """Runs of earlier versions resume with the same order; printed by the loader before it had mirroring."""
    assert batch_positions(10, 12, 3, 1).tolist() == [9, 6, 0, 8, 5, 1, 7, 2, 3, 2, 5, 4]


class InBlocks(Numbers):
    """Also records the announced windows, and the number of reads before each announcement."""

    blocks = Blocks.cut(np.array([0, 30, 60, 97]), rows_per_block=4, window=24)

    def __init__(self):
        super().__init__(97)
        self.told = []

    def expect(self, windows):
        self.told.append((self.reads, [blocks.tolist() for blocks in windows]))


def test_shuffling_shards_reads_in_the_order_of_the_blocks():
    source = InBlocks()
    found = [b["position"] for b in batches(source, batch_size=10, seed=4, start=3, stop=25, shuffle="shards")]
    expected = [batch_positions(97, 10, 4, step, InBlocks.blocks) for step in range(3, 25)]
    assert np.array_equal(torch.cat(found).numpy(), np.concatenate(expected))


def test_a_source_without_blocks_is_cut_into_some():
    found = list(batches(Numbers(300), batch_size=300, seed=0, start=0, stop=1, shuffle="shards"))[0]["position"]
    assert sorted(found.tolist()) == list(range(300))


@pytest.mark.parametrize(("batch_size", "start"), [(10, 0), (10, 13), (60, 1), (250, 0)])
def test_the_source_knows_the_windows_of_a_batch_and_the_next_one_before_it_is_read(batch_size, start):
    source, steps = InBlocks(), range(start, start + 12)
    list(batches(source, batch_size=batch_size, seed=4, start=start, stop=steps.stop, shuffle="shards"))
    assert source.told[-1][1] == []  # nothing more is needed at the end
    for i, step in enumerate(steps):
        known = [windows for reads, windows in source.told if reads <= i and windows][-1]
        rows = batch_positions(97, batch_size, 4, step, source.blocks)
        touched = set((np.searchsorted(source.blocks.starts, rows, side="right") - 1).tolist())
        holding = [set(window) & touched for window in known]
        assert touched <= set().union(*holding)
        if step < steps.stop - 10:  # near the end there may be no next window
            assert not holding[-1] or touched <= set().union(*holding[:-1])


def test_no_window_after_the_last_step_is_announced():
    source = InBlocks()
    list(batches(source, batch_size=1, seed=4, start=0, stop=3, shuffle="shards"))
    assert [len(windows) for _, windows in source.told] == [1, 0, 0]


def test_leaving_early_says_that_nothing_more_is_needed():
    source = InBlocks()
    reader = batches(source, batch_size=1, seed=0, start=0, stop=90, shuffle="shards")
    next(reader)
    reader.close()
    assert source.told[-1][1] == []


@pytest.mark.parametrize("shuffle", ["local", "Shards", "", None])
def test_an_unknown_order_is_refused_before_anything_is_read(shuffle):
    with pytest.raises(ValueError, match=r"train.shuffle = .* must be 'global' or 'shards'"):
        batches(Numbers(4), batch_size=2, seed=0, start=0, stop=2, shuffle=shuffle)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches_are_the_same_numbers():
    plain = [b["position"] for b in batches(Numbers(10), batch_size=4, seed=1, start=0, stop=9)]
    pinned = [b["position"] for b in batches(Numbers(10), batch_size=4, seed=1, start=0, stop=9, pin=True)]
    assert all(tensor.is_pinned() for tensor in pinned)
    assert torch.equal(torch.cat(plain), torch.cat(pinned))
