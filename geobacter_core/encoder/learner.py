"""What is trained: the encoder, what the loss sees it through, and one step of descent on a batch."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from geobacter_core.encoder.data import Batch, TripletWindows, WindowSpec
from geobacter_core.encoder.losses import (
    Embedded,
    LossValue,
    make_loss,
    n_roles,
    negative_pairs,
    thumbnails,
    vicreg_terms,
)
from geobacter_core.encoder.network import EncoderNetwork, NetworkSpec, features_of, random_network, side_by_side
from geobacter_core.encoder.parallel import ALONE, Team
from geobacter_core.encoder.settings import TrainSettings

_NORMALISATION_TRIPLETS = 256


class Learner(nn.Module):
    """The encoder, and what is thrown away after training.

    Each scale's part of an embedding has a perceptron through which the loss sees it, if wanted (Chen et al., "A simple
    framework for contrastive learning of visual representations", ICML 2020).
    """

    def __init__(self, encoder: EncoderNetwork, settings: TrainSettings, device: torch.device) -> None:
        super().__init__()
        self.encoder = encoder
        self._device = device
        parts, width = encoder.spec.part_dims, settings.projection_dim
        self.projections = nn.ModuleList(_perceptron(dim, width) for dim in parts) if width else None
        self.seen_dims = [width] * len(parts) if width else parts
        """Columns of each part of what the loss sees."""

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed windows.

        Returns:
            What is learnt of their embeddings, rows of length 1; and what the loss sees of it `[M, P]`, a part for each
            scale side by side, rows of length 1 each.
        """
        parts = self.encoder.learnt(features_of(self.encoder, windows, self._device))
        learnt = side_by_side(parts)
        if self.projections is not None:
            pairs = zip(self.projections, parts, strict=True)
            parts = [functional.normalize(projection(part), dim=1) for projection, part in pairs]
        return learnt, torch.cat(parts, dim=1)


def _perceptron(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, 2 * dim), nn.BatchNorm1d(2 * dim), nn.ReLU(inplace=True), nn.Linear(2 * dim, width)
    )


def network_spec(spec: WindowSpec, settings: TrainSettings) -> NetworkSpec:
    """The network for windows of a kind."""
    n_scales, has_surroundings = spec.scales.n_learnt, spec.scales.surroundings_m is not None
    return NetworkSpec(
        settings.network, spec.n_channels, n_scales, settings.embedding_dim, settings.shares, has_surroundings
    )


def new_learner(spec: WindowSpec, settings: TrainSettings, data: TripletWindows, device: torch.device) -> Learner:
    """A learner with random weights, by the seed, whose input is normalised by the train windows."""
    network = random_network(network_spec(spec, settings), settings.seed)
    some = np.random.default_rng([settings.seed, 0]).choice(
        len(data), min(_NORMALISATION_TRIPLETS, len(data)), replace=False
    )
    network.set_normalisation(data.windows(some))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Learner(network, settings, device).to(device)


def take_step(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    settings: TrainSettings,
    rate: float,
    team: Team = ALONE,
) -> LossValue:
    """One step of descent on a batch, of which a team's processes have a share each, at a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    value = _loss(learner, batch, settings, team)
    optimiser.zero_grad(set_to_none=True)
    value.loss.backward()  # type: ignore[no-untyped-call]
    team.add_gradients(learner)
    optimiser.step()
    return LossValue(value.loss.detach(), value.active_share)


def _loss(learner: Learner, batch: Batch, settings: TrainSettings, team: Team) -> LossValue:
    """The loss of the whole batch; only gradients by this process's share flow.

    Each scale has a loss of its own: with one for both, the context, of which a near place shows nearly the same, would
    find each pair alone, and the window itself learn little.
    """
    learnt, seen = learner(batch.windows)
    n_own = len(batch.xyz)
    xyz, near_m = team.gather(batch.xyz, 2), team.gather(batch.near_m, 2)
    if settings.false_negative_m is not None:
        near_m = torch.full_like(near_m, settings.false_negative_m)
    small = team.gather(thumbnails(batch.windows[:n_own]), 2)
    is_negative = negative_pairs(xyz, near_m, small, settings.false_negative_difference)
    loss_of, values = make_loss(settings), []
    for part in torch.split(team.gather(seen, n_roles(settings)), learner.seen_dims, dim=1):
        roles = torch.split(part, len(xyz) // 2)
        values.append(loss_of(Embedded(roles[0], roles[1], roles[2] if len(roles) > 2 else None, is_negative)))
    loss = torch.stack([value.loss for value in values]).mean()
    if settings.vicreg_weight:
        loss = loss + settings.vicreg_weight * vicreg_terms(team.gather(learnt[:n_own], 2))
    return LossValue(loss, torch.stack([value.active_share for value in values]).mean())


def diagnosis(step: int, loss: float, rate: float, batch: Batch, learner: Learner) -> str:
    """Why a loss may have become infinite or not a number, and what to do."""
    broken = [name for name, weight in learner.state_dict().items() if not bool(torch.isfinite(weight).all())]
    weights = f"{len(broken)} weights are not finite, the first is {broken[0]}" if broken else "all weights are finite"
    blank = float((batch.windows.flatten(1).float().std(dim=1) == 0).float().mean())
    return (
        f"Training step {step}: the loss is {loss} at learning rate {rate:g}; {weights}; {blank:.0%} of the batch's "
        "windows are of one colour. Lower learning_rate, or raise temperature; by the same settings it would come "
        "here again. Nothing was registered."
    )
