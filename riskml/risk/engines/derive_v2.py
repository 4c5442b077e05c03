"""Derive (Lyra) v2 portfolio margin, the PMRM_2 manager: what it asks for perpetuals.

All amounts are integers of 1e-18, ``x * y`` below is ``trunc(x y / 1e18)``, as on chain. Per account and
market, with position ``q``, perp price ``p``, spot price ``s`` and the scenarios (spot shock ``k``,
volatility shock, dampening ``d``)::

    loss    = min(0, min over scenarios of (q * ((k - 1) * p)) * d)
    f_MM    = mm_factor
    f_IM    = im_factor + peg_loss_factor * max(0, peg_loss_threshold - stable price)
    low     = (1 - confidence) * conf_margin * N  if confidence < conf_threshold, else 0      N = |q| * s
    MM      = -(loss * f_MM) + mm_perp_percent * N
    IM      = -(loss * f_IM) + mm_perp_percent * N + im_perp_percent * N + low

A perpetual has no volatility, so the 33 scenarios are 9 undamped spot shocks and 8 damped tails. The basis
contingency is of options and 0 here.

Source: github.com/derivexyz/v2-core, commit 7736900, ``PMRM_2.sol``, ``PMRMLib_2.sol`` (``getScenarioPnL``,
``addPrecomputes``, ``getMarginAndMarkToMarket``); parameters in ``scripts/config-mainnet.sol`` of 33920dc
and docs.derive.xyz. They are dated facts (``derive_v2_parameters``). Where an input is missing, or the
source does not say:

- The spot price is not among the inputs: the mark stands for it and for the perp price.
- ``VenueState.confidence``, 0 to 1, is to be the lower of the spot and the perp feed's. Unstated, it is
  taken as 0 (the fact ``unstated``): all of N is added to initial margin, none to maintenance. The venue
  itself has no such case: a feed always publishes a confidence, and reverts once its data are older than
  its heartbeat (``BLF_DataTooOld``), so that no trade that adds risk passes. More than the whole notional
  says the same. It is a bound, not what a trader was asked for: state 1 for a venue in normal operation.
- The stable price is the lowest of ``prices["USDC"]``, ``VenueState.twap_price["USDC"]`` and the prices of
  USDC in the book's collateral. Where none is stated it is taken at its historical low (the same fact).
- A market without a portfolio manager is charged as the widest universe.
- A manager margins one market ("PM2 accounts do not support cross-market margin"), so nothing offsets
  over markets, venues or symbols, and every position of an account stands alone.
- Equity: collateral counts by the standard manager's ``marginFactor``, an asset that the facts do not list
  counts nothing; the portfolio manager's offset of a short position by its own asset is not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Float1D
from riskml.errors import DataError
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account
from riskml.risk.engines.netting import market_entry, underlying, weighed_equity

FACTS = "derive_v2_parameters"
UNIT = 10**18
"""One, in the contracts' fixed point."""
_VENUE = "derive"


@dataclass(frozen=True)
class UniverseRules:
    """Parameters of one portfolio manager, integers of 1e-18."""

    spot_shock: AnyArray
    """[n_scenarios] object (int); each (shock, dampening) pair once."""
    dampening: AnyArray
    """[n_scenarios] object (int)."""
    im_factor: int
    mm_factor: int
    peg_loss_threshold: int
    peg_loss_factor: int
    conf_threshold: int
    conf_margin: int
    mm_perp_percent: int
    im_perp_percent: int


def to_unit(value: float) -> int:
    """A float as an integer of 1e-18, by its shortest decimal form.

    >>> to_unit(0.1), to_unit(-2.5)
    (100000000000000000, -2500000000000000000)
    """
    return int(Decimal(str(float(value))).scaleb(18).to_integral_value(ROUND_HALF_EVEN))


def units(values: Float1D) -> AnyArray:
    """:func:`to_unit` of each value [n] object (int)."""
    result = np.empty(len(values), dtype=object)
    result[:] = [to_unit(value) for value in values.tolist()]
    return result


def multiply_decimal(x: Any, y: Any) -> AnyArray:
    """``x y / 1e18`` truncated towards zero, as Solidity divides; arrays of int, or an array and an int."""
    product = x * y
    magnitude = abs(product) // UNIT
    return np.asarray(np.where(product < 0, -magnitude, magnitude), dtype=object)


def universe_rules(symbol: str, ts: int) -> UniverseRules:
    """The rules in force at ``ts`` of the manager of a symbol; ConfigError before the first ones."""
    entry = market_entry(load_facts(FACTS)["universe"], underlying(symbol), ts)
    pairs = list(
        dict.fromkeys((to_unit(shock), to_unit(dampening)) for shock, _, dampening in entry["scenarios"])
    )
    shocks, dampenings = np.array(pairs, dtype=object).T
    names = [name for name in UniverseRules.__annotations__ if name not in ("spot_shock", "dampening")]
    return UniverseRules(shocks, dampenings, **{name: to_unit(entry[name]) for name in names})


