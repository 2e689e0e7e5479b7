"""Randomly damaged files are read or refused: no crash, no hang, bounded memory.

A few thousand inputs by default; `make chaos` reads 168,000.
"""

import contextlib
import json
import os
import random
import signal
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from readers import READERS

SECONDS = 20  # of an input; they take milliseconds, but the machine may be busy
SHORT, LONG = 70, 4_000  # inputs of each reader per weight


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    def stop(*_):
        raise TimeoutError(f"hangs for more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_damaged(name: str, count: int, seed: int, folder: Path) -> dict[str, int]:
    """Return the number of inputs read and refused; other inputs are stored in `folder`."""
    reader, outcomes = READERS[name], {"read": 0, "refused": 0}
    originals, path = reader.make(folder), folder / f"input{reader.suffix}"
    for original in originals:  # undamaged, each is read
        path.write_bytes(original)
        reader.read(path)
    for number in range(count):
        chance = random.Random(f"{name} {seed} {number}")
        data = reader.damage(chance.choice(originals), originals, chance)
        path.write_bytes(data)
        try:
            with stopped_after(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what may be wrong with images and pickles
                reader.read(path)
            outcomes["read"] += 1
        except ValueError as error:
            assert len(str(error)) < 5_000, f"{name}, input {number} of seed {seed}: a message without end"
            outcomes["refused"] += 1
        except BaseException as error:
            (folder / "culprit").write_bytes(data)
            raise AssertionError(
                f"{name}, input {number} of seed {seed}, kept in {folder}/culprit: {error!r}"
            ) from error
    return outcomes


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name, tmp_path, bounded):
    count = SHORT * READERS[name].weight
    with bounded(mib=800):
        outcomes = read_damaged(name, count, 0, tmp_path)
    assert sum(outcomes.values()) == count and (outcomes["refused"] > count / 20 or name == "logs")  # which skip lines


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused(name, tmp_path, bounded):
    seed = int(os.environ.get("REDI_FUZZ_SEED", "1"))
    count, start = LONG * READERS[name].weight, time.process_time()
    with bounded(mib=1_500):
        outcomes = read_damaged(name, count, seed, tmp_path)
    assert sum(outcomes.values()) == count
    if folder := os.environ.get("REDI_CHAOS_REPORT"):
        row = {"reader": name, "seed": seed, "inputs": count, **outcomes, "seconds": round(time.process_time() - start)}
        (Path(folder) / "fuzz").mkdir(parents=True, exist_ok=True)
        (Path(folder) / "fuzz" / f"{zlib.crc32(name.encode()):08x}.json").write_text(json.dumps(row) + "\n")
