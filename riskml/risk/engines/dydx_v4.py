"""dYdX v4: margin fractions that grow with open interest, in integers as the chain computes them.

::

    IMF = base, if OI <= L or U = 0;  1, if OI >= U;  else base + floor((1 - base) (OI - L) / (U - L))
    IM  = ceil(|N| max(IMF, custom))    MM = ceil(ceil(|N| base) fraction)    [MM is not scaled by OI]
    TNC = quote balance + sum N;  liquidatable <=> MM > 0 and TNC < MM

with fractions in parts per million (ppm) and amounts in quote quantums (1e-6 USDC); N and OI at the oracle
price. Source: dydxprotocol/v4-chain, x/perpetuals/types/liquidity_tier.go and x/perpetuals/lib/lib.go
(commits 6c82ba1 and b89003d, with custom fractions), lib/quantums.go, lib/margin/risk.go. The functions of
integers are equal to it to the last unit; what liquidation does with them is in
:mod:`riskml.risk.engines.dydx_v4_liquidation`.

What is missing or differs, never in the account's favour:

- Open interest not stated: the market counts as above its upper cap, so IMF = 1 (base where the tier has
  no caps). Maintenance does not read it.
- A market that is not in the facts has the tier of their ``default``. Tier parameters drift by vote: a time
  after the newest entry has that entry's, a time before 2024-04-08 is refused. :func:`parameters_from` says
  which date's parameters a market has; the head of the facts says how far to trust a date.
- A custom fraction is the account's own choice and can only raise initial margin; none stated means none
  chosen, which is the protocol's 0.
- The book holds floats, not base quantums: notional and open interest are rounded up to whole quantums (the
  chain truncates, so a requirement is at most some quantums higher), net collateral is rounded down.
- Net collateral (``equity_usd``): cash, open profit, margin of isolated positions, and USDC on the dYdX chain
  at par whatever its price. Every other asset and chain counts as nothing. Unsettled funding is not in the
  book.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeVar

import numpy as np

from riskml.arrays import AnyArray, Float1D
from riskml.errors import ConfigError
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account
from riskml.risk.sums import sum_by

ONE_MILLION = 1_000_000
"""Parts per million in 1."""
QUOTE_RESOLUTION = -6
"""Decimal exponent of a quote quantum (USDC)."""
QUANTUMS_PER_USD = 1_000_000

Amount = TypeVar("Amount", int, AnyArray)
"""One integer, or an array of them (int64, or Python integers beyond its range)."""


@dataclass(frozen=True)
class LiquidityTier:
    """Margin parameters that a group of markets shares."""

    initial_margin_ppm: int
    maintenance_fraction_ppm: int
    """Maintenance as a part of the base initial margin."""
    open_interest_lower_cap: int
    """Quote quantums; up to here the fraction is the base."""
    open_interest_upper_cap: int
    """Quote quantums; from here on the fraction is 1. 0 = no scaling."""

    @property
    def maintenance_margin_ppm(self) -> int:
        """Maintenance fraction of notional, rounded down: what the funding cap reads."""
        return self.initial_margin_ppm * self.maintenance_fraction_ppm // ONE_MILLION

    def initial_fraction_ppm(self, open_interest_quantums: int | None) -> int:
        """Initial margin fraction at an open interest; None = not known, taken as above the upper cap."""
        base, upper = self.initial_margin_ppm, self.open_interest_upper_cap
        if upper == 0:
            return base
        if open_interest_quantums is None:
            return ONE_MILLION
        if open_interest_quantums <= self.open_interest_lower_cap:
            return base
        if open_interest_quantums >= upper:
            return ONE_MILLION
        lower = self.open_interest_lower_cap
        return base + (ONE_MILLION - base) * (open_interest_quantums - lower) // (upper - lower)

    def initial_quantums(
        self, notional_quantums: Amount, open_interest_quantums: int | None, custom_ppm: int = 0
    ) -> Amount:
        """Initial margin of |notional|, rounded up; ``custom_ppm`` is the account's own choice, 0 = none."""
        fraction = max(self.initial_fraction_ppm(open_interest_quantums), custom_ppm)
        return ceil_ppm(abs(notional_quantums), fraction)

    def maintenance_quantums(self, notional_quantums: Amount) -> Amount:
        """Maintenance margin of |notional|: a part of the rounded base initial margin, rounded up."""
        base = ceil_ppm(abs(notional_quantums), self.initial_margin_ppm)
        return ceil_ppm(base, self.maintenance_fraction_ppm)

    def max_funding_ppm(self, clamp_factor_ppm: int) -> int:
        """Largest |8 h funding rate|: ``factor (initial - maintenance)`` of the base, rounded down."""
        return clamp_factor_ppm * (self.initial_margin_ppm - self.maintenance_margin_ppm) // ONE_MILLION


