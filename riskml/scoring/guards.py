"""Guards: what a forecast becomes while a source is missing, stale or invalid.

A requirement must not fall because data went away. For a market whose inputs are not
sound the guarded scale is the largest of what the graph still says, its last good value,
the fallback law on the features that remain, and a floor; it may fall again only after the
source is back. The floor is the policy's stressed floor, the same share of the manifest's
stressed scale below which maintenance never falls; of a market that went *dark* it is the
whole stressed scale. Dark is a market without its bar, without a usable graph output or without
any volatility history: nothing says how it moves now. A market that lost its funding, or whose
features left the range of the fit part, still has bars that do.

**The fallback law** (``manifest.fallback``) is a list of log-linear laws, the first whose
features are all present applies::

    {"laws": [{"features": ["log_har_24h", ...],
               "intercept": [n_horizons], "slopes": [[n_features] per horizon]}, ...],
     "sigma_ratio": [[n_horizons][2]],   sigma = ratio * sqrt(variance)
     "nu": [n_horizons]}

with ``log variance_h = intercept_h + slopes_h . features``. A manifest without one gets
:func:`default_fallback`: yesterday's variance per bar goes on (random walk of variance).

The guards are one pure recursion over bars, run by the live scorer and by the backfill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riskml.arrays import Bool1D, Bool2D, BoolND, Float1D, Float2D, Float3D, FloatND
from riskml.bundle import Manifest
from riskml.errors import BundleError
from riskml.features.inputs import input_spec
from riskml.features.nodes import MIN_ACROSS_WEIGHT, Axis
from riskml.features.weights import axis_weights
from riskml.markets import Market
from riskml.risk.margin import reference_sigma
from riskml.risk.policy import MarginPolicy
from riskml.scoring.session import MarketOutput
from riskml.units import duration_bars

MISSING_BAR = 1
STALE_INPUT = 2
OUT_OF_BOUNDS = 4
NOT_FINITE = 8
COLD = 16

DEGRADED_NAMES = {
    MISSING_BAR: "missing-bar",
    STALE_INPUT: "stale-input",
    OUT_OF_BOUNDS: "out-of-bounds",
    NOT_FINITE: "not-finite",
    COLD: "cold",
}
"""Why a market is degraded: bit -> name."""
DARK = MISSING_BAR | NOT_FINITE | COLD
"""Nothing says how the market moves now: held at the whole stressed scale."""


def degraded_names(bits: int) -> str:
    """Names of the bits, joined with ``|``; empty for a sound market."""
    return "|".join(name for bit, name in DEGRADED_NAMES.items() if bits & bit)


BOUNDS_SLACK = 0.5
"""A feature is clipped to its fitted range, and *invalid* beyond the range widened by this
fraction of it: markets reach new highs and lows in good health, but not by half a range."""

DEFAULT_FALLBACK_FEATURES = (
    "log_ewm_variance_24h",
    "log_har_24h",
    "log_har_7d",
    "log_har_28d",
    "log_ewm_variance_60d",
)
"""Log variance per bar, from the most to the least timely."""

DEFAULT_FALLBACK_NU = 3.0
"""Lower than constant fits on hourly data (3.5 to 4.1): heavier tails, larger margins."""


@dataclass(frozen=True)
class BarStatus:
    """What is known about the soundness of one closed bar."""

    bar_missing: Bool1D
    """No bar arrived in time [n_markets]."""
    stale_input: Bool1D
    """An input that was there before is not there now [n_markets]."""


@dataclass(frozen=True)
class GuardedForecast:
    """The forecast of one bar after the guards."""

    ts: int
    """Close of the bar, microseconds."""
    output: MarketOutput
    """Values to use; NaN only for a market that never had data and has no stressed scale."""
    degraded: Any
    """Bits of ``DEGRADED_NAMES``, uint8 [n_markets]; 0 = sound."""
    prices: Float2D | None = None
    """High, low, close of the bar [n_markets, 3], NaN = no bar; None = the bundle reads none."""
    floors: tuple[MarketOutput, ...] = ()
    """While a market is degraded: the fallback law's and the floor's own values for it, where known. A
    hedge may need more under one of them than under the largest scale, which ``output`` has."""
    told_sigma: Float3D | None = None
    """``output.sigma`` without the floor: the largest that data speaks for. A dark market is held at its
    stressed scale, which is no sign that the market moves. None = no market is degraded."""

    def of_first(self, n_markets: int) -> GuardedForecast:
        """The same of the first markets alone."""
        if n_markets == len(self.degraded):
            return self

        def cut(output: MarketOutput) -> MarketOutput:
            return MarketOutput(**{name: values[:n_markets] for name, values in vars(output).items()})

        return replace(
            self,
            output=cut(self.output),
            degraded=self.degraded[:n_markets],
            prices=None if self.prices is None else self.prices[:n_markets],
            floors=tuple(cut(floor) for floor in self.floors),
            told_sigma=None if self.told_sigma is None else self.told_sigma[:n_markets],
        )


class InputWatch:
    """Remembers which inputs each market had, so that a loss is told from an absence.

    A venue that never publishes open interest is no outage; one that stops is. A market has an
    input of chains or stablecoins while those that have a value carry enough of its weight, the
    same share that a mean over them asks for.

    Parameters
    ----------
    names : inputs to watch.
    markets : the markets; their venues decide which chains and stablecoins count.
    """

    def __init__(self, names: Sequence[str], markets: Sequence[Market]) -> None:
        by_axis: dict[Axis, list[str]] = {}
        for name in names:
            by_axis.setdefault(input_spec(name).axis, []).append(name)
        self._by_axis = by_axis
        self._weights = {axis: axis_weights(axis, markets).T for axis in by_axis if axis != "market"}
        self.names = tuple(name for of_axis in by_axis.values() for name in of_axis)
        self.seen: Bool2D = np.zeros((len(self.names), len(markets)), dtype=np.bool_)
        """[n_names, n_markets], in the order of ``names``."""
        self.lost: Bool2D = np.zeros_like(self.seen)
        """Same shape: inputs that a market had before and did not have in the last slot."""

    def step(self, inputs: Mapping[str, Float1D]) -> Bool1D:
        """Take one slot, one value per column of each input; True = a market lost an input."""
        if not self.names:
            return np.zeros(self.seen.shape[1], dtype=np.bool_)
        present = np.concatenate([self._present(axis, inputs) for axis in self._by_axis])
        self.lost = self.seen & ~present
        self.seen |= present
        return np.asarray(self.lost.any(axis=0))

    def lost_names(self, market: int) -> tuple[str, ...]:
        """Inputs that a market (its row) has lost, as of the last slot."""
        return tuple(name for name, lost in zip(self.names, self.lost[:, market], strict=True) if lost)

    def retire(self, market: int, names: Sequence[str]) -> None:
        """Forget that a market ever had these inputs: somebody says that they will not come back.

        The one way, beside the source's return, out of a held-up forecast. An input that does come back
        is watched again from then on.
        """
        gone = np.isin(self.names, list(names))
        self.seen[gone, market] = False
        self.lost[gone, market] = False

    def _present(self, axis: Axis, inputs: Mapping[str, Float1D]) -> Bool2D:
        finite = np.isfinite(np.stack([inputs[name] for name in self._by_axis[axis]]))
        if axis not in self._weights:
            return finite
        # [n_names, n_columns] @ [n_columns, n_markets]; a share of exactly the least is enough
        return np.asarray(finite @ self._weights[axis] >= MIN_ACROSS_WEIGHT - 1e-9)


class Bounds:
    """Clips features to the range of the fit part and says which are beyond reason."""

    def __init__(self, manifest: Manifest) -> None:
        names = [str(item["name"]) for item in manifest.features]
        limits = [manifest.feature_bounds.get(name, [-np.inf, np.inf]) for name in names]
        self.low = np.array([low for low, _ in limits], dtype=np.float64)
        self.high = np.array([high for _, high in limits], dtype=np.float64)
        span = np.where(np.isfinite(self.high - self.low), self.high - self.low, 0.0)
        self._too_low = self.low - BOUNDS_SLACK * span
        self._too_high = self.high + BOUNDS_SLACK * span

    def apply(self, features: FloatND) -> tuple[FloatND, BoolND]:
        """Clip ``features`` [..., n_features]; second result: invalid, [...] over the last axis.

        NaN handling: NaN passes through and is not out of bounds; an infinity is.
        """
        invalid = ((features < self._too_low) | (features > self._too_high)).any(axis=-1)
        return np.clip(features, self.low, self.high), np.asarray(invalid)


class FallbackLaw:
    """The law of the last resort, on whatever features remain."""

    def __init__(self, manifest: Manifest) -> None:
        constants = manifest.fallback or default_fallback(manifest)
        names = [str(item["name"]) for item in manifest.features]
        n_horizons = len(manifest.horizons)
        try:
            self._laws = [
                (
                    [names.index(name) for name in law["features"]],
                    np.asarray(law["intercept"], dtype=np.float64).reshape(n_horizons),
                    np.asarray(law["slopes"], dtype=np.float64).reshape(n_horizons, len(law["features"])),
                )
                for law in constants["laws"]
            ]
            self._ratio = np.asarray(constants["sigma_ratio"], dtype=np.float64).reshape(n_horizons, 2)
            self._nu = np.asarray(constants["nu"], dtype=np.float64).reshape(n_horizons)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the manifest's fallback law is not usable: {error!r}", fix="export the bundle again"
            ) from error

    def variance(self, features: Float2D) -> Float2D:
        """Variance [n_markets, n_horizons] from features [n_markets, n_features]; NaN = no law applies."""
        variance = np.full((len(features), len(self._nu)), np.nan)
        for columns, intercept, slopes in reversed(self._laws):
            usable = np.isfinite(features[:, columns]).all(axis=1)
            log_variance = intercept + features[usable][:, columns] @ slopes.T
            # exp(+-60) is far beyond any market and keeps a wild feature from overflowing
            variance[usable] = np.exp(np.clip(log_variance, -60.0, 60.0))
        return variance

    def output(self, features: Float2D) -> tuple[Float3D, Float2D, Float2D]:
        """``sigma`` [n_markets, n_horizons, 2], ``nu`` and ``variance`` [n_markets, n_horizons]."""
        variance = self.variance(features)
        sigma = np.sqrt(variance)[:, :, None] * self._ratio
        return sigma, np.broadcast_to(self._nu, variance.shape), variance


def default_fallback(manifest: Manifest) -> dict[str, Any]:
    """The fallback of a manifest that names none: variance per bar goes on unchanged."""
    names = {str(item["name"]) for item in manifest.features}
    bars = [duration_bars(horizon, manifest.interval) for horizon in manifest.horizons]
    return {
        "laws": [
            {
                "features": [name],
                "intercept": [float(np.log(n)) for n in bars],
                "slopes": [[1.0] for _ in bars],
            }
            for name in DEFAULT_FALLBACK_FEATURES
            if name in names
        ],
        "sigma_ratio": [[1.0, 1.0] for _ in bars],
        "nu": [DEFAULT_FALLBACK_NU for _ in bars],
    }


class Guards:
    """The recursion over bars: sound values pass, others are held up.

    Parameters
    ----------
    stressed_floor : the policy's; share of the stressed scale below which a degraded market never falls.
    """

    def __init__(
        self, manifest: Manifest, markets: Sequence[str], stressed_floor: float = MarginPolicy.stressed_floor
    ) -> None:
        n_markets, n_horizons = len(markets), len(manifest.horizons)
        self._fallback = FallbackLaw(manifest)
        self.stressed = reference_sigma(manifest.reference_sigma, tuple(markets), n_horizons).stressed
        self._share = stressed_floor
        self.last_good = MarketOutput(
            sigma=np.full((n_markets, n_horizons, 2), np.nan),
            nu=np.full((n_markets, n_horizons), np.nan),
            variance=np.full((n_markets, n_horizons), np.nan),
            stress=np.full((n_markets, n_horizons), np.nan),
            loadings=np.full((n_markets, 2), np.nan),
        )
        """Each market's newest sound values; NaN before the first."""

    def step(
        self, ts: int, raw: MarketOutput, status: BarStatus, features: Float2D, invalid: Bool1D
    ) -> GuardedForecast:
        """Guard one bar.

        Parameters
        ----------
        ts : close of the bar, microseconds.
        raw : what the market graph said.
        status : soundness of the bar and its inputs.
        features : the bar's features, clipped, NaN = missing [n_markets, n_features].
        invalid : a feature was beyond reason [n_markets].
        """
        fallback_sigma, fallback_nu, fallback_variance = self._fallback.output(features)
        finite = _finite(raw)
        degraded = (
            MISSING_BAR * status.bar_missing
            + STALE_INPUT * status.stale_input
            + OUT_OF_BOUNDS * invalid
            + NOT_FINITE * ~finite
            + COLD * ~np.isfinite(fallback_variance).all(axis=1)
        ).astype(np.uint8)
        sound = degraded == 0
        last = self.last_good
        # The fallback's tail counts with its scale, and where there is no other.
        counts = np.isfinite(fallback_variance) | ~np.isfinite(last.nu)
        # A graph output that is not finite is dropped; the others still count.
        told = _largest(_drop(raw.sigma), last.sigma, fallback_sigma)
        dark = _wide((degraded & DARK) > 0, self.stressed)
        floor = np.where(dark, self.stressed, self._share * self.stressed)
        held = MarketOutput(
            sigma=_largest(told, floor),
            nu=_smallest(_drop(raw.nu), last.nu, np.where(counts, fallback_nu, np.nan)),
            variance=_largest(_drop(raw.variance), last.variance, fallback_variance),
            stress=_largest(_drop(raw.stress), last.stress),
            loadings=np.where(np.isfinite(last.loadings), last.loadings, _drop(raw.loadings)),
        )
        output = MarketOutput(
            **{
                name: np.where(_wide(sound, getattr(raw, name)), getattr(raw, name), getattr(held, name))
                for name in MarketOutput.__dataclass_fields__
            }
        )
        self.last_good = replace(
            last,
            **{
                name: np.where(_wide(sound, getattr(raw, name)), getattr(raw, name), getattr(last, name))
                for name in MarketOutput.__dataclass_fields__
            },
        )
        floors = tuple(
            _with_scale(output, ~sound & (np.nan_to_num(scale) > 0.0).all(axis=(1, 2)), scale, tail)
            for scale, tail in ((fallback_sigma, fallback_nu), (floor, output.nu))
        )
        if sound.all():
            return GuardedForecast(ts, output, degraded)
        told = np.where(_wide(sound, told), output.sigma, told)
        return GuardedForecast(ts, output, degraded, floors=floors, told_sigma=told)


