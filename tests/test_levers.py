"""Every preset of gin/levers, alone and with others: it states its source, goes with every base file, and its run is
trained, stopped, resumed, opened and sampled."""

import json
import re
from pathlib import Path

import pytest
import torch

import redi
from redi.core import config
from redi.core.clocks import Learned
from redi.core.configurables import import_all
from redi.core.registry import entry_points
from redi.evaluation.samples.stored import load_samples
from redi.runs.experiment import Experiment
from redi.runs.stages import sample_stage, train_stage
from redi.runtime.atomic import write_json
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint
from redi.runtime.log import read_log

import_all()
ROOT = Path(__file__).parents[1]
FOLDER = config.config_dir() / "levers"
TEXTS = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.gin"))}
LEVERS = list(TEXTS)
GUIDANCE = [name for name in LEVERS if "generate.guidance" in TEXTS[name]]
CLOCKS = ["clock_probe", "learned_clock"]  # in place of the lead; a probe refuses the cosine
ALONE = ["predicted_features"]  # nothing but the image is diffused
OTHERS = [name for name in LEVERS if name not in (*GUIDANCE, *CLOCKS, *ALONE)]
# All others with each kind of guidance: a later file replaces the list of rules.
COMBINATIONS = [(name,) for name in LEVERS] + [(*OTHERS, rule) for rule in GUIDANCE]
# A weaker network has the channels of another projection, and is refused.
COMBINATIONS = [
    tuple(name for name in levers if name != "learned_projection" or not levers[-1].startswith("autoguidance"))
    for levers in COMBINATIONS
]
# Bindings without a preset, with all others.
MORE = {
    "inner_guidance": ["JointObjective.inner_layer = 1"],  # of one block
    "cosine_schedule": ["train.schedule = @schedules.Cosine()", "schedules.Cosine.num_steps = 4"],
    "independent": ["JointObjective.clock = @clocks.Independent()"],
    "shift": ["JointObjective.clock = @clocks.Shift()", "Shift.shift = {'domain': 0.5}"],
    "separate": ["DiffusionTransformer.fusion = @fusion.Separate"],
    "heun": ["generate.sampler = @samplers.Heun()", "Heun.num_evaluations = 8"],
}
COMBINATIONS += [(*OTHERS, "cosine_schedule", "separate"), (*OTHERS, "heun")]
COMBINATIONS += [(*(name for name in OTHERS if name != "lead"), clock) for clock in ("independent", "shift")]
COMBINATIONS += [(*ALONE, "heun", "separate", "autoguidance_earlier")]
COMBINATIONS += [(*(name for name in OTHERS if name not in ("lead", "cosine")), "clock_probe")]
every_combination = pytest.mark.parametrize("levers", COMBINATIONS, ids=" ".join)

# 4 steps of warm-up, EMA and a checkpoint that a metric chooses, with each of them.
RUN = ["train.warmup_steps = 3", "train.log_every = 1", "train.checkpoint_every = 2"]
RUN += ["train.monitor_every = 2", "train.keep_best = 'lowest frechet_distance_domain_network_of_20'"]
RUN += ["Monitor.num_images = 20", "monitor/EulerMaruyama.num_evaluations = 4", "evaluator/DomainEncoder.num_steps = 5"]
RUN += ["EulerMaruyama.num_evaluations = 4"]  # 3 steps, the fewest with a lead


@pytest.fixture
def train(tiny_gin, tmp_path):
    """Trains a run with these levers up to a step -> its folder."""

    def train(folder: str, levers, num_steps: int, *bindings: str):
        files = [f"levers/{name}.gin" for name in levers if name in TEXTS]
        bindings = [*RUN, *(line for name in levers for line in MORE.get(name, ())), *bindings]
        config.parse([tiny_gin, "monitor.gin", *files], [*bindings, f"train.num_steps = {num_steps}"])
        run_dir = tmp_path / folder
        run_dir.mkdir(exist_ok=True)
        (run_dir / "config.gin").write_text(config.full_text())
        train_stage(Experiment(run_dir))
        return run_dir

    return train


