"""Draws images and their features from a trained run, and a picture of some.

python -m redi.sample --run_dir=runs/digits --gin_bindings='sample.num_images = 100'
torchrun --nproc_per_node=8 -m redi.sample --run_dir=runs/imagenet       shared by eight processes; srun does as well
"""

import hashlib
import json
import logging
from pathlib import Path

from redi import command_line
from redi.prepare import audited

log = logging.getLogger("redi")


def stage(run_dir: Path, trained_dir: Path | None = None) -> None:
    """Samples under the parsed configuration; writes `samples/` and `samples.png`.

    Args:
        trained_dir: the run whose checkpoint is used; default: `run_dir`.
    """
    from redi.core import config
    from redi.evaluation.samples.sample import sample
    from redi.runs.load import load
    from redi.runtime.device import choose_device, own_gpu
    from redi.runtime.distributed import process_rank

    trained_dir = trained_dir or run_dir
    rank, world_size = process_rank()
    if rank == 0:
        (run_dir / "stages.json").unlink(missing_ok=True)  # what `redi.run` made no longer stands
    run = load(trained_dir, device=str(own_gpu(choose_device(config.bound("train.device", "auto")))))
    place = {"run_dir": run_dir, "trained": run, "rank": rank, "world_size": world_size, "key": _key()}
    samples = config.call(sample, **place, **_networks(trained_dir, run.codec.device))
    if rank == 0:
        evaluations = samples.record["function_evaluations"]
        log.info("%d images in %g function evaluations each: %s", len(samples), evaluations, samples.folder)
        _picture(run_dir, run, samples)


def _key() -> str:
    """A hash of the bindings that decide the images."""
    from redi.core import config
    from redi.sampling.generate import generate

    text = json.dumps(config.relevant(config.full_text(), [generate]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _networks(trained_dir: Path, device) -> dict:
    """The argument `networks` of `sample`, where it is bound: ready for use."""
    from redi.core import config
    from redi.evaluation.evaluate import prepare_networks
    from redi.evaluation.samples.sample import check_networks

    if not (networks := config.bound("sample.networks")):
        return {}
    check_networks(networks)
    learning = any(network.learns_from_data for network in networks)
    dataset = audited(trained_dir) if learning else None
    prepare_networks(networks, dataset, config.bound("evaluate.cache_dir"), device)
    return {"networks": networks}


def _picture(run_dir: Path, run, samples, rows: int = 4) -> None:
    import torch

    from redi.core import config
    from redi.evaluation.stored_statistics import images_of
    from redi.sampling.generate import Generated
    from redi.sampling.pictures import class_ordered, num_columns, sample_grid, stack

    if not samples.has_images:
        (run_dir / "samples.png").unlink(missing_ok=True)  # of earlier ones
        log.info("no picture: the images were not kept (sample.keep = %s)", tuple(samples.record["kept"]))
        return
    columns = num_columns(samples.labels)
    some = samples.take(class_ordered(samples.labels, columns, rows))
    features = ", ".join(run.codec.channels.representations) if samples.has_x else ""
    caption = f" images above their features ({features}; one colour basis)" if features else " images"
    sheets = [sample_grid(some, run.codec, run.colours, "generated" + caption, columns)]
    if (reference := images_of(config.bound("evaluate.reference"))) is not None:
        labels = torch.from_numpy(reference.labels)
        columns = num_columns(labels)
        chosen = class_ordered(labels, columns, rows)
        batch = reference.batch(chosen.tolist())
        x = run.codec.encode(batch["images"].to(run.codec.device)).cpu() if samples.has_x else None
        real = Generated(batch["images"], x, batch["labels"], {})
        sheets.append(sample_grid(real, run.codec, run.colours, "real held-out" + caption, columns))
    stack(sheets).save(run_dir / "samples.png")
    log.info("picture: %s", run_dir / "samples.png")


def main(run_dir: Path) -> None:
    command_line.configure(run_dir, trains=False)
    stage(run_dir, command_line.trained_dir(run_dir))


def console() -> None:
    command_line.run(main, __doc__)


if __name__ == "__main__":
    console()
