"""Predict the throughput of 8, 64 and 512 GPUs by arithmetic: SiT-XL/2 with ReDi, merged tokens, 256 px.

python benchmarks/scale_plan.py            # write the tables of docs/scale.md, from ASSUMED below
python benchmarks/scale_plan.py --check    # fails if page and script disagree

Nothing is timed. Parameters, FLOPs and checkpoint sizes are counted by the library; the rates of machines are assumed.
"""

import argparse
import math
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from markdown_table import table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
MARKED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
GIB = 2**30
BLOCKS = 28  # of XL


@dataclass(frozen=True)
class Assumed:
    """Rates in bytes or FLOP per second. `network` and `nvlink` are the rates of sending while receiving."""

    gpu: float = 790e12  # large bf16 products on an H100 or H200 within its power limit
    utilisation: float = 0.45  # fraction of it, at 32 images per GPU; replace by a measurement of train_step.py
    gpus_per_node: int = 8
    nvlink: float = 360e9  # in a ring over the 8 GPUs of a node
    network: float = 320e9  # 80 % of 8 x 400 Gbit/s
    hop: float = 10e-6  # seconds for a message to the next GPU
    jitter: float = 0.01  # relative standard deviation of a step's time; all GPUs wait for the slowest
    overlap: float = 0.9  # fraction of the backward pass during which gradients can be sent
    bucket: float = 25 * 2**20  # DDP.bucket_mib
    disk: float = 1.5e9  # one process writing to a shared file system
    sha256: float = 1.2e9  # one core with SHA instructions
    checkpoint_every: int = 10_000
    images: int = 1_281_167  # ImageNet
    row: int = 8 * 32 * 32 * 2 + 8 * 16 * 16 * 2 + 8  # float16 moments (8,32,32) and 8 channels (8,16,16), int64 label


ETHERNET = 100e9 / 8 * 0.8  # 80 % of one 100 Gbit/s link per node


@cache
def model() -> tuple[int, float]:
    """Return the number of parameters, and the FLOPs of an image in a training step."""
    import torch
    from memory import built

    from redi.models.cost import forward_flops

    with torch.device("meta"):
        net, _ = built("XL/2", "merged", "eager", None)
    return sum(p.numel() for p in net.parameters()), 3 * forward_flops(net)


def ring(size: float, gpus: int, at: Assumed) -> float:
    """Return the seconds of an all-gather or a reduce-scatter of `size` bytes over a ring; an all-reduce is both."""
    rate = at.nvlink if gpus <= at.gpus_per_node else min(at.nvlink, at.network)
    return (gpus - 1) / gpus * size / rate


def step(gpus: int, batch: int, at: Assumed, parallel: str = "DDP") -> dict[str, float]:
    """Return the seconds of a step and of its parts."""
    parameters, flops = model()
    gradients = 4 * parameters  # float32, like weights and EMA: autocast only rounds the inputs of products
    compute = batch / gpus * flops / (at.utilisation * at.gpu)
    latency = 2 * math.ceil(math.log2(gpus)) * at.hop
    if parallel == "DDP":
        network = 2 * ring(gradients, gpus, at) + gradients / at.bucket * latency
        hidden = at.overlap * 2 / 3 * compute  # a backward pass is two thirds of a step
    else:  # weights are gathered for the forward and the backward pass, gradients are reduce-scattered
        network = 3 * ring(gradients, gpus, at) + 3 * BLOCKS * latency
        hidden = at.overlap * compute
    # The last bucket cannot overlap with compute.
    exposed = max(network - hidden, ring(2 * at.bucket, gpus, at) + latency)
    # Approximate maximum of this many draws from a normal distribution.
    waiting = at.jitter * compute * math.sqrt(2 * math.log(gpus))
    checkpoint = checkpoint_bytes() * (1 / at.disk + 1 / at.sha256) / at.checkpoint_every
    seconds = compute + exposed + waiting + checkpoint
    return {
        "compute": compute, "network": network, "exposed": exposed, "checkpoint": checkpoint, "seconds": seconds,
        "efficiency": compute / seconds, "images": batch / seconds,
    }  # fmt: skip


