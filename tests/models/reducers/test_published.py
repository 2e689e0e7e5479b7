"""Files of PCA statistics as the paper's code writes them, made here in the same structure; and the published one."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import decomposition

from redi.models.reducers import published
from redi.models.reducers.pca import PCA
from redi.runtime.checksums import sha256

WIDTH = 12
FLOAT64 = np.dtype("f8")


def fitted(**changes) -> dict:
    rows = np.random.default_rng(1).normal(size=(500, WIDTH)) * np.arange(1, WIDTH + 1) + 4
    mean, std = rows.mean(0), rows.std(0)
    model = decomposition.PCA().fit((rows + 0.25 - mean) / std)  # whose mean is not 0, as in the published file
    for name in [name for name in changes if hasattr(model, name)]:
        setattr(model, name, changes.pop(name))
    return {"pca_model": model, "mean": mean, "std": std} | changes


def written(path: Path, value) -> Path:
    torch.save(value, path)
    return path


def archive(data: bytes) -> bytes:
    """What torch.save writes around a pickle without tensors."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("f/data.pkl", data)
        file.writestr("f/version", b"3\n")
    return buffer.getvalue()


def imported(path: Path, **options) -> PCA:
    return PCA(**{"path": str(path), "rank": 4, "scale": "raw", "standardize": True} | options)


def as_rows(x) -> np.ndarray:
    return x.movedim(1, -1).flatten(0, -2).double().numpy()


def features(like: dict, n: int = 3) -> torch.Tensor:
    """Features (N, E, 4, 4) float32 with the mean and spread of the file's."""
    rows = np.random.default_rng(0).normal(size=(n, 4, 4, len(like["mean"]))) * like["std"] + like["mean"]
    return torch.from_numpy(rows).float().movedim(-1, 1)


def test_the_reducer_is_standardising_and_scikit_learns_transform(tmp_path):
    saved = fitted()
    reducer = imported(written(tmp_path / "f.pth", saved))
    x = features(saved)
    expected = saved["pca_model"].transform((as_rows(x) - saved["mean"]) / saved["std"])[:, :4]
    np.testing.assert_allclose(as_rows(reducer(x)), expected, rtol=0, atol=1e-5)


def test_the_spectrum_is_that_of_the_file(tmp_path):
    saved = fitted()
    reducer = imported(written(tmp_path / "f.pth", saved))
    ratios = saved["pca_model"].explained_variance_ratio_
    assert reducer.explained_variance == pytest.approx(ratios[:4].sum(), rel=1e-6)
    np.testing.assert_allclose(reducer.report()["explained_variance_ratio"], ratios, atol=1e-6)
    np.testing.assert_allclose(reducer.deviations, np.sqrt(saved["pca_model"].explained_variance_), rtol=1e-6)


