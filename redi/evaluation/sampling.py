"""The sample stage: many images from a run, on disk, with the record of how they were drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from redi.core.artefact import load_artefact, save_artefact
from redi.core.generation import Generated, generate
from redi.core.registry import configurable

FOLDER = "samples"


@configurable(runtime=("run_dir", "trained"))
def sample(
    run_dir: str | Path,
    *,
    trained,
    num_images: int = 1000,
    labels: str | Sequence[int] = "equal",
    weights: str = "ema",
    generate: Callable[..., Generated] = generate,
) -> Generated:
    """Draws images and writes them, with their latents, features and record, to `run_dir/samples`.

    Args:
        trained: an opened run (`redi.load`).
        labels: 'equal' gives every class the same number of images (the first classes one more where it does not
            divide); or a list that is repeated to `num_images`.
        weights: 'ema' or 'model'.
        generate: draws them; its sampler, guidance and seed are bindings of `generate`.
    """
    check_sampling(num_images, labels, weights, trained.num_classes)
    if labels == "equal":
        chosen, scheme = torch.arange(num_images) % trained.num_classes, "equal"
    else:
        chosen, scheme = torch.tensor(labels).repeat(-(-num_images // len(labels)))[:num_images], list(labels)
    drawn = generate(trained.model, trained.codec, trained.process, labels=chosen, weights=trained.weights[weights])
    drawn.record |= {"num_images": num_images, "labels": scheme, "weights": weights, "checkpoint_step": trained.step}
    tensors = {"images": drawn.images, "x": drawn.x, "labels": drawn.labels}
    save_artefact(Path(run_dir) / FOLDER, {"samples": tensors}, drawn.record)
    return drawn


def check_sampling(num_images: int, labels: str | Sequence[int], weights: str, num_classes: int) -> None:
    """Raises ValueError for settings that `sample` cannot work with."""
    if not isinstance(num_images, int) or num_images < 1:
        raise ValueError(f"sample.num_images = {num_images!r}: a whole number of at least 1 is needed")
    if weights not in ("ema", "model"):
        raise ValueError(f"sample.weights = {weights!r}: it is 'ema' or 'model'")
    if labels == "equal":
        return
    if isinstance(labels, str) or not labels or not all(0 <= label < num_classes for label in labels):
        raise ValueError(f"sample.labels = {labels!r}: it is 'equal' or a list of labels in 0 ... {num_classes - 1}")


def load_samples(run_dir: str | Path) -> Generated:
    """What `sample` wrote. Raises ValueError where nothing was sampled yet or the files are damaged."""
    folder = Path(run_dir) / FOLDER
    if not folder.exists():
        raise ValueError(f"{run_dir} holds no samples: run redi.sample --run_dir={run_dir} first")
    tensors, record = load_artefact(folder)
    record["samples_sha256"] = record.pop("files")["samples.safetensors"]["sha256"]
    return Generated(**tensors["samples"], record=record)
