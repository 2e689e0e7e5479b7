"""The measurements that train_step.py runs in separate processes: plain loop and library side by side."""

import os
from collections.abc import Callable, Mapping, Sequence

from ledger import Timing, side_by_side


def measure(
    *,
    setup: str,
    variants: Mapping[str, Mapping],
    batch_size: int,
    rounds: int,
    device: str,
    weights: Mapping[str, str] | None = None,
    compile_cache: str | None = None,
) -> dict:
    """Time all variants; return {"seconds": {name: [...]}, "first_seconds": {...}, "flops": {...}, "rate": ...}.

    Args:
        variants: {name: arguments of `make_step`, and "batches", a factor of the batch size}.
        rounds: number of rounds; 0 measures only the memory. The first two steps of each variant are not counted.
        weights: of `setups.random_weights`, if a variant encodes images.
        compile_cache: folder for compiled code. It must be empty to time the compilation of the first step.
    """
    if compile_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compile_cache
    import time

    import torch

    from redi.models.cost import matmul_rate, nominal_rate

    steps, flops, first = {}, {}, {}
    for name, options in variants.items():
        steps[name], flops[name] = make_step(
            setup, batch_size=batch_size * options.get("batches", 1), device=device, weights=weights,
            **{key: value for key, value in options.items() if key != "batches"},
        )  # fmt: skip
        start = time.perf_counter()
        steps[name]()  # compilation and kernel selection
        if device == "cuda":
            torch.cuda.synchronize()
        first[name] = time.perf_counter() - start
    timings = (
        side_by_side(steps, rounds=rounds, warmup=0 if setup == "XL/2" and device == "cpu" else 1, device=device)
        if rounds
        else {}
    )
    result = {"seconds": {name: t.seconds for name, t in timings.items()}, "first_seconds": first, "flops": flops}
    if rounds:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        gpu = torch.cuda.get_device_name() if device == "cuda" else ""
        rate = matmul_rate(device, dtype, seconds=min(0.5, 0.1 * rounds))
        result |= {"matmul_rate": rate, "nominal_rate": nominal_rate(gpu, torch.bfloat16)}
    return result


def make_step(
    setup: str,
    *,
    batch_size: int,
    device: str,
    weights: Mapping[str, str] | None = None,
    loop: str = "library",
    fusion: str = "merged",
    ranks: Sequence[int] = (8,),
    precision: str = "float32",
    compiled: bool = False,
    checkpointing: bool = False,
    attention: str = "auto",
    images: bool = False,
) -> tuple[Callable[[], None], float]:
    """Return a function that trains one step, and the FLOPs of the model per image.

    Args:
        loop: 'library' or 'plain', to which precision, compilation, checkpointing and attention do not apply.
        ranks: of the representations' channels; none is the plain model.
        images: encode images in the step; else it begins at what a cache holds.
    """
    from plain_loop import PlainLoop
    from setups import SETUPS, make_batch, make_codec, make_model

    from redi.core.ema import EMA
    from redi.models.cost import forward_flops
    from redi.training.step import TrainingStep
    from redi.training.trainer import ADAMW

    of = SETUPS[setup]
    encoders = weights if images else None
    codec = make_codec(of, ranks=ranks, weights=encoders, precision=_encoder_precision(loop, device)).to(device)
    model, objective = make_model(
        of, codec, fusion=fusion, device=device, attention=attention, checkpointing=checkpointing
    )
    batch = make_batch(of, codec, batch_size, device=device, images=images)
    model.train()
    numbers = iter(range(10**9))
    if loop == "plain":
        plain = PlainLoop(codec, model)
        return lambda: plain.step(batch, next(numbers)), 3 * forward_flops(model)
    import torch

    from redi.runtime.device import choose_precision

    chosen = choose_precision(precision, torch.device(device))
    model.choose_attention(torch.device(device), chosen.dtype)
    step = TrainingStep(
        codec=codec, model=model, objective=objective, optimizer=ADAMW(model.parameters()), ema=EMA(model=model),
        precision=chosen, compiled=compiled,
    )  # fmt: skip
    return lambda: step(batch, next(numbers)), 3 * forward_flops(model)


def _encoder_precision(loop: str, device: str) -> str:
    """Run the library's frozen networks in bfloat16 on a GPU."""
    return "bfloat16" if loop == "library" and device == "cuda" else "float32"


def rows_of(measured: Mapping, batch_size: int, variants: Mapping[str, Mapping], reference: str | None) -> list[dict]:
    """Return a row for each variant, with per-round ratios to `reference`."""
    timings = {name: Timing(tuple(seconds)) for name, seconds in measured["seconds"].items()}
    rows = []
    for name, timing in timings.items():
        images = batch_size * variants[name].get("batches", 1) / timing.median
        work = measured["flops"][name] * images  # FLOPs of the model itself
        row = {"variant": name, "images_per_second": images, **timing.columns()}
        if measured["nominal_rate"]:
            row["mfu"] = work / measured["nominal_rate"]
        row["share_of_matmul_rate"] = work / measured["matmul_rate"]
        if variants[name].get("compiled"):
            row["compile_seconds"] = max(0.0, measured["first_seconds"][name] - timing.median)
        if reference in timings:
            row["ratio_to_plain"] = timing.faster_than(timings[reference])
        rows.append(row)
    return rows
