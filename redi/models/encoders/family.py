"""Encoders that differ by a table: sizes, and timm's name of each."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from redi.models.encoders.timm_model import Timm


class Family(Timm):
    """Timm models by size, a key of `models`. A subclass states its table and, as in `CLIP`, its default."""

    models: ClassVar[Mapping[str, str]]  # {size: timm's name with the tag of the weights}

    def __init__(
        self,
        *,
        size: str,
        image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased",
        layers: int | Sequence[int] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        super().__init__(
            model=self.model_of(size), image_size=image_size, resize=resize, layers=layers,
            weights=weights, weights_sha256=weights_sha256, precision=precision,
        )  # fmt: skip

    @classmethod
    def model_of(cls, size: str) -> str:
        if size not in cls.models:
            raise ValueError(f"{cls.__name__}.size = {size!r}: it is one of {', '.join(cls.models)}")
        return cls.models[size]
