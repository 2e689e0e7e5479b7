"""Where the components and the functions are that gin can configure.

gin knows a name once its module was imported, so all of them are imported before a file is parsed. This is the one
place that names modules of higher floors, as text: nothing here needs them.
"""

import importlib

import redi

FUNCTIONS = (
    "data.audit data.cache.prepare training.trainer evaluation.samples.sample evaluation.evaluate evaluation.monitor "
    "evaluation.queries pages.report runs.profile sweeps.sweep"
).split()


def import_all() -> None:
    """Imports every kind of component and every function that gin can configure."""
    for module in (*redi.KINDS.values(), *(f"redi.{name}" for name in FUNCTIONS)):
        importlib.import_module(module)
