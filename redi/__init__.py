"""redi: joint image-feature diffusion.

Public names are imported on first use, so `import redi` alone loads no heavy package.
"""

import importlib

__version__ = "0.1.0"

# {module: public names}. A function with the name of a program (redi.train) is exported as exported_name=function.
NAMES = {
    "core.channels": "Channels",
    "core.ema": "EMA",
    "core.likelihood": "log_likelihood",
    "core.objective": "JointObjective",
    "data.audit": "audit",
    "data.cache.cache": "Cache",
    "data.cache.prepare": "prepare_data=prepare",
    "data.preprocessing": "Preprocessing",
    "evaluation.evaluate": "evaluate_samples=evaluate",
    "evaluation.monitor": "Monitor",
    "evaluation.queries": "query_model=query",
    "evaluation.samples.sample": "draw_samples=sample",
    "models.autoencoders.statistics": "LatentStatistics",
    "models.codec": "JointCodec",
    "models.interface": "Model build_model",
    "models.published.file": "read_published",
    "models.published.weights": "from_published to_published",
    "models.representation": "Representation",
    "models.transformer": "DiffusionTransformer",
    "pages.report": "write_report=report",
    "runs.average": "average_weights=average",
    "runs.convert": "import_checkpoint export_checkpoint=export",
    "runs.hub": "from_pretrained push_to_hub save_pretrained",
    "runs.load": "Run load",
    "sampling.generate": "generate",
    "sampling.pictures": "sample_grid",
    "training.posthoc": "reconstruct_average",
    "training.trainer": "train_model=train",
    "training.warm_start": "warm_start",
}
PUBLIC = {
    name.partition("=")[0]: (f"redi.{module}", name.rpartition("=")[2])
    for module, names in NAMES.items()
    for name in names.split()
}
# Kinds of components, under the names that gin files use: redi.reducers.PCA is @reducers.PCA.
KINDS = {
    "autoencoders": "redi.models.autoencoders",
    "blocks": "redi.models.blocks",
    "clocks": "redi.core.clocks",
    "datasets": "redi.data.datasets",
    "ema": "redi.core.ema",
    "encoders": "redi.models.encoders",
    "fusion": "redi.fusion",
    "guidance": "redi.guidance",
    "optimizers": "redi.training.optimizers",
    "parallel": "redi.training.parallel",
    "processes": "redi.core.processes",
    "reducers": "redi.models.reducers",
    "samplers": "redi.core.samplers",
    "schedules": "redi.training.schedules",
    "time_distributions": "redi.core.time_distributions",
}

__all__ = ["__version__", *sorted(PUBLIC), *KINDS]


def __getattr__(name: str):
    if name in PUBLIC:
        module, attribute = PUBLIC[name]
        return getattr(importlib.import_module(module), attribute)
    if name in KINDS:
        return importlib.import_module(KINDS[name])
    advice = next((f"; the function is redi.{key}" for key in PUBLIC if PUBLIC[key][1] == name), "")
    raise AttributeError(f"module 'redi' has no attribute {name!r}{advice}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
