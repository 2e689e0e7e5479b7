"""A run made of plug-ins, of which one is edited: what it decides is done again, and nothing else."""

import importlib
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.runs.experiment import Experiment
from redi.runs.job import job
from redi.runtime.artefact import read_record
from redi.runtime.checkpoint import list_checkpoints

import_all()

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "plug-ins.md").read_text()
MODULES = {
    "sampling": """
from redi.core.samplers import register
from redi.core.samplers.euler import Euler

@register
class Mine(Euler):
    pass
""",
    "drawing": re.search(r"^# my_lab/brighter.py\n(.*?)^```", DOCUMENTED, re.MULTILINE | re.DOTALL)[1],
    "fusing": """
from redi.fusion import register
from redi.fusion.merged import Merged

@register
class Joined(Merged):
    pass
""",
    "reading": """
from redi.data.datasets import register
from redi.data.datasets.digits import Digits

@register
class Pages(Digits):
    pass
""",
    "measuring": """
from redi.models.encoders import register
from redi.models.encoders.domain import DomainEncoder

@register
class Judge(DomainEncoder):
    pass
""",
}
BINDINGS = """
train.dataset = @datasets.Pages()
Pages.split = 'train'
Pages.held_out_fraction = 0.9
evaluate.representation = None
evaluate.networks = [@encoders.Judge()]
train.monitor = @Monitor()
Monitor.networks = [@encoders.Judge()]
Monitor.num_images = 2
Judge.num_steps = 2
Judge.width = 8
Judge.depth = 1
Judge.image_size = 16
DiffusionTransformer.fusion = @fusion.Joined
generate.sampler = @samplers.Mine()
Mine.num_evaluations = 2
"""
BINDINGS += re.search(r"^import my_lab.brighter\n(.*?)^```", DOCUMENTED, re.MULTILINE | re.DOTALL)[1]


class Lab:
    """A package of plug-ins in a folder, and a run of them; see `MODULES`."""

    def __init__(self, folder: Path, tiny_gin: str, caplog):
        self.folder, self.run_dir, self.caplog, self.files = folder, folder / "run", caplog, [tiny_gin, "mine.gin"]
        for name, text in MODULES.items():
            (folder / f"lab_{name}.py").write_text(text)
        imports = "".join(f"import lab_{name}\n" for name in MODULES)
        (folder / "mine.gin").write_text(imports + BINDINGS)

    def edit(self, name: str) -> None:
        with open(self.folder / f"lab_{name}.py", "a") as file:
            file.write("\n# edited\n")

    def parse(self, *bindings: str) -> Experiment:
        """As a new process does."""
        for name in MODULES:
            sys.modules.pop(f"lab_{name}", None)
        importlib.invalidate_caches()
        config.parse(self.files, ["train.device = 'cpu'", *bindings])
        experiment = Experiment(self.run_dir)
        experiment.claim(trains=True)
        return experiment

    def warned_of(self) -> set[str]:
        """The plug-ins that a warning names as edited."""
        lines = re.findall(r"the code of (.*) was edited after", self.caplog.text)
        return {name for line in lines for name in line.split(", ")}

    def run(self, *bindings: str) -> dict[str, bool]:
        """The job in a new process -> what it did, of train, sample and evaluate."""
        paths = {
            "train": list_checkpoints(self.run_dir), "sample": [self.run_dir / "samples"],
            "evaluate": [self.run_dir / "metrics.json"],
        }  # fmt: skip
        before = {stage: [path.stat().st_mtime_ns for path in files if path.exists()] for stage, files in paths.items()}
        self.caplog.clear()
        job(self.parse(*bindings))
        paths["train"] = list_checkpoints(self.run_dir)
        return {stage: [path.stat().st_mtime_ns for path in files] != before[stage] for stage, files in paths.items()}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_gin):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("lab")
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(sys, "dont_write_bytecode", True)
        yield Lab(folder, tiny_gin, None)
        for name in MODULES:
            sys.modules.pop(f"lab_{name}", None)


