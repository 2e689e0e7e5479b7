"""The rows of other papers as gin files: each is what its paper says, builds at full size, and states its cost."""

import re
from typing import NamedTuple

import pytest

from redi.core import config
from redi.core.configurables import import_all
from redi.guidance import total_weights
from tests.rows import (
    ROOT,
    build,
    check_command,
    check_different_trainings,
    check_one_training,
    flags,
    head,
    shared_folders,
)

import_all()
FIELD = ROOT / "experiments" / "field"
README = (FIELD / "README.md").read_text()
K, M = 1_000, 1_000_000


class Row(NamedTuple):
    """What a paper says of a row: written by hand, not read from the files."""

    model: str
    num_steps: int
    fid: str | None
    guidance: tuple = ()  # rule, scale, (training step of the weak network or interval)


def autoguided(scale: float, step: int | None = None) -> tuple:
    return "Autoguidance", scale, step


REG = ("ClassifierFree", {"image": 2.3, "dinov2_class": 2.3}, (0.15, 1.0))
ROWS = {
    "lightningdit_xl1_64ep": Row("LightningDiT-XL/1", 80 * K, "5.14"),
    "lightningdit_xl1_64ep_cfg": Row("LightningDiT-XL/1", 80 * K, "2.11", ("ClassifierFree", 10.0, (0.1, 1.0))),
    "lightningdit_xl1_800ep": Row("LightningDiT-XL/1", 1 * M, "2.17"),
    "lightningdit_xl1_800ep_cfg": Row("LightningDiT-XL/1", 1 * M, "1.35", ("ClassifierFree", 6.7, (0.125, 1.0))),
    "sfd_b1_400k": Row("SFD-B/1", 400 * K, "10.40"),
    "sfd_xl1_80ep": Row("SFD-XL/1", 400 * K, "3.43"),
    "sfd_xl1_80ep_ag": Row("SFD-XL/1", 400 * K, "1.30", autoguided(1.6, 70 * K)),
    "sfd_xl1_800ep": Row("SFD-XL/1", 4 * M, "2.54"),
    "sfd_xl1_800ep_ag": Row("SFD-XL/1", 4 * M, "1.06", autoguided(1.5, 70 * K)),
    "sfd_1p0b_80ep": Row("SFD-1.0B", 400 * K, "2.84"),
    "sfd_1p0b_80ep_ag": Row("SFD-1.0B", 400 * K, "1.19", autoguided(1.5, 60 * K)),
    "sfd_1p0b_800ep": Row("SFD-1.0B", 4 * M, "2.38"),
    "sfd_1p0b_800ep_ag": Row("SFD-1.0B", 4 * M, "1.04", autoguided(1.5, 120 * K)),
    "reg_xl2_400k": Row("REG-XL/2", 400 * K, "3.4"),
    "reg_xl2_1m": Row("REG-XL/2", 1 * M, "2.7"),
    "reg_xl2_2m4": Row("REG-XL/2", 2400 * K, "2.2"),
    "reg_xl2_4m": Row("REG-XL/2", 4 * M, "1.8"),
    "reg_xl2_80ep_cfg": Row("REG-XL/2", 400 * K, "1.86", REG),
    "reg_xl2_160ep_cfg": Row("REG-XL/2", 800 * K, "1.59", REG),
    "reg_xl2_480ep_cfg": Row("REG-XL/2", 2400 * K, "1.40", REG),
    "reg_xl2_800ep_cfg": Row("REG-XL/2", 4 * M, "1.36", REG),
    "reglue_b2_400k": Row("REGLUE-B/2", 400 * K, "12.9"),
    "reglue_xl2_700k": Row("REGLUE-XL/2", 700 * K, "2.7"),
    "reglue_xl2_1m": Row("REGLUE-XL/2", 1 * M, "2.50"),
    # 1,251 steps an epoch
    "rae_dh_s_14ep": Row("RAE-DH-S", 17_514, None),
    "rae_dh_xl_80ep": Row("RAE-DH-XL", 100_080, "2.16"),
    "rae_dh_xl_800ep": Row("RAE-DH-XL", 1_000_800, "1.51"),
    "rae_dh_xl_800ep_ag": Row("RAE-DH-XL", 1_000_800, "1.13", autoguided(1.42)),
}
every_row = pytest.mark.parametrize("name", ROWS)


class Method(NamedTuple):
    channels: dict
    grid: int
    sampler: str
    num_evaluations: int | None
    batch_size: int
    labels: str


METHODS = {
    "LightningDiT": Method({"image": 32}, 16, "Euler", 249, 1024, "random"),
    "SFD": Method({"image": 32, "dinov2": 16}, 16, "AdaptiveODE", None, 256, "equal"),
    "REG": Method({"image": 4, "dinov2_class": 1}, 32, "EulerMaruyama", 250, 256, "random"),
    "REGLUE": Method({"image": 4, "dinov2": 16, "dinov2_class": 1}, 32, "EulerMaruyama", 250, 256, "random"),
    "RAE": Method({"image": 768}, 16, "Euler", 50, 1024, "equal"),
}


