"""The sample grids that are drawn during training."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from redi.core.processes import Process
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer
from redi.sampling.generate import generate
from redi.sampling.pictures import ColourBasis, num_columns, sample_grid


class Previews:
    """Draws the same labels from the same noise every time, so that the pictures show what the model has learned.

    Args:
        run_dir: whose folder `previews` takes the pictures.
        colours: of the features.
        num_images: in at most ten columns of one class each.
        draw: `generate`, with settings of its own.
    """

    def __init__(
        self,
        run_dir: Path,
        codec: JointCodec,
        process: Process,
        colours: ColourBasis,
        *,
        num_classes: int,
        num_images: int = 40,
        draw: Callable = generate,
    ):
        self.folder = run_dir / "previews"
        self.codec, self.process, self.colours, self.draw = codec, process, colours, draw
        columns = min(10, num_classes)
        self.labels = torch.arange(num_images) % columns * num_classes // columns

    def __call__(self, model: DiffusionTransformer, weights: Mapping[str, Tensor], step: int) -> Image.Image:
        """The picture, which is also written to step_<step>.png."""
        drawn = self.draw(model, self.codec, self.process, labels=self.labels, weights=weights)
        picture = sample_grid(drawn, self.codec, self.colours, columns=num_columns(self.labels))
        self.folder.mkdir(exist_ok=True)
        picture.save(self.folder / f"step_{step:08d}.png")
        return picture
