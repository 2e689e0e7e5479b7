import os
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import pytest

from redi.core import config
from redi.core.configurables import import_all
from redi.core.literals import OPAQUE, accepts, mismatch
from redi.core.registry import configurable
from redi.models.reducers import Reducer

import_all()
T = TypeVar("T")


def argument(annotation, default) -> Parameter:
    return Parameter("x", Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# ruff: noqa: UP007, UP045 - both spellings of a union are annotations
TAKEN = [
    (int, 3), (int, -2**70), (float, 3), (float, 2.5), (bool, True), (str, ""), (str | None, None), (Path, "a/b"),
    (os.PathLike, "a"), (Union[int, None], 3), (Literal["a", 2], 2), (Sequence[int], [1, 2]), (Sequence[int], (1, 2)),
    (tuple[str, ...], ["a"]), (list[float], []), (tuple[float, int], [0.5, 1]), (Mapping[str, float], {"a": 1}),
    (dict, {"a": []}), (float | Mapping[str, float], {"a": 0.5}), (Collection[str], ["a"]), (Annotated[int, "n"], 3),
    (Sequence[int | None], [1, None]), (int, OPAQUE), (Sequence[Reducer], [OPAQUE, OPAQUE]), (Any, "x"), (T, "x"),
    (Reducer, "x"), (Callable[..., int], "x"), (Reducer | None, "x"), (type, 3), (complex, 1), (Sequence, [object]),
]  # fmt: skip
REFUSED = [
    (int, 3.0), (int, True), (int, "3"), (int, None), (int, [3]), (float, "1"), (float, False), (bool, 1), (bool, "x"),
    (str, 3), (str, b"x"), (str | None, 3), (Path, 3), (Literal["a", 2], "b"), (Literal[1], True), (Literal[1], 1.0),
    (Sequence[int], "12"), (Sequence[int], 1), (Sequence[int], [1, "2"]), (Sequence[str], "text"), (list, {"a": 1}),
    (tuple[float, float], [0.5]), (Mapping[str, float], {1: 1}), (Mapping[str, float], {"a": "1"}), (dict, [1]),
    (float | Mapping[str, float], "1"), (float | Reducer, "1"), (Sequence[Reducer], "x"),
    (Annotated[int, "n"], 3.5),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), TAKEN, ids=lambda part: f"{part}".split(" at 0x")[0])
def test_what_an_annotation_takes(annotation, value):
    assert accepts(annotation, value)


@pytest.mark.parametrize(("annotation", "value"), REFUSED, ids=lambda part: f"{part}".split(" at 0x")[0])
def test_what_an_annotation_does_not_take(annotation, value):
    assert not accepts(annotation, value)


MESSAGES = [
    (int, 1, 50.0, "an integer; write 50"),
    (int, 1, 2.5, "an integer"),
    (int, 1, "3", "an integer; write 3"),
    (int, 7, None, "an integer; omit it for the default 7"),
    (float, 1.0, "1e-4", "a number; write 0.0001"),
    (bool, True, "False", "True or False; write False"),
    (bool, True, "false", "True or False; write False"),
    (bool, True, 0, "True or False; write False"),
    (bool | str, "auto", 1, "True or False or text in quotes; write True"),
    (str, "", 3, "text in quotes; write '3'"),
    (int | None, None, "a", "an integer or None"),
    (Literal["raw", "whiten"], "raw", "withen", "'raw' or 'whiten'; did you mean 'whiten'?"),
    (Sequence[str], (), "images", "a list [text in quotes]; write ['images']"),
    (str | Sequence[int], "equal", [1.5], "text in quotes or a list [an integer]"),
    (tuple[float, float], (), [1], "a list [a number, a number]"),
    (float | Mapping[str, float], 1.0, "a", "a number or a dictionary {text in quotes: a number}"),
]


@pytest.mark.parametrize(("annotation", "default", "value", "expected"), MESSAGES, ids=str)
def test_a_mismatch_says_what_is_taken_and_what_to_write(annotation, default, value, expected):
    assert mismatch("A.x", value, argument(annotation, default)) == f"A.x = {value!r}: must be {expected}"


