"""One training step: fast implementations compared with the plain one, and with the explicit equations."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from redi.core.channels import Channels
from redi.core.clocks import Lead
from redi.core.ema import EMA
from redi.core.losses import min_snr
from redi.core.objective import JointObjective
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.time_distributions import LogitNormal
from redi.fusion.separate import Separate
from redi.models import transformer
from redi.models.blocks import Modern
from redi.models.reducers.learned_projection import LearnedProjection
from redi.models.transformer import DiffusionTransformer
from redi.runtime.device import Precision
from redi.training.step import TrainingStep

CHANNELS = Channels(image=2, z=3)
# In place of a codec: already one state.
JOINED = SimpleNamespace(join=lambda stored, randn: stored["image"], alignments=())
BFLOAT16 = Precision("bfloat16", torch.bfloat16)


def step_of(*, objective=None, model=None, depth=2, seed=0, codec=JOINED, **settings):
    torch.manual_seed(seed)
    loss_of = JointObjective(channels=CHANNELS, num_classes=4, representation_dropout=0.3, **(objective or {}))
    variances = loss_of.process.variance_groups
    loss_of = loss_of.with_parts_of(codec) if hasattr(codec, "trained_parts") else loss_of
    net = DiffusionTransformer(
        channels=CHANNELS, grid=(4, 4), num_classes=4, variance_groups=variances, width=32, depth=depth, num_heads=4,
        patch_size=2, **(model or {}),
    ).train()  # fmt: skip
    loss_of.attach(net)
    for parameter in net.parameters():  # the initial ones predict 0, whatever happens inside
        torch.nn.init.normal_(parameter, std=0.1)
    return TrainingStep(
        codec=codec, model=net, objective=loss_of, optimizer=torch.optim.AdamW(net.parameters(), lr=1e-2),
        ema=EMA(model=net, decay=0.5), **settings,
    )  # fmt: skip


def batch(seed=1, n=6):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(n, CHANNELS.total, 4, 4, generator=generator),
        "labels": torch.randint(0, 4, (n,), generator=generator),
    }


def run(step, num_steps=3):
    return [{name: value.flatten().tolist() for name, value in step(batch(k), k).items()} for k in range(num_steps)]


def assert_same(found, expected, rtol):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=rtol), name


SET_UPS = {
    "sit": {},
    "separate tokens": {"model": {"fusion": Separate}},
    "dit with learned variances": {"objective": {"process": DDPM(num_timesteps=20)}},
    "checkpointing, an inner prediction": {
        "objective": {"inner_layer": 1},
        "model": {"inner_layer": 1, "checkpointing": True},
    },
    "released dropout": {"objective": {"dropout_rule": "released"}},
    "a time for every group": {"objective": {"independent_timesteps": True}, "model": {"group_timesteps": True}},
    "a group that leads, modern blocks and a wide head": {
        "objective": {"clock": Lead(), "time_distribution": LogitNormal()},
        "model": {"group_timesteps": True, "group_times_by": "concatenation", "timestep_features": "gaussian"}
        | {"block": Modern, "head_width": 48, "head_depth": 1},
    },
    "velocity loss, cosine and time weight": {
        "objective": {
            "process": FlowMatching(prediction="data", loss_on="velocity"),
            "clock": Lead(offset=0.3),
            "cosine_weight": 1.0,
            "time_weight": min_snr,
            "joint_dropout": 0.2,
        },
        "model": {"group_timesteps": True},
    },
}


@pytest.mark.parametrize("set_up", SET_UPS.values(), ids=SET_UPS)
def test_the_step_compiles_as_one_graph_and_computes_the_same(set_up, monkeypatch):
    """With AOTAutograd, which traces and differentiates as for a GPU, but generates no code; fullgraph is refused where
    something in the step depends on values."""
    torch._dynamo.reset()
    compile = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile)
    fast, plain = (step_of(compiled=compiled, depth=1, **copy.deepcopy(set_up)) for compiled in (True, False))
    assert_same(run(fast), run(plain), rtol=1e-5)
    for name, average in plain.ema.parameters.items():
        torch.testing.assert_close(fast.ema.parameters[name], average, rtol=1e-4, atol=1e-6)


def aligned(names=("alignment",), **settings):
    """A step with REPA, and a function that returns its losses of some steps."""
    dims = {name: 5 + number for number, name in enumerate(names)}
    model = {"alignment_dim": dims if len(dims) > 1 else 5, "alignment_layer": 1, "alignment_width": 8}
    codec = SimpleNamespace(join=JOINED.join, alignments=names)
    step = step_of(model=model, codec=codec, **settings)

    def losses(num_steps=3):
        features = {
            name: torch.randn(6, dim, 3, 3, generator=torch.Generator().manual_seed(dim)) for name, dim in dims.items()
        }
        steps = (step(batch(k) | features, k) for k in range(num_steps))
        return [{name: value.flatten().tolist() for name, value in losses.items()} for losses in steps]

    return step, losses


def test_from_the_end_step_on_a_run_is_one_without_alignment():
    never, plain = aligned(objective={"alignment_end_step": 0}), aligned(names=())
    before = copy.deepcopy(never[0].model.projector.state_dict())
    assert never[1]() == plain[1]()
    for name, weight in plain[0].model.state_dict().items():
        assert torch.equal(never[0].model.state_dict()[name], weight), name
    assert all(torch.equal(never[0].model.projector.state_dict()[name], weight) for name, weight in before.items())
    ends, always = (aligned(objective={"alignment_end_step": end}) for end in (2, None))
    losses, longer = ends[1](), always[1]()
    assert losses[:2] == longer[:2] and ["alignment" in entry for entry in losses] == [True, True, False]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_several_encoders_are_compiled_and_the_end_step_is_a_graph_of_its_own(accumulate, monkeypatch):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    settings = {"objective": {"alignment_end_step": 2, "alignment_normalisation": 0.6}, "accumulate": accumulate}
    fast, plain = (aligned(("alignment_a", "alignment_b"), compiled=c, depth=1, **settings) for c in (True, False))
    found, expected = fast[1](5), plain[1](5)
    assert_same(found, expected, rtol=1e-4)
    assert len(graphs) == 2
    assert [sorted(name for name in entry if "alignment" in name) for entry in found[1:3]] == [
        ["alignment_a", "alignment_b"], []
    ]  # fmt: skip


@pytest.mark.parametrize("image_gradient", [True, False])
def test_a_learned_projection_compiles_and_its_statistics_are_those_of_the_whole_batch(image_gradient, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    def losses(**settings):
        part = LearnedProjection(3, store_rank=5, image_gradient=image_gradient).trained_part()
        codec = SimpleNamespace(join=JOINED.join, alignments=(), trained_parts=lambda: {"z": part})
        stored = [torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(k)) for k in range(2)]
        step = step_of(codec=codec, depth=1, **settings)
        found = [step(batch(k) | {"z": stored[k]}, k) for k in range(2)]
        return [{name: value.flatten().tolist() for name, value in one.items()} for one in found]

    plain = losses()
    assert plain[0]["projection/z/effective_rank"] != plain[1]["projection/z/effective_rank"]
    assert_same(losses(compiled=True), plain, rtol=1e-4)
    parts = [{name: value for name, value in one.items() if "by_t" not in name} for one in losses(accumulate=3)]
    assert_same(parts, [{name: one[name] for name in parts[0]} for one in plain], rtol=1e-4)


@pytest.mark.chaos
def test_the_step_compiles_to_machine_code_and_computes_the_same():
    torch._dynamo.reset()
    assert_same(run(step_of(compiled=True, depth=1)), run(step_of(depth=1)), rtol=1e-5)


@pytest.mark.parametrize("set_up", list(SET_UPS.values())[:2], ids=list(SET_UPS)[:2])
def test_checkpointing_changes_nothing_but_memory(set_up):
    model = set_up.get("model", {})
    kept, recomputed = step_of(model=model), step_of(model=model | {"checkpointing": True})
    assert run(recomputed) == run(kept)


def test_checkpointing_keeps_one_tensor_for_each_block():
    def saved(**settings):
        sizes = []
        model = step_of(model=settings).model
        pack = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch()["image"], torch.rand(6), batch()["labels"])
        return sum(sizes)

    assert saved(checkpointing=True) < 0.4 * saved()


def test_sampling_and_evaluation_mode_do_not_checkpoint(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("recomputed")

    monkeypatch.setattr(transformer, "checkpoint", refuse)
    model, inputs = step_of(model={"checkpointing": True}).model, (batch()["image"], torch.rand(6), batch()["labels"])
    with torch.no_grad():
        model(*inputs)
    model.eval()
    model(*inputs)
    model.train()
    with pytest.raises(AssertionError, match="recomputed"):
        model(*inputs)
    assert checkpoint is not transformer.checkpoint


def test_islands_of_float32_stay_under_autocast():
    """Time embedding, modulation, normalisation and the residual stream in float32; products in bfloat16."""
    model, seen = step_of().model, {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs, output)}))
    with torch.autocast("cpu", torch.bfloat16):
        model(batch()["image"], torch.rand(6), batch()["labels"])

    def dtypes(name):
        inputs, output = seen[name]
        return inputs[0].dtype, output.dtype

    full, half = torch.float32, torch.bfloat16
    for name in ("timestep_embedding", "timestep_embedding.mlp", "blocks.0.modulation", "final_modulation"):
        assert dtypes(name)[1] == full, name
    for name in ("blocks.0.norm1", "blocks.1.norm2", "final_norm"):
        assert dtypes(name) == (full, full), name
    assert dtypes("blocks.0") == dtypes("blocks.1") == (full, full)  # the residual stream
    for name in ("blocks.0.qkv", "blocks.1.mlp.0", "fusion.heads.image"):
        assert dtypes(name)[1] == half, name


def test_bfloat16_follows_float32():
    """Losses are means over 1,152 values with a relative rounding error of 2^-9."""
    full, half = run(step_of()), run(step_of(precision=BFLOAT16))
    assert_same(half, full, rtol=0.02)
    step = step_of(precision=BFLOAT16)
    run(step)
    assert all(p.dtype == torch.float32 for p in step.model.parameters())
    assert all(average.dtype == torch.float32 for average in step.ema.parameters.values())
    moments = [v for state in step.optimizer.state.values() for v in state.values() if v.ndim]
    assert all(moment.dtype == torch.float32 for moment in moments)


def test_a_step_depends_on_its_number_and_the_seed_alone():
    one, other = step_of(seed=3), step_of(seed=3)
    one.seed = other.seed = 5
    torch.manual_seed(9)
    first = one(batch(), 7)
    torch.manual_seed(10)
    assert first["loss"] == other(batch(), 7)["loss"]
    assert first["loss"] != step_of(seed=3)(batch(), 8)["loss"]


def test_what_a_step_gives_is_detached_and_of_the_whole_batch():
    torch.manual_seed(0)
    step = step_of(accumulate=3)
    given = step(batch(), 0)
    assert set(given) == {"loss", "image", "z", "loss_by_t/image", "loss_by_t/z", "gradient_norm", "skipped"}
    assert not any(value.requires_grad for value in given.values())
    assert all(p.grad is None for p in step.model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_on_a_gpu_never_waits_for_it(compiled):
    step = step_of(compiled=compiled, precision=BFLOAT16)
    step.model.cuda()
    step.ema = EMA(model=step.model)
    step.optimizer = torch.optim.AdamW(step.model.parameters(), fused=True)
    on_gpu = {name: tensor.cuda() for name, tensor in batch().items()}
    for k in range(3):
        step(on_gpu, k)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(on_gpu, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
