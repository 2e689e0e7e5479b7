"""redi: joint image-feature diffusion.

The public names below are imported when they are first used: `import redi` itself loads nothing heavy.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Cache": "redi.data.cache.cache",
    "Channels": "redi.core.channels",
    "DiffusionTransformer": "redi.models.transformer",
    "EMA": "redi.core.ema",
    "JointCodec": "redi.models.codec",
    "JointObjective": "redi.core.objective",
    "Preprocessing": "redi.data.preprocessing",
    "Representation": "redi.models.codec",
    "Run": "redi.runs.load",
    "audit": "redi.data.audit",
    "from_pretrained": "redi.runs.hub",
    "from_published": "redi.models.published.weights",
    "generate": "redi.sampling.generate",
    "load": "redi.runs.load",
    "log_likelihood": "redi.core.likelihood",
    "push_to_hub": "redi.runs.hub",
    "read_published": "redi.models.published.file",
    "reconstruct_average": "redi.training.posthoc",
    "sample_grid": "redi.sampling.pictures",
    "save_pretrained": "redi.runs.hub",
    "to_published": "redi.models.published.weights",
    "warm_start": "redi.training.warm_start",
}
# The kinds of components, under the names that gin files use: redi.reducers.PCA is @reducers.PCA.
_KINDS = {
    "autoencoders": "redi.models.autoencoders",
    "datasets": "redi.data.datasets",
    "ema": "redi.core.ema",
    "encoders": "redi.models.encoders",
    "fusion": "redi.fusion",
    "guidance": "redi.guidance",
    "parallel": "redi.training.parallel",
    "processes": "redi.core.processes",
    "reducers": "redi.models.reducers",
    "samplers": "redi.core.samplers",
}

__all__ = ["__version__", *_PUBLIC, *_KINDS]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _KINDS:
        return importlib.import_module(_KINDS[name])
    raise AttributeError(f"module 'redi' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