def method_of(row: Row) -> Method:
    return METHODS[row.model.split("-")[0]]


def path(name: str):
    return FIELD / f"{name}.gin"


def test_the_table_here_and_the_files_are_the_same_rows():
    assert {file.stem for file in FIELD.glob("*.gin")} == set(ROWS)


@every_row
def test_a_row_is_what_its_paper_trains_and_samples(name, thousand_classes):
    row, method = ROWS[name], method_of(ROWS[name])
    config.parse([path(name)], [thousand_classes])
    codec, dataset = config.bound("train.codec"), config.bound("train.dataset")
    channels = codec.for_image_size(dataset.image_size).channels
    assert dict(channels) == method.channels and codec.grid(256) == (method.grid, method.grid)
    assert (dataset.image_size, dataset.num_classes) == (256, 1000)
    assert (config.bound("train.num_steps"), config.bound("train.batch_size")) == (row.num_steps, method.batch_size)
    assert (config.bound("sample.labels"), config.bound("sample.num_images")) == (method.labels, 50_000)

    objective = config.bound("train.objective")(channels=channels, num_classes=1000)
    sampler, rules = config.bound("generate.sampler"), config.bound("generate.guidance", ())
    sampler.check(objective.process)
    assert (type(sampler).__name__, sampler.num_evaluations) == (method.sampler, method.num_evaluations)
    for rule in rules:
        rule.check(channels, 1000)
    assert len(total_weights(rules, channels, 0.5)) == (2 if row.guidance else 1)
    if row.guidance:
        (rule,) = rules
        detail = rule.step if type(rule).__name__ == "Autoguidance" else rule.interval
        assert (type(rule).__name__, rule.scale, detail) == row.guidance


# With the positions, which are not parameters here, and without REPA's projector: published or counted from the shapes.
SIZES = {"LightningDiT-XL/1": 675_256_736, "SFD-B/1": 130_287_408, "SFD-XL/1": 674_634_096}
SIZES |= {"SFD-1.0B": 1_028_273_712, "RAE-DH-XL": 838_675_796}
MILLIONS = {"REG-XL/2": 677}
ONE_OF_EACH = {row.model: name for name, row in ROWS.items()}


@pytest.mark.parametrize("size", ONE_OF_EACH)
def test_a_model_has_the_published_number_of_parameters(size, thousand_classes):
    config.parse([path(ONE_OF_EACH[size])], [thousand_classes])
    _, _, objective, model = build()
    objective.check_model(model)
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("projector"))
    count += 256 * model.blocks[0].width
    if size in SIZES:
        assert count == SIZES[size]
    if size in MILLIONS:
        assert round(count / 1e6) == MILLIONS[size]


# ---- rows that need or share a run


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.guidance[:1] == ("Autoguidance",)])
def test_the_weak_network_of_a_row_is_the_run_of_another_row_which_keeps_its_step(name, thousand_classes):
    config.parse([path(name)], [thousand_classes])
    (rule,) = config.bound("generate.guidance")
    channels = dict(config.bound("train.codec").channels)
    (weak,) = [file for file in FIELD.glob("*.gin") if flags(file)["run_dir"] == [rule.weak]]
    assert f"Run {weak.name} first" in head(path(name))
    config.parse([weak], [thousand_classes])
    assert dict(config.bound("train.codec").channels) == channels
    if rule.step is not None:
        assert rule.step % config.bound("train.keep_every") == 0 and rule.step <= config.bound("train.num_steps")


@pytest.mark.parametrize("files", shared_folders(FIELD).values(), ids=shared_folders(FIELD))
def test_rows_with_one_run_folder_have_one_training(files):
    check_one_training(files)


def test_rows_of_different_folders_are_different_trainings():
    check_different_trainings(list(map(path, ROWS)))


# ---- what the heads and the table say


@every_row
def test_the_head_of_a_row_names_the_published_number_and_the_cost(name):
    row, images = ROWS[name], ROWS[name].num_steps * method_of(ROWS[name]).batch_size
    (published,) = re.findall(r"^Published: (.*)$", head(path(name)), re.MULTILINE)
    assert published.startswith(f"FID {row.fid}" if row.fid else "no FID")
    cost = f"Cost: {row.num_steps:,} steps of batch {method_of(row).batch_size:,}, {images / 1e6:,.0f} million images."
    assert cost in head(path(name))


@every_row
def test_the_table_of_the_readme_has_the_row_with_its_number(name):
    (line,) = [line for line in README.splitlines() if f"[{name}]" in line]
    row = ROWS[name]
    assert f"({name}.gin)" in line and re.search(rf"\| {re.escape(row.fid or '-')}[ ;]", line)


@every_row
def test_the_command_of_a_row_is_of_this_file_and_parses(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_command(path(name))
