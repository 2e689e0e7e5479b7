"""A picture of the generated representation beside the encoder's features of the generated images."""

import torch
from PIL import Image
from torch import Tensor

from redi.evaluation.representation.encoder_space import EncoderSpace
from redi.sampling.labels import captions
from redi.sampling.pictures import class_ordered, num_columns, thumbnails, tile

LEGEND = (
    "image; per representation: the encoder's features of it, the features drawn with it, "
    "their agreement (white: cosine 1, black: 0 or below)"
)


def representation_picture(trained, samples, *, rows: int = 2, columns: int = 10) -> Image.Image:
    """A few samples, a column for every class; features in the run's own colours (equal features, equal colours).

    Of the first seed of `redi.evaluation.samples.stored.Samples`. Raises ValueError for a model of images alone, and
    for samples of which images or x were not kept.
    """
    channels = trained.codec.channels
    if not channels.representations:
        raise ValueError("a model of images alone generates no representation to draw")
    labels = samples.labels[: samples.sets[0]["stop"]]
    columns = num_columns(labels, columns)
    drawn = samples.take(class_ordered(labels, columns, rows).tolist())
    if drawn.images is None or drawn.x is None:
        raise ValueError("these samples are not whole, for sample.keep left out images or x: there is nothing to draw")
    layers = [drawn.images]
    for name in channels.representations:
        space, z = EncoderSpace(trained.codec, name, drawn.images[:1]), channels.split(drawn.x)[name]
        target, own = space.encode(drawn.images)
        centred, _ = space.cosine(space.features_of(z), target)
        layers += [trained.colours(name, own.cpu()), trained.colours(name, z), grey(centred.cpu())]
    cells = [thumbnails(layer, like=drawn.images) for layer in layers]
    return tile(cells, captions(drawn.labels, trained.class_names), LEGEND, columns)


def grey(cosine: Tensor) -> Tensor:
    """(N, h, w) -> (N, 3, h, w) uint8: black for 0 and below, white for 1; equal steps of sRGB look about equal."""
    return (cosine.clamp(0, 1) * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
