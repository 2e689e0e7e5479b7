"""The whole job: prepare, train, sample, evaluate, report; what is done and still holds is not done again.

python -m redi.run --gin_file=digits.gin
"""

import hashlib
import json
import logging
from pathlib import Path

from redi import evaluate, program, report, sample, train

log = logging.getLogger("redi")


def main(run_dir: Path) -> None:
    program.configure(run_dir, trains=True)
    from redi.core import config

    done = _Done(run_dir)
    log.info("--- train")
    train.stage(run_dir)
    for stage, result in ((sample, "samples.png"), (evaluate, "metrics.json")):
        name = stage.__name__.removeprefix("redi.")
        if done.holds(name) and (run_dir / result).exists():
            log.info("--- %s: nothing has changed since it was done", name)
            continue
        log.info("--- %s", name)
        stage.stage(run_dir)
        done.note(name)
    (run_dir / "operative.gin").write_text(config.operative_text())
    log.info("--- report")
    report.stage(run_dir)


class _Done:
    """Which stages were done, and under which configuration and checkpoint: `stages.json` in the run folder."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.path = run_dir / "stages.json"
        self.keys = json.loads(self.path.read_text()) if self.path.exists() else {}

    def holds(self, name: str) -> bool:
        return self.keys.get(name) == self._key()

    def note(self, name: str) -> None:
        from redi.core.artefact import write_json

        self.keys[name] = self._key()
        write_json(self.path, self.keys)

    def _key(self) -> str:
        from redi.components import roots
        from redi.core import config
        from redi.core.checkpoint import list_checkpoints

        state = [config.relevant(config.full_text(), roots()), list_checkpoints(self.run_dir)[-1].name]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def console() -> None:
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
