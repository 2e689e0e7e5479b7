import pytest
import torch

from redi.core.device import choose_device, choose_precision

CPU = torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_is_taken_by_name():
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", None, 1.5])
def test_a_device_that_is_not_here_is_refused_with_its_binding(name):
    with pytest.raises(ValueError) as error:
        choose_device(name)
    text = str(error.value)
    assert text.startswith(f"train.device = {name!r} cannot be used here: ") and "'auto' takes what there is" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precisions_on_the_cpu(name, dtype):
    assert choose_precision(name, CPU) is dtype


@pytest.mark.parametrize("name", ["float16", "bf16", "", None, torch.bfloat16])
def test_an_unknown_precision_is_refused_with_its_binding(name):
    with pytest.raises(ValueError, match="^train.precision = .*: it is 'auto', 'float32' or 'bfloat16'$"):
        choose_precision(name, CPU)
    with pytest.raises(ValueError, match="^generate.precision = "):
        choose_precision(name, CPU, "generate.precision")
