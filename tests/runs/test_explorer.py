"""Settings of a trained run: what its training supports, what they change, and what is refused."""

import pytest
import torch

from redi.core.clocks.independent import Independent
from redi.core.clocks.lead import Lead
from redi.core.processes.clocked import Clocked
from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers.euler import Euler
from redi.core.samplers.heun import Heun
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.representation import RepresentationGuidance
from redi.runs.explorer import Explorer
from redi.sampling.generate import generate
from tests.joint_run import joint_run

NAMES = [f"digit {number}" for number in range(8)]
TRAINED = {"label_dropout": 0.1, "representation_dropout": 0.2}


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(joint_run(names=NAMES, **TRAINED), sampler=Euler(num_evaluations=4))


def drawn(explorer, **settings):
    run, process = explorer.run, settings.pop("process", explorer.run.process)
    return generate(run.model, run.codec, process, labels=[3], sampler=Euler(num_evaluations=4), **settings)


def scale(value, interval=(0, 1)):
    return {"all": {"scale": value, "interval": interval}}


def test_an_image_is_that_of_generate_with_the_same_settings(explorer):
    guidance = {"ClassifierFree": scale(2.0, [0, 0.5]), "RepresentationGuidance": scale(1.5)}
    rules = [ClassifierFree(2.0, interval=(0, 0.5)), RepresentationGuidance(1.5)]
    shown = explorer.draw(label="digit 3", seed=5, guidance=guidance)
    assert torch.equal(shown.x, drawn(explorer, seed=5, guidance=rules).x)
    assert torch.equal(explorer.draw(label=3, seed=5).x, drawn(explorer, seed=5).x)


def test_a_view_has_the_image_its_features_and_the_path_from_noise_to_them(explorer):
    view = explorer.generate(label="digit 3", num_frames=3)
    assert [caption for caption, _ in view.pictures] == list(view.strips) == ["image", "z"]
    assert [caption for caption, _ in view.strips["z"]] == ["t = 0.00", "t = 0.50", "t = 1.00"]
    for name, picture in view.pictures:
        assert torch.equal(view.strips[name][-1][1], picture) and not torch.equal(view.strips[name][0][1], picture)
    assert view.notes == ["4 network evaluations per image"]


def test_two_settings_start_from_the_same_noise(explorer):
    views = [explorer.generate(label="digit 1", seed=2, guidance={"ClassifierFree": scale(w)}) for w in (1, 4)]
    first, last = ([view.strips["image"][place][1] for view in views] for place in (0, -1))
    assert torch.equal(*first) and not torch.equal(*last)


def test_the_number_of_evaluations_keeps_the_other_settings_of_the_sampler():
    explorer = Explorer(joint_run(), sampler=Euler(times=[0, 0.1, 0.4, 1]))
    assert explorer.draw(label=0).record["sampler"]["times"] == [0, 0.1, 0.4, 1]
    record = explorer.draw(label=0, num_evaluations=6).record
    assert record["sampler"] == {"name": "Euler", "num_evaluations": 6} and record["function_evaluations"] == 6


def test_rules_are_those_that_the_training_supports():
    assert list(Explorer(joint_run(**TRAINED)).rules) == ["ClassifierFree", "RepresentationGuidance"]
    plain = Explorer(joint_run(num_classes=1, representations=False))
    assert not plain.rules and not plain.labels
    assert "unconditional" in plain.missing_rules["ClassifierFree"]
    assert "only the image" in plain.missing_rules["RepresentationGuidance"]
    assert "representation_dropout = 0" in Explorer(joint_run()).missing_rules["RepresentationGuidance"]
    assert "inner prediction" in plain.missing_rules["InnerGuidance"]
    assert "earlier checkpoint" in plain.missing_rules["Autoguidance"]


