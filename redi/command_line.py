"""What all command-line programs share: flags, start-up, and how errors reach the user."""

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
    "gin_file", [], "gin file, looked up in the current folder and then among the shipped ones; may be repeated."
)
flags.DEFINE_multi_string("gin_bindings", [], "One binding, as in 'PCA.rank = 4'; may be repeated; wins over files.")
flags.DEFINE_string("run_dir", None, "The run's folder; default: runs/<name of the first gin file>.")
flags.DEFINE_string("trained_dir", None, "The folder whose checkpoints are used, where it is not the run's own.")
flags.DEFINE_multi_string(
    "plugin", [], "Python package, or module, that the config.gin of a run's folder may import; may be repeated."
)
flags.DEFINE_bool("dry_run", False, "All that comes before the first step (audit, shapes, cost), and write no results.")
flags.DEFINE_bool("quiet", False, "Warnings, errors and results only; no progress bars.")
flags.DEFINE_bool("version", False, "Print the version.")
flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")
# A file's name must not steer the terminal; tab and line feed are harmless.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def program(main: Callable, *, dry_run: bool = False, positional: str = "run_dir") -> Callable[[], None]:
    """The console script of a program; where its module is the script (`python -m`), it runs at once.

    Args:
        main: takes the folder of a run, of two, or nothing.
        dry_run: whether it heeds --dry_run; else that is refused.
        positional: the flag that an argument without a flag's name is meant for.
    """
    main.dry_run, main.positional = dry_run, positional
    if main.__module__ == "__main__":
        run(main)
    return partial(run, main)


def run(main: Callable) -> None:
    """Run a program's `main` under absl; end the process.

    Exit status: 0 done, 1 an error that stderr explains, 128 + a signal (130 Ctrl-C, 143 SIGTERM; see `Stopped`).
    """
    _open_closed_streams()
    faulthandler.enable()  # a file that is cut short under a memory map ends a process without an exception
    if os.getcwd() not in sys.path:  # plug-ins in the current folder are found; last, so that they replace no package
        sys.path.append(os.getcwd())
    # absl shows the text and the flags of the main module for --help, which of a console script is another one.
    sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
    for flag in [*FLAGS.get_flags_for_module(__name__), *FLAGS.get_flags_for_module(main.__module__)]:
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    if "--version" in sys.argv[1:]:
        sys.exit(print(f"redi {__version__}"))
    if "--help" in sys.argv[1:]:
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)  # absl by itself ends with status 1
    app.run(lambda argv: sys.exit(exit_status(main, argv)))


def parse(run_dir: Path):
    """Parse `--gin_file` (default: the run's own) and `--gin_bindings` -> the `Experiment`; write nothing.

    Raises ValueError: mistakes in the configuration, or neither a file nor a run.
    """
    from redi.core import config
    from redi.core.configurables import import_all
    from redi.core.registry import entry_points
    from redi.runs.experiment import Experiment

    import_all()
    name_plugins()
    known = [path for folder in (run_dir, trained_dir(run_dir)) if (path := folder / "config.gin").exists()]
    if not FLAGS.gin_file and not known:
        what = "name a gin file with --gin_file, or the folder of an earlier run with --run_dir"
        raise ValueError(f"{run_dir} holds no run: {what}")
    # A file that was named may import what it says; one that lies in the folder, what --plugin names.
    config.parse(FLAGS.gin_file, FLAGS.gin_bindings, found=[] if FLAGS.gin_file else known[:1])
    if unused := config.without_effect(entry_points, among=config.of_user):
        log.warning("unused bindings, which no component in use refers to: %s", ", ".join(unused))
    if config.is_bound("sweep.grid") or config.is_bound("sweep.points"):
        log.warning("this is a sweep file; only what all points share is used here. redi.sweep runs the points")
    return Experiment(run_dir, trained_dir(run_dir), dry_run=FLAGS.dry_run)


def configure(run_dir: Path, *, trains: bool):
    """`parse`, then `Experiment.claim`."""
    experiment = parse(run_dir)
    experiment.claim(trains=trains)
    return experiment


