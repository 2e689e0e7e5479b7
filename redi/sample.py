"""Sample images and their features from a trained run; write samples/ and the picture samples.png.

python -m redi.sample --run_dir=runs/digits --gin_bindings='sample.num_images = 100'
torchrun --nproc_per_node=8 -m redi.sample --run_dir=runs/imagenet       eight processes share the work; srun works too
In Python: redi.draw_samples.
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    """Draw the samples and the picture."""
    from redi.runs.stages import sample_stage

    sample_stage(command_line.configure(run_dir, trains=False))


console = command_line.program(main, dry_run=True)