def checkpoint_bytes() -> int:
    """Return the bytes of model, EMA and Adam's two moments in float32."""
    return 4 * 4 * model()[0]


def steps(at: Assumed) -> str:
    """Return the table of steps."""
    rows = []
    for label, network in (("8 x 400 Gbit/s", at.network), ("100 Gbit/s", ETHERNET)):
        for gpus, batch in ((8, 256), (64, 256), (64, 2048), (512, 16384)):
            if gpus == at.gpus_per_node and network == ETHERNET:
                continue
            for parallel in ("DDP", "FSDP"):
                found = step(gpus, batch, replace(at, network=network), parallel)
                rows.append({
                    "GPUs": gpus, "between nodes": "none" if gpus <= at.gpus_per_node else label,
                    "batch, of a GPU": f"{batch:,}, {batch // gpus}", "way": parallel,
                    "compute ms": 1000 * found["compute"], "network ms": 1000 * found["network"],
                    "of it exposed": 1000 * found["exposed"], "step ms": 1000 * found["seconds"],
                    "images per second": found["images"], "efficiency": f"{found['efficiency']:.0%}",
                    "hours of 102.4 M images": f"{102.4e6 / found['images'] / 3600:.1f}",
                })  # fmt: skip
    return table(rows)


def data(at: Assumed) -> str:
    """Return the table of data."""
    rows = []
    for mirrored in (False, True):
        row = at.row * 2 - 8 if mirrored else at.row  # one label for both
        whole = row * at.images
        for gpus, batch in ((8, 256), (64, 2048), (512, 16384)):
            rate = step(gpus, batch, at)["images"]
            nodes = gpus // at.gpus_per_node
            rows.append({
                "cache": "with mirror images" if mirrored else "plain", "size GiB": whole / GIB, "GPUs": gpus,
                # Half of each row of a mirrored cache is read.
                "read MB/s of a node": rate * at.row / nodes / 1e6, "epoch seconds": at.images / rate,
                "copied to the nodes, once, TiB": nodes * whole / 2**40,
                "streamed, every epoch, TiB": gpus * whole / 2**40,
                "streamed GB/s of a node": at.gpus_per_node * whole / (at.images / rate) / 1e9,
            })  # fmt: skip
    return table(rows)


def checkpoints(at: Assumed) -> str:
    """Return the table of checkpoints."""
    parameters, _ = model()
    rows = []
    for disk in (0.5e9, at.disk, 5e9):
        size = checkpoint_bytes()
        write, digest = size / disk, size / at.sha256
        rows.append({
            "disk GB/s": disk / 1e9, "GiB": size / GIB, "write s": write, "SHA-256 s": digest,
            "all wait s": write + digest,
            **{f"of the time, {gpus} GPUs": f"{share(gpus, batch, at, disk):.2%}"
               for gpus, batch in ((8, 256), (64, 2048), (512, 16384))},
        })  # fmt: skip
    return f"{parameters / 1e6:.1f} M parameters.\n\n" + table(rows)


def share(gpus: int, batch: int, at: Assumed, disk: float) -> float:
    found = step(gpus, batch, replace(at, disk=disk))
    return found["checkpoint"] / found["seconds"]


def generated(text: str, at: Assumed) -> str:
    """Return the page with updated tables."""
    makers = {"steps": steps, "data": data, "checkpoints": checkpoints}
    return MARKED.sub(lambda match: f"{match[1]}\n{makers[match[2]](at)}\n\n{match[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    text = PAGE.read_text()
    made = generated(text, Assumed())
    if check:
        sys.exit("docs/scale.md is out of date: run python benchmarks/scale_plan.py" if made != text else 0)
    PAGE.write_text(made)
    print("\n\n".join(make(Assumed()) for make in (steps, data, checkpoints)))


if __name__ == "__main__":
    main()
