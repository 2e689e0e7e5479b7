"""The sample stage: many images from a run, on disk, with the record of how they were drawn."""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from redi.core.registry import configurable
from redi.evaluation.samples.drawing import SamplingJob
from redi.evaluation.samples.exports import FORMATS, write_exports
from redi.evaluation.samples.feature_store import sample_features
from redi.evaluation.samples.label_schemes import SCHEMES, choose_labels
from redi.evaluation.samples.stored import FOLDER, Samples
from redi.models.encoders import Encoder, encoders
from redi.runtime.distributed import process_rank
from redi.runtime.paths import local_path
from redi.runtime.ranges import SEED, check_number
from redi.sampling.generate import Generated, generate
from redi.sampling.labels import label_numbers

log = logging.getLogger(__name__)

KEPT = ("images", "x")


@configurable(runtime=("run_dir", "trained", "rank", "world_size", "key"), entry=True)
def sample(
    run_dir: str | Path,
    *,
    trained,
    num_images: int = 1000,
    seeds: Sequence[int] | None = None,
    labels: str | Sequence[int | str] = "equal",
    weights: str = "ema",
    keep: Collection[str] = ("images", "x"),
    networks: Sequence[Encoder] = (),
    export: Collection[str] = (),
    images_per_part: int = 250,
    generate: Callable[..., Generated] = generate,
    rank: int | None = None,
    world_size: int | None = None,
    key: str = "",
) -> Samples:
    """Draws images and writes them, with their latents, features and record, to `run_dir/samples`.

    The work is cut into parts, which any number of processes share (`redi.runtime.shared_work.SharedJob`) with the same
    result. An interrupted call leaves its finished parts beside the folder, for the next one with the same settings.
    What `run_dir/samples` held is replaced.

    Args:
        run_dir: for the results; not necessarily that of the trained run.
        trained: an opened run (`redi.load`).
        num_images: for each seed.
        seeds: a set of samples for every seed, in this order; default: one, of the seed that `generate` has. All
            have the same labels, so that they differ in noise alone.
        labels: 'equal' gives every class the same number of images (the first classes one more where it does not
            divide); 'random' draws them uniformly, that of image i from i alone; 'dataset' has the class frequencies
            of the training images, from the run's audit.json; 'null' is the null label, for unconditional samples; or a
            list, of numbers or names of classes, that is repeated to `num_images`.
        weights: 'ema' or 'model'.
        keep: what is stored: 'images', and 'x', the joint states (latents and generated features).
        networks: their features are computed too, to be measured by `redi.evaluate`; where the images are not kept,
            while these are drawn. Networks that learn from data must be fitted.
        export: further forms, of every set: 'png' (`samples_png/`), 'adm' (`samples_adm.npz`, for ADM's suite).
        images_per_part: decides files and what an interruption costs; best a multiple of generate.batch_size.
        generate: draws them; its sampler, guidance and seed are bindings of `generate`.
        rank, world_size: default: those of torchrun or Slurm, else one process.
        key: tells apart the settings of `generate`. Without it a single process draws all anew.

    Raises:
        ValueError: settings that cannot be; joint states or features that are not finite, naming the image.
        OSError: too little space on the disk.
    """
    run_dir = local_path(run_dir)
    rank, world_size = process_rank(rank, world_size)
    labels = check_sampling(
        num_images, labels, weights, trained.num_classes, class_names=trained.class_names,
        seeds=seeds, keep=keep, networks=networks, export=export, images_per_part=images_per_part,
    )  # fmt: skip
    for network in networks:
        if not network.fitted:
            raise ValueError(f"sample.networks: {type(network).__name__} is not fitted: fit it, or run redi.sample")
        network.to(trained.codec.device)
    chosen = choose_labels(labels, num_images, trained.num_classes, trained.folder or run_dir)
    SamplingJob(
        run_dir / FOLDER, trained, generate, () if "images" in keep else networks, labels=chosen,
        scheme=labels if isinstance(labels, str) else list(labels), weights=weights, seeds=seeds and tuple(seeds),
        keep=tuple(sorted(keep)), images_per_part=images_per_part, key=key,
    ).run(rank, world_size)  # fmt: skip
    samples = Samples(run_dir / FOLDER)
    for network in networks if samples.has_images else ():
        sample_features(run_dir, samples, network, rank, world_size)
    write_exports(run_dir, samples, export)
    return samples


def check_sampling(
    num_images: int, labels: str | Sequence[int | str], weights: str, num_classes: int, *,
    class_names: Sequence[str] | None = None, seeds: Sequence[int] | None = None,
    keep: Collection[str] = KEPT, networks: Sequence[Encoder] = (), export: Collection[str] = (),
    images_per_part: int = 250,
) -> str | Sequence[int]:  # fmt: skip
    """`labels`, names of classes as numbers. Raises ValueError for settings that `sample` cannot work with."""
    for name, value in (("num_images", num_images), ("images_per_part", images_per_part)):
        check_number(f"sample.{name}", value)
    if weights not in ("ema", "model"):
        raise ValueError(f"sample.weights = {weights!r}: it is 'ema' or 'model'")
    if seeds is not None and not (_is_list(seeds, int) and len(set(seeds)) == len(seeds) > 0):
        raise ValueError(f"sample.seeds = {seeds!r}: a list of different whole numbers, such as (0, 1, 2), or None")
    for seed in seeds or ():
        check_number("sample.seeds", seed, **SEED)
    for name, value, known in (("keep", keep, KEPT), ("export", export, FORMATS)):
        if not _is_list(value, str) or not set(value) <= set(known):
            raise ValueError(f"sample.{name} = {value!r}: a list of some of {', '.join(known)}, or an empty one")
    if export and "images" not in keep:
        raise ValueError(f"sample.export = {export!r} takes the stored images: add 'images' to sample.keep")
    check_networks(networks)
    if isinstance(labels, str) and labels in SCHEMES:
        return labels
    if _is_list(labels, int | str):
        labels = label_numbers(labels, class_names, "sample.labels")
    if not _is_list(labels, int) or not labels or not all(0 <= label < num_classes for label in labels):
        what = f"it is 'equal', 'random', 'dataset', 'null' or a list of labels in 0 ... {num_classes - 1} or of names"
        raise ValueError(f"sample.labels = {labels!r}: {what}")
    return labels


def check_networks(networks: Sequence[Encoder]) -> None:
    """Raises ValueError unless it is a list of encoders."""
    if not isinstance(networks, Sequence):
        raise ValueError("sample.networks takes a list: set, for example, [encoders.DINOv2()]")
    for network in networks:
        encoders.check(network, "sample.networks")


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(v, kind) for v in value)
