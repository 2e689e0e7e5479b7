"""Where the components and the functions are that gin can configure.

gin knows a name once its module was imported, so all of them are imported before a file is parsed. This is the one
place that names modules of higher floors, as text: nothing here needs them.
"""

import importlib

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
    "redi.training.parallel",
)
FUNCTIONS = (
    "redi.data.audit",
    "redi.data.cache.prepare",
    "redi.training.trainer",
    "redi.evaluation.samples.sample",
    "redi.evaluation.evaluate",
    "redi.evaluation.monitor",
    "redi.evaluation.queries",
    "redi.pages.report",
    "redi.runs.profiling",
    "redi.sweeps.sweep",
)


def import_all() -> None:
    """Imports every kind of component and every function that gin can configure."""
    for module in (*KINDS, *FUNCTIONS):
        importlib.import_module(module)
