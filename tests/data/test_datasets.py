import builtins
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from redi.core import config
from redi.core.configurables import import_all
from redi.data.datasets import UnreadableImage, datasets, digits
from redi.data.datasets.adm_batch import AdmBatch
from redi.data.datasets.digits import Digits
from redi.data.datasets.hugging_face import HuggingFace
from redi.data.datasets.image_folder import ImageFolder
from redi.data.datasets.web_dataset import WebDataset
from redi.data.preprocessing import Preprocessing


def write(file: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def classes(root: Path, count: int = 5) -> Path:
    """Two classes of `count` images each."""
    for seed in range(2 * count):
        write(root / ("cat", "dog")[seed % 2] / f"{seed}.png", seed)
    return root


def flat(root: Path, labels: object = "none given") -> Path:
    """Write three images below 00000/ and, with labels, a dataset.json."""
    for seed in range(3):
        write(root / "00000" / f"img{seed}.png", seed)
    if labels != "none given":
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


def listed(*labels: object) -> list[list]:
    return [[f"00000/img{number}.png", label] for number, label in enumerate(labels)]


def zipped(folder: Path, method: int = zipfile.ZIP_STORED) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):  # an order that is not the sorted one
            archive.write(file, file.relative_to(folder))
    return path


def saved(root: Path, labels=None, kind: object = None, **columns) -> Path:
    import datasets as hf

    for seed in range(6):
        write(root / "files" / f"{seed}.png", seed)
    rows = {"image": [str(root / "files" / f"{seed}.png") for seed in range(6)], "label": labels or [0, 1, 2, 0, 1, 2]}
    kind = kind or hf.ClassLabel(names=["ant", "bee", "cow"])
    table = hf.Dataset.from_dict(rows | columns).cast_column("image", hf.Image()).cast_column("label", kind)
    table.save_to_disk(str(root / "saved"))
    return root / "saved"


