import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from redi.core import config
from redi.data.audit import AuditError, audit, class_names, format_audit
from redi.data.datasets import Dataset
from redi.data.datasets.digits import Digits
from redi.data.datasets.image_folder import ImageFolder
from redi.data.preprocessing import Preprocessing
from redi.runs.audit import audited_data
from redi.runtime import shared_work


def folder(root: Path, sizes: dict[str, tuple[int, int]], **settings) -> ImageFolder:
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / name)
    return ImageFolder(path=str(root), **settings)


def two_classes(root: Path, **settings) -> ImageFolder:
    return folder(root, {f"{name}/{n}.png": (8, 8) for name in ("cat", "dog") for n in range(3)}, **settings)


def refused(match: str, dataset: Dataset, **settings) -> AuditError:
    with pytest.raises(ValueError, match=match) as caught:
        audit(dataset, **{"batch_size": 2} | settings)
    assert isinstance(caught.value, AuditError)
    assert json.loads(json.dumps(caught.value.record))["refused"] and format_audit(caught.value.record)
    return caught.value


def test_a_sound_data_set_passes_unchanged_with_its_facts():
    data = Digits(split="all")
    same, record = audit(data, batch_size=100)
    assert same is data and json.loads(json.dumps(record)) == record
    assert record["num_images"] == 1797 and record["steps_per_epoch"] == 17.97 and record["label_range"] == [0, 9]
    assert record["num_classes"] == record["num_classes_present"] == 10 and record["missing_classes"] == []
    assert record["images_per_class"] == {str(n): count for n, count in enumerate(np.bincount(data.labels).tolist())}
    assert record["images_per_class_min_median_max"] == [174, 180.5, 183]
    assert record["sizes"] == record["sizes_after_preprocessing"] == {"8x8": 1797} and record["modes"] == {"L": 1797}
    assert record["unreadable"] == {} and record["warnings"] == []


def test_the_table_is_readable():
    table = format_audit(audit(Digits(split="all"), batch_size=100)[1])
    assert table.splitlines() == [
        "data set          Digits, split all",
        "images            1,797",
        "classes           10 of the model's 10 have images",
        "read as           10 classes, 0 = '0', 1 = '1', 2 = '2', ..., 9 = '9'",
        "missing           none",
        "images per class  174 to 183, median 180.5",
        "labels            0 to 9",
        "stored sizes      8x8: 1,797",
        "width, height     8 to 8, 8 to 8",
        "modes             L: 1,797",
        "sizes used        8x8",
        "unreadable        none",
        "steps per epoch   17.97 of batch 100",
    ]


def test_class_names_come_back_from_the_folder_of_a_run(tmp_path, caplog):
    assert class_names(tmp_path) is None
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit(two_classes(tmp_path / "images"), batch_size=2)[1]))
    assert class_names(tmp_path) == ["cat", "dog"]
    path.write_text(json.dumps(audit(two_classes(tmp_path / "images", num_classes=1), batch_size=2)[1]))
    assert class_names(tmp_path) is None
    path.write_text("{}")  # of a version that kept none
    assert class_names(tmp_path) is None and not caplog.text
    path.write_text("{")
    assert class_names(tmp_path) is None and "damaged" in caplog.text


def test_real_photos_are_described_and_need_a_size(photographs):
    _, record = audit(ImageFolder(path=str(photographs), preprocessing=Preprocessing(image_size=32)), batch_size=4)
    assert record["num_images"] == 6 and record["sizes_after_preprocessing"] == {"32x32": 6}
    assert record["num_sizes"] == 4 and record["modes"] == {"RGB": 5, "L": 1}
    error = refused("different sizes after preprocessing", ImageFolder(path=str(photographs)))
    assert error.record["width_min_max"] == [75, 640] and error.record["num_images"] == 6


