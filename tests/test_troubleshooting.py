"""The messages on the page of common errors are those that the library prints.

Cheap ones are provoked here; the others must be in the source.
"""

import re
from pathlib import Path

import pytest
from PIL import Image

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.runs.checks import check_training
from redi.runs.experiment import Experiment
from redi.runtime.atomic import only_process

ROOT = Path(__file__).resolve().parents[1]
QUOTES = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE)
SOURCE = " ".join(path.read_text() for path in (ROOT / "redi").rglob("*.py"))


def parse(*bindings: str, files=("digits.gin",)):
    import_all()
    config.parse(files, bindings)


def images(folder: Path, *names: str, size=8) -> Path:
    """A folder of images of these names; the first may be of another size."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (size, 8)).save(folder / name)
        size = 8
    return folder


def audit(folder: Path, **settings) -> None:
    redi.audit(redi.datasets.ImageFolder(folder, **settings), batch_size=2)


def unreadable(folder: Path) -> None:
    (images(folder, "a/1.png", "b/1.png") / "b/2.png").write_bytes(b"<html>")
    audit(folder)


def another_configuration(folder: Path) -> None:
    parse("train.seed = 1")
    (folder / "config.gin").write_text(config.full_text())
    checkpoint = folder / "checkpoints/step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "record.json").write_text("{}")
    parse("train.seed = 2")
    Experiment(folder).claim(trains=True)


def two_processes(folder: Path) -> None:
    with only_process(folder):
        parse()
        Experiment(folder).claim(trains=True)


def without_a_download(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        redi.encoders.DINOv2("S").load()


def saved_import(folder: Path) -> None:
    (folder / "config.gin").write_text("import my_lab.samplers\n")
    import_all()
    config.parse(saved=[folder / "config.gin"])


def step_without_memory(folder: Path) -> None:
    parse("train.batch_size = 1", "DiffusionTransformer.depth = 1")
    experiment = Experiment(folder, dry_run=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("redi.training.memory.free_memory", lambda device: (2**20, 2**30))
        check_training(experiment.codec, config.bound("train.dataset"), trains=True)


PROVOKED = {
    "a name of a file": lambda _: parse(files=["digit.gin"]),
    "a name of a component": lambda _: parse("Representation.reducer = @reducers.PAC()"),
    "a name of an argument": lambda _: parse("PCA.ranks = 4"),
    "text without quotes": lambda _: parse("IMAGES = path/to/images"),
    "a macro": lambda _: parse("train.num_steps = %STEPS"),
    "a type": lambda _: parse("train.num_steps = '900'"),
    "parentheses": lambda _: (parse("train.model = @DiffusionTransformer()"), config.bound("train.model")),
    "no such folder": lambda folder: redi.datasets.ImageFolder(folder / "nowhere"),
    "parts": lambda folder: audit(images(folder, "train/1.png", "test/1.png")),
    "both": lambda folder: audit(images(folder, "1.png", "a/1.png")),
    "unreadable": unreadable,
    "sizes": lambda folder: audit(images(folder, "a/1.png", "b/1.png", size=9)),
    "missing": lambda folder: audit(images(folder, "a/1.png", "b/1.png"), num_classes=3),
    "another configuration": another_configuration,
    "no checkpoints": lambda folder: redi.load(folder),
    "two processes": two_processes,
    "memory": step_without_memory,
    "rank": lambda _: redi.Representation(redi.encoders.DomainEncoder(width=64), redi.reducers.PCA(128)),
    "a download": without_a_download,
    "a saved import": saved_import,
}  # fmt: skip


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> dict[str, str]:
    messages = {}
    for name, provoke in PROVOKED.items():
        with pytest.raises((ValueError, OSError)) as caught:
            provoke(tmp_path_factory.mktemp("folder"))
        messages[name] = str(caught.value)
    return messages


def matches(quote: str, text: str) -> bool:
    """Whether the parts of a quote, between its dots, follow one another in a text."""
    return bool(re.search(".*".join(map(re.escape, quote.split(" ... "))), text, flags=re.DOTALL))


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_printed(messages, quote):
    in_source = all(part in SOURCE for part in quote.split(" ... "))
    assert in_source or any(matches(quote, text) for text in messages.values())


@pytest.mark.parametrize("name", PROVOKED)
def test_the_page_has_every_message_that_is_provoked_here(messages, name):
    assert any(matches(quote, messages[name]) for quote in QUOTES), messages[name]
