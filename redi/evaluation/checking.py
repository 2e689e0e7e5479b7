"""Checks before an evaluation: the kinds of the objects, and whether the reference matches the data."""

from collections.abc import Sequence

from redi.data.datasets import Dataset, datasets
from redi.evaluation.measures import METRICS
from redi.evaluation.stored_statistics import StoredStatistics, ending, images_of
from redi.models.encoders import Encoder, encoders
from redi.runtime.ranges import check_number
from redi.runtime.spelling import did_you_mean


def check_evaluation(
    dataset: Dataset | None,
    reference: Dataset | StoredStatistics | None,
    networks: Sequence[Encoder] | None,
    metrics: Sequence[str] = tuple(METRICS),
    max_images: int | None = None,
) -> None:
    """Raise ValueError for objects of the wrong kind, and for a reference that does not match the data."""
    if networks is not None and not isinstance(networks, (list, tuple)):
        raise ValueError("evaluate.networks is not a list: set, for example, [encoders.DomainEncoder()]")
    for network in networks or ():
        encoders.check(network, "evaluate.networks")
    endings = [ending(network) for network in networks or ()]
    if twice := ", ".join(sorted({name for name in endings if endings.count(name) > 1})):
        raise ValueError(f"evaluate.networks: several networks have the same metric names ({twice}): keep one of them")
    if isinstance(metrics, str):
        raise ValueError(f"evaluate.metrics = {metrics!r} is not a list: set {[metrics]!r}")
    for name in metrics:
        if name not in METRICS:
            hint = did_you_mean(str(name), METRICS)
            raise ValueError(f"evaluate.metrics: unknown metric {name!r}; choose from {', '.join(METRICS)}{hint}")
    if max_images is not None:
        check_number("evaluate.max_images", max_images, 2, note="None uses all")
    if isinstance(reference, StoredStatistics):
        if endings and reference.network not in endings and reference.images is None:
            raise ValueError(
                f"StoredStatistics.network = {reference.network!r} is not in evaluate.networks "
                f"({', '.join(endings)}): correct it, or set StoredStatistics.images"
                f"{did_you_mean(reference.network, endings)}"
            )
    elif reference is not None:
        datasets.check(reference, "evaluate.reference")
    if dataset is None:
        learning = [type(network).__name__ for network in networks or () if network.learns_from_data]
        if reference is None or learning:
            what = f"{learning[0]} learns from them" if learning else "evaluate.reference is not bound"
            raise ValueError(f"evaluation needs training images, because {what}: bind train.dataset")
        return
    if (images := images_of(reference)) is not None:
        _check_images(dataset, images)
    check_size(dataset.image_size, reference)


def _check_images(dataset: Dataset, reference: Dataset) -> None:
    if len(reference) < 2:
        raise ValueError(
            f"evaluate.reference has {len(reference)} images, but a distance needs at least two: raise "
            f"{type(reference).__name__}.held_out_fraction for both splits, or bind other images"
        )
    if reference.provenance() == dataset.provenance() and (both := set(reference.names) & set(dataset.names)):
        raise ValueError(
            f"evaluate.reference shares {len(both)} images with the training data ({sorted(both)[0]}, ...): set the "
            "same held_out_fraction and split_seed for both, and the splits 'train' and 'held_out'"
        )
    numbered = reference.class_names == [str(label) for label in range(len(reference.class_names))]
    unlabelled = len(reference.class_names) < 2 or numbered  # an ADM batch has no class names; its labels are not used
    if not unlabelled and reference.class_names != dataset.class_names:
        raise ValueError(
            f"evaluate.reference has the classes {', '.join(reference.class_names[:10])}, but "
            f"the training data have {', '.join(dataset.class_names[:10])}: use a reference with the same classes"
        )


def check_size(size: int, reference: Dataset | StoredStatistics | None, binding: str = "evaluate.reference") -> None:
    """Raise ValueError if the reference has another resolution than the samples."""
    for one in (reference, images_of(reference)):
        if one is not None and one.image_size not in (None, size):
            raise ValueError(
                f"{binding} has images of {one.image_size} pixels, but the samples have {size}, so a distance would "
                "measure the resolution: bind the same image size for both, for example Preprocessing.image_size"
            )
