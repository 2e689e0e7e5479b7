"""The audit of a run's training data, stored beside the run."""

import json
import logging
from pathlib import Path

from redi.core import config
from redi.data.audit import AuditError, audit, describe
from redi.data.datasets import Dataset, datasets
from redi.runtime.artefact import write_json
from redi.runtime.atomic import stamp
from redi.runtime.checksums import sealed, unsealed
from redi.runtime.shared_work import complete

log = logging.getLogger("redi")


def audited(run_dir: Path) -> Dataset:
    """The training data less unreadable images; audited once per run folder and data set."""
    dataset = config.bound("train.dataset")
    if dataset is None:
        raise ValueError("no data set: bind train.dataset, for example = @datasets.ImageFolder()")
    datasets.check(dataset, "train.dataset")
    path = run_dir / "audit.json"
    settings = {name: config.bound(f"audit.{name}", False) for name in ("skip_unreadable", "allow_missing_classes")}
    batch_size = config.bound("train.batch_size", 256)
    asked = {"fingerprint": dataset.fingerprint(), "batch_size": batch_size, **settings}

    at_start = stamp(path)

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
        refused = record.get("refused_for") == asked and stamp(path) != at_start
        return record if record.get("passed") == asked or refused else None

    def look() -> None:
        try:
            record = config.call(audit, dataset=dataset, batch_size=batch_size)[1] | {"passed": asked}
        except AuditError as error:
            record = error.record | {"refused_for": asked}
        write_json(path, sealed(record))
        print(describe(record), flush=True)

    complete(run_dir / ".audit", finished=lambda: stored() is not None, finish=look)  # by one of all processes
    record = stored()
    if "refused" in record:
        raise AuditError(record["refused"], record)
    unreadable = record["unreadable"]
    return dataset.without([i for i, name in enumerate(dataset.names) if name in unreadable])
