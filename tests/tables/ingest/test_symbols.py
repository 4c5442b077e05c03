"""Names of contracts: what they become, and which are refused."""

from __future__ import annotations

import pytest

from riskml.errors import ContractError
from riskml.tables.ingest.symbols import parse_symbol


@pytest.mark.parametrize(
    ("venue", "name", "symbol", "base", "quote", "multiplier"),
    [
        ("binance", "BTCUSDT", "BTC", "BTC", "USDT", 1.0),
        ("binance", "1000PEPEUSDT", "kPEPE", "PEPE", "USDT", 1000.0),
        ("binance", "1000000BABYDOGEUSDT", "MBABYDOGE", "BABYDOGE", "USDT", 1e6),
        ("binance", "1INCHUSDT", "1INCH", "1INCH", "USDT", 1.0),
        ("binance", "BTCUSDC", "BTC-USDC", "BTC", "USDC", 1.0),
        ("hyperliquid", "kPEPE", "kPEPE", "PEPE", "USD", 1000.0),
        ("hyperliquid", "KAS", "KAS", "KAS", "USD", 1.0),
        ("dydx", "BTC-USD", "BTC", "BTC", "USD", 1.0),
        ("deribit", "AVAX", "AVAX", "AVAX", "USD", 1.0),
        ("deribit", "BTC_USDC-PERPETUAL", "BTC", "BTC", "USDC", 1.0),
        ("okx", "BTC-USDT-SWAP", "BTC", "BTC", "USDT", 1.0),
        ("gate", "BTC_USDT", "BTC", "BTC", "USDT", 1.0),
        ("bitmex", "XBTUSDT", "BTC", "BTC", "USDT", 1.0),
        ("binance", "BUSDUSDT", "BUSD", "BUSD", "USDT", 1.0),
        ("never_seen", "NEW", "NEW", "NEW", "USD", 1.0),
        ("never_seen_spot", "BTCUSD", "BTC", "BTC", "USD", 1.0),
        ("binance", "币安人生USDT", "币安人生", "币安人生", "USDT", 1.0),
        ("binance", "BTC/USDT:USDT", "BTC", "BTC", "USDT", 1.0),
    ],
)
def test_names_become_symbols(venue, name, symbol, base, quote, multiplier):
    parsed = parse_symbol(name, venue)
    assert (parsed.symbol, parsed.base, parsed.quote) == (symbol, base, quote)
    assert parsed.contract_multiplier == multiplier
    assert parsed.vendor_symbol == name


def test_a_spot_venue_makes_spot_instruments():
    assert parse_symbol("BTCUSDT", "binance_spot").kind == "spot"
    assert parse_symbol("BTCUSDT", "binance").kind == "linear"
    assert parse_symbol("BTCUSD", "never_seen_spot").kind == "spot"


def test_a_market_of_a_sub_exchange_is_not_taken_for_the_sub_exchange():
    with pytest.raises(ContractError, match="'xyz:TSLA' does not name an asset"):
        parse_symbol("xyz:TSLA", "hyperliquid")


@pytest.mark.parametrize(
    ("venue", "name"),
    [
        ("binance", "BTCUSD_PERP"),
        ("hyperliquid", "BTCUSD_PERP"),
        ("binance", "BTCUSD_250926"),
        ("bitmex", "XBTUSD"),
        ("bitmex", "XBTM24USDM24"),
        ("bybit", "BTCUSDH25"),
        ("okx", "BTC-USD-SWAP"),
        ("deribit", "BTC-PERPETUAL"),
    ],
)
def test_inverse_contracts_are_refused_by_name(venue, name):
    with pytest.raises(ContractError, match=f"'{name}' is an inverse") as caught:
        parse_symbol(name, venue)
    assert caught.value.problems[0].code == "inverse-contract"
    assert caught.value.market == f"{venue}:{name}"
    assert "BTCUSDT" in caught.value.fix


@pytest.mark.parametrize("name", ["FOO", "XAU$USDT", "USDT"])
def test_a_name_that_says_no_quote_is_refused_where_names_are_pairs(name):
    with pytest.raises(ContractError, match="does not name an asset and a known quote") as caught:
        parse_symbol(name, "binance")
    assert caught.value.problems[0].code == "unknown-symbol"
