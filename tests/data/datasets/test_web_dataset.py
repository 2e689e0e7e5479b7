"""Tar shards of every store return the same images as a folder; errors name the problem."""

import gzip
import io
import json
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from redi.core import config
from redi.data.audit import AuditError, audit
from redi.data.datasets import UnreadableImage
from redi.data.datasets.image_folder import ImageFolder
from redi.data.datasets.web_dataset import WebDataset
from redi.data.preprocessing import Preprocessing
from redi.data.storage import tar_shards
from redi.data.storage.object_store import Unreachable

FORMATS = ("png", "jpg", "webp", "jpeg")


@pytest.fixture(autouse=True)
def own_indices(monkeypatch, tmp_path):
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "cache"))


def picture(number: int, kind: str = "png", side: int = 12) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, {"jpg": "jpeg"}.get(kind, kind))
    return file.getvalue()


def pack(path: Path, *members: tuple[str, bytes | tarfile.TarInfo], kind: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar file of (name, content) or (name, header)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            if isinstance(content, bytes):
                header.size, header.mtime = len(content), 1_700_000_000
            archive.addfile(header, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def sample(key: str, label: int, number: int = 0, kind: str = "png") -> list[tuple[str, bytes]]:
    return [(f"{key}.{kind}", picture(number, kind)), (f"{key}.cls", str(label).encode())]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """The same 24 images in three classes: a folder, and three shards of eight, in the same order."""
    root = tmp_path_factory.mktemp("images")
    for label in range(3):
        members = []
        for number in range(8):
            kind = FORMATS[number % 4]
            members += sample(f"{number}", label, 8 * label + number, kind)
            file = root / "folder" / str(label) / f"{number}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(members[-2][1])
        pack(root / "shards" / f"train-{label:03d}.tar", *[(f"./{label}/{name}", data) for name, data in members])
    return root / "folder", root / "shards"


@pytest.fixture(params=["path", "file", "memory", "http"])
def shards(request, pair):
    if request.param == "path":
        yield str(pair[1] / "*.tar")
    elif request.param == "file":
        yield f"file://{pair[1]}/train-{{000..002}}.tar"
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.put(f"{pair[1]}/", "/bucket/", recursive=True)
        yield "memory://bucket/train-*.tar"
        memory.rm("/bucket", recursive=True)
    else:
        yield request.getfixturevalue("serve")(pair[1]).url + "/train-{000..002}.tar"


def test_every_store_gives_the_batches_of_a_folder_of_the_same_images(shards, pair):
    data, folder = WebDataset(shards=shards), ImageFolder(path=str(pair[0]))
    assert len(data) == len(folder) == 24 and data.image_size == 12 and data.num_classes == 3
    assert [name.split("/", 1)[1] for name in data.names] == [name.rsplit(".", 1)[0] for name in folder.names]
    assert np.array_equal(data.labels, folder.labels)
    positions = np.random.default_rng(0).permutation(24)
    for chosen in (positions, [3], [5, 5, 5]):
        found, expected = (
            data.batch(chosen, np.arange(len(chosen)) % 2),
            folder.batch(chosen, np.arange(len(chosen)) % 2),
        )
        assert torch.equal(found["images"], expected["images"]) and torch.equal(found["labels"], expected["labels"])
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[7][0], folder[7][0])


def test_parts_and_preprocessing_are_those_of_a_folder(pair):
    settings = {"split": "held_out", "held_out_fraction": 0.4, "preprocessing": Preprocessing(image_size=5)}
    data = WebDataset(shards=f"{pair[1]}/*.tar", **settings).without([1])
    folder = ImageFolder(path=str(pair[0]), **settings).without([1])
    assert torch.equal(data.batch(range(len(data)))["images"], folder.batch(range(len(folder)))["images"])


def test_the_fingerprint_travels_with_the_shards(shards, pair):
    assert WebDataset(shards=shards).fingerprint() == WebDataset(shards=f"{pair[1]}/*.tar").fingerprint()


def test_the_fingerprint_depends_on_images_and_labels(tmp_path):
    def made(name, *members):
        return WebDataset(shards=str(pack(tmp_path / name / "a.tar", *members))).fingerprint()

    one = made("one", *sample("a", 0), *sample("b", 1))
    assert made("same", *sample("a", 0), *sample("b", 1)) == one
    others = [
        made("label", *sample("a", 1), *sample("b", 1)),
        made("image", *sample("a", 0), *sample("b", 1, 9, "jpg")),
    ]
    assert len({one, *others, made("order", *sample("b", 1), *sample("a", 0))}) == 4


def test_a_remote_batch_takes_one_request_per_piece_and_no_more_bytes_than_it_needs(serve, pair):
    server = serve(pair[1])
    data = WebDataset(shards=f"{server.url}/train-{{000..002}}.tar")
    server.requests.clear()
    data.batch(range(24))
    assert len(server.requests) == 3  # three shards, each read in one piece
    server.requests.clear()
    data.batch([7])
    assert server.parts() == [f"bytes={data.starts[7]}-{data.stops[7] - 1}"]


def test_the_first_start_reads_headers_and_the_second_reads_nothing_of_the_shards(serve, tmp_path):
    images = [(f"{n}.png", picture(n, side=300)) for n in range(6)]  # 270 kB each
    pack(tmp_path / "a.tar", *[part for n, image in enumerate(images) for part in (image, (f"{n}.cls", b"%d" % n))])
    server = serve(tmp_path)
    first = WebDataset(shards=f"{server.url}/a.tar")
    assert 6 <= len(server.parts()) <= 9
    numbers = [re.findall(r"\d+", request) for request in server.parts()]
    assert sum(int(b) - int(a) + 1 for a, b in numbers) < 80_000  # of 1.6 MB
    server.requests.clear()
    second = WebDataset(shards=f"{server.url}/a.tar")
    assert server.requests == [] and second.fingerprint() == first.fingerprint()
    pack(tmp_path / "a.tar", *sample("new", 0))
    assert WebDataset(shards=f"{server.url}/a.tar").names == ["a.tar/new"]


def test_a_damaged_index_is_made_anew(pair, tmp_path):
    before = WebDataset(shards=f"{pair[1]}/*.tar")
    for file in (tmp_path / "cache" / "tar_indices").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-3])
    assert WebDataset(shards=f"{pair[1]}/*.tar").fingerprint() == before.fingerprint()


