"""Every attention backend, forward and backward: seconds, FLOP/s, and the distance from float64.

python benchmarks/attention.py [--device auto|cpu|cuda] [--quick] [--out FILE]

Tokens 256 and 512 are those of 256 px with merged and with separate tokens, 1024 those of 512 px; head dimension 64
with 12 heads is B/2, 72 with 16 heads XL/2. q, k, v lie as a block of the transformer makes them, views of one tensor,
to whose gradient the backward pass goes. FLOPs are those of the products, backward twice forward; what a kernel
computes again in its backward pass is not counted. Errors are those of `redi.models.attention.errors`: the largest
over the tokens, relative to the root mean square. Beside it: what `auto` takes, and how much of a block attention is.
"""

import functools

import torch
from einops import rearrange
from kernels import kernel_names
from ledger import arguments, device_of, report, side_by_side
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from redi.models.attention import BACKENDS, attend_math, choose_attention, errors, problem_of
from redi.models.transformer import Block

HEADS = {64: 12, 72: 16}  # head dimension: heads, of B/2 and XL/2


def main() -> None:
    given = arguments(__doc__).parse_args()
    device = device_of(given)
    tokens = (64,) if given.quick else (256, 512, 1024)
    in_all = {"cpu": 512, "cuda": 65536}[device]  # tokens of a batch; 65536 are 256 images of 256 tokens
    dtypes = (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)
    rounds, repeats = (2, 1) if given.quick else (7, 10) if device == "cuda" else (5, 1)
    rows, refused, choices = [], {}, []
    for dtype in dtypes:
        for head_dim, num_heads in HEADS.items():
            for num_tokens in tokens:
                where = {"dtype": name_of(dtype), "head_dim": head_dim, "tokens": num_tokens}
                setting = {"device": torch.device(device), "dtype": dtype}
                setting |= {"head_dim": head_dim, "num_tokens": num_tokens}
                problems = {name: problem_of(name, **setting) for name in BACKENDS}
                for name, why in problems.items():
                    if why:
                        refused.setdefault((name, why), []).append(where)
                running = [name for name, why in problems.items() if not why]
                batch = max(1, in_all // num_tokens)
                inputs = block_inputs(batch, num_tokens, num_heads, head_dim, device, dtype)
                rows += [where | row for row in measured(running, inputs, rounds, repeats, device)]
                line = choose_attention("auto", **setting)[1]
                choices.append({"measurement": "what auto takes", **where, "choice": line})
    report(
        "attention",
        device=device,
        settings={"tokens_of_a_batch": in_all, "heads": HEADS, "rounds": rounds, "calls_per_round": repeats},
        rows=[*rows, *(as_row(name, why, places) for (name, why), places in refused.items()), *choices, *shares()],
        notes=["sdpa takes flash, memory-efficient or plain products on a GPU, in this order; never cuDNN."],
        arguments=given,
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def block_inputs(batch: int, num_tokens: int, num_heads: int, head_dim: int, device: str, dtype: torch.dtype) -> tuple:
    """A leaf (N, T, 3 heads head_dim), and q, k, v as a block of the transformer makes them: views of it."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, num_tokens, 3 * num_heads * head_dim)
    qkv = torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()
    return qkv, *(rearrange(part, "n t (h d) -> n t h d", h=num_heads) for part in qkv.chunk(3, dim=-1))


def measured(names: list[str], inputs: tuple, rounds: int, repeats: int, device: str) -> list[dict]:
    """A row per backend: timed side by side, forward without gradients, backward from a kept graph."""
    qkv, *views = inputs
    detached = [x.detach() for x in views]
    weights = torch.ones_like(views[0], memory_format=torch.contiguous_format)
    forward, backward = {}, {}
    for name in names:
        out = BACKENDS[name](*views)
        forward[name] = repeated(repeats, BACKENDS[name], *detached)
        backward[name] = repeated(repeats, torch.autograd.grad, out, qkv, weights, retain_graph=True)
        del out
    forward = side_by_side(forward, rounds=rounds, warmup=1, device=device)
    backward = side_by_side(backward, rounds=rounds, warmup=1, device=device)
    batch, num_tokens, num_heads, head_dim = views[0].shape
    flops = 4 * batch * num_heads * num_tokens**2 * head_dim
    rows = []
    for name in names:
        out = BACKENDS[name](*views)
        value, gradient = errors(BACKENDS[name], *(x[:1] for x in detached))
        seconds = forward[name].median / repeats, backward[name].median / repeats
        rows.append({
            "measurement": "backends", "backend": name,
            "forward_seconds": seconds[0], "backward_seconds": seconds[1],
            "forward_tflops_per_second": flops / seconds[0] / 1e12,
            "backward_tflops_per_second": 2 * flops / seconds[1] / 1e12,
            "spread": max(forward[name].spread, backward[name].spread),
            "error_of_value": value, "error_of_gradient": gradient,
            "forward_kernels": kernel_names(functools.partial(BACKENDS[name], *detached), device),
            "backward_kernels": kernel_names(functools.partial(torch.autograd.grad, out, qkv, weights), device),
        })  # fmt: skip
    return rows


def repeated(times: int, function, *args, **settings):
    """A call that calls a function several times, to hide what starting a kernel takes."""
    call = functools.partial(function, *args, **settings)

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def as_row(name: str, why: str, places: list[dict]) -> dict:
    listed = {key: ", ".join(dict.fromkeys(str(place[key]) for place in places)) for key in places[0]}
    return {"measurement": "refused", "backend": name, **listed, "refused": why}


def shares() -> list[dict]:
    """Attention's share of the FLOPs of a block, counted without computing: with it less without it."""
    rows = []
    for head_dim, num_heads in HEADS.items():
        width = head_dim * num_heads
        for num_tokens in (256, 512, 1024):
            counts = []
            for attend in (attend_math, lambda q, k, v: v):
                with FakeTensorMode(), FlopCounterMode(display=False) as counter:
                    block = Block(width, num_heads, 4.0)
                    block.attend = attend
                    block(torch.empty(1, num_tokens, width), torch.empty(1, width))
                counts.append(counter.get_total_flops())
            share = 1 - counts[1] / counts[0]
            rows.append({
                "measurement": "attention in a block", "width": width, "tokens": num_tokens,
                "block_gflops_per_image": counts[0] / 1e9, "share_of_attention": share,
            })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
