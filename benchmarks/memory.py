"""Predict the peak memory of a training step at batch 256 without a GPU: which batches fit 24, 80 and 139 GiB.

python benchmarks/memory.py

The step runs on tensors without storage (redi/training/memory.py), in bfloat16 autocast, with AdamW and EMA, on cached
data. On the CPU, predictions are checked against the resident memory of real steps of four blocks of B/2 and of smaller
versions of gin/images.gin; on a GPU, against the allocator.
"""

import os
import sys
from pathlib import Path

from ledger import arguments, device_of, in_process, report

GIB = 2**30
SIZES = {"24": 24, "80": 80, "139": 139}
ROOM = 0.9  # usable fraction of a GPU's memory; the rest is for context, workspaces and fragmentation


def main() -> None:
    given = arguments(__doc__).parse_args()
    device = device_of(given)
    depth = 2 if given.quick else None
    rows = []
    for size in ("B/2",) if given.quick else ("B/2", "XL/2"):
        for tokens in ("merged",) if given.quick else ("merged", "separate"):
            for way in ("eager", "compiled", "checkpointing"):
                print(f"{size}, {tokens} tokens, {way} ...", flush=True)
                rows.append(predicted_row(size, tokens, way, 256, depth))
    rows += check_on_gpu(depth) if device == "cuda" else check_on_cpu()
    report(
        "memory",
        device=device,
        settings={"batch_size": 256, "precision": "bfloat16", "channels": {"image": 4, "dinov2": 8}, "depth": depth},
        rows=rows,
        notes=[
            "fits: the largest batch, as a power of two up to 256, whose prediction is below 0.9 of 24, 80 or 139 "
            "GiB; train.accumulate = 256 / fits keeps the total batch at 256",
            "compiled: an upper bound, counted operation by operation; fused kernels store no intermediate results",
            "measured less predicted: memory of the process besides tensors, if it does not grow with the batch",
        ],
        arguments=given,
    )


