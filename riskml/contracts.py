"""The table contracts of riskml, declared once without any table library.

``riskml.tables.contracts`` derives the pyarrow schemas and enforces them on lake reads;
``riskml.scoring`` enforces the same declarations on the rows that it observes. Every
table has ``ts`` (when it happened) and ``known_at`` (when a live engine would have had
the row); the key is the listed key + ``known_at``, so that a revision is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from riskml.errors import ContractError, nearest

Kind = Literal["time", "text", "float", "int", "bool"]
Sign = Literal["any", "positive", "non-negative", "fraction"]
Partition = Literal["market", "chain", "asset", "date", "none"]


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    required: bool = True
    """A required column is present in every input; an optional one is filled with null, or with
    an empty name where null is not allowed."""
    nullable: bool = False
    """A cell may be null (NaN), meaning "the venue does not publish it"."""
    sign: Sign = "any"


@dataclass(frozen=True)
class TableContract:
    """A table: its key, its columns beyond the key and how the lake partitions it."""

    name: str
    meaning: str
    key: tuple[str, ...]
    """Key columns without ``known_at``, which belongs to every key."""
    columns: tuple[Column, ...]
    """Every column, in the order in which it is stored."""
    partition: Partition

    @property
    def full_key(self) -> tuple[str, ...]:
        """The key with ``known_at``: two rows with an equal full key are a duplicate."""
        return (*self.key, "known_at")

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise ContractError(
            f"there is no column '{name}'.{nearest(name, self.column_names)}", table=self.name
        )


def _time(name: str, meaning: str) -> Column:
    return Column(name, "time", "us UTC", meaning)


def _text(name: str, meaning: str, *, required: bool = True) -> Column:
    return Column(name, "text", "", meaning, required=required, nullable=not required)


def _number(name: str, unit: str, meaning: str, *, sign: Sign = "any", optional: bool = False) -> Column:
    return Column(name, "float", unit, meaning, required=not optional, nullable=optional, sign=sign)


def _amount(name: str, unit: str, meaning: str) -> Column:
    """An optional number that is never negative."""
    return _number(name, unit, meaning, sign="non-negative", optional=True)


_TS = _time("ts", "when it happened; bars and marks carry their close time")
_KNOWN = _time("known_at", "when a live engine would have had this row")
_VENUE = _text("venue", "exchange, e.g. binance")
_SYMBOL = _text("symbol", "market in riskml's naming: BTC, kPEPE (= 1000 PEPE)")
_ACCOUNT = _text("account_id", "account")
_INTERVAL = _text("interval", "bar length, e.g. 1h")
_CHAIN = _text(
    "chain",
    "chain, e.g. ethereum; 'multi' = bridges that serve many, 'all' and '*_total' = totals, in no sum",
)

_MARKET_ROW = (_TS, _KNOWN, _VENUE, _SYMBOL)
_ACCOUNT_ROW = (_TS, _KNOWN, _ACCOUNT)
_CHAIN_ROW = (_TS, _KNOWN, _CHAIN)

_OHLC = tuple(
    _number(name, "quote", f"{name} price of the bar", sign="positive")
    for name in ("open", "high", "low", "close")
)

_TABLES = (
    TableContract(
        "instruments",
        "static facts of a market",
        ("venue", "symbol"),
        (
            _VENUE,
            _SYMBOL,
            _TS,
            _KNOWN,
            _text("base", "base asset"),
            _text("quote", "quote asset"),
            _text("settle_asset", "asset in which profit is paid"),
            _number("contract_multiplier", "base units", "base assets per unit of symbol", sign="positive"),
            _text("kind", "linear or spot; inverse contracts are refused by name"),
            _text("vendor_symbol", "the venue's own name", required=False),
            Column("listing", "time", "us UTC", "first trade", required=False, nullable=True),
            Column("delisting", "time", "us UTC", "last trade", required=False, nullable=True),
        ),
        "none",
    ),
    TableContract(
        "bars",
        "traded price and volume per bar; ts is the bar's close",
        ("ts", "venue", "symbol", "interval"),
        (
            *_MARKET_ROW,
            _INTERVAL,
            *_OHLC,
            _number("volume", "base", "traded volume", sign="non-negative"),
            _amount("quote_volume", "quote", "traded value"),
            _amount("trades", "count", "number of trades"),
            _amount("taker_buy_volume", "base", "volume bought by takers"),
        ),
        "market",
    ),
    TableContract(
        "marks",
        "mark and index price per bar; ts is the bar's close",
        ("ts", "venue", "symbol", "interval"),
        (
            *_MARKET_ROW,
            _INTERVAL,
            *(
                _number(
                    f"{kind}_{name}",
                    "quote",
                    f"{kind} price, {name} of the bar",
                    sign="positive",
                    optional=True,
                )
                for kind in ("mark", "index")
                for name in ("open", "high", "low", "close")
            ),
        ),
        "market",
    ),
    TableContract(
        "funding",
        "funding paid at ts",
        ("ts", "venue", "symbol"),
        (
            *_MARKET_ROW,
            _number("rate", "fraction per interval", "paid by longs to shorts when positive"),
            _number("interval_h", "hours", "time that the rate covers", sign="positive"),
        ),
        "market",
    ),
    TableContract(
        "open_interest",
        "open interest at ts",
        ("ts", "venue", "symbol"),
        (
            *_MARKET_ROW,
            _amount("open_interest", "base", "open contracts"),
            _amount("open_interest_usd", "usd", "open contracts in USD"),
        ),
        "market",
    ),
    TableContract(
        "depth",
        "order book depth around the mid price",
        ("ts", "venue", "symbol", "band_bps"),
        (
            *_MARKET_ROW,
            _number("band_bps", "bps", "half width of the band", sign="positive"),
            _number("bid_usd", "usd", "resting bids within the band", sign="non-negative"),
            _number("ask_usd", "usd", "resting asks within the band", sign="non-negative"),
            _amount("spread_bps", "bps", "best ask over best bid"),
        ),
        "market",
    ),
    TableContract(
        "taker_flow",
        "what takers bought and sold in the bar that ends at ts",
        ("ts", "venue", "symbol", "interval"),
        (
            *_MARKET_ROW,
            _text("interval", "time that the row covers, e.g. 4h; rows may be further apart"),
            _amount("buy_volume", "base", "volume bought by takers"),
            _amount("sell_volume", "base", "volume sold by takers"),
            _amount("buy_usd", "usd", "value bought by takers"),
            _amount("sell_usd", "usd", "value sold by takers"),
        ),
        "market",
    ),
    TableContract(
        "long_short",
        "how a group of accounts is positioned at ts",
        ("ts", "venue", "symbol", "population"),
        (
            *_MARKET_ROW,
            _text("population", "who is counted: global_account, top_account or top_position"),
            _number("long_fraction", "fraction", "share that is long; the rest is short", sign="fraction"),
        ),
        "market",
    ),
    TableContract(
        "liquidations",
        "forced closes; account_id is empty where the source gives totals only",
        ("ts", "venue", "symbol", "account_id", "side"),
        (
            *_MARKET_ROW,
            _ACCOUNT,
            _text("side", "long or short: the side that was closed"),
            _amount("size", "base", "closed size"),
            _number("price", "quote", "price of the close", sign="positive", optional=True),
            _number("notional_usd", "usd", "closed value", sign="non-negative"),
        ),
        "market",
    ),
    TableContract(
        "flows",
        "value moved over bridges, supply and lending rate, per chain and asset",
        ("ts", "chain", "asset", "source"),
        (
            *_CHAIN_ROW,
            _text("asset", "asset, or ALL where the source has none"),
            _text("source", "who reports it, e.g. a bridge's name"),
            _amount("inflow_usd", "usd", "value that came in"),
            _amount("outflow_usd", "usd", "value that went out"),
            _amount("supply_usd", "usd", "circulating supply"),
            _number("lending_rate", "fraction per year", "borrow rate", optional=True),
        ),
        "chain",
    ),
    TableContract(
        "chains",
        "state of a chain; a column is null where the row's source does not give it",
        ("ts", "chain", "source"),
        (
            *_CHAIN_ROW,
            Column("source", "text", "", "who reports it; empty where there is one source", required=False),
            _amount("tvl_usd", "usd", "total value locked"),
            _amount("gas_usd", "usd per transaction", "cost of a transaction"),
            _amount("gas_gwei", "gwei", "mean gas price"),
            _amount("tx_count", "count", "transactions in the period"),
            _amount("active_addresses", "count", "addresses that sent or received in the period"),
            _amount("block_time_s", "seconds", "mean time between blocks"),
        ),
        "chain",
    ),
    TableContract(
        "pegs",
        "price of a pegged asset, and what redeeming it yields",
        ("ts", "venue", "asset"),
        (
            _TS,
            _KNOWN,
            _VENUE,
            _text("asset", "pegged asset, e.g. USDC"),
            _number("price_usd", "usd", "market price", sign="positive"),
            _amount("redemption_usd", "usd", "value on redemption"),
        ),
        "asset",
    ),
    TableContract(
        "accounts",
        "state of an account",
        ("ts", "account_id"),
        (
            *_ACCOUNT_ROW,
            _text("margin_mode", "cross, isolated or portfolio"),
            _number("cash_usd", "usd", "cash; negative = owed"),
            _amount("maintenance_margin_usd", "usd", "the venue's own requirement"),
        ),
        "date",
    ),
    TableContract(
        "collateral",
        "assets that back an account, by chain",
        ("ts", "account_id", "chain", "asset"),
        (
            *_ACCOUNT_ROW,
            _CHAIN,
            _text("asset", "collateral asset"),
            _number("amount", "units", "units held", sign="non-negative"),
            _number("price_usd", "usd", "price of one unit", sign="non-negative"),
        ),
        "date",
    ),
    TableContract(
        "positions",
        "open positions",
        ("ts", "account_id", "venue", "symbol"),
        (
            *_ACCOUNT_ROW,
            _VENUE,
            _SYMBOL,
            _number("size", "base, signed", "positive = long"),
            _number("entry_price", "quote", "average entry price", sign="positive"),
            _number("mark_price", "quote", "price at which it is valued", sign="positive"),
            _text("margin_mode", "cross or isolated"),
            _amount("isolated_margin_usd", "usd", "margin set aside for an isolated position"),
            _number(
                "accrued_funding_usd",
                "usd",
                "funding accrued and not yet settled; positive = the account receives it",
                optional=True,
            ),
        ),
        "date",
    ),
    TableContract(
        "orders",
        "open orders",
        ("ts", "account_id", "order_id"),
        (
            *_ACCOUNT_ROW,
            _text("order_id", "order"),
            _VENUE,
            _SYMBOL,
            _number("size", "base, signed", "positive = buy"),
            _number("price", "quote", "limit price", sign="positive"),
            Column("reduce_only", "bool", "", "may only shrink a position", required=False, nullable=True),
        ),
        "date",
    ),
    TableContract(
        "trades",
        "fills",
        ("ts", "account_id", "venue", "symbol", "sequence"),
        (
            *_ACCOUNT_ROW,
            _VENUE,
            _SYMBOL,
            Column("sequence", "int", "count", "order of the fill within its source"),
            _number("size", "base, signed", "positive = bought"),
            _number("price", "quote", "fill price", sign="positive"),
            Column("is_taker", "bool", "", "took liquidity", required=False, nullable=True),
        ),
        "date",
    ),
    TableContract(
        "ledger",
        "deposits, withdrawals and funding",
        ("ts", "account_id", "sequence"),
        (
            *_ACCOUNT_ROW,
            Column("sequence", "int", "count", "order of the entry within its source"),
            _number("delta_usd", "usd", "change of cash"),
            _text("kind", "deposit, withdrawal, funding or other"),
        ),
        "date",
    ),
    TableContract(
        "margins",
        "what the risk engine decided, one row per account and time",
        ("ts", "account_id", "engine", "bundle_id"),
        (
            *_ACCOUNT_ROW,
            _text("engine", "riskml or a yardstick engine"),
            _text("bundle_id", "bundle that made the forecast; empty for a static engine"),
            _number("equity_usd", "usd", "cash + collateral after haircuts + open profit"),
            _number("collateral_usd", "usd", "collateral after haircuts"),
            _number("initial_margin_usd", "usd", "needed to open or add", sign="non-negative"),
            _number("maintenance_margin_usd", "usd", "needed to keep", sign="non-negative"),
            _number("p_liq_1h", "probability", "liquidation within 1 h", sign="fraction", optional=True),
            _number("p_liq_8h", "probability", "liquidation within 8 h", sign="fraction", optional=True),
            _number("p_liq_24h", "probability", "liquidation within 24 h", sign="fraction", optional=True),
            _number("distance_1h", "scales", "distance to liquidation at 1 h", optional=True),
            _number("distance_8h", "scales", "distance to liquidation at 8 h", optional=True),
            _number("distance_24h", "scales", "distance to liquidation at 24 h", optional=True),
            _amount("risk_score", "0-100", "one score over all chains and venues"),
            _text("action", "normal, watch, restrict or deleverage"),
            _text("reasons", "names of the reasons, separated by |", required=False),
            _text("top_contributions", "largest legs as symbol=share, separated by |", required=False),
            _text("barrier", "whose maintenance is the barrier: venue, riskml or an engine"),
            Column("in_sample", "bool", "", "the bundle had seen this time"),
            _text("policy_hash", "sha256 of the margin policy"),
        ),
        "date",
    ),
)

CONTRACTS: dict[str, TableContract] = {table.name: table for table in _TABLES}
"""Every table by name."""


def contract(name: str) -> TableContract:
    """The contract of a table; an unknown name suggests the nearest.

    >>> contract("bars").key
    ('ts', 'venue', 'symbol', 'interval')
    """
    try:
        return CONTRACTS[name]
    except KeyError:
        raise ContractError(
            f"there is no table '{name}'.{nearest(name, CONTRACTS)}",
            table=name,
            fix=f"use one of {', '.join(CONTRACTS)}",
        ) from None
