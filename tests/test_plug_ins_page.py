"""The examples of docs/plug-ins.md, as they stand on the page: registered, bound and used in a tiny job."""

import ast
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.core.objective import JointObjective
from redi.runs.experiment import Experiment
from redi.runs.job import job

import_all()

PAGE = (Path(__file__).parents[1] / "docs" / "plug-ins.md").read_text()
MODULES = dict(re.findall(r"^```python\n# my_lab/(\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
BINDINGS = dict(re.findall(r"^```gin\nimport my_lab\.(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
BASES = {
    "edges": "Encoder", "top_variance": "Reducer", "gated": "Merged", "late": "Clock", "ramp": "Guidance",
    "late_euler": "ContinuousSampler", "csv_images": "EncodedImages", "logit_normal": "JointObjective",
    "conv_net": "nn.Module", "brighter": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder with `my_lab` and 40 photographs in two classes, in which programs are started."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_lab").mkdir()
    (folder / "my_lab" / "__init__.py").write_text("")
    for name, code in MODULES.items():
        (folder / "my_lab" / f"{name}.py").write_text(code)
    (folder / "photos").mkdir()
    generator, rows = np.random.default_rng(0), ["file,label"]
    for number in range(40):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"photos/{number}.png")
        rows.append(f"{number}.png,{('cat', 'dog')[number % 2]}")
    (folder / "photos" / "labels.csv").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


def run(lab: Path, tiny_gin: str, name: str, modules: list[str]) -> Path:
    """A whole job with the page's bindings of these modules, in as small a setting as there is."""
    text = "\n".join([f"include '{tiny_gin}'", *(f"import my_lab.{m}\n{BINDINGS[m]}" for m in modules)])
    (lab / f"{name}.gin").write_text(text)
    smaller = ["train.device = 'cpu'", "sample.num_images = 6", "prepare.num_fit_images = 16"]
    config.parse([f"{name}.gin"], [*smaller, "evaluate.representation = None"])
    experiment = Experiment(lab / "runs" / name)
    experiment.claim(trains=True)
    job(experiment)
    return experiment.run_dir


def test_there_is_an_example_of_every_kind():
    bases = {}
    for name, code in MODULES.items():
        classes = [node for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]
        bases[name] = ast.unparse(classes[0].bases[0]) if classes else None
    assert bases == BASES and list(BINDINGS) == list(MODULES)


def test_all_examples_but_the_clock_and_the_model_work_in_one_run(lab, tiny_gin):
    folder = run(lab, tiny_gin, "all", [name for name in MODULES if name not in ("late", "conv_net")])
    (checkpoint,) = (folder / "checkpoints").iterdir()
    record = json.loads((checkpoint / "record.json").read_text())
    assert record["model_arguments"]["channels"] == {"image": 1, "edges": 4}
    assert record["codec"]["representations"]["edges"]["reducer"]["reducer"] == "TopVariance"
    samples = json.loads((folder / "samples" / "record.json").read_text())
    assert samples["sampler"] == {"name": "LateEuler", "num_evaluations": 2}
    assert samples["guidance"] == [{"name": "Ramp", "scale": 1.5, "groups": ["image"]}]
    operative = (folder / "operative.gin").read_text()
    for setting in ("Gated.initial_gate = 0.5", "LogitNormalObjective.mean = -0.5", "draw_brighter.by = 20"):
        assert setting in operative
    assert (folder / "report.html").exists()
    opened = redi.load(folder, device="cpu")
    assert opened.class_names == ["cat", "dog"] and type(opened.model.fusion).__name__ == "Gated"


def test_the_model_is_trained_sampled_measured_and_opened_again(lab, tiny_gin):
    folder = run(lab, tiny_gin, "model", ["conv_net", "csv_images"])
    assert (folder / "metrics.json").exists()
    assert "ConvNet(\n" in str(redi.load(folder, device="cpu", plugins=["my_lab"]).model)


def test_the_clock_is_trained_sampled_and_opened_again(lab, tiny_gin):
    folder = run(lab, tiny_gin, "clock", ["late"])
    assert "Late.power = 3.0" in (folder / "operative.gin").read_text()
    opened = redi.load(folder, device="cpu")
    assert opened.process.group_times(opened.codec.channels, 0.5) == {"image": 0.5, "domain": 0.125}
    assert opened.model.has_group_times and "my_lab.late.Late" in opened.record["plug_ins"]


def module(name: str):
    return importlib.import_module(f"my_lab.{name}")


def test_top_variance_keeps_the_channels_that_vary_most(lab):
    reducer = module("top_variance").TopVariance(rank=2)
    spread = torch.tensor([1.0, 5.0, 2.0, 3.0])[:, None, None]
    features = torch.randn(64, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * spread
    reducer.fit(features.split(16))
    assert reducer.chosen.tolist() == [1, 3]
    reduced = reducer(features)
    torch.testing.assert_close(reduced.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(reduced.var(dim=(0, 2, 3)), torch.ones(2), atol=1e-2, rtol=0)
    restored = module("top_variance").TopVariance(rank=2)
    restored.load_state_dict(reducer.state_dict())
    assert torch.equal(restored(features), reduced)


def test_late_euler_lands_where_a_constant_velocity_leads(lab):
    sampler = module("late_euler").LateEuler(num_evaluations=5)
    noise, trajectory = torch.randn(2, 3, 2, 2), []
    x = sampler(lambda x, t: torch.ones_like(x), redi.processes.FlowMatching(), lambda: noise, trajectory=trajectory)
    torch.testing.assert_close(x, noise + 1)
    steps = np.diff([t for t, _ in trajectory])
    assert len(steps) == 5 and (np.diff(steps) < 0).all()


def test_the_ramp_is_off_at_the_noise_and_full_at_the_data(lab):
    rule = module("ramp").Ramp(scale=3.0)
    channels = redi.Channels(image=1, edges=2)
    total = [redi.guidance.total_weights([rule], channels, t) for t in (0.0, 1.0)]
    null = redi.guidance.Condition(label=False)
    assert list(total[0]) == [redi.guidance.EVERYTHING] and total[1][null]["image"] == -2.0
    assert total[1][redi.guidance.EVERYTHING] == {"image": 3.0, "edges": 1.0}
    with pytest.raises(ValueError, match="unconditional"):
        rule.check(channels, 1)


def test_the_times_of_the_objective_are_logit_normal(lab):
    arguments = {"channels": redi.Channels(image=1, edges=2), "num_classes": 3}
    x, y = torch.zeros(4000, 3, 1, 1), torch.zeros(4000, dtype=torch.long)
    torch.manual_seed(0)
    times = module("logit_normal").LogitNormalObjective(**arguments, mean=-0.5, std=2.0).draw(x, y)[1]
    logits = torch.logit(times.double())
    assert logits.mean() == pytest.approx(-0.5, abs=0.1) and logits.std() == pytest.approx(2.0, abs=0.1)
    torch.manual_seed(0)
    others = JointObjective(**arguments).draw(x, y)
    assert others[1].mean() == pytest.approx(0.5, abs=0.02)
