"""Dropout of the label and of the representations in training, for guidance."""

from typing import NamedTuple

from redi.core.processes import Process
from redi.runtime.ranges import check_choice


class TrainedWith(NamedTuple):
    """The dropout probabilities of a training, which decide what guidance can ask of the model.

    Examples:
        >>> TrainedWith(label_dropout=0.1, representation_dropout=0.2).joint_dropout
        0.0
    """

    label_dropout: float
    representation_dropout: float
    joint_dropout: float = 0.0


def check_dropout(trained_with: TrainedWith, rule: str, path: Process) -> None:
    """Raise ValueError, naming the binding, for wrong probabilities and for rules that do not suit them or the path."""
    for name, value in trained_with._asdict().items():
        if not 0 <= value < 1:
            raise ValueError(f"JointObjective.{name} = {value}: must be in [0, 1)")
    check_choice("JointObjective.dropout_rule", rule, ("paper", "released"))
    if rule == "released" and trained_with.joint_dropout:
        what = f"JointObjective.joint_dropout = {trained_with.joint_dropout} with dropout_rule = 'released'"
        raise ValueError(f"{what}: the published loss has no joint dropout; set dropout_rule to 'paper'")
    of_velocity = getattr(path, "prediction", None) == "velocity"
    if rule == "released" and trained_with.representation_dropout and not of_velocity:
        raise ValueError(
            "JointObjective.dropout_rule = 'released' reproduces the published loss for velocity predictions only: "
            "set it to 'paper', or set JointObjective.process to one with prediction = 'velocity'"
        )
