"""Paradex portfolio margin: what it asks for perpetuals.

Per account and base asset, with signed position values ``v`` in USD::

    net = sum v,   gross = sum |v|,   hedged = (gross - |net|) / 2
    scan      = max(0, max over 24 scenarios of -weight * spot shock * net)
    min delta = unhedged * |net| + hedged factor * hedged
    NET  = max(scan, min delta)
    IMR  =              NET + funding provision + fee provision
    MMR  = mmf_factor * NET + funding provision + fee provision        mmf_factor = 1/2

16 scenarios are a grid up to +-16 % (BTC) with volatility up and down, 8 are weighted tails from -66 % to
+500 %; a perpetual has no volatility, so only their spot shocks matter. The venue writes deltas times spot;
the delta of a perpetual is mark / spot, so ``v`` = size * mark is exact and no spot price is needed.

Source: docs.paradex.trade, risk/portfolio-margin (tradeparadex/paradex-docs a3d9cca, 0db52d9, 122a7ce) and
the venue's own calculator (tradeparadex/paradex-py, ``compute_pm``); the whole grid of BTC, ETH, HYPE and
NEAR is the venue's, parameters are dated facts (``paradex_pm_parameters``). Where an input is missing, or
the source does not say:

- The fee provision is an exit at the highest taker fee, ``fee_rate * gross``: the account's own tier is not
  among the inputs.
- From 2026-04-22 the rule has a funding provision, the funding expected over 8 h. The rate is not among the
  inputs; it is taken at its cap and against the account: ``funding_rate * |net|``.
- An asset without portfolio margin gets the widest grid of a coin and the largest delta charge.
- The calculator takes one base asset at a time: taken as no offset between assets. Venues and isolated
  positions do not net either.
- Open orders are not counted, as in every engine here; ``VenueState`` is not read.
- Equity: USDC is the only collateral (at most 1 USD each), any other asset counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Float1D
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks
from riskml.risk.engines.netting import market_entry, netting_sets, underlying, weighed_equity

FACTS = "paradex_pm_parameters"


@dataclass(frozen=True)
class AssetRules:
    """Parameters of one base asset."""

    spot_shock: Float1D
    """[n_scenarios] relative move of the spot price."""
    weight: Float1D
    """[n_scenarios] part of the loss that counts."""
    unhedged_margin_factor: float
    """Charge per USD of net delta."""
    hedged_margin_factor: float
    """Charge per USD of hedged delta."""
    mmf_factor: float
    """Maintenance over initial, before provisions."""
    fee_rate: float
    """Fee of an exit per USD."""
    funding_rate: float
    """Largest funding per USD of net position over the provision's time; 0 = no such provision."""


def asset_rules(symbol: str, ts: int) -> AssetRules:
    """The rules in force at ``ts`` of a symbol's base asset; ConfigError before the first ones."""
    entry = market_entry(load_facts(FACTS)["asset"], underlying(symbol), ts)
    names = [name for name in AssetRules.__annotations__ if name not in ("spot_shock", "weight")]
    return AssetRules(
        np.asarray([shock for shock, _, _ in entry["scenarios"]], dtype=np.float64),
        np.asarray([weight for _, _, weight in entry["scenarios"]], dtype=np.float64),
        **{name: float(entry[name]) for name in names},
    )


def scan_risk(net_usd: Float1D, rules: AssetRules) -> Float1D:
    """Largest weighted loss of net positions over the scenarios, USD [n], never below 0."""
    loss = -net_usd[:, None] * (rules.weight * rules.spot_shock)[None, :]
    return np.asarray(loss.max(axis=1, initial=0.0))


def minimum_delta(net_usd: Float1D, gross_usd: Float1D, rules: AssetRules) -> Float1D:
    """Charge on net and hedged delta, USD [n]."""
    net = np.abs(net_usd)
    hedged = np.maximum(gross_usd - net, 0.0) / 2.0
    return np.asarray(rules.unhedged_margin_factor * net + rules.hedged_margin_factor * hedged)


def requirement(net_usd: Float1D, gross_usd: Float1D, rules: AssetRules) -> tuple[Float1D, Float1D]:
    """Initial and maintenance margin of netting sets in one base asset, USD [n] each.

    Parameters
    ----------
    net_usd : [n] signed sum of the position values.
    gross_usd : [n] sum of their magnitudes.
    """
    net_requirement = np.maximum(scan_risk(net_usd, rules), minimum_delta(net_usd, gross_usd, rules))
    provisions = rules.funding_rate * np.abs(net_usd) + rules.fee_rate * gross_usd
    return net_requirement + provisions, rules.mmf_factor * net_requirement + provisions


class ParadexPmEngine:
    """Requirements by Paradex's portfolio margin; positions in one base asset at one venue net."""

    name = "paradex_pm"

    def margins(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
    ) -> EngineMargins:
        """Requirements of a book at ``ts``, all positions counted, whatever their venue."""
        positions, facts = book.positions, load_facts(FACTS)
        mark, _ = current_marks(positions, prices)
        value = positions.size * mark
        sets = netting_sets(positions)
        net, gross = sets.total(value), sets.total(np.abs(value))
        initial, maintenance = np.zeros(len(sets)), np.zeros(len(sets))
        for code, name in enumerate(sets.names):
            mine = sets.underlying == code
            initial[mine], maintenance[mine] = requirement(net[mine], gross[mine], asset_rules(name, ts))
        weight = valid_at(facts["collateral"], ts)["weight"]
        return EngineMargins(
            sets.by_account(initial, len(book)),
            sets.by_account(maintenance, len(book)),
            sets.split(maintenance, value),
            weighed_equity(book, mark, prices, weight, facts["stable_asset"]),
        )
