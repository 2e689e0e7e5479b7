"""Flags, start-up and error reporting shared by all command-line programs."""

import faulthandler
import inspect
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import app, flags

from redi import __version__

FLAGS = flags.FLAGS
log = logging.getLogger("redi")

flags.DEFINE_multi_string(
    "gin_file", [], "gin file, searched in the current folder, then among the shipped ones; may be repeated."
)
flags.DEFINE_multi_string("gin_bindings", [], "A binding such as 'PCA.rank = 4'; overrides gin files; may be repeated.")
flags.DEFINE_string("run_dir", None, "Folder of the run; default: runs/<name of the first gin file>.")
flags.DEFINE_string("trained_dir", None, "Folder to read checkpoints from; default: --run_dir.")
flags.DEFINE_multi_string(
    "plugin", [], "Python package or module that the config.gin in a run folder may import; may be repeated."
)
flags.DEFINE_bool("dry_run", False, "Check data, shapes and cost; stop before the first step and write no results.")
flags.DEFINE_bool("quiet", False, "Print warnings, errors and results only; no progress bars.")
flags.DEFINE_bool("version", False, "Print the version.")
flags.DEFINE_bool("traceback", False, "Print the Python traceback of an error.")
# Control characters, in a file name for example, must not reach the terminal. Tab and line feed are harmless.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
NO_RUN = "pass a gin file with --gin_file, or the folder of an existing run with --run_dir"


def program(
    main: Callable, *, dry_run: bool = False, positional: str = "run_dir", default_folder: str | None = None,
    usage: str | None = None,
) -> Callable[[], None]:  # fmt: skip
    """Return the console script of a program. If its module is run with `python -m`, run it immediately.

    Args:
        main: takes no folder, one run folder, or two.
        dry_run: whether the program supports --dry_run. If not, the flag raises an error.
        positional: the flag that a positional argument sets.
        default_folder: the folder if neither an argument nor --run_dir names one.
        usage: advice for an unexpected positional argument; default: a general text.
    """
    vars(main).update(dry_run=dry_run, positional=positional, default_folder=default_folder, usage=usage)
    if main.__module__ == "__main__":
        run(main)
    return partial(run, main)


def run(main: Callable) -> None:
    """Run a program's `main` under absl, then exit the process.

    Exit status: 0 success, 1 an error explained on stderr, 128 + signal number (130 Ctrl-C, 143 SIGTERM: `Stopped`).
    """
    _open_closed_streams()
    _let_waiting_threads_sleep()
    faulthandler.enable()  # truncating a memory-mapped file kills the process without an exception
    if os.getcwd() not in sys.path:  # to import plug-ins from the current folder; last, so that they shadow no package
        sys.path.append(os.getcwd())
    # For --help, absl reads the docstring and flags of __main__. In a console script, that is not the program's module.
    sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
    for flag in [*FLAGS.get_flags_for_module(__name__), *FLAGS.get_flags_for_module(main.__module__)]:
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    if "--version" in sys.argv[1:]:
        sys.exit(print(f"redi {__version__}"))
    if "--help" in sys.argv[1:]:
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)  # absl's own --help exits with status 1
    app.run(lambda argv: sys.exit(exit_status(main, argv)))


def parse(run_dir: Path):
    """Parse `--gin_file` (default: the run's config.gin) and `--gin_bindings`; return the `Experiment`, write nothing.

    Raises ValueError: the configuration is invalid, or there is neither a gin file nor a run.
    """
    from redi.core import config
    from redi.core.configurables import import_all
    from redi.core.registry import entry_points
    from redi.runs.experiment import Experiment

    import_all()
    name_plugins()
    saved = [path for folder in (run_dir, trained_dir(run_dir)) if (path := folder / "config.gin").exists()]
    if not FLAGS.gin_file and not saved:
        raise ValueError(f"{run_dir} holds no run: {NO_RUN}")
    # A gin file passed by the user may import any module; a saved config.gin only those in --plugin.
    config.parse(FLAGS.gin_file, FLAGS.gin_bindings, saved=[] if FLAGS.gin_file else saved[:1])
    if unused := config.without_effect(entry_points, among=config.of_user):
        log.warning("unused bindings, which no component in use refers to: %s", ", ".join(unused))
    if config.is_bound("sweep.grid") or config.is_bound("sweep.points"):
        log.warning("this is a sweep file; sweep.grid and sweep.points are ignored here. redi.sweep runs the points")
    return Experiment(run_dir, trained_dir(run_dir), dry_run=FLAGS.dry_run)


def configure(run_dir: Path, *, trains: bool):
    """Parse the configuration and claim the run folder: `parse`, then `Experiment.claim`."""
    experiment = parse(run_dir)
    experiment.claim(trains=trains)
    return experiment