def test_missing_classes_are_refused_and_allowed_on_request(tmp_path):
    data = two_classes(tmp_path, num_classes=1000)
    error = refused(
        r"only 2 of the model's 1000 classes have images; 998 have none: label 2, label 3, .*"
        r"label 21, and more. If .*set ImageFolder.num_classes = 2 for a model of only these classes, or "
        r"set audit.allow_missing_classes = True",
        data,
    )
    assert error.record["num_missing_classes"] == 998 and len(error.record["missing_classes"]) == 20
    same, record = audit(data, batch_size=2, allow_missing_classes=True)
    assert same is data and record["num_missing_classes"] == 998
    assert record["images_per_class"] == {"cat": 3, "dog": 3} and record["images_per_class_min_median_max"] == [0, 0, 3]


def test_an_empty_class_folder_is_a_missing_class_that_a_smaller_model_does_not_mend(tmp_path):
    (tmp_path / "bee").mkdir()
    error = refused("1 have none: bee. If no images are missing, set audit.allow_missing", two_classes(tmp_path))
    assert "num_classes =" not in str(error)


def test_labels_beyond_the_model_are_refused_before_decoding(tmp_path):
    data = folder(tmp_path, {"a/1.png": (8, 8), "b/2.png": (8, 9), "c/3.png": (8, 8)}, num_classes=2)
    error = refused(
        r"labels run from 0 to 2, but a model with 2 classes takes 0 to 1 \(1 images are outside, first c/3.png\): "
        r"set ImageFolder.num_classes = 3",
        data,
    )
    assert "sizes" not in error.record
    data.labels[0] = -1
    refused("labels run from -1 to 2, .*: number the labels from 0", data)


def test_no_images_are_refused(tmp_path):
    data = folder(tmp_path, {"a/1.png": (8, 8)}, split="held_out", held_out_fraction=0.2)
    refused(r"split 'held_out'.*\n- it has no images: check ImageFolder.split, ImageFolder.held_out_fraction", data)


def test_mixed_sizes_are_refused_with_the_binding(tmp_path):
    sizes = {"a.png": (8, 8), "b.png": (9, 8), "c.png": (9, 8)}
    refused(
        r"2 different sizes after preprocessing \(most common, width x height: 9x8 \(2\), 8x8 \(1\)\), but all "
        r"must be equal: set ImageFolder.preprocessing = Preprocessing\(\) and, e.g., Preprocessing.image_size = 256",
        folder(tmp_path, sizes),
    )
    _, record = audit(folder(tmp_path, sizes, preprocessing=Preprocessing(image_size=4)), batch_size=1)
    assert record["num_sizes"] == 2 and record["sizes_after_preprocessing"] == {"4x4": 3}


def test_a_camera_turned_makes_sizes_mixed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    refused(r"2 different sizes", folder(tmp_path, {"straight.jpg": (8, 6)}))


def test_oblong_images_are_refused(tmp_path):
    data = folder(tmp_path, {"a.png": (8, 6), "b.png": (8, 6)})
    refused("the images are 8 wide and 6 high after preprocessing, but must be square: set ImageFolder.pre", data)


def test_unreadable_images_are_listed_and_refused_or_left_out(tmp_path):
    data = two_classes(tmp_path)
    (tmp_path / "cat" / "1.png").write_text("no image")
    error = refused(
        r"1 images cannot be read: repair or delete them, or set audit.skip_unreadable = True\n"
        r"    cat/1.png: not an image in one of the supported formats",
        data,
    )
    assert list(error.record["unreadable"]) == ["cat/1.png"]
    rest, record = audit(data, batch_size=2, skip_unreadable=True)
    assert rest.names == [name for name in data.names if name != "cat/1.png"] and len(data) == 6
    assert record["num_images"] == 5 and record["images_per_class"] == {"cat": 2, "dog": 3}
    assert record["warnings"] == ["1 unreadable images were left out"]
    assert rest.fingerprint() != data.fingerprint() and rest[1][0].shape == (3, 8, 8)


def test_a_class_lost_with_its_unreadable_images_is_missing(tmp_path):
    data = two_classes(tmp_path)
    for file in (tmp_path / "dog").iterdir():
        file.write_text("no image")
    refused("1 have none: dog.*ImageFolder.num_classes = 1", data, skip_unreadable=True)
    for file in (tmp_path / "cat").iterdir():
        file.write_text("no image")
    refused("it has no images.*audit.skip_unreadable", data, skip_unreadable=True)
    error = refused("6 images cannot be read", data)
    assert "sizes" not in error.record


