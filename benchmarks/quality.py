"""The guard: how much every fast variant changes the results of the plain float32 loop.

    python benchmarks/quality.py                     # 6 minutes on two cores
    python benchmarks/quality.py --device cuda
    python benchmarks/quality.py --brief             # 100 steps, only the GPU's defaults: a minute on a GPU

Training: data, codec and model of the quickstart. All variants use the same batches and random numbers and start from
the same weights. Compared are the loss, averaged over windows of 20 steps, and the final weights. Two references give
the scale: the plain loop from weights that differ in their last bits, and the plain loop with another seed.

Sampling: the EMA weights of the plain loop and the same noise. Compared are the decoded grey levels.
"""

import argparse
import sys
import tempfile
import time
from functools import partial

import torch
from ledger import arguments, device_of, report
from torch import Tensor

LEARNING_RATE, WARMUP, EMA_DECAY, GUIDANCE_SCALE = 1e-3, 100, 0.995, 1.5
WINDOW = 20


def training_ways(device: str, num_steps: int) -> dict[str, dict]:
    """{name: arguments of `trained`}"""
    ways = {
        "plain loop": {"loop": "plain"},
        "plain loop, weights changed in their last bits": {"loop": "plain", "perturbed": True},
        "plain loop, another seed": {"loop": "plain", "seed": 1},
        "library, float32": {},
        "library, float32, compiled": {"compiled": True},
        "library, float32, checkpointing": {"checkpointing": True},
        "library, float32, AdamW in a loop": {"optimizer": {"fused": False, "foreach": False}},
    }
    if device == "cuda":
        return ways | {
            "library, tf32": {"precision": "tf32"},
            "library, bfloat16": {"precision": "bfloat16"},
            "library, bfloat16, compiled": {"precision": "bfloat16", "compiled": True},
            "library, bfloat16, compiled, checkpointing": {
                "precision": "bfloat16", "compiled": True, "checkpointing": True
            },
        }  # fmt: skip
    # Ten times slower than float32 on a CPU without bfloat16 instructions.
    return ways | {"library, bfloat16": {"precision": "bfloat16", "num_steps": num_steps // 5}}


BRIEF = (
    "plain loop", "plain loop, weights changed in their last bits", "plain loop, another seed", "library, float32",
    "library, bfloat16", "library, bfloat16, compiled", "library, bfloat16, attention xformers",
    "library, bfloat16, attention sdpa_flash", "library, bfloat16, attention sdpa_cudnn",
)  # fmt: skip


def sampling_ways(device: str) -> dict[str, dict]:
    """{name: arguments of `drawn`}"""
    from redi.models.attention import BACKENDS

    ways = {"library, float32": {}, "library, float32, compiled": {"compile": True}}
    dtypes = ("float32", "bfloat16") if device == "cuda" else ("float32",)
    for precision in dtypes:
        for backend in BACKENDS:
            ways[f"library, {precision}, attention {backend}"] = {"precision": precision, "attention": backend}
    if device == "cuda":
        ways |= {"library, tf32": {"precision": "tf32"}}
        ways |= {"library, bfloat16, compiled": {"precision": "bfloat16", "compile": True}}
    return ways | {"library, bfloat16": {"precision": "bfloat16"}}


def prepared(folder: str, device: str, *, quick: bool):
    """Return the quickstart's fitted codec and its cache of the digits."""
    import redi
    from redi.data.cache.prepare import prepare

    encoder = redi.encoders.DomainEncoder(image_size=16, **({"num_steps": 5} if quick else {}))
    representation = redi.Representation(encoder=encoder, reducer=redi.reducers.PCA(rank=8))
    codec = redi.JointCodec(autoencoder=redi.autoencoders.Pixels(channels=1), representations=[representation])
    codec.to(device)
    return codec, prepare(codec=codec, dataset=redi.datasets.Digits(split="train"), cache_dir=folder)


def trained(
    codec, data, device: str, batch_size: int, num_steps: int, *, loop: str = "library", seed: int = 0,
    perturbed: bool = False, precision: str = "float32", compiled: bool = False, checkpointing: bool = False,
    optimizer: dict | None = None,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Train; return the losses (steps,), the weights and their EMA."""
    from plain_loop import PlainLoop, parameters_of
    from setups import SETUPS, make_model

    from redi.core.ema import EMA
    from redi.data.loader import batches
    from redi.runtime.device import choose_precision
    from redi.training.step import TrainingStep

    options = {"device": device, "trained": False, "checkpointing": checkpointing}
    model, objective = make_model(SETUPS["quickstart"], codec, **options)
    model.train()
    if perturbed:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + torch.finfo(torch.float32).eps)
    if loop == "plain":
        plain = PlainLoop(
            codec, model, learning_rate=LEARNING_RATE, warmup_steps=WARMUP, ema_decay=EMA_DECAY, seed=seed
        )
        step, average = plain.step, plain.average
    else:
        chosen = choose_precision(precision, torch.device(device))
        model.choose_attention(torch.device(device), chosen.dtype)
        ways = {"fused": True} if optimizer is None else optimizer
        adamw = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, **ways)
        ema = EMA(model=model, decay=EMA_DECAY)
        whole = TrainingStep(
            codec=codec, model=model, objective=objective, optimizer=adamw, ema=ema, precision=chosen,
            warmup_steps=WARMUP, seed=seed, compiled=compiled,
        )  # fmt: skip
        step, average = lambda batch, number: whole(batch, number)["loss"], ema.parameters
    losses = []
    for number, batch in enumerate(batches(data, batch_size=batch_size, seed=seed, start=0, stop=num_steps)):
        losses.append(step({name: tensor.to(device) for name, tensor in batch.items()}, number))
    return torch.stack([torch.as_tensor(loss).cpu() for loss in losses]), parameters_of(model), average


def compared(losses: Tensor, weights: dict, reference: Tensor, reference_weights: dict) -> dict:
    """Return the relative differences from the plain loop."""
    num_steps = len(losses)
    smooth, expected = (
        curve[:num_steps].double().unfold(0, min(WINDOW, num_steps), 1).mean(dim=1) for curve in (losses, reference)
    )
    away = ((smooth - expected) / expected).abs()
    row = {"steps": num_steps, "final_loss": smooth[-1].item(), "loss_difference_mean": away.mean().item()}
    row["loss_difference_max"] = away.max().item()
    if num_steps == len(reference):
        theirs = torch.cat([w.flatten() for w in reference_weights.values()]).double()
        own = torch.cat([w.flatten() for w in weights.values()]).double()
        row["weights_difference"] = ((own - theirs).norm() / theirs.norm()).item()
    return row


def drawn(
    codec, average: dict, device: str, labels: Tensor, evaluations: int, *, loop: str = "library",
    precision: str = "float32", compile: bool = False, attention: str = "auto",
) -> Tensor:  # fmt: skip
    """Return decoded images (N, 3, 8, 8) of the same noise, in float64."""
    import redi
    from redi.core.samplers import ImageNoise

    model, process = model_with(codec, average, device, attention)
    if loop == "plain":
        from plain_loop import plain_sample

        noise = ImageNoise(0, range(len(labels)), (model.channels.total, *model.grid), device)
        x = plain_sample(model, noise, labels.to(device), scale=GUIDANCE_SCALE, num_evaluations=evaluations)
        return codec.decode(x).cpu().double()
    return redi.generate(
        model, codec, process, labels=labels, sampler=redi.samplers.EulerMaruyama(num_evaluations=evaluations),
        guidance=[redi.guidance.ClassifierFree(scale=GUIDANCE_SCALE)], precision=precision, compile=compile,
    ).images.double()  # fmt: skip


def model_with(codec, parameters: dict, device: str, attention: str):
    from setups import SETUPS, make_model

    model, objective = make_model(SETUPS["quickstart"], codec, device=device, attention=attention)
    model.load_state_dict(parameters, strict=False)
    return model.eval(), objective.process


def training_rows(given: argparse.Namespace, device: str, codec, data) -> tuple[list[dict], dict]:
    """Return the rows, and the plain loop's EMA weights."""
    batch_size, num_steps = (128, 300) if device == "cuda" else (32, 200)
    num_steps = 5 if given.quick else 100 if given.brief else num_steps
    train = partial(trained, codec, data, device, batch_size)
    rows, reference, average = [], None, None
    for name, options in training_ways(device, num_steps).items():
        if (given.quick and options.get("compiled")) or (given.brief and name not in BRIEF):
            continue
        start = time.perf_counter()
        settings = {"num_steps": num_steps, **options}
        losses, weights, own = train(**settings)
        if reference is None:
            reference, average = (losses, weights), own
        what = f"training on the digits, batch {batch_size}"
        rows.append({"measurement": what, "variant": name, **compared(losses, weights, *reference)})
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return rows, average


def sampling_rows(given: argparse.Namespace, device: str, codec, average: dict) -> list[dict]:
    images, evaluations = (4, 4) if given.quick else (200, 50) if device == "cuda" else (20, 25)
    draw = partial(drawn, codec, average, device, torch.arange(images) % 10, evaluations)
    expected, rows = draw(loop="plain"), []
    for name, options in sampling_ways(device).items():
        if (given.quick and options.get("compile")) or (given.brief and name not in BRIEF):
            continue
        row = {"measurement": f"samples of the same noise, {images} images, {evaluations} evaluations", "variant": name}
        try:
            away = (draw(**options) - expected).abs()
            row |= {"grey_levels_difference": away.mean().item(), "grey_levels_max": away.max().item()}
            row["pixels_off_by_more_than_1"] = (away > 1).double().mean().item()
        except ValueError as error:  # the reason why a backend cannot run
            if device == "cpu":
                continue
            row["not_run"] = str(error)[:150]
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--brief", action="store_true", help="fewer steps and variants")
    given = parser.parse_args()
    device = device_of(given)

    def save(rows: list[dict]) -> None:
        report(
            "quality", device=device, rows=rows, arguments=given,
            settings={"data": "digits", "learning_rate": LEARNING_RATE, "ema_decay": EMA_DECAY, "loss_window": WINDOW},
            notes=["Differences of losses and weights are relative to the plain loop's; grey levels: 0 to 255."],
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        codec, data = prepared(folder, device, quick=given.quick)
        rows, average = training_rows(given, device, codec, data)
        save(rows)  # finished rows survive if the machine is lost before the end
        save(rows + sampling_rows(given, device, codec, average))


if __name__ == "__main__":
    main()
