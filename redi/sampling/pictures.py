"""Pictures: grids of images above their features, which share one colour basis."""

import base64
import io
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from redi.core.channels import Channels
from redi.core.inputs import check_images
from redi.models.reducers.pca import PCA
from redi.sampling.labels import captions

WHITE, GREY = (255, 255, 255), (90, 90, 90)


class ColourBasis:
    """A fixed map from the channels of each representation to RGB, so that colours are comparable between pictures.

    The colours are the first three principal components of the training features, scaled from their 1st to their 99th
    percentile.

    Examples:
        >>> channels = Channels(image=4, dinov2=8)
        >>> x = torch.randn(16, 12, 4, 4)
        >>> colours = ColourBasis.fit(channels, x)
        >>> rgb = colours("dinov2", x[:, 4:])
        >>> rgb.shape, rgb.dtype
        (torch.Size([16, 3, 4, 4]), torch.uint8)
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors  # "<name>/mean" (R,), "<name>/rows" (3, R), "<name>/low" and "<name>/high" (3,)

    @classmethod
    def fit(cls, channels: Channels, x: Tensor) -> "ColourBasis":
        """Fit the basis to joint states (N, C, H, W), such as those of `JointCodec.encode_sample`."""
        tensors = {}
        for name in channels.maps[1:]:  # a vector is not a picture
            rows = rearrange(channels.split(x)[name], "n r h w -> (n h w) r").double()
            mean = rows.mean(dim=0)
            vectors = PCA().rows((rows - mean).T @ (rows - mean))[:3]
            colours = (rows - mean) @ vectors.T
            edges = torch.tensor([0.01, 0.99], dtype=torch.float64)
            subset = colours[:: len(colours) // 200_000 + 1]  # torch.quantile allows at most 16 million values
            low, high = subset.quantile(edges, dim=0)
            for key, value in {"mean": mean, "rows": vectors, "low": low, "high": high}.items():
                tensors[f"{name}/{key}"] = value.float()
        return cls(tensors)

    def __call__(self, name: str, features: Tensor) -> Tensor:
        """Map features (N, R, H, W) of one representation to colours (N, 3, H, W), uint8."""
        mean, rows, low, high = (self.tensors[f"{name}/{key}"] for key in ("mean", "rows", "low", "high"))
        colours = torch.einsum("cr,nrhw->nchw", rows, features.cpu().float() - mean[:, None, None])
        scaled = (colours - low[:, None, None]) / (high - low)[:, None, None]
        rgb = (scaled.clamp(0, 1) * 255).round().to(torch.uint8)
        return rgb if rgb.shape[1] == 3 else rgb[:, [i % rgb.shape[1] for i in range(3)]]


def png_address(picture: Image.Image) -> str:
    """Return a picture as the address of an image in HTML: a PNG in base64."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def sample_grid(
    drawn, codec, colours: ColourBasis, title: str = "", columns: int = 10, class_names: Sequence[str] | None = None
) -> Image.Image:
    """Draw a grid of images, each with its class name (or number) above and its features below.

    Args:
        drawn: an object with images (N, 3, S, S) uint8, x (N, C, H, W) and labels (N,), such as `Generated`. If x is
            None, features are omitted.
        codec, colours: the codec of x (only its `channels` are used), and the colour basis of its features.
        title: a line above the grid.
        columns: images per row.

    Examples:
        >>> from types import SimpleNamespace
        >>> from redi.models.codec import JointCodec
        >>> drawn = SimpleNamespace(images=torch.zeros(4, 3, 8, 8).byte(), x=None, labels=torch.arange(4))
        >>> sample_grid(drawn, JointCodec(), ColourBasis({}), columns=2).size  # thumbnails of 64 pixels
        (140, 166)
    """
    layers = [drawn.images]
    if drawn.x is not None:
        groups = codec.channels.split(drawn.x)
        layers += [colours(name, groups[name]) for name in codec.channels.maps[1:]]
    cells = [thumbnails(layer, like=drawn.images) for layer in layers]
    return tile(cells, captions(drawn.labels, class_names), title, columns)


def tile(layers: Sequence[Sequence[Image.Image]], labels: Sequence[int | str], title: str, columns: int) -> Image.Image:
    """Tile pictures of equal size into a grid. Cell i shows labels[i] above layers[0][i], layers[1][i] and so on."""
    cell, gap, top = layers[0][0].width, 4, 22 if title else 4
    rows = -(-len(labels) // columns)
    height = len(layers) * (cell + 1) + gap + 12
    width = max(columns * (cell + gap), math.ceil(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(title)))
    sheet = Image.new("RGB", (width + gap, top + rows * height), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, 4), title, fill=GREY)
    for i, label in enumerate(labels):
        left, upper = gap + i % columns * (cell + gap), top + i // columns * height
        pen.text((left, upper - 1), _clipped(pen, str(label), cell), fill=GREY)
        for depth, layer in enumerate(layers):
            sheet.paste(layer[i], (left, upper + 12 + depth * (cell + 1)))
    return sheet


def _clipped(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Shorten a text to one line of at most `width` pixels."""
    text, whole = " ".join(text.split()), True
    while text and pen.textlength(text if whole else text + "…") > width:
        text, whole = text[:-1], False
    return text if whole else text + "…"


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stack pictures vertically."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), WHITE)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (0, sum(p.height for p in pictures[:i])))
    return sheet


def thumbnails(images: Tensor, like: Tensor) -> list[Image.Image]:
    """Convert (N, 3, H, W) uint8 to PIL pictures, in a size that suits images `like`. Enlarged pixels stay sharp."""
    size = max(64, like.shape[-1]) if like.shape[-1] < 192 else 128
    rule = Image.Resampling.NEAREST if check_images(images).shape[-1] < size else Image.Resampling.LANCZOS
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(array).resize((size, size), rule) for array in arrays]


def num_columns(labels: Tensor, most: int = 10) -> int:
    """Return the number of columns of a sheet in which every column shows one class, at most `most`.

    All classes in `labels` get the same number of columns, at most the number of images of the smallest class.
    """
    counts = labels.unique(return_counts=True)[1].tolist()
    return min(most, len(counts) * max(1, min(most // len(counts), *counts))) if len(counts) > 1 else most


def class_ordered(labels: Tensor, columns: int, rows: int) -> Tensor:
    """Return indices of at most rows x columns labels, row by row, so that every column shows one class."""
    classes = labels.unique()[:columns]
    rows_of_class = rows * (columns // len(classes))
    positions = [(labels == label).nonzero().flatten()[:rows_of_class] for label in classes]
    if len(positions) == 1:  # unlabelled
        return torch.arange(min(len(labels), rows * columns))
    shortest = min(len(members) for members in positions)
    return torch.tensor([int(members[i]) for i in range(shortest) for members in positions])
