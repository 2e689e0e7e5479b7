"""What lies where in a tar file of samples, read from its headers."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from redi.data.preprocessing import MAX_BYTES
from redi.data.storage.object_store import MAX_READ, RangedFile

IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
LABEL_FIELDS = ("label", "cls")  # of key.json
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
END_BYTES = 2**16  # looked at behind the end mark; tar fills up to 10 KiB with zeros


class Entry(NamedTuple):
    """An image in a tar file: where its bytes lie, when it was written (seconds), and its label, -1 for none."""

    key: str
    offset: int
    size: int
    time: float
    label: int


def scan(tar: RangedFile, where: str, *, labelled: bool = True, label_field: str | None = None) -> list[Entry]:
    """The samples of a tar file in their order; reads headers and labels alone. Labels are in the field `label_field`
    of key.json; without one in key.cls, or else in key.json.

    Raises ValueError where it is not an intact, uncompressed tar file of samples, and Unreachable.
    """
    start = tar.read(6)
    tar.seek(0)
    if name := next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None):
        what = "its images cannot be read at random places: unpack it to a plain .tar"
        raise ValueError(f"{where} is compressed ({name}); {what}")
    entries, sample, known = [], _Sample(""), set()
    for member in _members(tar, where):
        key, extension = _split(member.name)
        if not key or not extension:  # hidden, or not of a sample
            continue
        if key != sample.key:
            entries += sample.entries(where, labelled)
            if key in known:
                what = "the files of a sample must follow one another, and keys must differ"
                raise ValueError(f"{where}: the key {key!r} comes more than once: {what}")
            known.add(key)
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
        raise ValueError(f"{where} holds no images: members must be called key.jpg, .jpeg, .png or .webp")
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
            raise ValueError(f"{where}: the sample {self.key!r} has two images, {images}; one is needed")
        if not 0 < member.size <= MAX_BYTES:
            size = f"{member.size:,} bytes"
            raise ValueError(f"{where}: {member.name} has {size}; an image has 1 to {MAX_BYTES:,}")
        self.image = member

    def entries(self, where: str, labelled: bool) -> list[Entry]:
        """One, or none for files that are no sample."""
        if self.image is None:
            dotted = [extension for extension in self.others if extension.rpartition(".")[2] in IMAGES]
            if dotted or self.label is not None:
                what = f"has no image, but {self.key}.{(dotted or self.others)[0]}"
                raise ValueError(f"{where}: the sample {self.key!r} {what}; its key ends at the first dot of a name")
            return []
        label = self.json_label if self.label is None else self.label
        if labelled and label is None:
            raise ValueError(
                f"{where}: the sample {self.key!r} has no label: neither {self.key}.cls nor a {self.key}.json with a "
                "field 'label' or 'cls' (WebDataset.label_field names another one; for WebDataset.num_classes = 1 "
                "labels are not needed)"
            )
        member = self.image
        return [Entry(self.key, member.offset_data, member.size, float(member.mtime), -1 if label is None else label)]


def _split(name: str) -> tuple[str, str]:
    """Key and extension, as the package webdataset splits them: at the first dot of the last part of the name."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


def _members(tar: RangedFile, where: str) -> Iterator[tarfile.TarInfo]:
    """The regular files, all of them whole; raises ValueError where anything else, or no end mark, comes."""
    archive, offset = None, -1
    while True:
        try:
            archive = archive or tarfile.TarFile(fileobj=tar, mode="r", encoding="utf-8", errors="surrogateescape")
            member = archive.next()
            archive.members.clear()  # it would keep every header of millions
        except (OSError, MemoryError):
            raise
        except Exception as error:  # tarfile raises a dozen kinds on damaged input
            at = archive.offset if archive else 0
            raise ValueError(f"{where} is no intact tar file (byte {at}: {error}): damaged or cut short") from None
        if member is None:
            break
        if archive.offset <= offset or member.size < 0:
            raise ValueError(f"{where} is no intact tar file: {member.name} has a negative size")
        offset, end = archive.offset, member.offset_data + member.size
        if end > tar.size:
            raise ValueError(f"{where} is cut short: {member.name} ends at byte {end:,} of {tar.size:,}")
        if member.name.startswith("/") or ".." in member.name.split("/"):  # nothing is unpacked; but it is no data set
            raise ValueError(f"{where} holds the name {member.name[:200]!r}, which leads out of the shard: refused")
        if member.isdir():
            continue
        if not member.isreg() or member.sparse is not None:
            what = "links, devices and sparse files are not followed: pack the files themselves"
            raise ValueError(f"{where}: {member.name} is no plain file; {what}")
        yield member
    tar.seek(archive.offset)  # tarfile stops without a word where a header is damaged or missing
    mark = tar.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise ValueError(f"{where} is damaged or cut short: no header and no end mark at byte {archive.offset:,}")
    if any(tar.read(END_BYTES)):
        raise ValueError(f"{where} goes on after its end mark, as tar files that were joined do: pack it anew")


def _content(tar: RangedFile, member: tarfile.TarInfo, where: str) -> bytes:
    if member.size > MAX_READ:
        raise ValueError(f"{where}: {member.name} has {member.size:,} bytes; a label has at most {MAX_READ:,}")
    tar.seek(member.offset_data)
    return tar.read(member.size)


def _label(content: bytes, field: str | None, where: str) -> int:
    """Of key.json where there is a field, else of key.cls."""
    if field is not None:
        if (label := _json_label(content, (field,), where)) is None:
            raise ValueError(f"{where} has no field {field!r} (WebDataset.label_field)")
        return label
    text = content.strip()
    if not (text.isdigit() and len(text) <= 18):
        raise ValueError(f"{where} holds {text[:40]!r}; a label is a whole number from 0 on")
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
        raise ValueError(f"{where}: {field!r} is {str(label)[:40]}; a label is a whole number from 0 on")
    return label
