"""The training loop on a tiny model: it learns, and stopping and resuming changes nothing."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from PIL import Image

import redi
from redi import command_line
from redi import train as train_program
from redi.core.clocks import Lead
from redi.core.ema import EMA
from redi.core.objective import JointObjective
from redi.core.samplers.euler import Euler
from redi.data.cache.prepare import prepare
from redi.data.cache.write import write_cache
from redi.data.datasets.digits import Digits
from redi.data.datasets.image_folder import ImageFolder
from redi.data.loader import batch_positions
from redi.data.preprocessing import Preprocessing
from redi.fusion import Separate
from redi.models.autoencoders import Folded, LatentStatistics
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.learned_projection import LearnedProjection
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer
from redi.runtime.artefact import save_artefact
from redi.runtime.atomic import only_process
from redi.runtime.checkpoint import ended_early, list_checkpoints, load_checkpoint, step_of
from redi.runtime.interrupt import Stopped
from redi.runtime.log import read_log
from redi.sampling.generate import generate
from redi.training.optimizers import ADAMW, Muon
from redi.training.schedules import Cooldown, Cosine, Linear
from redi.training.trainer import train

MODEL = partial(DiffusionTransformer, width=16, depth=1, num_heads=2, patch_size=4)


def tiny_codec(seed=0):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16, seed=seed)
    return JointCodec(
        autoencoder=Pixels(channels=1), representations=[Representation(encoder=encoder, reducer=PCA(rank=2))]
    )


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(50, 1438))


@pytest.fixture(scope="module")
def codec(images):
    codec = tiny_codec()
    representation = codec.representations["domain"]
    representation.encoder.fit(images)
    representation.reducer.fit([representation.encoder(images.batch(range(50))["images"])])
    return codec


@pytest.fixture(scope="module")
def cached(codec, images, tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "digits", codec, images)


@pytest.fixture
def start(codec, cached, tmp_path):
    """Trains in `tmp_path / folder`; returns its path."""

    def start(folder, **settings):
        defaults = {"codec": codec, "dataset": cached, "model": MODEL, "ema": partial(EMA, decay=0.9), "device": "cpu"}
        defaults |= {"num_steps": 8, "batch_size": 8, "log_every": 2, "keep_checkpoints": 10, "preview_images": 2}
        defaults["check_memory"] = False  # a tenth of a second
        defaults["preview"] = partial(generate, sampler=Euler(num_evaluations=1))
        train(tmp_path / folder, **(defaults | settings))
        return tmp_path / folder

    return start


def losses(run_dir):
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in read_log(run_dir)]


def assert_same_training(run_dir, expected):
    """Last checkpoint and log are bit-equal."""
    found, record = load_checkpoint(list_checkpoints(run_dir)[-1])
    tensors, expected_record = load_checkpoint(list_checkpoints(expected)[-1])
    assert record == expected_record  # the SHA-256 of every file among them
    assert set(found) == {"model", "ema", "optimizer", "codec", "colours"}
    for group, entries in tensors.items():
        assert set(found[group]) == set(entries)
        for name, tensor in entries.items():
            assert torch.equal(found[group][name], tensor), f"{group} {name}"
    assert losses(run_dir) == losses(expected)


VARIANTS = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "warmed up": {"warmup_steps": 6},
    "with representation dropout": {"objective": partial(JointObjective, representation_dropout=0.4)},
    "with momentum": {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)},
    "with a warmed-up average": {"ema": partial(EMA, decay=0.99, warmup=True)},
    "with another seed": {"seed": 7},
    "with Muon, warmed up, and a cosine": {"optimizer": Muon, "schedule": Cosine(8), "warmup_steps": 3},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(start, settings):
    start("stopped", **settings, num_steps=4)
    assert_same_training(start("stopped", **settings), start("unbroken", **settings))


def test_a_resumed_run_without_a_cache_is_bit_equal_to_an_unbroken_one(start, images):
    start("stopped", dataset=images, num_steps=4)
    assert_same_training(start("stopped", dataset=images), start("unbroken", dataset=images))


def test_a_resumed_run_with_a_vector_is_bit_equal_to_an_unbroken_one(start, codec, images, tmp_path):
    encoder = codec.representations["domain"].encoder
    parts = [*codec.representations.values(), Representation(encoder, PCA(rank=5), vector="pooled")]
    more = JointCodec(autoencoder=Pixels(channels=1), representations=parts)
    cache = prepare(codec=more, dataset=images, cache_dir=tmp_path / "cache")
    assert torch.equal(more.join(cache.batch(range(5))), more.encode(images.batch(range(5))["images"]))
    model = partial(MODEL, fusion=Separate)
    settings = {"codec": more, "dataset": cache, "model": model, "objective": partial(JointObjective, clock=Lead())}
    start("stopped", **settings, num_steps=4)
    assert_same_training(start("stopped", **settings), unbroken := start("unbroken", **settings))
    assert "domain_pooled" in losses(unbroken)[-1]
    assert json.loads((unbroken / "training.json").read_text())["channels"] == more.channels.record()


def test_a_resumed_run_with_a_learned_projection_is_bit_equal_to_an_unbroken_one(start, codec, images, tmp_path):
    def settings():
        """The codec as a new process has it, fitted but not trained."""
        encoder = codec.representations["domain"].encoder
        reducer = LearnedProjection(2, store_rank=6, speed=10.0)
        new = JointCodec(Pixels(channels=1), [Representation(encoder, reducer)])
        return {"codec": new, "dataset": prepare(codec=new, dataset=images, cache_dir=tmp_path / "cache")}

    unbroken, start_of = settings(), settings()
    start("stopped", **settings(), num_steps=4)
    resumed = settings()
    tensors, record = load_checkpoint(list_checkpoints(tmp_path / "stopped")[-1])
    resumed["codec"].load_learned_state(tensors["codec"])  # as the programs do
    assert resumed["codec"].fingerprint() == record["codec_fingerprint"] != unbroken["codec"].fingerprint()
    resumed["dataset"].check(resumed["codec"])  # the cache does not depend on the projection
    assert_same_training(start("stopped", **resumed), folder := start("unbroken", **unbroken))

    # At the end the codec holds the averaged projection, and what it computes has no other source.
    tensors, record = load_checkpoint(list_checkpoints(folder)[-1])
    average = tensors["ema"]["objective_parts.projections.domain.projection"]
    assert torch.equal(tensors["codec"]["domain.reducer.projection"], average)
    assert not torch.equal(tensors["model"]["objective_parts.projections.domain.projection"], average)
    opened = redi.load(folder, codec=settings()["codec"], model=MODEL, device="cpu")
    sample = images.batch(range(5))["images"]
    assert torch.equal(opened.codec.encode(sample), unbroken["codec"].encode(sample))
    assert not torch.equal(opened.codec.encode(sample), start_of["codec"].encode(sample))
    assert opened.codec.fingerprint() == record["codec_fingerprint"]
    assert {f"projection/domain/{name}" for name in ("effective_rank", "std_2", "ortho", "vf")} <= losses(folder)[
        -1
    ].keys()
    assert opened.generate([0, 1], sampler=Euler(num_evaluations=1)).images.shape == (2, 3, 8, 8)

    # A cache of fewer channels is refused before the first step.
    wider = JointCodec(
        Pixels(channels=1), [Representation(codec.representations["domain"].encoder, LearnedProjection(2))]
    )
    wider.representations["domain"].reducer.load_state_dict(
        start_of["codec"].representations["domain"].reducer.state_dict()
    )
    with pytest.raises(ValueError, match=r"reducer.store_rank: 6 -> 8"):
        start("refused", codec=wider, dataset=start_of["dataset"])


def test_a_resumed_run_of_the_image_alone_is_bit_equal_to_an_unbroken_one(start, images):
    settings = {"codec": JointCodec(autoencoder=Pixels(channels=1)), "dataset": images}
    start("stopped", **settings, num_steps=4)
    assert_same_training(start("stopped", **settings), start("unbroken", **settings))


def test_the_memory_of_a_step_is_checked_before_it_and_changes_nothing(start, monkeypatch, caplog):
    with caplog.at_level("INFO", logger="redi"):
        checked = start("checked", check_memory=True)
    assert "a training step needs about" in caplog.text
    assert_same_training(checked, start("unchecked"))
    monkeypatch.setattr("redi.training.memory.free_memory", lambda device: (1000, 2000))
    with pytest.raises(ValueError, match="train.check_memory = False skips this check"):
        start("refused", check_memory=True)


def test_training_from_images_is_training_from_the_cache(start, images):
    assert_same_training(start("images", dataset=images), start("cache"))


def test_a_run_that_lost_steps_after_its_checkpoint_repeats_them_bit_equal(start):
    unbroken = start("unbroken", checkpoint_every=4)
    crashed = start("crashed", checkpoint_every=4, num_steps=7)
    newest = list_checkpoints(crashed)[-1]
    assert newest.name == "step_00000007"
    newest.rename(crashed / "lost")  # as if the process had died before it wrote this one
    assert_same_training(start("crashed", checkpoint_every=4), unbroken)


def test_a_signal_stops_with_a_checkpoint_and_the_same_call_goes_on(start):
    def interrupt(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return generate(*args, **kwargs, sampler=Euler(num_evaluations=1))

    with pytest.raises(Stopped, match="stopped by SIGTERM at step 4") as stopped:
        start("stopped", preview=interrupt, preview_every=4)
    assert (stopped.value.signal_number, stopped.value.step) == (signal.SIGTERM, 4)
    assert_same_training(start("stopped"), start("unbroken"))


def test_handlers_of_signals_come_back(start):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    start("run", num_steps=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_preview_of_few_classes_fills_its_rows_with_whole_sets(start):
    digits = Digits(num_classes=3)
    three = digits.without([i for i, label in enumerate(digits.labels) if label > 2])
    run_dir = start("run", dataset=three, num_steps=2, preview_every=2, preview_images=6)
    with Image.open(run_dir / "previews/step_00000002.png") as picture:
        assert picture.width == 6 * (64 + 4) + 4  # two sets of three cells of 64 pixels with gaps of 4


def test_previews_do_not_change_what_is_learned(start):
    with_previews = start("with", preview_every=2)
    assert len(list((with_previews / "previews").glob("*.png"))) == 4
    assert_same_training(with_previews, start("without"))


def test_a_finished_run_is_left_as_it_is(start):
    run_dir = start("run")
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}
    start("run")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")} == before
    assert len(read_log(run_dir)) == 4


def test_the_log_has_one_line_per_log_every_steps_and_no_duplicates_after_resuming(start):
    run_dir = start("run", num_steps=5, log_every=2)  # also one for the last step
    assert [entry["step"] for entry in read_log(run_dir)] == [2, 4, 5]
    start("run", num_steps=9, log_every=2)
    assert [entry["step"] for entry in read_log(run_dir)] == [2, 4, 5, 6, 8, 9]


def test_the_log_names_all_losses(start):
    names = {"step", "loss", "image", "domain", "gradient_norm", "skipped_steps"}
    names |= {"images_per_second", "learning_rate"}
    names |= {f"loss_by_t/{group}/0.{tenth}5" for group in ("image", "domain") for tenth in range(10)}
    assert all(set(entry) == names for entry in read_log(start("run")))


def test_accumulating_equals_the_whole_batch_where_nothing_is_random(start):
    """The parts draw their own t and noise, so only an objective without randomness can be compared."""

    class Regression(JointObjective):
        def __call__(self, model, x, y):
            error = (model(0.5 * x, torch.full((len(x),), 0.5), y) - x).square().mean()
            return {"loss": error}

    def weights(folder, **settings):
        run_dir = start(folder, objective=Regression, optimizer=partial(torch.optim.SGD, lr=0.1), **settings)
        return load_checkpoint(list_checkpoints(run_dir)[-1])[0]["model"]

    whole, parts = weights("whole"), weights("parts", accumulate=4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)  # another order of summation


def test_the_loss_falls(start):
    entries = read_log(start("run", num_steps=200, log_every=5, optimizer=partial(ADAMW, lr=1e-2)))
    for name in ("loss", "image", "domain"):
        last = sum(entry[name] for entry in entries[-8:]) / 8
        assert last < 0.8 * entries[0][name]


def test_the_learning_rate_warms_up_linearly_and_stays(start):
    run_dir = start("run", warmup_steps=4, log_every=1, optimizer=partial(ADAMW, lr=1e-3))
    rates = [entry["learning_rate"] for entry in read_log(run_dir)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])


def test_a_schedule_is_multiplied_with_the_warm_up_in_every_parameter_group(start):
    settings = {"warmup_steps": 2, "schedule": Linear(8, end=0.0), "log_every": 1}
    run_dir = start("run", optimizer=partial(Muon, lr=1e-2, others=partial(ADAMW, lr=1e-3)), **settings)
    rates = [entry["learning_rate"] for entry in read_log(run_dir)]
    factors = [0.5, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert rates == pytest.approx([1e-2 * factor for factor in factors])
    groups = load_checkpoint(list_checkpoints(run_dir)[-1])[1]["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-2 / 8, 1e-3 / 8])


def test_a_run_is_resumed_with_the_optimizer_that_began_it(start):
    start("run", num_steps=2)
    with pytest.raises(ValueError, match="step_00000002 was trained with another train.optimizer than Muon"):
        start("run", optimizer=Muon)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Cosine, "train.schedule must be one of schedules .*, got the class Cosine"),
        (0.5, "train.schedule must be one of schedules .*, got 0.5"),
        (lambda step: math.nan, "the factor in step 0 = nan must be a finite number of at least 0"),
    ],
)
def test_a_schedule_that_gives_no_factor_is_refused(start, schedule, message):
    with pytest.raises(ValueError, match=message):
        start("run", schedule=schedule)


def test_muon_a_schedule_a_warmed_up_average_and_the_best_checkpoint_work_together(start):
    settings = {"optimizer": Muon, "schedule": Cooldown(8, share=0.5), "warmup_steps": 3}
    settings["ema"] = partial(EMA, decay=0.99, warmup=True)
    values = iter([3.0, 1.0, 2.0, 4.0])  # at steps 2, 4, 6 and 8
    best = {"monitor": lambda *_, **__: {"x": next(values)}, "monitor_every": 2, "keep_best": "lowest x"}
    for num_steps in (4, 8):
        folders = list_checkpoints(start("best", **settings, **best, keep_checkpoints=1, num_steps=num_steps))
    assert [step_of(folder) for folder in folders] == [4, 8]
    found, expected = (
        load_checkpoint(list_checkpoints(run_dir)[-1])[0]
        for run_dir in (folders[0].parents[1], start("plain", **settings))
    )
    for group in ("model", "ema", "optimizer"):
        assert all(torch.equal(found[group][name], tensor) for name, tensor in expected[group].items())


def test_gradients_are_scaled_down_to_their_largest_norm(start, codec):
    # Plain SGD with rate 1 moves the weights by the clipped gradient.
    settings = {"optimizer": partial(torch.optim.SGD, lr=1.0), "num_steps": 1, "max_grad_norm": 0.01}
    run_dir = start("run", **settings)
    torch.manual_seed(0)
    tensors, record = load_checkpoint(list_checkpoints(run_dir)[-1])
    initial = MODEL(channels=codec.channels, grid=record["model_arguments"]["grid"], num_classes=10)
    moved = sum((tensors["model"][name] - p).square().sum() for name, p in initial.named_parameters())
    assert float(moved.detach().sqrt()) == pytest.approx(0.01, rel=1e-3)
    assert read_log(run_dir)[0]["gradient_norm"] > 0.01


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_the_weights_after_every_step(start, warmup):
    run_dir = start("run", ema=partial(EMA, decay=0.3, warmup=warmup), num_steps=6, checkpoint_every=1)
    states = [load_checkpoint(folder)[0] for folder in list_checkpoints(run_dir)]
    average = states[0]["ema"]
    for step, state in enumerate(states[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step)) if warmup else 0.3
        average = {name: decay * old + (1 - decay) * state["model"][name] for name, old in average.items()}
    for name, tensor in average.items():
        torch.testing.assert_close(states[-1]["ema"][name], tensor, rtol=1e-5, atol=1e-7)  # lerp rounds otherwise


def test_resuming_on_other_images_is_refused(start, images):
    start("run", dataset=images, num_steps=1)
    with pytest.raises(ValueError, match="step_00000001 was trained on other data"):
        start("run", dataset=images.without([0]), num_steps=2)


def test_old_checkpoints_are_removed(start):
    run_dir = start("run", checkpoint_every=2, keep_checkpoints=2)
    assert [path.name for path in list_checkpoints(run_dir)] == ["step_00000006", "step_00000008"]


def test_a_codec_that_is_not_fitted_is_refused(start, images):
    with pytest.raises(ValueError, match="the codec is not fitted: call prepare"):
        start("run", codec=tiny_codec(), dataset=images)


def test_a_cache_of_another_codec_is_refused(start, images):
    other = tiny_codec(seed=1)
    representation = other.representations["domain"]
    representation.encoder.fit(images)
    representation.reducer.fit([representation.encoder(images.batch(range(50))["images"])])
    with pytest.raises(ValueError, match="was computed with another codec .cache -> this codec.:"):
        start("run", codec=other)


BAD = {
    "accumulate does not divide": ({"accumulate": 3}, "train.accumulate = 3 must divide train.batch_size = 8"),
    "no batch": ({"batch_size": 0}, "train.batch_size"),
    "no steps": ({"num_steps": 0}, "train.num_steps = 0"),
    "no logging": ({"log_every": 0}, "train.log_every = 0"),
    "no checkpoints": ({"checkpoint_every": 0}, "train.checkpoint_every = 0"),
    "none kept": ({"keep_checkpoints": 0}, "train.keep_checkpoints = 0"),
    "no previews": ({"preview_every": 0}, "train.preview_every = 0"),
    "unknown precision": ({"precision": "float16"}, "train.precision = 'float16'"),
    "patch size": ({"model": partial(MODEL, patch_size=3)}, "patch_size = 3"),
    "dropout": ({"objective": partial(JointObjective, label_dropout=1.5)}, "label_dropout = 1.5"),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD)
def test_settings_that_cannot_work_are_refused_before_the_first_step(start, tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        start("run", **settings)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_checkpoint_of_another_model_is_refused(start):
    start("run", num_steps=2)
    with pytest.raises(ValueError, match="step_00000002 holds another model"):
        start("run", model=partial(MODEL, width=32))


def test_a_checkpoint_of_another_codec_is_refused(start, images, codec):
    start("run", num_steps=2, dataset=images)
    other = JointCodec(autoencoder=Pixels(channels=3), representations=[codec.representations["domain"]])
    with pytest.raises(ValueError, match="was trained with channels .*image.*: 1"):
        start("run", codec=other, dataset=images)


def test_a_run_on_one_cache_resumes_only_with_its_statistics(start, images, tmp_path):
    first, second = (
        JointCodec(Folded(Pixels(channels=1), statistics=LatentStatistics.of(0.0, std))) for std in (1.0, 2.0)
    )
    cache = write_cache(tmp_path / "cache", first, images)
    settings = {"dataset": cache, "model": partial(MODEL, patch_size=2)}
    start("run", num_steps=1, codec=first, **settings)
    with pytest.raises(ValueError, match="step_00000001 was trained with another autoencoder, .* or statistics"):
        start("run", num_steps=2, codec=second, **settings)
    start("run", num_steps=2, codec=first, **settings)


def test_a_damaged_checkpoint_is_refused(start):
    run_dir = start("run", num_steps=2)
    path = list_checkpoints(run_dir)[-1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="model.safetensors has 100 bytes"):
        start("run")


def test_opening_a_run_for_sampling_reads_no_state_of_the_optimizer(start, codec):
    run_dir = start("run", num_steps=2)
    (list_checkpoints(run_dir)[-1] / "optimizer.safetensors").write_bytes(b"damaged")
    assert redi.load(run_dir, codec=codec, model=MODEL, device="cpu").step == 2


def test_training_that_diverges_stops_and_its_checkpoints_are_good(start, tmp_path):
    diverging = {"optimizer": partial(torch.optim.SGD, lr=1e30), "max_grad_norm": 0, "max_skipped_steps": 3}
    with pytest.raises(ValueError, match="more than train.max_skipped_steps = 3.* Lower the learning rate") as error:
        start("run", **diverging, num_steps=40, log_every=100, checkpoint_every=1)
    (path,) = (tmp_path / "run").glob("nonfinite_step_*.json")
    finding = json.loads(path.read_text())
    assert finding["phase"] in ("forward", "loss", "backward", "gradient", "norm")
    newest = list_checkpoints(path.parent)[-1]
    for part in (f"Step {finding['step']}: {finding['text']}", path.name, f"{newest} is good"):
        assert part in str(error.value)
    assert finding["rank"] == 0 and len(finding["batch"]) == 8
    assert finding["images"] == [finding["batch"][row] for row in finding["rows"]]
    assert list_checkpoints(tmp_path / "run")
    for folder in list_checkpoints(tmp_path / "run"):
        assert all(tensor.isfinite().all() for tensor in load_checkpoint(folder)[0]["model"].values())


def test_an_image_that_vanishes_costs_no_step(start, tmp_path, caplog):
    """Earlier steps are saved; when the data are back, training ends as without the failure."""
    for number in range(40):
        folder = tmp_path / "images" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    images = ImageFolder(path=str(tmp_path / "images"), preprocessing=Preprocessing(image_size=8))
    settings = {"dataset": images, "num_steps": 10, "batch_size": 4}  # one epoch
    plain = start("plain", **settings)
    lost = tmp_path / "images" / images.names[batch_positions(len(images), 4, 0, 8)[0]]  # of the ninth step
    content = lost.read_bytes()

    def vanish(*arguments, **keywords):
        lost.unlink(missing_ok=True)
        return generate(*arguments, **keywords, sampler=Euler(num_evaluations=1))

    with pytest.raises((ValueError, OSError), match=lost.name):
        start("run", **settings, preview=vanish, preview_every=2)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_00000008"
    assert "the data of step 9 cannot be read; all steps before it are saved" in caplog.text
    lost.write_bytes(content)
    assert_same_training(start("run", **settings), plain)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(start, fused, monkeypatch):
    """Weights, averages and optimizer moments are unchanged; the log holds the mean of the other steps."""
    plain = start("plain", num_steps=2, optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=fused))
    clip = torch.nn.utils.clip_grad_norm_

    def spoiled(parameters, *arguments):
        parameters = list(parameters)
        if next(calls) == 2:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, *arguments)

    calls = itertools.count()
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoiled)
    run = start("run", num_steps=3, log_every=3, optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=fused))
    expected, found = (load_checkpoint(list_checkpoints(folder)[-1])[0] for folder in (plain, run))
    for group in ("model", "optimizer"):
        assert all(torch.equal(found[group][name], tensor) for name, tensor in expected[group].items())
    (line,) = read_log(run)
    assert line["skipped_steps"] == 1
    assert line["loss"] == pytest.approx(read_log(plain)[0]["loss"])


TINY = """
include 'digits.gin'
DomainEncoder.width = 8
DomainEncoder.depth = 1
DomainEncoder.image_size = 8
DomainEncoder.num_steps = 2
DiffusionTransformer.width = 16
DiffusionTransformer.depth = 1
DiffusionTransformer.num_heads = 2
PCA.rank = 2
train.num_steps = 150
train.batch_size = 8
train.log_every = 1
train.preview_every = 1000
train.device = 'cpu'
"""


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_ends_as_an_unbroken_run(tmp_path):
    (tmp_path / "tiny.gin").write_text(TINY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "redi.train", "--gin_file=tiny.gin", "--run_dir=stopped"]
    run_dir = tmp_path / "stopped"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        while process.poll() is None and len(read_log(run_dir)) < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    step = json.loads((list_checkpoints(run_dir)[-1] / "record.json").read_text())["step"]
    assert 3 <= step < 150
    assert f"stopped by SIGINT at step {step}; rerun the same command to continue" in errors
    command_line.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(gin_file=[str(tmp_path / "tiny.gin")]):
        train_program.main(run_dir)
        train_program.main(tmp_path / "unbroken")
    assert_same_training(run_dir, tmp_path / "unbroken")


def test_a_folder_in_which_another_process_trains_is_refused_and_left_alone(start, tmp_path):
    run_dir = start("run", num_steps=2)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with only_process(run_dir), pytest.raises(ValueError, match="another process is training in"):
        start("run")
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert_same_training(start("run"), start("unbroken"))  # free again


def test_the_folder_is_free_again_after_training_failed(start, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        start("run", preview=fail, preview_every=2)
    assert_same_training(start("run"), start("unbroken"))


class WithTuple(DomainEncoder):
    """An encoder whose provenance holds a tuple, which JSON returns as a list."""

    def provenance(self):
        return super().provenance() | {"mean": (0.5, 0.5, 0.5), "crop": {"size": (8, 8)}}


def test_a_codec_whose_provenance_holds_tuples_resumes(start, images):
    encoder = WithTuple(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    encoder.fit(images)
    reducer = PCA(rank=2)
    reducer.fit([encoder(images.batch(range(50))["images"])])
    codec = JointCodec(
        autoencoder=Pixels(channels=1), representations=[Representation(encoder=encoder, reducer=reducer)]
    )
    run_dir = start("run", codec=codec, dataset=images, num_steps=4)
    assert_same_training(start("run", codec=codec, dataset=images), start("unbroken", codec=codec, dataset=images))
    assert [path.name for path in list_checkpoints(run_dir)][-1] == "step_00000008"


def test_a_checkpoint_with_an_embedding_bias_for_every_group_resumes_as_one_with_their_sum(start):
    """The older form of merged tokens: equal biases with equal moments, because their gradients are equal."""
    folder = list_checkpoints(start("stopped", num_steps=4))[-1]
    tensors, record = load_checkpoint(folder)
    one, another = "fusion.embeddings.image.bias", "fusion.embeddings.domain.bias"
    for group in ("model", "ema"):
        half = tensors[group][one] / 2
        tensors[group] |= {one: half, another: half.clone()}
    moments = {key.replace(one, another): tensor.clone() for key, tensor in tensors["optimizer"].items() if one in key}
    tensors["optimizer"] |= moments
    record["optimizer"]["param_groups"][0]["params"].append(len(tensors["model"]) - 1)
    save_artefact(folder, tensors, record)
    assert_same_training(start("stopped"), start("unbroken"))


def test_every_line_of_the_log_and_every_checkpoint_is_reported(start):
    records = []
    monitored = {"monitor": lambda *_, **__: {"x": 1.0}, "monitor_every": 4}
    run_dir = start("run", checkpoint_every=4, on_log=records.append, **monitored)
    lines = [record for record in records if "checkpoint" not in record]
    assert [
        {name: None if value != value else value for name, value in line.items()}
        for line in lines  # empty bins of t
    ] == read_log(run_dir)
    assert [record["checkpoint"] for record in records if "checkpoint" in record] == [
        str(folder) for folder in list_checkpoints(run_dir)
    ]


def test_a_training_that_on_log_ends_is_done_and_goes_on_without_it(start, caplog):
    def plateau(record):
        return record["step"] == 4 and "loss" in record

    run_dir = start("run", on_log=plateau)
    (ended,) = list_checkpoints(run_dir)
    assert 4 <= step_of(ended) < 8 and ended_early(run_dir)
    with caplog.at_level("INFO", logger="redi"):
        start("run", on_log=lambda record: pytest.fail("nothing is trained"))
    assert "train.on_log ended training at step" in caplog.text
    assert list_checkpoints(run_dir) == [ended]
    start("run")
    assert not ended_early(run_dir)
    assert losses(run_dir) == losses(start("unbroken"))


def test_on_log_that_asks_at_the_last_step_changes_nothing(start):
    assert_same_training(start("run", on_log=lambda record: record["step"] == 8), start("unbroken"))


def test_another_answer_of_on_log_than_true_or_false_is_refused(start):
    with pytest.raises(ValueError, match="train.on_log returned 'stop': return True to end training"):
        start("run", on_log=lambda record: "stop")
    with pytest.raises(
        ValueError, match=r"train.on_log = <class 'dict'> must be a function: .* or an object with them, @MyClass\(\)"
    ):
        start("run", on_log=dict)
    with pytest.raises(ValueError, match="train.on_log = 'wandb' must be a function"):
        start("run", on_log="wandb")
