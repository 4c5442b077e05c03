"""Vega: maintenance is the expected shortfall of a log-normal price over a short horizon.

::

    s = sigma sqrt(tau),  q = Phi^-1(lambda)
    RF_long  = 1 - (1 / lambda) e^(mu tau) Phi(q - s)      the mean loss in the worst lambda of falls
    RF_short = (1 / lambda) e^(mu tau) Phi(q + s) - 1      the same of rises
    maintenance = |N| RF;  search level, initial, release level = maintenance x scaling factors

Source: vegaprotocol/quant, riskmodelbs/forwards.go and riskmeasures/lognormal.go (the short side with
1 - Phi(Phi^-1(1 - lambda) - s) = Phi(q + s)); vegaprotocol/specs, 0019-MCAL, step 4. Parameters are dated
facts. Phi^-1 is that of ``statistics.NormalDist``; Phi is ``erfc(-x / sqrt 2) / 2``, because NormalDist.cdf
of Python 3.11 (``1 + erf``) has an absolute error that the division by lambda = 1e-6 would bring out.

What is missing or differs, never in the account's favour unless said so:

- sigma is the stated volatility. Not stated, it is the market's own (that of the default for an unlisted
  one); below the smallest that the network accepts, it is that.
- A market that is not in the facts has the longest horizon and highest volatility of the published ones.
- Left out, which asks for less than the venue did: the calculator's further term for the slippage of closing
  against the order book (it needs that book; at most .1 % of notional on the last perpetuals), and open
  orders.
- The rounding of factors to a "guaranteed accuracy" is not done: no accuracy is published.
- Margin accounts per market and asset are not modelled; collateral is the book's own (``equity_usd`` is
  None).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from riskml.arrays import Float1D
from riskml.errors import DataError
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account


@dataclass(frozen=True)
class LogNormalModel:
    """A market's log-normal risk model."""

    risk_aversion: float
    """Probability in the tail, lambda."""
    tau_years: float
    mu: float
    """Drift per year."""
    sigma: float
    """Volatility per square root of a year."""

    def __post_init__(self) -> None:
        if not (0.0 < self.risk_aversion < 1.0 and self.tau_years > 0.0 and 0.0 <= self.sigma < math.inf):
            raise DataError(
                f"no log-normal risk model has lambda {self.risk_aversion!r}, tau {self.tau_years!r} "
                f"and sigma {self.sigma!r}",
                fix="state lambda in (0, 1), tau > 0 and a finite sigma >= 0",
            )

    @property
    def risk_factor_long(self) -> float:
        """Maintenance of a long position / its notional."""
        return 1.0 - self._tail_mean(-1.0)

    @property
    def risk_factor_short(self) -> float:
        """Maintenance of a short position / its notional; may be above 1."""
        return self._tail_mean(1.0) - 1.0

    def _tail_mean(self, side: float) -> float:
        """Mean of price / price now in the lambda lowest (side -1) or highest (1) outcomes."""
        shift = self.sigma * math.sqrt(self.tau_years)
        quantile = NormalDist().inv_cdf(self.risk_aversion)
        growth = math.exp(self.mu * self.tau_years)
        return growth * normal_cdf(quantile + side * shift) / self.risk_aversion


@dataclass(frozen=True)
class ScalingFactors:
    """The other margin levels as multiples of maintenance."""

    search_level: float
    """Below it, collateral is looked for in the account's general balance."""
    initial_margin: float
    collateral_release: float
    """Above it, collateral goes back to the general balance."""


def normal_cdf(x: float) -> float:
    """Phi(x), to full relative accuracy in the lower tail."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def risk_model(symbol: str, ts: int, volatility: float = math.nan) -> LogNormalModel:
    """Model of a market in force at ``ts``; the default for an unlisted one.

    ``volatility`` : per square root of a year; NaN = the market's own.
    """
    facts = load_facts("vega_risk_models")
    entry = valid_at(facts["market"].get(symbol, facts["default"]), ts)
    stated = float(entry["sigma"]) if math.isnan(volatility) else volatility
    sigma = max(stated, float(valid_at(facts["range"], ts)["sigma_min"]))
    return LogNormalModel(float(entry["risk_aversion"]), float(entry["tau_years"]), float(entry["mu"]), sigma)


def scaling_factors(ts: int) -> ScalingFactors:
    """Scaling factors in force at ``ts``."""
    entry = valid_at(load_facts("vega_risk_models")["scaling"], ts)
    return ScalingFactors(
        float(entry["search_level"]), float(entry["initial_margin"]), float(entry["collateral_release"])
    )


class VegaEngine:
    """Requirements by Vega's risk factors; every position stands alone, there are no offsets."""

    name = "vega"

    def margins(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
    ) -> EngineMargins:
        """Requirements of a book at ``ts``, all positions counted, whatever their venue."""
        positions = book.positions
        mark, _ = current_marks(positions, prices)
        exposure = positions.size * mark
        pairs, codes = positions.markets
        volatility = (state or VenueState()).of("volatility", pairs)
        models = [
            risk_model(symbol, ts, sigma)
            for (_, symbol), sigma in zip(pairs, volatility.tolist(), strict=True)
        ]
        factors: Float1D = np.asarray(
            [(model.risk_factor_long, model.risk_factor_short) for model in models], dtype=np.float64
        ).reshape(-1, 2)
        maintenance = np.abs(exposure) * factors[codes, (exposure < 0.0).astype(np.int64)]
        held = sum_by_account(book, maintenance)
        return EngineMargins(held * scaling_factors(ts).initial_margin, held, maintenance)
