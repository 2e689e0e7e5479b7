"""Generation with a tiny network whose weights are random (the initial ones predict 0)."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from redi.core.clocks import Lead
from redi.core.processes.clocked import Clocked
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.shifted import Shifted
from redi.core.samplers import ImageNoise, Sampler, samplers
from redi.core.samplers.euler import Euler
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.ode import AdaptiveODE
from redi.guidance import Condition
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.contrast import Contrast
from redi.guidance.representation import RepresentationGuidance
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer
from redi.sampling.generate import generate

NUM_CLASSES = 3


@pytest.fixture(scope="module")
def codec():
    representation = Representation(encoder=DomainEncoder(width=8, image_size=8), reducer=PCA(rank=2), name="z")
    return JointCodec(autoencoder=Pixels(channels=1), representations=[representation])  # decoding needs no fit


def random_model(codec, seed=0, num_classes=NUM_CLASSES):
    torch.manual_seed(seed)
    model = DiffusionTransformer(
        channels=codec.channels, grid=(4, 4), num_classes=num_classes, width=16, depth=1, num_heads=2, patch_size=2
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def model(codec):
    return random_model(codec)


def draw(model, codec, labels=(0, 1, 2), **settings):
    return generate(model, codec, FlowMatching(), labels=labels, **({"sampler": Euler(num_evaluations=4)} | settings))


def test_one_image_and_one_joint_state_per_label(model, codec):
    drawn = draw(model, codec, labels=[2, 0, 1, 1])
    assert drawn.images.shape == (4, 3, 4, 4)
    assert drawn.images.dtype == torch.uint8
    assert drawn.x.shape == (4, 3, 4, 4)
    assert drawn.labels.tolist() == [2, 0, 1, 1]
    assert not drawn.x.requires_grad


def test_the_images_are_the_decoded_states(model, codec):
    drawn = draw(model, codec)
    assert torch.equal(drawn.images, codec.decode(drawn.x))


def test_generation_is_the_sampler_on_the_noise_of_each_image(model, codec):
    x = ImageNoise(5, range(3), (3, 4, 4))()
    labels = torch.tensor([0, 1, 2])
    for step in range(4):
        x = x + model(x, torch.full((3,), step / 4), labels).detach() / 4
    torch.testing.assert_close(draw(model, codec, seed=5).x, x, rtol=1e-5, atol=1e-5)


# Ancestral needs a discrete process; AdaptiveODE chooses its steps for a batch as a whole.
@pytest.mark.parametrize("name", sorted(set(samplers) - {"Ancestral", "AdaptiveODE"}))
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batch_size_does_not_matter(model, codec, name, batch_size):
    labels = [i % NUM_CLASSES for i in range(8)]
    settings = {"sampler": samplers[name](num_evaluations=4), "guidance": [ClassifierFree(scale=1.5)]}
    expected = draw(model, codec, labels, **settings, batch_size=5)
    # The batch size changes the order of summation in matrix products: a few units in the last place a step.
    torch.testing.assert_close(
        draw(model, codec, labels, **settings, batch_size=batch_size).x, expected.x, rtol=1e-4, atol=1e-4
    )


def test_an_image_does_not_depend_on_the_other_labels(model, codec):
    first, second = draw(model, codec, [0, 1, 2]), draw(model, codec, [2, 1, 0])
    torch.testing.assert_close(first.x[1], second.x[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first.x[0], second.x[0], atol=1e-2)


def test_first_index_continues_the_same_row_of_images(model, codec):
    expected = draw(model, codec, [0, 1, 2]).x[2:]
    torch.testing.assert_close(draw(model, codec, [2], first_index=2).x, expected, rtol=1e-4, atol=1e-4)


def test_a_seed_decides_the_images(model, codec):
    torch.manual_seed(0)
    first = draw(model, codec, seed=1)
    torch.manual_seed(1)
    assert torch.equal(first.x, draw(model, codec, seed=1).x)
    assert not torch.allclose(first.x, draw(model, codec, seed=2).x, atol=1e-2)


@pytest.mark.parametrize("seed", [2**64, -1, "3", 1.0, None])
def test_a_seed_that_is_none_of_its_own_is_refused(model, codec, seed):
    with pytest.raises(ValueError, match=r"must be an integer of at least 0 and less than 2\*\*64"):
        draw(model, codec, seed=seed)


def test_given_noise_takes_the_place_of_the_seed_s(model, codec):
    noise = ImageNoise(5, range(3), (3, 4, 4))
    settings = {"sampler": EulerMaruyama(num_evaluations=4), "batch_size": 2}
    given = draw(model, codec, draw=[noise() for _ in range(4)], **settings)
    assert torch.equal(given.x, draw(model, codec, seed=5, **settings).x)
    assert given.record["seed"] is None


@pytest.mark.parametrize("noise", [[], torch.zeros(3, 3, 4, 4), [torch.zeros(2, 3, 4, 4)]])
def test_noise_of_another_shape_is_refused(model, codec, noise):
    with pytest.raises(ValueError, match=r"draw must be tensors of shape \(3, 3, 4, 4\), the initial noise first"):
        draw(model, codec, draw=noise)


def test_too_little_noise_is_refused(model, codec):
    with pytest.raises(ValueError, match="draw has 2 tensors, but the sampler needs more"):
        draw(model, codec, draw=torch.zeros(2, 3, 3, 4, 4), sampler=EulerMaruyama(num_evaluations=4))


@pytest.mark.parametrize("batch_size", [2, 3])
def test_the_trajectory_is_that_of_the_sampler(model, codec, batch_size):
    drawn = draw(model, codec, seed=5, trajectory=True, batch_size=batch_size)
    assert drawn.times == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert drawn.trajectory.shape == (5, 3, 3, 4, 4)
    assert torch.equal(drawn.trajectory[0], ImageNoise(5, range(3), (3, 4, 4))())
    assert torch.equal(drawn.trajectory[-1], drawn.x)
    assert torch.equal(drawn.x, draw(model, codec, seed=5, batch_size=batch_size).x)
    halfway = draw(model, codec, seed=5, draw=[drawn.trajectory[0]], trajectory=True).trajectory[2]
    torch.testing.assert_close(drawn.trajectory[2], halfway, rtol=1e-4, atol=1e-4)
    assert draw(model, codec).trajectory is None


def test_a_trajectory_shows_given_groups_on_their_own_path(model, codec):
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = draw(model, codec, given={"z": z}, trajectory=True)
    for t, x in zip(drawn.times, drawn.trajectory, strict=True):
        torch.testing.assert_close(x[:, 1:], t * z + (1 - t) * drawn.trajectory[0][:, 1:])


def test_a_trajectory_of_several_batches_is_refused_where_each_has_times_of_its_own(model, codec):
    with pytest.raises(ValueError, match=r"generate.batch_size = 2: AdaptiveODE chooses its times for each batch"):
        draw(model, codec, sampler=AdaptiveODE(), trajectory=True, batch_size=2)
    drawn = draw(model, codec, sampler=AdaptiveODE(), trajectory=True)
    assert drawn.times[0] == 0 and drawn.times[-1] == 1 and torch.equal(drawn.trajectory[-1], drawn.x)


def test_a_sampler_written_for_version_0_1_still_draws(model, codec):
    class Older(Sampler):
        def __call__(self, denoise, process, draw):
            x = draw()
            return x + process.velocity(denoise(x, 0.0), x, 0.0)

    old, new = (draw(model, codec, sampler=sampler(num_evaluations=1)).x for sampler in (Older, Euler))
    torch.testing.assert_close(old, new)


def test_own_times_are_refused_with_a_clock_that_does_not_train_them(model, codec):
    z = torch.zeros(3, 2, 4, 4)
    process = Clocked(FlowMatching(), Lead())
    told = DiffusionTransformer(
        channels=codec.channels, grid=(4, 4), num_classes=NUM_CLASSES, width=16, depth=1, num_heads=2, patch_size=2,
        group_timesteps=True,
    )  # fmt: skip
    settings = {"labels": [0, 1, 2], "given": {"z": z}, "own_time": True, "sampler": Euler(num_evaluations=4)}
    with pytest.raises(
        ValueError, match=r"own_time = True with a model of Lead: must be False, or train with clocks\.I"
    ):
        generate(told, codec, process, **settings)
    with pytest.raises(ValueError, match=r"own_time = True with a model of one t for all groups: must be False"):
        generate(model, codec, FlowMatching(), **settings)
    assert torch.equal(generate(told, codec, FlowMatching(), **settings).x[:, 1:], z)


def test_other_weights_are_used_where_they_are_given(model, codec):
    other = random_model(codec, seed=1)
    weights = {name: p.detach() for name, p in other.named_parameters()}
    assert torch.equal(draw(model, codec, weights=weights).x, draw(other, codec).x)


def test_other_weights_do_not_stay_in_the_model(model, codec):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    draw(model, codec, weights={name: torch.zeros_like(p) for name, p in model.named_parameters()})
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_s_mode_stays_as_it_was(codec, training):
    model = random_model(codec).train(training)
    draw(model, codec)
    assert model.training is training


def test_the_record_says_how_the_images_were_drawn(model, codec):
    record = draw(model, codec, seed=9, guidance=[ClassifierFree(scale=2.0)], batch_size=2).record
    assert json.loads(json.dumps(record)) == {
        "seed": 9,
        "sampler": {"name": "Euler", "num_evaluations": 4},
        "guidance": [{"name": "ClassifierFree", "scale": 2.0, "groups": ["image"], "interval": [0.0, 1.0]}],
        "given": [],
        "precision": "float32",
        "function_evaluations": 4,
        "network_evaluations_per_image": 8.0,
    }


def test_both_guidance_rules_cost_three_evaluations_a_step(model, codec):
    record = draw(model, codec, guidance=[ClassifierFree(), RepresentationGuidance()]).record
    assert record["function_evaluations"] == 4
    assert record["network_evaluations_per_image"] == 12


class Weaker(Contrast):
    """Away from the prediction of another network."""

    def __init__(self, scale, network, interval=(0.0, 1.0)):
        super().__init__(scale, ("image", "z"), interval)
        self.network = network

    def condition(self, channels):
        return Condition(network="weak")

    def networks(self):
        return {"weak": self.network}

    def provenance(self):
        return {"name": "Weaker"}


def test_evaluations_are_counted_for_each_network(model, codec):
    weak = random_model(codec, seed=1)
    rules = [Weaker(0.0, weak, interval=(0.5, 1.0)), ClassifierFree(2.0, interval=(0.25, 0.25))]  # t = 0, 1/4, 1/2, 3/4
    record = json.loads(json.dumps(draw(model, codec, guidance=rules).record))
    assert record["function_evaluations"] == 4
    assert record["evaluations_by_network"] == {"self": 3.0, "weak": 2.0}  # at scale 0 the weak network is alone
    assert record["network_evaluations_per_image"] == 5.0


def test_guidance_by_the_model_itself_draws_the_samples_of_the_model(model, codec):
    guided = draw(model, codec, guidance=[Weaker(3.0, model)])
    torch.testing.assert_close(guided.x, draw(model, codec).x, rtol=1e-4, atol=1e-4)


def test_an_interval_is_in_the_time_that_the_process_gives_its_group(model, codec):
    process = Shifted(shift={"z": 0.25})  # t of z is at least 1/2 from s = 1/5 on
    settings = {"labels": [0], "sampler": Euler(num_evaluations=4)}
    for group, count in {"z": 7.0, "image": 6.0}.items():
        rule = ClassifierFree(groups=(group,), interval=(0.5, 1.0))
        record = generate(model, codec, process, guidance=[rule], **settings).record
        assert record["network_evaluations_per_image"] == count


def test_a_rule_that_takes_its_times_for_one_number_is_refused(model, codec):
    class Linear(ClassifierFree):
        def weight_offsets(self, channels, t):
            return {Condition(): {"image": 0.5 * t}}

    with pytest.raises(ValueError, match="Linear.scale = 2.4.*weight_offsets uses t as a number: it is {group"):
        draw(model, codec, guidance=[Linear()])


def test_the_default_sampler_is_the_paper_s(model, codec):
    record = draw(model, codec, labels=[0], sampler=None).record
    assert record["sampler"] == {
        "name": "EulerMaruyama",
        "num_evaluations": 250,
        "diffusion_form": "sigma",
        "diffusion_norm": 1.0,
        "last_step": "mean",
        "last_step_size": 0.04,
    }


def test_the_null_label_can_be_drawn(model, codec):
    assert draw(model, codec, [NUM_CLASSES]).images.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("labels", [[0, -1], [0, NUM_CLASSES + 1]])
def test_labels_out_of_range_are_refused(model, codec, labels):
    with pytest.raises(ValueError, match=r"labels range from .* must be in 0 ... 2, or 3 for the null label"):
        draw(model, codec, labels)


@pytest.mark.parametrize("labels", [[2.9], torch.tensor([1.0]), [[0, 1]], torch.tensor(1)])
def test_labels_that_are_no_list_of_whole_numbers_are_refused(model, codec, labels):
    with pytest.raises(ValueError, match="labels are torch.*: must be a list of class numbers or class names"):
        draw(model, codec, labels)


def test_no_labels_are_refused(model, codec):
    with pytest.raises(ValueError, match="must hold at least one label"):
        draw(model, codec, [])


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"batch_size": 2.0}, {"seed": -1}, {"seed": 2**64}])
def test_a_number_out_of_its_range_is_refused_by_name(model, codec, setting):
    with pytest.raises(ValueError, match=rf"generate\.{next(iter(setting))} = .* must be an integer of at least"):
        draw(model, codec, **setting)


@pytest.mark.parametrize(
    ("settings", "binding"),
    [
        ({"sampler": ClassifierFree()}, "generate.sampler"),
        ({"sampler": Euler}, "generate.sampler"),
        ({"guidance": [Euler()]}, "generate.guidance"),
        ({"guidance": [ClassifierFree]}, "generate.guidance"),
    ],
)
def test_the_wrong_kind_of_object_is_refused_with_its_binding(model, codec, settings, binding):
    with pytest.raises(ValueError, match=binding):
        draw(model, codec, **settings)


def test_guidance_that_the_model_cannot_follow_is_refused(codec):
    with pytest.raises(ValueError, match="unconditional"):
        draw(random_model(codec, num_classes=1), codec, [0], guidance=[ClassifierFree()])


def test_bfloat16_agrees_with_float32_to_its_accuracy_and_is_recorded(model, codec):
    expected = draw(model, codec, list(range(NUM_CLASSES)) * 4)
    drawn = draw(model, codec, list(range(NUM_CLASSES)) * 4, precision="bfloat16")
    assert (expected.record["precision"], drawn.record["precision"]) == ("float32", "bfloat16")
    assert drawn.x.dtype == torch.float32
    error = (drawn.x - expected.x).square().mean().sqrt() / expected.x.std()
    # eps = 2^-7; every evaluation rounds some ten products in a row, and few errors add up.
    assert 0 < error < 4 * torch.finfo(torch.bfloat16).eps


class Raises(Euler):
    """Fails in the middle of sampling."""

    def __call__(self, denoise, process, draw):
        super().__call__(denoise, process, draw)
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sampler", [Euler(num_evaluations=1), Raises(num_evaluations=1)])
def test_attention_and_mode_are_those_of_before(codec, sampler, training):
    model = random_model(codec).train(training)
    model.choose_attention("cpu", torch.float32)
    before = [block.attend for block in model.blocks]
    with pytest.raises(RuntimeError, match="out of memory") if isinstance(sampler, Raises) else nullcontext():
        draw(model, codec, sampler=sampler, precision="bfloat16")
    assert model.attention_for == ("cpu", torch.float32)
    assert [block.attend for block in model.blocks] == before
    assert model.training is training


def test_the_mode_is_that_of_before_where_no_attention_can_be_chosen(codec):
    model = random_model(codec).train(True)
    model.attention = "nonsense"
    with pytest.raises(ValueError, match="DiffusionTransformer.attention = 'nonsense'"):
        draw(model, codec)
    assert model.training


def test_compiled_generation_draws_the_same_and_fills_up_the_last_batch(model, codec, monkeypatch):
    torch._dynamo.reset()
    sizes, compile = [], torch.compile

    def traced(module, **settings):
        fast = compile(module, backend="aot_eager", **settings)
        return lambda x, t, y: sizes.append(len(x)) or fast(x, t, y)

    settings = {"labels": [0, 1, 2, 0, 1], "batch_size": 3, "guidance": [ClassifierFree(scale=2.0)]}
    expected = draw(model, codec, **settings)
    monkeypatch.setattr(torch, "compile", traced)
    drawn = draw(model, codec, compile=True, **settings)
    torch.testing.assert_close(drawn.x, expected.x, rtol=1e-5, atol=1e-5)
    assert drawn.record == expected.record and drawn.labels.tolist() == settings["labels"]
    assert set(sizes) == {6}  # 3 images under 2 conditions, in the batch of 2 images too


def test_a_second_call_compiles_nothing(model, codec):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    compile, graphs = torch.compile, []
    for weights in (None, {name: p.detach() * 0.9 for name, p in model.named_parameters()}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", lambda module, **settings: compile(module, backend="aot_eager", **settings))
            counters.clear()
            draw(model, codec, compile=True, weights=weights)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 0]


def test_a_model_keeps_its_mode_and_its_weights(model, codec):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    draw(model, codec, weights={name: torch.zeros_like(p) for name, p in model.named_parameters()})
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()


# Vectors


@pytest.fixture(scope="module")
def token_codec():
    parts = [(PCA(rank=2), None), (PCA(rank=5), "pooled")]
    parts = [Representation(DomainEncoder(width=8, image_size=8), reducer, vector=vector) for reducer, vector in parts]
    return JointCodec(autoencoder=Pixels(channels=1), representations=parts).for_image_size(4)


@pytest.fixture(scope="module")
def token_model(token_codec):
    return random_model(token_codec)


class Everywhere(nn.Module):
    """Predicts values for the padding of vectors too."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.channels, self.grid, self.num_classes = model.channels, model.grid, model.num_classes

    def forward(self, x, t, y):
        return self.model(x, t, y) + 0.1 * x.abs().mean() + 1


