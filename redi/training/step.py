"""One training step, which the training loop, the profile and the benchmarks share."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from redi.core.ema import AveragedWeights
from redi.core.objective import JointObjective
from redi.models.codec import JointCodec
from redi.runtime.device import Precision, compile_full_graph, matmul_precision
from redi.runtime.distributed import Processes
from redi.runtime.randomness import mix_seeds
from redi.training.parallel import Parallel
from redi.training.parallel.ddp import DDP

FLOAT32 = Precision("float32", torch.float32)


class TrainingStep:
    """Encode or join, corrupt, predict, losses, backward, clip, optimizer, EMA.

    Nothing in it waits for the device: what it returns lies there, and the next step can be queued at once. (Only an
    optimizer that cannot skip a step by itself, as torch's fused ones can, makes it wait for the gradient's norm.)
    Every random number is a function of (seed, step) and of the sample's row in the batch: neither the number of
    processes nor that of parts changes it. The parts have names in a profile.

    Args (the others as of `train`; built for each other, on one device):
        compiled: the losses as one graph (torch.compile), at the first call.
        processes: which rows of a step's batch are given here.
        parallel: how several processes share the gradients; `parallel.distribute(model)` was called.
    """

    def __init__(
        self, *, codec: JointCodec, model: nn.Module, objective: JointObjective, optimizer: torch.optim.Optimizer,
        ema: AveragedWeights, precision: Precision = FLOAT32, accumulate: int = 1, max_grad_norm: float = 1.0,
        warmup_steps: int = 0, seed: int = 0, compiled: bool = False, processes: Processes | None = None,
        parallel: Parallel | None = None,
    ):  # fmt: skip
        self.codec, self.model, self.optimizer, self.ema = codec, model, optimizer, ema
        self.precision, self.accumulate, self.seed = precision, accumulate, seed
        self.max_grad_norm, self.warmup_steps = max_grad_norm, warmup_steps
        self.processes, self.parallel = processes or Processes(), parallel or DDP()
        self.objective = objective.to(next(model.parameters()).device)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.compiled = compiled  # as a whole, or block by block where the parallel needs that
        whole = compiled and (self.processes.size == 1 or self.parallel.whole_graph)
        self.forward: nn.Module = _Losses(model, objective, whole)
        if self.processes.size > 1:
            self.forward = self.parallel.wrap(self.forward, model)

    def __call__(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """This process's rows, on the model's device: images or what `JointCodec.precompute` gives, and labels (N,).

        Where the gradient is not finite the weights stay as they are.

        -> {"loss": (), <group>: (), ..., "gradient_norm": (), "skipped": ()}, means over these rows before the update;
        the norm is that of the whole batch's gradient, and "skipped" 1 where it is not finite.
        """
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))
        means: dict[str, Tensor] = {}
        for number, part in enumerate(self._parts(batch, step), start=1):
            for name, value in self._accumulate_gradients(part, last=number == self.accumulate).items():
                means[name] = means.get(name, 0.0) + value.detach() / self.accumulate
        with record_function("optimizer"):
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm or float("inf"))
            means["gradient_norm"] = norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            means["skipped"] = (~norm.isfinite()).float()
            self._update(means["skipped"])
            self.optimizer.zero_grad(set_to_none=True)
        with record_function("ema"):
            self.ema.update(self.model, step)
        return means

    def repeated(self, batch: dict[str, Tensor], step: int) -> Iterator[tuple[int, Tensor, Callable[[], dict]]]:
        """The forward passes of a step once more, without compilation: for each part its first row, the clean states
        x (n, C, H, W), and a function that gives the losses.
        """
        first = 0
        for part in self._parts(batch, step):

            def losses(part=part) -> dict[str, Tensor]:
                with matmul_precision(self.precision.name), self.precision.autocast(part["x"].device):
                    return self.objective.losses(self.model, **part)

            yield first, part["x"], losses
            first += len(part["x"])

    def _parts(self, batch: dict[str, Tensor], step: int) -> list[dict[str, Tensor]]:
        """The arguments of `JointObjective.losses` for each part: all that is random is drawn here, at once."""
        torch.manual_seed(mix_seeds(self.seed, step))
        rows = self.processes.rows(len(batch["labels"]) * self.processes.size)
        with record_function("encode"):
            stored = batch if "image" in batch else self._encoded(batch["images"])
            x = self.codec.join(stored, rows.randn)  # (n, C, H, W)
        y, times, noise, dropped, num_kept = self.objective.draw(x, batch["labels"], rows)
        given = {"x": x, "y": y, "times": times, "noise": noise, "dropped": dropped}
        if "alignment" in stored:
            given["alignment"] = stored["alignment"]
        cut = zip(*(tensor.chunk(self.accumulate) for tensor in given.values()), strict=True)
        return [dict(zip(given, part, strict=True), num_kept=num_kept / self.accumulate) for part in cut]

    def _encoded(self, images: Tensor) -> dict[str, Tensor]:
        """Part by part, because the encoders need memory too."""
        parts = [self.codec.precompute(part) for part in images.chunk(self.accumulate)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _accumulate_gradients(self, part: dict[str, Tensor], last: bool) -> dict[str, Tensor]:
        shared = self.parallel.sharing(self.forward, self.model, last) if self.processes.size > 1 else nullcontext()
        with matmul_precision(self.precision.name), shared:
            with record_function("forward"), self.precision.autocast(part["x"].device):
                losses = self.forward(**part)
            with record_function("backward"):
                (losses["loss"] / self.accumulate).backward()
        return losses

    def _update(self, skipped: Tensor) -> None:
        """The optimizer's step, unless `skipped` () is 1."""
        if waits_for_nothing := getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = skipped  # as torch.amp.GradScaler does it
        if waits_for_nothing or not skipped:
            self.optimizer.step()


class _Losses(nn.Module):
    """The forward pass of a step, as a module: what DistributedDataParallel can be put around.

    Compiled, it is one graph for one batch size. Random numbers are drawn outside of it, so they are the same without.
    """

    def __init__(self, model: nn.Module, objective: JointObjective, compiled: bool):
        super().__init__()
        self.model, self.objective = model, objective
        self.compiled = compile_full_graph(objective.losses) if compiled else None

    def forward(self, **part: Tensor) -> dict[str, Tensor]:
        return (self.compiled or self.objective.losses)(self.model, **part)
