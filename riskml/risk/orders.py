"""Open orders: what they add to the initial margin in the worst case.

Of the orders in one market any subset may fill, so that market's exposure may end anywhere between
``net - sells`` and ``net + buys``. Two bounds of the requirement after the worst fills hold for every
convex and homogeneous law, and the smaller one counts::

    B = requirement + sum_i max(long_i buys_i, short_i sells_i)      every fill adds, none offsets
    A = sum_i max(long_i (net_i + buys_i)+, short_i (sells_i - net_i)+, own_i)    no offsets at all

``long_i`` and ``short_i`` are what 1 USD of market i needs alone, ``own_i`` what its position needs.
Losses are exponential in the move, so the bounds hold up to about 1 % of the requirement. An order that
only closes a lone position adds nothing by A, one that closes a hedge does. An order that is
reduce-only cannot add exposure and is left out. Orders change the initial margin alone: maintenance and
probability are of positions that exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, Int1D
from riskml.risk.accounts import AccountBook
from riskml.risk.margin import liquidity_cost
from riskml.risk.policy import MarginPolicy
from riskml.risk.pools import Pools, Rows
from riskml.risk.sums import sum_by


@dataclass(frozen=True)
class OrderMargin:
    """Per pool, the two bounds of the initial margin after the worst fills."""

    added_usd: Float1D
    """[n_pools] what bound B adds; 0 where no order can add exposure."""
    alone_usd: Float1D
    """[n_pools] bound A, for the positions without moving collateral."""
    floor_usd: Float1D
    """[n_pools] static floor of positions and worst fills."""

    def apply(self, initial_usd: Float1D, moving_usd: Float1D) -> Float1D:
        """Initial margin with the worst fills; ``moving_usd`` [n_pools] is what bound A leaves out."""
        bound = np.maximum(np.minimum(initial_usd + self.added_usd, self.alone_usd + moving_usd), initial_usd)
        return np.where(self.added_usd > 0.0, np.maximum(bound, self.floor_usd), initial_usd)


def order_margin(
    book: AccountBook,
    pools: Pools,
    rows: Rows,
    order_symbol: Int1D,
    mark: Float1D,
    prices: Mapping[str, float],
    unit_usd: Float2D,
    liquidity_usd: Float1D,
    policy: MarginPolicy,
) -> OrderMargin | None:
    """What open orders may add; None where none can add exposure.

    Parameters
    ----------
    rows : exposures of the pools, from :func:`riskml.risk.pools.make_rows`.
    order_symbol : [n_orders] row of each order's symbol among ``rows``' markets.
    mark : [n_positions] current price of each position.
    prices : live prices by ``symbol`` or ``venue:symbol``.
    unit_usd : [n_symbols, 2] initial margin of 1 USD, long and short.
    liquidity_usd : [n_symbols] what a market can absorb; NaN = unknown.
    """
    orders = book.orders
    adds = ~orders.reduce_only & (orders.size != 0.0)
    if not adds.any():
        return None
    n_symbols, n_pools = len(unit_usd), len(pools.account)
    value = (orders.size * _fill_price(book, mark, prices))[adds]
    pool = order_pools(book, pools)[adds]
    held = rows.is_position
    key, place = np.unique(
        np.concatenate(
            [rows.pool[held] * n_symbols + rows.market[held], pool * n_symbols + order_symbol[adds]]
        ),
        return_inverse=True,
    )
    of_rows, of_orders = place[: int(held.sum())], place[int(held.sum()) :]
    net = sum_by(of_rows, rows.exposure_usd[held], len(key))
    gross = sum_by(of_rows, np.abs(rows.exposure_usd[held]), len(key))
    buys = sum_by(of_orders, np.maximum(value, 0.0), len(key))
    sells = sum_by(of_orders, np.maximum(-value, 0.0), len(key))
    owner, symbol = key // n_symbols, key % n_symbols
    long, short = unit_usd[symbol, 0], unit_usd[symbol, 1]
    own = np.where(net >= 0.0, long, short) * np.abs(net)
    filled = np.maximum(long * np.maximum(net + buys, 0.0), short * np.maximum(sells - net, 0.0))
    alone = np.maximum(filled, own) + (gross - np.abs(net)) * np.maximum(long, short)
    worst = np.maximum(np.maximum(np.abs(net + buys), np.abs(net - sells)), np.abs(net))
    depth = liquidity_usd[symbol]
    closing, closing_now = liquidity_cost(worst, depth, policy), liquidity_cost(net, depth, policy)
    extra = worst - np.abs(net)
    total = sum_by(owner, gross + extra, n_pools)
    add_on = np.where(total >= policy.concentration_min_usd, policy.concentration_rate, 0.0)
    fills = np.maximum(long * buys, short * sells)
    return OrderMargin(
        sum_by(owner, fills, n_pools) * (1.0 + add_on) + sum_by(owner, closing - closing_now, n_pools),
        sum_by(owner, alone, n_pools) * (1.0 + add_on) + sum_by(owner, closing, n_pools),
        policy.initial_floor * total,
    )


def _fill_price(book: AccountBook, mark: Float1D, prices: Mapping[str, float]) -> Float1D:
    """The dearer of limit and current price [n_orders]: an order through the market fills at the market."""
    positions, orders = book.positions, book.orders
    # Of the account's own position alone: another account's mark would make a book's parts differ from it.
    keys = zip(positions.account.tolist(), positions.venue, positions.symbol, strict=True)
    marks = dict(zip(keys, mark.tolist(), strict=True))
    wanted = zip(orders.account.tolist(), orders.venue, orders.symbol, strict=True)
    current = [
        prices.get(f"{venue}:{symbol}", prices.get(symbol, marks.get((account, venue, symbol), 0.0)))
        for account, venue, symbol in wanted
    ]
    return np.fmax(orders.price, np.asarray(current, dtype=np.float64))


def order_pools(book: AccountBook, pools: Pools) -> Int1D:
    """The isolated position that an order would change, else its account's cross pool [n_orders]."""
    positions, orders = book.positions, book.orders
    isolated: Bool1D = positions.isolated
    keys = zip(
        positions.account[isolated].tolist(),
        positions.venue[isolated],
        positions.symbol[isolated],
        strict=True,
    )
    alone = dict(zip(keys, pools.position_pool[isolated].tolist(), strict=True))
    wanted = zip(orders.account.tolist(), orders.venue, orders.symbol, strict=True)
    return np.asarray([alone.get(key, key[0]) for key in wanted], dtype=np.int64)
