"""The audit of the training data, stored in the run folder as audit.json."""

import contextlib
import inspect
import logging
from pathlib import Path

from redi.core import config
from redi.data.audit import AuditError, audit, format_audit, label_facts
from redi.data.datasets import Dataset, datasets
from redi.data.storage.contents import same_images
from redi.runtime.artefact import read_record, write_json
from redi.runtime.atomic import stamp
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.checksums import BrokenArtefact, read_sealed, sealed
from redi.runtime.shared_work import complete
from redi.runtime.spelling import few

log = logging.getLogger("redi")


def audited_data(run_dir: Path, *, keep: bool = True) -> Dataset:
    """Return the training data without unreadable images; audit them if the run folder has no current audit.

    Args:
        keep: whether to write a new audit to audit.json.

    Raises:
        AuditError: the audit failed.
        ValueError: no data set is bound, or the run in `run_dir` was trained on other data.
    """
    dataset = config.bound("train.dataset")
    if dataset is None:
        raise ValueError("no data set: bind train.dataset, for example train.dataset = @datasets.ImageFolder()")
    datasets.check(dataset, "train.dataset")
    path = run_dir / "audit.json"
    settings = {name: config.bound(f"audit.{name}", False) for name in ("skip_unreadable", "allow_missing_classes")}
    batch_size = config.bound("train.batch_size", 256)
    subject = {"fingerprint": dataset.fingerprint(), "batch_size": batch_size, **settings}

    at_start, earlier = stamp(path), _stored(path)
    if fingerprint := "passed" in earlier and earlier["passed"]["fingerprint"]:
        if fingerprint != subject["fingerprint"] and _check_same(run_dir, earlier, dataset):
            subject["fingerprint"] = fingerprint

    def stored() -> dict | None:
        """Return the stored audit if it is current. A failed one only counts for processes that waited for it."""
        record = _stored(path)
        refused = record.get("refused_for") == subject and stamp(path) != at_start
        return record if record.get("passed") == subject or refused else None

    def run_audit() -> dict:
        try:
            record = config.call(audit, dataset=dataset, batch_size=batch_size)[1] | {"passed": subject}
        except AuditError as error:
            record = error.record | {"refused_for": subject}
        if keep:
            write_json(path, sealed(record))
        print(format_audit(record), flush=True)
        return record

    def store_audit() -> None:
        run_audit()

    if keep:  # one process audits, the others wait
        complete(run_dir / ".audit", finished=lambda: stored() is not None, finish=store_audit)
    record = stored() or run_audit()
    if "refused" in record:
        raise AuditError(record["refused"], record)
    return _readable(dataset, record)


def _stored(path: Path) -> dict:
    """Return the stored audit, or {} if there is none. Delete a damaged one."""
    try:
        return read_sealed(path) or {}
    except BrokenArtefact as error:
        log.warning("auditing the images again because %s is damaged: %s", path, error)
        path.unlink(missing_ok=True)
        return {}


def _readable(dataset: Dataset, record: dict) -> Dataset:
    """Return the data set without the images that the audit could not read."""
    return dataset.without([i for i, name in enumerate(dataset.names) if name in record["unreadable"]])


def _check_same(run_dir: Path, earlier: dict, dataset: Dataset) -> bool:
    """Return whether the images are known to be those of the newest checkpoint. Raises ValueError: they are not."""
    trained = None
    for folder in list_checkpoints(run_dir):
        with contextlib.suppress(BrokenArtefact):  # reported when the checkpoint is loaded
            trained = read_record(folder)
    if trained is None or "dataset" not in trained:  # imported checkpoints record no data set
        return False
    dataset = _readable(dataset, earlier)
    same = same_images(dataset, trained["dataset"], trained.get("dataset_contents"))
    then, now = (list(record["images_per_class"].items()) for record in (earlier, label_facts(dataset, 1)))
    if same or same is None and then == now:
        return bool(same)
    what, advice = "with equal counts", "bind the images that it was trained on, or choose another --run_dir"
    if then != now:
        what = f"{_counts(then)} then, {_counts(now)} now"
    if then != now and sorted(then) == sorted(now) and "numeric_order" in inspect.signature(type(dataset)).parameters:
        advice = f"bind {type(dataset).__name__}.numeric_order = False to order the classes as they were then"
    raise ValueError(f"train.dataset differs from the data that {run_dir} was trained on ({what}): {advice}")


def _counts(images_per_class: list[tuple[str, int]]) -> str:
    """Return a text such as '1,200 images in 3 classes (ant, bee, cow)'."""
    names, counts = zip(*images_per_class, strict=True)
    return f"{sum(counts):,} images in {len(names)} classes ({few(names, 4)})"
