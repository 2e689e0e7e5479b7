"""Asks a trained joint model for features given images and for images given features; writes queries.png and .json.

python -m redi.query --run_dir=runs/digits
"""

from pathlib import Path

from redi import command_line


def stage(run_dir: Path) -> None:
    """Queries under the parsed configuration, about the held-out images where there are some."""
    from redi.core import config
    from redi.evaluation.queries import query
    from redi.evaluation.stored_statistics import images_of
    from redi.prepare import audited
    from redi.runs.load import load

    run = load(run_dir, device=config.bound("train.device", "auto"))
    held_out = images_of(config.bound("evaluate.reference"))
    result = config.call(query, run_dir=run_dir, trained=run, dataset=held_out or audited(run_dir))
    for question in ("features_given_image", "image_given_features"):
        for name, measured in result[question].items():
            what = question.replace("_", " ")
            print(f"{what} ({name}): agreement {measured['agreement']:.3f}, floor {measured['floor']:.3f}", flush=True)


def main(run_dir: Path) -> None:
    command_line.configure(run_dir, trains=False)
    stage(run_dir)


def console() -> None:
    command_line.run(main, __doc__)


if __name__ == "__main__":
    console()
