"""Time training steps: the library against the plain loop, and how the cost grows.

    python benchmarks/train_step.py                          # all that fits the device: 10 minutes on two cores
    python benchmarks/train_step.py --device cuda --only xl2 xl2_separate
    python benchmarks/train_step.py --quick

Measurements for --only: quickstart, quickstart_bfloat16 (CPU only), quickstart_separate, b2, b2_separate, xl2,
xl2_separate and attention (GPU only), plain_model, online, batch_size, channels, optimizer; for gpu.sh also
xl2_default, xl2_default_64 and b2_default (the GPU's defaults, and the plain loop on the same cached batch). Rows of
other measurements are kept if machine and commit are the same.

Batches are noise on the device. Unless stated otherwise, the plain loop encodes images in every step and the library
starts from cached values. Networks have their real size and random weights.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

from ledger import arguments, device_of, in_process, report
from training import measure, rows_of
from training_parts import breakdown

PLAIN = {"plain loop": {"loop": "plain", "images": True}}
EAGER = {"library, float32": {}}
COMPILED = {"library, float32, compiled": {"compiled": True}}
CHECKPOINTED = {"library, float32, checkpointing": {"checkpointing": True}}
BF16 = {"library, bfloat16": {"precision": "bfloat16"}}
BF16_COMPILED = {"library, bfloat16, compiled": {"precision": "bfloat16", "compiled": True}}
ON_A_GPU = {
    **PLAIN, **EAGER, "library, tf32, compiled": {"precision": "tf32", "compiled": True}, **BF16, **BF16_COMPILED,
    "library, bfloat16, compiled, checkpointing": {"precision": "bfloat16", "compiled": True, "checkpointing": True},
}  # fmt: skip
ON_A_CACHE = {**BF16_COMPILED, "plain loop, cached": {"loop": "plain"}}
BACKENDS = ("xformers", "sdpa", "sdpa_flash", "sdpa_cudnn", "flash3")
# Model, fusion, batch size, variants, rounds. On two cores an image of XL/2 takes 15 s, and bfloat16 takes ten times as
# long as float32, so there are few images and rounds.
LOOPS = {
    "cpu": {
        "quickstart": ("quickstart", "merged", 128, PLAIN | EAGER | COMPILED | CHECKPOINTED, 9),
        "quickstart_bfloat16": ("quickstart", "merged", 128, PLAIN | BF16, 2),
        "quickstart_separate": ("quickstart", "separate", 128, PLAIN | EAGER, 5),
        "b2": ("B/2", "merged", 1, PLAIN | EAGER, 3),
        "b2_separate": ("B/2", "separate", 1, PLAIN | EAGER, 2),
        "xl2": ("XL/2", "merged", 1, EAGER, 2),
    },
    "cuda": {
        "quickstart": ("quickstart", "merged", 128, ON_A_GPU, 20),
        "quickstart_separate": ("quickstart", "separate", 128, ON_A_GPU, 20),
        "b2": ("B/2", "merged", 256, ON_A_GPU, 10),
        "b2_separate": ("B/2", "separate", 256, ON_A_GPU, 10),
        "xl2": ("XL/2", "merged", 256, ON_A_GPU, 10),
        "xl2_separate": ("XL/2", "separate", 128, ON_A_GPU, 10),
        "xl2_default": ("XL/2", "merged", 256, ON_A_CACHE, 4),
        "xl2_default_64": ("XL/2", "merged", 64, ON_A_CACHE, 8),
        "b2_default": ("B/2", "merged", 256, ON_A_CACHE, 8),
    },
}


class Benchmark:
    """The measurements. `save` is called with the rows of one measurement each time they grow."""

    def __init__(self, given: argparse.Namespace, device: str, folder: str, save: Callable[[list[dict]], None]):
        self.quick, self.device, self.folder, self.save = given.quick, device, folder, save
        self.gpu = device == "cuda"
        self.fast = {"precision": "bfloat16", "compiled": True} if self.gpu else {}  # the choice of 'auto'
        self.batch = given.batch
        self.random_weights: dict | None = None

    def loops(self, name: str) -> None:
        """Time the plain loop and the library's variants. --quick includes the GPU's, at the smallest size."""
        setup, fusion, batch_size, ways, rounds = LOOPS[self.device].get(name) or LOOPS["cuda"][name]
        variants = {way: {**options, "fusion": fusion} for way, options in ways.items()}
        # Large models do not fit in memory together, so each runs in a separate process.
        apart = setup == "XL/2" or self.gpu
        what = f"{setup}, {fusion} tokens" + (", bfloat16" if "bfloat16" in name else "")
        reference = next((way for way in ways if way.startswith("plain loop")), "")
        self.compare(what, setup, variants, batch_size, rounds, apart, reference=reference)

    def attention(self) -> None:
        if self.gpu:
            variants = {name: {**self.fast, "attention": name} for name in BACKENDS}
            self.compare("XL/2, merged tokens, attention", "XL/2", variants, self.batch, 10, True)

    def plain_model(self) -> None:
        """Time the overhead of ReDi at equal tokens. Both models share a process, so the batch must fit twice."""
        variants = {"plain model, cached": {**self.fast, "ranks": []}, "ReDi, cached": self.fast}
        settings = (("B/2", 256, 20), ("XL/2", 128, 20)) if self.gpu else (("quickstart", 128, 40), ("B/2", 1, 9))
        for setup, batch_size, rounds in settings:
            what = f"{setup}, ReDi against the plain model of as many tokens"
            self.compare(what, setup, variants, batch_size, rounds, reference="plain model, cached")

    def online(self) -> None:
        """Time encoding in the loop: SD-VAE alone, and with DINOv2-B and PCA."""
        variants = {
            "plain model, encoding": {**self.fast, "ranks": [], "images": True},
            "ReDi, encoding": {**self.fast, "images": True},
            "ReDi, cached": self.fast,
        }
        for setup, batch_size, rounds in (("XL/2", 128, 5),) if self.gpu else (("B/2", 1, 2),):
            what = f"{setup}, encoding in the loop"
            self.compare(what, setup, variants, batch_size, rounds, reference="plain model, encoding")

    def batch_size(self) -> None:
        setup = "B/2" if self.gpu else "quickstart"
        variants = {f"batch {32 * factor}": {**self.fast, "batches": factor} for factor in (1, 4, 16)}
        self.compare(f"{setup}, merged tokens", setup, variants, 32, 5, memory=True, reference="")

    def channels(self) -> None:
        """Time different ranks, numbers of representations and tokens."""
        ranks = {"no representation": [], "rank 1": [1], "rank 8": [8], "rank 32": [32], "two of rank 8": [8, 8]}
        variants = {f"merged, {name}": {**self.fast, "ranks": own} for name, own in ranks.items()}
        for name in ("rank 8", "two of rank 8"):
            variants[f"separate, {name}"] = {**self.fast, "ranks": ranks[name], "fusion": "separate"}
        setup, batch_size = ("B/2", 256) if self.gpu else ("quickstart", 128)
        reference = "merged, no representation"
        self.compare(f"{setup}, channels and tokens", setup, variants, batch_size, 7, reference=reference)

    def optimizer(self) -> None:
        """Time the parts of a step."""
        for setup, batch_size in (("quickstart", 128), ("XL/2", 128)) if self.gpu else (("quickstart", 128),):
            settings = {"setup": setup, "batch_size": batch_size, "rounds": 3 if self.quick else 20}
            run = breakdown if self.quick else partial(in_process, breakdown)
            self.save(run(**settings, device=self.device)["rows"])

    def compare(
        self, what, setup, variants, batch_size, rounds, apart=False, memory=False, reference="plain loop"
    ) -> None:
        """Run all variants in one process, or each in its own (`apart`). `memory`: measure each peak, in its own."""
        if self.quick:
            setup, batch_size, rounds, apart, memory = "quickstart", min(batch_size, 8), 1, False, False
            variants = {name: {**options, "compiled": False} for name, options in variants.items()}
        run = measure if self.quick else partial(in_process, measure)
        batch_size = batch_size if setup == "quickstart" else min(batch_size, self.batch)
        settings = {"setup": setup, "batch_size": batch_size, "device": self.device}
        if setup != "quickstart" and any(options.get("images") for options in variants.values()):
            settings["weights"] = self.weights()
        settings["compile_cache"] = tempfile.mkdtemp(dir=self.folder)
        what += " (--quick: the quickstart's model)" if self.quick else ""
        title = what if any("batches" in options for options in variants.values()) else f"{what}, batch {batch_size}"
        rows = []
        for group in [{name: options} for name, options in variants.items()] if apart else [variants]:
            try:
                measured = run(**settings, variants=group, rounds=rounds)
            except RuntimeError as error:  # a missing backend, or too little memory
                rows += [{"variant": name, "failed": str(error)} for name in group]
            else:
                rows += rows_of(measured, batch_size, group, reference)
                if apart:
                    rows[-1]["peak_memory_gib"] = measured["peak_memory_gib"]
            self.save([{"measurement": title, **row} for row in with_ratios(rows, reference)])
        for row in rows if memory and not apart else ():
            if "failed" not in row:
                alone = {row["variant"]: variants[row["variant"]]}
                row["peak_memory_gib"] = in_process(measure, **settings, variants=alone, rounds=0)["peak_memory_gib"]
        if memory:
            self.save([{"measurement": title, **row} for row in with_ratios(rows, reference)])

    def weights(self) -> dict:
        from setups import random_weights

        self.random_weights = self.random_weights or random_weights(self.folder)
        return self.random_weights


def with_ratios(rows: list[dict], reference: str) -> list[dict]:
    """Rename the ratio column, and add the ratios of separate processes from their medians."""
    rows = [dict(row) for row in rows]
    times = {row["variant"]: row.get("step_seconds") for row in rows}
    for row in rows:
        ratio = row.pop("ratio_to_plain", None)
        if ratio is None and times.get(reference) and times[row["variant"]]:
            ratio = times[reference] / times[row["variant"]]
        if ratio is None:
            continue
        if reference.startswith("plain loop"):
            row["ratio_to_plain"] = ratio
        else:
            row["overhead"] = f"{100 * (1 / ratio - 1):+.1f} %"
    return rows


NOTES = (
    "FLOPs are the model's own, three forward passes per step, without recomputation by checkpointing and without "
    "frozen networks.",
    "Memory: peak of torch's allocator on a GPU, resident memory of the process on a CPU.",
)
OTHERS = ("attention", "plain_model", "online", "batch_size", "channels", "optimizer")
FOR_GPU_SH = ("xl2_default", "xl2_default_64", "b2_default")  # subsets of the other measurements
NAMES = dict.fromkeys([*LOOPS["cpu"], *LOOPS["cuda"], *OTHERS])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=256, help="largest batch of the large models on a GPU")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME")
    given = parser.parse_args()
    device = device_of(given)
    everything = [name for name in NAMES if name not in FOR_GPU_SH]
    names = given.only or (["quickstart", "optimizer"] if given.quick else everything)
    failed, saved = [], []

    def save(rows: list[dict]) -> None:
        """Write immediately, so that finished rows survive if the machine is lost before the end."""
        report(
            "train_step", device=device, rows=rows, arguments=given, keep_others=bool(given.only or saved),
            settings={"image_size": 256, "latents": "4x32x32", "channels_of_a_representation": 8}, notes=NOTES,
        )  # fmt: skip
        saved.append(rows)

    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(given, device, folder, save)
        for name in names:
            start = time.perf_counter()
            try:
                if name in OTHERS:
                    getattr(benchmark, name)()
                elif name in LOOPS[device] or given.quick:
                    benchmark.loops(name)
            except RuntimeError as error:
                failed.append(f"{name}: {error}")
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
