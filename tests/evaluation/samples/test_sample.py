"""Samples on disk: equal for any number of processes, resumed, verified, labelled, exported, streamed."""

import copy
import io
import json
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers.euler import Euler
from redi.core.samplers.heun import Heun
from redi.data.datasets.adm_batch import AdmBatch
from redi.evaluation.samples.feature_store import feature_folder, sample_features
from redi.evaluation.samples.label_schemes import choose_labels, in_proportion
from redi.evaluation.samples.sample import sample
from redi.evaluation.samples.stored import load_samples
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.representation import RepresentationGuidance
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer
from redi.runtime import shared_work
from redi.runtime.checksums import BrokenArtefact
from redi.sampling.generate import generate

NUM_CLASSES = 3
COUNT, PART = 11, 4


def opened(seed=0, folder=None):
    """The result of `redi.load` for a model with random weights."""
    representation = Representation(encoder=DomainEncoder(width=8, image_size=8), reducer=PCA(rank=2), name="z")
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=[representation])
    torch.manual_seed(seed)
    model = DiffusionTransformer(
        channels=codec.channels, grid=(4, 4), num_classes=NUM_CLASSES, width=16, depth=1, num_heads=2, patch_size=2
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    raw = {name: 1.5 * parameter for name, parameter in weights.items()}
    return SimpleNamespace(
        model=model, codec=codec, process=FlowMatching(), weights={"ema": weights, "model": raw}, step=7,
        num_classes=NUM_CLASSES, folder=folder, class_names=["ant", "bee", "cow"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    return opened()


draw_tiny = partial(generate, sampler=Euler(num_evaluations=3), guidance=[ClassifierFree(scale=1.5)])


def draw(run_dir, trained, **settings):
    defaults = {"num_images": COUNT, "images_per_part": PART, "generate": draw_tiny, "key": "tiny"}
    return sample(run_dir, trained=trained, **defaults | settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def interrupted_after(count, function=draw_tiny):
    """Wrap `function` to raise Ctrl-C after a number of calls."""
    calls = []

    def stops(*args, **settings):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(settings["first_index"])
        return function(*args, **settings)

    stops.calls, stops.__module__ = calls, generate.__module__  # no other code than the function that it stands for
    return stops


@pytest.fixture
def interrupted(tmp_path, trained):
    """A run folder where two of three parts were drawn."""
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "run", trained, generate=interrupted_after(2))
    return tmp_path / "run"


def work_of(run_dir):
    (found,) = run_dir.glob(".samples.*.work")
    return found


# ---- what is drawn


def test_the_samples_are_those_of_one_call_of_generate(tmp_path, trained):
    samples = draw(tmp_path, trained)
    whole = draw_tiny(trained.model, trained.codec, trained.process, labels=torch.arange(COUNT) % NUM_CLASSES)
    stored = samples.read()
    torch.testing.assert_close(stored.x, whole.x, rtol=1e-5, atol=1e-5)
    assert (stored.images.int() - whole.images.int()).abs().max() <= 1
    assert torch.equal(samples.labels, whole.labels) and torch.equal(stored.labels, whole.labels)
    assert [len(part["labels"]) for part in samples.parts()] == [4, 4, 3]


def test_null_labels_are_those_of_no_class(tmp_path, trained):
    samples = draw(tmp_path, trained, labels="null", generate=partial(generate, sampler=Euler(num_evaluations=1)))
    assert samples.labels.tolist() == [NUM_CLASSES] * COUNT and samples.record["labels"] == "null"


def test_the_record_says_how_they_were_drawn(tmp_path, trained):
    record = draw(tmp_path, trained, seeds=(4, 2)).record
    assert record["seeds"] == [4, 2] and record["num_images"] == COUNT and record["labels"] == "equal"
    assert (record["weights"], record["checkpoint_step"]) == ("ema", 7) and len(record["weights_sha256"]) == 64
    assert record["sampler"]["name"] == "Euler" and record["guidance"][0]["scale"] == 1.5
    assert record["function_evaluations"] == 3 and record["network_evaluations_per_image"] == 6.0
    assert record["decoder"] == {"autoencoder": "Pixels", "channels": 1} and record["uint8_rule"] == "round"
    assert record["image_size"] == 4 and record["given"] == [] and record["precision"] == "float32"
    assert record["versions"].keys() >= {"redi", "torch"}
    assert "seed" not in record
    assert [(part["seed"], part["start"], part["stop"]) for part in record["parts"]] == [
        (4, 0, 4), (4, 4, 8), (4, 8, 11), (2, 0, 4), (2, 4, 8), (2, 8, 11),
    ]  # fmt: skip


def test_the_batch_size_changes_rounding_alone(tmp_path, trained):
    one = draw(tmp_path / "a", trained, generate=partial(draw_tiny, batch_size=1)).read()
    many = draw(tmp_path / "b", trained, generate=partial(draw_tiny, batch_size=3)).read()
    torch.testing.assert_close(one.x, many.x, rtol=1e-5, atol=1e-5)
    differing = (one.images.int() - many.images.int()).abs()
    assert differing.max() <= 1 and (differing > 0).float().mean() < 0.01


def test_every_seed_is_a_set_of_its_own(tmp_path, trained):
    both = draw(tmp_path / "both", trained, seeds=(5, 3))
    assert both.sets == [{"seed": 5, "start": 0, "stop": COUNT}, {"seed": 3, "start": COUNT, "stop": 2 * COUNT}]
    stored = both.read()
    assert torch.equal(both.labels[:COUNT], both.labels[COUNT:])
    for one in both.sets:
        alone = draw(tmp_path / str(one["seed"]), trained, generate=partial(draw_tiny, seed=one["seed"]))
        assert alone.record["seeds"] == [one["seed"]]
        assert torch.equal(alone.read().x, stored.x[one["start"] : one["stop"]])


def test_the_weights_asked_for_are_used(tmp_path, trained):
    ema, model = draw(tmp_path / "a", trained), draw(tmp_path / "b", trained, weights="model")
    assert ema.record["weights_sha256"] != model.record["weights_sha256"]
    assert not torch.equal(ema.read().x, model.read().x)


def test_advice_is_given_once_and_not_for_every_part(tmp_path, caplog):
    trained = opened()
    trained.model.trained_with = (0.1, 0.0)
    draw(tmp_path, trained, generate=partial(draw_tiny, guidance=[RepresentationGuidance()]))
    assert caplog.text.count("RepresentationGuidance uses predictions without") == 1


def test_one_bar_counts_the_images_of_all_calls(interrupted, trained, monkeypatch, capfd):
    bars = []

    class Noted(tqdm):
        def __init__(self, **options):
            super().__init__(file=io.StringIO(), **options)
            self.stood_at = []
            bars.append(self)

        def update(self, n=1):
            super().update(n)
            self.stood_at.append(self.n)

    monkeypatch.setattr(shared_work, "progress", Noted)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    draw(interrupted, trained, generate=partial(draw_tiny, batch_size=1))
    (bar,) = bars
    assert (bar.initial, bar.total) == (8, COUNT)
    assert [n for n in bar.stood_at if n > 8][:3] == [9, 10, 11] and bar.n == COUNT
    assert "img" not in capfd.readouterr().err  # no bars of `generate`


# ---- several processes


def test_two_ranks_share_the_work_and_draw_what_one_draws_bit_for_bit(tmp_path, trained):
    drawn_by = {0: interrupted_after(99), 1: interrupted_after(99)}

    def work(rank):
        whole = copy.deepcopy(trained)
        draw(tmp_path / "two", whole, num_images=40, generate=drawn_by[rank], rank=rank, world_size=2)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0, 1)))
    draw(tmp_path / "one", trained, num_images=40)
    assert contents(tmp_path / "two" / "samples") == contents(tmp_path / "one" / "samples")
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["samples"]
    assert sorted(drawn_by[0].calls + drawn_by[1].calls) == list(range(0, 40, PART))


