"""Index the samples of a tar file from its headers."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redi.data.preprocessing import MAX_BYTES
from redi.data.storage.object_store import MAX_READ, RangedFile

IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
LABEL_FIELDS = ("label", "cls")  # of key.json
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
END_BYTES = 2**16  # checked after the end mark; tar pads files with zeros to a multiple of 10 KiB


class Entry(NamedTuple):
    """An image in a tar file: position and size in bytes, modification time in seconds, and label (-1: none)."""

    key: str
    offset: int
    size: int
    time: float
    label: int


def scan(tar: RangedFile, where: str, *, labelled: bool = True, label_field: str | None = None) -> list[Entry]:
    """Return the samples of a tar file in order; only headers and labels are read.

    Labels are in the field `label_field` of key.json; by default in key.cls, or else in LABEL_FIELDS of key.json.
    Raises ValueError if it is not an intact, uncompressed tar file of samples, and Unreachable.
    """
    start = tar.read(6)
    tar.seek(0)
    if name := next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None):
        advice = "images cannot be read at random positions: decompress it to a plain .tar"
        raise ValueError(f"{where} is compressed ({name}); {advice}")
    entries: list[Entry] = []
    sample, keys = _Sample(""), set()
    for member in _members(tar, where):
        key, extension = _split(member.name)
        if not key or not extension:  # hidden, or not part of a sample
            continue
        if key != sample.key:
            entries += sample.entries(where, labelled)
            if key in keys:
                rule = "the files of a sample must be consecutive, and keys must differ"
                raise ValueError(f"{where}: the key {key!r} occurs more than once: {rule}")
            keys.add(key)
            sample = _Sample(key)
        if extension in IMAGES:
            sample.add_image(member, where)
        elif labelled and extension == ("cls" if label_field is None else "json"):
            sample.label = _label(_content(tar, member, where), label_field, f"{where}: {member.name}")
        elif labelled and extension == "json" and sample.label is None:
            sample.json_label = _json_label(_content(tar, member, where), LABEL_FIELDS, f"{where}: {member.name}")
        sample.others.append(extension)
    entries += sample.entries(where, labelled)
    if not entries:
        raise ValueError(f"{where} has no images: members must be named key.jpg, .jpeg, .png or .webp")
    return entries


@dataclass
class _Sample:
    key: str
    image: tarfile.TarInfo | None = None
    label: int | None = None
    json_label: int | None = None
    others: list[str] = field(default_factory=list)

    def add_image(self, member: tarfile.TarInfo, where: str) -> None:
        if self.image is not None:
            images = f"{self.image.name} and {member.name}"
            raise ValueError(f"{where}: the sample {self.key!r} has two images, {images}; it must have one")
        if not 0 < member.size <= MAX_BYTES:
            size = f"{member.size:,} bytes"
            raise ValueError(f"{where}: {member.name} has {size}; an image must have 1 to {MAX_BYTES:,}")
        self.image = member

    def entries(self, where: str, labelled: bool) -> list[Entry]:
        """Return the entry of the sample; none for files that are not a sample."""
        if self.image is None:
            dotted = [extension for extension in self.others if extension.rpartition(".")[2] in IMAGES]
            if dotted or self.label is not None:
                problem = f"the sample {self.key!r} has {self.key}.{(dotted or self.others)[0]}, but no image"
                raise ValueError(f"{where}: {problem}; a key ends at the first dot of the name: rename the files")
            return []
        label = self.json_label if self.label is None else self.label
        if labelled and label is None:
            raise ValueError(
                f"{where}: the sample {self.key!r} has no label: neither {self.key}.cls nor {self.key}.json with the "
                "field 'label' or 'cls'. Add labels, name another field with WebDataset.label_field, or set "
                "WebDataset.num_classes = 1 for training without labels"
            )
        member = self.image
        return [Entry(self.key, member.offset_data, member.size, float(member.mtime), -1 if label is None else label)]


def _split(name: str) -> tuple[str, str]:
    """Split a name into key and extension like the package webdataset: at the first dot of the last path component."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


def _members(tar: RangedFile, where: str) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files. Raises ValueError for other members, damage, truncation and a missing end mark."""
    archive, offset = None, -1
    while True:
        try:
            if archive is None:
                file: Any = tar  # tarfile's stubs ask for write(), which reading does not use
                archive = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
            member = archive.next()
            archive.members.clear()  # type: ignore[attr-defined]  # not in the stubs; keeps millions of headers
        except (OSError, MemoryError):
            raise
        except Exception as error:  # tarfile raises many kinds of exceptions on damaged input
            position = archive.offset if archive else 0
            problem = f"damaged or truncated at byte {position}: {error}"
            raise ValueError(f"{where} is not an intact tar file ({problem})") from None
        if member is None:
            break
        if archive.offset <= offset or member.size < 0:
            raise ValueError(f"{where} is not an intact tar file: {member.name} has a negative size")
        offset, end = archive.offset, member.offset_data + member.size
        if end > tar.size:
            raise ValueError(f"{where} is truncated: {member.name} ends at byte {end:,} of {tar.size:,}")
        if member.name.startswith("/") or ".." in member.name.split("/"):  # a hostile file, although it is not unpacked
            problem = f"contains the name {member.name[:200]!r}, which leads out of the shard"
            raise ValueError(f"{where} {problem}: create it again with relative names")
        if member.isdir():
            continue
        if not member.isreg() or member.sparse is not None:
            advice = "links, devices and sparse files are not supported: pack the files themselves"
            raise ValueError(f"{where}: {member.name} is not a regular file; {advice}")
        yield member
    tar.seek(archive.offset)  # tarfile stops silently at a damaged or missing header
    mark = tar.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise ValueError(f"{where} is damaged or truncated: no header and no end mark at byte {archive.offset:,}")
    if any(tar.read(END_BYTES)):
        raise ValueError(f"{where} has data after its end mark, like concatenated tar files: create it again")


def _content(tar: RangedFile, member: tarfile.TarInfo, where: str) -> bytes:
    if member.size > MAX_READ:
        raise ValueError(f"{where}: {member.name} has {member.size:,} bytes; a label may have at most {MAX_READ:,}")
    tar.seek(member.offset_data)
    return tar.read(member.size)


def _label(content: bytes, field: str | None, where: str) -> int:
    """Parse the label: the `field` of key.json, or the text of key.cls if `field` is None."""
    if field is not None:
        if (label := _json_label(content, (field,), where)) is None:
            raise ValueError(f"{where} has no field {field!r}: set WebDataset.label_field to the field of the label")
        return label
    text = content.strip()
    if not (text.isdigit() and len(text) <= 18):
        raise ValueError(f"{where} contains {text[:40]!r}; a label must be an integer of at least 0")
    return int(text)


def _json_label(content: bytes, fields: tuple, where: str) -> int | None:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    field = next((field for field in fields if isinstance(record, dict) and field in record), None)
    if field is None:
        return None
    label = record[field]
    if type(label) is not int or not 0 <= label < 10**18:
        raise ValueError(f"{where}: {field!r} is {str(label)[:40]}; a label must be an integer of at least 0")
    return label
