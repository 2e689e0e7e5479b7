"""Count the bytes of a checkpoint that are read to resume a run in two processes, and to sample from it in one.

python benchmarks/resume_reads.py [--device cpu] [--quick] [--before CHECKOUT] [--out FILE]

The run is gin/digits.gin, resumed at step 1. Counted are all hashed bytes, and the bytes of loaded safetensors files. A
file in use is read twice, the second time from the page cache. Every process reads the codec during preparation.
`--before` names another checkout of this repository to compare with.
"""

import functools
import hashlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINED = ["train.device = 'cpu'", "train.preview_every = 1000", "train.log_every = 1"]
TINY = [
    "DomainEncoder.num_steps = 2", "DomainEncoder.width = 8", "DomainEncoder.depth = 1", "PCA.rank = 2",
    "DiffusionTransformer.width = 16", "DiffusionTransformer.depth = 1", "DiffusionTransformer.num_heads = 2",
    "train.batch_size = 8",
]  # fmt: skip


def main() -> None:
    from ledger import arguments, report

    parser = arguments(__doc__)
    parser.add_argument("--before", help="another checkout")
    options = parser.parse_args()
    checkouts = {"before": Path(options.before)} if options.before else {}
    rows = [row for name, path in (checkouts | {"now": ROOT}).items() for row in measure(name, path, options.quick)]
    notes = ["checkpoint_mb: size of all groups of the checkpoint (model, EMA, optimizer, codec, colours)."]
    report("resume_reads", device="cpu", settings={"processes": 2}, rows=rows, notes=notes, arguments=options)


def measure(name: str, checkout: Path, quick: bool = True) -> list[dict]:
    """Return rows {"code", "what", "process", "optimizer_mb", "all_groups_mb", "checkpoint_mb"} of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, environment = Path(folder) / "run", os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        environment["REDI_CACHE"] = f"{folder}/cache"

        def call(*command: str) -> None:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")

        def train(*launch: str, num_steps: int) -> None:
            lines = [*TRAINED, *(TINY if quick else ()), f"train.num_steps = {num_steps}"]
            flags = [f"--gin_bindings={line}" for line in lines]
            call(*launch, "-m", "redi.train", "--gin_file=digits.gin", f"--run_dir={run_dir}", *flags)

        train(sys.executable, num_steps=1)
        size = sum(path.stat().st_size for path in run_dir.glob("checkpoints/*/*.safetensors"))
        counted, torchrun = (__file__, "count", folder), ("-m", "torch.distributed.run", "--standalone")
        train(sys.executable, *torchrun, "--nproc_per_node=2", *counted, num_steps=2)
        rows = [row("resume", rank, Path(folder)) for rank in (0, 1)]
        call(sys.executable, *counted, "-c", f"import redi; redi.load({str(run_dir)!r}, step=1, device='cpu')")
        rows.append(row("redi.load", 0, Path(folder)))
    return [{"code": name, **row, "checkpoint_mb": size / 1e6} for row in rows]


def row(what: str, rank: int, folder: Path) -> dict:
    counts = json.loads((folder / f"reads_{rank}.json").read_text())
    groups = {"optimizer_mb": counts.get("optimizer", 0) / 1e6, "all_groups_mb": sum(counts.values()) / 1e6}
    return {"what": what, "process": rank, **groups}


def count(folder: str, flag: str, code: str, *arguments: str) -> None:
    """Run a module (-m) or code (-c); write reads_<rank>.json to `folder`: {group: bytes read from checkpoints}."""
    import safetensors.torch

    counts: Counter = Counter()

    def counting(function, path_of):
        @functools.wraps(function)
        def counted(first, *rest, **options):
            path = Path(path_of(first))
            if path.parent.name == "step_00000001" and path.suffix == ".safetensors":
                counts[path.stem] += path.stat().st_size
            return function(first, *rest, **options)

        return counted

    hashlib.file_digest = counting(hashlib.file_digest, lambda file: file.name)
    safetensors.torch.load_file = counting(safetensors.torch.load_file, lambda path: path)
    sys.argv = [code, *arguments]
    try:
        exec(code, {}) if flag == "-c" else runpy.run_module(code, run_name="__main__", alter_sys=True)
    finally:
        (Path(folder) / f"reads_{os.environ.get('RANK', 0)}.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    count(*sys.argv[2:]) if sys.argv[1:2] == ["count"] else main()