def test_a_rank_that_never_started_is_not_missed(tmp_path, trained):
    alone = draw(tmp_path / "alone", trained)
    assert draw(tmp_path / "run", trained, rank=1, world_size=3).sha256 == alone.sha256


# ---- interruptions and damage


def test_an_interrupted_call_leaves_no_samples_and_is_taken_up(interrupted, tmp_path, trained):
    assert not (interrupted / "samples").exists()
    rest = interrupted_after(99)
    draw(interrupted, trained, generate=rest)
    assert rest.calls == [8]
    draw(tmp_path / "unbroken", trained)
    assert contents(interrupted / "samples") == contents(tmp_path / "unbroken" / "samples")
    assert [path.name for path in interrupted.iterdir()] == ["samples"]


@pytest.mark.parametrize("damage", ["cut short", "altered", "deleted", "record"])
def test_a_finished_part_that_was_damaged_meanwhile_is_drawn_again(interrupted, tmp_path, trained, damage):
    part = work_of(interrupted) / "samples" / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    if damage == "cut short":
        part.write_bytes(content[:-5])
    elif damage == "altered":
        content[-1] ^= 1
        part.write_bytes(content)
    elif damage == "deleted":
        part.unlink()
    else:
        (work_of(interrupted) / "records" / "part-00001.json").write_text("{")
    rest = interrupted_after(99)
    draw(interrupted, trained, generate=rest)
    assert rest.calls == [8, 4]
    assert contents(interrupted / "samples") == contents(draw(tmp_path / "unbroken", trained).folder)


