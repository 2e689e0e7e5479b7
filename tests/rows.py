"""For the tests of experiments/paper and experiments/field: a row's file, what its head says, and what it builds."""

import json
import re
import shlex
from collections import defaultdict
from functools import cache
from pathlib import Path

import torch

from redi.core import config
from redi.core.registry import training_entry_points

ROOT = Path(__file__).resolve().parents[1]


@cache
def head(path: Path) -> str:
    """The comments that a file opens with, the command on one line."""
    lines = re.match(r"(#.*\n)+", path.read_text())[0].splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines).replace("\\\n", "")


def flags(path: Path) -> dict[str, list[str]]:
    """{flag: values} of the command in a file's head."""
    command = next(line for line in head(path).splitlines() if line.startswith("python -m "))
    found = defaultdict(list)
    for word in shlex.split(command)[3:]:
        flag, _, value = word.removeprefix("--").partition("=")
        found[flag].append(value)
    return found


def check_command(path: Path) -> None:
    """The command in a file's head is of this file and parses, in the root of the repository."""
    given = flags(path)
    assert given["gin_file"] == [str(path.relative_to(ROOT))]
    config.parse(given["gin_file"], given["gin_bindings"])
    assert config.bound("ImageFolder.path") == "imagenet/train"


def shared_folders(folder: Path) -> dict[str, list[Path]]:
    """{--run_dir: files} where several files of a folder name one."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*.gin")):
        found[flags(path)["run_dir"][0]].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def check_one_training(files: list[Path]) -> None:
    """These files differ in no binding that a resumed run may not change."""
    saved = None
    for file in files:
        config.parse([file])
        if saved is not None:
            assert config.conflicts(saved, training_entry_points) == []
        saved = config.full_text()


def check_different_trainings(files: list[Path]) -> None:
    """Files of different --run_dir train different models."""
    trainings = {}
    for file in files:
        config.parse([file])
        (folder,) = flags(file)["run_dir"]
        trainings[folder] = json.dumps(config.relevant(config.full_text(), training_entry_points))
    assert len(set(trainings.values())) == len(trainings)


def build():
    """Codec, data set, objective and model (without memory) of the parsed configuration, as `train` builds them."""
    codec, dataset = config.bound("train.codec"), config.bound("train.dataset")
    codec.for_image_size(dataset.image_size)
    objective = config.bound("train.objective")(channels=codec.channels, num_classes=dataset.num_classes)
    with torch.device("meta"):
        model = config.bound("train.model")(**objective.model_arguments(codec, dataset))
    return codec, dataset, objective, model
