"""The evaluate stage: every metric in every network, with its settings, for references of every kind."""

import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from redi.data.datasets.digits import Digits
from redi.evaluation import evaluate as stage
from redi.evaluation import measures
from redi.evaluation.evaluate import ALL, evaluate, prepare_networks
from redi.evaluation.measures import Comparison, measure
from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.frechet import Gaussian, frechet_distance
from redi.evaluation.metrics.kernel import kernel_distance
from redi.evaluation.metrics.precision_recall import precision_recall
from redi.evaluation.records import REQUIRED
from redi.evaluation.references import reference_features
from redi.evaluation.samples.feature_store import feature_folder, sample_features
from redi.evaluation.samples.stored import load_samples
from redi.evaluation.stored_statistics import StoredStatistics
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder
from redi.models.encoders.inception import Inception
from redi.runtime.artefact import save_artefact
from redi.runtime.checksums import tensors_sha256

DRAWN = {"sampler", "guidance", "seeds", "decoder", "uint8_rule", "labels", "weights_sha256", "samples_sha256"}
DIGITS = {"held_out_fraction": 0.05, "split_seed": 1}


class Patches(Encoder):
    """Means of 2x2 patches, with spatial features and logits like those of an Inception network."""

    dim = 3

    def __init__(self, *, ending: str = "patches"):
        super().__init__()
        self.ending, self.seen = ending, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return torch.nn.functional.avg_pool2d(images.float() / 255, 4)

    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        maps = self(images)[:, 0].flatten(1)  # (N, 4)
        return {"pooled": maps, "spatial": maps[:, :2], "logits": 3 * maps}

    def metric_name(self, metric: str) -> str:
        return {"frechet_distance": "fid"}.get(metric, metric) + f"_{self.ending}"

    def provenance(self) -> dict:
        return {"encoder": "Patches", "ending": self.ending, "resize": "none"}


def random_inception(path: Path) -> Path:
    """A file like that of FID's Inception network, with random weights."""
    from cleanfid import inception_pytorch

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        patch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr("torchvision.models.Inception3.load_state_dict", lambda *_, **__: None)
        shapes = {name: tensor.shape for name, tensor in inception_pytorch.fid_inception_v3().state_dict().items()}
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        if len(shape) > 1:  # so that the features' size stays from layer to layer
            state[name] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        else:
            state[name] = torch.ones(shape) if name.endswith(("bn.weight", "running_var")) else torch.zeros(shape)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def training() -> Digits:
    return Digits(split="train", **DIGITS).without(range(300, 10_000))


@pytest.fixture(scope="module")
def held_out() -> Digits:
    return Digits(split="held_out", **DIGITS)


def draw(folder: Path, dataset: Digits, *, seeds=(0,), count=60, noise=40, keep=("images",), **changes) -> Path:
    """Samples as written by `redi.sample`: images of a data set with noise."""
    parts, groups, size = [], {}, changes.get("image_size", 8)
    for number, seed in enumerate(seeds):
        batch = dataset.batch(range(count))
        generator = torch.Generator().manual_seed(seed)
        images = batch["images"] + noise * torch.randn(batch["images"].shape, generator=generator)
        images = torch.nn.functional.interpolate(images.clamp(0, 255), (size, size)).to(torch.uint8)
        group = {"labels": batch["labels"], "images": images}
        groups[f"part-{number:05d}"] = {name: group[name] for name in ("labels", *keep)}
        place = {"file": f"part-{number:05d}.safetensors", "seed": seed, "start": 0, "stop": count}
        parts.append(place | {"labels_sha256": tensors_sha256({"labels": batch["labels"]})})
    record = {
        "seeds": list(seeds), "num_images": count, "labels": "equal", "weights": "ema", "weights_sha256": "ab",
        "checkpoint_step": 7, "sampler": {"name": "Euler"}, "function_evaluations": 4, "guidance": [],
        "decoder": {"autoencoder": "Pixels"}, "uint8_rule": "round", "image_size": size, "kept": list(keep),
        "samples_sha256": tensors_sha256({k: t for g, d in groups.items() for k, t in ((g, d["labels"].float()),)})[:9]
        + str(changes) + str(noise), "parts": parts,
    }  # fmt: skip
    save_artefact(folder / "samples", groups, record | changes)
    return folder


@pytest.fixture
def run(tmp_path, training):
    return draw(tmp_path / "run", training, seeds=(0, 1, 2))


