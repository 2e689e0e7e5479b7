"""A picture of the generated representation beside the encoder's features of the generated images."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from redi.data.datasets import Dataset
from redi.evaluation.representation.encoder_space import EncoderSpace
from redi.sampling.labels import captions
from redi.sampling.pictures import class_ordered, num_columns, thumbnails, tile

LEGEND = "image; per representation: features of the image, generated features, black to white: cosine 0 to cosine 1"
NEAREST = "; per vector: nearest training images"
COMPONENTS = "training image; then each principal component, and below it the channel that training made of it"
NUM_NEAREST = 3


def representation_picture(
    trained, samples, dataset: Dataset | None = None, *, rows: int = 2, columns: int = 10, num_candidates: int = 500
) -> Image.Image:
    """Draw a few samples of the first seed, one column per class, with features in the colours of the run.

    A vector has no colours. It is shown by the three images of `dataset`, of `num_candidates` evenly spaced ones, whose
    vectors have the largest cosine with it (centred); without `dataset`, it is left out.

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
        if name in channels.vectors:
            layers += [] if dataset is None else nearest_images(space, z, dataset, num_candidates)
            continue
        target, encoded = space.encode(generated.images)
        centred, _ = space.cosine(space.features_of(z), target)
        layers += [trained.colours(name, encoded.cpu()), trained.colours(name, z), grey(centred.cpu())]
    cells = [thumbnails(layer, like=generated.images) for layer in layers]
    legend = LEGEND + NEAREST * bool(channels.vectors and dataset)
    return tile(cells, captions(generated.labels, trained.class_names), legend, columns)


@torch.no_grad()
def components_picture(codec, dataset: Dataset, *, columns: int = 10) -> Image.Image | None:
    """Draw the channels of learned projections on images of `dataset`, below those they began as.

    A channel is grey, from black at -2.5 to white at 2.5 standard deviations. Vectors are left out. None: no projection
    was learned.
    """
    reducers = {name: codec.representations[name].reducer for name in codec.channels.maps[1:]}
    if not any(reducer.trained_buffers for reducer in reducers.values()):
        return None  # before any image is encoded
    batch = next(codec.sample_batches(dataset, columns))
    stored, layers = codec.precompute(batch["images"], alignment=False), [batch["images"].cpu()]
    for name, reducer in reducers.items():
        if (before := reducer.untrained(stored[name])) is None:
            continue
        pairs = zip(before.unbind(1), reducer.finish(stored[name]).unbind(1), strict=True)  # each (N, h, w)
        layers += [grey(channel.cpu() / 5 + 0.5) for pair in pairs for channel in pair]
    if len(layers) == 1:
        return None
    cells = [thumbnails(layer, like=layers[0]) for layer in layers]
    return tile(cells, captions(batch["labels"].cpu(), None), COMPONENTS, columns)


def nearest_images(space: EncoderSpace, z: Tensor, dataset: Dataset, num_candidates: int) -> list[Tensor]:
    """Return the images (N, 3, S, S) of a data set nearest to N generated vectors, the second nearest, and so on."""
    parts = [batch["images"].cpu() for batch in space.codec.sample_batches(dataset, num_candidates)]
    candidates = torch.cat([space.features_of(space.encode(part)[1]) for part in parts])  # (M, E, 1, 1)
    generated, mean = space.features_of(z)[:, None], space.mean[:, None, None]
    cosine = functional.cosine_similarity(generated - mean, candidates - mean, dim=2)[:, :, 0, 0]  # (N, M)
    nearest = cosine.topk(min(NUM_NEAREST, len(candidates)), dim=1).indices.cpu()  # (N, 3)
    return list(torch.cat(parts)[nearest.T])


def grey(cosine: Tensor) -> Tensor:
    """Map cosines (N, h, w) to grey images (N, 3, h, w) uint8: black for 0 and below, white for 1, linear in sRGB."""
    return (cosine.clamp(0, 1) * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
