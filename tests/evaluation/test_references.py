"""References: features of images are computed once and cached; stored statistics are read and validated."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from redi.data.datasets import Dataset
from redi.data.datasets.adm_batch import AdmBatch
from redi.data.datasets.digits import Digits
from redi.data.datasets.image_folder import ImageFolder
from redi.data.preprocessing import Preprocessing
from redi.evaluation import references
from redi.evaluation.references import reference_features, reference_positions
from redi.evaluation.stored_statistics import StoredStatistics, ending, images_of
from redi.models.encoders import Encoder


class Means(Encoder):
    """Four features per image, and a count of the images processed."""

    dim = 4

    def __init__(self, *, scale: float = 1.0):
        super().__init__()
        self.scale, self.seen = scale, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        pixels = images.float() * self.scale
        return torch.stack([pixels[:, 0, i::2, j::2].mean(dim=(1, 2)) for i in (0, 1) for j in (0, 1)], 1)[
            ..., None, None
        ]

    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        pooled = self.pooled(images)
        return {"pooled": pooled, "spatial": pooled[:, :2], "logits": pooled}

    def provenance(self) -> dict:
        return {"encoder": "Means", "scale": self.scale, "timm": "a version"}


@pytest.fixture
def digits() -> Digits:
    return Digits(split="held_out", held_out_fraction=0.05)


def naive(dataset: Dataset, positions) -> Tensor:
    return torch.stack([Means().pooled(dataset[i][0][None])[0] for i in positions])


def test_features_are_those_of_the_images_in_their_order(digits, tmp_path):
    found = reference_features(digits, Means(), cache_dir=tmp_path, batch_size=7)
    assert found.role == "reference"
    assert torch.equal(found.tensors["pooled"], naive(digits, range(len(digits))))
    assert torch.equal(found.tensors["spatial"], found.tensors["pooled"][:, :2])
    assert set(found.tensors) == {"pooled", "spatial"}


def test_several_parts_are_joined_in_their_order(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "BLOCK", 8)
    found = reference_features(digits, Means(), cache_dir=tmp_path, batch_size=3)
    assert torch.equal(found.tensors["pooled"], naive(digits, range(len(digits))))


def test_a_second_call_does_not_run_the_network(digits, tmp_path):
    before, network = reference_features(digits, Means(), cache_dir=tmp_path), Means()
    after = reference_features(digits, network, cache_dir=tmp_path)
    assert network.seen == 0
    assert torch.equal(before.tensors["pooled"], after.tensors["pooled"])


def test_another_version_of_a_library_makes_no_other_features(digits, tmp_path):
    class Newer(Means):
        def provenance(self) -> dict:
            return super().provenance() | {"timm": "another version"}

    reference_features(digits, Means(), cache_dir=tmp_path)
    reference_features(digits, network := Newer(), cache_dir=tmp_path)
    assert network.seen == 0


@pytest.mark.parametrize("other", ["network", "images", "count"])
def test_what_decides_the_features_decides_their_place(other, digits, tmp_path):
    reference_features(digits, Means(), cache_dir=tmp_path)
    network = Means(scale=2.0) if other == "network" else Means()
    images = Digits(split="held_out", held_out_fraction=0.06) if other == "images" else digits
    reference_features(images, network, cache_dir=tmp_path, max_images=9 if other == "count" else None)
    assert network.seen > 0
    assert len(list((tmp_path / "references").iterdir())) == 2


def test_so_many_images_are_a_fixed_sample_of_all(digits, tmp_path):
    positions = reference_positions(digits, 20)
    assert len(set(positions)) == 20 and positions == sorted(positions) and positions != list(range(20))
    assert positions == reference_positions(digits, 20)
    found = reference_features(digits, Means(), max_images=20, cache_dir=tmp_path)
    assert torch.equal(found.tensors["pooled"], naive(digits, positions))


def test_two_processes_make_the_same_features_and_share_the_work(digits, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(references, "BLOCK", 16)
    networks = [Means(), Means()]
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(
                lambda rank: reference_features(digits, networks[rank], cache_dir=tmp_path, rank=rank, world_size=2),
                range(2),
            )
        )
    assert torch.equal(found[0].tensors["pooled"], naive(digits, range(len(digits))))
    assert torch.equal(found[1].tensors["pooled"], found[0].tensors["pooled"])
    assert sum(network.seen for network in networks) == len(digits)


@pytest.mark.parametrize("file", ["part-00001.safetensors", "record.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_features_are_said_and_computed_again(digits, tmp_path, monkeypatch, caplog, file, damage):
    monkeypatch.setattr(references, "BLOCK", 16)
    before = reference_features(digits, Means(), cache_dir=tmp_path).tensors["pooled"]
    (folder,) = (tmp_path / "references").iterdir()
    path = folder / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-8])
    if damage == "gone":
        path.unlink()
    assert torch.equal(reference_features(digits, Means(), cache_dir=tmp_path).tensors["pooled"], before)
    assert "the reference features again, because the stored result is damaged" in caplog.text and file in caplog.text
    caplog.clear()
    assert torch.equal(reference_features(digits, network := Means(), cache_dir=tmp_path).tensors["pooled"], before)
    assert network.seen == 0 and "damaged" not in caplog.text


@pytest.mark.parametrize("same_batch", [True, False])
def test_mixed_sizes_are_refused_naming_two_images(same_batch, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number, size in enumerate([8, 8, 8, 12]):
        Image.new("RGB", (size, 8)).save(tmp_path / "images" / "a" / f"{number}.png")
    mixed = ImageFolder(path=str(tmp_path / "images"))
    with pytest.raises(
        ValueError, match=r"differ in size \(a/0.png has 8x8 pixels, a/3.png 12x8.*Preprocessing.image_size"
    ):
        reference_features(mixed, Means(), cache_dir=tmp_path, batch_size=4 if same_batch else 1)
    one = ImageFolder(path=str(tmp_path / "images"), preprocessing=Preprocessing(image_size=8))
    assert len(reference_features(one, Means(), cache_dir=tmp_path)) == 4


def test_features_that_are_not_finite_are_refused_naming_the_image(digits, tmp_path):
    class Broken(Means):
        def forward(self, images: Tensor) -> Tensor:
            features = super().forward(images)
            features[-1] = torch.nan
            return features

    with pytest.raises(ValueError, match=rf"NaN or infinite.*'pooled'.*Broken.*{digits.names[4]}"):
        reference_features(digits, Broken(), cache_dir=tmp_path, batch_size=5)


# ---- stored statistics


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    features = np.random.default_rng(0).standard_normal((50, 4))
    return {"mu": features.mean(axis=0), "sigma": np.cov(features.T)}


@pytest.fixture
def stored(tmp_path):
    def stored(**arrays) -> str:
        np.savez(tmp_path / "statistics.npz", **arrays)
        return str(tmp_path / "statistics.npz")

    return stored


def test_statistics_are_read_as_they_are(stored, arrays):
    more = {"mu_s": arrays["mu"][:2], "sigma_s": arrays["sigma"][:2, :2]}
    found = StoredStatistics(path=stored(**arrays, **more), network="means").gaussians
    assert np.array_equal(found["pooled"].mean.numpy(), arrays["mu"])
    assert np.array_equal(found["pooled"].covariance.numpy(), arrays["sigma"])
    assert np.array_equal(found["spatial"].mean.numpy(), more["mu_s"])
    assert found["pooled"].mean.dtype == torch.float64


def test_statistics_are_of_one_network_alone(stored, arrays):
    assert ending(Means()) == "means"
    path = stored(**arrays)
    assert StoredStatistics(path=path, network="means").fits(Means())
    assert not StoredStatistics(path=path, network="clean").fits(Means())


def test_the_size_of_the_images_is_known_where_they_are_there(stored, arrays, digits):
    batch = np.zeros((3, 16, 16, 3), np.uint8)
    path = stored(arr_0=batch, **arrays)
    with_images = StoredStatistics(path=path, network="means", images=digits)
    assert with_images.image_size == 16 and images_of(with_images) is digits
    with pytest.raises(ValueError, match="image_size = 8: must be 16, as in arr_0"):
        StoredStatistics(path=path, network="means", image_size=8)
    assert images_of(StoredStatistics(path=stored(**arrays), network="means", image_size=8)) is None
    assert images_of(digits) is digits and images_of(None) is None


def test_another_file_has_another_fingerprint(stored, arrays):
    one = StoredStatistics(path=stored(**arrays), network="means").fingerprint()
    assert one == StoredStatistics(path=stored(**arrays), network="means").fingerprint()
    assert (
        one != StoredStatistics(path=stored(mu=arrays["mu"] + 1, sigma=arrays["sigma"]), network="means").fingerprint()
    )


UNSYMMETRIC = np.eye(4) + np.eye(4, k=1)
IMPOSSIBLE = {
    "no sigma": ({"sigma": None}, "has mu, but statistics need sigma"),
    "neither": ({"mu": None, "sigma": None, "arr_0": np.zeros(3)}, "has arr_0, but statistics need mu and sigma"),
    "another width": ({"mu": np.zeros(3)}, r"mu \(3,\) and sigma \(4, 4\): must be \(P,\) and \(P, P\)"),
    "a mean in two dimensions": ({"mu": np.zeros((1, 4))}, r"mu \(1, 4\)"),
    "a NaN": ({"mu": np.array([0, 0, 0, np.nan])}, "mu or sigma holds NaN or infinite values"),
    "an infinite variance": ({"sigma": np.diag([1, 1, 1, np.inf])}, "mu or sigma holds NaN or infinite values"),
    "no symmetry": ({"sigma": UNSYMMETRIC}, "sigma is not symmetric"),
    "a negative variance": ({"sigma": -np.eye(4)}, "has a negative variance"),
    "a spatial mean alone": ({"mu_s": np.zeros(2)}, "has mu_s but not sigma_s"),
    "words": ({"mu": np.array(["a"] * 4)}, "mu holds <U1, not numbers"),
    "objects": ({"mu": np.array([{}] * 4)}, "mu.npy has Python objects, whose pickles could run code"),
}


@pytest.mark.parametrize(("changed", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_statistics_are_refused(changed, message, stored, arrays):
    given = {name: array for name, array in (arrays | changed).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        StoredStatistics(path=stored(**given), network="means")


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.98])
def test_a_file_cut_short_is_refused(cut, stored, arrays, tmp_path):
    data = (tmp_path / "statistics.npz").read_bytes() if stored(**arrays) else b""
    (tmp_path / "cut.npz").write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ValueError, match="cut.npz is not an intact .npz file"):
        StoredStatistics(path=tmp_path / "cut.npz", network="means")


def test_an_altered_byte_of_the_arrays_is_found(stored, arrays, tmp_path):
    data = bytearray((tmp_path / "statistics.npz").read_bytes() if stored(**arrays) else b"")
    place = data.index(arrays["sigma"].tobytes())
    data[place + 3] ^= 1
    (tmp_path / "altered.npz").write_bytes(data)
    with pytest.raises(ValueError, match="altered.npz: sigma.npy cannot be read: Bad CRC"):
        StoredStatistics(path=tmp_path / "altered.npz", network="means")


def test_a_pickle_is_refused_unread(tmp_path):
    import pickle

    (tmp_path / "fid.pkl").write_bytes(pickle.dumps({"mu": 0}))
    with pytest.raises(ValueError, match="fid.pkl is not an intact .npz file"):
        StoredStatistics(path=tmp_path / "fid.pkl", network="clean")
    with pytest.raises(ValueError, match="StoredStatistics.path = 'nowhere.npz' is not a file"):
        StoredStatistics(path="nowhere.npz", network="clean")


def test_images_that_are_not_square_are_refused(tmp_path):
    np.savez(tmp_path / "batch.npz", arr_0=np.zeros((3, 16, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="image 000000 has 8x16 pixels, but reference images must be square"):
        reference_features(AdmBatch(path=str(tmp_path / "batch.npz")), Means(), cache_dir=tmp_path)
