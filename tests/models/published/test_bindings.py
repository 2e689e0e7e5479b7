"""Frameworks: what a file says of itself, and what has to be passed."""

import pytest

from redi import convert
from redi.models.published.bindings import choose_framework, model_bindings, process_bindings
from redi.models.published.dit_dh import DiTDH
from redi.models.published.layout import Layout
from redi.models.published.lightningdit import SFD, LightningDiT
from redi.models.published.parse import LAYOUTS
from redi.models.published.reg import REGLayout


def layout(**changes) -> Layout:
    sizes = {"width": 32, "depth": 12, "patch_size": 2, "patch_grid": (4, 4), "num_classes": 5, "mlp_hidden": 128}
    return Layout(**sizes | {"in_channels": 4, "out_channels": 8} | changes)


PLAIN, REPA = layout(), layout(projectors=("projectors.0.",))
FRAMEWORKS = PLAIN.frameworks


@pytest.mark.parametrize(
    ("args", "of", "expected"),
    [
        ({"model": "SiT-XL/2", "path_type": "Linear"}, PLAIN, "sit"),
        ({"model": "SiT-XL/2"}, layout(projectors=("projector.",)), "sit"),
        ({"model": "DiT-B/4"}, PLAIN, "dit"),
        ({"model": "DiT-B/4"}, layout(out_channels=4), "dit"),
        ({"model": "SiT-XL/2", "path_type": "linear", "enc_type": "dinov2-vit-b"}, REPA, "repa"),
        ({}, REPA, "repa"),
    ],
)
def test_the_file_decides_where_it_says_it(args, of, expected):
    assert choose_framework(of, args, None)[0] == expected
    assert choose_framework(of, args, expected) == (expected, "--framework")
    for other in set(FRAMEWORKS) - {expected}:
        with pytest.raises(ValueError, match=f"--framework={other}: must be {expected} for this checkpoint: it"):
            choose_framework(of, args, other)


@pytest.mark.parametrize(("c", "framework"), [(4, "reg"), (20, "reglue")])
def test_a_class_token_says_the_framework(c, framework):
    sizes = {"width": 32, "depth": 12, "patch_size": 2, "patch_grid": (4, 4), "num_classes": 5, "mlp_hidden": 128}
    of = REGLayout(**sizes, in_channels=c, out_channels=c)
    assert choose_framework(of, {"model": "SiT-XL/2"}, None) == (framework, "it holds wg_norm.weight")
    with pytest.raises(ValueError, match=f"--framework=sit: must be {framework} for this checkpoint: it holds wg_norm"):
        choose_framework(of, {}, "sit")
    bindings = ["JointObjective.process = @processes.FlowMatching()", "FlowMatching.reversed = True"]
    assert process_bindings(of, framework, {"path_type": "linear", "prediction": "v"})[:2] == bindings


@pytest.mark.parametrize(("kind", "framework"), [(LightningDiT, "lightningdit"), (SFD, "sfd"), (DiTDH, "dit-dh")])
def test_modern_layouts_say_the_framework(kind, framework):
    sizes = {"width": 32, "depth": 2, "patch_size": 1, "patch_grid": (4, 4), "num_classes": 5, "mlp_hidden": 85}
    of, args = kind(**sizes, in_channels=40, out_channels=40), {"transport": {"prediction": "velocity"}}
    assert choose_framework(of, args, None) == (framework, f"it holds {kind.marks[0]}")
    with pytest.raises(ValueError, match=f"--framework=sit: must be {framework} for this checkpoint: it holds"):
        choose_framework(of, args, "sit")
    bindings = process_bindings(of, framework, args)
    assert (
        f"FlowMatching.reversed = {framework == 'dit-dh'}" in bindings
    ) and "FlowMatching.prediction = 'velocity'" in bindings
    assert ("Lead.offset = 0.3" in bindings) == (framework == "sfd")
    with pytest.raises(ValueError, match="path_type = 'spiral'"):
        process_bindings(of, framework, {"transport": {"path_type": "spiral"}})
    assert "DiffusionTransformer.block = @blocks.Modern" in model_bindings(of, {}, 2)
    assert "Modern.qk_norm = False" in model_bindings(of, {}, 2)


def test_the_program_knows_every_framework():
    names = [name for kind in LAYOUTS for c in (4, 20) for name in kind(32, 2, 1, c, c, (4, 4), 5, 128).frameworks]
    assert set(convert.FRAMEWORKS) == set(names)


def test_a_file_without_settings_needs_the_flag():
    with pytest.raises(ValueError, match=r"may be sit or dit or repa .*--framework=sit\|dit\|repa"):
        choose_framework(PLAIN, {}, None)
    for framework in FRAMEWORKS:
        assert choose_framework(layout(out_channels=4), {}, framework) == (framework, "--framework")


@pytest.mark.parametrize("args", [{"model": "SiT-XL/2", "enc_type": "dinov2-vit-b"}, {"path_type": "linear"}])
def test_settings_of_sit_and_repa_leave_the_direction_open(args):
    with pytest.raises(ValueError, match=r"as SiT's and REPA's do\): choose with --framework=sit\|repa"):
        choose_framework(PLAIN, args, None)
    assert choose_framework(PLAIN, args, "repa")[0] == "repa"
    with pytest.raises(ValueError, match="--framework=dit: must be sit or repa"):
        choose_framework(PLAIN, args, "dit")


def test_an_unknown_framework_is_refused():
    with pytest.raises(ValueError, match="--framework=edm: must be sit or dit or repa"):
        choose_framework(PLAIN, {}, "edm")


def test_the_process_follows_from_framework_and_settings():
    assert "FlowMatching.reversed = True" in process_bindings(REPA, "repa", {})
    assert process_bindings(PLAIN, "dit", {}) == ["JointObjective.process = @processes.DDPM()"]
    assert "DDPM.learned_variance = ()" in process_bindings(layout(out_channels=4), "dit", {})
    assert "GVP.prediction = 'noise'" in process_bindings(PLAIN, "sit", {"path_type": "GVP", "prediction": "noise"})
    with pytest.raises(ValueError, match="path_type = 'spiral', .*: path_type must be one of linear"):
        process_bindings(PLAIN, "sit", {"path_type": "Spiral"})


def test_the_aligned_layer_is_that_of_the_settings():
    assert "DiffusionTransformer.alignment_layer = 8" in model_bindings(REPA, {}, 2)
    assert "DiffusionTransformer.alignment_layer = 4" in model_bindings(REPA, {"encoder_depth": 4}, 2)
    assert not any("alignment" in binding for binding in model_bindings(PLAIN, {"encoder_depth": 4}, 2))