def test_a_rule_of_the_configuration_starts_with_its_scale_of_every_group():
    rule = ClassifierFree({"image": 2.0, "z": 1.5}, interval={"z": (0, 0.5)})
    explorer = Explorer(joint_run(**TRAINED), guidance=[rule], sampler=Euler(num_evaluations=4))
    first = {"image": {"scale": 2.0, "interval": (0.0, 1.0)}, "z": {"scale": 1.5, "interval": (0.0, 0.5)}}
    assert explorer.controls()["rules"]["ClassifierFree"] == first
    guided = drawn(explorer, guidance=[rule]).x
    assert torch.equal(explorer.draw(label=3).x, guided)
    assert torch.equal(explorer.draw(label=3, guidance={"ClassifierFree": first}).x, guided)
    first["z"]["scale"] = 3.0
    assert not torch.equal(explorer.draw(label=3, guidance={"ClassifierFree": first}).x, guided)


@pytest.mark.parametrize("clock", [Lead(0.3), Independent()])
def test_a_lead_is_that_of_the_clock(clock):
    explorer = Explorer(joint_run(clock=clock, **TRAINED), sampler=Euler(num_evaluations=4))
    trained = 0.3 if isinstance(clock, Lead) else 0.0
    assert explorer.lead == {"z": trained} and not explorer.fixed_lead
    assert explorer.process({"z": trained}) is explorer.run.process
    x = explorer.draw(label=3, lead={"z": 0.5}).x
    assert torch.equal(x, drawn(explorer, process=Clocked(FlowMatching(), Lead(0.5))).x)
    view = explorer.generate(label=3, lead={"z": 0.5}, num_frames=2)
    assert [caption for caption, _ in view.strips["z"]] == ["t = 0.00", "t = 1.00"]


def test_queries_keep_what_is_given(explorer):
    image = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    captions = [caption for caption, _ in explorer.features_given_image(image, num_evaluations=4).pictures]
    assert captions[:2] == ["your image", "z, of the encoder"] and captions[2].startswith("z, generated (agreement ")
    (title, images), *_ = explorer.images_given_features(image, num_evaluations=4, num_images=3).strips.items()
    assert title == "images given these features" and len(images) == 3
    source = {"label": 3, "seed": 1}
    view = explorer.images_given_features(source, num_evaluations=4, num_images=2)
    assert torch.equal(view.pictures[1][1], explorer.generate(**source).pictures[1][1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "digit 9"}, "no class is named 'digit 9'"),
        ({"label": 8}, "class = 8"),
        ({"label": [1]}, "class ="),
        ({"label": True}, "class = True"),
        ({"seed": -1}, "seed = -1"),
        ({"num_evaluations": 1001}, "num_evaluations = 1001"),
        ({"num_evaluations": "many"}, "num_evaluations = 'many'"),
        ({"guidance": {"ClassifierFree": scale("x")}}, "ClassifierFree.scale = 'x'"),
        ({"guidance": {"ClassifierFree": scale(2, [1, 0])}}, "ClassifierFree.interval"),
        ({"guidance": {"ClassifierFree": {"z": 1}}}, "must have the form"),
        ({"guidance": {"Autoguidance": scale(2)}}, "no earlier checkpoint"),
        ({"guidance": {"Steer": scale(2)}}, "must name rules among"),
        ({"guidance": [2]}, "must name rules among"),
        ({"lead": {"z": 0.3}}, "trained with clocks.Shared"),
    ],
)
def test_a_value_that_the_model_does_not_support_is_refused(explorer, settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        explorer.draw(**{"label": "digit 1"} | settings)


def test_a_model_never_trained_without_a_label_has_none():
    explorer = Explorer(joint_run(label_dropout=0.0))
    assert not explorer.controls()["null_label"]
    with pytest.raises(ValueError, match="null label was not trained"):
        explorer.draw()


def test_classes_without_names_are_numbers():
    explorer = Explorer(joint_run(), sampler=Heun(num_evaluations=2))
    assert explorer.labels == list(range(8)) and explorer.label_number("7") == 7
    with pytest.raises(ValueError, match="class numbers, because this run has no class names"):
        explorer.label_number("seven")