def test_the_full_rank_inverts(tmp_path):
    saved = fitted()
    reducer = imported(written(tmp_path / "f.pth", saved), rank=WIDTH)
    x = features(saved)
    torch.testing.assert_close(reducer.inverse(reducer(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_other_types_and_orders_are_read(tmp_path, dtype, order):
    saved = fitted()
    components = np.asarray(saved["pca_model"].components_, dtype, order=order)
    saved["pca_model"].components_ = components
    state, _ = published.read_published_pca(written(tmp_path / "f.pth", saved))
    np.testing.assert_array_equal(state["components"], components.astype("f4"))


def test_mean_and_std_may_be_tensors(tmp_path):
    arrays = fitted()
    tensors = arrays | {name: torch.from_numpy(arrays[name]) for name in ("mean", "std")}
    first, second = (
        published.read_published_pca(written(tmp_path / f"{i}.pth", v))[0] for i, v in enumerate((arrays, tensors))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_numpys_names_before_version_2_are_read_too(tmp_path):
    saved = fitted()
    expected, _ = published.read_published_pca(written(tmp_path / "new.pth", saved))
    data = pickle.dumps(saved, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "old.pth").write_bytes(archive(data))
    state, _ = published.read_published_pca(tmp_path / "old.pth")
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_the_published_file_is_known_by_its_hash(tmp_path, monkeypatch):
    path = written(tmp_path / "f.pth", fitted())
    monkeypatch.setattr(published, "PUBLISHED_SHA256", sha256(path))
    reducer = imported(path)
    assert reducer.fitted_on["sample"] == {"num_vectors": 500, "num_images": 1}
    assert json.loads(json.dumps(reducer.provenance())) == reducer.provenance()
    encoder = published.PUBLISHED_ENCODER | {"encoder": "DINOv2", "weights_sha256": "ab" * 32}
    reducer.check_encoder(encoder)
    with pytest.raises(ValueError, match="resize: 'released' -> 'antialiased'"):
        reducer.check_encoder(encoder | {"resize": "antialiased"})


def test_another_file_does_not_say_which_encoder_it_is_for(tmp_path):
    path = written(tmp_path / "f.pth", fitted())
    reducer = imported(path)
    assert (reducer.fitted_on["source"], reducer.fitted_on["file_sha256"]) == ("published", sha256(path))
    assert reducer.fitted_on["encoder"] is None and reducer.fitted_on["sample"] == {"num_vectors": 500}
    reducer.check_encoder({"encoder": "Any"})
    with pytest.raises(ValueError, match="fitted to features of width 12, not the encoder width 384"):
        reducer.check_width(384)


def test_it_can_be_saved_as_a_folder_of_this_library(tmp_path):
    saved = fitted()
    reducer = imported(written(tmp_path / "f.pth", saved))
    reducer.save(tmp_path / "fit")
    again = imported(tmp_path / "fit")
    assert torch.equal(again(features(saved)), reducer(features(saved)))
    assert again.provenance() == reducer.provenance()


def broken(name: str, position: int, value: float) -> dict:
    saved = fitted()
    saved[name][position] = value
    return saved


def without(name: str) -> dict:
    return {key: value for key, value in fitted().items() if key != name}


class Lying:
    """Pickled, an array of 12 float64 numbers, some of whose description is another."""

    def __init__(self, *, shape=(WIDTH,), dtype=FLOAT64, data=bytes(8 * WIDTH)):
        self.state = (1, shape, dtype, False, data)

    def __reduce__(self):
        return np.ones(1).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize(
    "description",
    [
        {"shape": (2**40,)}, {"shape": (-1, -12)}, {"shape": (1,) * 70}, {"shape": (0, 2**62)},
        {"data": bytes(7)}, {"data": "text"}, {"data": [1.0] * WIDTH}, {"dtype": np.dtype("f4,f4")},
        {"dtype": np.dtype("O")}, {"dtype": np.dtype("i8")}, {"dtype": "f8"}, {"dtype": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path, description):
    published.read_published_pca(written(tmp_path / "f.pth", fitted(mean=Lying(data=np.ones(WIDTH).tobytes()))))
    with pytest.raises(ValueError, match="a mean that is not a little-endian|mean of shape"):
        published.read_published_pca(written(tmp_path / "f.pth", fitted(mean=Lying(**description))))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: without("std"), "lacks std: the published file holds pca_model, mean and std"),
        (lambda: without("pca_model"), "lacks pca_model"),
        (lambda: [1, 2], "holds a list, not a dictionary with pca_model, mean and std"),
        (lambda: fitted(pca_model=None), "is not a scikit-learn PCA"),
        (lambda: fitted(pca_model=np.ones(3)), "is not a scikit-learn PCA"),
        (lambda: fitted(whiten=True), "with whiten=False"),
        (lambda: broken("std", 3, 0.0), r"std that is not positive, for the features \[3\]"),
        (lambda: broken("mean", 3, np.nan), "NaN or infinite values in mean"),
        (lambda: fitted(std=np.ones(WIDTH + 1)), r"std of shape \(13,\): must be \(12,\)"),
        (lambda: fitted(mean="none"), "a mean that is not a little-endian floating-point array"),
        (lambda: fitted(mean=np.arange(WIDTH)), "a mean that is not a little-endian float"),
        (lambda: fitted(mean=np.ones(WIDTH, ">f8")), "a mean that is not a little-endian float"),
        (lambda: fitted(mean=torch.as_strided(torch.ones(1), (10**6, 10**6), (0, 0))), "is larger than the file"),
        (lambda: fitted(components_=np.eye(3)), r"components_ of shape \(3, 3\): must be \(12, 12\)"),
        (lambda: fitted(explained_variance_=np.full(WIDTH, -1.0)), "negative values in explained_variance_"),
        (lambda: fitted(mean_=np.zeros((WIDTH, 1))), "mean_ of shape"),
    ],
)
def test_what_does_not_hold_the_statistics_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        imported(written(tmp_path / "f.pth", value()), rank=2)


def test_a_hostile_file_is_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = written(tmp_path / "f.pth", fitted(mean=Hostile()))
    with pytest.raises(ValueError, match=r"f\.pth was refused: besides tensors it contains posix\.system"):
        imported(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Hostile()))  # that it would have worked
    assert (tmp_path / "executed").exists()


def test_a_file_needs_standardised_features(tmp_path):
    path = written(tmp_path / "f.pth", fitted())
    with pytest.raises(ValueError, match="was fitted to standardised features: set PCA.standardize = True"):
        PCA(path=str(path))


def test_another_scale_than_that_of_the_published_weights_is_warned_of(tmp_path, caplog):
    path = written(tmp_path / "f.pth", fitted())
    assert imported(path, scale="unit_rms").scale == "unit_rms"
    assert "PCA.scale = 'unit_rms', but the models published with this file need 'raw'" in caplog.text


def test_a_rank_above_its_components_is_refused(tmp_path):
    with pytest.raises(ValueError, match="PCA.rank = 13 exceeds the 12 fitted components"):
        imported(written(tmp_path / "f.pth", fitted()), rank=13)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent.pth: no such file"):
        imported(tmp_path / "absent.pth")
    whole = written(tmp_path / "whole.pth", fitted()).read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="short.pth is truncated"):
        imported(tmp_path / "short.pth")
    with open(tmp_path / "large.pth", "wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(ValueError, match="1099511627776 bytes: must be at most 268435456"):
        imported(tmp_path / "large.pth")


def test_the_published_file_itself_is_read(outside_data):
    """Its first standard deviations, as measured on the released latents; SD latents have about 0.9."""
    reducer = imported(outside_data("published-pca/dino_pca_model.pth"), rank=768)
    expected = torch.tensor([5.77, 4.90, 4.79, 4.20, 4.01, 3.77, 3.68, 3.56])
    torch.testing.assert_close(reducer.deviations[:8], expected, rtol=0, atol=0.005)
    rows = reducer.components.double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(768, dtype=torch.float64), rtol=0, atol=1e-5)
    assert reducer.fitted_on["sample"] == {"num_vectors": 79_167_488, "num_images": 309_248}