def test_what_was_indexed_before_an_error_is_kept(pair, tmp_path, monkeypatch):
    shutil.copytree(pair[1], tmp_path / "shards")
    broken = tmp_path / "shards" / "train-001.tar"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:3000])
    monkeypatch.setattr(tar_shards, "NUM_THREADS", 1)
    monkeypatch.setattr(tar_shards.random.Random, "shuffle", lambda self, items: items.sort(key=lambda i: i == 1))
    with pytest.raises(ValueError, match="train-001.tar"):
        WebDataset(shards=f"{tmp_path}/shards/*.tar")
    broken.write_bytes(whole)
    scanned = []
    monkeypatch.setattr(
        tar_shards, "scan", lambda tar, where, scan=tar_shards.scan, **k: scanned.append(where) or scan(tar, where, **k)
    )
    assert len(WebDataset(shards=f"{tmp_path}/shards/*.tar")) == 24 and scanned == [str(broken)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_long_names_are_read(tmp_path, kind):
    long = "d" * 60 + "/" + "n" * 90
    members = [*sample(long, 2), *sample("a/é", 0), ("a/é.seg.png", b"no image of ours"), ("readme.txt", b"hello")]
    data = WebDataset(shards=str(pack(tmp_path / "a.tar", *members, kind=kind)))
    assert data.names == [f"a.tar/{long}", "a.tar/a/é"] and data.labels.tolist() == [2, 0]
    data.batch([0, 1])


def test_folders_and_hidden_files_do_no_harm(tmp_path):
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    hidden = ("x/._1.png", b"\0\5\x16\7")
    path = pack(tmp_path / "a.tar", ("x", folder), hidden, *sample("x/1", 0), *sample("./y/2", 0, 1))
    data = WebDataset(shards=str(path))
    assert data.names == ["a.tar/x/1", "a.tar/y/2"] and data.batch([1])["images"].shape == (1, 3, 12, 12)
    assert {file.name for file in tmp_path.iterdir()} == {"a.tar", "cache"}


def record(**fields) -> bytes:
    return json.dumps(fields).encode()


def test_labels_come_from_cls_or_else_from_json_or_from_the_field_that_is_bound(tmp_path):
    image = picture(0)
    both = [
        ("a.json", record(label=5)),
        ("a.png", image),
        ("a.cls", b" 1\n"),
        ("b.json", record(cls=2, fine=4)),
        ("b.png", image),
    ]
    path = str(pack(tmp_path / "a.tar", *both))
    assert WebDataset(shards=path).labels.tolist() == [1, 2]
    assert WebDataset(shards=path, num_classes=9).num_classes == 9
    with pytest.raises(ValueError, match=r"a.tar: a.json has no field 'fine': set WebDataset.label_field to "):
        WebDataset(shards=path, label_field="fine")
    assert WebDataset(shards=str(pack(tmp_path / "b.tar", *both[3:])), label_field="fine").labels.tolist() == [4]


def test_without_classes_no_labels_are_needed(tmp_path):
    path = str(pack(tmp_path / "a.tar", ("a.png", picture(0)), ("b.png", picture(1)), ("b.cls", b"cat")))
    data = WebDataset(shards=path, num_classes=1)
    assert data.labels.tolist() == [0, 0] and data.class_names == ["0"]


def device(kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo("a.png")
    header.type, header.linkname = kind, "/etc/passwd"
    return header


IMAGE = ("a.png", picture(0))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([IMAGE], "the sample 'a' has no label: neither a.cls nor a.json with the field.*num_classes = 1"),
        ([IMAGE, ("a.json", record(text="cat"))], "the sample 'a' has no label"),
        ([IMAGE, ("a.jpg", picture(0)), ("a.cls", b"0")], "the sample 'a' has two images, a.png and a.jpg"),
        ([IMAGE, ("a.cls", b"cat")], "a.cls contains b'cat'; a label must be an integer of at least 0"),
        ([IMAGE, ("a.cls", b"-1")], "a.cls contains b'-1'"),
        ([IMAGE, ("a.cls", b"")], "a.cls contains b''"),
        ([IMAGE, ("a.cls", b"1000000")], "the label 1000000 means 1000001 classes"),
        ([IMAGE, ("a.cls", bytes(2**20 + 1))], "a.cls has 1,048,577 bytes; a label may have at most"),
        ([IMAGE, ("a.json", record(label=1.0))], "a.json: 'label' is 1.0; a label must be an integer"),
        ([IMAGE, ("a.json", record(label=True))], "a.json: 'label' is True"),
        ([IMAGE, ("a.json", b"[" * 100_000)], "a.json is not JSON"),
        ([*sample("a", 0), *sample("b", 0), *sample("a", 1)], "the key 'a' occurs more than once"),
        ([("a.cls", b"0")], "the sample 'a' has a.cls, but no image"),
        ([("a.0001.png", picture(0)), ("a.cls", b"0")], "has a.0001.png, but no image; a key ends at the first dot"),
        ([("a.png", b""), ("a.cls", b"0")], "a.png has 0 bytes; an image must have 1 to 268,435,456"),
        ([("a.png", device(tarfile.SYMTYPE))], "a.png is not a regular file; links, devices and sparse files are not"),
        ([("a.png", device(tarfile.LNKTYPE))], "a.png is not a regular file"),
        ([("a.png", device(tarfile.CHRTYPE))], "a.png is not a regular file"),
        ([("a.txt", b"x")], "has no images: members must be named key.jpg, .jpeg, .png or .webp"),
        ([], "has no images"),
    ],
)
def test_what_is_no_sample_is_refused_by_shard_and_member(tmp_path, members, message):
    with pytest.raises(ValueError, match=rf"(a\.tar|WebDataset\.shards).*{message}"):
        WebDataset(shards=str(pack(tmp_path / "a.tar", *members)))