def name_plugins() -> None:
    """Let saved configurations import the modules in --plugin. Raises ValueError: not a module name."""
    from redi.runtime import trusted_imports

    trusted_imports.trust(*FLAGS.plugin)


def trained_dir(run_dir: Path) -> Path:
    """Return the folder to read checkpoints from: --trained_dir, or `run_dir`."""
    return Path(FLAGS.trained_dir) if FLAGS.trained_dir else run_dir


def exit_status(main: Callable, argv: list[str]) -> int:
    """Run `main` with the folders in `argv` or the flags, report errors on stderr; return the exit status."""
    from redi.runtime.interrupt import DryRunEnd, log_signal
    from redi.runtime.paths import complete_account, local_path

    complete_account()
    _log_to_stderr()
    options = vars(main)  # see `program`
    try:
        num_folders, others, first = len(inspect.signature(main).parameters), [], FLAGS[options["positional"]]
        num_allowed = max(num_folders, options["positional"] != "run_dir")
        if 1 < len(argv) <= 1 + num_allowed and not first.value and not argv[1].endswith(".gin"):
            argv, (first.value, *others) = argv[:1], argv[1:]
        if len(argv) > 1:
            allowed = "one run folder" if num_folders < 2 else f"{num_folders} run folders"
            advice = f"only {allowed} may be passed without a flag; gin files need --gin_file, see --help"
            raise ValueError(f"unexpected argument {argv[1]!r}: {options['usage'] or advice}")
        if FLAGS.dry_run and not options["dry_run"]:
            raise ValueError("only prepare, train, run, sample, evaluate and sweep support --dry_run: drop it")
        for name in ("run_dir", "trained_dir"):
            if folder := FLAGS[name].value:
                FLAGS[name].value = str(local_path(folder))
        with log_signal("stopping after the current operation; finished work is kept"):
            main(*([_run_dir(options["default_folder"]), *map(local_path, others)] if num_folders else []))
        sys.stdout.flush()
        return 0
    except DryRunEnd:
        return 0
    except KeyboardInterrupt as stop:  # also trainer.Stopped
        message = str(stop) or "interrupted; finished work is kept"
        print(f"{message}; rerun the same command to continue", file=sys.stderr)
        return 128 + getattr(stop, "signal_number", 2)
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE
        if FLAGS.traceback:
            raise
        # gin adds a line for every configurable on the call stack. Only those in a scope say which object failed.
        text = re.sub(r"\n\s*In call to configurable '\S+' \(<.*?>\)(?=\n|$)", "", str(error))
        text = re.sub(r"In call to configurable '(\S+)' \(<.*?>\) in scope '(\S+)'", r"in @\2/\1", text)
        text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
        if re.search(r"\[Errno (1|13|30)\]|No usable temporary directory", text):
            text += "\n  no permission for that path: set --run_dir (results) or one of the variables REDI_CACHE "
            text += "(cache), HF_HOME, TORCH_HOME (downloaded weights) and TMPDIR (temporary files) to another folder"
        print(f"{_rank()}error: {text}\n(--traceback shows where it was raised)", file=sys.stderr)
        return 1


def _run_dir(default: str | None = None) -> Path:
    if folder := FLAGS.run_dir or default:
        return Path(folder)
    if FLAGS.gin_file:
        return Path("runs") / Path(FLAGS.gin_file[0]).stem
    raise ValueError(NO_RUN)


def _open_closed_streams() -> None:
    """Connect a closed stdin, stdout or stderr (`2>&-`) to /dev/null, so that no opened file gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


def _let_waiting_threads_sleep() -> None:
    """Let threads that wait for one another spin for microseconds, not milliseconds, unless the user has decided.

    GNU OpenMP reads the variable when torch is imported; child processes inherit it. With the default of 300,000 turns,
    threads beside other work spin on the core that the thread they wait for needs. 1,000 turns are enough on free cores
    (benchmarks/threads.py). Results do not depend on it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _reader_is_gone() -> bool:
    """Return whether stdout was closed, as in `redi.components | head`. If so, drop the rest of the output."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if gone := any(event & select.POLLERR for _, event in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


class _AboveBars(logging.Handler):
    """Print log lines above progress bars, which are on stderr too."""

    def emit(self, record: logging.LogRecord) -> None:
        from redi.runtime.progress import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _rank() -> str:
    """Return the prefix of messages: 'rank 3: ', or '' for rank 0."""
    rank = os.environ.get("RANK") or ("SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_PROCID"))
    return f"rank {rank}: " if rank and rank != "0" else ""


def _log_to_stderr() -> None:
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s {_rank()}%(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if _rank() or FLAGS.quiet else logging.INFO)  # rank 0 reports for all
    if FLAGS.quiet:
        os.environ["TQDM_DISABLE"] = "1"  # see `progress`; child processes inherit it
    for chatty in ("matplotlib", "PIL", "timm"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
