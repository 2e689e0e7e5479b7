"""The modules that define configurable components and functions.

gin knows a name only after its module was imported, so all of them are imported before a file is parsed.
"""

import importlib

import redi

FUNCTIONS = (
    "data.audit data.cache.prepare training.trainer evaluation.samples.sample evaluation.evaluate evaluation.monitor "
    "evaluation.queries pages.report runs.profile sweeps.sweep"
).split()


def import_all() -> None:
    """Import the modules of all configurable components and functions."""
    for module in (*redi.KINDS.values(), *(f"redi.{name}" for name in FUNCTIONS)):
        importlib.import_module(module)
