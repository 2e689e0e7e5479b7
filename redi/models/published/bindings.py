"""What a published checkpoint says of the configuration that it needs, as gin bindings."""

from collections.abc import Mapping

from redi.models.published.layout import Layout

FRAMEWORKS = ("sit", "dit", "repa")
# path_type and prediction in the settings of SiT's and REPA's training programs, and our names.
PATHS = {"linear": "FlowMatching", "gvp": "GVP", "cosine": "GVP", "vp": "VP"}
PREDICTIONS = {"velocity": "velocity", "v": "velocity", "noise": "noise", "score": "score"}


def choose_framework(layout: Layout, args: Mapping, requested: str | None) -> tuple[str, str]:
    """-> 'sit', 'dit' or 'repa', and what says so: `args` of the file where they do, else `requested` (--framework).

    It decides the process, which no shape tells. SiT and ReDi count time from noise (0) to data (1) and predict
    x - noise; REPA counts from data (0) to noise (1) and predicts noise - x; DiT predicts the noise at steps 0 (data)
    ... 999. Raises ValueError where the file contradicts the request, or neither says anything.
    """
    allowed, reason = _stated(layout, args)
    if requested is None and len(allowed) == 1:
        return allowed[0], reason
    if requested is None:
        what = f"the checkpoint does not say whether it is of {', '.join(allowed)} ({reason})"
        raise ValueError(f"{what}: pass --framework={'|'.join(allowed)}")
    if requested not in allowed:
        raise ValueError(f"--framework={requested}: it is one of {', '.join(allowed)} for this checkpoint: {reason}")
    return requested, "--framework"


def _stated(layout: Layout, args: Mapping) -> tuple[tuple[str, ...], str]:
    """The frameworks that the file leaves possible, and why."""
    name = str(args.get("model", ""))
    if name.startswith("DiT"):
        return ("dit",), f"its settings name {name}"
    if any(prefix.startswith("projectors.") for prefix in layout.projectors):
        return ("repa",), "it holds projectors.*, as REPA's checkpoints do"
    if name.startswith("SiT") and not {"enc_type", "proj_coeff"} & set(args):
        return ("sit",), f"its settings name {name}, without enc_type and proj_coeff, which REPA's program adds"
    if name.startswith("SiT") or "path_type" in args:
        return ("sit", "repa"), f"its settings name {name or 'a path_type'}, as SiT's and REPA's do"
    return FRAMEWORKS, "it holds no settings that name a model"


def layout_bindings(layout: Layout) -> list[str]:
    """What the shapes decide of the shipped ImageNet files."""
    bindings = [f"Preprocessing.image_size = {8 * layout.grid[0]}"]  # 8: of the Stable Diffusion VAE
    if layout.in_channels == 4:
        return [*bindings, "StableVAE.uint8_rule = 'truncate'"]
    return [*bindings, f"PCA.rank = {layout.channels()['dinov2']}"]


def process_bindings(layout: Layout, framework: str, args: Mapping) -> list[str]:
    """The process, from the framework and the settings of its training program. Raises ValueError for unknown ones."""
    if framework == "dit":
        fixed = [] if layout.learn_sigma else ["DDPM.learned_variance = ()"]
        return ["JointObjective.process = @processes.DDPM()", *fixed]
    path, prediction = str(args.get("path_type", "linear")).lower(), args.get("prediction", "velocity")
    if path not in PATHS or prediction not in PREDICTIONS:
        what = f"path_type = {path!r}, prediction = {prediction!r}"
        raise ValueError(f"the checkpoint's settings {what} are not known here")
    name = PATHS[path]
    bindings = [f"JointObjective.process = @processes.{name}()", f"{name}.reversed = {framework == 'repa'}"]
    return [*bindings, f"{name}.prediction = {PREDICTIONS[prediction]!r}"]


def model_bindings(layout: Layout, args: Mapping, num_heads: int | None) -> list[str]:
    """The model's sizes, and the layer that REPA aligned."""
    settings = layout.model_settings(num_heads)
    layer = args.get("encoder_depth")
    if layout.projectors and type(layer) is int and 1 <= layer <= layout.depth:
        settings["alignment_layer"] = layer
    return [f"DiffusionTransformer.{name} = {value!r}" for name, value in settings.items()]
