"""benchmarks/gpu.sh: every part leaves its result, whatever happens to the others and to the machine."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
PARTS = re.findall(r"^part (\w+)", SCRIPT.read_text(), re.MULTILINE)

# A python that writes a result for every part but for one, which fails, and one, which never ends.
STUB = """#!/bin/sh
for out; do :; done
case $out in
    *sampling_xl2*) exit 3 ;;
    *train_b2*) echo reached >"$REACHED"; sleep 1000 ;;
esac
echo '{"rows": []}' >"$out"
"""


def start(*arguments, **environment):
    return subprocess.Popen(
        ["bash", SCRIPT, *map(str, arguments)], env=os.environ | environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    os.mkfifo(tmp_path / "reached")
    return {"PYTHON": str(path), "REACHED": str(tmp_path / "reached")}


def status(folder, part):
    return json.loads((folder / f"{part}.status.json").read_text())["exit_status"]


def test_the_most_valuable_parts_come_first():
    assert PARTS[:6] == ["attention", "train_xl2", "sampling_xl2", "train_b2", "sampling_b2", "quality"]


RUN_ALL = """
import runpy, sys
for line in open(sys.argv.pop()):
    sys.argv = line.split()
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_part_runs_on_a_cpu_and_writes_valid_json(tmp_path, python):
    (tmp_path / "python").write_text("#!/bin/sh\necho $@ >>$COMMANDS\n")  # notes them for one real python
    (tmp_path / "python").chmod(0o755)
    commands = tmp_path / "commands"
    run = start("--quick", tmp_path, PYTHON=str(tmp_path / "python"), COMMANDS=str(commands))
    _, errors = run.communicate()
    assert run.returncode == 0 and {status(tmp_path, part) for part in PARTS} == {0}, errors
    environment = os.environ | {"PYTHONPATH": f"{SCRIPT.parents[1]}:{SCRIPT.parent}"}
    done = python("-c", RUN_ALL, commands, env=environment)
    assert done.returncode == 0, done.stderr
    for part in PARTS:
        rows = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
        assert rows and not any("failed" in row for row in rows)


def test_a_run_that_is_killed_keeps_what_is_finished(tmp_path, stub):
    run = start(tmp_path / "out", **stub)
    Path(stub["REACHED"]).read_text()  # waits until the part that never ends has begun
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    parts = PARTS[: PARTS.index("train_b2")]
    assert [status(tmp_path / "out", part) for part in parts] == [0, 0, 3]
    for part in ("attention", "train_xl2"):
        assert json.loads((tmp_path / "out" / f"{part}.json").read_text()) == {"rows": []}


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path, stub):
    run = start(tmp_path, SECONDS_IN_ALL="0", **stub)
    run.communicate()
    assert run.returncode == 0
    assert {status(tmp_path, part) for part in PARTS} == {124}
    assert not any((tmp_path / f"{part}.json").exists() for part in PARTS)


def test_a_folder_for_the_results_must_be_named():
    run = start(OUT="")
    _, errors = run.communicate()
    assert run.returncode != 0 and "a folder for the results" in errors
