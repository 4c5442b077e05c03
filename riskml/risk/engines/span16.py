"""SPAN with its 16 scenarios, for perpetuals.

Per underlying, with ``D`` the net position in USD and ``R`` the price scan range::

    loss_i   = -D R price_i cover_i                  i = 1 .. 16
    scanning = max(0, max_i loss_i)
    risk     = scanning + inter-month charge - inter-commodity credit
    MM = risk,  IM = initial_ratio * risk

``price`` is 0, +-1/3, +-2/3 and +-1 of the scan range, each with volatility up and down, then an extreme
move of +-3 ranges of which 1/3 of the loss counts. A perpetual's value does not depend on volatility, so
that dimension is in the array and changes nothing. The inter-month charge is ``rate * min(long, short)``
of the positions that cancel within an underlying; for perpetuals the rate is 0. An inter-commodity
spread is formed by two underlyings on opposite sides, ``n = min(|D_a| / delta_a, |D_b| / delta_b)`` with
what earlier spreads left, and credits ``rate * scanning / |D| * n * delta`` on each leg.

Source: CME, "SPAN overview", "Components of SPAN" and "Risk Arrays - Standard" (16 scenarios, scan range =
maintenance of one outright contract); extreme move 3 at 0.33 in CME advisory 08-303. All parameters are
dated facts (``span16_parameters``). Not stated by the sources, and taken so:

- Scan ranges of perpetuals: Derive's outermost shocks; a market without one has the widest of them.
- Credits: riskml's choice, none but for the listed pairs. A spread's delta is measured in USD of
  notional, so that its ratio does not drift with prices.
- One venue is one clearing house: neither positions nor spreads offset over venues. An isolated position
  stands alone. Symbols of one underlying (``BTC``, ``BTC-USDC``) are one combined commodity.
- Collateral is the clearing house's own matter: the book's equity is compared with the requirement.
- ``VenueState`` is not read: no input but positions and marks enters the formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Float1D, Float2D
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks
from riskml.risk.engines.netting import NettingSets, market_entry, netting_sets, underlying

FACTS = "span16_parameters"


@dataclass(frozen=True)
class SpanRules:
    """The 16 scenarios and the two charges at one time."""

    factor: Float1D
    """[n_scenarios] price move in scan ranges times the part of the loss that counts."""
    volatility: Float1D
    """[n_scenarios] volatility move in volatility scan ranges; without effect on perpetuals."""
    initial_ratio: float
    """Initial over maintenance."""
    inter_month_rate: float
    """Charge per USD of positions that cancel within an underlying."""


@dataclass(frozen=True)
class Spread:
    """An inter-commodity spread."""

    legs: tuple[str, str]
    delta_usd: tuple[float, float]
    """USD of each leg in one spread; the legs have opposite signs."""
    rate: float
    """Part of the legs' scanning risk that is credited."""


def span_rules(ts: int) -> SpanRules:
    """The scenarios and charges in force at ``ts``; ConfigError before the first ones."""
    facts = load_facts(FACTS)
    charge = valid_at(facts["charge"], ts)
    scenarios = valid_at(facts["array"], ts)["scenarios"]
    # In integers up to the one division, so that 3 ranges at 1/3 cover are exactly one range.
    factor = [(row["price"][0] * row["cover"][0]) / (row["price"][1] * row["cover"][1]) for row in scenarios]
    return SpanRules(
        np.asarray(factor, dtype=np.float64),
        np.asarray([row["volatility"] for row in scenarios], dtype=np.float64),
        float(charge["initial_ratio"]),
        float(charge["inter_month_rate"]),
    )


def scan_range(symbol: str, ts: int) -> float:
    """Price scan range of a symbol's underlying at ``ts``, a fraction of the price."""
    return float(market_entry(load_facts(FACTS)["range"], underlying(symbol), ts)["scan_range"])


def spreads(ts: int) -> list[Spread]:
    """The inter-commodity spreads in force at ``ts``, in order of priority."""
    rows = valid_at(load_facts(FACTS)["credit"], ts)["spreads"]
    return [Spread(tuple(row["legs"]), tuple(row["delta"]), float(row["rate"])) for row in rows]


def risk_array(net_usd: Float1D, scan_range: Float1D, rules: SpanRules) -> Float2D:
    """Loss of each set in each scenario, USD [n_sets, n_scenarios]; gains are negative."""
    return np.asarray(-(net_usd * scan_range)[:, None] * rules.factor[None, :])


def scanning_risk(net_usd: Float1D, scan_range: Float1D, rules: SpanRules) -> Float1D:
    """Largest loss of each set over the scenarios, USD [n_sets], never below 0."""
    return np.asarray(risk_array(net_usd, scan_range, rules).max(axis=1, initial=0.0))


def inter_commodity_credit(
    sets: NettingSets, net_usd: Float1D, scanning_usd: Float1D, spreads: list[Spread]
) -> Float1D:
    """Credit of each set for the spreads of its pool, USD [n_sets].

    Parameters
    ----------
    net_usd : [n_sets] signed.
    scanning_usd : [n_sets] scanning risk before credits.
    spreads : formed in this order; one takes what the earlier ones left of each leg.
    """
    left = np.abs(net_usd)
    per_usd = np.divide(scanning_usd, left, out=np.zeros_like(left), where=left > 0.0)
    credit = np.zeros_like(left)
    n_pools = int(sets.pool.max(initial=-1)) + 1
    for spread in spreads:
        if not set(spread.legs) <= set(sets.names):
            continue
        rows = np.full((2, n_pools), -1, dtype=np.int64)
        for leg, name in enumerate(spread.legs):
            mine = np.flatnonzero(sets.underlying == sets.names.index(name))
            rows[leg, sets.pool[mine]] = mine
        first, second = rows[:, (rows >= 0).all(axis=0)]
        opposite = net_usd[first] * net_usd[second] < 0.0
        first, second = first[opposite], second[opposite]
        formed = np.minimum(left[first] / spread.delta_usd[0], left[second] / spread.delta_usd[1])
        for leg, delta in ((first, spread.delta_usd[0]), (second, spread.delta_usd[1])):
            used = np.minimum(formed * delta, left[leg])
            credit[leg] += spread.rate * per_usd[leg] * used
            left[leg] -= used
    return credit


class Span16Engine:
    """Requirements by SPAN's 16 scenarios; one venue is one clearing house."""

    name = "span16"

    def margins(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
    ) -> EngineMargins:
        """Requirements of a book at ``ts``, all positions counted, whatever their venue."""
        positions, rules = book.positions, span_rules(ts)
        mark, _ = current_marks(positions, prices)
        notional = positions.size * mark
        sets = netting_sets(positions)
        net, gross = sets.total(notional), sets.total(np.abs(notional))
        ranges = sets.rates({name: scan_range(name, ts) for name in sets.names})
        scanning = scanning_risk(net, ranges, rules)
        inter_month = rules.inter_month_rate * (gross - np.abs(net)) / 2.0
        credit = inter_commodity_credit(sets, net, scanning, spreads(ts))
        risk = np.maximum(scanning + inter_month - credit, 0.0)
        return EngineMargins(
            sets.by_account(rules.initial_ratio * risk, len(book)),
            sets.by_account(risk, len(book)),
            sets.split(risk, notional),
        )