def predicted_row(size: str, tokens: str, way: str, batch_size: int, depth: int | None) -> dict:
    """Return the row of one configuration: the peak at `batch_size`, and the largest batch for every memory size."""
    at = {
        n: predict(size=size, tokens=tokens, way=way, batch_size=n, depth=depth) for n in (batch_size // 2, batch_size)
    }
    per_image = (at[batch_size] - at[batch_size // 2]) / (batch_size // 2)  # linear in the batch
    fixed = at[batch_size] - per_image * batch_size
    row = {"measurement": "predicted", "model": size, "tokens": tokens, "step": way}
    row |= {"peak_memory_gib": at[batch_size], "fixed_gib": fixed, "mib_per_image": per_image * 1024}
    for name, gib in SIZES.items():
        fitting = [n for n in (256, 128, 64, 32, 16, 8, 4, 2, 1) if fixed + per_image * n <= ROOM * gib]
        row[f"fits_{name}_gib"] = fitting[0] if fitting else 0
    return row


def predict(
    *, size: str, tokens: str, way: str, batch_size: int, depth: int | None, precision: str = "bfloat16",
    pixels: int | None = None,
) -> float:  # fmt: skip
    """Return the predicted GiB."""
    import torch
    from traced_losses import traced

    from redi.runtime.device import Precision
    from redi.training.memory import predicted_memory

    with torch.device("meta"):
        model, objective = built(size, tokens, way, depth, pixels)
    compiled = way == "compiled"
    objective.losses = traced(objective.losses) if compiled else objective.losses
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return predicted_memory(
        model, objective, grid=model.grid, batch_size=batch_size, precision=Precision(precision, dtype),
        num_first_steps=int(compiled),
    ) / GIB  # fmt: skip


def built(size: str, tokens: str, way: str, depth: int | None, pixels: int | None = None):
    """Return model and objective: the paper's with 8 feature channels, or those of gin/images.gin at a resolution."""
    from redi.core.channels import Channels
    from redi.core.objective import JointObjective
    from redi.fusion.merged import Merged
    from redi.fusion.separate import Separate
    from redi.models.transformer import DiffusionTransformer

    channels = Channels(image=3, domain=8) if pixels else Channels(image=4, dinov2=8)
    model = DiffusionTransformer(
        channels=channels, grid=(pixels or 32,) * 2, num_classes=1000, size=size, depth=depth,
        fusion=Separate if tokens == "separate" else Merged, checkpointing=way == "checkpointing",
    )  # fmt: skip
    return model, JointObjective(channels=channels, num_classes=1000)


def check_on_cpu() -> list[dict]:
    """Measure the memory that real float32 steps add: four blocks of B/2, and gin/images.gin with fewer images."""
    # glibc raises its own threshold, and freed memory would stay in the process.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    rows = []
    for way in ("eager", "checkpointing"):
        for n in (4, 16):
            settings = {"size": "B/2", "tokens": "merged", "way": way, "batch_size": n, "depth": 4}
            measured = in_process(measure, **settings)["gib"]
            rows.append(checked_row(settings, predict(**settings, precision="float32"), measured, "float32"))
    for way, pixels, n in (("eager", 32, 16), ("eager", 64, 4), ("eager", 64, 16), ("checkpointing", 64, 16)):
        settings = {"size": "S/2", "tokens": "merged", "way": way, "batch_size": n, "depth": 12, "pixels": pixels}
        measured = in_process(measure, **settings)["gib"]
        rows.append(checked_row(settings, predict(**settings, precision="float32"), measured, "float32"))
    return rows


def check_on_gpu(depth: int | None) -> list[dict]:
    """Measure the configurations of the table that fit."""
    rows = []
    for size in ("B/2", "XL/2"):
        for way in ("eager", "compiled", "checkpointing"):
            settings = {"size": size, "tokens": "merged", "way": way, "batch_size": 256, "depth": depth}
            try:
                measured = in_process(measure, **settings, device="cuda", precision="bfloat16")["gib"]
            except RuntimeError as error:
                print(f"{settings}: {error}", file=sys.stderr)
                continue
            rows.append(checked_row(settings, predict(**settings), measured, "bfloat16"))
    return rows


def checked_row(settings: dict, predicted: float, measured: float, precision: str) -> dict:
    return {
        "measurement": "checked", "model": settings["size"], "blocks": settings["depth"],
        "grid": settings.get("pixels") or 32, "step": settings["way"],
        "precision": precision, "batch_size": settings["batch_size"], "predicted_gib": predicted,
        "measured_gib": measured, "measured_less_predicted_gib": measured - predicted,
        "predicted_over_measured": predicted / measured,
    }  # fmt: skip


def measure(
    *, size: str, tokens: str, way: str, batch_size: int, depth: int | None, device: str = "cpu",
    precision: str = "float32", pixels: int | None = None,
) -> dict:  # fmt: skip
    """Return {"gib": peak of two real steps minus the memory before them}."""
    import torch
    from machine import peak_memory_gib

    from redi.core.ema import EMA
    from redi.runtime.device import Precision
    from redi.training.memory import JoinedCodec
    from redi.training.step import TrainingStep

    before = resident_gib() if device == "cpu" else 0.0
    model, objective = built(size, tokens, way, depth, pixels)
    model = model.to(device).train()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model.choose_attention(torch.device(device), dtype)
    step = TrainingStep(
        codec=JoinedCodec(), model=model, objective=objective,
        optimizer=torch.optim.AdamW(model.parameters(), fused=True), ema=EMA(model=model),
        precision=Precision(precision, dtype), compiled=way == "compiled",
    )  # fmt: skip
    x = torch.randn(batch_size, model.channels.total, *model.grid, device=device)
    for number in range(2):
        step({"image": x, "labels": torch.zeros(batch_size, dtype=torch.int64, device=device)}, number)
    return {"gib": peak_memory_gib() - before}


def resident_gib() -> float:
    """Return the current memory of the process."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 2**20


if __name__ == "__main__":
    main()