def _finite(raw: MarketOutput) -> Bool1D:
    n_markets = len(raw.nu)
    checks = [
        (np.isfinite(raw.sigma) & (raw.sigma > 0)).reshape(n_markets, -1).all(axis=1),
        (np.isfinite(raw.nu) & (raw.nu > 2)).all(axis=1),
        (np.isfinite(raw.variance) & (raw.variance > 0)).all(axis=1),
        np.isfinite(raw.stress).all(axis=1),
        np.isfinite(raw.loadings).all(axis=1),
    ]
    return np.asarray(np.logical_and.reduce(checks), dtype=np.bool_)


def _with_scale(output: MarketOutput, rows: Bool1D, sigma: Float3D, nu: Float2D) -> MarketOutput:
    return replace(
        output,
        sigma=np.where(_wide(rows, sigma), sigma, output.sigma),
        nu=np.where(_wide(rows, nu), nu, output.nu),
    )


def _drop(values: FloatND) -> FloatND:
    return np.where(np.isfinite(values), values, np.nan)


def _largest(*candidates: FloatND) -> FloatND:
    largest = candidates[0]
    for candidate in candidates[1:]:
        largest = np.fmax(largest, candidate)
    return largest


def _smallest(*candidates: FloatND) -> FloatND:
    smallest = candidates[0]
    for candidate in candidates[1:]:
        smallest = np.fmin(smallest, candidate)
    return smallest


def _wide(mask: Bool1D, like: FloatND) -> BoolND:
    return mask.reshape(-1, *([1] * (like.ndim - 1)))
