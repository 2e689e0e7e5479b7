"""Sample grids and measurements during training, with the averaged weights."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from redi.core.processes import Process
from redi.sampling.pictures import num_columns, sample_grid
from redi.training.guards import Guards

log = logging.getLogger(__name__)


def unopened(*_) -> None:
    """Open no network, because those that guidance rules name may not exist yet: `open_network` during training."""


class Observer:
    """Draws sample grids and calls the monitor, on rank 0. Every grid has the same labels and noise.

    Args:
        build: builds the whole model on this process; needed if `Parallel` keeps only a part of it.
        preview_images: number of images of a grid, in at most ten columns of one class each.
    """

    def __init__(
        self, guards: Guards, process: Process, build: Callable[[], nn.Module], *, preview: Callable,
        preview_every: int, preview_images: int, monitor: Callable | None, monitor_every: int,
    ):  # fmt: skip
        self.guards, self.state, self.process, self.build = guards, guards.state, process, build
        self.preview, self.preview_every = preview, preview_every
        self.monitor, self.monitor_every = monitor, monitor_every
        num_classes = guards.dataset.num_classes
        columns = min(10, num_classes)
        self.labels = torch.arange(preview_images) % columns * num_classes // columns
        self.state.model.open_network = unopened  # type: ignore[assignment]  # not a module

    def __call__(self, step: int) -> dict[str, float] | None:
        """Draw and measure what is due, on all processes; return the measurements ({} on other ranks), or None."""
        draws = step % self.preview_every == 0
        monitor = self.monitor if step % self.monitor_every == 0 or step == self.guards.num_steps else None
        if not draws and monitor is None:
            return None
        state, measurements = self.state, {}
        self.guards.write_lines()
        self.state.update_codec()
        weights = state.parallel.gathered(state.ema.parameters)
        if state.processes.is_first:
            model = state.model
            if state.processes.size > 1 and not state.parallel.keeps_whole:
                model = self.build().to(state.device)
                model.open_network = unopened  # type: ignore[assignment]  # not a module
            if draws:
                self.guards.at("drawing a preview")
                self._draw(model, weights, step)
            if monitor is not None:
                self.guards.at("measuring")
                measurements = monitor(model, state.codec, self.process, weights=weights)
                self.guards.write_line(step, **{f"monitor/{name}": value for name, value in measurements.items()})
                text = ", ".join(f"{name} {value:.4g}" for name, value in measurements.items())
                log.info("step %d: %s", step, text)
        self.guards.window.restart_clock()
        return None if monitor is None else measurements

    def _draw(self, model: nn.Module, weights: Mapping[str, Tensor], step: int) -> None:
        codec, folder = self.state.codec, self.state.run_dir / "previews"
        assert self.state.colours is not None and self.guards.log is not None
        samples = self.preview(model, codec, self.process, labels=self.labels, weights=weights)
        columns, names = num_columns(self.labels), self.state.description.get("class_names")
        picture = sample_grid(samples, codec, self.state.colours, columns=columns, class_names=names)
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"step_{step:08d}.png")
        self.guards.log.picture(step, "samples", picture)
