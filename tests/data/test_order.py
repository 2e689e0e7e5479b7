"""The order 'shards': blocks of consecutive rows, shuffled a window at a time."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from redi.data.loader import batch_positions
from redi.data.order import Blocks

# Shards of unequal sizes, as a data set's last one is; blocks of at most 8 rows, windows of about 40.
STARTS = np.cumsum([0, 50, 50, 13, 50, 1, 36])
BLOCKS = Blocks.cut(STARTS, rows_per_block=8, window=40)


def stream(blocks, batch_size, seed, start, stop):
    steps = range(start, stop)
    return np.concatenate([batch_positions(200, batch_size, seed, step, blocks) for step in steps])


def test_blocks_end_where_a_shard_ends():
    assert set(STARTS) <= set(BLOCKS.starts)
    assert 0 < np.diff(BLOCKS.starts).min() <= np.diff(BLOCKS.starts).max() <= 8


@pytest.mark.parametrize("window", [1, 7, 40, 199, 200, 10_000])
@pytest.mark.parametrize("batch_size", [7, 200, 450])
def test_every_row_comes_once_per_epoch(window, batch_size):
    blocks = Blocks.cut(STARTS, rows_per_block=8, window=window)
    order = stream(blocks, batch_size, seed=5, start=0, stop=-(-600 // batch_size))[:600]
    for epoch in order.reshape(3, 200):
        assert sorted(epoch) == list(range(200))


def test_the_order_is_a_function_of_seed_and_epoch():
    again = Blocks.cut(STARTS.copy(), rows_per_block=8, window=40)
    assert np.array_equal(BLOCKS.order(1, 2), again.order(1, 2))
    others = [BLOCKS.order(1, 3), BLOCKS.order(2, 2), BLOCKS.order(2, 1)]
    assert not any(np.array_equal(BLOCKS.order(1, 2), other) for other in others)


def test_any_step_continues_the_same_order():
    whole = stream(BLOCKS, 12, seed=3, start=0, stop=60)
    for start in (0, 1, 16, 17, 40):
        assert np.array_equal(stream(BLOCKS, 12, seed=3, start=start, stop=60), whole[12 * start :])


def test_the_batch_size_cuts_the_same_stream():
    assert np.array_equal(stream(BLOCKS, 10, 0, 0, 40), stream(BLOCKS, 40, 0, 0, 10))


def blocks_of(positions):
    return np.searchsorted(BLOCKS.starts, positions, side="right") - 1


def test_a_window_is_made_of_whole_blocks_of_its_own():
    place, seen = 0, []
    order = BLOCKS.order(7, 0)
    for blocks in BLOCKS.windows(7, 0):
        size = int((BLOCKS.starts[blocks + 1] - BLOCKS.starts[blocks]).sum())
        assert set(blocks_of(order[place : place + size])) == set(blocks)
        place, seen = place + size, [*seen, *blocks.tolist()]
    assert sorted(seen) == list(range(len(BLOCKS.starts) - 1))


def test_windows_have_about_the_same_size():
    sizes = [int((BLOCKS.starts[w + 1] - BLOCKS.starts[w]).sum()) for w in BLOCKS.windows(0, 0)]
    assert len(sizes) == 5
    assert max(sizes) <= 40 + 8
    assert min(sizes) >= 40 - 8


def test_the_windows_from_a_place_on_are_those_that_the_batches_walk_through():
    for place in (0, 39, 40, 199, 200, 777):
        windows, at = BLOCKS.windows_from(3, place), place
        for end, blocks in (next(windows) for _ in range(8)):
            rows = stream(BLOCKS, 1, seed=3, start=at, stop=end)
            assert len(rows) and set(blocks_of(rows)) <= set(blocks)
            at = end


# A data set sorted by class, as a folder of class folders is: 100 classes of 200 images.
SORTED = np.repeat(np.arange(100), 200)
CUT = Blocks.cut(np.array([0, 4096, 8192, 12288, 16384, 20000]), rows_per_block=64, window=4096)


def test_a_window_touches_few_blocks():
    """A global order reads all 313 blocks for a window of rows; this order 4,096 / 64, plus one at its boundary."""
    order = CUT.order(0, 0)
    touched = len(set(order[:4000] // 64))
    assert touched <= 66
    assert len(set(np.random.default_rng(0).permutation(20000)[:4000] // 64)) > 300


def test_rows_are_no_nearer_in_time_for_lying_together_than_the_windows_make_them():
    order = CUT.order(0, 0)
    # 20,000 independent pairs would have a standard deviation of 0.007; blocks of 64 that move together, of 0.057.
    assert abs(spearmanr(order, np.arange(len(order))).statistic) < 3 * 0.057
    within = order[:3900]  # inside of the first window
    assert abs(spearmanr(within, np.arange(len(within))).statistic) < 3 / np.sqrt(len(within))


def test_a_batch_of_a_class_sorted_data_set_holds_almost_as_many_classes_as_in_the_global_order():
    def classes(blocks):
        steps = range(0, 70, 7)
        return np.mean([len(set(SORTED[batch_positions(20000, 256, 1, step, blocks)])) for step in steps])

    assert classes(None) > 85  # of 100 classes, a random batch of 256 holds 92 on average
    # A window holds 64 blocks that lie in one class or two: at least 100 (1 - 0.99^64) = 47 classes expected.
    assert classes(CUT) > 42
