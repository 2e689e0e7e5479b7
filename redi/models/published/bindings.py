"""The gin bindings that a published checkpoint needs."""

from collections.abc import Mapping

from redi.models.published.layout import Layout

REVERSED = ("repa", "reg", "reglue", "dit-dh")  # t = 0 is data and t = 1 is noise
# path_type and prediction in the settings of SiT's and REPA's training programs, and this library's names.
PATHS = {"linear": "FlowMatching", "gvp": "GVP", "cosine": "GVP", "vp": "VP"}
PREDICTIONS = {"velocity": "velocity", "v": "velocity", "noise": "noise", "score": "score"}


def choose_framework(layout: Layout, args: Mapping, requested: str | None) -> tuple[str, str]:
    """Return one of the layout's `frameworks`, and the reason: the file's settings `args`, or `requested`.

    The framework defines the process, which the shapes do not show. In SiT and ReDi t = 0 is noise, t = 1 is data, and
    the model predicts x - noise. In REPA and REG t = 0 is data, t = 1 is noise, and the model predicts noise - x. DiT
    predicts the noise at steps 0 (data) ... 999. Raises ValueError if `requested` (--framework) contradicts the file,
    or is None and the file allows several frameworks.
    """
    allowed, reason = _stated(layout, args)
    if requested is None and len(allowed) == 1:
        return allowed[0], reason
    if requested is None:
        what = f"the framework of the checkpoint may be {' or '.join(allowed)} ({reason})"
        raise ValueError(f"{what}: choose with --framework={'|'.join(allowed)}")
    if requested not in allowed:
        raise ValueError(f"--framework={requested}: must be {' or '.join(allowed)} for this checkpoint: {reason}")
    return requested, "--framework"


def _stated(layout: Layout, args: Mapping) -> tuple[tuple[str, ...], str]:
    """Return the frameworks that the file allows, and the reason."""
    name = str(args.get("model", ""))
    if len(layout.frameworks) == 1:
        return layout.frameworks, f"it holds {layout.marks[0]}"
    if name.startswith("DiT"):
        return ("dit",), f"its settings name {name}"
    if any(prefix.startswith("projectors.") for prefix in layout.projectors):
        return ("repa",), "it holds projectors.*, as REPA's checkpoints do"
    if name.startswith("SiT") and not {"enc_type", "proj_coeff"} & set(args):
        return ("sit",), f"its settings name {name}, without REPA's enc_type and proj_coeff"
    if name.startswith("SiT") or "path_type" in args:
        return ("sit", "repa"), f"its settings name {name or 'a path_type'}, as SiT's and REPA's do"
    return layout.frameworks, "it holds no settings that name a model"


def recipe(layout: Layout, framework: str) -> list[str]:
    """Return the configuration files of a framework; `Layout.bindings` are parsed after them."""
    if len(layout.frameworks) == 1:
        return [f"{'rae' if framework == 'dit-dh' else framework}.gin"]
    network = f"{'dit' if framework == 'dit' else 'sit'}.gin"
    plain = layout.in_channels == 4
    return ["imagenet_plain.gin", network] if plain else ["imagenet.gin", network, "published.gin"]


def process_bindings(layout: Layout, framework: str, args: Mapping) -> list[str]:
    """Return the bindings of the process. Raises ValueError if the training settings `args` are not supported."""
    if framework == "dit":
        fixed = [] if layout.learn_sigma else ["DDPM.learned_variance = ()"]
        return ["JointObjective.process = @processes.DDPM()", *fixed]
    args = args["transport"] if isinstance(args.get("transport"), Mapping) else args  # LightningDiT's configuration
    path, prediction = str(args.get("path_type", "linear")).lower(), args.get("prediction", "velocity")
    if path not in PATHS or prediction not in PREDICTIONS:
        allowed = f"path_type must be one of {', '.join(PATHS)}, prediction one of {', '.join(PREDICTIONS)}"
        raise ValueError(f"the checkpoint has path_type = {path!r}, prediction = {prediction!r}: {allowed}")
    name = PATHS[path]
    bindings = [f"JointObjective.process = @processes.{name}()", f"{name}.reversed = {framework in REVERSED}"]
    clock = ["JointObjective.clock = @clocks.Lead()", "Lead.offset = 0.3"] if framework == "sfd" else []
    return [*bindings, f"{name}.prediction = {PREDICTIONS[prediction]!r}", *clock]


def model_bindings(layout: Layout, args: Mapping, num_heads: int | None) -> list[str]:
    """Return the bindings of the model's size, its block and the layer that REPA aligned."""
    settings, name = layout.model_settings(num_heads), layout.block.__name__
    block = [f"{name}.{option} = {value!r}" for option, value in layout.block_settings().items()]
    if settings.pop("block", None):
        block.append(f"DiffusionTransformer.block = @blocks.{name}")
    layer = args.get("encoder_depth")
    if layout.projectors and type(layer) is int and 1 <= layer <= layout.depth:
        settings["alignment_layer"] = layer
    return [*block, *(f"DiffusionTransformer.{name} = {value!r}" for name, value in settings.items())]