@pytest.fixture(autouse=True)
def finished(lab, caplog):
    """The run, finished with the plug-ins as they are."""
    caplog.set_level(logging.INFO)
    lab.caplog = caplog
    lab.run()


NOTHING = {"train": False, "sample": False, "evaluate": False}


def test_unedited_plug_ins_leave_nothing_to_do(lab):
    assert lab.run() == NOTHING and not lab.warned_of()


@pytest.mark.parametrize("name", ["sampling", "drawing"])
def test_what_draws_is_edited_and_the_samples_are_drawn_and_measured_again(lab, name):
    lab.edit(name)
    assert lab.run() == {"train": False, "sample": True, "evaluate": True}


def test_a_metric_network_is_edited_and_the_same_samples_are_measured_again(lab):
    lab.edit("measuring")
    assert lab.run() == {"train": False, "sample": False, "evaluate": True}
    assert "fitting Judge" in lab.caplog.text
    assert "lab_measuring.Judge" in lab.warned_of()  # in which the monitor measures, too


def test_a_fusion_is_edited_and_the_run_goes_on_with_a_warning_that_names_it(lab):
    lab.edit("fusing")
    assert lab.run() == {"train": False, "sample": True, "evaluate": True}
    assert "lab_fusing.Joined" in lab.warned_of()
    lab.caplog.clear()
    redi.load(lab.run_dir)
    assert lab.warned_of() == {"lab_fusing.Joined"}
    lab.run("train.num_steps = 3")  # its checkpoint is of the fusion as it is now
    assert "resuming from" in lab.caplog.text and "lab_fusing.Joined" in lab.warned_of()
    assert lab.run("train.num_steps = 3") == NOTHING and not lab.warned_of()
    last = list_checkpoints(lab.run_dir)[-1]
    assert read_record(last)["plug_ins"].keys() == {"lab_fusing.Joined", "lab_measuring.Judge", "lab_reading.Pages"}
    shutil.rmtree(last)


def test_a_data_set_is_edited_and_training_on_it_warns_with_its_name(lab):
    lab.edit("reading")
    lab.run("train.num_steps = 3")
    assert "lab_reading.Pages" in lab.warned_of()
    shutil.rmtree(list_checkpoints(lab.run_dir)[-1])


def test_settings_of_generate_reach_a_function_that_calls_it_and_another_one_draws_again(lab):
    before = read_record(lab.run_dir / "samples")
    assert before["sampler"]["name"] == "Mine" and before["guidance"][0]["scale"] == 1.5
    assert lab.run("ClassifierFree.scale = 3.0") == {"train": False, "sample": True, "evaluate": True}
    assert read_record(lab.run_dir / "samples")["guidance"][0]["scale"] == 3.0


def test_settings_of_the_drawing_function_are_in_the_key_of_samples(lab):
    assert lab.run("draw_brighter.by = 30") == {"train": False, "sample": True, "evaluate": True}
    assert lab.run("draw_brighter.by = 30") == NOTHING


def test_settings_in_a_scope_are_in_the_key_of_samples(lab):
    scoped = "sample.generate = @slow/generate", "slow/Mine.num_evaluations = 3"
    lab.run(*scoped)
    assert read_record(lab.run_dir / "samples")["function_evaluations"] == 3
    assert lab.run(scoped[0], "slow/Mine.num_evaluations = 4")["sample"]
    assert read_record(lab.run_dir / "samples")["function_evaluations"] == 4


def test_a_plug_in_that_is_written_over_while_the_process_runs_is_what_was_imported(lab):
    lab.parse()
    lab.edit("sampling")
    job(Experiment(lab.run_dir))  # drawn with the class in memory, and nothing is left to draw
    assert lab.run()["sample"]


def test_bindings_that_the_drawing_function_does_not_see_are_warned_of(lab):
    lab.caplog.clear()
    lab.parse("draw_brighter.generate = None")
    assert "generate.guidance, generate.sampler: no effect on the samples" in lab.caplog.text
    lab.caplog.clear()
    lab.parse()
    assert "no effect" not in lab.caplog.text