@pytest.mark.parametrize(
    "other",
    [
        {"num_images": 12}, {"seeds": (1,)}, {"labels": "random"}, {"weights": "model"}, {"images_per_part": 5},
        {"keep": ("images",)}, {"key": "other"}, {"trained": opened(seed=1)},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_parts_of_other_settings_are_not_taken_up(interrupted, trained, other):
    whole = interrupted_after(99)
    draw(interrupted, **{"trained": trained} | other, generate=whole)
    assert len(whole.calls) == 3
    assert work_of(interrupted).exists()  # for whoever goes on with it


def test_parts_drawn_in_two_ways_are_refused_with_what_differs(interrupted, trained):
    other = partial(generate, sampler=Heun(num_evaluations=4), guidance=[ClassifierFree(scale=1.5)])
    with pytest.raises(
        ValueError, match=r"part-00002 was drawn with sampler = .*Heun.* but part-00000 with .*Euler.*delete"
    ):
        draw(interrupted, trained, generate=other)


def test_without_a_key_nothing_is_known_of_the_settings_and_all_is_drawn_anew(tmp_path, trained):
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, trained, generate=interrupted_after(2), key="")
    for _ in range(2):
        whole = interrupted_after(99)
        draw(tmp_path, trained, generate=whole, key="")
        assert whole.calls == [0, 4, 8]


def test_finished_samples_of_the_same_settings_stay(tmp_path, trained):
    draw(tmp_path, trained)
    again = interrupted_after(0)
    assert len(draw(tmp_path, trained, generate=again)) == COUNT
    assert not again.calls


def test_other_samples_are_replaced(tmp_path, trained):
    draw(tmp_path, trained)
    assert len(draw(tmp_path, trained, num_images=2)) == 2
    assert sorted(contents(tmp_path / "samples")) == ["part-00000.safetensors", "record.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def damaged(samples, cut=0):
    path = samples.folder / "part-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[: len(content) - cut])


def mine(*args, **settings):
    return draw_tiny(*args, **settings)


@pytest.mark.parametrize("generate", [mine, partial(mine, batch_size=2)])
def test_samples_of_another_function_are_replaced_whatever_the_key(tmp_path, trained, generate):
    before = draw(tmp_path, trained).record["settings_sha256"]
    assert draw(tmp_path, trained, generate=generate).record["settings_sha256"] != before


def test_damaged_samples_are_refused_on_reading_and_drawn_anew_on_request(tmp_path, trained):
    whole = draw(tmp_path, trained)
    sha256 = whole.sha256
    damaged(whole)
    with pytest.raises(BrokenArtefact, match=r"part-00001.safetensors was altered after it was written"):
        load_samples(tmp_path).read()
    assert load_samples(tmp_path).take([0, 9]).images.shape[0] == 2  # the other parts are whole
    damaged(whole, cut=3)
    with pytest.raises(BrokenArtefact, match=r"part-00001.safetensors has \d+ bytes instead of \d+; it may"):
        load_samples(tmp_path)
    again = draw(tmp_path, trained)
    assert again.sha256 == sha256
    again.verify()


def test_a_record_that_is_cut_short_is_refused(tmp_path, trained):
    path = draw(tmp_path, trained).folder / "record.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(BrokenArtefact, match="record.json is not JSON"):
        load_samples(tmp_path)


@pytest.mark.parametrize("cut", [False, True])
def test_samples_with_a_damaged_record_are_said_and_drawn_anew(tmp_path, trained, caplog, cut):
    whole = draw(tmp_path, trained)
    sha256, path = whole.sha256, whole.folder / "record.json"
    content = path.read_text()
    path.write_text(content[:50] if cut else content.replace('"checkpoint_step": 7', '"checkpoint_step": 6'))
    with pytest.raises(BrokenArtefact, match="record.json (was altered after|is not JSON)"):
        load_samples(tmp_path)
    assert draw(tmp_path, trained).sha256 == sha256
    assert "the samples are damaged and will be drawn again" in caplog.text
    assert path.read_text() == content


def test_a_folder_without_samples_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="holds no samples: run redi.sample --run_dir="):
        load_samples(tmp_path)


def test_states_that_are_not_finite_are_refused_with_image_and_label(tmp_path, trained):
    def broken(*args, first_index, **settings):
        drawn = draw_tiny(*args, first_index=first_index, **settings)
        drawn.x[1:] *= float("inf") if first_index == 4 else 1
        return drawn

    message = r"image 5 \(label 2, seed 0\) has NaN .*like 3 of the 4 .*generate.precision = 'float32'"
    with pytest.raises(ValueError, match=message):
        draw(tmp_path, trained, generate=broken)
    assert not (tmp_path / "samples").exists()


# ---- reading


def test_some_samples_are_taken_in_the_order_asked_for(tmp_path, trained):
    samples, order = draw(tmp_path, trained, seeds=(0, 1)), [21, 3, 4, 3, 0, 11]
    whole, some = samples.read(), samples.take(order)
    for name in ("images", "x", "labels"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[order])
    assert len(samples.take([]).labels) == 0
    with pytest.raises(IndexError, match="positions 0 to 22 are not in"):
        samples.take([0, 22])


@pytest.mark.parametrize("keep", [("images", "x"), ("images",), ("x",), ()])
def test_what_is_kept_is_there_and_the_hash_is_of_what_was_drawn(tmp_path, trained, keep):
    samples, whole = draw(tmp_path / "some", trained, keep=keep), draw(tmp_path / "all", trained)
    assert (samples.has_images, samples.has_x) == ("images" in keep, "x" in keep)
    stored = samples.read()
    assert (stored.images is not None, stored.x is not None) == (samples.has_images, samples.has_x)
    assert samples.sha256 == whole.sha256 and torch.equal(samples.labels, whole.labels)
    assert draw(tmp_path / "other", trained, keep=keep, seeds=(1,)).sha256 != samples.sha256


# ---- labels


def test_random_labels_depend_on_the_image_alone_and_are_uniform(tmp_path, trained):
    few, many = (draw(tmp_path / str(n), trained, labels="random", num_images=n, keep=()) for n in (5, 11))
    assert torch.equal(few.labels, many.labels[:5])
    counts = choose_labels("random", 30_000, 3, tmp_path).bincount()
    # A fair draw strays by sqrt(30,000 * 1/3 * 2/3) = 82.
    assert (counts - 10_000).abs().max() < 4 * 82
    assert few.record["labels"] == "random"


def test_a_list_of_labels_is_repeated(tmp_path, trained):
    samples = draw(tmp_path, trained, labels=[2, 0], num_images=5)
    assert samples.labels.tolist() == [2, 0, 2, 0, 2] and samples.record["labels"] == [2, 0]


def test_labels_are_names_of_classes_too(tmp_path, trained):
    samples = draw(tmp_path, trained, labels=["cow", 0], num_images=5)
    assert samples.labels.tolist() == [2, 0, 2, 0, 2] and samples.record["labels"] == [2, 0]


def audit(folder, **counts):
    (folder / "audit.json").write_text(json.dumps({"num_classes": NUM_CLASSES, "images_per_class": counts}))


def test_labels_of_the_data_set_have_its_frequencies(tmp_path):
    audit(tmp_path, ant=10, bee=60, cow=30)
    samples = draw(tmp_path / "run", opened(folder=tmp_path), labels="dataset", num_images=10)
    assert samples.labels.bincount().tolist() == [1, 6, 3] and samples.record["labels"] == "dataset"


def test_largest_remainders_are_rounded_up_and_any_first_ones_are_in_proportion():
    labels = in_proportion([1, 1, 1, 0], 100)
    assert labels.bincount(minlength=4).tolist() == [34, 33, 33, 0]
    labels = in_proportion([900, 100], 1000)
    for count in (100, 250, 500):
        assert abs((labels[:count] == 1).sum() - count / 10) <= 1


def test_labels_of_a_data_set_that_is_not_known_are_refused(tmp_path):
    trained = opened(folder=tmp_path)
    with pytest.raises(ValueError, match=r"sample.labels = 'dataset' needs .*audit.json, which redi.train writes"):
        draw(tmp_path, trained, labels="dataset")
    audit(tmp_path, ant=10, bee=60)  # which of the three has none is not said
    with pytest.raises(
        ValueError, match=r"has images of 2 of 3 classes, but the model has 3 classes: set sample.labels"
    ):
        draw(tmp_path, trained, labels="dataset")
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(ValueError, match="audit.json is not an audit"):
        draw(tmp_path, trained, labels="dataset")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"labels": "equl"},
            r"sample.labels = 'equl': must be 'equal', 'random', 'dataset', 'null', or a list of labels in 0 ... 2",
        ),
        ({"labels": [3]}, r"sample.labels = \[3\]"),
        ({"labels": ["bees"]}, r"sample.labels: no class is named 'bees'; did you mean 'bee'\? .*ant, bee, cow"),
        ({"labels": "bee"}, r"sample.labels = 'bee': .*or of class names"),
        ({"seeds": 5}, r"sample.seeds = 5: must be a list of distinct integers"),
        ({"seeds": (1, 1)}, r"sample.seeds = \(1, 1\)"),
        ({"seeds": ()}, r"sample.seeds = \(\)"),
        ({"keep": "images"}, r"sample.keep = 'images': must be a list, possibly empty, of images and x"),
        ({"keep": ("latents",)}, r"sample.keep = \('latents',\)"),
        ({"export": ("jpg",)}, r"sample.export = \('jpg',\): must be a list, possibly empty, of png and adm"),
        ({"export": ("png",), "keep": ()}, r"needs the stored images: add 'images' to sample.keep"),
        ({"images_per_part": 0}, r"sample.images_per_part = 0 must be an integer of at least 1"),
        ({"networks": DomainEncoder()}, r"sample.networks is not a list"),
        ({"networks": [PCA()]}, r"sample.networks must be one of encoders"),
        ({"networks": [DomainEncoder()]}, r"sample.networks: DomainEncoder is not fitted"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, trained, setting, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path, trained, **setting)
    assert not list(tmp_path.iterdir())


