"""The encoders that REPA aligns hidden tokens with, by the names of their features."""

from collections.abc import Mapping, Sequence

from torch import nn

from redi.models.encoders import Encoder, encoders
from redi.models.representation import Representation

Source = Encoder | Representation


def alignment_encoders(alignment: Source | Sequence[Source] | Mapping[str, Source] | None) -> nn.ModuleDict:
    """Return {name: encoder} for `JointCodec.alignment`; features, losses and projectors have these names.

    One encoder is called "alignment", and each of several "alignment_<name>". Their names are the keys of a mapping, or
    those of the encoders. A Representation stands for its encoder.

    Examples:
        >>> from redi.models.encoders import CLIP, DINOv2
        >>> list(alignment_encoders(DINOv2("B"))), list(alignment_encoders([DINOv2("B"), CLIP("B/16")]))
        (['alignment'], ['alignment_dinov2', 'alignment_clip'])
    """
    if not isinstance(alignment, Mapping | Sequence):
        alignment = [] if alignment is None else [alignment]
    parts: list = list(alignment.values() if isinstance(alignment, Mapping) else alignment)
    parts = [part.encoder if isinstance(part, Representation) else part for part in parts]
    for encoder in parts:
        encoders.check(encoder, "JointCodec.alignment")
    if len(parts) == 1:
        return nn.ModuleDict({"alignment": parts[0]})
    names = list(alignment) if isinstance(alignment, Mapping) else [encoder.name for encoder in parts]
    how = "{'small': @small/encoders.DINOv2(), 'large': @large/encoders.DINOv2()}"
    if len(set(names)) < len(names) or not all(str(name).isidentifier() for name in names):
        raise ValueError(f"JointCodec.alignment has encoders named {names}: must be different identifiers; bind {how}")
    return nn.ModuleDict({f"alignment_{name}": encoder for name, encoder in zip(names, parts, strict=True)})
