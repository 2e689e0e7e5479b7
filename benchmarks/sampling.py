"""Time sampling: the library against the plain loop, guidance on and off, and the share of noise generation.

    python benchmarks/sampling.py                    # 3 minutes on two cores
    python benchmarks/sampling.py --device cuda      # XL/2, batch 128
    python benchmarks/sampling.py --only xl2_default # only the GPU's defaults and the plain loop; or b2_default

Euler-Maruyama with classifier-free guidance on the image, as in the paper. Where the paper's 250 evaluations would take
too long, fewer are used, as the tables state; the cost is proportional to their number. Images are not decoded: the
result is the latents. Weights are random, without zero-initialised output layers.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial

from ledger import arguments, device_of, in_process, report, side_by_side

CFG = ["ClassifierFree", {"scale": 2.4}]
RULES = {
    "guidance at scale 1": [["ClassifierFree", {"scale": 1.0}]],
    "guidance from t = 0.5 on": [["ClassifierFree", {"scale": 2.4, "interval": (0.5, 1.0)}]],
    "representation guidance": [["RepresentationGuidance", {"scale": 1.5}]],
    "both kinds of guidance": [CFG, ["RepresentationGuidance", {"scale": 1.5}]],
}
NOISE = "noise alone"
# model, images, evaluations, rounds
SETTINGS = {
    "cpu": [("quickstart", 32, 25, 5), ("B/2", 1, 5, 2)],
    "cuda": [("B/2", 128, 50, 5), ("XL/2", 128, 25, 5), ("XL/2", 128, 250, 1)],
}
# For gpu.sh: each variant in a separate process, the plain loop last.
DEFAULTS = {"xl2_default": ("XL/2", 128, 10, 2), "b2_default": ("B/2", 128, 10, 4)}
DEFAULT_VARIANTS = {
    "library, bfloat16, compiled": {"precision": "bfloat16", "compile": True},
    "plain loop": {"loop": "plain"},
}


def variants_of(device: str, setup: str, evaluations: int) -> dict[str, dict]:
    """{name: arguments of `make_call`}"""
    precision, compiled = ("bfloat16", True) if device == "cuda" else ("float32", False)
    fast = {"precision": precision, "compile": compiled}
    eager = {f"library, {precision}": {"precision": precision}}
    on_both = {"plain loop": {"loop": "plain"}, "library, float32": {}, **eager}
    if device == "cuda" or setup == "quickstart":
        on_both[f"library, {precision}, compiled"] = {"precision": precision, "compile": True}
    if evaluations == 250:
        return {"library, bfloat16, compiled": fast}
    others = {f"library, {name}": {**fast, "rules": rules} for name, rules in RULES.items()}
    return on_both | others | {NOISE: {"loop": "noise"}}


def measure(
    *, setup: str, images: int, evaluations: int, variants: Mapping[str, Mapping], rounds: int, device: str, cache: str
) -> dict:
    """Time all variants on one shared model; return {"rows": [...]}."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    import torch
    from setups import SETUPS, make_codec, make_model

    from redi.models.cost import forward_flops, matmul_rate, nominal_rate

    codec = make_codec(SETUPS[setup]).to(device)
    model, objective = make_model(SETUPS[setup], codec, device=device)
    make = partial(make_call, codec, model, objective.process, images, evaluations, device)
    calls = {name: make(**options) for name, options in variants.items()}
    asked, first, memory = {}, {}, {}
    for name, call in calls.items():
        start = time.perf_counter()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        asked[name] = call()  # compilation and kernel selection
        if device == "cuda":
            torch.cuda.synchronize()
            memory[name] = torch.cuda.max_memory_allocated() / 2**30
        first[name] = time.perf_counter() - start
    timings = side_by_side(calls, rounds=rounds, warmup=0, device=device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    measured = matmul_rate(device, dtype, seconds=min(0.5, 0.1 * rounds))
    nominal = nominal_rate(torch.cuda.get_device_name(), dtype) if device == "cuda" else None
    flops, rows = forward_flops(model), []
    for name, timing in timings.items():
        row = {"variant": name, "evaluations_per_image": asked[name], "seconds_per_image": timing.median / images}
        row |= {"low": timing.low / images, "high": timing.high / images}
        row["evaluations_per_second"] = asked[name] / row["seconds_per_image"]
        if name == NOISE:
            rows.append(row)
            continue
        work = flops * asked[name] * images / timing.median
        row |= {"mfu": work / nominal} if nominal else {}
        row["share_of_matmul_rate"] = work / measured
        if "plain loop" in timings:
            row["ratio_to_plain"] = timing.faster_than(timings["plain loop"])
        if variants[name].get("compile"):
            row["compile_seconds"] = max(0.0, first[name] - timing.median)
        rows.append(row | ({"peak_memory_gib": memory[name]} if memory else {}))
    return {"rows": rows}


def make_call(
    codec, model, process, images: int, evaluations: int, device: str, *,
    loop: str = "library", rules=(CFG,), precision: str = "float32", compile: bool = False,
) -> Callable[[], float]:  # fmt: skip
    """Return a function that samples and returns the network evaluations per image that the samples need.

    Args:
        loop: 'library', 'plain' (whose calls of the network beyond the library's number are not counted), or 'noise',
            which draws the noise of all steps and does nothing with it.
    """
    import torch
    from plain_loop import plain_sample

    import redi
    from redi.core.samplers import ImageNoise

    labels = torch.arange(images) % model.num_classes
    noise = partial(ImageNoise, 0, range(images), (model.channels.total, *model.grid), device)

    def plain() -> float:
        plain_sample(model, noise(), labels.to(device), scale=2.4, num_evaluations=evaluations)
        return 2 * evaluations

    def noise_alone() -> float:
        draw = noise()
        for _ in range(evaluations):
            draw()
        return 0

    def library() -> float:
        guidance = [getattr(redi.guidance, name)(**settings) for name, settings in rules]
        sampler = redi.samplers.EulerMaruyama(num_evaluations=evaluations)
        return redi.generate(
            model, codec, process, labels=labels, sampler=sampler, guidance=guidance, batch_size=images,
            precision=precision, compile=compile,
        ).record["network_evaluations_per_image"]  # fmt: skip

    return {"plain": plain, "noise": noise_alone, "library": library}[loop]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=DEFAULTS)
    given = parser.parse_args()
    device, rows = device_of(given), []
    measurements = [DEFAULTS[given.only]] if given.only else SETTINGS[device]
    for setup, images, evaluations, rounds in [("quickstart", 4, 4, 1)] if given.quick else measurements:
        variants = DEFAULT_VARIANTS if given.only else variants_of(device, setup, evaluations)
        if given.quick:
            variants = {name: {**options, "compile": False} for name, options in variants.items()}
        settings = {"setup": setup, "images": images, "evaluations": evaluations, "rounds": rounds}
        what = f"{setup}, {images} images, {evaluations} evaluations"
        run = measure if given.quick else partial(in_process, measure)
        apart = given.only and not given.quick
        for group in [{name: options} for name, options in variants.items()] if apart else [variants]:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as cache:
                new = run(**settings, variants=group, device=device, cache=cache)["rows"]
            rows += [{"measurement": what, **row} for row in new]
            print(f"{what}, {', '.join(group)}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            if apart and len(rows) == len(variants):
                rows[0]["ratio_to_plain"] = rows[-1]["seconds_per_image"] / rows[0]["seconds_per_image"]
            save(rows, device, given)


def save(rows: list[dict], device: str, given: argparse.Namespace) -> None:
    """Write immediately, so that finished rows survive if the machine is lost before the end."""
    report(
        "sampling", device=device, rows=rows, arguments=given,
        settings={"sampler": "EulerMaruyama", "guidance": "image, scale 2.4", "tokens": "merged"},
        notes=[
            "Evaluations per image: network evaluations that the samples need, with and without label. The "
            "utilisation counts these; the plain loop makes twice as many.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