def name_plugins() -> None:
    """Lets saved configurations import what --plugin names. Raises ValueError: no name of a module."""
    from redi.runtime import trusted_imports

    trusted_imports.name(*FLAGS.plugin)


def trained_dir(run_dir: Path) -> Path:
    """The folder whose checkpoints are used: --trained_dir, or the run's own."""
    return Path(FLAGS.trained_dir) if FLAGS.trained_dir else run_dir


def exit_status(main: Callable, argv: list[str]) -> int:
    from redi.runtime.interrupt import DryRunEnd, heard_at_once
    from redi.runtime.paths import complete_account, local_path

    complete_account()
    _log_to_stderr()
    try:
        folders, others, first = len(inspect.signature(main).parameters), [], FLAGS[main.positional]
        num_allowed = max(folders, main.positional != "run_dir")
        if 1 < len(argv) <= 1 + num_allowed and not first.value and not argv[1].endswith(".gin"):
            argv, (first.value, *others) = argv[:1], argv[1:]
        if len(argv) > 1:
            only = "the folder of a run is the only argument" if folders < 2 else f"it takes {folders} folders alone"
            what = f"{only} without a flag (gin files: --gin_file), see --help"
            raise ValueError(f"unexpected argument {argv[1]!r}: {getattr(main, 'usage', what)}")
        if FLAGS.dry_run and not main.dry_run:
            raise ValueError("--dry_run is for prepare, train, run, sample, evaluate and sweep")
        for name in ("run_dir", "trained_dir"):
            FLAGS[name].value = FLAGS[name].value and str(local_path(FLAGS[name].value))
        with heard_at_once("this ends with the operation that runs now; what was finished is kept"):
            default = getattr(main, "default_folder", None)
            main(*([_run_dir(default), *map(local_path, others)] if folders else []))
        sys.stdout.flush()
        return 0
    except DryRunEnd:
        return 0
    except KeyboardInterrupt as stop:  # also trainer.Stopped
        message = str(stop) or "interrupted; what was finished is kept"
        print(f"{message}; the same command goes on from there", file=sys.stderr)
        return 128 + getattr(stop, "signal_number", 2)
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE
        if FLAGS.traceback:
            raise
        # gin adds a line for every call that the error went through; those in a scope tell which of two objects.
        text = re.sub(r"\n\s*In call to configurable '\S+' \(<.*?>\)(?=\n|$)", "", str(error))
        text = re.sub(r"In call to configurable '(\S+)' \(<.*?>\) in scope '(\S+)'", r"in @\2/\1", text)
        text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
        if re.search(r"\[Errno (1|13|30)\]|No usable temporary directory", text):
            text += "\n  this user may not use that path: --run_dir says where results go, and variables REDI_CACHE "
            text += "(the cache), HF_HOME and TORCH_HOME (downloaded weights) and TMPDIR where everything else does"
        print(f"{_rank()}error: {text}\n(--traceback shows where this arose)", file=sys.stderr)
        return 1


def _run_dir(default: str | None = None) -> Path:
    if folder := FLAGS.run_dir or default:
        return Path(folder)
    if FLAGS.gin_file:
        return Path("runs") / Path(FLAGS.gin_file[0]).stem
    raise ValueError("name a gin file with --gin_file, or the folder of an earlier run with --run_dir")


def _open_closed_streams() -> None:
    """Sends to /dev/null what stdin, stdout or stderr would take where they are closed (`2>&-`): else the next file
    that is opened would get their number, and what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


def _reader_is_gone() -> bool:
    """Whether it is stdout that broke, as in `redi.components | head`; the rest of the output is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if gone := any(event & select.POLLERR for _, event in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


class _AboveBars(logging.Handler):  # a progress bar is on stderr too
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _rank() -> str:
    """'rank 3: ' in front of what further processes say; '' for the first."""
    rank = os.environ.get("RANK") or ("SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_PROCID"))
    return f"rank {rank}: " if rank and rank != "0" else ""


def _log_to_stderr() -> None:
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s {_rank()}%(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if _rank() or FLAGS.quiet else logging.INFO)  # the first tells what all do
    if FLAGS.quiet:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported; also by processes that this one starts
    for chatty in ("matplotlib", "PIL", "timm"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
