"""The paper's rows as gin files: each is what the paper says, builds at full size, and states its command and cost."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from redi.core import config
from redi.core.configurables import import_all
from redi.core.registry import entry_points
from redi.guidance import total_weights
from redi.runs.checks import check_results, check_training
from tests.rows import ROOT, build, check_command, check_different_trainings, check_one_training, head, shared_folders

import_all()
PAPER = ROOT / "experiments" / "paper"
FILES = sorted(str(path.relative_to(ROOT)) for top in ("gin", "experiments") for path in (ROOT / top).rglob("*.gin"))
EXPERIMENTS = [file for file in FILES if file.startswith("experiments/")]


class Row(NamedTuple):
    """What the paper says of a row: written by hand, not read from the files."""

    model: str
    method: str  # what is beside the image: '', REPA, ReDi
    iterations: int
    fid: str
    guidance: tuple = ()  # rule, scale, groups
    unconditional: bool = False
    separate: bool = False
    representation_dropout: float = 0.0


K, M = 1_000, 1_000_000
IMAGE, BOTH = ("image",), ("image", "dinov2")
ROWS = {
    "table1_dit_l2_baseline_400k": Row("DiT-L/2", "", 400 * K, "23.2"),
    "table1_dit_l2_repa_400k": Row("DiT-L/2", "REPA", 400 * K, "15.6"),
    "table1_dit_l2_redi_400k": Row("DiT-L/2", "ReDi", 400 * K, "10.5"),
    "table1_sit_l2_baseline_400k": Row("SiT-L/2", "", 400 * K, "18.5"),
    "table1_sit_l2_repa_400k": Row("SiT-L/2", "REPA", 400 * K, "9.7"),
    "table1_sit_l2_redi_400k": Row("SiT-L/2", "ReDi", 400 * K, "9.4"),
    "table1_dit_xl2_baseline_400k": Row("DiT-XL/2", "", 400 * K, "19.5"),
    "table1_dit_xl2_repa_400k": Row("DiT-XL/2", "REPA", 400 * K, "12.3"),
    "table1_dit_xl2_redi_400k": Row("DiT-XL/2", "ReDi", 400 * K, "8.7"),
    "table1_dit_xl2_baseline_7m": Row("DiT-XL/2", "", 7 * M, "9.6"),
    "table1_dit_xl2_repa_850k": Row("DiT-XL/2", "REPA", 850 * K, "9.6"),
    "table1_sit_xl2_baseline_400k": Row("SiT-XL/2", "", 400 * K, "17.2"),
    "table1_sit_xl2_repa_400k": Row("SiT-XL/2", "REPA", 400 * K, "7.9"),
    "table1_sit_xl2_redi_400k": Row("SiT-XL/2", "ReDi", 400 * K, "7.5"),
    "table1_sit_xl2_baseline_7m": Row("SiT-XL/2", "", 7 * M, "8.3"),
    "table1_sit_xl2_repa_1m": Row("SiT-XL/2", "REPA", 1 * M, "6.4"),
    "table1_sit_xl2_repa_4m": Row("SiT-XL/2", "REPA", 4 * M, "5.9"),
    "table1_sit_xl2_redi_700k": Row("SiT-XL/2", "ReDi", 700 * K, "5.6"),
    "table1_sit_xl2_redi_1m": Row("SiT-XL/2", "ReDi", 1 * M, "5.1"),
    "table1_sit_xl2_redi_3m": Row("SiT-XL/2", "ReDi", 3 * M, "3.7"),
    # 5,000 iterations an epoch; the baselines' scales are those of the SiT and the REPA paper.
    "table2_sit_xl2_baseline_1400ep": Row("SiT-XL/2", "", 7 * M, "2.06", ("ClassifierFree", 1.5, IMAGE)),
    "table2_sit_xl2_repa_800ep": Row("SiT-XL/2", "REPA", 4 * M, "1.80", ("ClassifierFree", 1.35, IMAGE)),
    "table2_sit_xl2_redi_350ep": Row("SiT-XL/2", "ReDi", 1750 * K, "1.72", ("ClassifierFree", 2.4, IMAGE)),
    "table2_sit_xl2_redi_600ep": Row("SiT-XL/2", "ReDi", 3 * M, "1.64", ("ClassifierFree", 2.4, IMAGE)),
    "table3_dit_b2_conditional": Row("DiT-B/2", "", 400 * K, "43.5"),
    "table3_dit_b2_unconditional": Row("DiT-B/2", "", 400 * K, "69.3", unconditional=True),
    "table3_dit_b2_unconditional_redi": Row("DiT-B/2", "ReDi", 400 * K, "51.7", unconditional=True),
    "table3_dit_b2_unconditional_redi_rg": Row(
        "DiT-B/2", "ReDi", 400 * K, "47.3", ("RepresentationGuidance", 1.5, IMAGE), True, representation_dropout=0.2
    ),
    "table3_dit_xl2_conditional": Row("DiT-XL/2", "", 400 * K, "19.5"),
    "table3_dit_xl2_unconditional": Row("DiT-XL/2", "", 400 * K, "44.6", unconditional=True),
    "table3_dit_xl2_unconditional_redi": Row("DiT-XL/2", "ReDi", 400 * K, "25.1", unconditional=True),
    "table3_dit_xl2_unconditional_redi_rg": Row(
        "DiT-XL/2", "ReDi", 400 * K, "22.6", ("RepresentationGuidance", 1.1, IMAGE), True, representation_dropout=0.2
    ),
    "table4_dit_b2_redi": Row("DiT-B/2", "ReDi", 400 * K, "25.7"),
    "table4_dit_b2_redi_rg": Row(
        "DiT-B/2", "ReDi", 400 * K, "20.2", ("RepresentationGuidance", 1.5, IMAGE), representation_dropout=0.2
    ),
    "table4_dit_xl2_redi": Row("DiT-XL/2", "ReDi", 400 * K, "8.7"),
    "table4_dit_xl2_redi_rg": Row(
        "DiT-XL/2", "ReDi", 400 * K, "5.9", ("RepresentationGuidance", 1.1, IMAGE), representation_dropout=0.2
    ),
    "table5_dit_b2_merged": Row("DiT-B/2", "ReDi", 400 * K, "25.7"),
    "table5_dit_b2_separate": Row("DiT-B/2", "ReDi", 400 * K, "24.7", separate=True),
    "figure6_sit_xl2_redi_cfg_image": Row("SiT-XL/2", "ReDi", 400 * K, "2.39", ("ClassifierFree", 2.4, IMAGE)),
    "figure6_sit_xl2_redi_cfg_both": Row("SiT-XL/2", "ReDi", 400 * K, "2.86", ("ClassifierFree", 2.4, BOTH)),
    "figure7_dit_b2_rank": Row("DiT-B/2", "ReDi", 400 * K, "25.7"),
}
SIZES = {"B/2": (768, 12), "L/2": (1024, 24), "XL/2": (1152, 28)}  # width, depth


def path(name: str) -> Path:
    return PAPER / f"{name}.gin"


# ---- every file


def test_the_table_here_and_the_files_are_the_same_rows():
    assert {file.stem for file in PAPER.glob("*.gin")} == set(ROWS)


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_everything_in_an_experiment_has_an_effect(file, monkeypatch):
    monkeypatch.chdir(ROOT)  # where its command is to be run
    config.parse([file])
    assert config.without_effect(entry_points) == []


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_an_experiment_opens_with_the_command_that_runs_it(file):
    opening = re.match(r"(#.*\n)+", (ROOT / file).read_text())[0]
    assert re.search(rf"python -m redi\.\w+ .*--gin_file={file}\b", opening)


# ---- every row of the paper


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_the_paper_trains_and_samples(name, thousand_classes, warnings):
    row = ROWS[name]
    config.parse([path(name)], [thousand_classes])
    codec, dataset, objective, model = build()
    check_training(codec, dataset)
    results = {name: config.bound(f"evaluate.{name}") for name in ("reference", "networks")}
    check_results(codec, dataset, **results)
    assert warnings() == []

    framework, size = row.model.split("-")
    groups = {"image": 4} | ({"dinov2": 8} if row.method == "ReDi" else {})
    assert dict(codec.channels) == groups and codec.grid(dataset.image_size) == (32, 32)
    assert (dataset.image_size, dataset.num_classes) == (256, 1 if row.unconditional else 1000)
    assert (codec.autoencoder.weights, codec.autoencoder.scale) == ("stabilityai/sd-vae-ft-ema", 0.18215)
    assert model.fusion.num_tokens == (512 if row.separate else 256)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(
        size, row.unconditional or 1000, len(groups), sum(groups.values()), framework == "DiT", row.method == "REPA",
        row.separate,
    )  # fmt: skip
    assert config.bound("train.num_steps") == row.iterations and config.bound("train.batch_size") == 256

    assert objective.representation_dropout == row.representation_dropout
    assert objective.label_dropout == (0.0 if row.unconditional else 0.1)
    assert type(objective.process).__name__ == {"SiT": "FlowMatching", "DiT": "DDPM"}[framework]
    sampler, rules = config.bound("generate.sampler"), config.bound("generate.guidance", ())
    sampler.check(objective.process)
    assert type(sampler).__name__ == {"SiT": "EulerMaruyama", "DiT": "Ancestral"}[framework]
    assert sampler.num_evaluations == 250 and config.bound("sample.num_images") == 50_000
    assert config.bound("sample.labels") == "random"  # equal counts per class lower the FID
    given = [(type(rule).__name__, rule.scale, rule.groups) for rule in rules]
    assert given == ([row.guidance] if row.guidance else [])
    assert len(total_weights(rules, codec.channels, 0.5)) == (2 if row.guidance else 1)


@pytest.mark.parametrize("name", ROWS)
def test_the_text_of_a_row_states_how_it_is_sampled_and_decoded(name):
    row, stated = ROWS[name], config.statements(path(name).read_text())  # without the files that it includes
    sampler = "EulerMaruyama" if row.model.startswith("SiT") else "Ancestral"
    expected = {
        "StableVAE.weights": "'stabilityai/sd-vae-ft-ema'",
        "sample.labels": "'random'",
        "generate.sampler": f"@samplers.{sampler}()",
        f"{sampler}.num_evaluations": "250",
        "generate.guidance": f"[@guidance.{row.guidance[0]}()]" if row.guidance else "[]",
    }
    if row.guidance:
        rule, scale, groups = row.guidance
        macro = stated.get(f"{rule}.scale", "").removeprefix("%")
        expected[f"{rule}.groups"] = repr(groups)
        assert float(stated.get(macro, macro)) == scale
    assert {key: stated.get(key) for key in expected} == expected


def num_parameters(size, classes, groups: int, channels: int, variance: bool, repa: bool, separate: bool) -> int:
    """Counted from the shapes of the published checkpoints, see the test below, with what differs here."""
    width, depth = SIZES[size]
    outputs = channels * (2 if variance else 1)
    count = published(width, depth, channels, outputs, int(classes))
    count += separate * (groups - 1) * width  # a bias of every group's embedding, where their tokens are not summed
    count -= 256 * width  # positions are not a parameter
    return count + repa * (2048 * (width + 1) + 2048 * 2049 + 768 * 2049)


def published(d: int, depth: int, channels: int, outputs: int, classes: int) -> int:
    """The size of a checkpoint of patch 2 and 256 tokens, tensor by tensor."""
    embeddings = 256 * d + d * channels * 4 + d + (d * 256 + d) + (d * d + d) + (classes + 1) * d
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + (6 * d * d + 6 * d)
    return embeddings + depth * block + (4 * outputs * d + 4 * outputs) + (2 * d * d + 2 * d)


def test_the_count_that_rows_are_compared_with_gives_the_published_numbers():
    assert published(768, 12, 12, 12, 1000) == 130_549_296
    assert published(1024, 24, 12, 12, 1000) == 458_151_984
    assert published(1152, 28, 12, 12, 1000) == 675_184_944
    assert published(1152, 28, 12, 24, 1000) == 675_240_288


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.method == "REPA"])
def test_repa_aligns_block_8_with_plain_dinov2_b_at_weight_a_half(name, thousand_classes):
    config.parse([path(name)], [thousand_classes])
    codec, _, objective, model = build()
    assert codec.alignments["alignment"].architecture.name == "vit_base_patch14_dinov2.lvd142m"
    assert (objective.alignment.weight, model.alignment_layer) == (0.5, 8)


def test_the_representation_is_dinov2_b_with_registers_reduced_to_components_of_unit_scale(thousand_classes):
    config.parse([path("table1_sit_xl2_redi_400k")], [thousand_classes])
    (representation,) = config.bound("train.codec").representations.values()
    assert representation.encoder.architecture.name == "vit_base_patch14_reg4_dinov2.lvd142m"
    assert representation.encoder.side(256) == 224 and representation.encoder.resize == "antialiased"
    assert (representation.reducer.scale, representation.reducer.standardize) == ("unit_rms", False)


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 12, 16, 32])
def test_every_rank_of_figure_7_is_a_binding_and_all_share_one_cache(rank, thousand_classes):
    config.parse([path("figure7_dit_b2_rank")], [thousand_classes, f"RANK = {rank}"])
    codec = config.bound("train.codec")
    (representation,) = codec.representations.values()
    assert codec.channels["dinov2"] == rank
    assert representation.reducer.stored_provenance()["store_rank"] == 32


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.5])
@pytest.mark.parametrize(("name", "groups"), [("image", IMAGE), ("both", BOTH)])
def test_every_scale_of_figure_6_is_a_binding(name, groups, scale, thousand_classes):
    config.parse([path(f"figure6_sit_xl2_redi_cfg_{name}")], [thousand_classes, f"GUIDANCE_SCALE = {scale}"])
    (rule,) = config.bound("generate.guidance")
    assert (rule.scale, rule.groups) == (scale, groups)


# ---- what the heads say

# Forward passes in 10^9 multiply-adds an image: published for merged tokens, by attention's and the layers' share of
# tokens for 512.
GMAC = {"B/2": 23.0, "L/2": 80.7, "XL/2": 118.6, "B/2 separate": 48.4}


@pytest.mark.parametrize("name", ROWS)
def test_the_head_of_a_row_names_the_paper_s_number(name):
    (number,) = re.findall(r"^Paper: (.*)$", head(path(name)), re.MULTILINE)
    assert re.search(rf"\b{re.escape(ROWS[name].fid)}(?!\d)", number)


def test_the_head_of_figure_7_names_the_number_of_every_rank():
    numbers = {1: "31.9", 2: "29.2", 4: "27", 8: "25.7", 12: "27.5", 16: "29.1", 32: "36.9"}
    stated = re.search(r"^Paper: FID at rank (.*)\.$", head(path("figure7_dit_b2_rank")), re.MULTILINE)[1]
    assert dict(re.findall(r"(\d+): ([\d.]+)", stated)) == {str(rank): fid for rank, fid in numbers.items()}


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_the_documentation_has_the_row_with_its_number(name):
    (line,) = [line for line in (ROOT / "docs" / "papers.md").read_text().splitlines() if f"[{name}]" in line]
    assert f"(../experiments/paper/{name}.gin)" in line and re.search(rf"\b{re.escape(ROWS[name].fid)}(?!\d)", line)


@pytest.mark.parametrize("name", ROWS)
def test_the_head_of_a_row_states_its_cost_by_the_formula_of_the_readme(name):
    row = ROWS[name]
    gmac = GMAC[row.model.split("-")[1] + " separate" * row.separate]
    per_second = 0.40 * 790e12 / (2 * gmac * 1e9)  # forward passes
    training = round(3 * 256 * row.iterations / per_second / 3600, 1)
    sampling = round((2 if row.guidance else 1) * 50_000 * 250 / per_second / 3600, 1)
    total = round(training + sampling, 1)
    assert f"Cost: {total:,} GPU-hours on an H200, {training:,} to train and {sampling:,} to sample" in head(path(name))


@pytest.mark.parametrize("name", ROWS)
def test_the_command_of_a_row_is_of_this_file_and_parses(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_command(path(name))


@pytest.mark.parametrize("files", shared_folders(PAPER).values(), ids=shared_folders(PAPER))
def test_rows_with_one_run_folder_have_one_training(files):
    check_one_training(files)


def test_rows_of_different_folders_are_different_trainings():
    check_different_trainings(list(map(path, ROWS)))


# ---- the parts


@pytest.mark.parametrize("framework", ["sit.gin", "dit.gin"])
def test_512_pixels_are_one_binding(framework, thousand_classes, warnings):
    config.parse(["imagenet.gin", framework], [thousand_classes, "Preprocessing.image_size = 512"])
    codec, dataset, _, model = build()
    check_training(codec, dataset)
    assert warnings() == [] and codec.grid(512) == (64, 64) and model.fusion.num_tokens == 1024
    assert codec.representations["dinov2"].encoder.side(512) == 448  # a grid of 32x32


PARTS = {
    "two representations": ["two_representations.gin"],
    "the released code": ["published.gin", "representation_guidance.gin"],
    "everything": [
        "repa.gin", "two_representations.gin", "unconditional.gin", "representation_guidance.gin", "published.gin",
    ],
}  # fmt: skip


@pytest.mark.parametrize("framework", ["sit.gin", "dit.gin"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_parts_go_together(parts, framework, thousand_classes, warnings):
    # What the released code dropped from predictions of noise is not known.
    rule = ["JointObjective.dropout_rule = 'paper'"] if framework == "dit.gin" else []
    config.parse(["imagenet.gin", framework, *parts], [thousand_classes, *rule])
    codec, dataset, _, _ = build()
    check_training(codec, dataset)
    assert warnings() == [] and config.without_effect(entry_points) == []


def test_each_of_two_representations_has_its_own_reducer_scale_and_weight(thousand_classes):
    bindings = ["clip/PCA.rank = 4", "clip/PCA.scale = 'whiten'"]
    bindings += ["JointObjective.representation_weight = {'dinov2': 1.0, 'clip': 0.5}"]
    config.parse(["imagenet.gin", "sit.gin", "two_representations.gin"], [thousand_classes, *bindings])
    codec, _, objective, model = build()
    assert dict(codec.channels) == {"image": 4, "dinov2": 8, "clip": 4} == dict(model.channels)
    assert [r.reducer.scale for r in codec.representations.values()] == ["unit_rms", "whiten"]
    assert [type(r.encoder).__name__ for r in codec.representations.values()] == ["DINOv2", "CLIP"]
    assert {r.encoder.side(256) // r.encoder.stride for r in codec.representations.values()} == {16}
    assert objective.weights == {"dinov2": 1.0, "clip": 0.5}


def test_the_released_code_s_choices_reach_the_components(thousand_classes):
    config.parse(["imagenet.gin", "sit.gin", "published.gin"], [thousand_classes])
    codec, _, objective, _ = build()
    (representation,) = codec.representations.values()
    assert representation.encoder.resize == "released" and codec.autoencoder.uint8_rule == "truncate"
    assert (representation.reducer.scale, representation.reducer.standardize) == ("raw", True)
    assert objective.dropout_rule == "released"


def test_the_shared_settings_are_the_paper_s(thousand_classes):
    config.parse(["imagenet.gin", "sit.gin"], [thousand_classes])
    optimizer = config.bound("train.optimizer")([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-4, 0.0)
    assert config.bound("EMA.decay") == 0.9999 and config.bound("train.warmup_steps", 0) == 0
    assert config.bound("train.dataset").preprocessing.provenance()["image_size"] == 256
    assert not config.bound("train.dataset").preprocessing.exif_orientation  # ADM does not turn photographs
