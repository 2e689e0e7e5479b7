"""A fit as a folder of its own: written, pointed at, refused."""

import json

import pytest
import torch
from torch import Tensor

import redi
from redi.models.reducers import reducers
from redi.models.reducers.conv_bottleneck import ConvBottleneck
from redi.models.reducers.conv_compressor import ConvCompressor
from redi.models.reducers.identity import Identity
from redi.models.reducers.pca import PCA
from redi.models.reducers.random_projection import GaussianRandomProjection
from redi.models.reducers.sem_vae import SemVAE

WIDTH = 16
TRAINED = {"hidden": 8, "num_steps": 2, "batch_size": 8}
SETTINGS = {
    ConvBottleneck: TRAINED, ConvCompressor: TRAINED, SemVAE: TRAINED | {"depth": 1, "num_heads": 2},
    Identity: {"rank": WIDTH},
}  # fmt: skip
ENCODER = {"encoder": "Some", "timm_model": "vit", "timm": "1.0", "resize": "released", "weights_sha256": "ab" * 32}
SAMPLE = {"num_images": 20, "seed": 3, "num_vectors": 300}

every_reducer = pytest.mark.parametrize("reducer_class", list(reducers.values()))


def features(n: int = 20, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    return torch.einsum("ef,nfhw->nehw", mixing, torch.randn(n, WIDTH, 3, 5, generator=generator))


def make(reducer_class, **settings):
    return reducer_class(**{"rank": 4} | SETTINGS.get(reducer_class, {}) | settings)


def fitted(reducer_class, seed: int = 0, **settings):
    reducer = make(reducer_class, **settings)
    reducer.fit([features(seed=seed)])
    reducer.record_fit(encoder=ENCODER, sample=SAMPLE)
    return reducer


@every_reducer
def test_a_reducer_that_points_at_a_saved_fit_is_the_same(reducer_class, tmp_path):
    reducer = fitted(reducer_class)
    reducer.save(tmp_path / "fit")
    other = make(reducer_class, path=str(tmp_path / "fit"))
    assert other.fitted
    assert torch.equal(other(features(3)), reducer(features(3)))
    assert other.fitted_on == reducer.fitted_on
    assert other.provenance() == reducer.provenance()
    assert other.stored_provenance() == reducer.stored_provenance()


@every_reducer
def test_the_record_says_what_the_fit_is_and_what_it_was_made_on(reducer_class, tmp_path):
    reducer = fitted(reducer_class)
    reducer.save(tmp_path / "fit")
    record = json.loads((tmp_path / "fit" / "record.json").read_text())
    assert record["reducer"] == reducer_class.__name__
    assert record["provenance"]["rank"] == reducer.rank
    assert record["provenance"]["explained_variance"] == reducer.explained_variance
    assert record["fitted_on"]["encoder"] == ENCODER and record["fitted_on"]["sample"] == SAMPLE
    assert record["versions"] == {"redi": redi.__version__, "torch": torch.__version__}
    assert len(record["state_sha256"]) == len(record["files"]["state.safetensors"]["sha256"]) == 64


def test_the_record_of_a_pca_holds_its_spectrum(tmp_path):
    reducer = fitted(PCA, scale="whiten", store_rank=6)
    reducer.save(tmp_path / "fit")
    report = json.loads((tmp_path / "fit" / "record.json").read_text())["report"]
    rows = features().movedim(1, -1).flatten(0, -2).double()
    values = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0)
    torch.testing.assert_close(torch.tensor(report["deviations"]).double(), values.sqrt(), rtol=1e-5, atol=0)
    ratios = torch.tensor(report["explained_variance_ratio"]).double()
    torch.testing.assert_close(ratios, values / values.sum(), rtol=1e-4, atol=1e-6)
    assert (report["scale"], report["standardize"], report["store_rank"]) == ("whiten", False, 6)


def test_one_saved_fit_serves_every_rank_and_scale(tmp_path):
    fitted(PCA).save(tmp_path / "fit")
    other = PCA(rank=9, scale="whiten", store_rank=12, path=str(tmp_path / "fit"))
    expected = fitted(PCA, rank=9, scale="whiten", store_rank=12)
    assert torch.equal(other(features(2)), expected(features(2)))


def test_where_the_folder_lies_is_no_part_of_the_provenance(tmp_path):
    fitted(PCA).save(tmp_path / "fit")
    here = PCA(rank=4, path=str(tmp_path / "fit"))
    (tmp_path / "fit").rename(tmp_path / "moved")
    assert PCA(rank=4, path=str(tmp_path / "moved")).provenance() == here.provenance()


