"""One training step, shared by the training loop, the profiler and the benchmarks."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils._pytree import tree_flatten, tree_unflatten

from redi.core.ema import AveragedWeights
from redi.core.objective import JointObjective
from redi.models.codec import JointCodec
from redi.runtime.device import Precision, compile_full_graph, matmul_precision
from redi.runtime.distributed import Processes
from redi.runtime.randomness import mix_seeds
from redi.training.parallel import Parallel
from redi.training.parallel.ddp import DDP
from redi.training.schedules import Constant

FLOAT32 = Precision("float32", torch.float32)


class TrainingStep:
    """One training step: encode or join, corrupt, predict, losses, backward, clip, optimizer, EMA.

    A step never waits for the device. Its results stay on the device, and the next step can be queued at once. The
    exception is an optimizer that cannot skip a step by itself, as torch's fused optimizers can: it waits for the
    gradient norm. Every random number is a function of (seed, step) and of the sample's row in the batch, for any
    number of processes and parts.

    Args:
        codec, model, objective, optimizer, ema: built for each other, on one device. Other arguments: see `train`.
        schedule: factor for the learning rates, a function of the step.
        compiled: compile the losses into one graph (torch.compile) at the first call.
        processes: determines which rows of the batch this process computes.
        parallel: how processes share gradients. Call `parallel.distribute(model)` first.
    """

    def __init__(
        self, *, codec: JointCodec, model: nn.Module, objective: JointObjective, optimizer: torch.optim.Optimizer,
        ema: AveragedWeights, precision: Precision = FLOAT32, accumulate: int = 1, max_grad_norm: float = 1.0,
        warmup_steps: int = 0, schedule: Callable[[int], float] | None = None, seed: int = 0, compiled: bool = False,
        processes: Processes | None = None, parallel: Parallel | None = None,
    ):  # fmt: skip
        self.codec, self.model, self.optimizer, self.ema = codec, model, optimizer, ema
        self.precision, self.accumulate, self.seed = precision, accumulate, seed
        self.max_grad_norm, self.warmup_steps = max_grad_norm, warmup_steps
        self.schedule = schedule or Constant()
        self.processes, self.parallel = processes or Processes(), parallel or DDP()
        self.objective = objective.to(next(model.parameters()).device)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.compiled = compiled  # as a whole, or block by block if `parallel` requires that
        whole = compiled and (self.processes.size == 1 or self.parallel.whole_graph)
        self.forward: nn.Module = _Losses(model, objective, whole)
        self.idle: list[nn.Parameter] = []  # whose gradients the strategy needs although nothing uses them
        if self.processes.size > 1:
            self.forward = self.parallel.wrap(self.forward, model)
            if self.parallel.needs_every_gradient and (projector := getattr(model, "projector", None)) is not None:
                self.idle = list(projector.parameters())

    def __call__(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Update the weights and their averages, unless the gradient is not finite.

        Args:
            batch: the rows of this process, on the model's device: "labels" (N,), and "images" or the output of
                `JointCodec.precompute`.
            step: counts from 0.

        Returns {"loss": (), <group>: (), ..., "loss_by_t/<group>": (2, 10), "gradient_norm": (), "skipped": ()}. The
        losses are means over these rows before the update, and sums by time are divided by `accumulate`; the norm is
        that of the whole batch's gradient; "skipped" is 1 if it is not finite.
        """
        factor = min(1.0, (step + 1) / max(self.warmup_steps, 1)) * self.schedule(step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        means: dict[str, Tensor] = {}
        for number, part in enumerate(self._parts(batch, step), start=1):
            for name, value in self._accumulate_gradients(part, last=number == self.accumulate).items():
                means[name] = means.get(name, 0.0) + value.detach() / self.accumulate
        for parameter in self.objective.resting(step):
            parameter.grad = None
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
        """Yield the forward passes of a step again, uncompiled, to find out where a value became non-finite.

        For each part: the index of its first row, the clean states x (n, C, H, W), a function that returns the losses.
        """
        first = 0
        for part in self._parts(batch, step):

            def losses(part=part) -> dict[str, Tensor]:
                with matmul_precision(self.precision.name), self.precision.autocast(part["x"].device):
                    return self.objective.losses(self.model, **part)

            yield first, part["x"], losses
            first += len(part["x"])

    def _parts(self, batch: dict[str, Tensor], step: int) -> list[dict[str, Any]]:
        """Return the arguments of `JointObjective.losses` for each part. All random numbers are drawn here, at once."""
        torch.manual_seed(mix_seeds(self.seed, step))
        rows = self.processes.rows(len(batch["labels"]) * self.processes.size)
        with record_function("encode"):
            stored = batch if "image" in batch else self._encoded(batch["images"], step)
            x = self.codec.join(stored, rows.randn)  # (n, C, H, W)
        y, times, noise, dropped, num_kept = self.objective.draw(x, batch["labels"], rows)
        arguments: dict[str, Any] = {"x": x, "y": y, "times": times, "noise": noise, "dropped": dropped}
        arguments |= self.objective.draw_more(x, rows)
        if self.objective.alignment.active(step) and self.codec.alignments:
            arguments["alignment"] = {name: stored[name] for name in self.codec.alignments}
        arguments |= self.objective.observe(stored, self.processes.mean)
        tensors, structure = tree_flatten(arguments)
        parts = zip(*(tensor.chunk(self.accumulate) for tensor in tensors), strict=True)
        return [dict(tree_unflatten(part, structure), num_kept=num_kept / self.accumulate) for part in parts]

    def _encoded(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """Encode images part by part, because the encoders need memory too."""
        aligns = self.objective.alignment.active(step)
        parts = [self.codec.precompute(part, alignment=aligns) for part in images.chunk(self.accumulate)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _accumulate_gradients(self, part: dict[str, Any], last: bool) -> dict[str, Tensor]:
        shared = self.parallel.sharing(self.forward, self.model, last) if self.processes.size > 1 else nullcontext()
        with matmul_precision(self.precision.name), shared:
            with record_function("forward"), self.precision.autocast(part["x"].device):
                losses = self.forward(**part)
            with record_function("backward"):
                loss = losses["loss"] / self.accumulate
                idle = self.idle if "alignment" not in part else ()
                for parameter in idle:
                    loss = loss + 0 * parameter.sum()
                loss.backward()
                for parameter in idle:  # the optimizer leaves them alone, as in a single process
                    parameter.grad = None
        return losses

    def _update(self, skipped: Tensor) -> None:
        if skips_by_itself := getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as torch.amp.GradScaler does it
        if skips_by_itself or not skipped:
            self.optimizer.step()


class _Losses(nn.Module):
    """The forward pass of a step as a module for DistributedDataParallel; if `compiled`, one graph per batch size."""

    def __init__(self, model: nn.Module, objective: JointObjective, compiled: bool):
        super().__init__()
        self.model, self.objective = model, objective
        self.compiled = compile_full_graph(objective.losses) if compiled else None

    def forward(self, **part: Any) -> dict[str, Tensor]:
        return (self.compiled or self.objective.losses)(self.model, by_time=True, **part)
