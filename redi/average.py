"""Makes averages of other lengths of a run's weights after training, each a run folder that the programs open.

python -m redi.average --run_dir=runs/mine --sigma_rel=0.03,0.08,0.15
python -m redi.sample --run_dir=runs/mine/averages/sigma_rel_0.08_step_00400000

The run was trained with train.ema = @ema.PowerFunctionEMA (docs/ema.md). With --trained_dir it is that folder's
weights, and the one average is written to --run_dir.
"""

import logging
import shutil
from pathlib import Path

from absl import flags

from redi import command_line

log = logging.getLogger("redi")

FLAGS = flags.FLAGS
flags.DEFINE_list("sigma_rel", [], "Lengths of the averages, as parts of the training, between 0 and 0.2887.")
flags.DEFINE_integer("at_step", None, "After how many steps; a snapshot's. Default: the newest.")
OWN_FLAGS = ("sigma_rel", "at_step")
# Of the run's record: what `redi.load` and whoever reads the result want to know.
TAKEN = ("model_arguments", "image_size", "seed", "codec", "codec_fingerprint", "dataset")


def average(run_dir: str | Path, sigma_rel: float, *, at_step: int | None = None, to: str | Path | None = None) -> Path:
    """Writes a folder that `redi.load`, redi.sample and redi.evaluate open as a run, whose weights are the average.

    Args:
        run_dir: trained with `ema.PowerFunctionEMA`.
        sigma_rel, at_step: see `redi.training.posthoc.reconstruct_average`.
        to: the folder; default: averages/sigma_rel_<..>_step_<..> in `run_dir`. An average there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: as `reconstruct_average`; or another run in `to`.
        OSError: the disk is full or not writable; what was there before is untouched.
    """
    from redi.runtime.artefact import read_record
    from redi.runtime.checkpoint import Retention, list_checkpoints, save_checkpoint
    from redi.training.posthoc import reconstruct_average

    run_dir = Path(run_dir)
    if to is not None and any("average" not in read_record(folder) for folder in list_checkpoints(Path(to))):
        raise ValueError(f"{to} holds a run that was trained: choose another folder for the average")
    found = reconstruct_average(run_dir, sigma_rel, at_step=at_step)
    to = Path(to or run_dir / "averages" / f"sigma_rel_{found.sigma_rel:g}_step_{found.step:08d}")
    groups, record = found.checkpoint
    tensors = {name: groups[name] for name in ("codec", "colours") if name in groups} | {"ema": found.parameters}
    record = {key: record[key] for key in TAKEN} | {"average": found.provenance()}
    save_checkpoint(to, found.step, tensors, record, keep=Retention(1))
    if (run_dir / "config.gin").exists():
        shutil.copyfile(run_dir / "config.gin", to / "config.gin")
    combination = found.combination
    log.info(
        "sigma_rel %g at step %d, of %d averages: its density is met to %.2g, rounding errors of snapshots count %.2g "
        "times: %s", found.sigma_rel, found.step, len(found.sources), combination.error, combination.noise, to,
    )  # fmt: skip
    return to


def main(run_dir: Path) -> None:
    if not FLAGS.sigma_rel:
        raise ValueError("name the lengths of the averages, as --sigma_rel=0.05,0.1")
    try:
        lengths = [float(text) for text in FLAGS.sigma_rel]
    except ValueError:
        raise ValueError(f"--sigma_rel={','.join(FLAGS.sigma_rel)}: numbers with commas between them") from None
    trained = command_line.trained_dir(run_dir)
    if trained != run_dir and len(lengths) > 1:
        raise ValueError("--trained_dir with several lengths, and --run_dir is one folder: leave --trained_dir away")
    for sigma_rel in lengths:
        average(trained, sigma_rel, at_step=FLAGS.at_step, to=None if trained == run_dir else run_dir)


def console() -> None:
    command_line.run(main, __doc__, own_flags=OWN_FLAGS)


if __name__ == "__main__":
    console()
