"""The network behind ``market.onnx``: a log-HAR law, and what a small network adds to it.

::

    ln variance_h = log-HAR_h(last bar) + season_h(hour of the week) + delta_h
    ln sigma_hs   = 1/2 ln variance_h + constant_hs + delta_hs          s = down, up
    nu_h          = 2.2 + 27.8 logistic(constant_h + delta_h)
    stress_h      = 1 - exp(-(hazard_1 + ... + hazard_h))                so it rises with h

Every delta is a linear map of the last bar's features plus a joint layer over these, the
sequence part and the mean of both over the markets that are present. All start at zero: an
unfitted network *is* the log-HAR half-t law. Slow features enter only at the last bar; fed as
sequences they let the network recognise dates.

Missing values: a feature that is masked, NaN or infinite counts as its fit mean, so the output
is finite whatever comes in; a market without any log-variance feature leaves the pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riskml.errors import DataError
from riskml.learning.networks.encoders import make_encoder
from riskml.learning.networks.inputs import TensorInput, market_inputs
from riskml.learning.recipe import NetworkSpec

NU_LOW, NU_HIGH = 2.2, 30.0
"""Bounds of nu: below 2 the variance is infinite, and above 30 the law is a half-normal."""
FEATURE_CLIP = 5.0
"""Network inputs end at this many fit standard deviations."""
SKIP_CLIP = 10.0
"""The skip follows its features further, since a crash is where it is needed."""
MAX_DELTA = 2.0
"""Largest correction of a log variance or log scale by the network."""
MAX_HAZARD = 20.0
LARGE = 1e30
"""A feature of this size or more counts as missing."""
N_SEASONS = 168
SEASON_FEATURE = "hour_of_week"
LOADING_FEATURES = ("factor_loading_1", "factor_loading_2")


@dataclass(frozen=True)
class FeatureRoles:
    """Which column of the feature axis does what."""

    names: tuple[str, ...]
    """All features, in the order of the last axis."""
    har: tuple[int, ...]
    """Log-variance columns of the skip."""
    sequence: tuple[int, ...]
    """Columns that the sequence part reads."""
    level: int | None
    """Column subtracted from log variances in the sequence part."""
    static: tuple[int, ...]
    """Columns read at the last bar: all but the season."""
    season: int | None
    """Column of the hour of the week."""
    loadings: tuple[int | None, ...]
    """Columns of the factor loadings."""
    families: tuple[tuple[int, ...], ...]
    """Groups of static columns that are dropped together."""

    @classmethod
    def of(cls, names: Sequence[str], spec: NetworkSpec, families: Mapping[str, str]) -> FeatureRoles:
        """Find the roles by name.

        Parameters
        ----------
        names : features in the order of the last axis.
        spec : names of the skip and of the sequence part.
        families : family per feature; one that is not listed is a family of its own.

        Raises
        ------
        DataError : a feature of the skip is missing, or a feature appears twice.
        """
        place = {name: index for index, name in enumerate(names)}
        missing = [name for name in spec.har_features if name not in place]
        if missing:
            raise DataError(
                f"the dataset lacks {', '.join(missing)}, on which the log-HAR skip stands",
                fix="build the dataset with the volatility family, and keep it in [network] features",
            )
        if len(place) != len(names):
            raise DataError("a feature appears twice in the dataset")
        season = place.get(SEASON_FEATURE)
        groups: dict[str, list[int]] = {}
        for name, index in place.items():
            # The skip reads the volatility family unmasked, so there is nothing to gain in dropping it whole.
            if index != season and families.get(name) != "volatility":
                groups.setdefault(families.get(name, name), []).append(index)
        return cls(
            names=tuple(names),
            har=tuple(place[name] for name in spec.har_features),
            sequence=tuple(place[name] for name in spec.sequence_features if name in place),
            level=place.get(spec.sequence_level),
            static=tuple(index for index in range(len(names)) if index != season),
            season=season,
            loadings=tuple(place.get(name) for name in LOADING_FEATURES),
            families=tuple(tuple(group) for group in groups.values()),
        )


@dataclass(frozen=True)
class MarketLaw:
    """Output of the network; every tensor may have leading axes for chunk and bar."""

    log_variance: Tensor
    """[..., n_horizons] ln of the realised variance to come."""
    log_sigma: Tensor
    """[..., n_horizons, 2] ln of the half-t scale."""
    nu: Tensor
    """[..., n_horizons]."""
    hazard: Tensor
    """[..., n_horizons] cumulated hazard of a stress onset."""
    nu_delta: Tensor
    """[..., n_horizons] deviation of logit nu from its constant, for the penalty."""


class MarketNet(nn.Module):
    """Forecast the excursion law of every market from windows of features.

    Parameters
    ----------
    spec : shape of the network.
    roles : what each feature is for.
    n_horizons : number of horizons, in rising order.
    """

    def __init__(self, spec: NetworkSpec, roles: FeatureRoles, n_horizons: int) -> None:
        super().__init__()
        self.spec, self.roles, self.n_horizons = spec, roles, n_horizons
        n_features, n_static = len(roles.names), len(roles.static)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("loading_default", torch.zeros(2))
        self.register_buffer("log_scale", torch.zeros(n_horizons, 2))
        self.register_buffer("sequence_map", torch.zeros(n_features, len(roles.sequence)))
        self.register_buffer("log_variance_bounds", torch.tensor([[-40.0, 10.0]]).repeat(n_horizons, 1))
        self.har = nn.Linear(len(roles.har), n_horizons)
        self.season = nn.Parameter(torch.zeros(N_SEASONS, n_horizons))
        self.sigma_constant = nn.Parameter(torch.zeros(n_horizons, 2))
        self.nu_constant = nn.Parameter(torch.zeros(n_horizons))
        self.hazard_constant = nn.Parameter(torch.full((n_horizons,), -5.0))
        self.encoder = make_encoder(len(roles.sequence) + 1, spec)
        self.joint = nn.Linear(2 * (n_static + self.encoder.channels), spec.hidden)
        self.dropout = nn.Dropout(spec.dropout)
        n_outputs = 5 * n_horizons
        self.head = nn.Linear(spec.hidden, n_outputs, bias=False)
        self.direct = nn.Linear(n_static, n_outputs, bias=False)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.direct.weight)
        self.receptive_field = self.encoder.receptive_field
        self.mixed = False
        """Whether the layers work in bfloat16 while training; never in the graph."""
        self.register_load_state_dict_pre_hook(_accept_old_names)

    def describe_inputs(self) -> tuple[TensorInput, ...]:
        """What :meth:`forward` takes: name, shape, type and meaning of each input."""
        return market_inputs(len(self.roles.names), self.receptive_field)

    def forward(
        self, features: Tensor, feature_mask: Tensor, market_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The graph: forecasts after the last bar of the window.

        Parameters
        ----------
        features : float32 [n_markets, n_bars, n_features], n_bars >= the receptive field.
        feature_mask : bool, same shape; True = present.
        market_mask : bool [n_markets]; True = the market takes part in pooling.

        Returns
        -------
        sigma [n_markets, n_horizons, 2], nu, variance, stress [n_markets, n_horizons] and
        loadings [n_markets, 2].
        """
        window = last_bars(features, self.receptive_field)
        mask = last_bars(feature_mask, self.receptive_field)
        law = self.law(window.unsqueeze(0), mask.unsqueeze(0), market_mask.unsqueeze(0))
        sigma = torch.exp(law.log_sigma[0, :, -1] + self.log_scale)
        variance = torch.exp(law.log_variance[0, :, -1])
        stress = onset_probability(law.hazard[0, :, -1])
        loadings = self.loadings(features[:, -1], feature_mask[:, -1])
        return sigma, law.nu[0, :, -1], variance, stress, loadings

    def law(
        self, features: Tensor, feature_mask: Tensor, market_mask: Tensor, keep: Tensor | None = None
    ) -> MarketLaw:
        """The law at every bar that has a full receptive field.

        Parameters
        ----------
        features : [n_chunks, n_markets, n_bars, n_features].
        feature_mask : bool, same shape.
        market_mask : bool [n_chunks, n_markets].
        keep : [n_chunks, n_features] 0 or 1; features taken away in training (not from the skip).

        Returns
        -------
        MarketLaw : tensors [n_chunks, n_markets, n_bars - receptive_field + 1, ...], without the
            calibration of the scale.
        """
        valid = feature_mask & (features.abs() < LARGE)
        standard = torch.where(valid, (features - self.mean) / self.scale, torch.zeros_like(features))
        context = self.receptive_field - 1
        last = standard[:, :, context:]
        inputs = standard.clamp(-FEATURE_CLIP, FEATURE_CLIP)
        if keep is not None:
            inputs = inputs * keep[:, None, None, :]
        present = valid[..., list(self.roles.har)].any(dim=-1)
        pooled = present[:, :, context:] & market_mask[:, :, None]

        coefficients = self.har.weight, self.har.bias, self.season
        skip = log_har(self.roles, features[:, :, context:], valid[:, :, context:], last, coefficients)
        static = inputs[:, :, context:, list(self.roles.static)]
        delta = self._delta(inputs, static, present, pooled)
        return self._assemble(skip, delta)

    def _delta(self, inputs: Tensor, static: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
        """What the network adds, [n_chunks, n_markets, n_positions, 5 n_horizons].

        ``present`` says where a market has a bar, ``pooled`` where it counts in the mean. They are
        two, so that a market outside the pool is read like any other.
        """
        if not (self.mixed and self.training):
            return self._layers(inputs, static, present, pooled)
        with torch.autocast(static.device.type, torch.bfloat16):
            return self._layers(inputs, static, present, pooled).to(static.dtype)

    def _layers(self, inputs: Tensor, static: Tensor, present: Tensor, pooled: Tensor) -> Tensor:
        own = static
        if self.encoder.channels:
            own = torch.cat([static, self._encode(inputs, present)], dim=-1)
        weight = pooled.unsqueeze(-1).to(own.dtype)
        mean = (own * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1.0)
        hidden = self.joint(torch.cat([own, mean.expand_as(own)], dim=-1))
        return self.head(self.dropout(nn.functional.silu(hidden))) + self.direct(static)

    def _encode(self, inputs: Tensor, present: Tensor) -> Tensor:
        """The sequence part, [n_chunks, n_markets, n_positions, channels]."""
        sequence = torch.cat([inputs @ self.sequence_map, present.unsqueeze(-1).to(inputs.dtype)], dim=-1)
        encoded = self.encoder(sequence.flatten(0, 1).transpose(1, 2)).transpose(1, 2)
        return encoded.reshape(inputs.shape[0], inputs.shape[1], -1, self.encoder.channels)

    def _assemble(self, skip: Tensor, delta: Tensor) -> MarketLaw:
        n = self.n_horizons
        bounded = MAX_DELTA * torch.tanh(delta / MAX_DELTA)
        low, high = self.log_variance_bounds[:, 0], self.log_variance_bounds[:, 1]
        log_variance = torch.minimum(torch.maximum(skip + bounded[..., :n], low), high)
        side = self.sigma_constant + bounded[..., n : 3 * n].unflatten(-1, (n, 2))
        nu_delta = bounded[..., 3 * n : 4 * n]
        nu = NU_LOW + (NU_HIGH - NU_LOW) * torch.sigmoid(self.nu_constant + nu_delta)
        step = torch.exp((self.hazard_constant + delta[..., 4 * n :]).clamp(-16.0, 3.0))
        # Unrolled sums: cumsum has no deterministic kernel on every device.
        hazards = [step[..., 0]]
        for index in range(1, n):
            hazards.append(hazards[-1] + step[..., index])
        hazard = torch.stack(hazards, dim=-1).clamp(max=MAX_HAZARD)
        return MarketLaw(log_variance, 0.5 * log_variance.unsqueeze(-1) + side, nu, hazard, nu_delta)

    def loadings(self, features: Tensor, mask: Tensor) -> Tensor:
        """Factor loadings [n_markets, 2] of a bar [n_markets, n_features], inside the unit circle."""
        columns = []
        for factor, index in enumerate(self.roles.loadings):
            default = self.loading_default[factor].expand(features.shape[0])
            if index is None:
                columns.append(default)
                continue
            known = mask[:, index] & (features[:, index].abs() < LARGE)
            columns.append(torch.where(known, features[:, index], default))
        loadings = torch.stack(columns, dim=-1).clamp(-1.0, 1.0)
        norm = torch.sqrt(torch.square(loadings).sum(dim=-1, keepdim=True))
        return loadings * (0.999 / norm.clamp(min=0.999))


def _accept_old_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read weights that were saved when the sequence part was always a convolution, and named after it."""
    for name in [key for key in state if key.startswith(f"{prefix}tcn.")]:
        state[f"{prefix}encoder.{name.removeprefix(f'{prefix}tcn.')}"] = state.pop(name)


def last_bars(values: Tensor, n_bars: int) -> Tensor:
    """The last bars of [n_markets, at least n_bars, n_features]; of a length that an export knows."""
    return values.narrow(1, values.shape[1] - n_bars, n_bars)


def log_har(
    roles: FeatureRoles,
    features: Tensor,
    valid: Tensor,
    standard: Tensor,
    coefficients: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Log variance of the log-HAR with season [..., n_horizons].

    Parameters
    ----------
    features, valid, standard : raw values, which are known, and standardised ones [..., n_features].
    coefficients : weight [n_horizons, n_terms], bias [n_horizons], season [168, n_horizons].
    """
    weight, bias, season = coefficients
    terms = standard[..., list(roles.har)].clamp(-SKIP_CLIP, SKIP_CLIP)
    skip = nn.functional.linear(terms, weight, bias)
    if roles.season is None:
        return skip
    known = valid[..., roles.season]
    raw = torch.where(known, features[..., roles.season], torch.zeros_like(features[..., 0]))
    hour = raw.clamp(0, N_SEASONS - 1).round().long()
    return skip + nn.functional.embedding(hour, season) * known.unsqueeze(-1).to(features.dtype)


def onset_probability(hazard: Tensor) -> Tensor:
    """``1 - exp(-hazard)``, exact to float32 for small hazards too.

    The plain difference keeps no digit of a hazard below 1e-7, and the graph has no ``expm1``;
    ``2 t / (1 + t)`` with ``t = tanh(hazard / 2)`` is the same function.
    """
    half = torch.tanh(0.5 * hazard)
    return 2.0 * half / (1.0 + half)