def scenario_pnl(position: AnyArray, perp_price: AnyArray, rules: UniverseRules) -> AnyArray:
    """Profit of each position in each scenario, 1e-18 USD [n_positions, n_scenarios] object (int)."""
    move = multiply_decimal((rules.spot_shock - UNIT)[None, :], perp_price[:, None])
    return multiply_decimal(multiply_decimal(position[:, None], move), rules.dampening[None, :])


def confidence_contingency(confidence: AnyArray, notional: AnyArray, rules: UniverseRules) -> AnyArray:
    """What low confidence in the oracle adds to initial margin, 1e-18 USD [n_positions] object (int)."""
    low = multiply_decimal(multiply_decimal(UNIT - confidence, rules.conf_margin), notional)
    return np.asarray(np.where(confidence < rules.conf_threshold, low, 0), dtype=object)


def requirement(
    position: AnyArray,
    perp_price: AnyArray,
    spot_price: AnyArray,
    confidence: AnyArray,
    stable_price: int,
    rules: UniverseRules,
) -> tuple[AnyArray, AnyArray]:
    """Initial and maintenance margin of positions that stand alone, exact to the contract.

    Parameters
    ----------
    position : [n_positions] object (int), 1e-18 of the asset, signed; likewise the three columns after it,
        all of 1e-18.
    stable_price : 1e-18 USD.

    Returns
    -------
    tuple : initial, maintenance, 1e-18 USD [n_positions] object (int).
    """
    worst = np.minimum(scenario_pnl(position, perp_price, rules).min(axis=1), 0)
    notional = multiply_decimal(np.abs(position), spot_price)
    peg_loss = max(0, rules.peg_loss_threshold - stable_price)
    im_factor = rules.im_factor + peg_loss * rules.peg_loss_factor // UNIT
    mm_contingency = multiply_decimal(notional, rules.mm_perp_percent)
    im_contingency = multiply_decimal(notional, rules.im_perp_percent)
    im_contingency = im_contingency + confidence_contingency(confidence, notional, rules)
    maintenance = mm_contingency - multiply_decimal(worst, rules.mm_factor)
    initial = mm_contingency + im_contingency - multiply_decimal(worst, im_factor)
    return initial, maintenance


def stable_price(
    book: AccountBook, prices: Mapping[str, float] | None, ts: int, state: VenueState | None
) -> float:
    """The lowest stated price of the venue's stablecoin, USD; the fact ``unstated`` where none is."""
    facts = load_facts(FACTS)
    asset = str(facts["stable_asset"])
    rows = book.collateral
    stated = [*rows.price_usd[rows.asset == asset].tolist()]
    stated += [float((prices or {}).get(key, np.nan)) for key in (f"{_VENUE}:{asset}", asset)]
    found = [price for price in stated if np.isfinite(price) and price > 0.0]
    twap = float((state or VenueState()).of("twap_price", [(_VENUE, asset)])[0])
    found += [] if np.isnan(twap) else [twap]
    return min(found) if found else float(valid_at(facts["unstated"], ts)["stable_price"])


def stated_confidence(state: VenueState | None, pairs: list[tuple[str, str]], ts: int) -> Float1D:
    """Confidence of each (venue, symbol) [n_pairs], 0 to 1; the fact ``unstated`` where none is stated.

    Raises
    ------
    DataError : a confidence above 1, as one on another scale is.
    """
    confidence = (state or VenueState()).of("confidence", pairs)
    for row in np.flatnonzero(np.nan_to_num(confidence) > 1.0).tolist():
        venue, symbol = pairs[row]
        raise DataError(
            f"confidence of '{venue}:{symbol}' is {float(confidence[row])!r}; it has to be within 0 and 1",
            market=symbol,
            fix="divide the contract's integer by 1e18",
        )
    unstated = float(valid_at(load_facts(FACTS)["unstated"], ts)["confidence"])
    return np.where(np.isnan(confidence), unstated, confidence)


class DeriveV2Engine:
    """Requirements by Derive v2's portfolio manager; every position stands alone."""

    name = "derive_v2"

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
        pairs, codes = positions.markets
        stable = to_unit(stable_price(book, prices, ts, state))
        confidence = units(stated_confidence(state, pairs, ts))
        initial, maintenance = np.zeros(len(codes)), np.zeros(len(codes))
        for row, (_, symbol) in enumerate(pairs):
            mine = np.flatnonzero(codes == row)
            size, price = units(positions.size[mine]), units(mark[mine])
            sure = np.full(len(mine), confidence[row], dtype=object)
            both = requirement(size, price, price, sure, stable, universe_rules(symbol, ts))
            # Int by int is correctly rounded; 1e18 of it is not an exact float for every sum.
            initial[mine], maintenance[mine] = ((usd / UNIT).astype(np.float64) for usd in both)
        weight = valid_at(facts["collateral"], ts)["weight"]
        return EngineMargins(
            sum_by_account(book, initial),
            sum_by_account(book, maintenance),
            maintenance,
            weighed_equity(book, mark, prices, weight, facts["stable_asset"]),
        )
