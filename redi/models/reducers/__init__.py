"""Reducers: their interface and registry. A reducer maps encoder features to a few channels."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import redi
from redi.core.inputs import Checked, check_maps
from redi.core.registry import Registry, discover
from redi.core.registry import identity as code_of  # `identity` is a module of this package
from redi.runtime.artefact import load_artefact, save_artefact
from redi.runtime.checksums import LIBRARIES, BrokenArtefact, tensors_sha256
from redi.runtime.paths import local_path

FORMAT = "redi reducer 1"


class Reducer(Checked, nn.Module, ABC):
    """Reduce encoder features (N, E, h, w) to (N, R, h, w), where R is the rank.

    Reduction has two steps so that a cache can store the result of the first: `project` (features to S channels) and
    `finish` (cheap; S channels to R). A cache of S channels serves every rank up to S.

    A component implements `fitted`, `fit` (which first calls `forget_fit`), `project`, `fit_settings` and `provenance`.
    It may override `finish`, `inverse`, `width`, `check_width`, `stored_provenance`, `report` and `trained_part`.

    Checkpoints store the state dict. Tensors that `fit` sets must be buffers, which `__init__` registers empty or as
    None; loading gives them the shape and dtype of the stored tensors. Networks whose size depends on the fit are built
    in a hook before loading, as in `ConvBottleneck`. After a fit, the library checks that the state dict restores it.

    Examples:
        >>> class Mean(Reducer):  # the mean over all features
        ...     fitted = True
        ...     def fit(self, batches): pass
        ...     def project(self, features): return features.mean(dim=1, keepdim=True)
        ...     def fit_settings(self): return {}
        ...     def provenance(self): return {"reducer": "Mean"}
        >>> Mean(rank=1)(torch.ones(2, 768, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    takes = {"fit": partial(map, check_maps), "project": check_maps, "inverse": check_maps}
    width: int | None = None  # E of the features that the reducer was fitted to; None: any width works
    origin: Tensor
    trained_buffers: tuple[str, ...] = ()  # that training with the network changes; a cache does not depend on them

    def __init__(self, rank: int = 8):
        super().__init__()
        if rank < 1:
            raise ValueError(f"{type(self).__name__}.rank = {rank}: must be at least 1")
        self.rank = rank
        # `fitted_on` as JSON text, in a buffer so that it is saved together with the fit.
        self.register_buffer("origin", torch.empty(0, dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_take_shapes)

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether the reducer is ready for use, after `fit` or `load_state_dict`."""

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit to batches of features (N, E, h, w), in one pass and with memory independent of their number."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Return what a cache stores: (N, E, h, w) -> (N, S, h, w) float32, within the range of float16."""

    def finish(self, stored: Tensor) -> Tensor:
        """Return the reduced features (N, R, h, w) float32 from the output of `project`, in float16 or float32."""
        return stored.float()[:, : self.rank]

    def forward(self, features: Tensor) -> Tensor:
        """Return the reduced features: (N, E, h, w) -> (N, R, h, w) float32."""
        return self.finish(self.project(features))

    def inverse(self, reduced: Tensor) -> Tensor:
        """Return the best reconstruction of the features: (N, R, h, w) -> (N, E, h, w) float32. Optional."""
        raise TypeError(f"{type(self).__name__} has no inverse")

    def trained_part(self) -> nn.Module | None:
        """Return the half of the reducer that trains with the network; None if it has none.

        It replaces `finish` in training. It has a tensor for each of `trained_buffers`, under the same name, and the
        methods and attributes of `TrainedProjection`, which `redi.core.projections` uses.
        """
        return None

    def untrained(self, stored: Tensor) -> Tensor | None:
        """Return what `finish` returned before training with the network; None if that changed nothing."""
        return None

    @abstractmethod
    def fit_settings(self) -> dict:
        """Return every setting that affects `fit`, as JSON. Runs with equal settings and features share one fit."""

    @abstractmethod
    def provenance(self) -> dict:
        """Return the quality of the fit and every setting that affects the output, as JSON."""

    def stored_provenance(self) -> dict:
        """Return every setting that affects `project`, as JSON. Reducers with equal settings share a cache."""
        return self.provenance()

    def check_width(self, width: int) -> None:
        """Raise ValueError if features of this width E cannot be reduced. Called before anything is encoded."""
        name = type(self).__name__
        if self.width not in (None, width):
            raise ValueError(f"this {name} was fitted to features of width {self.width}, not the encoder width {width}")
        if self.rank > width:
            raise ValueError(f"{name}.rank = {self.rank} exceeds the encoder width {width}")

    def require_fit(self) -> None:
        """Raise ValueError if the reducer has not been fitted."""
        if not self.fitted:
            raise ValueError(f"this {type(self).__name__} has not been fitted: call fit(batches) or prepare() first")

    @property
    def fitted_on(self) -> dict | None:
        """What `record_fit` stored about the origin of the fit; None if nothing."""
        return json.loads(bytes(self.origin.tolist())) if len(self.origin) else None

    def record_fit(self, *, encoder: dict | None, sample: dict, **others) -> None:
        """Store the origin of the fit, as JSON: the encoder's provenance and the sample of images."""
        text = json.dumps({"encoder": encoder, "sample": sample, **others}, sort_keys=True)
        self.origin = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.origin.device)

    def forget_fit(self) -> None:
        """Clear the record of an earlier fit; every `fit` calls this first."""
        self.origin = self.origin.new_empty(0)

    def check_encoder(self, encoder_provenance: dict) -> None:
        """Raise ValueError if the reducer was fitted to another encoder. Library versions may differ."""
        recorded = (self.fitted_on or {}).get("encoder") or {}
        differing = [
            f"{key}: {old!r} -> {encoder_provenance.get(key)!r}"
            for key, old in sorted(recorded.items())
            if key not in LIBRARIES and _as_json(encoder_provenance.get(key)) != _as_json(old)
        ]
        if differing:
            what, name = f"was fitted on features of another encoder ({'; '.join(differing)})", type(self).__name__
            raise ValueError(f"this {name} {what}: use that encoder, or remove {name}.path to fit again")

    def report(self) -> dict:
        """Return further results of the fit, as JSON, which `save` stores."""
        return {}

    def save(self, folder: str | Path) -> None:
        """Save the fit to a folder, for the `path` argument of this class. Raises ValueError if not fitted."""
        self.require_fit()
        state = self.state_dict()
        record = {
            "format": FORMAT, "reducer": type(self).__name__, "fit_settings": self.fit_settings(),
            "provenance": self.provenance(), "report": self.report(), "fitted_on": self.fitted_on,
            "code": code_of(self), "versions": {"redi": redi.__version__, "torch": torch.__version__},
            "state_sha256": tensors_sha256(state),
        }  # fmt: skip
        save_artefact(local_path(folder), {"state": state}, record)

    def restore(self, path: str | Path) -> None:
        """Load the fit that `save` wrote to `path`.

        Raises ValueError if it is missing or damaged, has another class or settings, or fewer components than the rank.
        """
        binding = f"{type(self).__name__}.path = {str(path)!r}"
        try:
            tensors, record = load_artefact(local_path(path))
        except BrokenArtefact as error:
            raise ValueError(f"{binding}: {error}") from None
        if record.get("format") != FORMAT:
            raise ValueError(f"{binding} is not a saved reducer: the format in its record.json is not {FORMAT!r}")
        if (kind := record["reducer"]) != type(self).__name__:
            raise ValueError(f"{binding} holds a {kind}: set Representation.reducer = @reducers.{kind}()")
        settings = self.fit_settings()
        for key, value in record["fit_settings"].items():
            if _as_json(settings.get(key)) != value:
                what = f"was fitted with {key} = {value!r}, but this reducer has {settings.get(key)!r}"
                raise ValueError(f"{binding} {what}: set {type(self).__name__}.{key} = {value!r}")
        self.take_over(tensors["state"], record["fitted_on"], binding)

    def take_over(self, state: dict[str, Tensor], fitted_on: dict | None, binding: str) -> None:
        """Load a state dict and the origin of its fit. `binding` names their source in error messages."""
        try:
            self.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{binding} does not fit: {error}") from None
        if fitted_on is not None:
            self.record_fit(**fitted_on)


def trained_state(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what training changed in the learned state of a codec, from the state dict of the network."""
    prefix, state = "objective_parts.projections.", {}
    for key in network:
        if key.startswith(prefix):
            group, _, name = key.removeprefix(prefix).partition(".")
            state[f"{group}.reducer.{name}"] = network[key].detach().clone()
    return state


def _take_shapes(reducer: Reducer, state: dict, prefix: str, *_) -> None:
    """Give the buffers the shape and dtype of the stored tensors, which depend on the fit, before loading."""
    state.setdefault(f"{prefix}origin", torch.empty(0, dtype=torch.uint8))
    for name in reducer._buffers:
        if (stored := state.get(prefix + name)) is not None:
            setattr(reducer, name, torch.empty_like(stored, device=reducer.origin.device))


def _as_json(value: Any) -> Any:
    """Return the value after a round trip through JSON, which turns tuples into lists."""
    return json.loads(json.dumps(value))


reducers = Registry("reducers", Reducer, harmless=("store_rank",))
register = reducers.register
discover(__name__, reducers)
