"""Write the table of GPU-hours in docs/performance.md: the paper's runs at two utilisations and as measured.

python benchmarks/paper_cost.py            # after benchmarks/train_step.py --device cuda, or gpu.sh

The measured column uses the fastest variant for the model and tokens in results/train_step.cuda.json and in
results/gpu. Without these files it says "not measured". This script times nothing.
"""

import argparse
import json
import re
from pathlib import Path

from markdown_table import table
from memory import built

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- paper_cost -->\n).*?(<!-- end of paper_cost -->)", re.DOTALL)
RATE, BATCH = 790e12, 256
TRAININGS = [  # model, tokens, iterations in thousands
    ("B/2", "merged", 400), ("B/2", "separate", 400), ("L/2", "merged", 400), ("XL/2", "merged", 400),
    ("XL/2", "merged", 700), ("XL/2", "merged", 1000), ("XL/2", "merged", 3000), ("XL/2", "merged", 4000),
    ("XL/2", "merged", 7000),
]  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = PAGE.read_text()
    PAGE.write_text(MARKED.sub(lambda match: f"{match[1]}\n{generated()}\n\n{match[2]}", text))
    print(generated())


def generated() -> str:
    """Return the table, in GPU-hours."""
    rows = []
    for size, tokens, thousands in TRAININGS:
        gmac = forward_gmac(size, tokens)
        images = thousands * 1000 * BATCH
        at = {f"{use:.0%} of 790 TFLOP/s": images * 6 * gmac * 1e9 / (use * RATE) / 3600 for use in (0.4, 0.6)}
        rate = measured_rate(size, tokens)
        row = {"model": size, "tokens": tokens, "iterations": f"{thousands:,}K", "GMAC forward": f"{gmac:.1f}"}
        row |= {name: f"{hours:,.1f}" for name, hours in at.items()}
        rows.append(row | {"measured": f"{images / rate / 3600:,.1f}" if rate else "not yet"})
    return table(rows)


def forward_gmac(size: str, tokens: str) -> float:
    """Count the FLOPs of one 256-pixel image with 8 feature channels."""
    import torch

    from redi.models.cost import forward_flops

    with torch.device("meta"):
        model, _ = built(size, tokens, "eager", None)
    return forward_flops(model) / 2e9


def measured_rate(size: str, tokens: str, results: Path = HERE / "results") -> float | None:
    """Return the measured images per second of a training step on a GPU, if any."""
    names = ("train_step.cuda.json", "gpu/train_xl2.json", "gpu/train_b2.json")
    paths = [results / name for name in names if (results / name).exists()]
    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    title = f"{size}, {tokens} tokens, batch"
    rates = [row.get("images_per_second", 0) for row in rows if row.get("measurement", "").startswith(title)]
    return max(rates, default=0) or None


if __name__ == "__main__":
    main()