def test_several_problems_are_told_at_once(tmp_path):
    data = folder(tmp_path, {"a.png": (8, 6), "b.png": (9, 6), "c.png": (8, 6)})
    (tmp_path / "c.png").write_text("no image")
    assert len(refused("cannot be read(.|\n)*different sizes", data).record["refused"]) == 2


def test_a_batch_larger_than_the_data_set_is_a_warning(tmp_path):
    _, record = audit(two_classes(tmp_path), batch_size=64)
    assert record["warnings"] == ["the batch of 64 is larger than the data set of 6 images"]
    assert format_audit(record).endswith("warning           the batch of 64 is larger than the data set of 6 images")


def test_an_empty_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="audit.batch_size = 0 must be at least 1"):
        audit(two_classes(tmp_path), batch_size=0)


class Blank(Dataset):
    """The smallest data set: only the required methods."""

    def __init__(self, dtype: type = np.uint8):
        super().__init__(names=["a", "b"], labels=np.array([0, 1]), class_names=["x", "y"])
        self.dtype = dtype

    def load(self, index):
        return np.zeros((4, 4, 3), dtype=self.dtype)

    def provenance(self):
        return {}


def test_a_data_set_that_implements_the_least_passes():
    assert audit(Blank(), batch_size=1)[1]["sizes_after_preprocessing"] == {"4x4": 2}


def test_a_component_that_breaks_its_contract_is_named():
    refused(r"Blank.load returns float32 \(4, 4, 3\) for a, but inspect and output_size promise", Blank(np.float32))


def test_standard_output_stays_clean(tmp_path, capfd):
    audit(two_classes(tmp_path), batch_size=2)
    assert capfd.readouterr() == ("", "")  # the bar is for terminals, on standard error


def test_images_smaller_than_the_crop_are_warned_of(tmp_path):
    for name, size in (("a/1.png", (40, 50)), ("a/2.png", (7, 10)), ("b/3.png", (40, 31))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / name)
    folder = ImageFolder(path=tmp_path, preprocessing=Preprocessing(image_size=32))
    _, record = audit(dataset=folder, batch_size=1)
    (warning,) = record["warnings"]
    assert warning.startswith("2 of 3 images are smaller than the training size and are enlarged (the smallest is a")
    assert warning.endswith(": 7x10)")


class Gated(Digits):
    """Two of the ten classes; counts inspected images, and waits for the gate before each."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.looked_at = gate, []

    def inspect(self, index):
        self.gate.wait(10)
        self.looked_at.append(index)
        return 8 + index % 2, 8, "L"  # sizes that are mixed

    def output_size(self, width, height):
        return width, height


@pytest.fixture
def gated(monkeypatch):
    """A data set that fails the audit once the gate is open."""
    dataset = Gated(threading.Event())
    monkeypatch.setattr(config, "bound", lambda name, default=None: dataset if name == "train.dataset" else default)
    monkeypatch.setattr(config, "call", lambda function, **options: function(**options))
    return dataset


def refusal(run_dir) -> str:
    with pytest.raises(AuditError) as caught:
        audited_data(run_dir)
    return str(caught.value)


def test_of_several_processes_one_audits_and_all_are_told_of_a_refusal(gated, tmp_path, monkeypatch):
    waiting = threading.Barrier(3, timeout=10)  # two that wait, and this test

    def sleep(seconds):
        if not gated.gate.is_set():
            waiting.wait()
        gated.gate.wait(10)
        threading.Event().wait(0.01)

    monkeypatch.setattr(shared_work.time, "sleep", sleep)
    with ThreadPoolExecutor(3) as pool:
        told = [pool.submit(refusal, tmp_path) for _ in range(3)]
        waiting.wait()
        gated.gate.set()
        (message,) = {each.result() for each in told}
    assert "2 different sizes after preprocessing" in message
    assert len(gated.looked_at) == len(gated)
    assert json.loads((tmp_path / "audit.json").read_text())["refused"]


def test_a_new_start_audits_again_what_was_refused(gated, tmp_path):
    gated.gate.set()
    assert refusal(tmp_path) == refusal(tmp_path)
    assert len(gated.looked_at) == 2 * len(gated)
