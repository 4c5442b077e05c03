"""Names of markets: from a venue's own contract name to riskml's symbol.

``BTCUSDT`` -> ``BTC``; ``1000PEPEUSDT`` -> ``kPEPE`` with a contract multiplier of 1000;
``BTC-USD`` of dYdX -> ``BTC``. Inverse (coin-margined) contracts pay profit in the coin
itself, so that their risk is not linear in price: they are refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from riskml.errors import ContractError, Problem
from riskml.facts import load_facts
from riskml.markets import venue_kind
from riskml.tables.names import INVERSE

_SEPARATED = re.compile(r"[A-Za-z0-9]+[-_/]USD")
_DECORATION = re.compile(r"(?:[-_](?:PERP|SWAP|PERPETUAL))$")
_SEPARATORS = "-_/"
_ASSET = re.compile(r"[^\W_]{1,24}")
"""Letters and digits of any script: venues list assets by Chinese names too."""
_SETTLED = re.compile(r":[A-Z0-9]+$")
"""Settle asset behind a colon (BTC/USDT:USDT). A market of a venue's sub-exchange has its colon in front."""
_UNKNOWN_VENUE_QUOTES = ("USDT", "USDC", "USD")


@dataclass(frozen=True)
class Instrument:
    """What a venue's contract name says."""

    venue: str
    """Exchange."""
    symbol: str
    """riskml's name, e.g. ``kPEPE``."""
    base: str
    """Asset, e.g. ``PEPE``."""
    quote: str
    """Asset in which the price is given."""
    settle_asset: str
    """Asset in which profit is paid."""
    contract_multiplier: float
    """Base assets per unit of the symbol, e.g. 1000 for ``kPEPE``."""
    kind: str
    """``linear`` or ``spot``."""
    vendor_symbol: str
    """The venue's own name."""


def parse_symbol(vendor_symbol: str, venue: str) -> Instrument:
    """Read a venue's contract name.

    Raises
    ------
    ContractError : an inverse contract (code ``inverse-contract``), or a name that does
        not say what is traded (``unknown-symbol``).
    """
    facts = load_facts("venues")["venue"].get(venue, {})
    name = _DECORATION.sub("", _SETTLED.sub("", vendor_symbol) if "/" in vendor_symbol else vendor_symbol)
    spot = is_spot(venue)
    if not spot and _is_inverse(vendor_symbol, facts):
        raise _refuse(
            "inverse-contract",
            venue,
            vendor_symbol,
            f"'{vendor_symbol}' is an inverse (coin-margined) contract; only linear ones are supported",
            "use the contract that settles in a stablecoin, e.g. BTCUSDT",
        )
    base, quote = _split(name, facts)
    if base is None or not _ASSET.fullmatch(base):
        raise _refuse(
            "unknown-symbol",
            venue,
            vendor_symbol,
            f"'{vendor_symbol}' does not name an asset and a known quote",
            f"known quotes: {', '.join(load_facts('symbols')['quotes'])}; add one to facts/symbols.toml",
        )
    asset, multiplier, symbol = _multiple(base)
    default = facts.get("quote")
    usual = _UNKNOWN_VENUE_QUOTES if default is None else (default, facts["settle_asset"])
    plain = quote in usual
    return Instrument(
        venue,
        symbol if plain else f"{symbol}-{quote}",
        asset,
        quote,
        facts.get("settle_asset", quote) if plain else quote,
        multiplier,
        "spot" if spot else "linear",
        vendor_symbol,
    )


def is_spot(venue: str) -> bool:
    """Whether a venue trades spot: by the facts, or, when they do not know it, by its name.

    >>> is_spot("binance_spot"), is_spot("never_seen_spot"), is_spot("binance")
    (True, True, False)
    """
    return venue_kind(venue) == "spot"


def _is_inverse(name: str, facts: dict[str, Any]) -> bool:
    """A contract quoted in plain USD settles in the coin, but on venues that settle in a stablecoin."""
    if name.endswith("-PERPETUAL"):
        return "USD" not in name.removesuffix("-PERPETUAL")
    if INVERSE.search(name):
        return True
    bare = bool(facts.get("bare_names"))
    if _SEPARATED.fullmatch(name):
        return bool(facts) and not bare
    shortest = 3 if bare or not facts else 1  # TUSD and FDUSD are assets, BTCUSD is a pair
    return name.endswith("USD") and len(name) - len("USD") >= shortest


def _split(name: str, facts: dict[str, Any]) -> tuple[str | None, str]:
    quotes = sorted(load_facts("symbols")["quotes"], key=len, reverse=True)
    for quote in quotes:
        base = name.removesuffix(quote).rstrip(_SEPARATORS)
        if name.endswith(quote) and base:
            return base, quote
    if facts and not facts.get("bare_names"):
        return None, ""
    return name, facts.get("quote", "USD")


def _multiple(base: str) -> tuple[str, float, str]:
    """Asset, multiplier and symbol of a base such as ``1000PEPE``, ``kPEPE`` or ``XBT``."""
    facts = load_facts("symbols")
    for entry in facts["multiple"]:
        rest = base.removeprefix(entry["prefix"])
        if rest != base and rest and rest[0].isupper():
            return rest, float(entry["multiplier"]), entry["name"] + rest
    asset = facts["alias"].get(base, base)
    return asset, 1.0, asset


def _refuse(code: str, venue: str, name: str, message: str, fix: str) -> ContractError:
    market = f"{venue}:{name}"
    problem = Problem(code, message, fix, "instruments", market)
    return ContractError(message, table="instruments", market=market, fix=fix, problems=(problem,))
