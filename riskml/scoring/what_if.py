"""Books and their surroundings as they would be: after trades, and after a move of prices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np

from riskml.arrays import Bool1D, Float1D
from riskml.errors import DataError, nearest
from riskml.facts import load_facts
from riskml.risk.accounts import AccountBook, Positions
from riskml.risk.collateral import Conditions
from riskml.risk.engines.interface import current_marks
from riskml.risk.outcome import Decisions
from riskml.risk.pool_books import with_known_margins
from riskml.risk.settled_profit import settle_asset
from riskml.risk.sums import sum_by
from riskml.scoring.prices import is_number

_ALL = "*"


def find_moves(
    book: AccountBook,
    shock: Mapping[str, float] | float | None,
    known: Collection[str],
    conditions: Conditions,
    ts: int,
) -> dict[str, float]:
    """The moves of a shock by name, ``*`` for all other markets.

    Parameters
    ----------
    shock : see :meth:`riskml.scoring.Scorer.what_if`.
    known : names that a shock may have, beside the book's markets, assets and what its profit is paid in, and
        the assets whose peg is known.

    Raises
    ------
    DataError : a move <= -1 or none; a name that nothing here has; an asset with another one's live price.
    """
    moves = {} if shock is None else dict(shock) if isinstance(shock, Mapping) else {_ALL: shock}
    for name, move in moves.items():
        if not is_number(move) or not np.isfinite(move) or move <= -1.0:
            raise DataError(
                f"a shock has to be a fraction above -1, found {move!r}",
                market=str(name),
                fix="write -0.2 for a fall by 20 %",
            )
    pairs = book.positions.markets[0]
    assets = {str(asset) for _, asset in book.collateral.holdings[0]}
    names = {*known, *conditions.peg_price_usd, *conditions.redemption_usd, *assets, _ALL}
    names |= {symbol for _, symbol in pairs} | {str(symbol) for symbol in book.orders.symbol}
    names |= {settle_asset(venue, symbol, ts) for venue, symbol in pairs}
    facts = load_facts("assets")["asset"]
    for name in moves:
        if name not in names:
            raise DataError(
                f"the shock names '{name}', which is no market here.{nearest(str(name), sorted(names))}",
                market=str(name),
                fix="use the symbols of the book, e.g. BTC",
            )
        of = str(facts.get(name, {}).get("market", name)) if facts.get(name, {}).get("live_price") else name
        if of != name:
            raise DataError(
                f"the shock names '{name}', which has the live price of {of}", market=name, fix=f"name {of}"
            )
    return moves


def moved_prices(prices: Mapping[str, float], moves: Mapping[str, float]) -> dict[str, float]:
    """Live prices by symbol after the moves."""
    return {symbol: price * _move(symbol, moves) for symbol, price in prices.items()}


def moved_conditions(conditions: Conditions, moves: Mapping[str, float]) -> Conditions:
    """The conditions with the peg of every asset that the moves name moved, price and redemption alike.

    From par, where it is above: that is what the asset counts for. A move of all markets moves no peg.
    """
    by_name = {name: 1.0 + move for name, move in moves.items() if name != _ALL}
    if not by_name:
        return conditions

    def moved(values: Mapping[str, float]) -> dict[str, float]:
        return {
            asset: float(np.minimum(value, 1.0)) * by_name[asset] if asset in by_name else value
            for asset, value in values.items()
        }

    return replace(
        conditions,
        peg_price_usd=moved(conditions.peg_price_usd),
        redemption_usd=moved(conditions.redemption_usd),
        settle_price_usd={**by_name, **moved(conditions.settle_price_usd)},
    )


def moved_book(
    book: AccountBook, before: AccountBook, prices: Mapping[str, float], moves: Mapping[str, float]
) -> AccountBook:
    """The book with its marks and the prices of its collateral moved; without a move, as it is.

    A mark that is unknown stays so, unless it moves: then it is the moved price by which it was valued. The
    venue's own maintenance goes with the exposure.

    Parameters
    ----------
    before : the same accounts before they traded; their maintenance is of what they held then.
    prices : live prices by symbol before the moves.
    """
    positions, collateral = book.positions, book.collateral
    factor = np.array([_move(str(symbol), moves) for symbol in positions.symbol], dtype=np.float64)
    mark, missing = current_marks(positions, prices)
    valued = np.where(missing & (factor != 1.0), mark, positions.mark_price)
    traded = {str(symbol) for symbol in positions.symbol} | set(prices)
    assets = [_asset_move(str(asset), moves, traded) for asset in collateral.asset]
    moved = replace(
        book,
        positions=replace(positions, mark_price=valued * factor),
        collateral=replace(collateral, price_usd=collateral.price_usd * np.array(assets, dtype=np.float64)),
    )
    held = _notional(before, before.positions, np.ones(len(before.positions.size)), prices)
    now = _notional(book, positions, factor, prices)
    stated = before.maintenance_margin_usd
    # Of an account that held nothing it becomes unknown.
    maintenance = stated * np.divide(now, held, out=np.full(len(held), np.nan), where=held > 0.0)
    idle = (now == 0.0) & (held == 0.0)
    return replace(moved, maintenance_margin_usd=np.where(idle, stated, maintenance))


def with_margins_of_traders(
    book: AccountBook, prices: Mapping[str, float], trading: Bool1D, score: Callable[[AccountBook], Decisions]
) -> AccountBook:
    """The book with the isolated margins that are not published fixed, of the accounts that trade.

    A trade would else move them: each is its position's part of the equity.

    Parameters
    ----------
    trading : [n_accounts].
    score : says what the collateral is worth now; asked only where a margin is not published.
    """
    positions = book.positions
    unknown = positions.isolated & np.isnan(positions.isolated_margin_usd) & (positions.size != 0.0)
    if not (unknown & trading[positions.account]).any():
        return book
    mark, _ = current_marks(positions, prices)
    return with_known_margins(book, mark, score(book).collateral_usd, trading)


def _notional(
    book: AccountBook, positions: Positions, factor: Float1D, prices: Mapping[str, float]
) -> Float1D:
    """Sum of |size x mark x factor| of each account at the book's own marks [n_accounts]."""
    current, _ = current_marks(positions, prices)
    mark = np.where(np.isnan(positions.mark_price), current, positions.mark_price)
    return sum_by(positions.account, np.abs(positions.size * mark * factor), len(book))


def _move(name: str, moves: Mapping[str, float]) -> float:
    """Factor of a symbol, or of ``venue:symbol``."""
    symbol = name.rpartition(":")[2]
    return 1.0 + moves.get(symbol, moves.get(_ALL, 0.0))


def _asset_move(asset: str, moves: Mapping[str, float], traded: Collection[str]) -> float:
    """Factor of an asset: its own, else its market's. A move of all markets does not move a stablecoin."""
    facts = load_facts("assets")["asset"].get(asset, {})
    if asset in moves or "pegged_to" in facts:
        return 1.0 + moves.get(asset, 0.0)
    market = str(facts.get("market", ""))
    return _move(market or asset, moves) if market or asset in traded else 1.0
