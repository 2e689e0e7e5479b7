"""One training step, which the training loop, the profile and the benchmarks share."""

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from redi.core.codec import JointCodec
from redi.core.device import Precision, matmul_precision
from redi.core.ema import EMA
from redi.core.objective import JointObjective
from redi.core.seeds import mix_seeds

FLOAT32 = Precision("float32", torch.float32)


class TrainingStep:
    """Encode or join, corrupt, predict, losses, backward, clip, optimizer, EMA.

    Nothing in it waits for the device: what it returns lies there, and the next step can be queued at once. Every
    random number is a function of (seed, step). The parts have names in a profile.

    Args:
        codec, model, objective, optimizer, ema: built for each other, on one device.
        precision: of the forward and backward pass.
        accumulate: equal parts that a batch is cut into, one after the other.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        warmup_steps: the learning rate rises linearly over so many steps, then stays.
        seed: of the run.
        compiled: see `JointObjective.compile`; it happens at the first call.
    """

    def __init__(
        self,
        *,
        codec: JointCodec,
        model: nn.Module,
        objective: JointObjective,
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        precision: Precision = FLOAT32,
        accumulate: int = 1,
        max_grad_norm: float = 1.0,
        warmup_steps: int = 0,
        seed: int = 0,
        compiled: bool = False,
    ):
        self.codec, self.model, self.optimizer, self.ema = codec, model, optimizer, ema
        self.precision, self.accumulate, self.seed = precision, accumulate, seed
        self.max_grad_norm, self.warmup_steps = max_grad_norm, warmup_steps
        self.objective = objective.to(next(model.parameters()).device)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        if compiled:
            objective.compile()

    def __call__(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """A batch on the model's device: images or what `JointCodec.precompute` gives, and labels (N,).

        Returns:
            {"loss": (), <group>: (), ..., "gradient_norm": ()}, means over the batch, before the update.
        """
        torch.manual_seed(mix_seeds(self.seed, step))
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))
        means: dict[str, Tensor] = {}
        for part in self._parts(batch):
            for name, value in self._accumulate_gradients(part).items():
                means[name] = means.get(name, 0.0) + value.detach() / self.accumulate
        with record_function("optimizer"):
            parameters = self.model.parameters()
            means["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with record_function("ema"):
            self.ema.update(self.model, step)
        return means

    def _accumulate_gradients(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        with record_function("encode"):
            stored = part if "image" in part else self.codec.precompute(part["images"])
            x = self.codec.join(stored)  # (N, C, H, W)
        aligned = {name: stored[name] for name in ("alignment",) if name in stored}
        with matmul_precision(self.precision.name):
            with record_function("forward"), self.precision.autocast(x.device):
                losses = self.objective(self.model, x, part["labels"], **aligned)
            with record_function("backward"):
                (losses["loss"] / self.accumulate).backward()
        return losses

    def _parts(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        parts = zip(*(tensor.chunk(self.accumulate) for tensor in batch.values()), strict=True)
        return [dict(zip(batch, part, strict=True)) for part in parts]
