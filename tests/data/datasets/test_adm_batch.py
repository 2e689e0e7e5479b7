"""ADM batches: mapped or unpacked, labelled or not, and errors. The interface of data sets: test_datasets."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from redi.data.datasets.adm_batch import AdmBatch

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)


def saved(path, write=np.savez, **arrays):
    write(path, **{"arr_0": IMAGES} | arrays)
    return path


@pytest.mark.parametrize(("write", "mapped"), [(np.savez, True), (np.savez_compressed, False)])
def test_images_are_those_of_the_file_and_mapped_where_they_are_stored_as_they_are(tmp_path, write, mapped):
    data = AdmBatch(path=str(saved(tmp_path / "x.npz", write)))
    assert np.array_equal(data.batch(range(6))["images"].permute(0, 2, 3, 1), IMAGES)
    assert isinstance(data.images.read(), np.memmap) is mapped
    assert len(pickle.dumps(data)) < 5000 + IMAGES.nbytes  # no copy of the images
    assert np.array_equal(pickle.loads(pickle.dumps(data)).load(5), IMAGES[5])


def test_arrays_in_the_order_of_fortran_and_other_headers_are_read(tmp_path):
    path = saved(tmp_path / "x.npz", arr_0=np.asfortranarray(IMAGES))
    assert np.array_equal(AdmBatch(path=str(path)).load(3), IMAGES[3])
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array(member, IMAGES, version=(2, 0))
    assert np.array_equal(AdmBatch(path=str(tmp_path / "y.npz")).load(3), IMAGES[3])


def test_labels_are_arr_1_and_without_them_there_is_one_class(tmp_path):
    labelled = AdmBatch(path=str(saved(tmp_path / "a.npz", arr_1=np.array([2, 0, 1, 2, 2, 0]))))
    assert labelled.labels.tolist() == [2, 0, 1, 2, 2, 0] and labelled.num_classes == 3
    assert AdmBatch(path=str(tmp_path / "a.npz"), num_classes=1000).num_classes == 1000
    plain = AdmBatch(path=str(saved(tmp_path / "b.npz")))
    assert plain.labels.tolist() == [0] * 6 and plain.num_classes == 1


def test_a_reference_batch_with_statistics_beside_its_images_is_read(tmp_path):
    path = saved(tmp_path / "x.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert len(AdmBatch(path=str(path))) == 6


def test_a_moved_batch_keeps_its_fingerprint_and_other_pixels_end_it(tmp_path):
    old = AdmBatch(path=str(saved(tmp_path / "a.npz"))).fingerprint()
    assert AdmBatch(path=str(saved(tmp_path / "b.npz"))).fingerprint() == old
    other = IMAGES.copy()
    other[5, 3, 3, 2] ^= 1
    assert AdmBatch(path=str(saved(tmp_path / "c.npz", arr_0=other))).fingerprint() != old


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": IMAGES.astype(np.float32)}, r"arr_0 is float32 \(6, 4, 4, 3\); images must be uint8 \(N, H, W, 3\)"),
        ({"arr_0": IMAGES[..., :1]}, r"arr_0 is uint8 \(6, 4, 4, 1\)"),
        ({"arr_0": IMAGES[0]}, r"arr_0 is uint8 \(4, 4, 3\)"),
        ({"arr_0": np.array([{}, {}], dtype=object)}, "arr_0.npy has Python objects, whose pickles could run code"),
        ({"arr_1": np.array([{}] * 6, dtype=object)}, "arr_1.npy has Python objects"),
        ({"arr_1": np.zeros(5, int)}, r"arr_1 is int64 \(5,\); the labels of these images must be integers \(6,\)"),
        ({"arr_1": np.zeros(6)}, r"arr_1 is float64 \(6,\)"),
        ({"arr_1": np.array([0, 0, -1, 0, 0, 0])}, "arr_1 has the label -1; number the labels from 0"),
        ({"arr_1": np.array([0, 0, 10**9, 0, 0, 0])}, "the label 1000000000 means"),
    ],
)
def test_arrays_that_are_no_batch_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=rf"^AdmBatch.path = '.*x.npz'.*{message}"):
        AdmBatch(path=str(saved(tmp_path / "x.npz", **arrays)))


def test_files_that_are_no_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"AdmBatch.path = '.*nowhere.npz' is not a file \(looked for /"):
        AdmBatch(path=str(tmp_path / "nowhere.npz"))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(
        ValueError, match="an ADM batch has arr_0, but this file has mu, sigma; it is a file of statistics"
    ):
        AdmBatch(path=str(tmp_path / "stats.npz"))
    content = saved(tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cut.npz' is not an intact .npz file"):
        AdmBatch(path=str(tmp_path / "cut.npz"))


def test_an_array_that_is_shorter_than_it_says_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue()[:-7])
    with pytest.raises(ValueError, match=r"arr_0.npy is truncated or damaged: 281 bytes instead of 288"):
        AdmBatch(path=str(tmp_path / "x.npz"))


def test_damage_in_a_compressed_batch_is_noticed_when_it_is_read(tmp_path):
    path = saved(tmp_path / "x.npz", np.savez_compressed)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="arr_0.npy cannot be read"):
        AdmBatch(path=str(path)).load(0)
