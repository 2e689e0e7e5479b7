"""The least that a component of each kind implements, written from the docstring of its interface: all in one run."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

import redi
from redi.core.clocks import Clock
from redi.core.configurables import import_all
from redi.core.ema import AveragedWeights, copied
from redi.core.objective import JointObjective
from redi.core.processes import Process, per_sample
from redi.core.processes.clocked import Clocked
from redi.core.registry import registries
from redi.core.samplers import Sampler
from redi.core.time_distributions import TimeDistribution
from redi.data.cache.prepare import prepare
from redi.data.datasets import Dataset
from redi.evaluation.evaluate import evaluate
from redi.evaluation.queries import query
from redi.evaluation.samples.sample import sample
from redi.fusion import Fusion
from redi.guidance import Condition, Guidance
from redi.models.autoencoders import Autoencoder
from redi.models.blocks import Block
from redi.models.codec import JointCodec, Representation
from redi.models.encoders import Encoder
from redi.models.reducers import Reducer
from redi.models.transformer import DiffusionTransformer
from redi.training.optimizers import ModelOptimizer
from redi.training.parallel import Parallel
from redi.training.schedules import Schedule
from redi.training.trainer import train


class Stripes(Dataset):
    def __init__(self):
        labels = np.arange(24) % 2
        super().__init__(names=[f"{i}" for i in range(24)], labels=labels, class_names=["rows", "columns"])

    def load(self, index):
        image = np.random.default_rng(index).integers(0, 256, (8, 1, 3), dtype=np.uint8).repeat(8, axis=1)
        return image if index % 2 == 0 else image.transpose(1, 0, 2)

    def provenance(self):
        return {"dataset": "Stripes"}


class Halved(Autoencoder):
    def __init__(self):
        super().__init__()
        self.channels, self.downsample = 3, 2

    def moments(self, images):
        return images[..., ::2, ::2]

    def latents(self, moments, randn=torch.randn):
        return moments.float() / 127.5 - 1

    def decode(self, latents):
        pixels = (127.5 * latents + 127.5).clamp(0, 255).to(torch.uint8)
        return pixels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def provenance(self):
        return {"autoencoder": "Halved"}


class Whitened(Encoder):
    """Pixels of 2 x 2 patches, standardised: a network that learns from data."""

    dim, learns_from_data = 12, True

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((12,), math.nan))

    @property
    def fitted(self):
        return bool(self.mean.isfinite().all())

    def fit(self, dataset):
        self.mean.copy_(self.patches(dataset.batch(range(len(dataset)))["images"]).mean(dim=(0, 2, 3)))

    def patches(self, images):
        return torch.nn.functional.pixel_unshuffle(images.float() / 255, 2)

    def forward(self, images):
        return self.patches(images) - self.mean[:, None, None]

    def fit_settings(self):
        return {"encoder": "Whitened"}

    def provenance(self):
        return self.fit_settings() | {"mean": self.mean.nan_to_num().tolist()}


class Loudest(Reducer):
    """The R features that vary most, by a fit that alone knows the width."""

    def __init__(self, *, rank=2):
        super().__init__(rank=rank)
        self.register_buffer("chosen", None)

    @property
    def fitted(self):
        return self.chosen is not None

    def fit(self, batches):
        self.forget_fit()
        self.chosen = torch.cat(list(batches)).var(dim=(0, 2, 3)).topk(self.rank).indices

    def project(self, features):
        return features[:, self.chosen]

    def fit_settings(self):
        return {"reducer": "Loudest", "rank": self.rank}

    def provenance(self):
        return self.fit_settings()


class Concatenated(Fusion):
    """Group after group along the sequence."""

    def embed(self, x):
        return torch.cat([self.embed_group(n, g) + self.positions for n, g in self.channels.split(x).items()], dim=1)

    def tokens_of(self, tokens):
        return dict(zip(self.channels, tokens.chunk(len(self.channels), dim=1), strict=True))

    @property
    def num_tokens(self):
        return len(self.channels) * len(self.positions)


class Circular(Process):
    """x_t = sin(pi t / 2) x + cos(pi t / 2) noise, of which the network predicts the velocity."""

    def alpha(self, t):
        return torch.sin(math.pi / 2 * torch.as_tensor(per_sample(t)))

    def sigma(self, t):
        return torch.cos(math.pi / 2 * torch.as_tensor(per_sample(t)))

    def target(self, x, noise, t):
        return math.pi / 2 * (self.sigma(t) * x - self.alpha(t) * noise)

    def velocity(self, prediction, x_t, t):
        return prediction

    def clean(self, prediction, x_t, t):  # a rotation, so its inverse is its transpose
        return self.alpha(t) * x_t + self.sigma(t) * prediction / (math.pi / 2)

    def noise(self, prediction, x_t, t):
        return self.sigma(t) * x_t - self.alpha(t) * prediction / (math.pi / 2)


class Gated(Block):
    """A gated linear layer, without attention."""

    def __init__(self, *, width, num_heads, mlp_ratio=4.0):
        super().__init__(width=width, num_heads=num_heads)
        self.layer, self.modulation = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

    def forward(self, tokens, condition, rotation=None):
        return tokens + self.modulation(condition)[:, None] * self.layer(tokens)

    def make_norm(self):
        return torch.nn.Identity()


class Later(Clock):
    """The representation starts slowly."""

    def time(self, group, s):
        return s if group == "image" else s**2

    def slope(self, group, s):
        return 1.0 if group == "image" else 2 * s


class Noisy(TimeDistribution):
    def draw(self, process, shape, device, state):
        return torch.rand(shape, device=device) ** 2


class Leaps(Sampler):
    def run(self, denoise, process, draw, start, end, keep):
        x, step = keep(start, draw()), (end - start) / self.num_evaluations
        for k in range(self.num_evaluations):
            t = start + k * step
            x = keep(t + step, x + step * process.velocity(denoise(x, t), x, t))
        return x


class Away(Guidance):
    """Half a step away from the prediction without a label, on the image."""

    def __init__(self, *, scale=0.5):
        self.scale = scale

    def weight_offsets(self, channels, t):
        return {Condition(): {"image": self.scale}, Condition(label=False): {"image": -self.scale}}

    def check(self, channels, num_classes):
        pass


class Latest(AveragedWeights):
    """No average: the weights of the last step."""

    def __init__(self, *, model):
        self.parameters = copied(model)

    def update(self, model, step):
        self.parameters = copied(model)

    def load(self, parameters, extra=None):
        self.parameters = dict(parameters)


class Alone(Parallel):
    """For one process, which shares nothing."""

    def distribute(self, model, processes, *, compiled):
        raise AssertionError("there is one process")

    def sharing(self, wrapped, model, last):
        return nullcontext()


class Descent(ModelOptimizer):
    """Gradient descent of the matrices alone."""

    def __init__(self, model, *, lr=1e-3):
        super().__init__([p for p in model.parameters() if p.ndim == 2], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * parameter.grad


class Halving(Schedule):
    def __call__(self, step):
        return 0.5**step


COMPONENTS = [
    Halved, Gated, Later, Stripes, Latest, Whitened, Concatenated, Away, Descent, Alone, Circular, Loudest, Leaps,
    Halving, Noisy,
]  # fmt: skip
LEAPS = Leaps(num_evaluations=2)
GENERATE = partial(redi.generate, sampler=LEAPS, guidance=[Away()])
MODEL = partial(DiffusionTransformer, fusion=Concatenated, block=Gated, width=16, depth=1, num_heads=2, patch_size=2)


def new_codec() -> JointCodec:
    return JointCodec(autoencoder=Halved(), representations=[Representation(encoder=Whitened(), reducer=Loudest())])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> redi.Run:
    """Trained, stopped and resumed on components that all come from here, and opened again."""
    folder, codec = tmp_path_factory.mktemp("least"), new_codec()
    dataset = prepare(codec=codec, dataset=Stripes(), cache_dir=folder / "cache")
    for num_steps in (1, 2):
        train(
            folder / "run", codec=codec, dataset=dataset, model=MODEL,
            objective=partial(JointObjective, process=Circular(), clock=Later(), time_distribution=Noisy()),
            ema=Latest, parallel=Alone(), optimizer=Descent, schedule=Halving(),
            preview=GENERATE, preview_every=1, preview_images=2, num_steps=num_steps, batch_size=8,
        )  # fmt: skip
    return redi.load(folder / "run", device="cpu", codec=new_codec(), model=MODEL, process=Clocked(Circular(), Later()))


def test_there_is_one_of_every_kind():
    import_all()
    interfaces = [next(kind for kind, r in registries.items() if issubclass(c, r.interface)) for c in COMPONENTS]
    assert interfaces == sorted(redi.KINDS)


@pytest.mark.parametrize("kind", redi.KINDS)
def test_the_docstring_of_an_interface_names_what_must_be_implemented(kind):
    import_all()
    interface = registries[kind].interface
    required = getattr(interface, "__abstractmethods__", ["run"])
    assert [name for name in required if f"`{name}`" not in interface.__doc__] == []


def test_a_run_of_the_least_components_is_trained_resumed_and_opened_again(run):
    assert run.step == 2 and run.codec.fitted and run.class_names == ["rows", "columns"]
    assert type(run.model.fusion) is Concatenated and run.model.fusion.num_tokens == 2 * 4
    assert (run.folder / "previews" / "step_00000002.png").exists()
    trained = prepare(codec=(codec := new_codec()), dataset=Stripes(), cache_dir=run.folder.parent / "cache")
    images = Stripes().batch(range(4))["images"]
    assert torch.equal(run.codec.encode(images), codec.encode(images)) and len(trained) == 24


def test_it_is_sampled_measured_and_queried(run, tmp_path):
    drawn = sample(tmp_path, trained=run, num_images=8, generate=GENERATE)
    assert drawn.record["sampler"] == {"name": "Leaps", "num_evaluations": 2}
    assert drawn.record["guidance"] == [{"name": "Away", "scale": 0.5}]
    entries = evaluate(tmp_path, dataset=Stripes(), trained=run, networks=[Whitened()], cache_dir=tmp_path)
    assert {"frechet_distance_whitened", "representation_agreement_whitened"} <= {entry["metric"] for entry in entries}
    answers = query(tmp_path, trained=run, dataset=Stripes(), num_images=2, num_variations=1, sampler=LEAPS)
    assert set(answers["features_given_image"]) == {"whitened"}


def test_the_path_of_the_process_is_consistent():
    x, noise = torch.randn(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, process = torch.linspace(0, 1, 5, dtype=torch.float64), Circular()
    x_t, target = process.corrupt(x, noise, t)
    torch.testing.assert_close(process.clean(target, x_t, t), x)
    torch.testing.assert_close(process.noise(target, x_t, t), noise)
