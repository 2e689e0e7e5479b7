"""The plain loop: the baseline of every ratio in the results, without any of the library's optimisations.

float32 with TF32 allowed; attention as two matrix products and a softmax; eager; gradient checkpointing; AdamW and EMA
parameter by parameter in Python; the host reads the loss in every step; autoencoder and encoder run in the loop. In
sampling, every step calls the network for the drift and again for the score, each with and without label in two passes,
and all states are kept. The results are those of the library, from the same weights and random numbers:
tests/benchmarks/test_plain_loop.py compares losses, weights and samples.

It covers what the comparison needs: flow matching with velocity prediction, AdamW, classifier-free guidance on the
image, Euler-Maruyama with a last step along the drift. Weights are read layer by layer from a `DiffusionTransformer`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redi.models.blocks import AdaLN
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer
from redi.runtime.device import matmul_precision
from redi.runtime.randomness import mix_seeds


def plain_block(block: AdaLN, tokens: Tensor, condition: Tensor) -> Tensor:
    """(N, T, D) and (N, D) -> (N, T, D)"""
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition)[:, None].chunk(6, dim=-1)
    n, t, d = tokens.shape
    qkv = block.qkv(block.norm1(tokens) * (1 + scale1) + shift1)
    q, k, v = qkv.reshape(n, t, 3, block.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (N, heads, T, head_dim)
    scores = torch.matmul(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    attended = torch.matmul(torch.softmax(scores, dim=-1), v)
    tokens = tokens + gate1 * block.projection(attended.transpose(1, 2).reshape(n, t, d))
    return tokens + gate2 * block.mlp(block.norm2(tokens) * (1 + scale2) + shift2)


def plain_forward(model: DiffusionTransformer, x: Tensor, t: Tensor, y: Tensor, *, checkpointing: bool) -> Tensor:
    """x_t (N, C, H, W), t (N,), y (N,) -> velocity (N, C, H, W)"""
    tokens = model.fusion.embed(x)
    condition = model.timestep_embedding(t) + model.label_embedding(y)
    for block in model.blocks:
        if checkpointing:
            tokens = checkpoint(plain_block, block, tokens, condition, use_reentrant=False)
        else:
            tokens = plain_block(block, tokens, condition)
    shift, scale = model.final_modulation(condition)[:, None].chunk(2, dim=-1)
    return model.fusion.unembed(model.final_norm(tokens) * (1 + scale) + shift)


class PlainLoop:
    """Training: `step(batch, number)` updates model and average and returns the loss.

    Args:
        representation_weight: lambda.
        warmup_steps, max_grad_norm, ema_decay, seed: as in the library.
    """

    def __init__(
        self,
        codec: JointCodec,
        model: DiffusionTransformer,
        *,
        learning_rate: float = 1e-4,
        warmup_steps: int = 0,
        ema_decay: float = 0.9999,
        max_grad_norm: float = 1.0,
        label_dropout: float = 0.1,
        representation_dropout: float = 0.0,
        representation_weight: float = 1.0,
        seed: int = 0,
    ):
        self.codec, self.model, self.seed = codec, model, seed
        self.learning_rate, self.warmup_steps, self.max_grad_norm = learning_rate, warmup_steps, max_grad_norm
        self.label_dropout, self.representation_dropout = label_dropout, representation_dropout
        self.representation_weight, self.ema_decay = representation_weight, ema_decay
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]

    def step(self, batch: dict[str, Tensor], number: int) -> float:
        """Train on a batch of images (or cached values) and labels, on the model's device."""
        torch.manual_seed(mix_seeds(self.seed, number))
        with matmul_precision("tf32"):
            x = self.codec.join(batch if "image" in batch else self.codec.precompute(batch["images"]))
            loss = self.loss(x, batch["labels"])
            loss.backward()
        self.clip()
        self.adamw(number)
        for name, parameter in self.model.named_parameters():
            self.average[name].mul_(self.ema_decay).add_(parameter.detach(), alpha=1 - self.ema_decay)
        return loss.item()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch. Random numbers are drawn in the library's order."""
        n, groups = len(x), self.codec.channels
        t = torch.rand(n, device=x.device)
        noise = torch.randn_like(x)
        dropped = torch.rand(n, device=x.device) < self.representation_dropout
        y = torch.where(torch.rand(n, device=x.device) < self.label_dropout, self.model.null_label, y)
        x_t = t[:, None, None, None] * x + (1 - t[:, None, None, None]) * noise
        x_t = groups.mask(x_t, dropped)
        velocity = plain_forward(self.model, x_t, t, y, checkpointing=True)
        squared = groups.split((velocity - (x - noise)) ** 2)
        loss = squared["image"].mean()
        for name in groups.representations:
            of_samples = squared[name].mean(dim=(1, 2, 3))
            loss = loss + self.representation_weight * (of_samples * (~dropped).float()).mean()
        return loss

    def clip(self) -> None:
        norm = sum((p.grad**2).sum() for p in self.model.parameters()).sqrt().item()
        for parameter in self.model.parameters():
            parameter.grad.mul_(min(1.0, self.max_grad_norm / (norm + 1e-6)))

    @torch.no_grad()
    def adamw(self, number: int) -> None:
        rate = self.learning_rate * min(1.0, (number + 1) / max(self.warmup_steps, 1))
        correction1, correction2 = 1 - 0.9 ** (number + 1), 1 - 0.999 ** (number + 1)
        for parameter, (first, second) in zip(self.model.parameters(), self.moments, strict=True):
            first.mul_(0.9).add_(parameter.grad, alpha=0.1)
            second.mul_(0.999).add_(parameter.grad**2, alpha=0.001)
            parameter.sub_(rate * (first / correction1) / ((second / correction2).sqrt() + 1e-8))
            parameter.grad = None


@torch.no_grad()
def plain_sample(
    model: DiffusionTransformer, draw: Callable[[], Tensor], y: Tensor, *, scale: float, num_evaluations: int
) -> Tensor:
    """Euler-Maruyama with D = sigma: labels (N,) -> x (N, C, H, W). `draw` gives the noise, as `ImageNoise` does.

    `num_evaluations` counts as the library does, once a step, though the network is called four times in each.
    """
    null, of_image = torch.full_like(y, model.null_label), model.channels.slice("image")

    def velocity(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t, device=x.device)
        full = plain_forward(model, x, times, y, checkpointing=False)
        without = plain_forward(model, x, times, null, checkpointing=False)
        full[:, of_image] = without[:, of_image] + scale * (full[:, of_image] - without[:, of_image])
        return full

    def score(x: Tensor, t: float) -> Tensor:
        return (t * velocity(x, t) - x) / (1 - t)

    times = [0.96 * k / (num_evaluations - 1) for k in range(num_evaluations)]
    with matmul_precision("tf32"):
        states = [draw()]
        for t, ahead in zip(times, times[1:], strict=False):
            x, dt = states[-1], ahead - t
            drift = velocity(x, t) + (1 - t) * score(x, t)
            states.append(x + dt * drift + (2 * (1 - t) * dt) ** 0.5 * draw())
        x, t = states[-1], times[-1]
        states.append(x + (1 - t) * (velocity(x, t) + (1 - t) * score(x, t)))
    return states[-1]


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's parameters, to start another loop from them or to compare."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}