@pytest.mark.parametrize("sampler", [Euler(num_evaluations=3), EulerMaruyama(num_evaluations=3)], ids=["ODE", "SDE"])
def test_images_with_a_vector_are_the_same_in_any_batch(token_model, token_codec, sampler):
    settings = {"sampler": sampler, "guidance": [ClassifierFree({"domain_pooled": 2.0})]}
    together = draw(token_model, token_codec, labels=[0, 1, 2, 1, 0], **settings)
    parts = draw(token_model, token_codec, labels=[0, 1, 2, 1, 0], batch_size=2, **settings)
    torch.testing.assert_close(parts.x, together.x, rtol=0, atol=1e-6)
    alone = draw(token_model, token_codec, labels=[2], first_index=2, **settings)
    torch.testing.assert_close(alone.x, together.x[2:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", [Euler(num_evaluations=3), EulerMaruyama(num_evaluations=3)], ids=["ODE", "SDE"])
def test_padding_is_zero_in_every_state_whatever_the_network_predicts_there(token_model, token_codec, sampler):
    noise = torch.randn(4, 3, token_codec.channels.total, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = draw(Everywhere(token_model), token_codec, sampler=sampler, draw=noise, trajectory=True)
    for x in (drawn.x, *drawn.trajectory):
        assert not x[:, 3].flatten(1)[:, 5:].any() and x[:, 3].flatten(1)[:, :5].all()


def test_a_given_vector_comes_back(token_model, token_codec):
    numbers = torch.randn(3, 5)
    drawn = draw(token_model, token_codec, given={"domain_pooled": numbers})
    assert torch.equal(token_codec.channels.unpadded(drawn.x)["domain_pooled"][:, :, 0, 0], numbers)
    assert drawn.record["given"] == ["domain_pooled"]