@dataclass(frozen=True)
class Risk:
    """What an account, or one position of it, is worth and has to hold, quote quantums."""

    net_collateral: int
    """Of a position alone: its signed notional."""
    initial: int
    maintenance: int

    @property
    def liquidatable(self) -> bool:
        """There is something to liquidate, and net collateral is below maintenance."""
        return self.maintenance > 0 and self.net_collateral < self.maintenance


def ceil_ppm(value: Amount, ppm: int | AnyArray) -> Amount:
    """``ceil(value ppm / 1e6)`` of integers >= 0 and ppm <= 1e6, without leaving int64 on the way."""
    whole: Any = value // ONE_MILLION
    rest = value - whole * ONE_MILLION
    result: Amount = whole * ppm - (-(rest * ppm) // ONE_MILLION)
    return result


def notional_quantums(base_quantums: int, base_resolution: int, price: int, price_exponent: int) -> int:
    """Signed notional of a size at an oracle price, truncated towards zero as the chain does.

    ``base_quantums 10^base_resolution x price 10^price_exponent`` in units of ``10^QUOTE_RESOLUTION``.
    """
    exponent = price_exponent + base_resolution - QUOTE_RESOLUTION
    product = base_quantums * price
    scale: int = 10 ** abs(exponent)
    if exponent >= 0:
        return product * scale
    size = abs(product) // scale
    return -size if product < 0 else size


def position_risk(tier: LiquidityTier, notional: int, open_interest: int | None, custom_ppm: int = 0) -> Risk:
    """Risk of one position of a signed notional, quote quantums."""
    initial = tier.initial_quantums(notional, open_interest, custom_ppm)
    return Risk(notional, initial, tier.maintenance_quantums(notional))


def account_risk(quote_quantums: int, positions: Sequence[Risk]) -> Risk:
    """Risk of a subaccount: its quote balance and its positions."""
    return Risk(
        quote_quantums + sum(position.net_collateral for position in positions),
        sum(position.initial for position in positions),
        sum(position.maintenance for position in positions),
    )


def liquidity_tier(symbol: str, ts: int) -> LiquidityTier:
    """Tier of a market in force at ``ts``; the default for an unlisted one."""
    facts = load_facts("dydx_v4_tiers")
    name = valid_at(facts["market"].get(symbol, facts["default"]), ts)["tier"]
    return LiquidityTier(**parameters(facts["tier"][name], ts))


def parameters_from(symbol: str, ts: int) -> date:
    """Day since which the tier of a market at ``ts`` is in force, or its parameters if they are newer.

    Raises
    ------
    ConfigError : nothing is in force at ``ts``.

    >>> from riskml.units import to_us
    >>> parameters_from("BTC", to_us("2026-06-01")).isoformat()
    '2025-01-01'
    """
    facts = load_facts("dydx_v4_tiers")
    market = valid_at(facts["market"].get(symbol, facts["default"]), ts)
    tier = valid_at(facts["tier"][market["tier"]], ts)
    found: date = max(market["valid_from"], tier["valid_from"])
    return found


def parameters(entries: Sequence[dict[str, Any]], ts: int) -> dict[str, Any]:
    """What the entry in force at ``ts`` states, without its date and source."""
    entry = valid_at(entries, ts)
    return {name: value for name, value in entry.items() if name not in ("valid_from", "source")}


def quantums_up(usd: Float1D) -> AnyArray:
    """Whole quantums of amounts >= 0, rounded up [n]; Python integers where int64 ends."""
    rounded = np.ceil(usd * QUANTUMS_PER_USD)
    small = rounded.max(initial=0.0) < 2.0**62
    integers: AnyArray = (
        rounded.astype(np.int64) if small else np.asarray([int(value) for value in rounded], dtype=object)
    )
    return integers


class DydxV4Engine:
    """Requirements by dYdX v4's liquidity tiers; every position stands alone, there are no offsets.

    Parameters
    ----------
    custom_ppm : the initial fraction that an account chose for a market, by (account_id, symbol).

    Raises
    ------
    ConfigError : a custom fraction outside (0, 1_000_000] ppm.
    """

    name = "dydx_v4"

    def __init__(self, custom_ppm: Mapping[tuple[str, str], int] | None = None) -> None:
        self._custom = dict(custom_ppm or {})
        for (account, symbol), ppm in self._custom.items():
            if not 0 < ppm <= ONE_MILLION:
                raise ConfigError(
                    f"the custom fraction of '{account}' for '{symbol}' is {ppm} ppm",
                    fix="state parts per million in (0, 1000000], or leave it out",
                )

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
        notional = quantums_up(np.abs(positions.size * mark))
        maintenance, fraction = np.zeros_like(notional), self._custom_ppm(book)
        pairs, codes = positions.markets
        interest = (state or VenueState()).of("open_interest_usd", pairs)
        for row, (_, symbol) in enumerate(pairs):
            tier, mine = liquidity_tier(symbol, ts), codes == row
            known = None if np.isnan(interest[row]) else math.ceil(interest[row] * QUANTUMS_PER_USD)
            maintenance[mine] = tier.maintenance_quantums(notional[mine])
            fraction[mine] = np.maximum(fraction[mine], tier.initial_fraction_ppm(known))
        held, asked = maintenance.astype(np.float64), ceil_ppm(notional, fraction).astype(np.float64)
        return EngineMargins(
            sum_by_account(book, asked) / QUANTUMS_PER_USD,
            sum_by_account(book, held) / QUANTUMS_PER_USD,
            held / QUANTUMS_PER_USD,
            _net_collateral_usd(book, mark, ts),
        )

    def _custom_ppm(self, book: AccountBook) -> AnyArray:
        """The account's own fraction for each position [n_positions] int64, 0 = none."""
        owners = book.account_id[book.positions.account].tolist()
        keys = zip(owners, book.positions.symbol.tolist(), strict=True)
        return np.asarray([self._custom.get(key, 0) for key in keys], dtype=np.int64)


def _net_collateral_usd(book: AccountBook, mark: Float1D, ts: int) -> Float1D:
    """Total net collateral, rounded down to whole quantums, USD [n_accounts]."""
    positions, rows = book.positions, book.collateral
    counted = parameters(load_facts("dydx_v4_tiers")["collateral"], ts)
    at_par = (rows.chain == counted["chain"]) & (rows.asset == counted["asset"])
    deposits = sum_by(rows.account, np.where(at_par, rows.amount, 0.0), len(book))
    profit = positions.size * (mark - positions.entry_price)
    margin = np.where(positions.isolated, np.nan_to_num(positions.isolated_margin_usd), 0.0)
    total = book.cash_usd + deposits + sum_by_account(book, profit + margin)
    return np.asarray(np.floor(total * QUANTUMS_PER_USD) / QUANTUMS_PER_USD)
