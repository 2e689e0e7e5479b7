"""What an objective needs of the network that it trains."""

from redi.core.alignment import Alignment
from redi.core.channels import Channels
from redi.core.clocks import Clock
from redi.core.dropout import TrainedWith
from redi.core.own_times import OwnTimes
from redi.core.predicted_features import PredictedFeatures
from redi.core.processes import Process


class NetworkNeeds:
    """The needs of `JointObjective`: the arguments of the network's constructor, and checks of the network.

    Examples:
        >>> from redi.core.objective import JointObjective
        >>> class Convolution: pass  # it has no `aligns_vectors`
        >>> JointObjective(channels=Channels(image=4), num_classes=10).check_model(Convolution())
    """

    alignment: Alignment
    channels: Channels
    clock: Clock
    cosine_weight: float
    inner_layer: int | None
    joint_dropout: float
    label_dropout: float
    own_times: OwnTimes
    predicted_features: PredictedFeatures | None
    process: Process
    representation_dropout: float

    @property
    def trained_with(self) -> TrainedWith:
        """The dropout probabilities, which guidance compares with what it needs."""
        return TrainedWith(self.label_dropout, self.representation_dropout, self.joint_dropout)

    def model_arguments(self, codec, dataset) -> dict:
        """Return the constructor arguments that a model needs for a codec and data set."""
        grid, groups = codec.grid(dataset.image_size), self.process.variance_groups
        arguments = {"channels": codec.channels, "grid": grid, "num_classes": dataset.num_classes}
        arguments |= {"variance_groups": groups} if groups else {}
        self.own_times.check(self.process, self.cosine_weight, aligns=bool(codec.alignments))
        if dims := {name: encoder.dim for name, encoder in codec.alignments.items()}:
            arguments["alignment_dim"] = dims.get("alignment", dims)
            self.alignment.check_widths(dims.values())
        if self.predicted_features is not None:
            self.predicted_features.check(self.channels, self.alignment, dims)
            arguments["takes_features"] = True
        arguments |= {"inner_layer": self.inner_layer} if self.inner_layer else {}
        arguments |= {"group_timesteps": True} if self._times_differ else {}
        return arguments

    @property
    def _times_differ(self) -> bool:
        """Whether the network needs the time of every group."""
        return (self.clock.separate or self.clock.independent) and len(self.channels) > 1

    def check_model(self, model: object) -> None:
        """Raise ValueError if the model does not accept the times of this objective, or cannot align vectors."""
        if self.alignment.vectors and not getattr(model, "aligns_vectors", False):
            what = f"JointObjective.alignment_vectors = True: {type(model).__name__} cannot project vectors"
            raise ValueError(f"{what}; bind DiffusionTransformer.alignment_projector = 'mlp'")
        if self._times_differ and not getattr(model, "has_group_times", False):
            what = f"JointObjective.clock = {type(self.clock).__name__} needs a model with a t per channel group"
            raise ValueError(f"{what}: has_group_times is not True for {type(model).__name__}; bind clocks.Shared")
