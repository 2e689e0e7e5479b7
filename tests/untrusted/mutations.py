"""Random damage to real files: bits, bytes, lengths, cuts, and pieces moved or repeated."""

import json
import random
import re
from collections.abc import Sequence

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
VALUES = (
    None, True, -1, 0, 1, 10**18, 10**30, 1.5, float("inf"), float("nan"), "", "x", "../../x", "/etc/passwd", "\0", "é",
    [], {}, [[]], {"": {}}, [0] * 100,
)  # fmt: skip


def damaged(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Return the file with one to four changes; `others` provide plausible pieces."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(found) + 1)
        if chance.random() < 0.3:  # where headers and directories are
            at = min(at, chance.randrange(64)) if chance.random() < 0.5 else max(0, len(found) - chance.randrange(128))
        length = chance.choice((1, 2, 4, 8, 64))
        match chance.randrange(8):
            case 0 if found:
                found[min(at, len(found) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                found[at : at + length] = chance.randbytes(length)
            case 2:
                size = chance.choice((1, 2, 4, 8))
                number = chance.choice(NUMBERS) & (2 ** (8 * size) - 1)
                found[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
            case 3:
                del found[at:]
            case 4:
                del found[at : at + length]
            case 5:
                found[at:at] = found[at : at + length] * chance.choice((1, 2, 16))
            case 6:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                found[at : at + length] = other[start : start + length]
            case 7:  # a number in a text, as headers have them
                digits = list(re.finditer(rb"-?\d+", bytes(found)))
                if digits:
                    place = chance.choice(digits)
                    found[place.start() : place.end()] = str(chance.choice((-1, 0, 10**18, 10**40))).encode()
    return bytes(found)


def altered(value: object, chance: random.Random) -> object:
    """Return a JSON value with a part replaced, removed or deeply nested."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: altered(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], altered(value[place], chance), *value[place + 1 :]]
    if chance.random() < 0.05:
        return json.loads("[" * 300 + "]" * 300)
    return chance.choice(VALUES)
