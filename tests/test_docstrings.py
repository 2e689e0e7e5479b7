"""The API reference: every public class and method is documented, and the examples run."""

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import redi

# What researchers import: each public class shows how it is used.
WITH_EXAMPLES = ("core", "fusion", "guidance", "models", "sampling")


def public_classes(module: ModuleType) -> list[type]:
    classes = [value for name, value in vars(module).items() if inspect.isclass(value) and not name.startswith("_")]
    return [cls for cls in classes if cls.__module__ == module.__name__]


NAMES = [found.name for found in pkgutil.walk_packages(redi.__path__, "redi.") if not found.name.endswith("__main__")]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_module_run_and_its_methods_are_documented(name):
    module = importlib.import_module(name)
    needs_example = name.split(".")[1] in WITH_EXAMPLES
    for cls in public_classes(module):
        assert not needs_example or ">>>" in (cls.__doc__ or ""), f"{name}.{cls.__name__} has no example"
        methods = [key for key, value in vars(cls).items() if inspect.isroutine(value) or isinstance(value, property)]
        bare = [key for key in methods if not key.startswith("_") and not inspect.getdoc(getattr(cls, key))]
        assert not bare, f"{name}.{cls.__name__}: {', '.join(bare)} without a docstring"
    assert doctest.testmod(module).failed == 0