# ---- exports


def test_an_adm_batch_holds_the_images_and_labels_and_is_read_back(tmp_path, trained):
    samples = draw(tmp_path, trained, export=("adm",))
    path, whole = tmp_path / "samples_adm.npz", samples.read()
    with np.load(path, allow_pickle=False) as batch:
        assert np.array_equal(batch["arr_0"], whole.images.permute(0, 2, 3, 1))
        assert np.array_equal(batch["arr_1"], whole.labels)
    with zipfile.ZipFile(path) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None
        with archive.open("arr_0.npy") as member:  # the only version that ADM's streaming reader takes
            assert np.lib.format.read_magic(member) == (1, 0)
    data = AdmBatch(path=str(path))
    assert (
        torch.equal(data.batch(range(COUNT))["images"], whole.images) and data.labels.tolist() == whole.labels.tolist()
    )


def test_png_files_hold_the_images(tmp_path, trained):
    images = draw(tmp_path, trained, export=("png",)).read().images
    names = sorted(path.name for path in (tmp_path / "samples_png").glob("*.png"))
    assert names == [f"{number:06d}.png" for number in range(COUNT)]
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "samples_png" / name)), image.permute(1, 2, 0))
    assert json.loads((tmp_path / "samples_png" / "record.json").read_text())["labels"][:3] == [0, 1, 2]


