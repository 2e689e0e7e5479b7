"""Hostile images, image folders and zip files raise an error that states the reason."""

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_files import announcing, archive, link, picture, png, postscript, scans, white_png, zeros

from redi.data.datasets import ImageFolder
from redi.data.preprocessing import Preprocessing

PIXEL = picture()
DEEP = b"[" * 100_000


def image(content: bytes | Callable[[Path], bytes], **settings) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        (folder / "images").mkdir()
        made = content(folder / "ran") if callable(content) else content
        (folder / "images" / "x.png").write_bytes(made)
        ImageFolder(path=str(folder / "images"), preprocessing=Preprocessing(**settings)).load(0)

    return read


IMAGES = {
    "a program": (image(b"#!/bin/sh\ntouch ran\n"), "x.png: not an image in one of the supported formats"),
    "PostScript, which Pillow would run": (image(postscript), "x.png: not an image in one of the supported formats"),
    "nothing": (image(b""), "x.png: not an image in one of the supported formats"),
    "the wrong magic": (image(b"\x89PNG\r\n\x1a\r" + PIXEL[8:]), "x.png: not an image in one of the supported formats"),
    "a truncated PNG": (image(PIXEL[:-60]), "x.png: OSError: "),
    "a truncated JPEG": (image(picture(64, "JPEG")[:-200]), "x.png: OSError: image file is truncated"),
    "a bomb": (image(white_png(30_000, 30_000)), "x.png: DecompressionBombError"),
    "a smaller bomb": (image(white_png(10_000, 9_000)), "10,000 x 9,000 = 90,000,000 pixels; at most 89,478,485"),
    "a claim of huge sides": (image(png(2**31 - 1, 2**31 - 1, b"x")), "x.png: DecompressionBombError"),
    "no sides": (image(png(0, 0, b"x")), "x.png: "),
    "a line that resizing makes huge": (
        image(white_png(1, 60_000), image_size=256),
        r"256 x 15,360,000 = 3,932,160,000 pixels after resizing; at most",
    ),
    "a JPEG of 5,000 scans": (image(scans(5_000)), "x.png: ValueError: the JPEG has 5,0.. scans, which are slow"),
    "a text that unpacks to 64 MB": (
        image(png(8, 8, b"x", (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26))))),
        "x.png: ",
    ),
    "a truncated TIFF": (
        image(picture(8, "TIFF")[:50]),
        "x.png: ",
    ),
}


