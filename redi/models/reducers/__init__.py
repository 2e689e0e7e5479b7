"""Reducers: from encoder width to a few channels, and the registry of them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from pathlib import Path

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
    """Maps encoder features (N, E, h, w) to (N, R, h, w), R being the rank. Checkpoints hold its state.

    It has two halves, so that a cache can stand between them: `project` (what a cache stores, S channels) and
    `finish` (cheap; S channels to R). A cache of S channels serves every rank up to S.

    A component implements `fitted`, `fit` (which calls `forget_fit` first), `project`, `fit_settings` and `provenance`.
    It may override `finish`, `inverse`, `width`, `check_width`, `stored_provenance` and `report`.

    Every tensor that `fit` sets is a buffer that `__init__` registers, as None or empty: loading gives it the shape and
    type of what was stored. Networks whose size the fit decides are built by a hook before loading, as in
    `ConvBottleneck`. What the state does not restore is refused right after the fit.
    """

    takes = {"fit": partial(map, check_maps), "project": check_maps, "inverse": check_maps}
    width: int | None = None  # E of the features that it was fitted to; None where it works for any

    def __init__(self, rank: int = 8):
        super().__init__()
        if rank < 1:
            raise ValueError(f"{type(self).__name__}.rank = {rank}: at least 1 is needed")
        self.rank = rank
        # `fitted_on` as JSON; part of the state, so that it stays with the fit.
        self.register_buffer("origin", torch.empty(0, dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_take_shapes)

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether `fit` or `load_state_dict` has happened."""

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Learns from batches of features (N, E, h, w), in one pass and in memory independent of their number."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """(N, E, h, w) -> (N, S, h, w) float32, of a magnitude that float16 holds."""

    def finish(self, stored: Tensor) -> Tensor:
        """What `project` gave, possibly through float16 -> (N, R, h, w) float32."""
        return stored.float()[:, : self.rank]

    def forward(self, features: Tensor) -> Tensor:
        """(N, E, h, w) -> (N, R, h, w), float32."""
        return self.finish(self.project(features))

    def inverse(self, reduced: Tensor) -> Tensor:
        """(N, R, h, w) -> (N, E, h, w), as near to the features as R channels allow."""
        raise TypeError(f"{type(self).__name__} has no inverse")

    @abstractmethod
    def fit_settings(self) -> dict:
        """What `fit` depends on beside the features, as JSON: the key under which fits are shared."""

    @abstractmethod
    def provenance(self) -> dict:
        """What this reducer is and how well it keeps the features, as JSON."""

    def stored_provenance(self) -> dict:
        """What decides the output of `project`, as JSON: a cache fits all reducers for which this is the same."""
        return self.provenance()

    def check_width(self, width: int) -> None:
        """Raises ValueError unless it can reduce features of this width E; asked before anything is encoded."""
        name = type(self).__name__
        if self.width not in (None, width):
            raise ValueError(f"this {name} was fitted to features of width {self.width}, not {width}")
        if self.rank > width:
            raise ValueError(f"{name}.rank = {self.rank} exceeds the encoder width {width}")

    def require_fit(self) -> None:
        """Raises ValueError before a fit."""
        if not self.fitted:
            raise ValueError(f"this {type(self).__name__} has not been fitted: call fit(batches) or prepare() first")

    @property
    def fitted_on(self) -> dict | None:
        """What the fit was made on, as `record_fit` noted it; None: unknown."""
        return json.loads(bytes(self.origin.tolist())) if len(self.origin) else None

    def record_fit(self, *, encoder: dict | None, sample: dict, **others) -> None:
        """Note what the fit was made on: the encoder's provenance and the sample of images, as JSON."""
        text = json.dumps({"encoder": encoder, "sample": sample, **others}, sort_keys=True)
        self.origin = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.origin.device)

    def forget_fit(self) -> None:
        """What `fit` calls first: the record of the fit before does not hold for the new one."""
        self.origin = self.origin.new_empty(0)

    def check_encoder(self, encoder_provenance: dict) -> None:
        """Raises ValueError where the record of the fit names another encoder; versions of libraries may differ."""
        recorded = (self.fitted_on or {}).get("encoder") or {}
        differing = [
            f"{key}: {old!r} -> {encoder_provenance.get(key)!r}"
            for key, old in sorted(recorded.items())
            if key not in LIBRARIES and _as_json(encoder_provenance.get(key)) != _as_json(old)
        ]
        if differing:
            raise ValueError(
                f"this {type(self).__name__} was fitted on features of another encoder ({'; '.join(differing)}): set "
                f"that encoder, or fit anew by removing {type(self).__name__}.path"
            )

    def report(self) -> dict:
        """What a saved fit says of itself beside its settings, as JSON."""
        return {}

    def save(self, folder: str | Path) -> None:
        """Write the fit as an artefact for `path` of a reducer of this class. Raises ValueError before a fit."""
        self.require_fit()
        state = self.state_dict()
        record = {
            "format": FORMAT,
            "reducer": type(self).__name__,
            "fit_settings": self.fit_settings(),
            "provenance": self.provenance(),
            "report": self.report(),
            "fitted_on": self.fitted_on,
            "code": code_of(self),
            "versions": {"redi": redi.__version__, "torch": torch.__version__},
            "state_sha256": tensors_sha256(state),
        }
        save_artefact(local_path(folder), {"state": state}, record)

    def restore(self, path: str | Path) -> None:
        """Load the fit that `save` wrote to `path`. Raises ValueError where it is missing, damaged, of another class,
        with other settings, or too narrow for the rank.
        """
        binding = f"{type(self).__name__}.path = {str(path)!r}"
        try:
            tensors, record = load_artefact(local_path(path))
        except BrokenArtefact as error:
            raise ValueError(f"{binding}: {error}") from None
        if record.get("format") != FORMAT:
            raise ValueError(f"{binding} is no saved reducer: its record.json says no {FORMAT!r}")
        if (kind := record["reducer"]) != type(self).__name__:
            raise ValueError(f"{binding} holds a {kind}: set Representation.reducer = reducers.{kind}()")
        own = self.fit_settings()
        for key, value in record["fit_settings"].items():
            if _as_json(own.get(key)) != value:
                raise ValueError(
                    f"{binding} was fitted with {key} = {value!r}, this reducer has {own.get(key)!r}: "
                    f"set {type(self).__name__}.{key} = {value!r}"
                )
        self.take_over(tensors["state"], record["fitted_on"], binding)

    def take_over(self, state: dict[str, Tensor], fitted_on: dict | None, binding: str) -> None:
        """Load a state that `binding` names, and note what it was fitted on."""
        try:
            self.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{binding} does not fit: {error}") from None
        if fitted_on is not None:
            self.record_fit(**fitted_on)


def _take_shapes(reducer: Reducer, state: dict, prefix: str, *_) -> None:
    """Before loading: buffers, None too, take shape and type of what is loaded: only `fit` knows them."""
    state.setdefault(f"{prefix}origin", torch.empty(0, dtype=torch.uint8))
    for name in reducer._buffers:
        if (stored := state.get(prefix + name)) is not None:
            setattr(reducer, name, torch.empty_like(stored, device=reducer.origin.device))


def _as_json(value):
    """As JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


reducers = Registry("reducers", Reducer, harmless=("store_rank",))
register = reducers.register
discover(__name__, reducers)
