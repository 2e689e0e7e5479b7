"""Prints every registered component with its arguments, defaults and first docstring line.

python -m redi.components                             those of the library
python -m redi.components --gin_file=my_lab.gin       and those of the modules that the file imports
"""

import inspect

from redi import command_line


def table() -> str:
    """The text that the program prints."""
    from redi.core.configurables import import_all
    from redi.core.registry import registries

    import_all()

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
    from redi.core.configurables import import_all

    import_all()
    config.parse(command_line.FLAGS.gin_file, command_line.FLAGS.gin_bindings)
    print(table())


def console() -> None:
    command_line.run(main, __doc__, in_run_dir=False)


if __name__ == "__main__":
    console()
