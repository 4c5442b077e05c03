"""What a name in a table has to look like: bar lengths, symbols, the parts of a path.

A symbol that says "inverse contract" is refused wherever it comes from: profit of such a
contract is paid in the coin itself, so that its risk is not linear in price, and every
margin computed for it would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from riskml.contracts import TableContract
from riskml.errors import ConfigError
from riskml.units import duration_us

INVERSE = re.compile(r"[A-Z0-9][-_/]?USD(?:_?PERP|[-_]SWAP|[-_]\d{6}|[FGHJKMNQUVXZ]\d\d)(?:\.[A-Z0-9]+)?$")
"""Perpetuals and dated futures quoted in plain USD: BTCUSD_PERP, BTC-USD-SWAP, BTCUSDM24."""
_PAIR = re.compile(r"[A-Z0-9]{3,}USD")
"""A pair in plain USD (XBTUSD). Shorter ones are assets: TUSD, FDUSD, PYUSD."""
_KINDS = ("linear", "spot")
_PATH_PARTS = ("venue", "symbol", "chain", "asset")
"""Columns whose names are folders of the lake."""
_LONGEST = 200
"""File systems take 255 bytes per folder, the column's name included."""


@dataclass(frozen=True)
class BadName:
    """A rule that some names of a column break."""

    code: str
    """Reason code of the problem."""
    names: frozenset[str]
    """The names that break it."""
    rule: str
    """What is required, to follow "column 'x'"."""
    fix: str


def is_inverse(symbol: str) -> bool:
    """Whether a symbol in riskml's naming is really the name of an inverse contract.

    >>> is_inverse("BTCUSD_PERP"), is_inverse("XBTUSD"), is_inverse("kPEPE"), is_inverse("FDUSD")
    (True, True, False, False)
    """
    return bool(INVERSE.search(symbol) or _PAIR.fullmatch(symbol))


_MAY_BE_EMPTY = {("liquidations", "account_id"), ("margins", "bundle_id"), ("chains", "source")}
"""Totals over accounts have no account, a static engine has no bundle, a chain's only source needs no
name; every other key names something."""


def bad_names(spec: TableContract, column: str, names: list[str]) -> Iterator[BadName]:
    """The rules that the names of a text column break; ``names`` are its distinct values."""
    if column == "interval":
        wrong = frozenset(name for name in names if not _is_duration(name))
        if wrong:
            yield BadName("wrong-interval", wrong, "has to be a bar length", "write 15m, 1h or 1d")
    if column == "symbol":
        wrong = frozenset(name for name in names if is_inverse(name))
        if wrong:
            rule = "names an inverse (coin-margined) contract; only linear ones are supported"
            yield BadName("inverse-contract", wrong, rule, "use the contract that settles in a stablecoin")
    if (spec.name, column) == ("instruments", "kind"):
        inverse = frozenset(names) & {"inverse"}
        wrong = frozenset(names) - {*_KINDS, *inverse}
        fix = "leave the contract out, or use the one that settles in a stablecoin"
        if inverse:
            yield BadName("inverse-contract", inverse, "may not be inverse", fix)
        if wrong:
            yield BadName("wrong-kind", wrong, f"has to be {' or '.join(_KINDS)}", fix)
    if column in _PATH_PARTS:
        long = frozenset(name for name in names if name and len(quote(name, safe="")) > _LONGEST)
        if long:
            rule = f"may have {_LONGEST} bytes as a part of a path"
            yield BadName("name-too-long", long, rule, "use the market's or the chain's short name")
    if "" in names and column in spec.key and (spec.name, column) not in _MAY_BE_EMPTY:
        yield BadName("empty-name", frozenset({""}), "may not be empty", "name it, or drop these rows")


def _is_duration(name: str) -> bool:
    try:
        return duration_us(name) > 0
    except ConfigError:
        return False
