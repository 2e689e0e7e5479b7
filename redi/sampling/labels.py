"""Labels as class numbers or class names."""

from collections.abc import Collection, Sequence

from torch import Tensor

from redi.runtime.spelling import did_you_mean, few


def label_numbers(labels: Collection, class_names: Sequence[str] | None, argument: str):
    """Replace class names in `labels` by class numbers. Raises ValueError for an unknown name.

    Examples:
        >>> label_numbers(["dog", 0], ["cat", "dog"], "labels")
        [1, 0]
    """
    if isinstance(labels, str | int):
        raise ValueError(f"{argument} = {labels!r}: must be a list, such as [{labels!r}]")
    if isinstance(labels, Tensor) or not any(isinstance(label, str) for label in labels):
        return labels
    if not class_names:
        raise ValueError(f"{argument} = {labels!r}: must be class numbers, because this run has no class names")
    number_of = {name: number for number, name in enumerate(class_names)}
    if unknown := [label for label in labels if isinstance(label, str) and label not in number_of]:
        nearest, names = did_you_mean(unknown[0], class_names), few(class_names, 10)
        raise ValueError(f"{argument}: no class is named {unknown[0]!r}{nearest} (the classes are {names})")
    return [number_of.get(label, label) for label in labels]


def captions(labels: Tensor, class_names: Sequence[str] | None) -> list[str]:
    """Return the class names of labels (N,), or numbers for classes without a name and the null label."""
    names = class_names or ()
    return [names[label] if label < len(names) else str(label) for label in labels.tolist()]
