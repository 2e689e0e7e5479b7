"""Python programs in processes of their own that need not import torch: a process that has imported it forks them.

A program sees what a new interpreter gives it: arguments, folder, environment, search path, standard streams. It does
not see which modules a program imports, or what is read when torch is: tests of these start an interpreter.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.hf_storage", "torch.utils.tensorboard",
    "sklearn.datasets", "redi.command_line", "redi.runs.stages", "redi.runs.job",
)  # fmt: skip


class WarmPython:
    """Called as subprocess.run is, without the interpreter: ('-m', module, ...), ('-c', code, ...) or (file, ...)."""

    def __init__(self):
        self.server = None

    def __enter__(self) -> "WarmPython":
        return self

    def __exit__(self, *_) -> None:
        if self.server is not None:
            self.server.communicate()
            self.server = None

    def __call__(self, *arguments, cwd=None, env=None) -> subprocess.CompletedProcess:
        if self.server is None:
            command = [sys.executable, __file__]
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            environment["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.server = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        with tempfile.TemporaryDirectory() as folder:
            request = {"arguments": list(map(str, arguments)), "cwd": str(cwd or os.getcwd()), "folder": folder}
            request["env"] = dict(os.environ if env is None else env)
            try:
                self.server.stdin.write(json.dumps(request) + "\n")
                self.server.stdin.flush()
                status = int(self.server.stdout.readline())
            except BaseException:  # a time limit, Ctrl-C: neither the program nor its answer may outlive the test
                os.killpg(self.server.pid, signal.SIGKILL)
                self.__exit__()
                raise
            out, err = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(request["arguments"], status, out, err)


def serve() -> list[str]:
    """Fork for every request; return in the child, with its arguments."""
    search_path = sys.path[1:]
    sys.path[0] = str(ROOT)
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("redi.core.configurables").import_all()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            become(request, search_path)
            return request["arguments"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return []


def become(request: dict, search_path: list[str]) -> None:
    """Replace streams, folder, environment and search path by those of the request."""
    files = [os.devnull, *(os.path.join(request["folder"], name) for name in ("stdout", "stderr"))]
    for stream, file in enumerate(files):
        opened = os.open(file, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *search_path]
    importlib.invalidate_caches()
    tempfile.tempdir = None


def run(first: str, *others: str) -> None:
    """Run a program as the interpreter does."""
    if first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = list(others)
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        sys.argv = [first, *others]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    if arguments := serve():
        run(*arguments)