@pytest.fixture
def measured(run, training, held_out, tmp_path):
    """The entries of metrics.json by metric."""

    def measured(**arguments) -> dict[str, dict]:
        settings = {
            "dataset": training,
            "reference": held_out,
            "networks": [Patches()],
            "cache_dir": tmp_path / "cache",
        }
        entries = evaluate(run, **settings | arguments)
        assert json.loads((run / "metrics.json").read_text()) == json.loads(json.dumps(entries))
        assert len({entry["metric"] for entry in entries}) == len(entries)
        return {entry["metric"]: entry for entry in entries}

    return measured


def test_every_metric_of_several_networks_has_all_that_is_required(measured):
    found = measured(networks=[Patches(), Patches(ending="other"), DomainEncoder(width=8, depth=1, num_steps=5)])
    names = "fid spatial_frechet_distance kernel_distance inception_score precision recall".split()
    expected = {f"{name}_{ending}" for name in names for ending in ("patches", "other")}
    expected |= {f"{name}_domain_network" for name in ("frechet_distance", "kernel_distance", "precision", "recall")}
    assert set(found) == expected | {"recognised_as_label"}
    for entry in found.values():
        assert set(REQUIRED) <= set(entry)
        assert np.isfinite(entry["value"]) and entry["better"] in ("lower", "higher")
        assert entry["num_samples"] == 60 and len(entry["per_seed"]) == 3
        assert DRAWN <= set(entry["samples"])
        assert not {"files", "parts"} & set(entry["samples"])
        assert len(entry["network"]["sha256"]) == len(entry["reference"]["sha256"]) == 64
        assert {"redi", "torch", "cleanfid"} <= set(entry["versions"])
    assert found["recognised_as_label"]["network"]["trained_on"]["dataset"] == "Digits"
    assert found["fid_other"]["network"]["ending"] == "other"


def test_several_seeds_give_mean_and_spread_of_each_seed_s_value(measured, run, training, held_out, tmp_path):
    found = measured()
    reference = reference_features(held_out, Patches(), cache_dir=tmp_path / "cache")
    sets = sample_features(run, load_samples(run), Patches())
    against = Gaussian.of(reference.tensors["pooled"])
    expected = {
        "fid_patches": [frechet_distance(Gaussian.of(one.tensors["pooled"]), against) for one in sets],
        "kernel_distance_patches": [
            kernel_distance(samples=one, reference=reference)["kernel_distance"] for one in sets
        ],
        "recall_patches": [precision_recall(samples=one, reference=reference)["recall"] for one in sets],
    }
    for name, values in expected.items():
        assert found[name]["per_seed"] == pytest.approx(values, rel=1e-9), name
        assert found[name]["value"] == pytest.approx(np.mean(values), rel=1e-9), name
        assert found[name]["spread"] == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-12), name
    assert len(set(expected["fid_patches"])) == 3


def test_the_floor_is_of_as_many_training_images_as_samples(measured, training, held_out, tmp_path):
    found = measured()["fid_patches"]
    as_many = reference_features(training, Patches(), max_images=60, cache_dir=tmp_path / "cache").tensors["pooled"]
    against = Gaussian.of(reference_features(held_out, Patches(), cache_dir=tmp_path / "cache").tensors["pooled"])
    assert found["num_floor"] == 60 and found["num_reference"] == len(held_out)
    assert found["floor"] == pytest.approx(frechet_distance(Gaussian.of(as_many), against), rel=1e-9)
    assert found["times_floor"] == pytest.approx(found["value"] / found["floor"])
    assert found["standard_error"] > 0


def test_against_the_training_images_there_is_no_floor(measured, training):
    found = measured(reference=None)
    assert "floor" not in found["fid_patches"] and found["fid_patches"]["num_reference"] == len(training)


def test_noise_makes_a_distance_larger_and_precision_smaller(measured, run, training):
    little = measured()
    draw(run, training, seeds=(0, 1, 2), noise=200)
    much = measured()
    assert much["fid_patches"]["value"] > 2 * little["fid_patches"]["value"]
    assert much["precision_patches"]["value"] < little["precision_patches"]["value"]


def test_a_second_evaluation_runs_no_network_and_gives_the_same(measured):
    first, network = measured(), Patches()
    again = measured(networks=[network])
    assert network.seen == 0
    assert again == first