def test_every_seed_has_exports_of_its_own_and_new_samples_new_ones(tmp_path, trained, caplog):
    samples = draw(tmp_path, trained, seeds=(3, 8), export=("png", "adm"))
    second = samples.read().images[COUNT:].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "samples_adm_seed8.npz")["arr_0"], second)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "samples_png_seed8" / "000000.png")), second[0])
    written = (tmp_path / "samples_adm_seed8.npz").stat().st_mtime_ns
    draw(tmp_path, trained, seeds=(3, 8), export=("adm",))
    assert (tmp_path / "samples_adm_seed8.npz").stat().st_mtime_ns == written
    draw(tmp_path, trained, seeds=(3, 8), labels=[1], export=("adm",))
    assert np.load(tmp_path / "samples_adm_seed8.npz")["arr_1"].tolist() == [1] * COUNT
    assert "samples_png_seed8 was exported from earlier samples" in caplog.text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# ---- features


@pytest.fixture(scope="module")
def network():
    network = DomainEncoder(width=8, depth=1, image_size=8)
    network.trained.fill_(True)  # random weights will do
    return network


def test_features_are_those_of_the_images_one_set_for_each_seed(tmp_path, trained, network):
    samples = draw(tmp_path, trained, seeds=(0, 1))
    sets, images = sample_features(tmp_path, samples, network), samples.read().images
    assert [(len(found), found.role) for found in sets] == [(COUNT, "samples")] * 2
    together = torch.cat([found.tensors["pooled"] for found in sets])
    torch.testing.assert_close(together, network.pooled(images), rtol=1e-5, atol=1e-5)
    assert not list(feature_folder(tmp_path, network).parent.glob(".*"))