def test_an_image_of_absurd_size_is_refused_without_being_read(tmp_path):
    header = tarfile.TarInfo("a.png")
    header.size = 2**28 + 1
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(header.tobuf())
        file.truncate(2**29)  # takes no space
    with pytest.raises(ValueError, match="a.png has 268,435,457 bytes"):
        WebDataset(shards=str(tmp_path / "a.tar"))


def test_keys_in_two_shards_are_refused(tmp_path):
    pack(tmp_path / "a.tar", *sample("x", 0)), pack(tmp_path / "b.tar", *sample("x", 0))
    with pytest.raises(ValueError, match=r"the key 'x' is in .*a.tar and in .*b.tar; keys must differ"):
        WebDataset(shards=f"{tmp_path}/*.tar")
    with pytest.raises(ValueError, match=r"names .*a.tar more than once"):
        WebDataset(shards=[f"{tmp_path}/a.tar", f"{tmp_path}/*.tar"])


def test_archives_cut_short_anywhere_are_refused(pair, tmp_path):
    whole = (pair[1] / "train-000.tar").read_bytes()
    for length in [0, 100, 512, 700, 1024, 1500, 2048, 4000, 6144, len(whole.rstrip(b"\0"))]:
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.tar (is truncated|is not an intact tar|is damaged or truncated)"):
            WebDataset(shards=str(tmp_path / "a.tar"))


