"""What a published checkpoint says of the configuration that it needs, as gin bindings."""

from collections.abc import Mapping

from redi.models.published.layout import Layout
from redi.models.published.weights import Imported

# path_type and prediction in the settings of SiT's and REPA's training programs, and what they are here.
PATHS = {"linear": "FlowMatching", "gvp": "GVP", "cosine": "GVP", "vp": "VP"}
PREDICTIONS = {"velocity": "velocity", "v": "velocity", "noise": "noise", "score": "score"}


def layout_bindings(layout: Layout) -> list[str]:
    """Of the shipped ImageNet files, what the shapes decide."""
    bindings = [f"Preprocessing.image_size = {8 * layout.grid[0]}"]  # 8: of the Stable Diffusion VAE
    if layout.in_channels == 4:
        return [*bindings, "StableVAE.uint8_rule = 'truncate'"]
    return [*bindings, f"PCA.rank = {layout.channels()['dinov2']}"]


def process_bindings(imported: Imported, framework: str, args: Mapping) -> list[str]:
    """The process, as the framework and the settings of its training program say.

    Raises:
        ValueError: settings that are not known here.
    """
    if framework == "dit":
        fixed = [] if imported.layout.learn_sigma else ["DDPM.learned_variance = ()"]
        return ["JointObjective.process = @processes.DDPM()", *fixed]
    path, prediction = str(args.get("path_type", "linear")).lower(), args.get("prediction", "velocity")
    if path not in PATHS or prediction not in PREDICTIONS:
        raise ValueError(
            f"the checkpoint's settings path_type = {path!r}, prediction = {prediction!r} are not known here"
        )
    name = PATHS[path]
    bindings = [f"JointObjective.process = @processes.{name}()", f"{name}.reversed = {framework == 'repa'}"]
    return [*bindings, f"{name}.prediction = {PREDICTIONS[prediction]!r}"]


def model_bindings(imported: Imported, args: Mapping) -> list[str]:
    """The model's sizes, and the layer that REPA aligned."""
    settings = dict(imported.settings)
    layer = args.get("encoder_depth")
    if "alignment_layer" in settings and type(layer) is int and 1 <= layer <= imported.layout.depth:
        settings["alignment_layer"] = layer
    return [f"DiffusionTransformer.{name} = {value!r}" for name, value in settings.items()]
