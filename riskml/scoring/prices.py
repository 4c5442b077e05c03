"""The newest price of every symbol, by which books are marked again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from riskml.arrays import AnyArray
from riskml.errors import DataError
from riskml.units import format_us


def is_number(value: object) -> bool:
    """A real number, not text and not a truth value."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


class PriceBook:
    """Newest known price per symbol with its time; older prices never replace newer ones."""

    def __init__(self) -> None:
        self._prices: dict[str, tuple[int, float]] = {}

    def update(self, symbol: str, price: float, ts: int) -> bool:
        """Take a price; False = an older one than is known, and left out.

        Raises
        ------
        DataError : the price is not positive and finite.
        """
        if not (is_number(price) and np.isfinite(price) and price > 0):
            raise DataError(
                f"a price has to be positive and finite, found {price!r} at {format_us(ts)}",
                market=symbol,
                fix="drop the tick; the last good price stays in force",
            )
        known = self._prices.get(symbol)
        if known is not None and known[0] > ts:
            return False
        self._prices[symbol] = (ts, float(price))
        return True

    def newer_than(self, ts: int | None) -> dict[str, float]:
        """Prices of symbols that are newer than ``ts``; None = all of them.

        A book's own marks are as good as ours until a newer price arrives.
        """
        return {symbol: price for symbol, (seen, price) in self._prices.items() if ts is None or seen > ts}

    def to_arrays(self) -> dict[str, AnyArray]:
        """For a saved state."""
        return {
            "symbol": np.array(list(self._prices), dtype=np.str_),
            "ts": np.array([ts for ts, _ in self._prices.values()], dtype=np.int64),
            "price": np.array([price for _, price in self._prices.values()], dtype=np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> PriceBook:
        """The inverse of :meth:`to_arrays`."""
        book = cls()
        for symbol, ts, price in zip(arrays["symbol"], arrays["ts"], arrays["price"], strict=True):
            book._prices[str(symbol)] = (int(ts), float(price))
        return book
