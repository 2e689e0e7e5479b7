"""Features that a model predicts on noised images, beside those of the encoder (see `PredictedFeatures`)."""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional

from redi.core.alignment import target_tokens
from redi.core.channels import Channels
from redi.runtime.device import choose_precision
from redi.sampling.counted_network import CountedNetwork
from redi.sampling.labels import captions
from redi.sampling.pictures import ColourBasis, thumbnails, tile

TIMES = 0.1, 0.3, 0.5, 0.7, 0.9


@torch.no_grad()
def predicted_features(
    trained, batch: Mapping[str, Tensor], *, times: Sequence[float] = TIMES, columns: int = 10, seed: int = 0
) -> tuple[dict[float, dict[str, float]], Image.Image]:
    """Compare the predicted features of noised images, preferably held-out ones, with those of the encoder.

    Args:
        trained: an opened run (`redi.load`) of a model that predicts features.
        batch: "images" (N, 3, S, S) and "labels" (N,).
        times: the noise levels t (0 noise, 1 data).
        columns: number of images that the picture shows, the first ones.

    Returns:
        {t: {"without": cosine, "with": cosine}}, means over images and positions, where the second prediction has the
        first one as its condition, as in training; and a picture of the second predictions.
    """
    codec, channels = trained.codec, trained.codec.channels
    stored = codec.precompute(batch["images"].to(codec.device))
    x, labels = codec.join(stored), batch["labels"].to(codec.device)
    precision = choose_precision("auto", codec.device, "generate.precision")
    network = CountedNetwork(trained.model, trained.weights["ema"], precision, False, codec.device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    process = trained.process.for_channels(channels, codec.device)
    normalisation = None if trained.objective is None else trained.objective.alignment.normalisation
    true = target_tokens(stored["alignment"].float(), trained.model.feature_shape[0], normalisation)
    cosines, predictions = {}, [true]
    for t in times:
        inputs = process.mix(x, noise, t), process.model_time(x.new_full((len(x),), t)), labels
        first = network(*inputs, align=True)[-1]
        second = network(*inputs, align=True, features=first)[-1]
        pair = functional.cosine_similarity(torch.stack([first, second]), true, dim=-1).mean(dim=(1, 2))
        cosines[t] = dict(zip(("without", "with"), pair.tolist(), strict=True))
        predictions.append(second * (true.norm() / second.norm()))  # the loss does not determine the scale
    side = trained.model.fusion.patch_grid[0]
    maps = [rearrange(one, "n (h w) e -> n e h w", h=side).cpu() for one in predictions]
    space = Channels(image=1, features=true.shape[-1])
    colours = ColourBasis.fit(space, functional.pad(maps[0], (0, 0, 0, 0, 1, 0)))
    layers = [batch["images"].cpu(), *(colours("features", one) for one in maps)]
    cells = [thumbnails(layer[:columns], like=layers[0]) for layer in layers]
    levels = ", ".join(f"{t:g} ({cosine['with']:.2f})" for t, cosine in cosines.items())
    title = f"image, encoder's features; predictions at t (cosine): {levels}"
    return cosines, tile(cells, captions(batch["labels"][:columns], trained.class_names), title, columns)
