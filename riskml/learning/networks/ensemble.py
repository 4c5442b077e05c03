"""Several networks and a boosted expert as one network: the graph that is exported.

::

    ln variance = (1 - w) mean over members of ln variance_m + w (skip + expert)
    ln sigma    = mean over members of ln sigma_m + 1/2 (ln variance - mean of ln variance_m)
    1 / nu      = mean over members of 1 / nu_m
    ln hazard   = mean over members of ln hazard_m, halfway to that of the trees where there are any

``skip`` is the log-HAR with season that the first member started at, and ``expert`` what boosted trees add
to it. Members differ by seed alone; their mean is steadier than each, and costs one pass per member. With a
weight w of 0 and one member this is that member.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riskml.errors import DataError
from riskml.learning.networks.loadings import LoadingHead
from riskml.learning.networks.market import (
    LARGE,
    MAX_HAZARD,
    MarketLaw,
    MarketNet,
    last_bars,
    log_har,
    onset_probability,
)


class EnsembleNet(nn.Module):
    """Members' mean, with a boosted expert beside them or without.

    Parameters
    ----------
    members : networks of one shape, at least one.
    has_expert : whether :meth:`forward` takes the expert's forecast.
    has_stress_trees : whether that forecast goes on with the logit of stress per horizon.
    """

    def __init__(
        self, members: Sequence[MarketNet], *, has_expert: bool, has_stress_trees: bool = False
    ) -> None:
        super().__init__()
        first = members[0]
        self.members = nn.ModuleList(members)
        self.has_expert, self.has_stress_trees = has_expert, has_stress_trees
        self.spec, self.roles, self.n_horizons = first.spec, first.roles, first.n_horizons
        fitted = self.spec.loadings == "fitted"
        self.loading_head = LoadingHead(self.roles.names) if fitted else None
        self.receptive_field = first.receptive_field
        self.register_buffer("expert_weight", torch.zeros(first.n_horizons))
        self.register_buffer("log_scale", torch.zeros(first.n_horizons, 2))
        self.register_buffer("start_weight", torch.zeros_like(first.har.weight))
        self.register_buffer("start_bias", torch.zeros_like(first.har.bias))
        self.register_buffer("start_season", torch.zeros_like(first.season))

    @property
    def mean(self) -> Tensor:
        """Fit means of the features, [n_features]."""
        return self.first.mean

    @property
    def scale(self) -> Tensor:
        """Fit deviations of the features, [n_features]."""
        return self.first.scale

    @property
    def first(self) -> MarketNet:
        """The first member, which scales features and gives the loadings."""
        member: MarketNet = self.members[0]
        return member

    def remember_start(self, net: MarketNet) -> None:
        """Keep the log-HAR of an initialised, untrained network: what the expert adds to."""
        with torch.no_grad():
            self.start_weight.copy_(net.har.weight)
            self.start_bias.copy_(net.har.bias)
            self.start_season.copy_(net.season)

    def forward(
        self, features: Tensor, feature_mask: Tensor, market_mask: Tensor, expert: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The graph: forecasts after the last bar of the window.

        Parameters
        ----------
        features, feature_mask, market_mask : as :meth:`MarketNet.forward` takes them.
        expert : [n_markets, n_outputs] log variance that the trees add to the skip per horizon, then, with
            ``has_stress_trees``, the logit of stress per horizon.

        Returns
        -------
        sigma [n_markets, n_horizons, 2], nu, variance, stress [n_markets, n_horizons] and
        loadings [n_markets, 2].

        Raises
        ------
        DataError : the network has an expert, and its forecast is not given.
        """
        if self.has_expert and expert is None:
            raise DataError("the network was fitted with a boosted expert, whose forecast is missing")
        window = last_bars(features, self.receptive_field).unsqueeze(0)
        mask = last_bars(feature_mask, self.receptive_field).unsqueeze(0)
        added = None if expert is None else expert[None, :, None]
        law = self.law(window, mask, market_mask.unsqueeze(0), added)
        sigma = torch.exp(law.log_sigma[0, :, -1] + self.log_scale)
        variance = torch.exp(law.log_variance[0, :, -1])
        head = self.first.loadings if self.loading_head is None else self.loading_head
        loadings = head(features[:, -1], feature_mask[:, -1])
        return sigma, law.nu[0, :, -1], variance, onset_probability(law.hazard[0, :, -1]), loadings

    def law(
        self, features: Tensor, feature_mask: Tensor, market_mask: Tensor, expert: Tensor | None = None
    ) -> MarketLaw:
        """The combined law at every bar that has a full receptive field.

        Parameters
        ----------
        features, feature_mask, market_mask : as :meth:`MarketNet.law` takes them.
        expert : [n_chunks, n_markets, n_positions, n_outputs] as :meth:`forward` takes it.
        """
        laws = [member.law(features, feature_mask, market_mask) for member in self.members]
        count = float(len(laws))

        def mean(parts: list[Tensor]) -> Tensor:
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            return total / count

        log_variance = mean([law.log_variance for law in laws])
        log_sigma = mean([law.log_sigma for law in laws])
        nu = 1.0 / mean([1.0 / law.nu for law in laws])
        hazard = torch.exp(mean([torch.log(law.hazard) for law in laws]))
        if expert is not None:
            added = expert[..., : self.n_horizons]
            log_variance, log_sigma = self._blend(log_variance, log_sigma, features, feature_mask, added)
            if self.has_stress_trees:
                hazard = _joined_hazard(hazard, expert[..., self.n_horizons :])
        return MarketLaw(log_variance, log_sigma, nu, hazard, mean([law.nu_delta for law in laws]))

    def _blend(
        self, log_variance: Tensor, log_sigma: Tensor, features: Tensor, feature_mask: Tensor, expert: Tensor
    ) -> tuple[Tensor, Tensor]:
        low, high = self.first.log_variance_bounds[:, 0], self.first.log_variance_bounds[:, 1]
        forecast = torch.minimum(torch.maximum(self.start(features, feature_mask) + expert, low), high)
        shift = self.expert_weight * (forecast - log_variance)
        return log_variance + shift, log_sigma + 0.5 * shift.unsqueeze(-1)

    def start(self, features: Tensor, feature_mask: Tensor) -> Tensor:
        """Log variance of the log-HAR with season, [n_chunks, n_markets, n_positions, n_horizons]."""
        context = self.receptive_field - 1
        values, mask = features[:, :, context:], feature_mask[:, :, context:]
        valid = mask & (values.abs() < LARGE)
        standard = torch.where(valid, (values - self.mean) / self.scale, torch.zeros_like(values))
        coefficients = self.start_weight, self.start_bias, self.start_season
        return log_har(self.roles, values, valid, standard, coefficients)


def _joined_hazard(network: Tensor, logit: Tensor) -> Tensor:
    """Geometric mean of two hazards, the second of probabilities by logit; rising over horizons.

    Parameters
    ----------
    network, logit : [..., n_horizons].
    """
    trees = torch.nn.functional.softplus(logit.clamp(-MAX_HAZARD, MAX_HAZARD))  # -ln(1 - p)
    joined = torch.sqrt(network * trees)
    parts = [joined[..., 0]]
    for index in range(1, joined.shape[-1]):
        parts.append(torch.maximum(parts[-1], joined[..., index]))
    return torch.stack(parts, dim=-1)
