"""The own times of the groups in the loss: their weights under any clock, and what a clock that is learned pays."""

from typing import Literal

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.clocks import Clock
from redi.core.losses import GroupMeans, TimeWeight
from redi.core.processes import Process
from redi.core.time_distributions import TimeDistribution, time_distributions
from redi.runtime.ranges import check_number

MEAN_TIME = "mean_t/"  # the prefix of the mean t of each group in a log


class OwnTimes:
    """The distribution of own times that the loss of each group counts by, with the settings of `JointObjective`.

    Args:
        distribution: 'kept', a distribution q, or None: no weights.
        drawn: p, the distribution of the times that training draws.
        kinetic_weight: factor of the kinetic energy.
        clock: of the objective.

    Examples:
        >>> from redi.core.clocks import Lead
        >>> from redi.core.processes import FlowMatching
        >>> from redi.core.processes.clocked import Clocked
        >>> from redi.core.time_distributions import Uniform
        >>> channels, clock = Channels(image=1, dinov2=1), Lead(0.5)
        >>> process = Clocked(FlowMatching(), clock).for_channels(channels)
        >>> OwnTimes("kept", Uniform(), 0.0, clock).weight(process, torch.tensor([[[[0.25]]]]), (2, 8, 8)).flatten()
        tensor([0.0000, 1.5000])
    """

    def __init__(
        self, distribution: Literal["kept"] | TimeDistribution | None, drawn: TimeDistribution, kinetic_weight: float,
        clock: Clock,
    ):  # fmt: skip
        check_number("JointObjective.kinetic_weight", kinetic_weight, least=0, whole=False)
        learned = clock.module is not None
        if kinetic_weight and not learned:
            what = f"JointObjective.kinetic_weight = {kinetic_weight} with clocks.{type(clock).__name__}"
            raise ValueError(f"{what}: must be 0, because only a clock that is learned, clocks.Learned(), can move")
        if learned and distribution is None:
            distribution = "kept"  # otherwise the curves would move to own times at which the loss is small
        if distribution not in (None, "kept"):
            time_distributions.check(distribution, "JointObjective.own_times")
        self.distribution, self.drawn, self.kinetic_weight = distribution, drawn, kinetic_weight
        self.learned = learned

    def check(self, process: Process, cosine_weight: float, aligns: bool = False) -> None:
        """Raise ValueError if the path is discrete, a density unknown, or a term would move the curves unweighted."""
        if self.distribution is not None and process.num_timesteps is not None:
            what = f"JointObjective.own_times with JointObjective.process = {type(process).__name__}, which is discrete"
            raise ValueError(f"{what}: must be None, or bind a continuous process, such as processes.FlowMatching()")
        self.weight(process, torch.full((1, 1, 1, 1), 0.5), (1, 1, 1))
        terms = {"JointObjective.cosine_weight": cosine_weight, "JointCodec.alignment": aligns}
        if self.learned and (bound := [name for name, value in terms.items() if value]):
            why = "the curves would move to the noise levels at which this term is small"
            raise ValueError(f"{bound[0]} while clocks.Learned() finds its curves: {why}; remove it from the probe")

    def weight(
        self, process: Process, t: Tensor, state: tuple[int, ...], further: TimeWeight | None = None
    ) -> Tensor | float | None:
        """Return q(t_k(s)) t_k'(s) / p(s), the weights of the squared errors: (N, C, 1, 1), or (N, 1, 1, 1) for one t.

        s is drawn from p. The mean of an error over it is then that over the own time t_k with the density q, whatever
        the curve, and 0 where a group does not move. With a network that depends on the group's own time alone, the
        loss would not depend on the clock at all; what remains is what the groups know of each other. `further` is a
        factor. Without both, return None.
        """
        factor = None if further is None else further(process, t)
        wanted = self.drawn if self.distribution == "kept" else self.distribution
        if wanted is None:
            return factor
        path = getattr(process, "process", process)  # the path inside Clocked
        ratio = wanted.density(path, process.own_time(t), state) / self.drawn.density(process, t, state)
        weight = ratio * process.slope(t)
        return weight if factor is None else weight * factor

    def terms(
        self, process: Process, channels: Channels, x: Tensor, means: GroupMeans
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return the kinetic term of the loss, and by name the energy and the mean t of each group, for the log."""
        if not self.learned:
            return 0.0, {}
        energy = means.total(kinetic_energies(process, channels, x))
        t = process.own_time(shared_times(x)).mean(dim=0, keepdim=True).expand(len(x), -1, 1, 1)
        by_group = {f"{MEAN_TIME}{name}": t[:, channels.slice(name)][:, 0, 0, 0] for name in channels}
        named = {name: means.total({"image": times}) for name, times in by_group.items()}  # as for the whole batch
        return self.kinetic_weight * energy, {"kinetic": energy, **named}


def kinetic_energies(process: Process, channels: Channels, x: Tensor) -> dict[str, Tensor]:
    """Return {group: (N,)}, the integral over s of `t_k'(s)^2 |v_k|^2`, a mean over the values of the group.

    Its gradient pulls every curve towards constant speed. LWD does not define its energy. Here v_k is the velocity
    dx_t/dt of the path from noise to the data x (N, C, H, W), averaged over the noise. With the network's prediction
    in its place, the integral would need times that are drawn uniformly, and a wrong prediction could lower it.

    Examples:
        >>> from redi.core.clocks import Lead
        >>> from redi.core.processes import FlowMatching
        >>> from redi.core.processes.clocked import Clocked
        >>> channels, x = Channels(image=1, dinov2=1), torch.ones(1, 2, 4, 4)
        >>> process = Clocked(FlowMatching(), Lead(1.0)).for_channels(channels)  # twice as fast, half of the time
        >>> {name: float(energy) for name, energy in kinetic_energies(process, channels, x).items()}
        {'image': 4.0, 'dinov2': 4.0}
    """
    s = shared_times(x)
    of_data, of_noise = (rate.square().mean(dim=0) for rate in (process.d_alpha(s), process.d_sigma(s)))  # (C, 1, 1)
    return channels.means(of_data * x.square() + of_noise)


def shared_times(like: Tensor) -> Tensor:
    """Return 64 equally spaced shared times, (64, 1, 1, 1), the midpoints of equal parts of [0, 1]."""
    return ((torch.arange(64, device=like.device, dtype=like.dtype) + 0.5) / 64)[:, None, None, None]
