"""What a market is: a symbol on its reference venue.

A market is *named* by its symbol (``BTC``, ``kPEPE``). Positions may sit on any venue;
the forecast of a symbol comes from one reference venue, by the order of preference in
``facts/venues.toml``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from riskml.errors import DataError, nearest
from riskml.facts import load_facts

SPOT_SUFFIX = "_spot"
"""A venue's spot market is the venue's name with this behind it."""
_REFERENCES = {"perpetual": 0, "generated": 1}
"""Kinds of venues that can describe a symbol, and their rank."""


@dataclass(frozen=True, order=True)
class Market:
    """A symbol and the venue whose bars describe it."""

    symbol: str
    """riskml's name: ``BTC``, or ``kPEPE`` for 1000 PEPE."""
    venue: str
    """Reference venue, e.g. ``binance``."""

    def __str__(self) -> str:
        return f"{self.venue}:{self.symbol}"


def symbols(markets: Iterable[Market]) -> list[str]:
    """The names of the markets, in order."""
    return [market.symbol for market in markets]


@cache
def venue_kind(venue: str) -> str:
    """What ``facts/venues.toml`` says a venue is; one that it lacks is told by its name.

    >>> venue_kind("binance"), venue_kind("coinglass"), venue_kind("new_spot"), venue_kind("new")
    ('perpetual', 'aggregate', 'spot', 'perpetual')
    """
    facts = load_facts("venues")["venue"].get(venue)
    if facts is not None:
        return str(facts["kind"])
    return "spot" if venue.endswith(SPOT_SUFFIX) else "perpetual"


def venue_order(venues: Collection[str]) -> list[str]:
    """Order venues by preference as the reference of a symbol; those that never are one are left out.

    Listed venues come first, venues that the facts do not know next (by name), and the
    generated one (``sim``) last.
    """
    facts = load_facts("venues")["venue"]
    last = max(int(fact["preference"]) for fact in facts.values())
    usable = [name for name in venues if venue_kind(name) in _REFERENCES]
    return sorted(
        usable,
        key=lambda name: (
            _REFERENCES[venue_kind(name)],
            int(facts[name]["preference"]) if name in facts else last,
            name,
        ),
    )


def choose(wanted: Sequence[str] | str, available: Sequence[Market]) -> list[Market]:
    """Pick markets by name (``BTC`` or ``binance:BTC``) or ``"all"``, in the order asked.

    Raises
    ------
    DataError : a name is unknown (with the nearest known name) or appears twice.
    """
    if isinstance(wanted, str):
        if wanted == "all":
            return list(available)
        wanted = [name for name in wanted.split(",") if name]
    by_name = {market.symbol: market for market in available}
    by_name.update({str(market): market for market in available})
    chosen: list[Market] = []
    for name in wanted:
        if name not in by_name:
            known = symbols(available)
            raise DataError(
                f"there is no market '{name}'.{nearest(name, known)}",
                market=name,
                fix=f"known markets: {', '.join(known) if known else 'none'}",
            )
        if by_name[name] in chosen:
            raise DataError(f"market '{name}' is asked for twice", market=name)
        chosen.append(by_name[name])
    return chosen
