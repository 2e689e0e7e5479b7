import logging
import pprint
import re
from pathlib import Path

import gin
import pytest

from redi.core import config
from redi.core.channels import Channels
from redi.core.configurables import import_all
from redi.core.registry import configurable, entry_points, training_entry_points
from redi.data.datasets import datasets
from redi.data.datasets.digits import Digits
from redi.evaluation.evaluate import evaluate
from redi.models.codec import JointCodec, Representation
from redi.models.reducers.pca import PCA
from redi.training.trainer import train

import_all()
SHIPPED = sorted(str(file.relative_to(config.config_dir())) for file in config.config_dir().rglob("*.gin"))


def refusal(*bindings: str, files=("digits.gin",)) -> str:
    with pytest.raises(ValueError) as caught:
        config.parse(files, bindings)
    assert type(caught.value) is ValueError and caught.value.__suppress_context__
    return str(caught.value)


# ---- parsing


def test_a_mistyped_parameter_is_refused_with_the_nearest_name():
    text = refusal("PCA.rnak = 3")
    assert "'PCA' doesn't have a parameter named 'rnak'" in text and "    PCA.rnak = 3" in text
    assert text.endswith("parameters of PCA: rank, scale, standardize, store_rank, path; did you mean 'rank'?")


def test_a_mistyped_component_is_refused_with_the_nearest_name():
    text = refusal("PCB.rank = 3")
    assert text.startswith("No configurable matching 'PCB'; did you mean 'PCA'?") and "    PCB.rank = 3" in text


def test_a_mistyped_reference_is_refused_with_the_nearest_name():
    text = refusal("Representation.reducer = @reducers.PCAs()")
    assert "'@reducers.PCAs()'; did you mean 'reducers.PCA'?" in text


def test_a_scoped_reference_is_compared_without_its_scope():
    assert "did you mean 'Digits'?" in refusal("evaluate.reference = @held_out/Digts()")