def test_the_default_itself_is_taken():
    assert mismatch("A.x", None, argument(int, None)) is None
    assert mismatch("A.x", True, argument(int, 1)) is not None


@pytest.mark.parametrize("value", [-1, 2**64, [0, 2**64]])
def test_a_seed_that_draws_what_another_one_draws_is_refused(value):
    assert mismatch("A.seeds", value, argument(Any, None)).endswith("must be an integer in 0 ... 2**64 - 1")
    assert mismatch("A.size", value, argument(Any, None)) is None
    assert mismatch("A.seed", 2**64 - 1, argument(int, 0)) is None


# ---- at the end of parsing


@configurable
class TakesMany:
    def __init__(self, *, size: int = 1, names: "Sequence[str]" = (), bare=0, **rest):
        pass


@configurable
class NamesWhatIsNowhere:
    def __init__(self, *, size: int = 1, other: "Nowhere" = None):  # noqa: F821
        pass


BINDINGS = [
    ("train.num_steps = 50.0", "train.num_steps = 50.0: must be an integer; write 50"),
    ("train.seed = '3'", "train.seed = '3': must be an integer; write 3"),
    ("train.seed = None", "train.seed = None: must be an integer; omit it for the default 0"),
    ("train.seed = 18446744073709551616", "train.seed = 18446744073709551616: must be an integer in 0 ... 2**64 - 1"),
    ("DiffusionTransformer.depth = 2.0", "DiffusionTransformer.depth = 2.0: must be an integer or None; write 2"),
    ("reducers.PCA.rank = 2.5", "PCA.rank = 2.5: must be an integer"),
    ("FlowMatching.reversed = 'False'", "FlowMatching.reversed = 'False': must be True or False; write False"),
    ("evaluator/DomainEncoder.seed = '1'", "evaluator/DomainEncoder.seed = '1': must be an integer; write 1"),
    ("AdamW.lr = '1e-4'", "AdamW.lr = '1e-4': must be a number; write 0.0001"),
    ("TinyVAE.batch_size = 8.0", "TinyVAE.batch_size = 8.0: must be an integer; write 8"),  # of a base class
    ("steps = 9.0\ntrain.num_steps = %steps", "train.num_steps = 9.0: must be an integer; write 9"),
    ("a = %b\nb = ['x', 1]\nsample.export = %a", "sample.export = ['x', 1]: must be a list [text in quotes]"),
]


@pytest.mark.parametrize(("binding", "message"), BINDINGS)
def test_a_value_of_the_wrong_type_is_refused_by_name_at_parsing(binding, message):
    with pytest.raises(ValueError) as error:
        config.parse(["digits.gin"], [binding])
    assert str(error.value) == message


def test_all_values_of_the_wrong_type_are_named_at_once():
    with pytest.raises(ValueError, match="train.seed = '3'.*\n.*PCA.rank = 2.5|PCA.rank = 2.5.*\n.*train.seed = '3'"):
        config.parse(["digits.gin"], ["train.seed = '3'", "PCA.rank = 2.5"])


def test_what_an_annotation_does_not_tell_is_let_through():
    values = ["bare = 'x'", "other = 3.5", "size = %n"]
    config.parse([], ["n = 2", "NamesWhatIsNowhere.size = 'x'", *(f"TakesMany.{value}" for value in values)])
    with pytest.raises(ValueError, match="TakesMany.size = 'x'"):
        config.parse([], ["TakesMany.size = 'x'"])


def test_a_reference_is_not_taken_for_a_literal():
    config.parse([], ["TakesMany.size = @PCA()", "TakesMany.names = [@PCA, 'x']"])


def test_a_configuration_saved_by_an_earlier_version_opens_as_it_was(tmp_path):
    (tmp_path / "config.gin").write_text("PCA.rank = 2.0\n")
    config.parse([], ["PCA.scale = 'raw'"], saved=[tmp_path / "config.gin"])
    assert config.bound("PCA.rank") == 2.0
    with pytest.raises(ValueError, match="PCA.scale = 3"):
        config.parse([], ["PCA.scale = 3"], saved=[tmp_path / "config.gin"])
