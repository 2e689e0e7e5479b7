"""The config.gin of a folder may import only modules of redi and trusted modules."""

import subprocess
import sys
from pathlib import Path

import gin.config_parser
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from redi import command_line, sweep
from redi.core import config
from redi.core.configurables import import_all
from redi.runtime import trusted_imports

import_all()


@pytest.fixture
def dangerous(tmp_path, monkeypatch) -> Path:
    """A file that is created when the module `dangerous` or a submodule is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "dangerous").mkdir()
    (tmp_path / "dangerous" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "dangerous" / "part.py").touch()
    (tmp_path / "other.gin").write_text("import dangerous\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "ran"
    for name in ("dangerous", "dangerous.part"):
        sys.modules.pop(name, None)


def found(folder: Path, text: str) -> Path:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "config.gin").write_bytes(text.encode())
    return folder / "run" / "config.gin"


STATEMENTS = {
    "import dangerous": "'import dangerous'.*--plugin=dangerous",
    "import dangerous.part": "'import dangerous.part'.*--plugin=dangerous",
    "import dangerous as redi": "'import dangerous as redi'",
    "from dangerous import part": "'from dangerous import part'.*--plugin=dangerous",
    "import os": "'import os'.*--plugin=os",
    "import redi_evil": "'import redi_evil'",
    "import redidangerous.part": "'import redidangerous.part'",
    "  import dangerous": "'import dangerous'",
    "import \\\n  dangerous": "'import dangerous'",
    "\\\nimport dangerous": "'import dangerous'",
    "import dangerous # of ours": "'import dangerous'",
    "A = 1\r\nimport dangerous\r\n": "'import dangerous'",
    "A = 1\rimport dangerous": "'import dangerous'",
    "A = (1,\n 2)\nimport dangerous": "'import dangerous'",
    "\x0cimport dangerous": "'import dangerous'",
    "include 'other.gin'": "include 'other.gin'.*--gin_file=.*config.gin",
    "include '/etc/passwd'": "include '/etc/passwd'",
    "include 'oth' 'er.gin'": "include 'other.gin'",
    "from __gin__ import dynamic_registration\nimport redi.runs.hub\nA = @redi.runs.hub.tempfile.mkdtemp()": (
        "__gin__.*pass it as"
    ),
    "from __gin__ import dynamic_registration": "dynamic_registration'.*--gin_file=",
    **dict.fromkeys(("import", "A = import", "as import", "'\"", "A = (1,", "\x00"), "config.gin is not a gin file: "),
    "A = 1\nimport dangerous\nA =": "config.gin is not a gin file: ",
    "A = " + 2000 * "(": "config.gin is not a gin file: ",
}


@pytest.mark.parametrize("text", STATEMENTS)
def test_what_nobody_has_named_is_refused_and_does_not_run(text, dangerous, tmp_path):
    with pytest.raises(ValueError, match=STATEMENTS[text]):
        config.parse([], saved=[found(tmp_path, text)])
    assert not dangerous.exists()


def test_the_same_file_may_import_it_once_it_is_named(dangerous, tmp_path):
    path = found(tmp_path, "import dangerous.part\n")
    trusted_imports.trust("dangerous")
    config.parse([], saved=[path])
    assert dangerous.exists()


def test_naming_a_file_is_naming_what_it_imports(dangerous, tmp_path):
    config.parse([found(tmp_path, "import dangerous.part\n")])
    assert dangerous.exists()
    config.parse([], saved=[found(tmp_path, "import dangerous.part\n")])  # what was saved of it
    with pytest.raises(ValueError, match="import dangerous.other"):
        config.parse([], saved=[found(tmp_path, "import dangerous.other\n")])


# ---- a user's own runs, by a record in the user's home


@pytest.fixture
def own(dangerous, tmp_path, monkeypatch) -> Path:
    """A configuration written by a run of this user, as seen by a later process."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "run" / "config.gin"
    path.parent.mkdir()
    trusted_imports.write(path, "import dangerous.part\nPCA.rank = 2\n")
    return path


def refused(path: Path, dangerous: Path) -> bool:
    with pytest.raises(ValueError, match="'import dangerous.part'.*--plugin=dangerous"):
        config.parse([], saved=[path])
    return not dangerous.exists()


def test_the_same_text_elsewhere_is_not_ones_own(own, dangerous, tmp_path):
    copy = tmp_path / "copy" / "config.gin"  # a stranger's folder may hold the text that a published gin file gives
    copy.parent.mkdir()
    copy.write_bytes(own.read_bytes())
    assert refused(copy, dangerous)


def test_a_run_of_ones_own_imports_what_it_says(own, dangerous):
    config.parse([], saved=[own])
    assert dangerous.exists() and "dangerous.part" in trusted_imports.trusted  # also for the processes of a sweep


