"""Try the settings of a trained run: an image, its features and its trajectory, and queries."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from redi.core.clocks.lead import Lead
from redi.core.processes import Process
from redi.core.processes.clocked import Clocked
from redi.core.samplers import Sampler
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.evaluation.queries import conditional, query_sampler
from redi.guidance import Guidance
from redi.guidance.contrast import Contrast
from redi.runs.guidance_controls import Values, is_off, supported_rules, values_of, with_values
from redi.runs.load import Run
from redi.runtime.ranges import check_number
from redi.sampling.generate import Generated, generate
from redi.sampling.labels import label_numbers

log = logging.getLogger(__name__)

MAX_EVALUATIONS = 1000
QUERY_EVALUATIONS = 100

Picture = tuple[str, Tensor]  # caption, (3, H, W) uint8


@dataclass(frozen=True)
class View:
    """The answer to one request: pictures, rows of small pictures, and remarks."""

    pictures: list[Picture]
    strips: dict[str, list[Picture]] = field(default_factory=dict)  # {title: pictures}
    notes: list[str] = field(default_factory=list)


class Explorer:
    """A trained run with the settings that its training supports. Every method takes and checks plain JSON values.

    Args:
        run: an opened run (`redi.load`).
        sampler: the sampler whose number of evaluations varies. Default: the default of `redi.generate`, with 50.
        guidance: rules to start from, such as those of the run's configuration. The others start without effect.
        precision: see `redi.generate`.

    Attributes:
        rules, missing_rules: {name: rule}, and {name: why the model does not support it}.
        lead, fixed_lead: {representation: offset} of the clock, and why it cannot change ('': it can).
    """

    def __init__(
        self, run: Run, *, sampler: Sampler | None = None, guidance: Sequence[Guidance] = (),
        precision: str = "auto",
    ):  # fmt: skip
        self.run, self.precision, self.channels = run, precision, run.codec.channels
        self.sampler = sampler or (Ancestral(50) if run.process.num_timesteps else EulerMaruyama(50))
        self.rules, self.missing_rules = supported_rules(run, guidance)
        self.lead, self.fixed_lead = _lead(run)
        # A colour basis may lack a representation; a vector has no picture.
        self.shown = [name for name in self.channels.maps[1:] if f"{name}/mean" in run.colours.tensors]

    def controls(self) -> dict[str, Any]:
        """Return the settings that a page can offer, with their first values, as JSON."""
        rules = {name: rule for name, rule in self.rules.items() if isinstance(rule, Contrast)}
        return {
            "labels": self.labels, "null_label": self.has_null_label, "image_size": self.run.image_size,
            "num_evaluations": self.sampler.num_evaluations, "sampler": type(self.sampler).__name__,
            "evaluations_per_step": getattr(self.sampler, "evaluations_per_step", 1),
            "query_evaluations": QUERY_EVALUATIONS, "most_evaluations": MAX_EVALUATIONS,
            "rules": {name: values_of(rule, self.channels) for name, rule in rules.items()},
            "other_rules": [name for name in self.rules if name not in rules], "missing_rules": self.missing_rules,
            "lead": self.lead, "fixed_lead": self.fixed_lead, "representations": self.channels.representations,
            "not_shown": [name for name in self.channels.representations if name not in self.shown],
        }  # fmt: skip

    @property
    def labels(self) -> list[int | str]:
        """The classes, by name if they are known; none if the model is unconditional."""
        numbers = range(self.run.num_classes if self.run.num_classes > 1 else 0)
        return list(self.run.class_names or numbers) if numbers else []

    @property
    def has_null_label(self) -> bool:
        """Whether the model was trained without a label too."""
        trained_with = getattr(self.run.model, "trained_with", None)
        return not trained_with or bool(trained_with.label_dropout or trained_with.joint_dropout)

    def label_number(self, label: int | str | None) -> int:
        """Return the number of a class, given by name or number; None is the null label. Raises ValueError."""
        if not self.labels:
            return 0
        if label is None:
            if not self.has_null_label:
                raise ValueError("class = None: must name a class, because the null label was not trained")
            return self.run.num_classes
        if isinstance(label, str) and not self.run.class_names and label.isdecimal():
            label = int(label)
        number = label_numbers([label], self.run.class_names, "class")[0]
        check_number("class", number, 0, below=self.run.num_classes)
        return number

    def generate(self, *, num_frames: int = 8, **settings) -> View:
        """Generate an image: show it, its features, and states from noise to data. `settings`: those of `draw`."""
        drawn = self.draw(**settings, trajectory=True)
        assert drawn.trajectory is not None and drawn.times is not None
        pictures = self.pictures(drawn.x, drawn.images)
        steps = torch.linspace(0, len(drawn.times) - 1, min(num_frames, len(drawn.times))).round().long()
        states = rearrange(drawn.trajectory[steps], "k 1 c h w -> k c h w")
        frames = self.pictures(states, self.run.codec.decode(states.to(self.run.codec.device)).cpu())
        process = self.process(settings.get("lead")).for_channels(self.channels)
        times = [process.group_times(self.channels, drawn.times[step]) for step in steps.tolist()]
        strips = {
            name: [(f"t = {t[name]:.2f}", picture) for t, picture in zip(times, frames[name], strict=True)]
            for name in pictures
        }
        return View([(name, picture[0]) for name, picture in pictures.items()], strips, [_cost(drawn)])

    def draw(
        self, *, label: int | str | None = None, seed: int = 0, num_evaluations: int | None = None,
        guidance: Mapping[str, Values] | None = None, lead: Mapping[str, float] | None = None,
        trajectory: bool = False,
    ) -> Generated:  # fmt: skip
        """Generate one image. Equal seeds start from equal noise, whatever the other settings.

        Args:
            label: name or number of a class; None: without a label.
            num_evaluations: default: that of the run's sampler.
            guidance: {name of a rule: {group or 'all': {"scale", "interval"}}}. Default: the rules as they are.
            lead: {representation: how far it runs ahead of the image}, where the model was trained with such times.
            trajectory: see `redi.generate`.

        Raises ValueError: a value outside its range, an unknown name, or a setting that the model does not support.
        """
        run = self.run
        return generate(
            run.model, run.codec, self.process(lead), labels=[self.label_number(label)], seed=seed,
            sampler=self._sampler(self.sampler, num_evaluations), guidance=self._guidance(guidance or {}),
            trajectory=trajectory, weights=run.weights["ema"], precision=self.precision, compile=False,
        )  # fmt: skip

    def features_given_image(
        self, image: Tensor, *, label: int | str | None = None, seed: int = 0, num_evaluations: int | None = None
    ) -> View:
        """Generate the features of an image (1, 3, S, S), and show them beside those of the encoder."""
        run, randn = self.run, partial(torch.randn, generator=torch.Generator(self.run.codec.device).manual_seed(0))
        autoencoder, device = run.codec.autoencoder, run.codec.device
        with torch.no_grad():
            latents = autoencoder.latents(autoencoder.moments(image.to(device)), randn).cpu()
        drawn = self._ask({"image": latents}, 1, label, seed, num_evaluations)
        generated, pictures = self.channels.unpadded(drawn.x), [("your image", image[0])]
        try:
            encoded, notes = self.channels.unpadded(run.codec.encode(image.to(device)).cpu()), [_cost(drawn)]
        except (ValueError, OSError, ImportError) as error:  # an encoder whose weights are not on this machine
            log.warning("showing no features of the encoder: %s", error)
            encoded, notes = {}, [_cost(drawn), "the encoder cannot be run, so its features are missing"]
        for name in self.shown:
            caption = f"{name}, generated"
            if name in encoded:
                agreement = float(functional.cosine_similarity(generated[name], encoded[name], dim=1).mean())
                pictures.append((f"{name}, of the encoder", run.colours(name, encoded[name])[0]))
                caption += f" (agreement {agreement:.2f})"
            pictures.append((caption, run.colours(name, generated[name])[0]))
        return View(pictures, notes=notes)

    def images_given_features(
        self, source: Tensor | Mapping[str, Any], *, label: int | str | None = None, seed: int = 0,
        num_evaluations: int | None = None, num_images: int = 6,
    ) -> View:  # fmt: skip
        """Generate images for the features of an image (1, 3, S, S), or of one that `draw` generates by settings."""
        if isinstance(source, Tensor):
            image, x = source, self.run.codec.encode(source.to(self.run.codec.device)).cpu()
        else:
            drawn = self.draw(**source)
            image, x = drawn.images, drawn.x
        groups = self.channels.split(x)
        known = {name: groups[name].repeat(num_images, 1, 1, 1) for name in self.channels.representations}
        answer = self._ask(known, num_images, label, seed, num_evaluations)
        pictures = [(name, picture[0]) for name, picture in self.pictures(x, image).items()]
        images = [(f"{number + 1}", picture) for number, picture in enumerate(answer.images)]
        return View(pictures, {"images given these features": images}, [_cost(answer)])

    def _ask(self, given: Mapping[str, Tensor], count: int, label, seed, num_evaluations) -> Generated:
        if not self.channels.representations:
            raise ValueError("this model has no representation to query: choose a run of a joint model")
        labels = torch.tensor([self.label_number(label)] * count)
        sampler = self._sampler(query_sampler(self.run.process, QUERY_EVALUATIONS), num_evaluations)
        return conditional(self.run, given, labels, sampler=sampler, seed=seed)

    def pictures(self, x: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return {group: (N, 3, H, W) uint8}: images, and the features in x (N, C, H, W) in the colours of the run."""
        groups = self.channels.split(x)
        return {"image": images, **{name: self.run.colours(name, groups[name]) for name in self.shown}}

    def process(self, lead: Mapping[str, float] | None) -> Process:
        """Return the run's process, with a clock for another lead if `lead` differs from the run's."""
        process = self.run.process
        if not lead or lead == self.lead:
            return process
        if self.fixed_lead or not isinstance(lead, Mapping) or set(lead) != set(self.lead):
            raise ValueError(f"lead = {lead!r:.200}: {self.fixed_lead or f'must have the form {self.lead}'}")
        return Clocked(process.process if isinstance(process, Clocked) else process, Lead(lead))

    def _guidance(self, values: Mapping[str, Values]) -> list[Guidance]:
        if not isinstance(values, Mapping) or (unknown := [name for name in values if name not in self.rules]):
            why = self.missing_rules.get(unknown[0]) if isinstance(values, Mapping) else None
            raise ValueError(f"guidance = {values!r:.200}: {why or f'must name rules among {list(self.rules)}'}")
        rules = [
            with_values(rule, values[name], self.channels) if name in values and isinstance(rule, Contrast) else rule
            for name, rule in self.rules.items()
        ]
        return [rule for rule in rules if not is_off(rule, self.channels)]

    @staticmethod
    def _sampler(sampler: Sampler, num_evaluations: int | None) -> Sampler:
        if num_evaluations is None or sampler.num_evaluations in (None, num_evaluations):
            return sampler
        check_number("num_evaluations", num_evaluations, 1, below=MAX_EVALUATIONS + 1)
        settings: dict[str, Any] = vars(sampler) | {"num_evaluations": num_evaluations}
        settings |= {key: None for key in ("times", "respacing") if key in settings}  # they fix the number
        return type(sampler)(**settings)


def _lead(run: Run) -> tuple[dict[str, float], str]:
    """Return {representation: offset} of the run's clock, and why sampling cannot change it ('': it can)."""
    names = run.codec.channels.representations
    clock = run.objective.clock if run.objective else None
    if isinstance(clock, Lead):
        named = clock.groups or names
        offsets = clock.offset if isinstance(clock.offset, dict) else dict.fromkeys(named, clock.offset)
        return {name: offsets.get(name, 0.0) for name in names}, ""
    if clock is not None and clock.independent and run.process.num_timesteps is None:
        return dict.fromkeys(names, 0.0), ""
    if not names:
        return {}, "this model has only the image"
    trained = f"this model was trained with clocks.{type(clock).__name__}" if clock else "the clock is unknown"
    return {}, f"{trained}: a lead needs a model trained with clocks.Lead or clocks.Independent"


def _cost(drawn: Generated) -> str:
    return f"{drawn.record['network_evaluations_per_image']:g} network evaluations per image"
