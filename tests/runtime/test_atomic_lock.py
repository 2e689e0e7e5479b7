"""One process at a time in a run folder."""

import subprocess
import sys
import textwrap

import pytest

from redi.runtime.atomic import only_process

HOLDER = """
    import sys
    from pathlib import Path
    from redi.runtime.atomic import only_process
    with only_process(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refuse(run_dir):
    with pytest.raises(ValueError, match="another process is training in .*: choose another --run_dir"):
        with only_process(run_dir):
            raise AssertionError("the block must not start")


def test_a_second_process_is_refused_until_the_first_ends(holder, tmp_path):
    refuse(tmp_path)
    holder.communicate()
    assert holder.returncode == 0
    with only_process(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.kill()
    holder.wait()
    with only_process(tmp_path):
        pass


def test_a_second_holder_in_the_same_process_is_refused(tmp_path):
    with only_process(tmp_path):
        refuse(tmp_path)
        refuse(tmp_path)  # to be refused does not free what another holds


def test_the_lock_is_free_after_an_exception(tmp_path):
    with pytest.raises(KeyError), only_process(tmp_path):
        raise KeyError
    with only_process(tmp_path):
        pass


def test_folders_do_not_lock_each_other(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with only_process(tmp_path / "a"), only_process(tmp_path / "b"):
        pass
