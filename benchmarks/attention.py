"""Time every attention backend, forward and backward, and compare it with float64.

python benchmarks/attention.py [--device auto|cpu|cuda] [--quick] [--out FILE]

256 and 512 tokens are 256 px with merged and with separate tokens, 1024 tokens are 512 px. Head dimension 64 with 12
heads is B/2, 72 with 16 heads is XL/2. q, k and v are views of one tensor, as in a transformer block, and the backward
pass computes the gradient of that tensor. FLOPs are those of the matrix products, with the backward pass counted twice;
recomputation in a backward kernel is not counted. Errors are those of `redi.models.attention.errors`: the largest over
the tokens, relative to the root mean square; also with normalised and rotated queries and keys, as in `blocks.Modern`,
whose gradients are those before norm and rotation. The benchmark also measures which backend `auto` chooses, and the
share of attention in a block.
"""

import functools

import torch
from einops import rearrange
from kernels import kernel_names
from ledger import arguments, device_of, report, side_by_side
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from redi.models.attention import BACKENDS, attend_math, choose_attention, errors, problem_of
from redi.models.blocks import AdaLN
from redi.models.rotary import rotated, rotation_table

HEADS = {64: 12, 72: 16}  # {head dimension: number of heads} of B/2 and XL/2


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
                rows += [where | row for row in modern_errors(running, inputs)]
                line = choose_attention("auto", **setting)[1]
                choices.append({"measurement": "what auto takes", **where, "choice": line})
    report(
        "attention",
        device=device,
        settings={"tokens_of_a_batch": in_all, "heads": HEADS, "rounds": rounds, "calls_per_round": repeats},
        rows=[*rows, *(as_row(name, why, places) for (name, why), places in refused.items()), *choices, *shares()],
        notes=["sdpa on a GPU prefers flash, then memory-efficient, then plain products; it never uses cuDNN."],
        arguments=given,
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def block_inputs(batch: int, num_tokens: int, num_heads: int, head_dim: int, device: str, dtype: torch.dtype) -> tuple:
    """Return a leaf tensor (N, T, 3 heads head_dim), and q, k, v as views of it, as in a transformer block."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, num_tokens, 3 * num_heads * head_dim)
    qkv = torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()
    return qkv, *(rearrange(part, "n t (h d) -> n t h d", h=num_heads) for part in qkv.chunk(3, dim=-1))


def measured(names: list[str], inputs: tuple, rounds: int, repeats: int, device: str) -> list[dict]:
    """Return one row per backend, timed side by side: forward without gradients, backward from a retained graph."""
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


def modern_errors(names: list[str], inputs: tuple) -> list[dict]:
    """Return the errors of each backend on queries and keys that are normalised and rotated, as in Modern."""
    q, k, v = (x.detach()[:1] for x in inputs[1:])
    num_tokens, head_dim = q.shape[1], q.shape[-1]
    rotation = rotation_table(torch.arange(2 * num_tokens, device=q.device).view(num_tokens, 2) % 32, head_dim)

    def prepared(attend, q, k, v):
        q, k = (rotated(torch.nn.functional.rms_norm(x, (head_dim,), eps=1e-6), rotation) for x in (q, k))
        return attend(q, k, v)

    rows = []
    for name in names:
        functions = (functools.partial(prepared, attend) for attend in (BACKENDS[name], attend_math))
        value, gradient = errors(next(functions), q, k, v, reference=next(functions))
        row = {"measurement": "rotary positions and normalised queries and keys", "backend": name}
        rows.append(row | {"error_of_value": value, "error_of_gradient": gradient})
    return rows


def repeated(times: int, function, *args, **settings):
    """Return a function that makes several calls, to hide kernel launch overhead."""
    call = functools.partial(function, *args, **settings)

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def as_row(name: str, why: str, places: list[dict]) -> dict:
    listed = {key: ", ".join(dict.fromkeys(str(place[key]) for place in places)) for key in places[0]}
    return {"measurement": "refused", "backend": name, **listed, "refused": why}


def shares() -> list[dict]:
    """Count attention's share of the FLOPs of a block, without computing: FLOPs with attention minus FLOPs without."""
    rows = []
    for head_dim, num_heads in HEADS.items():
        width = head_dim * num_heads
        for num_tokens in (256, 512, 1024):
            counts = []
            for attend in (attend_math, lambda q, k, v: v):
                with FakeTensorMode(), FlopCounterMode(display=False) as counter:
                    block = AdaLN(width=width, num_heads=num_heads)
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