def test_other_archives_and_joined_ones_are_refused(pair, tmp_path):
    whole = (pair[1] / "train-000.tar").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole))
    (tmp_path / "b.tar").write_bytes(whole + whole)
    (tmp_path / "c.tar").write_bytes(b"PK\3\4" + bytes(range(256)) * 8)
    for name, message in {
        "a.tar.gz": r"is compressed \(gzip\); images cannot be read at random positions: decompress it",
        "b.tar": "has data after its end mark, like concatenated tar files",
        "c.tar": "is not an intact tar file",
    }.items():
        with pytest.raises(ValueError, match=f"{name} {message}"):
            WebDataset(shards=str(tmp_path / name))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(place=124, value=0xFF)  # a size below zero, in the binary form
@example(place=156, value=ord("x"))  # an extended header of the size of an image
@given(place=st.integers(0, 9000), value=st.integers(0, 255))
@pytest.mark.parametrize("repair", [False, True])
def test_a_damaged_byte_gives_a_refusal_or_images(pair, tmp_path, repair, place, value):
    """Change a header; `repair` updates its checksum, as an attacker would."""
    content = bytearray((pair[1] / "train-000.tar").read_bytes())
    place %= len(content)
    content[place] = value
    head = place - place % 512
    if repair:
        content[head + 148 : head + 156] = b" " * 8
        content[head + 148 : head + 156] = b"%06o\0 " % sum(content[head : head + 512])
    (tmp_path / "a.tar").write_bytes(content)
    try:
        data = WebDataset(shards=str(tmp_path / "a.tar"))
        data.batch(range(len(data)))
    except ValueError as error:  # UnreadableImage among them
        assert "a.tar" in str(error) or "WebDataset.shards" in str(error)


def test_unreadable_images_are_named_with_shard_and_key(tmp_path):
    bad = [("b.png", picture(1)[:100]), ("b.cls", b"1")]
    data = WebDataset(shards=str(pack(tmp_path / "a.tar", *sample("a", 0), *bad, *sample("c", 1, 2))))
    with pytest.raises(UnreadableImage, match=r"^a\.tar/b: OSError"):
        data.batch([0, 1])
    with pytest.raises(AuditError, match=r"1 images cannot be read.*\n +a\.tar/b: OSError"):
        audit(data, batch_size=2)
    kept, found = audit(data, batch_size=2, skip_unreadable=True)
    assert kept.names == ["a.tar/a", "a.tar/c"] and found["num_images"] == 2


