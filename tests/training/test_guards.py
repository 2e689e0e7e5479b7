"""Invalid numbers raise an error with the name of the setting, before the first step."""

import inspect
import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from redi.data.cache.prepare import prepare
from redi.evaluation.evaluate import evaluate
from redi.evaluation.samples.sample import sample
from redi.training.optimizers import make_optimizer
from redi.training.trainer import train

RUNTIME = {"rank", "world_size"}  # of the process, not of the user


def numbers_of(function) -> dict[str, tuple]:
    """{argument: invalid values}"""
    whole = (-1, True, 2.5, "3", math.nan, math.inf)
    floats = (-1.0, True, "3", math.nan, math.inf, -math.inf)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kinds = set(getattr(parameter.annotation, "__args__", [parameter.annotation]))
        if name not in RUNTIME and kinds & {int, float}:
            found[name] = floats if float in kinds else whole
    return found


def calls():
    known = SimpleNamespace(num_classes=3, class_names=None)
    functions = {
        train: {"run_dir": "run", "codec": None, "dataset": None},
        prepare: {"codec": None, "dataset": None},
        sample: {"run_dir": "run", "trained": known},
        evaluate: {"run_dir": "run", "dataset": None},
    }
    for function, arguments in functions.items():
        for name, values in numbers_of(function).items():
            yield pytest.param(function, arguments, name, values, id=f"{function.__name__}.{name}")


@pytest.mark.parametrize(("function", "arguments", "name", "values"), list(calls()))
def test_a_number_that_cannot_be_is_refused_by_name(function, arguments, name, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in values:
        with pytest.raises(ValueError, match=re.escape(f"{function.__name__}.{name} = {value!r} must be ")):
            function(**arguments, **{name: value})
    assert not list(tmp_path.iterdir())


def test_all_numbers_of_train_are_found():
    assert {"max_grad_norm", "warmup_steps", "stalled_seconds", "keep_every", "seed"} < set(numbers_of(train))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "train.optimizer: AdamW refuses its settings: Invalid learning rate: -1.0"),
        ({"lr": math.nan}, "train.optimizer: AdamW refuses its settings: Invalid learning rate: nan"),
        ({"lr": math.inf}, "AdamW.lr = inf must be a finite number"),
        ({"eps": math.inf}, "AdamW.eps = inf must be a finite number"),
    ],
)
def test_an_optimizer_of_numbers_that_cannot_be_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_optimizer(partial(torch.optim.AdamW, **settings), torch.nn.Linear(2, 2))


def test_what_switches_a_setting_off_is_in_the_message():
    with pytest.raises(ValueError, match="train.max_grad_norm = -1 must .*0 disables clipping"):
        train("run", codec=None, dataset=None, max_grad_norm=-1)