@every_combination
def test_a_run_is_trained_stopped_resumed_bit_equal_opened_and_sampled(train, levers):
    weak = ["WEAK_STEP = 2"] if "autoguidance_earlier" in levers else []
    if "autoguidance_smaller" in levers:
        weak = [f"WEAK = '{train('weak', levers[:-1], 2, 'DiffusionTransformer.width = 8')}'"]
    if "learned_clock" in levers:
        weak = [f"CLOCK = '{train('probe', ('clock_probe',), 4)}'"]
    unbroken = train("unbroken", levers, 4, *weak)
    train("broken", levers, 2, *weak)
    broken = train("broken", levers, 4, *weak)
    (ours, _), (theirs, _) = (load_checkpoint(list_checkpoints(folder)[-1]) for folder in (broken, unbroken))
    for part in ("model", "ema", "optimizer"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(tensor, theirs[part][key]) for key, tensor in ours[part].items()), part
    ours, theirs = ([line["loss"] for line in read_log(folder) if "loss" in line] for folder in (broken, unbroken))
    assert ours == theirs and len(ours) == 4 and torch.tensor(ours).isfinite().all()

    assert redi.load(broken).generate([0, 1], sampler=redi.samplers.Euler(4)).images.shape == (2, 3, 8, 8)
    sample_stage(Experiment(broken))  # with the sampler and guidance of the levers
    drawn = load_samples(broken).read()
    assert drawn.x.isfinite().all() and len(drawn.record["guidance"]) == 1


# ---- the files


@pytest.mark.parametrize("name", LEVERS)
def test_a_preset_opens_with_its_command_the_published_and_our_measured_effect(name):
    opening = re.match(r"(#.*\n)+", TEXTS[name])[0]
    assert f"--gin_file=levers/{name}.gin" in opening
    assert "\n# Published: " in opening and "\n# Measured: " in opening
    assert re.search(r"\d{4}\.\d{5}|arXiv", opening)


@pytest.mark.parametrize("name", LEVERS)
def test_the_measured_effect_of_a_preset_is_that_of_the_record(name):
    measured = re.search(r"^# Measured: .* experiments/(\w+)", TEXTS[name], re.M)
    rows = json.loads((ROOT / "experiments" / measured[1] / "results.json").read_text())
    distances = {"{mean:.2f} ± {std:.2f}".format(**row["distance"]): point for point, row in rows.items()}
    effect, *others = re.findall(r"\d+\.\d+ ± \d+\.\d+", measured[0]) or [None]
    assert effect is None or (
        effect in distances and distances[others[0]] in ("redi", "plain") and effect not in others
    )
    assert (effect is None) == (name == "clock_probe")  # which draws no samples


@pytest.mark.parametrize("name", LEVERS)
def test_a_preset_has_at_most_five_bindings(name):
    lines = [line for line in TEXTS[name].splitlines() if line and not line.startswith("#")]
    assert 1 <= len(lines) <= 5


BASES = {"digits": ["digits.gin"], "images": ["images.gin"], "imagenet": ["imagenet.gin", "sit.gin"]}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("file", [*(f"levers/{name}.gin" for name in LEVERS), "modern.gin"])
def test_a_preset_goes_with_every_base_file(file, base, thousand_classes, tmp_path):
    clock = [f"CLOCK = '{tmp_path}'"] if "learned_clock" in file else []
    config.parse([*BASES[base], file], ([thousand_classes] if base != "digits" else []) + clock)
    text = (config.config_dir() / file).read_text()
    assert [key for key in config.without_effect(entry_points) if f"{key} = " in text] == []
    codec, dataset = config.bound("train.codec"), config.bound("train.dataset")
    codec.for_image_size(dataset.image_size)
    if clock:
        write_json(tmp_path / "clock.json", Learned().for_channels(codec.channels).artefacts()["clock.json"])
    config.bound("train.objective")(channels=codec.channels, num_classes=dataset.num_classes)
    for rule in config.bound("generate.guidance", ()):
        rule.check(codec.channels, dataset.num_classes)
