"""The PCA statistics published with the paper's code, and files made to look like them."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import decomposition

from redi.models.reducers.pca import PCA
from redi.models.reducers.published import PUBLISHED_ENCODER, SKLEARN_PCA, import_published_pca, read_published_pca
from redi.runtime.archives import read_torch_archive

PUBLISHED = (
    Path(os.environ.get("REDI_DATA", Path(__file__).parents[2] / "../shared/data"))
    / "published-pca"
    / "dino_pca_model.pth"
)
WIDTH = 12


@pytest.fixture(scope="module")
def published() -> Path:
    if not PUBLISHED.exists():
        pytest.skip(f"no published statistics at {PUBLISHED}: set REDI_DATA")
    return PUBLISHED


@pytest.fixture(scope="module")
def arrays(published) -> dict:
    """What the file holds, in float64."""
    found = read_torch_archive(published, records=[SKLEARN_PCA])
    names = ("mean_", "components_", "explained_variance_", "explained_variance_ratio_")
    inner = {name: found["pca_model"].state[name] for name in names}
    return {name: array.astype(np.float64) for name, array in (inner | {k: found[k] for k in ("mean", "std")}).items()}


def as_rows(x) -> np.ndarray:
    return x.movedim(1, -1).flatten(0, -2).double().numpy()


def features(like: dict, n: int = 3) -> torch.Tensor:
    """Features (N, E, 4, 4) float32 with the mean and spread of the file's."""
    rows = np.random.default_rng(0).normal(size=(n, 4, 4, len(like["mean"]))) * like["std"] + like["mean"]
    return torch.from_numpy(rows).float().movedim(-1, 1)


def formula(like: dict, rows: np.ndarray) -> np.ndarray:
    """The released code's: standardise, then scikit-learn's transform."""
    return ((rows - like["mean"]) / like["std"] - like["mean_"]) @ like["components_"].T


def test_the_reducer_is_the_files_formula_to_float32_rounding(published, arrays):
    reducer = import_published_pca(published, rank=768)
    x = features(arrays)
    expected = formula(arrays, as_rows(x))
    # 768 products of order 1 are summed in float32: a few units in the last place of sqrt(768).
    np.testing.assert_allclose(as_rows(reducer(x)), expected, rtol=0, atol=2e-5)


def test_the_reducer_is_what_scikit_learn_makes_of_the_file(published, arrays):
    model = decomposition.PCA(n_components=768)
    model.mean_, model.components_, model.n_features_in_ = arrays["mean_"], arrays["components_"], 768
    model.explained_variance_, model.n_components_ = arrays["explained_variance_"], 768
    x = features(arrays)
    expected = model.transform((as_rows(x) - arrays["mean"]) / arrays["std"])[:, :8]
    np.testing.assert_allclose(as_rows(import_published_pca(published)(x)), expected, rtol=0, atol=2e-5)


def test_the_first_deviations_are_those_of_the_facts(published):
    """As measured on the released latents; SD latents have about 0.9."""
    deviations = import_published_pca(published).deviations[:8]
    expected = torch.tensor([5.77, 4.90, 4.79, 4.20, 4.01, 3.77, 3.68, 3.56])
    torch.testing.assert_close(deviations, expected, rtol=0, atol=0.005)