def test_features_streamed_while_drawing_are_those_of_the_kept_images(tmp_path, trained, network):
    streamed = draw(tmp_path / "streamed", trained, seeds=(0, 1), keep=(), networks=[network])
    kept = draw(tmp_path / "kept", trained, seeds=(0, 1), networks=[network])
    (one, two), (three, four) = (
        sample_features(path, found, network)
        for path, found in ((tmp_path / "streamed", streamed), (tmp_path / "kept", kept))
    )
    assert torch.equal(one.tensors["pooled"], three.tensors["pooled"])
    assert torch.equal(two.tensors["pooled"], four.tensors["pooled"])
    assert not torch.equal(one.tensors["pooled"], two.tensors["pooled"])


def test_an_interrupted_stream_is_taken_up_and_its_damaged_parts_are_made_again(tmp_path, trained, network):
    settings = {"keep": (), "networks": [network]}
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "run", trained, generate=interrupted_after(2), **settings)
    folder = feature_folder(tmp_path / "run", network)
    (work_of(tmp_path / "run") / folder.name / "part-00000.safetensors").write_bytes(b"cut")
    rest = interrupted_after(99)
    draw(tmp_path / "run", trained, generate=rest, **settings)
    assert rest.calls == [8, 0]
    draw(tmp_path / "unbroken", trained, **settings)
    assert contents(folder) == contents(feature_folder(tmp_path / "unbroken", network))


