"""Time the parts of a training step, and alternatives for each, side by side; used by train_step.py."""

from collections.abc import Callable

from ledger import side_by_side


def breakdown(*, setup: str, batch_size: int, rounds: int, device: str) -> dict:
    """Return {"rows": [...]}: forward, backward, gradient clipping, optimizer and EMA; the last two in variants."""
    import torch
    from setups import SETUPS, make_batch, make_codec, make_model

    from redi.runtime.device import choose_precision

    of = SETUPS[setup]
    codec = make_codec(of).to(device)
    model, objective = make_model(of, codec, device=device)
    batch = make_batch(of, codec, batch_size, device=device)
    precision = choose_precision("auto", torch.device(device))
    model.choose_attention(torch.device(device), precision.dtype)
    x = codec.join(batch)
    drawn = objective.draw(x, batch["labels"])

    def forward():
        with precision.autocast(torch.device(device)):
            return objective.losses(model, x, *drawn)["loss"]

    def forward_and_backward():
        forward().backward()
        for parameter in model.parameters():
            parameter.grad = None

    calls = {
        "join and draw": lambda: objective.draw(codec.join(batch), batch["labels"]),
        "forward": forward,
        "forward and backward": forward_and_backward,
        **updates(model),
    }
    timings = side_by_side(calls, rounds=rounds, warmup=2, device=device)
    step = timings["forward and backward"].median + timings["clip, foreach"].median
    step += timings["AdamW, fused"].median + timings["EMA, foreach"].median + timings["join and draw"].median
    what = f"{setup}, parts of a step, batch {batch_size}, {precision.name}, eager"
    rows = [
        {"measurement": what, "part": name, **timing.columns("part"), "share_of_step": timing.median / step}
        for name, timing in timings.items()
    ]
    return {"rows": rows}


def updates(model) -> dict[str, Callable]:
    """Time clipping, AdamW and EMA on copies of a model's parameters, so that the gradients stay unchanged."""
    import torch
    from torch import nn

    from redi.core.ema import EMA

    def copies() -> list[nn.Parameter]:
        made = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
        for parameter in made:
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        return made

    average, fixed = EMA(model=model), [p.detach().clone() for p in model.parameters()]
    own = copies()

    @torch.no_grad()
    def loop() -> None:
        for mean, parameter in zip(average.parameters.values(), fixed, strict=True):
            mean.mul_(0.9999).add_(parameter, alpha=1e-4)

    ways = {"fused": {"fused": True}, "foreach": {"foreach": True}, "a loop": {"foreach": False, "fused": False}}
    return {
        "clip, foreach": lambda: nn.utils.clip_grad_norm_(own, 1.0, foreach=True),
        "clip, a loop": lambda: nn.utils.clip_grad_norm_(own, 1.0, foreach=False),
        **{f"AdamW, {name}": torch.optim.AdamW(own, lr=1e-4, weight_decay=0.0, **o).step for name, o in ways.items()},
        "EMA, foreach": lambda: average.update(model, 0),
        "EMA, a loop": loop,
    }
