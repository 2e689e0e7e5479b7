"""Draws images and their features from a trained run, and a picture of some.

python -m redi.sample --run_dir=runs/digits --gin_bindings='sample.num_images = 100'
"""

import logging
from pathlib import Path

from redi import program

log = logging.getLogger("redi")


def stage(run_dir: Path) -> None:
    """Samples under the parsed configuration; writes `samples/` and `samples.png`."""
    from redi.core import config
    from redi.evaluation.sampling import sample
    from redi.runs import load

    (run_dir / "stages.json").unlink(missing_ok=True)  # what `redi.run` made no longer stands
    run = load(run_dir, device=config.bound("train.device", "auto"))
    drawn = config.call(sample, run_dir=run_dir, trained=run)
    evaluations = drawn.record["function_evaluations"]
    log.info("%d images in %d function evaluations each: %s", len(drawn.images), evaluations, run_dir / "samples")
    _picture(run_dir, run, drawn)


def _picture(run_dir: Path, run, drawn, rows: int = 4) -> None:
    import torch

    from redi.core import config
    from redi.core.generation import Generated
    from redi.evaluation.pictures import class_ordered, num_columns, sample_grid, stack

    columns = num_columns(drawn.labels)
    chosen = class_ordered(drawn.labels, columns, rows)
    some = Generated(drawn.images[chosen], drawn.x[chosen], drawn.labels[chosen], drawn.record)
    features = ", ".join(run.codec.channels.representations)
    caption = f" images above their features ({features}; one colour basis)" if features else " images"
    sheets = [sample_grid(some, run.codec, run.colours, "generated" + caption, columns)]
    reference = config.bound("evaluate.reference")
    if reference is not None:
        labels = torch.from_numpy(reference.labels)
        columns = num_columns(labels)
        chosen = class_ordered(labels, columns, rows)
        batch = reference.batch(chosen.tolist())
        x = run.codec.encode(batch["images"].to(run.codec.device)).cpu()
        real = Generated(batch["images"], x, batch["labels"], {})
        sheets.append(sample_grid(real, run.codec, run.colours, "real held-out" + caption, columns))
    stack(sheets).save(run_dir / "samples.png")
    log.info("picture: %s", run_dir / "samples.png")


def main(run_dir: Path) -> None:
    program.configure(run_dir, trains=False)
    stage(run_dir)


def console() -> None:
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