def counted(network):
    """A copy of a network, and the images that it encodes."""
    copied, asked = copy.deepcopy(network), []
    original = copied.metric_features
    copied.metric_features = lambda images: asked.append(len(images)) or original(images)
    return copied, asked


def test_features_are_computed_once_and_anew_for_other_samples_or_after_damage(tmp_path, trained, network):
    samples = draw(tmp_path, trained)
    ours, asked = counted(network)
    first = sample_features(tmp_path, samples, ours)[0].tensors["pooled"]
    assert asked == [4, 4, 3]
    assert torch.equal(sample_features(tmp_path, samples, ours)[0].tensors["pooled"], first)
    assert asked == [4, 4, 3]
    part = feature_folder(tmp_path, network) / "part-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    assert torch.equal(sample_features(tmp_path, samples, ours)[0].tensors["pooled"], first)
    assert asked == [4, 4, 3] * 2
    other = draw(tmp_path, trained, seeds=(9,))
    assert not torch.equal(sample_features(tmp_path, other, ours)[0].tensors["pooled"], first)


def test_another_network_has_a_store_of_its_own(tmp_path, trained, network):
    other = copy.deepcopy(network)
    other.trunk[0][0].weight.data += 0.1
    samples = draw(tmp_path, trained)
    ours, theirs = (sample_features(tmp_path, samples, net)[0].tensors["pooled"] for net in (network, other))
    assert not torch.equal(ours, theirs)
    assert torch.equal(sample_features(tmp_path, samples, network)[0].tensors["pooled"], ours)


def test_two_processes_share_the_features(tmp_path, trained, network):
    samples = draw(tmp_path, trained, num_images=40)
    networks = [counted(network) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda rank: sample_features(tmp_path, samples, networks[rank][0], rank, 2)[0], (0, 1))
    assert torch.equal(one.tensors["pooled"], two.tensors["pooled"])
    assert sum(networks[0][1]) + sum(networks[1][1]) == 40


def test_without_images_and_features_it_is_said_what_to_bind(tmp_path, trained, network):
    samples = draw(tmp_path, trained, keep=("x",))
    with pytest.raises(ValueError, match=r"holds no images \(sample.keep = \('x',\)\), and .*set sample.networks"):
        sample_features(tmp_path, samples, network)


def test_streamed_features_that_were_damaged_cannot_be_had_without_drawing(tmp_path, trained, network):
    samples = draw(tmp_path, trained, keep=(), networks=[network])
    folder = feature_folder(tmp_path, network)
    (folder / "part-00000.safetensors").unlink()
    with pytest.raises(BrokenArtefact, match="part-00000.safetensors is missing; the images were not kept: delete"):
        sample_features(tmp_path, samples, network)


def test_features_that_are_not_finite_are_refused_with_the_number_of_the_sample(tmp_path, trained, network):
    samples, broken = draw(tmp_path, trained), copy.deepcopy(network)
    original = broken.metric_features

    def metric_features(images):
        found = original(images)
        if len(images) == 3:  # the last part
            found["pooled"][1, 2] = float("nan")
        return found

    broken.metric_features = metric_features
    with pytest.raises(ValueError, match="pooled features of DomainEncoder for .*: sample 9"):
        sample_features(tmp_path, samples, broken)
