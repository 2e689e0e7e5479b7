"""A frozen encoder and its reducer: one channel group of the joint state."""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

from redi.core.registry import configurable
from redi.models.encoders import Encoder, encoders, features_of
from redi.models.reducers import Reducer, reducers
from redi.runtime.ranges import check_choice

# Names that batches, losses and the log use beside those of groups.
RESERVED = {*"images labels alignment inner vlb loss step gradient_norm images_per_second learning_rate".split()}


@configurable
class Representation(nn.Module):
    """A frozen encoder and a reducer of its features: one channel group of the joint state.

    Args:
        encoder, reducer: images -> features (N, E, h, w), and features -> (N, R, h, w).
        name: name of the channel group; default: the encoder's name, followed by _class or _pooled for a vector.
        vector: 'class' takes the encoder's class token instead of its patch features, 'pooled' its `pooled` vector.
            The group is then a vector of R numbers (see `Channels`), one token in every fusion (REG, arXiv 2507.01467).

    Examples:
        >>> from redi.models.encoders import CLIP
        >>> from redi.models.reducers import PCA
        >>> Representation(CLIP("B/16"), PCA(rank=8)).name
        'clip'
    """

    def __init__(
        self, encoder: Encoder, reducer: Reducer, *, name: str | None = None,
        vector: Literal["class", "pooled"] | None = None,
    ):  # fmt: skip
        super().__init__()
        encoders.check(encoder, "Representation.encoder")
        reducers.check(reducer, "Representation.reducer")
        try:
            reducer.check_width(encoder.dim)
        except ValueError as error:
            raise ValueError(f"{error} of {type(encoder).__name__}") from None
        check_choice("Representation.vector", vector, ("class", "pooled", None))
        if vector == "class" and not encoder.has_class_token:
            what = f"Representation.vector = 'class': {type(encoder).__name__} has no class token"
            raise ValueError(f"{what}; bind 'pooled', or an encoder that has one, such as DINOv2")
        self.encoder, self.reducer, self.vector = encoder, reducer, vector
        self.name = name or (f"{encoder.name}_{vector}" if vector else encoder.name)
        if not self.name.isidentifier() or self.name in RESERVED or hasattr(nn.ModuleDict, self.name):
            others = f"{', '.join(sorted(RESERVED))} and the attributes of nn.ModuleDict"
            allowed = f"must be an identifier other than {others}, such as {encoder.name!r}"
            raise ValueError(f"Representation.name = {self.name!r}: {allowed}")

    def forward(self, images: Tensor) -> Tensor:
        """Return reduced features (N, R, h, w) float32 from uint8 images (N, 3, S, S); (N, R, 1, 1) of a vector."""
        return self.reducer(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the features before reduction, (N, E, h, w), or (N, E, 1, 1) of a vector."""
        return features_of(self.encoder, images, self.vector)


def by_name(representations: Sequence[Representation], taken: Iterable[str]) -> nn.ModuleDict:
    """Return {name: representation} for `JointCodec.representations`, whose names must differ from those `taken`."""
    for representation in representations:
        if not isinstance(representation, Representation):
            allowed = "must be Representation objects, for example [@Representation()]"
            raise ValueError(f"JointCodec.representations holds {representation!r}: {allowed}")
    names = [r.name for r in representations]
    if len({"image", *names} - set(taken)) <= len(names):
        allowed = "must differ from each other, image and alignment_<encoder>; set Representation.name"
        raise ValueError(f"JointCodec.representations have the names {names}: {allowed}")
    return nn.ModuleDict({r.name: r for r in representations})
