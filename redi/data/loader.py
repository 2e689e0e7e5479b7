"""Load batches in a seeded order that can resume at any step."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from torch import Tensor

from redi.data.order import Blocks
from redi.runtime.randomness import Rows, mix_seeds

MIRROR = 1  # separates the random stream of mirroring from the permutations of the same seed and epoch
SHUFFLES = ("global", "shards")


def batch_positions(num_images: int, batch_size: int, seed: int, step: int, blocks: Blocks | None = None) -> np.ndarray:
    """Return the positions in the data set of one step's batch: (batch_size,) int64.

    Steps run through endless epochs, each another permutation, or with `blocks`, another order of windows of blocks.
    """
    epochs = _epochs(num_images, batch_size, step)
    return np.concatenate([_order(num_images, seed, epoch, blocks)[offsets] for epoch, offsets in epochs])


def batch_mirror(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return which samples of one step's batch are mirrored, each with probability 1/2: (batch_size,) bool."""
    epochs = _epochs(num_images, batch_size, step)
    return np.concatenate([_coins(num_images, seed, epoch)[offsets] for epoch, offsets in epochs])


def _epochs(num_images: int, batch_size: int, step: int) -> Iterator[tuple[int, slice]]:
    """Yield the epochs that a batch spans, with the slice of samples in each."""
    first, end = step * batch_size, (step + 1) * batch_size
    for epoch in range(first // num_images, (end - 1) // num_images + 1):
        start = epoch * num_images
        yield epoch, slice(max(first - start, 0), min(end - start, num_images))


@lru_cache(maxsize=2)  # a permutation of ImageNet takes 20 ms, and the next step usually needs the same one
def _order(num_images: int, seed: int, epoch: int, blocks: Blocks | None) -> np.ndarray:
    if blocks is not None:
        return blocks.order(seed, epoch)
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch))).permutation(num_images)


@lru_cache(maxsize=2)
def _coins(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch, MIRROR))).random(num_images) < 0.5


def check_shuffle(shuffle: str) -> None:
    """Raise ValueError if `shuffle` is not the name of an order."""
    if shuffle not in SHUFFLES:
        raise ValueError(f"train.shuffle = {shuffle!r} must be 'global' or 'shards'")


def batches(
    source, *, batch_size: int, seed: int, start: int, stop: int, prefetch: int = 4, shuffle: str = "global",
    pin: bool = False, rows: Rows | None = None, ends: Mapping[str, int] | None = None,
) -> Generator[dict[str, Tensor], None, None]:  # fmt: skip
    """Yield the batches of steps start, ..., stop - 1, which one thread reads ahead.

    Args:
        source: a `Dataset`, `Cache` or `CacheStream`, or another object with `__len__` and `batch(positions)`. If its
            attribute `mirrored` is true, `batch` also receives `mirror`, see `batch_mirror`.
        prefetch: the number of batches read ahead.
        shuffle: 'global': every epoch is a permutation of all images; 'shards': windows of random blocks of
            consecutive rows are shuffled (see `Blocks`).
        pin: copy the batches to page-locked memory, for asynchronous copies to a GPU.
        rows: read only these rows of each batch, for one of several processes.
        ends: {tensor of a cache: first step that does not read it}.

    Raises ValueError if `shuffle` is not an order, or the source cannot be read in this order.
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
        if without := [name for name, end in (ends or {}).items() if step >= end]:
            options["without"] = without
        batch = source.batch(positions, **options)
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch

    return _read_ahead(read, range(start, stop), prefetch, end=announce)


def positions_of(source, *, batch_size: int, seed: int, step: int, shuffle: str, rows: Rows | None = None) -> list[int]:
    """Return the positions in `source` of a step's batch, in the order of `batches`."""
    positions = batch_positions(len(source), batch_size, seed, step, _blocks(source, shuffle))
    return (rows or Rows.whole(batch_size)).of(positions).tolist()


def _blocks(source, shuffle: str) -> Blocks | None:
    if shuffle != "shards":
        return None
    return getattr(source, "blocks", None) or Blocks.cut(np.array([0, len(source)]))


def _read_ahead(read: Callable, steps: range, prefetch: int, end: Callable) -> Generator[dict[str, Tensor], None, None]:
    thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
    try:
        pending = deque(thread.submit(read, step) for step in steps[:prefetch])
        for step in steps:
            if step + prefetch in steps:
                pending.append(thread.submit(read, step + prefetch))
            yield pending.popleft().result()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
        end(None)  # at once, so that the current read does not wait for shards that are not needed
        thread.shutdown()
        end(None)  # the last read may have announced more shards


def _announcer(source, blocks: Blocks | None, batch_size: int, seed: int, stop: int) -> Callable:
    """Return a function that tells the source, before each step, which blocks this window and the next one read."""
    if blocks is None or not hasattr(source, "expect"):
        return lambda step: None
    announced: list[int] = []  # the ends of the announced windows

    def announce(step: int | None) -> None:
        windows: list[tuple[int, np.ndarray]] = []
        if step is not None:
            for window in blocks.windows_from(seed, step * batch_size):
                windows.append(window)
                if window[0] >= stop * batch_size or (len(windows) > 1 and windows[-2][0] >= (step + 1) * batch_size):
                    break
        ends = [end for end, _ in windows]
        if step is None or ends != announced:
            announced[:] = ends
            source.expect([blocks for _, blocks in windows])

    return announce