def batch(path: Path) -> Path:
    """An ADM batch of twelve images in two classes."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(path, arr_0=images, arr_1=np.arange(12) % 2)
    return path


def tar_shards(folder: Path) -> str:
    """Two shards of six images each, in two classes."""
    for seed in range(12):
        write(folder / str(seed % 2) / f"{seed:02d}.png", seed)
        (folder / str(seed % 2) / f"{seed:02d}.cls").write_text(str(seed % 2))
    for label in range(2):
        with tarfile.open(folder / f"{label}.tar", "w") as archive:
            for file in sorted((folder / str(label)).iterdir()):
                archive.add(file, file.name)
    return str(folder / "{0..1}.tar")


def refused(match: str, **settings) -> None:
    with pytest.raises(ValueError, match=match):
        ImageFolder(**{key: str(value) if key == "path" else value for key, value in settings.items()})


@pytest.fixture(params=sorted(datasets))
def make(request, tmp_path):
    """A constructor of every registered data set, with the files that it needs."""
    component = datasets[request.param]
    if component is ImageFolder:
        path = classes(tmp_path / "images")
        return lambda **settings: ImageFolder(path=str(path), **settings)
    if component is HuggingFace:
        path = saved(tmp_path)
        return lambda **settings: HuggingFace(path=str(path), **settings)
    if component is AdmBatch:
        path = batch(tmp_path / "batch.npz")
        return lambda **settings: AdmBatch(path=str(path), **settings)
    if component is WebDataset:
        shards = tar_shards(tmp_path / "shards")
        return lambda **settings: WebDataset(shards=shards, **settings)
    return component


# Every data set


def test_images_are_rgb_bytes_of_the_announced_size(make):
    data = make(split="all")
    for position in (0, len(data) - 1):
        image = data.load(int(data.indices[position]))
        width, height, mode = data.inspect(int(data.indices[position]))
        assert image.dtype == np.uint8 and isinstance(mode, str)
        assert image.shape == (*data.output_size(width, height)[::-1], 3)
        tensor, label = data[position]
        assert torch.equal(tensor, torch.from_numpy(image).permute(2, 0, 1)) and type(label) is int


def test_two_constructions_agree(make):
    one, other = make(), make()
    assert one.fingerprint() == other.fingerprint() and one.names == other.names
    assert np.array_equal(one.load(1), other.load(1))


def test_labels_and_names_fit_together(make):
    data = make(split="all")
    assert len(data.names) == len(set(data.names)) == len(data.labels) == len(data)
    assert data.labels.dtype == np.int64 and data.labels.min() >= 0 and data.labels.max() < data.num_classes
    assert len(data.class_names) == data.num_classes


def test_held_out_and_train_are_disjoint_and_complete(make):
    settings = {"held_out_fraction": 0.4, "split_seed": 3}
    whole, train, held_out = make(split="all"), make(split="train", **settings), make(split="held_out", **settings)
    assert len(train) and len(held_out)
    assert sorted(train.names + held_out.names) == sorted(whole.names)
    assert set(train.labels) == set(held_out.labels) == set(whole.labels)  # drawn per class
    assert len({data.fingerprint() for data in (whole, train, held_out)}) == 3
    image, _ = held_out[0]
    assert torch.equal(image, whole[whole.names.index(held_out.names[0])][0])


def test_provenance_is_json_and_survives_pickling(make):
    data = make()
    copy = pickle.loads(pickle.dumps(data))
    assert json.loads(json.dumps(data.provenance())) == copy.provenance()
    assert torch.equal(copy[0][0], data[0][0])


def test_preprocessing_changes_size_and_fingerprint(make):
    data = make()
    setting = {"image_size": 4} if isinstance(data, Digits) else {"preprocessing": Preprocessing(image_size=4)}
    small = make(**setting)
    assert small[0][0].shape == (3, 4, 4) and small.fingerprint() != data.fingerprint()


def test_threads_load_the_same_pixels(make):
    data = make(split="all")
    order = [position for position in range(min(len(data), 10))] * 20
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda position: data[position][0], order))
    assert all(torch.equal(image, data[position][0]) for image, position in zip(images, order, strict=True))


# Digits


def test_digits_are_scikit_learns_stretched_to_bytes():
    from sklearn.datasets import load_digits

    data = Digits(split="all")
    assert len(data) == 1797 and data.num_classes == 10 and np.array_equal(data.labels, load_digits().target)
    stretched = load_digits().images[7] / 16 * 255
    assert abs(data.load(7) - stretched[..., None]).max() <= 0.5 and data.load(0).max() == 239  # 15 of 16


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="positions is empty"):
        Digits().batch([])


def test_digits_are_the_same_from_scikit_learns_file_and_from_its_function(monkeypatch):
    quick = Digits(split="all")
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    assert Digits(split="all").fingerprint() == quick.fingerprint()


# Shipped configurations


@pytest.mark.parametrize("source", ["hugging_face", "web_dataset"])
def test_one_macro_trains_on_a_table_or_on_shards_and_holds_some_out(tmp_path, source):
    path = tar_shards(tmp_path) if source == "web_dataset" else str(saved(tmp_path))
    bindings = [f"IMAGES = {path!r}", "Preprocessing.image_size = 4"]
    if source == "hugging_face":
        bindings.append("HuggingFace.held_out_fraction = 0.5")
    import_all()
    config.parse(["images.gin", f"{source}.gin"], bindings)
    train, held_out = config.bound("train.dataset"), config.bound("evaluate.reference")
    assert type(train).__name__.lower() == source.replace("_", "") and train.num_classes == held_out.num_classes > 1
    assert train[0][0].shape == (3, 4, 4) and not set(train.names) & set(held_out.names)
    assert len(train) + len(held_out) == (12 if source == "web_dataset" else 6)


# ImageFolder


def test_each_top_level_folder_is_a_class(tmp_path):
    classes(tmp_path)
    write(tmp_path / "cat" / "deeper" / "x.PNG")
    (tmp_path / "bee").mkdir()
    data = ImageFolder(path=str(tmp_path))
    assert data.class_names == ["bee", "cat", "dog"]
    assert data.labels[data.names.index("cat/deeper/x.PNG")] == 1 and set(data.labels) == {1, 2}


def test_images_at_the_root_are_unlabelled(tmp_path):
    write(tmp_path / "b.png"), write(tmp_path / "a.jpg")
    data = ImageFolder(path=str(tmp_path))
    assert data.names == ["a.jpg", "b.png"] and data.labels.tolist() == [0, 0] and data.num_classes == 1


def test_dataset_json_gives_the_labels(tmp_path):
    data = ImageFolder(path=str(flat(tmp_path, listed(6, 0, 2))))
    assert data.labels.tolist() == [6, 0, 2] and data.num_classes == 7
    assert ImageFolder(path=str(tmp_path), num_classes=1000).num_classes == 1000


def test_dataset_json_with_null_labels_is_unlabelled(tmp_path):
    data = ImageFolder(path=str(flat(tmp_path, None)))
    assert data.labels.tolist() == [0, 0, 0] and data.num_classes == 1


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("labelled_by", ["folders", "dataset.json"])
def test_a_zip_is_the_folder_it_was_made_of(tmp_path, method, labelled_by):
    root = classes(tmp_path / "x") if labelled_by == "folders" else flat(tmp_path / "x", listed(1, 0, 2))
    (root / "empty").mkdir()
    folder, archive = ImageFolder(path=str(root)), ImageFolder(path=str(zipped(root, method)))
    assert folder.names == archive.names and folder.class_names == archive.class_names
    assert np.array_equal(folder.labels, archive.labels)
    assert all(np.array_equal(folder.load(i), archive.load(i)) for i in range(len(folder)))


def test_hidden_files_and_other_files_are_ignored(tmp_path):
    root = classes(tmp_path / "x")
    names = ImageFolder(path=str(root)).names
    write(root / "cat" / ".hidden.png"), write(root / ".thumbs" / "a.png"), write(root / "__MACOSX" / "cat" / "b.png")
    for other in ("readme.txt", "cat/weights.h5", "cat/clip.mpg", "cat/figure.eps"):
        (root / other).write_text("no image")
    for path in (root, zipped(root)):
        data = ImageFolder(path=str(path))
        assert data.names == names and data.class_names == ["cat", "dog"]


def test_a_moved_folder_keeps_its_fingerprint_and_a_changed_file_ends_it(tmp_path):
    old = ImageFolder(path=str(classes(tmp_path / "old"))).fingerprint()
    new = (tmp_path / "old").rename(tmp_path / "new")
    assert ImageFolder(path=str(new)).fingerprint() == old
    os.utime(new / "cat" / "0.png", ns=(0, 0))
    touched = ImageFolder(path=str(new)).fingerprint()
    (new / "cat" / "0.png").rename(new / "cat" / "00.png")
    assert len({old, touched, ImageFolder(path=str(new)).fingerprint()}) == 3


def test_a_zip_packed_again_from_the_same_files_keeps_its_fingerprint(tmp_path):
    root = classes(tmp_path / "x")
    old = ImageFolder(path=str(zipped(root))).fingerprint()
    assert ImageFolder(path=str(zipped(root, zipfile.ZIP_DEFLATED))).fingerprint() == old
    write(root / "cat" / "0.png", seed=99)
    assert ImageFolder(path=str(zipped(root))).fingerprint() != old


def test_a_link_within_the_folder_is_a_file(tmp_path):
    classes(tmp_path)
    (tmp_path / "cat" / "link.png").symlink_to("0.png")
    assert "cat/link.png" in ImageFolder(path=str(tmp_path)).names


def test_links_out_of_the_folder_are_refused(tmp_path):
    root = classes(tmp_path / "x")
    write(tmp_path / "secret.png")
    (root / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
    refused(r"cat/link.png is a symbolic link out of the folder, to .*secret.png: replace it by a copy", path=root)
    (root / "cat" / "link.png").unlink()
    (root / "cat" / "link.png").symlink_to("nothing.png")
    refused(r"cat/link.png is a symbolic link to .*nothing.png, which does not exist", path=root)
    (root / "cat" / "link.png").unlink()
    (root / "cow").symlink_to(tmp_path)
    refused(r"cow is a symbolic link to the folder .*, which is not followed", path=root)


def test_paths_that_hold_no_images_are_refused(tmp_path):
    refused(r"ImageFolder.path = '.*nowhere' does not exist \(looked for /", path=tmp_path / "nowhere")
    (tmp_path / "a.tar").write_text("no zip")
    refused(r"ImageFolder.path = '.*a.tar' is neither a folder nor a complete zip file", path=tmp_path / "a.tar")
    (tmp_path / "empty").mkdir()
    refused(r"ImageFolder.path = '.*empty' has no images; names must have", path=tmp_path / "empty")
    refused(r"ImageFolder.path = '.*empty.zip' has no images", path=zipped(classes(tmp_path / "empty", 0)))


def test_images_at_the_root_beside_class_folders_are_refused(tmp_path):
    write(classes(tmp_path) / "stray.png")
    refused(r"images both at the root \(stray.png\) and in class folders \(cat, dog\).*dataset.json", path=tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (listed(0, 1), r"has no label for 1 images: 00000/img2.png"),
        ([], r"has no label for 3 images: 00000/img0.png, 00000/img1.png, 00000/img2.png"),
        (listed(0, 1, 2, 3), r"lists 1 images that do not exist: 00000/img3.png"),
        (listed(0, 1, 2) + listed(0), r"lists 1 files more than once"),
        (listed(0, 1, 2.0), r"has the label 2.0 for 00000/img2.png; labels must be integers of at least 0"),
        (listed(0, 1, [1, 0]), r"the label \[1, 0\] for"),
        (listed(0, 1, None), r"the label None"),
        (listed(0, 1, True), r"the label True"),
        (listed(0, 1, -1), r"the label -1"),
        (listed(0, 1, 10**9), r"the label 1000000000 means 1000000001 classes"),
        ("text", r'must be {"labels": \[\["file name", label\], ...\]} or {"labels": null}'),
        ([[3, 4]], r"must be"),
        ({"a.png": 1}, r"must be"),
    ],
)
def test_bad_labels_in_dataset_json_are_refused(tmp_path, labels, message):
    refused(rf"^ImageFolder.path = '.*': dataset.json.*{message}", path=flat(tmp_path, labels))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "\x00"])
def test_a_broken_dataset_json_is_refused(tmp_path, text):
    (flat(tmp_path) / "dataset.json").write_text(text)
    refused('dataset.json must be {"labels"', path=tmp_path)


def test_a_class_or_number_for_preprocessing_is_refused(tmp_path):
    message = r"ImageFolder.preprocessing = .* must be a Preprocessing: set .* = Preprocessing\(\)"
    refused(message, path=classes(tmp_path), preprocessing=Preprocessing)
    refused(message, path=tmp_path, preprocessing=256)


def test_damaged_images_are_named_with_the_cause(tmp_path, monkeypatch):
    root = classes(tmp_path / "x")
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "1.png").write_text("no image")
    (root / "dog" / "3.png").write_bytes(b"")
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(root / "cat" / "float.tiff")
    for path in (root, zipped(root)):
        data = ImageFolder(path=str(path))
        for name in ("cat/0.png", "dog/1.png", "dog/3.png", "cat/float.tiff"):
            for method in (data.load, data.inspect):
                with pytest.raises(
                    UnreadableImage, match=rf"^{name}: (OSError: \w+|not an image in|ValueError: the range of pixels)"
                ):
                    method(data.names.index(name))
        data.inspect(data.names.index("cat/2.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # 64 pixels are more than twice that
    with pytest.raises(UnreadableImage, match="cat/2.png: DecompressionBombError: Image size"):
        data.inspect(data.names.index("cat/2.png"))


def test_a_file_gone_since_is_unreadable(tmp_path):
    data = ImageFolder(path=str(classes(tmp_path)))
    (tmp_path / data.names[0]).unlink()
    with pytest.raises(UnreadableImage, match="cat/0.png: FileNotFoundError"):
        data.load(0)


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path):
    path = zipped(classes(tmp_path / "x"))
    data = ImageFolder(path=str(path))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="the zip file is damaged or was replaced"):
        [data.load(index) for index in range(len(data))]


def test_a_zip_compressed_in_a_rare_way_says_so(tmp_path):
    data = ImageFolder(path=str(zipped(classes(tmp_path / "x"), zipfile.ZIP_LZMA)))
    with pytest.raises(UnreadableImage, match="not compressed with deflate: create the zip file again"):
        data.load(0)


def test_a_zip_written_by_appending_to_another_file_is_read(tmp_path):
    path = zipped(classes(tmp_path / "x"))
    (tmp_path / "y.zip").write_bytes(b"a self-extracting program" * 9 + path.read_bytes())
    assert np.array_equal(ImageFolder(path=str(tmp_path / "y.zip")).load(3), ImageFolder(path=str(path)).load(3))


def test_inspect_gives_the_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert ImageFolder(path=str(tmp_path)).inspect(0) == (10, 20, "L")
    as_stored = ImageFolder(path=str(tmp_path), preprocessing=Preprocessing(exif_orientation=False))
    assert as_stored.inspect(0) == (20, 10, "L") and as_stored.load(0).shape == (10, 20, 3)


def test_real_photos_come_alike_from_folder_and_zip(tmp_path, photographs):
    shutil.copytree(photographs, tmp_path / "photos")
    settings = {"preprocessing": Preprocessing(image_size=64)}
    folder = ImageFolder(path=str(tmp_path / "photos"), **settings)
    archive = ImageFolder(path=str(zipped(tmp_path / "photos")), **settings)
    assert folder.names == archive.names and len(folder) == 6
    for index in range(6):
        assert np.array_equal(folder.load(index), archive.load(index))
        assert folder.inspect(index) == archive.inspect(index)


# HuggingFace


def test_a_saved_table_gives_its_images_and_labels(tmp_path):
    data = HuggingFace(path=str(saved(tmp_path)))
    assert data.class_names == ["ant", "bee", "cow"] and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for index in range(6):
        assert np.array_equal(data.load(index), np.asarray(Image.open(tmp_path / "files" / f"{index}.png")))


def test_a_member_of_a_dict_is_chosen_by_name(tmp_path):
    import datasets as hf

    table = hf.load_from_disk(str(saved(tmp_path)))
    hf.DatasetDict({"train": table, "test": table.select([4, 1])}).save_to_disk(str(tmp_path / "dict"))
    assert HuggingFace(path=str(tmp_path / "dict"), split_name="test").labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match="split_name = 'val' must be a split of the data set at '.*': test, train"):
        HuggingFace(path=str(tmp_path / "dict"), split_name="val")
    with pytest.raises(ValueError, match="HuggingFace.split_name = 'test': .* has a single data set.*remove the"):
        HuggingFace(path=str(tmp_path / "saved"), split_name="test")


def test_other_tables_have_other_fingerprints(tmp_path):
    one, other = (HuggingFace(path=str(saved(tmp_path / str(n), labels=[0, 1, 2, 0, 1, n]))) for n in (2, 1))
    assert one.fingerprint() != other.fingerprint()


def test_label_column_none_is_unlabelled(tmp_path):
    data = HuggingFace(path=str(saved(tmp_path)), label_column=None)
    assert data.labels.tolist() == [0] * 6 and data.num_classes == 1


def test_integer_labels_count_as_classes(tmp_path):
    import datasets as hf

    data = HuggingFace(path=str(saved(tmp_path, labels=[0, 5, 5, 5, 1, 2], kind=hf.Value("uint8"))))
    assert data.labels.tolist() == [0, 5, 5, 5, 1, 2] and data.num_classes == 6


def test_bad_tables_are_refused(tmp_path):
    import datasets as hf

    def refused(match, path, **settings):
        with pytest.raises(ValueError, match=match):
            HuggingFace(path=str(path), **settings)

    path = saved(tmp_path / "a", caption=list("abcdef"))
    refused(r"HuggingFace.path = '.*nowhere' is not a folder \(looked for /", tmp_path / "nowhere")
    refused(r"was not written by save_to_disk of the package datasets.*set ImageFolder.path", tmp_path / "a" / "files")
    refused(r"image_column = 'img' must be a column of the data set: image, label, caption", path, image_column="img")
    refused(r"image_column = 'label' must be a column of images, not ClassLabel", path, image_column="label")
    refused(r"label_column = 'y' must be a column of the data set: ", path, label_column="y")
    refused(r"'caption' is a column of Value\('string'\), .* or bind None to train", path, label_column="caption")
    refused(r"'label' is a column of Value\('float32'\)", saved(tmp_path / "b", kind=hf.Value("float32")))
    gap = saved(tmp_path / "c", labels=[0, 1, None, 0, 1, None])
    refused(r"label_column = 'label': 2 of 6 rows have no label", gap)


def test_damaged_and_absent_images_are_named_by_row(tmp_path):
    import datasets as hf

    rows = {"image": [{"bytes": b"no image", "path": None}, None], "label": [0, 0]}
    features = hf.Features({"image": hf.Image(), "label": hf.Value("int64")})
    hf.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "x"))
    data = HuggingFace(path=str(tmp_path / "x"))
    with pytest.raises(UnreadableImage, match=r"train\[0\]: not an image in one of the supported formats"):
        data.inspect(0)
    with pytest.raises(UnreadableImage, match=r"train\[1\]: ValueError: the row has no image"):
        data.load(1)


def test_without_the_package_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without_datasets(name, *rest, **named):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(ImportError, match=r"pip install 'redi-diffusion\[huggingface\]'"):
        HuggingFace(path="anywhere")


def test_the_class_count_is_part_of_the_fingerprint():
    prints = [Digits(num_classes=count).fingerprint() for count in (None, 10, 11, 12, 1)]
    assert prints[0] == prints[1] and len(set(prints)) == 4


def test_one_class_makes_all_labels_0():
    data = Digits(num_classes=1)
    assert data.num_classes == 1 and len(data) == len(Digits())
    assert not data.labels.any()
    assert not data.batch([0, 1, 2])["labels"].any()


def test_one_class_leaves_the_split_as_it_is():
    assert Digits(num_classes=1).names == Digits().names  # drawn per class of the source, before the labels go
