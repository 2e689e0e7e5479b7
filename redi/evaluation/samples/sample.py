"""The sample stage: draw many images from a run and store them with a record of the settings."""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import UnionType

from redi.core.registry import configurable
from redi.evaluation.samples.drawing import SamplingJob
from redi.evaluation.samples.exports import FORMATS, write_exports
from redi.evaluation.samples.feature_store import sample_features
from redi.evaluation.samples.label_schemes import SCHEMES, choose_labels
from redi.evaluation.samples.stored import FOLDER, Samples
from redi.models.encoders import Encoder, encoders
from redi.runtime.distributed import process_rank
from redi.runtime.paths import local_path
from redi.runtime.ranges import SEED, check_choice, check_number
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
    """Draw images and write them, with their latents, features and record, to `run_dir/samples`.

    Existing samples with other settings are replaced. Any number of processes share the work, with the same result
    (`redi.runtime.shared_work.SharedJob`). An interrupted call keeps its finished parts beside the folder, and the next
    call with the same settings resumes from them.

    Args:
        run_dir: folder of the results; it may differ from the folder of the trained run.
        trained: an opened run (`redi.load`).
        num_images: number of images per seed.
        seeds: one set of samples per seed, with the same labels and different noise. Default: the seed of `generate`.
        labels: 'equal': the same number of images for every class; if `num_images` does not divide, the first classes
            get one more. 'random': uniform; the label of image i depends on i alone. 'dataset': the class frequencies
            of the training images, from the run's audit.json. 'null': the null label, for unconditional samples. Or a
            list of class numbers or names, repeated to `num_images`.
        weights: 'ema' or 'model'.
        keep: what to store: 'images', and 'x', the joint states (latents and generated features).
        networks: encoders whose features are computed for `redi.evaluate`, during sampling if the images are not kept.
            Networks that learn from data must be fitted.
        export: further formats of every set: 'png' (`samples_png/`), 'adm' (`samples_adm.npz`, for ADM's suite).
        images_per_part: images per file, and the most that an interruption loses; preferably a multiple of
            generate.batch_size.
        generate: the function that draws the images. Its settings are bound as `generate.sampler` etc.
        rank, world_size: default: those of torchrun or Slurm, else one process.
        key: a hash of the settings of `generate`. Without it, existing samples are not reused in a single process.

    Raises ValueError: a setting is invalid, or joint states or features are not finite. The message names the image.
    """
    run_dir = local_path(run_dir)
    rank, world_size = process_rank(rank, world_size)
    scheme = check_sampling(
        num_images, labels, weights, trained.num_classes, class_names=trained.class_names,
        seeds=seeds, keep=keep, networks=networks, export=export, images_per_part=images_per_part,
    )  # fmt: skip
    for network in networks:
        if not network.fitted:
            raise ValueError(f"sample.networks: {type(network).__name__} is not fitted: fit it, or run redi.sample")
        network.to(trained.codec.device)
    numbers = choose_labels(scheme, num_images, trained.num_classes, trained.folder or run_dir)
    SamplingJob(
        run_dir / FOLDER, trained, generate, () if "images" in keep else networks, labels=numbers,
        scheme=scheme if isinstance(scheme, str) else list(scheme), weights=weights,
        seeds=None if seeds is None else tuple(seeds), keep=tuple(sorted(keep)), images_per_part=images_per_part,
        key=key,
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
    """Return `labels` with class names as numbers. Raises ValueError if a setting of `sample` is invalid."""
    check_number("sample.num_images", num_images)
    check_number("sample.images_per_part", images_per_part)
    check_choice("sample.weights", weights, ("ema", "model"))
    if seeds is not None and not (_is_list(seeds, int) and len(set(seeds)) == len(seeds) > 0):
        raise ValueError(f"sample.seeds = {seeds!r}: must be a list of distinct integers, such as (0, 1, 2), or None")
    for seed in seeds or ():
        check_number("sample.seeds", seed, **SEED)
    for name, value, allowed in (("keep", keep, KEPT), ("export", export, FORMATS)):
        if not _is_list(value, str) or not set(value) <= set(allowed):
            raise ValueError(f"sample.{name} = {value!r}: must be a list, possibly empty, of {' and '.join(allowed)}")
    if export and "images" not in keep:
        raise ValueError(f"sample.export = {export!r} needs the stored images: add 'images' to sample.keep")
    if not isinstance(networks, Sequence):
        raise ValueError("sample.networks is not a list: set, for example, [encoders.DINOv2()]")
    for network in networks:
        encoders.check(network, "sample.networks")
    if isinstance(labels, str) and labels in SCHEMES:
        return labels
    numbers = label_numbers(labels, class_names, "sample.labels") if _is_list(labels, int | str) else ()
    if not _is_list(numbers, int) or not numbers or not all(0 <= label < num_classes for label in numbers):
        what = f"'equal', 'random', 'dataset', 'null', or a list of labels in 0 ... {num_classes - 1} or of class names"
        raise ValueError(f"sample.labels = {labels!r}: must be {what}")
    return numbers


def _is_list(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(v, kind) for v in value)
