"""Byte ranges are read completely, with few requests."""

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redi.data.storage import object_store
from redi.data.storage.object_store import PIECE_BYTES, ObjectStore


class CountingStore:
    """A file system without content that records the requested ranges."""

    def __init__(self):
        self.ranges = []

    def cat_ranges(self, paths, starts, stops, on_error):
        self.ranges += zip(paths, starts, stops, strict=True)
        return [bytes(stop - start) for start, stop in zip(starts, stops, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400), st.integers(1, 90)), max_size=12))
def test_any_ranges_come_back_whole_in_the_order_asked_for(ranges):
    content = {name: np.random.default_rng(ord(name)).bytes(500) for name in "ab"}
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/ranges/{name}": data for name, data in content.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_store, "GAP_BYTES", 20)
        patch.setattr(object_store, "PIECE_BYTES", 120)
        parts = ObjectStore(memory).read_ranges([(f"/ranges/{name}", a, a + n) for name, a, n in ranges])
    assert parts == [content[name][a : a + n] for name, a, n in ranges]


@pytest.mark.parametrize(
    ("ranges", "requests"),
    [
        (
            [("a", 0, 10), ("a", 50, 60), ("b", 70, 80), ("a", 2**20, 2**20 + 5)],
            [("a", 0, 60), ("a", 2**20, 2**20 + 5), ("b", 70, 80)],
        ),
        ([("a", 0, PIECE_BYTES), ("a", PIECE_BYTES, PIECE_BYTES + 9)],) * 2,
    ],
)
def test_ranges_far_apart_or_too_long_together_are_asked_for_apart(ranges, requests):
    files = CountingStore()
    assert [len(part) for part in ObjectStore(files).read_ranges(ranges)] == [b - a for _, a, b in ranges]
    assert files.ranges == requests