@every_reducer
def test_an_unfitted_reducer_is_not_saved(reducer_class, tmp_path):
    with pytest.raises(ValueError, match="has not been fitted"):
        make(reducer_class).save(tmp_path / "fit")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: None, "record.json is missing"),
        (lambda folder: (folder / "record.json").write_text("{}"), "was not written by redi"),
        (lambda folder: (folder / "record.json").write_text('{"files": {}}'), "is not a saved reducer"),
        (lambda folder: (folder / "record.json").write_text("no json"), "is not JSON"),
    ],
)
def test_a_path_without_a_saved_reducer_is_refused(tmp_path, damage, message):
    folder = tmp_path / "fit"
    folder.mkdir()
    damage(folder)
    with pytest.raises(ValueError, match=f"PCA.path = .*{message}"):
        PCA(path=str(folder))


def test_an_altered_fit_is_refused(tmp_path):
    fitted(PCA).save(tmp_path / "fit")
    data = bytearray((tmp_path / "fit" / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "fit" / "state.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="PCA.path = .*was altered after it was written"):
        PCA(rank=4, path=str(tmp_path / "fit"))


def test_a_fit_of_another_class_is_refused(tmp_path):
    fitted(GaussianRandomProjection).save(tmp_path / "fit")
    with pytest.raises(ValueError, match="holds a GaussianRandomProjection: set Representation.reducer = @reducers.G"):
        PCA(rank=4, path=str(tmp_path / "fit"))


def test_a_fit_with_other_settings_is_refused(tmp_path):
    fitted(PCA, standardize=True).save(tmp_path / "pca")
    with pytest.raises(ValueError, match="standardize = True, but this reducer has False: set PCA.standardize = True"):
        PCA(rank=4, path=str(tmp_path / "pca"))
    fitted(GaussianRandomProjection, seed=0).save(tmp_path / "random")
    with pytest.raises(ValueError, match="seed = 0, but this reducer has 1: set GaussianRandomProjection.seed = 0"):
        GaussianRandomProjection(rank=4, seed=1, path=str(tmp_path / "random"))


def test_a_rank_above_the_stored_rows_is_refused(tmp_path):
    fitted(PCA).save(tmp_path / "fit")
    with pytest.raises(ValueError, match="PCA.path = .* does not fit: PCA.rank = 17 exceeds the 16 fitted components"):
        PCA(rank=17, path=str(tmp_path / "fit"))


def test_a_fit_for_another_width_is_refused_before_anything_is_encoded(tmp_path):
    fitted(PCA).save(tmp_path / "fit")
    reducer = PCA(rank=4, path=str(tmp_path / "fit"))
    reducer.check_width(WIDTH)
    with pytest.raises(ValueError, match="fitted to features of width 16, not the encoder width 768"):
        reducer.check_width(768)


# Which encoder it belongs to


@every_reducer
def test_the_encoder_of_the_fit_is_accepted(reducer_class):
    fitted(reducer_class).check_encoder(dict(ENCODER))


def test_another_encoder_is_refused_with_what_differs():
    changed = ENCODER | {"resize": "antialiased", "weights_sha256": "cd" * 32, "depth": 1}
    with pytest.raises(ValueError) as caught:
        fitted(PCA).check_encoder(changed)
    assert "resize: 'released' -> 'antialiased'; weights_sha256: 'abab" in str(caught.value)
    assert "timm:" not in str(caught.value) and "depth" not in str(caught.value)


def test_an_entry_that_the_encoder_lacks_differs():
    with pytest.raises(ValueError, match="resize: 'released' -> None"):
        fitted(PCA).check_encoder({key: value for key, value in ENCODER.items() if key != "resize"})


def test_another_version_of_a_library_is_no_other_encoder():
    fitted(PCA).check_encoder(ENCODER | {"timm": "1.1"})


def test_tuples_and_lists_in_a_provenance_are_the_same():
    reducer = fitted(PCA)
    reducer.record_fit(encoder={"mean": (0.5, 0.5)}, sample=SAMPLE)
    reducer.check_encoder({"mean": [0.5, 0.5]})


def test_a_fit_of_unknown_origin_fits_every_encoder():
    reducer = PCA(rank=4)
    reducer.fit([features()])
    assert reducer.fitted_on is None
    reducer.check_encoder(ENCODER)
    assert "fitted_on" not in reducer.provenance()


@every_reducer
def test_the_origin_travels_with_the_state(reducer_class):
    reducer, other, unknown = fitted(reducer_class), make(reducer_class), make(reducer_class)
    other.load_state_dict(reducer.state_dict())
    assert other.fitted_on == {"encoder": ENCODER, "sample": SAMPLE}
    assert other.provenance() == reducer.provenance()
    unknown.fit([features(seed=5)])
    other.load_state_dict(unknown.state_dict())
    assert other.fitted_on is None


def test_an_origin_is_the_same_bytes_whatever_the_order_of_its_entries():
    first, second = fitted(PCA), fitted(PCA)
    second.record_fit(encoder=dict(reversed(ENCODER.items())), sample=dict(reversed(SAMPLE.items())))
    assert torch.equal(first.origin, second.origin)


@every_reducer
def test_the_origin_is_forgotten_with_another_fit(reducer_class):
    reducer = fitted(reducer_class)
    reducer.fit([features(seed=5)])
    assert reducer.fitted_on is None
