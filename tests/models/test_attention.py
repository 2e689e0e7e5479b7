import pytest
import torch

from redi.models.attention import attend_math, attend_sdpa, choose_attention


def qkv(head_dim: int, dtype: torch.dtype, num_tokens: int = 7) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, num_tokens, 3, head_dim, dtype=dtype, requires_grad=True) for _ in range(3)]


def naive_attention(q, k, v):
    """One query of one head at a time."""
    out = torch.zeros_like(v)
    for n in range(q.shape[0]):
        for head in range(q.shape[2]):
            for i in range(q.shape[1]):
                scores = torch.stack([q[n, i, head] @ key for key in k[n, :, head]]) / q.shape[-1] ** 0.5
                weights = scores.exp() / scores.exp().sum()
                out[n, i, head] = sum(w * value for w, value in zip(weights, v[n, :, head], strict=True))
    return out


def test_math_attention_is_softmax_of_scaled_products_times_values():
    q, k, v = (x.detach() for x in qkv(5, torch.float64, num_tokens=4))
    torch.testing.assert_close(attend_math(q, k, v), naive_attention(q, k, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head_dim", [1, 5, 16, 33])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_sdpa_agrees_with_math_in_value_and_gradient(head_dim, dtype, tolerance):
    inputs = qkv(head_dim, dtype)
    weights = torch.randn(2, 7, 3, head_dim, dtype=dtype)
    results = []
    for attend in (attend_math, attend_sdpa):
        out = attend(*inputs)
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_attention_passes_gradcheck():
    inputs = qkv(3, torch.float64, num_tokens=2)
    assert torch.autograd.gradcheck(attend_sdpa, inputs)


def test_attention_is_equivariant_to_a_permutation_of_the_tokens():
    q, k, v = qkv(8, torch.float64)
    order = torch.randperm(7)
    permuted = attend_sdpa(q[:, order], k[:, order], v[:, order])
    torch.testing.assert_close(permuted, attend_sdpa(q, k, v)[:, order], rtol=1e-12, atol=1e-12)


SETTING = {"device": "cpu", "dtype": torch.float32, "head_dim": 16, "num_tokens": 9}


def test_auto_is_sdpa_on_the_cpu_and_says_why():
    attend, reason = choose_attention("auto", **SETTING)
    assert attend is attend_sdpa
    assert reason == "sdpa (auto: no GPU, which xformers needs; cpu, float32, head dimension 16, 9 tokens)"


@pytest.mark.parametrize(("backend", "function"), [("sdpa", attend_sdpa), ("math", attend_math)])
def test_a_backend_asked_for_by_name_is_taken_and_named(backend, function):
    attend, reason = choose_attention(backend, **SETTING)
    assert attend is function
    assert reason == f"{backend} (as bound; cpu, float32, head dimension 16, 9 tokens)"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sdpa_by_name_passes_its_check_in_other_dtypes(dtype):
    assert choose_attention("sdpa", **SETTING | {"dtype": dtype, "head_dim": 33})[0] is attend_sdpa


def test_an_unknown_backend_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="attention = 'flash': it is one of auto, math, sdpa, xformers"):
        choose_attention("flash", **SETTING)


def test_xformers_by_name_is_refused_on_a_cpu_with_the_reason():
    with pytest.raises(
        ValueError, match=r"attention = 'xformers' cannot run here \(cpu, float32, .*\): it needs a GPU"
    ):
        choose_attention("xformers", **SETTING)
