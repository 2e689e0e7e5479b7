"""The audit of a run's training data, stored beside the run."""

import contextlib
import inspect
import json
import logging
from pathlib import Path

from redi.core import config
from redi.data.audit import AuditError, audit, describe, label_facts
from redi.data.datasets import Dataset, datasets
from redi.runtime.artefact import read_record, write_json
from redi.runtime.atomic import stamp
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.checksums import BrokenArtefact, sealed, unsealed
from redi.runtime.shared_work import complete

log = logging.getLogger("redi")


def audited(run_dir: Path) -> Dataset:
    """The training data less unreadable images; audited once per run folder and data set.

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

    at_start = stamp(path)
    if _was_trained(run_dir) and "passed" in (earlier := _stored(path) or {}):
        known = earlier["passed"]["fingerprint"]
        if known != asked["fingerprint"] and _check_same(earlier, dataset, path):
            asked["fingerprint"] = known

    def stored() -> dict | None:
        """What the audit found; a refusal counts for those who waited for it, and a new start looks again."""
        record = _stored(path) or {}
        refused = record.get("refused_for") == asked and stamp(path) != at_start
        return record if record.get("passed") == asked or refused else None

    def look() -> None:
        try:
            record = config.call(audit, dataset=dataset, batch_size=batch_size)[1] | {"passed": asked}
            record["content_fingerprint"] = dataset.content_fingerprint()
        except AuditError as error:
            record = error.record | {"refused_for": asked}
        write_json(path, sealed(record))
        print(describe(record), flush=True)

    complete(run_dir / ".audit", finished=lambda: stored() is not None, finish=look)  # by one of all processes
    record = stored()
    if "refused" in record:
        raise AuditError(record["refused"], record)
    return _readable(dataset, record)


def _stored(path: Path) -> dict | None:
    """The record of an audit; None where there is none, and a damaged one is removed."""
    try:
        return dict(unsealed(json.loads(path.read_text()), path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:  # also BrokenArtefact
        log.warning("the images are audited again, for %s is damaged: %s", path, error)
        path.unlink(missing_ok=True)
        return None


def _was_trained(run_dir: Path) -> bool:
    """Whether its model was trained by this library, not imported."""
    for folder in list_checkpoints(run_dir):
        with contextlib.suppress(BrokenArtefact):  # which is reported where it is read
            return "dataset" in read_record(folder)
    return False


def _readable(dataset: Dataset, record: dict) -> Dataset:
    """The data set less the images that an audit found unreadable."""
    return dataset.without([i for i, name in enumerate(dataset.names) if name in record["unreadable"]])


def _check_same(earlier: dict, dataset: Dataset, path: Path) -> bool:
    """Whether the images are known to be those that a run was trained on; False: it did not keep what the files held.

    Raises ValueError where images, classes or labels are others.
    """
    if same := "content_fingerprint" in earlier and earlier["content_fingerprint"] == dataset.content_fingerprint():
        return same
    facts = earlier, label_facts(_readable(dataset, earlier), 1)
    then, now = (list(record["images_per_class"].items()) for record in facts)
    if "content_fingerprint" not in earlier and then == now:
        return False
    what, advice = "the same counts", "bind the images that it was trained on, or choose another --run_dir"
    if then != now:
        what = f"{_counts(then)} then, {_counts(now)} now"
    if then != now and sorted(then) == sorted(now) and "numeric_order" in inspect.signature(type(dataset)).parameters:
        advice = f"bind {type(dataset).__name__}.numeric_order = False, as classes were ordered then"
    raise ValueError(f"{path.parent} was trained on other data than train.dataset now holds ({what}): {advice}")


def _counts(images_per_class: list[tuple[str, int]]) -> str:
    """'1,200 images in 3 classes: ant, bee, cow'."""
    names = [name for name, _ in images_per_class]
    few = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{sum(count for _, count in images_per_class):,} images in {len(names)} classes ({few})"