def test_only_the_metrics_asked_for_are_computed(measured, held_out):
    network = Patches()
    assert list(measured(metrics=["recall"], networks=[network])) == ["recall_patches"]
    assert network.seen == 180 + len(held_out)  # no training images, which only floors need
    assert list(measured(metrics=["recall", "frechet_distance"])) == ["fid_patches", "recall_patches"]


def test_at_most_so_many_images_are_measured(measured, run, held_out, tmp_path):
    found = measured(max_images=25)["fid_patches"]
    assert (found["num_samples"], found["num_reference"], found["num_floor"]) == (25, 25, 25)
    reference = reference_features(held_out, Patches(), max_images=25, cache_dir=tmp_path / "cache")
    first = sample_features(run, load_samples(run), Patches())[0].tensors["pooled"][:25]
    expected = frechet_distance(Gaussian.of(first), Gaussian.of(reference.tensors["pooled"]))
    assert found["per_seed"][0] == pytest.approx(expected, rel=1e-9)


def test_swapped_samples_and_reference_are_refused():
    one, other = (torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    swapped = Comparison(
        Patches(), [Features("reference", {"pooled": one})], [torch.zeros(20)], Features("samples", {"pooled": other}),
        {"samples": {}},
    )  # fmt: skip
    for metric in ("frechet_distance", "kernel_distance", "precision", "recall"):
        with pytest.raises(ValueError, match="swapped|role"):
            measure(swapped, [metric])


def test_the_direction_of_precision_and_recall_is_looked_at_first(measured, monkeypatch):
    def swapped():
        raise ValueError("precision and recall are exchanged")

    monkeypatch.setattr(stage, "check_direction", swapped)
    with pytest.raises(ValueError, match="exchanged"):
        measured()


# ---- warnings


def test_fewer_samples_than_features_are_warned_of_with_the_reason(measured, caplog):
    with caplog.at_level(logging.WARNING):
        found = measured(networks=[DomainEncoder(width=64, depth=1, num_steps=2)], metrics=["frechet_distance"])
    (warning,) = found["frechet_distance_domain_network"]["warnings"]
    assert warning.startswith("60 samples are fewer than the 64 features, so their covariance has at most rank 59: the")
    assert warning in caplog.text
    assert "warnings" not in measured(metrics=["frechet_distance"])["fid_patches"]


def test_a_reference_smaller_than_the_dimension_is_warned_of(measured):
    found = measured(networks=[DomainEncoder(width=64, depth=1, num_steps=2)], max_images=50)
    sides = [warning.split(" are")[0] for warning in found["frechet_distance_domain_network"]["warnings"]]
    assert sides == ["50 samples", "50 reference images"]


def test_the_autoencoder_of_the_run_is_measured_beside_the_samples_on_request(measured):
    trained = SimpleNamespace(codec=JointCodec(), step=None)
    entries = measured(trained=trained, representation=None, reconstruction=True)
    added = {name: entry for name, entry in entries.items() if name.startswith("reconstruction/")}
    assert {name: entry["value"] for name, entry in added.items()} == {
        "reconstruction/psnr": float("inf"), "reconstruction/fid_patches": pytest.approx(0, abs=1e-9)
    }  # fmt: skip
    assert all(entry["samples"] == entries["fid_patches"]["samples"] for entry in added.values())


def test_samples_of_an_earlier_checkpoint_are_warned_of_in_every_entry(measured, run):
    for step in (7, 9):
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    for entry in measured().values():
        assert any("of step 7, but the newest checkpoint is of step 9" in warning for warning in entry["warnings"])


def test_equal_labels_are_noted_beside_fid_alone(measured, run, training):
    found = measured()
    assert "lowers FID by about 0.1" in found["fid_patches"]["note"] and "note" not in found["recall_patches"]
    draw(run, training, seeds=(0, 1, 2), labels="dataset")
    assert "note" not in measured()["fid_patches"]


# ---- what does not fit together


def test_samples_of_another_resolution_are_refused_with_both_sizes(measured, run, training):
    draw(run, training, image_size=16)
    with pytest.raises(ValueError, match=r"reference has images of 8 pixels, but the samples have 16.*image_size"):
        measured()


def test_statistics_of_another_resolution_are_refused(measured, statistics):
    with pytest.raises(ValueError, match="reference has images of 32 pixels, but the samples have 8"):
        measured(reference=StoredStatistics(path=statistics, network="patches", image_size=32))


def test_two_networks_of_one_name_are_refused(measured):
    with pytest.raises(ValueError, match=r"several networks have the same metric names \(patches\)"):
        measured(networks=[Patches(), Patches()])


def test_an_unknown_metric_is_refused_with_the_nearest(measured):
    with pytest.raises(ValueError, match="unknown metric 'precison'; choose from .*did you mean 'precision'"):
        measured(metrics=["precison"])


def test_features_that_are_not_finite_are_refused_naming_the_sample(measured):
    class Broken(Patches):
        def metric_features(self, images: Tensor) -> dict[str, Tensor]:
            found = super().metric_features(images)
            found["pooled"][3] = torch.inf
            return found

    with pytest.raises(ValueError, match="NaN or infinite values in the pooled features of Broken for .*: sample 3"):
        measured(networks=[Broken(ending="broken")])


def test_weights_that_are_nowhere_are_named_before_any_feature_is_computed(measured, run):
    with pytest.raises(ValueError, match=r"Inception.weights = 'nowhere.pth'"):
        measured(networks=[Patches(), Inception(weights="nowhere.pth")])
    assert not (run / "features").exists()


# ---- stored statistics


@pytest.fixture
def statistics(tmp_path, held_out) -> Path:
    features = reference_features(held_out, Patches(), cache_dir=tmp_path / "elsewhere").tensors
    pooled, spatial = Gaussian.of(features["pooled"]), Gaussian.of(features["spatial"])
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=pooled.mean, sigma=pooled.covariance, mu_s=spatial.mean, sigma_s=spatial.covariance)
    return path


