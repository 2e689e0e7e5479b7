"""Prints every registered component with its arguments, defaults and first docstring line.

python -m redi.components                             those of the library
python -m redi.components --gin_file=my_lab.gin       and those of the modules that the file imports
"""

import importlib
import inspect
from collections.abc import Callable

from redi import program

KINDS = (
    "redi.data.datasets",
    "redi.models.autoencoders",
    "redi.models.encoders",
    "redi.models.reducers",
    "redi.fusion",
    "redi.guidance",
    "redi.core.processes",
    "redi.core.samplers",
    "redi.core.ema",
    "redi.core.parallel",
)


def import_all() -> None:
    """Imports every kind of component and every function that gin can configure."""
    for module in (*KINDS, "redi.core.trainer", "redi.core.profiling", "redi.data.audit", "redi.data.preparation"):
        importlib.import_module(module)
    for module in ("sampling", "evaluate", "monitor", "queries", "report"):
        importlib.import_module(f"redi.evaluation.{module}")
    importlib.import_module("redi.sweeps.sweep")


def training_roots() -> list[Callable]:
    """The configurable functions whose bindings decide what is learned."""
    from redi.core.trainer import train
    from redi.data.audit import audit
    from redi.data.preparation import prepare

    return [train, audit, prepare]


def roots() -> list[Callable]:
    """All configurable functions that programs call."""
    from redi.core.profiling import profile
    from redi.evaluation.evaluate import evaluate
    from redi.evaluation.queries import query
    from redi.evaluation.report import report
    from redi.evaluation.sampling import sample
    from redi.sweeps.sweep import sweep

    return [*training_roots(), sample, evaluate, query, report, sweep, profile]


def table() -> str:
    """The text that the program prints."""
    import_all()
    from redi.core.registry import registries

    parts = []
    for kind, registry in sorted(registries.items()):
        parts.append(f"{kind}")
        for name in registry:
            component = registry[name]
            first_line = (inspect.getdoc(component) or "").partition("\n")[0]
            arguments = [
                _argument(parameter)
                for parameter in inspect.signature(component).parameters.values()
                if parameter.name not in registry.runtime and parameter.kind is not parameter.VAR_KEYWORD
            ]
            parts.append(f"  @{kind}.{name}({', '.join(arguments)})\n      {first_line}")
        parts.append("")
    return "\n".join(parts)


def _argument(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def main(_run_dir) -> None:
    from redi.core import config

    import_all()
    config.parse(program.FLAGS.gin_file, program.FLAGS.gin_bindings)
    print(table())


def console() -> None:
    program.run(main, __doc__, in_run_dir=False)


if __name__ == "__main__":
    console()