def test_a_mistake_in_a_file_is_shown_with_file_and_line(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'digits.gin'\n\nPCA.rnak = 3\n")
    text = refusal(files=[tmp_path / "mine.gin"])
    assert f'In file "{tmp_path / "mine.gin"}", line 3' in text and "did you mean 'rank'?" in text


def test_a_macro_that_is_never_set_is_refused_with_its_use_and_the_nearest_name():
    text = refusal("PCA.rank = %rnak", "rank = 3")
    assert text == "the macro %rnak is used but not set; did you mean 'rank'?\n    PCA.rank = %rnak"


def test_an_unknown_file_is_refused_with_the_shipped_ones():
    text = refusal(files=["digit.gin"])
    assert text.startswith("no gin file digit.gin, neither in the current folder nor among the shipped files (")
    assert text.endswith("; did you mean 'digits.gin'?")


def test_an_unknown_included_file_is_refused_with_the_file_that_includes_it(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'digit.gin'\n")
    text = refusal(files=[tmp_path / "mine.gin"])
    assert "did you mean 'digits.gin'?" in text and f'In file "{tmp_path / "mine.gin"}", line 1' in text


def test_an_unknown_plug_in_module_is_refused_with_its_place():
    assert re.search(
        r"No module named 'my_lab_missing'\s.*\s+import my_lab_missing.x", refusal("import my_lab_missing.x")
    )


def test_text_without_quotes_is_refused_with_the_value_and_its_place():
    text = refusal("PCA.scale = raw")
    assert text.startswith("raw is not a value: text needs quotes") and text.endswith("PCA.scale = raw")
    assert "text needs quotes ('a/folder')" in refusal("IMAGES = ../photos")


def test_a_line_that_is_no_binding_is_refused_with_its_place(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'digits.gin'\nPCA.rank\n")
    assert re.search(r"Couldn't parse .*\s+In .*mine.gin, line 2\s+PCA.rank$", refusal(files=[tmp_path / "mine.gin"]))


def test_an_unclosed_bracket_is_refused_with_the_file(tmp_path):
    (tmp_path / "mine.gin").write_text("generate.guidance = [\n")
    text = refusal(files=[tmp_path / "mine.gin"])
    assert text == f"a bracket or string in {tmp_path / 'mine.gin'} is not closed: close it"


@pytest.mark.parametrize("name", ["train.run_dir", "Merged.width", "DiffusionTransformer.grid", "evaluate.dataset"])
def test_what_the_library_supplies_cannot_be_bound(name):
    text = refusal(f"{name} = 3")
    assert text.startswith(f"{name} is supplied by the library and cannot be bound") and f"    {name} = 3" in text


def test_a_supplied_argument_is_not_offered_as_the_nearest_name():
    assert "run_dir" not in refusal("train.run_dri = 3").split("\n  parameters of train: ")[1]


def test_parsing_forgets_the_configuration_before():
    config.parse(["digits.gin"], ["PCA.rank = 3"])
    config.parse(["base.gin"])
    assert config.bound("PCA.rank") != 3 and config.bound("train.dataset") is None


def test_bindings_win_over_files_and_later_ones_over_earlier_ones():
    config.parse(["digits.gin"], ["PCA.rank = 3", "PCA.rank = 5"])
    assert config.bound("PCA.rank") == 5


def test_looking_for_a_shipped_file_logs_nothing(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.DEBUG):
        config.parse(["digits.gin"])
    assert caplog.records == [] and logging.root.manager.disable == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_parses_and_its_full_text_parses_back_to_itself(name, tmp_path):
    config.parse([name])
    text = config.full_text()
    assert config.statements(text)
    (tmp_path / "saved.gin").write_text(text)
    config.parse([tmp_path / "saved.gin"])
    assert config.full_text() == text


# ---- what gin can read but not write

SURVIVES = [
    "1e22", "-0.0", "-1e-300", "1_000", "True", "None", "'a  b\\n#c = 1\\\\'", "'\\u2028\\ud800\U0001f600'",
    '"""one\ntwo\n"""', "'" + "word " * 60 + "'", "b'" + "byte " * 40 + "'", "1j", "%macro", "12345678901234567890123",
    "[('a', {'b': [1, 2.5, (None,)], -1: {}}), ()]", "{'z': 1, 'a': ['" + "long " * 30 + "']}",
    "[@PCA, @scope/reducers.PCA(), {'x': (@other/PCA(), %macro)}]",
]  # fmt: skip


@pytest.mark.parametrize("value", SURVIVES)
@pytest.mark.parametrize("key", ["takes_any.value", "scope/takes_any.value", "held"])
def test_a_value_is_written_and_read_back_the_same(key, value):
    config.parse([], ["macro = [0.1]", f"{key} = {value}"])
    text, before = config.full_text(), config.unevaluated(key.replace("held", "held/macro.value"))
    config.parse([], [text])
    after = config.unevaluated(key.replace("held", "held/macro.value"))
    assert before is not None or value == "None"
    assert config.full_text() == text and pprint.pformat(before) == pprint.pformat(after)


@pytest.mark.parametrize("value", ["1e999", "-1e999", "[0.5, 1e999]", "{'a': (1e999,)}", "1e999j"])
@pytest.mark.parametrize("key", ["takes_any.value", "scope/takes_any.value", "held", "sweep.grid"])
def test_a_value_that_gin_cannot_write_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"^{key} = .*inf.*: gin cannot write such a value"):
        config.parse([], [f"{key} = {value}"])


def test_the_refusal_of_such_a_value_says_what_the_argument_takes(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'digits.gin'\ntrain.max_grad_norm = 1e999\n")
    with pytest.raises(ValueError) as error:
        config.parse([tmp_path / "mine.gin"])
    what = "train.max_grad_norm = inf: gin cannot write such a value, so config.gin would lose it. max_grad_norm: "
    assert str(error.value).startswith(what)


@configurable
def takes_any(*, value=None):
    return value


# ---- calling


def test_bound_gives_the_default_where_nothing_is_bound():
    config.parse(["digits.gin"])
    assert config.bound("train.seed") is None and config.bound("train.seed", 7) == 7


def test_bound_builds_what_a_reference_names_anew_each_time():
    config.parse(["digits.gin"], ["PCA.rank = 5"])
    first, second = config.bound("Representation.reducer"), config.bound("Representation.reducer")
    assert isinstance(first, PCA) and first.rank == 5 and first is not second


def test_bound_gives_a_class_for_a_reference_without_parentheses():
    config.parse(["digits.gin"], ["Representation.reducer = @PCA", "PCA.rank = 5"])
    assert (
        issubclass(config.bound("Representation.reducer"), PCA) and config.bound("Representation.reducer")().rank == 5
    )


def test_bound_resolves_macros():
    config.parse([], ["rank = 3", "PCA.rank = %rank"])
    assert config.bound("PCA.rank") == 3


def test_bound_references_keep_their_scope():
    config.parse(["digits.gin"])
    assert config.bound("evaluate.reference").split == "held_out" and config.bound("train.dataset").split == "train"


def test_bound_builds_what_nested_references_name():
    config.parse(["digits.gin"], ["PCA.rank = 5"])
    assert dict(config.bound("train.codec").channels) == {"image": 1, "domain": 5}


def test_an_error_in_what_is_bound_is_not_taken_for_nothing_bound():
    config.parse(["digits.gin"], ["PCA.rank = 0"])
    with pytest.raises(ValueError, match="PCA.rank = 0: must be at least 1"):
        config.bound("train.codec", default="nothing bound")


def test_an_argument_without_default_is_named_where_nothing_is_bound():
    config.parse([], ["train.dataset = @datasets.ImageFolder()"])
    with pytest.raises(ValueError, match="^ImageFolder.path must be bound: there is no default$"):
        config.bound("train.dataset")
    config.parse([], ["Representation.encoder = @encoders.DomainEncoder()"])
    with pytest.raises(ValueError, match="^Representation.reducer must be bound: there is no default$"):
        config.call(Representation)


def test_a_class_that_the_library_builds_is_refused_with_parentheses():
    config.parse(["digits.gin"], ["DiffusionTransformer.fusion = @Merged()"])
    with pytest.raises(ValueError, match="Merged is called by the library, .* without parentheses, as @Merged"):
        config.call(builds_a_model_for_a_test, model=config.bound("train.model"))


@configurable
def builds_a_model_for_a_test(*, model):
    return model(channels=Channels(image=1), grid=(2, 2), num_classes=2)


@configurable
def a_type_error_for_a_test(*, text="x"):
    return text + 1


def test_other_type_errors_pass_through():
    with pytest.raises(TypeError, match="concatenate"):
        config.call(a_type_error_for_a_test)


@configurable
class Counted:
    built = 0

    def __init__(self, *, size: int = 0):
        Counted.built += 1
        self.size = size


@configurable
def takes_counted(*, counted=None, other=0):
    return counted, other


def test_explicit_arguments_win_and_the_bound_reference_is_then_not_built(monkeypatch):
    monkeypatch.setattr(Counted, "built", 0)
    config.parse([], ["takes_counted.counted = @Counted()", "takes_counted.other = 3"])
    assert config.call(takes_counted, counted="given") == ("given", 3)
    assert Counted.built == 0
    assert config.call(takes_counted)[0].size == 0 and Counted.built == 1
    assert config.bound("takes_counted.counted").size == 0  # still bound


def test_call_hands_scoped_references_their_own_bindings():
    config.parse([], ["takes_counted.counted = @big/Counted()", "Counted.size = 1", "big/Counted.size = 9"])
    assert config.call(takes_counted)[0].size == 9


def test_the_operative_text_holds_defaults_of_what_was_called():
    config.parse([], ["takes_counted.counted = @Counted()", "PCA.rank = 3"])
    config.call(takes_counted)
    assert config.statements(config.operative_text()) == {
        "Counted.size": "0",
        "takes_counted.counted": "@Counted()",
        "takes_counted.other": "0",
    }


def test_the_operative_text_parses_back_with_what_was_handed_over(tmp_path):
    sizes = ["PCA.rank = 3", "scope/PCA.rank = 4", "images = 5", "evaluate.max_images = %images", "idle = 3"]
    config.parse(["digits.gin"], sizes)
    before = config.statements(config.full_text())
    with pytest.raises(ValueError, match="evaluate.networks"):
        config.call(evaluate, run_dir=tmp_path, dataset=None, reference=None, networks="a.networks")
    (tmp_path / "operative.gin").write_text(config.operative_text())
    config.parse([tmp_path / "operative.gin"])
    after = config.statements(config.full_text())
    assert after["evaluate.reference"] == "@held_out/datasets.Digits()"
    assert after["held_out/Digits.split"] == "'held_out'" and after["images"] == "5"
    assert not {"PCA.rank", "scope/PCA.rank", "idle", "train.seed"} & after.keys()
    assert all(value == before.get(key, value) for key, value in after.items())


# ---- another configuration for a time


@pytest.mark.parametrize("locked", [True, False])
def test_isolated_restores_configuration_and_lock(locked):
    config.parse(["digits.gin"], ["PCA.rank = 3"])
    if not locked:
        gin.config._set_config_is_locked(False)
    before = config.full_text()
    with config.isolated():
        config.parse([], ["PCA.rank = 5"])
        assert config.bound("PCA.rank") == 5 and config.bound("train.dataset") is None
    assert config.full_text() == before and gin.config_is_locked() is locked


def test_isolated_restores_what_was_called():
    config.parse([], ["takes_counted.other = 3"])
    config.call(takes_counted)
    before = config.operative_text()
    with config.isolated():
        config.parse([], ["Counted.size = 3"])
        config.call(Counted)
    assert "takes_counted.other = 3" in before and config.operative_text() == before


def test_isolated_restores_what_gin_cannot_write():
    config.parse(["digits.gin"])
    value = object()
    with gin.unlock_config():
        gin.bind_parameter("takes_any.value", value)
    with config.isolated():
        config.parse([])
        assert config.unevaluated("takes_any.value") is None
    assert config.unevaluated("takes_any.value") is value


def test_isolated_restores_after_an_error_inside():
    config.parse([], ["PCA.rank = 3"])
    with pytest.raises(ValueError, match="no gin file"), config.isolated():
        config.parse(["missing.gin"])
    assert config.bound("PCA.rank") == 3 and gin.config_is_locked()


# ---- comparing configurations


def test_statements_ignore_layout_and_comments():
    plain = "a = 1\nPCA.rank = 8\ngenerate.guidance = [@ClassifierFree(), @RepresentationGuidance()]\nimport x.y\n"
    laid_out = (
        "# Macros:\n# =====\na   =   1\n\n\nPCA.rank = \\\n    8\n"
        "generate.guidance = \\\n    [@ClassifierFree(),\n     @RepresentationGuidance()]\n\n# the end\nimport x.y\n"
    )
    expected = {
        "a": "1",
        "PCA.rank": "8",
        "generate.guidance": "[@ClassifierFree(), @RepresentationGuidance()]",
        "import x.y": "",
    }
    assert config.statements(plain) == config.statements(laid_out.replace("a   =   1", "a = 1")) == expected


def test_statements_keep_all_of_a_value_that_gin_breaks_over_lines():
    text = "a long text = with # and 'quotes' " * 6
    config.parse([], [f"ImageFolder.path = {text!r}", "PCA.rank = 2"])
    saved = config.statements(config.full_text())
    assert set(saved) == {"ImageFolder.path", "PCA.rank"}
    assert "".join(eval(f"({saved['ImageFolder.path']})")) == text


def conflicts(*bindings: str, before: tuple[str, ...] = ()) -> list[str]:
    """Between digits.gin with the bindings `before`, saved, and with `bindings`."""
    fixed = ("PCA.rank = 8", "train.batch_size = 128", "JointObjective.label_dropout = 0.1")
    config.parse(["digits.gin"], fixed + before)
    saved = config.full_text()
    config.parse(["digits.gin"], fixed + bindings)
    return config.conflicts(saved, training_entry_points)


@pytest.mark.parametrize(
    "binding",
    [
        "train.num_steps = 9",
        "train.checkpoint_every = 9",
        "train.log_every = 9",
        "train.keep_checkpoints = 9",
        "train.preview_images = 9",
        "train.device = 'cpu'",
        "train.compile = True",
        "DiffusionTransformer.checkpointing = True",
        "AdamW.fused = False",
        "prepare.cache_dir = '/elsewhere'",
        "EulerMaruyama.num_evaluations = 9",
        "generate.sampler = @samplers.Heun()",
        "generate.guidance = []",
        "ClassifierFree.scale = 9.0",
        "sample.num_images = 9",
        "evaluate.max_images = 9",
        "evaluator/DomainEncoder.seed = 9",
        "held_out/Digits.split_seed = 9",
        "report.title = 'nine'",
    ],
)
def test_a_run_may_go_on_with_another(binding):
    assert conflicts(binding) == []
    assert conflicts(before=(binding,)) == []


@pytest.mark.parametrize(
    ("binding", "line"),
    [
        ("PCA.rank = 9", "PCA.rank: 8 -> 9"),
        ("train.seed = 9", "train.seed: (not bound) -> 9"),
        ("train.batch_size = 9", "train.batch_size: 128 -> 9"),
        ("DomainEncoder.width = 9", "DomainEncoder.width: (not bound) -> 9"),
        ("Digits.split_seed = 9", "Digits.split_seed: (not bound) -> 9"),
        ("prepare.num_fit_images = 9", "prepare.num_fit_images: (not bound) -> 9"),
        ("audit.skip_unreadable = True", "audit.skip_unreadable: (not bound) -> True"),
        ("JointObjective.label_dropout = 0.9", "JointObjective.label_dropout: 0.1 -> 0.9"),
        (
            "DiffusionTransformer.fusion = @fusion.Separate",
            "DiffusionTransformer.fusion: @fusion.Merged -> @fusion.Separate",
        ),
    ],
)
def test_a_run_may_not_go_on_with_another(binding, line):
    assert conflicts(binding) == [line]


def test_a_component_swap_names_the_binding_and_what_goes_with_it():
    swap = "Representation.reducer = @reducers.GaussianRandomProjection()"
    assert conflicts(swap, "GaussianRandomProjection.rank = 8") == [
        "GaussianRandomProjection.rank: (not bound) -> 8",
        "Representation.reducer: @reducers.PCA() -> @reducers.GaussianRandomProjection()",
    ]


def test_a_binding_that_is_no_longer_there_is_a_conflict():
    assert conflicts(before=("train.seed = 3",)) == ["train.seed: 3 -> (not bound)"]


def test_a_macro_counts_where_it_reaches_training():
    macro = ("rank = 3", "PCA.rank = %rank")
    assert conflicts("rank = 4", "PCA.rank = %rank", before=macro) == ["rank: 3 -> 4"]
    sampling = ("steps = 3", "EulerMaruyama.num_evaluations = %steps")
    assert conflicts("steps = 4", sampling[1], before=sampling) == []


def test_a_scope_counts_where_it_reaches_training():
    mine = "train.dataset = @mine/datasets.Digits()"
    assert conflicts(mine, "mine/Digits.split_seed = 2", before=(mine, "mine/Digits.split_seed = 1")) == [
        "mine/Digits.split_seed: 1 -> 2"
    ]


def test_comments_and_layout_of_the_saved_file_do_not_matter():
    config.parse(["digits.gin"])
    lines = config.full_text().splitlines()
    edited = "# my run\n" + "\n\n".join(line for line in reversed(lines) if not line.startswith("#"))
    assert config.conflicts(edited, training_entry_points) == []


# ---- bindings without effect


def idle(*bindings: str) -> list[str]:
    config.parse(["digits.gin"], bindings)
    return config.without_effect(entry_points)


@pytest.mark.parametrize("name", SHIPPED)
def test_everything_in_a_shipped_file_has_an_effect(name):
    config.parse([name])
    if "train.codec" not in config.statements(config.full_text()):  # the file is added to one with the rest
        config.parse(["cifar10.gin" if name.startswith("cifar10") else "imagenet.gin", name])
    replaced = {
        "hugging_face.gin": "ImageFolder.", "web_dataset.gin": "ImageFolder.", "images_small.gin": "evaluator/",
        "levers/learned_projection.gin": "PCA.", "sweeps/digits_learned.gin": "ClassifierFree.",
    }  # fmt: skip
    replaces = replaced.get(name, "nothing")  # in the file before it
    assert [binding for binding in config.without_effect(entry_points) if replaces not in binding] == []


def test_a_mistyped_scope_has_no_effect():
    assert idle("evalutor/DomainEncoder.seed = 2") == ["evalutor/DomainEncoder.seed"]


def test_an_unused_macro_has_no_effect():
    assert idle("rank = 3") == ["rank"]


def test_a_component_that_is_bound_nowhere_has_no_effect():
    assert idle("GaussianRandomProjection.rank = 3") == ["GaussianRandomProjection.rank"]


def test_a_component_that_was_replaced_has_no_effect():
    assert idle("Representation.reducer = @GaussianRandomProjection()", "PCA.rank = 8") == ["PCA.rank"]


def test_macros_scopes_and_components_in_use_have_an_effect():
    assert idle("rank = 3", "PCA.rank = %rank", "train.codec = @mine/JointCodec()", "mine/PCA.scale = 'raw'") == []


def test_bindings_of_a_class_that_is_called_plainly_have_no_effect():
    # Without train.ema the trainer uses EMA itself, without gin.
    config.parse([], ["EMA.decay = 0.5"])
    assert config.without_effect([train]) == ["EMA.decay"]


def test_what_is_without_effect_is_what_gin_never_uses():
    # The record of gin, which is independent of the walk over references.
    config.parse(["digits.gin"], ["mine/PCA.rank = 3", "PCA.scale = 'raw'", "SparseRandomProjection.rank = 2"])
    config.call(takes_counted, counted=config.bound("train.codec"))
    called = config.statements(config.operative_text())
    unused = config.without_effect([JointCodec])
    assert "mine/PCA.rank" in unused and "mine/PCA.rank" not in called
    assert "SparseRandomProjection.rank" in unused and "PCA.scale" not in unused and called["PCA.scale"] == "'raw'"


def test_the_shipped_files_are_found_beside_the_package():
    assert (config.config_dir() / "base.gin").exists() and Path(config.config_dir()).is_absolute()


def test_the_root_functions_take_what_they_need_from_the_configuration():
    config.parse(["digits.gin"])
    datasets.check(config.bound("evaluate.reference"), "evaluate.reference")
    assert isinstance(config.bound("train.dataset"), Digits) and evaluate in entry_points


@pytest.mark.parametrize("key", ["StableVAE.weights", "alignment/DINOv2.weights", "autoencoders.TinyVAE.weights"])
def test_where_pretrained_weights_lie_is_no_other_configuration(key):
    assert config.is_harmless(key)


@pytest.mark.parametrize("key", ["PCA.store_rank", "dinov2/reducers.PCA.store_rank"])
def test_how_many_channels_a_cache_keeps_is_no_other_configuration(key):
    assert config.is_harmless(key)


@pytest.mark.parametrize(
    "key", ["StableVAE.weights_sha256", "JointObjective.representation_weight", "train.weights.x", "sample.weights"]
)
def test_what_decides_what_is_learned_is_another_configuration(key):
    assert not config.is_harmless(key)


# ---- what sweeps read and write


def test_an_unevaluated_value_keeps_its_references_as_text():
    config.parse(["digits.gin"], ["generate.guidance = [@guidance.ClassifierFree(), @mine/guidance.ClassifierFree]"])
    value = config.unevaluated("generate.guidance")
    assert repr(value) == "[@guidance.ClassifierFree(), @mine/guidance.ClassifierFree]"
    assert config.unevaluated("generate.seed", 7) == 7


def test_a_canonical_key_is_what_saved_configurations_have():
    config.parse(["digits.gin"], ["scope/reducers.PCA.rank = 3", "rank = 3"])
    keys = [config.canonical(key) for key in ("scope/reducers.PCA.rank", "redi.train.seed", "train.seed", "rank")]
    assert keys == ["scope/PCA.rank", "train.seed", "train.seed", "rank"]
    assert {"scope/PCA.rank", "rank"} <= config.statements(config.full_text()).keys()


@pytest.mark.parametrize(("key", "expected"), [("PCA.rank", True), ("PCA.rnak", False), ("train.run_dir", False)])
def test_what_can_be_bound(key, expected):
    assert config.bindable(key) is expected


def test_a_configuration_without_a_function_keeps_all_else():
    config.parse(["digits.gin"], ["train.seed = 3", "scope/train.seed = 4"])
    everything, without = config.statements(config.full_text()), config.statements(config.text_without(train))
    assert without == {key: v for key, v in everything.items() if not key.removeprefix("scope/").startswith("train.")}
