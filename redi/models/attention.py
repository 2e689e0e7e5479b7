"""An honest choice among the ways to compute attention: tried before it is taken, and on a GPU timed."""

import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from redi.models.attention_backends import BACKENDS, Attention, attend_math, attend_sdpa, limit, load

__all__ = ["BACKENDS", "Attention", "attend_math", "attend_sdpa", "choose_attention"]

# What 'auto' times on a GPU, the preferred first. Not sdpa_flash, which sdpa takes where it can; not sdpa_cudnn, of
# whose gradients there are open reports of NaN, which a probe with one input cannot refute.
CANDIDATES = ("xformers", "sdpa", "flash3")
MARGIN = 1.05  # how many times faster another must be to displace the preferred: more than two runs of one differ

# Largest error that passes, in the measure of `deviations`: about twice what `attend_math` itself has in the worst of
# head dimensions 8 ... 128 and 2 ... 1024 tokens, which rounds every intermediate result to the dtype.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}
TF32_TOLERANCE = 3e-2  # of float32 on a GPU, whose products may be in TF32: it has float16's ten bits


def choose_attention(
    backend: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int, num_tokens: int
) -> tuple[Attention, str]:
    """The attention function to use and one line that says which and why.

    'auto' takes, on a GPU, the fastest of `CANDIDATES` that agree with the reference, and xformers where none is more
    than 5 % faster; with torch.use_deterministic_algorithms nothing is timed, and the first that agrees is taken.
    Without CUDA it takes sdpa. The choice is made once per process for each setting.

    Raises:
        ValueError: an unknown backend, or one asked for by name that cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"DiffusionTransformer.attention = {backend!r}: it is one of auto, {', '.join(BACKENDS)}")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    deterministic = torch.are_deterministic_algorithms_enabled()
    name, line = _choose(backend, device, dtype, head_dim, num_tokens, deterministic)
    return BACKENDS[name], line


@cache
def _choose(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int, deterministic: bool
) -> tuple[str, str]:
    setting = f"{device.type}, {str(dtype).removeprefix('torch.')}, head dimension {head_dim}, {num_tokens} tokens"
    shape: dict[str, Any] = {"device": device, "dtype": dtype, "head_dim": head_dim, "num_tokens": num_tokens}
    if backend != "auto":
        if problem := problem_of(backend, **shape):
            raise ValueError(f"DiffusionTransformer.attention = {backend!r} cannot run here ({setting}): {problem}")
        return backend, f"{backend} (as bound; {setting})"
    if device.type != "cuda":  # never by time: a resumed run repeats an unbroken one bit by bit
        return "sdpa", f"sdpa (auto: always without CUDA; {setting})"
    outcomes: dict[str, str | float | None] = {name: problem_of(name, **shape) or None for name in CANDIDATES}
    if not deterministic:
        outcomes |= time_on_gpu([name for name, problem in outcomes.items() if problem is None], **shape)
    try:
        name, why = pick(outcomes)
    except ValueError as error:
        raise ValueError(f"DiffusionTransformer.attention = 'auto' cannot run here ({setting}): {error}") from None
    return name, f"{name} (auto: {why}; {setting})"


def pick(outcomes: Mapping[str, str | float | None]) -> tuple[str, str]:
    """The backend to take, and why.

    Args:
        outcomes: of every candidate, the preferred first: why it cannot run, or the seconds that it takes, or None
            where it runs but was not timed. Unless all that run were timed, the preferred of them is taken.

    Raises:
        ValueError: none can run.
    """
    running = {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, str)}
    refused = "; ".join(f"{name} cannot run: {outcome}" for name, outcome in outcomes.items() if name not in running)
    if not running:
        raise ValueError(refused)
    name = next(iter(running))
    seconds = {other: outcome for other, outcome in running.items() if outcome is not None}
    if len(seconds) < len(running):
        why = "the first that runs, not timed"
    else:
        fastest = min(seconds, key=seconds.__getitem__)
        if name == fastest or seconds[name] > MARGIN * seconds[fastest]:
            name, why = fastest, "the fastest"
        else:
            why = f"within {MARGIN - 1:.0%} of the fastest"
        why += " of " + ", ".join(f"{other} {1e3 * each:.3g} ms" for other, each in seconds.items())
    return name, f"{why}; {refused}" if refused else why


def problem_of(backend: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int) -> str:
    """Why a backend cannot be used, or ''."""
    if problem := limit(backend, device=device, dtype=dtype, head_dim=head_dim):
        return problem
    try:
        load(backend)
    except (ImportError, OSError) as error:
        return _in_short(error)
    return probe(BACKENDS[backend], device=device, dtype=dtype, head_dim=head_dim, num_tokens=num_tokens)


def probe(attend: Attention, *, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int) -> str:
    """Why a function does not serve as attention, or '': a small forward and backward pass against the reference."""
    with warnings.catch_warnings(record=True) as said:  # PyTorch gives the reasons of its kernels as warnings
        warnings.simplefilter("always")
        try:
            at_least_two = max(2, num_tokens)  # one token alone has no gradient to q and k
            inputs = block_inputs(1, at_least_two, 2, head_dim, device=device, dtype=dtype)
            errors = deviations(attend, *inputs[1:])
        except Exception as error:  # what a library raises where it cannot run is its own affair
            return "; ".join([_in_short(error), *dict.fromkeys(_in_short(warning.message) for warning in said)])
    in_tf32 = device.type == "cuda" and dtype == torch.float32
    tolerance = TF32_TOLERANCE if in_tf32 else TOLERANCES[dtype]
    for what, distance in zip(("values differ", "gradients differ"), errors, strict=True):
        if not distance <= tolerance:  # also true for NaN
            return f"its {what} from the reference by {distance:.1e}, more than {tolerance:.0e} of their size"
    return ""


def deviations(attend: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[float, float]:
    """How far value and gradient are from the reference in float64: the largest distance of a token's vector in one
    head, relative to the root mean square of the reference's vectors; of the three gradients, the worst."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(q.shape, generator=generator).to(q)
    results = []
    for function, dtype in ((attend, q.dtype), (attend_math, torch.float64)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
            out = function(*inputs)
            results.append((out, *torch.autograd.grad(out, inputs, weights.to(dtype))))
    value, *gradients = (
        ((got.double() - reference).norm(dim=-1).max() / reference.norm(dim=-1).square().mean().sqrt()).item()
        for got, reference in zip(*results, strict=True)
    )
    return value, float(torch.tensor(gradients).max())  # unlike Python's, torch's max of a NaN is NaN


def block_inputs(
    batch: int, num_tokens: int, num_heads: int, head_dim: int, *, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A leaf (N, T, 3 heads head_dim) and q, k, v as a block of the transformer makes them: views of it."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, num_tokens, 3 * num_heads * head_dim)
    qkv = torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()
    with torch.enable_grad():
        q, k, v = rearrange(qkv, "n t (s h d) -> s n t h d", s=3, h=num_heads).unbind(0)
    return qkv, q, k, v


def time_on_gpu(
    names: Iterable[str], *, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int
) -> dict[str, float | None]:
    """Seconds of one forward and backward pass of each backend: 16 heads of 65,536 tokens, so that even a small
    kernel outlasts its launch: some 2 GiB in bfloat16. None for all where that is not free."""
    try:
        qkv, *views = block_inputs(max(1, 2**16 // num_tokens), num_tokens, 16, head_dim, device=device, dtype=dtype)
        weights = torch.ones_like(views[0], memory_format=torch.contiguous_format)

        def forward_and_backward(attend: Attention) -> None:
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                torch.autograd.grad(attend(*views), qkv, weights, retain_graph=True)

        calls = {name: partial(forward_and_backward, BACKENDS[name]) for name in names}
        return {**medians(calls, partial(_events, device))}
    except torch.cuda.OutOfMemoryError:
        return dict.fromkeys(names)


def medians(calls: Mapping[str, Callable[[], object]], clock: Callable[[Callable], float]) -> dict[str, float]:
    """Median of five rounds, in each of which every call has its turn, after one that is not counted."""
    rounds = [{name: clock(call) for name, call in calls.items()} for _ in range(6)][1:]
    return {name: statistics.median(seconds[name] for seconds in rounds) for name in calls}


def _events(device: torch.device, call: Callable[[], object], repeats: int = 4) -> float:
    """Seconds of one call on the GPU; several in a row, so that the launches are hidden."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def _in_short(message: object) -> str:
    """One line of what a library says; xformers begins with a description of the inputs."""
    text = " ".join(str(message).split())
    return re.sub(r" with inputs: .*?(?= `\S+` is not supported)", ":", text)[:400]
