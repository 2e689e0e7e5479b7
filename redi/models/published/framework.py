"""SiT, DiT or REPA: which process published weights were trained for, which no shape tells.

SiT and ReDi count time from noise (0) to data (1) and predict x - noise; REPA counts from data (0) to noise (1) and
predicts noise - x; DiT predicts the noise at steps 0 (data) ... 999. Weights taken for another of them give plausible
numbers and no images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redi.fusion import sincos_positions
from redi.models.published.weights import Imported
from redi.models.transformer import DiffusionTransformer

FRAMEWORKS = ("sit", "dit", "repa")
WEAK = 0.3  # a correlation below it tells nothing; in the 2 x 4 x 32 x 32 numbers of a probe chance gives 0.01


@dataclass(frozen=True)
class Evidence:
    """What speaks for some of the frameworks."""

    frameworks: frozenset[str]
    reason: str


def decide_framework(imported: Imported, args: Mapping, asked: str | None = None) -> tuple[str, list[str]]:
    """-> 'sit', 'dit' or 'repa', and the evidence in words.

    Evidence is, in this order: the settings of the training program in the file, REPA's projectors, and what the
    network answers (see `probe`).

    Args:
        imported: `from_published` without learned variances, so that the first C outputs remain.
        args: of the file (see `read_published`).
        asked: what the user says; refused where evidence speaks against it, needed where there is none.

    Raises:
        ValueError: evidence against `asked` or against itself, or not enough of it.
    """
    if asked is not None and asked not in FRAMEWORKS:
        raise ValueError(f"--framework={asked}: it is one of {', '.join(FRAMEWORKS)}")
    found = [*_from_args(args), *_from_names(imported), *_from_sigma(imported)]
    if args.get("prediction", "velocity") in ("velocity", "v"):
        found += _from_answers(imported)
    reasons = [evidence.reason for evidence in found]
    left = frozenset(FRAMEWORKS).intersection(*(evidence.frameworks for evidence in found))
    told = "; ".join(reasons) or "it holds no settings, and its answers to noise look untrained"
    if not left:
        raise ValueError(f"what the checkpoint says of its framework contradicts itself: {told}")
    if left == {"sit", "repa"} and _names_sit(args):
        left, told = frozenset({"sit"}), f"{told}, without enc_type and proj_coeff, which REPA's program adds"
    if asked is not None and asked not in left:
        raise ValueError(
            f"--framework={asked} contradicts the checkpoint, which is {' or '.join(sorted(left))}: {told}. "
            "Under the wrong process its time would run the wrong way, or its answers would mean another thing"
        )
    if asked is not None:
        return asked, [*reasons, "--framework"]
    if left == {"dit", "repa"} and imported.leftovers.get("final_layer.linear.weight", torch.zeros(1)).any():
        left, reasons = frozenset({"dit"}), [*reasons, "its second outputs are not 0, as where variances are trained"]
    if len(left) > 1:
        raise ValueError(
            f"whether the checkpoint is of SiT, DiT or REPA cannot be told ({told}): say it with "
            f"--framework={'|'.join(name for name in FRAMEWORKS if name in left)}"
        )
    return next(iter(left)), reasons


@torch.no_grad()
def probe(model: DiffusionTransformer, times: Sequence[float], *, num_samples: int = 2) -> list[float]:
    """The correlation of the image prediction with the input, pure noise, at each of these network times.

    One forward pass. A network whose output is constant has 0.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((num_samples, model.channels.total, *model.grid), generator=generator)
    t = torch.tensor(times, dtype=torch.float32).repeat_interleave(num_samples)
    batch = x.repeat(len(times), 1, 1, 1)
    prediction = model(batch, t, torch.full((len(batch),), model.null_label))
    image = model.channels.slice("image")
    pairs = zip(prediction[:, image].split(num_samples), batch[:, image].split(num_samples), strict=True)
    return [_correlation(answer, noise) for answer, noise in pairs]


def _correlation(a: Tensor, b: Tensor) -> float:
    value = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])
    return value if math.isfinite(value) else 0.0


def _names_sit(args: Mapping) -> bool:
    """Whether the settings are those of SiT's program; REPA's, which has encoders, names its models SiT too."""
    return str(args.get("model", "")).startswith("SiT") and not {"enc_type", "proj_coeff"} & set(args)


def _from_args(args: Mapping) -> list[Evidence]:
    name = str(args.get("model", ""))
    if name.startswith("DiT"):
        return [Evidence(frozenset({"dit"}), f"its settings name {name}")]
    if name.startswith("SiT") or "path_type" in args:
        what = f"its settings name {name}" if name.startswith("SiT") else f"path_type = {args['path_type']!r}"
        return [Evidence(frozenset({"sit", "repa"}), what)]
    return []


def _from_names(imported: Imported) -> list[Evidence]:
    if any(prefix.startswith("projectors.") for prefix in imported.layout.projectors):
        return [Evidence(frozenset({"repa"}), "it holds projectors.*, as REPA's checkpoints do")]
    if len(imported.runtime["channels"]) > 1:
        return [Evidence(frozenset({"sit", "dit"}), "it generates features, which REPA's models do not")]
    return []


def _from_sigma(imported: Imported) -> list[Evidence]:
    """DiT always has second outputs. Rows that begin as zero and never get a gradient stay zero: those of a sigma that
    only DiT trains."""
    if not imported.layout.learn_sigma:
        return [Evidence(frozenset({"sit", "repa"}), "it has no second outputs, which DiT's checkpoints have")]
    dead = imported.leftovers.get("final_layer.linear.weight")
    if dead is None or dead.any() or not imported.state["fusion.heads.image.weight"].any():
        return []
    return [Evidence(frozenset({"sit", "repa"}), "its second outputs are exactly 0, as where no variance is trained")]


def _from_answers(imported: Imported) -> list[Evidence]:
    """What the network makes of pure noise x at four network times: one forward pass.

    Each framework is right to answer in one way where it expects noise: SiT's with -x at 0, REPA's with x at 1, DiT's
    with x at 999. What fails there is out. What a network answers where it expects data is no such proof, but half way
    all that varies more finely than data do counts as noise: SiT's answers with -x, REPA's with x.
    """
    with torch.device("meta"):
        model = DiffusionTransformer(**imported.runtime, **imported.settings)
    model.load_state_dict(imported.state, assign=True)
    model.fusion.positions = sincos_positions(model.fusion.patch_grid, imported.layout.width)
    start, half, end, last_step = probe(model.eval(), (0.0, 0.5, 1.0, 999.0))
    left = {name for name, value in (("sit", -start), ("repa", end), ("dit", last_step)) if value >= WEAK}
    if {"sit", "repa"} <= left and abs(half) >= WEAK:
        left.remove("repa" if half < 0 else "sit")
    if not left:
        return []
    values = f"{start:.2f}, {half:.2f}, {end:.2f}, {last_step:.2f}"
    told = f"its answers to noise correlate with it by {values} at network times 0, 0.5, 1, 999"
    return [Evidence(frozenset(left), f"{told}, as those of {' or '.join(sorted(left))} do")]
