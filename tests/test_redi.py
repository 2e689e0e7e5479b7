"""The package as `import redi` gives it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import redi
from redi.core.registry import registries

ROOT = Path(__file__).resolve().parents[1]


def test_importing_redi_loads_the_standard_library_only():
    code = "import sys; before = set(sys.modules); import redi; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()} - {"redi"}
    assert loaded <= set(sys.stdlib_module_names) and "redi.core" not in done.stdout.split()


@pytest.mark.parametrize("name", redi.__all__)
def test_a_public_name_resolves(name):
    assert getattr(redi, name) is not None


def test_public_names_are_the_objects_of_their_modules():
    for name, module in redi.PUBLIC.items():
        assert getattr(redi, name) is getattr(importlib.import_module(module), name)


def test_every_public_name_can_be_completed():
    assert set(redi.__all__) <= set(dir(redi))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="has no attribute 'Chanels'.*Channels, DiffusionTransformer"):
        redi.Chanels  # noqa: B018


def test_the_folders_of_components_are_modules_with_a_registry():
    for name, module in redi.KINDS.items():
        found = getattr(redi, name)
        assert found is importlib.import_module(module)
        assert any(registry.interface.__module__ == module for registry in registries.values())
