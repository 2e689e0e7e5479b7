"""Filling the cache: every image is encoded once, shard by shard, by as many processes as there are."""

import json
import logging
import shutil
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import redi
from redi.data.cache.cache import FORMAT, LEARNED, MANIFEST, MIRRORED, Cache, altered_files, code_of, manifest_sha256
from redi.data.cache.shards import shard_tensors, write_shard
from redi.data.datasets import Dataset
from redi.models.codec import JointCodec
from redi.runtime.atomic import rename, save_tensors, write_json
from redi.runtime.checksums import sealed, sha256, unsealed
from redi.runtime.progress import progress
from redi.runtime.shared_work import complete

log = logging.getLogger(__name__)


def write_cache(
    folder: Path,
    codec: JointCodec,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    rows_per_shard: int = 4096,
    mirror: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Cache:
    """Encodes every image once; the folder appears when it is complete. A cache that is there already is opened.

    What an interrupted call has finished is kept in '.<name>.work' beside the folder and taken up by the next.

    Args:
        mirror: also encode every image mirrored left to right.
        rank, world_size: see `redi.runtime.shared_work.complete`; the result is the same for all.

    Raises:
        ValueError: labels outside [0, num_classes); NaN or infinite values in what the networks give.
        OSError: too little space on the disk.
    """
    folder = Path(folder)
    if not folder.exists():
        if not len(dataset):
            raise ValueError("there are no images to encode")
        low, high = int(dataset.labels.min()), int(dataset.labels.max())
        if low < 0 or high >= dataset.num_classes:
            raise ValueError(f"labels run from {low} to {high}, but a model of {dataset.num_classes} classes is built")
        codec.load()
        with progress(total=len(dataset), desc="encoding", unit="img", disable=rank > 0) as bar:
            writer = _Writer(folder, codec, dataset, batch_size, rows_per_shard, mirror, bar)
            complete(
                writer.work, list(writer.parts), is_done=writer.is_done, do=writer.encode, finished=folder.exists,
                finish=writer.finish, rank=rank, world_size=world_size,
            )  # fmt: skip
    return Cache(folder)


class _Writer:
    """What `complete` is given to do: one part is one shard. Records lie apart, for the shards become the cache."""

    def __init__(
        self, folder: Path, codec: JointCodec, dataset: Dataset, batch_size: int, rows_per_shard: int, mirror: bool,
        bar: tqdm,
    ):  # fmt: skip
        self.folder, self.codec, self.dataset, self.mirror = folder, codec, dataset, mirror
        self.batch_size, self.bar = batch_size, bar
        starts = range(0, len(dataset), rows_per_shard)
        self.parts = {
            f"shard-{i:05d}": range(start, min(start + rows_per_shard, len(dataset))) for i, start in enumerate(starts)
        }
        self.work = folder.with_name(f".{folder.name}.work")
        self.written: set[str] = set()  # by this process, and so known to be whole
        self.encoded: dict[str, int] = {}  # images per part, by whomever, for the bar
        for part in self.parts:
            self.is_done(part)
        bar.initial = bar.n  # what was there is no part of the bar's speed

    def is_done(self, part: str) -> bool:
        if done := self._record(part).exists():
            self._show(part, len(self.parts[part]))
        return done

    def _show(self, part: str, num_images: int) -> None:
        if self.encoded.get(part) != num_images:
            self.encoded[part] = num_images
            self.bar.update(sum(self.encoded.values()) - self.bar.n)

    def encode(self, part: str) -> None:
        positions, rows = self.parts[part], {}
        for start in range(0, len(positions), self.batch_size):
            batch = self._batch(positions[start : start + self.batch_size])
            if start == 0:
                self._require_space(batch)
                rows = {name: tensor.new_empty(len(positions), *tensor.shape[1:]) for name, tensor in batch.items()}
            for name, tensor in batch.items():
                rows[name][start : start + len(tensor)] = tensor
            self._show(part, start + len(batch["labels"]))
        names = [self.dataset.names[position] for position in positions]
        self._record(part).parent.mkdir(exist_ok=True)
        self._shard(part).parent.mkdir(exist_ok=True)
        # Not beside the other shards: if their folder becomes the cache meanwhile, nothing half-written goes along.
        record = write_shard(self._shard(part), rows, names, scratch=self.work)
        found = {"first": positions[0], "shard": record, "tensors": shard_tensors(rows)}
        write_json(self._record(part), sealed(found))
        self.written.add(part)

    def _batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        batch, names = self.dataset.batch(positions), [self.dataset.names[position] for position in positions]
        images, rows = batch["images"].to(self.codec.device), {"labels": batch["labels"]}
        for prefix, seen in {"": images, MIRRORED: images.flip(-1)}.items() if self.mirror else [("", images)]:
            for name, tensor in self.codec.precompute(seen).items():
                check_encoded(tensor, _source(self.codec, name), names)
                rows[prefix + name] = tensor.cpu()
        return rows

    def _require_space(self, batch: dict[str, Tensor]) -> None:
        row = sum(tensor.nbytes for tensor in batch.values()) / len(batch["labels"])
        missing = sum(len(rows) for part, rows in self.parts.items() if not self.is_done(part))
        free = shutil.disk_usage(self.work).free
        if free < row * missing:
            what = f"{row * missing / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free"
            raise OSError(f"no space for {self.folder}: {what}; choose another prepare.cache_dir or $REDI_CACHE")

    def finish(self) -> None:
        """Compares every shard that another process wrote, now or before, with its checksum; then the manifest."""
        records = {part: self._read(part) for part in self.parts}
        if damaged := [part for part, record in records.items() if record is None]:
            self._redo(damaged)
            return
        others = {self._shard(p): r["shard"]["sha256"] for p, r in records.items() if p not in self.written}
        if altered := altered_files(others):
            self._redo([path.stem for path in altered])
            return
        manifest = {
            "format": FORMAT,
            "dataset": self.dataset.provenance(),
            "dataset_fingerprint": self.dataset.fingerprint(),
            "num_classes": self.dataset.num_classes,
            "image_size": self.dataset.image_size,
            "codec": self.codec.cache_provenance(),
            "cache_fingerprint": self.codec.cache_fingerprint(),
            "code": code_of(self.codec),
            "mirrored": self.mirror,
            "tensors": next(iter(records.values()))["tensors"],
            "rows": len(self.dataset),
            "shards": [record["shard"] for record in records.values()],
            "versions": {
                "redi": redi.__version__,
                "torch": torch.__version__,
                "timm": version("timm"),
                "diffusers": version("diffusers"),
            },
        }
        shards, written = self.work / "shards", self.work / f"{uuid.uuid4().hex}.json"
        if learned := self.codec.learned_state():  # so that a copy of the folder is all that a stream needs
            temporary = written.with_suffix(".partial")
            save_tensors(temporary, {name: tensor.clone() for name, tensor in learned.items()})
            manifest["learned"] = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
            rename(temporary, shards / LEARNED)
        write_json(written, manifest | {"sha256": manifest_sha256(manifest)})
        known = {MANIFEST, LEARNED, *(shard["file"] for shard in manifest["shards"])}  # if another finishes too
        for path in shards.iterdir():
            if path.name not in known:  # of an interrupted call with another rows_per_shard
                path.unlink(missing_ok=True)
        rename(written, shards / MANIFEST)
        rename(shards, self.folder)

    def _read(self, part: str) -> dict | None:
        try:
            path, rows = self._record(part), self.parts[part]
            record = unsealed(json.loads(path.read_text()), path)
            return record if (record["first"], record["shard"]["rows"]) == (rows[0], len(rows)) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # also BrokenArtefact
            return None

    def _redo(self, parts: Sequence[str]) -> None:
        """Makes parts undone: `complete` has them encoded again."""
        log.warning("encoding again what was damaged: %s", ", ".join(parts))
        for part in parts:
            self._record(part).unlink(missing_ok=True)

    def _shard(self, part: str) -> Path:
        return self.work / "shards" / f"{part}.safetensors"

    def _record(self, part: str) -> Path:
        return self.work / "records" / f"{part}.json"


def check_encoded(tensor: Tensor, what: str, names: Sequence[str]) -> None:
    """Raises ValueError naming the images (one per row of the tensor) that NaN or infinite values belong to."""
    if not tensor.is_floating_point() or bool((finite := tensor.isfinite()).all()):
        return
    bad = [name for name, whole in zip(names, finite.flatten(1).all(dim=1).tolist(), strict=True) if not whole]
    shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
    range_of = f"; {tensor.dtype} ends at {torch.finfo(tensor.dtype).max:,.0f}" if tensor.dtype == torch.float16 else ""
    raise ValueError(
        f"NaN or infinite values in {what} for {len(bad)} of the {len(names)} images of a batch: {shown}{range_of}. "
        "Look at these images and at the network's weights and precision"
    )


def _source(codec: JointCodec, name: str) -> str:
    """Which networks a tensor of `precompute` comes from, for people."""
    if name == "image":
        return f"the moments ('image') of {type(codec.autoencoder).__name__}"
    if name == "alignment":
        return f"the features ('alignment') of {type(codec.alignment).__name__}"
    representation = codec.representations[name]
    reducer = type(representation.reducer).__name__
    return f"the features ({name!r}) of {type(representation.encoder).__name__}, reduced by {reducer}"
