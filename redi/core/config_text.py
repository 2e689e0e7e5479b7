"""A saved configuration as text: its statements, and which of them may differ when a run goes on."""

import re

# Differences under which a run may go on: they decide how long, how often and where, not what is learned. Where the
# weights of a pretrained network lie is one; which they are, the fingerprints of checkpoints and caches compare. How
# many channels a cache keeps beyond those in use is another.
HARMLESS = re.compile(
    r"train\.(num_steps|\w+_every|keep_\w+|preview\w*|monitor|device|compile|parallel|accumulate)$"
    r"|train\.(max_skipped_steps|stalled_seconds)$"
    r"|DiffusionTransformer\.(attention|checkpointing)$|(\w+\.)*AdamW\.fused$"
    r"|prepare\.(cache_dir|cache_url|local_gib|batch_size|rows_per_shard|verify)$"
    r"|(?!sample\.)(\w+/)*(encoders\.|autoencoders\.)?\w+\.weights$"  # sample.weights are 'ema' or 'model'
    r"|(\w+/)*(reducers\.)?\w+\.store_rank$"
    r"|(\w+/)*(ema\.)?PowerFunctionEMA\.snapshot_\w+$"
)


def statements(text: str) -> dict[str, str]:
    """A saved configuration as {binding: value}, macros included; layout and comments do not matter."""
    found: dict[str, str] = {}
    key = None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace() and key:
            found[key] += " " + line.strip()
        elif " = " in line:
            key, value = line.split(" = ", 1)
            found[key] = value.removesuffix("\\").strip()
        else:
            found[line] = ""  # an import
    return {key: " ".join(value.split()) for key, value in found.items()}