def folder_with(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        (folder / "secret.png").write_bytes(PIXEL)
        (folder / "images").mkdir()
        (folder / "images" / "a.png").write_bytes(PIXEL)
        make(folder / "images")
        ImageFolder(path=str(folder / "images"))

    return read


def zip_with(*members, last: dict | None = None, **options) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        path = archive(folder / "x.zip", *members, **options)
        if last:
            announcing(path, **last)
        data = ImageFolder(path=str(path))
        for index in range(len(data)):
            data.load(index)

    return read


def index_of(content: str | bytes) -> Callable[[Path], None]:
    raw = content.encode() if isinstance(content, str) else content
    return folder_with(lambda images: (images / "dataset.json").write_bytes(raw))


def labelled(label: str) -> Callable[[Path], None]:
    return index_of(f'{{"labels": [["a.png", {label}]]}}')


FOLDERS = {
    "a link to a file outside": (
        folder_with(lambda f: (f / "b.png").symlink_to("../secret.png")),
        "b.png is a symbolic link out of the folder, to .*secret.png: replace it by a copy",
    ),
    "a link to a device": (
        folder_with(lambda f: (f / "b.png").symlink_to("/dev/zero")),
        "out of the folder, to /dev/z",
    ),
    "a link to a folder": (folder_with(lambda f: (f / "b").symlink_to("/etc")), "b is a symbolic link to the folder"),
    "a link to nothing": (folder_with(lambda f: (f / "b.png").symlink_to("c.png")), "link to .*c.png, which does not"),
    "a link in place of labels": (
        folder_with(lambda f: (f / "dataset.json").symlink_to("/etc/passwd")),
        "dataset.json is a symbolic link out of the folder",
    ),
    "a pipe": (folder_with(lambda f: os.mkfifo(f / "b.png")), "b.png is not a regular file, but a pipe"),
    "a zip with names that lead upwards": (
        zip_with(("../../x.png", PIXEL)),
        r"contains the name '../../x.png', which leads out of the archive",
    ),
    "a zip with an absolute name": (zip_with(("/etc/x.png", PIXEL)), "'/etc/x.png', which leads out"),
    "a zip with a drive": (zip_with(("C:/x.png", PIXEL)), "'C:/x.png', which leads out"),
    "a zip with backslashes": (zip_with(("a\\..\\x.png", PIXEL)), "which leads out of the archive"),
    "a zip with a link": (zip_with(link("a/x.png", "/etc/passwd")), "'a/x.png' is a symbolic link, which is"),
    "a zip with a name twice": (zip_with(("a.png", PIXEL), ("a.png", PIXEL)), "contains 'a.png' twice: create the zip"),
    "a zip bomb": (
        zip_with(("x.png", zeros(1)), last={"unpacked": 2**32 - 2}),
        "x.png: ValueError: the zip directory gives a size of more",
    ),
    "a zip bomb that says it is small": (
        lambda folder: bomb(folder, 100, 10),
        "x.png: ValueError: the zip file is damaged or was replaced",
    ),
    "a zip bomb that is honest": (lambda folder: bomb(folder, 1, 300 * 2**20), "a size of more than 268,435,456"),
    "a zip whose member is said to be larger": (
        zip_with(("x.png", PIXEL), last={"stored": 2**31, "unpacked": 2**31}),
        "a size of more than 268,435,456 bytes",
    ),
    "a zip that ends early": (
        lambda folder: cut(archive(folder / "x.zip", ("a.png", PIXEL))),
        "is neither a folder nor a complete zip file",
    ),
    "a zip with another compression": (
        zip_with(("a.png", PIXEL), method=zipfile.ZIP_LZMA),
        "encrypted or not compressed with deflate",
    ),
    "labels too large for classes": (labelled("1000000000000000000"), "the label 1000000000000000000 means"),
    "labels too large for 64 bits": (labelled("1" + "0" * 30), "has the label 10+ for a.png; labels must be integers"),
    "labels of 5,000 digits": (labelled("9" * 5_000), "must be {.*Exceeds the limit"),
    "negative labels": (labelled("-1"), "has the label -1 for a.png; labels must be integers of at least 0"),
    "fractions for labels": (labelled("1.5"), "dataset.json has the label 1.5 for a.png"),
    "NaN for a label": (labelled("NaN"), "dataset.json has the label nan for a.png"),
    "texts for labels": (labelled('"cat"'), "dataset.json has the label cat for a.png"),
    "lists for labels": (labelled("[1, 2]"), r"dataset.json has the label \[1, 2\] for a.png"),
    "null for a label": (labelled("null"), "dataset.json has the label None for a.png"),
    "true for a label": (labelled("true"), "dataset.json has the label True for a.png"),
    "no labels": (index_of('{"images": []}'), "KeyError: 'labels'"),
    "labels in no list": (index_of('{"labels": 7}'), "must be {"),
    "labels that are nested deeply": (index_of(DEEP), "must be {.*RecursionError"),
    "labels in no text": (index_of(b"\xff\xfe\x00\x01"), "must be {"),
    "labels of files elsewhere": (
        index_of('{"labels": [["a.png", 0], ["../../etc/passwd", 0]]}'),
        "lists 1 images that do not exist",
    ),
    "labels given twice": (index_of('{"labels": [["a.png", 0], ["a.png", 1]]}'), "lists 1 files more than once"),
}


def bomb(folder: Path, megabytes: int, said: int) -> None:
    """A zip member of this number of compressed megabytes, with another size in the directory."""
    raw = zeros(megabytes)
    path = archive(folder / "x.zip", ("x.png", raw))
    data = bytearray(path.read_bytes())
    for place, at in ((0, 8), (data.rindex(b"PK\x01\x02"), 10)):
        data[place + at : place + at + 2] = b"\x08\0"  # deflate
    path.write_bytes(data)
    ImageFolder(path=str(announcing(path, unpacked=said))).load(0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])
    ImageFolder(path=str(path))


@pytest.mark.parametrize("name", IMAGES | FOLDERS)
def test_it_is_refused_and_the_message_says_why(name, refused):
    refused(*(IMAGES | FOLDERS)[name])
