"""Draws images and their features from a trained run, and a picture of some.

python -m redi.sample --run_dir=runs/digits --gin_bindings='sample.num_images = 100'
torchrun --nproc_per_node=8 -m redi.sample --run_dir=runs/imagenet       shared by eight processes; srun does as well
In Python: redi.draw_samples.
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    from redi.runs.stages import sample_stage

    sample_stage(command_line.configure(run_dir, trains=False))


console = command_line.program(main, dry_run=True)