def test_an_edited_configuration_is_not_ones_own(own, dangerous):
    own.write_text(own.read_text().replace("rank = 2", "rank = 3"))
    assert refused(own, dangerous)


def test_what_another_user_ran_is_not_ones_own(own, dangerous, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home of another"))
    assert refused(own, dangerous)


def test_a_folder_of_hashes_that_others_may_write_to_counts_for_nothing(own, dangerous, tmp_path):
    (tmp_path / "state" / "redi" / "configurations").chmod(0o777)
    assert refused(own, dangerous)


def test_only_its_user_may_write_to_the_folder_of_hashes(own, tmp_path):
    assert (tmp_path / "state" / "redi" / "configurations").stat().st_mode & 0o777 == 0o700


def test_a_configuration_without_plug_ins_leaves_nothing_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    trusted_imports.write(tmp_path / "config.gin", "import redi.data.audit\nPCA.rank = 2\n")
    assert not (tmp_path / "state").exists()


def test_without_a_place_in_the_home_the_flag_is_asked_for_as_before(own, dangerous, tmp_path, monkeypatch, caplog):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a file"))
    trusted_imports.write(own, "import dangerous.part\n")
    (line,) = caplog.messages
    assert line.startswith(f"cannot record {own} as written by you") and "--plugin" in line
    assert refused(own, dangerous)


def test_bindings_are_the_users(dangerous):
    config.parse([], ["import dangerous"])
    assert dangerous.exists()


def test_modules_of_redi_may_be_imported(tmp_path):
    config.parse([], saved=[found(tmp_path, "import redi.data.audit\nfrom redi.core import resize\nA = 'import os'\n")])


@pytest.mark.parametrize("name", ["", "my lab", "my_lab.", "os; import x", "__gin__", "../x"])
def test_what_is_no_module_cannot_be_named(name):
    with pytest.raises(ValueError, match="must be the name of a Python module"):
        trusted_imports.trust(name)


def test_the_environment_names_plugins():
    code = "from redi.runtime import trusted_imports; print(sorted(trusted_imports.trusted))"
    done = subprocess.run([sys.executable, "-c", code], env={"REDI_PLUGINS": "a,b.c"}, capture_output=True, text=True)
    assert done.stdout == "['a', 'b.c']\n"


def test_a_sweep_that_lies_in_a_folder_submits_nothing(tmp_path):
    text = "sweep.grid = {'PCA.rank': [1]}\nsweep.launcher = 'slurm'\nsweep.slurm = {'slurm_setup': ['touch ran']}\n"
    path = found(tmp_path, text)
    flags.FLAGS(["redi.sweep"])
    with pytest.raises(
        ValueError, match="Slurm options can contain shell commands. Read the file.*--gin_file=.*config.gin"
    ):
        sweep.main(path.parent)


def test_names_of_files_do_not_steer_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_log_to_stderr", lambda: None)  # other tests look at the log

    def main():
        raise ValueError("no file \x1b[2J\x1b]0;owned\x07.png\n  in this folder")

    flags.FLAGS(["redi"])
    command_line.program(main)
    assert command_line.exit_status(main, ["redi"]) == 1
    assert "no file \ufffd[2J\ufffd]0;owned\ufffd.png\n  in this folder" in capsys.readouterr().err


# ---- what gin would import of a text that is let in


class Nothing:
    """Ignore references and macros."""

    def configurable_reference(self, name, evaluate):
        return None

    def macro(self, name):
        return None


PIECES = st.sampled_from(
    "import from include as redi os dangerous . .. / = : ( ) [ ] { } , ; @ % ' \" ''' # \\ \\\n \n \n \r \t \x0c A b 1 "
    "-1 'x.gin' __gin__ dynamic_registration redi.runs.hub é \ufeff \u2028 \x85 \xa0 ｉｍｐｏｒｔ".split(" ")
    + [" ", "  ", "\n  ", "import ", "from ", "\nimport ", "\ninclude 'x'", " import ", "\nA = ", "\nA:\n  b = 1\n"]
)


@pytest.fixture(scope="module")
def any_path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("any") / "config.gin"


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_gin_finds_no_import_that_was_overlooked(any_path, text):
    any_path.write_bytes(text.encode())
    try:
        file = trusted_imports.read(any_path)
    except ValueError:
        return
    for statement in gin.config_parser.ConfigParser(file, Nothing()):
        assert not isinstance(statement, gin.config_parser.IncludeStatement)
        if isinstance(statement, gin.config_parser.ImportStatement):
            assert statement.module == "redi" or statement.module.startswith("redi.")
