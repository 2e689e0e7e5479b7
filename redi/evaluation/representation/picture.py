"""A picture of the generated representation beside the encoder's features of the generated images."""

import torch
from PIL import Image
from torch import Tensor

from redi.evaluation.representation.encoder_space import EncoderSpace
from redi.sampling.labels import captions
from redi.sampling.pictures import class_ordered, num_columns, thumbnails, tile

LEGEND = (
    "image; per representation: encoder features of the image, generated features, "
    "their agreement (white: cosine 1, black: 0 or below)"
)


def representation_picture(trained, samples, *, rows: int = 2, columns: int = 10) -> Image.Image:
    """Draw a few samples of the first seed, one column per class, with features in the colours of the run.

    Raises ValueError: the model has no representations, or images or x of the samples were not kept.
    """
    channels = trained.codec.channels
    if not channels.representations:
        raise ValueError("the model has no representation to draw: choose a joint model")
    labels = samples.labels[: samples.sets[0]["stop"]]
    columns = num_columns(labels, columns)
    generated = samples.take(class_ordered(labels, columns, rows).tolist())
    if generated.images is None or generated.x is None:
        raise ValueError("these samples lack images or x: set sample.keep = ['images', 'x'] and sample again")
    layers = [generated.images]
    for name in channels.representations:
        space, z = EncoderSpace(trained.codec, name, generated.images[:1]), channels.split(generated.x)[name]
        target, encoded = space.encode(generated.images)
        centred, _ = space.cosine(space.features_of(z), target)
        layers += [trained.colours(name, encoded.cpu()), trained.colours(name, z), grey(centred.cpu())]
    cells = [thumbnails(layer, like=generated.images) for layer in layers]
    return tile(cells, captions(generated.labels, trained.class_names), LEGEND, columns)


def grey(cosine: Tensor) -> Tensor:
    """Map cosines (N, h, w) to grey images (N, 3, h, w) uint8: black for 0 and below, white for 1, linear in sRGB."""
    return (cosine.clamp(0, 1) * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