def test_stored_statistics_give_the_distances_of_the_images_they_were_made_of(measured, statistics, caplog):
    images = measured()
    with caplog.at_level(logging.WARNING):
        found = measured(reference=StoredStatistics(path=statistics, network="patches"))
    assert set(found) == {"fid_patches", "spatial_frechet_distance_patches", "inception_score_patches"}
    for name in found:
        assert found[name]["value"] == pytest.approx(images[name]["value"], rel=1e-9)
    assert "floor" in images["fid_patches"] and "floor" not in found["fid_patches"]  # of the training images, maybe
    assert found["fid_patches"]["num_reference"] is None
    assert found["fid_patches"]["reference"]["statistics"] == "statistics.npz"
    assert "not measured in these features: kernel_distance (needs reference images)" in caplog.text
    assert "not measured in these features: kernel_distance" in found["fid_patches"]["note"]


def test_stored_statistics_need_no_training_images_and_say_what_does(measured, statistics, held_out):
    stored = StoredStatistics(path=statistics, network="patches")
    assert measured(dataset=None, reference=stored) == measured(reference=stored)
    assert "floor" not in measured(dataset=None, reference=held_out)["fid_patches"]
    with pytest.raises(ValueError, match="needs training images, because DomainEncoder learns from them"):
        measured(dataset=None, reference=stored, networks=[Patches(), DomainEncoder()])
    with pytest.raises(ValueError, match="because evaluate.reference is not bound: bind train.dataset"):
        measured(dataset=None, reference=None)


def test_stored_statistics_are_for_their_own_network_alone(measured, statistics):
    found = measured(
        networks=[Patches(), Patches(ending="other")], reference=StoredStatistics(path=statistics, network="patches")
    )
    assert "fid_patches" in found and "fid_other" not in found and "inception_score_other" in found
    with pytest.raises(
        ValueError, match=r"'patch' is not in evaluate.networks \(patches\): correct it, .*; did you mean 'patches'"
    ):
        measured(reference=StoredStatistics(path=statistics, network="patch"))


def test_images_beside_statistics_serve_what_statistics_cannot(measured, statistics, held_out):
    reference = StoredStatistics(path=statistics, network="patches", images=held_out)
    found = measured(networks=[Patches(), Patches(ending="other")], reference=reference)
    images = measured(networks=[Patches(), Patches(ending="other")])
    assert set(found) == set(images)
    assert found["fid_other"] == images["fid_other"]
    assert found["fid_patches"]["num_reference"] is None and found["recall_patches"]["num_reference"] == len(held_out)
    assert found["recall_patches"]["value"] == images["recall_patches"]["value"]
    assert found["fid_patches"]["reference"]["statistics"] == "statistics.npz"
    for name in ("recall_patches", "kernel_distance_patches"):  # the images were looked at, not the statistics
        assert found[name]["reference"] == images[name]["reference"]


