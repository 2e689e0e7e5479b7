"""The package as `import redi` gives it."""

import importlib
import inspect
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
    for name, (module, own_name) in redi.PUBLIC.items():
        assert getattr(redi, name) is getattr(importlib.import_module(module), own_name)


def test_public_functions_are_callable_whatever_programs_were_imported():
    import redi.train  # noqa: F401  as a program does, which puts the module in the function's place

    assert redi.train_model.__name__ == "train" and callable(redi.train_model)
    programs = {path.stem for path in (ROOT / "redi").glob("*.py")} | {path.name for path in (ROOT / "redi").iterdir()}
    assert not programs & set(redi.PUBLIC)
    for name in redi.PUBLIC:
        assert callable(getattr(redi, name))


def test_every_public_name_can_be_completed():
    assert set(redi.__all__) <= set(dir(redi))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="has no attribute 'Chanels'.*Channels, DiffusionTransformer"):
        redi.Chanels  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'query'; the function is redi.query_model"):
        redi.__getattr__("query")


def test_the_folders_of_components_are_modules_with_a_registry():
    for name, module in redi.KINDS.items():
        found = getattr(redi, name)
        assert found is importlib.import_module(module)
        assert any(registry.interface.__module__ == module for registry in registries.values())


# The one argument that is obvious without its name, of every component; components without such an argument have none.
POSITIONAL = {
    "autoencoders": {
        **dict.fromkeys(("Flux2VAE", "RAE", "StableVAE", "TinyVAE", "VAVAE"), "weights"), "Pixels": "channels",
        "Folded": "autoencoder",
    },
    "clocks": {"Lead": "offset"},
    "datasets": {"AdmBatch": "path", "HuggingFace": "path", "ImageFolder": "path", "WebDataset": "shards"},
    "ema": {"EMA": "model", "PowerFunctionEMA": "model"},
    "encoders": {
        **dict.fromkeys(("CLIP", "DINOv2", "DINOv3", "EfficientNetLite", "SigLIP2"), "size"),
        "Timm": "model", "Inception": "mode",
    },
    "guidance": dict.fromkeys(("Autoguidance", "ClassifierFree", "InnerGuidance", "RepresentationGuidance"), "scale"),
    "processes": {"DDPM": "num_timesteps", "Shifted": "process"},
    "reducers": dict.fromkeys(
        (
            "ConvBottleneck", "ConvCompressor", "GaussianRandomProjection", "Identity", "LearnedProjection", "PCA",
            "SemVAE", "SparseRandomProjection",
        ),
        "rank",
    ),
    "samplers": dict.fromkeys(
        ("Ancestral", "DDIM", "Euler", "EulerMaruyama", "FixedODE", "Heun", "StochasticHeun"), "num_evaluations"
    ) | {"AdaptiveODE": "method"},
    "optimizers": {"Muon": "model"},
    "schedules": dict.fromkeys(("Cooldown", "Cosine", "Linear"), "num_steps"),
}  # fmt: skip


def places(function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]


@pytest.mark.parametrize("kind", redi.KINDS)
def test_components_take_their_one_obvious_argument_by_place(kind):
    components = {name: cls for name, cls in getattr(redi, kind).__dict__.items() if name in registries[kind]}
    assert {name: places(cls) for name, cls in components.items()} == {
        name: [POSITIONAL[kind][name]] if name in POSITIONAL.get(kind, {}) else [] for name in components
    }
    assert set(POSITIONAL.get(kind, {})) <= set(components)


def test_what_is_given_by_place_arrives():
    assert redi.reducers.PCA(4).rank == 4
    assert redi.autoencoders.Pixels(1).channels == 1
    assert redi.samplers.Heun(10).num_evaluations == 10
    assert redi.guidance.ClassifierFree(1.5).scale == 1.5
    assert redi.Preprocessing(64).image_size == 64
    assert redi.encoders.DINOv2("S").size == "S"
    assert redi.encoders.CLIP("B/32").architecture.name.startswith("vit_base_patch32_clip")
    assert redi.autoencoders.TinyVAE().weights == "madebyollin/taesd"
    representation = redi.Representation(redi.encoders.DINOv2(), redi.reducers.PCA(2))
    codec = redi.JointCodec(redi.autoencoders.Pixels(), [representation])
    assert codec.channels == {"image": 3, "dinov2": 2}
