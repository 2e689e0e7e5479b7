"""Verify the checksums of a cache at every start, shared by all processes."""

import json
import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from redi.data.cache.cache import MANIFEST, read_manifest
from redi.data.cache.write import shard_job
from redi.runtime.atomic import rename, stamp, write_json
from redi.runtime.checksums import BrokenArtefact, json_sha256, sha256
from redi.runtime.shared_work import SharedJob

log = logging.getLogger(__name__)

FRESH_SECONDS = 1800.0  # a check is valid for this long, because the processes of a job do not start together


def verify_cache(folder: Path, *, rank: int = 0, world_size: int = 1) -> None:
    """Compare the SHA-256 of every shard with the manifest; the shards are divided over the processes.

    Damaged or missing shards are removed, and `write_cache` encodes them again, or all if the manifest is damaged.
    A shard that was intact in the last half hour and has not been modified since is not read again.
    """
    folder, initial_stamp, is_over = Path(folder), stamp(folder), False
    try:
        manifest = read_manifest(folder / MANIFEST)
    except BrokenArtefact as error:
        log.warning("encoding all images again, because the manifest of the cache is damaged: %s", error)
        manifest = {"shards": []}
    shards, verified = manifest["shards"], folder.with_name(f".{folder.name}.verified")
    states = [_state(folder / shard["file"]) for shard in shards]
    digest = json_sha256([manifest.get("sha256"), states])

    def counts(index: int, record: dict) -> bool:
        return record["state"] == states[index] and _is_fresh(record)

    def check(index: int) -> None:
        shard, path = shards[index], folder / shards[index]["file"]
        intact = path.exists() and path.stat().st_size == shard["bytes"] and sha256(path) == shard["sha256"]
        job.store(index, {}, {"whole": intact, "state": states[index], "time": time.time()})

    def finish(records: list[dict]) -> None:
        nonlocal is_over
        damaged = [index for index, record in enumerate(records) if not record["whole"]]
        if damaged:
            names = ", ".join(Path(shards[index]["file"]).stem for index in damaged)
            log.warning("encoding damaged or missing shards of %s again: %s", folder, names)
        if damaged or not shards:
            _unfinish(folder, manifest, damaged)
        else:
            write_json(verified, {"verified": digest, "time": time.time()})
        is_over = True

    def finished() -> bool:
        if is_over or stamp(folder) != initial_stamp:  # another process detected damage, and may have repaired it
            return True
        try:
            record = json.loads(verified.read_text())
            return record["verified"] == digest and _is_fresh(record)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    job = SharedJob(folder.with_name(f".{folder.name}.check"), [1] * len(shards), "shard", counts)
    ranks = {"rank": rank, "world_size": world_size}
    job.run(do=check, finish=finish, finished=finished, desc="verifying", unit="shard", **ranks)


def _unfinish(folder: Path, manifest: dict, damaged: Collection[int]) -> None:
    """Turn the cache into the state of an interrupted `write_cache` without the damaged shards."""
    shards, end = [], 0
    for shard in manifest["shards"]:
        shards.append(range(end, end := end + shard["rows"]))
    job = shard_job(folder, shards)
    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir()
    for index, shard in enumerate(manifest["shards"]):
        if index not in damaged:
            files = {"shards": {"bytes": shard["bytes"], "sha256": shard["sha256"]}}
            facts = {"first": shards[index].start, "rows": shard["rows"], "tensors": manifest["tensors"]}
            job.store_record(index, {"files": files, **facts})
    rename(folder, job.path("shards"))


def _state(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else []


def _is_fresh(record: dict) -> bool:
    return abs(time.time() - record["time"]) < FRESH_SECONDS
