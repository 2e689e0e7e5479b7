"""Batches in a seeded order that any step can be resumed from."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from torch import Tensor

from redi.data.order import Blocks
from redi.runtime.randomness import Rows, mix_seeds

MIRROR = 1  # keeps the coins apart from the permutations of the same seed and epoch
SHUFFLES = ("global", "shards")


def batch_positions(num_images: int, batch_size: int, seed: int, step: int, blocks: Blocks | None = None) -> np.ndarray:
    """The data-set positions of one step's batch: (batch_size,) int64.

    The steps walk through an endless row of epochs, each a permutation of its own; a batch may span two. `blocks` are
    shuffled, a window at a time, instead of all images at once. A resumed run needs no stored state.
    """
    epochs = _epochs(num_images, batch_size, step)
    return np.concatenate([_order(num_images, seed, epoch, blocks)[offsets] for epoch, offsets in epochs])


def batch_mirror(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which samples of one step's batch are mirrored, each with probability 1/2: (batch_size,) bool."""
    epochs = _epochs(num_images, batch_size, step)
    return np.concatenate([_coins(num_images, seed, epoch)[offsets] for epoch, offsets in epochs])


def _epochs(num_images: int, batch_size: int, step: int) -> Iterator[tuple[int, slice]]:
    """The epochs that a batch reaches into, in order, and the places of its samples in them."""
    first, end = step * batch_size, (step + 1) * batch_size
    for epoch in range(first // num_images, (end - 1) // num_images + 1):
        start = epoch * num_images
        yield epoch, slice(max(first - start, 0), min(end - start, num_images))


@lru_cache(maxsize=2)  # a permutation of ImageNet takes 20 ms, and the next step mostly wants the same one
def _order(num_images: int, seed: int, epoch: int, blocks: Blocks | None) -> np.ndarray:
    if blocks is not None:
        return blocks.order(seed, epoch)
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch))).permutation(num_images)


@lru_cache(maxsize=2)
def _coins(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch, MIRROR))).random(num_images) < 0.5


def check_shuffle(shuffle: str) -> None:
    """Raises ValueError unless it is the name of an order."""
    if shuffle not in SHUFFLES:
        raise ValueError(f"train.shuffle = {shuffle!r}: it is 'global' or 'shards'")


def batches(
    source, *, batch_size: int, seed: int, start: int, stop: int, prefetch: int = 4, shuffle: str = "global",
    pin: bool = False, rows: Rows | None = None,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """The batches of steps start ... stop - 1, read ahead by one thread.

    Args:
        source: has `__len__` and `batch(positions)`: a `Dataset`, a `Cache` or a `CacheStream`. Where its attribute
            `mirrored` is true, `batch` gets as `mirror` which samples to mirror (see `batch_mirror`).
        shuffle: 'global': every epoch is one permutation of all images; 'shards': some blocks of consecutive rows from
            all over the data set at a time (see `Blocks`).
        pin: into page-locked memory, for copies to a GPU in the background.
        rows: read only these rows of each batch, where several processes share it.

    Raises ValueError: `shuffle` is not an order, or the source cannot be read in it.
    """
    check_shuffle(shuffle)
    if shuffle == "global" and getattr(source, "streamed", False):
        raise ValueError(
            "train.shuffle = 'global' would fetch a shard for every image of a streamed cache: set "
            "train.shuffle = 'shards'"
        )
    blocks, rows = _blocks(source, shuffle), rows or Rows.whole(batch_size)
    announce = _announcer(source, blocks, batch_size, seed, stop)

    def read(step: int) -> dict[str, Tensor]:
        announce(step)
        positions, options = rows.of(batch_positions(len(source), batch_size, seed, step, blocks)), {}
        if getattr(source, "mirrored", False):
            options["mirror"] = rows.of(batch_mirror(len(source), batch_size, seed, step))
        batch = source.batch(positions, **options)
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch

    return _read_ahead(read, range(start, stop), prefetch, end=announce)


def positions_of(source, *, batch_size: int, seed: int, step: int, shuffle: str, rows: Rows | None = None) -> list[int]:
    """Where in `source` the rows of a step's batch lie, as `batches` reads them."""
    positions = batch_positions(len(source), batch_size, seed, step, _blocks(source, shuffle))
    return (rows or Rows.whole(batch_size)).of(positions).tolist()


def _blocks(source, shuffle: str) -> Blocks | None:
    if shuffle != "shards":
        return None
    return getattr(source, "blocks", None) or Blocks.cut(np.array([0, len(source)]))


def _read_ahead(read: Callable, steps: range, prefetch: int, end: Callable) -> Iterator[dict[str, Tensor]]:
    thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
    try:
        pending = deque(thread.submit(read, step) for step in steps[:prefetch])
        for step in steps:
            if step + prefetch in steps:
                pending.append(thread.submit(read, step + prefetch))
            yield pending.popleft().result()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
        end(None)  # now, so that a read under way does not wait for what nobody needs
        thread.shutdown()
        end(None)  # that read may have asked for more


def _announcer(source, blocks: Blocks | None, batch_size: int, seed: int, stop: int) -> Callable:
    """-> a function that tells the source, before a step is read, the windows of this step and the next ones.

    Whenever a window begins or ends, `source.expect` gets the blocks of each of these and of the one after, in order;
    an empty list at the end (step None).
    """
    if blocks is None or not hasattr(source, "expect"):
        return lambda step: None
    announced: list[int] = []  # where these windows end

    def announce(step: int | None) -> None:
        near: list[tuple[int, np.ndarray]] = []
        for window in blocks.windows_from(seed, step * batch_size) if step is not None else ():
            near.append(window)
            if window[0] >= stop * batch_size or (len(near) > 1 and near[-2][0] >= (step + 1) * batch_size):
                break
        ends = [end for end, _ in near]
        if step is None or ends != announced:
            announced[:] = ends
            source.expect([blocks for _, blocks in near])

    return announce
