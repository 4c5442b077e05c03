"""Drift v2: size premium, weighted deposits and profits, in the program's integers.

With base sizes in 1e9 units, size factors (imf) in 1e6 and ratios and weights in 1e4, ``//`` rounding down::

    root             = floor(sqrt(10 size + 1))                                          (1e5 units)
    margin ratio     = max(MR, MR - MR // 5 + root imf // 10^7)              about .8 MR + imf sqrt(size)
    asset weight     = min(w, 1.1 * 10^10 // (10^6 + root imf // 10^5))      about 1.1 / (1 + imf sqrt(size))
    initial weight   = w, or w start // deposits where the market's deposits >= start; then the asset weight
    profit weight    = 1 for a loss; initial: w, or w cap // net where the users' net profit > cap; then
                       the asset weight of the profit in USD; a position's profit counts up to 100 USD
    strict price     = min(oracle, 5 min TWAP) of a deposit, max of a debt (initial only)
    requirement      = sum |size| price ratio // 10^4 ;  liquidatable <=> collateral < maintenance

Source: drift-labs/protocol-v2 (0ae3e3b; read here at 006ba85, 0015e4a and 04c1f94), programs/drift/src:
math/margin.rs, math/oracle.rs, state/perp_market.rs, state/spot_market.rs, state/oracle.rs. Ratios and
weights are the program's integers; amounts in USD stay floats (the program rounds them to 1e-6).

``initial_usd`` is compared with :meth:`DriftV2Engine.collateral_usd` under ``initial=True``; ``equity_usd``
is the collateral at maintenance weights, which the venue compares with ``maintenance_usd``.

Missing inputs, never in the account's favour. An unlisted market has the default's high ratios, an unlisted
asset is worth nothing. For the initial margin: unknown deposits of a scaled asset, or an unknown five-minute
TWAP of any, make a deposit count nothing; an unknown net profit makes profits count nothing. An unpriced
deposit counts nothing, and neither does an isolated margin that is not published. Cash is in the quote asset,
at 1 USD and weight 1; a negative one (which the program adds to the requirement) is taken off the collateral.
As in the program, a position is worth its oracle price; strict are the prices of deposits. Open orders and
users' own limits are not counted. :mod:`riskml.risk.engines.drift_v2_oracle` tells whether a price is valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Float1D, Int1D
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook, Positions
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account
from riskml.risk.engines.lookup import holding_prices, listed_entry
from riskml.risk.sums import sum_by

ONE_1E4 = 10_000
"""1 in the precision of ratios and weights (MARGIN_PRECISION)."""
_ISQRT = np.frompyfunc(math.isqrt, 1, 1)
_INT = np.frompyfunc(int, 1, 1)


def to_units(values: Float1D, precision: float) -> AnyArray:
    """Integers of a precision [n] Python ints, rounded to the nearest (the program holds integers)."""
    return np.asarray(_INT(np.rint(np.asarray(values, dtype=np.float64) * precision)), dtype=object)


def size_root_1e5(size_1e9: AnyArray) -> AnyArray:
    """``floor(sqrt(10 size + 1))`` [n] Python ints, exact for any size."""
    return np.asarray(_ISQRT(10 * np.asarray(size_1e9, dtype=object) + 1), dtype=object)


def margin_ratio_1e4(size_1e9: AnyArray, ratio_1e4: AnyArray, imf_1e6: AnyArray) -> Int1D:
    """Margin ratio of a position's size, premium included [n].

    Parameters
    ----------
    size_1e9 : [n] base units, >= 0.
    ratio_1e4 : [n] initial or maintenance ratio of the market.
    imf_1e6 : [n] size factor; 0 = no premium.
    """
    ratio, imf = np.asarray(ratio_1e4, dtype=object), np.asarray(imf_1e6, dtype=object)
    premium = ratio - ratio // 5 + size_root_1e5(size_1e9) * imf // 10**7
    return np.asarray(np.where(imf == 0, ratio, np.maximum(ratio, premium)), dtype=np.int64)


def asset_weight_1e4(size_1e9: AnyArray, weight_1e4: AnyArray, imf_1e6: AnyArray) -> Int1D:
    """Weight of a deposit's size, discount included [n]; the same units as the margin ratio's."""
    weight, imf = np.asarray(weight_1e4, dtype=object), np.asarray(imf_1e6, dtype=object)
    discounted = 11 * 10**5 * ONE_1E4 // (10**6 + size_root_1e5(size_1e9) * imf // 10**5)
    return np.asarray(np.where(imf == 0, weight, np.minimum(weight, discounted)), dtype=np.int64)


def scaled_initial_weight_1e4(weight_1e4: AnyArray, deposits_1e6: AnyArray, start_1e6: AnyArray) -> Int1D:
    """Initial weight of an asset of which all users have deposited ``deposits_1e6`` USD [n].

    A start of 0 turns the scaling off.
    """
    weight, start = np.asarray(weight_1e4, dtype=object), np.asarray(start_1e6, dtype=object)
    deposits = np.asarray(deposits_1e6, dtype=object)
    scaled = weight * start // np.maximum(deposits, 1)
    return np.asarray(np.where((start == 0) | (deposits < start), weight, scaled), dtype=np.int64)


def profit_initial_weight_1e4(
    profit_1e6: AnyArray,
    weight_1e4: AnyArray,
    imf_1e6: AnyArray,
    net_profit_1e6: AnyArray,
    max_imbalance_1e6: AnyArray,
) -> Int1D:
    """Weight of an open profit for the initial margin [n]; a loss weighs 1.

    Parameters
    ----------
    profit_1e6 : [n] the position's open profit, USD.
    weight_1e4, imf_1e6 : [n] weight and size factor of the market's profits.
    net_profit_1e6 : [n] open profit of all the market's users, net.
    max_imbalance_1e6 : [n] from where on the weight is scaled down; 0 turns the scaling off.
    """
    weight, cap = np.asarray(weight_1e4, dtype=object), np.asarray(max_imbalance_1e6, dtype=object)
    profit, net = np.asarray(profit_1e6, dtype=object), np.asarray(net_profit_1e6, dtype=object)
    scaled = np.where((cap > 0) & (net > cap), weight * cap // np.maximum(net, 1), weight)
    sized = asset_weight_1e4(np.maximum(profit, 0) * 1000, scaled, imf_1e6)
    return np.asarray(np.where(profit > 0, sized, ONE_1E4), dtype=np.int64)


def strict_price(oracle: Float1D, twap: Float1D, side: AnyArray) -> Float1D:
    """The worse of oracle price and TWAP [n] for what is owned (side > 0) or owed (< 0).

    NaN handling: an unknown price or TWAP gives NaN.
    """
    return np.asarray(np.where(np.asarray(side) > 0, np.minimum(oracle, twap), np.maximum(oracle, twap)))


class DriftV2Engine:
    """Requirements and weighted collateral of Drift v2, all positions counted as cross."""

    name = "drift_v2"

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
        pairs, codes = positions.markets
        perps = perp_entries(pairs, ts)
        size, imf = to_units(np.abs(positions.size), 1e9), entry_column(perps, "imf_1e6", codes)
        notional = np.abs(positions.size * mark)
        initial, maintenance = (
            notional * margin_ratio_1e4(size, entry_column(perps, name, codes), imf) / ONE_1E4
            for name in ("initial_ratio_1e4", "maintenance_ratio_1e4")
        )
        return EngineMargins(
            sum_by_account(book, initial),
            sum_by_account(book, maintenance),
            maintenance,
            self.collateral_usd(book, prices, ts, state),
        )

    def collateral_usd(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
        *,
        initial: bool = False,
    ) -> Float1D:
        """Collateral of each account [n_accounts] as weighed for the maintenance or the initial margin."""
        state = state or VenueState()
        positions = book.positions
        mark, _ = current_marks(positions, prices)
        profit = positions.size * (mark - positions.entry_price)
        weighted = _weighted_profit_usd(positions, profit, ts, state, initial=initial)
        isolated = np.where(positions.isolated, np.nan_to_num(positions.isolated_margin_usd), 0.0)
        deposits = _deposits_usd(book, holding_prices(book.collateral, prices), ts, state, initial=initial)
        held = sum_by(book.collateral.account, deposits, len(book))
        return np.asarray(book.cash_usd + held + sum_by_account(book, weighted + isolated))


def _weighted_profit_usd(
    positions: Positions, profit: Float1D, ts: int, state: VenueState, *, initial: bool
) -> Float1D:
    pairs, codes = positions.markets
    perps = perp_entries(pairs, ts)
    if not initial:
        weight = entry_column(perps, "profit_maintenance_weight_1e4", codes)
        return np.asarray(np.where(profit > 0.0, profit * weight / ONE_1E4, profit))
    net = state.of("net_user_pnl_usd", pairs)[codes]
    cap = entry_column(perps, "max_imbalance_usd", codes)
    counts = (cap == 0.0) | ~np.isnan(net)
    weight = profit_initial_weight_1e4(
        to_units(profit, 1e6),
        np.where(counts, entry_column(perps, "profit_initial_weight_1e4", codes), 0),
        entry_column(perps, "profit_imf_1e6", codes),
        to_units(np.nan_to_num(net), 1e6),
        to_units(cap, 1e6),
    )
    most = valid_at(load_facts("drift_v2_markets")["rules"], ts)["max_initial_profit_usd"]
    return np.asarray(np.minimum(profit * weight / ONE_1E4, most))


def _deposits_usd(book: AccountBook, price: Float1D, ts: int, state: VenueState, *, initial: bool) -> Float1D:
    """Weighted value of every collateral row [n_collateral]; one asset's chains share the discount."""
    rows, (pairs, codes) = book.collateral, book.collateral.holdings
    facts = load_facts("drift_v2_markets")
    spots = [listed_entry(facts["spot"], facts["spot_default"], asset, ts) for _, asset in pairs]
    amount = np.where(price > 0.0, rows.amount, 0.0)
    assets = np.unique([asset for _, asset in pairs], return_inverse=True)[1][codes]
    _, holding = np.unique(rows.account * len(pairs) + assets, return_inverse=True)
    size = to_units(sum_by(holding, amount, len(amount))[holding], 1e9)
    weight = entry_column(spots, "initial_weight_1e4" if initial else "maintenance_weight_1e4", codes)
    if initial:
        deposits, start = (
            state.of("deposits_usd", pairs)[codes],
            entry_column(spots, "scale_start_usd", codes),
        )
        scaled = scaled_initial_weight_1e4(
            weight, to_units(np.nan_to_num(deposits), 1e6), to_units(start, 1e6)
        )
        weight = np.where((start > 0.0) & np.isnan(deposits), 0, scaled)
        price = np.nan_to_num(strict_price(price, state.of("twap_price", pairs)[codes], np.ones(len(price))))
    return np.asarray(
        amount * price * asset_weight_1e4(size, weight, entry_column(spots, "imf_1e6", codes)) / ONE_1E4
    )


def perp_entries(markets: Sequence[tuple[str, str]], ts: int) -> list[dict[str, Any]]:
    """Facts of each (venue, symbol) in force at ``ts``; the default's for an unlisted symbol."""
    facts = load_facts("drift_v2_markets")
    valid_at(facts["rules"], ts)
    return [listed_entry(facts["perp"], facts["perp_default"], symbol, ts) for _, symbol in markets]


def entry_column(entries: Sequence[dict[str, Any]], name: str, codes: Int1D) -> AnyArray:
    """One figure of the facts, for rows that hold a place among them [n]."""
    return np.asarray([entry[name] for entry in entries])[codes]
