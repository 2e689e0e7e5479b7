"""Audits the data, fits the codec and fills the cache; training does the same where it is missing.

python -m redi.prepare --gin_file=digits.gin
torchrun --nproc_per_node=8 -m redi.prepare --gin_file=imagenet.gin      shared by eight processes; srun does as well
"""

import json
import logging
from pathlib import Path

from redi import command_line

log = logging.getLogger("redi")


def prepared(run_dir: Path, *, evaluates: bool = False, monitor=None):
    """-> the fitted codec and what `train` takes as its data set; the audit is printed and stored first.

    `evaluates` says that the samples will be evaluated too, so that the settings for that are checked now; `monitor`
    is made ready to measure during training.
    """
    from redi.core import config
    from redi.data.cache.prepare import prepare
    from redi.models.codec import JointCodec
    from redi.runs.checks import check_results, check_training
    from redi.runtime.checkpoint import list_checkpoints, newest_good
    from redi.runtime.device import choose_device, own_gpu

    codec = config.bound("train.codec")
    if not isinstance(codec, JointCodec):
        raise ValueError(f"train.codec is {codec!r}: bind train.codec = @JointCodec(), as gin/base.gin does")
    codec.load()  # before the audit reads every image
    # Streamed from object storage, encoded images need no images here; they were audited where they were encoded.
    alone = config.bound("train.dataset") is None and config.bound("prepare.cache_url") is not None
    if alone and (evaluates or monitor is not None):
        what = "evaluating" if evaluates else "train.monitor"
        raise ValueError(
            f"{what} compares with images, and a cache streamed from prepare.cache_url holds none: bind train.dataset "
            "too, or call redi.train and redi.sample, without train.monitor"
        )
    dataset = config.call(prepare, codec=codec, dataset=None) if alone else audited(run_dir)
    check_training(codec, dataset, resumes=bool(list_checkpoints(run_dir)))
    if evaluates:
        check_results(codec, dataset)
    codec.to(own_gpu(choose_device(config.bound("train.device", "auto"))))
    if monitor is not None:
        monitor.prepare(dataset, config.bound("evaluate.reference"))
    if (newest := newest_good(run_dir, set_aside=False)) is not None:  # a resumed run keeps what it was trained with
        codec.load_learned_state(newest[1]["codec"])
        del newest  # a copy of model, average and optimizer
    return codec, dataset if alone else config.call(prepare, codec=codec, dataset=dataset)


def audited(run_dir: Path):
    """The training data less unreadable images; audited once per run folder and data set."""
    from redi.core import config
    from redi.data.audit import AuditError, audit, describe
    from redi.data.datasets import datasets
    from redi.runtime.artefact import write_json
    from redi.runtime.checksums import sealed, unsealed
    from redi.runtime.shared_work import complete

    dataset = config.bound("train.dataset")
    if dataset is None:
        raise ValueError("no data set: bind train.dataset, for example = @datasets.ImageFolder()")
    datasets.check(dataset, "train.dataset")
    path = run_dir / "audit.json"
    settings = {name: config.bound(f"audit.{name}", False) for name in ("skip_unreadable", "allow_missing_classes")}
    batch_size = config.bound("train.batch_size", 256)
    asked = {"fingerprint": dataset.fingerprint(), "batch_size": batch_size, **settings}

    def written() -> int | None:
        return path.stat().st_mtime_ns if path.exists() else None

    at_start = written()

    def stored() -> dict | None:
        """What the audit found; a refusal counts for those who waited for it, and a new start looks again."""
        try:
            record = unsealed(json.loads(path.read_text()), path)
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError) as error:  # also BrokenArtefact
            log.warning("the images are audited again, for %s is damaged: %s", path, error)
            path.unlink(missing_ok=True)
            return None
        refused = record.get("refused_for") == asked and written() != at_start
        return record if record.get("passed") == asked or refused else None

    def look() -> None:
        try:
            record = config.call(audit, dataset=dataset, batch_size=batch_size)[1] | {"passed": asked}
        except AuditError as error:
            record = error.record | {"refused_for": asked}
        write_json(path, sealed(record))
        print(describe(record), flush=True)

    complete(run_dir / ".audit", (), finished=lambda: stored() is not None, finish=look)  # by one of all processes
    record = stored()
    if "refused" in record:
        raise AuditError(record["refused"], record)
    unreadable = record["unreadable"]
    return dataset.without([i for i, name in enumerate(dataset.names) if name in unreadable])


def main(run_dir: Path) -> None:
    run_dir = command_line.trained_dir(run_dir)
    command_line.configure(run_dir, trains=True)
    prepared(run_dir)
    log.info("prepared; train with the same flags: python -m redi.train ...")


def console() -> None:
    command_line.run(main, __doc__)


if __name__ == "__main__":
    console()
