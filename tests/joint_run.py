"""A tiny joint model with random weights, as `redi.load` opens one: eight classes, 8 x 8 pixels, a brightness map."""

import torch
from torch import nn

from redi.core.objective import JointObjective
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.models.interface import build_model
from redi.models.reducers.identity import Identity
from redi.models.representation import Representation
from redi.models.transformer import DiffusionTransformer
from redi.runs.load import Run
from redi.sampling.pictures import ColourBasis


class Brightness(Encoder):
    """The colours of 2 x 2 pixels."""

    dim = 3

    def forward(self, images):
        return nn.functional.avg_pool2d(images.float() / 127.5 - 1, 2)

    def provenance(self):
        return {"encoder": "Brightness"}


def joint_run(*, num_classes: int = 8, representations: bool = True, names=None, **objective) -> Run:
    """The run; further arguments are those of `JointObjective`."""
    torch.manual_seed(0)
    part = Representation(Brightness(), Identity(rank=3, scale="raw", centred=False), name="z")
    codec = JointCodec(Pixels(1), [part] if representations else [])
    built = JointObjective(channels=codec.channels, num_classes=num_classes, **objective)
    arguments = {"channels": codec.channels, "grid": (8, 8), "num_classes": num_classes}
    arguments |= {"group_timesteps": True} if "clock" in objective else {}

    def small(**shape):
        return DiffusionTransformer(**shape, width=16, depth=1, num_heads=2, patch_size=4)

    model = build_model(small, arguments).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.trained_with = built.trained_with
    model.joint_state = model.joint_state._replace(class_names=names)
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    colours = ColourBasis.fit(codec.channels, codec.encode(images))
    weights = {"ema": dict(model.named_parameters())}
    return Run(model, codec, built.process, built, weights, colours, 7, num_classes, 8, class_names=names)