def test_labels_beyond_the_models_classes_are_refused_by_the_audit(pair):
    with pytest.raises(AuditError, match=r"first train-002.tar/2/0\): set WebDataset.num_classes = 3"):
        audit(WebDataset(shards=f"{pair[1]}/*.tar", num_classes=2), batch_size=2)


def test_failed_requests_are_made_again(serve, pair):
    server = serve(pair[1])
    server.failures = 2
    data = WebDataset(shards=f"{server.url}/train-000.tar")
    server.failures = len(server.requests) + 1
    assert torch.equal(data.batch(range(8))["images"], ImageFolder(path=str(pair[0])).batch(range(8))["images"])


def test_a_store_that_fails_for_good_is_no_unreadable_image(serve, pair):
    server = serve(pair[1])
    data = WebDataset(shards=f"{server.url}/train-000.tar")
    server.failures = 10**6
    for read in (
        lambda: data.batch([0, 1]),
        lambda: data[0],
        lambda: audit(data, batch_size=2, skip_unreadable=True),
    ):
        with pytest.raises(Unreachable, match=r"train-000.tar: unreachable in 4 attempts; the last error was .*503"):
            read()
    server.status = 403
    with pytest.raises(Unreachable, match=r"train-000.tar: access denied .*403.*set the credentials"):
        data.batch([0])


@pytest.mark.parametrize("indexed", [False, True])
def test_a_server_without_ranges_is_refused(serve, pair, indexed):
    server = serve(pair[1])
    server.ranges = indexed
    with pytest.raises(Unreachable, match="train-000.tar: the server does not support range requests.*copy the"):
        data = WebDataset(shards=f"{server.url}/train-000.tar")
        server.ranges = False
        data.batch([1])


def test_a_shard_that_vanished_or_shrank_is_named(pair, tmp_path):
    path = Path(shutil.copy(pair[1] / "train-000.tar", tmp_path))
    data = WebDataset(shards=str(path))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(Unreachable, match="train-000.tar.* the file has become shorter"):
        data.batch([3])
    path.unlink()
    with pytest.raises(Unreachable, match="train-000.tar does not exist"):
        data.batch([3])


@pytest.mark.parametrize(
    ("shards", "error", "message"),
    [
        ("{tmp}/*.tar", ValueError, r"WebDataset.shards = '.*': no shard matches /.*\*.tar"),
        ("{tmp}/a.tar", Unreachable, r"WebDataset.shards = '.*a.tar': .*a.tar does not exist"),
        ("{tmp}", ValueError, r"is a folder; to use the shards in it, write .*/\*.tar"),
        ([], ValueError, "must be a path, a URL, or a list of them"),
        (7, ValueError, "must be a path, a URL, or a list of them"),
        ("nowhere://x.tar", ValueError, "WebDataset.shards = 'nowhere://x.tar': Protocol not known: nowhere"),
        (["memory://a.tar", "/b.tar"], ValueError, "all shards must be in the same kind of store"),
        ("a-{9..1}.tar", ValueError, r"\{9..1\} must count upwards"),
        ("a-{0..99999999}.tar", ValueError, "at most 1,000,000 shards"),
    ],
)
def test_shards_that_are_not_there_are_refused(tmp_path, shards, error, message):
    with pytest.raises(error, match=message):
        WebDataset(shards=shards.replace("{tmp}", str(tmp_path)) if isinstance(shards, str) else shards)


def test_braces_stand_for_every_combination_in_order():
    found = list(tar_shards.expand_braces("{a,b}-{08..10}.tar", "here"))
    assert found == [f"{letter}-{number}.tar" for letter in "ab" for number in ("08", "09", "10")]
    assert list(tar_shards.expand_braces("plain.tar", "here")) == ["plain.tar"]


def test_a_gin_binding_is_all_it_takes(pair):
    bindings = ["audit.dataset = @datasets.WebDataset()", f"WebDataset.shards = '{pair[1]}/train-{{000..001}}.tar'"]
    config.parse([], [*bindings, "WebDataset.preprocessing = @Preprocessing()", "Preprocessing.image_size = 8"])
    data = config.bound("audit.dataset")
    assert len(data) == 16 and data.image_size == 8