def test_of_a_reference_that_is_too_large_for_neighbours_all_classes_are_looked_at(monkeypatch):
    by_class = torch.arange(100.0).repeat_interleave(10)[:, None]  # sorted, as a folder's images are
    monkeypatch.setattr(measures, "MOST", 200)
    comparison = Comparison(
        Patches(), [Features("samples", {"pooled": by_class[::5]})], [], Features("reference", {"pooled": by_class}),
        {"samples": {}},
    )  # fmt: skip
    precision, recall = measure(comparison, ["precision", "recall"])
    assert precision["num_reference"] == precision["num_samples"] == recall["num_samples"] == 200
    assert precision["value"] > 0.5


def test_the_record_of_kid_tells_the_subsets(measured):
    found = measured(metrics=["kernel_distance"])["kernel_distance_patches"]
    assert (found["num_subsets"], found["subset_size"]) == (100, 60)


def test_an_edited_plug_in_finds_no_features_of_its_former_self(tmp_path, monkeypatch):
    before = feature_folder(tmp_path, Patches())
    assert feature_folder(tmp_path, Patches()) == before
    monkeypatch.setattr("redi.evaluation.samples.feature_store.identity", lambda network: {"source_sha256": "another"})
    assert feature_folder(tmp_path, Patches()) != before


# ---- classifiers, processes, networks of others


def test_samples_are_recognised_by_a_classifier_of_the_training_images(measured, run, training, held_out):
    network = DomainEncoder(width=16, depth=1, num_steps=60, image_size=8)
    found = measured(networks=[network])["recognised_as_label"]
    drawn = load_samples(run).read()
    right = network.logits(drawn.images[:60]).argmax(dim=1) == drawn.labels[:60]
    assert found["per_seed"][0] == pytest.approx(float(right.float().mean()))
    batch = held_out.batch(range(len(held_out)))
    held_right = network.logits(batch["images"]).argmax(dim=1) == batch["labels"]
    assert found["held_out_accuracy"] == pytest.approx(float(held_right.float().mean()))
    assert found["value"] > 0.5
    label = int(drawn.labels[0])
    assert found["per_class"][label] == pytest.approx(float(right[drawn.labels[:60] == label].float().mean()))


def test_without_labels_nothing_is_recognised(measured):
    found = measured(networks=[DomainEncoder(width=8, depth=1, num_steps=2, objective="contrastive")])
    assert "recognised_as_label" not in found and "recall_domain_network" in found


def test_a_helping_process_computes_features_and_writes_nothing(run, training, held_out, tmp_path):
    settings = {"dataset": training, "reference": held_out, "cache_dir": tmp_path / "cache"}
    assert evaluate(run, networks=[Patches()], rank=1, world_size=2, **settings) == []
    assert not (run / "metrics.json").exists()
    network = Patches()
    assert evaluate(run, networks=[network], rank=0, world_size=2, **settings)
    assert network.seen == 0


def test_networks_that_learn_are_fitted_once(training, tmp_path):
    one, other = (DomainEncoder(width=8, depth=1, num_steps=2) for _ in range(2))
    prepare_networks([one], training, tmp_path)
    other.fit = None  # not to be called
    prepare_networks([other], training, tmp_path)
    assert one.provenance() == other.provenance()


def test_a_random_inception_gives_what_the_field_reports_under_its_names(
    measured, run, training, held_out, tmp_path, monkeypatch
):
    weights = random_inception(tmp_path / "inception.pth")
    monkeypatch.setattr(measures, "SPLITS", 2)
    draw(run, training, count=4)
    # Without the distances: in 2,048 dimensions they take a minute.
    metrics = ["kernel_distance", "inception_score", "precision", "recall"]
    network, reference = Inception(mode="legacy_tensorflow", weights=str(weights)), held_out.without(range(4, 10_000))
    found = measured(networks=[network], reference=reference, metrics=metrics)
    assert set(found) == {f"{name}_legacy_tensorflow" for name in ("kid", "inception_score", "precision", "recall")}
    for entry in found.values():
        assert entry["network"]["mode"] == "legacy_tensorflow" and entry["spread"] is None
        assert entry["network"]["sha256"] == network.provenance()["weights_sha256"]
    (features,) = sample_features(run, load_samples(run), network)
    assert {name: tensor.shape[1] for name, tensor in features.tensors.items()} == {
        "pooled": 2048, "spatial": 2023, "logits": 1008,
    }  # fmt: skip


def test_every_metric_has_its_name():
    assert len(ALL) == len(set(ALL)) == 7