def test_the_components_in_the_file_are_orthonormal(published):
    rows = import_published_pca(published).components.double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(768, dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_spectrum_is_that_of_the_file(published, arrays):
    reducer = import_published_pca(published, rank=8)
    assert reducer.explained_variance == pytest.approx(arrays["explained_variance_ratio_"][:8].sum(), rel=1e-6)
    np.testing.assert_allclose(
        reducer.report()["explained_variance_ratio"], arrays["explained_variance_ratio_"], atol=1e-6
    )


def test_the_full_rank_inverts(published, arrays):
    reducer = import_published_pca(published, rank=768)
    x = features(arrays)
    torch.testing.assert_close(reducer.inverse(reducer(x)), x, rtol=1e-4, atol=1e-4)


def test_the_binding_reads_the_file_as_the_function_does(published, arrays):
    reducer = PCA(path=str(published), rank=8, scale="raw", standardize=True)
    x = features(arrays)
    assert torch.equal(reducer(x), import_published_pca(published)(x))
    assert reducer.provenance() == import_published_pca(published).provenance()


def test_it_remembers_what_it_was_fitted_on(published):
    reducer = import_published_pca(published)
    assert reducer.fitted_on["source"] == "published"
    assert reducer.fitted_on["sample"] == {"num_vectors": 79_167_488, "num_images": 309_248}
    assert reducer.fitted_on["file_sha256"].startswith("60edf20f")
    assert json.loads(json.dumps(reducer.provenance())) == reducer.provenance()


def test_the_encoder_of_the_paper_is_accepted_and_another_resize_rule_refused(published):
    reducer = import_published_pca(published)
    encoder = PUBLISHED_ENCODER | {"encoder": "DINOv2", "weights_sha256": "ab" * 32, "precision": "float32"}
    reducer.check_encoder(encoder)
    with pytest.raises(ValueError, match="resize: 'released' -> 'antialiased'"):
        reducer.check_encoder(encoder | {"resize": "antialiased"})
    with pytest.raises(ValueError, match="fitted to features of width 768, not 384"):
        reducer.check_width(384)


def test_it_can_be_saved_as_a_folder_of_this_library(published, arrays, tmp_path):
    reducer = import_published_pca(published)
    reducer.save(tmp_path / "fit")
    again = PCA(path=str(tmp_path / "fit"), scale="raw", standardize=True)
    assert torch.equal(again(features(arrays)), reducer(features(arrays)))
    assert again.provenance() == reducer.provenance()


def test_a_rank_above_its_components_is_refused(published):
    with pytest.raises(ValueError, match="PCA.rank = 900 exceeds the 768 fitted rows"):
        import_published_pca(published, rank=900)


def test_a_truncated_copy_is_refused(published, tmp_path):
    (tmp_path / "short.pth").write_bytes(published.read_bytes()[:1_000_000])
    with pytest.raises(ValueError, match="short.pth cannot be read"):
        import_published_pca(tmp_path / "short.pth")


# Files of the same kind that someone else made with the released code


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


def test_a_file_of_another_width_is_its_own_formula(tmp_path):
    found = fitted()
    reducer = import_published_pca(written(tmp_path / "f.pth", found), rank=4)
    x = features(found)
    expected = found["pca_model"].transform((as_rows(x) - found["mean"]) / found["std"])[:, :4]
    np.testing.assert_allclose(as_rows(reducer(x)), expected, rtol=0, atol=1e-5)


def test_mean_and_std_may_be_tensors(tmp_path):
    arrays = fitted()
    tensors = arrays | {name: torch.from_numpy(arrays[name]) for name in ("mean", "std")}
    first, second = (read_published_pca(written(tmp_path / f"{i}.pth", v))[0] for i, v in enumerate((arrays, tensors)))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_file_does_not_say_which_encoder_it_is_for(tmp_path):
    reducer = import_published_pca(written(tmp_path / "f.pth", fitted()))
    assert reducer.fitted_on["encoder"] is None
    assert reducer.fitted_on["sample"] == {"num_vectors": 500}
    reducer.check_encoder({"encoder": "Any"})


def broken(name: str, position: int, value: float) -> dict:
    found = fitted()
    found[name][position] = value
    return found


def without(name: str) -> dict:
    return {key: value for key, value in fitted().items() if key != name}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: without("std"), r"\(pca_model, mean, std\): it lacks std"),
        (lambda: without("pca_model"), "it lacks pca_model"),
        (lambda: [1, 2], "it is no dictionary"),
        (lambda: fitted(pca_model=None), "is no PCA of scikit-learn"),
        (lambda: fitted(whiten=True), "without whitening"),
        (lambda: broken("std", 3, 0.0), r"std is not positive at the features \[3\]"),
        (lambda: broken("mean", 3, np.nan), "mean holds NaN or infinite values"),
        (lambda: fitted(std=np.ones(WIDTH + 1)), r"std has the shape \(13,\), not \(12,\)"),
        (lambda: fitted(mean="none"), "mean is missing or no array of floating-point numbers"),
        (lambda: fitted(components_=np.eye(3)), r"components_ has the shape \(3, 3\), not \(12, 12\)"),
        (lambda: fitted(explained_variance_=np.full(WIDTH, -1.0)), "explained_variance_ is negative"),
        (lambda: fitted(mean_=np.zeros((WIDTH, 1))), "mean_ has the shape"),
    ],
)
def test_what_does_not_hold_the_statistics_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        import_published_pca(written(tmp_path / "f.pth", value()), rank=2)


def test_a_hostile_file_is_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = written(tmp_path / "f.pth", fitted(mean=Hostile()))
    with pytest.raises(ValueError, match="it asks for 'posix.system'"):
        import_published_pca(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Hostile()))  # that it would have worked
    assert (tmp_path / "executed").exists()


def test_a_file_needs_standardised_features(tmp_path):
    path = written(tmp_path / "f.pth", fitted())
    with pytest.raises(ValueError, match="was fitted to standardised features: bind PCA.standardize = True"):
        PCA(path=str(path))


def test_another_scale_than_that_of_the_published_weights_is_warned_of(tmp_path, caplog):
    path = written(tmp_path / "f.pth", fitted())
    reducer = PCA(path=str(path), standardize=True)
    assert reducer.scale == "unit_rms"
    assert "models published with it expect PCA.scale = 'raw', not 'unit_rms'" in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent.pth is missing or no file"):
        PCA(path=str(tmp_path / "absent.pth"), standardize=True, scale="raw")
