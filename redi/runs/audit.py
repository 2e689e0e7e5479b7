"""The audit of a run's training data, stored beside the run."""

import contextlib
import inspect
import logging
from pathlib import Path

from redi.core import config
from redi.data.audit import AuditError, audit, describe, label_facts
from redi.data.datasets import Dataset, datasets
from redi.data.storage.contents import same_images
from redi.runtime.artefact import read_record, write_json
from redi.runtime.atomic import stamp
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.checksums import BrokenArtefact, read_sealed, sealed
from redi.runtime.shared_work import complete
from redi.runtime.spelling import few

log = logging.getLogger("redi")


def audited(run_dir: Path, *, keep: bool = True) -> Dataset:
    """The training data less unreadable images; audited once per run folder and data set, or, unless it is to `keep`
    the audit, where there is none of them.

    Raises AuditError, and ValueError where the run in `run_dir` was trained on other data.
    """
    dataset = config.bound("train.dataset")
    if dataset is None:
        raise ValueError("no data set: bind train.dataset, for example = @datasets.ImageFolder()")
    datasets.check(dataset, "train.dataset")
    path = run_dir / "audit.json"
    settings = {name: config.bound(f"audit.{name}", False) for name in ("skip_unreadable", "allow_missing_classes")}
    batch_size = config.bound("train.batch_size", 256)
    asked = {"fingerprint": dataset.fingerprint(), "batch_size": batch_size, **settings}

    at_start, earlier = stamp(path), _stored(path)
    if known := "passed" in earlier and earlier["passed"]["fingerprint"]:
        if known != asked["fingerprint"] and _check_same(run_dir, earlier, dataset):
            asked["fingerprint"] = known

    def stored() -> dict | None:
        """What the audit found; a refusal counts for those who waited for it, and a new start looks again."""
        record = _stored(path)
        refused = record.get("refused_for") == asked and stamp(path) != at_start
        return record if record.get("passed") == asked or refused else None

    def look() -> dict:
        try:
            record = config.call(audit, dataset=dataset, batch_size=batch_size)[1] | {"passed": asked}
        except AuditError as error:
            record = error.record | {"refused_for": asked}
        if keep:
            write_json(path, sealed(record))
        print(describe(record), flush=True)
        return record

    if keep:
        complete(run_dir / ".audit", finished=lambda: stored() is not None, finish=look)  # by one of all processes
    record = stored() or look()
    if "refused" in record:
        raise AuditError(record["refused"], record)
    return _readable(dataset, record)


def _stored(path: Path) -> dict:
    """The record of an audit; empty where there is none, and a damaged one is removed."""
    try:
        return read_sealed(path) or {}
    except BrokenArtefact as error:
        log.warning("the images are audited again, for %s is damaged: %s", path, error)
        path.unlink(missing_ok=True)
        return {}


def _readable(dataset: Dataset, record: dict) -> Dataset:
    """The data set less the images that an audit found unreadable."""
    return dataset.without([i for i, name in enumerate(dataset.names) if name in record["unreadable"]])


def _check_same(run_dir: Path, earlier: dict, dataset: Dataset) -> bool:
    """Whether the images are known to be those that the run was trained on, if it was, by its newest checkpoint.

    Raises ValueError where images, classes or labels are others than those of the audit before.
    """
    trained = None
    for folder in list_checkpoints(run_dir):
        with contextlib.suppress(BrokenArtefact):  # which is reported where it is read
            trained = read_record(folder)
    if trained is None or "dataset" not in trained:  # imported
        return False
    dataset = _readable(dataset, earlier)
    same = same_images(dataset, trained["dataset"], trained.get("dataset_contents"))
    then, now = (list(record["images_per_class"].items()) for record in (earlier, label_facts(dataset, 1)))
    if same or same is None and then == now:
        return bool(same)
    what, advice = "the same counts", "bind the images that it was trained on, or choose another --run_dir"
    if then != now:
        what = f"{_counts(then)} then, {_counts(now)} now"
    if then != now and sorted(then) == sorted(now) and "numeric_order" in inspect.signature(type(dataset)).parameters:
        advice = f"bind {type(dataset).__name__}.numeric_order = False, as classes were ordered then"
    raise ValueError(f"{run_dir} was trained on other data than train.dataset now holds ({what}): {advice}")


def _counts(images_per_class: list[tuple[str, int]]) -> str:
    """'1,200 images in 3 classes (ant, bee, cow)'."""
    names, counts = zip(*images_per_class, strict=True)
    return f"{sum(counts):,} images in {len(names)} classes ({few(names, 4)})"
