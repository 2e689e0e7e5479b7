"""Labels as people write them: numbers, or the names of classes."""

from collections.abc import Collection, Sequence

from torch import Tensor

from redi.runtime.spelling import did_you_mean, few


def label_numbers(labels: Collection, class_names: Sequence[str] | None, argument: str):
    """`labels` with numbers in place of class names. Raises ValueError for a name that is not one of `class_names`."""
    if isinstance(labels, str | int):
        raise ValueError(f"{argument} = {labels!r}: it takes a list, as [{labels!r}]")
    if isinstance(labels, Tensor) or not any(isinstance(label, str) for label in labels):
        return labels
    if not class_names:
        raise ValueError(f"{argument} = {labels!r}: this run knows no names of classes; give their numbers")
    number_of = {name: number for number, name in enumerate(class_names)}
    if unknown := [label for label in labels if isinstance(label, str) and label not in number_of]:
        nearest, known = did_you_mean(unknown[0], class_names), few(class_names, 10)
        raise ValueError(f"{argument}: no class is named {unknown[0]!r}{nearest} (the classes are {known})")
    return [number_of.get(label, label) for label in labels]


def captions(labels: Tensor, class_names: Sequence[str] | None) -> list[str]:
    """(N,) labels -> the names of their classes; the number of a class without a name, and of the null label."""
    names = class_names or ()
    return [names[label] if label < len(names) else str(label) for label in labels.tolist()]
