"""JSON that carries a hash of itself, so that damage is seen when it is read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

OWN_HASH = "sha256_of_the_rest"  # the entries beside it; what earlier versions wrote has none


class BrokenArtefact(ValueError):
    """A folder that is not what it should be: truncated, altered, or made by something else."""


def sealed(value: Mapping) -> dict:
    """The same with a hash of itself: one flipped bit of the file either hits the hash, or is seen by it."""
    return {**value, OWN_HASH: json_sha256(value)}


def unsealed(value: Mapping, path: Path) -> dict:
    """The inverse of `sealed`, as read from `path`; without a hash, as it is. Raises BrokenArtefact."""
    rest = {key: entry for key, entry in value.items() if key != OWN_HASH}
    if OWN_HASH in value and value[OWN_HASH] != json_sha256(rest):
        raise BrokenArtefact(f"{path} was altered after it was written: its {OWN_HASH} is that of another content")
    return rest


def json_sha256(value) -> str:
    """Hex digest of what JSON keeps of a value, however it is indented and ordered."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()
